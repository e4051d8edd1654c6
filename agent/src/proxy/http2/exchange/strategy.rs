//! A request of HTTP/2 to a service with a strategy: it is received whole, and what comes of it is passed on.

use std::{future::poll_fn, pin::pin, rc::Rc, task::Poll, time::Duration};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, client::ResponseFuture};
use http::{HeaderValue, Response, StatusCode, header, request::Parts};

use super::{Ended, Exchange};
use crate::{
    config::{HttpVersion, Strategy},
    decode::http2,
    proxy::{
        guard::Keeping,
        http::{Limits, Reply},
        http2::body::{self, grpc_status},
        one_way,
        reach::{Shared, Tried, Upstream},
        strategy::{Outcome, carry_out, keeps, passes_hints},
        translate::{Gathered, gather, release},
        whole::{self, Answer, Broken, Hints, Piece, Whole, within},
    },
    record::Counter,
    route,
};

/// After so long without more of it a body is not waited for where it could go its way as it comes: who has nothing to say may be waiting for an
/// answer.
const PAUSE: Duration = Duration::from_millis(100);

/// A request that goes its way as any other, with what has come of its body.
pub(super) type Kept = (Parts, Option<Gathered>);

impl Exchange<'_> {
    /// Does with a request what the service's strategy says; gives back one that is too long to be kept.
    pub(super) async fn by_strategy(&mut self, mut parts: Parts, body: &mut RecvStream) -> Result<Counter, Kept> {
        let cluster = Rc::clone(&self.cluster);
        let of_route = self.strategy.take();
        let rules = of_route.as_deref().or(cluster.service.config.strategy.as_ref());
        if !body.is_end_stream() && parts.headers.remove(header::EXPECT).is_some() {
            let mut go_on = Response::new(());
            *go_on.status_mut() = StatusCode::CONTINUE;
            // Fails only if the client is gone, which is noticed soon enough.
            let _ = self.respond.send_informational(go_on);
        }
        let limits = Limits::of(&cluster);
        let (bytes_max, lets_pass) = keeps(rules.filter(|_| self.one_way.is_none()));
        let patience = if lets_pass { Some(PAUSE) } else { limits.stall };
        let mut all = if body.is_end_stream() { Gathered::nothing() } else { Gathered::default() };
        while all.end.is_none() && all.bytes <= bytes_max {
            match within(patience, gather(body, true)).await {
                Some(Ok(more)) => all.join(more),
                Some(Err(error)) => return Ok(self.ended(Ended::RequestBroken(error))),
                None if lets_pass => return Err((parts, Some(all))),
                None => return Ok(self.reply(&Reply::body_timeout())),
            }
        }
        if all.bytes > bytes_max {
            return if lets_pass { Err((parts, Some(all))) } else { Ok(self.reply(&Reply::body_too_large(bytes_max))) };
        }
        release(body, &all);
        if let Some(tap) = &self.tap {
            all.tell(tap);
            tap.stop_if_over().await;
        }
        if !self.dawdles(all.bytes).await {
            return Ok(Counter::RequestAborted);
        }
        Ok(self.carried_out(parts, all, rules).await)
    }

    async fn carried_out(&mut self, parts: Parts, body: Gathered, rules: Option<&Strategy>) -> Counter {
        let cluster = Rc::clone(&self.cluster);
        let (asker, is_secure) = (self.connection.asker, self.connection.is_secure);
        let hop = &self.connection.hop;
        let tried =
            Tried::for_request(hop, &cluster, asker, || route::Request::of_parts(&parts, is_secure, asker.source));
        let mut trailers = body.end.clone().unwrap_or_default();
        if http2::trailers(&mut trailers).is_err() {
            return self.ended(Ended::RequestBroken(Reason::PROTOCOL_ERROR.into()));
        }
        let request = ((parts, self.asked), (body.bytes(), trailers));
        let mut whole = match Whole::new(request.0, request.1, (&cluster, HttpVersion::Http2), self.time) {
            Ok(whole) => whole,
            Err(bad) => return self.reply(&Reply::refused(bad)),
        };
        if let Some(state) = self.one_way.take() {
            return match one_way::send(hop, &cluster, (whole, tried), &state) {
                Ok(()) => self.taken().await,
                Err(reply) => self.reply(&reply),
            };
        }
        let (guard, leave) = (self.keeper().cloned(), self.leave.clone());
        let keeping = Keeping {
            rules,
            guard: guard.as_ref(),
            leave: leave.as_deref(),
            client: HttpVersion::Http2,
            is_secure,
            asker,
        };
        let may_stand_in = self.filtered.as_ref().is_some_and(|filtered| filtered.may_stand_in());
        let hints = (passes_hints(&keeping) && !may_stand_in).then(Hints::default);
        whole.hints.clone_from(&hints);
        // Its time is looked at there.
        self.begins();
        let outcome = {
            let mut carrying = pin!(carry_out(hop, &cluster, Rc::new(whole), (tried, None), &keeping));
            poll_fn(|context| {
                let outcome = carrying.as_mut().poll(context);
                while let Some(hint) = hints.as_ref().and_then(Hints::next) {
                    if self.respond.send_informational(Response::from_parts(hint, ())).is_err() {
                        return Poll::Ready(None);
                    }
                }
                match outcome {
                    Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
                    Poll::Pending => self.respond.poll_reset(context).map(|_| None),
                }
            })
            .await
        };
        match outcome {
            None => Counter::RequestAborted,
            Some((Outcome::Refused(reply), _)) => match self.stored_for(reply.status()) {
                Some(stored) => self.give(stored, &Limits::of(&cluster), false).await,
                None => self.reply(&reply),
            },
            Some((Outcome::Answered(answer), _))
                if self.is_unwanted(answer.parts.status.as_u16(), &answer.parts.headers) =>
            {
                self.reply(&Reply::server_error())
            }
            Some((Outcome::Answered(answer), _place)) => {
                let answer = match &mut self.filtered {
                    Some(filtered) => filtered.or_stored(answer, &mut self.change),
                    None => answer,
                };
                self.give(answer, &Limits::of(&cluster), false).await
            }
            Some((Outcome::Ours(answer, counter), _)) => match self.give(answer, &Limits::of(&cluster), true).await {
                Counter::Answered2xx => counter,
                other => other,
            },
        }
    }

    /// Answers a request that nobody waits for to be answered.
    async fn taken(&mut self) -> Counter {
        let limits = Limits::of(&self.cluster);
        match self.give(one_way::taken(self.asked.is_grpc), &limits, true).await {
            Counter::Answered2xx => Counter::OneWay,
            other => other,
        }
    }

    /// One that was streamed to its endpoint, all of it.
    pub(super) async fn sent(&mut self, (upstream, response): (Shared, Option<ResponseFuture>)) -> Counter {
        if let Some((state, response)) = self.one_way.take().zip(response) {
            one_way::was_sent(&state);
            one_way::drop_response(upstream, whole::read_away(response), &state);
        }
        self.taken().await
    }

    /// The same to an endpoint of HTTP/1.
    pub(super) async fn sent_to_http1(&mut self, upstream: Upstream) -> Counter {
        if let Some(state) = self.one_way.take() {
            one_way::was_sent(&state);
            one_way::drop_answer(&self.connection.hop, upstream, self.asked.is_head, &state);
        }
        self.taken().await
    }

    /// Passes an answer on.
    pub(super) async fn give(&mut self, mut answer: Answer, limits: &Limits, is_ours: bool) -> Counter {
        self.change.of_map(&mut answer.parts.headers);
        let answer = match &mut self.filtered {
            Some(filtered) => filtered.dress(answer, is_ours),
            None => answer,
        };
        let Answer { mut parts, mut body } = answer;
        // Of a body that is not there, its length is not that of nothing.
        let has_none = matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        if let Some(bytes) = body.ready_bytes().filter(|_| !has_none) {
            parts.headers.entry(header::CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(bytes));
        }
        let status = parts.status.as_u16();
        self.begins();
        self.has_status = super::is_grpc(&parts.headers);
        let is_whole = self.asked.is_head || body.is_empty();
        let mut said = grpc_status(&parts.headers);
        let Ok(down) = self.respond.send_response(Response::from_parts(parts, ()), is_whole) else {
            return Counter::RequestAborted;
        };
        let down = self.down.insert(down);
        let broken = loop {
            match body.next().await {
                Ok(Piece::Data(_)) if is_whole => {}
                Ok(Piece::Data(data)) => match within(limits.stall, send(down, data)).await {
                    Some(Ok(())) => {}
                    Some(Err(_)) => return Counter::RequestAborted,
                    None => break Err((Counter::ClientStalled, Reason::CANCEL)),
                },
                Ok(Piece::End(_)) if is_whole => break Ok(()),
                Ok(Piece::End(trailers)) => {
                    said = grpc_status(&trailers).or(said);
                    let sent = match trailers.is_empty() {
                        true => down.send_data(Bytes::new(), true),
                        false => down.send_trailers(trailers),
                    };
                    break sent.map_err(|_| (Counter::RequestAborted, Reason::CANCEL));
                }
                Err(Broken::Off) => break Err((Counter::ResponseAborted, Reason::INTERNAL_ERROR)),
                Err(Broken::Late) => break Err((Counter::ResponseStalled, Reason::INTERNAL_ERROR)),
            }
        };
        match broken {
            Ok(()) => self.ended(Ended::Answered(status, said)),
            Err((counter, reason)) => {
                self.reset(reason);
                counter
            }
        }
    }
}

/// Sends a piece as the client's windows allow.
async fn send(to: &mut SendStream<Bytes>, mut piece: Bytes) -> Result<(), body::Broken> {
    to.reserve_capacity(piece.len());
    while !piece.is_empty() {
        let room = match to.capacity() {
            0 => body::capacity(to).await?,
            room => room,
        };
        to.send_data(piece.split_to(room.min(piece.len())), false).map_err(|_| body::Broken::To)?;
    }
    Ok(())
}
