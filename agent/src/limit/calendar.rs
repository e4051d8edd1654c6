//! Does a limit hold now, by the clock on the wall? The clock comes in as nanoseconds since 1970 in UTC.

use crate::config::{request_limit::Hours, zone::Zone};

const SECOND_NS: u64 = 1_000_000_000;
const DAY_S: i64 = 86_400;

/// As the clocks of a zone show it: what windows of a calendar are numbered by.
pub fn local_ns(wall_ns: u64, zone: Zone) -> u64 {
    shifted_ns(wall_ns, zone.offset_s((wall_ns / SECOND_NS) as i64))
}

/// In how many nanoseconds the clocks of a zone will show this time, or a later one, for the first time.
pub fn until_local_ns(wall_ns: u64, zone: Zone, local_ns: u64) -> u64 {
    let (mut from_s, mut offset_s) = ((wall_ns / SECOND_NS) as i64, zone.offset_s((wall_ns / SECOND_NS) as i64));
    loop {
        let due_ns = shifted_ns(local_ns, -offset_s);
        match zone.next_change(from_s) {
            Some((change_s, next_s)) if change_s as u64 * SECOND_NS <= due_ns => {
                let change_ns = change_s as u64 * SECOND_NS;
                // Put forward over it, they show a later one from then on.
                if shifted_ns(change_ns, next_s) >= local_ns {
                    return change_ns.saturating_sub(wall_ns);
                }
                (from_s, offset_s) = (change_s, next_s);
            }
            _ => return due_ns.saturating_sub(wall_ns),
        }
    }
}

fn shifted_ns(ns: u64, by_s: i32) -> u64 {
    ns.saturating_add_signed(i64::from(by_s) * SECOND_NS as i64)
}

