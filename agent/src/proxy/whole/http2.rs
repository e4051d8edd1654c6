//! To an endpoint of HTTP/2.

use std::{future::poll_fn, pin::Pin, pin::pin, rc::Rc, sync::Arc, task::Poll, time::Duration};

use bytes::Bytes;
use h2::{RecvStream, SendStream, client::ResponseFuture};
use http::{Request, Response};

use super::{
    Answer, Body, Hints, Missed, Whole,
    body::{Broken, Piece},
    within,
};
use crate::{
    cluster::{OneWayState, Seen},
    decode::{grpc, http2},
    proxy::{
        Cluster, Hop,
        http::Limits,
        http2::body::{self, Replays, capacity, grpc_status},
        one_way,
        reach::{Shared, Tried},
    },
    record::Counter,
};

pub(super) async fn ask(
    hop: &Rc<Hop>,
    cluster: &Rc<Cluster>,
    mut tried: Tried,
    whole: &Whole,
) -> Result<Answer, Missed> {
    let limits = Limits::of(cluster);
    let mut replays = Replays::default();
    loop {
        let shared = hop.reach_shared(cluster, &mut tried).await.map_err(Missed::Unreached)?;
        let limit = limits.response.into_iter().chain(tried.turn.patience).min();
        let Failed { error, was_sent } = match attempt(&shared, (whole, tried.turn.nth), limit).await {
            Some(Ok(response)) => return answer(hop, shared, response, &limits),
            Some(Err(failed)) => failed,
            None => {
                shared.who().report(hop, Seen::Late);
                return Err(Missed::Late);
            }
        };
        let is_unseen = !was_sent || body::is_unseen(&error);
        let is_endpoints = error.is_reset() || !(is_unseen || shared.seat.reused);
        if is_endpoints || !is_unseen {
            shared.who().report(hop, Seen::NoResponse);
        }
        // A connection that is going away, or was there for long, says nothing of its endpoint; another is made.
        let may_repeat = is_unseen || (whole.asked.is_idempotent && error.is_io());
        if is_endpoints || !may_repeat || !replays.once_more(&error) {
            let reset = body::reset_of(&error).map(u32::from);
            return Err(Missed::Silent { why: Some(error.to_string()), reset, is_unprocessed: is_unseen });
        }
        hop.slab.count(Counter::Replayed);
    }
}

/// Sends it, once; whether all of it was taken for its connection.
pub(super) async fn send(
    hop: &Rc<Hop>,
    cluster: &Rc<Cluster>,
    mut tried: Tried,
    (whole, state): (&Whole, &Arc<OneWayState>),
) -> bool {
    let Ok(shared) = hop.reach_shared(cluster, &mut tried).await else { return false };
    let is_bare = whole.body.is_empty() && whole.trailers.is_empty();
    let Ok((response, mut up)) = shared.seat.send(head(whole, 0), is_bare) else { return false };
    let is_sent = is_bare || matches!(within(Limits::of(cluster).stall, upload(&mut up, whole)).await, Some(Ok(())));
    if is_sent {
        one_way::drop_response(shared, read_away(response), state);
    }
    is_sent
}

/// Reads a response that nobody wants.
pub(in crate::proxy) async fn read_away(response: ResponseFuture) {
    let Ok(response) = response.await else { return };
    let mut body = response.into_body();
    while let Some(Ok(piece)) = body.data().await {
        // Fails only if the stream is over, and then nothing is owed.
        let _ = body.flow_control().release_capacity(piece.len());
    }
}

/// Why there is no response.
struct Failed {
    error: h2::Error,
    was_sent: bool,
}

/// Sends it, and waits for the head of the response; `None`: that did not come in time.
async fn attempt(
    shared: &Shared,
    (whole, nth): (&Whole, u32),
    limit: Option<Duration>,
) -> Option<Result<Response<RecvStream>, Failed>> {
    let is_bare = whole.body.is_empty() && whole.trailers.is_empty();
    let (mut response, mut up) = match shared.seat.send(head(whole, nth), is_bare) {
        Ok(sent) => sent,
        Err(error) => return Some(Err(Failed { error, was_sent: false })),
    };
    let both = async {
        let mut upload = pin!(upload(&mut up, whole));
        let mut is_uploading = !is_bare;
        poll_fn(|context| {
            if is_uploading && upload.as_mut().poll(context).is_ready() {
                // Whoever reads no more of a request may have answered it already: the response tells.
                is_uploading = false;
            }
            poll_response(&mut response, whole.hints.as_ref(), context)
        })
        .await
    };
    let came = within(limit, both).await?;
    Some(came.inspect(|_| shared.who().heard().now()).map_err(|error| Failed { error, was_sent: true }))
}

