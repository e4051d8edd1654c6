//! Writes a snapshot's services into the kernel half's tables: each service's slots under a new generation, then the service entry that
//! names it, then away with what is left over. A hook sees the old table or the new, never a mixture.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use aya::{
    Ebpf,
    maps::{HashMap as BpfHashMap, MapData, MapError, PerCpuHashMap, PerCpuValues},
};
use sockway_common::{
    flow::{Address, ENDPOINT_AGENT},
    service::{self, EndpointKey, EndpointStats, Slot, SlotKey, service_flags},
    watch::Name,
};

use super::{KernelError, flows};
use crate::{
    balance::{round_robin, weighted_random},
    cluster::{Endpoint, Service, Snapshot},
    config::{Balance, Mode, Protocol},
};

/// The tables, and what stands in them.
pub struct Tables {
    services: BpfHashMap<MapData, Address, service::Service>,
    slots: BpfHashMap<MapData, SlotKey, Slot>,
    cursors: BpfHashMap<MapData, u32, u64>,
    stats: PerCpuHashMap<MapData, EndpointKey, EndpointStats>,
    names: BpfHashMap<MapData, u32, Name>,
    written: HashMap<Address, Written>,
    generation: u32,
    cpus: usize,
}

/// What was written for one service, to see whether it changed.
#[derive(Clone, Debug, PartialEq)]
struct Written {
    id: u32,
    flags: u32,
    udp_idle_ms: u32,
    slots: Vec<Slot>,
    generation: u32,
    endpoints: Vec<u32>,
}

impl Tables {
    /// Takes the tables of a loaded object. What an earlier agent left in them stays in force until the first [`Tables::apply`].
    pub fn new(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        let services = table(ebpf, "SERVICES")?;
        let generation = BpfHashMap::<_, Address, service::Service>::iter(&services)
            .flatten()
            .map(|(_, service)| service.generation)
            .max()
            .unwrap_or(0);
        Ok(Self {
            services,
            slots: table(ebpf, "SLOTS")?,
            cursors: table(ebpf, "CURSORS")?,
            stats: table(ebpf, "ENDPOINT_STATS")?,
            names: table(ebpf, "NAMES")?,
            written: HashMap::new(),
            generation,
            cpus: aya::util::nr_cpus().map_err(|(path, source)| KernelError::Cpus { path, source })?,
        })
    }

    /// Makes the tables say what `snapshot` says. `shortcut` tells for each service whether its connections may use the shortcut.
    pub fn apply(&mut self, snapshot: &Snapshot, shortcut: impl Fn(&Service) -> bool) -> Result<(), KernelError> {
        let first = self.written.is_empty();
        let mut wanted = HashSet::with_capacity(snapshot.services.len());
        for service in &snapshot.services {
            let (address, transport) = service.dialled();
            let address = flows::address(address).of(transport);
            wanted.insert(address);
            self.write(address, service, shortcut(service))?;
        }
        let gone: Vec<Address> = self.written.keys().filter(|address| !wanted.contains(*address)).copied().collect();
        for address in gone {
            let _ = self.services.remove(&address);
            if let Some(written) = self.written.remove(&address) {
                self.clear(&written, &[]);
            }
        }
        if first {
            self.clear_strangers();
        }
        Ok(())
    }

    fn write(&mut self, address: Address, service: &Service, shortcut: bool) -> Result<(), KernelError> {
        let slots = slots(service);
        let flags = flags(service, shortcut);
        let old = self.written.get(&address).cloned();
        if old.as_ref().is_some_and(|old| old.is(service, flags, &slots)) {
            return Ok(());
        }
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        let endpoints: Vec<u32> =
            service.endpoints.iter().map(|endpoint| endpoint.id).chain([ENDPOINT_AGENT]).collect();
        self.prepare(service, &endpoints)?;
        for (slot, value) in slots.iter().enumerate() {
            let key = SlotKey { service: service.id, generation, slot: slot as u32 };
            self.slots.insert(key, value.sealed(&key), 0).map_err(map_error("SLOTS"))?;
        }
        let entry = service::Service {
            id: service.id,
            generation,
            slots: slots.len() as u32,
            flags,
            udp_idle_ms: udp_idle_ms(service),
            seal: 0,
        }
        .sealed(&address);
        self.services.insert(address, entry, 0).map_err(map_error("SERVICES"))?;
        let written = Written {
            id: service.id,
            flags,
            udp_idle_ms: udp_idle_ms(service),
            slots,
            generation,
            endpoints: endpoints.clone(),
        };
        if let Some(old) = old {
            self.clear(&old, &endpoints);
        }
        self.written.insert(address, written);
        Ok(())
    }

    /// A hook allocates nothing: its counters and its cursor are there before the service is.
    fn prepare(&mut self, service: &Service, endpoints: &[u32]) -> Result<(), KernelError> {
        if service.config.balance == Balance::RoundRobin && self.cursors.get(&service.id, 0).is_err() {
            self.cursors.insert(service.id, 0, 0).map_err(map_error("CURSORS"))?;
        }
        let name = Name::new(&service.config.name);
        if self.names.get(&service.id, 0).ok() != Some(name) {
            self.names.insert(service.id, name, 0).map_err(map_error("NAMES"))?;
        }
        for endpoint in endpoints {
            let key = EndpointKey { service: service.id, endpoint: *endpoint };
            if self.stats.get(&key, 0).is_err() {
                let zero = PerCpuValues::try_from(vec![EndpointStats::default(); self.cpus])
                    .map_err(|source| map_error("ENDPOINT_STATS")(MapError::IoError(source)))?;
                self.stats.insert(key, zero, 0).map_err(map_error("ENDPOINT_STATS"))?;
            }
        }
        Ok(())
    }

