//! A request of HTTP/2 to a service with filters.

use std::{future::poll_fn, pin::pin, rc::Rc, task::Poll};

use h2::{Reason, RecvStream};
use http::{StatusCode, request::Parts};

use super::{Exchange, course::Way};
use crate::{
    config::HttpVersion,
    filter::Mishap,
    forward::Narrow,
    proxy::{
        content,
        filtered::{Chain, Ended, Filtered, Head, Passage, Who, change_also, give_also},
        guard::StandingIn,
        http::{Limits, Reply},
        http2::Connection,
        left::Left,
        mirror::{Ordered, Tap},
        mishap::Suffered,
        timing::Time,
        whole::Answer,
    },
    record::Counter,
    route::{Fields, Request},
};

/// Lets a request pass the filters; no longer than its time is.
pub(super) async fn pass(
    connection: &Connection,
    chain: &Rc<Chain>,
    (parts, has_body): (&mut Parts, bool),
    way: &mut Way,
    time: Option<Time>,
) {
    let (is_secure, dialler) = (connection.is_secure, connection.dialler.as_deref());
    let mut head = Head::Parts(parts);
    let passed =
        chain.pass(&connection.hop, &mut head, Who { is_secure, source: connection.asker.source, dialler, has_body });
    let late = || Passage { end: Some(Ended::Reply(Reply::deadline_exceeded())), ..Passage::default() };
    let mut passage = match time {
        None => passed.await,
        Some(time) => tokio::time::timeout(time.left(), passed).await.unwrap_or_else(|_| late()),
    };
    if let Some(refresh) = passage.refresh.take() {
        let whose = (HttpVersion::Http2, is_secure, dialler.cloned());
        content::refresh(&connection.hop, &way.cluster, chain, *refresh, whose);
    }
    if passage.content.is_none() {
        change_also(&mut way.change, passage.response.clone());
    }
    way.end = passage.end.take().or(way.end.take());
    way.filtered = Some(Filtered::of(passage, chain));
}

/// What is to see a request's body, if it is copied, or may not have any length.
pub(super) fn tap(
    connection: &Connection,
    ordered: Option<Ordered>,
    filtered: Option<&Filtered>,
    (parts, body): (&Parts, &RecvStream),
) -> Option<Rc<Tap>> {
    let tap = ordered.map(|ordered| Tap::of_http2(&connection.hop, ordered, parts, connection.asker));
    if let (Some(tap), true) = (&tap, body.is_end_stream()) {
        tap.piece(&[], true);
    }
    let Some((bytes_max, _)) = filtered.and_then(|filtered| filtered.body_max.as_ref()) else { return tap };
    let tap = tap.unwrap_or_default();
    if !body.is_end_stream() {
        tap.measure(*bytes_max, Left::UntilClose);
    }
    Some(tap)
}

/// What a future gives, unless a body that it passes on comes to be longer than it may be.
pub(super) async fn unless_over<T>(tap: Option<Rc<Tap>>, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let Some(tap) = tap else { return Some(future.await) };
    // The body is seen while the future is polled: nobody else needs to be waked.
    poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(given) => Poll::Ready(Some(given)),
        Poll::Pending if tap.is_over() => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    })
    .await
}

impl Exchange<'_> {
    /// What the request's body goes over, if that is slow on purpose.
    pub(super) fn narrow(&self) -> Option<Rc<Narrow>> {
        self.filtered.as_ref().filter(|_| self.asked.tunnel.is_none())?.narrow.clone()
    }

    /// What is received whole leaves when its last byte would have come over a narrow line; whether its client waits for that.
    pub(super) async fn dawdles(&mut self, bytes: usize) -> bool {
        match self.narrow().map(|narrow| narrow.takes(bytes)) {
            Some(takes) if !takes.is_zero() => self.waits(takes).await,
            _ => true,
        }
    }

    /// What a cache has kept and may stand in for an answer of our own.
    pub(super) fn stored_for(&mut self, status: StatusCode) -> Option<Answer> {
        self.filtered.as_mut()?.stand_in(status, &mut self.change)
    }

    /// Gives who has no cookie those by which its endpoint is chosen.
    pub(super) fn give_cookies(&mut self, parts: &Parts) {
        let Connection { asker, is_secure, .. } = *self.connection;
        let request = Request::of_parts(parts, is_secure, asker.source);
        if let Some(fields) = asker.given(&self.cluster.service.config, &request) {
            give_also(self.filtered.as_mut(), &mut self.change, fields);
        }
    }

    /// Ends a request that goes no further.
    pub(super) async fn end(&mut self, ended: Ended) -> Counter {
        let limits = Limits::of(&self.cluster);
        match ended {
            Ended::Reply(reply) => match self.stored_for(reply.status()) {
                Some(answer) => self.give(answer, &limits, false).await,
                None => self.reply(&reply),
            },
            Ended::Stored(answer) => {
                self.change = Fields::default();
                self.tell_limits();
                self.give(*answer, &limits, false).await
            }
            Ended::Gone => Counter::RequestAborted,
        }
    }

    /// Lets a request suffer on purpose what its endpoint might have done to it. Breakers learn of it, and what stands in for an endpoint that
    /// fails stands in here. As what it is counted, if that was all.
    pub(super) async fn suffers(&mut self, mishap: Mishap) -> Result<Option<StandingIn>, Counter> {
        if !mishap.wait.is_zero() && !self.waits(mishap.wait).await {
            return Err(Counter::RequestAborted);
        }
        let Some(end) = mishap.end else { return Ok(None) };
        let hop = &self.connection.hop;
        let ended = match hop.suffered(end, self.asked.is_grpc, self.guard.as_ref(), self.leave.as_deref()) {
            Suffered::Asks(cluster, standing_in) => {
                self.cluster = cluster;
                return Ok(Some(standing_in));
            }
            Suffered::Answered(reply) => Some(Ended::Reply(reply)),
            Suffered::Reset => None,
        };
        // It was never taken.
        self.one_way = None;
        if let Some(ended) = ended {
            return Err(self.end(ended).await);
        }
        self.reset(Reason::INTERNAL_ERROR);
        Err(Counter::Filtered)
    }

    /// Tells with the endpoint's answer of the limits that let the request pass.
    pub(super) fn tell_limits(&mut self) {
        if let Some(rated) = &self.rated {
            give_also(self.filtered.as_mut(), &mut self.change, rated.change());
        }
    }

    /// The request's body came to be longer than it may be; the endpoint's stream was reset when the exchange was dropped.
    pub(super) fn body_too_long(&mut self) -> Counter {
        match self.filtered.as_ref().and_then(|filtered| filtered.body_too_long()) {
            Some(reply) if self.down.is_none() => self.reply(&reply),
            _ => {
                self.reset(Reason::CANCEL);
                Counter::Filtered
            }
        }
    }
}
