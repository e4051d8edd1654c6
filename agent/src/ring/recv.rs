//! RECV into the free part of a buffer.

use std::{
    io,
    os::fd::RawFd,
    pin::Pin,
    task::{Context, Poll},
};

use io_uring::{cqueue, opcode, squeue, types::Fd};
use tokio_uring::{OneshotOutputTransform, UnsubmittedOneshot};

use super::{Buf, InFlight};

/// `IORING_RECVSEND_POLL_FIRST` of linux/io_uring.h (5.19): wait for readiness before the first attempt.
const POLL_FIRST: u16 = 1;

/// A receive in flight; ready with the number of bytes (0: the peer has ended) and the buffer that has them.
pub struct Recv(InFlight<Received>);

/// What is probably the case when the receive is submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Likely {
    /// Nothing is there yet: spare the kernel a vain attempt.
    Later,
    /// Bytes are there already.
    Now,
}

/// Receives into the free part of `buf`, which must not be empty (0 bytes would look like the end).
pub fn recv(fd: RawFd, mut buf: Buf, likely: Likely) -> Recv {
    let spare = buf.spare();
    debug_assert!(!spare.is_empty());
    // The memory stays where it is while `buf` moves into the operation: a boxed slice.
    let mut entry = opcode::Recv::new(Fd(fd), spare.as_mut_ptr(), spare.len() as u32).build();
    if likely == Likely::Later {
        set_ioprio(&mut entry, POLL_FIRST);
    }
    Recv(UnsubmittedOneshot::new(buf, Received, entry).submit())
}

/// Sets the flags that RECV and SEND take in `ioprio`, for which io-uring 0.6 has no accessor.
fn set_ioprio(entry: &mut squeue::Entry, flags: u16) {
    const { assert!(size_of::<squeue::Entry>() == 64 && align_of::<squeue::Entry>() >= align_of::<u16>()) };
    // SAFETY: `Entry` is `repr(C)` over the kernel's `struct io_uring_sqe` (64 bytes, asserted above), an ABI in which `ioprio` is
    // the u16 at offset 2 and every bit pattern is valid; the alignment is asserted above.
    unsafe { std::ptr::from_mut(entry).cast::<u16>().add(1).write(flags) }
}

impl Future for Recv {
    type Output = (io::Result<usize>, Buf);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context)
    }
}

struct Received;

impl OneshotOutputTransform for Received {
    type Output = (io::Result<usize>, Buf);
    type StoredData = Buf;

    fn transform_oneshot_output(self, mut buf: Buf, entry: cqueue::Entry) -> Self::Output {
        let result = super::outcome(&entry);
        if let Ok(bytes) = result {
            buf.filled(bytes);
        }
        (result, buf)
    }
}
