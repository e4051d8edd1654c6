//! TLS below both directions of a stream: whoever reads and writes above sees what was said, and the end only where the peer has said that it
//! is one (close_notify): a connection that is cut off looks like one that broke.
//!
//! rustls is the state machine, the bytes are moved here: received into a buffer of the worker's stock that is given back as soon as all of
//! it is understood, and sent from where rustls has put them, without a copy while the socket has room.

use std::{
    cell::RefCell,
    future::poll_fn,
    io::{self, IoSlice, Read as _, Write as _},
    net::Shutdown,
    os::fd::{AsFd as _, BorrowedFd},
    rc::Rc,
    task::{Context, Poll, Waker, ready},
};

use rustls::Connection;
use socket2::SockRef;
use tokio::io::ReadBuf;

use super::{Reader, Stream, Writer, is_again};
use crate::ring::{Buf, Buffers, LARGE, send::send_vectored_now};

/// Why there is no TLS connection.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum HandshakeError {
    /// What one side says is not taken by the other.
    #[error("{0}")]
    Refused(rustls::Error),
    /// The connection broke, or was ended.
    #[error("the connection ended within the handshake: {0}")]
    Broken(io::ErrorKind),
}

/// What both directions share.
pub struct Session {
    connection: Connection,
    buffers: Rc<Buffers>,
    /// Received, and not yet understood.
    incoming: Option<Buf>,
    /// Bytes that were understood, and not yet taken.
    plain: usize,
    /// The peer has said that this is all.
    has_ended: bool,
    failed: Option<rustls::Error>,
    /// A piece of what is to be sent is on the ring: nothing may overtake it.
    in_flight: bool,
    /// What was submitted: it is sent, or waits to be, in another form.
    submitted: Option<Buf>,
    /// Sending has failed.
    unsent: Option<io::Error>,
    has_said_end: bool,
}

impl Session {
    fn new(mut connection: Connection, buffers: &Rc<Buffers>) -> Self {
        // What is submitted is bounded by the buffer it stands in.
        connection.set_buffer_limit(None);
        Self {
            connection,
            buffers: Rc::clone(buffers),
            incoming: None,
            plain: 0,
            has_ended: false,
            failed: None,
            in_flight: false,
            submitted: None,
            unsent: None,
            has_said_end: false,
        }
    }

    /// Understands more of what was received; false: nothing more was.
    fn take_in(&mut self) -> Result<bool, rustls::Error> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        let Some(mut incoming) = self.incoming.take() else { return Ok(false) };
        // What was understood is always taken first, so that there is room; and behind an end nothing is read.
        let bytes = self.connection.read_tls(&mut incoming.bytes()).unwrap_or(0);
        if bytes == 0 {
            self.buffers.give(incoming);
            let failed = rustls::Error::General("bytes that cannot be taken".to_owned());
            self.failed = Some(failed.clone());
            return Err(failed);
        }
        incoming.consume(bytes);
        match incoming.is_empty() {
            true => self.buffers.give(incoming),
            false => self.incoming = Some(incoming),
        }
        let state = self.connection.process_new_packets().inspect_err(|error| self.failed = Some(error.clone()))?;
        self.plain = state.plaintext_bytes_to_read();
        self.has_ended = state.peer_has_closed();
        Ok(true)
    }

    /// Moves what was understood to `to`, as much as there is room for.
    fn give_out(&mut self, to: &mut [u8]) -> usize {
        let bytes = self.connection.reader().read(to).unwrap_or(0);
        self.plain = if bytes == 0 { 0 } else { self.plain - bytes };
        bytes
    }

    /// The same, and understands more meanwhile: many records leave as one piece. What is wrong with a later one is told behind this.
    fn fill(&mut self, buf: &mut Buf) -> usize {
        let mut all = 0;
        while buf.room() > 0 && (self.plain > 0 || (!self.has_ended && self.take_in().unwrap_or(false))) {
            let bytes = self.give_out(buf.spare());
            buf.filled(bytes);
            all += bytes;
        }
        all
    }

    /// Sends what the socket has room for; the number of bytes.
    fn send_now(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let mut all = 0;
        while self.connection.wants_write() {
            match self.connection.write_tls(&mut Now(socket)) {
                Ok(bytes) => all += bytes,
                Err(error) if is_again(&error) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }
}

/// A socket that takes what it has room for.
struct Now<'s>(BorrowedFd<'s>);

impl io::Write for Now<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        send_vectored_now(self.0, slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn broken(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn cut_off() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "ended without close_notify")
}

impl Stream {
    /// Speaks TLS from here on. Nothing may be armed or submitted.
    ///
    /// # Errors
    ///
    /// When the two sides do not agree, and when the connection ends: a deadline is its socket's. The peer was told what it can be told.
    pub async fn start_tls(
        &mut self,
        connection: impl Into<Connection>,
        buffers: &Rc<Buffers>,
    ) -> Result<(), HandshakeError> {
        let session = Rc::new(RefCell::new(Session::new(connection.into(), buffers)));
        self.reader.tls = Some(Rc::clone(&session));
        self.writer.tls = Some(Rc::clone(&session));
        poll_fn(|context| self.poll_handshake(context, &session)).await
    }

