//! Limits by windows of time: what was counted of the window before and of this one, in one word.
//!
//! The windows are numbered; the word keeps the last 16 bits of the number. Who was quiet for exactly 65 536 windows, or one more, is taken for
//! one who was not at all: a window's worth of requests is refused then that might have passed.

use std::time::Duration;

use super::request::Verdict;

/// Bits of each count.
const BITS: u32 = 24;
const MASK: u64 = (1 << BITS) - 1;

/// What is known of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counts {
    /// Of the window before.
    pub before: u64,
    /// Of this one.
    pub here: u64,
}

impl Counts {
    /// As a word says them, seen from window `number`.
    pub(super) fn of(known: u64, number: u64) -> Self {
        let (of, before, here) = (known >> (2 * BITS), known >> BITS & MASK, known & MASK);
        match (number.wrapping_sub(of) & 0xffff, known) {
            (_, 0) => Self { before: 0, here: 0 },
            (0, _) => Self { before, here },
            (1, _) => Self { before: here, here: 0 },
            _ => Self { before: 0, here: 0 },
        }
    }

    /// In a word.
    pub(super) fn word(self, number: u64) -> u64 {
        (number & 0xffff) << (2 * BITS) | self.before.min(MASK) << BITS | self.here.min(MASK)
    }

    fn with_one(self) -> Self {
        Self { here: self.here + 1, ..self }
    }
}

/// How many may come in a window.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    limit: u64,
    window_ns: u64,
}

impl Window {
    /// So many in so long.
    pub fn new(limit: u32, window: Duration) -> Self {
        Self { limit: limit.into(), window_ns: (window.as_nanos() as u64).max(1) }
    }

    /// So many in each window: twice as many may pass within a window's time, half of it before and half behind the turn.
    pub(super) fn fixed(self, known: u64, now_ns: u64) -> (u64, Verdict) {
        let Self { limit, window_ns } = self;
        let number = now_ns / window_ns;
        let counts = Counts::of(known, number);
        if counts.here < limit {
            return (counts.with_one().word(number), Verdict::After(0));
        }
        (known, Verdict::Refused(Some(window_ns - now_ns % window_ns)))
    }

    /// So many in any stretch of a window's length, if those of the window before came evenly: `before * (1 - passed) + here`, with the part of
    /// this window that has passed.
    pub(super) fn sliding(self, known: u64, now_ns: u64) -> (u64, Verdict) {
        let Self { limit, window_ns } = self;
        let (number, passed_ns) = (now_ns / window_ns, now_ns % window_ns);
        let counts = Counts::of(known, number);
        // Counts are below 2^24 and windows below 2^47 ns, more than a day.
        let weighted = |left_ns: u64| u128::from(counts.before) * u128::from(left_ns);
        let room = |left_ns: u64| weighted(left_ns) + u128::from(counts.here + 1) * u128::from(window_ns);
        let most = u128::from(limit) * u128::from(window_ns);
        let left_ns = window_ns - passed_ns;
        if room(left_ns) <= most {
            return (counts.with_one().word(number), Verdict::After(0));
        }
        // Within this window if what the window before counts for becomes small enough, else when this one is the window before.
        let left_when_free = |of: u64, here: u64| {
            let free = most.saturating_sub(u128::from(here + 1) * u128::from(window_ns));
            free.checked_div(u128::from(of)).map_or(window_ns, |left| left.min(u128::from(window_ns)) as u64)
        };
        let wait_ns = if counts.here < limit {
            left_ns.saturating_sub(left_when_free(counts.before, counts.here))
        } else {
            left_ns + window_ns - left_when_free(counts.here, 0)
        };
        (known, Verdict::Refused(Some(wait_ns.max(1))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    type Step = fn(Window, u64, u64) -> (u64, Verdict);

    fn window(limit: u32) -> Window {
        Window::new(limit, Duration::from_secs(1))
    }

    /// How many of the requests at these times pass.
    fn passed(step: Step, limit: u32, times: impl Iterator<Item = u64>) -> usize {
        let mut word = 0;
        times
            .filter(|now| {
                let (next, verdict) = step(window(limit), word, *now);
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
            let (next, verdict) = window(50).sliding(word, now);
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
                word = step(window(10), word, now).0;
            }
            for _ in 0..50 {
                let (next, verdict) = step(window(10), word, now);
                word = next;
                if let Verdict::Refused(wait) = verdict {
                    let wait = wait.expect("known");
                    let early = step(window(10), word, now + wait * 9 / 10).1;
                    assert!(wait < 1_000 || matches!(early, Verdict::Refused(_)), "{wait} is longer than it need be");
                    now += wait + 1_000;
                    assert_eq!(step(window(10), word, now).1, Verdict::After(0), "after {wait}");
                }
            }
        }
    }

    #[test]
    fn who_was_quiet_has_nothing_counted() {
        for quiet in [2, 3, 1_000, 65_535, 70_000] {
            let full = Counts { before: 9, here: 10 }.word(77);
            assert_eq!(Counts::of(full, 77 + quiet), Counts { before: 0, here: 0 }, "{quiet}");
        }
        assert_eq!(Counts::of(Counts { before: 9, here: 10 }.word(77), 78), Counts { before: 10, here: 0 });
        assert_eq!(Counts::of(Counts { before: 9, here: 10 }.word(0xffff), 0x10000), Counts { before: 10, here: 0 });
    }
}
