//! A worker's ring and the tasks on it.

use std::{cell::Cell, io};

/// Submissions that fit before the kernel must be called: a burst of connections, each with a few operations.
const ENTRIES: u32 = 512;
/// Completions that fit before the kernel must keep them elsewhere.
const COMPLETIONS: u32 = 8192;

thread_local! {
    static RUNNING: Cell<bool> = const { Cell::new(false) };
}

/// Runs a future, and what it spawns, on a ring of this thread until it is done.
///
/// Completions are delivered when the thread enters the kernel anyway (`COOP_TASKRUN`, 5.19), and only this thread submits
/// (`SINGLE_ISSUER`, 6.0). `DEFER_TASKRUN` would hang: tokio-uring waits for the ring's descriptor with epoll.
pub fn run<F: Future>(future: F) -> io::Result<F::Output> {
    let mut ring = tokio_uring::uring_builder();
    ring.setup_coop_taskrun().setup_single_issuer().setup_cqsize(COMPLETIONS);
    let mut builder = tokio_uring::builder();
    builder.entries(ENTRIES).uring_builder(&ring);
    let runtime = tokio_uring::Runtime::new(&builder)?;
    let running = Running::begin();
    let output = runtime.block_on(future);
    drop(running);
    Ok(output)
}

/// Whether operations can be submitted on this thread.
pub(super) fn is_running() -> bool {
    RUNNING.get()
}

struct Running;

impl Running {
    fn begin() -> Self {
        RUNNING.set(true);
        Running
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        RUNNING.set(false);
    }
}
