//! What is counted of an endpoint, and of a service, to find endpoints that do worse than they should. What it means is `health`'s to say.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// Why an endpoint is ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Too many answers of 5xx in a row.
    Consecutive5xx,
    /// Too many of 502, 503 and 504.
    ConsecutiveGatewayFailure,
    /// Too many failures in a row that are no answers.
    ConsecutiveLocalOriginFailure,
    /// Its rate of success is far below the mean.
    SuccessRate,
    /// The same, of failures that are no answers.
    SuccessRateLocalOrigin,
    /// Too many of its requests failed.
    FailurePercentage,
    /// The same, of failures that are no answers.
    FailurePercentageLocalOrigin,
}

impl Reason {
    /// Each once.
    pub const ALL: [Self; 7] = [
        Self::Consecutive5xx,
        Self::ConsecutiveGatewayFailure,
        Self::ConsecutiveLocalOriginFailure,
        Self::SuccessRate,
        Self::SuccessRateLocalOrigin,
        Self::FailurePercentage,
        Self::FailurePercentageLocalOrigin,
    ];

    /// Envoy's word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Consecutive5xx => "consecutive_5xx",
            Self::ConsecutiveGatewayFailure => "consecutive_gateway_failure",
            Self::ConsecutiveLocalOriginFailure => "consecutive_local_origin_failure",
            Self::SuccessRate => "success_rate",
            Self::SuccessRateLocalOrigin => "success_rate_local_origin",
            Self::FailurePercentage => "failure_percentage",
            Self::FailurePercentageLocalOrigin => "failure_percentage_local_origin",
        }
    }
}

/// What is counted of one endpoint, by every worker.
#[derive(Debug, Default)]
pub struct Marks {
    /// Answers of 5xx in a row.
    pub consecutive_5xx: AtomicU32,
    /// Of 502, 503 and 504.
    pub consecutive_gateway_failure: AtomicU32,
    /// Failures in a row that are no answers.
    pub consecutive_local_origin_failure: AtomicU32,
    /// The answers of this interval, and what counts as one.
    pub external: Tally,
    /// The attempts of this interval, by whether there was an answer.
    pub local: Tally,
    /// How many times the base ejection an ejection lasts.
    pub multiplier: AtomicU32,
    /// When it was ejected last, in the node's milliseconds.
    pub ejected_at_ms: AtomicU64,
    /// How much longer that lasts, by chance.
    pub jitter_ms: AtomicU64,
}

/// How many there were, and how many of them were good.
#[derive(Debug, Default)]
pub struct Tally {
    all: AtomicU64,
    good: AtomicU64,
}

impl Tally {
    /// One more.
    pub fn count(&self, is_good: bool) {
        self.all.fetch_add(1, Relaxed);
        if is_good {
            self.good.fetch_add(1, Relaxed);
        }
    }

    /// All and good ones, which are counted from 0 again.
    pub fn take(&self) -> (u64, u64) {
        let all = self.all.swap(0, Relaxed);
        (all, self.good.swap(0, Relaxed).min(all))
    }
}

/// What is counted of the ejections of one service.
#[derive(Debug, Default)]
pub struct Ejections {
    /// Endpoints that are ejected now.
    pub active: AtomicU32,
    /// Endpoints that were, by [`Reason`].
    pub enforced: [AtomicU64; Reason::ALL.len()],
    /// Those that would have been, if more might be at a time.
    pub overflow: AtomicU64,
}

impl Ejections {
    /// How many there were for this reason.
    pub fn of(&self, reason: Reason) -> u64 {
        self.enforced[reason as usize].load(Relaxed)
    }
}
