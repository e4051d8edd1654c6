//! Bodies between HTTP/1 and HTTP/2, in both directions: no faster than the receiver takes them, and with bounded memory. And the clock over
//! an exchange whose sides speak differently.

mod coming;
pub mod tunnel;

pub use coming::Coming;

use std::{
    cell::Cell,
    future::poll_fn,
    io,
    pin::{Pin, pin},
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::HeaderMap;
use tokio::time::{Instant, Sleep, sleep};

use super::{
    http::Limits,
    http2::body::{self, grpc_status},
    mirror::Tap,
};
use crate::{
    decode::{
        chunked::Style,
        http1::Framing,
        translate::{trailers_to_http1, trailers_to_http2},
    },
    forward::{self, Narrow},
    ring::{Buf, Buffers, LARGE, MEDIUM, Reader, SMALL, Writer},
};

/// How much of a body of HTTP/2 leaves in one piece: with the one frame more that it may become, what a large buffer holds.
const GATHERED_BYTES_MAX: usize = 48 * 1024;

/// How far a body has got.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes passed on.
    pub bytes: Cell<usize>,
    /// Whether the receiver is waited for, and not the sender.
    pub waits_to_send: Cell<bool>,
}

impl Progress {
    fn add(&self, bytes: usize) {
        self.bytes.set(self.bytes.get() + bytes);
    }
}

/// Whom there was no more time to wait for.
#[derive(Debug)]
pub enum Late {
    /// The client, for its body.
    Body,
    /// The endpoint, for its response to begin.
    Response,
    /// The endpoint, for its response to go on.
    Rest,
    /// The client, to take the response.
    Client,
}

/// How far an attempt is.
#[derive(Debug, Default)]
pub struct Phase {
    /// The request.
    pub up: Progress,
    /// The response.
    pub down: Progress,
    /// The whole request is with the endpoint.
    pub uploaded: Cell<bool>,
    /// The response has begun.
    pub answering: Cell<bool>,
    /// The endpoint is asked to say that it wants the body, and has not said so.
    pub asks_for_body: Cell<bool>,
}

impl Phase {
    /// What is waited for, and how long that may take.
    pub fn limit(&self, limits: &Limits) -> Option<Duration> {
        if self.uploaded.get() && !self.answering.get() { limits.response } else { limits.stall }
    }

    /// Whom there was no more time to wait for.
    pub fn late(&self) -> Late {
        match (self.answering.get(), self.uploaded.get()) {
            (true, _) if self.down.waits_to_send.get() => Late::Client,
            (true, _) => Late::Rest,
            (false, false) if !self.up.waits_to_send.get() => Late::Body,
            (false, _) => Late::Response,
        }
    }
}

/// What has come of a body of HTTP/2. Its sender may send no more in its place until [`release`] is called.
#[derive(Debug, Default)]
pub struct Gathered {
    pieces: Vec<Bytes>,
    /// How many bytes there are.
    pub bytes: usize,
    /// The trailer fields, at the body's end; none if there are none.
    pub end: Option<HeaderMap>,
}

impl Gathered {
    /// Of a message without a body.
    pub fn nothing() -> Self {
        Self { end: Some(HeaderMap::new()), ..Self::default() }
    }

    /// Tells of it.
    pub fn tell(&self, tap: &Tap) {
        self.pieces.iter().for_each(|piece| tap.piece(piece, false));
        if self.end.is_some() {
            tap.piece(&[], true);
        }
    }

    /// With what has come behind it.
    pub fn join(&mut self, more: Self) {
        self.pieces.extend(more.pieces);
        self.bytes += more.bytes;
        self.end = more.end;
    }

    /// A copy of them, in one piece.
    pub fn bytes(&self) -> Bytes {
        self.pieces.concat().into()
    }
}

