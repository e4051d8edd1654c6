//! The agent runs these programs by itself (`BPF_PROG_TEST_RUN`, on no packet of the network): user space cannot remove an entry of the limits
//! only if nothing is taken, nor add to one that others change; a hook can.

use aya_ebpf::{helpers::bpf_ktime_get_ns, macros::socket_filter, programs::SkBuffContext};
use sockway_common::limit::{LimitCarried, LimitKey, SETTLED_MAX, SWEEP_KEYS_MAX};

use crate::limit;

/// Removes the entries of the keys that the made-up packet carries behind its link header, those that are idle; how many.
#[socket_filter]
pub fn sweep_limits(ctx: SkBuffContext) -> i64 {
    // SAFETY: plain helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let mut removed = 0;
    for index in 0..SWEEP_KEYS_MAX {
        let Ok(key) = ctx.load::<LimitKey>(index * size_of::<LimitKey>()) else { break };
        if limit::sweep(&key, now) {
            removed += 1;
        }
    }
    removed
}

/// Adds to the entries what the made-up packet carries behind its link header; for how many there was room.
#[socket_filter]
pub fn settle_limits(ctx: SkBuffContext) -> i64 {
    let mut settled = 0;
    for index in 0..SETTLED_MAX {
        let Ok(carried) = ctx.load::<LimitCarried>(index * size_of::<LimitCarried>()) else { break };
        if limit::settle(&carried) {
            settled += 1;
        }
    }
    settled
}
