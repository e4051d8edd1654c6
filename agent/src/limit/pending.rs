//! May a request wait until its service has room, and whose turn is it? Who came first is served first.
//!
//! Nobody is let in once the line is full, or its first has waited for as long as one may; somebody is again when no more than
//! [`RESUME_PERCENT`] of either are left, so that a line at its bound does not open for each one that leaves. A request whose time will be over
//! before its turn, as far as the pace of the line tells, is turned away when it comes; when the line comes to be full, such ones are thrown out,
//! the oldest first, before it is shut.

use std::{
    task::Waker,
    time::{Duration, Instant},
};

use crate::{
    cluster::{Line, Unserved, Waiting},
    config::Pending,
};

/// At how much of its bounds a line that was shut lets somebody in again.
const RESUME_PERCENT: u32 = 80;
/// How much of the pace that was known counts for as much as what was seen last: the rate of an exponential mean, as TCP's of round trips.
const PACE_SHARE: u32 = 8;
/// What somebody is told who is turned away from a line whose pace nobody knows.
const RETRY_AFTER_LEAST: Duration = Duration::from_secs(1);

/// The rules of a line.
#[derive(Clone, Copy, Debug)]
pub struct Judge {
    requests_max: usize,
    resume_at: usize,
    wait_max: Duration,
    resume_below: Duration,
    /// Whether nobody is let in while the first waits for too long.
    shuts_by_age: bool,
}

/// What somebody who waits is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Look for room.
    Called,
    /// Wait.
    NotYet,
    /// Leave.
    ThrownOut,
}

/// Of those who were thrown out, and of who is at the head now: to be waked once the line is let go.
pub type Wakers = Vec<Waker>;

impl Judge {
    /// Of these rules.
    pub fn new(rules: &Pending) -> Self {
        let requests_max = rules.requests_max.max(1) as usize;
        Self {
            requests_max,
            resume_at: requests_max * RESUME_PERCENT as usize / 100,
            wait_max: rules.wait_max,
            resume_below: rules.wait_max * RESUME_PERCENT / 100,
            shuts_by_age: true,
        }
    }

    /// The same, but that who comes may wait as long as anybody, however long others have.
    pub fn whoever_comes(self) -> Self {
        Self { shuts_by_age: false, resume_below: Duration::MAX, ..self }
    }

    /// Takes somebody in who waits for `patience` at most; his number, and whether that shut the line.
    ///
    /// # Errors
    ///
    /// Why he is turned away.
    pub fn join(
        &self,
        line: &mut Line,
        now: Instant,
        patience: Option<Duration>,
    ) -> Result<(u64, bool, Wakers), Unserved> {
        self.reopen(line, now);
        if line.is_shut {
            return Err(Unserved::Full);
        }
        // Of a pace that was seen long ago nobody knows whether it still is.
        let is_old = line.served_at.is_some_and(|at| now.saturating_duration_since(at) > self.wait_max);
        if line.waiting.is_empty() && is_old {
            line.interval = None;
        }
        let deadline = patience.and_then(|patience| now.checked_add(patience));
        if is_doomed(line, line.waiting.len(), deadline, now) {
            return Err(Unserved::Doomed);
        }
        let number = line.next;
        line.next += 1;
        let is_called = line.waiting.is_empty();
        line.waiting.insert(number, Waiting { since: now, deadline, is_called, waker: None });
        if line.waiting.len() < self.requests_max {
            return Ok((number, false, Wakers::new()));
        }
        let mut thrown = throw_out(line, now);
        thrown.extend(call(line));
        line.is_shut = line.waiting.len() >= self.requests_max;
        Ok((number, line.is_shut, thrown))
    }

    /// Until when somebody who came at `now` waits, and what that is when it has come.
    pub fn until(&self, now: Instant, patience: Option<Duration>) -> (Instant, Unserved) {
        match patience {
            Some(patience) if patience <= self.wait_max => (now + patience, Unserved::Deadline),
            _ => (now + self.wait_max, Unserved::TooOld),
        }
    }

    /// What somebody is to do who was waked.
    pub fn turn(&self, line: &mut Line, number: u64, waker: &Waker) -> Turn {
        let Some(waiting) = line.waiting.get_mut(&number) else { return Turn::ThrownOut };
        if waiting.waker.as_ref().is_none_or(|known| !known.will_wake(waker)) {
            waiting.waker = Some(waker.clone());
        }
        // Before he looks: room that is made meanwhile calls him again.
        if std::mem::take(&mut waiting.is_called) { Turn::Called } else { Turn::NotYet }
    }

    /// He found room. Gives who is next: there may be room for two.
    pub fn served(&self, line: &mut Line, number: u64, now: Instant) -> Option<Waker> {
        let waited_since = line.waiting.remove(&number)?.since;
        let from = line.served_at.map_or(waited_since, |at| at.max(waited_since));
        let seen = now.saturating_duration_since(from);
        line.interval = Some(line.interval.map_or(seen, |known| (known * (PACE_SHARE - 1) + seen) / PACE_SHARE));
        line.served_at = Some(now);
        self.reopen(line, now);
        call(line)
    }

    /// He is served no more, and why. Gives who is next, and whether that shut the line.
    pub fn left(&self, line: &mut Line, number: u64, why: Unserved, now: Instant) -> (Option<Waker>, bool) {
        let was_there = line.waiting.remove(&number).is_some();
        let was_open = !line.is_shut;
        line.is_shut |= was_there && why == Unserved::TooOld && self.shuts_by_age;
        self.reopen(line, now);
        (call(line), was_open && line.is_shut)
    }

    /// When somebody who was turned away may come again: when the line will be open as far as its pace tells, in a second at least.
    pub fn retry_after(&self, line: &Line) -> Duration {
        let too_many = (line.waiting.len() + 1).saturating_sub(self.resume_at) as u32;
        line.interval.map_or(RETRY_AFTER_LEAST, |interval| {
            (interval * too_many).clamp(RETRY_AFTER_LEAST, self.wait_max.max(RETRY_AFTER_LEAST))
        })
    }

    fn reopen(&self, line: &mut Line, now: Instant) {
        let oldest = line.waiting.first_key_value().map(|(_, first)| now.saturating_duration_since(first.since));
        if line.waiting.len() <= self.resume_at && oldest.is_none_or(|oldest| oldest <= self.resume_below) {
            line.is_shut = false;
        }
    }
}

/// Somebody made room: gives who is to look for it.
pub fn call(line: &mut Line) -> Option<Waker> {
    let mut first = line.waiting.first_entry()?;
    let first = first.get_mut();
    first.is_called = true;
    first.waker.clone()
}

/// Whether who has so many before him cannot be served in his time.
fn is_doomed(line: &Line, before: usize, deadline: Option<Instant>, now: Instant) -> bool {
    let (Some(deadline), Some(interval)) = (deadline, line.interval) else { return false };
    interval.saturating_mul(before as u32) > deadline.saturating_duration_since(now)
}

/// Throws out those who cannot be served in their time, the oldest first: each that goes brings those behind him nearer.
fn throw_out(line: &mut Line, now: Instant) -> Wakers {
    let (mut before, mut doomed) = (0, Vec::new());
    for (number, waiting) in &line.waiting {
        match is_doomed(line, before, waiting.deadline, now) {
            true => doomed.push(*number),
            false => before += 1,
        }
    }
    doomed.iter().filter_map(|number| line.waiting.remove(number)?.waker).collect()
}

#[cfg(test)]
mod tests;
