//! What the hooks have counted and measured, read when somebody asks.

use aya::maps::{MapData, PerCpuArray};
use sockway_common::{
    counter::{self, Counter},
    join::ShortcutStats,
    latency::EndpointLatency,
    service::{EndpointKey, EndpointStats},
};

use super::{Fill, Gate, HookTime, Kernel};
use crate::cluster::Snapshot;

impl Kernel {
    /// Every counter of the hooks, added up over the CPUs.
    pub fn counters(&self) -> Vec<(Counter, u64)> {
        counter::ALL.iter().map(|counter| (*counter, count(&self.counters, *counter))).collect()
    }

    /// What the connect hooks counted for each endpoint, added up over the CPUs.
    pub fn endpoint_stats(&self) -> Vec<(EndpointKey, EndpointStats)> {
        self.tables.stats()
    }

    /// Connections that count against each service's limit of connections at once, by its id: one look for each service that has one.
    pub fn limits_open(&self, snapshot: &Snapshot) -> Vec<(u32, u64)> {
        let limited = snapshot.services.iter().filter(|service| service.open_max().is_some());
        limited.map(|service| (service.id, self.limits.open(service.id))).collect()
    }

    /// What went by the shortcut on behalf of each service that may use it, by its id, added up over the CPUs.
    pub fn shortcut_stats(&self) -> Vec<(u32, ShortcutStats)> {
        self.shortcut_table.read()
    }

    /// What the hooks measured of the connections to each endpoint, added up over the CPUs.
    pub fn latencies(&self) -> Vec<(EndpointKey, EndpointLatency)> {
        self.latencies.read()
    }

    /// What became of the handshakes of a service, of these endpoints: those that succeeded, and those that failed.
    pub fn handshakes(&self, service: u32, endpoints: impl Iterator<Item = u32>) -> (u64, u64) {
        let keys = endpoints.map(|endpoint| EndpointKey { service, endpoint });
        keys.fold((0, 0), |(established, failed), key| {
            (established + self.latencies.established(&key), failed + self.tables.stats_of(&key).failures)
        })
    }

    /// What the hooks are told of the breaker of a service; `None`: all may pass.
    pub fn gate(&self, service: u32) -> Option<Gate> {
        self.tables.gate(service)
    }

    /// Tells the hooks what the breaker of a service does, which they go by at the next `connect()`: so many pass, until a moment of
    /// `CLOCK_MONOTONIC`; or all, `None`.
    pub fn set_gate(&mut self, service: u32, gate: Option<(Gate, u64)>) {
        let told = match gate {
            Some((gate, until_ns)) => self.tables.shut_gate(service, gate, until_ns),
            None => self.tables.open_gate(service),
        };
        if let Err(error) = told {
            tracing::warn!(%error, service, "a breaker is not enforced at connect()");
        }
    }

    /// How full the tables are.
    pub fn fill(&self) -> Vec<Fill> {
        self.fill.read(|counter| count(&self.counters, counter))
    }

    /// Has the kernel keep the hooks' run times, or no more.
    pub fn measure_hooks(&mut self, wanted: bool) {
        if let Err(error) = self.timing.measure(wanted) {
            tracing::warn!(%error, "hook_stats: the kernel does not measure its programs (CAP_SYS_ADMIN and Linux 5.8 are needed)");
        }
    }

    /// The hooks' run times; none while nobody has the kernel keep them.
    pub fn hook_times(&self) -> Vec<HookTime> {
        self.timing.read()
    }
}

/// One counter, added up over the CPUs.
pub fn count(counters: &PerCpuArray<MapData, u64>, counter: Counter) -> u64 {
    counters.get(&(counter as u32), 0).map_or(0, |values| values.iter().sum())
}
