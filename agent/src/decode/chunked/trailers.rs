//! Trailer fields: few, short, and none that would have changed how the message was read had it come first (RFC 9110 section 6.5.1).

use super::BadChunk;

/// All lines of a trailer section together.
pub const TRAILER_BYTES_MAX: usize = 8 * 1024;
/// Most trailer fields.
pub const TRAILERS_MAX: usize = 64;

/// Names that are dropped: framing, routing, request modifiers, authentication, response control, and how to read the content.
const DROPPED: [&str; 38] = [
    "age",
    "authorization",
    "cache-control",
    "connection",
    "content-encoding",
    "content-length",
    "content-location",
    "content-range",
    "content-type",
    "cookie",
    "date",
    "expect",
    "expires",
    "forwarded",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "keep-alive",
    "location",
    "max-forwards",
    "pragma",
    "range",
    "retry-after",
    "set-cookie",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "vary",
    "via",
    "www-authenticate",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-real-ip",
];

/// The trailer section as it comes in.
#[derive(Debug, Default)]
pub(super) struct Trailers {
    /// The lines to pass on, then the line that is being read.
    lines: Vec<u8>,
    /// Where that line begins.
    line: usize,
    bytes: usize,
    fields: usize,
}

impl Trailers {
    /// Takes one byte; true when it ends the section.
    pub fn take(&mut self, byte: u8) -> Result<bool, BadChunk> {
        self.bytes += 1;
        if self.bytes > TRAILER_BYTES_MAX {
            return Err(BadChunk("trailer fields are too long"));
        }
        self.lines.push(byte);
        match (byte, &self.lines[self.line..]) {
            (b'\n', b"\r\n") => {
                self.lines.truncate(self.line);
                Ok(true)
            }
            (b'\n', _) => self.end_line().map(|()| false),
            _ => Ok(false),
        }
    }

    /// The lines that may be passed on.
    pub fn passed_on(&self) -> &[u8] {
        &self.lines[..self.line]
    }

    fn end_line(&mut self) -> Result<(), BadChunk> {
        let name = field_name(&self.lines[self.line..]).ok_or(BadChunk("malformed trailer field"))?;
        let is_dropped = is_dropped(name);
        self.fields += 1;
        if self.fields > TRAILERS_MAX {
            return Err(BadChunk("too many trailer fields"));
        }
        if is_dropped {
            self.lines.truncate(self.line);
        } else {
            self.line = self.lines.len();
        }
        Ok(())
    }
}

/// Whether a trailer field of this name is not passed on.
pub(in crate::decode) fn is_dropped(name: &[u8]) -> bool {
    DROPPED.iter().any(|dropped| name.eq_ignore_ascii_case(dropped.as_bytes()))
        || name.get(..6).is_some_and(|start| start.eq_ignore_ascii_case(b"proxy-"))
}

/// The name in a well-formed field line.
fn field_name(line: &[u8]) -> Option<&[u8]> {
    let line = line.strip_suffix(b"\r\n")?;
    let (name, value) = line.split_at(line.iter().position(|byte| *byte == b':')?);
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let is_text = |byte: &u8| matches!(byte, b'\t' | b' '..=b'~' | 0x80..);
    (!name.is_empty() && name.iter().all(is_token) && value.iter().all(is_text)).then_some(name)
}
