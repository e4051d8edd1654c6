//! What is left of a body of HTTP/1 that is followed as it comes.

use crate::decode::{
    chunked::{BadChunk, Decoder, Event},
    http1::Framing,
};

/// Where the body of a message of HTTP/1 ends.
pub enum Left {
    /// Behind so many bytes.
    Length(u64),
    /// Where its last chunk does.
    Chunked(Decoder),
    /// With the connection.
    UntilClose,
}

impl Left {
    /// Of a body that begins.
    pub fn of(framing: Framing) -> Self {
        match framing {
            Framing::None => Self::Length(0),
            Framing::Length(bytes) => Self::Length(bytes),
            Framing::Chunked => Self::Chunked(Decoder::default()),
            Framing::UntilClose => Self::UntilClose,
        }
    }

    /// Tells what of the body is in these bytes; gives where in them it ends, if it does.
    pub fn pass(&mut self, bytes: &[u8], mut told: impl FnMut(&[u8])) -> Result<Option<usize>, BadChunk> {
        match self {
            Self::Length(left) => {
                let here = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= here as u64;
                told(&bytes[..here]);
                Ok((*left == 0).then_some(here))
            }
            Self::Chunked(decoder) => {
                let mut at = 0;
                while let Event::Data(piece) = decoder.next(bytes, &mut at)? {
                    told(&bytes[piece]);
                }
                Ok(decoder.is_done().then_some(at))
            }
            Self::UntilClose => {
                told(bytes);
                Ok(None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_told_and_its_end_found_wherever_it_is_torn() {
        for (framing, wire, body, end) in [
            (Framing::None, "GET", "", Some(0)),
            (Framing::Length(3), "abcGET", "abc", Some(3)),
            (Framing::Length(9), "abcGET", "abcGET", None),
            (Framing::Chunked, "1\r\na\r\n2;x\r\nbc\r\n0\r\nt: v\r\n\r\nGET", "abc", Some(26)),
            (Framing::Chunked, "1\r\na\r\n2\r\nb", "ab", None),
            (Framing::UntilClose, "abc", "abc", None),
        ] {
            for tear in 0..wire.len() {
                let (mut left, mut told, mut found) = (Left::of(framing), Vec::new(), None);
                for (start, part) in [(0, &wire[..tear]), (tear, &wire[tear..])] {
                    if found.is_none() {
                        let passed = left.pass(part.as_bytes(), |piece| told.extend_from_slice(piece)).unwrap();
                        found = passed.map(|end| start + end);
                    }
                }
                assert_eq!((told.as_slice(), found), (body.as_bytes(), end), "{wire:?} at {tear}");
            }
        }
        assert!(Left::of(Framing::Chunked).pass(b"x\r\n", |_| {}).is_err());
    }
}
