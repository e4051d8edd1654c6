//! When an endpoint is left out for what became of the requests that it was sent: the rules, by Envoy's names and with its defaults
//! (<https://www.envoyproxy.io/docs/envoy/latest/api-v3/config/cluster/v3/outlier_detection.proto>).

use std::time::Duration;

/// The rules of one service. Those that enforce say in how many of a hundred cases what was found has consequences.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outlier {
    /// Answers of 5xx in a row that eject. At least 1.
    pub consecutive_5xx: u32,
    /// Of these, 502, 503 and 504. At least 1.
    pub consecutive_gateway_failure: u32,
    /// Failures in a row that are no answers, where these are counted by themselves. At least 1.
    pub consecutive_local_origin_failure: u32,
    /// Whether connects that fail, resets and time-outs are counted by themselves, and not as answers of 503 and 504.
    pub split_local_origin: bool,
    /// How often rates are compared, and it is seen whose ejection is over.
    pub interval: Duration,
    /// An ejection lasts for this, times how many there were.
    pub base_ejection: Duration,
    /// But no longer than this.
    pub max_ejection: Duration,
    /// And by up to this longer, by chance.
    pub ejection_jitter: Duration,
    /// Of a service's endpoints no more are ejected at a time.
    pub max_ejection_percent: u32,
    /// Whether one may be, whatever part of them that is.
    pub always_eject_one: bool,
    /// See [`Outlier::consecutive_5xx`].
    pub enforcing_consecutive_5xx: u32,
    /// See [`Outlier::consecutive_gateway_failure`].
    pub enforcing_consecutive_gateway_failure: u32,
    /// See [`Outlier::consecutive_local_origin_failure`].
    pub enforcing_consecutive_local_origin_failure: u32,
    /// For endpoints whose rate of success is far below the mean.
    pub enforcing_success_rate: u32,
    /// The same of failures that are no answers.
    pub enforcing_local_origin_success_rate: u32,
    /// Endpoints with enough requests that it takes to compare them. At least 1.
    pub success_rate_minimum_hosts: u32,
    /// Requests in an interval that are enough. At least 1.
    pub success_rate_request_volume: u32,
    /// How many thousandths of a standard deviation below the mean are far below.
    pub success_rate_stdev_factor: u32,
    /// For endpoints of whose requests too many fail.
    pub enforcing_failure_percentage: u32,
    /// The same of failures that are no answers.
    pub enforcing_failure_percentage_local_origin: u32,
    /// In percent: so many are too many. At least 1.
    pub failure_percentage_threshold: u32,
    /// Endpoints with enough requests that it takes. At least 1.
    pub failure_percentage_minimum_hosts: u32,
    /// Requests in an interval that are enough. At least 1.
    pub failure_percentage_request_volume: u32,
    /// Whether an endpoint is taken back when a probe of the service finds it well.
    pub probe_unejects: bool,
    /// A program and its arguments, run whenever an endpoint is ejected or comes back; empty: none.
    pub on_change: Vec<String>,
}

impl Default for Outlier {
    fn default() -> Self {
        Self {
            consecutive_5xx: 5,
            consecutive_gateway_failure: 5,
            consecutive_local_origin_failure: 5,
            split_local_origin: false,
            interval: Duration::from_secs(10),
            base_ejection: Duration::from_secs(30),
            max_ejection: Duration::from_secs(300),
            ejection_jitter: Duration::ZERO,
            max_ejection_percent: 10,
            always_eject_one: false,
            enforcing_consecutive_5xx: 100,
            enforcing_consecutive_gateway_failure: 0,
            enforcing_consecutive_local_origin_failure: 100,
            enforcing_success_rate: 100,
            enforcing_local_origin_success_rate: 100,
            success_rate_minimum_hosts: 5,
            success_rate_request_volume: 100,
            success_rate_stdev_factor: 1_900,
            enforcing_failure_percentage: 0,
            enforcing_failure_percentage_local_origin: 0,
            failure_percentage_threshold: 85,
            failure_percentage_minimum_hosts: 5,
            failure_percentage_request_volume: 50,
            probe_unejects: true,
            on_change: Vec::new(),
        }
    }
}
