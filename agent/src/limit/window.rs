//! Limits by windows of time: what was counted of the window before and of this one, in one word.
//!
//! The windows are numbered; the word keeps the last 16 bits of the number. Who was quiet for exactly 65 536 windows, or one more, is taken for
//! one who was not at all: a window's worth of requests is refused then that might have passed.
//!
//! Who may wait for a window to come is counted at once, beyond what fits into this one: where he passes follows from how many came before him,
//! and from nothing else. What is known stays one word.

use std::time::Duration;

use super::request::{Left, Verdict};

/// Bits of each count.
const BITS: u32 = 24;
const MASK: u64 = (1 << BITS) - 1;

/// What is known of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counts {
    /// Of the window before.
    pub before: u64,
    /// Of this one, and of those that wait for the next ones.
    pub here: u64,
}

impl Counts {
    /// As a word says them, and how many windows before window `number` that was.
    pub(super) fn of(known: u64, number: u64) -> (Self, u64) {
        let gone = number.wrapping_sub(known >> (2 * BITS)) & 0xffff;
        let counts = Self { before: known >> BITS & MASK, here: known & MASK };
        if known == 0 { (counts, 0) } else { (counts, gone) }
    }

    /// In a word.
    pub(super) fn word(self, number: u64) -> u64 {
        (number & 0xffff) << (2 * BITS) | self.before.min(MASK) << BITS | self.here.min(MASK)
    }

    fn with_one(self) -> Self {
        Self { here: self.here + 1, ..self }
    }

    /// How many pass in the first `windows` of those that follow, this one being the first, in a sliding window of `limit`: a window is
    /// followed by one of one less, because what counts of it at that one's end is almost nothing, but not nothing.
    fn passed_in(self, windows: u64, limit: u64) -> u64 {
        let passed = match (windows, limit) {
            (0, _) => 0,
            // One, none, one, none.
            (_, 1) if self.before == 0 => windows.div_ceil(2),
            (_, 1) => windows / 2,
            _ => first(self.before, limit).saturating_add((windows - 1).saturating_mul(limit - 1)),
        };
        passed.min(self.here)
    }

    /// So many windows later.
    fn after(self, gone: u64, limit: u64) -> Self {
        if gone == 0 {
            return self;
        }
        let passed = self.passed_in(gone, limit);
        Self { before: passed - self.passed_in(gone - 1, limit), here: self.here - passed }
    }

    /// Where the next one passes: so many windows ahead, behind so many in the one before it and so many in it.
    fn next(self, limit: u64) -> (u64, u64, u64) {
        let first = first(self.before, limit);
        match self.here.checked_sub(first) {
            _ if limit == 1 => (2 * self.here + self.before.min(1), 0, 0),
            None => (0, self.before, self.here),
            Some(rest) => {
                let (window, there) = (1 + rest / (limit - 1), rest % (limit - 1));
                (window, if window == 1 { first } else { limit - 1 }, there)
            }
        }
    }
}

/// How many pass in a window behind one of so many.
fn first(before: u64, limit: u64) -> u64 {
    if before == 0 { limit } else { limit - 1 }
}

/// How many may come in a window.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    limit: u64,
    window_ns: u64,
    /// How long a request waits for its window.
    wait_max_ns: u64,
}

impl Window {
    /// So many in so long; who comes too early waits for so long at most, in nanoseconds.
    pub fn new(limit: u32, window: Duration, wait_max_ns: u64) -> Self {
        Self { limit: limit.max(1).into(), window_ns: (window.as_nanos() as u64).max(1), wait_max_ns }
    }

    /// So many in each window: twice as many may pass within a window's time, half of it before and half behind the turn.
    pub(super) fn fixed(self, known: u64, now_ns: u64, patience_ns: u64) -> (u64, Verdict) {
        self.fixed_by(known, now_ns, patience_ns, |due_ns| due_ns - now_ns)
    }

    /// The same by a clock that may be put forward and back: `until_ns` tells how long it takes until that shows a time.
    pub(super) fn fixed_by(
        self,
        known: u64,
        now_ns: u64,
        patience_ns: u64,
        until_ns: impl FnOnce(u64) -> u64,
    ) -> (u64, Verdict) {
        let number = now_ns / self.window_ns;
        let (then, gone) = Counts::of(known, number);
        let here = then.here.saturating_sub(gone.saturating_mul(self.limit));
        let counts = Counts { before: 0, here };
        let wait_ns = match here / self.limit {
            0 => 0,
            ahead => until_ns((number + ahead) * self.window_ns),
        };
        self.answer((known, counts.with_one().word(number)), here, wait_ns, patience_ns)
    }

