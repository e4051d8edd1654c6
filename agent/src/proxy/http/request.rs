//! Waiting for a request and reading its head.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use super::{Connection, reply::Reply};
use crate::{
    decode::http1::{self, RequestHead},
    proxy::FIRST_REQUEST,
    record::Counter,
    ring::{Buf, Due, SMALL, Turned, Watch},
};

/// How long a client may be silent between requests. Longer than most clients keep an unused connection, so that it is they who end
/// it and no request meets a connection just closed.
const IDLE: Duration = Duration::from_secs(600);

/// After so many turns of the watch without a request a connection sleeps.
const TURNS_AWAKE: u32 = 2;

/// Why there is no request.
pub enum End {
    /// None has come for a while: the connection may sleep until something does.
    Silent,
    /// The connection ended, and nothing is to be said.
    Quiet(Counter),
    /// What came is no request.
    Refuse(Reply),
}

impl Connection<'_> {
    /// Reads the next request's head. The buffer begins with it. `turned` is the next turn of the `watch`.
    pub(super) async fn request<'w>(
        &mut self,
        watch: &'w Watch,
        turned: Pin<&mut Turned<'w>>,
    ) -> Result<(Buf, RequestHead), End> {
        let mut buf = match self.pending.take() {
            Some(buf) => buf,
            None => self.first_bytes(watch, turned).await?,
        };
        let http = &self.cluster.service.config.http;
        let (bytes_max, fields_max) = (http.head_bytes_max, http.head_fields_max);
        let mut parsed = 0;
        loop {
            skip_empty_line(&mut buf);
            // Again only when twice as much is there, or its end: what a client sends byte by byte costs no more than what it sends at once.
            if buf.len() >= 2 * parsed || ends_head(&buf, parsed) {
                parsed = buf.len();
                match http1::request(buf.bytes(), fields_max) {
                    Ok(Some(head)) if head.bytes <= bytes_max => {
                        self.stream.socket.clear_due();
                        return Ok((buf, head));
                    }
                    Ok(None) if parsed < bytes_max => {}
                    Ok(_) => return Err(End::Refuse(too_long(&buf))),
                    Err(bad) => return Err(End::Refuse(Reply::refused(bad))),
                }
            }
            buf = self.more(buf, bytes_max).await?;
        }
    }

    /// Waits between requests.
    async fn first_bytes<'w>(&mut self, watch: &'w Watch, mut turned: Pin<&mut Turned<'w>>) -> Result<Buf, End> {
        self.stream.reader.arm_on_demand(&self.hop.buffers, SMALL);
        self.stream.socket.set_due(IDLE, if self.was_asked { Due::Idle } else { Due::Unasked });
        if self.hop.is_draining() {
            // What has come already is served, and the first request that comes; nothing more.
            self.stream.socket.drain(FIRST_REQUEST);
        }
        let mut turns = 0;
        let received = poll_fn(|context| {
            if let Poll::Ready(received) = self.poll_received(context) {
                return Poll::Ready(Some(received));
            }
            while turned.as_mut().poll(context).is_ready() {
                turned.set(watch.turned());
                turns += 1;
            }
            // What the client does not take is still being sent.
            let sleeps = turns >= TURNS_AWAKE && !self.stream.writer.is_sending();
            if sleeps { Poll::Ready(None) } else { Poll::Pending }
        })
        .await;
        let Some((received, buf)) = received else { return Err(End::Silent) };
        match received {
            Ok(1..) => {
                self.stream.socket.clear_due();
                self.was_asked = true;
                Ok(buf)
            }
            Err(error) if error.kind() == io::ErrorKind::OutOfMemory => Err(End::Quiet(Counter::NoMemory)),
            _ => {
                let is_ours = self.stream.socket.is_overdue();
                Err(End::Quiet(if is_ours { Counter::Idle } else { Counter::ClientDone }))
            }
        }
    }

    /// Waits for more of a head.
    async fn more(&mut self, buf: Buf, bytes_max: usize) -> Result<Buf, End> {
        let buf = match buf.room() {
            0 => self.hop.buffers.make_room(buf, bytes_max).map_err(|buf| End::Refuse(too_long(&buf)))?,
            _ => buf,
        };
        if !self.stream.socket.has_due() {
            self.stream.socket.set_due(self.cluster.service.config.http.head_timeout, Due::EndReceiving);
        }
        self.stream.reader.arm(buf);
        let (received, buf) = self.received().await;
        match received {
            Ok(1..) => Ok(buf),
            Err(error) if error.kind() == io::ErrorKind::OutOfMemory => Err(End::Quiet(Counter::NoMemory)),
            _ if self.stream.socket.is_overdue() => Err(End::Refuse(Reply::head_timeout())),
            _ => Err(End::Quiet(Counter::ClientAborted)),
        }
    }

    pub(super) async fn received(&mut self) -> (io::Result<usize>, Buf) {
        poll_fn(|context| self.poll_received(context)).await
    }

    /// Receives; meanwhile the buffer of the response before comes back.
    fn poll_received(&mut self, context: &mut Context<'_>) -> Poll<(io::Result<usize>, Buf)> {
        if self.stream.writer.is_sending()
            && let Poll::Ready((result, buf)) = self.stream.writer.poll_sent(context)
        {
            self.hop.buffers.give(buf);
            if result.is_err() {
                self.stream.socket.shut(std::net::Shutdown::Both);
            }
        }
        self.stream.reader.poll_received(context)
    }
}

/// One empty line before a request is overlooked (RFC 9112 section 2.2).
fn skip_empty_line(buf: &mut Buf) {
    if buf.bytes().starts_with(b"\r\n") {
        buf.consume(2);
    }
}

/// Whether the end of a head may have come behind the first `parsed` bytes.
pub(super) fn ends_head(buf: &Buf, parsed: usize) -> bool {
    let new = &buf.bytes()[parsed.saturating_sub(3).min(buf.len())..];
    new.windows(4).any(|window| window == b"\r\n\r\n")
}

fn too_long(buf: &Buf) -> Reply {
    if buf.bytes().contains(&b'\n') {
        Reply::head_too_large("the request's head is too long")
    } else {
        Reply::target_too_long()
    }
}
