//! An exchange whose request is not all there when it begins: the body goes up while the response may already be coming down.

use std::{cell::Cell, future::poll_fn, pin::pin, task::Poll};

use super::{Answered, Connection, Next, Outgoing, Rest, Unanswered, answer, reply::Reply};
use crate::{
    decode::{chunked::Style, http1::RequestHead},
    forward::{Broken, Copy},
    proxy::reach::{Tried, Upstream},
    record::{Bytes, Counter},
    ring::{Buf, MEDIUM, Stream},
};

/// How the two directions came out.
enum Ended {
    /// The response did, whole or not.
    Answered(Result<Answered, Unanswered>),
    /// The endpoint ended without one.
    NoResponse,
    /// The client's body is malformed.
    BadBody(Broken),
    /// The client broke off its request.
    ClientGone,
}

impl Connection<'_> {
    pub(super) async fn exchange_streaming(&mut self, outgoing: Outgoing, head: &RequestHead) -> Next {
        // What was received of the body is in our hands until an endpoint is reached, so any number can be tried.
        let mut upstream = match self.hop.reach(&self.cluster, &mut Tried::by(self.source), false).await {
            Ok(upstream) => upstream,
            Err(why) => return Next::End(self.refuse(Reply::unreached(why)).await),
        };
        let (uploaded, head_sent) = (Cell::new(false), Cell::new(false));
        let (ended, rest) = self.both_ways(&mut upstream, outgoing, head, &uploaded, &head_sent).await;
        match ended {
            Ended::Answered(Ok(answered)) if answered.close && !uploaded.get() => {
                self.hop.slab.count(super::outcome(answered.status));
                Next::End(self.close(true).await)
            }
            Ended::Answered(Err(Unanswered::Bad(bad))) if !uploaded.get() => {
                Next::End(self.refuse(Reply::bad_response(bad)).await)
            }
            Ended::Answered(answered) => {
                let rest = rest.unwrap_or_else(|| self.hop.buffers.holding(&[]));
                self.after(upstream, answered, head, rest).await
            }
            Ended::NoResponse if uploaded.get() => {
                let rest = rest.unwrap_or_else(|| self.hop.buffers.holding(&[]));
                self.reply(Reply::no_response(), head, rest).await
            }
            Ended::NoResponse => Next::End(self.refuse(Reply::no_response()).await),
            Ended::BadBody(bad) if !head_sent.get() => Next::End(self.refuse(Reply::malformed(bad)).await),
            Ended::BadBody(_) => {
                self.hop.slab.count(Counter::Malformed);
                self.abort().await;
                Next::End(Counter::Refused)
            }
            Ended::ClientGone => {
                self.hop.slab.count(Counter::RequestAborted);
                Next::End(Counter::ClientAborted)
            }
        }
    }

    /// Sends the request and passes the response on, at the same time. Ends with the response; the request may then be unfinished.
    async fn both_ways(
        &mut self,
        upstream: &mut Upstream,
        outgoing: Outgoing,
        head: &RequestHead,
        uploaded: &Cell<bool>,
        head_sent: &Cell<bool>,
    ) -> (Ended, Option<Buf>) {
        let hop = self.hop;
        let answer = answer(hop, head, uploaded, head_sent);
        let Stream { reader: client_reader, writer: client_writer, .. } = &mut self.stream;
        let Stream { reader, writer, .. } = &mut upstream.stream;
        if !reader.is_armed() {
            reader.arm(hop.buffers.take(MEDIUM));
        }
        let count = Cell::new(0);
        let copy = Copy { from: client_reader, to: writer, buffers: &hop.buffers, count: &count };
        let mut upload = pin!(upload(copy, outgoing));
        let mut download = pin!(async {
            let (received, first) = reader.received().await;
            match received {
                Ok(1..) => Ended::Answered(answer.give(reader, client_writer, first).await),
                _ => Ended::NoResponse,
            }
        });
        let (mut is_uploading, mut rest) = (true, None);
        let ended = poll_fn(|context| {
            if is_uploading && let Poll::Ready(result) = upload.as_mut().poll(context) {
                is_uploading = false;
                match result {
                    Ok(behind) => {
                        uploaded.set(true);
                        rest = behind;
                    }
                    // It does not read on; perhaps it has answered already.
                    Err(Broken::Sending(_)) => {}
                    Err(bad @ Broken::Malformed(_)) => return Poll::Ready(Ended::BadBody(bad)),
                    Err(_) => return Poll::Ready(Ended::ClientGone),
                }
            }
            download.as_mut().poll(context)
        })
        .await;
        hop.slab.count_bytes(Bytes::DownstreamReceived, count.get());
        hop.slab.count_bytes(Bytes::UpstreamSent, count.get());
        (ended, rest)
    }
}

/// Sends a request to its end; returns what came behind it.
async fn upload(mut copy: Copy<'_>, outgoing: Outgoing) -> Result<Option<Buf>, Broken> {
    let Outgoing { buf, send, tail, rest } = outgoing;
    // What stands behind a request that is all there but for its trailer fields.
    let mut behind = (!buf.is_empty()).then(|| copy.buffers.holding(buf.bytes()));
    copy.submit(buf, send).await?;
    if !tail.is_empty() {
        let tail = Buf::of(&tail);
        let all = tail.range();
        copy.submit(tail, all).await?;
    }
    match rest {
        Rest::None => {}
        Rest::Length(length) => behind = copy.length(length).await?,
        Rest::Chunked(mut decoder) => behind = copy.chunked(&mut decoder, Style::Chunks).await?,
    }
    copy.flush().await?;
    Ok(behind)
}
