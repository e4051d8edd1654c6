//! No endpoint takes more than so much of the mean load: V. Mirrokni, M. Thorup, M. Zadimoghaddam, "Consistent Hashing with Bounded Loads",
//! 2016; who is full is passed over by a random jump that the key decides, as J. Chen, B. Coleman and A. Shrivastava found to spread
//! better, "Revisiting Consistent Hashing with Bounded Loads", 2019. Envoy's and HAProxy's `hash_balance_factor`.

use sockway_common::service::spread;

/// How much each endpoint may have to do.
#[derive(Debug)]
pub struct Bounds {
    factor_percent: u32,
    /// Parts of the whole weight.
    shares: Vec<f64>,
}

impl Bounds {
    /// `factor_percent` of the mean, by these weights.
    pub fn new(factor_percent: u32, weights: &[u32]) -> Self {
        let sum: f64 = weights.iter().map(|weight| f64::from((*weight).max(1))).sum();
        let shares = weights.iter().map(|weight| f64::from((*weight).max(1)) / sum).collect();
        Self { factor_percent, shares }
    }

    /// What an endpoint may have to do while all together have `of_all`, and one more comes.
    fn most(&self, number: usize, of_all: u64) -> f64 {
        let mean = (of_all + 1) as f64 * self.shares[number];
        (mean * f64::from(self.factor_percent) / 100.0).ceil().max(1.0)
    }

    /// The endpoint that the key falls on unless it is full; or else one that is not, always in the same order for the same key; or the
    /// least full of all. `load` is what an endpoint has to do.
    pub fn choose(
        &self,
        own: usize,
        key: u64,
        of_all: u64,
        may: impl Fn(usize) -> bool,
        load: impl Fn(usize) -> u64,
    ) -> usize {
        let fullness = |number: usize| (load(number) + 1) as f64 / self.most(number, of_all);
        let mut best = (own, fullness(own));
        if best.1 <= 1.0 {
            return own;
        }
        for number in order(self.shares.len(), key).filter(|number| *number != own && may(*number)) {
            let fullness = fullness(number);
            if fullness <= 1.0 {
                return number;
            }
            if fullness < best.1 {
                best = (number, fullness);
            }
        }
        best.0
    }
}

/// Every number below `count` once, in an order that the key decides: a place to start from and a step without a common divisor.
fn order(count: usize, key: u64) -> impl Iterator<Item = usize> {
    let (start, mut step) = (spread(key) as usize % count, 1 + spread(!key) as usize % count);
    while gcd(step, count) != 1 {
        step += 1;
    }
    (0..count).map(move |turn| (start + turn * step) % count)
}

const fn gcd(mut a: usize, mut b: usize) -> usize {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_order_visits_all(count in 1_usize..300, key: u64) {
            let mut seen: Vec<usize> = order(count, key).collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..count).collect::<Vec<_>>());
        }

        #[test]
        fn whatever_the_keys_nobody_has_more_than_the_factor_says(
            keys in prop::collection::vec(0_u64..5, 1..300),
            weights in prop::collection::vec(1_u32..4, 1..8),
            factor in 100_u32..200,
        ) {
            let bounds = Bounds::new(factor, &weights);
            let loads = RefCell::new(vec![0_u64; weights.len()]);
            for (before, key) in (0_u64..).zip(keys) {
                let own = (spread(key) % weights.len() as u64) as usize;
                let chosen = bounds.choose(own, key, before, |_| true, |number| loads.borrow()[number]);
                loads.borrow_mut()[chosen] += 1;
                let sum: u32 = weights.iter().sum();
                let most = (before + 1) as f64 * f64::from(weights[chosen]) / f64::from(sum) * f64::from(factor) / 100.0;
                prop_assert!(loads.borrow()[chosen] as f64 <= (most + 1e-9).ceil().max(1.0));
            }
        }
    }

    #[test]
    fn a_key_keeps_its_endpoint_until_it_is_full_and_then_has_always_the_same_other() {
        let bounds = Bounds::new(125, &[1; 4]);
        // 1.25 times the mean of 12 and one more is 4.06: five at most.
        assert_eq!(bounds.choose(2, 7, 12, |_| true, |_| 4), 2);
        let full = |number: usize| if number == 2 { 5 } else { 2 };
        let other = bounds.choose(2, 7, 12, |_| true, full);
        assert_ne!(other, 2);
        assert_eq!(bounds.choose(2, 7, 12, |_| true, full), other);
        let third = bounds.choose(2, 7, 12, |number| number != other, full);
        assert!(third != other && third != 2);
        assert_eq!(bounds.choose(2, 7, 12, |number| number == 2, full), 2, "full, and nobody else may be");
    }
}
