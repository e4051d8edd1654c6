//! A body of HTTP/1 on its way to HTTP/2: what of it has come, and what was sent, for as long as it may have to be sent again.

use bytes::Bytes;

use crate::{
    decode::{chunked::BadChunk, http1::Framing},
    proxy::{http2::held::Held, left::Left},
    ring::Buf,
};

/// One body. Whoever is sent it next gets it from its beginning, wherever the attempt before was broken off.
pub struct Coming {
    /// What has come and was not looked at; none while the reader has it.
    buf: Option<Buf>,
    left: Left,
    is_done: bool,
    held: Held,
}

impl Coming {
    /// One that begins in `buf`.
    pub fn new(buf: Buf, framing: Framing) -> Self {
        Self { buf: Some(buf), left: Left::of(framing), is_done: false, held: Held::default() }
    }

    /// Whether it has come to its end.
    pub fn is_done(&self) -> bool {
        self.is_done
    }

    /// Whether all that was sent of it is held.
    pub fn can_repeat(&self) -> bool {
        self.held.is_whole()
    }

    /// What was sent before, and whether the stream ends with it.
    pub fn again(&self) -> (Bytes, bool) {
        self.held.again()
    }

    /// What has come, and whether the stream ends with it. It is held, unless somebody `is_answering`, who has seen it.
    ///
    /// # Errors
    ///
    /// When it is malformed.
    pub fn next(&mut self, is_answering: bool) -> Result<(Bytes, bool), BadChunk> {
        let mut bytes = Vec::new();
        if let Some(buf) = &mut self.buf {
            let end = self.left.pass(buf.bytes(), |piece| bytes.extend_from_slice(piece))?;
            buf.consume(end.unwrap_or(buf.len()));
            self.is_done = end.is_some();
        }
        Ok(self.hold(bytes.into(), is_answering))
    }

    /// The connection has ended: whether the body has, too.
    pub fn ends(&mut self) -> bool {
        self.is_done = matches!(self.left, Left::UntilClose);
        self.is_done
    }

    /// The trailer fields at its end, each with its CRLF, if there are any.
    pub fn trailers(&self) -> Option<&[u8]> {
        match &self.left {
            Left::Chunked(decoder) if self.is_done => Some(decoder.trailers()).filter(|lines| !lines.is_empty()),
            _ => None,
        }
    }

    /// More has come.
    pub fn put(&mut self, buf: Buf) {
        self.buf = Some(buf);
    }

    /// The buffer, with what stands behind the body once that is done.
    pub fn take(&mut self) -> Option<Buf> {
        self.buf.take()
    }

    fn hold(&mut self, bytes: Bytes, is_answering: bool) -> (Bytes, bool) {
        let is_last = self.is_done && self.trailers().is_none();
        match is_answering {
            true => self.held.let_go(),
            false => self.held.take(&bytes, is_last),
        }
        (bytes, is_last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_repeated_from_its_beginning_wherever_it_was_torn() {
        for (framing, wire, body, trailers) in [
            (Framing::Length(5), "abcdeGET /", "abcde", None),
            (Framing::Chunked, "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\nGET /", "abcde", None),
            (Framing::Chunked, "5\r\nabcde\r\n0\r\nx-sum: 1\r\n\r\nGET /", "abcde", Some("x-sum: 1\r\n")),
        ] {
            for tear in 0..wire.len() {
                let mut coming = Coming::new(Buf::of(&wire.as_bytes()[..tear]), framing);
                let (mut sent, _) = coming.next(false).map(|(bytes, is_last)| (bytes.to_vec(), is_last)).unwrap();
                let (again, _) = coming.again();
                assert_eq!(again, sent, "{wire:?} at {tear}");
                if !coming.is_done() {
                    coming.put(Buf::of(&wire.as_bytes()[tear..]));
                    sent.extend(coming.next(false).unwrap().0);
                }
                assert_eq!((&sent[..], coming.is_done()), (body.as_bytes(), true), "{wire:?} at {tear}");
                assert_eq!(coming.again(), (Bytes::from(body), trailers.is_none()));
                assert_eq!(coming.trailers(), trailers.map(str::as_bytes));
                assert!(coming.can_repeat() && "GET /".as_bytes().starts_with(coming.take().unwrap().bytes()));
            }
        }
    }

    #[test]
    fn what_somebody_answers_is_not_held() {
        let mut coming = Coming::new(Buf::of(b"abc"), Framing::Length(5));
        assert_eq!(coming.next(true).unwrap(), ("abc".into(), false));
        assert!(!coming.can_repeat() && coming.again().0.is_empty());
    }

    #[test]
    fn only_what_ends_with_its_connection_is_whole_at_its_end() {
        for (framing, ends) in [(Framing::Length(5), false), (Framing::Chunked, false), (Framing::UntilClose, true)] {
            assert_eq!(Coming::new(Buf::of(b""), framing).ends(), ends);
        }
    }
}
