//! A request of HTTP/1 to a service with routes.

use std::{mem, rc::Rc};

use super::{Connection, Next, Rest, apply, reply::Reply};
use crate::{
    decode::http1::{Method, RequestHead},
    proxy::{
        Cluster,
        mirror::{Ordered, Tap},
        routed::{Course, Onward},
        timing::Ruled,
    },
    ring::Buf,
    route::Request,
};

/// A request that was looked at.
pub(super) struct Passed {
    pub buf: Buf,
    pub head: RequestHead,
    /// The client's own cluster, if another stands in its place now.
    pub home: Option<Rc<Cluster>>,
    /// What the route says of its time.
    pub timing: Option<Ruled>,
    /// What it is answered here.
    pub reply: Option<Reply>,
}

impl Connection<'_> {
    /// Finds the way of a request, or what it is answered here.
    pub(super) fn routed(&mut self, buf: Buf, head: RequestHead) -> Passed {
        let is_secure = self.cluster.service.config.tls.terminate.is_some();
        let request = Request::of_http1(&buf.bytes()[..head.bytes], is_secure, self.asker.source);
        let request = request.by(self.dialler.as_deref());
        match self.hop.course(&self.cluster, &request) {
            Course::Straight => Passed { buf, head, home: None, timing: None, reply: None },
            Course::Answered(reply) => Passed { buf, head, home: None, timing: None, reply: Some(reply) },
            Course::On(onward) => self.onward(onward, buf, head),
        }
    }

    fn onward(&mut self, onward: Onward, mut buf: Buf, mut head: RequestHead) -> Passed {
        if let Some(change) = &onward.change {
            (buf, head) = self.settled(buf, head);
            let changed = change.of_lines(&buf.bytes()[..head.bytes]);
            (buf, head) = self.with_lines(&changed, buf, head);
        }
        self.response_change = onward.response;
        self.strategy = onward.strategy;
        self.gate = onward.gate;
        self.circuit = onward.circuit;
        let is_tunnel = head.method == Method::Connect || head.websocket;
        self.one_way = onward.one_way.filter(|_| !is_tunnel);
        if let Some(ordered) = onward.mirror.filter(|_| !is_tunnel) {
            self.tap = Some(self.tapped(ordered, &buf, &head));
        }
        let home = Some(mem::replace(&mut self.cluster, onward.cluster));
        Passed { buf, head, home, timing: onward.timing, reply: None }
    }

    /// What is to see the body of a request that is copied.
    fn tapped(&self, ordered: Ordered, buf: &Buf, head: &RequestHead) -> Rc<Tap> {
        let (lines, body) = buf.bytes().split_at(head.bytes);
        let buffers = &self.hop.buffers;
        let (edited, bytes) = apply(buffers, buffers.holding(lines), head.bytes, head.start_line_bytes, &head.edits);
        let tap = Tap::of_http1(self.hop, ordered, &edited.bytes()[..bytes], (head.framing, body), self.asker);
        buffers.give(edited);
        tap
    }

    /// Answers a request that goes to nobody. Of a body that is not all there nobody knows where the next request begins.
    pub(super) async fn answer_here(&mut self, reply: Reply, buf: Buf, head: &RequestHead) -> Next {
        // It was never taken.
        self.one_way = None;
        match self.outgoing(buf, head) {
            Ok(outgoing) if matches!(outgoing.rest, Rest::None) => self.reply(reply, head, outgoing.buf).await,
            Ok(_) => Next::End(self.refuse(reply).await),
            Err(bad) => Next::End(self.refuse(Reply::malformed(bad)).await),
        }
    }
}
