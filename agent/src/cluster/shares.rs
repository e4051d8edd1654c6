//! Which part of a service's new connections each of its endpoints takes now, as the main thread tells the workers.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use arc_swap::ArcSwapOption;

/// The shares of a service's endpoints, by their indexes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shares {
    /// Weights; 0 for those that take nothing now.
    pub weights: Vec<u32>,
    /// Those of them that could, with their levels, the lowest first.
    pub standby: Vec<(usize, u32)>,
}

/// The shares in force: none while the configured weights say it all.
#[derive(Debug, Default)]
pub struct Published {
    version: AtomicU32,
    shares: ArcSwapOption<Shares>,
}

impl Published {
    /// Puts other shares in force, unless they are the same.
    pub fn publish(&self, shares: Shares) {
        if self.shares.load().as_deref() != Some(&shares) {
            self.shares.store(Some(Arc::new(shares)));
            self.version.fetch_add(1, Ordering::Release);
        }
    }

    /// Changes with the shares. To be asked before [`Published::current`].
    pub fn version(&self) -> u32 {
        self.version.load(Ordering::Acquire)
    }

    /// The shares in force.
    pub fn current(&self) -> Option<Arc<Shares>> {
        self.shares.load_full()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_another_version() {
        let published = Published::default();
        assert_eq!((published.version(), published.current()), (0, None));
        let shares = Shares { weights: vec![1, 2], standby: Vec::new() };
        published.publish(shares.clone());
        published.publish(shares.clone());
        assert_eq!((published.version(), published.current().as_deref()), (1, Some(&shares)));
        published.publish(Shares::default());
        assert_eq!(published.version(), 2);
    }
}
