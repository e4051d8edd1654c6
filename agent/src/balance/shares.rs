//! Who takes which part of a service's new connections: weights, levels, health and warmth of its endpoints come in, whole weights and who
//! stands by go out. Everything that chooses (the kernel half's table, a worker's) is made from these weights.
//!
//! A level is a priority, parted in two where endpoints of the own zone are preferred: the own zone, then the others. So a zone that fails
//! spills to the others as one priority does to the next.

use std::{collections::BTreeMap, sync::Arc};

use super::priority::{self, Level};
use crate::{
    cluster::{Endpoint, Service, Shares},
    config::Balance,
};

/// Largest of the weights that go out, where the exact ones would be larger: as the configuration's own.
const WEIGHT_MAX: u64 = 65_535;

/// An endpoint of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// At least 1.
    pub weight: u32,
    /// The lowest come first.
    pub level: u32,
    /// Whether it may take connections.
    pub standing: Standing,
    /// What it takes of its weight: 1 to 100.
    pub warm_percent: u32,
}

/// Whether an endpoint may take connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Yes.
    Up,
    /// It does not accept; in a panic, perhaps.
    Down,
    /// No.
    Draining,
}

/// The shares of a service's endpoints: of those that are `reachable`, the others have none.
pub fn of(service: &Service, reachable: impl Fn(&Endpoint) -> bool) -> Shares {
    let policy = &service.config.policy;
    let found: Vec<(usize, &Arc<Endpoint>)> =
        service.endpoints.iter().enumerate().filter(|(_, endpoint)| reachable(endpoint)).collect();
    let active = found.iter().map(|(_, endpoint)| {
        let standing = if endpoint.state.usable() { Standing::Up } else { Standing::Down };
        member(policy.balance, endpoint, standing)
    });
    let draining = service.draining.iter().filter(|endpoint| reachable(endpoint));
    let draining = draining.map(|endpoint| member(policy.balance, endpoint, Standing::Draining));
    let members: Vec<Member> = active.chain(draining).collect();
    let shares = share_out(&members, policy.panic_threshold_percent);
    let mut weights = vec![0; service.endpoints.len()];
    for ((index, _), weight) in found.iter().zip(&shares.weights) {
        weights[*index] = *weight;
    }
    let standby = shares.standby.iter().map(|(index, level)| (found[*index].0, *level)).collect();
    Shares { weights, standby }
}

fn member(balance: Balance, endpoint: &Endpoint, standing: Standing) -> Member {
    // At random means all alike, whatever their weights.
    let weight = if balance == Balance::Random { 1 } else { endpoint.weight };
    Member { weight, level: endpoint.level, standing, warm_percent: endpoint.state.warm_percent() }
}

/// The shares of these endpoints. Of the weights that come out, 0 is for those that take nothing now.
pub fn share_out(members: &[Member], panic_threshold_percent: u32) -> Shares {
    let mut levels: BTreeMap<u32, Level> = BTreeMap::new();
    for member in members {
        let level = levels.entry(member.level).or_default();
        level.all += 1;
        level.active += u32::from(member.standing != Standing::Draining);
        level.up += u32::from(member.standing == Standing::Up);
    }
    let counts: Vec<Level> = levels.values().copied().collect();
    let loads: BTreeMap<u32, priority::Load> =
        levels.keys().copied().zip(priority::loads(&counts, panic_threshold_percent)).collect();
    let takes = |member: &Member| {
        let load = loads[&member.level];
        load.percent > 0 && (member.standing == Standing::Up || load.panics && member.standing == Standing::Down)
    };
    let weight = |member: &Member| u64::from(member.weight.max(1)) * u64::from(member.warm_percent.clamp(1, 100));
    let mut sums: BTreeMap<u32, u64> = BTreeMap::new();
    for member in members.iter().filter(|member| takes(member)) {
        *sums.entry(member.level).or_default() += weight(member);
    }
    let part = |member: &Member| Part {
        load: loads[&member.level].percent.into(),
        weight: weight(member),
        of: sums.get(&member.level).copied().unwrap_or(1),
    };
    let parts: Vec<Option<Part>> = members.iter().map(|member| takes(member).then(|| part(member))).collect();
    Shares { weights: whole(&parts), standby: standby(members, takes) }
}

