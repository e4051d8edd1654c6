//! Waiting until programs that were replaced run no more.

use std::io;

/// `MEMBARRIER_CMD_GLOBAL`: returns when everything that ran when it was called has left the kernel's read-side sections, in which programs
/// of cgroups run (`synchronize_rcu`).
const GLOBAL: libc::c_int = 1;

/// Waits until no hook that was replaced before runs any more: some milliseconds.
///
/// # Errors
///
/// When the kernel cannot say so: it was built without membarrier(2), or isolates processors from the tick (`nohz_full`).
pub fn wait() -> io::Result<()> {
    // SAFETY: the call takes numbers only.
    match unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
