//! What of a request's body has been sent, for as long as an endpoint may still say that it has seen nothing of it.

use std::rc::Rc;

use bytes::Bytes;
use h2::RecvStream;

use crate::{forward::Narrow, proxy::mirror::Tap};

/// How much is held: what most bodies have, and what a hundred streams of one connection may have without harm.
const HELD_BYTES_MAX: usize = 64 * 1024;

/// The beginning of a body.
#[derive(Default)]
pub struct Held {
    /// Copies: a piece of a few bytes would hold on to all that was received with it.
    bytes: Vec<u8>,
    /// Whether the body ends with them.
    is_end: bool,
    /// Whether some of it was let go, so that it cannot be sent again.
    is_lost: bool,
    /// Bytes that were taken from the client, and in whose place it may not yet send more.
    owed: usize,
    /// What sees all of it, if it is copied.
    tap: Option<Rc<Tap>>,
    /// What it goes over, if that is slow on purpose.
    narrow: Option<Rc<Narrow>>,
}

impl Held {
    /// Nothing yet, of a body that is seen by this as it comes, and goes over that.
    pub fn tapped(tap: Option<Rc<Tap>>, narrow: Option<Rc<Narrow>>) -> Self {
        Self { tap, narrow, ..Self::default() }
    }

    /// What it goes over, if that is slow on purpose.
    pub fn narrow(&self) -> Option<Rc<Narrow>> {
        self.narrow.clone()
    }

    /// Its first bytes, however many, were taken from the client before.
    pub fn begin(&mut self, bytes: &Bytes) {
        self.owed += bytes.len();
        self.bytes.extend_from_slice(bytes);
        if let Some(tap) = &self.tap {
            tap.piece(bytes, false);
        }
    }

    /// Whether the body can be sent again from its beginning.
    pub fn is_whole(&self) -> bool {
        !self.is_lost
    }

    /// A piece was taken from the client.
    pub fn take(&mut self, piece: &Bytes, is_end: bool) {
        self.owed += piece.len();
        if let Some(tap) = &self.tap {
            tap.piece(piece, is_end);
        }
        if self.is_lost || self.bytes.len() + piece.len() > HELD_BYTES_MAX {
            return self.let_go();
        }
        self.bytes.extend_from_slice(piece);
        self.is_end = is_end;
    }

    /// Whether it is longer than it may be.
    pub fn is_over(&self) -> bool {
        self.tap.as_ref().is_some_and(|tap| tap.is_over())
    }

    /// It has come to its end, with trailer fields, which are not held.
    pub fn end_with_trailers(&mut self) {
        if let Some(tap) = &self.tap {
            tap.piece(&[], true);
        }
        self.let_go();
    }

    /// It is not going to be sent again, or cannot be.
    pub fn let_go(&mut self) {
        (self.bytes, self.is_lost) = (Vec::new(), true);
    }

    /// What was sent before, and whether the body ends with it.
    pub fn again(&self) -> (Bytes, bool) {
        (Bytes::copy_from_slice(&self.bytes), self.is_end)
    }

    /// Whether there is a body at all, as far as is known by now.
    pub fn is_begun(&self) -> bool {
        self.is_lost || self.is_end || !self.bytes.is_empty()
    }

    /// So many bytes were sent: the client may send as many more, once.
    pub fn release(&mut self, from: &mut RecvStream, bytes: usize) {
        let bytes = bytes.min(self.owed);
        self.owed -= bytes;
        // Fails only if the stream is over, and then nothing is owed.
        let _ = from.flow_control().release_capacity(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_held_until_it_is_too_long() {
        let mut held = Held::default();
        assert_eq!((held.again(), held.is_whole()), ((Bytes::new(), false), true));
        let piece = Bytes::from(vec![b'p'; HELD_BYTES_MAX / 2]);
        held.take(&piece, false);
        held.take(&piece, true);
        assert_eq!(held.again(), (Bytes::from(vec![b'p'; HELD_BYTES_MAX]), true));
        held.take(&Bytes::from_static(b"x"), true);
        assert!(!held.is_whole() && held.again().0.is_empty());
        held.take(&Bytes::from_static(b"y"), true);
        assert_eq!((held.is_whole(), held.owed), (false, HELD_BYTES_MAX + 2));
    }
}
