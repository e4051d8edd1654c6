//! A request that is all there before it is passed on: one buffer, which is sent again where no endpoint can have seen it.

use std::{cell::Cell, io, ops::Range, pin::pin};

use super::{
    Connection, Next, answer,
    attend::{Client, OwnTime, first_answer, pass_on, set_or_clear, take_back},
    limits::Limits,
    quick::{self, Fallen},
    reply::Reply,
    respond::{self, Answer, Unanswered},
};
use crate::{
    cluster::Seen,
    config::{Strategy, guard::Why},
    decode::http1::RequestHead,
    proxy::{reach::Tried, whole::Missed},
    record::Counter,
    ring::{Buf, Due, MEDIUM, Stream},
};

/// How often a request that got no byte of a response is sent again: once for the reused connection, once for another endpoint.
const REPLAYS_MAX: usize = 2;

impl Connection<'_> {
    /// A request that is all there, in one buffer. Who can do something about a failure is given it.
    pub(super) async fn exchange_whole(
        &mut self,
        mut buf: Buf,
        send: Range<usize>,
        head: &RequestHead,
        (mut tried, judged): (Tried, Option<&Strategy>),
        mut own: Option<OwnTime>,
    ) -> Result<Next, Box<Fallen>> {
        let limits = Limits::of(&self.cluster);
        let leaves = head.keep_alive && buf.is_empty();
        // What is said if an endpoint did accept, but gave no response.
        let (mut replays, mut mute) = (0, None);
        loop {
            let until = self.until();
            let reached = {
                // Pinned before it is wrapped: a function that takes a future by value holds it twice.
                let reach = pin!(self.hop.reach(&self.cluster, &mut tried, replays > 0));
                let reach = pin!(self.patience.bound(until, reach));
                self.clock.bound(reach).await
            };
            let mut upstream = match reached {
                Some(Some(Ok(upstream))) => upstream,
                Some(Some(Err(why))) if judged.is_some() && mute.is_none() => {
                    return Err(Fallen::of(Err(Missed::Unreached(why)), buf, send));
                }
                Some(Some(Err(why))) => {
                    return Ok(self.reply(mute.unwrap_or_else(|| Reply::unreached(why)), head, buf).await);
                }
                Some(None) => return Ok(self.reply(Reply::guarded(Why::Timeout), head, buf).await),
                None => return Ok(self.reply(Reply::deadline_exceeded(), head, buf).await),
            };
            upstream.stream.reader.arm_on_demand(&self.hop.buffers, MEDIUM);
            let sent_before = upstream.stream.writer.taken();
            upstream.stream.writer.submit(buf, send.clone());
            set_or_clear(&upstream.stream.socket, limits.response, Due::End);
            let mut client = Client { reader: &mut self.stream.reader, socket: &self.stream.socket, leaves };
            let sent = &mut self.pending;
            let answered = {
                let answer = first_answer(&mut upstream.stream, &mut client, sent, &mut own, &mut self.clock);
                let answer = pin!(answer);
                self.patience.bound(until, answer).await
            };
            let Some(answered) = answered else {
                return Ok(self.isolated(upstream, head).await);
            };
            let Some((received, response)) = answered else { return Ok(self.waits_no_more(upstream, head).await) };
            if !matches!(received, Ok(1..)) {
                self.hop.buffers.give(response);
                let has_ended = received.is_ok();
                let is_late = upstream.stream.socket.is_overdue();
                upstream.who().report(self.hop, if is_late { Seen::Late } else { Seen::NoResponse });
                if is_late {
                    let buf = take_back(&mut upstream.stream, &mut self.pending).await;
                    if judged.is_some() {
                        return Err(Fallen::of(Err(Missed::Late), buf, send));
                    }
                    return Ok(self.reply(Reply::late_response(), head, buf).await);
                }
                if judged.is_some() {
                    let is_unprocessed = upstream.stream.never_arrived(sent_before, has_ended).await;
                    buf = take_back(&mut upstream.stream, &mut self.pending).await;
                    let is_idempotent = head.method.is_idempotent();
                    // The race that any reuse runs says nothing of the endpoint: it is asked on a connection of its own.
                    if upstream.reused && (is_unprocessed || is_idempotent) {
                        self.hop.slab.count(if is_idempotent { Counter::Replayed } else { Counter::ReplayedUnseen });
                        replays += 1;
                        continue;
                    }
                    let why = received.err().filter(|error| error.kind() == io::ErrorKind::InvalidData);
                    let why = why.map(|error| error.to_string());
                    let missed = Missed::Silent { why, reset: None, is_unprocessed };
                    return Err(Fallen::of(Err(missed), buf, send));
                }
                let why = self.may_replay(&upstream.stream, (sent_before, has_ended), head, replays).await;
                buf = take_back(&mut upstream.stream, &mut self.pending).await;
                let no_response = no_response(&received);
                let Some(why) = why else { return Ok(self.reply(no_response, head, buf).await) };
                // A reused connection may have ended as we sent: the race that any reuse runs. One that was just made says more of the
                // endpoint: another is asked.
                if !upstream.reused {
                    mute = Some(no_response);
                    tried.add(&upstream);
                }
                self.hop.slab.count(why);
                replays += 1;
                continue;
            }
            upstream.who().heard().now();
            let uploaded = Cell::new(!upstream.stream.writer.is_sending());
            let head_sent = Cell::new(false);
            let answer = Answer {
                replaces_errors: self.replaces_errors(),
                judged,
                ..answer(self.hop, head, (&limits, &self.response_change), &uploaded, &head_sent)
            };
            let client = Client { reader: &mut self.stream.reader, socket: &self.stream.socket, leaves };
            let to = &mut self.stream.writer;
            let rules = (limits.stall, &mut self.clock);
            let answered = pass_on(&answer, &mut upstream.stream, to, client, response, rules).await;
            if let Some(own) = own
                && self.flush().await.is_ok()
            {
                self.hop.slab.overhead.observe(own.total());
            }
            if let Some(seen) = respond::seen(&answered, self.clock.is_callers()) {
                upstream.who().report(self.hop, seen);
            }
            let buf = take_back(&mut upstream.stream, &mut self.pending).await;
            if judged.is_some()
                && matches!(answered, Err(Unanswered::Failed(_) | Unanswered::Bad(_) | Unanswered::Late))
            {
                let came = quick::came(self.hop, upstream, answered, head).await;
                return Err(Fallen::of(came, buf, send));
            }
            return Ok(self.after(upstream, answered, head, buf).await);
        }
    }

    /// Whether a request that got no response may be sent once more, and as what that counts: one that may be repeated, a few times; another
    /// once, if no byte of it can have been processed.
    async fn may_replay(
        &self,
        upstream: &Stream,
        (sent_before, has_ended): (u64, bool),
        head: &RequestHead,
        replays: usize,
    ) -> Option<Counter> {
        if head.method.is_idempotent() {
            return (replays < REPLAYS_MAX).then_some(Counter::Replayed);
        }
        (replays == 0 && upstream.never_arrived(sent_before, has_ended).await).then_some(Counter::ReplayedUnseen)
    }
}

/// What is said when there was nothing but this; under TLS it may tell why, that a certificate is missing for example.
fn no_response(received: &io::Result<usize>) -> Reply {
    match received {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Reply::no_response_because(error, None),
        _ => Reply::no_response(),
    }
}
