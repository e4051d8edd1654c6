//! The agent runs this program by itself (`BPF_PROG_TEST_RUN`, on no packet of the network): user space cannot remove an entry of the limits
//! only if nothing is taken, a hook can.

use aya_ebpf::{helpers::bpf_ktime_get_ns, macros::socket_filter, programs::SkBuffContext};
use sockway_common::limit::{LimitKey, SWEEP_KEYS_MAX};

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
