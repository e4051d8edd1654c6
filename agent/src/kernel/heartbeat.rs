//! By what the hooks know that the agent lives (trap T25): the time of its last heartbeat.

use aya::{
    Ebpf,
    maps::{Array, MapData},
};

use super::{KernelError, monotonic_ns, services};

/// The table with that time.
pub struct Heartbeat(Array<MapData, u64>);

impl Heartbeat {
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        services::table(ebpf, "HEARTBEAT").map(Self)
    }

    /// Tells the hooks that the agent lives now.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, which it has no reason to.
    pub fn beat(&mut self) -> Result<(), KernelError> {
        self.0.set(0, monotonic_ns(), 0).map_err(services::map_error("HEARTBEAT"))
    }

    /// Tells the hooks to balance by themselves from now on, until the next beat.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, which it has no reason to.
    pub fn pause(&mut self) -> Result<(), KernelError> {
        self.0.set(0, 0, 0).map_err(services::map_error("HEARTBEAT"))
    }
}