    /// So many in any stretch of a window's length, if those of the window before came evenly: `before * (1 - passed) + here`, with the part of
    /// this window that has passed.
    pub(super) fn sliding(self, known: u64, now_ns: u64, patience_ns: u64) -> (u64, Verdict) {
        let Self { limit, window_ns, .. } = self;
        let (number, passed_ns) = (now_ns / window_ns, now_ns % window_ns);
        let (then, gone) = Counts::of(known, number);
        let counts = then.after(gone, limit);
        let (ahead, before, there) = counts.next(limit);
        // Counts are below 2^24 and windows below 2^47 ns, more than a day. From when on there is room beside what counts of the window before.
        let room = u128::from((limit - 1).saturating_sub(there)) * u128::from(window_ns);
        let left_ns = room.checked_div(u128::from(before)).map_or(window_ns, |left| left.min(window_ns.into()) as u64);
        let due_ns = ahead * window_ns + window_ns - left_ns;
        let wait_ns = due_ns.saturating_sub(passed_ns);
        self.answer((known, counts.with_one().word(number)), counts.here, wait_ns, patience_ns)
    }

    /// What is left of this window; `until_ns` as in [`Self::fixed_by`].
    pub(super) fn left_fixed(self, known: u64, now_ns: u64, until_ns: impl FnOnce(u64) -> u64) -> Left {
        let number = now_ns / self.window_ns;
        let (then, gone) = Counts::of(known, number);
        let here = then.here.saturating_sub(gone.saturating_mul(self.limit));
        let reset_ns = Some(until_ns((number + 1) * self.window_ns));
        Left { requests: self.limit.saturating_sub(here), reset_ns }
    }

    /// What is left of this window, with what counts of the one before.
    pub(super) fn left_sliding(self, known: u64, now_ns: u64) -> Left {
        let Self { limit, window_ns, .. } = self;
        let (number, passed_ns) = (now_ns / window_ns, now_ns % window_ns);
        let (then, gone) = Counts::of(known, number);
        let Counts { before, here } = then.after(gone, limit);
        let counting = u128::from(before) * u128::from(window_ns - passed_ns);
        let counting = counting.div_ceil(window_ns.into()) as u64;
        Left { requests: limit.saturating_sub(counting + here), reset_ns: Some(window_ns - passed_ns) }
    }

