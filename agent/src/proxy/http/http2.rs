//! A request of HTTP/1 to an endpoint of HTTP/2: a stream of a connection that other requests share.

mod tunnel;

use std::{cell::Cell, future::poll_fn, pin::Pin, pin::pin, task::Poll};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, client::ResponseFuture};
use http::{HeaderMap, Request, Response, StatusCode, request, response};

use super::{Connection, INTERIM_MAX, Limits, Next, apply::apply, attend::Client, outcome, reply::Reply};
use crate::{
    cluster::Seen,
    decode::{
        chunked::Style,
        http1::{BadResponse, Framing, Method, RequestHead},
        http2::room::Room,
        translate,
    },
    forward,
    proxy::{
        Hop,
        http2::body::{self, Replays},
        mirror::Tap,
        one_way,
        reach::{Heard, Shared, Tried},
        translate::{Coming, Gathered, Inlet, Late, Outlet, Phase, gather, while_moving},
        whole,
    },
    record::{Bytes as Count, Counter},
    ring::{Buf, Reader, Stream, Writer},
    route::{self, Fields},
};

/// How an attempt came out.
enum Ended {
    /// Answered to the end, with this status; whether the client was told that the connection ends here.
    Answered(u16, bool),
    /// All of the request is sent, and nobody waits for its response, which is to be read all the same.
    Sent(Option<ResponseFuture>),
    /// The endpoint has certainly not seen the request: its connection was going away, or the stream was refused.
    Unseen(h2::Error),
    /// No response came.
    Unanswered(h2::Error),
    /// What came is no response.
    Bad(BadResponse),
    /// The response broke off.
    Broken(h2::Error),
    /// The client's body is malformed.
    BadBody(forward::Broken),
    /// It is longer than a filter lets it be.
    TooLong,
    /// The client broke off its request, or wants no answer any more.
    ClientGone,
    /// The kernel had no memory to wait for more of the request.
    NoMemory,
    /// The time for this is over.
    Late(Late),
    /// The time of the request is over.
    Over,
}

impl Ended {
    /// What this says of the endpoint.
    fn seen(&self) -> Option<Seen> {
        match self {
            Self::Answered(status, _) => Some(Seen::Answered { status: *status, grpc_status: None }),
            Self::Unseen(error) if !error.is_reset() => None,
            Self::Unseen(_) | Self::Unanswered(_) | Self::Bad(_) | Self::Broken(_) => Some(Seen::NoResponse),
            Self::Late(Late::Response | Late::Rest) | Self::Over => Some(Seen::Late),
            Self::Sent(_)
            | Self::Late(Late::Body | Late::Client)
            | Self::BadBody(_)
            | Self::TooLong
            | Self::ClientGone
            | Self::NoMemory => None,
        }
    }
}

/// The body of a request.
enum Body {
    /// All of it; it can be sent again.
    Whole(Bytes),
    /// Some of it; the rest is to be received.
    Begun(Coming),
}

impl Body {
    /// Whether it can be sent from its beginning.
    fn can_repeat(&self) -> bool {
        match self {
            Self::Whole(_) => true,
            Self::Begun(body) => body.can_repeat(),
        }
    }

    /// Whether it was read to its end, behind which the next request begins.
    fn is_read(&self) -> bool {
        match self {
            Self::Whole(_) => true,
            Self::Begun(body) => body.is_done(),
        }
    }
}

/// One attempt.
#[derive(Default)]
struct Attempt {
    phase: Phase,
    /// Whether the client has been sent the head of a response.
    head_sent: Cell<bool>,
}

/// What must be known of a request to pass its response on.
struct Answer<'a> {
    hop: &'a Hop,
    head: &'a RequestHead,
    attempt: &'a Attempt,
    /// What is changed of the response's fields.
    change: &'a Fields,
    heard: Heard,
    room: Room,
}

