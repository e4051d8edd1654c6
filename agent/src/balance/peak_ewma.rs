//! Who answers fastest: an average of how long answers took that jumps up at once and comes down slowly, times what waits, as Finagle's
//! and Linkerd's "peak EWMA" (<https://twitter.github.io/finagle/guide/Clients.html#power-of-two-choices-p2c-peak-ewma-least-loaded>,
//! tower's `PeakEwma`). A failure counts as an answer that took long, as in Linkerd's `LoadBiaser`: who fails fast is not fast.

use std::time::Duration;

use super::{
    among::least,
    weighted_random::{self, Column},
};
use crate::{chance::below, config::tuning::PeakEwma};

/// A moment: nanoseconds of a clock that all workers share.
pub type Nanos = u64;

/// How long an endpoint takes to answer, and when that was said: half of an atomic each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Estimate(u64);

/// Moments are kept in units of 2^16 ns, 66 µs: a half of 32 bits goes round in three days, in which any estimate is worn off.
const TICK_SHIFT: u32 = 16;

impl Estimate {
    /// As it was kept; 0 is none.
    pub fn of(bits: u64) -> Self {
        Self(bits)
    }

    /// To be kept.
    pub fn bits(self) -> u64 {
        self.0
    }

    /// Of an endpoint that nothing is known of.
    pub fn start(rules: &PeakEwma, now: Nanos) -> Self {
        Self::at(rules.start.as_nanos() as f32, now)
    }

    fn at(nanos: f32, now: Nanos) -> Self {
        // Never 0, which is none: a part of a nanosecond is no time at all.
        Self(u64::from(nanos.max(f32::MIN_POSITIVE).to_bits()) << 32 | u64::from((now >> TICK_SHIFT) as u32))
    }

    /// Nanoseconds, as said then.
    fn nanos(self) -> f64 {
        f32::from_bits((self.0 >> 32) as u32).into()
    }

    /// What an estimate counts after the time since it was made: `exp(-dt / decay)`.
    fn weight(self, rules: &PeakEwma, now: Nanos) -> f64 {
        let ticks = ((now >> TICK_SHIFT) as u32).wrapping_sub(self.0 as u32);
        // Another worker may have looked at the clock a little later, and been first to say so.
        let ticks = if ticks > u32::MAX / 2 { 0 } else { ticks };
        let elapsed = (u64::from(ticks) << TICK_SHIFT) as f64;
        (-elapsed / rules.decay.as_nanos() as f64).exp()
    }

    /// With one more answer, which took so long: it counts whole if it took longer, or else for the time since the last one.
    #[must_use]
    pub fn sampled(self, took: Duration, rules: &PeakEwma, now: Nanos) -> Self {
        let took = took.as_nanos() as f64;
        if took > self.nanos() {
            return Self::at(took as f32, now);
        }
        let weight = self.weight(rules, now);
        Self::at((self.nanos() * weight + took * (1.0 - weight)) as f32, now)
    }

    /// With a request that was given up after so long.
    #[must_use]
    pub fn not_within(self, waited: Duration, now: Nanos) -> Self {
        let waited = waited.as_nanos() as f64;
        if waited > self.nanos() { Self::at(waited as f32, now) } else { self }
    }

    /// What one more request would cost, with so many before it, of which the oldest has waited for its answer this long.
    pub fn cost(self, pending: u64, waited: Duration, rules: &PeakEwma, now: Nanos) -> f64 {
        let worn = self.nanos() * self.weight(rules, now);
        worn.max(waited.as_nanos() as f64).max(1.0) * (pending as f64 + 1.0)
    }
}

/// How long an exchange counts as having taken.
pub fn counted(took: Duration, has_failed: bool, rules: &PeakEwma) -> Duration {
    if has_failed { took.max(rules.penalty) } else { took }
}

/// A service's endpoints.
#[derive(Debug)]
pub struct Fastest {
    /// What estimates go by.
    pub rules: PeakEwma,
    weights: Vec<u32>,
    /// Where weights are not equal.
    columns: Option<Vec<Column>>,
}

impl Fastest {
    /// Of these weights.
    pub fn new(rules: PeakEwma, weights: Vec<u32>) -> Self {
        let columns = weighted_random::columns_if_uneven(&weights);
        Self { rules, weights, columns }
    }

