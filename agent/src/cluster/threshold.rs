//! What of a service there is at once, node-wide, where that is bounded. It outlives a reload.

use std::sync::{
    Arc,
    atomic::{
        AtomicU32, AtomicU64,
        Ordering::{AcqRel, Acquire, Relaxed},
    },
};

use tokio::sync::Notify;

use super::{Count, Service};
use crate::config::threshold::Threshold;

/// What there is.
#[derive(Debug, Default)]
pub struct ThresholdState {
    counts: [Count; Threshold::ALL.len()],
    overflow: [AtomicU64; Threshold::ALL.len()],
    /// Who waits for a connection to end.
    waiting: AtomicU32,
    freed: Notify,
}

/// There is as much as there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overflow(pub Threshold);

/// A place, given back by dropping it.
#[derive(Debug)]
pub struct Held {
    state: Arc<ThresholdState>,
    of: Threshold,
}

impl ThresholdState {
    /// A place, if there is room for one more.
    pub fn take(self: &Arc<Self>, of: Threshold, most: u32) -> Option<Held> {
        self.counts[of as usize].take(most).then(|| Held { state: Arc::clone(self), of })
    }

    /// How much there is.
    pub fn now(&self, of: Threshold) -> u32 {
        self.counts[of as usize].now()
    }

    /// How often there was no room.
    pub fn overflow(&self, of: Threshold) -> u64 {
        self.overflow[of as usize].load(Relaxed)
    }

    /// How many wait for a connection to end.
    pub fn waiting(&self) -> u32 {
        self.waiting.load(Acquire)
    }

    /// Room for a connection, when another has ended.
    pub async fn freed(self: &Arc<Self>, most: u32) -> Held {
        let _waits = Waits::begin(self);
        loop {
            // Before it looks: a place that is given back in between is not missed.
            let mut freed = std::pin::pin!(self.freed.notified());
            freed.as_mut().enable();
            if let Some(held) = self.take(Threshold::Connections, most) {
                return held;
            }
            freed.await;
        }
    }
}

struct Waits<'s>(&'s ThresholdState);

impl<'s> Waits<'s> {
    fn begin(state: &'s ThresholdState) -> Self {
        state.waiting.fetch_add(1, AcqRel);
        Self(state)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, AcqRel);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.state.counts[self.of as usize].give_back();
        if self.of == Threshold::Connections && self.state.waiting() > 0 {
            self.state.freed.notify_one();
        }
    }
}

impl Service {
    /// What is known of a threshold, and how much there may be; `None`: as much as there is.
    pub fn threshold(&self, of: Threshold) -> Option<(&Arc<ThresholdState>, u32)> {
        let most = self.config.guard.thresholds.as_ref()?.of(of)?;
        Some((self.guard.thresholds.as_ref()?, most))
    }

    /// A place, where that is bounded.
    ///
    /// # Errors
    ///
    /// When there is no room, which is counted.
    pub fn hold(&self, of: Threshold) -> Result<Option<Held>, Overflow> {
        let Some((state, most)) = self.threshold(of) else { return Ok(None) };
        state.take(of, most).map(Some).ok_or_else(|| state.overflows(of))
    }
}

impl ThresholdState {
    /// There was no room.
    pub fn overflows(&self, of: Threshold) -> Overflow {
        self.overflow[of as usize].fetch_add(1, Relaxed);
        Overflow(of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_who_ask_together_as_many_get_a_place_as_there_are() {
        let state = Arc::<ThresholdState>::default();
        let ask =
            || (0..1_000).filter(|_| state.take(Threshold::Requests, 1_500).map(std::mem::forget).is_some()).count();
        let taken: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
        });
        assert_eq!((taken, state.now(Threshold::Requests)), (1_500, 1_500));
    }

    #[tokio::test]
    async fn who_waits_for_a_connection_gets_the_place_of_one_that_ends() {
        let state = Arc::<ThresholdState>::default();
        let first = state.take(Threshold::Connections, 1).expect("room");
        assert!(state.take(Threshold::Connections, 1).is_none());
        let waits = tokio::spawn({
            let state = Arc::clone(&state);
            async move { state.freed(1).await }
        });
        while state.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        drop(first);
        let second = waits.await.expect("no panic");
        assert_eq!((state.now(Threshold::Connections), state.waiting()), (1, 0));
        drop(second);
        assert_eq!(state.now(Threshold::Connections), 0);
    }
}