/// Those that could take connections and need not, the lowest level first.
fn standby(members: &[Member], takes: impl Fn(&Member) -> bool) -> Vec<(usize, u32)> {
    let idle = members.iter().enumerate().filter(|(_, member)| member.standing == Standing::Up && !takes(member));
    let mut standby: Vec<(usize, u32)> = idle.map(|(index, member)| (index, member.level)).collect();
    standby.sort_by_key(|(_, level)| *level);
    standby
}

/// A part of the whole: `load * weight / of`.
#[derive(Clone, Copy)]
struct Part {
    load: u64,
    weight: u64,
    of: u64,
}

/// The smallest whole numbers in the proportions of the parts, so that a cycle of turns is as short as can be; where those are large,
/// rounded, and none to nothing.
fn whole(parts: &[Option<Part>]) -> Vec<u32> {
    exact(parts).unwrap_or_else(|| {
        let share = |part: &Part| part.load as f64 * part.weight as f64 / part.of as f64;
        let most = parts.iter().flatten().map(share).fold(f64::MIN_POSITIVE, f64::max);
        let rounded = |part: &Part| ((share(part) / most * WEIGHT_MAX as f64).round() as u32).max(1);
        parts.iter().map(|part| part.as_ref().map_or(0, rounded)).collect()
    })
}

fn exact(parts: &[Option<Part>]) -> Option<Vec<u32>> {
    let mut common = 1_u64;
    for part in parts.iter().flatten() {
        common = (common / gcd(common, part.of)).checked_mul(part.of)?;
    }
    let number = |part: &Part| part.load.checked_mul(part.weight)?.checked_mul(common / part.of);
    let numbers: Vec<u64> =
        parts.iter().map(|part| part.as_ref().map_or(Some(0), number)).collect::<Option<Vec<u64>>>()?;
    let divisor = numbers.iter().copied().fold(0, gcd).max(1);
    let reduced = numbers.iter().map(|number| number / divisor);
    reduced.map(|number| u32::try_from(number).ok().filter(|_| number <= WEIGHT_MAX)).collect()
}

const fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UP: Member = Member { weight: 1, level: 0, standing: Standing::Up, warm_percent: 100 };
    const DOWN: Member = Member { standing: Standing::Down, ..UP };
    const BACKUP: Member = Member { level: 1, ..UP };

    fn weights(members: &[Member]) -> Vec<u32> {
        share_out(members, 0).weights
    }

    #[test]
    fn on_one_level_weights_are_those_of_the_configuration() {
        let weighted = |weight| Member { weight, ..UP };
        assert_eq!(weights(&[weighted(2), weighted(4), weighted(6)]), [1, 2, 3]);
        assert_eq!(weights(&[weighted(3), Member { standing: Standing::Down, ..weighted(5) }, weighted(1)]), [3, 0, 1]);
        assert_eq!(weights(&[DOWN, DOWN]), [1, 1], "a wrong verdict must not cut everything off");
        assert_eq!(weights(&[Member { standing: Standing::Draining, ..UP }]), [0]);
    }

    #[test]
    fn a_backup_stands_by_and_takes_over_in_envoy_s_proportions() {
        assert_eq!(share_out(&[UP, BACKUP, UP], 0), Shares { weights: vec![1, 0, 1], standby: vec![(1, 1)] });
        // Half of the level is up: 70 percent of the load for it.
        assert_eq!(share_out(&[UP, BACKUP, DOWN], 0), Shares { weights: vec![7, 3, 0], standby: vec![] });
        assert_eq!(weights(&[DOWN, BACKUP, DOWN]), [0, 1, 0]);
        assert_eq!(weights(&[UP, UP, DOWN, DOWN, BACKUP, BACKUP]), [7, 7, 0, 0, 3, 3]);
        let draining = Member { standing: Standing::Draining, ..UP };
        assert_eq!(weights(&[draining, BACKUP]), [0, 1], "who drains makes room");
        assert_eq!(weights(&[draining, UP, BACKUP]), [0, 7, 3]);
    }

    #[test]
    fn a_cold_endpoint_takes_its_percentage_beside_the_others_of_its_level() {
        let cold = Member { warm_percent: 10, ..UP };
        assert_eq!(weights(&[UP, cold]), [10, 1]);
        assert_eq!(weights(&[cold, cold]), [1, 1], "when all are cold all are alike");
        // It does not change what its level takes.
        assert_eq!(weights(&[cold, DOWN, BACKUP]), [7, 0, 3]);
    }

    #[test]
    fn in_a_panic_those_that_are_down_are_used_again() {
        assert_eq!(share_out(&[UP, DOWN, DOWN], 50).weights, [1, 1, 1]);
        assert_eq!(share_out(&[UP, UP, DOWN], 50).weights, [1, 1, 0]);
        assert_eq!(share_out(&[UP, DOWN, DOWN, BACKUP], 50).weights, [23, 0, 0, 27], "the backup makes good for them");
    }

    fn member() -> impl Strategy<Value = Member> {
        let standing = prop_oneof![Just(Standing::Up), Just(Standing::Down), Just(Standing::Draining)];
        (1_u32..65_536, 0_u32..4, standing, 1_u32..=100).prop_map(|(weight, level, standing, warm_percent)| Member {
            weight,
            level,
            standing,
            warm_percent,
        })
    }

    proptest! {
        #[test]
        fn every_level_gets_its_load_and_every_endpoint_its_part_of_it(
            members in prop::collection::vec(member(), 1..12),
            threshold in 0_u32..=100,
        ) {
            let shares = share_out(&members, threshold);
            let all: f64 = shares.weights.iter().copied().map(f64::from).sum();
            let any_up = members.iter().any(|member| member.standing == Standing::Up);
            let any_active = members.iter().any(|member| member.standing != Standing::Draining);
            prop_assert_eq!(all > 0.0, any_active, "something is chosen while something can be");
            for (index, (member, weight)) in members.iter().zip(&shares.weights).enumerate() {
                prop_assert!(*weight <= 65_535);
                prop_assert!(*weight == 0 || member.standing != Standing::Draining);
                if threshold == 0 && any_up {
                    prop_assert!(*weight == 0 || member.standing == Standing::Up);
                }
                let stands_by = shares.standby.iter().any(|(standby, _)| *standby == index);
                prop_assert_eq!(stands_by, *weight == 0 && member.standing == Standing::Up);
                // Beside another of its level that takes something as well: in proportion, but for what rounding to 1 of 65 535 takes.
                for (other, beside) in members.iter().zip(&shares.weights) {
                    let takes_both = *weight > 100 && *beside > 100 && other.level == member.level;
                    if takes_both {
                        let expected = f64::from(member.weight * member.warm_percent) / f64::from(other.weight * other.warm_percent);
                        let found = f64::from(*weight) / f64::from(*beside);
                        prop_assert!((found / expected - 1.0).abs() < 0.02, "{found} for {expected}");
                    }
                }
            }
            prop_assert!(shares.standby.is_sorted_by_key(|(_, level)| *level));
        }

        #[test]
        fn who_fails_gives_its_share_to_others_and_no_level_before_it_loses(
            members in prop::collection::vec(member(), 2..10),
            which in 0_usize..10,
        ) {
            let which = which % members.len();
            let mut after = members.clone();
            after[which].standing = Standing::Down;
            prop_assume!(after.iter().any(|member| member.standing == Standing::Up));
            prop_assert_eq!(share_out(&after, 0).weights[which], 0);
            let part = |members: &[Member], level: u32| {
                let weights = share_out(members, 0).weights;
                let of = |keep: &dyn Fn(&Member) -> bool| {
                    members.iter().zip(&weights).filter(|(member, _)| keep(member)).map(|(_, weight)| f64::from(*weight)).sum::<f64>()
                };
                of(&|member| member.level < level) / of(&|_| true)
            };
            let level = members[which].level;
            // Within rounding.
            prop_assert!(part(&after, level) + 0.03 >= part(&members, level));
        }
    }
}
