//! A quick hash for tables whose keys the configuration chooses: nobody who asks can fill a bucket of theirs.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

/// What is found by its bytes.
pub type Map<V> = HashMap<Box<[u8]>, V, BuildHasherDefault<Words>>;

/// Takes eight bytes at a time, as FNV-1a takes one, and folds the product (xor of its halves), which mixes all of them. Bytes are told from
/// more of them by their number, which `Hash` of a slice says first.
#[derive(Default)]
pub struct Words(u64);

const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

impl Words {
    fn add(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word ^ FACTOR) * u128::from(FACTOR | 1);
        self.0 = (product as u64) ^ (product >> 64) as u64;
    }
}

impl Hasher for Words {
    fn write(&mut self, bytes: &[u8]) {
        // The last of them are taken whole, some of them again: that costs less than to take them apart.
        if let Some(last) = bytes.last_chunk() {
            bytes.as_chunks().0.iter().for_each(|word| self.add(u64::from_le_bytes(*word)));
            self.add(u64::from_le_bytes(*last));
        } else if let (Some(first), Some(last)) = (bytes.first_chunk(), bytes.last_chunk()) {
            self.add(u64::from(u32::from_le_bytes(*first)) << 32 | u64::from(u32::from_le_bytes(*last)));
        } else {
            self.add(bytes.iter().fold(0, |all, byte| all << 8 | u64::from(*byte)));
        }
    }

    fn write_usize(&mut self, number: usize) {
        self.add(number as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Which lengths the keys of a table have: most of what is asked for is of another, and need not be hashed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lengths {
    /// By number of bytes; the last is for all above.
    bits: u64,
    longest: usize,
}

impl Lengths {
    /// There is one of this many bytes.
    pub fn add(&mut self, bytes: usize) {
        self.bits |= Self::bit(bytes);
        self.longest = self.longest.max(bytes);
    }

    /// Whether there may be one.
    pub fn has(self, bytes: usize) -> bool {
        self.bits & Self::bit(bytes) != 0 && bytes <= self.longest
    }

    fn bit(bytes: usize) -> u64 {
        1 << bytes.min(63)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_put_in_is_found_and_nothing_else(keys in proptest::collection::vec(".{0,70}", 1..20), other in ".{0,70}") {
            let (mut map, mut lengths) = (Map::default(), Lengths::default());
            for key in &keys {
                map.insert(key.as_bytes().into(), key.len());
                lengths.add(key.len());
            }
            for key in &keys {
                prop_assert_eq!((map.get(key.as_bytes()), lengths.has(key.len())), (Some(&key.len()), true));
            }
            prop_assert_eq!(map.contains_key(other.as_bytes()), keys.contains(&other));
        }
    }

    #[test]
    fn lengths_that_no_key_has_are_known() {
        let mut lengths = Lengths::default();
        assert!(!lengths.has(0));
        [3, 100].into_iter().for_each(|bytes| lengths.add(bytes));
        assert_eq!([2, 3, 4, 100, 101].map(|bytes| lengths.has(bytes)), [false, true, false, true, false]);
    }

    #[test]
    fn what_differs_in_a_byte_differs_in_its_hash() {
        let hash = |bytes: &[u8]| {
            let mut words = Words::default();
            words.write_usize(bytes.len());
            words.write(bytes);
            words.finish()
        };
        for bytes in 0..40 {
            let key = vec![b'a'; bytes];
            for at in 0..bytes {
                let mut other = key.clone();
                other[at] = b'b';
                assert_ne!(hash(&key), hash(&other), "{bytes} bytes, at {at}");
            }
        }
    }
}
