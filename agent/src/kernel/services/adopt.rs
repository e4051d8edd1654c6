//! What an earlier agent left in the tables: its ids, which sockets still carry, and what is to be cleared away.

use std::collections::HashSet;

use aya::{
    Pod,
    maps::{HashMap as BpfHashMap, MapData},
};
use sockway_common::{
    flow::Address,
    service::{ChunkKey, EndpointKey, Service},
};

use super::Tables;
use crate::{cluster::Adopted, kernel::flows::socket_addr};

/// What was found when the tables were opened.
#[derive(Debug, Default)]
pub struct Found {
    services: Vec<(Address, u32)>,
    endpoints: Vec<(EndpointKey, Address)>,
    /// Largest generation of a slot table.
    pub generation: u32,
}

impl Found {
    /// Whether the tables were empty.
    pub fn is_nothing(&self) -> bool {
        self.services.is_empty() && self.endpoints.is_empty() && self.generation == 0
    }

    /// The ids, as the first snapshot takes them over.
    pub fn ids(&self) -> Adopted {
        let services = self.services.iter().map(|(address, id)| ((socket_addr(address), address.protocol), *id));
        let endpoints = self.endpoints.iter().map(|(key, address)| (key.service, key.endpoint, socket_addr(address)));
        Adopted::new(services, endpoints)
    }
}

impl Tables {
    pub(super) fn find(&self) -> Found {
        let services: Vec<(Address, Service)> = self.services.iter().flatten().collect();
        let generations = services.iter().map(|(_, service)| service.generation);
        Found {
            generation: generations.chain(self.slots.keys().flatten().map(|key| key.generation)).max().unwrap_or(0),
            services: services.iter().map(|(address, service)| (*address, service.id)).collect(),
            endpoints: self.endpoints.iter().flatten().map(|(key, endpoint)| (key, endpoint.address)).collect(),
        }
    }

    /// Removes what an earlier agent left and this one does not name.
    pub(super) fn clear_strangers(&mut self) {
        let dialled = self.written.iter().filter_map(|(id, written)| Some((*id, written.dialled.as_ref()?)));
        let (mut addresses, mut tables) = (HashSet::new(), HashSet::new());
        for (id, dialled) in dialled {
            addresses.insert(dialled.address);
            tables.insert((id, dialled.entry.generation));
        }
        clear(&mut self.services, |address| addresses.contains(address));
        clear(&mut self.slots, |key: &ChunkKey| tables.contains(&(key.service, key.generation)));
        let ids: HashSet<u32> = tables.iter().map(|(id, _)| *id).collect();
        clear(&mut self.cursors, |id| ids.contains(id));
        clear(&mut self.names, |id| self.written.contains_key(id));
        clear(&mut self.limit_policies, |id| self.written.get(id).is_some_and(|written| written.limits.is_some()));
        clear(&mut self.eject_policies, |id| self.written.get(id).is_some_and(|written| written.eject.is_some()));
        let endpoints: HashSet<EndpointKey> = self
            .written
            .iter()
            .flat_map(|(id, written)| written.endpoints.iter().map(|one| EndpointKey { service: *id, endpoint: one.0 }))
            .collect();
        clear(&mut self.endpoints, |key| endpoints.contains(key));
        clear(&mut self.live, |key| endpoints.contains(key));
    }
}

/// Removes the entries that are not kept.
pub(super) fn clear<K: Pod, V: Pod>(map: &mut BpfHashMap<MapData, K, V>, kept: impl Fn(&K) -> bool) {
    let stale: Vec<K> = map.keys().flatten().filter(|key| !kept(key)).collect();
    for key in stale {
        let _ = map.remove(&key);
    }
}
