//! How many descriptors this process has left. Each connection through the agent takes two: with none left it can neither accept one nor dial
//! for those that it has accepted.

use std::{fs, ops::RangeInclusive, os::fd::RawFd};

use rustix::process::{Resource, getrlimit};

/// Those that are kept for connections under way to the agent when it says that it takes no more: an eighth, within this. At 50 000 connections a
/// second that is some milliseconds, in which the heart has long paused.
const RESERVE: RangeInclusive<u64> = 16..=256;

/// How many there may be.
pub fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// How many of so many must be free for another connection to be taken.
pub fn reserve(limit: u64) -> u64 {
    (limit / 8).clamp(*RESERVE.start(), *RESERVE.end())
}

/// The descriptor from which on there are too few: the kernel gives the lowest that is free.
pub fn mark() -> RawFd {
    let limit = limit();
    RawFd::try_from(limit.saturating_sub(reserve(limit))).unwrap_or(RawFd::MAX)
}

/// How many are free; `None` before Linux 6.2, which does not tell without listing them all.
pub fn free() -> Option<u64> {
    let open = fs::metadata("/proc/self/fd").ok()?.len();
    (open > 0).then(|| limit().saturating_sub(open))
}
