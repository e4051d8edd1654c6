//! What is counted of a service's strategy, node-wide. It outlives a reload.

use std::sync::{
    Arc,
    atomic::{
        AtomicU64,
        Ordering::{AcqRel, Relaxed},
    },
};

/// Of one service.
#[derive(Debug, Default)]
pub struct Efforts {
    /// Requests that are being tried again now.
    retrying: AtomicU64,
    /// Requests that wait to be sent again.
    waiting: AtomicU64,
    /// How often requests were sent again, for each reason.
    retries: [AtomicU64; Cause::ALL.len()],
    /// How often each thing was done.
    done: [AtomicU64; Effort::ALL.len()],
}

/// What a strategy does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// A request was sent to another endpoint.
    Retried,
    /// It was not, because too many were already.
    OverBudget,
    /// A failure was answered as if nothing were the matter.
    Absorbed,
    /// A request was sent to one endpoint more than it would have been.
    Copied,
    /// A request was put by, to be sent again later.
    Deferred,
    /// One that was put by got its answer.
    Delivered,
    /// One that was put by was given up after its last try.
    Dropped,
    /// One that was put by was given up because the service, or its strategy, is gone.
    Orphaned,
    /// One was not put by, because too many were already.
    Full,
}

impl Effort {
    /// Each once.
    pub const ALL: [Self; 9] = [
        Self::Retried,
        Self::OverBudget,
        Self::Absorbed,
        Self::Copied,
        Self::Deferred,
        Self::Delivered,
        Self::Dropped,
        Self::Orphaned,
        Self::Full,
    ];

    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Retried => "retried",
            Self::OverBudget => "over_budget",
            Self::Absorbed => "absorbed",
            Self::Copied => "copied",
            Self::Deferred => "deferred",
            Self::Delivered => "delivered",
            Self::Dropped => "dropped",
            Self::Orphaned => "orphaned",
            Self::Full => "full",
        }
    }
}

/// Why a request is sent again: how an attempt has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// No connection came about.
    ConnectFailure,
    /// Nobody can have processed it, as the endpoint says or its connection shows.
    RefusedStream,
    /// No answer came, or none that is one.
    Reset,
    /// None came in time.
    Late,
    /// 502, 503 or 504.
    GatewayError,
    /// Another status from 500 on.
    ServerError,
    /// A status from 400 on.
    ClientError,
    /// A status below that.
    Status,
    /// A code of gRPC that was named.
    Grpc,
    /// It has not failed: another is asked because it takes long.
    Hedged,
}

impl Cause {
    /// Each once.
    pub const ALL: [Self; 10] = [
        Self::ConnectFailure,
        Self::RefusedStream,
        Self::Reset,
        Self::Late,
        Self::GatewayError,
        Self::ServerError,
        Self::ClientError,
        Self::Status,
        Self::Grpc,
        Self::Hedged,
    ];

    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::ConnectFailure => "connect_failure",
            Self::RefusedStream => "refused_stream",
            Self::Reset => "reset",
            Self::Late => "late",
            Self::GatewayError => "gateway_error",
            Self::ServerError => "5xx",
            Self::ClientError => "4xx",
            Self::Status => "status",
            Self::Grpc => "grpc",
            Self::Hedged => "hedged",
        }
    }

    /// Of an answer with this status.
    pub fn of_status(status: u16) -> Self {
        match status {
            502..=504 => Self::GatewayError,
            500.. => Self::ServerError,
            400.. => Self::ClientError,
            _ => Self::Status,
        }
    }
}

impl Efforts {
    /// One more.
    pub fn count(&self, effort: Effort) {
        self.done[effort as usize].fetch_add(1, Relaxed);
    }

    /// One more that is sent again.
    pub fn retried(&self, reason: Cause) {
        self.count(Effort::Retried);
        self.retries[reason as usize].fetch_add(1, Relaxed);
    }

    /// How many were, for this reason.
    pub fn retries(&self, reason: Cause) -> u64 {
        self.retries[reason as usize].load(Relaxed)
    }

    /// How many there were.
    pub fn of(&self, effort: Effort) -> u64 {
        self.done[effort as usize].load(Relaxed)
    }

    /// How many wait to be sent again.
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Relaxed)
    }

    /// A place among those that are tried again, if there is one: `may` is told how many there are.
    pub fn retry(self: &Arc<Self>, may: impl Fn(u64) -> bool) -> Option<Place> {
        Place::take(self, |efforts| &efforts.retrying, may)
    }

    /// A place among those that wait.
    pub fn wait(self: &Arc<Self>, may: impl Fn(u64) -> bool) -> Option<Place> {
        Place::take(self, |efforts| &efforts.waiting, may)
    }
}

/// A place among those of a kind, given back by dropping it.
#[derive(Debug)]
pub struct Place {
    efforts: Arc<Efforts>,
    kind: fn(&Efforts) -> &AtomicU64,
}

impl Place {
    fn take(efforts: &Arc<Efforts>, kind: fn(&Efforts) -> &AtomicU64, may: impl Fn(u64) -> bool) -> Option<Self> {
        let more = |taken| may(taken).then_some(taken + 1);
        kind(efforts).fetch_update(AcqRel, Relaxed, more).ok()?;
        Some(Self { efforts: Arc::clone(efforts), kind })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        (self.kind)(&self.efforts).fetch_sub(1, AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_given_back_by_dropping_it() {
        let efforts = Arc::<Efforts>::default();
        let two = |taken| taken < 2;
        let (first, second) = (efforts.wait(two), efforts.wait(two));
        assert!(first.is_some() && second.is_some() && efforts.wait(two).is_none());
        assert!(efforts.retry(two).is_some(), "places of another kind");
        drop(first);
        assert_eq!(efforts.waiting(), 1);
        assert!(efforts.wait(two).is_some());
    }

    #[test]
    fn efforts_are_counted_apart() {
        let efforts = Efforts::default();
        Effort::ALL.iter().enumerate().for_each(|(times, effort)| (0..times).for_each(|_| efforts.count(*effort)));
        assert!(Effort::ALL.iter().enumerate().all(|(times, effort)| efforts.of(*effort) == times as u64));
    }
}
