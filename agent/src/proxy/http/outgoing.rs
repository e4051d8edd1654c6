//! A request of HTTP/1 on its way to an endpoint: its head edited where it stands, and what of its body has come.

use std::ops::Range;

use super::{Connection, apply};
use crate::{
    decode::{
        chunked::{BadChunk, Decoder, Style, reframe},
        http1::{Framing, RequestHead},
    },
    ring::Buf,
};

/// A request on its way out.
pub(super) struct Outgoing {
    /// What is sent first.
    pub buf: Buf,
    /// Where in it.
    pub send: Range<usize>,
    /// How much of that is the head.
    pub head_bytes: usize,
    /// What is sent after that: the trailer fields of a body that was all there.
    pub tail: Vec<u8>,
    /// What of the body is still to come.
    pub rest: Rest,
}

/// What of a body is still to come.
pub(super) enum Rest {
    None,
    Length(u64),
    Chunked(Decoder),
}

impl Connection<'_> {
    /// Edits the request where it stands.
    pub(super) fn outgoing(&self, buf: Buf, head: &RequestHead) -> Result<Outgoing, BadChunk> {
        let (mut buf, head_bytes) = apply(&self.hop.buffers, buf, head.bytes, head.start_line_bytes, &head.edits);
        let range = buf.range();
        let body = range.start + head_bytes;
        let here = range.end - body;
        let (end, rest) = match head.framing {
            Framing::None | Framing::UntilClose => (body, Rest::None),
            Framing::Length(length) if length <= here as u64 => (body + length as usize, Rest::None),
            Framing::Length(length) => (range.end, Rest::Length(length - here as u64)),
            Framing::Chunked => {
                let mut decoder = Decoder::default();
                let reframed = reframe(&mut decoder, buf.memory(), head_bytes, body..range.end, Style::Chunks)?;
                buf.set_start(reframed.rest);
                let rest = if reframed.done { Rest::None } else { Rest::Chunked(decoder) };
                return Ok(Outgoing { buf, send: reframed.send, head_bytes, tail: reframed.tail, rest });
            }
        };
        buf.set_start(end);
        Ok(Outgoing { buf, send: range.start..end, head_bytes, tail: Vec::new(), rest })
    }
}
