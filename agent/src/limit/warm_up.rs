//! A rate that begins low after a pause and grows: Sentinel's `WarmUpController`
//! (<https://github.com/alibaba/Sentinel/wiki/Flow-Control>), itself after Guava's `SmoothWarmingUp`.
//!
//! A bucket fills while the service is quiet. The fuller it is, the fewer requests pass in a second; those that pass empty it.

use super::{
    request::{Left, Verdict},
    window::Counts,
};

const SECOND_NS: u64 = 1_000_000_000;

/// The rules, as Sentinel computes them.
#[derive(Clone, Copy, Debug)]
pub struct WarmUp {
    limit: u64,
    cold_factor: u64,
    /// More than these, and it is cold.
    warning: u64,
    /// The most that there are.
    most: u64,
    /// How much longer the time between two requests grows with each token above `warning`, in nanoseconds.
    slope_ns: f64,
}

impl WarmUp {
    /// Of `limit` a second after `period_s`, and a `cold_factor`th at first.
    pub fn new(limit: u32, period_s: u32, cold_factor: u32) -> Self {
        let (limit, period, cold) = (u64::from(limit.max(1)), u64::from(period_s), u64::from(cold_factor.max(2)));
        let warning = period * limit / (cold - 1);
        let most = warning + 2 * period * limit / (1 + cold);
        let slope_ns = (cold - 1) as f64 * SECOND_NS as f64 / limit as f64 / (most - warning).max(1) as f64;
        Self { limit, cold_factor: cold, warning, most, slope_ns }
    }

    /// Of what stands in the word, the first count is the tokens that are there, and the second the requests of this second. A word of 0 is
    /// that of a service that was never asked: full of tokens.
    pub(super) fn step(&self, known: u64, now_ns: u64) -> (u64, Verdict) {
        let second = now_ns / SECOND_NS;
        let (tokens, passed) = self.at(known, second);
        if passed < self.passing(tokens) {
            return (Word { second, tokens, passed: passed + 1 }.pack(), Verdict::After(0));
        }
        (known, Verdict::Refused(Some(SECOND_NS - now_ns % SECOND_NS)))
    }

    /// What is left of this second.
    pub(super) fn left(&self, known: u64, now_ns: u64) -> Left {
        let (tokens, passed) = self.at(known, now_ns / SECOND_NS);
        let requests = self.passing(tokens).saturating_sub(passed);
        Left { requests, reset_ns: Some(SECOND_NS - now_ns % SECOND_NS) }
    }

    /// How many pass in a second with so many tokens.
    fn passing(&self, tokens: u64) -> u64 {
        if tokens < self.warning {
            return self.limit;
        }
        let apart_ns = (tokens - self.warning) as f64 * self.slope_ns + SECOND_NS as f64 / self.limit as f64;
        // As Sentinel's nextUp: what is 3.9999… for its arithmetic alone is 4.
        ((SECOND_NS as f64 / apart_ns).next_up() + 1e-9) as u64
    }

    /// Tokens and requests of the second.
    fn at(&self, known: u64, second: u64) -> (u64, u64) {
        let Some(word) = Word::of(known) else { return (self.most, 0) };
        let gone = second.wrapping_sub(word.second) & 0xffff;
        if gone == 0 {
            return (word.tokens, word.passed);
        }
        // Those of a second that was not the last do not count against it.
        let before = if gone == 1 { word.passed } else { 0 };
        let is_quiet = || word.tokens > self.warning && before < self.limit / self.cold_factor;
        let fills = word.tokens < self.warning || is_quiet();
        let filled = if fills { (word.tokens + gone * self.limit).min(self.most) } else { word.tokens };
        (filled.saturating_sub(before), 0)
    }
}

/// What a word says.
struct Word {
    second: u64,
    tokens: u64,
    passed: u64,
}

impl Word {
    /// `None`: nothing is known.
    fn of(known: u64) -> Option<Self> {
        let second = known >> 48;
        let (Counts { before: tokens, here: passed }, _) = Counts::of(known, second);
        (known != 0).then_some(Self { second, tokens, passed })
    }

    fn pack(self) -> u64 {
        Counts { before: self.tokens, here: self.passed }.word(self.second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many pass in each second of a load that is always there.
    fn passing(warm_up: &WarmUp, word: &mut u64, seconds: std::ops::Range<u64>) -> Vec<u64> {
        let mut pass = |now| {
            let (next, verdict) = warm_up.step(*word, now);
            *word = next;
            u64::from(verdict == Verdict::After(0))
        };
        seconds.map(|second| (0..1_000).map(|ms| pass(second * SECOND_NS + ms * 1_000_000)).sum()).collect()
    }

    #[test]
    fn the_numbers_are_sentinel_s() {
        // count 100, warmUpPeriodSec 10, coldFactor 3: its own test's (WarmUpControllerTest, and the class's comment).
        let warm_up = WarmUp::new(100, 10, 3);
        assert_eq!((warm_up.warning, warm_up.most), (500, 1_000));
        assert!((warm_up.slope_ns / SECOND_NS as f64 - 2.0 / 100.0 / 500.0).abs() < 1e-12);
        assert_eq!(warm_up.passing(1_000), 33);
        assert_eq!(warm_up.passing(750), 50);
        assert_eq!((warm_up.passing(500), warm_up.passing(0)), (100, 100));
    }

    #[test]
    fn a_cold_service_gets_a_third_at_first_and_all_after_the_period() {
        let warm_up = WarmUp::new(100, 10, 3);
        let mut word = 0;
        let seen = passing(&warm_up, &mut word, 1_000..1_014);
        assert_eq!(seen[0], 33);
        assert!(seen.is_sorted(), "{seen:?}");
        assert!(seen[8] < 75 && seen[12..] == [100; 2], "{seen:?}");
        // It stays warm under load, and is cold again after a pause.
        assert_eq!(passing(&warm_up, &mut word, 1_014..1_020), [100; 6]);
        assert_eq!(passing(&warm_up, &mut word, 1_100..1_101), [33]);
    }
}
