//! Deadlines without a timer each: every socket has a slot, and whoever turns the worker's clock shuts those that are past theirs.

use std::{
    cell::{Cell, RefCell},
    net::Shutdown,
    os::fd::{BorrowedFd, RawFd},
    time::Duration,
};

use socket2::SockRef;

/// What happens when a deadline passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// The receiving side is ended: something can still be said to the peer.
    EndReceiving,
    /// Both sides are ended. While waiting so, the connection is between exchanges: a drain may end it at once.
    Idle,
    /// Both sides are ended.
    End,
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
}

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
    }

    /// Shuts every socket that is between exchanges.
    pub fn end_idle(&self) {
        for slot in self.slots.borrow_mut().iter_mut().filter(|slot| slot.at != NEVER && slot.due == Due::Idle) {
            expire(slot);
        }
    }

    /// Shuts every socket of this owner.
    pub fn end_owned(&self, owner: u64) {
        for slot in self.slots.borrow_mut().iter_mut().filter(|slot| slot.owner == owner) {
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

    pub(super) fn set(&self, key: usize, after: Duration, due: Due) {
        let at = self.now_ms.get().saturating_add(after.as_millis() as u64);
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

fn expire(slot: &mut Slot) {
    let how = if slot.due == Due::EndReceiving { Shutdown::Read } else { Shutdown::Both };
    // SAFETY: a slot leaves the watch before its descriptor is closed: `Socket::drop` removes it first.
    let fd = unsafe { BorrowedFd::borrow_raw(slot.fd) };
    let _ = SockRef::from(&fd).shutdown(how);
    slot.at = NEVER;
    slot.overdue = true;
}
