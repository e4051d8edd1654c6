//! A connection as the traits of tokio see it, for a protocol whose state machine is a library's.
//!
//! What is written is collected, and sent when its owner says so ([`Io::poll_send`], once per turn of its loop): many small frames of many
//! streams leave in one system call. A flush asked for through the trait sends nothing by itself, because libraries flush after each frame
//! that they do not copy. Long pieces are sent from where they stand, together with what was collected before.

use std::{
    cell::{RefCell, RefMut},
    future::poll_fn,
    io::{self, IoSlice},
    mem,
    net::Shutdown,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Buf, Buffers, Due, LARGE, Stream};

/// From here on a piece is sent from where it stands: copying so much costs about as much as the system call that it may save.
const STRAIGHT_BYTES_MIN: usize = 8 * 1024;

/// Why nothing more is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A deadline has passed.
    Overdue,
    /// Who watches what comes in has had enough.
    Refused,
}

/// Sees all that comes in, before anybody else, and may change it; and how many bytes were sent meanwhile. What it gives stops reading: so many
/// of these bytes may still pass.
pub type Sentry = Box<dyn FnMut(&mut [u8], u64) -> Option<usize>>;

/// One connection; clones are the same.
#[derive(Clone)]
pub struct Io(Rc<RefCell<State>>);

struct State {
    stream: Stream,
    /// What was received before.
    first: Option<Buf>,
    /// What was written, and is to be sent with the next turn.
    out: Option<Buf>,
    buffers: Rc<Buffers>,
    sentry: Option<Sentry>,
    stop: Option<Stop>,
    sent: u64,
    /// Bytes came in, and whoever reads has not waited since.
    has_given: bool,
    /// How what comes in has ended, until that is told. A library that hears of an end forgets what nobody has taken yet, an answer that was
    /// whole among it: right behind bytes it hears a turn later, when whoever waited for them has had them.
    ended: Option<io::Result<()>>,
    /// Nothing more can be sent. What is written from then on is lost, and whoever writes hears of that by the end of what comes in: behind
    /// the answer that the peer may have given before.
    is_broken: bool,
}

impl Io {
    /// Over a connection, of which `first` has been received already.
    pub fn new(stream: Stream, buffers: &Rc<Buffers>, first: Option<Buf>) -> Self {
        let buffers = Rc::clone(buffers);
        Self(Rc::new(RefCell::new(State {
            stream,
            first,
            out: None,
            buffers,
            sentry: None,
            stop: None,
            sent: 0,
            has_given: false,
            ended: None,
            is_broken: false,
        })))
    }

    /// Shows everything that comes in to a sentry.
    pub fn watched_by(self, sentry: Sentry) -> Self {
        self.0.borrow_mut().sentry = Some(sentry);
        self
    }

    /// Why nothing more is read, if that is so.
    pub fn stopped(&self) -> Option<Stop> {
        self.0.borrow().stop
    }

    /// Sets the deadline after which nothing more is read, replacing the one before.
    pub fn set_due(&self, after: Duration) {
        self.0.borrow().stream.socket.set_due(after, Due::EndReceiving);
    }

    /// Whether it has a deadline.
    pub fn has_due(&self) -> bool {
        self.0.borrow().stream.socket.has_due()
    }

    /// No deadline.
    pub fn clear_due(&self) {
        self.0.borrow().stream.socket.clear_due();
    }

    /// Bytes received and sent since it was made.
    pub fn bytes(&self) -> (u64, u64) {
        let state = self.0.borrow();
        (state.stream.reader.taken(), state.sent)
    }

    /// Moves a connection on: polls what reads and writes through this, and sends what it has written.
    pub async fn drive<T>(&self, mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> T {
        poll_fn(|context| {
            let polled = poll(context);
            // What failed to be sent is found by the next read or write.
            let _ = self.poll_send(context);
            polled
        })
        .await
    }

    /// Sends what was written; ready when the kernel has all of it.
    pub fn poll_send(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_send(context)
    }

    /// Waits until everything written is with the kernel, ends the sending side, and reads on until the peer has ended as well, `bytes_max`
    /// at most: closing while something is unread resets the connection, and a reset overtakes what was sent before it.
    pub async fn finish(&self, mut bytes_max: usize) {
        if poll_fn(|context| self.poll_send(context)).await.is_err() {
            return;
        }
        if poll_fn(|context| self.0.borrow_mut().stream.writer.poll_end(context)).await.is_err() {
            return;
        }
        let mut scratch = [0; 4096];
        while bytes_max > 0 {
            let mut unread = ReadBuf::new(&mut scratch);
            let read = poll_fn(|context| self.0.borrow_mut().stream.reader.poll_read(context, &mut unread)).await;
            if read.is_err() || unread.filled().is_empty() {
                return;
            }
            bytes_max = bytes_max.saturating_sub(unread.filled().len());
        }
    }

    fn state(self: Pin<&mut Self>) -> RefMut<'_, State> {
        self.get_mut().0.borrow_mut()
    }
}

