//! Waiting for an endpoint, with an eye on the client and on the clock.

use std::{
    cell::Cell, future::poll_fn, io, net::Shutdown, pin::pin, task::Context, task::Poll, time::Duration, time::Instant,
};

use super::respond::{Answer, Answered, Unanswered};
use crate::{
    proxy::timing::Clock,
    record::Bytes,
    ring::{Buf, Due, Reader, Socket, Stream, Writer},
};

/// How much later than an endpoint a client is out of time: several turns of the worker's clock, because a client that is not being sent anything
/// is not to blame.
pub const MARGIN: Duration = Duration::from_millis(500);

/// The agent's own share of a request's duration: the time in which neither side is waited for.
pub struct OwnTime {
    spent: Duration,
    since: Instant,
}

impl OwnTime {
    pub fn since(began: Instant) -> Self {
        Self { spent: Duration::ZERO, since: began }
    }

    pub fn pause(&mut self) {
        self.spent += self.since.elapsed();
    }

    pub fn resume(&mut self) {
        self.since = Instant::now();
    }

    pub fn total(mut self) -> Duration {
        self.pause();
        self.spent
    }
}

/// The client, while somebody else is waited for.
pub struct Client<'c> {
    pub reader: &'c mut Reader,
    pub socket: &'c Socket,
    /// Whether it has left when it ends its side: it had said that it would go on, and has asked for nothing more. Who said that this was all
    /// may end its side and wait for the answer.
    pub leaves: bool,
}

impl Client<'_> {
    /// Ready when the client has left.
    pub fn poll_gone(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.reader.poll_gone(context, self.leaves)
    }

    /// Whether nobody has waited for it yet and nobody will but for this: who asks once has mostly been answered before it pays to
    /// begin.
    fn is_worth_little(&self) -> bool {
        !self.leaves && !self.reader.is_watched()
    }
}

/// Waits for the first bytes of a response, or the end; `None` when the client has left, or the clock has rung. The request's buffer is kept as soon as it is sent.
pub async fn first_answer(
    stream: &mut Stream,
    client: &mut Client<'_>,
    sent: &mut Option<Buf>,
    own: &mut Option<OwnTime>,
    clock: &mut Clock,
) -> Option<(io::Result<usize>, Buf)> {
    let mut turned = pin!(client.socket.turned());
    let received = poll_fn(|context| {
        if stream.writer.is_sending()
            && let Poll::Ready((result, buf)) = stream.writer.poll_sent(context)
        {
            *sent = Some(buf);
            own.iter_mut().for_each(OwnTime::pause);
            if result.is_err() {
                // It may have answered all the same, before it ended; if not, this ends the wait.
                stream.socket.shut(Shutdown::Both);
            }
        }
        if let Poll::Ready(received) = stream.reader.poll_received(context) {
            return Poll::Ready(Some(received));
        }
        if clock.poll_over(context).is_ready() {
            return Poll::Ready(None);
        }
        if client.is_worth_little() && turned.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        client.poll_gone(context).map(|()| None)
    })
    .await;
    own.iter_mut().for_each(OwnTime::resume);
    received
}

/// The request's buffer, back from the kernel.
pub async fn take_back(stream: &mut Stream, sent: &mut Option<Buf>) -> Buf {
    if let Some(buf) = sent.take() {
        return buf;
    }
    // Whoever has answered, or ended, reads no more of it.
    stream.socket.shut(Shutdown::Both);
    stream.writer.sent().await.1
}

/// Passes a response on, of which `first` has the first bytes, while it moves within `stall`, until the clock rings.
pub async fn pass_on(
    answer: &Answer<'_>,
    upstream: &mut Stream,
    to: &mut Writer,
    mut client: Client<'_>,
    first: Buf,
    (stall, clock): (Option<Duration>, &mut Clock),
) -> Result<Answered, Unanswered> {
    let Stream { reader, socket, .. } = upstream;
    let count = Cell::new(0);
    let given = {
        let mut giving = pin!(answer.give(reader, to, first, &count));
        let mut moved = None;
        let given = poll_fn(|context| {
            if let Poll::Ready(given) = giving.as_mut().poll(context) {
                return Poll::Ready(given);
            }
            if moved.replace(count.get()) != Some(count.get()) {
                set_or_clear(socket, stall, Due::End);
                set_or_clear(client.socket, stall.map(|stall| stall + MARGIN), Due::Reset);
            }
            if clock.poll_over(context).is_ready() {
                return Poll::Ready(Err(Unanswered::Over { is_begun: answer.head_sent.get() }));
            }
            client.poll_gone(context).map(|()| Err(Unanswered::ClientGone))
        })
        .await;
        if moved.is_some() {
            client.socket.clear_due();
        }
        given
    };
    answer.hop.slab.count_bytes(Bytes::UpstreamReceived, count.get());
    answer.hop.slab.count_bytes(Bytes::DownstreamSent, count.get());
    given_in_time(given, socket, client.socket)
}

/// What the clock has to say to an answer: a response that was cut off by it is not whole, whatever its framing says.
pub fn given_in_time(
    given: Result<Answered, Unanswered>,
    upstream: &Socket,
    client: &Socket,
) -> Result<Answered, Unanswered> {
    match given {
        Err(Unanswered::ClientGone) if client.is_overdue() => Err(Unanswered::ClientStalled),
        Err(Unanswered::Bad(_)) if upstream.is_overdue() => Err(Unanswered::Late),
        Ok(_) | Err(Unanswered::Broken) if upstream.is_overdue() => Err(Unanswered::Stalled),
        given => given,
    }
}

/// Sets a deadline, or none.
pub fn set_or_clear(socket: &Socket, after: Option<Duration>, due: Due) {
    match after {
        Some(after) => socket.set_due(after, due),
        None => socket.clear_due(),
    }
}