/// For how long yet a limit of these hours holds; `None`: it does not.
pub fn left_ns(hours: &Hours, wall_ns: u64) -> Option<u64> {
    let local_ns = local_ns(wall_ns, hours.zone);
    let of_day = (local_ns / SECOND_NS) as i64 % DAY_S;
    let (from, until) = (i64::from(hours.from_s), i64::from(hours.until_s));
    // Those that begin before midnight may end behind it.
    let length = (until - from).rem_euclid(DAY_S);
    let passed = (of_day - from).rem_euclid(DAY_S);
    // A day's end is its begin: then it holds always.
    let length = if length == 0 { DAY_S } else { length };
    let end_ns = local_ns - local_ns % SECOND_NS + (length - passed).max(0) as u64 * SECOND_NS;
    (passed < length).then(|| until_local_ns(wall_ns, hours.zone, end_ns))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Of a day in 2023, in UTC.
    fn at(hour: u64, minute: u64, second: u64) -> u64 {
        (1_700_006_400 + hour * 3_600 + minute * 60 + second) * SECOND_NS
    }

    fn hours(from: u32, until: u32, offset_h: i32) -> Hours {
        Hours { from_s: from * 3_600, until_s: until * 3_600, zone: Zone::Offset(offset_h * 3_600) }
    }

    #[test]
    fn hours_hold_from_their_first_second_to_the_one_before_their_last() {
        let office = hours(9, 18, 0);
        for (time, left_s) in [
            (at(8, 59, 59), None),
            (at(9, 0, 0), Some(9 * 3_600)),
            (at(17, 59, 59), Some(1)),
            (at(18, 0, 0), None),
            (at(0, 0, 0), None),
        ] {
            assert_eq!(left_ns(&office, time), left_s.map(|left| left * SECOND_NS));
        }
        assert_eq!(left_ns(&office, at(17, 59, 59) + SECOND_NS / 4), Some(SECOND_NS * 3 / 4));
    }

    #[test]
    fn hours_may_pass_midnight_and_are_those_of_the_clock_that_is_meant() {
        let night = hours(22, 6, 0);
        let holds = |hours: &Hours, hour| left_ns(hours, at(hour, 30, 0)).is_some();
        let held: Vec<u64> = (0..24).filter(|hour| holds(&night, *hour)).collect();
        assert_eq!(held, [0, 1, 2, 3, 4, 5, 22, 23]);
        let there: Vec<u64> = (0..24).filter(|hour| holds(&hours(22, 6, 2), *hour)).collect();
        assert_eq!(there, [0, 1, 2, 3, 20, 21, 22, 23], "two hours before UTC");
        let to_midnight: Vec<u64> = (0..24).filter(|hour| holds(&hours(20, 24, -5), *hour)).collect();
        assert_eq!(to_midnight, [1, 2, 3, 4]);
        assert!((0..24).all(|hour| holds(&hours(0, 24, 0), hour)));
    }

    /// Seconds since 1970, in UTC, of the days on which the clocks of Berlin are put forward (from 2 to 3) and back (from 3 to 2).
    const FORWARD: u64 = 1_774_742_400;
    const BACK: u64 = 1_792_886_400;

    fn berlin() -> Zone {
        Zone::named("Europe/Berlin").expect("it is there")
    }

    #[test]
    fn the_two_days_on_which_clocks_are_put_are_as_long_as_they_are() {
        let hour = 3_600;
        // Local midnight stands an hour, or two, before that of UTC.
        for (midnight_s, hours_of_day) in [(FORWARD - hour, 23), (BACK - 2 * hour, 25), (BACK + 23 * hour, 24)] {
            let midnight = midnight_s * SECOND_NS;
            let local = local_ns(midnight, berlin());
            assert_eq!(local % (DAY_S as u64 * SECOND_NS), 0);
            let next = local + DAY_S as u64 * SECOND_NS;
            for passed_s in [0, 1, 90 * 60, 12 * hour, hours_of_day * hour - 1] {
                let left = until_local_ns(midnight + passed_s * SECOND_NS, berlin(), next);
                assert_eq!(left, (hours_of_day * hour - passed_s) * SECOND_NS, "{midnight_s} + {passed_s}");
            }
        }
    }

    #[test]
    fn hours_of_a_night_on_which_clocks_are_put_hold_as_clocks_show() {
        let held = |from_min: u32, until_min: u32, day: u64| {
            let hours = Hours { from_s: from_min * 60, until_s: until_min * 60, zone: berlin() };
            let minutes = (0..300_u64).filter(|minute| left_ns(&hours, (day + minute * 60) * SECOND_NS).is_some());
            let minutes: Vec<u64> = minutes.collect();
            (minutes.len(), minutes.first().copied())
        };
        // From midnight in UTC it is one in spring, and two in autumn.
        assert_eq!(held(120, 180, FORWARD), (0, None), "there is no such hour");
        assert_eq!(held(120, 180, BACK), (120, Some(0)), "there are two");
        assert_eq!(held(90, 210, FORWARD), (60, Some(30)));
        assert_eq!(held(135, 165, BACK), (60, Some(15)));
        let night = Hours { from_s: 22 * 3_600, until_s: 6 * 3_600, zone: berlin() };
        let left_h = |day: u64| left_ns(&night, day * SECOND_NS).map(|left| left / SECOND_NS / 3_600);
        assert_eq!((left_h(FORWARD), left_h(BACK)), (Some(4), Some(5)));
        // It ends where clocks jump over its end.
        let early = Hours { from_s: 0, until_s: 9_000, zone: berlin() };
        assert_eq!(left_ns(&early, FORWARD * SECOND_NS), Some(3_600 * SECOND_NS));
    }

    proptest! {
        #[test]
        fn when_hours_of_a_place_are_over_they_are_and_not_before(from in 0..1_440_u32, until in 0..1_440_u32, at in FORWARD - 86_400..BACK + 86_400) {
            let hours = Hours { from_s: from * 60, until_s: until * 60, zone: berlin() };
            if let Some(left) = left_ns(&hours, at * SECOND_NS) {
                prop_assert!(left > 0 && left <= 25 * 3_600 * SECOND_NS);
                prop_assert!(left_ns(&hours, at * SECOND_NS + left - 1).is_some());
                let is_put = |at: u64| berlin().offset_s((at - 1) as i64) != berlin().offset_s(at as i64);
                // Where clocks are put back at its very end it goes on.
                if until != from && !is_put(at + left / SECOND_NS) {
                    prop_assert_eq!(left_ns(&hours, at * SECOND_NS + left), None);
                }
            }
        }

        #[test]
        fn when_hours_are_over_they_are_and_not_before(from in 0..86_400_u32, until in 0..=86_400_u32, offset in -43_200..50_400_i32, time in 1_u64 << 60..1_u64 << 61) {
            let hours = Hours { from_s: from, until_s: until, zone: Zone::Offset(offset) };
            if let Some(left) = left_ns(&hours, time) {
                prop_assert!(left > 0 && left <= DAY_S as u64 * SECOND_NS);
                prop_assert!(left_ns(&hours, time + left - 1).is_some());
                if until % 86_400 != from {
                    prop_assert_eq!(left_ns(&hours, time + left), None);
                }
            }
        }
    }
}