    /// Removes an old table. A hook that read the old service entry just before finds no slot and lets its one connect pass; to make
    /// that all but impossible the entry was replaced before this.
    fn clear(&mut self, old: &Written, kept: &[u32]) {
        for slot in 0..old.slots.len() as u32 {
            let _ = self.slots.remove(&SlotKey { service: old.id, generation: old.generation, slot });
        }
        for endpoint in old.endpoints.iter().filter(|endpoint| !kept.contains(endpoint)) {
            let _ = self.stats.remove(&EndpointKey { service: old.id, endpoint: *endpoint });
        }
        if kept.is_empty() {
            let _ = self.cursors.remove(&old.id);
            let _ = self.names.remove(&old.id);
        }
    }

    /// Removes what an earlier agent left and this one does not name.
    fn clear_strangers(&mut self) {
        let live: HashSet<(u32, u32)> = self.written.values().map(|written| (written.id, written.generation)).collect();
        let ids: HashSet<u32> = live.iter().map(|(id, _)| *id).collect();
        let stale: Vec<Address> =
            self.services.keys().flatten().filter(|address| !self.written.contains_key(address)).collect();
        for address in stale {
            let _ = self.services.remove(&address);
        }
        let stale: Vec<SlotKey> =
            self.slots.keys().flatten().filter(|key| !live.contains(&(key.service, key.generation))).collect();
        for key in stale {
            let _ = self.slots.remove(&key);
        }
        let stale: Vec<u32> = self.cursors.keys().flatten().filter(|id| !ids.contains(id)).collect();
        for id in stale {
            let _ = self.cursors.remove(&id);
        }
        let stale: Vec<u32> = self.names.keys().flatten().filter(|id| !ids.contains(id)).collect();
        for id in stale {
            let _ = self.names.remove(&id);
        }
        let stale: Vec<EndpointKey> = self.stats.keys().flatten().filter(|key| !ids.contains(&key.service)).collect();
        for key in stale {
            let _ = self.stats.remove(&key);
        }
    }

    /// What the connect hooks counted for each endpoint, added up over the CPUs.
    pub fn stats(&self) -> Vec<(EndpointKey, EndpointStats)> {
        self.stats
            .iter()
            .flatten()
            .map(|(key, values)| {
                let mut sum = EndpointStats::default();
                values.iter().for_each(|value| sum.add(value));
                (key, sum)
            })
            .collect()
    }
}

impl Written {
    fn is(&self, service: &Service, flags: u32, slots: &[Slot]) -> bool {
        self.id == service.id && self.flags == flags && self.udp_idle_ms == udp_idle_ms(service) && self.slots == slots
    }
}

fn udp_idle_ms(service: &Service) -> u32 {
    let milliseconds = service.config.udp_idle_timeout.as_millis();
    if service.config.protocol == Protocol::Udp { u32::try_from(milliseconds).unwrap_or(u32::MAX) } else { 0 }
}

fn flags(service: &Service, shortcut: bool) -> u32 {
    let mut flags = 0;
    if service.config.mode == Mode::Agent {
        flags |= service_flags::AGENT;
    }
    if service.config.balance == Balance::RoundRobin {
        flags |= service_flags::IN_TURN;
    }
    if shortcut {
        flags |= service_flags::SHORTCUT;
    }
    if flows::is_opaque(service) {
        flags |= service_flags::OPAQUE;
    }
    flags
}

/// The slot table of a service: its usable endpoints, or all of them when none is (a wrong verdict must not cut everything off). A hook
/// can point a socket only at an address of its own family, so endpoints of the other one are for the agent alone.
fn slots(service: &Service) -> Vec<Slot> {
    let reachable = || {
        let same_family = |endpoint: &&Arc<Endpoint>| endpoint.address.is_ipv4() == service.config.address.is_ipv4();
        service.endpoints.iter().filter(same_family).map(AsRef::as_ref)
    };
    let usable: Vec<&Endpoint> = reachable().filter(|endpoint| endpoint.state.usable()).collect();
    let chosen = if usable.is_empty() { reachable().collect() } else { usable };
    let weights: Vec<u32> = chosen.iter().map(|endpoint| endpoint.weight).collect();
    let transport = service.config.protocol.transport();
    let to = |address| flows::address(address).of(transport);
    let slot = |first: &Endpoint, second: &Endpoint, threshold| Slot {
        first: to(first.address),
        first_id: first.id,
        second: to(second.address),
        second_id: second.id,
        threshold,
        seal: 0,
    };
    match service.config.balance {
        Balance::RoundRobin => round_robin::cycle(&weights)
            .into_iter()
            .map(|index| slot(chosen[index as usize], chosen[index as usize], u32::MAX))
            .collect(),
        Balance::WeightedRandom => weighted_random::columns(&weights)
            .iter()
            .zip(&chosen)
            .map(|(column, own)| slot(own, chosen[column.alias as usize], column.threshold))
            .collect(),
    }
}

/// Takes a map out of a loaded object, typed.
pub fn table<M>(ebpf: &mut Ebpf, name: &'static str) -> Result<M, KernelError>
where
    M: TryFrom<aya::maps::Map, Error = MapError>,
{
    let map = ebpf.take_map(name).ok_or(KernelError::NoMap { name })?;
    M::try_from(map).map_err(map_error(name))
}

/// An error of a map, by its name.
pub fn map_error(name: &'static str) -> impl Fn(MapError) -> KernelError {
    move |source| KernelError::Map { name, source: Box::new(source) }
}