impl Connection<'_> {
    /// Passes one request on and its response back.
    pub(super) async fn exchange_http2(&mut self, buf: Buf, head: RequestHead) -> Next {
        if head.method == Method::Connect || head.websocket {
            return self.tunnel_http2(buf, head).await;
        }
        self.hop.slab.count_bytes(Count::DownstreamReceived, buf.len());
        let (mut buf, head_bytes) = apply(&self.hop.buffers, buf, head.bytes, head.start_line_bytes, &head.edits);
        let is_secure = self.cluster.service.config.tls.originate.is_some();
        let (parts, _) = match translate::request_to_http2(&buf.bytes()[..head_bytes], is_secure) {
            Ok(translated) => translated,
            Err(bad) => return Next::End(self.refuse(Reply::refused(bad)).await),
        };
        buf.consume(head_bytes);
        let mut body = match head.framing {
            Framing::None | Framing::UntilClose => Body::Whole(Bytes::new()),
            Framing::Length(length) if length <= buf.len() as u64 => {
                let whole = Bytes::copy_from_slice(&buf.bytes()[..length as usize]);
                buf.consume(whole.len());
                Body::Whole(whole)
            }
            framing => {
                let begun = std::mem::replace(&mut buf, self.hop.buffers.holding(&[]));
                Body::Begun(Coming::new(begun, framing))
            }
        };
        let limits = self.limits();
        let request = || route::Request::of_parts(&parts, self.stream.is_tls(), self.asker.source);
        let mut tried = Tried::for_request(self.hop, &self.cluster, self.asker, request);
        let (mut replays, mut before) = (Replays::default(), None);
        loop {
            let reached = {
                let reach = pin!(self.hop.reach_shared(&self.cluster, &mut tried));
                self.clock.bound(reach).await
            };
            let upstream = match (reached, before) {
                (Some(Ok(upstream)), _) => upstream,
                (Some(Err(_)), Some(error)) => return self.unanswered_http2(&head, &body, buf, error).await,
                (Some(Err(why)), None) => return self.reply_http2(Reply::unreached(why), &head, &body, buf).await,
                (None, _) => return self.reply_http2(Reply::deadline_exceeded(), &head, &body, buf).await,
            };
            let attempt = Attempt::default();
            let asked = (&head, !buf.is_empty());
            let (ended, rest) = self.attempt_http2(&upstream, &parts, &mut body, asked, &limits, &attempt).await;
            buf = rest.unwrap_or(buf);
            // Who gives little time learns nothing of the endpoint.
            let is_callers = matches!(ended, Ended::Over) && self.clock.is_callers();
            if let Some(seen) = ended.seen().filter(|_| !is_callers) {
                upstream.who().report(self.hop, seen);
            }
            let can_repeat = body.can_repeat() && !attempt.head_sent.get();
            let (is_unseen, error) = match ended {
                Ended::Sent(response) => return self.sent_http2((upstream, response), &head, buf).await,
                Ended::Unseen(error) => (true, error),
                Ended::Unanswered(error) => (false, error),
                ended => return self.after_http2(ended, &attempt, &head, buf).await,
            };
            let is_harmless = is_unseen || (head.method.is_idempotent() && error.is_io());
            if !is_harmless || !can_repeat || !replays.once_more(&error) {
                return self.unanswered_http2(&head, &body, buf, error).await;
            }
            // A connection that is going away, or was there for long, says nothing of its endpoint; another is made.
            if (is_unseen && error.is_reset()) || (!is_unseen && !upstream.seat.reused) {
                tried.add_shared(&upstream);
            }
            self.hop.slab.count(Counter::Replayed);
            before = Some(error);
        }
    }

    async fn unanswered_http2(&mut self, head: &RequestHead, body: &Body, buf: Buf, error: h2::Error) -> Next {
        let reply = Reply::no_response_because(&error, body::reset_of(&error).map(u32::from));
        self.reply_http2(reply, head, body, buf).await
    }

    /// Answers in the endpoint's stead; of a body that was not read to its end nobody knows where the next request begins.
    async fn reply_http2(&mut self, reply: Reply, head: &RequestHead, body: &Body, buf: Buf) -> Next {
        if body.is_read() { self.reply(reply, head, buf).await } else { Next::End(self.refuse(reply).await) }
    }

    async fn attempt_http2(
        &mut self,
        upstream: &Shared,
        parts: &request::Parts,
        body: &mut Body,
        (head, is_followed): (&RequestHead, bool),
        limits: &Limits,
        attempt: &Attempt,
    ) -> (Ended, Option<Buf>) {
        let phase = &attempt.phase;
        let is_empty = matches!(body, Body::Whole(whole) if whole.is_empty());
        let mut request = Request::from_parts(parts.clone(), ());
        if let Some(time) = self.clock.time() {
            time.tell(request.headers_mut());
        }
        let (mut response, mut up) = match upstream.seat.send(request, is_empty) {
            Ok(sent) => sent,
            Err(error) => return (Ended::Unseen(error), None),
        };
        let hop = self.hop;
        let Stream { reader, writer, socket, .. } = &mut self.stream;
        let (clock, is_one_way) = (&mut self.clock, self.one_way.is_some());
        let mut rest = None;
        let ended = {
            let change = &self.response_change;
            let answer = Answer { hop, head, attempt, change, heard: upstream.who().heard(), room: limits.room };
            let tap = self.tap.as_deref();
            let narrow = self.filtered.as_ref().and_then(|filtered| filtered.narrow.as_deref());
            let inlet = Inlet { from: reader, buffers: &hop.buffers, progress: &phase.up, tap, narrow };
            let mut upload = pin!(upload(body, &mut up, inlet, phase));
            let mut download = pin!(answer.give(&mut response, writer));
            let mut client = None;
            let both = poll_fn(|context| {
                if client.is_none()
                    && let Poll::Ready((uploaded, reader)) = upload.as_mut().poll(context)
                {
                    let leaves = head.keep_alive && !is_followed && matches!(uploaded, Ok(None));
                    client = Some(Client { reader, socket, leaves });
                    match uploaded {
                        Ok(behind) => {
                            phase.uploaded.set(true);
                            rest = behind;
                            if is_one_way {
                                return Poll::Ready(Ended::Sent(None));
                            }
                        }
                        // It does not read on; perhaps it has answered already.
                        Err(forward::Broken::Sending(_)) => {}
                        Err(bad @ forward::Broken::Malformed(_)) => return Poll::Ready(Ended::BadBody(bad)),
                        Err(broken) if broken.is_for_memory() => return Poll::Ready(Ended::NoMemory),
                        Err(_) => return Poll::Ready(Ended::ClientGone),
                    }
                }
                if tap.is_some_and(Tap::is_over) {
                    return Poll::Ready(Ended::TooLong);
                }
                if !(is_one_way && client.is_none())
                    && let Poll::Ready(ended) = download.as_mut().poll(context)
                {
                    return Poll::Ready(ended);
                }
                if clock.poll_over(context).is_ready() {
                    return Poll::Ready(Ended::Over);
                }
                match &mut client {
                    Some(client) => client.poll_gone(context).map(|()| Ended::ClientGone),
                    None => Poll::Pending,
                }
            });
            let state = || ((phase.up.bytes.get(), phase.down.bytes.get()), phase.limit(limits));
            while_moving(both, state).await.unwrap_or_else(|| Ended::Late(phase.late()))
        };
        if !phase.uploaded.get() || !matches!(ended, Ended::Answered(..) | Ended::Sent(_)) {
            up.send_reset(if matches!(ended, Ended::Bad(_)) { Reason::PROTOCOL_ERROR } else { Reason::CANCEL });
        }
        hop.slab.count_bytes(Count::DownstreamSent, phase.down.bytes.get());
        let ended = if let Ended::Sent(_) = ended { Ended::Sent(Some(response)) } else { ended };
        (ended, rest)
    }

    /// Answers a request that was streamed to an endpoint whose response nobody waits for.
    async fn sent_http2(
        &mut self,
        (upstream, response): (Shared, Option<ResponseFuture>),
        head: &RequestHead,
        buf: Buf,
    ) -> Next {
        if let Some((state, response)) = self.one_way.take().zip(response) {
            one_way::was_sent(&state);
            one_way::drop_response(upstream, whole::read_away(response), &state);
        }
        self.give(one_way::taken(false), head, buf, Some(Counter::OneWay)).await
    }

    /// What follows when the endpoint has answered, or failed to. `buf` holds what came behind the request.
    async fn after_http2(&mut self, ended: Ended, attempt: &Attempt, head: &RequestHead, buf: Buf) -> Next {
        let phase = &attempt.phase;
        let head_sent = attempt.head_sent.get();
        let reply = match ended {
            Ended::Answered(status, close) => {
                self.tells(outcome(status));
                if close {
                    return Next::End(self.close(!phase.uploaded.get() || !buf.is_empty()).await);
                }
                self.put_back(buf);
                return Next::Request;
            }
            Ended::ClientGone | Ended::Sent(_) => return self.left(),
            Ended::NoMemory => return self.unheard(),
            Ended::Late(Late::Client) => {
                self.stream.socket.reset();
                self.tells(Counter::ClientStalled);
                return Next::End(Counter::ClientAborted);
            }
            Ended::Bad(bad) => Reply::bad_response(bad),
            Ended::Unseen(error) | Ended::Unanswered(error) => Reply::no_response_because(error, None),
            Ended::Over if !head_sent => Reply::deadline_exceeded(),
            Ended::Broken(error) if !head_sent => Reply::broken_off(error),
            Ended::BadBody(bad) if !head_sent => Reply::malformed(bad),
            Ended::TooLong if !head_sent => self.body_too_long(),
            Ended::Late(Late::Body) if !head_sent => Reply::body_timeout(),
            Ended::Late(_) if !head_sent => Reply::late_response(),
            ended => return self.break_off_http2(&ended).await,
        };
        if phase.uploaded.get() { self.reply(reply, head, buf).await } else { Next::End(self.refuse(reply).await) }
    }

    /// Breaks off within a response.
    async fn break_off_http2(&mut self, ended: &Ended) -> Next {
        let (counter, end) = match ended {
            Ended::BadBody(_) => (Counter::Malformed, Counter::Refused),
            Ended::TooLong => (Counter::Filtered, Counter::Refused),
            Ended::Late(Late::Body) => (Counter::BodyTimeout, Counter::ClientAborted),
            Ended::Over => (Counter::DeadlineExceeded, Counter::UpstreamAborted),
            Ended::Late(_) => (Counter::ResponseStalled, Counter::UpstreamAborted),
            _ => (Counter::ResponseAborted, Counter::UpstreamAborted),
        };
        self.tells(counter);
        self.abort().await;
        Next::End(end)
    }
}

