//! Waiting until a descriptor can be read, in the epoll set in which tokio-uring's runtime waits for the ring.

use std::{
    io,
    net::TcpListener,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

use tokio::io::{Interest, unix::AsyncFd};

/// A listener, to wait for its connections.
pub fn of_listener(listener: TcpListener) -> io::Result<AsyncFd<TcpListener>> {
    // SAFETY: a listener owns its descriptor, is itself owned by what is made here, and always gives the same one.
    unsafe { AsyncFd::register_with_interest(listener, Interest::READABLE) }.map_err(io::Error::from)
}

/// A descriptor of our own, to wait until it can be read.
pub(super) fn of_owned(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: it owns its descriptor, is itself owned by what is made here, and always gives the same one.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(io::Error::from)
}

/// A stream's socket, to wait until it can be read.
pub(super) fn of_socket(socket: Borrowed) -> io::Result<AsyncFd<Borrowed>> {
    // SAFETY: who made `socket` keeps the descriptor open for as long; it is always the same.
    unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }.map_err(io::Error::from)
}

/// A descriptor that somebody else owns.
pub(super) struct Borrowed(RawFd);

impl Borrowed {
    /// # Safety
    ///
    /// The descriptor must stay open until this is dropped.
    pub unsafe fn new(fd: RawFd) -> Self {
        Self(fd)
    }
}

impl AsFd for Borrowed {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: it is open: see `Borrowed::new`.
        unsafe { BorrowedFd::borrow_raw(self.0) }
    }
}

impl AsRawFd for Borrowed {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}
