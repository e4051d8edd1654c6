//! A request of HTTP/1 to a service that is guarded.

use std::{future::poll_fn, pin::pin, rc::Rc, task::Poll, time::Instant};

use super::{
    Connection, Limits, Next, OwnTime,
    admitted::{Denied, leaves},
    attend::Client,
    reply::Reply,
    take_back,
};
use crate::{
    cluster::Seen,
    config::guard::Why,
    decode::http1::RequestHead,
    proxy::{
        admit::Admitted,
        guard::{Entered, Guard, Leave, OfRoute},
        reach::Upstream,
        whole::Answer,
    },
    record::Counter,
    ring::Buf,
    route::Request,
};

impl Connection<'_> {
    /// Passes a request on as its guard lets it.
    pub(super) async fn guarded(
        &mut self,
        buf: Buf,
        mut head: RequestHead,
        (began, is_timed): (Instant, bool),
        own: Option<OwnTime>,
    ) -> Next {
        self.guard.clone_from(&self.cluster.guard);
        // Given back last: who waits for room finds all of it free.
        let mut _taken = Admitted::default();
        let next = match self.entered(&buf, &head, began).await {
            Ok(Entered { cluster, wait, admitted, leave, standing_in, extra, .. }) => {
                (_taken, self.leave) = (admitted, Leave::with(leave, extra, began));
                if standing_in.is_none() {
                    self.guard.clone_from(&cluster.guard);
                }
                let waited = if wait.is_zero() { Ok(()) } else { self.waited(wait, leaves(&buf, &head)).await };
                let home = std::mem::replace(&mut self.cluster, cluster);
                if is_timed {
                    self.tell_time(&buf, &mut head);
                }
                let next = match waited {
                    Ok(()) => self.forward(buf, head, own).await,
                    Err(Denied::Answered(reply)) => self.answer_here(reply, buf, &head).await,
                    Err(Denied::Gone) => self.left(),
                };
                self.cluster = home;
                next
            }
            Err(Denied::Answered(reply)) => self.answer_here(reply, buf, &head).await,
            Err(Denied::Gone) => self.left(),
        };
        (self.guard, self.leave) = (None, None);
        next
    }

    /// Waits until a request is let in; no longer than its client does.
    async fn entered(&mut self, buf: &Buf, head: &RequestHead, began: Instant) -> Result<Entered, Denied> {
        let request = Request::of_http1(&buf.bytes()[..head.bytes], self.stream.is_tls(), self.asker.source);
        let (hop, time) = (self.hop, self.clock.time());
        let circuit = self.circuit.take();
        let of_route = OfRoute { gate: self.gate.as_deref(), circuit: circuit.as_ref() };
        let entered = hop.enter(&self.cluster, of_route, &request, (began, time)).map_err(Denied::Answered)?;
        if entered.stand.is_none() {
            return Ok(entered);
        }
        let mut stands = pin!(hop.stands(entered, &request, time.and_then(|time| time.until())));
        let (reader, socket) = (&mut self.stream.reader, &self.stream.socket);
        let mut client = Client { reader, socket, leaves: leaves(buf, head) };
        poll_fn(|context| match stands.as_mut().poll(context) {
            Poll::Ready(entered) => Poll::Ready(entered.map_err(Denied::Answered)),
            Poll::Pending => client.poll_gone(context).map(|()| Err(Denied::Gone)),
        })
        .await
    }

    /// Counts a request; whoever guards it learns how it went.
    pub(super) fn tells(&self, counter: Counter) {
        self.hop.slab.count(counter);
        self.clock.told(counter);
        if let Some(leave) = &self.leave {
            leave.told(counter, None);
        }
    }

    /// As [`Connection::tells`], of one that is answered here. What the client is told.
    pub(super) fn dressed(&self, reply: Reply) -> Reply {
        self.tells(reply.counter);
        match &self.guard {
            Some(guard) => guard.dress(reply),
            None => reply,
        }
    }

    /// No answer has begun in the time that the service's isolation gives.
    pub(super) async fn isolated(&mut self, mut upstream: Upstream, head: &RequestHead) -> Next {
        upstream.who().report(self.hop, Seen::Late);
        let buf = take_back(&mut upstream.stream, &mut self.pending).await;
        self.reply(Reply::guarded(Why::Timeout), head, buf).await
    }

    /// What the messages of the service may take, as of now.
    pub(super) fn limits(&self) -> Limits {
        let mut limits = Limits::of(&self.cluster);
        if let Some(left) = self.leave.as_ref().and_then(Leave::left) {
            limits.response = Some(limits.response.map_or(left, |response| response.min(left)));
        }
        limits
    }

    /// When it is given up, if no answer has begun.
    pub(super) fn until(&self) -> Option<Instant> {
        self.leave.as_ref().and_then(|leave| leave.until)
    }

    /// Whether an answer of 5xx is not for the client.
    pub(super) fn replaces_errors(&self) -> bool {
        self.guard.as_ref().is_some_and(|guard| guard.replaces_errors())
    }

    /// The same of an answer that has come.
    pub(super) fn is_unwanted(&self, answer: &Answer) -> bool {
        self.replaces_errors() && answer.seen().status().is_some_and(|status| status >= 500)
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
