//! What a client may not send, seen before the library that reads the frames sees it: floods of frames that cost their sender nothing, which
//! the library answers or drops without an end, and frames against the [`Rules`].
//!
//! The library itself bounds what a head unpacks to, tiny DATA, and streams that it had to reset. Counted here are the frames that carry no
//! request (PING, SETTINGS, PRIORITY, WINDOW_UPDATE, empty DATA, unknown ones), CONTINUATION, and requests that are taken back.

use std::time::Duration;

use super::rules::{Broken, FrameHead, Rules, kind};

/// So many frames that carry no request may come at once: Envoy's bound for control frames.
const CONTROL_FRAMES_MAX: u64 = 1_000;
/// And so many a second on and on: a gRPC peer that measures its bandwidth with PINGs stays far below.
const CONTROL_FRAMES_PER_SECOND: u64 = 100;
/// Each HEADERS, and each DATA with something in it, brings leave for so many more.
const CONTROL_FRAMES_PER_MESSAGE: u64 = 2;
/// One more for so many bytes sent, answers to control frames apart: a client that reads gives windows back, and measures with PINGs, be the
/// messages ever so small. More than a RST_STREAM has, for none may be paid for by its own answer.
const SENT_BYTES_PER_CONTROL_FRAME: u64 = 16;
/// So much of that leave is kept. A client that has read nothing for long may answer all of it at once: grpcio does.
const CONTROL_FRAMES_FOR_BYTES_MAX: u64 = 1 << 20;
/// Bytes of the answer to a PING.
const PONG_BYTES: u64 = 17;
/// Bytes of the answer to SETTINGS.
const ACKNOWLEDGEMENT_BYTES: u64 = 9;
/// A client takes back most of its requests only to make work (CVE-2023-44487); so many of the last [`REQUESTS_SEEN`] are too many. Those that
/// it had a reason for are [excused](Guard::excuse).
const RESETS_MAX: u64 = 500;
/// See [`RESETS_MAX`].
const REQUESTS_SEEN: u64 = 1_000;
/// Frames behind the first of one head, unless there is room for longer ones.
const CONTINUATIONS_MAX: u32 = 5;

/// What a peer does too much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flood {
    /// Frames that carry no request.
    #[error("too many frames that carry no request")]
    Control,
    /// RST_STREAM.
    #[error("most requests are taken back")]
    Resets,
    /// DATA with nothing in it, or next to nothing.
    #[error("too many frames of a body without a body")]
    Data,
    /// CONTINUATION.
    #[error("a head that does not end")]
    Continuations,
    /// HEADERS: one that unpacks to many times what is allowed, or many that break the rules of their streams.
    #[error("heads that are too large or break rules")]
    Heads,
}

