//! Waiting until a descriptor can be read, in the epoll set in which tokio-uring's runtime waits for the ring.

use std::{
    io,
    net::TcpListener,
    os::fd::{AsRawFd, RawFd},
};

use tokio::io::{Interest, unix::AsyncFd};

/// A listener, to wait for its connections.
pub fn of_listener(listener: TcpListener) -> io::Result<AsyncFd<TcpListener>> {
    // SAFETY: a listener owns its descriptor, is itself owned by what is made here, and always gives the same one.
    unsafe { AsyncFd::register_with_interest(listener, Interest::READABLE) }.map_err(io::Error::from)
}

/// A descriptor that somebody else owns.
pub(super) struct Borrowed(RawFd);

impl AsRawFd for Borrowed {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

/// A stream's socket.
///
/// # Safety
///
/// The descriptor must stay open until what is returned is dropped.
pub(super) unsafe fn of_socket(socket: RawFd) -> io::Result<AsyncFd<Borrowed>> {
    // SAFETY: the caller keeps it open; it is always the same.
    unsafe { AsyncFd::register_with_interest(Borrowed(socket), Interest::READABLE) }.map_err(io::Error::from)
}