    fn answer(self, (known, next): (u64, u64), here: u64, wait_ns: u64, patience_ns: u64) -> (u64, Verdict) {
        // More are not counted.
        let fits = here < MASK;
        if fits && wait_ns <= self.wait_max_ns.min(patience_ns) {
            return (next, Verdict::After(wait_ns));
        }
        (known, Verdict::Refused(Some(wait_ns.max(1))))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const PATIENT: u64 = u64::MAX;

    type Step = fn(Window, u64, u64, u64) -> (u64, Verdict);

    fn window(limit: u32) -> Window {
        waiting(limit, 0)
    }

    fn waiting(limit: u32, wait_max_ns: u64) -> Window {
        Window::new(limit, Duration::from_secs(1), wait_max_ns)
    }

    /// How many of the requests at these times pass.
    fn passed(step: Step, limit: u32, times: impl Iterator<Item = u64>) -> usize {
        let mut word = 0;
        times
            .filter(|now| {
                let (next, verdict) = step(window(limit), word, *now, PATIENT);
                word = next;
                matches!(verdict, Verdict::After(0))
            })
            .count()
    }

    #[test]
    fn a_fixed_window_lets_twice_its_limit_through_where_two_meet_and_a_sliding_one_does_not() {
        let around = || (0..400).map(|step| 10 * SECOND - 200_000_000 + step * 1_000_000);
        assert_eq!(passed(Window::fixed, 100, around()), 200);
        // 100 before the turn; 200 ms behind it, four fifths of them count.
        assert_eq!(passed(Window::sliding, 100, around()), 119);
    }

    #[test]
    fn in_no_stretch_of_a_window_pass_more_than_its_error_allows() {
        // Requests that come evenly: exactly the limit. In a burst at the end of each window: no more than the limit in any stretch.
        let evenly = (0..60_000).map(|ms| ms * 1_000_000);
        // (here + 1 must fit beside what is left of the window before.)
        let evenly = passed(Window::sliding, 50, evenly);
        assert!((2_930..=3_000).contains(&evenly), "{evenly}");
        let mut word = 0;
        let mut times = Vec::new();
        for now in (0..10_000).map(|ms| 20 * SECOND + ms * 1_000_000).filter(|now| now % SECOND >= 900_000_000) {
            let (next, verdict) = window(50).sliding(word, now, PATIENT);
            word = next;
            if verdict == Verdict::After(0) {
                times.push(now);
            }
        }
        let most =
            times.iter().map(|from| times.iter().filter(|at| (*from..from + SECOND).contains(*at)).count()).max();
        // The known worst case of the interpolation: those before came at the end of their window, not evenly.
        assert!(most <= Some(50 + 50 / 10 + 1), "{most:?}");
    }

    #[test]
    fn who_is_refused_hears_when_there_is_room_again() {
        for step in [Window::fixed as Step, Window::sliding] {
            let mut word = 0;
            let mut now = 7 * SECOND + 300_000_000;
            for _ in 0..10 {
                word = step(window(10), word, now, PATIENT).0;
            }
            for _ in 0..50 {
                let (next, verdict) = step(window(10), word, now, PATIENT);
                word = next;
                if let Verdict::Refused(wait) = verdict {
                    let wait = wait.expect("known");
                    let early = step(window(10), word, now + wait * 9 / 10, PATIENT).1;
                    assert!(wait < 1_000 || matches!(early, Verdict::Refused(_)), "{wait} is longer than it need be");
                    now += wait + 1_000;
                    assert_eq!(step(window(10), word, now, PATIENT).1, Verdict::After(0), "after {wait}");
                }
            }
        }
    }

    #[test]
    fn who_was_quiet_has_nothing_counted() {
        for quiet in [2, 3, 1_000, 65_535, 70_000] {
            let (then, gone) = Counts::of(Counts { before: 9, here: 9 }.word(77), 77 + quiet);
            assert_eq!(then.after(gone, 10), Counts { before: 0, here: 0 }, "{quiet}");
        }
        for (word, number) in [(77, 78), (0xffff, 0x10000)] {
            let (then, gone) = Counts::of(Counts { before: 9, here: 9 }.word(word), number);
            assert_eq!(then.after(gone, 10), Counts { before: 9, here: 0 });
        }
    }

    #[test]
    fn who_waits_for_a_window_passes_in_the_first_that_has_room_and_who_would_wait_too_long_is_not_counted() {
        let (third, mut word) = (SECOND / 3, 0);
        let mut ask = |now, patience| {
            let (next, verdict) = waiting(2, 2 * SECOND).fixed(word, now, patience);
            word = next;
            verdict
        };
        let now = 10 * SECOND + third;
        let left = SECOND - third;
        let waits: Vec<Verdict> = [PATIENT, PATIENT, third, PATIENT, PATIENT, PATIENT, PATIENT, PATIENT]
            .map(|patience| ask(now, patience))
            .to_vec();
        let after = Verdict::After;
        let (once, twice) = (left, left + SECOND);
        assert_eq!(
            waits,
            [
                after(0),
                after(0),
                Verdict::Refused(Some(once)),
                after(once),
                after(once),
                after(twice),
                after(twice),
                Verdict::Refused(Some(twice + SECOND)),
            ]
        );
        // A window later those who waited for it have passed, and the rest waits on.
        assert_eq!(ask(now + SECOND, PATIENT), after(twice));
        assert_eq!(ask(now + 2 * SECOND, PATIENT), after(once), "that one was the last of the window before");
        assert_eq!(ask(now + 60 * SECOND, PATIENT), after(0));
    }

    #[test]
    fn a_sliding_window_lets_those_who_wait_through_one_by_one() {
        let mut word = 0;
        let turns: Vec<u64> = (0..12)
            .map(|_| {
                let (next, verdict) = waiting(5, 60 * SECOND).sliding(word, 10 * SECOND, PATIENT);
                word = next;
                let Verdict::After(wait) = verdict else { panic!("{verdict:?}") };
                wait / 1_000_000
            })
            .collect();
        // Five at once; behind them, a fifth of a window for each; behind four, a quarter.
        assert_eq!(turns, [0, 0, 0, 0, 0, 1_200, 1_400, 1_600, 1_800, 2_000, 2_250, 2_500]);
    }

    proptest! {
        /// Who waits by this arithmetic passes when one would who waits in a line, and asks again and again.
        #[test]
        fn a_word_knows_the_turn_of_each_of_a_line(
            limit in 1..6_u32,
            is_sliding: bool,
            pauses in prop::collection::vec(prop_oneof![Just(0), 0..900_u64, 0..4_000_u64], 1..60),
        ) {
            const MS: u64 = 1_000_000;
            let step = if is_sliding { Window::sliding as Step } else { Window::fixed };
            let (mut word, mut line, mut now, mut free) = (0, 0, 7 * SECOND + 123 * MS, 0_u64);
            for pause in pauses {
                now += pause * MS;
                let (next, verdict) = step(waiting(limit, PATIENT), word, now, PATIENT);
                word = next;
                let Verdict::After(wait) = verdict else { panic!("{verdict:?}") };
                // The line: nobody passes before who came first.
                let mut at = now.max(free);
                loop {
                    let (next, verdict) = step(window(limit), line, at, PATIENT);
                    line = next;
                    match verdict {
                        Verdict::After(_) => break,
                        Verdict::Refused(wait) => at += wait.expect("known"),
                    }
                }
                free = at;
                prop_assert_eq!(now + wait, at);
            }
        }
    }
}
