//! A table of words by key, of a size that never grows: who was not seen for longest makes room. No lock.
//!
//! A key may stand in one of the few places of its set, as in a processor's cache. Two threads that bring the same new key at the same moment
//! agree on the first of its places; what one of them counted before that is lost, and so is what is counted in a place at the very moment at
//! which it is given to another key.

use std::{
    ops::Range,
    sync::atomic::{
        AtomicU64,
        Ordering::{AcqRel, Acquire, Relaxed, Release},
    },
};

/// Places of a set: a line of the cache for every two and a half.
const WAYS: usize = 8;
/// The key of a place that is free.
const NONE: u64 = 0;
/// The key of a place that is being given to another.
const RESERVED: u64 = u64::MAX;

/// The table.
#[derive(Debug)]
pub struct Keyed {
    places: Box<[Place]>,
}

#[derive(Debug, Default)]
struct Place {
    key: AtomicU64,
    word: AtomicU64,
    /// When it was asked for last.
    seen: AtomicU64,
}

impl Keyed {
    /// With room for so many keys, up to twice as many, of 24 bytes each, which are taken at once.
    pub fn new(keys_max: usize) -> Self {
        let sets = keys_max.div_ceil(WAYS).next_power_of_two();
        Self { places: (0..sets * WAYS).map(|_| Place::default()).collect() }
    }

    /// The place of a key; the word of a new one is `fresh`. `None` if its set is full of words that must stay.
    pub fn place(&self, key: u64, now: u64, fresh: u64, must_stay: impl Fn(u64) -> bool) -> Option<usize> {
        let key = key.clamp(NONE + 1, RESERVED - 1);
        let set = self.set(key);
        let places = &self.places[set.clone()];
        loop {
            if let Some(found) = places.iter().position(|place| place.key.load(Acquire) == key) {
                places[found].seen.store(now, Relaxed);
                return Some(set.start + found);
            }
            let may_go = |place: &&Place| match place.key.load(Acquire) {
                NONE => true,
                RESERVED => false,
                _ => !must_stay(place.word.load(Relaxed)),
            };
            let oldest = places.iter().filter(may_go).min_by_key(|place| place.seen.load(Relaxed))?;
            let old = oldest.key.load(Acquire);
            // Nobody finds it while it is nobody's.
            if old == RESERVED || oldest.key.compare_exchange(old, RESERVED, AcqRel, Relaxed).is_err() {
                continue;
            }
            oldest.word.store(fresh, Relaxed);
            oldest.seen.store(now, Relaxed);
            let is_there = places.iter().any(|place| place.key.load(Acquire) == key);
            oldest.key.store(if is_there { NONE } else { key }, Release);
        }
    }

    /// The place of a key, if it has one. Who looks does not keep it.
    pub fn find(&self, key: u64) -> Option<usize> {
        let key = key.clamp(NONE + 1, RESERVED - 1);
        self.set(key).find(|place| self.places[*place].key.load(Acquire) == key)
    }

    /// The word of a place.
    pub fn word(&self, place: usize) -> &AtomicU64 {
        &self.places[place].word
    }

    fn set(&self, key: u64) -> Range<usize> {
        let sets = self.places.len() / WAYS;
        // The key is a hash already.
        let at = (key as usize & (sets - 1)) * WAYS;
        at..at + WAYS
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use xxhash_rust::xxh64::xxh64;

    use super::*;

    fn key(number: u64) -> u64 {
        xxh64(&number.to_be_bytes(), 0)
    }

    #[test]
    fn who_was_not_seen_for_longest_makes_room() {
        let table = Keyed::new(1_000);
        let ask = |number: u64, now| {
            let place = table.place(key(number), now, 100, |_| false).expect("a place");
            table.word(place).fetch_add(1, Relaxed)
        };
        assert_eq!((ask(1, 1), ask(2, 2), ask(1, 3)), (100, 100, 101));
        assert_eq!(table.find(key(1)).map(|place| table.word(place).load(Relaxed)), Some(102));
        assert_eq!(table.find(key(3)), None);
        // One that comes again and again stays, whatever else comes; one that does not, goes.
        for number in 10..100_000 {
            ask(number, number);
            if number % 8 == 0 {
                ask(1, number);
            }
        }
        assert!(ask(1, 100_001) > 10_000);
        assert_eq!(ask(2, 100_002), 100);
        assert!(table.places.len() <= 1_024, "{}", table.places.len());
    }

    #[test]
    fn a_word_that_must_stay_stays() {
        let table = Keyed::new(1);
        let stays = |word| word == 7;
        let places: Vec<_> = (0..WAYS as u64).map(|number| table.place(key(number), number, 7, stays)).collect();
        assert!(places.iter().all(Option::is_some));
        assert_eq!(table.place(key(99), 99, 7, stays), None);
        table.word(places[3].expect("a place")).store(0, Relaxed);
        assert_eq!(table.place(key(99), 99, 7, stays), places[3]);
    }

    #[test]
    fn threads_that_bring_keys_at_once_lose_next_to_nothing() {
        let table = Keyed::new(4_096);
        let ask = || {
            for number in 0..100_000 {
                let place = table.place(key(number % 512), number, 0, |_| false).expect("a place");
                table.word(place).fetch_add(1, Relaxed);
            }
        };
        thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(ask))));
        let sum: u64 = (0..512)
            .map(|number| table.word(table.place(key(number), 0, 0, |_| false).expect("a place")).load(Relaxed))
            .sum();
        assert!((400_000 - 512 * 4..=400_000).contains(&sum), "{sum}");
    }
}
