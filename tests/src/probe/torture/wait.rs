//! Waiting until a socket is ready, in the four ways that programs have.

use std::{
    io,
    net::TcpStream,
    os::fd::{AsFd, BorrowedFd},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
};

use super::plan::Waiter;

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ready {
    /// Something to read, or the end.
    Read,
    /// Room to write, or an error.
    Write,
}

/// One thread's way to wait on one socket. Reader and writer have one each.
#[derive(Debug)]
pub struct Waiting<'a> {
    socket: BorrowedFd<'a>,
    ready: Ready,
    epoll: Option<Epoll>,
}

impl<'a> Waiting<'a> {
    /// Prepares to wait. An edge-triggered program registers once, before its first read or write, and never again.
    pub fn new(stream: &'a TcpStream, waiter: Waiter, ready: Ready) -> io::Result<Self> {
        let trigger = match waiter {
            Waiter::Level => Some(EpollFlags::empty()),
            Waiter::Edge => Some(EpollFlags::EPOLLET),
            Waiter::Blocking | Waiter::Poll => None,
        };
        let epoll = trigger.map(|trigger| register(stream, ready, trigger)).transpose()?;
        Ok(Self { socket: stream.as_fd(), ready, epoll })
    }

    /// Waits, for ever: the watchdog knows how long that may be. Only ever called when the socket has just said EAGAIN.
    pub fn wait(&self) -> io::Result<()> {
        let result = match &self.epoll {
            Some(epoll) => epoll.wait(&mut [EpollEvent::empty()], EpollTimeout::NONE).map(drop),
            None => self.poll(),
        };
        match result {
            Ok(()) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn poll(&self) -> nix::Result<()> {
        let flags = if self.ready == Ready::Read { PollFlags::POLLIN } else { PollFlags::POLLOUT };
        poll(&mut [PollFd::new(self.socket, flags)], PollTimeout::NONE).map(drop)
    }
}

fn register(stream: &TcpStream, ready: Ready, trigger: EpollFlags) -> io::Result<Epoll> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let flags = if ready == Ready::Read { EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP } else { EpollFlags::EPOLLOUT };
    epoll.add(stream, EpollEvent::new(flags | trigger, 0))?;
    Ok(epoll)
}
