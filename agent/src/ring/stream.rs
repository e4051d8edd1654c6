//! A connected socket with at most one receive and one send in flight, in plain or under TLS.

#[cfg(test)]
mod tests;
mod tls;

pub use tls::HandshakeError;

use std::{
    cell::RefCell,
    future::poll_fn,
    io::{self, IoSlice},
    mem,
    net::Shutdown,
    ops::Range,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use tokio::io::ReadBuf;

use super::{
    Buf, Buffers, Due, Socket,
    delivery::{Fate, Told, hung_up},
    readiness::{Borrowed, Readiness},
    recv::{has_news, look, recv_into, recv_now},
    send::{Send, send, send_now, send_vectored_now},
};
use crate::cluster::Held;

/// How long a peer that has ended its side may take to say what it makes of what was sent afterwards: a round trip within a data centre, and
/// ten times the first retransmission (RFC 6298 as in Linux, 200 ms) between them.
const VERDICT: Duration = Duration::from_secs(2);

/// Both directions of a connection. The halves can be borrowed apart: one task may relay both ways.
pub struct Stream {
    /// What comes in.
    pub reader: Reader,
    /// What goes out.
    pub writer: Writer,
    /// The socket under both.
    pub socket: Socket,
    /// What is given back when it is closed.
    pub held: Option<Held>,
}

impl Stream {
    /// Over a socket that was accepted: who dialled it has mostly spoken already, so that is tried before it is waited for.
    pub fn accepted(socket: Socket) -> Self {
        Self::over(socket, true)
    }

    /// Over a socket that was dialled, where nobody speaks yet.
    pub fn dialled(socket: Socket) -> Self {
        Self::over(socket, false)
    }

    fn over(socket: Socket, is_accepted: bool) -> Self {
        // SAFETY: the halves are dropped before the socket, in the order of the stream's fields.
        let half = unsafe { Borrowed::new(socket.as_raw_fd()) };
        let reader = Reader {
            socket: half,
            readiness: Readiness::default(),
            armed: Armed::Not,
            has_unread: is_accepted,
            is_drained: true,
            taken: 0,
            tls: None,
        };
        let writer = Writer { socket: half, sending: None, uses_ring: !is_accepted, taken: 0, tls: None };
        Self { reader, writer, socket, held: None }
    }

    /// Whether it is certain that nothing of what was sent behind the first `before` bytes has reached the peer's program. `has_ended`: the
    /// peer has ended its side, and not just reset the connection. Takes up to [`VERDICT`], for a peer that ended and may still reset.
    ///
    /// A reset alone proves nothing: a program may read, and then abort before anything is acknowledged. But who ended its side before the
    /// first byte arrived there had closed, and its kernel answers what comes later with a reset.
    pub async fn never_arrived(&self, before: u64, has_ended: bool) -> bool {
        if matches!(self.writer.sending, Some(Sending::InFlight(_))) {
            return false;
        }
        let all = self.writer.taken;
        if all == before {
            return true;
        }
        if !has_ended {
            return false;
        }
        let fate = || Told::of(self.socket.as_fd()).map_or(Fate::Unknown, |told| told.fate(before, all));
        let mut known = fate();
        if known == Fate::Undecided {
            self.socket.set_due(VERDICT, Due::End);
            hung_up(self.socket.as_raw_fd()).await;
            self.socket.clear_due();
            known = fate();
        }
        known == Fate::NeverArrived
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // Before a send in flight is dropped with its half: it ends. The socket does the same at its own end.
        if matches!(self.writer.sending, Some(Sending::InFlight(_))) {
            self.socket.shut(Shutdown::Both);
        }
        if !self.writer.uses_ring {
            self.socket.set_free();
        }
    }
}

/// The receiving half. It waits in the epoll set in which tokio-uring's runtime waits for the ring, and then takes what is there with
/// recv(2): for messages that come one at a time that is cheaper than a RECV each (half of what receiving costs), and nobody who is
/// silent holds memory in the kernel's hands.
pub struct Reader {
    socket: Borrowed,
    readiness: Readiness,
    armed: Armed,
    /// There may be bytes that were only looked at, or never looked for.
    has_unread: bool,
    /// Everything that had come when epoll last told of news has been taken.
    is_drained: bool,
    taken: u64,
    tls: Option<Rc<RefCell<tls::Session>>>,
}

#[cfg(test)]
pub(super) fn without_memory(socket: Borrowed) -> impl Sized {
    let taken = Readiness::default();
    let _ = taken.poll(socket, &mut Context::from_waker(Waker::noop()));
    taken
}

/// What the next receive puts its bytes into.
enum Armed {
    /// Nothing was said of that.
    Not,
    /// The free part of this one.
    With(Buf),
    /// One of this many bytes, taken from the stock when something has come.
    OnDemand(Rc<Buffers>, usize),
}

impl Reader {
    /// Prepares to receive into the free part of `buf`, which must not be empty (0 bytes would look like the end).
    pub fn arm(&mut self, buf: Buf) {
        debug_assert!(!self.is_armed() && buf.room() > 0);
        self.armed = Armed::With(buf);
    }

    /// Prepares to receive into a buffer of `capacity` bytes that is taken from the stock when something has come: who waits holds none.
    pub fn arm_on_demand(&mut self, stock: &Rc<Buffers>, capacity: usize) {
        if !self.is_armed() {
            self.armed = Armed::OnDemand(Rc::clone(stock), capacity);
        }
    }

    /// Takes the prepared buffer back, with what it may have held when it was prepared; none was taken on demand.
    pub fn disarm(&mut self) -> Option<Buf> {
        match mem::replace(&mut self.armed, Armed::Not) {
            Armed::With(buf) => Some(buf),
            Armed::Not | Armed::OnDemand(..) => None,
        }
    }

    /// Whether news of it was ever waited for.
    pub fn is_watched(&self) -> bool {
        self.readiness.is_watched()
    }

    /// Has news of it told from now on, which anybody who waits for any has done by himself; here whoever can blame it on nobody else does.
    ///
    /// # Errors
    ///
    /// When the kernel has no memory for that.
    pub fn watch(&self) -> io::Result<()> {
        match self.readiness.poll(self.socket, &mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Err(error)) => Err(error),
            _ => Ok(()),
        }
    }

    /// From now on the kernel has no memory to watch it, for as long as what is given lives.
    #[cfg(test)]
    pub fn without_memory(&self) -> impl Sized + use<> {
        without_memory(self.socket)
    }

    fn is_armed(&self) -> bool {
        !matches!(self.armed, Armed::Not)
    }

    /// Bytes received since the connection was made, as they came.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Receives what is there already; false when that is nothing, or the end.
    pub fn receive_now(&mut self, buf: &mut Buf) -> bool {
        if let Some(session) = self.tls.clone() {
            return self.receive_now_tls(&session, buf);
        }
        let received = if buf.room() > 0 { recv_now(self.socket.as_fd(), buf).unwrap_or(0) } else { 0 };
        self.taken += received as u64;
        received > 0
    }

    /// Whether the peer has neither sent nor ended anything, as far as epoll has told, if it was asked to.
    pub fn is_quiet(&mut self) -> bool {
        if let Some(session) = self.tls.clone() {
            return self.is_quiet_tls(&session);
        }
        if !self.readiness.is_watched() {
            return !has_news(self.socket.as_fd());
        }
        if self.has_unread {
            return false;
        }
        let mut context = Context::from_waker(Waker::noop());
        while let Poll::Ready(ready) = self.readiness.poll(self.socket, &mut context) {
            let Ok(mut ready) = ready else { return false };
            if has_news(self.socket.as_fd()) {
                return false;
            }
            ready.clear_ready();
        }
        true
    }

    /// Finds what epoll has had no turn to tell.
    pub fn look_for_news(&mut self) {
        self.has_unread |= has_news(self.socket.as_fd());
    }

    /// Waits for anything that a receive may find: bytes, the end, or, now and then, nothing.
    pub async fn news(&mut self) {
        poll_fn(|context| match self.has_unread {
            true => Poll::Ready(()),
            // The connection is over: a receive will tell.
            false => self.readiness.poll(self.socket, context).map(drop),
        })
        .await;
    }

    /// Waits for bytes, now at the end of the buffer; 0 when the peer has ended.
    pub async fn received(&mut self) -> (io::Result<usize>, Buf) {
        poll_fn(|context| self.poll_received(context)).await
    }

    /// Waits until the peer is gone: it has reset the connection or, if `by_end`, ended its side with nothing unread before it. What it
    /// sends meanwhile is left where it is.
    pub fn poll_gone(&mut self, context: &mut Context<'_>, by_end: bool) -> Poll<()> {
        match self.tls.clone() {
            Some(session) => self.poll_gone_tls(context, &session, by_end),
            None => self.poll_gone_raw(context, by_end),
        }
    }

    fn poll_gone_raw(&mut self, context: &mut Context<'_>, by_end: bool) -> Poll<()> {
        loop {
            let mut ready = match ready!(self.readiness.poll(self.socket, context)) {
                Ok(ready) => ready,
                // Nobody tells whether it is: whoever sends to it finds out.
                Err(error) if error.kind() == io::ErrorKind::OutOfMemory => return Poll::Pending,
                Err(_) => return Poll::Ready(()),
            };
            let has_ended = ready.ready().is_read_closed();
            match look(self.socket.as_fd()) {
                Ok(0) if by_end => return Poll::Ready(()),
                Ok(0) => return Poll::Pending,
                Ok(_) => (self.has_unread, self.is_drained) = (true, false),
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(_) => return Poll::Ready(()),
            }
            if has_ended {
                // Nothing more will be told of this side, and it stays ready: whoever reads finds the end behind the bytes.
                return Poll::Pending;
            }
            ready.clear_ready();
        }
    }

    /// As [`Reader::received`].
    pub fn poll_received(&mut self, context: &mut Context<'_>) -> Poll<(io::Result<usize>, Buf)> {
        if let Some(session) = self.tls.clone() {
            return self.poll_received_tls(context, &session);
        }
        let (mut buf, stock) = self.take_armed();
        match self.poll_into(context, &mut buf) {
            Poll::Ready(result) => Poll::Ready((result, buf)),
            Poll::Pending => {
                self.armed = match stock {
                    None => Armed::With(buf),
                    Some(stock) => {
                        let capacity = buf.capacity();
                        stock.give(buf);
                        Armed::OnDemand(stock, capacity)
                    }
                };
                Poll::Pending
            }
        }
    }

    /// The buffer to receive into, and the stock from which it was taken now.
    fn take_armed(&mut self) -> (Buf, Option<Rc<Buffers>>) {
        match mem::replace(&mut self.armed, Armed::Not) {
            Armed::Not => panic!("nothing was prepared to receive into"),
            Armed::With(buf) => (buf, None),
            Armed::OnDemand(stock, capacity) => (stock.take(capacity), Some(stock)),
        }
    }

    /// Waits for bytes, and puts them behind those of `buf`.
    fn poll_into(&mut self, context: &mut Context<'_>, buf: &mut Buf) -> Poll<io::Result<usize>> {
        if let Some(result) = self.take_unread(|socket| recv_now(socket, buf)) {
            return Poll::Ready(result);
        }
        loop {
            let mut ready = ready!(self.readiness.poll(self.socket, context))?;
            let result = recv_now(self.socket.as_fd(), buf);
            self.taken += *result.as_ref().unwrap_or(&0) as u64;
            match &result {
                // May be said of a wait that was cut short (trap T3): never an answer.
                Err(error) if is_again(error) => {
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
            return Poll::Ready(result);
        }
    }

    /// Receives what was only looked at. Epoll does not tell of it again, however much a receive leaves: it is asked until nothing is
    /// left. Or what was never looked for: of what that leaves epoll tells as soon as it is asked to watch.
    fn take_unread(&mut self, receive: impl FnOnce(BorrowedFd<'_>) -> io::Result<usize>) -> Option<io::Result<usize>> {
        if !self.has_unread {
            return None;
        }
        let result = receive(self.socket.as_fd());
        let is_watched = self.readiness.is_watched();
        self.has_unread = is_watched && matches!(result, Ok(1..));
        self.is_drained &= is_watched;
        self.taken += *result.as_ref().unwrap_or(&0) as u64;
        if result.as_ref().is_err_and(is_again) {
            self.is_drained = true;
            return None;
        }
        Some(result)
    }
}

impl Reader {
    /// Waits for bytes and puts them into memory of the caller; none: the peer has ended. Nothing may be armed.
    pub fn poll_read(&mut self, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        debug_assert!(!self.is_armed() && buf.remaining() > 0);
        if let Some(session) = self.tls.clone() {
            return self.poll_read_tls(context, &session, buf);
        }
        if let Some(result) = self.take_unread(|socket| recv_into(socket, buf)) {
            return Poll::Ready(result.map(drop));
        }
        loop {
            let mut ready = ready!(self.readiness.poll(self.socket, context))?;
            match recv_into(self.socket.as_fd(), buf) {
                // See `Reader::poll_into`, here and below.
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
    /// Whether an operation on the socket may be, or have been, in the ring.
    uses_ring: bool,
    taken: u64,
    tls: Option<Rc<RefCell<tls::Session>>>,
}

/// What was submitted and not yet awaited.
enum Sending {
    /// The kernel took it, or refused to, at once.
    Over(io::Result<()>, Buf),
    /// What is left to be sent stands at the range. It is rare, and would make every connection larger by as much.
    InFlight(Box<(Send, Range<usize>)>),
}

impl Writer {
    /// Bytes that the kernel has taken since the connection was made.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Submits what stands at `range` of the buffer's memory. What was submitted before must have been awaited.
    ///
    /// send(2) tries first, and nearly always takes all: an operation would do the same work at the same moment, and cost a completion
    /// and a turn of the loop on top. What the socket has no room for goes to the ring.
    pub fn submit(&mut self, buf: Buf, range: Range<usize>) {
        match self.tls.clone() {
            Some(session) => self.submit_tls(&session, buf, range),
            None => self.submit_raw(buf, range),
        }
    }

    fn submit_raw(&mut self, mut buf: Buf, range: Range<usize>) {
        debug_assert!(self.sending.is_none());
        self.sending = Some(match send_now(self.socket.as_fd(), &buf.memory()[range.clone()]) {
            Ok(bytes) if bytes == range.len() => {
                self.taken += bytes as u64;
                Sending::Over(Ok(()), buf)
            }
            Err(error) if !is_again(&error) => Sending::Over(Err(error), buf),
            some => {
                let bytes = some.unwrap_or(0);
                self.taken += bytes as u64;
                self.uses_ring = true;
                self.send_in_ring(buf, range.start + bytes..range.end)
            }
        });
    }

    fn send_in_ring(&self, buf: Buf, rest: Range<usize>) -> Sending {
        Sending::InFlight(Box::new((send(self.socket.as_raw_fd(), buf, rest.clone()), rest)))
    }

    /// Sends what the socket has room for, without waiting; nothing under TLS, where it must be copied anyway. What was submitted before
    /// must have been awaited.
    pub fn send_vectored_now(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.tls.is_some() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        debug_assert!(self.sending.is_none());
        send_vectored_now(self.socket.as_fd(), slices)
    }

    /// Whether something was submitted and not yet awaited.
    pub fn is_sending(&self) -> bool {
        self.tls.as_deref().map_or(self.sending.is_some(), Self::is_sending_tls)
    }

    /// Waits until what was submitted is with the kernel, and gives the buffer back.
    pub async fn sent(&mut self) -> (io::Result<()>, Buf) {
        poll_fn(|context| self.poll_sent(context)).await
    }

    /// As [`Writer::sent`].
    pub fn poll_sent(&mut self, context: &mut Context<'_>) -> Poll<(io::Result<()>, Buf)> {
        match self.tls.clone() {
            Some(session) => self.poll_sent_tls(context, &session),
            None => self.poll_sent_raw(context),
        }
    }

    fn poll_sent_raw(&mut self, context: &mut Context<'_>) -> Poll<(io::Result<()>, Buf)> {
        loop {
            let (result, buf, mut rest) = match self.sending.as_mut().expect("something was submitted") {
                Sending::InFlight(in_flight) => {
                    let (sending, rest) = &mut **in_flight;
                    let (result, buf) = ready!(Pin::new(sending).poll(context));
                    (result, buf, rest.clone())
                }
                Sending::Over(..) => match self.sending.take() {
                    Some(Sending::Over(result, buf)) => return Poll::Ready((result, buf)),
                    _ => continue,
                },
            };
            self.sending = None;
            match result {
                Ok(bytes) => {
                    self.taken += bytes as u64;
                    rest.start += bytes;
                }
                Err(error) if is_again(&error) => {}
                Err(error) => return Poll::Ready((Err(error), buf)),
            }
            if rest.is_empty() {
                return Poll::Ready((Ok(()), buf));
            }
            self.sending = Some(self.send_in_ring(buf, rest));
        }
    }
}

fn is_again(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
