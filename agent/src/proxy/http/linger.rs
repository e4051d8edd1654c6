//! A client that goes on sending although the agent ends the connection.

use std::{
    net::Shutdown,
    time::{Duration, Instant},
};

use super::Connection;
use crate::ring::{Due, MEDIUM};

/// How long a client may go on sending what nobody reads, so that what was said last reaches it: closing at once would reset the
/// connection, and a reset overtakes what was sent before it (nginx's lingering_time).
const LINGER: Duration = Duration::from_secs(30);
/// How long it may pause meanwhile (nginx's lingering_timeout is 5 s).
pub(super) const LINGER_PAUSE: Duration = Duration::from_secs(2);
/// How much of it is read: what a client with a fast line sends before it looks for an answer.
const LINGER_BYTES_MAX: usize = 256 << 20;

impl Connection<'_> {
    /// Reads what a client goes on sending, until it ends: within bounds.
    pub(super) async fn linger(&mut self) {
        self.stream.socket.shut(Shutdown::Write);
        let until = Instant::now() + LINGER;
        let mut read = 0;
        while read < LINGER_BYTES_MAX && Instant::now() < until {
            self.stream.socket.set_due(LINGER_PAUSE, Due::End);
            self.stream.reader.arm_on_demand(&self.hop.buffers, MEDIUM);
            let (received, buf) = self.stream.reader.received().await;
            self.hop.buffers.give(buf);
            match received {
                Ok(bytes @ 1..) => read += bytes,
                _ => break,
            }
        }
    }
}
