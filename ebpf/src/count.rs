//! Adds one.

use sockway_common::counter::Counter;

use crate::maps::COUNTERS;

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
