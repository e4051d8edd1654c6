//! An exchange whose request is not all there when it begins: the body goes up while the response may already be coming down.

use std::{cell::Cell, future::poll_fn, pin::pin, task::Poll, time::Duration};

use super::{
    Answer, Answered, Connection, Next, Outgoing, Rest, Unanswered, answer,
    attend::{Client, MARGIN, given_in_time, set_or_clear},
    reply::Reply,
    respond,
};
use crate::{
    cluster::Seen,
    decode::{
        chunked::Style,
        http1::{Method, RequestHead},
    },
    forward::{Broken, Copy, Told},
    proxy::{
        mirror::Tap,
        one_way,
        reach::{Tried, Upstream},
    },
    record::{Bytes, Counter},
    ring::{Buf, Due, MEDIUM, Reader, Stream},
};

/// How the two directions came out.
enum Ended {
    /// The response did, whole or not.
    Answered(Result<Answered, Unanswered>),
    /// All of the request is sent, and nobody waits for a response.
    Sent,
    /// The endpoint ended without one.
    NoResponse,
    /// The client's body is malformed.
    BadBody(Broken),
    /// It is longer than a filter lets it be.
    TooLong,
    /// The client broke off its request.
    ClientGone,
    /// The kernel had no memory to wait for more of it.
    NoMemory,
    /// The time of the request is over.
    Over,
}

/// What this says of the endpoint.
fn seen(ended: &Ended, is_late: bool, is_callers_time: bool) -> Option<Seen> {
    match ended {
        Ended::Answered(answered) => respond::seen(answered, is_callers_time),
        // Who gives little time learns nothing of the endpoint.
        Ended::Over if is_callers_time => None,
        Ended::NoResponse if is_late => Some(Seen::Late),
        Ended::Over => Some(Seen::Late),
        Ended::NoResponse => Some(Seen::NoResponse),
        Ended::Sent | Ended::BadBody(_) | Ended::TooLong | Ended::ClientGone | Ended::NoMemory => None,
    }
}

