//! A timeout that follows how long requests take: how long 99 of a hundred of them take at most is reckoned without keeping any of them.
//!
//! A. Yazidi and H. L. Hammer, "Multiplicative Update Methods for Incremental Quantile Estimation", IEEE Transactions on Cybernetics 49(3),
//! 2019 (DUMIQUE): a request that took longer than the estimate raises it by `RATE × 0.99` of itself, one that did not lowers it by
//! `RATE × 0.01`; both are in balance where one in a hundred is longer. How much longer does not matter, so that a request that was given up
//! counts as well as one that was waited for, and one that took for ever no more than another. The estimate forgets exponentially.
//!
//! Comes in: what is known, and how long one more request took. Goes out: what is known then.

use std::time::Duration;

use crate::cluster::pace::{Known, SAMPLES_MIN};

/// How fast the estimate moves: 48 requests in a row that take longer bring it to the tenfold, 4 600 that do not to the tenth. In a steady
/// state it strays from the quantile by some 7 % where times are spread exponentially.
const RATE: f32 = 0.05;
const QUANTILE: f32 = 0.99;

/// What one more request says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sample {
    /// It took so long.
    Took(Duration),
    /// It was given up after so long.
    GivenUp(Duration),
}

/// What is known with one more request. The longest of the first hundred is what the estimate begins with.
#[must_use]
pub fn learnt(known: Known, sample: Sample) -> Known {
    let (Sample::Took(time) | Sample::GivenUp(time)) = sample;
    let (p99, time_ns) = (known.p99_ns(), time.as_nanos() as f32);
    let is_longer = time_ns > p99;
    // How much longer it would have taken than this is not known.
    if !is_longer && matches!(sample, Sample::GivenUp(_)) {
        return known;
    }
    let samples = known.samples().saturating_add(1);
    let p99 = match (samples <= SAMPLES_MIN, is_longer) {
        (true, _) => p99.max(time_ns),
        (false, true) => p99 * (1.0 + RATE * QUANTILE),
        (false, false) => p99 * (1.0 - RATE * (1.0 - QUANTILE)),
    };
    // Who takes longer than a day has no deadline that is worth finding; and nothing grows without end.
    Known::of(p99.min(DAY_NS), samples)
}

const DAY_NS: f32 = 86_400e9;

