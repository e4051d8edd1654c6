//! How many requests there were lately, and how many of them were bad: buckets of time, each one word.

use std::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Relaxed},
};

/// A word: which time of its bucket's, requests, bad ones.
const COUNT_BITS: u32 = 24;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;
const STAMP_MASK: u64 = (1 << 16) - 1;

/// How long a window is, and in how many parts it is forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    bucket_ms: u64,
    buckets: u64,
}

impl Span {
    pub(super) fn new(window_ms: u64, buckets: u32) -> Self {
        let buckets = u64::from(buckets.max(1));
        Self { bucket_ms: window_ms.div_ceil(buckets).max(1), buckets }
    }

    /// Counts a request; gives how many there are in the window, and how many of those are bad.
    pub(super) fn add(self, counts: &[AtomicU64], now_ms: u64, is_bad: bool) -> (u64, u64) {
        let turn = now_ms / self.bucket_ms;
        let stamp = |turn: u64| (turn / self.buckets + 1) & STAMP_MASK;
        let place = |turn: u64| (turn % self.buckets) as usize;
        let one_more = |word: u64| {
            let (mut all, mut bad) = (word & COUNT_MASK, word >> COUNT_BITS & COUNT_MASK);
            if word >> (2 * COUNT_BITS) != stamp(turn) {
                (all, bad) = (0, 0);
            }
            // A bucket that is full stays so: what is asked of it is the ratio.
            if all < COUNT_MASK {
                (all, bad) = (all + 1, bad + u64::from(is_bad));
            }
            Some(stamp(turn) << (2 * COUNT_BITS) | bad << COUNT_BITS | all)
        };
        let _ = counts[place(turn)].fetch_update(AcqRel, Relaxed, one_more);
        let (mut all, mut bad) = (0, 0);
        for turn in turn.saturating_sub(self.buckets - 1)..=turn {
            let word = counts[place(turn)].load(Relaxed);
            if word >> (2 * COUNT_BITS) == stamp(turn) {
                all += word & COUNT_MASK;
                bad += word >> COUNT_BITS & COUNT_MASK;
            }
        }
        (all, bad)
    }
}
