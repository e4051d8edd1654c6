//! What the kernel half needs to balance a service by itself: the service, and the table of slots by which it chooses an endpoint.
//!
//! A service's endpoints stand in a table of slots that the agent computes: the kernel takes one slot per connect and does no
//! arithmetic on weights. A table belongs to a generation; the agent writes a new generation whole, then swaps the service
//! entry, then removes the old one, so that a hook sees either the old table or the new. A slot names endpoints by id; where an
//! endpoint is stands in its own entry (see [`crate::endpoint`]), so that one that changes costs one entry.

use crate::{
    flow::Address,
    seal::{SEED, mix, mix_address},
};

/// Value of the service table, whose key is the [`Address`] that programs dial.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// The service's id: stable while its name or its address is, and not given twice.
    pub id: u32,
    /// Generation of its slot table.
    pub generation: u32,
    /// Number of slots; 0 means that nothing can be chosen: pass.
    pub slots: u32,
    /// Bits of [`service_flags`].
    pub flags: u32,
    /// One of [`algorithm`].
    pub algorithm: u32,
    /// How long a source stays with its endpoint after its last connect, in milliseconds; 0 for no affinity.
    pub affinity_ms: u32,
    /// After how many milliseconds without a datagram a conversation of a UDP service is over; 0 for TCP.
    pub udp_idle_ms: u32,
    /// See [`Service::sealed`].
    pub seal: u32,
}

impl Service {
    /// The entry with its seal, for the address it will stand under.
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
        let seal = mix(mix(mix(mix(seal, self.id), self.generation), self.slots), self.flags);
        mix(mix(mix(seal, self.algorithm), self.affinity_ms), self.udp_idle_ms)
    }
}

/// Bits of [`Service::flags`].
pub mod service_flags {
    /// Hand connections to the agent if it lives; else balance in the kernel.
    pub const AGENT: u32 = 1;
    /// Connections may use the shortcut.
    pub const SHORTCUT: u32 = 1 << 1;
    /// Its endpoints have an entry of their live state (see [`crate::endpoint::EndpointLive`]).
    pub const LIVE: u32 = 1 << 2;
    /// It has limits (see [`crate::limit::LimitPolicy`]).
    pub const LIMITED: u32 = 1 << 4;
    /// Endpoints that fail handshakes are ejected; implies `LIVE`.
    pub const EJECT: u32 = 1 << 3;
    /// Its breaker may refuse connections (see [`crate::endpoint::ENDPOINT_BREAKER`]).
    pub const BREAKER: u32 = 1 << 5;
    /// Who dials is told by its cgroup; by its network namespace unless a bit says otherwise.
    pub const SOURCE_CGROUP: u32 = 1 << 8;
    /// Who dials is told by its user id.
    pub const SOURCE_UID: u32 = 1 << 9;
    /// The agent only relays its connections.
    pub const OPAQUE: u32 = 1 << 12;
    /// Accepting ends are told what was dialled, for `SO_ORIGINAL_DST`.
    pub const ORIGINAL_DST: u32 = 1 << 15;
}

/// Values of [`Service::algorithm`]: which slot of the table is taken.
pub mod algorithm {
    /// One after the other.
    pub const IN_TURN: u32 = 0;
    /// Any, and of its two endpoints the one that chance falls on.
    pub const AT_RANDOM: u32 = 1;
    /// The one that the hash of the source falls on.
    pub const BY_SOURCE: u32 = 2;
    /// The one whose endpoint has the fewest open connections for its weight, which stands in [`super::Slot::threshold`].
    pub const LEAST_OPEN: u32 = 3;
}

/// Slots in one entry of the slot table: ten are the endpoints of a service of usual size, and fit in two cache lines.
pub const CHUNK_SLOTS: usize = 10;

/// Number of the first chunk of a service's standby endpoints, far behind those of its slots: who takes connections while all that have
/// a share of them are ejected, the first level first. The list ends with a slot whose `threshold` is 0, or with its last chunk.
pub const STANDBY_CHUNK: u32 = 1 << 31;

/// Standby endpoints of a service: a hook looks through all of them, in a few microseconds.
pub const STANDBY_MAX: usize = 12 * CHUNK_SLOTS;

/// Key of the slot table.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChunkKey {
    /// [`Service::id`].
    pub service: u32,
    /// [`Service::generation`].
    pub generation: u32,
    /// Number of the slot, divided by [`CHUNK_SLOTS`]; from [`STANDBY_CHUNK`] on of the standby endpoint.
    pub chunk: u32,
}