/// Takes what has come of a body; with `waits`, at least something.
pub async fn gather(from: &mut RecvStream, waits: bool) -> Result<Gathered, h2::Error> {
    let mut gathered = Gathered::default();
    let mut are_pieces_over = false;
    poll_fn(|context| {
        while gathered.bytes < GATHERED_BYTES_MAX {
            if are_pieces_over {
                let trailers = std::task::ready!(from.poll_trailers(context))?;
                gathered.end = Some(trailers.unwrap_or_default());
                break;
            }
            match from.poll_data(context) {
                Poll::Ready(Some(piece)) => {
                    let piece = piece?;
                    gathered.bytes += piece.len();
                    if !piece.is_empty() {
                        gathered.pieces.push(piece);
                    }
                    if from.is_end_stream() {
                        gathered.end = Some(HeaderMap::new());
                        break;
                    }
                }
                Poll::Ready(None) => are_pieces_over = true,
                Poll::Pending if waits && gathered.bytes == 0 => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        Poll::Ready(Ok(()))
    })
    .await
    .map(|()| gathered)
}

/// Lets the sender of what was gathered send as much again.
pub fn release(from: &mut RecvStream, gathered: &Gathered) {
    // Fails only if the stream is over, and then nothing is owed.
    let _ = from.flow_control().release_capacity(gathered.bytes);
}

/// Where a message of HTTP/1 goes.
pub struct Outlet<'o> {
    /// The connection.
    pub to: &'o mut Writer,
    /// Where buffers come from.
    pub buffers: &'o Buffers,
    /// Told of all that goes out.
    pub progress: &'o Progress,
    /// Told of all that comes in, but for what was there at first.
    pub tap: Option<&'o Tap>,
    /// What its body goes over, if that is slow on purpose.
    pub narrow: Option<&'o Narrow>,
}

impl Outlet<'_> {
    /// Sends a message from its head on, of whose body `first` has come; gives the trailers' `grpc-status`, if there is one.
    pub async fn send(
        &mut self,
        head: &[u8],
        style: Style,
        first: &Gathered,
        from: &mut RecvStream,
    ) -> Result<Option<Bytes>, body::Broken> {
        self.send_slowly(head, style, first).await.map_err(|_| body::Broken::To)?;
        release(from, first);
        let mut end = first.end.as_ref().map(grpc_status);
        while end.is_none() {
            let next = gather(from, true).await.map_err(body::Broken::From)?;
            if let Some(tap) = self.tap {
                next.tell(tap);
                tap.stop_if_over().await;
            }
            self.send_slowly(&[], style, &next).await.map_err(|_| body::Broken::To)?;
            release(from, &next);
            end = next.end.as_ref().map(grpc_status);
        }
        Ok(end.flatten())
    }

    /// Sends it as fast as its line is.
    async fn send_slowly(&mut self, head: &[u8], style: Style, gathered: &Gathered) -> io::Result<()> {
        let Some(narrow) = self.narrow else { return self.send_gathered(head, style, gathered).await };
        self.send_gathered(head, style, &Gathered::default()).await?;
        for piece in gathered.pieces.iter().flat_map(|piece| piece.chunks(narrow.piece_bytes_max())) {
            narrow.turn().await;
            let part = Gathered { pieces: vec![Bytes::copy_from_slice(piece)], bytes: piece.len(), end: None };
            self.send_gathered(&[], style, &part).await?;
            narrow.leaves(piece.len());
        }
        self.send_gathered(&[], style, &Gathered { end: gathered.end.clone(), ..Gathered::default() }).await
    }

    async fn send_gathered(&mut self, head: &[u8], style: Style, gathered: &Gathered) -> io::Result<()> {
        let size = format!("{:x}\r\n", gathered.bytes);
        let mut parts = vec![head];
        let is_framed = style == Style::Chunks && gathered.bytes > 0;
        if is_framed {
            parts.push(size.as_bytes());
        }
        parts.extend(gathered.pieces.iter().map(|piece| &piece[..]));
        if is_framed {
            parts.push(b"\r\n");
        }
        let trailers = gathered.end.as_ref().map(trailers_to_http1);
        if style == Style::Chunks
            && let Some(trailers) = &trailers
        {
            parts.extend([b"0\r\n", &trailers[..], b"\r\n"]);
        }
        if parts.iter().all(|part| part.is_empty()) {
            return Ok(());
        }
        self.submit(holding(self.buffers, &parts)).await
    }

    /// Sends bytes, and waits until the kernel has them.
    pub async fn submit(&mut self, buf: Buf) -> io::Result<()> {
        self.progress.waits_to_send.set(true);
        self.flush().await?;
        let range = buf.range();
        self.progress.add(range.len());
        self.to.submit(buf, range);
        self.flush().await?;
        self.progress.waits_to_send.set(false);
        Ok(())
    }

    async fn flush(&mut self) -> io::Result<()> {
        if self.to.is_sending() {
            let (result, buf) = self.to.sent().await;
            self.buffers.give(buf);
            result?;
        }
        Ok(())
    }
}

