//! How far a canary has come, node-wide. It outlives a reload that says nothing else of it.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{
            AtomicU32, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::Duration,
};

use crate::config::{canary::Canary, route::Target};

/// A canary of a route.
#[derive(Debug)]
pub struct CanaryState {
    /// What it was begun with; with anything else another is begun.
    pub rules: Canary,
    targets: Vec<Target>,
    /// Of a hundred requests.
    percent: AtomicU32,
    requests: AtomicU64,
    errors: AtomicU64,
    slow: AtomicU64,
    /// The main thread's alone; workers only see the percentage.
    stage: Mutex<Stage>,
}

/// Requests that it got, since it was begun.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All of them.
    pub requests: u64,
    /// Those that failed.
    pub errors: u64,
    /// Those that took too long.
    pub slow: u64,
}

/// How far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Nobody has looked at it yet: it is at its first step.
    Begun,
    /// It is at this step.
    Step {
        /// From 0.
        index: usize,
        /// By any clock that does not go back.
        since: Duration,
        /// What had been counted by then.
        from: Counts,
    },
    /// It was at its last step for an interval, and stays there.
    Promoted,
    /// It gets nothing any more, until the configuration says something else of it.
    RolledBack(Trouble),
}

/// Which bound was passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// That of failures.
    Errors,
    /// That of time.
    Latency,
}

impl Trouble {
    /// As it is called.
    pub fn word(self) -> &'static str {
        match self {
            Self::Errors => "errors",
            Self::Latency => "latency",
        }
    }
}

impl Stage {
    /// As it is called.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Begun | Self::Step { .. } => "progressing",
            Self::Promoted => "promoted",
            Self::RolledBack(_) => "rolled_back",
        }
    }

    /// Of a hundred requests, so many are the canary's.
    pub fn percent(&self, rules: &Canary) -> u32 {
        match self {
            Self::Begun => rules.steps.first(),
            Self::Step { index, .. } => rules.steps.get(*index),
            Self::Promoted => rules.steps.last(),
            Self::RolledBack(_) => None,
        }
        .copied()
        .unwrap_or(0)
    }
}

impl CanaryState {
    /// At its first step. The targets are the route's.
    pub fn new(rules: &Canary, targets: &[Target]) -> Self {
        Self {
            rules: rules.clone(),
            targets: targets.to_vec(),
            percent: AtomicU32::new(Stage::Begun.percent(rules)),
            requests: AtomicU64::default(),
            errors: AtomicU64::default(),
            slow: AtomicU64::default(),
            stage: Mutex::new(Stage::Begun),
        }
    }

    /// Whether it was begun with these.
    pub fn is_of(&self, rules: &Canary, targets: &[Target]) -> bool {
        self.rules == *rules && self.targets == targets
    }

    /// Of a hundred requests, so many are the canary's now.
    pub fn percent(&self) -> u32 {
        self.percent.load(Acquire)
    }

    /// One was attempted.
    pub fn count(&self, has_failed: bool, is_slow: bool) {
        self.errors.fetch_add(has_failed.into(), Relaxed);
        self.slow.fetch_add(is_slow.into(), Relaxed);
        self.requests.fetch_add(1, Release);
    }

    /// What was counted.
    pub fn counts(&self) -> Counts {
        // The sum first: a failure that is not in it yet weighs the more, never the less.
        let requests = self.requests.load(Acquire);
        Counts { requests, errors: self.errors.load(Relaxed), slow: self.slow.load(Relaxed) }
    }

    /// How far it has come.
    pub fn stage(&self) -> Stage {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It has come this far.
    pub fn set_stage(&self, stage: Stage) {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) = stage;
        self.percent.store(stage.percent(&self.rules), Release);
    }
}
