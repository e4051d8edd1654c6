//! Every policy, as it is asked.

use std::cell::Cell;

use super::*;

const POLICIES: [Balance; 9] = [
    Balance::RoundRobin,
    Balance::Random,
    Balance::WeightedRandom,
    Balance::LeastConnections,
    Balance::SourceHash,
    Balance::Maglev,
    Balance::LeastRequest,
    Balance::PeakEwma,
    Balance::RingHash,
];

#[derive(Clone, Default)]
struct World {
    turn: Cell<usize>,
    chance: Cell<u64>,
    loads: Vec<u64>,
    source: u64,
    key: Option<u64>,
}

impl Ask for &World {
    fn turn(&self) -> usize {
        self.turn.replace(self.turn.get() + 1)
    }
    fn chance(&self) -> u64 {
        self.chance.set(self.chance.get() + 1);
        spread(self.chance.get())
    }
    fn load(&self, index: usize) -> u64 {
        self.loads.get(index).copied().unwrap_or(0)
    }
    fn load_of_all(&self) -> u64 {
        self.loads.iter().sum()
    }
    fn cost(&self, index: usize) -> f64 {
        self.load(index) as f64 + 1.0
    }
    fn source(&self) -> u64 {
        self.source
    }
    fn key(&self) -> Option<u64> {
        self.key
    }
}

fn balancer(policy: Balance, weights: &[u32]) -> Balancer {
    shared(policy, weights, &[])
}

fn shared(policy: Balance, weights: &[u32], standby: &[(usize, u32)]) -> Balancer {
    let sites = sites(weights.len());
    let shares = Shares { weights: weights.to_vec(), standby: standby.to_vec() };
    let policy = Policy { balance: policy, maglev_table_size: 1021, ..Policy::default() };
    Balancer::new(&policy, &sites, &shares)
}

fn sites(count: usize) -> Vec<Site> {
    (0..count).map(|index| Site::plain(([10, 0, 0, index as u8], 80).into())).collect()
}

#[test]
fn in_turn_honours_weights_exactly() {
    let (balancer, world) = (balancer(Balance::RoundRobin, &[1, 2, 3]), World::default());
    let mut seen = [0; 3];
    for _ in 0..60 {
        seen[balancer.choose(|_| true, &world).unwrap()] += 1;
    }
    assert_eq!(seen, [10, 20, 30]);
}

#[test]
fn the_others_keep_their_proportions_when_one_is_down() {
    let (balancer, world) = (balancer(Balance::RoundRobin, &[1, 5, 2]), World::default());
    let mut seen = [0; 3];
    for _ in 0..300 {
        seen[balancer.choose(|index| index != 1, &world).unwrap()] += 1;
    }
    assert_eq!(seen, [100, 0, 200]);
}

#[test]
fn the_least_load_for_its_weight_is_taken() {
    for (weights, loads, expected) in
        [(&[1, 1, 1][..], &[2, 0, 1][..], 1), (&[1, 4], &[0, 2], 1), (&[1, 4], &[0, 4], 0), (&[1, 10], &[0, 0], 1)]
    {
        let world = World { loads: loads.to_vec(), ..World::default() };
        assert_eq!(balancer(Balance::LeastConnections, weights).choose(|_| true, &world), Some(expected));
    }
    let world = World { loads: vec![2, 0, 1], ..World::default() };
    assert_eq!(balancer(Balance::LeastConnections, &[1, 1, 1]).choose(|index| index != 1, &world), Some(2));
}

#[test]
fn a_source_keeps_its_endpoint_and_finds_another_when_that_is_down() {
    for policy in [Balance::SourceHash, Balance::Maglev, Balance::RingHash] {
        let balancer = balancer(policy, &[1; 10]);
        let at = |source, down: Option<usize>| {
            balancer.choose(|index| Some(index) != down, &World { source, ..World::default() }).unwrap()
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
            assert_eq!(balancer(policy, weights).choose(|_| false, &World::default()), None);
        }
    }
}

#[test]
fn who_stands_by_is_taken_when_nobody_else_may_be_and_in_order() {
    for policy in POLICIES {
        let balancer = shared(policy, &[0, 3, 0, 2, 0], &[(4, 2), (0, 3)]);
        let choose = |down: &[usize]| balancer.choose(|index| !down.contains(&index), &World::default());
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
        assert_eq!(balancer.choose(|index| index == 1, &World::default()), Some(1));
    }
}

