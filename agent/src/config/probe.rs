//! How the endpoints of a service are probed.

use std::{ops::RangeInclusive, time::Duration};

/// The probes of one service, by Envoy's and HAProxy's rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// What is tried.
    pub kind: Kind,
    /// From one probe of an endpoint to the next.
    pub interval: Duration,
    /// The same, while no request has come by the agent for the service; never less.
    pub no_traffic_interval: Duration,
    /// Longest time for one.
    pub timeout: Duration,
    /// Good ones in a row that take an endpoint up. At least 1.
    pub rise: u32,
    /// Failures in a row that take it down. At least 1.
    pub fall: u32,
    /// By how much of the interval a probe is put off, by chance, in percent.
    pub jitter_percent: u32,
    /// Whether the next probe goes by the connection of the one before, where a request is asked.
    pub reuses: bool,
    /// A program and its arguments, run whenever an endpoint goes up or down; empty: none.
    pub on_change: Vec<String>,
}

/// What is tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Whether it accepts a connection.
    Tcp,
    /// Whether it answers a GET as expected, in HTTP/1.1 or, where that is what it is spoken to in, HTTP/2.
    Http {
        /// What is asked for.
        path: String,
        /// The `Host`; `None`: the service's name.
        host: Option<String>,
        /// Further fields of the request: names in lower case, and values that a head can hold.
        headers: Vec<(String, String)>,
        /// The statuses expected.
        expect: Vec<RangeInclusive<u32>>,
    },
    /// Whether `grpc.health.v1.Health/Check` says that it serves.
    Grpc {
        /// This; empty: all that it serves.
        service: String,
    },
    /// Whether this program, with these arguments, ends well.
    Command(Vec<String>),
}