/// A buffer with copies of these, one behind the other.
fn holding(buffers: &Buffers, parts: &[&[u8]]) -> Buf {
    let bytes: usize = parts.iter().map(|part| part.len()).sum();
    for capacity in [SMALL, MEDIUM, LARGE] {
        let mut buf = buffers.take(capacity);
        if buf.room() >= bytes {
            for part in parts {
                buf.append(part);
            }
            return buf;
        }
        buffers.give(buf);
    }
    // The longest heads: no stock is kept of these.
    Buf::of(&parts.concat())
}

/// Where a body of HTTP/1 comes from.
pub struct Inlet<'i> {
    /// The connection.
    pub from: &'i mut Reader,
    /// Where buffers come from.
    pub buffers: &'i Buffers,
    /// Told of all that goes out.
    pub progress: &'i Progress,
    /// Told of all that comes in.
    pub tap: Option<&'i Tap>,
    /// What it goes over, if that is slow on purpose.
    pub narrow: Option<&'i Narrow>,
}

/// A body of HTTP/1 that was passed on.
#[derive(Debug, Default)]
pub struct Passed {
    /// What came behind it.
    pub rest: Option<Buf>,
    /// The trailers' `grpc-status`.
    pub grpc_status: Option<Bytes>,
}

impl Inlet<'_> {
    /// Passes on a body, which begins in `buf`. What it receives is sent before more is received.
    pub async fn pass_on(
        &mut self,
        to: &mut SendStream<Bytes>,
        buf: Buf,
        framing: Framing,
    ) -> Result<Passed, forward::Broken> {
        self.go_on(to, &mut Coming::new(buf, framing), &Cell::new(true)).await
    }

    /// Passes on a body, from its beginning if somebody was sent some of it before. It is held until somebody `is_answering`.
    pub async fn go_on(
        &mut self,
        to: &mut SendStream<Bytes>,
        body: &mut Coming,
        is_answering: &Cell<bool>,
    ) -> Result<Passed, forward::Broken> {
        let (again, is_last) = body.again();
        self.send(to, again, is_last).await?;
        while !body.is_done() {
            let (bytes, is_last) = body.next(is_answering.get())?;
            self.send(to, bytes, is_last).await?;
            if !body.is_done() && !self.receive(to, body).await? {
                self.send(to, Bytes::new(), true).await?;
            }
        }
        let grpc_status = body.trailers().map(|lines| send_trailers(to, lines)).transpose()?.flatten();
        let rest = body.take().and_then(|rest| if rest.is_empty() { self.give(rest) } else { Some(rest) });
        Ok(Passed { rest, grpc_status })
    }

    fn give(&self, buf: Buf) -> Option<Buf> {
        self.buffers.give(buf);
        None
    }

    /// Waits for more, into the buffer that was sent, or a larger one if that was full; whether more came, and not the body's end.
    async fn receive(&mut self, to: &mut SendStream<Bytes>, body: &mut Coming) -> Result<bool, forward::Broken> {
        // The reader has it where somebody else waited before.
        let buf = body.take().or_else(|| self.from.disarm());
        let mut buf = match buf {
            Some(buf) if buf.capacity() < SMALL || buf.room() == 0 => {
                self.buffers.give(buf);
                self.buffers.take(LARGE)
            }
            buf => buf.unwrap_or_else(|| self.buffers.take(LARGE)),
        };
        buf.clear();
        self.from.arm(buf);
        let (received, buf) = poll_fn(|context| {
            if let Poll::Ready(received) = self.from.poll_received(context) {
                return Poll::Ready(Ok(received));
            }
            to.poll_reset(context).map(|_| Err(gone()))
        })
        .await?;
        if let Err(error) = received {
            self.buffers.give(buf);
            return Err(forward::Broken::Receiving(error));
        }
        if let Some(tap) = self.tap {
            tap.raw(buf.bytes());
            tap.stop_if_over().await;
        }
        if buf.is_empty() {
            self.buffers.give(buf);
            return if body.ends() { Ok(false) } else { Err(forward::Broken::Ended) };
        }
        body.put(buf);
        Ok(true)
    }

    /// Sends a piece as the receiver's windows allow.
    pub async fn send(
        &self,
        to: &mut SendStream<Bytes>,
        mut piece: Bytes,
        is_last: bool,
    ) -> Result<(), forward::Broken> {
        if piece.is_empty() {
            return if is_last { to.send_data(piece, true).map_err(|_| gone()) } else { Ok(()) };
        }
        to.reserve_capacity(piece.len());
        while !piece.is_empty() {
            let room = match to.capacity() {
                0 => {
                    self.progress.waits_to_send.set(true);
                    body::capacity(to).await.map_err(|_| gone())?
                }
                room => room,
            };
            self.progress.waits_to_send.set(false);
            let room = match self.narrow {
                None => room,
                Some(narrow) => {
                    narrow.turn().await;
                    room.min(narrow.piece_bytes_max())
                }
            };
            let part = piece.split_to(room.min(piece.len()));
            if let Some(narrow) = self.narrow {
                narrow.leaves(part.len());
            }
            self.progress.add(part.len());
            to.send_data(part, is_last && piece.is_empty()).map_err(|_| gone())?;
        }
        Ok(())
    }
}

