//! Writes the users that are never captured into the kernel half's table: ranges of numbers as the prefixes they are made of.

use std::{collections::HashSet, ops::RangeInclusive};

use aya::{
    Ebpf,
    maps::{
        MapData,
        lpm_trie::{Key, LpmTrie},
    },
};

use super::{KernelError, services};

/// The table of users that are left out.
#[derive(Debug)]
pub struct Users {
    table: LpmTrie<MapData, u32, u32>,
}

/// The first bits of a number, and how many.
type Prefix = (u32, u32);

impl Users {
    /// Takes the table of a loaded object.
    pub fn new(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        Ok(Self { table: services::table(ebpf, "EXCLUDED_USERS")? })
    }

    /// Leaves these users out, and no others. Meanwhile those of before are, too.
    pub fn set(&mut self, users: &[RangeInclusive<u32>]) -> Result<(), KernelError> {
        let wanted: HashSet<Prefix> = users.iter().flat_map(prefixes).collect();
        let there: HashSet<Prefix> =
            self.table.keys().flatten().map(|key| (u32::from_be(key.data()), key.prefix_len())).collect();
        let key = |(first, bits): &Prefix| Key::new(*bits, first.to_be());
        for prefix in wanted.difference(&there) {
            self.table.insert(&key(prefix), 1, 0).map_err(services::map_error("EXCLUDED_USERS"))?;
        }
        for prefix in there.difference(&wanted) {
            self.table.remove(&key(prefix)).map_err(services::map_error("EXCLUDED_USERS"))?;
        }
        Ok(())
    }
}

/// The fewest prefixes that together are a range: each the largest aligned block that begins where the one before ends (as
/// routers split ranges, RFC 4632, section 3.1).
fn prefixes(range: &RangeInclusive<u32>) -> Vec<Prefix> {
    let (mut first, last) = (u64::from(*range.start()), u64::from(*range.end()));
    let mut found = Vec::new();
    while first <= last {
        let aligned = if first == 0 { 32 } else { first.trailing_zeros().min(32) };
        let fitting = (last - first + 1).ilog2();
        let bits = aligned.min(fitting);
        found.push((first as u32, 32 - bits));
        first += 1 << bits;
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_range_is_the_fewest_prefixes() {
        assert_eq!(prefixes(&(0..=0)), [(0, 32)]);
        assert_eq!(prefixes(&(1000..=1010)), [(1000, 29), (1008, 31), (1010, 32)]);
        assert_eq!(prefixes(&(0..=u32::MAX)), [(0, 0)]);
        assert_eq!(prefixes(&(1..=u32::MAX - 1)).len(), 62, "as many as the table's size counts with");
    }

    proptest! {
        #[test]
        fn prefixes_hold_the_range_and_nothing_else(first in any::<u32>(), more in 0_u32..5000, asked in any::<u32>()) {
            let last = first.saturating_add(more);
            for number in [first, last, first.wrapping_sub(1), last.wrapping_add(1), asked] {
                let held = prefixes(&(first..=last)).iter().any(|(start, bits)| {
                    (u64::from(number) >> (32 - bits)) == (u64::from(*start) >> (32 - bits))
                });
                prop_assert_eq!(held, (first..=last).contains(&number));
            }
        }
    }
}
