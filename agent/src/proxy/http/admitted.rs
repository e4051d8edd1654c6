//! A request of HTTP/1 to a service with limits.

use std::{
    future::poll_fn,
    pin::pin,
    task::Poll,
    time::{Duration, Instant},
};

use tokio::time::sleep;

use super::{Connection, attend::Client, reply::Reply};
use crate::{
    decode::http1::{Framing, RequestHead},
    proxy::admit::Admitted,
    ring::Buf,
    route::Request,
};

/// Why a request does not go on.
pub(super) enum Denied {
    /// Its client is told.
    Answered(Reply),
    /// Its client has left.
    Gone,
}

impl Connection<'_> {
    /// Waits until the limits of a service that is not guarded let a request pass; no longer than its client does.
    pub(super) async fn admitted(&mut self, buf: &Buf, head: &RequestHead, now: Instant) -> Result<Admitted, Denied> {
        if self.cluster.gate.is_open() {
            return Ok(Admitted::default());
        }
        let request = Request::of_http1(&buf.bytes()[..head.bytes], self.stream.is_tls(), self.asker.source);
        let time = self.clock.time();
        let (hop, gate, patience) = (self.hop, &self.cluster.gate, || time.map(|time| time.left()));
        let admitted = gate.admit(&request, now, &patience, || hop.chance());
        let (wait, mut admitted) = admitted.map_err(|over| Denied::Answered(over.reply()))?;
        self.rated = admitted.rated.take();
        if !wait.is_zero() {
            Box::pin(self.waited(wait, leaves(buf, head))).await?;
        }
        Ok(admitted)
    }

    /// Waits for its turn.
    pub(super) async fn waited(&mut self, wait: Duration, leaves: bool) -> Result<(), Denied> {
        let mut turn = pin!(sleep(wait));
        let mut client = Client { reader: &mut self.stream.reader, socket: &self.stream.socket, leaves };
        poll_fn(|context| match turn.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Ok(())),
            Poll::Pending => client.poll_gone(context).map(|()| Err(Denied::Gone)),
        })
        .await?;
        if self.clock.is_over() { Err(Denied::Answered(Reply::deadline_exceeded())) } else { Ok(()) }
    }
}

/// Whether a client that ends its side has left: it had said that it would go on, and nothing more is to come of its request.
pub(super) fn leaves(buf: &Buf, head: &RequestHead) -> bool {
    let here = buf.len() - head.bytes;
    let is_whole = match head.framing {
        Framing::None | Framing::UntilClose => here == 0,
        Framing::Length(length) => here as u64 == length,
        Framing::Chunked => false,
    };
    head.keep_alive && is_whole
}
