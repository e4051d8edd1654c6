//! The response, from the endpoint to the client.

use std::{cell::Cell, ops::Range};

use super::{
    apply::{apply, change},
    request::ends_head,
};
use crate::{
    cluster::Seen,
    config::Strategy,
    decode::{
        chunked::{BadChunk, Decoder, Style, reframe},
        http1::{self, Asked, BadResponse, Framing, ResponseHead},
    },
    forward::{Broken, Copy},
    proxy::Hop,
    retry,
    ring::{Buf, Buffers, Reader, Writer},
    route::Fields,
};

/// What must be known of the request to answer it.
pub struct Answer<'a> {
    pub hop: &'a Hop,
    pub asked: Asked,
    /// Longest head.
    pub head_bytes_max: usize,
    /// Whether the client wants to go on.
    pub keep_alive: bool,
    /// Whether the endpoint is asked to say that it wants the body.
    pub asks_for_body: bool,
    /// What is changed of its fields.
    pub change: &'a Fields,
    /// Whether one of 5xx is not for the client.
    pub replaces_errors: bool,
    /// What is done about failures, by who can do something about one.
    pub judged: Option<&'a Strategy>,
    /// Whether the request was sent to its end.
    pub uploaded: &'a Cell<bool>,
    /// Whether any of a final response was sent.
    pub head_sent: &'a Cell<bool>,
}

/// A response that was passed on to its end. Its last piece may still be in flight.
#[derive(Debug)]
pub struct Answered {
    pub status: u16,
    /// The client was told that the connection ends here.
    pub close: bool,
    /// The upstream connection can carry another request: not one whose last expected to be told to go on, and was told how it ends instead.
    /// Whether the endpoint reads the body that came all the same, or takes it for a request, is its secret (RFC 9110 section 10.1.1).
    pub reusable: bool,
    /// The protocol was switched; with what has come in the new one.
    pub upgraded: Option<Buf>,
}

/// Why there is no whole response.
#[derive(Debug)]
pub enum Unanswered {
    /// It is not one, and nothing of it was passed on.
    Bad(BadResponse),
    /// It is one of 5xx that the client is not to see; nothing of it was passed on.
    Unwanted(u16),
    /// It is a failure by the rules of its service, and nothing of it was passed on: this is what has come of it.
    Failed(Buf),
    /// It broke off.
    Broken,
    /// It did not go on in time; nothing of it was passed on.
    Late,
    /// It did not go on in time.
    Stalled,
    /// The time of the request is over; whether any of it was passed on.
    Over { is_begun: bool },
    /// The client went away.
    ClientGone,
    /// The client did not take it in time.
    ClientStalled,
}

/// What this says of the endpoint; `None`: nothing, the client did not wait for it.
pub fn seen(answered: &Result<Answered, Unanswered>, is_callers_time: bool) -> Option<Seen> {
    match answered {
        // Who gives little time learns nothing of the endpoint.
        Err(Unanswered::Over { .. }) if is_callers_time => None,
        Ok(answered) => Some(Seen::Answered { status: answered.status, grpc_status: None }),
        Err(Unanswered::Unwanted(status)) => Some(Seen::Answered { status: *status, grpc_status: None }),
        Err(Unanswered::Bad(_) | Unanswered::Broken) => Some(Seen::NoResponse),
        Err(Unanswered::Late | Unanswered::Stalled | Unanswered::Over { .. }) => Some(Seen::Late),
        // Of a failure, whoever reads it to its end tells.
        Err(Unanswered::Failed(_) | Unanswered::ClientGone | Unanswered::ClientStalled) => None,
    }
}

/// Most interim responses to one request. One says "go on", a few hint at what is coming; one a second for a quarter of an hour still passes.
pub const INTERIM_MAX: usize = 1_000;
const TOO_LONG: Unanswered = Unanswered::Bad(BadResponse("its head is too long"));

