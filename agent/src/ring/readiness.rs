//! Waiting until a descriptor can be read, in the epoll set in which tokio-uring's runtime waits for the ring.

use std::{
    cell::OnceCell,
    io,
    net::TcpListener,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    task::{Context, Poll},
};

use tokio::io::{
    Interest,
    unix::{AsyncFd, AsyncFdReadyGuard},
};

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

/// A stream's socket in the epoll set. It joins when it is waited for, which costs two system calls: a connection whose one request has come
/// already never does.
#[derive(Default)]
pub(super) struct Readiness(OnceCell<AsyncFd<Borrowed>>);

impl Readiness {
    /// Whether it was waited for before.
    pub fn is_watched(&self) -> bool {
        self.0.get().is_some()
    }

    /// Waits until epoll tells something of `socket`, always the same one, that was not cleared. Fails with `OutOfMemory` when its set takes no more (epoll(7) on
    /// `max_user_watches`).
    pub fn poll(
        &self,
        socket: Borrowed,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<AsyncFdReadyGuard<'_, Borrowed>>> {
        let watched = match self.0.get() {
            Some(watched) => watched,
            None => {
                // SAFETY: who made `socket` keeps the descriptor open for as long; it is always the same.
                let watched = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
                let watched = watched.map_err(|error| io::Error::new(io::ErrorKind::OutOfMemory, error))?;
                self.0.get_or_init(|| watched)
            }
        };
        watched.poll_read_ready(context)
    }
}

/// A descriptor that somebody else owns.
#[derive(Clone, Copy)]
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
