//! Heads from one protocol into the other.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sockway::decode::hold;

fuzz_target!(|bytes: &[u8]| hold::translation(bytes));
