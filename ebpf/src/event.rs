//! Tells the agent something rare, at most once per kind and subject in [`QUIET_NS`].

use aya_ebpf::helpers::bpf_ktime_get_ns;
use sockway_common::{capture::Event, counter::Counter};

use crate::{
    count,
    maps::{EVENTS, EVENTS_SENT},
};

/// Time between two events of one kind about one subject: fast enough for the agent to act within 20 ms of a change, slow enough
/// that a flood of failing connects costs it nothing.
const QUIET_NS: u64 = 10_000_000;

/// Sends `event` unless one about the same `subject` was sent just before.
#[inline(always)]
pub fn send(event: &Event, subject: u64) {
    // SAFETY: plain helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let key = subject ^ (u64::from(event.kind) << 56);
    // SAFETY: the value is copied out at once; a concurrent update gives the old or the new time, and both will do.
    if let Some(sent) = unsafe { EVENTS_SENT.get(&key) }
        && now.wrapping_sub(*sent) < QUIET_NS
    {
        return;
    }
    let _ = EVENTS_SENT.insert(&key, &now, 0);
    if EVENTS.output::<Event>(event, 0).is_err() {
        count::one(Counter::EventLost);
    }
}
