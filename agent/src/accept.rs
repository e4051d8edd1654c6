//! Listener to connection: a permit first, then the connection.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    net::{SocketAddr, TcpListener},
    os::fd::OwnedFd,
    rc::Rc,
    sync::Arc,
    task::{Poll, Waker},
};

use socket2::SockRef;
use tokio::{io::unix::AsyncFd, sync::Notify};

use crate::{kernel::Place, ring};

/// A listener of one worker in one network namespace. It waits in the runtime's epoll set and is never in the ring's hands: a ring is
/// torn down some time after its process was killed, and until then a listener held by it would take connections that nobody serves.
#[derive(Debug)]
pub struct Listener {
    socket: AsyncFd<TcpListener>,
    /// Cookie of the network namespace in which it listens.
    pub netns: u64,
    /// For connections that come in: where that is.
    pub place: Option<Arc<Place>>,
    is_closing: Cell<bool>,
    closing: Notify,
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
    pub fn new(socket: TcpListener, netns: u64, place: Option<Arc<Place>>) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        // Accepted sockets inherit it: no piece of a response waits for the acknowledgement of the one before.
        SockRef::from(&socket).set_tcp_nodelay(true)?;
        let socket = ring::of_listener(socket)?;
        Ok(Self { socket, netns, place, is_closing: Cell::new(false), closing: Notify::new() })
    }

    /// Waits for the next connection.
    pub async fn accept(&self) -> io::Result<Accepted> {
        loop {
            if self.is_closing.get() {
                return Ok(Accepted::Closed);
            }
            let mut ready = tokio::select! {
                biased;
                () = self.closing.notified() => return Ok(Accepted::Closed),
                ready = self.socket.readable() => ready?,
            };
            match self.accept_queued() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) => return Err(error),
                Ok((socket, peer)) => return Ok(Accepted::Connection(socket, peer)),
            }
        }
    }

    /// Takes one that is in the queue already. The socket is a blocking one, as the ring wants it: on others its operations do not wait.
    fn accept_queued(&self) -> io::Result<(OwnedFd, SocketAddr)> {
        let (socket, peer) = self.socket.get_ref().accept()?;
        Ok((socket.into(), peer))
    }

    /// Ends accepting; connections that are established already are still given to `serve`: closing the listener would reset them.
    pub fn close(&self, mut serve: impl FnMut(OwnedFd, SocketAddr)) {
        self.is_closing.set(true);
        while let Ok((socket, peer)) = self.accept_queued() {
            serve(socket, peer);
        }
        self.closing.notify_one();
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
