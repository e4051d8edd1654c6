//! What keeps a service alive when its endpoints fail: breakers, isolation, what stands in, and what can be switched to.

use std::time::Duration;

use super::threshold::Thresholds;

/// Most requests that try out a service whose breaker is half-open: they are counted in six bits.
pub const PROBES_MAX: u32 = 63;

/// How a service is guarded; nothing of it unless the file says so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    /// When it is asked no more for a while.
    pub breaker: Option<Breaker>,
    /// When one of its endpoints is.
    pub endpoint_breaker: Option<Breaker>,
    /// What its requests may take.
    pub isolation: Option<Isolation>,
    /// What stands for an answer that is not to be had.
    pub fallback: Option<Fallback>,
    /// What a switch makes of its requests.
    pub degrade: Option<Degrade>,
    /// How much of it there may be at once.
    pub thresholds: Option<Thresholds>,
    /// Whether an answer of the agent's own says why, in `x-sockway-reason`.
    pub tells_reason: bool,
}

impl Guard {
    /// Whether it has nothing to do.
    pub fn is_idle(&self) -> bool {
        *self == Self::default()
    }
}

/// When a service is asked no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breaker {
    /// What opens it.
    pub kind: Kind,
    /// How long it is open before it is tried. More than nothing.
    pub open_for: Duration,
    /// How many requests try it then, all of which must succeed; 0: it closes by itself.
    pub half_open_requests: u32,
    /// Whether the time after a failed try runs from when the try began, as Hystrix has it, and not from when it failed.
    pub rests_from_try: bool,
    /// Whether a request without a place in the isolation has failed, as Hystrix has it.
    pub counts_rejected: bool,
    /// What becomes of requests meanwhile.
    pub on_open: OnOpen,
}

/// What opens a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// So many of a hundred requests failed.
    ErrorRatio {
        /// Of a hundred, rounded; as many open it.
        percent: u32,
        /// In which requests.
        over: Over,
    },
    /// So many requests failed.
    ErrorCount {
        /// As many open it.
        errors: u32,
        /// In which requests.
        over: Over,
    },
    /// So many of a hundred requests were slow.
    SlowCalls {
        /// A request that takes longer is.
        slow: Duration,
        /// Of a hundred, rounded; as many open it.
        percent: u32,
        /// In which requests.
        over: Over,
    },
    /// So many requests in a row failed. At least 1.
    Consecutive(u32),
    /// More than so many requests came within a second. At least 1.
    Rate(u32),
}

/// Which requests are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Over {
    /// Those that ended within this. More than nothing.
    pub window: Duration,
    /// In how many parts of it they are counted; a part is forgotten at once. From 1 to 10.
    pub buckets: u32,
    /// If there are so many. At least 1.
    pub requests: u32,
}

/// What becomes of a request to a service whose breaker is open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum OnOpen {
    /// What the fallback says, if it is for that; otherwise it is refused.
    #[default]
    Fallback,
    /// It is refused.
    Fail,
    /// It goes to the service of this name.
    Cluster(String),
}

/// What requests of a service may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isolation {
    /// Until an answer begins.
    pub timeout: Option<Duration>,
    /// At once.
    pub concurrency: Option<u32>,
}

/// What stands for an answer that is not to be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fallback {
    /// For what; by [`Why`].
    pub on: Vec<Why>,
    /// What is said or asked instead.
    pub instead: Instead,
    /// How many requests may be on their way to who is asked instead.
    pub concurrency: Option<u32>,
}

/// What is said or asked instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Instead {
    /// This is said.
    Respond(Respond),
    /// The service of this name is asked.
    To(String),
}

/// An answer of the agent's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Respond {
    /// 200 to 599.
    pub status: u16,
    /// May be empty.
    pub body: String,
    /// Fields: names in lower case, and values that a head can hold.
    pub headers: Vec<(String, String)>,
    /// What a gRPC caller is told; `None`: what the status stands for.
    pub grpc_status: Option<u8>,
}

/// What a switch makes of requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Degrade {
    /// While this one of the file's switches is on.
    pub switch: String,
    /// What becomes of them.
    pub to: DegradeTo,
}

/// What becomes of a request while its service is degraded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DegradeTo {
    /// It is told this.
    Respond(Respond),
    /// So many of a hundred go to the service of this name.
    Shift {
        /// From 1 to 100.
        percent: u32,
        /// Whose endpoints take them.
        to: String,
    },
}

/// Why there is no answer of an endpoint, or none that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Why {
    /// The breaker is open.
    CircuitOpen,
    /// A request limit refused it.
    Limit,
    /// It found no place in the isolation.
    Concurrency,
    /// A threshold of the service kept it from it.
    Overflow,
    /// It was not answered in time.
    Timeout,
    /// No endpoint could be reached.
    Unreached,
    /// The endpoint gave no response, or none that is one.
    NoResponse,
    /// The endpoint's answer is of 5xx.
    ServerError,
    /// A switch degrades it.
    Degraded,
    /// There was no room for it, and none in the line of those who wait, or none in time.
    Pending,
}

impl Why {
    /// Each once.
    pub const ALL: [Self; 10] = [
        Self::CircuitOpen,
        Self::Limit,
        Self::Concurrency,
        Self::Overflow,
        Self::Timeout,
        Self::Unreached,
        Self::NoResponse,
        Self::ServerError,
        Self::Degraded,
        Self::Pending,
    ];

    /// The word for it in files, metrics and `x-sockway-reason`.
    pub fn word(self) -> &'static str {
        match self {
            Self::CircuitOpen => "circuit_open",
            Self::Limit => "limit",
            Self::Concurrency => "concurrency",
            Self::Overflow => "overflow",
            Self::Timeout => "timeout",
            Self::Unreached => "unreached",
            Self::NoResponse => "no_response",
            Self::ServerError => "5xx",
            Self::Degraded => "degraded",
            Self::Pending => "pending",
        }
    }
}
