//! Which of the usable endpoints? Weights, a counter, chance, load, how fast they answered or a key, and who may be chosen come in; an
//! index goes out.

mod among;
mod bounded_load;
pub mod key;
mod least_request;
pub mod maglev;
pub mod peak_ewma;
pub mod priority;
mod ring_hash;
pub mod round_robin;
pub mod shares;
pub mod slow_start;
mod table;
pub mod weighted_random;

use std::net::SocketAddr;

use sockway_common::service::spread;

pub use self::table::{Choice, table};
use self::{bounded_load::Bounds, least_request::Fewest, peak_ewma::Fastest, ring_hash::Ring};
use crate::{
    cluster::Shares,
    config::{Balance, Policy},
};

/// How often a policy is asked again when it names an endpoint that may not be chosen. Each ask keeps the proportions among the
/// others; after that the next that may be is taken, wherever it stands.
const ASKS_MAX: usize = 16;

/// What a policy may ask of the world; each asks for its own.
pub trait Ask {
    /// The next number of a counter that all workers share.
    fn turn(&self) -> usize;
    /// 64 random bits.
    fn chance(&self) -> u64;
    /// How much an endpoint has to do now.
    fn load(&self, index: usize) -> u64;
    /// How much all of them have.
    fn load_of_all(&self) -> u64;
    /// What one more request would cost an endpoint, by [`peak_ewma`].
    fn cost(&self, index: usize) -> f64;
    /// Who asks.
    fn source(&self) -> u64;
    /// The hash of what asks, where that is not who: see [`Balancer::hash`].
    fn key(&self) -> Option<u64>;
}

/// Where an endpoint is, and its weight as configured: what does not change while its share does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    /// What it is known by on every host.
    pub address: SocketAddr,
    /// At least 1.
    pub weight: u32,
}

impl Site {
    /// One of the weight 1.
    pub fn plain(address: SocketAddr) -> Self {
        Self { address, weight: 1 }
    }
}

/// A service's policy, prepared for its endpoints.
#[derive(Debug)]
pub struct Balancer {
    order: Order,
    /// Where a hash chooses, and not whatever falls on an endpoint is its.
    bounds: Option<Bounds>,
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
    Fewest(Fewest),
    Fastest(Fastest),
    ByHash(Vec<u32>),
    Ring(Ring),
}

impl Order {
    fn new(policy: &Policy, sites: &[Site], weights: Vec<u32>) -> Self {
        match policy.balance {
            _ if weights.len() == 1 => Self::Only,
            Balance::RoundRobin => Self::InTurn(round_robin::cycle(&weights)),
            Balance::Random | Balance::WeightedRandom => Self::AtRandom(weighted_random::columns(&weights)),
            Balance::LeastConnections => Self::LeastLoad(weights),
            Balance::LeastRequest => Self::Fewest(Fewest::new(policy.tuning.least_request, weights)),
            Balance::PeakEwma => Self::Fastest(Fastest::new(policy.tuning.peak_ewma, weights)),
            Balance::RingHash => Self::Ring(Ring::new(&policy.tuning.ring_hash, sites, &weights)),
            Balance::SourceHash | Balance::Maglev => {
                let choice = |(endpoint, (site, weight)): (u32, (&Site, &u32))| Choice {
                    endpoint,
                    weight: *weight,
                    address: site.address,
                };
                let choices: Vec<Choice> = (0..).zip(sites.iter().zip(&weights)).map(choice).collect();
                let slots = table(policy.balance, &choices, policy.maglev_table_size);
                Self::ByHash(slots.iter().map(|slot| slot.first).collect())
            }
        }
    }
}

impl Balancer {
    /// For these endpoints, with these shares.
    pub fn new(policy: &Policy, sites: &[Site], shares: &Shares) -> Self {
        let weight = |index: &usize| shares.weights.get(*index).copied().unwrap_or(0);
        let (taking, idle): (Vec<usize>, Vec<usize>) = (0..sites.len()).partition(|index| weight(index) > 0);
        let weights: Vec<u32> = taking.iter().map(weight).collect();
        let factor = policy.tuning.hash_balance_factor.filter(|_| policy.balance.hashes());
        let bounds = factor.map(|factor| Bounds::new(factor, &weights));
        let of_those: Vec<Site> = taking.iter().map(|index| sites[*index]).collect();
        let order = Order::new(policy, &of_those, weights);
        let mut others: Vec<usize> = shares.standby.iter().map(|(index, _)| *index).collect();
        let rest: Vec<usize> = idle.into_iter().filter(|index| !others.contains(index)).collect();
        others.extend(rest);
        Self { order, bounds, taking, others }
    }

