//! What is counted of a service's request limits, node-wide. It outlives a reload, as long as the limit is the same.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use super::{PendingState, adaptive::Adaptive, keyed::Keyed};
use crate::config::{RequestLimit, request_limit::Kind};

/// What is known of one limit.
#[derive(Debug)]
pub struct LimitState {
    /// What was configured.
    pub config: RequestLimit,
    known: Known,
    line: Option<Arc<PendingState>>,
    /// Requests that passed at once.
    pub passed: AtomicU64,
    /// Requests that waited before they passed.
    pub waited: AtomicU64,
    /// Requests that were refused.
    pub refused: AtomicU64,
}

/// What was counted, in words that only the limit's judge understands.
#[derive(Debug)]
enum Known {
    /// Of all requests together; [`UNBORN`] until the first comes.
    Together(AtomicU64),
    /// Of each key.
    Each(Keyed),
    /// Of what it finds.
    Adaptive(Adaptive),
}

/// No word that a judge writes.
const UNBORN: u64 = u64::MAX;

/// Where in a limit a request is counted.
#[derive(Clone, Copy, Debug)]
pub struct LimitPlace(usize);

impl LimitState {
    fn new(config: &RequestLimit) -> Self {
        let known = match (Adaptive::of(&config.kind), &config.by) {
            (Some(adaptive), _) => Known::Adaptive(adaptive),
            (None, None) => Known::Together(AtomicU64::new(UNBORN)),
            (None, Some(_)) => Known::Each(Keyed::new(config.keys_max as usize)),
        };
        let (passed, waited, refused) = Default::default();
        let line = config.has_line().then(Arc::default);
        Self { config: config.clone(), known, line, passed, waited, refused }
    }

    /// Where requests of this key are counted, which is a hash. What was never asked for begins with the word `fresh`. `None`: there is no
    /// place, because all that might be forgotten `must_stay`.
    pub fn place(&self, key: u64, now_ns: u64, fresh: u64, must_stay: impl Fn(u64) -> bool) -> Option<LimitPlace> {
        match &self.known {
            Known::Together(word) => {
                if word.load(Relaxed) == UNBORN {
                    let _ = word.compare_exchange(UNBORN, fresh, Relaxed, Relaxed);
                }
                Some(LimitPlace(0))
            }
            Known::Each(table) => table.place(key, now_ns, fresh, must_stay).map(LimitPlace),
            Known::Adaptive(_) => Some(LimitPlace(0)),
        }
    }

    /// What is known of this key, if anything is.
    pub fn known(&self, key: u64) -> Option<u64> {
        let known = match &self.known {
            Known::Together(word) => word.load(Relaxed),
            Known::Each(table) => table.word(table.find(key)?).load(Relaxed),
            Known::Adaptive(_) => return None,
        };
        (known != UNBORN).then_some(known)
    }

    /// Who waits for a place, where somebody may.
    pub fn line(&self) -> Option<&Arc<PendingState>> {
        self.line.as_ref()
    }

    /// What is measured, if the limit follows that.
    pub fn adaptive(&self) -> Option<&Adaptive> {
        if let Known::Adaptive(adaptive) = &self.known { Some(adaptive) } else { None }
    }

    /// How many requests are on their way, where that is what is limited.
    pub fn open(&self) -> Option<u64> {
        match (&self.known, &self.config.kind) {
            (Known::Adaptive(adaptive), kind) if !matches!(kind, Kind::Admission { .. }) => {
                Some(adaptive.open.load(Relaxed))
            }
            (Known::Together(word), Kind::Concurrency { .. }) => match word.load(Relaxed) {
                UNBORN => Some(0),
                open => Some(open),
            },
            _ => None,
        }
    }

    /// What is known there.
    pub fn word(&self, place: LimitPlace) -> &AtomicU64 {
        match &self.known {
            Known::Together(word) => word,
            Known::Each(table) => table.word(place.0),
            Known::Adaptive(adaptive) => &adaptive.open,
        }
    }
}

/// Of these limits, in their order, with what there was of those that are the same.
pub(super) fn states(limits: &[RequestLimit], before: &[Arc<LimitState>]) -> Vec<Arc<LimitState>> {
    let state = |limit: &RequestLimit| {
        let known = before.iter().find(|known| known.config == *limit);
        known.map_or_else(|| Arc::new(LimitState::new(limit)), Arc::clone)
    };
    limits.iter().map(state).collect()
}
