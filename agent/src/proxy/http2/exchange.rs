//! One request: to an endpoint, and its response back. Both bodies move at the same time.

mod course;
mod filtered;
mod guarded;
mod http1;
mod strategy;
mod streams;
mod timed;
mod tunnel;

use std::{
    cell::Cell,
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Waker},
    time::Instant,
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, client::ResponseFuture, ext::Protocol, server::SendResponse};
use http::{HeaderMap, Request, header};

use self::{
    course::{Way, way},
    guarded::{begun_by, entered, stands},
    timed::time,
};
use super::{
    Connection, body,
    reply::{self, To},
};
use crate::{
    cluster::{OneWayState, Pace, Seen},
    config::{HttpVersion, Strategy},
    decode::{
        grpc,
        http1::BadResponse,
        http2::{self, Asked},
    },
    proxy::{
        Cluster,
        admit::{self, Rated},
        filtered::{Ended as End, Filtered, told},
        guard::{Entered, Guard, Leave, OfRoute},
        http::{Reply, outcome},
        mirror::Tap,
        one_way, own_time,
        reach::Who,
        timing::Time,
    },
    record::Counter,
    route::{Fields, Request as RouteRequest},
};

/// What became of an attempt to have a request answered.
enum Ended {
    /// It was, with this status, and this value of `grpc-status`.
    Answered(u16, Option<Bytes>),
    /// All of it is sent, and nobody waits for its response, which is to be read all the same.
    Sent(Option<ResponseFuture>),
    /// The endpoint has certainly not seen it: its connection was going away, or the stream was refused.
    Unseen(h2::Error),
    /// No response came.
    Unanswered(h2::Error),
    /// What came is no response.
    Bad(BadResponse),
    /// It was, with a status of 5xx that the client is not to see.
    Unwanted(u16),
    /// The response broke off.
    Broken(h2::Error),
    /// The client broke off its request, or broke a rule with it.
    RequestBroken(h2::Error),
    /// The client wants no answer any more.
    ClientGone,
}

impl Ended {
    /// What this says of the endpoint.
    fn seen(&self) -> Option<Seen> {
        match self {
            Self::Answered(status, grpc_status) => Some(answered(*status, grpc_status.as_ref())),
            Self::Unwanted(status) => Some(answered(*status, None)),
            Self::Unseen(error) if !error.is_reset() => None,
            Self::Unseen(_) | Self::Unanswered(_) | Self::Bad(_) | Self::Broken(_) => Some(Seen::NoResponse),
            Self::Sent(_) | Self::RequestBroken(_) | Self::ClientGone => None,
        }
    }
}

fn answered(status: u16, grpc_status: Option<&Bytes>) -> Seen {
    Seen::Answered { status, grpc_status: grpc_status.map(|value| grpc::status(value)) }
}

