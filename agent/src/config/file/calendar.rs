//! What goes by the clock on the wall: the keys `aligned`, `between`, `utc_offset` and `time_zone` of a request limit.

use super::section::{Field, Problems, Section, shown};
use crate::config::{request_limit::Hours, zone::Zone};

const MINUTE_S: u32 = 60;
const HOUR_S: u32 = 3_600;
const DAY_S: u32 = 86_400;
const WEST_S_MAX: i32 = 12 * 3_600; // Baker Island
const EAST_S_MAX: i32 = 14 * 3_600; // Kiritimati

/// Windows, in seconds.
pub(super) const WINDOWS: [(&str, u32); 3] = [("minute", MINUTE_S), ("hour", HOUR_S), ("day", DAY_S)];

/// Whose clocks are meant.
pub(super) fn zone(section: &Section<'_>, problems: &mut Problems) -> Option<Zone> {
    let keys = ["utc_offset", "time_zone"].map(|key| section.get(key));
    if section.get("aligned").is_none() && section.get("between").is_none() {
        for field in keys.iter().flatten() {
            field.refuse("says nothing without aligned or between; remove it", problems);
        }
    }
    match keys {
        [Some(_), Some(zone)] => {
            zone.refuse("says what utc_offset says otherwise; write one of them", problems);
            None
        }
        [None, Some(zone)] => read_zone(&zone, problems),
        [Some(offset), None] => read_offset(&offset, problems).map(Zone::Offset),
        [None, None] => Some(Zone::UTC),
    }
}

fn read_zone(field: &Field<'_>, problems: &mut Problems) -> Option<Zone> {
    let name = field.text(problems)?;
    let zone = Zone::named(name);
    if zone.is_none() {
        let what = format!(
            "\"{}\" is no time zone of the IANA database; write one of its names, as Europe/Berlin, or utc_offset",
            shown(name)
        );
        field.refuse(what, problems);
    }
    zone
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
pub(super) fn hours(field: &Field<'_>, zone: Zone, problems: &mut Problems) -> Option<Hours> {
    let text = field.text(problems)?;
    let read = || {
        let (from, until) = text.split_once('-')?;
        let (from_s, until_s) = (time(from.trim())?, time(until.trim())?);
        (from_s != until_s && from_s < DAY_S).then_some(Hours { from_s, until_s, zone })
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
pub fn show_hours(hours: &Hours) -> String {
    format!("{}-{}", show_time(hours.from_s), show_time(hours.until_s))
}

/// As it would be written: the key, and what stands behind it.
pub fn show_zone(zone: Zone) -> (&'static str, String) {
    match zone {
        Zone::Named(place) => ("time_zone", place.name.clone()),
        Zone::Offset(offset_s) => {
            let sign = if offset_s < 0 { '-' } else { '+' };
            ("utc_offset", format!("{sign}{}", show_time(offset_s.unsigned_abs())))
        }
    }
}
