//! Listener to connection: a permit first, then the connection.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    net::{SocketAddr, TcpListener},
    os::fd::{AsRawFd, OwnedFd},
    rc::Rc,
    task::{Poll, Waker},
};

use socket2::SockRef;

use crate::ring;

/// A listener of one worker in one network namespace.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    /// Cookie of the network namespace in which it listens.
    pub netns: u64,
    is_closing: Cell<bool>,
}

/// What came of waiting for a connection.
#[derive(Debug)]
pub enum Accepted {
    /// One came.
    Connection(OwnedFd, SocketAddr),
    /// The listener is being closed, and nothing is left in its queue.
    Closed,
}

impl Listener {
    /// Over a listening socket.
    pub fn new(socket: TcpListener, netns: u64) -> io::Result<Self> {
        // io_uring waits only on blocking sockets; accepted ones inherit TCP_NODELAY from their listener.
        socket.set_nonblocking(false)?;
        SockRef::from(&socket).set_tcp_nodelay(true)?;
        Ok(Self { socket, netns, is_closing: Cell::new(false) })
    }

    /// Waits for the next connection. Never dropped while it waits: [`Listener::close`] ends it.
    pub async fn accept(&self) -> io::Result<Accepted> {
        if !self.is_closing.get() {
            match ring::accept(self.socket.as_raw_fd()).await {
                Ok((socket, peer)) => return Ok(Accepted::Connection(socket, peer)),
                Err(error) if !self.is_closing.get() => return Err(error),
                Err(_) => {}
            }
        }
        self.accept_queued()
    }

    /// Takes what is in the queue already: shutting the listener would reset it.
    fn accept_queued(&self) -> io::Result<Accepted> {
        let accepted = self.socket.accept();
        match accepted {
            Ok((socket, peer)) => {
                socket.set_nonblocking(false)?;
                Ok(Accepted::Connection(socket.into(), peer))
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => self.accept_queued(),
            Err(_) => Ok(Accepted::Closed),
        }
    }

    /// Ends accepting; connections that are established already are still given out before [`Accepted::Closed`].
    pub fn close(&self, mut serve: impl FnMut(OwnedFd, SocketAddr)) {
        if self.is_closing.replace(true) || self.socket.set_nonblocking(true).is_err() {
            return;
        }
        while let Ok(Accepted::Connection(socket, peer)) = self.accept_queued() {
            serve(socket, peer);
        }
        // Ends the accept in flight.
        let _ = SockRef::from(&self.socket).shutdown(std::net::Shutdown::Both);
    }
}

/// Leave for so many connections at a time.
#[derive(Debug)]
pub struct Gate {
    free: Cell<usize>,
    waiting: RefCell<Vec<Waker>>,
}

impl Gate {
    /// For `permits` at a time.
    pub fn new(permits: usize) -> Rc<Self> {
        Rc::new(Self { free: Cell::new(permits), waiting: RefCell::default() })
    }

    /// Waits for a permit.
    pub async fn permit(self: &Rc<Self>) -> Permit {
        poll_fn(|context| match self.free.get().checked_sub(1) {
            Some(free) => {
                self.free.set(free);
                Poll::Ready(Permit(Rc::clone(self)))
            }
            None => {
                self.waiting.borrow_mut().push(context.waker().clone());
                Poll::Pending
            }
        })
        .await
    }
}

/// Leave to serve one connection, given back by dropping it.
#[derive(Debug)]
pub struct Permit(Rc<Gate>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.free.set(self.0.free.get() + 1);
        self.0.waiting.borrow_mut().drain(..).for_each(Waker::wake);
    }
}
