//! A policy and what it may choose from -> the table of slots by which the kernel half chooses.

use std::net::SocketAddr;

use sockway_common::service::Slot;

use super::{maglev, round_robin, weighted_random};
use crate::config::Balance;

/// An endpoint that may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Its id within the service.
    pub endpoint: u32,
    /// At least 1. With [`Balance::Random`] of its share, not of the configuration.
    pub weight: u32,
    /// What it is known by on every host.
    pub address: SocketAddr,
}

/// The slots; of what only the agent balances by, those of the nearest that the kernel half does as well, for while the agent is dead.
/// `maglev_slots` is a prime.
pub fn table(balance: Balance, choices: &[Choice], maglev_slots: u32) -> Vec<Slot> {
    let weights: Vec<u32> = choices.iter().map(|choice| choice.weight).collect();
    let only = |index: u32| Slot::only(choices[index as usize].endpoint);
    match balance {
        Balance::RoundRobin => round_robin::cycle(&weights).into_iter().map(only).collect(),
        // The same endpoint for the same source on every host: in the order of the addresses, not of the ids.
        Balance::SourceHash | Balance::RingHash => {
            by_address(choices).iter().map(|choice| Slot::only(choice.endpoint)).collect()
        }
        Balance::Maglev => {
            let keys: Vec<String> = choices.iter().map(|choice| choice.address.to_string()).collect();
            maglev::table(&keys, &weights, maglev_slots).into_iter().map(only).collect()
        }
        Balance::Random | Balance::WeightedRandom | Balance::LeastRequest | Balance::PeakEwma => {
            weighted_random::columns(&weights)
                .iter()
                .zip(choices)
                .map(|(column, own)| Slot {
                    first: own.endpoint,
                    second: choices[column.alias as usize].endpoint,
                    threshold: column.threshold,
                })
                .collect()
        }
        Balance::LeastConnections => {
            choices.iter().map(|choice| Slot { threshold: choice.weight, ..Slot::only(choice.endpoint) }).collect()
        }
    }
}

/// Each choice as often as its weight says, in the order of the addresses.
fn by_address(choices: &[Choice]) -> Vec<Choice> {
    let mut sorted = choices.to_vec();
    sorted.sort_by_key(|choice| choice.address);
    let weights: Vec<u32> = sorted.iter().map(|choice| choice.weight).collect();
    round_robin::cycle(&weights).into_iter().map(|index| sorted[index as usize]).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn choices(weights: &[u32]) -> Vec<Choice> {
        let choice = |(index, weight): (usize, &u32)| Choice {
            endpoint: 100 + index as u32,
            weight: *weight,
            address: SocketAddr::from(([10, 0, 0, 200 - index as u8], 80)),
        };
        weights.iter().enumerate().map(choice).collect()
    }

    fn firsts(slots: &[Slot]) -> Vec<u32> {
        slots.iter().map(|slot| slot.first).collect()
    }

    #[test]
    fn each_policy_has_its_table() {
        let choices = choices(&[1, 2]);
        for (balance, expected) in [
            (Balance::RoundRobin, vec![101, 100, 101]),
            (Balance::Random, vec![100, 101]),
            (Balance::WeightedRandom, vec![100, 101]),
            (Balance::LeastConnections, vec![100, 101]),
            (Balance::SourceHash, vec![101, 100, 101]),
        ] {
            assert_eq!(firsts(&table(balance, &choices, 7)), expected, "{balance:?}");
        }
        assert_eq!(table(Balance::LeastConnections, &choices, 7)[1].threshold, 2);
        let maglev = firsts(&table(Balance::Maglev, &choices, 7));
        assert_eq!((maglev.len(), maglev.iter().filter(|endpoint| **endpoint == 101).count()), (7, 4), "{maglev:?}");
    }

    #[test]
    fn nothing_to_choose_from_is_no_slot() {
        for balance in [Balance::RoundRobin, Balance::Random, Balance::LeastConnections, Balance::Maglev] {
            assert!(table(balance, &[], 7).is_empty());
        }
    }

    #[test]
    fn hashes_do_not_depend_on_the_order_of_the_configuration() {
        let straight = choices(&[1, 2, 3]);
        let mut reversed = straight.clone();
        reversed.reverse();
        for balance in [Balance::SourceHash, Balance::Maglev] {
            assert_eq!(table(balance, &straight, 101), table(balance, &reversed, 101), "{balance:?}");
        }
    }

    const ALL: [Balance; 6] = [
        Balance::RoundRobin,
        Balance::Random,
        Balance::WeightedRandom,
        Balance::LeastConnections,
        Balance::SourceHash,
        Balance::Maglev,
    ];

    /// The part of the choices that falls on each endpoint, as a hook makes them.
    fn parts(slots: &[Slot], balance: Balance, count: usize) -> Vec<f64> {
        let mut parts = vec![0.0; count];
        for slot in slots {
            if balance == Balance::LeastConnections {
                parts[slot.first as usize - 100] += f64::from(slot.threshold);
                continue;
            }
            let first = f64::from(slot.threshold) / f64::from(u32::MAX);
            parts[slot.first as usize - 100] += first;
            parts[slot.second as usize - 100] += 1.0 - first;
        }
        let all: f64 = parts.iter().sum();
        parts.iter().map(|part| part / all).collect()
    }

    proptest! {
        #[test]
        fn whatever_the_policy_shares_are_what_the_table_gives(weights in prop::collection::vec(1_u32..200, 1..12)) {
            let all: u32 = weights.iter().sum();
            for balance in ALL {
                let slots = table(balance, &choices(&weights), 4093);
                let parts = parts(&slots, balance, weights.len());
                for (part, weight) in parts.iter().zip(&weights) {
                    let expected = f64::from(*weight) / f64::from(all);
                    // A cycle, and a table of a bounded size, give an endpoint of a small weight a slot more or less.
                    prop_assert!((part - expected).abs() < 0.003, "{balance:?}: {part} for {expected}");
                }
            }
        }

        #[test]
        fn of_maglev_s_sources_few_move_that_do_not_go_to_who_warms_up(
            endpoints in 2_usize..12,
            percent in 1_u32..100,
        ) {
            // All have a weight of 100, and one grows by one percent.
            let at = |percent: u32| {
                let mut weights = vec![100; endpoints];
                weights[0] = percent;
                table(Balance::Maglev, &choices(&weights), 4093)
            };
            let (before, after) = (at(percent), at(percent + 1));
            let moved = before.iter().zip(&after).filter(|(old, new)| old.first != new.first && new.first != 100).count();
            prop_assert!(moved < before.len() * 3 / 100, "{moved} of {}", before.len());
        }
    }
}
