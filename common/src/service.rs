//! What the kernel half needs to balance a service by itself.
//!
//! A service's endpoints stand in a table of slots that the agent computes: the kernel takes one slot per connect and does no
//! arithmetic on weights. A table belongs to a generation; the agent writes a new generation whole, then swaps the service
//! entry, then removes the old one, so that a hook sees either the old table or the new.

use crate::flow::Address;

/// Value of the service table, whose key is the [`Address`] that programs dial.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// The service's id: stable while its name is.
    pub id: u32,
    /// Generation of its slot table.
    pub generation: u32,
    /// Number of slots; 0 means that nothing can be chosen: pass.
    pub slots: u32,
    /// Bits of [`service_flags`].
    pub flags: u32,
    /// After how many milliseconds without a datagram a conversation of a UDP service is over; 0 for TCP.
    pub udp_idle_ms: u32,
    /// See [`Service::sealed`].
    pub seal: u32,
}

impl Service {
    /// The entry with its seal, for the address it will stand under.
    ///
    /// The kernel may hand the memory of a removed entry to a new one while a hook still reads it (`bpf_mem_alloc` reuses at once). A seal
    /// over key and value tells a whole entry from half of one and half of another, which would send a connection to a stranger.
    pub fn sealed(mut self, key: &Address) -> Self {
        self.seal = self.seal_for(key);
        self
    }

    /// Whether the entry is whole and belongs to this address.
    #[inline(always)]
    pub fn is_whole(&self, key: &Address) -> bool {
        self.seal == self.seal_for(key)
    }

    #[inline(always)]
    fn seal_for(&self, key: &Address) -> u32 {
        let seal = mix_address(SEED, key);
        mix(mix(mix(mix(mix(seal, self.id), self.generation), self.slots), self.flags), self.udp_idle_ms)
    }
}

/// First 32 bits of the golden ratio's fraction: any odd number with mixed bits will do.
const SEED: u32 = 0x9e37_79b1;

/// One step of a multiplicative hash (D. E. Knuth, "The Art of Computer Programming", vol. 3, 6.4), with the high bits folded in.
#[inline(always)]
const fn mix(state: u32, word: u32) -> u32 {
    let state = (state ^ word).wrapping_mul(SEED);
    state ^ state >> 15
}

#[inline(always)]
const fn mix_address(state: u32, address: &Address) -> u32 {
    let state = mix(mix(mix(mix(state, address.ip[0]), address.ip[1]), address.ip[2]), address.ip[3]);
    mix(state, (address.port as u32) << 16 | address.protocol as u32)
}

/// Bits of [`Service::flags`].
pub mod service_flags {
    /// Hand connections to the agent if it lives; else balance in the kernel.
    pub const AGENT: u32 = 1;
    /// Take slots in turn; otherwise at random, with the alias of each slot.
    pub const IN_TURN: u32 = 1 << 1;
    /// Connections may use the shortcut.
    pub const SHORTCUT: u32 = 1 << 2;
    /// The agent only relays its connections.
    pub const OPAQUE: u32 = 1 << 12;
}

/// Key of the slot table.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotKey {
    /// [`Service::id`].
    pub service: u32,
    /// [`Service::generation`].
    pub generation: u32,
    /// From 0 to [`Service::slots`].
    pub slot: u32,
}

/// One slot. Taken in turn, `first` is the endpoint. Taken at random, the slot is a column of an alias table (M. D. Vose, "A linear
/// algorithm for generating random numbers with a given distribution", 1991): a random word below `threshold` chooses `first`, otherwise `second`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The slot's own endpoint.
    pub first: Address,
    /// Its id within the service.
    pub first_id: u32,
    /// The alias.
    pub second: Address,
    /// Its id within the service.
    pub second_id: u32,
    /// Share of `first` in this slot, of 2^32 (saturated).
    pub threshold: u32,
    /// See [`Service::sealed`].
    pub seal: u32,
}

impl Slot {
    /// The slot with its seal, for the key it will stand under.
    pub fn sealed(mut self, key: &SlotKey) -> Self {
        self.seal = self.seal_for(key);
        self
    }

    /// Whether the slot is whole and belongs to this key.
    #[inline(always)]
    pub fn is_whole(&self, key: &SlotKey) -> bool {
        self.seal == self.seal_for(key)
    }

    #[inline(always)]
    fn seal_for(&self, key: &SlotKey) -> u32 {
        let seal = mix(mix(mix(SEED, key.service), key.generation), key.slot);
        let seal = mix(mix_address(seal, &self.first), self.first_id);
        let seal = mix(mix_address(seal, &self.second), self.second_id);
        mix(seal, self.threshold)
    }
}

/// Key of the per-CPU statistics of one endpoint of one service.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EndpointKey {
    /// [`Service::id`].
    pub service: u32,
    /// The endpoint's id, or [`crate::flow::ENDPOINT_AGENT`].
    pub endpoint: u32,
}

/// Per-CPU statistics of one endpoint of one service, as the connect hooks see it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointStats {
    /// Connects sent to it.
    pub connects: u64,
    /// Handshakes that failed (refused, timed out, unreachable).
    pub failures: u64,
}

impl EndpointStats {
    /// Adds what another CPU has counted.
    pub fn add(&mut self, other: &Self) {
        self.connects += other.connects;
        self.failures += other.failures;
    }
}

const _: () = {
    assert!(size_of::<Service>() == 24);
    assert!(size_of::<SlotKey>() == 12);
    assert!(size_of::<Slot>() == 56);
    assert!(size_of::<EndpointKey>() == 8);
    assert!(size_of::<EndpointStats>() == 16);
};

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Address = Address::v4(0x0a00_000a, 80);

    #[test]
    fn a_seal_holds_for_its_own_key_and_value_only() {
        let service = Service { id: 1, generation: 2, slots: 3, flags: 4, udp_idle_ms: 5, seal: 0 }.sealed(&KEY);
        assert!(service.is_whole(&KEY));
        assert!(!service.is_whole(&Address::v4(0x0a00_000b, 80)));
        assert!(!Service { generation: 3, ..service }.is_whole(&KEY));
        assert!(!Service { id: 2, ..service }.is_whole(&KEY));
        assert!(!Service { udp_idle_ms: 6, ..service }.is_whole(&KEY));
        assert!(!service.is_whole(&KEY.of(crate::flow::UDP)), "the same port of another protocol is another thing");
    }

    #[test]
    fn a_slot_made_of_two_halves_is_not_whole() {
        let key = SlotKey { service: 1, generation: 1, slot: 0 };
        let slot = Slot { first: KEY, first_id: 0, second: KEY, second_id: 0, threshold: 9, seal: 0 }.sealed(&key);
        assert!(slot.is_whole(&key));
        assert!(!slot.is_whole(&SlotKey { slot: 1, ..key }));
        assert!(!Slot { first: Address::v4(0x0a00_000b, 80), ..slot }.is_whole(&key));
    }
}
