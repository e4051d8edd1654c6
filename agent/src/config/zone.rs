//! Clocks on the wall: so many seconds before UTC's, or those of a place, which are put forward and back.
//!
//! What is known of a place is read once, when it is named, from the host's database of time zones or, where there is none, from the one that
//! the agent was built with: who judges by it looks nothing up.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use jiff::{Timestamp, tz::TimeZone};

/// Up to when changes are known, in seconds since 1970: the year 2100. After it, the last one holds.
const KNOWN_UNTIL_S: i64 = 4_102_444_800;

/// Whose clocks are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zone {
    /// They are so many seconds before UTC's.
    Offset(i32),
    /// Those of a place.
    Named(&'static Place),
}

/// The clocks of a place.
#[derive(Debug, PartialEq, Eq)]
pub struct Place {
    /// Its name in the IANA database.
    pub name: String,
    /// Before the first change, in seconds before UTC's.
    first_s: i32,
    /// When they were, and will be, put forward or back, in seconds since 1970; and from then on.
    changes: Vec<(i64, i32)>,
}

/// The places that were named. There are no more than names in the database, and each is kept once, whatever is configured how often.
static PLACES: Mutex<BTreeMap<String, &'static Place>> = Mutex::new(BTreeMap::new());

impl Zone {
    /// UTC's.
    pub const UTC: Self = Self::Offset(0);

    /// Those of the place of this name; `None`: there is none.
    pub fn named(name: &str) -> Option<Self> {
        // Names such as `posix/…` and files of a host that only look like a zone's.
        let zone = TimeZone::get(name).ok().filter(|zone| zone.iana_name().is_some())?;
        let name = zone.iana_name()?.to_owned();
        let mut places = PLACES.lock().unwrap_or_else(PoisonError::into_inner);
        let place = places.entry(name.clone()).or_insert_with(|| Box::leak(Box::new(Place::new(name, &zone))));
        Some(Self::Named(place))
    }

    /// How many seconds they are before UTC's at this moment, in seconds since 1970.
    pub fn offset_s(&self, at_s: i64) -> i32 {
        match self {
            Self::Offset(offset_s) => *offset_s,
            Self::Named(place) => match place.changes.partition_point(|(since_s, _)| *since_s <= at_s) {
                0 => place.first_s,
                next => place.changes[next - 1].1,
            },
        }
    }

    /// When they are put forward or back next after this moment, and what they are before UTC's from then on.
    pub fn next_change(&self, at_s: i64) -> Option<(i64, i32)> {
        let Self::Named(place) = self else { return None };
        place.changes.get(place.changes.partition_point(|(since_s, _)| *since_s <= at_s)).copied()
    }
}

impl Place {
    fn new(name: String, zone: &TimeZone) -> Self {
        let offset = |at: Timestamp| zone.to_offset(at).seconds();
        let changes = zone.following(Timestamp::UNIX_EPOCH).map(|change| change.timestamp());
        let changes = changes.take_while(|at| at.as_second() < KNOWN_UNTIL_S).map(|at| (at.as_second(), offset(at)));
        Self { name, first_s: offset(Timestamp::UNIX_EPOCH), changes: changes.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_places_clocks_are_those_of_its_law() {
        let berlin = Zone::named("Europe/Berlin").expect("it is there");
        // 2026-03-29 and 2026-10-25, 01:00 in UTC.
        let (forward, back) = (1_774_746_000, 1_792_890_000);
        for (at_s, offset_s) in [(forward - 1, 3_600), (forward, 7_200), (back - 1, 7_200), (back, 3_600)] {
            assert_eq!(berlin.offset_s(at_s), offset_s, "{at_s}");
        }
        assert_eq!(berlin.next_change(forward - 1), Some((forward, 7_200)));
        assert_eq!(berlin.next_change(forward), Some((back, 3_600)));
        assert_eq!(berlin.offset_s(0), 3_600);
        assert!(berlin.next_change(KNOWN_UNTIL_S - 366 * 86_400).is_some());
        assert_eq!(Zone::named("Asia/Kolkata").map(|zone| zone.offset_s(forward)), Some(19_800));
        assert_eq!(Zone::named("europe/berlin"), Some(berlin), "case says nothing");
        assert_eq!((Zone::named("Europe/Bern"), Zone::named("+02:00"), Zone::named("")), (None, None, None));
        assert_eq!((Zone::UTC.offset_s(back), Zone::UTC.next_change(back)), (0, None));
    }
}
