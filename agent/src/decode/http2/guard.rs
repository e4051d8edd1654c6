//! Floods of frames that cost their sender nothing: what the library that reads the frames answers or drops without an end.
//!
//! The library itself bounds header blocks, CONTINUATION, tiny and empty DATA, and streams that are reset before they are accepted. Counted
//! here are the frames that carry no request (PING, SETTINGS, PRIORITY, WINDOW_UPDATE, unknown ones) and requests that are taken back.

use std::time::Duration;

/// So many frames that carry no request may come at once: Envoy's bound for control frames.
const CONTROL_FRAMES_MAX: u64 = 1_000;
/// And so many a second on and on: a gRPC peer that measures its bandwidth with PINGs stays far below.
const CONTROL_FRAMES_PER_SECOND: u64 = 100;
/// Each HEADERS, and each DATA with something in it, brings leave for so many more.
const CONTROL_FRAMES_PER_MESSAGE: u64 = 2;
/// One more for so many bytes sent: a client that reads gives windows back. A PONG has 17 bytes.
const SENT_BYTES_PER_CONTROL_FRAME: u64 = 256;
/// A client takes back most of its requests only to make work (CVE-2023-44487); so many of the last [`REQUESTS_SEEN`] are too many.
const RESETS_MAX: u64 = 500;
/// See [`RESETS_MAX`].
const REQUESTS_SEEN: u64 = 1_000;

const FRAME_HEAD_BYTES: usize = 9;

/// What a peer does too much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flood {
    /// Frames that carry no request.
    #[error("too many frames that carry no request")]
    Control,
    /// RST_STREAM.
    #[error("most requests are taken back")]
    Resets,
}

/// Walks over the frames that one peer sends.
#[derive(Debug)]
pub struct Guard {
    /// Bytes to pass over before the next frame's head.
    skip: usize,
    head: [u8; FRAME_HEAD_BYTES],
    head_bytes: usize,
    leave: u64,
    /// Up to when, and up to how many bytes sent, leave was given.
    given: (Duration, u64),
    requests: u64,
    resets: u64,
}

impl Guard {
    /// Of a peer that has sent nothing yet, and first sends `preface_bytes`.
    pub fn new(preface_bytes: usize, now: Duration) -> Self {
        Self {
            skip: preface_bytes,
            head: [0; FRAME_HEAD_BYTES],
            head_bytes: 0,
            leave: CONTROL_FRAMES_MAX,
            given: (now, 0),
            requests: 0,
            resets: 0,
        }
    }

