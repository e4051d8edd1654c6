//! What each policy's choice takes, with 10 and with 1000 endpoints, and that it allocates nothing: `cargo bench --bench balance`.

use std::{
    cell::Cell,
    net::SocketAddr,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
};

use divan::{AllocProfiler, Bencher, black_box};
use sockway::{
    balance::{
        Ask, Balancer, Site,
        peak_ewma::{Estimate, Nanos},
    },
    cluster::Shares,
    config::{Balance, Policy, tuning::Among},
};

#[global_allocator]
static ALLOC: AllocProfiler = AllocProfiler::system();

const ENDPOINTS: [usize; 2] = [10, 1000];

fn main() {
    divan::main();
}

/// As the agent's: a shared counter and shared loads, and chance of the worker's own.
struct World {
    cursor: AtomicUsize,
    chance: Cell<u64>,
    loads: Vec<AtomicU64>,
    estimates: Vec<AtomicU64>,
    policy: Policy,
    now: Nanos,
    key: Option<u64>,
}

impl World {
    fn new(policy: Policy, endpoints: usize) -> Self {
        let now = 1_000_000_000;
        let estimate = Estimate::start(&policy.tuning.peak_ewma, now).bits();
        Self {
            cursor: AtomicUsize::new(0),
            chance: Cell::new(1),
            loads: (0..endpoints).map(|index| AtomicU64::new(index as u64 % 7)).collect(),
            estimates: (0..endpoints).map(|_| AtomicU64::new(estimate)).collect(),
            policy,
            now: now + 50_000_000,
            key: None,
        }
    }
}

impl Ask for &World {
    fn turn(&self) -> usize {
        self.cursor.fetch_add(1, Relaxed)
    }

    fn chance(&self) -> u64 {
        self.chance
            .set(self.chance.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407));
        self.chance.get()
    }

    fn load(&self, index: usize) -> u64 {
        self.loads[index].load(Relaxed)
    }

    fn load_of_all(&self) -> u64 {
        3 * self.loads.len() as u64
    }

    fn cost(&self, index: usize) -> f64 {
        let estimate = Estimate::of(self.estimates[index].load(Relaxed));
        estimate.cost(self.load(index), std::time::Duration::ZERO, &self.policy.tuning.peak_ewma, self.now)
    }

    fn source(&self) -> u64 {
        self.chance()
    }

    fn key(&self) -> Option<u64> {
        self.key
    }
}

fn bench(bencher: Bencher<'_, '_>, policy: Policy, weights: Vec<u32>) {
    let endpoints = weights.len();
    let address = |index: usize| SocketAddr::from(([10, 0, (index / 256) as u8, index as u8], 80));
    let sites: Vec<Site> = (0..endpoints).map(|index| Site::plain(address(index))).collect();
    let balancer = Balancer::new(&policy, &sites, &Shares { weights, standby: Vec::new() });
    let world = World::new(policy, endpoints);
    bencher.bench_local(|| black_box(balancer.choose(|index| world.loads[index].load(Relaxed) < 100, &world)));
}

fn plain(bencher: Bencher<'_, '_>, balance: Balance, endpoints: usize) {
    bench(bencher, Policy { balance, ..Policy::default() }, vec![1; endpoints]);
}

#[divan::bench(args = ENDPOINTS)]
fn round_robin(bencher: Bencher<'_, '_>, endpoints: usize) {
    plain(bencher, Balance::RoundRobin, endpoints);
}

#[divan::bench(args = ENDPOINTS)]
fn weighted_round_robin(bencher: Bencher<'_, '_>, endpoints: usize) {
    bench(bencher, Policy::default(), (0..endpoints as u32).map(|index| 1 + index % 3).collect());
}

#[divan::bench(args = ENDPOINTS)]
fn weighted_random(bencher: Bencher<'_, '_>, endpoints: usize) {
    plain(bencher, Balance::WeightedRandom, endpoints);
}

#[divan::bench(args = ENDPOINTS)]
fn least_connections(bencher: Bencher<'_, '_>, endpoints: usize) {
    plain(bencher, Balance::LeastConnections, endpoints);
}

#[divan::bench(args = ENDPOINTS)]
fn least_request(bencher: Bencher<'_, '_>, endpoints: usize) {
    plain(bencher, Balance::LeastRequest, endpoints);
}

#[divan::bench(args = ENDPOINTS)]
fn least_request_weighted(bencher: Bencher<'_, '_>, endpoints: usize) {
    let policy = Policy { balance: Balance::LeastRequest, ..Policy::default() };
    bench(bencher, policy, (0..endpoints as u32).map(|index| 1 + index % 3).collect());
}

#[divan::bench(args = ENDPOINTS)]
fn least_request_full_scan(bencher: Bencher<'_, '_>, endpoints: usize) {
    let mut policy = Policy { balance: Balance::LeastRequest, ..Policy::default() };
    policy.tuning.least_request.of = Among::All;
    bench(bencher, policy, vec![1; endpoints]);
}

#[divan::bench(args = ENDPOINTS)]
fn peak_ewma(bencher: Bencher<'_, '_>, endpoints: usize) {
    plain(bencher, Balance::PeakEwma, endpoints);
}

#[divan::bench(args = ENDPOINTS)]
fn source_hash(bencher: Bencher<'_, '_>, endpoints: usize) {
    plain(bencher, Balance::SourceHash, endpoints);
}

#[divan::bench(args = ENDPOINTS)]
fn maglev(bencher: Bencher<'_, '_>, endpoints: usize) {
    plain(bencher, Balance::Maglev, endpoints);
}

#[divan::bench(args = ENDPOINTS)]
fn ring_hash(bencher: Bencher<'_, '_>, endpoints: usize) {
    plain(bencher, Balance::RingHash, endpoints);
}

#[divan::bench(args = ENDPOINTS)]
fn ring_hash_with_bounded_load(bencher: Bencher<'_, '_>, endpoints: usize) {
    let mut policy = Policy { balance: Balance::RingHash, ..Policy::default() };
    policy.tuning.hash_balance_factor = Some(150);
    bench(bencher, policy, vec![1; endpoints]);
}
