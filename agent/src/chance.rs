//! What judges make of 64 random bits, which come to them as an argument.

use std::time::Duration;

/// A number below `bound`: D. Lemire, "Fast Random Integer Generation in an Interval", 2019, without its correction, which bounds far below
/// 2^64 do not need.
pub fn below(bound: u64, chance: u64) -> u64 {
    ((u128::from(chance) * u128::from(bound)) >> 64) as u64
}

/// A part of one.
pub fn part(chance: u64) -> f64 {
    (chance >> 11) as f64 / (1_u64 << 53) as f64
}

/// A part of a time.
pub fn part_of(time: Duration, chance: u64) -> Duration {
    Duration::from_nanos(below(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), chance))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chance_is_spread_from_the_least_to_just_below_the_bound() {
        let second = Duration::from_secs(1);
        assert_eq!([0, 1 << 63, u64::MAX].map(|chance| below(10, chance)), [0, 5, 9]);
        assert_eq!([0, 1 << 63].map(|chance| part_of(second, chance)), [Duration::ZERO, second / 2]);
        assert!(part(u64::MAX) < 1.0 && part_of(second, u64::MAX) < second);
        assert!((part(1 << 63) - 0.5).abs() < 1e-9);
        assert_eq!(below(0, u64::MAX), 0);
    }
}
