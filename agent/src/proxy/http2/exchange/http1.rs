//! A request of HTTP/2 to an endpoint of HTTP/1: its stream takes a connection for as long as it lasts.

use std::{future::poll_fn, pin::pin, rc::Rc, task::Poll};

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http::{header, request::Parts};

use super::Exchange;
use crate::{
    cluster::Seen,
    decode::{
        chunked::Style,
        grpc,
        http1::{Asked, BadResponse, Framing, ResponseHead},
        translate,
    },
    forward,
    proxy::{
        http::{INTERIM_MAX, Limits, NoResponse, Reply, apply_edits, outcome, read_head},
        http2::body,
        reach::{Heard, Tried, Upstream},
        translate::{Gathered, Inlet, Late, Outlet, Phase, gather, while_moving},
    },
    record::{Bytes as Count, Counter},
    ring::{Buf, MEDIUM, Reader, Stream},
    route,
};

/// How often a request is sent again of which no byte of a response came.
const REPLAYS_MAX: usize = 2;

/// What became of an attempt to have a request answered.
pub(super) enum Ended {
    /// It was, with this status, and this value of `grpc-status`; whether the connection can carry another request.
    Answered(u16, Option<Bytes>, bool),
    /// All of it is sent, and nobody waits for its response.
    Sent,
    /// No byte of a response came; whether the endpoint has ended the connection, and not reset it.
    Silent(bool),
    /// What came is no response.
    Bad(BadResponse),
    /// It was, with a status of 5xx that the client is not to see.
    Unwanted(u16),
    /// The response broke off.
    Broken,
    /// The client broke off its request, or broke a rule with it.
    RequestBroken(h2::Error),
    /// The client wants no answer any more.
    ClientGone,
    /// The time for this is over.
    Late(Late),
}

impl Ended {
    /// What this says of the endpoint.
    pub(super) fn seen(&self) -> Option<Seen> {
        match self {
            Self::Answered(status, grpc_status, _) => Some(super::answered(*status, grpc_status.as_ref())),
            Self::Unwanted(status) => Some(super::answered(*status, None)),
            Self::Silent(_) | Self::Bad(_) | Self::Broken => Some(Seen::NoResponse),
            Self::Late(Late::Response | Late::Rest) => Some(Seen::Late),
            Self::Sent | Self::Late(Late::Body | Late::Client) | Self::RequestBroken(_) | Self::ClientGone => None,
        }
    }
}

/// What is sent.
struct Outgoing<'o> {
    head: &'o [u8],
    style: Style,
    begun: &'o Gathered,
    /// Whether the endpoint is to say first that it wants the body.
    asks_for_body: bool,
}

