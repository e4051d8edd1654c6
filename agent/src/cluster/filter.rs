//! What is known of a service's filters, node-wide. It outlives a reload, as long as the filter is the same.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use super::{cache::Store, jwks::Fetched};
use crate::config::filter::{Filter, Kind};

/// What is known of one filter.
#[derive(Debug)]
pub struct FilterState {
    /// What was configured.
    pub config: Filter,
    /// What it keeps, if it keeps answers.
    pub store: Option<Arc<Store>>,
    /// Its keys, if they are fetched.
    pub fetched: Option<Arc<Fetched>>,
    counts: [AtomicU64; Outcome::ALL.len()],
}

/// What a filter did with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Let it pass as it was.
    Passed,
    /// Changed it, or its response.
    Changed,
    /// Refused it.
    Refused,
    /// Answered a preflight of CORS.
    Preflight,
    /// Held it back.
    Delayed,
    /// Answered it with a failure on purpose.
    Aborted,
    /// Reset it on purpose.
    Reset,
    /// Knew who asks.
    Accepted,
    /// Could not find that out.
    Failed,
    /// Answered it with what was kept.
    Hit,
    /// Had nothing kept to answer it with.
    Miss,
    /// Answered it with what was kept, and its endpoint has said that this still holds.
    Revalidated,
    /// Answered it with what was kept, although that was not fresh any more.
    Stale,
    /// Compressed its response.
    Compressed,
    /// Slowed its response on purpose.
    Slowed,
}

impl Outcome {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 15] = [
        Self::Passed,
        Self::Changed,
        Self::Refused,
        Self::Preflight,
        Self::Delayed,
        Self::Aborted,
        Self::Reset,
        Self::Accepted,
        Self::Failed,
        Self::Hit,
        Self::Miss,
        Self::Revalidated,
        Self::Stale,
        Self::Compressed,
        Self::Slowed,
    ];

    /// What metrics call it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Changed => "changed",
            Self::Refused => "refused",
            Self::Preflight => "preflight",
            Self::Delayed => "delayed",
            Self::Aborted => "aborted",
            Self::Reset => "reset",
            Self::Accepted => "accepted",
            Self::Failed => "failed",
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Revalidated => "revalidated",
            Self::Stale => "stale",
            Self::Compressed => "compressed",
            Self::Slowed => "slowed",
        }
    }

    /// Those that a filter may have.
    pub fn of(kind: &Kind) -> &'static [Self] {
        match kind {
            Kind::Headers(_) => &[Self::Changed],
            Kind::RequestId(_) => &[Self::Passed, Self::Changed],
            Kind::Cors(_) => &[Self::Passed, Self::Changed, Self::Preflight, Self::Refused],
            Kind::Access(_) | Kind::BodyLimit(_) => &[Self::Passed, Self::Refused],
            Kind::Jwt(jwt) if jwt.remote.is_some() => &[Self::Accepted, Self::Refused, Self::Failed],
            Kind::ApiKey(_) | Kind::Basic(_) | Kind::Jwt(_) => &[Self::Accepted, Self::Refused],
            Kind::External(_) => &[Self::Accepted, Self::Refused, Self::Failed],
            Kind::Fault(_) => &[Self::Passed, Self::Delayed, Self::Aborted, Self::Reset, Self::Slowed],
            Kind::Cache(_) => &[Self::Hit, Self::Miss, Self::Revalidated, Self::Stale, Self::Passed, Self::Refused],
            Kind::Compress(_) => &[Self::Passed, Self::Compressed],
        }
    }
}

impl FilterState {
    fn new(config: &Filter) -> Self {
        let store = match &config.kind {
            Kind::Cache(cache) => Some(Arc::new(Store::new(cache.bytes_max, cache.entry_bytes_max))),
            _ => None,
        };
        let fetched = match &config.kind {
            Kind::Jwt(jwt) => jwt.remote.as_ref().map(|remote| Arc::new(Fetched::new(remote))),
            _ => None,
        };
        Self { config: config.clone(), store, fetched, counts: Default::default() }
    }

    /// Counts what it did with a request.
    pub fn count(&self, outcome: Outcome) {
        self.counts[outcome as usize].fetch_add(1, Relaxed);
    }

    /// How often it did this.
    pub fn counted(&self, outcome: Outcome) -> u64 {
        self.counts[outcome as usize].load(Relaxed)
    }
}

/// Of these filters, in their order, with what there was of those that are the same.
pub(super) fn states(filters: &[Filter], before: &[Arc<FilterState>]) -> Vec<Arc<FilterState>> {
    let state = |filter: &Filter| {
        let known = before.iter().find(|known| known.config == *filter);
        known.map_or_else(|| Arc::new(FilterState::new(filter)), Arc::clone)
    };
    filters.iter().map(state).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_numbered_as_they_are_listed() {
        assert!(Outcome::ALL.iter().enumerate().all(|(index, outcome)| *outcome as usize == index));
    }

    #[test]
    fn what_is_the_same_goes_on_and_what_is_not_begins_anew() {
        let filter = |bytes| Filter { name: "a".into(), matches: None, kind: Kind::BodyLimit(bytes) };
        let first = states(&[filter(1)], &[]);
        first[0].count(Outcome::Refused);
        let second = states(&[filter(2), filter(1)], &first);
        let counted: Vec<u64> = second.iter().map(|state| state.counted(Outcome::Refused)).collect();
        assert_eq!(counted, [0, 1]);
    }
}
