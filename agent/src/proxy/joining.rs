//! Joins the two programs at the ends of a relay, and has the relay stand back where they can do without it.
//!
//! A sender that is faster than its reader fills the reader's queue, and then sends through TCP and the relay, which costs three times as
//! much. Passed on at once, that would fill the queue again, and the sender would always be ahead of the relay. So the relay waits until
//! the reader has taken most of what it has: meanwhile TCP holds the sender, what it held is soon passed on, and the two go straight again.

use std::{
    cell::{Cell, RefCell},
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use super::Hop;
use crate::{
    cluster::Service,
    forward::{Ends, Overseer},
    kernel::{Join, Verdict, Way},
    record::Counter,
    ring::Pause,
};

/// How often it is asked whether an endpoint's socket has come into the shortcut: that happens when the last packet of the handshake
/// arrives, which between network namespaces may be after bytes were sent on.
const TRIES_MAX: u32 = 8;

/// What may wait at either side of a socket between joined programs: enough for a relay while a reader is slow, little enough that the
/// relay soon catches up with a program that sends without a pause.
const QUEUE_BYTES: usize = 128 * 1024;

/// A reader that has no more than this waiting is soon to be fed: it takes this in 40 to 100 µs.
const LOW_BYTES: u32 = 128 * 1024;
/// What is passed on without a look at the reader once it was fed: enough for the relay to catch up with the sender, which must not wait
/// for anything then.
const RUSH_BYTES: usize = 1 << 20;
/// Between two looks at a reader's queue, at least and at most.
const LOOK: (Duration, Duration) = (Duration::from_micros(100), Duration::from_millis(50));
/// How long a reader is waited for: a slower one is filled up, and what then goes to it by TCP does so for good. Meanwhile the end of its
/// sender is not seen.
const WAIT_MAX: Duration = Duration::from_millis(500);

/// A pair of connections to be joined, and how far the relay between them has got.
pub struct Joining<'h> {
    hop: &'h Hop,
    service: &'h Service,
    join: RefCell<Option<Join>>,
    tries: Cell<u32>,
    taken: [Cell<Option<u64>>; 2],
    /// What of [`RUSH_BYTES`] is left, and the bytes that had gone straight then.
    rush: [Cell<(usize, usize)>; 2],
}

impl<'h> Joining<'h> {
    /// Of a relay for `service`. It cannot be where what the one side says is not what the other is to hear.
    pub fn new(hop: &'h Hop, service: &'h Service, can_be: bool) -> Self {
        let tries = if can_be { TRIES_MAX } else { 0 };
        Self {
            hop,
            service,
            join: RefCell::default(),
            tries: Cell::new(tries),
            taken: Default::default(),
            rush: Default::default(),
        }
    }

    /// Bytes that went past the relay.
    pub fn straight(&self, way: Way) -> usize {
        self.join.borrow().as_ref().map_or(0, |join| join.straight(way) as usize)
    }

    fn ask(&self, (downstream, upstream): Ends<'_>) {
        self.tries.set(self.tries.get() - 1);
        let Some((verdict, join)) = self.hop.flows.join(downstream.as_fd(), upstream.as_fd(), self.service) else {
            return self.tries.set(0);
        };
        let counter = match verdict {
            Verdict::NotYet if self.tries.get() > 0 => return,
            Verdict::NotYet => Counter::JoinLate,
            Verdict::Armed => Counter::JoinArmed,
            Verdict::NoClient => Counter::JoinNoClient,
            Verdict::NoServer => Counter::JoinNoServer,
            Verdict::NoRoom => Counter::JoinNoRoom,
        };
        self.hop.slab.count(counter);
        self.tries.set(0);
        if verdict == Verdict::Armed {
            downstream.bound_queues(QUEUE_BYTES);
            upstream.bound_queues(QUEUE_BYTES);
        }
        if let Some(join) = &join {
            for way in [Way::There, Way::Back] {
                if let Some(bytes) = self.taken[way as usize].get() {
                    join.settled(way, bytes);
                }
            }
        }
        *self.join.borrow_mut() = join;
    }

    /// Bytes that wait for the reader of this way, if it may be fed straight.
    fn queued(&self, way: Way) -> u32 {
        self.join.borrow().as_ref().map_or(0, |join| join.queued(way))
    }
}

impl Overseer for Joining<'_> {
    fn settled(&self, way: Way, bytes: u64, ends: Ends<'_>) {
        self.taken[way as usize].set(Some(bytes));
        if self.tries.get() > 0 {
            return self.ask(ends);
        }
        if let Some(join) = &*self.join.borrow() {
            join.settled(way, bytes);
        }
    }

    async fn await_reader(&self, way: Way, bytes: usize) {
        let (rush, straight) = (&self.rush[way as usize], self.straight(way));
        match rush.get() {
            (left, then) if then == straight && left >= bytes => return rush.set((left - bytes, then)),
            _ => rush.set((RUSH_BYTES, straight)),
        }
        let first = self.queued(way);
        if first <= LOW_BYTES {
            return;
        }
        // Without a clock it goes on at once, which is slower and no less right.
        let Ok(pause) = Pause::new() else { return };
        let began = Instant::now();
        let (mut left, mut taken_at) = (first, began);
        while began.elapsed() < WAIT_MAX
            && let Some(span) = next_look(first - left, left, taken_at - began, taken_at.elapsed())
        {
            if pause.wait(span).await.is_err() {
                return;
            }
            let now = self.queued(way);
            if now < left {
                (left, taken_at) = (now, Instant::now());
            }
        }
    }
}

/// When to look again at a queue that has come down by `taken` bytes to `left` in `took`, and has not changed for `idle`; `None`, if little
/// is left. Half the time that the rest will take, or a quarter of the time that nothing was taken: few looks at a slow reader,
/// and none too late at a fast one.
fn next_look(taken: u32, left: u32, took: Duration, idle: Duration) -> Option<Duration> {
    if left <= LOW_BYTES {
        return None;
    }
    let rest = f64::from(left - LOW_BYTES) / f64::from(taken.max(1));
    let half = Duration::try_from_secs_f64(took.as_secs_f64() * rest / 2.0).unwrap_or(LOOK.1);
    Some(half.max(idle / 4).clamp(LOOK.0, LOOK.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_is_looked_at_the_sooner_the_faster_it_is() {
        let (mib, ms) = (1 << 20, Duration::from_millis);
        let left = |times: u32| LOW_BYTES + times * mib;
        assert_eq!(next_look(0, left(1), ms(0), ms(0)), Some(LOOK.0), "nothing is known of it yet");
        assert_eq!(next_look(2 * mib, left(1), ms(2), ms(0)), Some(Duration::from_micros(500)));
        assert_eq!(next_look(mib, left(1), ms(0), ms(0)), Some(LOOK.0));
        assert_eq!(next_look(mib, left(1), ms(1), ms(8)), Some(ms(2)), "it has stopped");
        assert_eq!(next_look(1, left(1), ms(1), ms(9)), Some(LOOK.1));
    }

    #[test]
    fn a_reader_with_little_left_is_not_waited_for() {
        assert_eq!(next_look(1, LOW_BYTES, Duration::ZERO, Duration::ZERO), None);
        assert_eq!(next_look(1, 0, Duration::from_secs(1), Duration::ZERO), None);
        assert!(next_look(1, LOW_BYTES + 1, Duration::ZERO, Duration::ZERO).is_some());
    }
}
