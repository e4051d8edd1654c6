//! Fewest requests in flight: of a few drawn at random where weights are equal; where they are not, each endpoint with the share
//! `weight / (requests in flight + 1)^bias`, as Envoy's `LEAST_REQUEST`. Envoy hands those shares out in turn, from a queue; here they are
//! chances, which need no queue that all workers would have to lock.

use super::{
    among::least,
    weighted_random::{self, Column},
};
use crate::{
    chance::{below, part},
    config::tuning::LeastRequest,
};

/// Of so many endpoints the shares are exact.
const EXACT_MAX: usize = 32;
/// Of more, so many are drawn by weight, and of these one by what it has to do: choosing takes no longer however many there are.
const DRAWN: usize = 16;

/// A service's endpoints.
#[derive(Debug)]
pub struct Fewest {
    rules: LeastRequest,
    weights: Vec<u32>,
    /// Where weights are not equal.
    columns: Option<Vec<Column>>,
}

impl Fewest {
    /// Of these weights.
    pub fn new(rules: LeastRequest, weights: Vec<u32>) -> Self {
        let columns = weighted_random::columns_if_uneven(&weights);
        Self { rules, weights, columns }
    }

    /// Chooses among those that `may` be; `load` is what an endpoint has to do.
    pub fn choose(
        &self,
        may: impl Fn(usize) -> bool,
        chance: impl Fn() -> u64,
        load: impl Fn(usize) -> u64,
    ) -> Option<usize> {
        let count = self.weights.len();
        match &self.columns {
            None => {
                let draw = || below(count as u64, chance()) as usize;
                least(self.rules.of, count, draw, may, &chance, |number| load(number) as f64)
            }
            Some(columns) if count > EXACT_MAX => {
                // Drawn by weight already.
                let share = |number: usize| if may(number) { self.rest(load(number)) } else { 0.0 };
                let mut drawn = [0; DRAWN];
                drawn.fill_with(|| weighted_random::pick(columns, chance()).unwrap_or(0));
                by_share(&drawn, share, chance()).or_else(|| (0..count).find(|number| may(*number)))
            }
            Some(_) => {
                let weight = |number: usize| f64::from(self.weights[number].max(1));
                let share = |number: usize| if may(number) { weight(number) * self.rest(load(number)) } else { 0.0 };
                let all: [usize; EXACT_MAX] = std::array::from_fn(|number| number);
                by_share(&all[..count], share, chance())
            }
        }
    }

    /// The part of its weight that is left to an endpoint with so much to do.
    fn rest(&self, load: u64) -> f64 {
        let busy = load as f64 + 1.0;
        match self.rules.bias_percent {
            100 => 1.0 / busy,
            percent => busy.powf(-f64::from(percent) / 100.0),
        }
    }
}

