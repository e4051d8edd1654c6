//! A request of HTTP/1 to a service with a strategy: it is received whole, and what comes of it is passed on.

use std::{
    future::poll_fn,
    io,
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use super::{
    Connection, Limits, Next,
    admitted::Denied,
    apply::apply,
    attend::{Client, set_or_clear},
    outcome,
    reply::Reply,
};
use crate::{
    cluster::OneWayState,
    config::{HttpVersion, Strategy},
    decode::{
        chunked::{BadChunk, Decoder, Event},
        http1::{Framing, Method, RequestHead},
        translate,
    },
    proxy::{
        guard::Keeping,
        one_way,
        reach::Tried,
        strategy::{Outcome, carry_out, keeps, passes_hints},
        translate::{Outlet, Progress},
        whole::{Answer, Broken, Came, Hints, Piece, Whole, within},
    },
    record::{Bytes as Count, Counter},
    ring::{Buf, Buffers, Due, Writer},
    route,
};

const GO_ON: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
/// How much of a chunked body is not data: chunks of a few bytes have that much again.
const FRAMES_BYTES_MAX: usize = 64 * 1024;

/// What became of receiving a request's body.
enum Gathered {
    /// All of it is there, and ends at this place of the buffer.
    Whole(Buf, Body, usize),
    /// It is longer than what is kept; of it, nothing was taken.
    TooLong(Buf),
    /// It never will be.
    Over(Next),
}

pub(super) struct Body {
    pub bytes: Bytes,
    pub trailers: HeaderMap,
}

/// What of a body has been read.
struct Reading {
    framing: Framing,
    decoder: Decoder,
    /// Up to where in the buffer.
    at: usize,
    data: Vec<u8>,
}

impl Reading {
    /// Reads on; whether it is all there.
    fn on(&mut self, bytes: &[u8]) -> Result<bool, BadChunk> {
        match self.framing {
            Framing::None | Framing::UntilClose => Ok(true),
            Framing::Length(length) => {
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                let here = (bytes.len() - self.at).min(length - self.data.len());
                self.data.extend_from_slice(&bytes[self.at..self.at + here]);
                self.at += here;
                Ok(self.data.len() == length)
            }
            Framing::Chunked => {
                while let Event::Data(piece) = self.decoder.next(bytes, &mut self.at)? {
                    self.data.extend_from_slice(&bytes[piece]);
                }
                Ok(self.decoder.is_done())
            }
        }
    }
}

impl Connection<'_> {
    /// Does with a request what the service's strategy says; gives back one that is too long to be kept, to go its way as any other.
    pub(super) async fn by_strategy(&mut self, buf: Buf, head: &RequestHead) -> Result<Next, Buf> {
        let (cluster, of_route) = (Rc::clone(&self.cluster), self.strategy.take());
        let rules = of_route.as_deref().or(cluster.service.config.strategy.as_ref());
        let one_way = self.one_way.clone();
        let (bytes_max, lets_pass) = keeps(rules.filter(|_| one_way.is_none()));
        let (buf, body, end) = match self.gather(buf, head, bytes_max).await {
            Gathered::Whole(buf, body, end) => (buf, body, end),
            Gathered::TooLong(buf) if lets_pass => {
                // What an endpoint says before its answer is for nobody.
                if one_way.is_some() && head.expects_continue && buf.len() == head.bytes {
                    self.say_go_on().await;
                }
                return Err(buf);
            }
            Gathered::TooLong(_) => return Ok(Next::End(self.refuse(Reply::body_too_large(bytes_max)).await)),
            Gathered::Over(next) => return Ok(next),
        };
        self.hop.slab.count_bytes(Count::DownstreamReceived, end);
        if let Err(denied) = self.dawdle(body.bytes.len(), head.keep_alive && buf.len() == end).await {
            return Ok(match denied {
                Denied::Answered(reply) => Next::End(self.refuse(reply).await),
                Denied::Gone => self.left(),
            });
        }
        let rest = self.hop.buffers.holding(&buf.bytes()[end..]);
        Ok(match (self.whole(buf, head, body), one_way) {
            (Ok(request), Some(state)) => self.sent_off(request, &state, head, rest).await,
            (Ok((whole, tried)), None) => self.carried_out(whole, (tried, None), rules, (head, rest)).await,
            (Err(reply), _) => Next::End(self.refuse(reply).await),
        })
    }

    /// Answers a request that is all there, and sends it.
    async fn sent_off(
        &mut self,
        request: (Whole, Tried),
        state: &Arc<OneWayState>,
        head: &RequestHead,
        rest: Buf,
    ) -> Next {
        let is_grpc = request.0.asked.is_grpc;
        self.one_way = None;
        match one_way::send(self.hop, &self.cluster, request, state) {
            Ok(()) => self.give(one_way::taken(is_grpc), head, rest, Some(Counter::OneWay)).await,
            Err(reply) => self.reply(reply, head, rest).await,
        }
    }

    fn whole(&self, buf: Buf, head: &RequestHead, body: Body) -> Result<(Whole, Tried), Reply> {
        let (buf, bytes) = apply(&self.hop.buffers, buf, head.bytes, head.start_line_bytes, &head.edits);
        let whole = self.whole_of(&buf.bytes()[..bytes], body);
        self.hop.buffers.give(buf);
        whole
    }

    /// Of a head, its edits made, and a body.
    pub(super) fn whole_of(&self, head: &[u8], body: Body) -> Result<(Whole, Tried), Reply> {
        let is_secure = self.cluster.service.config.tls.originate.is_some();
        let request = translate::request_to_http2(head, is_secure).map_err(Reply::refused)?;
        let of = || route::Request::of_parts(&request.0, self.stream.is_tls(), self.asker.source);
        let tried = Tried::for_request(self.hop, &self.cluster, self.asker, of);
        let cluster = (&*self.cluster, HttpVersion::Http1);
        let whole =
            Whole::new(request, (body.bytes, body.trailers), cluster, self.clock.time()).map_err(Reply::refused)?;
        Ok((whole, tried))
    }

    /// Receives a body of at most so many bytes.
    async fn gather(&mut self, mut buf: Buf, head: &RequestHead, bytes_max: usize) -> Gathered {
        if matches!(head.framing, Framing::Length(length) if length > bytes_max as u64) {
            return Gathered::TooLong(buf);
        }
        let mut reading =
            Reading { framing: head.framing, decoder: Decoder::default(), at: head.bytes, data: Vec::new() };
        let mut must_say = head.expects_continue;
        let refused = |why| Reply::malformed(why);
        loop {
            match reading.on(buf.bytes()) {
                Ok(true) => break,
                Ok(false) if reading.data.len() > bytes_max => return Gathered::TooLong(buf),
                Ok(false) => {}
                Err(bad) => return Gathered::Over(Next::End(self.refuse(refused(bad)).await)),
            }
            if std::mem::take(&mut must_say) && reading.data.is_empty() {
                self.say_go_on().await;
            }
            buf = match self.more_of_body(buf, head.bytes + bytes_max + FRAMES_BYTES_MAX).await {
                Ok(buf) => buf,
                Err(gathered) => return gathered,
            };
        }
        let Reading { decoder, at, data, .. } = reading;
        let trailers = match translate::trailers_to_http2(decoder.trailers()) {
            _ if head.framing != Framing::Chunked => HeaderMap::new(),
            Ok(trailers) => trailers,
            Err(bad) => return Gathered::Over(Next::End(self.refuse(Reply::malformed(bad)).await)),
        };
        if data.len() > bytes_max {
            Gathered::TooLong(buf)
        } else {
            Gathered::Whole(buf, Body { bytes: data.into(), trailers }, at)
        }
    }

    /// Who waits to be told that its body is wanted is told.
    async fn say_go_on(&mut self) {
        if self.flush().await.is_ok() {
            let bytes = Buf::of(GO_ON);
            let range = bytes.range();
            self.stream.writer.submit(bytes, range);
        }
    }

    async fn more_of_body(&mut self, buf: Buf, bytes_max: usize) -> Result<Buf, Gathered> {
        let buf = match buf.room() {
            0 => self.hop.buffers.make_room(buf, bytes_max).map_err(Gathered::TooLong)?,
            _ => buf,
        };
        set_or_clear(&self.stream.socket, self.limits().stall, Due::EndReceiving);
        self.stream.reader.arm(buf);
        let (received, buf) = self.received().await;
        match received {
            Ok(bytes @ 1..) => {
                self.stream.socket.clear_due();
                if let Some(tap) = &self.tap {
                    tap.raw(&buf.bytes()[buf.len() - bytes..]);
                }
                Ok(buf)
            }
            _ if self.stream.socket.is_overdue() => {
                Err(Gathered::Over(Next::End(self.refuse(Reply::body_timeout()).await)))
            }
            _ => Err(Gathered::Over(self.left())),
        }
    }

    /// Does with a request what the rules say. `first` is what came of an attempt that was made before, and failed.
    pub(super) async fn carried_out(
        &mut self,
        mut whole: Whole,
        (tried, first): (Tried, Option<Came>),
        rules: Option<&Strategy>,
        (head, rest): (&RequestHead, Buf),
    ) -> Next {
        let (is_secure, asker) = (self.stream.is_tls(), self.asker);
        let guard = self.keeper().cloned();
        let (guard, leave) = (guard.as_ref(), self.leave.as_ref());
        let keeping = Keeping { rules, guard, leave, client: HttpVersion::Http1, is_secure, asker };
        // Those who speak HTTP/1.0 do not know them (RFC 9110 section 15.2).
        let hints = (!head.is_http10 && passes_hints(&keeping) && !self.may_stand_in()).then(Hints::default);
        whole.hints.clone_from(&hints);
        let writer = &mut self.stream.writer;
        let mut client = Client {
            reader: &mut self.stream.reader,
            socket: &self.stream.socket,
            leaves: head.keep_alive && rest.is_empty(),
        };
        let outcome = {
            let clock = &mut self.clock;
            let mut carrying = pin!(carry_out(self.hop, &self.cluster, Rc::new(whole), (tried, first), &keeping));
            poll_fn(|context| {
                if clock.poll_over(context).is_ready() {
                    return Poll::Ready(None);
                }
                match carrying.as_mut().poll(context) {
                    Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
                    Poll::Pending => {
                        let is_gone = hints
                            .as_ref()
                            .is_some_and(|hints| pass_hints(hints, writer, &self.hop.buffers, context).is_err());
                        if is_gone { Poll::Ready(None) } else { client.poll_gone(context).map(|()| None) }
                    }
                }
            })
            .await
        };
        if outcome.is_some()
            && let Some(hints) = hints
            && let Err(ended) = self.give_hints(&hints).await
        {
            return ended;
        }
        match outcome {
            None if self.clock.is_over() => self.reply(Reply::deadline_exceeded(), head, rest).await,
            None => self.left(),
            Some((Outcome::Refused(reply), _)) => self.reply(reply, head, rest).await,
            Some((Outcome::Ours(answer, counter), _)) => self.give(answer, head, rest, Some(counter)).await,
            Some((Outcome::Answered(answer), _)) if self.is_unwanted(&answer) => {
                self.reply(Reply::server_error(), head, rest).await
            }
            Some((Outcome::Answered(answer), _place)) => {
                let answer = match &mut self.filtered {
                    Some(filtered) => filtered.or_stored(answer, &mut self.response_change),
                    None => answer,
                };
                self.give(answer, head, rest, None).await
            }
        }
    }

    fn may_stand_in(&self) -> bool {
        self.filtered.as_ref().is_some_and(|filtered| filtered.may_stand_in())
    }

    /// Passes on what came before an answer that is there by now.
    async fn give_hints(&mut self, hints: &Hints) -> Result<(), Next> {
        let mut bytes = Vec::new();
        while let Some(parts) = hints.next() {
            bytes.extend(translate::response_to_http1(&parts, Framing::None, None));
        }
        let (limits, progress) = (self.limits(), Progress::default());
        let (to, buffers) = (&mut self.stream.writer, &*self.hop.buffers);
        let mut outlet = Outlet { to, buffers, progress: &progress, tap: None, narrow: None };
        match send(&mut outlet, &mut bytes, &limits).await {
            Ok(()) => Ok(()),
            Err(Ended::ClientStalled) => Err(self.client_stalled()),
            Err(_) => Err(self.left()),
        }
    }

    fn client_stalled(&mut self) -> Next {
        self.stream.socket.reset();
        self.tells(Counter::ClientStalled);
        Next::End(Counter::ClientAborted)
    }

    /// Passes an answer on.
    pub(super) async fn give(
        &mut self,
        mut answer: Answer,
        head: &RequestHead,
        rest: Buf,
        counter: Option<Counter>,
    ) -> Next {
        self.response_change.of_map(&mut answer.parts.headers);
        let answer = match &mut self.filtered {
            Some(filtered) => filtered.dress(answer, counter.is_some()),
            None => answer,
        };
        let Answer { parts, mut body } = answer;
        let is_bare =
            head.method == Method::Head || matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let announces = !head.is_http10 && !body.is_empty() && translate::announces_trailers(&parts.headers, None);
        let framing = match (translate::declared_length(&parts.headers), body.ready_bytes()) {
            _ if is_bare => Framing::None,
            (Some(_), None) if announces => Framing::Chunked,
            (Some(length), _) => Framing::Length(length),
            (None, Some(bytes)) => Framing::Length(bytes as u64),
            (None, None) if body.is_empty() => Framing::Length(0),
            (None, None) if head.is_http10 => Framing::UntilClose,
            (None, None) => Framing::Chunked,
        };
        let close = !head.keep_alive || self.hop.is_draining() || framing == Framing::UntilClose;
        let says = (close || head.is_http10).then_some(!close);
        let mut bytes = translate::response_to_http1(&parts, framing, says);
        let status = parts.status.as_u16();
        let limits = self.limits();
        // What is there already leaves with the head.
        let mut next = body.next_now().await;
        let progress = Progress::default();
        let mut outlet = Outlet {
            to: &mut self.stream.writer,
            buffers: &self.hop.buffers,
            progress: &progress,
            tap: None,
            narrow: None,
        };
        let ended = loop {
            let (is_over, broken) = match next.take() {
                None => (false, None),
                Some(Ok(Piece::Data(data))) => {
                    frame(&mut bytes, &data, framing);
                    (false, None)
                }
                Some(Ok(Piece::End(trailers))) => {
                    end(&mut bytes, &trailers, framing);
                    (true, None)
                }
                Some(Err(broken)) => (true, Some(broken)),
            };
            if let Err(ended) = send(&mut outlet, &mut bytes, &limits).await {
                break ended;
            }
            match broken {
                Some(Broken::Off) => break Ended::Off(Counter::ResponseAborted),
                Some(Broken::Late) => break Ended::Off(Counter::ResponseStalled),
                None if is_over => break Ended::Well,
                None => {}
            }
            // A client that leaves is noticed when it is sent something.
            next = match self.clock.bound(body.next()).await {
                None => break Ended::Off(Counter::DeadlineExceeded),
                came => came,
            };
        };
        self.hop.slab.count_bytes(Count::DownstreamSent, progress.bytes.get());
        match ended {
            Ended::Well => self.tells(counter.unwrap_or_else(|| outcome(status))),
            Ended::ClientGone => return self.left(),
            Ended::ClientStalled => return self.client_stalled(),
            Ended::Off(counter) => {
                self.tells(counter);
                self.abort().await;
                return Next::End(Counter::UpstreamAborted);
            }
        }
        if close {
            return Next::End(self.close(!rest.is_empty()).await);
        }
        self.put_back(rest);
        Next::Request
    }
}

