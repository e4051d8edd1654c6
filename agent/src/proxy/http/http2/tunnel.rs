//! A tunnel through an endpoint of HTTP/2: CONNECT as it stands, a WebSocket by the extended CONNECT of RFC 8441.

use std::{future::poll_fn, pin::pin, rc::Rc, task::Poll};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, ext::Protocol};
use http::{HeaderValue, Request, Response, request};

use super::{Answer, Attempt, Connection};
use crate::{
    cluster::Seen,
    decode::{
        http1::{BadRequest, RequestHead},
        http2::room::Room,
        translate,
    },
    proxy::{
        Cluster, Hop,
        http::{Limits, Next, Reply, apply},
        http2::body::{self, Replays},
        reach::{Heard, Shared, Tried},
        translate::{
            Outlet, Progress,
            tunnel::{Ended, Ends, relay},
        },
    },
    record::{Bytes as Count, Counter},
    ring::Buf,
    route,
};

/// A stream that was answered.
struct Opened {
    response: Response<RecvStream>,
    up: SendStream<Bytes>,
    /// Until it is over, the place counts as taken.
    _place: Shared,
}

impl Connection<'_> {
    /// Until both sides have ended it, or it was refused.
    pub(super) async fn tunnel_http2(&mut self, buf: Buf, head: RequestHead) -> Next {
        self.hop.slab.count_bytes(Count::DownstreamReceived, buf.len());
        let (mut buf, head_bytes) = apply(&self.hop.buffers, buf, head.bytes, head.start_line_bytes, &head.edits);
        let (parts, key) = match self.opening(&buf.bytes()[..head_bytes], &head) {
            Ok(opening) => opening,
            Err(bad) => return Next::End(self.refuse(Reply::refused(bad)).await),
        };
        buf.consume(head_bytes);
        let limits = self.limits();
        let request = || route::Request::of_parts(&parts, self.stream.is_tls(), self.asker.source);
        let tried = Tried::for_request(self.hop, &self.cluster, self.asker, request);
        let opened = {
            let mut opening = pin!(open(self.hop, &self.cluster, tried, &parts, &limits));
            let client = &mut self.stream.reader;
            poll_fn(|context| match opening.as_mut().poll(context) {
                Poll::Ready(opened) => Poll::Ready(Some(opened)),
                // Through a tunnel the one half may end before the other begins.
                Poll::Pending => client.poll_gone(context, key.is_some()).map(|()| None),
            })
            .await
        };
        let Opened { response, mut up, _place } = match opened {
            Some(Ok(opened)) => opened,
            Some(Err(reply)) => return Next::End(self.refuse(reply).await),
            None => return self.left(),
        };
        if !response.status().is_success() {
            up.send_reset(Reason::CANCEL);
            return self.declined(response, &head, buf).await;
        }
        let (mut parts, mut body) = response.into_parts();
        let room = Room::of(&self.cluster.service.config.http);
        if let Err(bad) = room.response(parts.status.as_u16(), &mut parts.headers) {
            up.send_reset(Reason::PROTOCOL_ERROR);
            return Next::End(self.refuse(Reply::bad_response(bad)).await);
        }
        self.tells(Counter::Upgraded);
        let says = translate::opened_in_http1(&parts, key.as_ref());
        let ends = Ends { from: &mut body, to: &mut up };
        let (out, back) = (Progress::default(), Progress::default());
        let ended = relay(&mut self.stream, (&says, buf), ends, &self.hop.buffers, (&out, &back)).await;
        self.hop.slab.count_bytes(Count::DownstreamSent, out.bytes.get());
        self.hop.slab.count_bytes(Count::DownstreamReceived, back.bytes.get());
        if ended == Ended::Enough {
            self.linger().await;
        }
        Next::End(match ended {
            Ended::Done | Ended::Enough => Counter::RelayDone,
            Ended::ConnectionBroke => Counter::RelayClientReset,
            Ended::StreamBroke => Counter::RelayUpstreamReset,
        })
    }

    /// The request as the endpoint is asked it, and a WebSocket's key.
    fn opening(&self, head: &[u8], asked: &RequestHead) -> Result<(request::Parts, Option<HeaderValue>), BadRequest> {
        if !asked.websocket {
            return translate::connect_to_http2(head).map(|parts| (parts, None));
        }
        let is_secure = self.cluster.service.config.tls.originate.is_some();
        let (mut parts, key) = translate::websocket_to_http2(head, is_secure)?;
        parts.extensions.insert(Protocol::from_static("websocket"));
        Ok((parts, Some(key)))
    }

    /// Passes on a response that opens no tunnel.
    async fn declined(&mut self, response: Response<RecvStream>, head: &RequestHead, buf: Buf) -> Next {
        let attempt = Attempt::default();
        // A WebSocket's request has no body; what follows it is another request.
        attempt.phase.uploaded.set(true);
        let change = &self.response_change;
        let room = Room::of(&self.cluster.service.config.http);
        let answer = Answer { hop: self.hop, head, attempt: &attempt, change, heard: Heard::nobody(), room };
        let progress = &attempt.phase.down;
        let mut outlet =
            Outlet { to: &mut self.stream.writer, buffers: &self.hop.buffers, progress, tap: None, narrow: None };
        let ended = answer.final_response(response, &mut outlet).await;
        self.hop.slab.count_bytes(Count::DownstreamSent, attempt.phase.down.bytes.get());
        self.after_http2(ended, &attempt, head, buf).await
    }
}

/// Asks until an endpoint has answered.
async fn open(
    hop: &Hop,
    cluster: &Rc<Cluster>,
    mut tried: Tried,
    parts: &request::Parts,
    limits: &Limits,
) -> Result<Opened, Reply> {
    let is_extended = parts.extensions.get::<Protocol>().is_some();
    let mut replays = Replays::default();
    loop {
        let place = hop.reach_shared(cluster, &mut tried).await.map_err(Reply::unreached)?;
        if is_extended && !place.seat.takes_extended_connect() {
            return Err(Reply::no_such_tunnel("the endpoint takes no extended CONNECT"));
        }
        let answered = match place.seat.send(Request::from_parts(parts.clone(), ()), false) {
            Ok((response, up)) => {
                let answered = match limits.response {
                    None => response.await,
                    Some(limit) => tokio::time::timeout(limit, response).await.map_err(|_| {
                        place.who().report(hop, Seen::Late);
                        Reply::late_response()
                    })?,
                };
                answered.map(|response| (response, up)).map_err(|error| (body::is_unseen(&error), error))
            }
            Err(error) => Err((true, error)),
        };
        match &answered {
            Ok((response, _)) => {
                place.who().report(hop, Seen::Answered { status: response.status().as_u16(), grpc_status: None });
            }
            Err((true, error)) if !error.is_reset() => {}
            Err(_) => place.who().report(hop, Seen::NoResponse),
        }
        match answered {
            Ok((response, up)) => return Ok(Opened { response, up, _place: place }),
            Err((true, error)) if replays.once_more(&error) => {
                if error.is_reset() {
                    tried.add_shared(&place);
                }
                hop.slab.count(Counter::Replayed);
            }
            Err((_, error)) => return Err(Reply::no_response_because(&error, None)),
        }
    }
}
