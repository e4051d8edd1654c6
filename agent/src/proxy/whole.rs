//! A request that is all there, to one endpoint, and its answer back: whoever sends one request to several endpoints, or again, does it here.
//!
//! It is kept in one form, HTTP/2's, whatever its client speaks and its endpoints do. The head of the answer is waited for; the body streams.

mod body;
mod hints;
mod http1;
mod http2;

use std::{rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header, request, response};
use tokio::time::timeout;

pub use self::{
    body::{Body, Broken, Next, Piece, Through},
    hints::Hints,
};
pub(super) use self::{
    http1::{answer, drop_answer},
    http2::read_away,
};
use super::{
    Cluster, Hop,
    http::Reply,
    reach::{Tried, Unreached},
    timing::Time,
};
use crate::{
    cluster::{OneWayState, Seen},
    config::HttpVersion,
    decode::{
        grpc,
        http1::{BadRequest, BadResponse, Framing},
        http2::Asked,
        translate::{request_to_http1, trailers_to_http1},
    },
};

/// Which attempt at a request this is (Envoy's).
const ATTEMPT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
/// How many attempts there were before (gRFC A6).
const PREVIOUS_ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");
const GRPC_STATUS: &str = "grpc-status";
/// How much of an answer is read that nobody wants, so that its connection can be used again.
const UNWANTED_BYTES_MAX: usize = 64 * 1024;

/// A request.
#[derive(Debug)]
pub struct Whole {
    /// Its head.
    pub parts: request::Parts,
    /// Its body.
    pub body: Bytes,
    /// What stands behind it.
    pub trailers: HeaderMap,
    /// What is to be known of it.
    pub asked: Asked,
    /// How long it may take.
    pub time: Option<Time>,
    /// Who is told what an endpoint says before its answer; `None`: nobody, because that answer may not become the client's.
    pub hints: Option<Hints>,
    /// All of it, for endpoints of HTTP/1.
    message: Bytes,
    /// What endpoints are spoken to in.
    upstream: HttpVersion,
}

impl Whole {
    /// Of a client that speaks `client`, for a cluster. Its body's length need not be told any more than that of a stream.
    ///
    /// # Errors
    ///
    /// When it has no form in what is spoken to the endpoints.
    pub fn new(
        (mut parts, asked): (request::Parts, Asked),
        (body, trailers): (Bytes, HeaderMap),
        (cluster, client): (&Cluster, HttpVersion),
        time: Option<Time>,
    ) -> Result<Self, BadRequest> {
        // Nobody waits for leave to send what is there already.
        parts.headers.remove(header::EXPECT);
        let upstream = cluster.spoken_upstream(client);
        let message = match upstream {
            HttpVersion::Http1 => in_http1(&parts, &body, &trailers)?,
            HttpVersion::Http2 => Bytes::new(),
        };
        Ok(Self { parts, body, trailers, asked, time, hints: None, message, upstream })
    }

    /// The same for another cluster.
    ///
    /// # Errors
    ///
    /// As [`Whole::new`].
    pub fn to(&self, cluster: &Cluster, client: HttpVersion) -> Result<Self, BadRequest> {
        let request = ((self.parts.clone(), self.asked), (self.body.clone(), self.trailers.clone()));
        Self::new(request.0, request.1, (cluster, client), self.time)
    }

    /// Its fields as of now, for who is asked as the `nth`.
    fn headers(&self, nth: u32) -> HeaderMap {
        let mut headers = self.parts.headers.clone();
        if nth > 0 {
            headers.insert(ATTEMPT, HeaderValue::from(nth));
        }
        if nth > 1 && self.asked.is_grpc {
            headers.insert(PREVIOUS_ATTEMPTS, HeaderValue::from(nth - 1));
        }
        // Who is asked when the caller waits no more has as long as the caller gave.
        if let Some(time) = self.time.filter(|time| !time.is_over()) {
            time.tell(&mut headers);
        }
        headers
    }

    /// All of it as of now, for an endpoint of HTTP/1.
    fn message(&self, nth: u32) -> Bytes {
        if self.time.is_none() && nth == 0 {
            return self.message.clone();
        }
        let mut parts = self.parts.clone();
        parts.headers = self.headers(nth);
        // It had a form when it came.
        in_http1(&parts, &self.body, &self.trailers).unwrap_or_else(|_| self.message.clone())
    }
}

fn in_http1(parts: &request::Parts, body: &[u8], trailers: &HeaderMap) -> Result<Bytes, BadRequest> {
    let framing = match (body.is_empty(), trailers.is_empty()) {
        (_, false) => Framing::Chunked,
        (true, _) => Framing::None,
        (false, _) => Framing::Length(body.len() as u64),
    };
    let head = request_to_http1(parts, framing)?;
    if framing != Framing::Chunked {
        return Ok([&head, body].concat().into());
    }
    let size = format!("{:x}\r\n", body.len());
    let chunk: &[&[u8]] = if body.is_empty() { &[] } else { &[size.as_bytes(), body, b"\r\n"] };
    Ok([&[&head[..]], chunk, &[b"0\r\n", &trailers_to_http1(trailers), b"\r\n"]].concat().concat().into())
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Its head.
    pub parts: response::Parts,
    /// Its body, to come.
    pub body: Body,
}

