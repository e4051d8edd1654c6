//! Does a limit hold now, by the clock on the wall? The clock comes in as nanoseconds since 1970 in UTC.

use crate::config::request_limit::Hours;

const SECOND_NS: u64 = 1_000_000_000;
const DAY_S: i64 = 86_400;

/// As clocks show it that are so many seconds before UTC's: what windows of a calendar are numbered by.
pub fn local_ns(wall_ns: u64, offset_s: i32) -> u64 {
    wall_ns.saturating_add_signed(i64::from(offset_s) * SECOND_NS as i64)
}

/// For how long yet a limit of these hours holds; `None`: it does not.
pub fn left_ns(hours: &Hours, wall_ns: u64) -> Option<u64> {
    let local_ns = local_ns(wall_ns, hours.offset_s);
    let of_day = (local_ns / SECOND_NS) as i64 % DAY_S;
    let (from, until) = (i64::from(hours.from_s), i64::from(hours.until_s));
    // Those that begin before midnight may end behind it.
    let length = (until - from).rem_euclid(DAY_S);
    let passed = (of_day - from).rem_euclid(DAY_S);
    // A day's end is its begin: then it holds always.
    let length = if length == 0 { DAY_S } else { length };
    (passed < length).then(|| (length - passed) as u64 * SECOND_NS - local_ns % SECOND_NS)
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
        Hours { from_s: from * 3_600, until_s: until * 3_600, offset_s: offset_h * 3_600 }
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

    proptest! {
        #[test]
        fn when_hours_are_over_they_are_and_not_before(from in 0..86_400_u32, until in 0..=86_400_u32, offset in -43_200..50_400_i32, time in 1_u64 << 60..1_u64 << 61) {
            let hours = Hours { from_s: from, until_s: until, offset_s: offset };
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