    fn poll_handshake(
        &mut self,
        context: &mut Context<'_>,
        session: &RefCell<Session>,
    ) -> Poll<Result<(), HandshakeError>> {
        loop {
            ready!(self.writer.poll_pushed(context)).map_err(|error| HandshakeError::Broken(error.kind()))?;
            if !session.borrow().connection.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            let taken_in = session.borrow_mut().take_in();
            match taken_in {
                Ok(true) => continue,
                Ok(false) => {}
                Err(error) => {
                    // Why, for the peer: what does not fit is not waited for.
                    let _ = session.borrow_mut().send_now(self.writer.socket.as_fd());
                    return Poll::Ready(Err(HandshakeError::Refused(error)));
                }
            }
            match ready!(self.reader.poll_ciphertext(context, session)) {
                Ok(0) => return Poll::Ready(Err(HandshakeError::Broken(io::ErrorKind::UnexpectedEof))),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Err(HandshakeError::Broken(error.kind()))),
            }
        }
    }

    /// Whether it speaks TLS.
    pub fn is_tls(&self) -> bool {
        self.reader.tls.is_some()
    }

    /// Whether both sides have agreed to speak this protocol within TLS (RFC 7301).
    pub fn has_agreed_on(&self, protocol: &[u8]) -> bool {
        let agreed = |session: &Rc<RefCell<Session>>| session.borrow().connection.alpn_protocol() == Some(protocol);
        self.reader.tls.as_ref().is_some_and(agreed)
    }
}

impl Reader {
    /// Receives more that is to be understood; 0 bytes: the peer's socket has ended.
    fn poll_ciphertext(&mut self, context: &mut Context<'_>, session: &RefCell<Session>) -> Poll<io::Result<usize>> {
        let mut buf = session.borrow().buffers.take(LARGE);
        let polled = self.poll_into(context, &mut buf);
        let mut session = session.borrow_mut();
        match polled {
            Poll::Ready(Ok(1..)) => session.incoming = Some(buf),
            _ => session.buffers.give(buf),
        }
        polled
    }

    /// Waits until there is something to take: false: the peer has said that there is nothing more.
    fn poll_plain(&mut self, context: &mut Context<'_>, session: &RefCell<Session>) -> Poll<io::Result<bool>> {
        loop {
            if session.borrow().plain > 0 {
                return Poll::Ready(Ok(true));
            }
            if session.borrow().has_ended {
                return Poll::Ready(Ok(false));
            }
            match self.take_in(session) {
                Ok(true) => continue,
                Ok(false) => {}
                Err(error) => return Poll::Ready(Err(broken(error))),
            }
            if ready!(self.poll_ciphertext(context, session))? == 0 {
                return Poll::Ready(Err(cut_off()));
            }
        }
    }

    /// See [`Session::take_in`]. What TLS itself has to say to that, what is wrong or that there is no renegotiation, is said if it can be
    /// sent at once: who reads may have nothing to write, and the peer waits for it.
    fn take_in(&self, session: &RefCell<Session>) -> Result<bool, rustls::Error> {
        let mut session = session.borrow_mut();
        let taken_in = session.take_in();
        if !session.in_flight && session.connection.wants_write() {
            let _ = session.send_now(self.socket.as_fd());
        }
        taken_in
    }

    /// As [`Reader::poll_received`].
    pub(super) fn poll_received_tls(
        &mut self,
        context: &mut Context<'_>,
        session: &RefCell<Session>,
    ) -> Poll<(io::Result<usize>, Buf)> {
        let has_more = ready!(self.poll_plain(context, session));
        let (mut buf, _) = self.take_armed();
        let result = has_more.map(|has_more| if has_more { session.borrow_mut().fill(&mut buf) } else { 0 });
        Poll::Ready((result, buf))
    }

    /// As [`Reader::poll_read`].
    pub(super) fn poll_read_tls(
        &mut self,
        context: &mut Context<'_>,
        session: &RefCell<Session>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if ready!(self.poll_plain(context, session))? {
            let bytes = session.borrow_mut().give_out(buf.initialize_unfilled());
            buf.advance(bytes);
        }
        Poll::Ready(Ok(()))
    }

