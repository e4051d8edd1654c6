//! What is measured of a service's requests by a limit that follows what it finds, node-wide. Only the limit's judge understands the numbers.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::config::request_limit::Kind;

/// Places for latencies: up to two minutes and more, to within 3 %.
pub const LATENCIES: usize = 27 * 32;

/// What is known of one limit.
#[derive(Debug)]
pub struct Adaptive {
    /// Requests on their way.
    pub open: AtomicU64,
    /// What was measured.
    pub measured: Measured,
}

/// What was measured, by the limit's kind.
#[derive(Debug)]
pub enum Measured {
    /// By how much longer answers take than they could.
    Gradient(Box<Gradient>),
    /// By what passes, once the processor is busy.
    Bbr(Bbr),
    /// By how many succeed.
    Admission(Rolled),
}

/// Of Envoy's adaptive concurrency.
#[derive(Debug)]
pub struct Gradient {
    /// How many requests may be on their way; 0 before the first.
    pub limit: AtomicU64,
    /// What it was before the shortest time began to be measured.
    pub limit_before: AtomicU64,
    /// The shortest time in nanoseconds; 0 while it is measured.
    pub shortest_ns: AtomicU64,
    /// Since when it is.
    pub measured_from_ns: AtomicU64,
    /// When it is measured again.
    pub measured_again_ns: AtomicU64,
    /// When the limit is reckoned again.
    pub window_end_ns: AtomicU64,
    /// How often in a row it came to the least.
    pub times_least: AtomicU64,
    /// Answers since it was reckoned.
    pub answers: AtomicU64,
    /// Theirs.
    pub latencies: Box<[AtomicU32]>,
}

/// Of the limiter of aegis and Kratos.
#[derive(Debug)]
pub struct Bbr {
    /// How many requests might be on their way when it was reckoned last; 0: never yet.
    pub limit: AtomicU64,
    /// When it refused for the first time since all was well; 0: not since.
    pub refused_since_ns: AtomicU64,
    /// How busy the processor is, in thousandths, smoothed. Written by who measures it.
    pub busy_permille: AtomicU32,
    /// Answers, and how long they took.
    pub passed: Rolled,
}

/// Counts of the last stretches of time, a word each.
#[derive(Debug)]
pub struct Rolled(pub Box<[AtomicU64]>);

impl Rolled {
    fn new(stretches: u32) -> Self {
        Self((0..stretches).map(|_| AtomicU64::default()).collect())
    }
}

impl Adaptive {
    /// How many requests may be on their way at once, where that is found, and has been.
    pub fn limit(&self) -> Option<u64> {
        let limit = match &self.measured {
            Measured::Gradient(known) => known.limit.load(Relaxed),
            Measured::Bbr(known) => known.limit.load(Relaxed),
            Measured::Admission(_) => 0,
        };
        (limit > 0).then_some(limit)
    }

    /// Of a limit of this kind, if it measures anything.
    pub fn of(kind: &Kind) -> Option<Self> {
        let measured = match *kind {
            Kind::Gradient(_) => Measured::Gradient(Box::new(Gradient {
                limit: AtomicU64::default(),
                limit_before: AtomicU64::default(),
                shortest_ns: AtomicU64::default(),
                measured_from_ns: AtomicU64::default(),
                measured_again_ns: AtomicU64::default(),
                window_end_ns: AtomicU64::default(),
                times_least: AtomicU64::default(),
                answers: AtomicU64::default(),
                latencies: (0..LATENCIES).map(|_| AtomicU32::default()).collect(),
            })),
            Kind::Bbr { stretches, .. } => Measured::Bbr(Bbr {
                limit: AtomicU64::default(),
                refused_since_ns: AtomicU64::default(),
                busy_permille: AtomicU32::default(),
                passed: Rolled::new(stretches),
            }),
            Kind::Admission { stretches, .. } => Measured::Admission(Rolled::new(stretches)),
            _ => return None,
        };
        Some(Self { open: AtomicU64::default(), measured })
    }
}