impl Connection<'_> {
    pub(super) async fn exchange_streaming(
        &mut self,
        outgoing: Outgoing,
        head: &RequestHead,
        mut tried: Tried,
    ) -> Next {
        // What was received of the body is in our hands until an endpoint is reached, so any number can be tried.
        let reached = {
            let reach = pin!(self.hop.reach(&self.cluster, &mut tried, false));
            self.clock.bound(reach).await
        };
        let mut upstream = match reached {
            Some(Ok(upstream)) => upstream,
            Some(Err(why)) => return Next::End(self.refuse(Reply::unreached(why)).await),
            None => return Next::End(self.refuse(Reply::deadline_exceeded()).await),
        };
        let (uploaded, head_sent) = (Cell::new(false), Cell::new(false));
        let (ended, rest) = self.both_ways(&mut upstream, outgoing, head, &uploaded, &head_sent).await;
        let (late, stalled) = (upstream.stream.socket.is_overdue(), self.stream.socket.is_overdue());
        if let Some(seen) = seen(&ended, late, self.clock.is_callers()) {
            upstream.who().report(self.hop, seen);
        }
        match ended {
            Ended::Sent => {
                if let Some(state) = self.one_way.take() {
                    one_way::was_sent(&state);
                    one_way::drop_answer(self.hop, upstream, head.method == Method::Head, &state);
                }
                let rest = rest.unwrap_or_else(|| self.hop.buffers.holding(&[]));
                self.give(one_way::taken(false), head, rest, Some(Counter::OneWay)).await
            }
            Ended::Answered(Ok(answered)) if answered.close && !uploaded.get() => {
                self.tells(super::outcome(answered.status));
                Next::End(self.close(true).await)
            }
            Ended::Answered(Err(Unanswered::Bad(bad))) if !uploaded.get() => {
                Next::End(self.refuse(Reply::bad_response(bad)).await)
            }
            Ended::Answered(Err(Unanswered::Unwanted(_))) if !uploaded.get() => {
                Next::End(self.refuse(Reply::server_error()).await)
            }
            Ended::Answered(Err(Unanswered::Late)) if !uploaded.get() => {
                Next::End(self.refuse(Reply::late_response()).await)
            }
            Ended::Answered(answered) => {
                let rest = rest.unwrap_or_else(|| self.hop.buffers.holding(&[]));
                self.after(upstream, answered, head, rest).await
            }
            Ended::Over if head_sent.get() => {
                self.tells(Counter::DeadlineExceeded);
                self.abort().await;
                Next::End(Counter::UpstreamAborted)
            }
            Ended::NoResponse | Ended::Over => {
                let reply = match ended {
                    Ended::Over => Reply::deadline_exceeded(),
                    _ if late => Reply::late_response(),
                    _ => Reply::no_response(),
                };
                if !uploaded.get() {
                    return Next::End(self.refuse(reply).await);
                }
                let rest = rest.unwrap_or_else(|| self.hop.buffers.holding(&[]));
                self.reply(reply, head, rest).await
            }
            Ended::BadBody(bad) if !head_sent.get() => Next::End(self.refuse(Reply::malformed(bad)).await),
            Ended::TooLong if !head_sent.get() => Next::End(self.refuse(self.body_too_long()).await),
            bad @ (Ended::BadBody(_) | Ended::TooLong) => {
                let is_bad = matches!(bad, Ended::BadBody(_));
                self.tells(if is_bad { Counter::Malformed } else { Counter::Filtered });
                self.abort().await;
                Next::End(Counter::Refused)
            }
            Ended::ClientGone if stalled && !head_sent.get() => Next::End(self.refuse(Reply::body_timeout()).await),
            Ended::ClientGone if stalled => {
                self.tells(Counter::BodyTimeout);
                self.abort().await;
                Next::End(Counter::ClientAborted)
            }
            Ended::ClientGone => self.left(),
            Ended::NoMemory => self.unheard(),
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
        let (hop, limits) = (self.hop, self.limits());
        let (change, replaces_errors) = (&self.response_change, self.replaces_errors());
        let (clock, is_one_way) = (&mut self.clock, self.one_way.is_some());
        let answer = Answer { replaces_errors, ..answer(hop, head, (&limits, change), uploaded, head_sent) };
        let Stream { reader: client_reader, writer: client_writer, socket: client_socket, .. } = &mut self.stream;
        let heard = upstream.who().heard();
        let Stream { reader, writer, socket, .. } = &mut upstream.stream;
        reader.arm_on_demand(&hop.buffers, MEDIUM);
        let (up, down) = (Cell::new(0), Cell::new(0));
        let measured = self.tap.as_deref();
        let narrow = self.filtered.as_ref().and_then(|filtered| filtered.narrow.clone());
        let told = measured.map(|tap| {
            move |bytes: &[u8]| {
                tap.raw(bytes);
                !tap.is_over()
            }
        });
        let tap = told.as_ref().map(|told| told as Told<'_>);
        let copy =
            Copy { from: client_reader, to: writer, buffers: &hop.buffers, count: &up, tap, narrow: narrow.as_deref() };
        let mut upload = pin!(upload(copy, outgoing));
        let is_answering = Cell::new(false);
        let mut download = pin!(async {
            let (received, first) = reader.received().await;
            is_answering.set(true);
            match received {
                Ok(1..) => {
                    heard.now();
                    Ended::Answered(answer.give(reader, client_writer, first, &down).await)
                }
                _ => Ended::NoResponse,
            }
        });
        let is_over = || measured.is_some_and(Tap::is_over);
        let (mut client, mut rest, mut moved) = (None, None, None);
        let ended = poll_fn(|context| {
            if client.is_none()
                && let Poll::Ready((result, reader)) = upload.as_mut().poll(context)
            {
                let leaves = head.keep_alive && matches!(result, Ok(None));
                client = Some(Client { reader, socket: client_socket, leaves });
                match result {
                    Ok(behind) => {
                        uploaded.set(true);
                        rest = behind;
                        if is_one_way {
                            return Poll::Ready(Ended::Sent);
                        }
                    }
                    // It does not read on; perhaps it has answered already.
                    Err(Broken::Sending(_)) => {}
                    Err(bad @ Broken::Malformed(_)) => return Poll::Ready(Ended::BadBody(bad)),
                    Err(broken) if broken.is_for_memory() => return Poll::Ready(Ended::NoMemory),
                    Err(_) => return Poll::Ready(Ended::ClientGone),
                }
            }
            if is_over() {
                return Poll::Ready(Ended::TooLong);
            }
            // Of an answer that nobody waits for nothing is read before the request is sent.
            if !(is_one_way && client.is_none())
                && let Poll::Ready(ended) = download.as_mut().poll(context)
            {
                return Poll::Ready(ended);
            }
            let progress = (up.get(), down.get(), client.is_some(), is_answering.get());
            if moved.replace(progress) != Some(progress) {
                let waits_for_answer = client.is_some() && !is_answering.get();
                let margin = if client.is_none() { MARGIN } else { Duration::ZERO };
                let stall = limits.stall.map(|stall| stall + margin);
                set_or_clear(socket, if waits_for_answer { limits.response } else { stall }, Due::End);
                match client {
                    // The body is waited for: the endpoint has nothing to do until it comes.
                    None => set_or_clear(client_socket, limits.stall, Due::EndReceiving),
                    Some(_) if waits_for_answer => client_socket.clear_due(),
                    Some(_) => set_or_clear(client_socket, limits.stall.map(|stall| stall + MARGIN), Due::Reset),
                }
            }
            if clock.poll_over(context).is_ready() {
                return Poll::Ready(Ended::Over);
            }
            match &mut client {
                Some(client) => client.poll_gone(context).map(|()| Ended::ClientGone),
                None => Poll::Pending,
            }
        })
        .await;
        client_socket.clear_due();
        hop.slab.count_bytes(Bytes::DownstreamReceived, up.get());
        hop.slab.count_bytes(Bytes::UpstreamSent, up.get());
        hop.slab.count_bytes(Bytes::UpstreamReceived, down.get());
        hop.slab.count_bytes(Bytes::DownstreamSent, down.get());
        let ended = match ended {
            Ended::Answered(given) => Ended::Answered(given_in_time(given, socket, client_socket)),
            ended => ended,
        };
        (ended, rest)
    }
}

/// Sends a request to its end; returns what came behind it, and the client's reader.
async fn upload<'s>(mut copy: Copy<'s>, outgoing: Outgoing) -> (Result<Option<Buf>, Broken>, &'s mut Reader) {
    let sent = send_whole(&mut copy, outgoing).await;
    (sent, copy.from)
}

async fn send_whole(copy: &mut Copy<'_>, outgoing: Outgoing) -> Result<Option<Buf>, Broken> {
    let Outgoing { mut buf, mut send, head_bytes, tail, rest } = outgoing;
    // What stands behind a request that is all there but for its trailer fields.
    let mut behind = (!buf.is_empty()).then(|| copy.buffers.holding(buf.bytes()));
    if copy.narrow.is_some() {
        let head = Buf::of(&buf.memory()[send.start..send.start + head_bytes]);
        let all = head.range();
        copy.submit_at_once(head, all).await?;
        send.start += head_bytes;
    }
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
