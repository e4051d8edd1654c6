//! A tunnel through an endpoint of HTTP/1: CONNECT as it stands, a WebSocket as an Upgrade.

use std::{future::poll_fn, rc::Rc};

use h2::RecvStream;
use http::request::Parts;

use super::{Exchange, http1::Ended};
use crate::{
    cluster::Seen,
    decode::{
        http1::{Asked, BadResponse, ResponseHead},
        http2::Tunnel,
        translate, websocket,
    },
    proxy::{
        http::{INTERIM_MAX, Limits, NoResponse, Reply, read_head},
        reach::{Tried, Upstream},
        translate::{
            Outlet, Phase,
            tunnel::{Ends, relay},
        },
    },
    record::{Bytes, Counter},
    ring::{Buf, MEDIUM, Stream},
    route::Request,
};

/// How a tunnel is asked for.
struct Opening {
    head: Vec<u8>,
    /// What a WebSocket's answer has to answer.
    key: Option<String>,
}

impl Exchange<'_> {
    /// Until both sides have ended it, or it was refused. As what it is counted.
    pub(super) async fn tunnel_to_http1(&mut self, parts: Parts, tunnel: Tunnel, body: &mut RecvStream) -> Counter {
        let hop = &self.connection.hop;
        let cluster = Rc::clone(&self.cluster);
        let limits = Limits::of(&cluster);
        let opening = match self.opening(&parts, tunnel) {
            Ok(opening) => opening,
            Err(reply) => return self.reply(&reply),
        };
        let (asker, is_secure) = (self.connection.asker, self.connection.is_secure);
        let request = || Request::of_parts(&parts, is_secure, asker.source);
        let mut tried = Tried::for_request(hop, &cluster, asker, request);
        // A new connection: one that was kept may have ended, and what was sent on it might have been seen.
        let mut upstream = match hop.reach(&cluster, &mut tried, true).await {
            Ok(upstream) => upstream,
            Err(why) => return self.reply(&Reply::unreached(why)),
        };
        let phase = Phase::default();
        let answered = self.answer(&mut upstream, &opening, &limits, &phase);
        let answered = match limits.response {
            None => answered.await,
            Some(limit) => match tokio::time::timeout(limit, answered).await {
                Ok(answered) => answered,
                Err(_) => {
                    upstream.who().report(hop, Seen::Late);
                    return self.reply(&Reply::late_response());
                }
            },
        };
        match &answered {
            Ok((_, head)) => upstream.who().report(hop, Seen::Answered { status: head.status, grpc_status: None }),
            Err(ended) => ended.seen().into_iter().for_each(|seen| upstream.who().report(hop, seen)),
        }
        let ended = match answered {
            Ok((buf, head)) if head.switches => {
                self.through(&mut upstream.stream, buf, head, &opening, body, &phase).await
            }
            Ok((buf, head)) => match self.final_from_http1(&mut upstream.stream.reader, buf, head, &phase).await {
                Ok(ended) | Err(ended) => Err(ended),
            },
            Err(ended) => Err(ended),
        };
        hop.slab.count_bytes(Bytes::UpstreamSent, phase.up.bytes.get());
        hop.slab.count_bytes(Bytes::UpstreamReceived, phase.down.bytes.get());
        ended.unwrap_or_else(|ended| self.ended_with_http1(ended))
    }

    fn opening(&self, parts: &Parts, tunnel: Tunnel) -> Result<Opening, Reply> {
        let hop = &self.connection.hop;
        match tunnel {
            Tunnel::Plain => translate::connect_to_http1(parts).map(|head| Opening { head, key: None }),
            Tunnel::WebSocket => {
                let random = u128::from(hop.chance()) << 64 | u128::from(hop.chance());
                let key = websocket::key(random.to_be_bytes());
                translate::websocket_to_http1(parts, &key).map(|head| Opening { head, key: Some(key) })
            }
            Tunnel::Other => return Err(Reply::no_such_tunnel("HTTP/1 knows no such protocol")),
        }
        .map_err(Reply::refused)
    }

    /// Asks, and waits for the head of the final response; those before it are passed on.
    async fn answer(
        &mut self,
        upstream: &mut Upstream,
        opening: &Opening,
        limits: &Limits,
        phase: &Phase,
    ) -> Result<(Buf, ResponseHead), Ended> {
        let buffers = &self.connection.hop.buffers;
        let Stream { reader, writer, .. } = &mut upstream.stream;
        let mut outlet = Outlet { to: writer, buffers, progress: &phase.up, tap: None, narrow: None };
        outlet.submit(Buf::of(&opening.head)).await.map_err(|_| Ended::Silent(false))?;
        reader.arm(buffers.take(MEDIUM));
        let first = poll_fn(|context| {
            if let std::task::Poll::Ready(received) = reader.poll_received(context) {
                return std::task::Poll::Ready(Some(received));
            }
            self.respond.poll_reset(context).map(|_| None)
        });
        let (received, mut buf) = first.await.ok_or(Ended::ClientGone)?;
        if !matches!(received, Ok(1..)) {
            buffers.give(buf);
            return Err(Ended::Silent(received.is_ok()));
        }
        let asked = Asked {
            head: false,
            websocket: opening.key.is_some(),
            http10: false,
            connect: opening.key.is_none(),
            fields_max: limits.head_fields,
        };
        for _ in 0..INTERIM_MAX {
            let head;
            (buf, head) = read_head(reader, buffers, buf, asked, limits.head_bytes).await.map_err(|why| match why {
                NoResponse::Bad(bad) => Ended::Bad(bad),
                _ => Ended::Broken,
            })?;
            match head.status {
                _ if head.switches => return Ok((buf, head)),
                // To who asked by CONNECT it would say that the tunnel is open.
                200..300 => return Err(Ended::Bad(BadResponse("it did not switch to a WebSocket"))),
                300.. => return Ok((buf, head)),
                _ => {
                    let interim;
                    (buf, interim) = self.translated(buf, &head)?;
                    self.respond.send_informational(interim).map_err(|_| Ended::ClientGone)?;
                }
            }
        }
        Err(Ended::Bad(BadResponse("too many interim responses")))
    }

    /// Opens the tunnel, and relays until it is over.
    async fn through(
        &mut self,
        upstream: &mut Stream,
        buf: Buf,
        mut head: ResponseHead,
        opening: &Opening,
        body: &mut RecvStream,
        phase: &Phase,
    ) -> Result<Counter, Ended> {
        if head.status == 101 {
            head.status = 200;
        }
        let (buf, mut response) = self.translated(buf, &head)?;
        translate::opened_in_http2(response.headers_mut(), opening.key.as_deref()).map_err(Ended::Bad)?;
        let mut down = self.respond.send_response(response, false).map_err(|_| Ended::ClientGone)?;
        self.opened();
        let ends = Ends { from: body, to: &mut down };
        relay(upstream, (&[], buf), ends, &self.connection.hop.buffers, (&phase.up, &phase.down)).await;
        Ok(Counter::Upgraded)
    }
}