/// The final response; what comes before it is for `hints`.
fn poll_response(
    response: &mut ResponseFuture,
    hints: Option<&Hints>,
    context: &mut std::task::Context<'_>,
) -> Poll<Result<Response<RecvStream>, h2::Error>> {
    while let Poll::Ready(Some(Ok(interim))) = response.poll_informational(context) {
        if let Some(hints) = hints {
            hints.add(interim.into_parts().0);
        }
    }
    Pin::new(response).poll(context)
}

fn head(whole: &Whole, nth: u32) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = whole.parts.method.clone();
    *request.uri_mut() = whole.parts.uri.clone();
    *request.version_mut() = http::Version::HTTP_2;
    *request.headers_mut() = whole.headers(nth);
    request
}

async fn upload(up: &mut SendStream<Bytes>, whole: &Whole) -> Result<(), body::Broken> {
    let has_trailers = !whole.trailers.is_empty();
    let mut left = whole.body.clone();
    up.reserve_capacity(left.len());
    while !left.is_empty() {
        let room = capacity(up).await?;
        let part = left.split_to(room.min(left.len()));
        up.send_data(part, left.is_empty() && !has_trailers).map_err(|_| body::Broken::To)?;
    }
    if has_trailers {
        up.send_trailers(whole.trailers.clone()).map_err(|_| body::Broken::To)?;
    }
    Ok(())
}

fn answer(hop: &Rc<Hop>, shared: Shared, response: Response<RecvStream>, limits: &Limits) -> Result<Answer, Missed> {
    let (mut parts, stream) = response.into_parts();
    let status = parts.status.as_u16();
    if let Err(bad) = limits.room.response(status, &mut parts.headers) {
        shared.who().report(hop, Seen::NoResponse);
        return Err(Missed::Bad(bad));
    }
    let grpc_status = grpc_status(&parts.headers);
    let body = FromHttp2 {
        hop: Rc::clone(hop),
        shared,
        stream,
        owed: 0,
        is_told: false,
        status,
        grpc_status,
        stall: limits.stall,
    };
    Ok(Answer { parts, body: Body::Http2(Box::new(body)) })
}

/// The body of an answer, as it comes.
pub struct FromHttp2 {
    hop: Rc<Hop>,
    shared: Shared,
    stream: RecvStream,
    /// Bytes that were taken, and in whose place the endpoint may not yet send more.
    owed: usize,
    /// Whether the endpoint's judges know how it went.
    is_told: bool,
    status: u16,
    grpc_status: Option<Bytes>,
    stall: Option<Duration>,
}

impl FromHttp2 {
    /// Whether nothing comes.
    pub fn is_empty(&self) -> bool {
        self.stream.is_end_stream()
    }

    /// What comes next; what was given before may be sent in its place. May be given up while it is waited for, and asked for again.
    pub async fn next(&mut self) -> Result<Piece, Broken> {
        // Fails only if the stream is over, and then nothing is owed.
        let _ = self.stream.flow_control().release_capacity(std::mem::take(&mut self.owed));
        loop {
            let piece = match within(self.stall, self.stream.data()).await {
                None => return Err(self.broken(Broken::Late, Seen::Late)),
                Some(None) => break,
                Some(Some(Err(_))) => return Err(self.broken(Broken::Off, Seen::NoResponse)),
                Some(Some(Ok(piece))) => piece,
            };
            if !piece.is_empty() {
                self.owed = piece.len();
                return Ok(Piece::Data(piece));
            }
        }
        let mut trailers = match within(self.stall, self.stream.trailers()).await {
            None => return Err(self.broken(Broken::Late, Seen::Late)),
            Some(Err(_)) => return Err(self.broken(Broken::Off, Seen::NoResponse)),
            Some(Ok(trailers)) => trailers.unwrap_or_default(),
        };
        if http2::trailers(&mut trailers).is_err() {
            return Err(self.broken(Broken::Off, Seen::NoResponse));
        }
        let said = grpc_status(&trailers).or_else(|| self.grpc_status.take());
        let grpc_status = said.map(|value| grpc::status(&value));
        self.tell(Seen::Answered { status: self.status, grpc_status });
        Ok(Piece::End(trailers))
    }

    fn broken(&mut self, broken: Broken, seen: Seen) -> Broken {
        self.tell(seen);
        broken
    }

    fn tell(&mut self, seen: Seen) {
        if !std::mem::replace(&mut self.is_told, true) {
            self.shared.who().report(&self.hop, seen);
        }
    }
}
