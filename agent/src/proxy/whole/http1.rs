//! To an endpoint of HTTP/1.

use std::{future::poll_fn, io, mem, net::Shutdown, rc::Rc, sync::Arc, task::Poll, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Response};

use super::{
    Answer, Body, Hints, Missed, Whole,
    body::{Broken, Piece},
    within,
};
use crate::{
    cluster::{OneWayState, Seen},
    decode::{
        chunked::Event,
        http1::{Asked, BadResponse, ResponseHead},
        translate::{response_to_http2, trailers_to_http2},
    },
    proxy::{
        Cluster, Hop,
        http::{INTERIM_MAX, Limits, NoResponse, apply_edits, read_head, set_or_clear},
        left::Left,
        one_way,
        reach::{Tried, Upstream},
    },
    record::{Bytes as Count, Counter},
    ring::{Buf, Buffers, Due, LARGE, MEDIUM, Stream},
};

pub(super) async fn ask(
    hop: &Rc<Hop>,
    cluster: &Rc<Cluster>,
    mut tried: Tried,
    whole: &Whole,
) -> Result<Answer, Missed> {
    let limits = Limits::of(cluster);
    let mut fresh = false;
    loop {
        let mut upstream = hop.reach(cluster, &mut tried, fresh).await.map_err(Missed::Unreached)?;
        upstream.stream.reader.arm_on_demand(&hop.buffers, MEDIUM);
        let sent_before = upstream.stream.writer.taken();
        let buf = Buf::of(&whole.message(tried.turn.nth));
        let range = buf.range();
        hop.slab.count_bytes(Count::UpstreamSent, range.len());
        upstream.stream.writer.submit(buf, range);
        set_or_clear(&upstream.stream.socket, limits.response, Due::End);
        let first = first_bytes(&mut upstream.stream, &hop.buffers);
        let Some((received, buf)) = within(tried.turn.patience, first).await else {
            upstream.who().report(hop, Seen::Late);
            return Err(Missed::Late);
        };
        if let Ok(bytes @ 1..) = received {
            hop.slab.count_bytes(Count::UpstreamReceived, bytes);
            upstream.who().heard().now();
            let who = upstream.who().clone();
            let rules = (whole.asked.is_head, &limits, whole.hints.as_ref());
            return answer(hop, upstream, buf, rules).await.inspect_err(|missed| {
                who.report(hop, missed.seen());
            });
        }
        hop.buffers.give(buf);
        if upstream.stream.socket.is_overdue() {
            upstream.who().report(hop, Seen::Late);
            return Err(Missed::Late);
        }
        upstream.who().report(hop, Seen::NoResponse);
        let is_unprocessed = upstream.stream.never_arrived(sent_before, received.is_ok()).await;
        // The race that any reuse runs says nothing of the endpoint: it is asked on a connection of its own.
        if !upstream.reused || !(is_unprocessed || whole.asked.is_idempotent) {
            let why = received.err().filter(|error| error.kind() == io::ErrorKind::InvalidData);
            return Err(Missed::Silent { why: why.map(|error| error.to_string()), reset: None, is_unprocessed });
        }
        hop.slab.count(if whole.asked.is_idempotent { Counter::Replayed } else { Counter::ReplayedUnseen });
        fresh = true;
    }
}

/// Sends it, once; whether all of it was written.
pub(super) async fn send(
    hop: &Rc<Hop>,
    cluster: &Rc<Cluster>,
    mut tried: Tried,
    (whole, state): (&Whole, &Arc<OneWayState>),
) -> bool {
    let Ok(mut upstream) = hop.reach(cluster, &mut tried, false).await else { return false };
    upstream.stream.reader.arm_on_demand(&hop.buffers, MEDIUM);
    let buf = Buf::of(&whole.message(0));
    let range = buf.range();
    hop.slab.count_bytes(Count::UpstreamSent, range.len());
    set_or_clear(&upstream.stream.socket, Limits::of(cluster).stall, Due::End);
    upstream.stream.writer.submit(buf, range);
    let (result, buf) = upstream.stream.writer.sent().await;
    hop.buffers.give(buf);
    if result.is_err() {
        upstream.who().report(hop, Seen::NoResponse);
        return false;
    }
    one_way::drop_answer(hop, upstream, whole.asked.is_head, state);
    true
}

