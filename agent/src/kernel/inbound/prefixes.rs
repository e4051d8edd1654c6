//! Ranges of ports as the tables of the kernel half take them: disjoint, each with the rule that holds, and cut into prefixes.

use std::ops::RangeInclusive;

/// Which of several rules holds for which ports: the first that covers a port. `rules` are numbers with their ranges, in order; what comes out
/// is disjoint and in the order of ports.
pub(super) fn assign(rules: &[(u32, &[RangeInclusive<u16>])]) -> Vec<(RangeInclusive<u16>, u32)> {
    // Between two neighbouring cuts every port has the same rule.
    let ends = rules.iter().flat_map(|(_, ports)| ports.iter());
    let mut cuts: Vec<u32> = ends.flat_map(|ports| [u32::from(*ports.start()), u32::from(*ports.end()) + 1]).collect();
    cuts.sort_unstable();
    cuts.dedup();
    let mut assigned: Vec<(RangeInclusive<u16>, u32)> = Vec::new();
    for cut in cuts.windows(2) {
        let (first, last) = (cut[0] as u16, (cut[1] - 1) as u16);
        let covers = |ports: &[RangeInclusive<u16>]| ports.iter().any(|ports| ports.contains(&first));
        let Some((rule, _)) = rules.iter().find(|(_, ports)| covers(ports)) else { continue };
        match assigned.last_mut() {
            Some((ports, before)) if before == rule && u32::from(*ports.end()) + 1 == u32::from(first) => {
                *ports = *ports.start()..=last;
            }
            _ => assigned.push((first..=last, *rule)),
        }
    }
    assigned
}

/// The fewest prefixes that make up a range: first port and number of bits that count, of 16.
pub(super) fn prefixes(ports: &RangeInclusive<u16>) -> Vec<(u16, u32)> {
    let (mut first, end) = (u32::from(*ports.start()), u32::from(*ports.end()) + 1);
    let mut prefixes = Vec::new();
    while first < end {
        // The largest block that begins here and does not go beyond the end.
        let aligned = if first == 0 { 16 } else { first.trailing_zeros() };
        let size = aligned.min((end - first).ilog2());
        prefixes.push((first as u16, 16 - size));
        first += 1 << size;
    }
    prefixes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_are_cut_at_powers_of_two() {
        assert_eq!(prefixes(&(8080..=8080)), [(8080, 16)]);
        assert_eq!(prefixes(&(8000..=8010)), [(8000, 13), (8008, 15), (8010, 16)]);
        assert_eq!(prefixes(&(0..=u16::MAX)), [(0, 0)]);
        assert_eq!(prefixes(&(1..=65534)).len(), 30, "the most there can be");
    }

    #[test]
    fn the_first_rule_holds_where_two_meet() {
        assert_eq!(
            assign(&[(1, &[80..=80, 90..=95]), (2, &[70..=92]), (3, &[96..=96, 200..=u16::MAX])]),
            [(70..=79, 2), (80..=80, 1), (81..=89, 2), (90..=95, 1), (96..=96, 3), (200..=u16::MAX, 3)]
        );
        assert_eq!(assign(&[(1, &[1..=5, 6..=9])]), [(1..=9, 1)]);
        assert_eq!(assign(&[]), []);
    }

    proptest! {
        #[test]
        fn prefixes_hold_the_range_and_nothing_else(a: u16, b: u16, probe: u16) {
            let ports = a.min(b)..=a.max(b);
            let holds = |(first, bits): &(u16, u32)| {
                let mask = u32::MAX << (16 - bits);
                u32::from(probe) & mask == u32::from(*first) & mask
            };
            let holding = prefixes(&ports).iter().filter(|prefix| holds(prefix)).count();
            prop_assert_eq!(holding, usize::from(ports.contains(&probe)));
        }
    }
}