/// One slot: a column of an alias table (M. D. Vose, "A linear algorithm for generating random numbers with a given distribution",
/// 1991). A random word up to `threshold` chooses `first`, another `second`. Where nothing is left to chance, `threshold` is
/// `u32::MAX` and `first` is the endpoint.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// Id of the slot's own endpoint within the service.
    pub first: u32,
    /// Id of the alias.
    pub second: u32,
    /// Share of `first` in this slot, of 2^32 (saturated); with [`algorithm::LEAST_OPEN`] its weight.
    pub threshold: u32,
}

impl Slot {
    /// A slot of one endpoint.
    pub const fn only(endpoint: u32) -> Self {
        Self { first: endpoint, second: endpoint, threshold: u32::MAX }
    }

    /// A standby endpoint, one of the `count` of its level, which begins at standby number `level`.
    pub const fn standby(endpoint: u32, level: u32, count: u32) -> Self {
        Self { first: endpoint, second: level, threshold: count }
    }
}

/// Value of the slot table. It has no seal: what a torn one names is looked up among the endpoints of this very service, so that the
/// worst it can do is to choose another of them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chunk {
    /// The slots, the last chunk's filled up with what is never asked for.
    pub slots: [Slot; CHUNK_SLOTS],
}

/// Key of what a source is bound to, and of what is counted for it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SourceKey {
    /// Who dialled: the cookie of its network namespace, the id of its cgroup, or its user id.
    pub source: u64,
    /// [`Service::id`].
    pub service: u32,
    /// Zero: fills the key to a multiple of eight.
    pub zero: u32,
}

/// Which endpoint a source stays with. Soft state: without it the source is balanced like a new one.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// When it dialled last, in nanoseconds of `CLOCK_MONOTONIC`.
    pub last_ns: u64,
    /// The endpoint's id within the service.
    pub endpoint: u32,
    /// Zero: fills the value to a multiple of eight.
    pub zero: u32,
}

/// A number spread over 64 bits, so that any part of it will do as a hash: the finaliser of splitmix64 (G. Steele, D. Lea, C. Flood,
/// "Fast splittable pseudorandom number generators", 2014).
#[inline(always)]
pub const fn spread(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

/// Key of everything that is kept for one endpoint of one service.
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
    /// Those of the connects that have ended: the others are open.
    pub closed: u64,
}

impl EndpointStats {
    /// Connections that are open, those under way included. Of all CPUs together: one that dials on one may end on another.
    pub const fn open(&self) -> u64 {
        self.connects.saturating_sub(self.closed)
    }

    /// Adds what another CPU has counted.
    pub fn add(&mut self, other: &Self) {
        self.connects += other.connects;
        self.failures += other.failures;
        self.closed += other.closed;
    }
}

const _: () = {
    assert!(size_of::<Service>() == 32);
    assert!(size_of::<ChunkKey>() == 12);
    assert!(size_of::<Slot>() == 12);
    assert!(size_of::<Chunk>() == 120);
    assert!(size_of::<EndpointKey>() == 8);
    assert!(size_of::<EndpointStats>() == 24);
    assert!(size_of::<SourceKey>() == 16);
    assert!(size_of::<Affinity>() == 16);
};

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Address = Address::v4(0x0a00_000a, 80);

    #[test]
    fn a_seal_holds_for_its_own_key_and_value_only() {
        let service = Service {
            id: 1,
            generation: 2,
            slots: 3,
            flags: 4,
            algorithm: algorithm::AT_RANDOM,
            affinity_ms: 5,
            udp_idle_ms: 6,
            seal: 0,
        }
        .sealed(&KEY);
        assert!(service.is_whole(&KEY));
        assert!(!service.is_whole(&Address::v4(0x0a00_000b, 80)));
        assert!(!Service { generation: 3, ..service }.is_whole(&KEY));
        assert!(!Service { id: 2, ..service }.is_whole(&KEY));
        assert!(!Service { algorithm: algorithm::IN_TURN, ..service }.is_whole(&KEY));
        assert!(!Service { affinity_ms: 0, ..service }.is_whole(&KEY));
        assert!(!Service { udp_idle_ms: 7, ..service }.is_whole(&KEY));
        assert!(!service.is_whole(&KEY.of(crate::flow::UDP)), "the same port of another protocol is another thing");
    }

    #[test]
    fn neighbours_are_spread_far_apart() {
        let buckets = (0..1000).fold([0_u32; 10], |mut buckets, source| {
            buckets[(spread(source) % 10) as usize] += 1;
            buckets
        });
        assert!(buckets.iter().all(|count| (60..140).contains(count)), "{buckets:?}");
    }
}
