//! Takes turns: a cursor that all CPUs share, so that it is exact, and for a hot service a batch of turns for each CPU, so that cores do
//! not fight over the cursor's cache line.

use crate::{
    atomic,
    maps::{CURSORS, TURNS, TURNS_SERVICES, Turns},
};

/// A CPU that took its last turn of a service less than this ago is hot: at 50 000 connects a second on one CPU, the cursor's cache
/// line, which costs some 100 ns to move, begins to be felt.
const HOT_NS: u64 = 20_000;
/// Turns that a hot CPU takes at once: as many may be used out of order, and none is left out.
const BATCH: u64 = 16;

/// The next turn of a service; `None` when it has no cursor.
///
/// A hook of another task may come in between on a preemptible kernel: a turn is then used twice or not at all, which no sum notices.
#[inline(always)]
pub fn next(service: u32, now: u64) -> Option<u64> {
    let turns = TURNS.get_ptr_mut(service % TURNS_SERVICES)?;
    // SAFETY: this CPU's element; services that share it throw each other's turns away, which costs them nothing but order.
    let turns = unsafe { &mut *turns };
    let own = turns.service == service;
    if own && turns.next < turns.end {
        let turn = turns.next;
        turns.next = turn + 1;
        turns.last_ns = now;
        return Some(turn);
    }
    let hot = own && now.wrapping_sub(turns.last_ns) < HOT_NS;
    let count = if hot { BATCH } else { 1 };
    // SAFETY: a map value of eight bytes.
    let first = unsafe { atomic::fetch_add(CURSORS.get_ptr_mut(&service)?, count) };
    *turns = Turns { service, zero: 0, next: first + 1, end: first + count, last_ns: now };
    Some(first)
}
