//! Sending a part of a buffer: send(2) at once, and a SEND on the ring for what the socket has no room for.

use std::{
    io::{self, IoSlice},
    ops::Range,
    os::fd::{BorrowedFd, RawFd},
    pin::Pin,
    task::{Context, Poll},
};

use io_uring::{cqueue, opcode, types::Fd};
use rustix::net::{SendAncillaryBuffer, SendFlags};
use tokio_uring::{OneshotOutputTransform, UnsubmittedOneshot};

use super::{Buf, InFlight};

/// A send in flight; ready with the number of bytes that were taken and the buffer.
pub struct Send(InFlight<Sent>);

/// Sends what stands at `range` of the buffer's memory. The kernel goes on until all of it is taken (`MSG_WAITALL`), so fewer bytes
/// mean that the next attempt fails.
pub fn send(fd: RawFd, mut buf: Buf, range: Range<usize>) -> Send {
    let bytes = &buf.memory()[range];
    let entry = opcode::Send::new(Fd(fd), bytes.as_ptr(), bytes.len() as u32)
        .flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL)
        .build();
    Send(UnsubmittedOneshot::new(buf, Sent, entry).submit())
}

/// Sends what the socket has room for, without waiting. By rustix, as [`super::recv`].
pub fn send_now(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    Ok(rustix::net::send(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?)
}

/// As [`send_now`], from several places.
pub fn send_vectored_now(socket: BorrowedFd<'_>, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    Ok(rustix::net::sendmsg(socket, slices, &mut SendAncillaryBuffer::default(), flags)?)
}

impl Future for Send {
    type Output = (io::Result<usize>, Buf);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context)
    }
}

struct Sent;

impl OneshotOutputTransform for Sent {
    type Output = (io::Result<usize>, Buf);
    type StoredData = Buf;

    fn transform_oneshot_output(self, buf: Buf, entry: cqueue::Entry) -> Self::Output {
        (super::outcome(&entry), buf)
    }
}
