//! What is taken of the services' limits now: hooks reserve and give back, the agent has what is idle removed.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use aya::maps::{HashMap as BpfHashMap, MapData};
use sockway_common::limit::{LIMIT_DEAD, LimitKey, LimitState, SWEEP_KEYS_MAX, limit_scope};

use crate::kernel::sys;

/// Keys looked at in one sweep: a fraction of a second of system calls. What is left waits for the next.
const KEYS_MAX: usize = 65_536;
/// A link header of nobody's, which the kernel takes off before the program sees the packet.
const LINK_HEADER: usize = 14;

/// The table of what is taken, and the program that sweeps it.
pub struct Limits {
    taken: BpfHashMap<MapData, LimitKey, LimitState>,
    /// None where the kernel refused it.
    sweeper: Option<OwnedFd>,
}

impl Limits {
    pub fn new(taken: BpfHashMap<MapData, LimitKey, LimitState>, sweeper: Option<OwnedFd>) -> Self {
        Self { taken, sweeper }
    }

    /// Connections that count against the limit of a service as a whole: its sources, of which there may be very many, are not looked at.
    pub fn open(&self, service: u32) -> u64 {
        let key = LimitKey { source: 0, service, scope: limit_scope::SERVICE };
        let open = self.taken.get(&key, 0).map_or(0, |state| state.open);
        if open == LIMIT_DEAD { 0 } else { open }
    }

    /// Removes what is idle at `now_ns` of `CLOCK_MONOTONIC`: how many entries there were.
    pub fn sweep(&mut self, now_ns: u64) -> usize {
        let Some(sweeper) = &self.sweeper else { return 0 };
        let idle: Vec<LimitKey> = self
            .taken
            .iter()
            .flatten()
            .take(KEYS_MAX)
            .filter(|(_, state)| state.open == 0 && state.theoretical_ns <= now_ns)
            .map(|(key, _)| key)
            .collect();
        idle.chunks(SWEEP_KEYS_MAX).map(|keys| remove(sweeper.as_fd(), keys)).sum()
    }
}

/// The program looks again, and removes only what is idle still.
fn remove(sweeper: BorrowedFd<'_>, keys: &[LimitKey]) -> usize {
    let mut packet = vec![0; LINK_HEADER];
    for key in keys {
        packet.extend(key.source.to_ne_bytes());
        packet.extend(key.service.to_ne_bytes());
        packet.extend(key.scope.to_ne_bytes());
    }
    match sys::run_program(sweeper, &packet) {
        Ok(removed) => removed as usize,
        Err(error) => {
            tracing::warn!(%error, "idle entries of the limits could not be removed; their table may fill");
            0
        }
    }
}
