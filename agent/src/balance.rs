//! Which of the usable endpoints? Weights, a counter or chance, and who may be chosen come in; an index goes out.

pub mod round_robin;
pub mod weighted_random;

use crate::config::Balance;

/// How often a policy is asked again when it names an endpoint that may not be chosen. Each ask keeps the proportions among the
/// others; after that the next that may be is taken, wherever it stands.
const ASKS_MAX: usize = 16;

/// A service's policy, prepared for its endpoints.
#[derive(Debug)]
pub struct Balancer {
    endpoints: usize,
    order: Order,
}

#[derive(Debug)]
enum Order {
    /// One endpoint: nothing to choose.
    Only,
    InTurn(Vec<u32>),
    AtRandom(Vec<weighted_random::Column>),
}

impl Balancer {
    /// For endpoints of these weights.
    pub fn new(policy: Balance, weights: &[u32]) -> Self {
        let order = match policy {
            _ if weights.len() == 1 => Order::Only,
            Balance::RoundRobin => Order::InTurn(round_robin::cycle(weights)),
            Balance::WeightedRandom => Order::AtRandom(weighted_random::columns(weights)),
        };
        Self { endpoints: weights.len(), order }
    }

    /// Chooses among the endpoints that `may` be chosen. `turn` gives the next number of a counter that all workers share, `chance` 64
    /// random bits; each policy asks for its own.
    pub fn choose(
        &self,
        may: impl Fn(usize) -> bool,
        mut turn: impl FnMut() -> usize,
        mut chance: impl FnMut() -> u64,
    ) -> Option<usize> {
        let mut last = 0;
        for _ in 0..ASKS_MAX {
            last = match &self.order {
                Order::Only => 0,
                Order::InTurn(cycle) => *cycle.get(turn() % cycle.len().max(1))? as usize,
                Order::AtRandom(columns) => weighted_random::pick(columns, chance())?,
            };
            if may(last) {
                return Some(last);
            }
            if matches!(self.order, Order::Only) {
                return None;
            }
        }
        (1..=self.endpoints).map(|step| (last + step) % self.endpoints).find(|index| may(*index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counter() -> impl FnMut() -> usize {
        let mut next = 0;
        move || {
            next += 1;
            next - 1
        }
    }

    #[test]
    fn in_turn_honours_weights_exactly() {
        let balancer = Balancer::new(Balance::RoundRobin, &[1, 2, 3]);
        let mut turn = counter();
        let mut seen = [0; 3];
        for _ in 0..60 {
            seen[balancer.choose(|_| true, &mut turn, || 0).unwrap()] += 1;
        }
        assert_eq!(seen, [10, 20, 30]);
    }

    #[test]
    fn the_others_keep_their_proportions_when_one_is_down() {
        let balancer = Balancer::new(Balance::RoundRobin, &[1, 5, 2]);
        let mut turn = counter();
        let mut seen = [0; 3];
        for _ in 0..300 {
            seen[balancer.choose(|index| index != 1, &mut turn, || 0).unwrap()] += 1;
        }
        assert_eq!(seen, [100, 0, 200]);
    }

    #[test]
    fn nobody_is_chosen_when_nobody_may_be() {
        for policy in [Balance::RoundRobin, Balance::WeightedRandom] {
            for weights in [&[][..], &[1], &[1, 2, 3]] {
                assert_eq!(Balancer::new(policy, weights).choose(|_| false, counter(), || 7), None);
            }
        }
    }

    #[test]
    fn one_that_the_policy_hardly_ever_names_is_found_all_the_same() {
        for policy in [Balance::RoundRobin, Balance::WeightedRandom] {
            let balancer = Balancer::new(policy, &[65_535, 1]);
            assert_eq!(balancer.choose(|index| index == 1, counter(), || 0), Some(1));
        }
    }
}