/// One of at most [`EXACT_MAX`] numbers, each with its share of the chance.
fn by_share(numbers: &[usize], share: impl Fn(usize) -> f64, chance: u64) -> Option<usize> {
    let mut sums = [0.0; EXACT_MAX];
    let mut sum = 0.0;
    for (place, number) in numbers.iter().enumerate() {
        sum += share(*number);
        sums[place] = sum;
    }
    let at = part(chance) * sum;
    // Strictly below: who has no share is never met.
    numbers.iter().zip(&sums).find(|(_, sum)| at < **sum).map(|(number, _)| *number)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use sockway_common::service::spread;

    use super::*;
    use crate::config::tuning::Among;

    fn tally(fewest: &Fewest, loads: &[u64], may: impl Fn(usize) -> bool, rounds: usize) -> Vec<f64> {
        let state = Cell::new(1);
        let chance = || {
            state.set(state.get() + 1);
            spread(state.get())
        };
        let mut seen = vec![0_usize; loads.len()];
        for _ in 0..rounds {
            seen[fewest.choose(&may, chance, |number| loads[number]).expect("one")] += 1;
        }
        seen.iter().map(|seen| *seen as f64 / rounds as f64).collect()
    }

    fn rules(of: Among, bias_percent: u32) -> LeastRequest {
        LeastRequest { of, bias_percent }
    }

    /// Within four sigma of what is expected.
    fn assert_near(found: &[f64], expected: &[f64], rounds: usize) {
        for (found, expected) in found.iter().zip(expected) {
            let sigma = (expected * (1.0 - expected) / rounds as f64).sqrt();
            assert!((found - expected).abs() <= 4.0 * sigma + 1e-12, "{found} for {expected}");
        }
    }

    #[test]
    fn of_two_drawn_the_less_busy_is_taken() {
        let rounds = 60_000;
        // Of three, each pair is drawn with the same chance: the busiest never wins, the idlest wins both of its pairs.
        let two = Fewest::new(rules(Among::Some(2), 100), vec![1; 3]);
        assert_near(&tally(&two, &[5, 0, 3], |_| true, rounds), &[0.0, 2.0 / 3.0, 1.0 / 3.0], rounds);
        assert_near(&tally(&two, &[4, 4, 4], |_| true, rounds), &[1.0 / 3.0; 3], rounds);
        assert_near(&tally(&two, &[5, 0, 3], |number| number != 1, rounds), &[0.0, 0.0, 1.0], rounds);
    }

    #[test]
    fn a_full_scan_takes_the_least_and_any_of_those_alike() {
        let rounds = 60_000;
        let all = Fewest::new(rules(Among::All, 100), vec![7; 5]);
        assert_near(
            &tally(&all, &[3, 1, 2, 1, 1], |_| true, rounds),
            &[0.0, 1.0, 0.0, 1.0, 1.0].map(|x| x / 3.0),
            rounds,
        );
    }

    #[test]
    fn unequal_weights_count_by_envoy_s_formula() {
        let rounds = 60_000;
        for (bias, loads, shares) in [
            // weight / (active + 1)^bias
            (100, [0, 0, 0], [1.0, 2.0, 5.0]),
            (100, [0, 3, 9], [1.0, 0.5, 0.5]),
            (0, [0, 3, 9], [1.0, 2.0, 5.0]),
            (200, [1, 1, 4], [0.25, 0.5, 0.2]),
            (50, [3, 0, 24], [0.5, 2.0, 1.0]),
        ] {
            let fewest = Fewest::new(rules(Among::Some(2), bias), vec![1, 2, 5]);
            let sum: f64 = shares.iter().sum();
            assert_near(&tally(&fewest, &loads, |_| true, rounds), &shares.map(|share| share / sum), rounds);
        }
        let fewest = Fewest::new(rules(Among::Some(2), 100), vec![1, 2, 5]);
        assert_near(&tally(&fewest, &[0; 3], |number| number != 2, rounds), &[1.0 / 3.0, 2.0 / 3.0, 0.0], rounds);
    }

    #[test]
    fn of_many_the_busy_ones_take_their_shares_too() {
        let (rounds, count) = (60_000, 200);
        let weights: Vec<u32> = (0..count).map(|number| 1 + number % 2).collect();
        let loads: Vec<u64> = (0..u64::from(count)).map(|number| if number % 4 < 2 { 0 } else { 3 }).collect();
        let fewest = Fewest::new(rules(Among::Some(2), 100), weights);
        let found = tally(&fewest, &loads, |_| true, rounds);
        let of = |rest: usize| found.iter().skip(rest).step_by(4).sum::<f64>();
        // Shares 1, 2, 1/4, 2/4 of 3.75; a sample of 16 is a little fairer to the busy.
        for (rest, share) in [1.0, 2.0, 0.25, 0.5].into_iter().enumerate() {
            assert!((of(rest) - share / 3.75).abs() < 0.015, "{rest}: {} for {}", of(rest), share / 3.75);
        }
    }

    #[test]
    fn nobody_is_chosen_when_nobody_may_be_and_the_only_one_is_found() {
        for weights in [vec![1; 3], vec![1, 2, 3], vec![1; 500], (1..=500).collect()] {
            let (fewest, last) = (Fewest::new(rules(Among::Some(2), 100), weights.clone()), weights.len() - 1);
            assert_eq!(fewest.choose(|_| false, || 7, |_| 0), None);
            assert_eq!(fewest.choose(|number| number == last, || 7, |_| 0), Some(last));
        }
    }
}
