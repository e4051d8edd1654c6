//! Tunnels between a connection of HTTP/1 and a stream of HTTP/2: bytes both ways, each end passed on by itself, a reset as a reset, and no
//! deadline, for silence means nothing.

use std::{future::poll_fn, pin::pin, task::Poll};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};

use super::{Gathered, Inlet, Outlet, Progress};
use crate::{
    decode::{chunked::Style, http1::Framing},
    forward,
    proxy::http2::body,
    ring::{Buf, Buffers, Stream},
};

/// How a tunnel ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Both sides ended cleanly.
    Done,
    /// The stream ended cleanly and wants no more of the connection, which may go on sending.
    Enough,
    /// The stream was reset, and so was the connection.
    StreamBroke,
    /// The connection broke off, and the stream was reset.
    ConnectionBroke,
}

/// The stream's side of a tunnel.
pub struct Ends<'t> {
    /// What comes of it.
    pub from: &'t mut RecvStream,
    /// What goes to it.
    pub to: &'t mut SendStream<Bytes>,
}

/// Relays until both sides have ended. The connection is sent `head` first; of what it has sent, `first` is there already. The first progress
/// is of what goes to the connection.
pub async fn relay(
    connection: &mut Stream,
    (head, first): (&[u8], Buf),
    stream: Ends<'_>,
    buffers: &Buffers,
    (out, back): (&Progress, &Progress),
) -> Ended {
    let Stream { reader, writer, socket, .. } = connection;
    let Ends { from, to } = stream;
    // Should the agent die, nobody takes that for the end.
    socket.reset_on_close(true);
    let ended = {
        let mut outward = pin!(async {
            let mut outlet = Outlet { to: writer, buffers, progress: out, tap: None, narrow: None };
            outlet.send(head, Style::Bare, &Gathered::default(), from).await?;
            outlet.to.end().await.map_err(|_| body::Broken::To)
        });
        let mut inlet = Inlet { from: reader, buffers, progress: back, tap: None, narrow: None };
        let mut inward = pin!(async {
            let passed = inlet.pass_on(to, first, Framing::UntilClose).await;
            (passed, has_enough(to).await)
        });
        let (mut out_done, mut in_done, mut enough) = (false, false, false);
        poll_fn(|context| {
            if !out_done && let Poll::Ready(result) = outward.as_mut().poll(context) {
                match result {
                    Ok(()) => out_done = true,
                    Err(body::Broken::From(_)) => return Poll::Ready(Ended::StreamBroke),
                    Err(body::Broken::To) => return Poll::Ready(Ended::ConnectionBroke),
                }
            }
            if !in_done && let Poll::Ready((result, is_enough)) = inward.as_mut().poll(context) {
                match result {
                    Ok(_) => in_done = true,
                    // What it has said before is on its way out, its end too.
                    Err(forward::Broken::Sending(_)) if is_enough => (in_done, enough) = (true, true),
                    Err(forward::Broken::Sending(_)) => return Poll::Ready(Ended::StreamBroke),
                    Err(_) => return Poll::Ready(Ended::ConnectionBroke),
                }
            }
            match out_done && in_done {
                true => Poll::Ready(if enough { Ended::Enough } else { Ended::Done }),
                false => Poll::Pending,
            }
        })
        .await
    };
    match ended {
        Ended::Done | Ended::Enough => socket.reset_on_close(false),
        Ended::StreamBroke => {
            to.send_reset(Reason::CANCEL);
            socket.reset();
        }
        // RFC 9113 section 8.5: so it is told that a connection was reset.
        Ended::ConnectionBroke => {
            to.send_reset(Reason::CONNECT_ERROR);
            socket.reset();
        }
    }
    ended
}

/// Whether the other side of a stream has reset it without an error: so ends who has said everything and needs nothing more (RFC 9113 section 8.1).
async fn has_enough(to: &mut SendStream<Bytes>) -> bool {
    poll_fn(|context| Poll::Ready(matches!(to.poll_reset(context), Poll::Ready(Ok(Reason::NO_ERROR))))).await
}
