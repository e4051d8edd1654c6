//! The agent tries this program before it loads the others, and runs it: may programs of this kernel read its memory? A kernel that is
//! locked down withholds the helper, and would refuse every program that calls it.

use aya_ebpf::{helpers::generated::bpf_get_current_task, macros::socket_filter, programs::SkBuffContext};

use crate::socket;

/// Whether the kernel's memory can be read: 1, or 0.
#[socket_filter]
pub fn look_inside(_: SkBuffContext) -> i64 {
    // SAFETY: plain helper without arguments.
    let task = unsafe { bpf_get_current_task() };
    i64::from(socket::read::<u64>(task, 0).is_some())
}
