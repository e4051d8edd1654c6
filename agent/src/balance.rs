//! Which of the usable endpoints? Weights, a counter, chance, load or a key, and who may be chosen come in; an index goes out.

pub mod maglev;
pub mod priority;
pub mod round_robin;
pub mod shares;
pub mod slow_start;
mod table;
pub mod weighted_random;

use std::net::SocketAddr;

use sockway_common::service::spread;

pub use self::table::{Choice, table};
use crate::{cluster::Shares, config::Balance};

/// How often a policy is asked again when it names an endpoint that may not be chosen. Each ask keeps the proportions among the
/// others; after that the next that may be is taken, wherever it stands.
const ASKS_MAX: usize = 16;

/// What a policy may ask of the world; each asks for its own.
pub trait Ask {
    /// The next number of a counter that all workers share.
    fn turn(&mut self) -> usize;
    /// 64 random bits.
    fn chance(&mut self) -> u64;
    /// How much an endpoint has to do now.
    fn load(&self, index: usize) -> u64;
    /// Who asks.
    fn source(&self) -> u64;
}

/// A service's policy, prepared for its endpoints.
#[derive(Debug)]
pub struct Balancer {
    order: Order,
    /// Those that the policy chooses from.
    taking: Vec<usize>,
    /// The others, in the order in which they are taken when none of those may be.
    others: Vec<usize>,
}

#[derive(Debug)]
enum Order {
    /// One endpoint: nothing to choose.
    Only,
    /// As the others, indexes into those that are chosen from.
    InTurn(Vec<u32>),
    AtRandom(Vec<weighted_random::Column>),
    LeastLoad(Vec<u32>),
    BySource(Vec<u32>),
}

impl Balancer {
    /// For endpoints of these addresses, with these shares. `maglev_slots` is a prime.
    pub fn new(policy: Balance, addresses: &[SocketAddr], shares: &Shares, maglev_slots: u32) -> Self {
        let weight = |index: &usize| shares.weights.get(*index).copied().unwrap_or(0);
        let (taking, idle): (Vec<usize>, Vec<usize>) = (0..addresses.len()).partition(|index| weight(index) > 0);
        let weights: Vec<u32> = taking.iter().map(weight).collect();
        let order = match policy {
            _ if weights.len() == 1 => Order::Only,
            Balance::RoundRobin => Order::InTurn(round_robin::cycle(&weights)),
            Balance::Random | Balance::WeightedRandom => Order::AtRandom(weighted_random::columns(&weights)),
            Balance::LeastConnections => Order::LeastLoad(weights),
            Balance::SourceHash | Balance::Maglev => {
                let choice = |(number, index): (u32, &usize)| Choice {
                    endpoint: number,
                    weight: weight(index),
                    address: addresses[*index],
                };
                let choices: Vec<Choice> = (0..).zip(&taking).map(choice).collect();
                Order::BySource(table(policy, &choices, maglev_slots).iter().map(|slot| slot.first).collect())
            }
        };
        let mut others: Vec<usize> = shares.standby.iter().map(|(index, _)| *index).collect();
        let rest: Vec<usize> = idle.into_iter().filter(|index| !others.contains(index)).collect();
        others.extend(rest);
        Self { order, taking, others }
    }

    /// Chooses among the endpoints that `may` be chosen.
    pub fn choose(&self, may: impl Fn(usize) -> bool, mut world: impl Ask) -> Option<usize> {
        let (count, may_take) = (self.taking.len(), |number: usize| may(self.taking[number]));
        let chosen = match &self.order {
            Order::LeastLoad(weights) => least(weights, &self.taking, may_take, &mut world),
            order => draw(order, count, may_take, &mut world),
        };
        chosen.map(|number| self.taking[number]).or_else(|| self.others.iter().copied().find(|index| may(*index)))
    }
}

/// The policy is asked until it names one that may be chosen; then any.
fn draw(order: &Order, count: usize, may: impl Fn(usize) -> bool, world: &mut impl Ask) -> Option<usize> {
    let mut last = 0;
    for ask in 0..ASKS_MAX {
        last = match order {
            Order::Only => 0,
            Order::InTurn(cycle) => *cycle.get(world.turn() % cycle.len().max(1))? as usize,
            Order::AtRandom(columns) => weighted_random::pick(columns, world.chance())?,
            Order::BySource(table) => by_source(table, world.source(), ask)?,
            Order::LeastLoad(_) => return None,
        };
        if may(last) {
            return Some(last);
        }
        if matches!(order, Order::Only) {
            return None;
        }
    }
    (1..=count).map(|step| (last + step) % count).find(|number| may(*number))
}

/// As the kernel half does it: asked again, the hash of another number.
fn by_source(table: &[u32], source: u64, ask: usize) -> Option<usize> {
    let hash = spread(source.wrapping_add(ask as u64));
    table.get((hash % table.len().max(1) as u64) as usize).map(|index| *index as usize)
}

