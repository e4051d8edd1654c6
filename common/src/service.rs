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
}

/// Bits of [`Service::flags`].
pub mod service_flags {
    /// Hand connections to the agent if it lives; else balance in the kernel.
    pub const AGENT: u32 = 1;
    /// Take slots in turn; otherwise at random, with the alias of each slot.
    pub const IN_TURN: u32 = 1 << 1;
    /// Connections may use the shortcut.
    pub const SHORTCUT: u32 = 1 << 2;
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

const _: () = {
    assert!(size_of::<Service>() == 16);
    assert!(size_of::<SlotKey>() == 12);
    assert!(size_of::<Slot>() == 52);
    assert!(size_of::<EndpointKey>() == 8);
    assert!(size_of::<EndpointStats>() == 16);
};