/// Passes one request on and its response back.
pub async fn exchange(connection: Rc<Connection>, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let began = Instant::now();
    let hop = &connection.hop;
    // Taken back before anybody looked at it (CVE-2023-44487): nobody else is to have work of it.
    if respond.poll_reset(&mut Context::from_waker(Waker::noop())).is_ready() {
        return hop.slab.count(Counter::RequestAborted);
    }
    let (mut parts, mut body) = request.into_parts();
    let protocol = parts.extensions.get::<Protocol>().cloned();
    let asked = match connection.room.request(&mut parts, protocol.as_ref().map(AsRef::as_ref)) {
        Ok(asked) => asked,
        Err(bad) => {
            let reply = Reply::refused(bad);
            hop.slab.count(reply.counter);
            if reply.counter == Counter::Malformed {
                return reply::reset(&mut respond, &reply).await;
            }
            let asked = http2::Asked::of(&parts);
            if asked.is_grpc {
                hop.slab.count(Counter::of_grpc(reply.grpc_code()));
            }
            reply::send(&mut respond, &reply, To { is_grpc: asked.is_grpc, is_head: asked.is_head });
            return body::drain(&mut body).await;
        }
    };
    // Taken apart where it is given: what of it stands in a variable of its own is kept while the exchange goes on, and there may be a hundred
    // of these for each connection.
    let (Way { cluster: asked_of, change, gate, strategy, one_way, circuit, ordered, filtered, end, .. }, (time, pace)) = {
        let (mut way, chain) = way(&connection, &mut parts);
        let (time, pace) = match way.end {
            None => time(&connection, (&way.cluster, way.timing.take()), (&parts, asked), began),
            Some(_) => (None, None),
        };
        if time.is_some_and(|time| time.is_over()) {
            way.end = Some(End::Reply(Reply::deadline_exceeded()));
        }
        if let Some(chain) = chain {
            // Boxed: most services have none.
            Box::pin(filtered::pass(&connection, &chain, (&mut parts, !body.is_end_stream()), &mut way, time)).await;
        }
        (way, (time, pace))
    };
    let guard = asked_of.guard.clone();
    let (Entered { cluster, wait, mut admitted, leave, standing_in, extra, .. }, end) = match end {
        Some(end) => {
            let mut entered = Entered::none(&asked_of);
            if matches!(end, End::Stored(_)) {
                let request = RouteRequest::of_parts(&parts, connection.is_secure, connection.asker.source);
                entered.admitted.rate(admit::rated([gate.as_deref(), Some(&asked_of.gate)], &request));
            }
            (entered, Some(end))
        }
        None => {
            let of_route = OfRoute { gate: gate.as_deref(), circuit: circuit.as_ref() };
            match entered(&connection, (&asked_of, of_route), &parts, began, time) {
                Ok(entered) if entered.stand.is_some() => {
                    let until = time.and_then(|time| time.until());
                    // Boxed: most requests find room.
                    let stood = Box::pin(stands(&connection, entered, &parts, until, &mut respond)).await;
                    stood.map_or_else(|end| (Entered::none(&asked_of), Some(end)), |entered| (entered, None))
                }
                Ok(entered) => (entered, None),
                Err(reply) => (Entered::none(&asked_of), Some(End::Reply(reply))),
            }
        }
    };
    connection.shed(&asked_of, end.as_ref());
    let leave = Leave::with(leave, extra, began);
    let guard = if standing_in.is_some() { guard } else { cluster.guard.clone() };
    let until = leave.as_ref().and_then(|leave| leave.until);
    let has_begun = until.map(|_| Rc::<Cell<bool>>::default());
    let ordered = ordered.filter(|_| asked.tunnel.is_none());
    let tap = filtered::tap(&connection, ordered, filtered.as_ref(), (&parts, &body));
    let mut exchange = Exchange {
        connection: &connection,
        cluster: Rc::clone(&cluster),
        change,
        tap: tap.clone(),
        filtered,
        rated: admitted.rated.take(),
        asked,
        began,
        time,
        pace: pace.into(),
        strategy,
        one_way: one_way.filter(|_| asked.tunnel.is_none()),
        down: None,
        has_status: false,
        is_open: false,
        awaited: None,
        guard,
        leave: leave.map(Rc::new),
        code: None,
        has_begun: has_begun.clone(),
        respond,
    };
    let spent = (hop.samples_own_time() && asked.tunnel.is_none()).then(Cell::default);
    let counter = {
        // Pinned before it is wrapped: a function that takes a future by value holds it twice.
        let passed = pin!(async {
            if let Some(end) = end {
                // It was never taken.
                exchange.one_way = None;
                // Boxed: most answers are an endpoint's.
                return Box::pin(exchange.end(end)).await;
            }
            if !wait.is_zero() && !exchange.waits(wait).await {
                return Counter::RequestAborted;
            }
            exchange.tell_limits();
            let _standing_in = match exchange.filtered.as_mut().and_then(|filtered| filtered.mishap.take()) {
                // Boxed: it is ordered seldom.
                Some(mishap) => match Box::pin(exchange.suffers(*mishap)).await {
                    Ok(standing_in) => standing_in,
                    Err(counter) => return counter,
                },
                None => None,
            };
            let cluster = Rc::clone(&exchange.cluster);
            let (mut parts, mut begun) = (parts, None);
            if cluster.service.config.policy.tuning.gives_cookies() {
                exchange.give_cookies(&parts);
            }
            if exchange.keeps() && asked.tunnel.is_none() {
                // Boxed: most services have none.
                match Box::pin(exchange.by_strategy(parts, &mut body)).await {
                    Ok(counter) => return counter,
                    Err(kept) => (parts, begun) = kept,
                }
            }
            if let Some(filtered) = &mut exchange.filtered {
                filtered.let_content_go(&mut exchange.change);
            }
            match (cluster.spoken_upstream(HttpVersion::Http2), asked.tunnel) {
                (HttpVersion::Http2, _) => exchange.pass_on(&parts, begun, &mut body).await,
                // Boxed, as what is below: it is larger than what passes on to HTTP/2.
                (HttpVersion::Http1, None) => Box::pin(exchange.pass_on_to_http1(parts, begun, &mut body)).await,
                (HttpVersion::Http1, Some(tunnel)) => {
                    Box::pin(exchange.tunnel_to_http1(parts, tunnel, &mut body)).await
                }
            }
        });
        let passed = begun_by(until.zip(has_begun.as_deref()), own_time::of(passed, spent.as_ref()));
        let passed = filtered::unless_over(tap, passed);
        match time.and_then(|time| time.until()) {
            None => Some(passed.await),
            Some(until) => tokio::time::timeout_at(until.into(), passed).await.ok(),
        }
    };
    if let Some(state) = exchange.one_way.take() {
        one_way::was_lost(&state);
    }
    let is_isolated = counter == Some(Some(None));
    let counter = counter.and_then(|counter| counter.unwrap_or_else(|| Some(exchange.body_too_long())));
    own_time::observe(&hop.slab, spent);
    if exchange.excuses_reset(counter) {
        connection.guard.borrow_mut().excuse();
    }
    match counter {
        // It was counted when it was opened.
        Some(_) if exchange.is_open => return,
        Some(counter) => {
            hop.slab.count(counter);
            exchange.tells(counter);
        }
        None if is_isolated => exchange.out_of_isolation(),
        None => exchange.too_late(),
    }
    hop.slab.request_duration.observe(began.elapsed());
    exchange.leave = None;
    drop((admitted, standing_in));
    body::drain(&mut body).await;
}

