//! Chunked bodies (RFC 9112 section 7.1): the frame is checked and taken off; [`reframe`] puts a new one on. No byte of a peer's frame
//! is ever passed on.

mod reframe;
#[cfg(test)]
mod tests;
mod trailers;

use std::ops::Range;

pub use reframe::{FRAME_BYTES_MAX, Reframed, Style, reframe};
use trailers::Trailers;
pub(super) use trailers::is_dropped;
#[cfg(any(test, fuzzing))]
pub(super) use trailers::{TRAILER_BYTES_MAX, TRAILERS_MAX};

/// Longest extension of one chunk; they are dropped.
const EXTENSION_BYTES_MAX: u32 = 1024;
/// Most hexadecimal digits of a chunk's size: what 64 bits hold.
const SIZE_DIGITS_MAX: u32 = 16;

/// Why a chunked body is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadChunk(pub &'static str);

/// What comes next in a chunked body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Bytes of the body, at this place of what was given.
    Data(Range<usize>),
    /// Nothing more in what was given.
    NeedMore,
    /// The body is complete; what follows is the next message.
    End,
}

/// Where in the frame the next byte is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Size { digits: u32 },
    Extension { bytes: u32, quoted: bool, escaped: bool },
    SizeLf,
    Data,
    DataCr,
    DataLf,
    Trailers,
    End,
}

/// Takes the frame off, however the bytes are torn.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    /// Of the size while it is being read, then of the chunk.
    left: u64,
    trailers: Trailers,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { state: State::Size { digits: 0 }, left: 0, trailers: Trailers::default() }
    }
}

impl Decoder {
    /// Reads on in `bytes` from `at`, which moves behind what was read.
    pub fn next(&mut self, bytes: &[u8], at: &mut usize) -> Result<Event, BadChunk> {
        loop {
            match self.state {
                State::End => return Ok(Event::End),
                State::Data if *at < bytes.len() => return Ok(Event::Data(self.data(bytes, at))),
                _ => {}
            }
            let Some(byte) = bytes.get(*at) else { return Ok(Event::NeedMore) };
            *at += 1;
            self.state = self.step(*byte)?;
        }
    }

    /// Whether the whole body was read.
    pub fn is_done(&self) -> bool {
        self.state == State::End
    }

    /// The trailer fields that may be passed on, each line with its CRLF; complete at [`Event::End`].
    pub fn trailers(&self) -> &[u8] {
        self.trailers.passed_on()
    }

    fn data(&mut self, bytes: &[u8], at: &mut usize) -> Range<usize> {
        let start = *at;
        let here = (bytes.len() - start).min(usize::try_from(self.left).unwrap_or(usize::MAX));
        *at += here;
        self.left -= here as u64;
        if self.left == 0 {
            self.state = State::DataCr;
        }
        start..*at
    }

    fn step(&mut self, byte: u8) -> Result<State, BadChunk> {
        Ok(match (self.state, byte) {
            (State::Size { digits }, _) if byte.is_ascii_hexdigit() => self.digit(digits, byte)?,
            (State::Size { digits: 1.. }, b'\r') => State::SizeLf,
            (State::Size { digits: 1.. }, b';') => State::Extension { bytes: 0, quoted: false, escaped: false },
            (State::Size { .. }, _) => return Err(BadChunk("malformed chunk size")),
            (State::Extension { bytes, quoted, escaped }, _) => extension(bytes, quoted, escaped, byte)?,
            (State::SizeLf, b'\n') if self.left == 0 => State::Trailers,
            (State::SizeLf, b'\n') => State::Data,
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size { digits: 0 },
            (State::Trailers, _) if self.trailers.take(byte)? => State::End,
            (State::Trailers, _) => State::Trailers,
            (State::SizeLf | State::DataCr | State::DataLf, _) => {
                return Err(BadChunk("a line of a chunk does not end in CRLF"));
            }
            (State::Data | State::End, _) => unreachable!("not read byte by byte"),
        })
    }

    fn digit(&mut self, digits: u32, byte: u8) -> Result<State, BadChunk> {
        if digits == SIZE_DIGITS_MAX {
            return Err(BadChunk("a chunk size has too many digits"));
        }
        let value = match byte {
            b'0'..=b'9' => byte - b'0',
            _ => (byte | 0x20) - b'a' + 10,
        };
        self.left = if digits == 0 { u64::from(value) } else { self.left << 4 | u64::from(value) };
        if i64::try_from(self.left).is_err() {
            return Err(BadChunk("a chunk is too large"));
        }
        Ok(State::Size { digits: digits + 1 })
    }
}

fn extension(bytes: u32, quoted: bool, escaped: bool, byte: u8) -> Result<State, BadChunk> {
    Ok(match byte {
        b'\r' if !quoted => State::SizeLf,
        _ if bytes == EXTENSION_BYTES_MAX => return Err(BadChunk("a chunk extension is too long")),
        b'\t' | b' '..=b'~' | 0x80.. => State::Extension {
            bytes: bytes + 1,
            quoted: quoted != (byte == b'"' && !escaped),
            escaped: quoted && !escaped && byte == b'\\',
        },
        _ => return Err(BadChunk("invalid byte in a chunk extension")),
    })
}
