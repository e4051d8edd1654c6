//! How endpoints that are tried out get more and more of a route's requests.

use std::time::Duration;

/// The steps, and who watches over them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Canary {
    /// Parts of a hundred requests, each larger than the one before: 1 to 100, at least one.
    pub steps: Vec<u32>,
    /// How long each step lasts, at least.
    pub interval: Duration,
    /// What ends it.
    pub guard: Guard,
}

/// What the canary may not do, of the requests of one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    /// Fail more of a hundred than this: 0 to 99.
    pub error_percent: u32,
    /// Take longer than this until the answer begins, at the percentile; `None`: however long.
    pub latency: Option<Duration>,
    /// Of a hundred requests so many must be faster: 1 to 99.
    pub latency_percentile: u32,
    /// With fewer nothing is judged, and no step is taken; at least one.
    pub requests_min: u32,
}