#[cfg(test)]
mod tests {
    use std::thread;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        chance::below,
        cluster::{Snapshot, pace::Pace},
        config::file,
    };

    fn pace(keys: &str) -> Pace {
        let text =
            format!("services: [{{name: a, address: 10.0.0.1:80, protocol: http, endpoints: [10.0.0.2:80], {keys}}}]");
        let config = file::parse(&text, "F").expect("a good file");
        Snapshot::build(&config, &Snapshot::default()).services[0].pace.clone().expect("a pace")
    }

    fn took(pace: &Pace, micros: u64) {
        pace.learn(|known| learnt(known, Sample::Took(Duration::from_micros(micros))));
    }

    /// The next of a row of random bits (SplitMix64).
    fn next(state: &mut u64) -> u64 {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Microseconds, spread exponentially around a mean.
    fn exponential(mean: f64, state: &mut u64) -> u64 {
        let part = (next(state) >> 11) as f64 / (1_u64 << 53) as f64;
        (-(1.0 - part).ln() * mean) as u64
    }

    #[test]
    fn who_knows_little_gives_the_most() {
        let pace = pace("timeout: {auto: {factor: 3, min_ms: 10, max_ms: 2000}}");
        for _ in 1..SAMPLES_MIN {
            took(&pace, 20_000);
            assert_eq!((pace.p99(), pace.timeout()), (None, Duration::from_secs(2)));
        }
        took(&pace, 20_000);
        assert_eq!(pace.timeout().as_millis(), 60);
    }

    #[test]
    fn bounds_hold() {
        let pace = pace("timeout: {auto: {factor: 10, min_ms: 50, max_ms: 400}}");
        (0..200).for_each(|_| took(&pace, 100));
        assert_eq!(pace.timeout().as_millis(), 50);
        (0..1000).for_each(|_| took(&pace, 1_000_000));
        assert_eq!(pace.timeout().as_millis(), 400);
    }

    #[test]
    fn a_server_that_slows_down_is_given_more_before_it_is_done_with_fifty_requests() {
        let pace = pace("timeout: {auto: {factor: 3, min_ms: 1, max_ms: 60000}}");
        (0..1000).for_each(|_| took(&pace, 1_000));
        // All of them are given up until the timeout has come to what they take.
        let given_up = (0..).find(|_| {
            let timeout = pace.timeout();
            pace.learn(|known| learnt(known, Sample::GivenUp(timeout)));
            pace.timeout() > Duration::from_millis(20)
        });
        assert!(given_up < Some(50), "{given_up:?}");
    }

    #[test]
    fn who_was_given_up_early_says_nothing() {
        let pace = pace("timeout_ms: auto");
        (0..1000).for_each(|_| took(&pace, 50_000));
        let before = pace.known();
        pace.learn(|known| learnt(known, Sample::GivenUp(Duration::from_millis(1))));
        assert_eq!(pace.known(), before);
    }

    #[test]
    fn one_in_a_hundred_takes_longer_however_times_are_spread() {
        type Spread = fn(&mut u64) -> u64;
        let spreads: [(&str, Spread); 4] = [
            ("exponential", |state| exponential(3_000.0, state)),
            ("even", |state| 1_000 + below(9_000, next(state))),
            ("two kinds", |state| if below(100, next(state)) < 5 { 80_000 + below(9_000, next(state)) } else { 900 }),
            ("long tail", |state| {
                let part = ((next(state) >> 11) as f64 + 1.0) / (1_u64 << 53) as f64;
                (500.0 * part.powf(-0.5)) as u64
            }),
        ];
        for (name, spread) in spreads {
            let (pace, mut state) = (pace("timeout_ms: auto"), 7);
            (0..20_000).for_each(|_| took(&pace, spread(&mut state)));
            let mut longer = 0;
            for _ in 0..50_000 {
                let micros = spread(&mut state);
                longer += u32::from(Duration::from_micros(micros) > pace.p99().expect("enough is known"));
                took(&pace, micros);
            }
            let permille = f64::from(longer) / 50.0;
            assert!((7.0..14.0).contains(&permille), "{name}: {permille} of a thousand took longer");
        }
    }

    #[test]
    fn threads_that_learn_at_once_lose_nothing() {
        let pace = pace("timeout_ms: auto");
        let learn = || (0..10_000).for_each(|_| took(&pace, 1_000));
        thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(learn))));
        assert_eq!(pace.known().samples(), 40_000);
    }

    proptest! {
        #[test]
        fn whatever_comes_the_timeout_is_within_its_bounds(
            samples in prop::collection::vec((any::<u64>(), any::<bool>()), 0..300),
        ) {
            let pace = pace("timeout: {auto: {factor: 100, min_ms: 5, max_ms: 700}}");
            for (nanos, is_whole) in samples {
                let time = Duration::from_nanos(nanos);
                let sample = if is_whole { Sample::Took(time) } else { Sample::GivenUp(time) };
                pace.learn(|known| learnt(known, sample));
                prop_assert!((5..=700).contains(&pace.timeout().as_millis()));
                prop_assert!(pace.known().p99_ns().is_finite());
            }
        }

        #[test]
        fn a_longer_request_never_lowers_what_is_known(p99 in 1.0_f32..1e13, samples: u32, longer in 1.0_f64..10.0) {
            let known = Known::of(p99, samples);
            let time = Duration::from_nanos((f64::from(p99) * longer) as u64 + 1);
            for sample in [Sample::Took(time), Sample::GivenUp(time)] {
                prop_assert!(learnt(known, sample).p99_ns() >= known.p99_ns());
            }
        }

        #[test]
        fn times_in_another_unit_come_to_the_same(seed: u64, scale in 2_u32..1000) {
            let (mut state, mut one, mut other) = (seed, Known::default(), Known::default());
            for _ in 0..2_000 {
                let micros = 1 + exponential(1_000.0, &mut state);
                one = learnt(one, Sample::Took(Duration::from_micros(micros)));
                other = learnt(other, Sample::Took(Duration::from_micros(micros) * scale));
            }
            let ratio = other.p99_ns() / one.p99_ns() / scale as f32;
            prop_assert!((0.8..1.25).contains(&ratio), "{ratio}");
        }
    }
}
