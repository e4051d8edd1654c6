//! CLOSE.

use std::os::fd::{IntoRawFd, OwnedFd};

use io_uring::{cqueue, opcode, types::Fd};
use tokio_uring::{OneshotOutputTransform, UnsubmittedOneshot};

/// Closes a descriptor behind everything that was submitted before. close(2) would free the number at once, and an operation on it
/// that is queued but not yet with the kernel would then meet whatever is opened next under the same number.
pub fn close(fd: OwnedFd) {
    if !super::runtime::is_running() {
        return drop(fd);
    }
    let entry = opcode::Close::new(Fd(fd.into_raw_fd())).build();
    drop(UnsubmittedOneshot::new((), Closed, entry).submit());
}

struct Closed;

impl OneshotOutputTransform for Closed {
    type Output = ();
    type StoredData = ();

    fn transform_oneshot_output(self, (): (), _entry: cqueue::Entry) {}
}
