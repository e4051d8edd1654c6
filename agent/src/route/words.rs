//! A quick hash for tables whose keys the configuration chooses: nobody who asks can fill a bucket of theirs.

use std::hash::Hasher;

/// Takes eight bytes at a time, as FNV-1a takes one, and folds the product (xor of its halves), which mixes all of them.
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
        let mut words = bytes.chunks_exact(8);
        for word in &mut words {
            self.add(word.iter().fold(0, |all, byte| all << 8 | u64::from(*byte)));
        }
        let rest = words.remainder().iter().fold(0, |all, byte| all << 8 | u64::from(*byte));
        self.add(rest ^ (bytes.len() as u64) << 56);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