impl Answer<'_> {
    /// Passes a response on, of which `buf` has the first bytes. `count` is what was passed on so far.
    pub async fn give(
        &self,
        from: &mut Reader,
        to: &mut Writer,
        mut buf: Buf,
        count: &Cell<usize>,
    ) -> Result<Answered, Unanswered> {
        let copy = &mut Copy { from, to, buffers: &self.hop.buffers, count, tap: None, narrow: None };
        let mut wants_body = !self.asks_for_body;
        for _ in 0..INTERIM_MAX {
            let head;
            (buf, head) = read_head(copy.from, copy.buffers, buf, self.asked, self.head_bytes_max).await?;
            let is_final = head.status >= 200;
            if is_final && self.judged.is_some_and(|rules| has_failed(rules, head.status)) {
                return Err(Unanswered::Failed(buf));
            }
            if self.replaces_errors && head.status >= 500 {
                copy.buffers.give(buf);
                return Err(Unanswered::Unwanted(head.status));
            }
            if head.status >= 200 || head.status == 101 {
                let answered = self.final_response(copy, buf, head).await?;
                return Ok(Answered { reusable: answered.reusable && wants_body, ..answered });
            }
            wants_body |= head.status == 100;
            buf = self.interim_response(copy, buf, &head).await?;
        }
        copy.buffers.give(buf);
        Err(Unanswered::Bad(BadResponse("too many interim responses")))
    }

    /// 100 Continue and its like: passed on, except to those who do not know them (RFC 9110 section 15.2), and but for those of an attempt whose
    /// answer may yet be another's.
    async fn interim_response(
        &self,
        copy: &mut Copy<'_>,
        mut buf: Buf,
        head: &ResponseHead,
    ) -> Result<Buf, Unanswered> {
        if self.asked.http10 || self.judged.is_some() {
            buf.consume(head.bytes);
            return Ok(buf);
        }
        let rest = copy.buffers.holding(&buf.bytes()[head.bytes..]);
        let (buf, bytes) = apply(copy.buffers, buf, head.bytes, head.start_line_bytes, &head.edits);
        let start = buf.range().start;
        copy.submit(buf, start..start + bytes).await.map_err(broken)?;
        Ok(rest)
    }

    async fn final_response(
        &self,
        copy: &mut Copy<'_>,
        buf: Buf,
        mut head: ResponseHead,
    ) -> Result<Answered, Unanswered> {
        let style = if self.asked.http10 { Style::Bare } else { Style::Chunks };
        let close = self.closes_after(&head, style);
        if !head.switches && (close || self.asked.http10) {
            let says: &[u8] = if close { b"connection: close\r\n" } else { b"connection: keep-alive\r\n" };
            head.edits.insert.extend_from_slice(says);
        }
        let (mut buf, mut head_bytes) = apply(copy.buffers, buf, head.bytes, head.start_line_bytes, &head.edits);
        if !self.change.is_empty() {
            (buf, head_bytes) = change(copy.buffers, buf, head_bytes, head.start_line_bytes, self.change);
        }
        if matches!(head.framing, Framing::Length(_)) && buf.len() == head_bytes {
            // Many servers write the head and the body one right after the other: both then leave here in one piece.
            copy.from.receive_now(&mut buf);
        }
        let range = buf.range();
        let body = range.start + head_bytes;
        let mut answered =
            Answered { status: head.status, close, reusable: head.keep_alive && self.uploaded.get(), upgraded: None };
        if head.switches {
            answered.upgraded = Some(copy.buffers.holding(&buf.memory()[body..range.end]));
            copy.submit(buf, range.start..body).await.map_err(broken)?;
            return Ok(answered);
        }
        let has_rest = match head.framing {
            Framing::None => self.first(copy, buf, range.start..body).await.map(|()| range.end > body),
            Framing::Length(length) => self.length(copy, buf, range, body, length).await,
            Framing::UntilClose => {
                self.first(copy, buf, range).await.map_err(broken)?;
                copy.until_close().await.map(|()| true)
            }
            Framing::Chunked => self.chunked(copy, buf, range, body, style).await,
        };
        // Bytes behind a response belong to no request: the connection is not to be trusted any more.
        answered.reusable &= !has_rest.map_err(|why| match why {
            Broken::Malformed(BadChunk(why)) if !self.head_sent.get() => Unanswered::Bad(BadResponse(why)),
            why => broken(why),
        })?;
        Ok(answered)
    }

    fn closes_after(&self, head: &ResponseHead, style: Style) -> bool {
        !self.keep_alive
            || !self.uploaded.get()
            || self.hop.is_draining()
            || head.framing == Framing::UntilClose
            || (head.framing == Framing::Chunked && style == Style::Bare)
    }

    async fn first(&self, copy: &mut Copy<'_>, buf: Buf, range: Range<usize>) -> Result<(), Broken> {
        copy.submit(buf, range).await?;
        self.head_sent.set(true);
        Ok(())
    }

    /// Returns whether anything came behind the body.
    async fn length(
        &self,
        copy: &mut Copy<'_>,
        buf: Buf,
        range: Range<usize>,
        body: usize,
        length: u64,
    ) -> Result<bool, Broken> {
        let here = range.end - body;
        if length <= here as u64 {
            let end = body + length as usize;
            self.first(copy, buf, range.start..end).await?;
            return Ok(range.end > end);
        }
        self.first(copy, buf, range).await?;
        Ok(copy.length(length - here as u64).await?.is_some())
    }

    /// Returns whether anything came behind the body.
    async fn chunked(
        &self,
        copy: &mut Copy<'_>,
        mut buf: Buf,
        range: Range<usize>,
        body: usize,
        style: Style,
    ) -> Result<bool, Broken> {
        let mut decoder = Decoder::default();
        let reframed = reframe(&mut decoder, buf.memory(), body - range.start, body..range.end, style)?;
        self.first(copy, buf, reframed.send).await?;
        if !reframed.tail.is_empty() {
            let tail = Buf::of(&reframed.tail);
            let all = tail.range();
            copy.submit(tail, all).await?;
        }
        if reframed.done {
            return Ok(reframed.rest < range.end);
        }
        Ok(copy.chunked(&mut decoder, style).await?.is_some())
    }
}

