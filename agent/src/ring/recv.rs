//! recv(2) into the free part of a buffer, without waiting. By rustix, whose system calls are no cancellation points: libc's cost two
//! atomic operations each.

use std::{io, os::fd::BorrowedFd};

use rustix::net::{RecvFlags, recv};
use tokio::io::ReadBuf;

use super::Buf;

/// Receives what is there; 0 bytes: the peer has ended.
pub fn recv_now(socket: BorrowedFd<'_>, buf: &mut Buf) -> io::Result<usize> {
    let (bytes, _) = recv(socket, buf.spare(), RecvFlags::DONTWAIT)?;
    buf.filled(bytes);
    Ok(bytes)
}

/// As [`recv_now`], into memory of the caller that nobody has written to yet.
pub fn recv_into(socket: BorrowedFd<'_>, buf: &mut ReadBuf<'_>) -> io::Result<usize> {
    // SAFETY: recv(2) only writes to it, and initialises what it counts.
    let ((received, _), _) = recv(socket, unsafe { buf.unfilled_mut() }, RecvFlags::DONTWAIT)?;
    let bytes = received.len();
    // SAFETY: `received` is the initialised part, at the beginning of what was unfilled.
    unsafe { buf.assume_init(bytes) };
    buf.advance(bytes);
    Ok(bytes)
}

/// Whether there is anything to receive: bytes, the end, or an error. Leaves it there.
pub fn has_news(socket: BorrowedFd<'_>) -> bool {
    look(socket) != Err(rustix::io::Errno::AGAIN)
}

/// What the next receive would give, at most one byte of it. Leaves it there.
pub fn look(socket: BorrowedFd<'_>) -> rustix::io::Result<usize> {
    recv(socket, &mut [0_u8; 1], RecvFlags::DONTWAIT | RecvFlags::PEEK).map(|(bytes, _)| bytes)
}