/// How passing an answer on came out.
enum Ended {
    Well,
    /// The answer broke off.
    Off(Counter),
    ClientGone,
    /// The client did not take it in time.
    ClientStalled,
}

/// Passes on what has come before an answer, as fast as its client takes it; `Err`: that has gone.
fn pass_hints(hints: &Hints, to: &mut Writer, buffers: &Buffers, context: &mut Context<'_>) -> io::Result<()> {
    loop {
        if to.is_sending() {
            let Poll::Ready((result, buf)) = to.poll_sent(context) else { return Ok(()) };
            buffers.give(buf);
            result?;
        }
        let Some(parts) = hints.next() else { return Ok(()) };
        let buf = Buf::of(&translate::response_to_http1(&parts, Framing::None, None));
        let range = buf.range();
        to.submit(buf, range);
    }
}

/// Puts a piece of a body behind what is to be sent.
fn frame(bytes: &mut Vec<u8>, data: &[u8], framing: Framing) {
    match framing {
        Framing::None => {}
        Framing::Length(_) | Framing::UntilClose => bytes.extend_from_slice(data),
        Framing::Chunked => {
            bytes.extend_from_slice(format!("{:x}\r\n", data.len()).as_bytes());
            bytes.extend_from_slice(data);
            bytes.extend_from_slice(b"\r\n");
        }
    }
}

/// Puts the end of a body there.
fn end(bytes: &mut Vec<u8>, trailers: &HeaderMap, framing: Framing) {
    if framing == Framing::Chunked {
        [b"0\r\n", &translate::trailers_to_http1(trailers)[..], b"\r\n"]
            .iter()
            .for_each(|part| bytes.extend_from_slice(part));
    }
}

/// Sends what there is.
async fn send(outlet: &mut Outlet<'_>, bytes: &mut Vec<u8>, limits: &Limits) -> Result<(), Ended> {
    if bytes.is_empty() {
        return Ok(());
    }
    let buf = Buf::of(bytes);
    bytes.clear();
    let stall: Option<Duration> = limits.stall;
    match within(stall, outlet.submit(buf)).await {
        Some(Ok(())) => Ok(()),
        Some(Err(_)) => Err(Ended::ClientGone),
        None => Err(Ended::ClientStalled),
    }
}
