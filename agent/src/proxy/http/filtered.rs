//! A request of HTTP/1 to a service with filters.

use std::{borrow::Cow, mem, rc::Rc};

use http::StatusCode;

use super::{Connection, Next, apply, reply::Reply};
use crate::{
    config::HttpVersion,
    decode::http1::{Framing, RequestHead},
    proxy::{
        content::{self, Content},
        filtered::{Chain, Ended, Head, Passage, Who},
        left::Left,
        mirror::Tap,
        whole::Answer,
    },
    record::Counter,
    ring::Buf,
    route::Fields,
};

/// What filters have said of the request that is under way.
#[derive(Default)]
pub(super) struct Filtered {
    /// What is changed of an answer of our own; of an endpoint's answer it is changed with what its route changes.
    pub fields: Fields,
    /// The longest body that the request may have, and who says so.
    pub body_max: Option<(u64, Rc<Chain>)>,
    /// What else is done with its answer.
    pub content: Option<Box<Content>>,
}

/// How a request goes on.
pub(super) enum Way {
    On,
    Answered(Reply),
    /// With what a cache has kept.
    Stored(Box<Answer>),
    Reset,
}

impl Connection<'_> {
    /// Lets a request pass the filters.
    pub(super) async fn filtered(&mut self, chain: &Rc<Chain>, buf: Buf, head: RequestHead) -> (Buf, RequestHead, Way) {
        let (mut buf, mut head) = self.settled(buf, head);
        let has_body = head.framing != Framing::None;
        let who =
            Who { is_secure: self.stream.is_tls(), source: self.source, dialler: self.dialler.as_deref(), has_body };
        let mut lines = Head::Lines(Cow::Borrowed(&buf.bytes()[..head.bytes]));
        let mut clock = mem::take(&mut self.clock);
        let late = || Passage { end: Some(Ended::Reply(Reply::deadline_exceeded())), ..Passage::default() };
        let passage = clock.bound(chain.pass(self.hop, &mut lines, who)).await.unwrap_or_else(late);
        if let Head::Lines(Cow::Owned(lines)) = lines {
            (buf, head) = self.with_lines(&lines, buf, head);
        }
        self.clock = clock;
        let Passage { response, content, refresh, body_max, end } = passage;
        if let Some(refresh) = refresh {
            let whose = (HttpVersion::Http1, self.stream.is_tls(), self.dialler.as_deref().cloned());
            content::refresh(self.hop, &self.cluster, chain, *refresh, whose);
        }
        if !response.is_empty() && content.is_none() {
            let of_route = self.response_change.take().map(|fields| *fields).unwrap_or_default();
            self.response_change = Some(Box::new(of_route.then(response.clone())));
        }
        let is_over = body_max.is_some_and(|most| self.measure(most, &buf, &head));
        let way = match end {
            Some(Ended::Reply(reply)) => Way::Answered(reply),
            Some(Ended::Stored(answer)) => Way::Stored(answer),
            Some(Ended::Reset | Ended::Gone) => Way::Reset,
            None if is_over => Way::Answered(chain.refuse_body(body_max.unwrap_or_default())),
            None => Way::On,
        };
        let body_max = body_max.map(|most| (most, Rc::clone(chain)));
        self.filtered = Some(Box::new(Filtered { fields: response, body_max, content }));
        (buf, head, way)
    }

    /// Whether something is done with the answer's content.
    pub(super) fn has_content(&self) -> bool {
        self.filtered.as_ref().is_some_and(|filtered| filtered.content.is_some())
    }

    /// The request goes its way as any other: of what filters do with its answer, what they change of its fields is left.
    pub(super) fn let_content_go(&mut self) {
        let Some(content) = self.filtered.as_mut().and_then(|filtered| filtered.content.as_mut()) else { return };
        let fields = content.let_go();
        let of_route = self.response_change.take().map(|fields| *fields).unwrap_or_default();
        self.response_change = Some(Box::new(of_route.then(fields)));
    }

    /// An answer with all that filters do with it; of one of our own, only its fields are changed.
    pub(super) fn content_of(&mut self, answer: Answer, is_ours: bool) -> Answer {
        let content = self.filtered.as_mut().and_then(|filtered| filtered.content.take());
        match content {
            None => answer,
            Some(mut content) if !is_ours => content.dress(answer),
            Some(content) => {
                let Answer { mut parts, body } = answer;
                content.fields().of_map(&mut parts.headers);
                Answer { parts, body }
            }
        }
    }

    /// Gives what a cache has kept: what the route changes of answers, it has changed of this already.
    pub(super) async fn give_stored(&mut self, answer: Answer, buf: Buf, head: &RequestHead) -> Next {
        (self.response_change, self.one_way) = (None, None);
        match self.outgoing(buf, head) {
            Ok(outgoing) => self.give(answer, head, outgoing.buf, None).await,
            Err(bad) => Next::End(self.refuse(Reply::malformed(bad)).await),
        }
    }

    /// What a cache has kept and may stand in for an error.
    pub(super) fn stands_in(&mut self, status: StatusCode) -> Option<Answer> {
        let answer = self.filtered.as_mut()?.content.as_mut()?.stand_in(status)?;
        self.response_change = None;
        Some(answer)
    }

    /// Breaks off, as a filter orders it.
    pub(super) fn reset(&self) -> Next {
        self.hop.slab.count(Counter::Filtered);
        self.stream.socket.reset();
        Next::End(Counter::Refused)
    }

    /// An answer of our own, with what filters change of it.
    pub(super) fn told(&self, mut reply: Reply) -> Reply {
        if let Some(filtered) = &self.filtered {
            filtered.fields.of_list(&mut reply.fields);
        }
        reply
    }

    /// The edits of a head made.
    pub(super) fn settled(&self, buf: Buf, mut head: RequestHead) -> (Buf, RequestHead) {
        let edits = mem::take(&mut head.edits);
        let (buf, bytes) = apply(&self.hop.buffers, buf, head.bytes, head.start_line_bytes, &edits);
        (head.bytes, head.start_line_bytes) = (bytes, start_line_bytes(&buf.bytes()[..bytes]));
        (buf, head)
    }

    /// The same request with another head.
    pub(super) fn with_lines(&self, lines: &[u8], buf: Buf, mut head: RequestHead) -> (Buf, RequestHead) {
        let whole = self.hop.buffers.holding(&[lines, &buf.bytes()[head.bytes..]].concat());
        self.hop.buffers.give(buf);
        (head.bytes, head.start_line_bytes) = (lines.len(), start_line_bytes(lines));
        (whole, head)
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
        let said = self.filtered.as_ref().and_then(|filtered| filtered.body_max.as_ref());
        said.map_or_else(|| Reply::body_too_large(0), |(bytes_max, chain)| chain.refuse_body(*bytes_max))
    }
}

fn start_line_bytes(head: &[u8]) -> usize {
    head.iter().position(|byte| *byte == b'\n').map_or(head.len(), |end| end + 1)
}
