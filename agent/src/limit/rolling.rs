//! Two counts of each of the last stretches of time, in one word a stretch: a ring in which each new stretch takes the place of the oldest.
//!
//! The stretches are numbered; a word keeps the last 16 bits of the number. What was left alone for exactly 65 536 stretches is taken for new.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Bits of the number.
const NUMBER: u32 = 16;

/// How the words are read.
#[derive(Clone, Copy, Debug)]
pub struct Rolling {
    stretch_ns: u64,
    /// Bits of the first count; the second has the others.
    first: u32,
}

/// Of one stretch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// How many stretches ago it was; 0 is not over.
    pub age: u64,
    /// The first count.
    pub first: u64,
    /// The second.
    pub second: u64,
}

impl Rolling {
    /// Of a window in so many stretches, with this many bits for the first count, of 48.
    pub fn new(window: Duration, stretches: u32, first: u32) -> Self {
        Self { stretch_ns: (window.as_nanos() as u64 / u64::from(stretches.max(1))).max(1), first }
    }

    /// How many of them are in a second.
    pub fn per_second(&self) -> f64 {
        1e9 / self.stretch_ns as f64
    }

    /// Adds to the counts of now. A count that is full stays so.
    pub fn add(&self, words: &[AtomicU64], now_ns: u64, first: u64, second: u64) {
        let number = now_ns / self.stretch_ns;
        let word = &words[(number % words.len() as u64) as usize];
        let added = |known| {
            let before = self.read(known, number).filter(|stretch| stretch.age == 0);
            let (was_first, was_second) = before.map_or((0, 0), |stretch| (stretch.first, stretch.second));
            let (first_max, second_max) = self.most();
            let (first, second) = ((was_first + first).min(first_max), (was_second + second).min(second_max));
            Some((number & 0xffff) << (64 - NUMBER) | first << self.second_bits() | second)
        };
        // It always gives one.
        let _ = word.fetch_update(Relaxed, Relaxed, added);
    }

    /// Those of the window that ends now.
    pub fn window(&self, words: &[AtomicU64], now_ns: u64) -> impl Iterator<Item = Stretch> {
        let (number, length) = (now_ns / self.stretch_ns, words.len() as u64);
        words.iter().filter_map(move |word| self.read(word.load(Relaxed), number).filter(|it| it.age < length))
    }

    /// Both counts of all of it.
    pub fn sums(&self, words: &[AtomicU64], now_ns: u64) -> (u64, u64) {
        self.window(words, now_ns).fold((0, 0), |sum, stretch| (sum.0 + stretch.first, sum.1 + stretch.second))
    }

    fn second_bits(&self) -> u32 {
        64 - NUMBER - self.first
    }

    fn most(&self) -> (u64, u64) {
        ((1 << self.first) - 1, (1 << self.second_bits()) - 1)
    }

    fn read(&self, word: u64, number: u64) -> Option<Stretch> {
        let (first_max, second_max) = self.most();
        let age = number.wrapping_sub(word >> (64 - NUMBER)) & 0xffff;
        (word != 0).then(|| Stretch { age, first: word >> self.second_bits() & first_max, second: word & second_max })
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn words(stretches: usize) -> Vec<AtomicU64> {
        (0..stretches).map(|_| AtomicU64::default()).collect()
    }

    #[test]
    fn a_window_forgets_what_is_older_than_itself() {
        let (rolling, words) = (Rolling::new(Duration::from_secs(10), 10, 24), words(10));
        let at = |second: u64| second * 1_000_000_000;
        (5..20).for_each(|second| rolling.add(&words, at(second), 2, 1));
        assert_eq!(rolling.sums(&words, at(19)), (20, 10));
        assert_eq!(rolling.sums(&words, at(20)), (18, 9));
        assert_eq!(rolling.sums(&words, at(28)), (2, 1));
        assert_eq!(rolling.sums(&words, at(29)), (0, 0));
        assert_eq!(rolling.window(&words, at(19)).find(|it| it.age == 0).map(|it| it.first), Some(2));
    }

    #[test]
    fn a_count_that_is_full_spills_into_no_other() {
        let (rolling, words) = (Rolling::new(Duration::from_secs(1), 1, 20), words(1));
        rolling.add(&words, 5, u64::from(u32::MAX), 3);
        assert_eq!(rolling.sums(&words, 5), ((1 << 20) - 1, 3));
        rolling.add(&words, 5, 1, 1 << 40);
        assert_eq!(rolling.sums(&words, 5), ((1 << 20) - 1, (1 << 28) - 1));
    }

    #[test]
    fn threads_that_count_at_once_lose_nothing() {
        let (rolling, words) = (Rolling::new(Duration::from_secs(10), 10, 24), words(10));
        let count = || (0..50_000).for_each(|at| rolling.add(&words, at * 100_000, 1, 2));
        thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(count))));
        let (first, second) = rolling.sums(&words, 5_000_000_000);
        assert!(first <= 200_000 && second == 2 * first, "{first} {second}");
        // Threads that have fallen behind by the whole window take a stretch back to where they are: at the end of a run that may cost some.
        assert!(first > 0);
    }
}
