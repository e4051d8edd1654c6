//! A request of HTTP/2 whose time is limited: by its caller, its route or its service.

use std::{
    future::poll_fn,
    pin::pin,
    task::Poll,
    time::{Duration, Instant},
};

use http::request::Parts;

use super::Exchange;
use crate::{
    cluster::{Pace, Seen},
    decode::{grpc, http2::Asked},
    proxy::{
        Cluster,
        http::Reply,
        http2::{Connection, reply},
        timing::{Ruled, Time},
    },
    record::Counter,
    route::Request,
};

/// Who waits for so long before a request is taken back has wanted its answer: Envoy's bound for premature resets.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long a request may take, a tunnel may take for ever; and who learns from how long it does.
pub(super) fn time(
    connection: &Connection,
    (cluster, of_route): (&Cluster, Option<Ruled>),
    (parts, asked): (&Parts, Asked),
    began: Instant,
) -> (Option<Time>, Option<Pace>) {
    let ruled = Ruled::of(of_route, &cluster.service);
    if asked.tunnel.is_some() || (ruled.is_none() && !asked.is_grpc) {
        return (None, None);
    }
    let request = Request::of_parts(parts, connection.is_secure, connection.asker.source);
    let timing = ruled.as_ref().map(|ruled| ruled.timing).unwrap_or_default();
    (Time::of(timing, &request, began), ruled.and_then(|ruled| ruled.pace))
}

impl Exchange<'_> {
    /// Whether the client may take the request back, or has, and makes no work by that: it was answered, or had its time. gRPC clients
    /// give up calls within their responses, and when their deadline has passed.
    pub(super) fn excuses_reset(&self, counter: Option<Counter>) -> bool {
        let patience = self.time.map_or(PATIENCE, |time| PATIENCE.min(time.given() / 2));
        match counter {
            Some(Counter::RequestAborted) => self.down.is_some() || self.began.elapsed() >= patience,
            Some(_) | None => true,
        }
    }

    /// Waits for its turn; whether its client does, too.
    pub(super) async fn waits(&mut self, wait: Duration) -> bool {
        let mut turn = pin!(tokio::time::sleep(wait));
        poll_fn(|context| match turn.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(true),
            Poll::Pending => self.respond.poll_reset(context).map(|_| false),
        })
        .await
    }

    /// Whether nothing is left of the request's time: the endpoint would work for nobody.
    pub(super) fn is_too_late(&self) -> bool {
        self.time.is_some_and(|time| time.is_over())
    }

    /// The request's time is over; the endpoint's stream was reset when the exchange was dropped.
    pub(super) fn too_late(&mut self) {
        let hop = &self.connection.hop;
        // Who gives little time learns nothing of the endpoint.
        let is_callers = self.time.is_some_and(|time| time.is_callers());
        if let Some(who) = self.awaited.take().filter(|_| !is_callers) {
            who.report(hop, Seen::Late);
        }
        let counter = if let Some(down) = &mut self.down {
            // A reset is not what every library takes for it: grpc-js says that somebody has cancelled the call.
            let trailers = reply::trailers(&Reply::deadline_exceeded());
            if !self.has_status || down.send_trailers(trailers).is_err() {
                self.respond.send_reset(h2::Reason::CANCEL);
            }
            if self.asked.is_grpc {
                self.count_grpc(grpc::code::DEADLINE_EXCEEDED);
            }
            Counter::DeadlineExceeded
        } else {
            self.reply(&Reply::deadline_exceeded())
        };
        self.tells(counter);
        hop.slab.count(counter);
    }
}
