//! A body over a narrow line: in small pieces, each when its turn has come.

use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::proxy::whole::{Body, Broken, Next, Piece, Through};

/// So many pieces leave in a second, if the line takes more than a byte each.
const PIECES_PER_SECOND: usize = 20;
/// Longest piece: what is faster than 20 of these a second is not made slower by waiting between more, shorter ones.
const PIECE_BYTES_MAX: usize = 64 * 1024;

/// See the module.
pub(super) struct Paced {
    from: Body,
    rate: usize,
    /// What has come and has not left.
    held: Bytes,
    /// When more may leave.
    due: Instant,
}

impl Paced {
    /// At most so many bytes a second.
    pub fn new(from: Body, rate: u32) -> Self {
        Self { from, rate: rate.max(1) as usize, held: Bytes::new(), due: Instant::now() }
    }

    async fn more(&mut self) -> Result<Piece, Broken> {
        tokio::time::sleep_until(self.due.into()).await;
        if self.held.is_empty() {
            match self.from.next().await? {
                Piece::Data(data) => self.held = data,
                end @ Piece::End(_) => return Ok(end),
            }
        }
        let most = (self.rate / PIECES_PER_SECOND).clamp(1, PIECE_BYTES_MAX);
        let piece = self.held.split_to(most.min(self.held.len()));
        let takes = Duration::from_secs(1) * u32::try_from(piece.len()).unwrap_or(u32::MAX) / self.rate as u32;
        // Who had nothing to send has saved no time for later.
        self.due = self.due.max(Instant::now()) + takes;
        Ok(Piece::Data(piece))
    }
}

impl Through for Paced {
    fn is_empty(&self) -> bool {
        self.held.is_empty() && self.from.is_empty()
    }

    fn next(&mut self) -> Next<'_> {
        Box::pin(self.more())
    }
}
