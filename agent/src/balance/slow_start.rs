//! An endpoint that has just come, or come back, warms up: its age comes in, what it takes of its weight goes out.
//!
//! `max(min_weight, (max(age, 1 s) / window)^(1 / aggression))`, as Envoy does it
//! (<https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/slow_start>).

use std::time::Duration;

use crate::config::policy::SlowStart;

/// An endpoint takes something as soon as it is there.
const AGE_MIN: Duration = Duration::from_secs(1);

/// What an endpoint of this age takes of its weight, in whole percent from 1 to 99; `None` when it is warm.
pub fn weight_percent(rules: &SlowStart, age: Duration) -> Option<u32> {
    if age >= rules.window {
        return None;
    }
    let time = age.max(AGE_MIN).as_secs_f64() / rules.window.as_secs_f64();
    let grown = (100.0 * time.powf(100.0 / f64::from(rules.aggression_percent))).round() as u32;
    let percent = grown.max(rules.min_weight_percent).max(1);
    (percent < 100).then_some(percent)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rules(window_s: u64, min_weight_percent: u32, aggression_percent: u32) -> SlowStart {
        SlowStart { window: Duration::from_secs(window_s), min_weight_percent, aggression_percent }
    }

    #[test]
    fn a_weight_grows_by_the_formula() {
        let cases = [
            (rules(60, 10, 100), 0, Some(10)),
            (rules(60, 10, 100), 6, Some(10)),
            (rules(60, 10, 100), 30, Some(50)),
            (rules(60, 10, 100), 59, Some(98)),
            (rules(60, 10, 100), 60, None),
            // Faster at first: the square root of the time.
            (rules(100, 1, 200), 25, Some(50)),
            (rules(100, 1, 200), 81, Some(90)),
            // Slower at first: its square.
            (rules(100, 1, 50), 50, Some(25)),
            (rules(1000, 1, 50), 0, Some(1)),
            (rules(60, 100, 100), 0, None),
            (rules(1, 10, 100), 0, None),
        ];
        for (rules, age, expected) in cases {
            assert_eq!(weight_percent(&rules, Duration::from_secs(age)), expected, "{rules:?} at {age} s");
        }
    }

    proptest! {
        #[test]
        fn a_weight_never_shrinks_and_is_whole_in_the_end(
            window_s in 1_u64..10_000,
            min_weight_percent in 1_u32..=100,
            aggression_percent in 1_u32..=10_000,
            ages in prop::collection::vec(0_u64..20_000_000, 2..20),
        ) {
            let rules = rules(window_s, min_weight_percent, aggression_percent);
            let mut ages = ages;
            ages.sort_unstable();
            let percent = |age: &u64| weight_percent(&rules, Duration::from_millis(*age)).unwrap_or(100);
            prop_assert!(ages.iter().map(percent).is_sorted());
            prop_assert!(ages.iter().all(|age| percent(age) >= min_weight_percent));
            prop_assert_eq!(weight_percent(&rules, rules.window), None);
        }
    }
}
