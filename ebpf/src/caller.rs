//! Who is at work: a program, or a thread of the kernel itself (NFS, SMB, MPTCP's path manager), whose sockets are left alone (trap T29).
//!
//! The kernel's own code keeps the address that it dialled and knows nothing of another one. Cgroups do not tell: such a thread may work
//! on a socket that belongs to a program's cgroup, and programs may live in the root cgroup, as the kernel's threads do.

use core::ptr;

use aya_ebpf::helpers::generated::bpf_get_current_task;

use crate::socket;

/// `PF_KTHREAD` of `include/linux/sched.h`. Workers of io_uring, which act for a program, do not have it.
const PF_KTHREAD: u32 = 0x0020_0000;

/// Byte offset of `task_struct.flags`, set by the agent when it loads this; 0: not known, or not to be
/// read, and nobody is taken for the kernel.
/// Its first value is nobody else's (see [`crate::mptcp`]).
#[unsafe(no_mangle)]
static TASK_FLAGS: u32 = 0x5357_0002;

/// Whether the kernel acts on its own behalf.
#[inline(always)]
pub fn is_kernel() -> bool {
    // SAFETY: a constant that the agent sets before the program is loaded.
    let offset = unsafe { ptr::read_volatile(&raw const TASK_FLAGS) };
    if offset == 0 {
        return false;
    }
    // SAFETY: plain helper without arguments.
    let task = unsafe { bpf_get_current_task() };
    socket::peek::<u32>(task, offset).unwrap_or(0) & PF_KTHREAD != 0
}