fn send_trailers(to: &mut SendStream<Bytes>, lines: &[u8]) -> Result<Option<Bytes>, forward::Broken> {
    let malformed = |_| forward::Broken::Malformed(crate::decode::chunked::BadChunk("malformed trailer field"));
    let trailers = trailers_to_http2(lines).map_err(malformed)?;
    let status = grpc_status(&trailers);
    match trailers.is_empty() {
        true => to.send_data(Bytes::new(), true),
        false => to.send_trailers(trailers),
    }
    .map_err(|_| gone())?;
    Ok(status)
}

/// The receiver of a stream wants no more of it.
fn gone() -> forward::Broken {
    forward::Broken::Sending(io::ErrorKind::ConnectionReset.into())
}

/// Moves an exchange on while it moves: `state` tells how far it is, and how long it may stay there. `None`: it stayed for longer.
pub async fn while_moving<T, P: PartialEq>(
    exchange: impl Future<Output = T>,
    state: impl Fn() -> (P, Option<Duration>),
) -> Option<T> {
    let mut exchange = pin!(exchange);
    let mut over: Option<Pin<Box<Sleep>>> = None;
    let mut last = None;
    poll_fn(|context| {
        if let Poll::Ready(ended) = exchange.as_mut().poll(context) {
            return Poll::Ready(Some(ended));
        }
        let now = state();
        if last.as_ref() != Some(&now) {
            match (now.1, &mut over) {
                (Some(limit), Some(over)) => over.as_mut().reset(Instant::now() + limit),
                (Some(limit), none) => *none = Some(Box::pin(sleep(limit))),
                (None, _) => over = None,
            }
            last = Some(now);
        }
        match &mut over {
            Some(over) => over.as_mut().poll(context).map(|()| None),
            None => Poll::Pending,
        }
    })
    .await
}