/// Sends a body to its end; returns what came behind it, and the client's reader.
async fn upload<'r>(
    body: &mut Body,
    up: &mut SendStream<Bytes>,
    mut inlet: Inlet<'r>,
    phase: &Phase,
) -> (Result<Option<Buf>, forward::Broken>, &'r mut Reader) {
    let sent = match body {
        Body::Whole(whole) if whole.is_empty() => Ok(None),
        Body::Whole(whole) => inlet.send(up, whole.clone(), true).await.map(|()| None),
        Body::Begun(body) => inlet.go_on(up, body, &phase.answering).await.map(|passed| passed.rest),
    };
    (sent, inlet.from)
}

impl Answer<'_> {
    /// Passes a response on.
    async fn give(&self, response: &mut ResponseFuture, to: &mut Writer) -> Ended {
        let mut outlet =
            Outlet { to, buffers: &self.hop.buffers, progress: &self.attempt.phase.down, tap: None, narrow: None };
        for _ in 0..INTERIM_MAX {
            match next(response).await {
                Came::Final(Ok(response)) => {
                    self.heard.now();
                    return self.final_response(response, &mut outlet).await;
                }
                Came::Final(Err(error)) if body::is_unseen(&error) => return Ended::Unseen(error),
                Came::Final(Err(error)) => return Ended::Unanswered(error),
                Came::Interim(mut interim) => {
                    if let Err(bad) = self.room.response(interim.status.as_u16(), &mut interim.headers) {
                        return Ended::Bad(bad);
                    }
                    // Those who speak HTTP/1.0 do not know them (RFC 9110 section 15.2).
                    let bytes = translate::response_to_http1(&interim, Framing::None, None);
                    if !self.head.is_http10 && outlet.submit(self.hop.buffers.holding(&bytes)).await.is_err() {
                        return Ended::ClientGone;
                    }
                }
            }
        }
        Ended::Bad(BadResponse("too many interim responses"))
    }

    async fn final_response(&self, response: Response<RecvStream>, outlet: &mut Outlet<'_>) -> Ended {
        self.attempt.phase.answering.set(true);
        let (mut parts, mut body) = response.into_parts();
        let status = parts.status.as_u16();
        if let Err(bad) = self.room.response(status, &mut parts.headers) {
            return Ended::Bad(bad);
        }
        self.change.of_map(&mut parts.headers);
        // What is there already leaves with the head. Whatever stands in frames behind a head without a body is not looked at.
        let has_none = self.has_no_body(parts.status);
        let first = if has_none { Ok(Gathered::nothing()) } else { gather(&mut body, false).await };
        let first = match first {
            Ok(first) => first,
            Err(error) => return Ended::Broken(error),
        };
        let framing = match has_none {
            true => Framing::None,
            false => self.framing(&parts, &first),
        };
        let close = !self.head.keep_alive
            || !self.attempt.phase.uploaded.get()
            || self.hop.is_draining()
            || framing == Framing::UntilClose;
        let says = (close || self.head.is_http10).then_some(!close);
        let head = translate::response_to_http1(&parts, framing, says);
        self.attempt.head_sent.set(true);
        let style = if framing == Framing::Chunked { Style::Chunks } else { Style::Bare };
        match outlet.send(&head, style, &first, &mut body).await {
            Ok(_) => Ended::Answered(status, close),
            Err(body::Broken::From(error)) => Ended::Broken(error),
            Err(body::Broken::To) => Ended::ClientGone,
        }
    }

    fn has_no_body(&self, status: StatusCode) -> bool {
        self.head.method == Method::Head || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
    }

    /// How the body is passed on, which begins with `first`. The library has checked the length that is declared.
    fn framing(&self, parts: &response::Parts, first: &Gathered) -> Framing {
        let end = first.end.as_ref();
        match translate::declared_length(&parts.headers) {
            _ if !self.head.is_http10 && translate::announces_trailers(&parts.headers, end) => Framing::Chunked,
            Some(length) => Framing::Length(length),
            None if first.bytes == 0 && end.is_some_and(HeaderMap::is_empty) => Framing::Length(0),
            _ if self.head.is_http10 => Framing::UntilClose,
            _ => Framing::Chunked,
        }
    }
}

/// What comes of a response.
enum Came {
    Interim(response::Parts),
    Final(Result<Response<RecvStream>, h2::Error>),
}

async fn next(response: &mut ResponseFuture) -> Came {
    poll_fn(|context| {
        if let Poll::Ready(Some(Ok(interim))) = response.poll_informational(context) {
            return Poll::Ready(Came::Interim(interim.into_parts().0));
        }
        Pin::new(&mut *response).poll(context).map(Came::Final)
    })
    .await
}
