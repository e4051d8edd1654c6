//! Counts: what happened on this host, and what went by the shortcut on behalf of a service.

use sockway_common::{counter::Counter, join::ShortcutStats};

use crate::maps::{COUNTERS, SHORTCUT_STATS};

/// Adds one to a counter of this CPU.
#[inline(always)]
pub fn one(counter: Counter) {
    add(counter, 1);
}

/// Adds `n` to a counter of this CPU.
#[inline(always)]
pub fn add(counter: Counter, n: u64) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the pointer is this CPU's element, and a hook is not interrupted by another hook that counts the same way half-way:
        // at worst a count is lost to a nested softirq.
        unsafe { *value += n };
    }
}

/// A message that went from socket to socket; `past` the agent, or not.
#[inline(always)]
pub fn redirected(service: u32, bytes: u64, past: bool) {
    one(Counter::ShortcutMessages);
    add(Counter::ShortcutBytes, bytes);
    of_service(service, |stats| {
        stats.messages += 1;
        stats.bytes += bytes;
        if past {
            stats.joined_messages += 1;
            stats.joined_bytes += bytes;
        }
    });
}

/// Counts in this CPU's statistics of a service. The agent makes the entry; without one (the service is gone) nothing is counted.
#[inline(always)]
pub fn of_service(service: u32, count: impl FnOnce(&mut ShortcutStats)) {
    // SAFETY: this CPU's element; see `add`.
    if let Some(stats) = SHORTCUT_STATS.get_ptr_mut(&service).and_then(|stats| unsafe { stats.as_mut() }) {
        count(stats);
    }
}
