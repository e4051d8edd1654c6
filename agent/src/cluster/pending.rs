//! The requests that wait for room at a service, node-wide. It outlives a reload.
//!
//! They stand in one line for all workers: who came first is served first, whoever's connection it came on. The line is behind a lock, which is taken
//! by who must wait, and by who makes room while somebody does; held for as long as a look-up in a map of some hundred entries takes. Who finds
//! room at once, and whose service lets nobody wait, never touches it.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst},
    },
    task::Waker,
    time::{Duration, Instant},
};

/// What is known of a service's line.
#[derive(Debug, Default)]
pub struct PendingState {
    /// How many wait: written by who holds the line, and read by everybody else.
    depth: AtomicU32,
    /// Whether nobody is let in.
    is_shut: AtomicBool,
    line: Mutex<Line>,
    /// Requests that waited, and were served.
    pub served: AtomicU64,
    /// Requests that were not, by [`Unserved`].
    pub unserved: [AtomicU64; Unserved::ALL.len()],
    /// How often it was shut.
    pub stops: AtomicU64,
}

/// Those who wait, by their number: the first stands at the head.
#[derive(Debug, Default)]
pub struct Line {
    /// Theirs.
    pub waiting: BTreeMap<u64, Waiting>,
    /// Of the next who comes.
    pub next: u64,
    /// Whether nobody is let in.
    pub is_shut: bool,
    /// When somebody was served last.
    pub served_at: Option<Instant>,
    /// How long it takes from one to the next while somebody waits, smoothed; `None`: nobody knows yet.
    pub interval: Option<Duration>,
}

/// One who waits.
#[derive(Debug)]
pub struct Waiting {
    /// Since when.
    pub since: Instant,
    /// Until when there is somebody to be answered; `None`: for ever.
    pub deadline: Option<Instant>,
    /// Whether he is to look for room.
    pub is_called: bool,
    /// Who is to be told so.
    pub waker: Option<Waker>,
}

/// Why a request that needs room got none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unserved {
    /// Nobody is let in: the line is full, or was, or too slow.
    Full,
    /// It waited for as long as one may.
    TooOld,
    /// Its time was over.
    Deadline,
    /// Its time would be over before its turn.
    Doomed,
    /// Its client left.
    Gone,
}

impl Unserved {
    /// Each once, in the order of their numbers.
    pub const ALL: [Self; 5] = [Self::Full, Self::TooOld, Self::Deadline, Self::Doomed, Self::Gone];

    /// Label of the metric.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::TooOld => "wait_max",
            Self::Deadline => "deadline",
            Self::Doomed => "doomed",
            Self::Gone => "client_gone",
        }
    }
}

/// The line in one's hands; what everybody may read of it is brought up to date when it is let go.
#[derive(Debug)]
pub struct Held<'s> {
    state: &'s PendingState,
    /// The line.
    pub line: MutexGuard<'s, Line>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // No more wait than a configuration's number, of 32 bits.
        self.state.depth.store(self.line.waiting.len() as u32, SeqCst);
        self.state.is_shut.store(self.line.is_shut, SeqCst);
    }
}

impl PendingState {
    /// How many wait.
    pub fn depth(&self) -> u32 {
        self.depth.load(SeqCst)
    }

    /// Whether it takes nobody in.
    pub fn is_shut(&self) -> bool {
        self.is_shut.load(SeqCst)
    }

    /// Takes the line in hand. Of somebody who panicked with it nothing is left half done: each of its steps is one change of a map.
    pub fn hold(&self) -> Held<'_> {
        Held { state: self, line: self.line.lock().unwrap_or_else(PoisonError::into_inner) }
    }

    /// How long the first has waited.
    pub fn oldest(&self, now: Instant) -> Option<Duration> {
        if self.depth() == 0 {
            return None;
        }
        let held = self.hold();
        held.line.waiting.first_key_value().map(|(_, first)| now.saturating_duration_since(first.since))
    }
}
