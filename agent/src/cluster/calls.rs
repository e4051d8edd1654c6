//! What became of the requests that met a breaker, and how long they took: counted only while somebody watches, so that it costs nobody else
//! more than a look.

use std::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{AcqRel, Relaxed},
};

/// Those who watch. Of the whole process, since they look at all breakers.
static WATCHERS: AtomicU32 = AtomicU32::new(0);

/// Milliseconds up to here are counted each by itself.
const EXACT: u64 = 16;
/// Then each doubling in so many parts.
const PARTS: u64 = 4;
/// Up to two minutes; what takes longer is counted with that.
pub const CALLS_BUCKETS: usize = 68;

/// Somebody watches, until this is dropped.
#[derive(Debug)]
pub struct Watching(());

impl Watching {
    /// Begins.
    pub fn begin() -> Self {
        WATCHERS.fetch_add(1, AcqRel);
        Self(())
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        WATCHERS.fetch_sub(1, AcqRel);
    }
}

/// What was counted.
#[derive(Debug)]
pub struct Calls {
    took: [AtomicU64; CALLS_BUCKETS],
    took_ms: AtomicU64,
    failed: AtomicU64,
    rejected: AtomicU64,
}

impl Default for Calls {
    fn default() -> Self {
        let (took_ms, failed, rejected) = Default::default();
        Self { took: std::array::from_fn(|_| AtomicU64::default()), took_ms, failed, rejected }
    }
}

/// The same at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallTally {
    /// Requests by how long they took: see [`CallTally::took_ms`].
    pub took: [u64; CALLS_BUCKETS],
    /// All of that, in milliseconds.
    pub sum_ms: u64,
    /// Those that failed.
    pub failed: u64,
    /// Requests that found no place in the isolation.
    pub rejected: u64,
}

impl Calls {
    /// Whether anything is to be counted.
    pub fn are_watched() -> bool {
        WATCHERS.load(Relaxed) > 0
    }

    /// One more that came to an end.
    pub fn count(&self, took_ms: u64, has_failed: bool) {
        self.took[bucket(took_ms)].fetch_add(1, Relaxed);
        self.took_ms.fetch_add(took_ms, Relaxed);
        self.failed.fetch_add(has_failed.into(), Relaxed);
    }

    /// One more that found no place.
    pub fn reject(&self) {
        self.rejected.fetch_add(1, Relaxed);
    }

    /// As of now.
    pub fn tally(&self) -> CallTally {
        CallTally {
            took: std::array::from_fn(|index| self.took[index].load(Relaxed)),
            sum_ms: self.took_ms.load(Relaxed),
            failed: self.failed.load(Relaxed),
            rejected: self.rejected.load(Relaxed),
        }
    }
}

impl CallTally {
    /// How many came to an end.
    pub fn ended(&self) -> u64 {
        self.took.iter().sum()
    }

    /// What came after `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            took: std::array::from_fn(|index| self.took[index].saturating_sub(before.took[index])),
            sum_ms: self.sum_ms.saturating_sub(before.sum_ms),
            failed: self.failed.saturating_sub(before.failed),
            rejected: self.rejected.saturating_sub(before.rejected),
        }
    }

    /// Within how many milliseconds so many of a thousand ended, to a fifth exactly; 0 of none.
    pub fn took_ms(&self, permille: u64) -> u64 {
        let rank = (self.ended() * permille).div_ceil(1_000).max(1);
        let mut seen = 0;
        let place = self.took.iter().position(|count| {
            seen += count;
            seen >= rank
        });
        place.map_or(0, most)
    }

    /// How long they took on average.
    pub fn mean_ms(&self) -> u64 {
        self.sum_ms.checked_div(self.ended()).unwrap_or(0)
    }
}

fn bucket(ms: u64) -> usize {
    if ms < EXACT {
        return ms as usize;
    }
    let doublings = u64::from(ms.ilog2());
    let part = (ms >> (doublings - 2)) & (PARTS - 1);
    ((EXACT + (doublings - 4) * PARTS + part) as usize).min(CALLS_BUCKETS - 1)
}

/// The most milliseconds that are counted there.
fn most(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < EXACT {
        return bucket;
    }
    let (doublings, part) = ((bucket - EXACT) / PARTS + 4, (bucket - EXACT) % PARTS);
    ((PARTS + part + 1) << (doublings - 2)) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_is_counted_where_it_belongs_to_a_fifth_exactly() {
        for ms in (0..2_000).chain([9_999, 60_000, 131_071]) {
            let most = most(bucket(ms));
            assert!(most >= ms && most - ms <= ms / 4, "{ms}: {most}");
        }
        assert_eq!(bucket(u64::MAX), CALLS_BUCKETS - 1);
    }

    #[test]
    fn what_is_told_of_a_while_is_of_that_while() {
        let calls = Calls::default();
        calls.count(500, true);
        let before = calls.tally();
        (1..=10).for_each(|ms| calls.count(ms, ms > 8));
        calls.reject();
        let since = calls.tally().since(&before);
        assert_eq!((since.ended(), since.failed, since.rejected, since.mean_ms()), (10, 2, 1, 5));
        assert_eq!([0, 250, 500, 900, 1_000].map(|permille| since.took_ms(permille)), [1, 3, 5, 9, 10]);
        assert_eq!(before.since(&before).took_ms(500), 0);
    }

    #[test]
    fn it_is_watched_while_somebody_does() {
        let (one, other) = (Watching::begin(), Watching::begin());
        drop(one);
        assert!(Calls::are_watched());
        drop(other);
    }
}
