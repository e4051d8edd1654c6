//! The edits of a head, made in the buffer that has it.

use crate::{
    decode::{chunked::FRAME_BYTES_MAX, edit, http1::Edits},
    ring::{Buf, Buffers},
    route::{Fields, LineEdits},
};

/// Edits the head of `bytes` bytes at the start of the buffer; returns the buffer (another if this one had no room) and the head's
/// new length. Enough room for a chunk's size is left in front.
pub fn apply(buffers: &Buffers, mut buf: Buf, bytes: usize, start_line_bytes: usize, edits: &Edits) -> (Buf, usize) {
    let head = buf.range().start;
    for (at, byte) in &edits.patches {
        buf.memory()[head + at] = *byte;
    }
    let mut head_bytes = bytes;
    if !edits.cuts.is_empty() {
        let start = edit::cut(buf.memory(), head..head + bytes, &edits.cuts);
        buf.set_start(start);
        head_bytes -= start - head;
    }
    if edits.insert.is_empty() {
        return (buf, head_bytes);
    }
    let start = buf.range().start;
    if start < edits.insert.len() + FRAME_BYTES_MAX {
        buf = with_inserted(buffers, buf, start_line_bytes, &edits.insert);
    } else if let Some(start) = edit::insert_field(buf.memory(), start, start_line_bytes, &edits.insert) {
        buf.set_start(start);
    }
    (buf, head_bytes + edits.insert.len())
}

/// Changes the fields of the head of `bytes` bytes at the start of the buffer; returns as [`apply`] does.
pub fn change(buffers: &Buffers, buf: Buf, bytes: usize, start_line_bytes: usize, fields: &Fields) -> (Buf, usize) {
    let head = &buf.bytes()[..bytes];
    if let Some(LineEdits { cuts, insert }) = fields.edits(head) {
        return apply(buffers, buf, bytes, start_line_bytes, &Edits { cuts, patches: Vec::new(), insert });
    }
    let changed = fields.of_lines(head);
    let whole = buffers.holding(&[&changed, &buf.bytes()[bytes..]].concat());
    buffers.give(buf);
    (whole, changed.len())
}

/// When there is no room in front, which only long insertions need: a new buffer.
fn with_inserted(buffers: &Buffers, buf: Buf, start_line_bytes: usize, insert: &[u8]) -> Buf {
    let (start_line, rest) = buf.bytes().split_at(start_line_bytes);
    let edited = buffers.holding(&[start_line, insert, rest].concat());
    buffers.give(buf);
    edited
}
