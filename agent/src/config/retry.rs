//! When a request is sent again, how soon, and how many of them at a time.

use std::time::Duration;

/// How failures are tried again. Statuses that are failures stand beside it, in the strategy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// So many times at most, after the first.
    pub attempts: u32,
    /// What is a failure, beside statuses.
    pub on: Failures,
    /// How long an attempt may wait for its answer to begin; `None`: as long as the service allows.
    pub per_try: Option<Duration>,
    /// How long is waited before; `None`: not at all, and no endpoint is asked twice.
    pub back_off: Option<BackOff>,
    /// How many of a service's requests may be retries at a time.
    pub budget: Budget,
    /// When another endpoint is asked without giving up the first; `None`: never.
    pub hedge: Option<Hedge>,
    /// Whether endpoints are told which attempt they get.
    pub tells: bool,
}

/// Failures that are no answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Failures {
    /// No connection came about.
    pub connect_failure: bool,
    /// The endpoint said that it has done nothing about the request, or cannot have.
    pub refused_stream: bool,
    /// The connection or the stream ended without an answer, or with none that is one.
    pub reset: bool,
    /// No answer began in time.
    pub late: bool,
    /// Codes of `grpc-status`, a bit each; these are tried again whatever the method is.
    pub grpc: u32,
}

/// Waits before retries: before the N-th a random part of (2^N − 1) times `base`, at most `max` (Envoy's).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackOff {
    /// Of which the first wait is a part.
    pub base: Duration,
    /// What no wait exceeds.
    pub max: Duration,
    /// Whether `Retry-After` and `X-RateLimit-Reset` say how long instead.
    pub heeds_answers: bool,
}

/// Envoy's budget: a part of what is in flight, or a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// So much of what a service's endpoints have in flight may be retries, in percent.
    pub percent: u32,
    /// So many at once are always allowed.
    pub min: u32,
}

impl Default for Budget {
    fn default() -> Self {
        Self { percent: 20, min: 3 }
    }
}

/// Further attempts while the first goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hedge {
    /// After so long without an answer.
    pub after: Duration,
    /// So many at most. At least 1.
    pub max: u32,
}

impl Retry {
    /// Dubbo's failover: whatever fails is tried at once at so many other endpoints.
    pub fn failover(attempts: u32) -> Self {
        let on = Failures { connect_failure: true, refused_stream: true, reset: true, late: true, grpc: 0 };
        Self { attempts, on, per_try: None, back_off: None, budget: Budget::default(), hedge: None, tells: false }
    }
}
