//! Seals over entries of hash maps.
//!
//! The kernel may hand the memory of a removed entry to a new one while a hook still reads it (`bpf_mem_alloc` reuses at once). A seal
//! over key and value tells a whole entry from half of one and half of another, which would send a connection to a stranger.

use crate::flow::Address;

/// First 32 bits of the golden ratio's fraction: any odd number with mixed bits will do.
pub const SEED: u32 = 0x9e37_79b1;

/// One step of a multiplicative hash (D. E. Knuth, "The Art of Computer Programming", vol. 3, 6.4), with the high bits folded in.
#[inline(always)]
pub const fn mix(state: u32, word: u32) -> u32 {
    let state = (state ^ word).wrapping_mul(SEED);
    state ^ state >> 15
}

/// Two steps, for 64 bits.
#[inline(always)]
pub const fn mix_u64(state: u32, word: u64) -> u32 {
    mix(mix(state, word as u32), (word >> 32) as u32)
}

/// The steps of a whole address.
#[inline(always)]
pub const fn mix_address(state: u32, address: &Address) -> u32 {
    let state = mix(mix(mix(mix(state, address.ip[0]), address.ip[1]), address.ip[2]), address.ip[3]);
    mix(state, (address.port as u32) << 16 | address.protocol as u32)
}
