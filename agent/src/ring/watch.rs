//! Deadlines without a timer each: every socket has a slot, and whoever turns the worker's clock shuts those that are past theirs.

use std::{
    cell::{Cell, RefCell},
    net::Shutdown,
    os::fd::{BorrowedFd, RawFd},
    time::Duration,
};

use socket2::SockRef;
use tokio::sync::{Notify, futures::Notified};

use super::{recv::has_news, socket::reset};

/// What happens when a deadline passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// The receiving side is ended: something can still be said to the peer.
    EndReceiving,
    /// Both sides are ended, unless something has come. While waiting so, the connection is between exchanges: a drain may end it at once.
    Idle,
    /// As idle, of a connection on which nothing was ever asked: a drain waits a moment, since who dials is about to ask.
    Unasked,
    /// Both sides are ended.
    End,
    /// The connection is reset: the peer must not take what it has for the whole.
    Reset,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    fd: RawFd,
    /// Whose it is; 0: nobody's in particular.
    owner: u64,
    /// On the clock of the watch, in ms; `NEVER`: none.
    at: u64,
    due: Due,
    overdue: bool,
}

const NEVER: u64 = u64::MAX;
/// Owner of sockets that nobody owns in particular.
pub(super) const NOBODY: u64 = 0;

/// The deadlines of a worker's sockets, and its coarse clock.
#[derive(Debug, Default)]
pub struct Watch {
    now_ms: Cell<u64>,
    slots: RefCell<Vec<Slot>>,
    free: RefCell<Vec<usize>>,
    turns: Notify,
}

/// Ready at the next turn of a watch.
pub type Turned<'w> = Notified<'w>;

impl Watch {
    /// The worker's coarse clock: right to about a turn of the watch.
    pub fn now(&self) -> Duration {
        Duration::from_millis(self.now_ms.get())
    }

    /// Turns the clock to `now` and shuts what is past its deadline.
    pub fn turn(&self, now: Duration) {
        let now_ms = now.as_millis() as u64;
        self.now_ms.set(now_ms);
        for slot in self.slots.borrow_mut().iter_mut().filter(|slot| slot.at <= now_ms) {
            expire(slot);
        }
        self.turns.notify_waiters();
    }

    /// The next turn from now on, whether or not it is waited for yet.
    pub fn turned(&self) -> Turned<'_> {
        self.turns.notified()
    }

    /// Shuts every socket that is between exchanges; those on which nothing was ever asked a `moment` later.
    pub fn drain(&self, moment: Duration) {
        let at_last = self.after(moment);
        self.slots.borrow_mut().iter_mut().for_each(|slot| drain(slot, at_last));
    }

    /// Ends every socket of this owner. What is under way is reset: an end would say, of a body that goes on until the connection ends and
    /// of bytes that nobody understands, that this was all.
    pub fn end_owned(&self, owner: u64) {
        for slot in self.slots.borrow_mut().iter_mut().filter(|slot| slot.owner == owner) {
            if slot.due == Due::End {
                slot.due = Due::Reset;
            }
            expire(slot);
        }
    }

    pub(super) fn add(&self, fd: RawFd, owner: u64) -> usize {
        let slot = Slot { fd, owner, at: NEVER, due: Due::End, overdue: false };
        let mut slots = self.slots.borrow_mut();
        match self.free.borrow_mut().pop() {
            Some(key) => {
                slots[key] = slot;
                key
            }
            None => {
                slots.push(slot);
                slots.len() - 1
            }
        }
    }

    /// Must precede the closing of the descriptor, whose number may then mean another socket.
    pub(super) fn remove(&self, key: usize) {
        self.clear(key);
        self.slots.borrow_mut()[key].owner = NOBODY;
        self.free.borrow_mut().push(key);
    }

    /// The same for one socket.
    pub(super) fn drain_one(&self, key: usize, moment: Duration) {
        drain(&mut self.slots.borrow_mut()[key], self.after(moment));
    }

    fn after(&self, span: Duration) -> u64 {
        self.now_ms.get().saturating_add(span.as_millis() as u64)
    }

    pub(super) fn set(&self, key: usize, after: Duration, due: Due) {
        let at = self.after(after);
        let slot = &mut self.slots.borrow_mut()[key];
        (slot.at, slot.due) = (at, due);
    }

    pub(super) fn clear(&self, key: usize) {
        self.slots.borrow_mut()[key].at = NEVER;
    }

    pub(super) fn has(&self, key: usize) -> bool {
        self.slots.borrow()[key].at != NEVER
    }

    pub(super) fn is_overdue(&self, key: usize) -> bool {
        self.slots.borrow()[key].overdue
    }
}

fn drain(slot: &mut Slot, at_last: u64) {
    match slot.due {
        _ if slot.at == NEVER => {}
        Due::Idle => expire(slot),
        Due::Unasked => slot.at = slot.at.min(at_last),
        Due::EndReceiving | Due::End | Due::Reset => {}
    }
}

fn expire(slot: &mut Slot) {
    // SAFETY: a slot leaves the watch before its descriptor is closed: `Socket::drop` removes it first.
    let fd = unsafe { BorrowedFd::borrow_raw(slot.fd) };
    // Its owner is about to take what has come, and to answer: a socket that is shut could not.
    if matches!(slot.due, Due::Idle | Due::Unasked) && has_news(fd) {
        return;
    }
    match slot.due {
        Due::Reset => reset(fd),
        Due::EndReceiving => drop(SockRef::from(&fd).shutdown(Shutdown::Read)),
        Due::Idle | Due::Unasked | Due::End => drop(SockRef::from(&fd).shutdown(Shutdown::Both)),
    }
    slot.at = NEVER;
    slot.overdue = true;
}
