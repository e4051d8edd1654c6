//! A request of HTTP/2 to a service that is guarded.

use std::{cell::Cell, future::poll_fn, pin::pin, rc::Rc, task::Poll, time::Instant};

use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderMap, request::Parts};

use super::Exchange;
use crate::{
    config::guard::Why,
    decode::grpc,
    proxy::{
        Cluster,
        filtered::Ended as End,
        guard::{Entered, Guard, OfRoute},
        http::Reply,
        http2::{Connection, body::grpc_status},
        timing::{Time, learn},
    },
    record::Counter,
    route::Request,
};

/// Whether a request may go on, and to whom; who gave a time waits no longer than that.
pub(super) fn entered(
    connection: &Connection,
    (cluster, of_route): (&Rc<Cluster>, OfRoute<'_>),
    parts: &Parts,
    now: Instant,
    time: Option<Time>,
) -> Result<Entered, Reply> {
    if !cluster.is_guarded() && of_route.is_none() && cluster.gate.is_open() {
        return Ok(Entered::none(cluster));
    }
    let request = Request::of_parts(parts, connection.is_secure, connection.asker.source);
    connection.hop.enter(cluster, of_route, &request, (now, time))
}

/// Waits until a request is let in; no longer than its client does.
pub(super) async fn stands(
    connection: &Connection,
    entered: Entered,
    parts: &Parts,
    until: Option<Instant>,
    respond: &mut SendResponse<Bytes>,
) -> Result<Entered, End> {
    let request = Request::of_parts(parts, connection.is_secure, connection.asker.source);
    let mut stands = pin!(connection.hop.stands(entered, &request, until));
    poll_fn(|context| match stands.as_mut().poll(context) {
        Poll::Ready(entered) => Poll::Ready(entered.map_err(End::Reply)),
        Poll::Pending => respond.poll_reset(context).map(|_| Err(End::Gone)),
    })
    .await
}

impl Connection {
    /// A client of a service whose requests are refused because too many wait is asked, once, to go elsewhere if it can: the connection ends gracefully,
    /// as with Envoy's overload manager. One that was made meanwhile stays: there is nowhere else.
    pub(super) fn shed(&self, cluster: &Cluster, end: Option<&End>) {
        let is_refused = matches!(end, Some(End::Reply(reply)) if reply.counter == Counter::Unserved);
        if is_refused
            && cluster.service.id == self.service
            && cluster.line.as_ref().is_some_and(|line| line.stops() > self.stops)
        {
            self.is_shed.set(true);
        }
    }
}

/// What becomes of a request, unless its time is over before its answer begins.
pub(super) async fn begun_by<T>(until: Option<(Instant, &Cell<bool>)>, future: impl Future<Output = T>) -> Option<T> {
    let Some((until, has_begun)) = until else { return Some(future.await) };
    let mut future = pin!(future);
    let mut timer = pin!(tokio::time::sleep_until(until.into()));
    poll_fn(|context| {
        if let Poll::Ready(done) = future.as_mut().poll(context) {
            return Poll::Ready(Some(done));
        }
        match has_begun.get() {
            false => timer.as_mut().poll(context).map(|()| None),
            true => Poll::Pending,
        }
    })
    .await
}

impl Exchange<'_> {
    /// Its time to an answer is not looked at any more.
    pub(super) fn begins(&self) {
        if let Some(has_begun) = &self.has_begun {
            has_begun.set(true);
        }
    }

    /// Whether somebody must be told if the request is given up.
    pub(super) fn is_timed(&self) -> bool {
        self.time.is_some() || self.leave.as_ref().is_some_and(|leave| leave.until.is_some())
    }

    /// Counts what a gRPC call ended with.
    pub(super) fn count_grpc(&mut self, code: u8) {
        self.code = Some(code);
        self.connection.hop.slab.count(Counter::of_grpc(code));
    }

    /// Whoever guards it learns how the request went.
    pub(super) fn tells(&self, counter: Counter) {
        if let Some(pace) = self.pace.take() {
            learn(&pace, self.began, counter, self.code);
        }
        if let Some(leave) = &self.leave {
            leave.told(counter, self.code);
        }
    }

    /// As [`Exchange::tells`], of a request that is answered here. What the client is told.
    pub(super) fn dressed(&self, reply: &Reply) -> Reply {
        self.tells(reply.counter);
        match &self.guard {
            Some(guard) => guard.dress(reply.clone()),
            None => reply.clone(),
        }
    }

    /// No answer has begun in the time that the service's isolation gives.
    pub(super) fn out_of_isolation(&mut self) {
        if let Some(who) = self.awaited.take() {
            who.report(&self.connection.hop, crate::cluster::Seen::Late);
        }
        let counter = self.reply(&Reply::guarded(Why::Timeout));
        self.connection.hop.slab.count(counter);
    }

    /// Whether an endpoint's answer of this head is not for the client.
    pub(super) fn is_unwanted(&self, status: u16, headers: &HeaderMap) -> bool {
        self.guard.as_ref().is_some_and(|guard| guard.replaces_errors()) && {
            let grpc_status = grpc_status(headers).map(|value| grpc::status(&value));
            let seen = crate::cluster::Seen::Answered { status, grpc_status };
            seen.status().is_some_and(|status| status >= 500)
        }
    }

    /// Whether a request is received whole before it is passed on.
    pub(super) fn keeps(&self) -> bool {
        self.one_way.is_some()
            || self.strategy.is_some()
            || self.cluster.service.config.strategy.is_some()
            || self.keeper().is_some()
            || self.filtered.as_ref().is_some_and(|filtered| filtered.has_content())
    }

    /// Who may have to ask somebody else.
    pub(super) fn keeper(&self) -> Option<&Rc<Guard>> {
        let is_its_own = |guard: &&Rc<Guard>| self.cluster.guard.as_ref().is_some_and(|own| Rc::ptr_eq(own, guard));
        self.guard.as_ref().filter(|guard| guard.keeps()).filter(is_its_own)
    }
}
