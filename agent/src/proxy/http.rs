//! HTTP/1: requests are read one after the other, checked, passed on to an endpoint each, and answered in order.
//!
//! The usual request and the usual response fit into the buffer they were received in: both are edited in place and sent from there,
//! so that a request costs four system calls: receive and send on either side. Whatever is longer is streamed.

mod admitted;
mod after;
mod apply;
mod asleep;
mod attend;
mod buffered;
mod filtered;
mod guarded;
mod http2;
mod limits;
mod linger;
mod mishap;
mod outgoing;
mod quick;
mod reply;
mod request;
mod respond;
mod routed;
mod strategy;
mod streaming;
mod timed;

use std::{cell::Cell, io, mem, net::SocketAddr, os::fd::AsFd as _, pin::pin, rc::Rc, sync::Arc, time::Instant};

use admitted::Denied;
use apply::apply;
use asleep::Asleep;
use attend::{OwnTime, take_back};
use filtered::Way;
use linger::LINGER_PAUSE;
use outgoing::{Outgoing, Rest};
use quick::Quick;
use respond::{Answer, Answered, Unanswered};

pub(super) use apply::{apply as apply_edits, change as change_fields};
pub(super) use attend::set_or_clear;
pub(super) use limits::Limits;
pub(super) use reply::Reply;
pub(super) use respond::{INTERIM_MAX, Unanswered as NoResponse, read_head};

use super::{
    Cluster, Hop, Serving,
    admit::{Gate, Rated},
    asker::Asker,
    circuit::Circuit,
    filtered::{Filtered, told},
    guard::{Guard, Leave},
    mirror::Tap,
    one_way, opaque, own_time,
    reach::{Tried, Unreached, Upstream},
    timing::{Alarm, Clock},
};
use crate::{
    cluster::{Dialler, OneWayState},
    config::{HttpVersion, Strategy},
    decode::http1::{Asked, Framing, Method, RequestHead},
    kernel::OriginalDst,
    record::{Bytes, Counter},
    ring::{Buf, Due, Stream},
    route::{Fields, Request},
};

/// One client's connection.
struct Connection<'h> {
    hop: &'h Rc<Hop>,
    stream: Stream,
    cluster: Rc<Cluster>,
    /// What the client dialled.
    dialled: SocketAddr,
    /// Who dialled.
    asker: Asker,
    /// The same by names, if a route asked for them when the connection was made.
    dialler: Option<Box<Dialler>>,
    /// Bytes of the next request that have come already.
    pending: Option<Buf>,
    /// Whether anything has come on it.
    was_asked: bool,
    /// What is changed of the response that is waited for.
    response_change: Fields,
    /// What sees the request's body, if it is copied.
    tap: Option<Rc<Tap>>,
    /// What its route limits.
    gate: Option<Rc<Gate>>,
    /// What its route says of failures.
    strategy: Option<Arc<Strategy>>,
    /// Who counts the request, if nobody waits for its answer.
    one_way: Option<Arc<OneWayState>>,
    /// Its breaker, until it was asked.
    circuit: Option<Rc<Circuit>>,
    /// Rings when the time of the request that is on its way is over.
    clock: Clock,
    /// Rings when that of its service's isolation is.
    patience: Alarm,
    /// What filters have said of it.
    filtered: Option<Filtered>,
    /// What is told of the limits that let it pass.
    rated: Option<Box<Rated>>,
    /// Who guards the request, and what it has of that.
    guard: Option<Rc<Guard>>,
    leave: Option<Leave>,
}

/// How an exchange leaves the connection.
enum Next {
    /// Ready for another request.
    Request,
    /// Over.
    End(Counter),
}

/// Serves one connection to its end.
///
/// `pending` are bytes of the first request that have come already.
pub fn serve(
    hop: &Rc<Hop>,
    stream: Stream,
    cluster: Rc<Cluster>,
    original: OriginalDst,
    pending: Option<Buf>,
) -> Serving<'_> {
    let (dialled, source) = (original.address, original.source);
    let asker = cluster.asker(hop, stream.socket.as_fd(), source);
    let was_asked = pending.is_some();
    let dialler = cluster.dialler(stream.socket.as_fd(), source, hop.watch.now());
    // Boxed by itself: within a future it would stand twice, where it came in and where it is kept.
    let mut connection = Asleep { hop, stream, cluster, dialled, asker, dialler, was_asked }.wakes(pending);
    Box::pin(async move {
        loop {
            // Boxed: what an exchange needs is gone while the connection sleeps.
            let mut asleep = match Box::pin(connection.awake()).await {
                Ok(asleep) => asleep,
                Err(end) => return end,
            };
            asleep.stream.reader.news().await;
            connection = asleep.wakes(None);
        }
    })
}

