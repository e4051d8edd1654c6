//! How long requests take, where a timeout follows that: one word, node-wide. It outlives a reload. What it is made of is
//! [`crate::deadline::auto`]'s to say.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::config::deadline::{Auto, Timing};

/// Requests of which something must be known: the one in a hundred that takes longest is among so many once.
pub const SAMPLES_MIN: u32 = 100;

/// What is known of the requests of a service or a route, and what follows from it.
#[derive(Clone, Debug)]
pub struct Pace {
    rules: Auto,
    max: Duration,
    known: Arc<AtomicU64>,
}

/// What is known at one moment: how long 99 of a hundred requests take at most, in nanoseconds, and of how many requests anything is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Nothing below 0, and a number.
    p99_ns: u32,
    /// As many as can be counted at most.
    samples: u32,
}

impl Known {
    /// Of so many requests, nanoseconds.
    pub fn of(p99_ns: f32, samples: u32) -> Self {
        Self { p99_ns: p99_ns.max(1.0).to_bits(), samples }
    }

    /// Nanoseconds.
    pub fn p99_ns(self) -> f32 {
        f32::from_bits(self.p99_ns)
    }

    /// Of how many requests.
    pub fn samples(self) -> u32 {
        self.samples
    }

    fn bits(self) -> u64 {
        u64::from(self.p99_ns) << 32 | u64::from(self.samples)
    }

    fn read(bits: u64) -> Self {
        Self { p99_ns: (bits >> 32) as u32, samples: bits as u32 }
    }
}

impl Pace {
    /// By what is said of time, if a timeout follows it; with what was known before.
    pub(super) fn of(timing: Option<&Timing>, before: Option<&Self>) -> Option<Self> {
        let (rules, max) = timing.and_then(|timing| Some((timing.auto?, timing.timeout?)))?;
        let known = before.map(|before| Arc::clone(&before.known)).unwrap_or_default();
        Some(Self { rules, max, known })
    }

    /// What is known now.
    pub fn known(&self) -> Known {
        Known::read(self.known.load(Relaxed))
    }

    /// Makes something else of what is known.
    pub fn learn(&self, learnt: impl Fn(Known) -> Known) {
        // It always gives one.
        let _ = self.known.fetch_update(Relaxed, Relaxed, |bits| Some(learnt(Known::read(bits)).bits()));
    }

    /// How long 99 of a hundred requests take at most; `None`: too little is known.
    pub fn p99(&self) -> Option<Duration> {
        let known = self.known();
        (known.samples >= SAMPLES_MIN).then(|| Duration::from_nanos(known.p99_ns() as u64))
    }

    /// How long a request may take: so many times that, within the bounds; the most while too little is known.
    pub fn timeout(&self) -> Duration {
        let found = self.p99().map(|p99| p99.saturating_mul(self.rules.factor));
        found.map_or(self.max, |found| found.clamp(self.rules.min, self.max))
    }
}