/// Why a connection is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// Too much of something.
    #[error(transparent)]
    Flood(#[from] Flood),
    /// Something that may not be.
    #[error(transparent)]
    Broken(#[from] Broken),
}

impl Wrong {
    /// What the peer is told (RFC 9113 section 7).
    pub fn code(self) -> u32 {
        const ENHANCE_YOUR_CALM: u32 = 0xb;
        match self {
            Self::Flood(_) => ENHANCE_YOUR_CALM,
            Self::Broken(broken) => broken as u32,
        }
    }
}

/// Walks over the frames that one peer sends.
#[derive(Debug)]
pub struct Guard {
    /// Bytes to pass over before the next frame's head.
    skip: usize,
    rules: Rules,
    /// Whether what comes first was not seen yet, which is SETTINGS (RFC 9113 section 3.4).
    is_first: bool,
    head: [u8; FrameHead::BYTES],
    head_bytes: usize,
    leave: u64,
    /// What was given for bytes sent, which is used first.
    leave_for_bytes: u64,
    /// Up to when, and up to how many bytes sent, leave was given.
    given: (Duration, u64),
    requests: u64,
    resets: u64,
    /// Frames of the head that goes on.
    continuations: u32,
    continuations_max: u32,
    /// The kind of the last frame.
    last: u8,
    wrong: Option<Wrong>,
}

impl Guard {
    /// Of a peer that has sent nothing yet, and first sends `preface_bytes`.
    pub fn new(preface_bytes: usize, now: Duration) -> Self {
        Self {
            skip: preface_bytes,
            rules: Rules::default(),
            is_first: preface_bytes > 0,
            head: [0; FrameHead::BYTES],
            head_bytes: 0,
            leave: CONTROL_FRAMES_MAX,
            leave_for_bytes: 0,
            given: (now, 0),
            requests: 0,
            resets: 0,
            continuations: 0,
            continuations_max: CONTINUATIONS_MAX,
            last: kind::SETTINGS,
            wrong: None,
        }
    }

    /// The same, and a head may have so many frames behind its first.
    pub fn with_continuations(self, continuations_max: u32) -> Self {
        Self { continuations_max, ..self }
    }

    /// What was found wrong, if anything was.
    pub fn wrong(&self) -> Option<Wrong> {
        self.wrong
    }

    /// Whether a head has begun, and not all of it has come.
    pub fn is_within_head(&self) -> bool {
        let is_within_frame = self.skip > 0 && matches!(self.last, kind::HEADERS | kind::CONTINUATION);
        is_within_frame || self.rules.is_within_head()
    }

    /// Which flood it was if the library found one: it says no more than that.
    pub fn suspected(&self) -> Flood {
        match self.last {
            kind::DATA => Flood::Data,
            kind::RST_STREAM => Flood::Resets,
            _ => Flood::Heads,
        }
    }

    /// Sees what has come; `sent` is how many bytes the peer was sent so far. If something is wrong, with how many of these bytes may still be
    /// read: what comes before it.
    pub fn see(&mut self, all: &[u8], now: Duration, sent: u64) -> Result<(), (usize, Wrong)> {
        self.renew(now, sent);
        self.walk(all).inspect_err(|(_, wrong)| self.wrong = Some(*wrong))
    }

    fn walk(&mut self, all: &[u8]) -> Result<(), (usize, Wrong)> {
        let mut bytes = all;
        while !bytes.is_empty() {
            let at = all.len() - bytes.len();
            let (skipped, rest) = bytes.split_at(self.skip.min(bytes.len()));
            self.rules.payload(skipped).map_err(|broken| (at, broken.into()))?;
            self.skip -= skipped.len();
            let (part, rest) = rest.split_at(rest.len().min(FrameHead::BYTES - self.head_bytes));
            bytes = rest;
            if self.skip > 0 || part.is_empty() {
                continue;
            }
            self.head[self.head_bytes..self.head_bytes + part.len()].copy_from_slice(part);
            self.head_bytes += part.len();
            if self.head_bytes == FrameHead::BYTES {
                self.head_bytes = 0;
                let head = FrameHead::of(self.head);
                self.skip = head.length;
                self.frame(head).map_err(|wrong| (at + skipped.len(), wrong))?;
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
        self.leave_for_bytes = (self.leave_for_bytes + by_bytes).min(CONTROL_FRAMES_FOR_BYTES_MAX);
        self.allow(by_time);
    }

    /// Uses some of the leave for a frame that is answered with so many bytes.
    fn take(&mut self, answer_bytes: u64, flood: Flood) -> Result<(), Flood> {
        self.given.1 += answer_bytes;
        let kept = if self.leave_for_bytes > 0 { &mut self.leave_for_bytes } else { &mut self.leave };
        *kept = kept.checked_sub(1).ok_or(flood)?;
        Ok(())
    }

    /// Takes no offence at one request that was taken back, or is about to be: it was answered, or had its time.
    pub fn excuse(&mut self) {
        self.resets = self.resets.saturating_sub(1);
    }

    fn allow(&mut self, more: u64) {
        self.leave = (self.leave + more).min(CONTROL_FRAMES_MAX);
    }

    fn frame(&mut self, head: FrameHead) -> Result<(), Wrong> {
        if std::mem::take(&mut self.is_first) && !head.is_settings() {
            return Err(Broken::Protocol.into());
        }
        self.rules.frame(head)?;
        self.last = head.kind;
        match head.kind {
            kind::DATA if head.length > 0 => self.allow(CONTROL_FRAMES_PER_MESSAGE),
            kind::DATA => self.take(0, Flood::Data)?,
            kind::HEADERS => {
                self.continuations = 0;
                self.allow(CONTROL_FRAMES_PER_MESSAGE);
                self.requests += 1;
                if self.requests == REQUESTS_SEEN {
                    (self.requests, self.resets) = (self.requests / 2, self.resets / 2);
                }
            }
            kind::RST_STREAM => {
                self.resets += 1;
                if self.resets > RESETS_MAX {
                    return Err(Flood::Resets.into());
                }
            }
            kind::CONTINUATION => {
                self.continuations += 1;
                if self.continuations > self.continuations_max {
                    return Err(Flood::Continuations.into());
                }
            }
            kind::PING => self.take(PONG_BYTES, Flood::Control)?,
            kind::SETTINGS => self.take(ACKNOWLEDGEMENT_BYTES, Flood::Control)?,
            _ => self.take(0, Flood::Control)?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PING: [u8; 17] = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    const HEADERS: [u8; 10] = [0, 0, 1, 1, 4, 0, 0, 0, 1, 0x82];
    const RESET: [u8; 13] = [0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 8];
    const EMPTY: [u8; 9] = [0, 0, 0, 0, 0, 0, 0, 0, 1];
    const START: Duration = Duration::ZERO;

    /// How many of these frames pass, up to `most`.
    fn passed(guard: &mut Guard, frames: &[u8], most: usize, step: Duration) -> (usize, Option<Wrong>) {
        for number in 0..most {
            if let Err((_, wrong)) = guard.see(frames, step * number as u32, 0) {
                return (number, Some(wrong));
            }
        }
        (most, None)
    }

    /// A frame on the stream of this number.
    fn on(frame: &[u8], number: u32) -> Vec<u8> {
        let mut frame = frame.to_vec();
        frame[5..9].copy_from_slice(&(2 * number + 1).to_be_bytes());
        frame
    }

    #[test]
    fn a_flood_of_frames_that_carry_nothing_is_told() {
        for frame in [&PING[..], &SETTINGS, &[0, 0, 0, 0xfe, 0, 0, 0, 0, 0]] {
            let mut guard = Guard::new(0, START);
            assert_eq!(passed(&mut guard, frame, 5_000, START), (1_000, Some(Flood::Control.into())));
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
            guard.see(&PING, START, sent * (SENT_BYTES_PER_CONTROL_FRAME + PONG_BYTES)).unwrap();
        }
    }

    #[test]
    fn a_client_that_reads_late_may_give_all_windows_back_at_once() {
        const WINDOW_UPDATE: [u8; 13] = [0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 9];
        // As many messages of gRPC with 10 bytes in each as were once under way.
        let sent = 45_000 * 24;
        let mut guard = Guard::new(0, START);
        guard.see(&WINDOW_UPDATE.repeat(60_000), START, sent).unwrap();
        let (passed, flood) = passed(&mut guard, &WINDOW_UPDATE, 20_000, START);
        assert_eq!((60_000 + passed as u64, flood), (sent / 16 + CONTROL_FRAMES_MAX, Some(Flood::Control.into())));
    }

    #[test]
    fn answers_bring_no_leave_for_what_they_answer() {
        for (frame, answer) in [(&PING[..], PONG_BYTES), (&SETTINGS, ACKNOWLEDGEMENT_BYTES)] {
            let mut guard = Guard::new(0, START);
            let passes = |number: &u64| guard.see(frame, START, number * answer).is_ok();
            assert_eq!((0..5_000).take_while(passes).count() as u64, CONTROL_FRAMES_MAX);
        }
    }

    #[test]
    fn taking_back_most_requests_is_told_and_taking_back_some_is_not() {
        let mut guard = Guard::new(0, START);
        let back = |number: u32| [on(&HEADERS, number), on(&RESET, number)].concat();
        assert!((0..500).all(|number| guard.see(&back(number), START, 0).is_ok()));
        assert_eq!(guard.see(&back(500), START, 0), Err((HEADERS.len(), Flood::Resets.into())));
        let mut guard = Guard::new(0, START);
        assert!((0..5_000).all(|number| guard.see(&back(number), START, 0).map(|()| guard.excuse()).is_ok()));
        let mut guard = Guard::new(0, START);
        let half =
            |number: u32| [on(&HEADERS, 2 * number), on(&HEADERS, 2 * number + 1), on(&RESET, 2 * number)].concat();
        assert!((0..50_000).all(|number| guard.see(&half(number), START, 0).is_ok()));
    }

    #[test]
    fn a_head_and_a_body_that_bring_nothing_are_told() {
        let mut guard = Guard::new(0, START);
        let empty = passed(&mut guard, &EMPTY, 5_000, START);
        assert_eq!(empty, (1_000, Some(Flood::Data.into())));
        let mut guard = Guard::new(0, START);
        guard.see(&[0, 0, 0, 1, 0, 0, 0, 0, 1], START, 0).unwrap();
        let more = passed(&mut guard, &[0, 0, 0, 9, 0, 0, 0, 0, 1], 5_000, START);
        assert_eq!(more, (5, Some(Flood::Continuations.into())));
        assert_eq!(guard.wrong(), more.1);
    }

    #[test]
    fn a_preface_ends_with_settings() {
        let acknowledgement = [0, 0, 0, 4, 1, 0, 0, 0, 0];
        for first in [&PING[..], &HEADERS, &acknowledgement] {
            assert_eq!(
                Guard::new(3, START).see(&[b"PRI", first].concat(), START, 0),
                Err((3, Broken::Protocol.into()))
            );
        }
        let good = [b"PRI", &SETTINGS[..], &PING].concat();
        assert_eq!(Guard::new(3, START).see(&good, START, 0), Ok(()));
    }

    #[test]
    fn what_comes_before_a_broken_rule_may_still_be_read() {
        let mut guard = Guard::new(0, START);
        let all = [&SETTINGS[..], &HEADERS, &RESET, &EMPTY, &PING].concat();
        let good = SETTINGS.len() + HEADERS.len() + RESET.len();
        assert_eq!(guard.see(&all, START, 0), Err((good, Broken::StreamClosed.into())));
        let large = [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff];
        for torn in 0..large.len() {
            let mut guard = Guard::new(0, START);
            guard.see(&large[..torn], START, 0).unwrap();
            let (at, wrong) = guard.see(&large[torn..], START, 0).unwrap_err();
            assert!(at + torn < large.len(), "the library never has all of it");
            assert_eq!((wrong, wrong.code()), (Broken::FlowControl.into(), 3));
        }
    }

    #[test]
    fn frames_are_told_apart_wherever_the_bytes_are_torn() {
        let preface = *b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        let all = [&preface[..], &SETTINGS, &HEADERS, &EMPTY, &RESET, &PING].concat();
        for cut in 0..=all.len() {
            let mut guard = Guard::new(preface.len(), START);
            guard.see(&all[..cut], START, 0).unwrap();
            guard.see(&all[cut..], START, 0).unwrap();
            let leave = CONTROL_FRAMES_MAX - 2;
            assert_eq!((guard.leave, guard.requests, guard.resets, guard.skip), (leave, 1, 1, 0), "cut at {cut}");
        }
        let mut guard = Guard::new(preface.len(), START);
        all.iter().for_each(|byte| guard.see(&[*byte], START, 0).unwrap());
        assert_eq!((guard.requests, guard.resets), (1, 1));
    }
}