impl<'h> Connection<'h> {
    /// Answers requests until none comes for a while, or the connection has ended, which it counts as.
    async fn awake(mut self: Box<Self>) -> Result<Box<Asleep<'h>>, Counter> {
        let hop = self.hop;
        let mut turned = pin!(hop.watch.turned());
        loop {
            let (buf, head) = match self.request(&hop.watch, turned.as_mut()).await {
                Ok(request) => request,
                Err(request::End::Silent) => return Ok(Box::new(self.sleeps())),
                Err(request::End::Quiet(counter)) => return Err(counter),
                Err(request::End::Refuse(reply)) => return Err(self.refuse(reply).await),
            };
            if let Next::End(counter) = self.exchange(buf, head).await {
                return Err(counter);
            }
        }
    }
}

impl Connection<'_> {
    /// Passes one request on and its response back.
    async fn exchange(&mut self, mut buf: Buf, mut head: RequestHead) -> Next {
        let began = Instant::now();
        self.asker.is_untold = !self.stream.reader.is_watched();
        let own = self.hop.samples_own_time().then(|| OwnTime::since(began));
        self.hop.refresh(&mut self.cluster);
        if head.lacks_host {
            head.edits.insert.extend_from_slice(format!("Host: {}\r\n", self.dialled).as_bytes());
        }
        let (mut home, mut timing, mut reply, chain) = (None, None, None, self.cluster.chain.clone());
        if self.cluster.routes.is_some() {
            let passed = self.routed(buf, head);
            (buf, head, home, timing, reply) = (passed.buf, passed.head, passed.home, passed.timing, passed.reply);
        }
        let is_timed = timing.is_some() || self.cluster.service.config.timing.is_some();
        if is_timed && reply.is_none() {
            reply = self.set_clock(timing, (&buf, &head), began).err();
        }
        let mut stored = None;
        if let Some(chain) = &chain {
            let way;
            (buf, head, way) = self.filtered(chain, buf, head).await;
            match way {
                Way::On => {}
                Way::Answered(said) => reply = Some(said),
                Way::Stored(answer) => stored = Some(answer),
            }
        }
        let next = match (reply, stored) {
            // Boxed: most services have none.
            (None, Some(answer)) => Box::pin(self.give_stored(*answer, buf, &head)).await,
            (Some(reply), _) => self.answer_here(reply, buf, &head).await,
            (None, None) => {
                let (taken, is_in) = self.let_in(&buf, &head, began).await;
                let next = match is_in {
                    Ok(()) => {
                        if self.rated.is_some() {
                            self.tell_limits();
                        }
                        if is_timed {
                            self.tell_time(&buf, &mut head);
                        }
                        match self.filtered.as_mut().and_then(|filtered| filtered.mishap.take()) {
                            None => self.forward(buf, head, own).await,
                            // Boxed: it is ordered seldom.
                            Some(mishap) => Box::pin(self.suffers(*mishap, buf, head, own)).await,
                        }
                    }
                    Err(Denied::Answered(reply)) => self.answer_here(reply, buf, &head).await,
                    Err(Denied::Gone) => self.left(),
                };
                self.goes_out(taken);
                next
            }
        };
        if is_timed {
            self.clock.stop();
        }
        if home.is_some() || chain.is_some() {
            self.cluster = home.unwrap_or_else(|| Rc::clone(&self.cluster));
            self.response_change = Fields::default();
            (self.tap, self.filtered, self.strategy) = (None, None, None);
            self.gate = None;
            if let Some(state) = self.one_way.take() {
                one_way::was_lost(&state);
            }
            self.circuit = None;
        }
        // What stays of a request that was given a cookie, or met a limit that tells of it.
        (self.response_change, self.rated) = (Fields::default(), None);
        self.hop.slab.request_duration.observe(began.elapsed());
        next
    }

    async fn forward(&mut self, mut buf: Buf, mut head: RequestHead, own: Option<OwnTime>) -> Next {
        let is_tunnel = head.websocket || head.method == Method::Connect;
        if self.cluster.service.config.policy.tuning.gives_cookies() {
            self.give_cookies(&buf, &head);
        }
        let mut quick = None;
        if self.keeps() && !is_tunnel {
            if self.is_quick(&buf, &head) {
                quick = Some(self.quick(&buf, &mut head));
            } else {
                // Boxed: most services have none.
                match Box::pin(self.by_strategy(buf, &head)).await {
                    Ok(next) => return next,
                    Err(kept) => buf = kept,
                }
            }
        }
        if let Some(filtered) = &mut self.filtered {
            filtered.let_content_go(&mut self.response_change);
        }
        if self.cluster.spoken_upstream(HttpVersion::Http1) == HttpVersion::Http2 {
            let spent = own.filter(|_| !is_tunnel).map(|_| Cell::default());
            let hop = self.hop;
            let next = own_time::of(Box::pin(self.exchange_http2(buf, head)), spent.as_ref()).await;
            own_time::observe(&hop.slab, spent);
            return next;
        }
        let request = || Request::of_http1(&buf.bytes()[..head.bytes], self.stream.is_tls(), self.asker.source);
        let mut tried = Tried::for_request(self.hop, &self.cluster, self.asker, request);
        let received = buf.len();
        let outgoing = match self.outgoing(buf, &head) {
            Ok(outgoing) => outgoing,
            Err(bad) => return Next::End(self.refuse(Reply::malformed(bad)).await),
        };
        // Whose endpoint is asked first is known to who asks another then.
        let mut all = None;
        if quick.is_some() {
            let Some(endpoint) = self.hop.pick(&self.cluster, &mut tried) else {
                return self.reply(Reply::unreached(Unreached::NoEndpoint), &head, outgoing.buf).await;
            };
            let first = tried.at(endpoint);
            all = Some(mem::replace(&mut tried, first));
        }
        self.hop.slab.count_bytes(Bytes::DownstreamReceived, received);
        self.hop.slab.count_bytes(Bytes::UpstreamSent, outgoing.send.len());
        if matches!(outgoing.rest, Rest::None) && outgoing.tail.is_empty() && !self.is_narrow(&head) {
            let rules = quick.as_ref().and_then(Quick::rules);
            let whole = self.exchange_whole(outgoing.buf, outgoing.send, &head, (tried, rules), own).await;
            match (whole, all) {
                (Ok(next), _) => next,
                // Boxed: most do not fail.
                (Err(fallen), Some(tried)) => Box::pin(self.go_on(*fallen, (tried, rules), &head)).await,
                // Who can do nothing about a failure passes it on.
                (Err(_), None) => Next::End(Counter::UpstreamAborted),
            }
        } else {
            // Boxed: the state of a streamed exchange is large, and most connections never need it.
            let spent = own.map(|_| Cell::default());
            let hop = self.hop;
            let next = own_time::of(Box::pin(self.exchange_streaming(outgoing, &head, tried)), spent.as_ref()).await;
            own_time::observe(&hop.slab, spent);
            next
        }
    }

    /// The client left before it had its answer: whatever the endpoint would say, nobody hears it.
    fn left(&self) -> Next {
        self.tells(Counter::RequestAborted);
        Next::End(Counter::ClientAborted)
    }

    /// The rest of its request cannot be waited for: it is broken off, and the client not to blame.
    fn unheard(&self) -> Next {
        self.tells(Counter::RequestAborted);
        self.stream.socket.reset();
        Next::End(Counter::NoMemory)
    }

    fn put_back(&mut self, buf: Buf) {
        if buf.is_empty() {
            self.hop.buffers.give(buf);
        } else {
            self.pending = Some(buf);
        }
    }

    /// Breaks off within a response: what was sent arrives, and then a reset, which no client can take for the end.
    async fn abort(&mut self) {
        let _ = self.flush().await;
        self.stream.socket.reset();
    }

    /// Answers a request in the endpoint's stead; the connection goes on if the client wants it to.
    async fn reply(&mut self, reply: Reply, head: &RequestHead, buf: Buf) -> Next {
        if let Some(filtered) = &mut self.filtered
            && let Some(answer) = filtered.stand_in(reply.status(), &mut self.response_change)
        {
            // Boxed: most services have none.
            return Box::pin(self.give(answer, head, buf, None)).await;
        }
        let reply = told(self.dressed(reply), self.rated.as_deref(), self.filtered.as_ref());
        let keep_alive = head.keep_alive && !self.hop.is_draining();
        let says = (!keep_alive || head.is_http10).then_some(keep_alive);
        let bytes = Buf::of(&reply.bytes(says, head.method == Method::Head));
        if self.flush().await.is_err() {
            return Next::End(Counter::ClientAborted);
        }
        let range = bytes.range();
        self.hop.slab.count_bytes(Bytes::DownstreamSent, range.len());
        self.stream.writer.submit(bytes, range);
        if !keep_alive {
            return Next::End(self.close(!buf.is_empty()).await);
        }
        self.put_back(buf);
        Next::Request
    }

    /// Answers a request that is not going to be read to its end, and closes.
    async fn refuse(&mut self, reply: Reply) -> Counter {
        let reply = told(self.dressed(reply), self.rated.as_deref(), self.filtered.as_ref());
        let bytes = Buf::of(&reply.bytes(Some(false), false));
        if self.flush().await.is_ok() {
            let range = bytes.range();
            self.hop.slab.count_bytes(Bytes::DownstreamSent, range.len());
            self.stream.writer.submit(bytes, range);
            self.close(true).await;
        }
        Counter::Refused
    }

    /// Ends the connection behind a response; lingers where the client may still be sending, or has sent more than was read: the CRLF that
    /// some put behind a body, or requests that nobody will answer. What is unread when a socket is closed makes a reset of the end.
    async fn close(&mut self, linger: bool) -> Counter {
        if self.flush().await.is_err() {
            return Counter::ClientAborted;
        }
        let linger = linger || !self.stream.reader.is_quiet();
        if self.stream.is_tls() {
            self.stream.socket.set_due(LINGER_PAUSE, Due::End);
            // A response without a length is whole only if this arrives.
            if self.stream.writer.say_end().await.is_err() {
                return Counter::ClientAborted;
            }
        }
        if linger {
            self.linger().await;
        }
        Counter::AgentDone
    }

    /// Waits until everything submitted to the client is sent.
    async fn flush(&mut self) -> io::Result<()> {
        if self.stream.writer.is_sending() {
            let (result, buf) = self.stream.writer.sent().await;
            self.hop.buffers.give(buf);
            result?;
        }
        Ok(())
    }

    /// The endpoint has switched protocols: from here on bytes are bytes.
    async fn upgraded(&mut self, upstream: &mut Stream, after_request: Buf, after_response: Buf) -> Counter {
        if self.flush().await.is_err() {
            return Counter::ClientAborted;
        }
        for (writer, buf) in [(&mut upstream.writer, after_request), (&mut self.stream.writer, after_response)] {
            if buf.is_empty() {
                self.hop.buffers.give(buf);
            } else {
                let range = buf.range();
                writer.submit(buf, range);
            }
        }
        Box::pin(opaque::relay_joined(self.hop, &self.cluster.service, &mut self.stream, upstream)).await
    }
}

fn answer<'a>(
    hop: &'a Hop,
    head: &RequestHead,
    (limits, change): (&Limits, &'a Fields),
    uploaded: &'a Cell<bool>,
    head_sent: &'a Cell<bool>,
) -> Answer<'a> {
    Answer {
        hop,
        asked: Asked {
            head: head.method == Method::Head,
            websocket: head.websocket,
            http10: head.is_http10,
            connect: head.method == Method::Connect,
            fields_max: limits.head_fields,
        },
        head_bytes_max: limits.head_bytes,
        keep_alive: head.keep_alive,
        asks_for_body: head.expects && head.framing != Framing::None,
        change,
        replaces_errors: false,
        judged: None,
        uploaded,
        head_sent,
    }
}

pub(super) fn outcome(status: u16) -> Counter {
    match status {
        200..300 => Counter::Answered2xx,
        300..400 => Counter::Answered3xx,
        400..500 => Counter::Answered4xx,
        500..600 => Counter::Answered5xx,
        _ => Counter::AnsweredOther,
    }
}
