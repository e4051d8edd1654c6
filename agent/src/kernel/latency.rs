//! What the hooks measured of the connections to each endpoint.

use aya::{
    Ebpf,
    maps::{MapData, PerCpuHashMap},
};
use sockway_common::{latency::EndpointLatency, service::EndpointKey};

use super::{KernelError, services};

/// The table of latencies, whose entries the hooks make.
pub struct Latencies(PerCpuHashMap<MapData, EndpointKey, EndpointLatency>);

impl Latencies {
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        services::table(ebpf, "LATENCIES").map(Self)
    }

    /// All of it, added up over the CPUs.
    pub fn read(&self) -> Vec<(EndpointKey, EndpointLatency)> {
        let sum = |(key, values): (EndpointKey, aya::maps::PerCpuValues<EndpointLatency>)| {
            let mut sum = EndpointLatency::ZERO;
            values.iter().for_each(|value| sum.add(value));
            (key, sum)
        };
        self.0.iter().flatten().map(sum).collect()
    }

    /// Handshakes with an endpoint that succeeded.
    pub fn established(&self, key: &EndpointKey) -> u64 {
        self.0.get(key, 0).map_or(0, |values| values.iter().map(|value| value.connect.total()).sum())
    }

    /// Removes what is measured of endpoints that are no more.
    pub fn keep(&mut self, is_there: impl Fn(&EndpointKey) -> bool) {
        let gone: Vec<EndpointKey> = self.0.keys().flatten().filter(|key| !is_there(key)).collect();
        for key in gone {
            let _ = self.0.remove(&key);
        }
    }
}
