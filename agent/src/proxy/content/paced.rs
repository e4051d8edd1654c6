//! A body over a narrow line: in small pieces, each when its turn has come.

use bytes::Bytes;

use crate::{
    forward::Narrow,
    proxy::whole::{Body, Broken, Next, Piece, Through},
};

/// See the module.
pub(super) struct Paced {
    from: Body,
    line: Narrow,
    /// What has come and has not left.
    held: Bytes,
}

impl Paced {
    /// At most so many bytes a second.
    pub fn new(from: Body, rate: u32) -> Self {
        Self { from, line: Narrow::new(rate), held: Bytes::new() }
    }

    async fn more(&mut self) -> Result<Piece, Broken> {
        self.line.turn().await;
        if self.held.is_empty() {
            match self.from.next().await? {
                Piece::Data(data) => self.held = data,
                end @ Piece::End(_) => return Ok(end),
            }
        }
        let piece = self.held.split_to(self.line.piece_bytes_max().min(self.held.len()));
        self.line.leaves(piece.len());
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
