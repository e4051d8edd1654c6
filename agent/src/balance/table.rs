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
    /// At least 1.
    pub weight: u32,
    /// What it is known by on every host.
    pub address: SocketAddr,
}

/// The slots. `maglev_slots` is a prime.
pub fn table(balance: Balance, choices: &[Choice], maglev_slots: u32) -> Vec<Slot> {
    let weights: Vec<u32> = choices.iter().map(|choice| choice.weight).collect();
    let only = |index: u32| Slot::only(choices[index as usize].endpoint);
    match balance {
        Balance::RoundRobin => round_robin::cycle(&weights).into_iter().map(only).collect(),
        // The same endpoint for the same source on every host: in the order of the addresses, not of the ids.
        Balance::SourceHash => by_address(choices).iter().map(|choice| Slot::only(choice.endpoint)).collect(),
        Balance::Maglev => {
            let keys: Vec<String> = choices.iter().map(|choice| choice.address.to_string()).collect();
            maglev::table(&keys, &weights, maglev_slots).into_iter().map(only).collect()
        }
        Balance::Random => choices.iter().map(|choice| Slot::only(choice.endpoint)).collect(),
        Balance::WeightedRandom => weighted_random::columns(&weights)
            .iter()
            .zip(choices)
            .map(|(column, own)| Slot {
                first: own.endpoint,
                second: choices[column.alias as usize].endpoint,
                threshold: column.threshold,
            })
            .collect(),
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
}