fn has_failed(rules: &Strategy, status: u16) -> bool {
    retry::failed(rules, Seen::Answered { status, grpc_status: None }, false).is_some()
}

/// Reads on from what is in the buffer until a response's head is there, of at most so many bytes.
pub async fn read_head(
    from: &mut Reader,
    buffers: &Buffers,
    mut buf: Buf,
    asked: Asked,
    bytes_max: usize,
) -> Result<(Buf, ResponseHead), Unanswered> {
    let mut parsed = 0;
    loop {
        // Again only when twice as much is there, or the end of the head: what comes byte by byte costs no more than what comes at once.
        if !buf.is_empty() && (buf.len() >= 2 * parsed || ends_head(&buf, parsed)) {
            parsed = buf.len();
            match http1::response(buf.bytes(), asked).map_err(Unanswered::Bad)? {
                Some(head) if head.bytes <= bytes_max => return Ok((buf, head)),
                None if parsed < bytes_max => {}
                _ => return Err(TOO_LONG),
            }
        }
        if buf.room() == 0 {
            buf = buffers.make_room(buf, bytes_max).map_err(|_| TOO_LONG)?;
        }
        from.arm(buf);
        let (received, more) = from.received().await;
        if !matches!(received, Ok(1..)) {
            return Err(Unanswered::Bad(BadResponse("it ended within its head")));
        }
        buf = more;
    }
}

fn broken(broken: Broken) -> Unanswered {
    match broken {
        Broken::Sending(_) => Unanswered::ClientGone,
        Broken::Receiving(_) | Broken::Ended | Broken::Malformed(_) => Unanswered::Broken,
    }
}
