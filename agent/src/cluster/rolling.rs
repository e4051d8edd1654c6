//! Two counts of each of the last stretches of time, in one word a stretch: a ring in which each new stretch takes the place of the oldest.
//! Time is in whatever unit the user keeps to. The stretches are numbered; a word keeps the last 16 bits of the number. What was left alone for exactly 65 536 stretches is taken for new.

use std::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Relaxed},
};

/// Bits of the number.
const NUMBER: u32 = 16;

/// How the words are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rolling {
    /// How long a stretch is.
    stretch: u64,
    stretches: u64,
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
    pub fn new(window: u64, stretches: u32, first: u32) -> Self {
        let stretches = u64::from(stretches.max(1));
        Self { stretch: window.div_ceil(stretches).max(1), stretches, first }
    }

    /// How long the window is: what is so long ago is out of it.
    pub fn length(&self) -> u64 {
        self.stretch * self.stretches
    }

    /// Adds to the counts of now, in as many words as there are stretches. A count that is full stays so.
    pub fn add(&self, words: &[AtomicU64], now: u64, first: u64, second: u64) {
        let number = now / self.stretch;
        let word = &words[(number % self.stretches) as usize];
        let added = |known| {
            let before = self.read(known, number).filter(|stretch| stretch.age == 0);
            let (was_first, was_second) = before.map_or((0, 0), |stretch| (stretch.first, stretch.second));
            let (first_max, second_max) = self.most();
            let (first, second) = ((was_first + first).min(first_max), (was_second + second).min(second_max));
            Some((number & 0xffff) << (64 - NUMBER) | first << self.second_bits() | second)
        };
        // It always gives one.
        let _ = word.fetch_update(AcqRel, Relaxed, added);
    }

    /// Those of the window that ends now.
    pub fn window(&self, words: &[AtomicU64], now: u64) -> impl Iterator<Item = Stretch> {
        let number = now / self.stretch;
        let words = words.iter().take(self.stretches as usize);
        words.filter_map(move |word| self.read(word.load(Relaxed), number).filter(|it| it.age < self.stretches))
    }

    /// Both counts of all of it.
    pub fn sums(&self, words: &[AtomicU64], now: u64) -> (u64, u64) {
        self.window(words, now).fold((0, 0), |sum, stretch| (sum.0 + stretch.first, sum.1 + stretch.second))
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

    use proptest::prelude::*;

    use super::*;

    fn words(stretches: usize) -> Vec<AtomicU64> {
        (0..stretches).map(|_| AtomicU64::default()).collect()
    }

    #[test]
    fn a_window_forgets_what_is_older_than_itself() {
        let (rolling, words) = (Rolling::new(10_000_000_000, 10, 24), words(10));
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
        let (rolling, words) = (Rolling::new(1_000_000_000, 1, 20), words(1));
        rolling.add(&words, 5, u64::from(u32::MAX), 3);
        assert_eq!(rolling.sums(&words, 5), ((1 << 20) - 1, 3));
        rolling.add(&words, 5, 1, 1 << 40);
        assert_eq!(rolling.sums(&words, 5), ((1 << 20) - 1, (1 << 28) - 1));
    }

    #[test]
    fn threads_that_count_at_once_lose_nothing() {
        let (rolling, words) = (Rolling::new(10_000_000_000, 10, 24), words(10));
        let count = || (0..50_000).for_each(|at| rolling.add(&words, at * 100_000, 1, 2));
        thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(count))));
        let (first, second) = rolling.sums(&words, 5_000_000_000);
        assert!(first <= 200_000 && second == 2 * first, "{first} {second}");
        // Threads that have fallen behind by the whole window take a stretch back to where they are: at the end of a run that may cost some.
        assert!(first > 0);
    }

    proptest! {
        #[test]
        fn a_window_has_no_less_than_what_is_in_it_and_no_more_than_its_stretches(
            gaps in prop::collection::vec((0..700_u64, any::<bool>()), 1..200),
        ) {
            let (rolling, words) = (Rolling::new(1_000, 10, 24), words(10));
            let (mut now, mut all) = (50_000, Vec::new());
            for (gap, is_bad) in gaps {
                now += gap;
                all.push((now, is_bad));
                rolling.add(&words, now, 1, is_bad.into());
                let begins = (now / 100 - 9) * 100;
                let within: Vec<_> = all.iter().filter(|(at, _)| *at >= begins).collect();
                let bad = within.iter().filter(|(_, is_bad)| *is_bad).count();
                prop_assert_eq!(rolling.sums(&words, now), (within.len() as u64, bad as u64));
            }
        }
    }
}