/// Reads an answer that nobody wants, so that its connection can carry another request; no longer than this.
pub(in crate::proxy) async fn drop_answer(hop: &Rc<Hop>, mut upstream: Upstream, is_head: bool, patience: Duration) {
    upstream.stream.socket.set_due(patience, Due::End);
    let (received, buf) = upstream.stream.reader.received().await;
    if !matches!(received, Ok(1..)) {
        return hop.buffers.give(buf);
    }
    let limits = Limits::of(upstream.who().cluster());
    if let Ok(answer) = answer(hop, upstream, buf, (is_head, &limits, None)).await {
        answer.discard().await;
    }
}

/// Waits for the first bytes of an answer, or the end.
async fn first_bytes(stream: &mut Stream, buffers: &Buffers) -> (io::Result<usize>, Buf) {
    poll_fn(|context| {
        if stream.writer.is_sending()
            && let Poll::Ready((result, buf)) = stream.writer.poll_sent(context)
        {
            buffers.give(buf);
            if result.is_err() {
                // It may have answered all the same, before it ended; if not, this ends the wait.
                stream.socket.shut(Shutdown::Both);
            }
        }
        stream.reader.poll_received(context)
    })
    .await
}

/// The answer that begins in `buf`; interim ones are for `hints`.
pub(in crate::proxy) async fn answer(
    hop: &Rc<Hop>,
    mut upstream: Upstream,
    mut buf: Buf,
    (is_head, limits, hints): (bool, &Limits, Option<&Hints>),
) -> Result<Answer, Missed> {
    let asked =
        Asked { head: is_head, websocket: false, http10: false, connect: false, fields_max: limits.head_fields };
    for _ in 0..INTERIM_MAX {
        let Stream { reader, socket, .. } = &mut upstream.stream;
        let read = read_head(reader, &hop.buffers, buf, asked, limits.head_bytes).await;
        let head = match read {
            _ if socket.is_overdue() => return Err(Missed::Late),
            Ok((rest, head)) => {
                buf = rest;
                head
            }
            Err(NoResponse::Bad(bad)) => return Err(Missed::Bad(bad)),
            Err(_) => return Err(Missed::Bad(BadResponse("it broke off within its head"))),
        };
        let response;
        (buf, response) = translated(hop, buf, &head)?;
        let (parts, ()) = response.into_parts();
        if head.status < 200 {
            if let Some(hints) = hints {
                hints.add(parts);
            }
            continue;
        }
        // What has come waits here for as long as somebody takes; the clock runs when more is waited for.
        upstream.stream.socket.clear_due();
        let body = FromHttp1 {
            hop: Rc::clone(hop),
            is_uploaded: !upstream.stream.writer.is_sending(),
            upstream: Some(upstream),
            buf,
            left: Left::of(head.framing),
            end: None,
            keep_alive: head.keep_alive,
            status: head.status,
            stall: limits.stall,
        };
        return Ok(Answer { parts, body: Body::Http1(Box::new(body)) });
    }
    Err(Missed::Bad(BadResponse("too many interim responses")))
}

fn translated(hop: &Hop, buf: Buf, head: &ResponseHead) -> Result<(Buf, Response<()>), Missed> {
    let (mut buf, bytes) = apply_edits(&hop.buffers, buf, head.bytes, head.start_line_bytes, &head.edits);
    let response = response_to_http2(&buf.bytes()[..bytes], head.status).map_err(Missed::Bad)?;
    buf.consume(bytes);
    Ok((buf, response))
}

