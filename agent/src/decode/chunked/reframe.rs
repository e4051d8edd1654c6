//! A piece of a chunked body becomes one chunk of our own, in the memory in which it was received.

use std::ops::Range;

use super::{BadChunk, Decoder, Event};

/// How the body is passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// In chunks.
    Chunks,
    /// Bare, to a peer who does not know chunks; the end of the connection is the body's.
    Bare,
}

/// A piece, ready to be sent.
#[derive(Debug, PartialEq, Eq)]
pub struct Reframed {
    /// What to send: the head, if there was one, and a chunk.
    pub send: Range<usize>,
    /// What to send after it: the end with its trailer fields, when it does not fit in place.
    pub tail: Vec<u8>,
    /// Where what was not read begins: the next message.
    pub rest: usize,
    /// How many bytes of the body are in it.
    pub body_bytes: usize,
    /// The body is complete.
    pub done: bool,
}

/// Longest frame in front of a chunk: the size of a piece, in hexadecimal, and CRLF.
pub const FRAME_BYTES_MAX: usize = 18;

/// Reads the piece of a body at `piece` and turns it into one chunk. `head` bytes in front of it are kept in front of it.
///
/// The memory must have [`FRAME_BYTES_MAX`] free bytes before head and piece, and 2 behind them. Nothing behind [`Reframed::rest`] is
/// touched: the frame that was read is never shorter than the one that takes its place.
pub fn reframe(
    decoder: &mut Decoder,
    memory: &mut [u8],
    head: usize,
    piece: Range<usize>,
    style: Style,
) -> Result<Reframed, BadChunk> {
    let head = piece.start - head..piece.start;
    let mut rest = piece.start;
    let (mut data, done) = gather(decoder, memory, &mut rest, piece.end)?;
    let mut reframed = Reframed { send: head.clone(), tail: Vec::new(), rest, body_bytes: data.len(), done };
    let (mut digits, mut suffix) = ([0; FRAME_BYTES_MAX], [0; 2 + LAST.len()]);
    let (mut size, mut suffix_bytes) = (&digits[..0], 0);
    if style == Style::Chunks && !data.is_empty() {
        size = size_line(data.len(), &mut digits);
        suffix[..2].copy_from_slice(b"\r\n");
        suffix_bytes = 2;
    }
    if style == Style::Chunks && done && decoder.trailers().is_empty() {
        suffix[suffix_bytes..][..LAST.len()].copy_from_slice(LAST);
        suffix_bytes += LAST.len();
        if data.is_empty() {
            // Only the end was read here, and perhaps not all of it: ours ends where it ended.
            data = rest - LAST.len()..rest - LAST.len();
        }
    } else if style == Style::Chunks && done {
        reframed.tail = [b"0\r\n", decoder.trailers(), b"\r\n"].concat();
    }
    let size_at = data.start - size.len();
    let start = size_at - head.len();
    memory.copy_within(head, start);
    memory[size_at..data.start].copy_from_slice(size);
    memory[data.end..data.end + suffix_bytes].copy_from_slice(&suffix[..suffix_bytes]);
    reframed.send = start..data.end + suffix_bytes;
    Ok(reframed)
}

/// The line with the size of a chunk.
fn size_line(bytes: usize, line: &mut [u8; FRAME_BYTES_MAX]) -> &[u8] {
    let mut start = FRAME_BYTES_MAX - 2;
    line[start..].copy_from_slice(b"\r\n");
    let mut left = bytes;
    while left > 0 {
        start -= 1;
        line[start] = b"0123456789abcdef"[left & 15];
        left >>= 4;
    }
    &line[start..]
}

/// The last chunk, without trailer fields.
const LAST: &[u8] = b"0\r\n\r\n";

/// Moves all data of the piece together; returns where it is, and whether the body is done.
fn gather(
    decoder: &mut Decoder,
    memory: &mut [u8],
    at: &mut usize,
    end: usize,
) -> Result<(Range<usize>, bool), BadChunk> {
    let mut data = *at..*at;
    loop {
        match decoder.next(&memory[..end], at)? {
            Event::Data(range) if data.is_empty() => data = range,
            Event::Data(range) => {
                let bytes = range.len();
                if range.start != data.end {
                    memory.copy_within(range, data.end);
                }
                data.end += bytes;
            }
            Event::NeedMore => return Ok((data, false)),
            Event::End => return Ok((data, true)),
        }
    }
}
