//! What goes by the clock on the wall: the keys `aligned`, `between` and `utc_offset` of a request limit.

use super::section::{Field, Problems, Section, shown};
use crate::config::request_limit::Hours;

const MINUTE_S: u32 = 60;
const HOUR_S: u32 = 3_600;
const DAY_S: u32 = 86_400;
const WEST_S_MAX: i32 = 12 * 3_600; // Baker Island
const EAST_S_MAX: i32 = 14 * 3_600; // Kiritimati

/// Windows, in seconds.
pub(super) const WINDOWS: [(&str, u32); 3] = [("minute", MINUTE_S), ("hour", HOUR_S), ("day", DAY_S)];

/// How many seconds the clocks that are meant are before UTC's.
pub(super) fn offset(section: &Section<'_>, problems: &mut Problems) -> Option<i32> {
    if let (Some(field), None, None) = (section.get("utc_offset"), section.get("aligned"), section.get("between")) {
        field.refuse("says nothing without aligned or between; remove it", problems);
    }
    section.or("utc_offset", || 0, read_offset, problems)
}

fn read_offset(field: &Field<'_>, problems: &mut Problems) -> Option<i32> {
    let text = field.text(problems)?;
    let read = || {
        let (sign, rest) =
            text.strip_prefix('+').map(|rest| (1, rest)).or(text.strip_prefix('-').map(|rest| (-1, rest)))?;
        let seconds = sign * i32::try_from(time(rest)?).ok()?;
        (-WEST_S_MAX..=EAST_S_MAX).contains(&seconds).then_some(seconds)
    };
    let seconds = read();
    if seconds.is_none() {
        let what =
            format!("\"{}\" is no offset from UTC; write \"+02:00\", or another from -12:00 to +14:00", shown(text));
        field.refuse(what, problems);
    }
    seconds
}

/// The part of a day that is written as `09:00-18:00`.
pub(super) fn hours(field: &Field<'_>, offset_s: i32, problems: &mut Problems) -> Option<Hours> {
    let text = field.text(problems)?;
    let read = || {
        let (from, until) = text.split_once('-')?;
        let (from_s, until_s) = (time(from.trim())?, time(until.trim())?);
        (from_s != until_s && from_s < DAY_S).then_some(Hours { from_s, until_s, offset_s })
    };
    let hours = read();
    if hours.is_none() {
        let what = format!("\"{}\" is no part of a day; write it as \"09:00-18:00\", up to 24:00", shown(text));
        field.refuse(what, problems);
    }
    hours
}

/// Seconds of `HH:MM`, up to 24:00.
fn time(text: &str) -> Option<u32> {
    let (hours, minutes) = text.split_once(':')?;
    let number = |digits: &str| {
        let fits = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_digit());
        digits.parse::<u32>().ok().filter(|_| fits)
    };
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    let seconds = hours * HOUR_S + minutes * MINUTE_S;
    (minutes < 60 && seconds <= DAY_S).then_some(seconds)
}

fn show_time(seconds: u32) -> String {
    format!("{:02}:{:02}", seconds / HOUR_S, seconds % HOUR_S / MINUTE_S)
}

/// As it would be written.
pub(super) fn show_hours(hours: &Hours) -> String {
    format!("{}-{}", show_time(hours.from_s), show_time(hours.until_s))
}

/// As it would be written.
pub(super) fn show_offset(offset_s: i32) -> String {
    let sign = if offset_s < 0 { '-' } else { '+' };
    format!("{sign}{}", show_time(offset_s.unsigned_abs()))
}