    /// As [`Reader::receive_now`].
    pub(super) fn receive_now_tls(&mut self, session: &RefCell<Session>, buf: &mut Buf) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        matches!(self.poll_plain(&mut context, session), Poll::Ready(Ok(true))) && session.borrow_mut().fill(buf) > 0
    }

    /// As [`Reader::is_quiet`]: what TLS itself has to say in between, new tickets for example, is nobody's news.
    pub(super) fn is_quiet_tls(&mut self, session: &RefCell<Session>) -> bool {
        self.poll_plain(&mut Context::from_waker(Waker::noop()), session).is_pending()
    }

    /// As [`Reader::poll_gone`]. A piece of what the peer sends meanwhile is received: within it stands whether it has ended.
    pub(super) fn poll_gone_tls(
        &mut self,
        context: &mut Context<'_>,
        session: &RefCell<Session>,
        by_end: bool,
    ) -> Poll<()> {
        loop {
            if session.borrow().plain > 0 {
                return self.poll_gone_raw(context, false);
            }
            if session.borrow().has_ended {
                return if by_end { Poll::Ready(()) } else { self.poll_gone_raw(context, false) };
            }
            match self.take_in(session) {
                Ok(true) => continue,
                Ok(false) => {}
                Err(_) => return Poll::Ready(()),
            }
            match ready!(self.poll_ciphertext(context, session)) {
                Ok(1..) => {}
                Ok(0) if !by_end => return Poll::Pending,
                _ => return Poll::Ready(()),
            }
        }
    }
}

impl Writer {
    /// As [`Writer::submit`].
    pub(super) fn submit_tls(&mut self, session: &Rc<RefCell<Session>>, mut buf: Buf, range: std::ops::Range<usize>) {
        {
            let mut session = session.borrow_mut();
            debug_assert!(session.submitted.is_none());
            if let Err(error) = session.connection.writer().write_all(&buf.memory()[range]) {
                session.unsent = Some(error);
            }
            session.submitted = Some(buf);
        }
        self.push(session);
    }

    /// Gives the kernel what it takes: at once what the socket has room for, and a piece of the rest by the ring.
    fn push(&mut self, session: &RefCell<Session>) {
        let mut session = session.borrow_mut();
        if session.in_flight || session.unsent.is_some() {
            return;
        }
        match session.send_now(self.socket.as_fd()) {
            Ok(bytes) => self.taken += bytes as u64,
            Err(error) => return session.unsent = Some(error),
        }
        if !session.connection.wants_write() {
            return;
        }
        let mut piece = session.buffers.take(LARGE);
        let room = piece.room();
        let mut left = piece.spare();
        while !left.is_empty() && session.connection.wants_write() {
            // Memory takes all that it has room for.
            if session.connection.write_tls(&mut left).is_err() {
                break;
            }
        }
        let bytes = room - left.len();
        piece.filled(bytes);
        let range = piece.range();
        session.in_flight = true;
        self.submit_raw(piece, range);
    }

    /// Waits until all that is to be sent is with the kernel.
    fn poll_pushed(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(session) = self.tls.clone() else { return Poll::Ready(Ok(())) };
        loop {
            if session.borrow().in_flight {
                let (result, piece) = ready!(self.poll_sent_raw(context));
                let mut session = session.borrow_mut();
                session.in_flight = false;
                session.buffers.give(piece);
                if let Err(error) = result {
                    session.unsent = Some(error);
                }
            }
            if let Some(error) = &session.borrow().unsent {
                return Poll::Ready(Err(error.kind().into()));
            }
            if !session.borrow().connection.wants_write() {
                return Poll::Ready(Ok(()));
            }
            self.push(&session);
        }
    }

    /// As [`Writer::poll_sent`].
    pub(super) fn poll_sent_tls(
        &mut self,
        context: &mut Context<'_>,
        session: &RefCell<Session>,
    ) -> Poll<(io::Result<()>, Buf)> {
        let result = ready!(self.poll_pushed(context));
        let buf = session.borrow_mut().submitted.take().expect("something was submitted");
        Poll::Ready((result, buf))
    }

    /// As [`Writer::is_sending`].
    pub(super) fn is_sending_tls(session: &RefCell<Session>) -> bool {
        session.borrow().submitted.is_some()
    }

    /// Says within TLS, where that is spoken, that this is all. What was submitted must have been awaited.
    pub async fn say_end(&mut self) -> io::Result<()> {
        poll_fn(|context| self.poll_say_end(context)).await
    }

    fn poll_say_end(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(session) = self.tls.clone() else { return Poll::Ready(Ok(())) };
        if !session.borrow().has_said_end {
            let mut session = session.borrow_mut();
            session.has_said_end = true;
            session.connection.send_close_notify();
        }
        self.poll_pushed(context)
    }

    /// Ends this side: the peer learns that this was all. What was submitted must have been awaited.
    pub async fn end(&mut self) -> io::Result<()> {
        poll_fn(|context| self.poll_end(context)).await
    }

    /// As [`Writer::end`].
    pub fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_say_end(context))?;
        // It may be gone already, which is as good.
        let _ = SockRef::from(&self.socket.as_fd()).shutdown(Shutdown::Write);
        Poll::Ready(Ok(()))
    }
}
