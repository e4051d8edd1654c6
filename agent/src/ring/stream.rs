//! A connected socket with at most one receive and one send in flight.

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    net::Shutdown,
    ops::Range,
    os::fd::{AsFd, AsRawFd},
    task::{Context, Poll, Waker, ready},
};

use tokio::io::{ReadBuf, unix::AsyncFd};

use super::{
    Buf, Socket,
    readiness::{self, Borrowed},
    recv::{has_news, recv_into, recv_now},
    send::{Send, send, send_now, send_vectored_now},
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
    pub fn new(socket: Socket) -> io::Result<Self> {
        // SAFETY: the halves are dropped before the socket, in the order of the stream's fields.
        let half = || unsafe { Borrowed::new(socket.as_raw_fd()) };
        let reader = Reader { readiness: readiness::of_socket(half())?, armed: None, is_drained: true, taken: 0 };
        let writer = Writer { socket: half(), sending: None, rest: 0..0 };
        Ok(Self { reader, writer, socket })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // Before a send in flight is dropped with its half: it ends.
        self.socket.shut(Shutdown::Both);
    }
}

/// The receiving half. It waits in the epoll set in which tokio-uring's runtime waits for the ring, and then takes what is there with
/// recv(2): for messages that come one at a time that is cheaper than a RECV each (half of what receiving costs), and nobody who is
/// silent holds memory in the kernel's hands.
pub struct Reader {
    readiness: AsyncFd<Borrowed>,
    armed: Option<Buf>,
    /// Everything that had come when epoll last told of news has been taken.
    is_drained: bool,
    taken: u64,
}

impl Reader {
    /// Prepares to receive into the free part of `buf`, which must not be empty (0 bytes would look like the end).
    pub fn arm(&mut self, buf: Buf) {
        debug_assert!(self.armed.is_none() && buf.room() > 0);
        self.armed = Some(buf);
    }

    /// Whether a buffer is prepared.
    pub fn is_armed(&self) -> bool {
        self.armed.is_some()
    }

    /// Bytes received since the connection was made.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Receives what is there already; false when that is nothing, or the end.
    pub fn receive_now(&mut self, buf: &mut Buf) -> bool {
        let received = if buf.room() > 0 { recv_now(self.readiness.get_ref().as_fd(), buf).unwrap_or(0) } else { 0 };
        self.taken += received as u64;
        received > 0
    }

    /// Whether the peer has neither sent nor ended anything, as far as epoll has told.
    pub fn is_quiet(&mut self) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        while let Poll::Ready(ready) = self.readiness.poll_read_ready(&mut context) {
            let Ok(mut ready) = ready else { return false };
            if has_news(self.readiness.get_ref().as_fd()) {
                return false;
            }
            ready.clear_ready();
        }
        true
    }

    /// Waits for bytes, now at the end of the buffer; 0 when the peer has ended.
    pub async fn received(&mut self) -> (io::Result<usize>, Buf) {
        poll_fn(|context| self.poll_received(context)).await
    }

    /// As [`Reader::received`].
    pub fn poll_received(&mut self, context: &mut Context<'_>) -> Poll<(io::Result<usize>, Buf)> {
        loop {
            let ready = ready!(self.readiness.poll_read_ready(context));
            let mut buf = self.armed.take().expect("a buffer is prepared");
            let mut ready = match ready {
                Ok(ready) => ready,
                Err(error) => return Poll::Ready((Err(error), buf)),
            };
            let result = recv_now(self.readiness.get_ref().as_fd(), &mut buf);
            self.taken += *result.as_ref().unwrap_or(&0) as u64;
            match &result {
                // May be said of a wait that was cut short (trap T3): never an answer.
                Err(error) if is_again(error) => {
                    self.armed = Some(buf);
                    self.is_drained = true;
                    ready.clear_ready();
                    continue;
                }
                // Less than there is room for, after a time when nothing was left: that was all, and the next wait needs no vain
                // attempt. Not so after a receive that left something: a socket on the kernel's shortcut has two queues, and bytes
                // are in both when the first has been full (trap T6).
                Ok(1..) if buf.room() > 0 && self.is_drained => ready.clear_ready(),
                _ => self.is_drained = false,
            }
            return Poll::Ready((result, buf));
        }
    }
}

impl Reader {
    /// Waits for bytes and puts them into memory of the caller; none: the peer has ended. Nothing may be armed.
    pub fn poll_read(&mut self, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        debug_assert!(self.armed.is_none() && buf.remaining() > 0);
        loop {
            let mut ready = ready!(self.readiness.poll_read_ready(context))?;
            match recv_into(self.readiness.get_ref().as_fd(), buf) {
                // See `Reader::poll_received`, here and below.
                Err(error) if is_again(&error) => {
                    self.is_drained = true;
                    ready.clear_ready();
                }
                Ok(bytes @ 1..) if buf.remaining() > 0 && self.is_drained => {
                    ready.clear_ready();
                    self.taken += bytes as u64;
                    return Poll::Ready(Ok(()));
                }
                result => {
                    self.is_drained = false;
                    self.taken += *result.as_ref().unwrap_or(&0) as u64;
                    return Poll::Ready(result.map(drop));
                }
            }
        }
    }
}

/// The sending half.
pub struct Writer {
    socket: Borrowed,
    sending: Option<Sending>,
    rest: Range<usize>,
}

/// What was submitted and not yet awaited.
enum Sending {
    /// The kernel took it, or refused to, at once.
    Over(io::Result<()>, Buf),
    InFlight(Send),
}

impl Writer {
    /// Submits what stands at `range` of the buffer's memory. What was submitted before must have been awaited.
    ///
    /// send(2) tries first, and nearly always takes all: an operation would do the same work at the same moment, and cost a completion
    /// and a turn of the loop on top. What the socket has no room for goes to the ring.
    pub fn submit(&mut self, mut buf: Buf, range: Range<usize>) {
        debug_assert!(self.sending.is_none());
        self.rest = range;
        self.sending = Some(match send_now(self.socket.as_fd(), &buf.memory()[self.rest.clone()]) {
            Ok(bytes) if bytes == self.rest.len() => Sending::Over(Ok(()), buf),
            Err(error) if !is_again(&error) => Sending::Over(Err(error), buf),
            some => {
                self.rest.start += some.unwrap_or(0);
                Sending::InFlight(send(self.socket.as_raw_fd(), buf, self.rest.clone()))
            }
        });
    }

    /// Sends what the socket has room for, without waiting. What was submitted before must have been awaited.
    pub fn send_vectored_now(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        debug_assert!(self.sending.is_none());
        send_vectored_now(self.socket.as_fd(), slices)
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
            let sending = match self.sending.take().expect("something was submitted") {
                Sending::Over(result, buf) => return Poll::Ready((result, buf)),
                Sending::InFlight(sending) => self.sending.insert(Sending::InFlight(sending)),
            };
            let Sending::InFlight(sending) = sending else { continue };
            let (result, buf) = ready!(std::pin::Pin::new(sending).poll(context));
            match result {
                Ok(bytes) => self.rest.start += bytes,
                Err(error) if is_again(&error) => {}
                Err(error) => {
                    self.sending = None;
                    return Poll::Ready((Err(error), buf));
                }
            }
            self.sending = Some(match self.rest.is_empty() {
                true => Sending::Over(Ok(()), buf),
                false => Sending::InFlight(send(self.socket.as_raw_fd(), buf, self.rest.clone())),
            });
        }
    }
}

fn is_again(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