/// The least load for its weight, this one included; of several the first from a random place on.
fn least(weights: &[u32], taking: &[usize], may: impl Fn(usize) -> bool, world: &mut impl Ask) -> Option<usize> {
    let start = (world.chance() % weights.len().max(1) as u64) as usize;
    let candidates = (0..weights.len()).map(|step| (start + step) % weights.len()).filter(|index| may(*index));
    let load = |number: usize| u128::from(world.load(taking[number]).saturating_add(1));
    let weight = |index: usize| u128::from(weights[index].max(1));
    // load / weight < other load / other weight, without fractions.
    candidates.reduce(|best, next| if load(next) * weight(best) < load(best) * weight(next) { next } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICIES: [Balance; 6] = [
        Balance::RoundRobin,
        Balance::Random,
        Balance::WeightedRandom,
        Balance::LeastConnections,
        Balance::SourceHash,
        Balance::Maglev,
    ];

    #[derive(Clone, Default)]
    struct World {
        turn: usize,
        chance: u64,
        loads: Vec<u64>,
        source: u64,
    }

    impl Ask for &mut World {
        fn turn(&mut self) -> usize {
            self.turn += 1;
            self.turn - 1
        }
        fn chance(&mut self) -> u64 {
            self.chance
        }
        fn load(&self, index: usize) -> u64 {
            self.loads.get(index).copied().unwrap_or(0)
        }
        fn source(&self) -> u64 {
            self.source
        }
    }

    fn balancer(policy: Balance, weights: &[u32]) -> Balancer {
        shared(policy, weights, &[])
    }

    fn shared(policy: Balance, weights: &[u32], standby: &[(usize, u32)]) -> Balancer {
        let addresses: Vec<SocketAddr> = (0..weights.len()).map(|index| ([10, 0, 0, index as u8], 80).into()).collect();
        let shares = Shares { weights: weights.to_vec(), standby: standby.to_vec() };
        Balancer::new(policy, &addresses, &shares, 1021)
    }

    #[test]
    fn in_turn_honours_weights_exactly() {
        let (balancer, mut world) = (balancer(Balance::RoundRobin, &[1, 2, 3]), World::default());
        let mut seen = [0; 3];
        for _ in 0..60 {
            seen[balancer.choose(|_| true, &mut world).unwrap()] += 1;
        }
        assert_eq!(seen, [10, 20, 30]);
    }

    #[test]
    fn the_others_keep_their_proportions_when_one_is_down() {
        let (balancer, mut world) = (balancer(Balance::RoundRobin, &[1, 5, 2]), World::default());
        let mut seen = [0; 3];
        for _ in 0..300 {
            seen[balancer.choose(|index| index != 1, &mut world).unwrap()] += 1;
        }
        assert_eq!(seen, [100, 0, 200]);
    }

    #[test]
    fn the_least_load_for_its_weight_is_taken() {
        for (weights, loads, expected) in
            [(&[1, 1, 1][..], &[2, 0, 1][..], 1), (&[1, 4], &[0, 2], 1), (&[1, 4], &[0, 4], 0), (&[1, 10], &[0, 0], 1)]
        {
            let mut world = World { loads: loads.to_vec(), ..World::default() };
            assert_eq!(balancer(Balance::LeastConnections, weights).choose(|_| true, &mut world), Some(expected));
        }
        let mut world = World { loads: vec![2, 0, 1], ..World::default() };
        assert_eq!(balancer(Balance::LeastConnections, &[1, 1, 1]).choose(|index| index != 1, &mut world), Some(2));
    }

    #[test]
    fn a_source_keeps_its_endpoint_and_finds_another_when_that_is_down() {
        for policy in [Balance::SourceHash, Balance::Maglev] {
            let balancer = balancer(policy, &[1; 10]);
            let at = |source, down: Option<usize>| {
                balancer.choose(|index| Some(index) != down, &mut World { source, ..World::default() }).unwrap()
            };
            let mut used: Vec<usize> = (0..200).map(|source| at(source, None)).collect();
            for source in 0..200 {
                let own = at(source, None);
                assert_eq!(at(source, None), own);
                assert_ne!(at(source, Some(own)), own);
                assert_eq!(at(source, Some((own + 1) % 10)), own, "another's death moves nobody");
            }
            used.sort_unstable();
            used.dedup();
            assert_eq!(used.len(), 10);
        }
    }

    #[test]
    fn nobody_is_chosen_when_nobody_may_be() {
        for policy in POLICIES {
            for weights in [&[][..], &[1], &[1, 2, 3]] {
                assert_eq!(balancer(policy, weights).choose(|_| false, &mut World::default()), None);
            }
        }
    }

    #[test]
    fn who_stands_by_is_taken_when_nobody_else_may_be_and_in_order() {
        for policy in POLICIES {
            let balancer = shared(policy, &[0, 3, 0, 2, 0], &[(4, 2), (0, 3)]);
            let choose = |down: &[usize]| balancer.choose(|index| !down.contains(&index), &mut World::default());
            assert!([Some(1), Some(3)].contains(&choose(&[])), "{policy:?}");
            assert_eq!(choose(&[1]), Some(3));
            assert_eq!(choose(&[1, 3]), Some(4));
            assert_eq!(choose(&[1, 3, 4]), Some(0));
            assert_eq!(choose(&[1, 3, 4, 0]), Some(2), "one that was down may have come back");
        }
    }

    #[test]
    fn one_that_the_policy_hardly_ever_names_is_found_all_the_same() {
        for policy in POLICIES {
            let balancer = balancer(policy, &[65_535, 1]);
            assert_eq!(balancer.choose(|index| index == 1, &mut World::default()), Some(1));
        }
    }
}
