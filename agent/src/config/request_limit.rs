//! How many requests a service takes: limits that the agent keeps, each by its known algorithm.

use std::time::Duration;

use super::tuning::Part;

/// Most that may be counted in a window, or be at once: the counts of a limit stand in one word.
pub const COUNT_MAX: u32 = (1 << 24) - 1;

/// One limit. A request passes when every limit of its service lets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestLimit {
    /// Unique within the service.
    pub name: String,
    /// What is limited, and how it is counted.
    pub kind: Kind,
    /// What is counted by itself; `None`: all requests together.
    pub by: Option<Part>,
    /// Of those, how many are remembered. At least 1.
    pub keys_max: u32,
    /// How long a request waits for its turn; `None`: it is refused at once. Of buckets only.
    pub wait_max: Option<Duration>,
    /// What who is refused is told.
    pub status: u16,
    /// Whether a gRPC caller is told RESOURCE_EXHAUSTED, and not what the status maps to.
    pub grpc_resource_exhausted: bool,
    /// Whether who is refused is told the limit too.
    pub tells_limit: bool,
}

/// How requests are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A bucket that holds `burst` tokens and gets `limit` in each `window`; each request takes one.
    TokenBucket {
        /// Tokens. At least 1.
        limit: u32,
        /// In which they come. More than nothing.
        window: Duration,
        /// The most that are there at once. At least 1.
        burst: u32,
        /// How many come at a time: all of them at the end of the time in which they would have come one by one. At least 1.
        fill: u32,
        /// Whether none is there at first.
        starts_empty: bool,
    },
    /// Requests leave one by one, `limit` in each `window`; who waits for his turn stands in a queue of `queue`.
    LeakyBucket {
        /// Requests. At least 1.
        limit: u32,
        /// In which they leave. More than nothing.
        window: Duration,
        /// How many may wait. With none, a request that comes before its turn is refused.
        queue: u32,
    },
    /// So many in each window; up to twice that where two windows meet.
    FixedWindow {
        /// Requests.
        limit: u32,
        /// How long a window is. More than nothing.
        window: Duration,
    },
    /// So many in any stretch as long as a window, as far as two counts tell: the window before counts as if its requests had come evenly.
    SlidingWindow {
        /// Requests.
        limit: u32,
        /// How long a window is. More than nothing.
        window: Duration,
    },
    /// So many at once.
    Concurrency {
        /// Requests.
        limit: u32,
    },
    /// So many in each second, but for a service that was idle: it begins with a `cold_factor`th of them, and gets all after `period`.
    WarmUp {
        /// Requests a second. At least 1.
        limit: u32,
        /// Seconds. At least 1.
        period_s: u32,
        /// At least 2.
        cold_factor: u32,
    },
}

impl Kind {
    /// The number of the limit, for people.
    pub fn limit(&self) -> u32 {
        match *self {
            Self::TokenBucket { limit, .. }
            | Self::LeakyBucket { limit, .. }
            | Self::FixedWindow { limit, .. }
            | Self::SlidingWindow { limit, .. }
            | Self::Concurrency { limit }
            | Self::WarmUp { limit, .. } => limit,
        }
    }
}
