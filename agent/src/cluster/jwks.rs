//! Keys that are fetched from somewhere: what the workers check tokens with, and what the main thread brings.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use tokio::sync::Notify;

use crate::config::filter::identity::{JwtKey, Remote};

/// The keys of one filter.
#[derive(Debug)]
pub struct Fetched {
    /// Where they come from.
    pub remote: Remote,
    keys: ArcSwapOption<Vec<JwtKey>>,
    /// Whoever fetches them: somebody has a token of a key that is not among them, or nobody wants them any more.
    wanted: Arc<Notify>,
    is_begun: AtomicBool,
    /// How often they were fetched.
    pub fetched: AtomicU64,
    /// How often that failed.
    pub failed: AtomicU64,
    /// When they were fetched last, since 1970, in seconds; 0: never.
    pub fetched_at: AtomicU64,
}

impl Fetched {
    /// None yet.
    pub fn new(remote: &Remote) -> Self {
        Self {
            remote: remote.clone(),
            keys: ArcSwapOption::empty(),
            wanted: Arc::default(),
            is_begun: AtomicBool::new(false),
            fetched: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            fetched_at: AtomicU64::new(0),
        }
    }

    /// The keys, if they were fetched ever.
    pub fn keys(&self) -> Option<Arc<Vec<JwtKey>>> {
        self.keys.load_full()
    }

    /// These are the keys now.
    pub fn bring(&self, keys: Vec<JwtKey>, now: Duration) {
        self.keys.store(Some(Arc::new(keys)));
        self.fetched.fetch_add(1, Relaxed);
        self.fetched_at.store(now.as_secs(), Relaxed);
    }

    /// A token's key is not among them: whoever fetches them may look again.
    pub fn misses(&self) {
        self.wanted.notify_one();
    }

    /// What whoever fetches them waits for beside the clock. It outlives them.
    pub fn wanted(&self) -> Arc<Notify> {
        Arc::clone(&self.wanted)
    }

    /// Whether nobody fetches them yet; from now on somebody does.
    pub fn begin(&self) -> bool {
        !self.is_begun.swap(true, Relaxed)
    }
}

impl Drop for Fetched {
    fn drop(&mut self) {
        self.wanted.notify_one();
    }
}