    /// Chooses among those that `may` be by what one more request would cost them. Weights say how often an endpoint is drawn.
    pub fn choose(
        &self,
        may: impl Fn(usize) -> bool,
        chance: impl Fn() -> u64,
        cost: impl Fn(usize) -> f64,
    ) -> Option<usize> {
        let count = self.weights.len();
        let draw = || match &self.columns {
            Some(columns) => weighted_random::pick(columns, chance()).unwrap_or(0),
            None => below(count as u64, chance()) as usize,
        };
        least(self.rules.of, count, draw, may, &chance, cost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tuning::Tuning;

    const SECOND: Nanos = 1_000_000_000;

    fn rules() -> PeakEwma {
        Tuning::default().peak_ewma
    }

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    /// In milliseconds, of one request more than none.
    fn cost(estimate: Estimate, now: Nanos) -> f64 {
        estimate.cost(0, Duration::ZERO, &rules(), now) / 1e6
    }

    fn assert_near(found: f64, expected: f64) {
        assert!((found - expected).abs() < 0.001 * expected, "{found} for {expected}");
    }

    #[test]
    fn a_slow_answer_counts_at_once_and_a_fast_one_for_the_time_since_the_last() {
        let start = Estimate::start(&rules(), 0);
        assert_near(cost(start, 0), 30.0);
        let peak = start.sampled(ms(200), &rules(), SECOND);
        assert_near(cost(peak, SECOND), 200.0);
        // 200 * w + 10 * (1 - w), w = exp(-5 s / 10 s)
        let less = peak.sampled(ms(10), &rules(), 6 * SECOND);
        let w = (-0.5_f64).exp();
        assert_near(cost(less, 6 * SECOND), 200.0 * w + 10.0 * (1.0 - w));
        let soon = less.sampled(ms(10), &rules(), 6 * SECOND);
        assert_near(cost(soon, 6 * SECOND), cost(less, 6 * SECOND));
    }

    #[test]
    fn an_estimate_wears_off_while_nobody_asks() {
        let start = Estimate::start(&rules(), 7 * SECOND).sampled(ms(100), &rules(), 7 * SECOND);
        for seconds in [1, 10, 30] {
            assert_near(cost(start, (7 + seconds) * SECOND), 100.0 * (-(seconds as f64) / 10.0).exp());
        }
        assert_eq!(start.cost(3, Duration::ZERO, &rules(), 20_000 * SECOND), 4.0, "no less than a nanosecond each");
    }

    #[test]
    fn what_waits_counts_and_who_waits_longer_than_expected_says_more() {
        let start = Estimate::start(&rules(), 0);
        assert_near(start.cost(3, Duration::ZERO, &rules(), 0) / 1e6, 120.0);
        assert_near(start.cost(1, ms(20), &rules(), 0) / 1e6, 60.0);
        assert_near(start.cost(1, ms(500), &rules(), 0) / 1e6, 1000.0);
    }

    #[test]
    fn who_gave_up_after_less_than_was_expected_says_nothing() {
        let start = Estimate::start(&rules(), 0);
        assert_eq!(start.not_within(ms(29), SECOND), start);
        assert_near(cost(start.not_within(ms(70), SECOND), SECOND), 70.0);
    }

    #[test]
    fn a_failure_counts_as_a_slow_answer() {
        assert_eq!(counted(ms(1), true, &rules()), ms(5000));
        assert_eq!(counted(ms(6000), true, &rules()), ms(6000));
        assert_eq!(counted(ms(1), false, &rules()), ms(1));
    }

    #[test]
    fn a_clock_that_was_read_earlier_wears_nothing_off_and_the_half_goes_round() {
        let later = Estimate::start(&rules(), 10 * SECOND);
        assert_near(cost(later, 9 * SECOND), 30.0);
        let end = (u64::from(u32::MAX) << TICK_SHIFT) - SECOND;
        assert_near(cost(Estimate::start(&rules(), end), end + 2 * SECOND), 30.0 * (-0.2_f64).exp());
    }

    #[test]
    fn the_cheaper_of_two_is_taken_and_none_that_may_not_be() {
        let fastest = Fastest::new(rules(), vec![1, 1]);
        let costs = [3.0, 2.0];
        assert_eq!(fastest.choose(|_| true, || 1, |number| costs[number]), Some(1));
        assert_eq!(fastest.choose(|number| number == 0, || 1, |number| costs[number]), Some(0));
        assert_eq!(fastest.choose(|_| false, || 1, |number| costs[number]), None);
    }
}
