//! A connected socket with at most one receive and one send in flight.

use std::{
    future::poll_fn,
    io,
    net::Shutdown,
    ops::Range,
    os::fd::{AsRawFd, RawFd},
    task::{Context, Poll, Waker, ready},
};

use super::{
    Buf, Socket,
    recv::{Likely, Recv, recv},
    send::{Send, send},
};

/// Both directions of a connection. The halves can be borrowed apart: one task may relay both ways.
pub struct Stream {
    /// What comes in.
    pub reader: Reader,
    /// What goes out.
    pub writer: Writer,
    /// The socket under both.
    pub socket: Socket,
}

impl Stream {
    /// Over a connected socket.
    pub fn new(socket: Socket) -> Self {
        let fd = socket.as_raw_fd();
        Self { reader: Reader { fd, armed: None }, writer: Writer { fd, sending: None, rest: 0..0 }, socket }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // Before the operations are dropped with the halves: they end, and no byte is swallowed that anybody could still want.
        self.socket.shut(Shutdown::Both);
    }
}

/// The receiving half. A receive is armed ahead of need: it tells at once that bytes have come, or that the peer is gone.
pub struct Reader {
    fd: RawFd,
    armed: Option<Recv>,
}

impl Reader {
    /// Submits the receive for what the peer sends next.
    pub fn arm(&mut self, buf: Buf) {
        debug_assert!(self.armed.is_none());
        self.armed = Some(recv(self.fd, buf, Likely::Later));
    }

    /// As [`Reader::arm`], when the bytes are probably there already: the middle of a long body.
    pub fn arm_now(&mut self, buf: Buf) {
        debug_assert!(self.armed.is_none());
        self.armed = Some(recv(self.fd, buf, Likely::Now));
    }

    /// Whether a receive is armed.
    pub fn is_armed(&self) -> bool {
        self.armed.is_some()
    }

    /// Whether the armed receive still waits: the peer has neither sent nor ended anything, as far as the ring has told.
    pub fn is_quiet(&mut self) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        self.armed.is_some() && self.poll_received(&mut context).is_pending()
    }

    /// Waits for the armed receive: bytes now at the end of the buffer, 0 when the peer has ended.
    pub async fn received(&mut self) -> (io::Result<usize>, Buf) {
        poll_fn(|context| self.poll_received(context)).await
    }

    /// As [`Reader::received`].
    pub fn poll_received(&mut self, context: &mut Context<'_>) -> Poll<(io::Result<usize>, Buf)> {
        loop {
            let armed = self.armed.as_mut().expect("a receive is armed");
            let (result, buf) = ready!(std::pin::Pin::new(armed).poll(context));
            self.armed = None;
            match result {
                // A socket on the kernel's shortcut may say so of a wait that was cut short (trap T3): never an answer.
                Err(error) if is_again(&error) => self.arm(buf),
                result => return Poll::Ready((result, buf)),
            }
        }
    }
}

/// The sending half.
pub struct Writer {
    fd: RawFd,
    sending: Option<Send>,
    rest: Range<usize>,
}

impl Writer {
    /// Submits what stands at `range` of the buffer's memory. What was submitted before must have been awaited.
    pub fn submit(&mut self, buf: Buf, range: Range<usize>) {
        debug_assert!(self.sending.is_none());
        self.rest = range.clone();
        self.sending = Some(send(self.fd, buf, range));
    }

    /// Whether something was submitted and not yet awaited.
    pub fn is_sending(&self) -> bool {
        self.sending.is_some()
    }

    /// Waits until what was submitted is with the kernel, and gives the buffer back.
    pub async fn sent(&mut self) -> (io::Result<()>, Buf) {
        poll_fn(|context| self.poll_sent(context)).await
    }

    /// As [`Writer::sent`].
    pub fn poll_sent(&mut self, context: &mut Context<'_>) -> Poll<(io::Result<()>, Buf)> {
        loop {
            let sending = self.sending.as_mut().expect("something was submitted");
            let (result, buf) = ready!(std::pin::Pin::new(sending).poll(context));
            self.sending = None;
            match result {
                Ok(bytes) => self.rest.start += bytes,
                Err(error) if is_again(&error) => {}
                Err(error) => return Poll::Ready((Err(error), buf)),
            }
            if self.rest.is_empty() {
                return Poll::Ready((Ok(()), buf));
            }
            self.sending = Some(send(self.fd, buf, self.rest.clone()));
        }
    }
}

fn is_again(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