    /// Chooses among the endpoints that `may` be chosen.
    pub fn choose(&self, may: impl Fn(usize) -> bool, world: impl Ask) -> Option<usize> {
        let (count, may_take) = (self.taking.len(), |number: usize| may(self.taking[number]));
        let (chance, load) = (|| world.chance(), |number: usize| world.load(self.taking[number]));
        let chosen = match &self.order {
            Order::LeastLoad(weights) => least(weights, may_take, chance, load),
            Order::Fewest(fewest) => fewest.choose(may_take, chance, load),
            Order::Fastest(fastest) => fastest.choose(may_take, chance, |number| world.cost(self.taking[number])),
            Order::Ring(ring) => {
                let found = ring.choose(key(&world), may_take).or_else(|| next_of(count, 0, may_take));
                self.bounded(found, may_take, &world)
            }
            Order::ByHash(_) => self.bounded(draw(&self.order, count, may_take, &world), may_take, &world),
            order => draw(order, count, may_take, &world),
        };
        chosen.map(|number| self.taking[number]).or_else(|| self.others.iter().copied().find(|index| may(*index)))
    }

    /// The hash of a part of a request, as this policy takes it.
    pub fn hash(&self, part: &[u8]) -> u64 {
        match &self.order {
            Order::Ring(ring) => ring.hash(part),
            _ => xxhash_rust::xxh64::xxh64(part, 0),
        }
    }

    /// The one that was found, unless it has enough to do.
    fn bounded(&self, found: Option<usize>, may: impl Fn(usize) -> bool, world: &impl Ask) -> Option<usize> {
        let Some(bounds) = &self.bounds else { return found };
        found.map(|own| {
            bounds.choose(own, key(world), world.load_of_all(), may, |number| world.load(self.taking[number]))
        })
    }
}

/// The policy is asked until it names one that may be chosen; then any.
fn draw(order: &Order, count: usize, may: impl Fn(usize) -> bool, world: &impl Ask) -> Option<usize> {
    let mut last = 0;
    for ask in 0..ASKS_MAX {
        last = match order {
            Order::Only => 0,
            Order::InTurn(cycle) => *cycle.get(world.turn() % cycle.len().max(1))? as usize,
            Order::AtRandom(columns) => weighted_random::pick(columns, world.chance())?,
            Order::ByHash(table) => by_hash(table, world.key().unwrap_or_else(|| world.source()), ask)?,
            Order::LeastLoad(_) | Order::Fewest(_) | Order::Fastest(_) | Order::Ring(_) => return None,
        };
        if may(last) {
            return Some(last);
        }
        if matches!(order, Order::Only) {
            return None;
        }
    }
    next_of(count, last + 1, may)
}

/// The next from a place on that may be chosen.
fn next_of(count: usize, start: usize, may: impl Fn(usize) -> bool) -> Option<usize> {
    (0..count).map(|step| (start + step) % count).find(|number| may(*number))
}

/// Where a request falls on a ring.
fn key(world: &impl Ask) -> u64 {
    world.key().unwrap_or_else(|| spread(world.source()))
}

/// As the kernel half does it: asked again, the hash of another number.
fn by_hash(table: &[u32], key: u64, ask: usize) -> Option<usize> {
    let hash = spread(key.wrapping_add(ask as u64));
    table.get((hash % table.len().max(1) as u64) as usize).map(|index| *index as usize)
}

/// The least load for its weight, this one included; of several the first from a random place on.
fn least(
    weights: &[u32],
    may: impl Fn(usize) -> bool,
    chance: impl Fn() -> u64,
    load: impl Fn(usize) -> u64,
) -> Option<usize> {
    let start = (chance() % weights.len().max(1) as u64) as usize;
    let candidates = (0..weights.len()).map(|step| (start + step) % weights.len()).filter(|index| may(*index));
    let load = |number: usize| u128::from(load(number).saturating_add(1));
    let weight = |index: usize| u128::from(weights[index].max(1));
    // load / weight < other load / other weight, without fractions.
    candidates.reduce(|best, next| if load(next) * weight(best) < load(best) * weight(next) { next } else { best })
}

#[cfg(test)]
mod tests;
