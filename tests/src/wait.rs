//! Waiting for a condition, with a deadline. What never happens panics with what was waited for.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::patience;

/// Deadline of conditions that are due within milliseconds: generous, because tests share two cores.
pub const SOON: Duration = Duration::from_secs(15);

/// [`SOON`] for the deadlines of sockets, on this machine.
pub fn soon() -> Duration {
    patience::deadline(SOON)
}

/// Between two looks: short against every condition, long against a scheduler's slice.
const PAUSE: Duration = Duration::from_millis(5);

/// Looks until there is something to see; panics with `what` when `deadline` has passed.
#[track_caller]
pub fn until_some<T>(what: &str, deadline: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    let deadline = patience::deadline(deadline);
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(start.elapsed() < deadline, "waited {deadline:?} in vain for: {what}");
        thread::sleep(PAUSE);
    }
}

/// Looks until it is true; panics with `what` when `deadline` has passed.
#[track_caller]
pub fn until(what: &str, deadline: Duration, mut look: impl FnMut() -> bool) {
    until_some(what, deadline, || look().then_some(()));
}

/// Looks again and again for all of `span`; panics with `what` the first time it is not true.
#[track_caller]
pub fn throughout(what: &str, span: Duration, mut look: impl FnMut() -> bool) {
    let start = Instant::now();
    while start.elapsed() < span {
        assert!(look(), "no longer true after {:?}: {what}", start.elapsed());
        thread::sleep(PAUSE);
    }
}

/// Looks until it is true, and says so; false when `patience` is at its end.
pub fn whether(patience: Duration, mut look: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if look() {
            return true;
        }
        if start.elapsed() >= patience {
            return false;
        }
        thread::sleep(PAUSE);
    }
}
