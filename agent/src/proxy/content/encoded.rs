//! A body that is compressed as it comes.
//!
//! What has come is never held back for a better coding: when no more of it is there, all that the coder has is given out. A piece is compressed in
//! parts, between which other requests of the worker have their turn.

use std::io::{self, Write};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::HeaderMap;
use tokio::task::yield_now;

use crate::{
    config::filter::content::Coding,
    proxy::whole::{Body, Broken, Next, Piece, Through},
};

/// How much is compressed in one go: less than a millisecond's work at the usual levels.
const PART_BYTES: usize = 16 * 1024;
/// How much a worker compresses of one body before others have their turn.
const TURN_BYTES: usize = 32 * 1024;
/// Usual levels: what is compressed once and sent once must not cost more than it saves. Those of nginx's modules for gzip and brotli are 1 and 6, of
/// Envoy's 3 for all; zstd's own is 3.
const ZSTD_LEVEL: u32 = 3;
const BR_LEVEL: u32 = 4;
const GZIP_LEVEL: u32 = 4;
/// Window of brotli, as a power of two: 4 MiB, what a browser takes at most is 16.
const BR_WINDOW: u32 = 19;
const BR_BUFFER_BYTES: usize = 4 * 1024;
/// Window of zstd, as a power of two: at most 8 MiB, what RFC 9659 lets a server use; less, to bound what one answer takes.
const ZSTD_WINDOW: u32 = 19;

/// A coder, which writes to memory.
pub(super) enum Encoder {
    Zstd(Box<zstd::stream::write::Encoder<'static, Vec<u8>>>),
    Br(Box<brotli::CompressorWriter<Vec<u8>>>),
    Gzip(Box<GzEncoder<Vec<u8>>>),
}

impl Encoder {
    /// `length` is how long all of it is, if that is known: a short one takes less memory.
    pub fn new(coding: Coding, level: Option<u32>, length: Option<u64>) -> io::Result<Self> {
        let bits = length.map(|length| u64::BITS - length.leading_zeros());
        Ok(match coding {
            Coding::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), level.unwrap_or(ZSTD_LEVEL) as i32)?;
                encoder.window_log(bits.map_or(ZSTD_WINDOW, |bits| bits.clamp(10, ZSTD_WINDOW)))?;
                Self::Zstd(Box::new(encoder))
            }
            Coding::Br => {
                let window = bits.map_or(BR_WINDOW, |bits| bits.clamp(10, BR_WINDOW));
                let level = level.unwrap_or(BR_LEVEL);
                Self::Br(Box::new(brotli::CompressorWriter::new(Vec::new(), BR_BUFFER_BYTES, level, window)))
            }
            Coding::Gzip => {
                let level = Compression::new(level.unwrap_or(GZIP_LEVEL));
                Self::Gzip(Box::new(GzEncoder::new(Vec::new(), level)))
            }
        })
    }

    fn write(&mut self, data: &[u8]) -> io::Result<()> {
        match self {
            Self::Zstd(encoder) => encoder.write_all(data),
            Self::Br(encoder) => encoder.write_all(data),
            Self::Gzip(encoder) => encoder.write_all(data),
        }
    }

    /// All that was written can be read behind this.
    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Zstd(encoder) => encoder.flush(),
            Self::Br(encoder) => encoder.flush(),
            Self::Gzip(encoder) => encoder.flush(),
        }
    }

    /// What has come out.
    fn taken(&mut self) -> Vec<u8> {
        std::mem::take(match self {
            Self::Zstd(encoder) => encoder.get_mut(),
            Self::Br(encoder) => encoder.get_mut(),
            Self::Gzip(encoder) => encoder.get_mut(),
        })
    }

    /// The rest of it.
    fn end(self) -> io::Result<Vec<u8>> {
        match self {
            Self::Zstd(encoder) => encoder.finish(),
            Self::Br(encoder) => Ok(encoder.into_inner()),
            Self::Gzip(encoder) => encoder.finish(),
        }
    }
}

/// See the module.
pub(super) struct Encoded {
    from: Body,
    /// Until all was written.
    encoder: Option<Encoder>,
    /// What has come and was not written.
    held: Bytes,
    /// Whether something was written that may not have come out.
    is_behind: bool,
    /// What was written since others had their turn, in bytes.
    written: usize,
    /// What stands behind all of it, until that was told.
    end: Option<HeaderMap>,
}

impl Encoded {
    pub fn new(from: Body, encoder: Encoder) -> Self {
        Self { from, encoder: Some(encoder), held: Bytes::new(), is_behind: false, written: 0, end: None }
    }

    async fn more(&mut self) -> Result<Piece, Broken> {
        loop {
            if self.written >= TURN_BYTES {
                self.written = 0;
                yield_now().await;
            }
            let Some(encoder) = &mut self.encoder else { return Ok(Piece::End(self.end.take().unwrap_or_default())) };
            // Memory takes all that is written: what fails is the coder, and then nothing of it can be trusted.
            let broken = |_| Broken::Off;
            if !self.held.is_empty() {
                let part = self.held.split_to(self.held.len().min(PART_BYTES));
                self.written += part.len();
                self.is_behind = true;
                encoder.write(&part).map_err(broken)?;
                let out = encoder.taken();
                if !out.is_empty() {
                    return Ok(Piece::Data(out.into()));
                }
                continue;
            }
            let came = match self.from.next_now().await {
                Some(came) => came?,
                None if self.is_behind => {
                    self.is_behind = false;
                    encoder.flush().map_err(broken)?;
                    let out = encoder.taken();
                    if !out.is_empty() {
                        return Ok(Piece::Data(out.into()));
                    }
                    continue;
                }
                None => self.from.next().await?,
            };
            match came {
                Piece::Data(data) => self.held = data,
                Piece::End(trailers) => {
                    self.end = Some(trailers);
                    let rest = self.encoder.take().map(Encoder::end).transpose().map_err(broken)?.unwrap_or_default();
                    if !rest.is_empty() {
                        return Ok(Piece::Data(rest.into()));
                    }
                }
            }
        }
    }
}

impl Through for Encoded {
    fn is_empty(&self) -> bool {
        false
    }

    fn next(&mut self) -> Next<'_> {
        Box::pin(self.more())
    }
}
