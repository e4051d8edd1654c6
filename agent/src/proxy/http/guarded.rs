//! A request of HTTP/1 to a service that is guarded.

use std::{future::poll_fn, mem, pin::pin, rc::Rc, task::Poll, time::Instant};

use super::{
    Connection, Limits, Next,
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
        Cluster,
        admit::Admitted,
        guard::{Entered, Guard, Leave, OfRoute, StandingIn},
        reach::Upstream,
        timing::Time,
        whole::Answer,
    },
    record::Counter,
    ring::Buf,
    route::Request,
};

/// What is kept of a request that is let in, until it is over. Given back last: who waits for room finds all of it free.
#[derive(Default)]
pub(super) struct Taken {
    /// The client's own cluster, where another may stand in its place now.
    home: Option<Rc<Cluster>>,
    _standing_in: Option<StandingIn>,
    _admitted: Admitted,
}

impl Connection<'_> {
    /// Lets a request in, or not. Whatever comes of it, [`Connection::goes_out`] follows when it is over.
    pub(super) async fn let_in(
        &mut self,
        buf: &Buf,
        head: &RequestHead,
        began: Instant,
    ) -> (Taken, Result<(), Denied>) {
        if !self.cluster.is_guarded() && self.gate.is_none() && self.circuit.is_none() {
            return match self.admitted(buf, head, began).await {
                Ok(_admitted) => (Taken { _admitted, ..Taken::default() }, Ok(())),
                Err(denied) => (Taken::default(), Err(denied)),
            };
        }
        self.guard.clone_from(&self.cluster.guard);
        let entered = match self.entered(buf, head, began).await {
            Ok(entered) => entered,
            Err(denied) => return (Taken::default(), Err(denied)),
        };
        let Entered { cluster, wait, admitted: mut _admitted, leave, standing_in: _standing_in, extra, .. } = entered;
        (self.leave, self.rated) = (Leave::with(leave, extra, began), _admitted.rated.take());
        if _standing_in.is_none() {
            self.guard.clone_from(&cluster.guard);
        }
        // Boxed: most do not wait.
        let waited = if wait.is_zero() { Ok(()) } else { Box::pin(self.waited(wait, leaves(buf, head))).await };
        let home = Some(mem::replace(&mut self.cluster, cluster));
        (Taken { home, _standing_in, _admitted }, waited)
    }

    /// A request is over that was let in, or was not.
    pub(super) fn goes_out(&mut self, mut taken: Taken) {
        if let Some(home) = taken.home.take() {
            self.cluster = home;
        }
        (self.guard, self.leave) = (None, None);
    }

    /// Waits until a request is let in; no longer than its client does.
    async fn entered(&mut self, buf: &Buf, head: &RequestHead, began: Instant) -> Result<Entered, Denied> {
        let request = Request::of_http1(&buf.bytes()[..head.bytes], self.stream.is_tls(), self.asker.source);
        let time = self.clock.time();
        let circuit = self.circuit.take();
        let of_route = OfRoute { gate: self.gate.as_deref(), circuit: circuit.as_ref() };
        let entered = self.hop.enter(&self.cluster, of_route, &request, (began, time)).map_err(Denied::Answered)?;
        match entered.stand {
            None => Ok(entered),
            // Boxed: most do not stand in line.
            Some(_) => Box::pin(self.stands(entered, &request, time, leaves(buf, head))).await,
        }
    }

    /// Waits in the line.
    async fn stands(
        &mut self,
        entered: Entered,
        request: &Request<'_>,
        time: Option<Time>,
        leaves: bool,
    ) -> Result<Entered, Denied> {
        let mut stands = pin!(self.hop.stands(entered, request, time.and_then(|time| time.until())));
        let mut client = Client { reader: &mut self.stream.reader, socket: &self.stream.socket, leaves };
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
