//! Levels of endpoints, the first of which is used while it is well: how many of each are up comes in, the load of each goes out.
//!
//! As Envoy does it (<https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/priority>): a level that has
//! lost a part of its endpoints keeps all of its load while those that are left can be trusted to carry it, and what they cannot spills
//! to the next.

/// In percent: endpoints are taken to be able to carry this much of their part of the load (Envoy's overprovisioning factor).
const OVERPROVISIONING_PERCENT: u32 = 140;

/// What there is of one level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Level {
    /// Endpoints that may be used: up.
    pub up: u32,
    /// Endpoints that could be used: up or down.
    pub active: u32,
    /// All of them, those that drain included: the load is meant for so many.
    pub all: u32,
}

/// What one level is to take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Of the whole.
    pub percent: u32,
    /// Whether it is spread over all active endpoints, those that are down included.
    pub panics: bool,
}

/// The loads of the levels, first to last. They add up to 100 if anything is active. While the levels together can carry everything, none
/// panics; otherwise those do of whose endpoints less than `panic_threshold_percent` are up. When none is up anywhere, or all levels
/// panic, the load goes to all that is active, by numbers.
pub fn loads(levels: &[Level], panic_threshold_percent: u32) -> Vec<Load> {
    let health: Vec<u32> = levels.iter().map(health).collect();
    let sum = health.iter().sum::<u32>().min(100);
    let in_panic = |level: &Level| sum < 100 && level.up * 100 < panic_threshold_percent * level.all;
    if sum == 0 || levels.iter().all(in_panic) {
        return by_numbers(levels);
    }
    let mut left = 100;
    let mut loads: Vec<Load> = levels
        .iter()
        .zip(&health)
        .map(|(level, health)| {
            let percent = (health * 100 / sum).min(left);
            left -= percent;
            Load { percent, panics: in_panic(level) }
        })
        .collect();
    // What rounding has left over.
    if let Some(first) = health.iter().position(|health| *health > 0) {
        loads[first].percent += left;
    }
    loads
}

/// How much of the whole the level could carry, in percent. One that is up carries something, also of a thousand.
fn health(level: &Level) -> u32 {
    match level.up {
        0 => 0,
        up => (OVERPROVISIONING_PERCENT * up / level.all.max(1)).clamp(1, 100),
    }
}

fn by_numbers(levels: &[Level]) -> Vec<Load> {
    let all: u32 = levels.iter().map(|level| level.active).sum();
    let percent = |level: &Level| 100 * level.active / all.max(1);
    let mut loads: Vec<Load> = levels.iter().map(|level| Load { percent: percent(level), panics: true }).collect();
    let left = 100 - loads.iter().map(|load| load.percent).sum::<u32>();
    if let Some(first) = levels.iter().position(|level| level.active > 0) {
        loads[first].percent += left;
    }
    loads
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn percents(up: &[u32], panic_threshold_percent: u32) -> Vec<u32> {
        let levels: Vec<Level> = up.iter().map(|up| Level { up: *up, active: 100, all: 100 }).collect();
        loads(&levels, panic_threshold_percent).iter().map(|load| load.percent).collect()
    }

    #[test]
    fn load_spills_as_envoy_s_tables_say() {
        // The tables of the page above: how many of a hundred are up on each level, and the load of each.
        let cases: [(&[u32], &[u32]); 11] = [
            (&[100, 100], &[100, 0]),
            (&[72, 100], &[100, 0]),
            (&[71, 100], &[99, 1]),
            (&[50, 100], &[70, 30]),
            (&[25, 100], &[35, 65]),
            (&[0, 100], &[0, 100]),
            (&[25, 25], &[50, 50]),
            (&[100, 100, 100], &[100, 0, 0]),
            (&[72, 72, 100], &[100, 0, 0]),
            (&[25, 100, 100], &[35, 65, 0]),
            (&[25, 25, 100], &[35, 35, 30]),
        ];
        for (up, expected) in cases {
            assert_eq!(percents(up, 0), expected, "{up:?}");
        }
    }

    #[test]
    fn nothing_panics_while_the_levels_together_carry_everything() {
        let levels = |up: [u32; 2]| up.map(|up| Level { up, active: 10, all: 10 });
        let panics = |up| loads(&levels(up), 50).iter().map(|load| load.panics).collect::<Vec<bool>>();
        assert_eq!(panics([1, 10]), [false, false]);
        assert_eq!(panics([1, 5]), [true, false], "14 + 70 percent are not all");
        assert_eq!(panics([5, 1]), [false, true]);
        assert_eq!(panics([1, 1]), [true, true]);
        assert_eq!(loads(&levels([1, 1]), 0).iter().filter(|load| load.panics).count(), 0);
    }

    #[test]
    fn when_all_panic_load_goes_by_numbers() {
        let level = |up, active| Level { up, active, all: active };
        let shares = |levels: &[Level]| loads(levels, 0).iter().map(|load| load.percent).collect::<Vec<u32>>();
        assert_eq!(shares(&[level(0, 3), level(0, 1)]), [75, 25]);
        assert_eq!(shares(&[level(0, 1), level(0, 1), level(0, 1)]), [34, 33, 33]);
        assert_eq!(shares(&[Level { all: 2, ..Level::default() }, level(0, 1)]), [0, 100], "who drains takes nothing");
        assert_eq!(shares(&[]), [0; 0]);
    }

    #[test]
    fn one_of_very_many_is_better_than_all_that_are_down() {
        let load = loads(&[Level { up: 1, active: 1000, all: 1000 }], 0);
        assert_eq!(load, [Load { percent: 100, panics: false }]);
    }

    proptest! {
        #[test]
        fn loads_add_up_and_none_goes_where_nobody_can_take_it(
            levels in prop::collection::vec((0_u32..20, 0_u32..20, 0_u32..20), 1..8),
            threshold in 0_u32..=100,
        ) {
            let levels: Vec<Level> = levels
                .into_iter()
                .map(|(up, down, draining)| Level { up, active: up + down, all: up + down + draining })
                .collect();
            let loads = loads(&levels, threshold);
            let any = levels.iter().any(|level| level.active > 0);
            prop_assert_eq!(loads.iter().map(|load| load.percent).sum::<u32>(), if any { 100 } else { 0 });
            for (level, load) in levels.iter().zip(&loads) {
                let takers = if load.panics { level.active } else { level.up };
                prop_assert!(load.percent == 0 || takers > 0, "{level:?} {load:?}");
            }
        }

        #[test]
        fn who_recovers_never_takes_less(before in prop::collection::vec(0_u32..=100, 1..6), which in 0_usize..6) {
            let which = which % before.len();
            let mut after = before.clone();
            after[which] = (after[which] + 10).min(100);
            prop_assume!(before.iter().sum::<u32>() > 0);
            // One for rounding.
            prop_assert!(percents(&after, 0)[which] + 1 >= percents(&before, 0)[which]);
        }
    }
}
