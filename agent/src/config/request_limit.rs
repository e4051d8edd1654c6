//! How many requests a service takes: limits that the agent keeps, each by its known algorithm.

use std::{path::PathBuf, time::Duration};

use super::{tuning::Part, zone::Zone};

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
    /// The part of each day in which it holds; `None`: always.
    pub hours: Option<Hours>,
    /// How long a request waits for its turn; `None`: it is refused at once. Of limits that know when that is, or stand in a line.
    pub wait_max: Option<Duration>,
    /// What becomes of a request that does not pass.
    pub on_limit: OnLimit,
    /// What who is refused is told.
    pub status: u16,
    /// Whether a gRPC caller is told RESOURCE_EXHAUSTED, and not what the status maps to.
    pub grpc_resource_exhausted: bool,
    /// Whether who asks is told the limit, and what is left of it.
    pub tells_limit: bool,
    /// Whose processor time [`Kind::Bbr`] goes by; `None`: that of the endpoints on this host.
    pub cgroup: Option<PathBuf>,
}

/// A part of each day; from an end to the same it is all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hours {
    /// In seconds of the day.
    pub from_s: u32,
    /// In seconds of the day, or of the next if that is not later. Up to 86 400.
    pub until_s: u32,
    /// Whose clocks are meant.
    pub zone: Zone,
}

/// What becomes of a request that a limit does not let pass, nor wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnLimit {
    /// It is refused; the fallback of its service answers if it is for that.
    #[default]
    Reject,
    /// The fallback of its service answers, whatever else that is for.
    Fallback,
    /// It opens the breaker of its service, and goes the way of all that come while that is open.
    Break,
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
        /// By whose clocks windows begin; `None`: at some moment.
        aligned: Option<Zone>,
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
    /// So many at once as leave answers as fast as they can be.
    Gradient(Gradient),
    /// So many at once as get done, once the processor is busy.
    Bbr {
        /// What it goes by.
        window: Duration,
        /// In how many stretches. At least 1.
        stretches: u32,
        /// From when on the processor is busy, of 100.
        busy_percent: u32,
    },
    /// Fewer, the more fail.
    Admission {
        /// How many fewer.
        rules: Admission,
        /// In how many stretches the window is counted. At least 1.
        stretches: u32,
    },
}

/// Envoy's adaptive concurrency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gradient {
    /// Least at once, and as many as there are while the shortest time is measured. At least 1.
    pub least: u32,
    /// Most at once.
    pub most: u32,
    /// How often the limit is reckoned.
    pub window: Duration,
    /// Which of a window's answers it goes by, of 100.
    pub percentile: u32,
    /// How much longer than the shortest time is as good as that, in percent.
    pub buffer_percent: u32,
    /// How many answers tell the shortest time.
    pub measured_requests: u32,
    /// How often it is measured.
    pub measured_interval: Duration,
    /// Up to so much later than that, in percent.
    pub jitter_percent: u32,
}

/// Envoy's admission control, and the throttling of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// What it goes by.
    pub window: Duration,
    /// With less than this of 100 that succeed, some are refused. At least 1.
    pub success_percent: u32,
    /// The higher, the sooner. At least 1.
    pub aggression: u32,
    /// No more than so many of 100 are refused.
    pub refused_percent_max: u32,
    /// With fewer in the window none is.
    pub requests_min: u32,
    /// Whether what is refused counts as failed.
    pub counts_refused: bool,
}

impl RequestLimit {
    /// Whether requests stand in a line for it, because nobody knows when there will be room.
    pub fn has_line(&self) -> bool {
        self.wait_max.is_some() && matches!(self.kind, Kind::Concurrency { .. })
    }
}

impl Kind {
    /// The most that may be left of it.
    pub fn most(&self) -> u32 {
        if let Self::TokenBucket { burst, .. } = *self { burst } else { self.limit() }
    }

    /// The number of the limit, for people; 0 where it is found.
    pub fn limit(&self) -> u32 {
        match *self {
            Self::TokenBucket { limit, .. }
            | Self::LeakyBucket { limit, .. }
            | Self::FixedWindow { limit, .. }
            | Self::SlidingWindow { limit, .. }
            | Self::Concurrency { limit }
            | Self::WarmUp { limit, .. } => limit,
            Self::Gradient(_) | Self::Bbr { .. } | Self::Admission { .. } => 0,
        }
    }
}