/// The body of an answer, as it comes.
pub struct FromHttp1 {
    hop: Rc<Hop>,
    /// Until the body is over.
    upstream: Option<Upstream>,
    /// What has come of it and was not taken.
    buf: Buf,
    left: Left,
    /// What stands behind it, when all of it was taken.
    end: Option<HeaderMap>,
    is_uploaded: bool,
    keep_alive: bool,
    status: u16,
    stall: Option<Duration>,
}

impl FromHttp1 {
    /// Whether nothing comes.
    pub fn is_empty(&self) -> bool {
        matches!(self.left, Left::Length(0))
    }

    /// What comes next. May be given up while it is waited for, and asked for again.
    pub async fn next(&mut self) -> Result<Piece, Broken> {
        loop {
            if let Some(end) = self.end.take() {
                self.finish();
                return Ok(Piece::End(end));
            }
            if self.upstream.is_none() {
                return Ok(Piece::End(HeaderMap::new()));
            }
            let data = self.take().inspect_err(|_| self.break_off(Seen::NoResponse))?;
            if !data.is_empty() {
                return Ok(Piece::Data(data));
            }
            if self.end.is_none() {
                self.receive().await?;
            }
        }
    }

    /// What has come of the body.
    fn take(&mut self) -> Result<Bytes, Broken> {
        let bytes = self.buf.bytes();
        let mut at = 0;
        let data = match &mut self.left {
            Left::Length(left) => {
                at = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= at as u64;
                self.end = (*left == 0).then(HeaderMap::new);
                Bytes::copy_from_slice(&bytes[..at])
            }
            Left::UntilClose => {
                at = bytes.len();
                Bytes::copy_from_slice(bytes)
            }
            Left::Chunked(decoder) => {
                let mut data = Vec::new();
                while let Event::Data(piece) = decoder.next(bytes, &mut at).map_err(|_| Broken::Off)? {
                    data.extend_from_slice(&bytes[piece]);
                }
                if decoder.is_done() {
                    self.end = Some(trailers_to_http2(decoder.trailers()).map_err(|_| Broken::Off)?);
                }
                data.into()
            }
        };
        self.buf.consume(at);
        Ok(data)
    }

    async fn receive(&mut self) -> Result<(), Broken> {
        let Some(upstream) = &mut self.upstream else { return Err(Broken::Off) };
        let Stream { reader, socket, .. } = &mut upstream.stream;
        if self.buf.capacity() > 0 {
            self.hop.buffers.give(mem::replace(&mut self.buf, Buf::of(&[])));
        }
        set_or_clear(socket, self.stall, Due::End);
        reader.arm_on_demand(&self.hop.buffers, LARGE);
        let (received, buf) = reader.received().await;
        let is_late = socket.is_overdue();
        self.buf = buf;
        match received {
            Ok(bytes @ 1..) => {
                socket.clear_due();
                self.hop.slab.count_bytes(Count::UpstreamReceived, bytes);
                Ok(())
            }
            _ if is_late => {
                self.break_off(Seen::Late);
                Err(Broken::Late)
            }
            Ok(_) if matches!(self.left, Left::UntilClose) => {
                self.end = Some(HeaderMap::new());
                Ok(())
            }
            _ => {
                self.break_off(Seen::NoResponse);
                Err(Broken::Off)
            }
        }
    }

    fn break_off(&mut self, seen: Seen) {
        if let Some(upstream) = self.upstream.take() {
            upstream.who().report(&self.hop, seen);
        }
    }

    /// It is over: the connection may carry another request.
    fn finish(&mut self) {
        let Some(upstream) = self.upstream.take() else { return };
        upstream.who().report(&self.hop, Seen::Answered { status: self.status, grpc_status: None });
        // Bytes behind a response belong to no request: the connection is not to be trusted any more.
        if self.keep_alive && self.is_uploaded && self.buf.is_empty() {
            upstream.stream.socket.clear_due();
            self.hop.keep(upstream);
        }
        self.hop.buffers.give(mem::replace(&mut self.buf, Buf::of(&[])));
    }
}
