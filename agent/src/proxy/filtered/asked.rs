//! A filter's question to another service, and its answer.

use std::{rc::Rc, time::Duration};

use bytes::Bytes;
use http::HeaderMap;
use tokio::time::timeout;

use super::super::Hop;
use crate::{
    config::HttpVersion,
    decode::translate,
    filter::Answered,
    proxy::{
        asker::Asker,
        reach::Tried,
        whole::{Piece, Whole, ask},
    },
    route::Request,
};

/// How much of an answer's body is passed on to who is refused; of a longer one, the beginning.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// Asks a service, by its name; `None`: there was no answer in time. The question is the head of a request of HTTP/1.
pub(super) async fn answer(hop: &Rc<Hop>, to: &str, question: &[u8], patience: Duration) -> Option<Answered> {
    let asking = async {
        let id = hop.snapshot.borrow_mut().load().by_name(to)?.id;
        let cluster = hop.cluster_of(id)?;
        let is_secure = cluster.service.config.tls.originate.is_some();
        let request = translate::request_to_http2(question, is_secure).ok()?;
        let tried =
            Tried::for_request(hop, &cluster, Asker::ourselves(hop), || Request::of_http1(question, is_secure, 0));
        let body = (Bytes::new(), HeaderMap::new());
        let whole = Whole::new(request, body, (&cluster, HttpVersion::Http1), None).ok()?;
        let mut answer = ask(Rc::clone(hop), cluster, tried, Rc::new(whole)).await.ok()?;
        let mut body = Vec::new();
        while body.len() < BODY_BYTES_MAX
            && let Piece::Data(piece) = answer.body.next().await.ok()?
        {
            body.extend_from_slice(&piece);
        }
        body.truncate(BODY_BYTES_MAX);
        Some(Answered { head: answer.parts, body })
    };
    timeout(patience, asking).await.ok()?
}
