//! What the hooks are told of a service's breaker, and what they have counted of its connections.

use std::io;

use aya::maps::MapError;
use sockway_common::{
    endpoint::{ENDPOINT_BREAKER, EndpointLive},
    service::{EndpointKey, EndpointStats},
};

use super::{Tables, map_error};
use crate::kernel::KernelError;

/// What stands for the breaker of a service that is not closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gate {
    /// Connects that may still pass.
    pub left: u64,
    /// Connects that were refused since it opened.
    pub refused: u64,
}

impl Tables {
    fn gate_key(service: u32) -> EndpointKey {
        EndpointKey { service, endpoint: ENDPOINT_BREAKER }
    }

    /// What stands there.
    pub fn gate(&self, service: u32) -> Option<Gate> {
        let live = self.live.get(&Self::gate_key(service), 0).ok()?;
        Some(Gate { left: live.failures, refused: live.open })
    }

    /// From now on as many connects as are `left` pass, and no others, until a moment of `CLOCK_MONOTONIC`.
    ///
    /// # Errors
    ///
    /// When the table is full.
    pub fn shut_gate(&mut self, service: u32, gate: Gate, until_ns: u64) -> Result<(), KernelError> {
        let live = EndpointLive { open: gate.refused, failures: gate.left, ejected_until_ns: until_ns };
        self.live.insert(Self::gate_key(service), live, 0).map_err(map_error("ENDPOINT_LIVE"))
    }

    /// From now on all pass.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn open_gate(&mut self, service: u32) -> Result<(), KernelError> {
        match self.live.remove(&Self::gate_key(service)) {
            Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(MapError::KeyNotFound) => Ok(()),
            removed => removed.map_err(map_error("ENDPOINT_LIVE")),
        }
    }

    /// What the hooks counted for one endpoint, added up over the CPUs.
    pub fn stats_of(&self, key: &EndpointKey) -> EndpointStats {
        let mut sum = EndpointStats::default();
        if let Ok(values) = self.stats.get(key, 0) {
            values.iter().for_each(|value| sum.add(value));
        }
        sum
    }
}
