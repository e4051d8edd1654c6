//! recv(2) into the free part of a buffer, without waiting.

use std::{io, os::fd::RawFd};

use super::Buf;

/// Receives what is there; 0 bytes: the peer has ended.
pub fn recv_now(fd: RawFd, buf: &mut Buf) -> io::Result<usize> {
    let spare = buf.spare();
    // SAFETY: the kernel writes at most `spare.len()` bytes into memory that is ours to fill.
    let received = unsafe { libc::recv(fd, spare.as_mut_ptr().cast(), spare.len(), libc::MSG_DONTWAIT) };
    let bytes = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    buf.filled(bytes);
    Ok(bytes)
}

/// Whether there is anything to receive: bytes, the end, or an error. Leaves it there.
pub fn has_news(fd: RawFd) -> bool {
    let mut byte = 0_u8;
    // SAFETY: the kernel writes at most the one byte.
    let received = unsafe { libc::recv(fd, (&raw mut byte).cast(), 1, libc::MSG_DONTWAIT | libc::MSG_PEEK) };
    received >= 0 || io::Error::last_os_error().kind() != io::ErrorKind::WouldBlock
}