impl State {
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.stream.writer.is_sending() {
                let (result, buf) = ready!(self.stream.writer.poll_sent(context));
                self.buffers.give(buf);
                result.inspect_err(|_| self.give_up())?;
            }
            let Some(buf) = self.out.take() else { return Poll::Ready(Ok(())) };
            let range = buf.range();
            if range.is_empty() {
                self.buffers.give(buf);
                return Poll::Ready(Ok(()));
            }
            self.sent += range.len() as u64;
            self.stream.writer.submit(buf, range);
        }
    }

    /// Sends what was collected and then these, as much as the socket has room for; how many bytes of these it took.
    fn send_straight(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let collected = self.out.as_ref().map_or(&[][..], Buf::bytes);
        let mut all = [IoSlice::new(&[]); 8];
        all[0] = IoSlice::new(collected);
        let count = slices.len().min(all.len() - 1);
        all[1..=count].copy_from_slice(&slices[..count]);
        let taken = match self.stream.writer.send_vectored_now(&all[..=count]) {
            Ok(bytes) => bytes,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => 0,
            Err(error) => return Err(error),
        };
        let of_these = taken.saturating_sub(collected.len());
        let of_collected = taken - of_these;
        self.sent += taken as u64;
        if let Some(out) = &mut self.out {
            out.consume(of_collected);
        }
        if let Some(out) = self.out.take_if(|out| out.is_empty()) {
            self.buffers.give(out);
        }
        Ok(of_these)
    }

    fn write(&mut self, context: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let bytes: usize = slices.iter().map(|slice| slice.len()).sum();
        if !self.is_broken && bytes >= STRAIGHT_BYTES_MIN && !self.stream.writer.is_sending() {
            match self.send_straight(slices) {
                Ok(0) => {}
                Ok(taken) => return Poll::Ready(Ok(taken)),
                Err(_) => self.give_up(),
            }
        }
        if bytes == 0 || self.is_broken {
            return Poll::Ready(Ok(bytes));
        }
        loop {
            let out = self.out.get_or_insert_with(|| self.buffers.take(LARGE));
            let taken: usize = slices.iter().map(|slice| out.append(slice)).sum();
            if taken > 0 {
                return Poll::Ready(Ok(taken));
            }
            if ready!(self.poll_send(context)).is_err() {
                return Poll::Ready(Ok(bytes));
            }
        }
    }

    /// Sending has failed; what came in before can still be read, and then the end.
    fn give_up(&mut self) {
        self.is_broken = true;
        self.stream.socket.shut(Shutdown::Both);
        if let Some(out) = self.out.take() {
            self.buffers.give(out);
        }
    }

    fn read(&mut self, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.stop.is_some() {
            return Poll::Pending;
        }
        let before = buf.filled().len();
        if let Some(first) = &mut self.first {
            let bytes = first.len().min(buf.remaining());
            buf.put_slice(&first.bytes()[..bytes]);
            first.consume(bytes);
            self.has_given = true;
        } else {
            let read = match self.ended.take() {
                Some(ended) => Poll::Ready(ended),
                None => self.stream.reader.poll_read(context, buf),
            };
            let had_given = mem::replace(&mut self.has_given, buf.filled().len() > before);
            let read = ready!(read);
            // Cut off by the deadline, which says nothing of an end.
            if read.is_err() && self.stream.socket.is_overdue() {
                self.stop = Some(Stop::Overdue);
                return Poll::Pending;
            }
            if had_given && !self.has_given {
                self.ended = Some(read);
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            read?;
        }
        if let Some(first) = self.first.take_if(|first| first.is_empty()) {
            self.buffers.give(first);
        }
        let new = &mut buf.filled_mut()[before..];
        let is_empty = new.is_empty();
        let passing = self.sentry.as_mut().and_then(|sentry| sentry(new, self.sent));
        if let Some(bytes) = passing {
            self.stop = Some(Stop::Refused);
            buf.set_filled(before + bytes);
            if bytes > 0 {
                return Poll::Ready(Ok(()));
            }
        } else if is_empty && self.stream.socket.is_overdue() {
            self.stop = Some(Stop::Overdue);
        } else {
            return Poll::Ready(Ok(()));
        }
        Poll::Pending
    }
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.state().read(context, buf)
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.state().write(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.state().write(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.state();
        ready!(state.poll_send(context))?;
        state.stream.writer.poll_end(context)
    }
}