#[test]
fn who_failed_in_a_request_is_not_chosen_again_while_another_is_left() {
    for policy in POLICIES {
        for weights in [&[1; 12][..], &[3, 1, 500, 2, 2, 9, 1], &[1; 700]] {
            let (balancer, world) = (balancer(policy, weights), World { source: 5, ..World::default() });
            let mut tried = Vec::new();
            while let Some(chosen) = balancer.choose(|index| !tried.contains(&index), &world) {
                assert!(!tried.contains(&chosen), "{policy:?}");
                tried.push(chosen);
            }
            assert_eq!(tried.len(), weights.len(), "{policy:?}");
        }
    }
}

#[test]
fn a_key_decides_and_not_who_asks_where_there_is_one() {
    for policy in [Balance::SourceHash, Balance::Maglev, Balance::RingHash] {
        let balancer = balancer(policy, &[1; 10]);
        let key = balancer.hash(b"alice");
        let at = |source, key| balancer.choose(|_| true, &World { source, key, ..World::default() });
        assert!((0..50).all(|source| at(source, Some(key)) == at(0, Some(key))), "{policy:?}");
        assert!((0..50).any(|source| at(source, None) != at(0, None)), "{policy:?}");
    }
}

#[test]
fn a_full_endpoint_is_passed_over_with_a_balance_factor() {
    let shares = Shares { weights: vec![1; 4], standby: Vec::new() };
    for balance in [Balance::SourceHash, Balance::Maglev, Balance::RingHash] {
        let mut policy = Policy { balance, ..Policy::default() };
        policy.tuning.hash_balance_factor = Some(150);
        let balancer = Balancer::new(&policy, &sites(4), &shares);
        let mut world = World { loads: vec![0; 4], key: Some(7), ..World::default() };
        let own = balancer.choose(|_| true, &world).expect("one");
        for _ in 0..40 {
            let chosen = balancer.choose(|_| true, &world).expect("one");
            world.loads[chosen] += 1;
        }
        // ceil(40 / 4 * 1.5)
        assert_eq!(world.loads[own], 15, "{balance:?}: {:?}", world.loads);
        assert!(world.loads.iter().all(|load| *load <= 15), "{balance:?}: {:?}", world.loads);
    }
}

#[test]
fn chance_stays_within_three_sigma_of_each_share() {
    const DRAWS: usize = 100_000;
    for (policy, weights) in [
        (Balance::Random, &[1, 1, 1, 1, 1][..]),
        (Balance::WeightedRandom, &[1, 2, 5][..]),
        (Balance::WeightedRandom, &[100, 100, 1, 99][..]),
    ] {
        let (balancer, world) = (balancer(policy, weights), World::default());
        let mut seen = vec![0_u32; weights.len()];
        for _ in 0..DRAWS {
            seen[balancer.choose(|_| true, &world).expect("one of them")] += 1;
        }
        let all: u32 = weights.iter().sum();
        for (seen, weight) in seen.iter().zip(weights) {
            let part = f64::from(*weight) / f64::from(all);
            let (mean, sigma) = (DRAWS as f64 * part, (DRAWS as f64 * part * (1.0 - part)).sqrt());
            let off = (f64::from(*seen) - mean) / sigma;
            assert!(off.abs() <= 3.0, "{policy:?} {weights:?}: {seen} for {mean}, {off:.2} sigma");
        }
    }
}

#[test]
fn when_one_of_ten_goes_no_more_keys_move_than_a_tenth_and_a_fifth_of_that() {
    const KEYS: u64 = 20_000;
    let all = sites(10);
    let chosen = |policy: Balance, sites: &[Site]| -> Vec<SocketAddr> {
        let shares = Shares { weights: vec![1; sites.len()], standby: Vec::new() };
        let balancer = Balancer::new(&Policy { balance: policy, ..Policy::default() }, sites, &shares);
        let choose = |key| balancer.choose(|_| true, &World { key: Some(spread(key)), ..World::default() });
        (0..KEYS).map(|key| sites[choose(key).expect("one of them")].address).collect()
    };
    for policy in [Balance::Maglev, Balance::RingHash] {
        let before = chosen(policy, &all);
        let (mut moved, mut of_others) = (0, 0);
        for gone in &all {
            let left: Vec<Site> = all.iter().copied().filter(|site| site != gone).collect();
            for (was, is) in before.iter().zip(chosen(policy, &left)) {
                moved += usize::from(*was != is);
                of_others += usize::from(*was != is && *was != gone.address);
            }
        }
        // Of all ten that may go, on the average: the parts of a ring differ.
        let part = moved as f64 / (KEYS as f64 * all.len() as f64);
        println!("{policy:?}: {:.2} % of the keys move", 100.0 * part);
        assert!(part <= 0.1 * 1.2, "{policy:?}: {part}");
        assert!(of_others == 0 || policy == Balance::Maglev, "a ring moves nobody else's");
    }
}
