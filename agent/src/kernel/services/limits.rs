//! What is taken of the services' limits now: hooks reserve and give back, the agent has what is idle removed.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use aya::maps::{HashMap as BpfHashMap, MapData};
use sockway_common::limit::{LIMIT_DEAD, LimitCarried, LimitKey, LimitState, SETTLED_MAX, SWEEP_KEYS_MAX, limit_scope};

use crate::kernel::sys;

/// Keys looked at in one sweep: a fraction of a second of system calls. What is left waits for the next.
const KEYS_MAX: usize = 65_536;

/// The table of what is taken, and the programs that change it for the agent.
pub struct Limits {
    taken: BpfHashMap<MapData, LimitKey, LimitState>,
    /// None where the kernel refused them.
    programs: Option<LimitPrograms>,
}

/// What the agent has done by programs, because hooks change the same words.
pub struct LimitPrograms {
    /// Removes what is idle.
    pub sweeper: OwnedFd,
    /// Adds what was counted elsewhere.
    pub settler: OwnedFd,
}

impl Limits {
    pub fn new(taken: BpfHashMap<MapData, LimitKey, LimitState>, programs: Option<LimitPrograms>) -> Self {
        Self { taken, programs }
    }

    /// Connections that count against the limit of a service as a whole: its sources, of which there may be very many, are not looked at.
    pub fn open(&self, service: u32) -> u64 {
        let key = LimitKey { source: 0, service, scope: limit_scope::SERVICE };
        let open = self.taken.get(&key, 0).map_or(0, |state| state.open);
        if open == LIMIT_DEAD { 0 } else { open }
    }

    /// Removes what is idle at `now_ns` of `CLOCK_MONOTONIC`: how many entries there were.
    pub fn sweep(&mut self, now_ns: u64) -> usize {
        let Some(LimitPrograms { sweeper, .. }) = &self.programs else { return 0 };
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

    /// Adds what hooks have counted in another table, and takes what is below zero then for zero. While hooks count below zero.
    pub fn settle(&self, carried: &[LimitCarried]) {
        let Some(LimitPrograms { settler, .. }) = &self.programs else { return };
        add(settler.as_fd(), carried);
        let below = self.taken.iter().flatten().filter(|(_, state)| (state.open as i64) < 0);
        let below: Vec<LimitCarried> =
            below.map(|(key, state)| LimitCarried { key, opened: -(state.open as i64), theoretical_ns: 0 }).collect();
        add(settler.as_fd(), &below);
        tracing::info!(changed = carried.len(), lost = below.len(), "what is taken of the limits is carried over");
    }
}

fn add(settler: BorrowedFd<'_>, carried: &[LimitCarried]) {
    for some in carried.chunks(SETTLED_MAX) {
        let mut packet = sys::LINK_HEADER.to_vec();
        for LimitCarried { key, opened, theoretical_ns } in some {
            put_key(&mut packet, key);
            packet.extend(opened.to_ne_bytes());
            packet.extend(theoretical_ns.to_ne_bytes());
        }
        match sys::run_program(settler, &packet) {
            Ok(added) if added as usize == some.len() => {}
            Ok(added) => tracing::warn!(
                lost = some.len() - added as usize,
                "what is taken of the limits finds no room; raise maps.sources"
            ),
            Err(error) => tracing::warn!(%error, "what was taken of the limits meanwhile could not be added"),
        }
    }
}

fn put_key(packet: &mut Vec<u8>, key: &LimitKey) {
    packet.extend(key.source.to_ne_bytes());
    packet.extend(key.service.to_ne_bytes());
    packet.extend(key.scope.to_ne_bytes());
}

/// The program looks again, and removes only what is idle still.
fn remove(sweeper: BorrowedFd<'_>, keys: &[LimitKey]) -> usize {
    let mut packet = sys::LINK_HEADER.to_vec();
    for key in keys {
        put_key(&mut packet, key);
    }
    match sys::run_program(sweeper, &packet) {
        Ok(removed) => removed as usize,
        Err(error) => {
            tracing::warn!(%error, "idle entries of the limits could not be removed; their table may fill");
            0
        }
    }
}
