//! A request of HTTP/2 to an endpoint of HTTP/2: a stream for a stream, sent again where no endpoint can have seen it.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    pin::{Pin, pin},
    rc::Rc,
    task::{Poll, ready},
};

use h2::{Reason, RecvStream, client::ResponseFuture, ext::Protocol};
use http::{Request, Response, header, request::Parts};

use super::{Ended, Exchange, is_grpc};
use crate::{
    decode::http2::{self, Tunnel, room::Room},
    proxy::{
        http::Reply,
        http2::{
            body::{self, Broken, Replays},
            held::Held,
        },
        reach::{Heard, Shared, Tried},
        translate::Gathered,
    },
    record::Counter,
    route::Request as RouteRequest,
};

impl Exchange<'_> {
    /// Until it is answered, by an endpoint or in its stead. As what it is counted. Of its body, `begun` was taken already.
    pub(super) async fn pass_on(&mut self, parts: &Parts, begun: Option<Gathered>, body: &mut RecvStream) -> Counter {
        let hop = &self.connection.hop;
        let cluster = Rc::clone(&self.cluster);
        let (asker, is_secure) = (self.connection.asker, self.connection.is_secure);
        let request = || RouteRequest::of_parts(parts, is_secure, asker.source);
        let mut tried = Tried::for_request(hop, &cluster, asker, request);
        let (mut replays, mut before) = (Replays::default(), None);
        let held = RefCell::new(Held::tapped(self.tap.clone(), self.narrow()));
        if let Some(begun) = begun {
            held.borrow_mut().begin(&begun.bytes());
        }
        loop {
            let upstream = match (hop.reach_shared(&cluster, &mut tried).await, before) {
                (Ok(upstream), _) => upstream,
                (Err(_), Some(ended)) => return self.ended(ended),
                (Err(why), None) => return self.reply(&Reply::unreached(why)),
            };
            if !self.takes(&upstream) {
                return self.reply(&Reply::no_such_tunnel("the endpoint takes no extended CONNECT"));
            }
            if self.is_too_late() {
                return self.reply(&Reply::deadline_exceeded());
            }
            self.awaited = self.is_timed().then(|| upstream.who().clone());
            let ended = self.attempt(&upstream, parts, body, &held).await;
            self.awaited = None;
            if let Ended::Sent(response) = ended {
                // Boxed: few are waited for by nobody.
                return Box::pin(self.sent((upstream, response))).await;
            }
            if let Some(seen) = ended.seen() {
                upstream.who().report(hop, seen);
            }
            let harmless = match &ended {
                Ended::Unseen(error) => Some(error),
                Ended::Unanswered(error) if self.asked.is_idempotent && error.is_io() => Some(error),
                _ => None,
            };
            if !harmless.is_some_and(|error| held.borrow().is_whole() && replays.once_more(error)) {
                return self.ended(ended);
            }
            // A connection that is going away, or was there for long, says nothing of its endpoint; another is made.
            let is_endpoints = match &ended {
                Ended::Unseen(error) => error.is_reset(),
                _ => !upstream.seat.reused,
            };
            if is_endpoints {
                tried.add_shared(&upstream);
            }
            hop.slab.count(Counter::Replayed);
            before = Some(ended);
        }
    }

    /// Whether an endpoint understands how a tunnel is asked for.
    fn takes(&self, upstream: &Shared) -> bool {
        matches!(self.asked.tunnel, None | Some(Tunnel::Plain)) || upstream.seat.takes_extended_connect()
    }

    async fn attempt(
        &mut self,
        upstream: &Shared,
        parts: &Parts,
        body: &mut RecvStream,
        held: &RefCell<Held>,
    ) -> Ended {
        let is_whole = body.is_end_stream() && !held.borrow().is_begun();
        let (mut response, mut up) = match upstream.seat.send(self.head(parts), is_whole) {
            Ok(sent) => sent,
            Err(error) => return Ended::Unseen(error),
        };
        let mut is_uploading = !is_whole;
        let is_open = Cell::new(false);
        let is_one_way = self.one_way.is_some();
        let ended = {
            let mut upload = pin!(body::pass_on(body, &mut up, held));
            let mut download = pin!(self.download(&mut response, &is_open, held, upstream.who().heard()));
            let mut answered = None;
            poll_fn(|context| {
                if is_uploading && let Poll::Ready(uploaded) = upload.as_mut().poll(context) {
                    is_uploading = false;
                    // Whoever reads no more of a request may have answered it already, or has reset the stream: the response tells.
                    if let Err(Broken::From(error)) = uploaded {
                        return Poll::Ready(Ended::RequestBroken(error));
                    }
                    if is_one_way && uploaded.is_ok() {
                        return Poll::Ready(Ended::Sent(None));
                    }
                }
                if is_one_way && is_uploading {
                    return Poll::Pending;
                }
                if answered.is_none() {
                    answered = Some(ready!(download.as_mut().poll(context)));
                }
                match &answered {
                    // Of a tunnel each half ends by itself.
                    Some(Ended::Answered(..)) if is_open.get() && is_uploading => Poll::Pending,
                    _ => answered.take().map_or(Poll::Pending, Poll::Ready),
                }
            })
            .await
        };
        if is_uploading || !matches!(ended, Ended::Answered(..) | Ended::Sent(_)) {
            up.send_reset(farewell(&ended));
        }
        if let Ended::Sent(_) = ended { Ended::Sent(Some(response)) } else { ended }
    }

    /// The request's head, as it is passed on now.
    fn head(&self, parts: &Parts) -> Request<()> {
        let mut request = Request::new(());
        *request.method_mut() = parts.method.clone();
        *request.uri_mut() = parts.uri.clone();
        *request.version_mut() = http::Version::HTTP_2;
        *request.headers_mut() = parts.headers.clone();
        if let Some(protocol) = parts.extensions.get::<Protocol>() {
            request.extensions_mut().insert(protocol.clone());
        }
        if let Some(time) = self.time {
            time.tell(request.headers_mut());
        }
        request
    }

    async fn download(
        &mut self,
        response: &mut ResponseFuture,
        is_open: &Cell<bool>,
        request: &RefCell<Held>,
        heard: Heard,
    ) -> Ended {
        let response = match self.final_response(response).await {
            Ok(response) => response,
            Err(ended) => return ended,
        };
        heard.now();
        // Who answers has seen it.
        request.borrow_mut().let_go();
        let (mut head, mut body) = response.into_parts();
        let status = head.status.as_u16();
        if let Err(bad) = self.room().response(status, &mut head.headers) {
            return Ended::Bad(bad);
        }
        if self.is_unwanted(status, &head.headers) {
            return Ended::Unwanted(status);
        }
        self.begins();
        self.change.of_map(&mut head.headers);
        self.has_status = is_grpc(&head.headers);
        is_open.set(self.asked.tunnel.is_some() && head.status.is_success());
        if is_open.get() {
            head.headers.remove(header::CONTENT_LENGTH);
        }
        // What an endpoint sends all the same is dropped with its stream.
        let is_whole = body.is_end_stream() || (http2::is_bare(status) && !is_open.get());
        let trailers_only = if is_whole && self.asked.is_grpc { body::grpc_status(&head.headers) } else { None };
        let Ok(down) = self.respond.send_response(Response::from_parts(head, ()), is_whole) else {
            return Ended::ClientGone;
        };
        if is_open.get() {
            self.opened();
        }
        let down = self.down.insert(down);
        if is_whole {
            return Ended::Answered(status, trailers_only);
        }
        match body::pass_on(&mut body, down, &body::fleeting()).await {
            Ok(grpc_status) => Ended::Answered(status, grpc_status),
            Err(Broken::From(error)) => Ended::Broken(error),
            Err(Broken::To) => Ended::ClientGone,
        }
    }

    /// What heads of its responses may take.
    fn room(&self) -> Room {
        Room::of(&self.cluster.service.config.http)
    }

    /// Waits for the response; what comes before it (100 Continue and its like) is passed on.
    async fn final_response(&mut self, response: &mut ResponseFuture) -> Result<Response<RecvStream>, Ended> {
        let room = self.room();
        poll_fn(|context| {
            while let Poll::Ready(Some(Ok(interim))) = response.poll_informational(context) {
                let (mut head, ()) = interim.into_parts();
                if let Err(bad) = room.response(head.status.as_u16(), &mut head.headers) {
                    return Poll::Ready(Err(Ended::Bad(bad)));
                }
                if self.respond.send_informational(Response::from_parts(head, ())).is_err() {
                    return Poll::Ready(Err(Ended::ClientGone));
                }
            }
            if self.respond.poll_reset(context).is_ready() {
                return Poll::Ready(Err(Ended::ClientGone));
            }
            Pin::new(&mut *response).poll(context).map_err(|error| match body::is_unseen(&error) {
                true => Ended::Unseen(error),
                false => Ended::Unanswered(error),
            })
        })
        .await
    }
}

/// The code with which an endpoint is told that its stream is over.
fn farewell(ended: &Ended) -> Reason {
    match ended {
        Ended::Bad(_) => Reason::PROTOCOL_ERROR,
        _ => Reason::CANCEL,
    }
}