struct Exchange<'c> {
    connection: &'c Connection,
    /// Who is to answer.
    cluster: Rc<Cluster>,
    /// What is changed of the response's fields.
    change: Fields,
    asked: Asked,
    began: Instant,
    /// What sees the request's body, if it is copied or measured.
    tap: Option<Rc<Tap>>,
    /// What filters have said of it.
    filtered: Option<Filtered>,
    /// What is told of the limits that let it pass.
    rated: Option<Box<Rated>>,
    /// How long it may take.
    time: Option<Time>,
    /// Who learns from how long it does, until told.
    pace: Cell<Option<Pace>>,
    /// What its route says of failures.
    strategy: Option<Arc<Strategy>>,
    /// Who counts it, if nobody waits for its answer.
    one_way: Option<Arc<OneWayState>>,
    /// Where the rest of a final response goes, when its head was sent.
    down: Option<SendStream<Bytes>>,
    /// Whether that response is gRPC's, of which no part is taken for the whole without a status.
    has_status: bool,
    /// Whether it is a tunnel by now.
    is_open: bool,
    /// Who is attempted, while the caller's time runs.
    awaited: Option<Who>,
    /// Who guards the request, and what it has of that.
    guard: Option<Rc<Guard>>,
    leave: Option<Rc<Leave>>,
    /// What a gRPC call ended with.
    code: Option<u8>,
    /// Whether a final answer has begun, or somebody else looks at the isolation's clock.
    has_begun: Option<Rc<Cell<bool>>>,
    respond: SendResponse<Bytes>,
}

impl Exchange<'_> {
    /// Tells that the request has become a tunnel.
    fn opened(&mut self) {
        let slab = &self.connection.hop.slab;
        slab.count(Counter::Upgraded);
        self.begins();
        self.tells(Counter::Upgraded);
        slab.request_duration.observe(self.began.elapsed());
        self.is_open = true;
    }

    fn ended(&mut self, ended: Ended) -> Counter {
        match ended {
            Ended::Answered(status, grpc_status) => {
                if self.asked.is_grpc {
                    let code = grpc_status.map_or_else(|| grpc::of_http(status), |value| grpc::status(&value));
                    self.count_grpc(code);
                }
                outcome(status)
            }
            Ended::Unwanted(_) => self.reply(&Reply::server_error()),
            Ended::Bad(bad) => self.reply(&Reply::bad_response(bad)),
            Ended::Unseen(error) | Ended::Unanswered(error) => {
                self.reply(&Reply::no_response_because(&error, body::reset_of(&error).map(u32::from)))
            }
            Ended::Broken(error) => {
                self.reset(body::reset_of(&error).unwrap_or(Reason::INTERNAL_ERROR));
                Counter::ResponseAborted
            }
            Ended::RequestBroken(error) => {
                // Who broke a rule is told by the library already.
                self.reset(error.reason().unwrap_or(Reason::CANCEL));
                Counter::RequestAborted
            }
            Ended::ClientGone | Ended::Sent(_) => Counter::RequestAborted,
        }
    }

    /// Breaks off: nobody can take what was sent for the whole.
    fn reset(&mut self, reason: Reason) {
        if self.asked.is_grpc {
            self.count_grpc(grpc::of_reset(reason.into()));
        }
        self.respond.send_reset(reason);
    }

    /// Answers in the endpoint's stead.
    fn reply(&mut self, reply: &Reply) -> Counter {
        let reply = told(self.dressed(reply), self.rated.as_deref(), self.filtered.as_ref());
        if self.asked.is_grpc {
            self.count_grpc(reply.grpc_code());
        }
        reply::send(&mut self.respond, &reply, To { is_grpc: self.asked.is_grpc, is_head: self.asked.is_head });
        reply.counter
    }
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| grpc::is_grpc(value.as_bytes()))
}
