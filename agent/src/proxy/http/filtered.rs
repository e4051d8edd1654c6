//! A request of HTTP/1 to a service with filters.

use std::{mem, rc::Rc};

use super::{Connection, Next, admitted::Denied, apply, reply::Reply};
use crate::{
    config::HttpVersion,
    decode::http1::{Framing, Method, RequestHead},
    proxy::{
        Hop, admit, content,
        filtered::{Chain, Ended, Filtered, Head, Lines, Passage, Walk, Who, change_also, give_also},
        left::Left,
        mirror::Tap,
        timing::Clock,
        whole::Answer,
    },
    ring::Buf,
    route::{Fields, Request},
};

/// How a request goes on.
pub(super) enum Way {
    On,
    Answered(Reply),
    /// With what a cache has kept.
    Stored(Box<Answer>),
}

impl Connection<'_> {
    /// Lets a request pass the filters.
    pub(super) async fn filtered(&mut self, chain: &Rc<Chain>, buf: Buf, head: RequestHead) -> (Buf, RequestHead, Way) {
        let (buf, mut head) = self.settled(buf, head);
        let has_body = head.framing != Framing::None;
        let who = Who {
            is_secure: self.stream.is_tls(),
            source: self.asker.source,
            dialler: self.dialler.as_deref(),
            has_body,
        };
        let (buffers, start_line_bytes) = (Rc::clone(&self.hop.buffers), head.start_line_bytes);
        let mut lines = Lines { buffers, buf, bytes: head.bytes, start_line_bytes };
        let mut passage = walk(self.hop, chain, &mut lines, who, &mut self.clock).await;
        let buf = lines.buf;
        head.bytes = lines.bytes;
        if let Some(refresh) = passage.refresh.take() {
            let whose = (HttpVersion::Http1, self.stream.is_tls(), self.dialler.as_deref().cloned());
            content::refresh(self.hop, &self.cluster, chain, *refresh, whose);
        }
        if passage.content.is_none() {
            change_also(&mut self.response_change, passage.response.clone());
        }
        let (body_max, end) = (passage.body_max, passage.end.take());
        let is_over = body_max.is_some_and(|most| self.measure(most, &buf, &head));
        let way = match end {
            Some(Ended::Reply(reply)) => Way::Answered(reply),
            Some(Ended::Stored(answer)) => Way::Stored(answer),
            _ if is_over => Way::Answered(chain.refuse_body(body_max.unwrap_or_default())),
            // Filters do not look after clients.
            Some(Ended::Gone) | None => Way::On,
        };
        self.filtered = Some(Filtered::of(passage, chain));
        (buf, head, way)
    }

    /// Gives who has no cookie those by which its endpoint is chosen.
    pub(super) fn give_cookies(&mut self, buf: &Buf, head: &RequestHead) {
        let request = Request::of_http1(&buf.bytes()[..head.bytes], self.stream.is_tls(), self.asker.source);
        if let Some(fields) = self.asker.given(&self.cluster.service.config, &request) {
            give_also(self.filtered.as_mut(), &mut self.response_change, fields);
        }
    }

    /// Gives what a cache has kept: what the route changes of answers, it has changed of this already. The limits do not count it, and are told of.
    pub(super) async fn give_stored(&mut self, answer: Answer, buf: Buf, head: &RequestHead) -> Next {
        (self.response_change, self.one_way) = (Fields::default(), None);
        let request = Request::of_http1(&buf.bytes()[..head.bytes], self.stream.is_tls(), self.asker.source);
        self.rated = admit::rated([self.gate.as_deref(), Some(&self.cluster.gate)], &request);
        self.tell_limits();
        match self.outgoing(buf, head) {
            Ok(outgoing) => self.give(answer, head, outgoing.buf, None).await,
            Err(bad) => Next::End(self.refuse(Reply::malformed(bad)).await),
        }
    }

    /// Tells with the endpoint's answer of the limits that let the request pass.
    pub(super) fn tell_limits(&mut self) {
        if let Some(rated) = &self.rated {
            give_also(self.filtered.as_mut(), &mut self.response_change, rated.change());
        }
    }

    /// The edits of a head made.
    pub(super) fn settled(&self, buf: Buf, mut head: RequestHead) -> (Buf, RequestHead) {
        let edits = mem::take(&mut head.edits);
        let (buf, bytes) = apply(&self.hop.buffers, buf, head.bytes, head.start_line_bytes, &edits);
        head.bytes = bytes;
        (buf, head)
    }

    /// The same request with another head.
    pub(super) fn with_lines(&self, lines: &[u8], buf: Buf, mut head: RequestHead) -> (Buf, RequestHead) {
        let whole = self.hop.buffers.holding(&[lines, &buf.bytes()[head.bytes..]].concat());
        self.hop.buffers.give(buf);
        (head.bytes, head.start_line_bytes) = (lines.len(), start_line_bytes(lines));
        (whole, head)
    }

    /// Whether a request's body goes over a line that is slow on purpose.
    pub(super) fn is_narrow(&self, head: &RequestHead) -> bool {
        let is_tunnel = head.websocket || head.method == Method::Connect;
        head.framing != Framing::None
            && !is_tunnel
            && self.filtered.as_ref().is_some_and(|filtered| filtered.narrow.is_some())
    }

    /// What is received whole leaves when its last byte would have come over a narrow line.
    pub(super) async fn dawdle(&mut self, bytes: usize, leaves: bool) -> Result<(), Denied> {
        match self.filtered.as_ref().and_then(|filtered| filtered.narrow.as_ref().map(|narrow| narrow.takes(bytes))) {
            Some(takes) if !takes.is_zero() => {
                let patience = self.clock.time().map_or(takes, |time| time.left());
                self.waited(takes.min(patience), leaves).await
            }
            _ => Ok(()),
        }
    }

    /// Begins to measure a request's body; whether it is too long by what has come already.
    fn measure(&mut self, bytes_max: u64, buf: &Buf, head: &RequestHead) -> bool {
        let tap = self.tap.get_or_insert_with(Rc::<Tap>::default);
        tap.measure(bytes_max, Left::of(head.framing));
        tap.count_raw(&buf.bytes()[head.bytes..]);
        tap.is_over()
    }

    /// What is said of a body that came to be longer than it may be.
    pub(super) fn body_too_long(&self) -> Reply {
        let said = self.filtered.as_ref().and_then(|filtered| filtered.body_too_long());
        said.unwrap_or_else(|| Reply::body_too_large(0))
    }
}

/// Walks a chain; no longer than the clock lets it.
async fn walk(hop: &Rc<Hop>, chain: &Chain, lines: &mut Lines, who: Who<'_>, clock: &mut Clock) -> Passage {
    let mut head = Head::Lines(lines);
    match chain.walk(hop, &mut head, who) {
        Walk::Over(passage) => passage,
        Walk::Waits(waiting) => {
            let late = || Passage { end: Some(Ended::Reply(Reply::deadline_exceeded())), ..Passage::default() };
            // Boxed: most filters wait for nobody.
            clock.bound(Box::pin(chain.go_on(waiting, hop, &mut head, who))).await.unwrap_or_else(late)
        }
    }
}

fn start_line_bytes(head: &[u8]) -> usize {
    head.iter().position(|byte| *byte == b'\n').map_or(head.len(), |end| end + 1)
}