    /// Sees what has come; `sent` is how many bytes the peer was sent so far.
    pub fn see(&mut self, mut bytes: &[u8], now: Duration, sent: u64) -> Result<(), Flood> {
        self.renew(now, sent);
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let part = bytes.len().min(FRAME_HEAD_BYTES - self.head_bytes);
            if self.skip > 0 || part == 0 {
                continue;
            }
            self.head[self.head_bytes..self.head_bytes + part].copy_from_slice(&bytes[..part]);
            self.head_bytes += part;
            bytes = &bytes[part..];
            if self.head_bytes == FRAME_HEAD_BYTES {
                self.head_bytes = 0;
                self.skip = u32::from_be_bytes([0, self.head[0], self.head[1], self.head[2]]) as usize;
                self.frame(self.head[3])?;
            }
        }
        Ok(())
    }

    fn renew(&mut self, now: Duration, sent: u64) {
        let passed = now.saturating_sub(self.given.0).as_millis() as u64;
        let by_time = passed * CONTROL_FRAMES_PER_SECOND / 1000;
        if by_time > 0 {
            self.given.0 = now;
        }
        let by_bytes = sent.saturating_sub(self.given.1) / SENT_BYTES_PER_CONTROL_FRAME;
        self.given.1 += by_bytes * SENT_BYTES_PER_CONTROL_FRAME;
        self.allow(by_time + by_bytes);
    }

    fn allow(&mut self, more: u64) {
        self.leave = (self.leave + more).min(CONTROL_FRAMES_MAX);
    }

    /// One frame of a kind (RFC 9113 section 6).
    fn frame(&mut self, kind: u8) -> Result<(), Flood> {
        const DATA: u8 = 0x0;
        const HEADERS: u8 = 0x1;
        const RST_STREAM: u8 = 0x3;
        const CONTINUATION: u8 = 0x9;
        match kind {
            DATA if self.skip > 0 => self.allow(CONTROL_FRAMES_PER_MESSAGE),
            HEADERS => {
                self.allow(CONTROL_FRAMES_PER_MESSAGE);
                self.requests += 1;
                if self.requests == REQUESTS_SEEN {
                    (self.requests, self.resets) = (self.requests / 2, self.resets / 2);
                }
            }
            RST_STREAM => {
                self.resets += 1;
                if self.resets > RESETS_MAX {
                    return Err(Flood::Resets);
                }
            }
            // The library counts them.
            DATA | CONTINUATION => {}
            _ => self.leave = self.leave.checked_sub(1).ok_or(Flood::Control)?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PING: [u8; 17] = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    const HEADERS: [u8; 10] = [0, 0, 1, 1, 5, 0, 0, 0, 1, 0x82];
    const RESET: [u8; 13] = [0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 8];
    const EMPTY: [u8; 9] = [0, 0, 0, 0, 0, 0, 0, 0, 1];
    const START: Duration = Duration::ZERO;

    /// How many of these frames pass, up to `most`.
    fn passed(guard: &mut Guard, frames: &[u8], most: usize, step: Duration) -> (usize, Option<Flood>) {
        for number in 0..most {
            if let Err(flood) = guard.see(frames, step * number as u32, 0) {
                return (number, Some(flood));
            }
        }
        (most, None)
    }

    #[test]
    fn a_flood_of_frames_that_carry_nothing_is_told() {
        for frame in [&PING[..], &SETTINGS, &[0, 0, 0, 0xfe, 0, 0, 0, 0, 0]] {
            let mut guard = Guard::new(0, START);
            assert_eq!(passed(&mut guard, frame, 5_000, START), (1_000, Some(Flood::Control)));
        }
        let mut guard = Guard::new(0, START);
        assert_eq!(passed(&mut guard, &PING, 20_000, Duration::from_millis(10)), (20_000, None), "100 a second pass");
    }

    #[test]
    fn requests_and_bytes_sent_bring_leave_for_more() {
        let mut guard = Guard::new(0, START);
        let both = [&HEADERS[..], &PING, &PING].concat();
        assert_eq!(passed(&mut guard, &both, 10_000, START), (10_000, None));
        let mut guard = Guard::new(0, START);
        for sent in 0..10_000 {
            guard.see(&PING, START, sent * SENT_BYTES_PER_CONTROL_FRAME).unwrap();
        }
    }

    #[test]
    fn taking_back_most_requests_is_told_and_taking_back_some_is_not() {
        let back = [&HEADERS[..], &RESET].concat();
        assert_eq!(passed(&mut Guard::new(0, START), &back, 5_000, START), (500, Some(Flood::Resets)));
        let half = [&HEADERS[..], &HEADERS, &RESET].concat();
        assert_eq!(passed(&mut Guard::new(0, START), &half, 50_000, START), (50_000, None));
    }

    #[test]
    fn frames_are_told_apart_wherever_the_bytes_are_torn() {
        let preface = *b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        let all = [&preface[..], &SETTINGS, &HEADERS, &EMPTY, &RESET, &PING].concat();
        for cut in 0..=all.len() {
            let mut guard = Guard::new(preface.len(), START);
            guard.see(&all[..cut], START, 0).unwrap();
            guard.see(&all[cut..], START, 0).unwrap();
            let leave = CONTROL_FRAMES_MAX - 1;
            assert_eq!((guard.leave, guard.requests, guard.resets, guard.skip), (leave, 1, 1, 0), "cut at {cut}");
        }
        let mut guard = Guard::new(preface.len(), START);
        all.iter().for_each(|byte| guard.see(&[*byte], START, 0).unwrap());
        assert_eq!((guard.requests, guard.resets), (1, 1));
    }
}
