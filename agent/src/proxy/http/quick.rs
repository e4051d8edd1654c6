//! A request of HTTP/1 to a service that tries again what fails: most do not fail. The first attempt is made as for any other request, from the
//! buffer that it came in; what further ones need is made only when it has failed.

use std::{ops::Range, rc::Rc, sync::Arc};

use bytes::Bytes;
use http::HeaderMap;
use memchr::memmem;

use super::{
    Connection, Limits, Next,
    respond::{Answered, Unanswered},
    strategy::Body,
};
use crate::{
    config::{
        HttpVersion,
        strategy::{Kind, Strategy},
    },
    decode::{
        grpc,
        http1::{Framing, Method, RequestHead},
    },
    proxy::{
        Cluster, Hop,
        reach::{Tried, Upstream},
        whole::{self, Came, Missed},
    },
    ring::Buf,
    route::Request,
};

/// Says which attempt it is.
const ATTEMPT: &str = "x-envoy-attempt-count";
/// The first.
const FIRST: &[u8] = b"x-envoy-attempt-count: 1\r\n";

/// What is done if a first attempt fails.
pub(super) struct Quick {
    cluster: Rc<Cluster>,
    of_route: Option<Arc<Strategy>>,
}

impl Quick {
    pub fn rules(&self) -> Option<&Strategy> {
        self.of_route.as_deref().or(self.cluster.service.config.strategy.as_ref())
    }
}

/// A first attempt that has failed.
pub(super) struct Fallen {
    came: Came,
    /// Has the request, and what came behind it.
    buf: Buf,
    /// Where in its memory the request stands.
    sent: Range<usize>,
}

impl Fallen {
    pub fn of(came: Came, buf: Buf, sent: Range<usize>) -> Box<Self> {
        Box::new(Self { came, buf, sent })
    }
}

/// What has come of an attempt whose answer is no good.
pub(super) async fn came(
    hop: &Rc<Hop>,
    upstream: Upstream,
    answered: Result<Answered, Unanswered>,
    head: &RequestHead,
) -> Came {
    match answered {
        Err(Unanswered::Failed(buf)) => {
            let who = upstream.who().clone();
            let limits = Limits::of(who.cluster());
            let came = whole::answer(hop, upstream, buf, (head.method == Method::Head, &limits, None)).await;
            came.inspect_err(|missed| who.report(hop, missed.seen()))
        }
        Err(Unanswered::Bad(bad)) => Err(Missed::Bad(bad)),
        _ => Err(Missed::Late),
    }
}

impl Connection<'_> {
    /// Whether a request's first attempt can be made from where it stands: all of it is there, its endpoints speak as its client does, and it
    /// is told by the head of an answer, and by nothing else, whether that is a failure.
    pub(super) fn is_quick(&self, buf: &Buf, head: &RequestHead) -> bool {
        let rules = self.strategy.as_deref().or(self.cluster.service.config.strategy.as_ref());
        let Some(Strategy { kind: Kind::Failover(retry), body_bytes_max, .. }) = rules else { return false };
        let here = buf.len() - head.bytes;
        let is_here = match head.framing {
            Framing::None => true,
            Framing::Length(length) => length <= here.min(*body_bytes_max) as u64,
            Framing::Chunked | Framing::UntilClose => false,
        };
        let is_plain = retry.per_try.is_none()
            && retry.hedge.is_none()
            && self.one_way.is_none()
            && !self.filtered.as_ref().is_some_and(|filtered| filtered.has_content())
            && !self.is_narrow(head);
        // gRPC's calls are POST.
        let may_be_grpc = || head.method == Method::Other && is_grpc(&buf.bytes()[..head.bytes]);
        let is_spoken = || self.cluster.spoken_upstream(HttpVersion::Http1) == HttpVersion::Http1;
        is_here && is_plain && is_spoken() && self.keeper().is_none() && !may_be_grpc()
    }

    /// Takes up what is done if a first attempt fails that is made from where the request stands; which attempt it is, is told.
    pub(super) fn quick(&mut self, buf: &Buf, head: &mut RequestHead) -> Quick {
        let quick = Quick { cluster: Rc::clone(&self.cluster), of_route: self.strategy.take() };
        if let Some(Strategy { kind: Kind::Failover(retry), .. }) = quick.rules()
            && retry.tells
        {
            head.edits.cut_fields(&buf.bytes()[..head.bytes], [ATTEMPT].into_iter());
            head.edits.insert.extend_from_slice(FIRST);
        }
        quick
    }

    /// Does what the rules say of a first attempt that has failed.
    pub(super) async fn go_on(
        &mut self,
        fallen: Fallen,
        (tried, rules): (Tried, Option<&Strategy>),
        head: &RequestHead,
    ) -> Next {
        let Fallen { came, mut buf, sent } = fallen;
        let message = Bytes::copy_from_slice(&buf.memory()[sent]);
        let end = memmem::find(&message, b"\r\n\r\n").map_or(message.len(), |end| end + 4);
        let body = Body { bytes: message.slice(end..), trailers: HeaderMap::new() };
        match self.whole_of(&message[..end], body) {
            Ok((whole, _)) => self.carried_out(whole, (tried, Some(came)), rules, (head, buf)).await,
            Err(reply) => self.reply(reply, head, buf).await,
        }
    }
}

fn is_grpc(head: &[u8]) -> bool {
    let [kind] = Request::of_http1(head, false, 0).first_of(&["content-type"]);
    kind.is_some_and(grpc::is_grpc)
}
