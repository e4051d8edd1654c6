//! A copy's way: to an endpoint, and its answer read and dropped, so that the connection can carry the next.

use std::{cell::Cell, time::Duration};

use bytes::Bytes;
use http::Request;

use super::Copy;
use crate::{
    cluster::Seen,
    config::HttpVersion,
    decode::{
        grpc,
        http1::{Asked, Framing, ResponseHead},
        translate,
    },
    forward,
    proxy::{
        http::{INTERIM_MAX, Limits, read_head},
        http2::body,
        left::Left,
        reach::{Heard, Shared, Tried},
    },
    ring::{Buf, Due, MEDIUM, Stream},
    route,
};

/// How long a copy may take where the service that gets it does not say how long a response may: Envoy's route timeout.
const PATIENCE: Duration = Duration::from_secs(15);
/// How much of an answer is read; a connection with more ends.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// What came of a copy.
struct Answered {
    seen: Seen,
    /// Whether its connection can carry another request.
    is_reusable: bool,
}

impl Answered {
    fn lost(seen: Seen) -> Self {
        Self { seen, is_reusable: false }
    }
}

impl Copy {
    /// Sends it; whether it was answered.
    pub(super) async fn send(&self) -> bool {
        let cluster = &self.ordered.cluster;
        let request = || route::Request::of_parts(&self.parts, false, self.asker.source);
        let tried = Tried::for_request(&self.hop, cluster, self.asker, request);
        let seen = match cluster.spoken_upstream(self.spoken) {
            HttpVersion::Http1 => self.to_http1(tried).await,
            HttpVersion::Http2 => self.to_http2(tried).await,
        };
        matches!(seen, Some(Seen::Answered { .. }))
    }

    fn patience(&self) -> Duration {
        self.ordered.cluster.service.config.http.response_timeout.unwrap_or(PATIENCE)
    }

    async fn to_http1(&self, mut tried: Tried) -> Option<Seen> {
        let framing = if self.body.is_empty() { Framing::None } else { Framing::Length(self.body.len() as u64) };
        let head = translate::request_to_http1(&self.parts, framing).ok()?;
        let mut upstream = self.hop.reach(&self.ordered.cluster, &mut tried, false).await.ok()?;
        let heard = upstream.who().heard();
        let answered = self.converse(&mut upstream.stream, &[&head[..], &self.body].concat(), heard).await;
        upstream.who().report(&self.hop, answered.seen);
        if answered.is_reusable {
            upstream.stream.socket.clear_due();
            self.hop.keep(upstream);
        }
        Some(answered.seen)
    }

    async fn converse(&self, stream: &mut Stream, message: &[u8], heard: Heard) -> Answered {
        let buffers = &self.hop.buffers;
        let Stream { reader, writer, socket, .. } = stream;
        socket.set_due(self.patience(), Due::End);
        reader.arm_on_demand(buffers, MEDIUM);
        let lost = || Answered::lost(if socket.is_overdue() { Seen::Late } else { Seen::NoResponse });
        let count = Cell::new(0);
        let mut copy = forward::Copy { from: reader, to: writer, buffers, count: &count, tap: None };
        let buf = Buf::of(message);
        let all = buf.range();
        if copy.submit(buf, all).await.is_err() || copy.flush().await.is_err() {
            return lost();
        }
        let (received, mut buf) = copy.from.received().await;
        if !matches!(received, Ok(1..)) {
            buffers.give(buf);
            return lost();
        }
        heard.now();
        let limits = Limits::of(&self.ordered.cluster);
        for _ in 0..INTERIM_MAX {
            let asked = Asked {
                head: self.parts.method == http::Method::HEAD,
                websocket: false,
                http10: false,
                connect: false,
                fields_max: limits.head_fields,
            };
            let Ok((read, head)) = read_head(copy.from, buffers, buf, asked, limits.head_bytes).await else {
                return lost();
            };
            buf = read;
            buf.consume(head.bytes);
            if head.status >= 200 {
                let is_whole = drop_body(&mut copy, buf, &head).await;
                return Answered { seen: answered(head.status, None), is_reusable: is_whole && head.keep_alive };
            }
        }
        lost()
    }

    async fn to_http2(&self, mut tried: Tried) -> Option<Seen> {
        let upstream = self.hop.reach_shared(&self.ordered.cluster, &mut tried).await.ok()?;
        let asked = tokio::time::timeout(self.patience(), self.ask(&upstream)).await;
        let seen = asked.unwrap_or(Seen::Late);
        upstream.who().report(&self.hop, seen);
        Some(seen)
    }

    async fn ask(&self, upstream: &Shared) -> Seen {
        let request = Request::from_parts(self.parts.clone(), ());
        let Ok((response, mut up)) = upstream.seat.send(request, self.body.is_empty()) else {
            return Seen::NoResponse;
        };
        // Who reads no more of it may have answered: the response tells.
        let _ = body::send_whole(&mut up, Bytes::copy_from_slice(&self.body)).await;
        let Ok(response) = response.await else { return Seen::NoResponse };
        upstream.who().heard().now();
        let (head, mut from) = response.into_parts();
        let mut grpc_status = body::grpc_status(&head.headers);
        let mut left = ANSWER_BYTES_MAX;
        while left > 0
            && let Some(Ok(piece)) = from.data().await
        {
            left = left.saturating_sub(piece.len());
            // Fails only if the stream is over, and then nothing is owed.
            let _ = from.flow_control().release_capacity(piece.len());
        }
        if let (Ok(Some(trailers)), 1..) = (from.trailers().await, left) {
            grpc_status = body::grpc_status(&trailers);
        }
        answered(head.status.as_u16(), grpc_status)
    }
}

fn answered(status: u16, grpc_status: Option<Bytes>) -> Seen {
    Seen::Answered { status, grpc_status: grpc_status.map(|value| grpc::status(&value)) }
}

/// Reads an answer's body, of which `buf` has the first bytes; whether it ended, and nothing stood behind it.
async fn drop_body(copy: &mut forward::Copy<'_>, mut buf: Buf, head: &ResponseHead) -> bool {
    let (mut left, mut read) = (Left::of(head.framing), 0);
    while read < ANSWER_BYTES_MAX {
        let passed = left.pass(buf.bytes(), |_| {});
        read += buf.len();
        if !matches!(passed, Ok(None)) {
            let is_whole = matches!(passed, Ok(Some(end)) if end == buf.len());
            copy.buffers.give(buf);
            return is_whole;
        }
        copy.buffers.give(buf);
        match copy.receive().await {
            Ok(more) if !more.is_empty() => buf = more,
            _ => return false,
        }
    }
    false
}
