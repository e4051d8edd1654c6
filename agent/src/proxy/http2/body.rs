//! Bodies, from one stream to another: what was received is sent on as it stands, no faster than the other side takes it. Only then may its
//! sender send more.

use std::{
    cell::RefCell,
    future::{pending, poll_fn},
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::HeaderMap;

use super::held::Held;
use crate::decode::http2;

/// Why a body ended before its end.
#[derive(Debug)]
pub enum Broken {
    /// Its sender broke off, or broke a rule.
    From(h2::Error),
    /// Its receiver wants no more of it.
    To,
}

/// Passes a body on to its end, trailers included; gives the trailers' `grpc-status`, if there is one. What is `held` of it goes first, and what
/// comes is held.
pub async fn pass_on(
    from: &mut RecvStream,
    to: &mut SendStream<Bytes>,
    held: &RefCell<Held>,
) -> Result<Option<Bytes>, Broken> {
    let (again, is_last) = held.borrow().again();
    if !again.is_empty() || is_last {
        send(from, to, again, is_last, held).await?;
        if is_last {
            return Ok(None);
        }
    }
    while let Some(piece) = next(from, to).await? {
        let is_last = from.is_end_stream();
        held.borrow_mut().take(&piece, is_last);
        if held.borrow().is_over() {
            // Whoever polls this knows, and ends it.
            pending::<()>().await;
        }
        send(from, to, piece, is_last, held).await?;
        if is_last {
            return Ok(None);
        }
    }
    let Some(mut trailers) = from.trailers().await.map_err(Broken::From)? else {
        held.borrow_mut().take(&Bytes::new(), true);
        to.send_data(Bytes::new(), true).map_err(|_| Broken::To)?;
        return Ok(None);
    };
    held.borrow_mut().end_with_trailers();
    if http2::trailers(&mut trailers).is_err() {
        return Err(Broken::From(Reason::PROTOCOL_ERROR.into()));
    }
    let status = grpc_status(&trailers);
    to.send_trailers(trailers).map_err(|_| Broken::To)?;
    Ok(status)
}

/// A body of which nothing is ever sent again.
pub fn fleeting() -> RefCell<Held> {
    let mut held = Held::default();
    held.let_go();
    RefCell::new(held)
}

/// Whether an endpoint says that it has done nothing about a request (RFC 9113 section 8.7): the stream is refused, or above the last one of
/// a GOAWAY.
pub fn is_unseen(error: &h2::Error) -> bool {
    error.is_remote() && (error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM))
}

/// How often a request of which no endpoint can have seen anything is sent again.
const REPLAYS_MAX: u32 = 2;
/// The same, where its connection only went away: an endpoint may end each after a few requests (nginx: `keepalive_requests`), and who stands
/// behind them goes to the next connection together with all the others.
const FAREWELLS_MAX: u32 = 16;

/// How often a request was sent again.
#[derive(Debug, Default)]
pub struct Replays {
    refused: u32,
    farewells: u32,
}

impl Replays {
    /// Whether it may be sent once more, after this.
    pub fn once_more(&mut self, error: &h2::Error) -> bool {
        let is_farewell =
            !error.is_reset() && !error.is_io() && error.reason().unwrap_or(Reason::NO_ERROR) == Reason::NO_ERROR;
        let (made, most) =
            if is_farewell { (&mut self.farewells, FAREWELLS_MAX) } else { (&mut self.refused, REPLAYS_MAX) };
        *made += 1;
        *made <= most
    }
}

/// The code with which a stream was reset. That of a whole connection says nothing of this request, but that its endpoint is not there.
pub fn reset_of(error: &h2::Error) -> Option<Reason> {
    if error.is_reset() { error.reason() } else { None }
}

/// How much of a body is read that nobody wants.
const UNWANTED_BYTES_MAX: usize = 256 << 20;
/// For how long (as a connection of HTTP/1 lingers).
const UNWANTED: Duration = Duration::from_secs(30);
/// And how long its sender may pause.
const UNWANTED_PAUSE: Duration = Duration::from_secs(2);

/// Reads what is left of the body of a request that was answered before its end: some clients (curl) take the reset that would otherwise
/// follow for an error, although the answer was whole.
pub async fn drain(from: &mut RecvStream) {
    if from.is_end_stream() {
        return;
    }
    let read = async {
        let mut left = UNWANTED_BYTES_MAX;
        while left > 0
            && let Ok(Some(Ok(piece))) = tokio::time::timeout(UNWANTED_PAUSE, from.data()).await
        {
            left = left.saturating_sub(piece.len());
            // Fails only if the stream is over, and then nothing is owed.
            let _ = from.flow_control().release_capacity(piece.len());
        }
    };
    // Whoever is slower is told by a reset.
    let _ = tokio::time::timeout(UNWANTED, read).await;
}

/// The value of `grpc-status`.
pub fn grpc_status(headers: &HeaderMap) -> Option<Bytes> {
    headers.get("grpc-status").map(|value| Bytes::copy_from_slice(value.as_bytes()))
}

/// Waits for the next piece, or until the other side wants no more.
async fn next(from: &mut RecvStream, to: &mut SendStream<Bytes>) -> Result<Option<Bytes>, Broken> {
    poll_fn(|context| {
        if let Poll::Ready(piece) = from.poll_data(context) {
            return Poll::Ready(piece.transpose().map_err(Broken::From));
        }
        to.poll_reset(context).map(|_| Err(Broken::To))
    })
    .await
}

async fn send(
    from: &mut RecvStream,
    to: &mut SendStream<Bytes>,
    mut piece: Bytes,
    is_last: bool,
    held: &RefCell<Held>,
) -> Result<(), Broken> {
    if piece.is_empty() {
        return if is_last { to.send_data(piece, true).map_err(|_| Broken::To) } else { Ok(()) };
    }
    to.reserve_capacity(piece.len());
    let narrow = held.borrow().narrow();
    while !piece.is_empty() {
        let mut room = match to.capacity() {
            0 => capacity(to).await?,
            room => room,
        };
        if let Some(narrow) = &narrow {
            // Boxed: hardly any line is.
            Box::pin(narrow.turn()).await;
            room = room.min(narrow.piece_bytes_max());
            narrow.leaves(room.min(piece.len()));
        }
        let part = piece.split_to(room.min(piece.len()));
        let bytes = part.len();
        to.send_data(part, is_last && piece.is_empty()).map_err(|_| Broken::To)?;
        held.borrow_mut().release(from, bytes);
    }
    Ok(())
}

/// Waits until some may be sent.
pub async fn capacity(to: &mut SendStream<Bytes>) -> Result<usize, Broken> {
    poll_fn(|context| {
        if to.poll_reset(context).is_ready() {
            return Poll::Ready(Err(Broken::To));
        }
        to.poll_capacity(context).map(|room| room.and_then(Result::ok).ok_or(Broken::To))
    })
    .await
}