impl Exchange<'_> {
    /// Until it is answered, by an endpoint or in its stead. As what it is counted. Of its body, `begun` was taken already.
    pub(super) async fn pass_on_to_http1(
        &mut self,
        mut parts: Parts,
        begun: Option<Gathered>,
        body: &mut RecvStream,
    ) -> Counter {
        let hop = &self.connection.hop;
        let cluster = Rc::clone(&self.cluster);
        let limits = Limits::of(&cluster);
        let has_body = begun.is_some() || !body.is_end_stream();
        // What is there already leaves with the head, and a request that is whole can be sent again.
        let begun = match begun {
            Some(begun) => begun,
            None if !has_body => Gathered::nothing(),
            None => match gather(body, false).await {
                Ok(begun) => begun,
                Err(error) => return self.ended_with_http1(Ended::RequestBroken(error)),
            },
        };
        if let Some(tap) = &self.tap {
            begun.tell(tap);
            tap.stop_if_over().await;
        }
        let framing = framing(&parts, has_body, &begun);
        let asks_for_body = framing != Framing::None && parts.headers.contains_key(header::EXPECT);
        let (asker, is_secure) = (self.connection.asker, self.connection.is_secure);
        let mut tried =
            Tried::for_request(hop, &cluster, asker, || route::Request::of_parts(&parts, is_secure, asker.source));
        let (mut replays, mut is_mute) = (0, false);
        loop {
            self.shrink_timeout(&mut parts);
            let head = match translate::request_to_http1(&parts, framing) {
                Ok(head) => head,
                Err(bad) => return self.reply(&Reply::refused(bad)),
            };
            let style = if framing == Framing::Chunked { Style::Chunks } else { Style::Bare };
            let mut upstream = match hop.reach(&cluster, &mut tried, replays > 0).await {
                Ok(upstream) => upstream,
                Err(_) if is_mute => return self.reply(&Reply::no_response()),
                Err(why) => return self.reply(&Reply::unreached(why)),
            };
            if self.is_too_late() {
                hop.keep(upstream);
                return self.reply(&Reply::deadline_exceeded());
            }
            let sent_before = upstream.stream.writer.taken();
            let outgoing = Outgoing { head: &head, style, begun: &begun, asks_for_body };
            self.awaited = self.is_timed().then(|| upstream.who().clone());
            let ended = self.attempt_http1(&mut upstream, outgoing, body, &limits).await;
            self.awaited = None;
            if let Some(seen) = ended.seen() {
                upstream.who().report(hop, seen);
            }
            if let Ended::Sent = ended {
                return Box::pin(self.sent_to_http1(upstream)).await;
            }
            let Ended::Silent(has_ended) = ended else {
                if let Ended::Answered(_, _, true) = ended {
                    hop.keep(upstream);
                }
                return self.ended_with_http1(ended);
            };
            let is_whole = begun.end.is_some();
            let why = match is_whole {
                true => self.may_replay(&upstream.stream, (sent_before, has_ended), replays).await,
                false => None,
            };
            let Some(why) = why else { return self.reply(&Reply::no_response()) };
            if !upstream.reused {
                is_mute = true;
                tried.add(&upstream);
            }
            hop.slab.count(why);
            replays += 1;
        }
    }

    /// As for a request of HTTP/1: one that may be repeated, a few times; another once, if no byte of it can have been processed.
    async fn may_replay(
        &self,
        upstream: &Stream,
        (sent_before, has_ended): (u64, bool),
        replays: usize,
    ) -> Option<Counter> {
        if self.asked.is_idempotent {
            return (replays < REPLAYS_MAX).then_some(Counter::Replayed);
        }
        (replays == 0 && upstream.never_arrived(sent_before, has_ended).await).then_some(Counter::ReplayedUnseen)
    }

    /// The endpoint is told what is left of the caller's time.
    fn shrink_timeout(&self, parts: &mut Parts) {
        if let Some(time) = self.time {
            time.tell(&mut parts.headers);
        }
    }

    async fn attempt_http1(
        &mut self,
        upstream: &mut Upstream,
        outgoing: Outgoing<'_>,
        body: &mut RecvStream,
        limits: &Limits,
    ) -> Ended {
        let hop = &self.connection.hop;
        let heard = upstream.who().heard();
        let Stream { reader, writer, .. } = &mut upstream.stream;
        let phase = Phase { asks_for_body: outgoing.asks_for_body.into(), ..Phase::default() };
        let (tap, narrow, is_one_way) = (self.tap.clone(), self.narrow(), self.one_way.is_some());
        if is_one_way {
            reader.arm_on_demand(&hop.buffers, MEDIUM);
        }
        let (buffers, progress, narrow) = (&hop.buffers, &phase.up, narrow.as_deref());
        let mut outlet = Outlet { to: writer, buffers, progress, tap: tap.as_deref(), narrow };
        let ended = {
            let mut upload = pin!(outlet.send(outgoing.head, outgoing.style, outgoing.begun, body));
            let mut download = pin!(self.download_http1(reader, limits, &phase, heard));
            let mut is_uploading = true;
            let both = poll_fn(|context| {
                if is_uploading && let Poll::Ready(uploaded) = upload.as_mut().poll(context) {
                    is_uploading = false;
                    match uploaded {
                        Ok(_) if is_one_way => return Poll::Ready(Ended::Sent),
                        Ok(_) => phase.uploaded.set(true),
                        Err(body::Broken::From(error)) => return Poll::Ready(Ended::RequestBroken(error)),
                        // Who reads no more of a request may have answered it already: the response tells.
                        Err(body::Broken::To) => {}
                    }
                }
                if is_one_way && is_uploading { Poll::Pending } else { download.as_mut().poll(context) }
            });
            let state = || ((phase.up.bytes.get(), phase.down.bytes.get()), phase.limit(limits));
            while_moving(both, state).await.unwrap_or_else(|| Ended::Late(phase.late()))
        };
        hop.slab.count_bytes(Count::UpstreamSent, phase.up.bytes.get());
        hop.slab.count_bytes(Count::UpstreamReceived, phase.down.bytes.get());
        match ended {
            Ended::Answered(status, grpc_status, reusable) => {
                // As in HTTP/1: what becomes of a body that nobody has asked for is the endpoint's secret.
                let is_settled = phase.uploaded.get() && !phase.asks_for_body.get();
                Ended::Answered(status, grpc_status, reusable && is_settled)
            }
            ended => ended,
        }
    }

    async fn download_http1(&mut self, reader: &mut Reader, limits: &Limits, phase: &Phase, heard: Heard) -> Ended {
        let hop = &self.connection.hop;
        reader.arm_on_demand(&hop.buffers, MEDIUM);
        let first = poll_fn(|context| {
            if let Poll::Ready(received) = reader.poll_received(context) {
                return Poll::Ready(Some(received));
            }
            self.respond.poll_reset(context).map(|_| None)
        });
        let Some((received, buf)) = first.await else { return Ended::ClientGone };
        if !matches!(received, Ok(1..)) {
            hop.buffers.give(buf);
            return Ended::Silent(received.is_ok());
        }
        heard.now();
        phase.answering.set(true);
        match self.response_from_http1(reader, buf, limits, phase).await {
            Ok(ended) | Err(ended) => ended,
        }
    }

    async fn response_from_http1(
        &mut self,
        reader: &mut Reader,
        mut buf: Buf,
        limits: &Limits,
        phase: &Phase,
    ) -> Result<Ended, Ended> {
        let buffers = &self.connection.hop.buffers;
        let asked = Asked {
            head: self.asked.is_head,
            websocket: false,
            http10: false,
            connect: false,
            fields_max: limits.head_fields,
        };
        for _ in 0..INTERIM_MAX {
            let head;
            (buf, head) = read_head(reader, buffers, buf, asked, limits.head_bytes).await.map_err(|why| match why {
                NoResponse::Bad(bad) => Ended::Bad(bad),
                _ => Ended::Broken,
            })?;
            if head.status >= 200 {
                return self.final_from_http1(reader, buf, head, phase).await;
            }
            if head.status == 100 {
                phase.asks_for_body.set(false);
            }
            let interim;
            (buf, interim) = self.translated(buf, &head)?;
            self.respond.send_informational(interim).map_err(|_| Ended::ClientGone)?;
        }
        Err(Ended::Bad(BadResponse("too many interim responses")))
    }

    /// The head of a response in HTTP/2, and what stands behind it.
    pub(super) fn translated(&self, buf: Buf, head: &ResponseHead) -> Result<(Buf, http::Response<()>), Ended> {
        let buffers = &self.connection.hop.buffers;
        let (mut buf, bytes) = apply_edits(buffers, buf, head.bytes, head.start_line_bytes, &head.edits);
        let response = translate::response_to_http2(&buf.bytes()[..bytes], head.status).map_err(Ended::Bad)?;
        buf.consume(bytes);
        Ok((buf, response))
    }

    pub(super) async fn final_from_http1(
        &mut self,
        from: &mut Reader,
        buf: Buf,
        head: ResponseHead,
        phase: &Phase,
    ) -> Result<Ended, Ended> {
        let (buf, mut response) = self.translated(buf, &head)?;
        if self.is_unwanted(head.status, response.headers()) {
            return Err(Ended::Unwanted(head.status));
        }
        self.begins();
        self.change.of_map(response.headers_mut());
        let is_whole = head.framing == Framing::None;
        let trailers_only = if is_whole && self.asked.is_grpc { body::grpc_status(response.headers()) } else { None };
        self.has_status = super::is_grpc(response.headers());
        let down = self.respond.send_response(response, is_whole).map_err(|_| Ended::ClientGone)?;
        let down = self.down.insert(down);
        if is_whole {
            return Ok(Ended::Answered(head.status, trailers_only, head.keep_alive && buf.is_empty()));
        }
        let mut inlet =
            Inlet { from, buffers: &self.connection.hop.buffers, progress: &phase.down, tap: None, narrow: None };
        match inlet.pass_on(down, buf, head.framing).await {
            // Bytes behind a response belong to no request: the connection is not to be trusted any more.
            Ok(passed) => {
                Ok(Ended::Answered(head.status, passed.grpc_status, head.keep_alive && passed.rest.is_none()))
            }
            Err(forward::Broken::Sending(_)) => Err(Ended::ClientGone),
            Err(_) => Err(Ended::Broken),
        }
    }

    pub(super) fn ended_with_http1(&mut self, ended: Ended) -> Counter {
        match ended {
            Ended::Answered(status, grpc_status, _) => {
                if self.asked.is_grpc {
                    let code = grpc_status.map_or_else(|| grpc::of_http(status), |value| grpc::status(&value));
                    self.count_grpc(code);
                }
                outcome(status)
            }
            Ended::Unwanted(_) => self.reply(&Reply::server_error()),
            Ended::Bad(bad) => self.reply(&Reply::bad_response(bad)),
            Ended::Silent(_) => self.reply(&Reply::no_response()),
            Ended::Broken => self.broken_off(Reason::INTERNAL_ERROR, Counter::ResponseAborted),
            Ended::RequestBroken(error) => {
                // Who broke a rule is told by the library already.
                self.broken_off(error.reason().unwrap_or(Reason::CANCEL), Counter::RequestAborted)
            }
            Ended::ClientGone | Ended::Sent => Counter::RequestAborted,
            Ended::Late(Late::Body) => self.reply(&Reply::body_timeout()),
            Ended::Late(Late::Response) => self.reply(&Reply::late_response()),
            Ended::Late(Late::Rest) if self.down.is_none() => self.reply(&Reply::late_response()),
            Ended::Late(Late::Rest) => self.broken_off(Reason::INTERNAL_ERROR, Counter::ResponseStalled),
            Ended::Late(Late::Client) => self.broken_off(Reason::CANCEL, Counter::ClientStalled),
        }
    }

    fn broken_off(&mut self, reason: Reason, counter: Counter) -> Counter {
        self.reset(reason);
        counter
    }
}

/// How the body goes on: what is whole has its length, and what has trailer fields is chunked.
fn framing(parts: &Parts, has_body: bool, begun: &Gathered) -> Framing {
    match (&begun.end, translate::declared_length(&parts.headers)) {
        _ if !has_body => Framing::None,
        (Some(trailers), _) if trailers.is_empty() => Framing::Length(begun.bytes as u64),
        (None, Some(length)) if !translate::announces_trailers(&parts.headers, None) => Framing::Length(length),
        _ => Framing::Chunked,
    }
}
