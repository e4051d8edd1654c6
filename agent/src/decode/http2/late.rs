//! Frames that a server sends on a stream behind its own RST_STREAM: the two sides of a stream may give it up at the same time, and grpcio then
//! says how it ended all the same. RFC 9113 section 5.1 makes each of them an error of that stream; the library that reads the frames makes it
//! one of the connection, with which everybody's requests on it end.
//!
//! They are given the number of a stream that is never used: what comes on one that the library has forgotten is no more than that stream's
//! error to it. Their heads are unpacked, so that both sides' tables stay in step, and their data is taken from the connection's window and given back.

use super::rules::{FrameHead, kind};

/// The stream that no request uses: requests begin with the one behind it.
pub const NOBODYS_STREAM: u32 = 1;
const NOBODYS: [u8; 4] = NOBODYS_STREAM.to_be_bytes();
/// Where the stream's number stands in a frame's head.
const STREAM_AT: usize = 5;
/// Of how many streams it is remembered that the server has reset them. A power of two.
const RESET_MAX: usize = 64;

/// Walks over the frames that one server sends.
#[derive(Debug)]
pub struct Late {
    /// Streams that the server has reset, each where its number says.
    reset: [u32; RESET_MAX],
    /// Bytes to pass over before the next frame's head.
    skip: usize,
    head: [u8; FrameHead::BYTES],
    head_bytes: usize,
}

impl Default for Late {
    fn default() -> Self {
        Self { reset: [0; RESET_MAX], skip: 0, head: [0; FrameHead::BYTES], head_bytes: 0 }
    }
}

impl Late {
    /// Sees what has come, and changes whose the late frames in it are.
    ///
    /// A head may be torn; where the part of the number that has passed is another than [`NOBODYS_STREAM`]'s, its frame stays as it is.
    pub fn pass(&mut self, bytes: &mut [u8]) {
        let mut at = 0;
        loop {
            let skipped = self.skip.min(bytes.len() - at);
            self.skip -= skipped;
            at += skipped;
            if at == bytes.len() {
                return;
            }
            let passed = self.head_bytes;
            let taken = (FrameHead::BYTES - passed).min(bytes.len() - at);
            let here = &mut bytes[at..at + taken];
            self.head[passed..passed + taken].copy_from_slice(here);
            self.head_bytes += taken;
            at += taken;
            if self.head_bytes < FrameHead::BYTES {
                return;
            }
            self.head_bytes = 0;
            let head = FrameHead::of(self.head);
            self.skip = head.length;
            let known = passed.max(STREAM_AT);
            let (before, after) = NOBODYS.split_at(known - STREAM_AT);
            if self.is_late(head) && self.head[STREAM_AT..known] == *before {
                here[known - passed..].copy_from_slice(after);
            }
        }
    }

    fn is_late(&mut self, head: FrameHead) -> bool {
        let place = &mut self.reset[(head.stream >> 1) as usize % RESET_MAX];
        match head.kind {
            kind::RST_STREAM => {
                *place = head.stream;
                false
            }
            kind::DATA | kind::HEADERS | kind::CONTINUATION => head.stream != 0 && *place == head.stream,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        [&length[1..], &[kind, 0], &stream.to_be_bytes(), payload].concat()
    }

    /// Frames, and the stream that each is on when it has passed.
    fn conversation(stream: u32) -> Vec<(u8, u32, Vec<u8>, u32)> {
        let other = stream + 2 * RESET_MAX as u32;
        vec![
            (kind::SETTINGS, 0, vec![], 0),
            (kind::HEADERS, stream, vec![0x88], stream),
            (kind::DATA, stream, vec![0; 300], stream),
            (kind::RST_STREAM, stream, vec![0, 0, 0, 8], stream),
            (kind::HEADERS, stream, vec![0x88; 20], NOBODYS_STREAM),
            (kind::CONTINUATION, stream, vec![0x88; 3], NOBODYS_STREAM),
            (kind::DATA, stream, frame(kind::RST_STREAM, other, &[0; 4]), NOBODYS_STREAM),
            (kind::WINDOW_UPDATE, stream, vec![0, 0, 0, 1], stream),
            (kind::DATA, other, vec![], other),
            (kind::HEADERS, stream + 2, vec![0x88], stream + 2),
            (kind::RST_STREAM, other, vec![0; 4], other),
            (kind::HEADERS, other, vec![], NOBODYS_STREAM),
            (kind::PING, 0, vec![0; 8], 0),
        ]
    }

    fn bytes(of: impl Fn(&(u8, u32, Vec<u8>, u32)) -> u32, stream: u32) -> Vec<u8> {
        conversation(stream).iter().flat_map(|sent| frame(sent.0, of(sent), &sent.2)).collect()
    }

    #[test]
    fn what_comes_behind_a_reset_is_nobodys_wherever_it_is_torn() {
        let (came, passes) = (bytes(|sent| sent.1, 3), bytes(|sent| sent.3, 3));
        for torn_at in 0..=came.len() {
            let (mut late, mut now) = (Late::default(), came.clone());
            let (first, second) = now.split_at_mut(torn_at);
            late.pass(first);
            late.pass(second);
            assert_eq!(now, passes, "torn at {torn_at}");
        }
        let (mut late, mut now) = (Late::default(), came);
        now.iter_mut().for_each(|byte| late.pass(std::slice::from_mut(byte)));
        assert_eq!(now, passes, "byte by byte");
    }

    #[test]
    fn streams_of_large_numbers_are_known_too() {
        for stream in [0x0101, 0x01_0001, 0x7fff_fe01] {
            let mut now = bytes(|sent| sent.1, stream);
            Late::default().pass(&mut now);
            assert_eq!(now, bytes(|sent| sent.3, stream), "{stream:#x}");
        }
    }
}