impl Answer {
    /// What its head says of the endpoint.
    pub fn seen(&self) -> Seen {
        let in_trailers = || self.body.ready_trailers()?.get(GRPC_STATUS);
        let value = self.parts.headers.get(GRPC_STATUS).or_else(in_trailers);
        let grpc_status = value.map(|value| grpc::status(value.as_bytes()));
        Seen::Answered { status: self.parts.status.as_u16(), grpc_status }
    }

    /// Of gRPC: what stands behind an empty body, if it is there already, is known.
    pub async fn settled(self) -> Self {
        if self.parts.headers.contains_key(GRPC_STATUS) {
            return self;
        }
        Self { body: self.body.settled().await, ..self }
    }

    /// Nobody wants it: a short one is read to its end, the others are given up.
    pub async fn discard(self) {
        self.discard_to(UNWANTED_BYTES_MAX).await;
    }

    /// The same, where it is short if it has no more than so many bytes.
    pub async fn discard_to(mut self, bytes_max: usize) {
        let mut read = 0;
        while read < bytes_max
            && let Ok(Piece::Data(piece)) = self.body.next().await
        {
            read += piece.len();
        }
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Missed {
    /// No connection came about.
    Unreached(Unreached),
    /// None came; why, with the code if the stream was reset, and whether it is certain that nothing of the request was processed.
    Silent { why: Option<String>, reset: Option<u32>, is_unprocessed: bool },
    /// What came is none.
    Bad(BadResponse),
    /// It did not begin in time.
    Late,
}

impl Missed {
    /// What it says of the endpoint.
    pub fn seen(&self) -> Seen {
        match self {
            Self::Unreached(Unreached::Late(_) | Unreached::Mute(_)) => Seen::ConnectLate,
            Self::Unreached(_) => Seen::NotConnected,
            Self::Silent { .. } | Self::Bad(_) => Seen::NoResponse,
            Self::Late => Seen::Late,
        }
    }

    /// Whether it is certain that nobody has processed the request.
    pub fn is_unprocessed(&self) -> bool {
        matches!(self, Self::Unreached(_) | Self::Silent { is_unprocessed: true, .. })
    }

    /// What the caller is told.
    pub fn reply(self) -> Reply {
        match self {
            Self::Unreached(why) => Reply::unreached(why),
            Self::Silent { why: Some(why), reset, .. } => Reply::no_response_because(why, reset),
            Self::Silent { why: None, .. } => Reply::no_response(),
            Self::Bad(bad) => Reply::bad_response(bad),
            Self::Late => Reply::late_response(),
        }
    }
}

/// What came of asking.
pub type Came = Result<Answer, Missed>;

/// Asks one endpoint, the one that is left to try. Dropped before it is done, the request is taken back.
pub async fn ask(hop: Rc<Hop>, cluster: Rc<Cluster>, tried: Tried, whole: Rc<Whole>) -> Came {
    match whole.upstream {
        HttpVersion::Http1 => http1::ask(&hop, &cluster, tried, &whole).await,
        HttpVersion::Http2 => http2::ask(&hop, &cluster, tried, &whole).await,
    }
}

/// Sends it, once; whether all of it was written. Its answer is read and dropped.
pub(super) async fn send(
    hop: &Rc<Hop>,
    cluster: &Rc<Cluster>,
    tried: Tried,
    (whole, state): (&Whole, &Arc<OneWayState>),
) -> bool {
    match whole.upstream {
        HttpVersion::Http1 => http1::send(hop, cluster, tried, (whole, state)).await,
        HttpVersion::Http2 => http2::send(hop, cluster, tried, (whole, state)).await,
    }
}

/// What a future gives, if that is in time.
pub async fn within<T>(limit: Option<Duration>, future: impl Future<Output = T>) -> Option<T> {
    match limit {
        Some(limit) => timeout(limit, future).await.ok(),
        None => Some(future.await),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_framed_anew_for_http1() {
        let parts = || {
            let request = http::Request::post("http://a/x").header("content-length", "4").header("x-a", "b");
            request.body(()).expect("a request").into_parts().0
        };
        let text = |body: &[u8], trailers: &HeaderMap| {
            String::from_utf8(in_http1(&parts(), body, trailers).expect("a form in HTTP/1").to_vec()).expect("a text")
        };
        let head = "POST /x HTTP/1.1\r\nhost: a\r\nx-a: b\r\n";
        let none = HeaderMap::new();
        assert_eq!(text(b"", &none), format!("{head}content-length: 0\r\n\r\n"));
        assert_eq!(text(b"abcd", &none), format!("{head}content-length: 4\r\n\r\nabcd"));
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("7"));
        let framed = format!("{head}transfer-encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\nx-sum: 7\r\n\r\n");
        assert_eq!(text(b"abcd", &trailers), framed);
    }
}
