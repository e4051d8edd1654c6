//! Services, clusters and endpoints as the running agent sees them: an immutable [`Snapshot`] over node-wide shared state.
//!
//! A reload builds a whole new snapshot. What must outlive it (an endpoint's health, its in-flight count, a service's id) is shared:
//! [`Snapshot::build`] takes it over from the previous snapshot by service name and endpoint address.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
};

use crate::config;

/// All services at one moment.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Counts reloads that took effect, from 1.
    pub generation: u64,
    /// In the order of the configuration.
    pub services: Vec<Arc<Service>>,
    by_address: HashMap<SocketAddr, Arc<Service>>,
    by_id: HashMap<u32, Arc<Service>>,
    next_service_id: u32,
}

/// What programs dial, with its one cluster of endpoints.
#[derive(Debug)]
pub struct Service {
    /// Stable while the service's name is; also its id in the kernel half.
    pub id: u32,
    /// What was configured.
    pub config: config::Service,
    /// In the order of the configuration; addresses are unique.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// Cursor of round robin, node-wide.
    pub cursor: Arc<AtomicUsize>,
}

/// One address of a cluster, with the state that every worker and the kernel half share.
#[derive(Debug)]
pub struct Endpoint {
    /// Stable while the service has this address; also its id in the kernel half.
    pub id: u32,
    /// Where it listens.
    pub address: SocketAddr,
    /// At least 1.
    pub weight: u32,
    /// Outlives a reload.
    pub state: Arc<EndpointState>,
}

/// What is known of one endpoint, node-wide.
#[derive(Debug, Default)]
pub struct EndpointState {
    /// Set when it failed; cleared by a probe that it accepts.
    pub down: AtomicBool,
    /// Requests (HTTP) or connections (TCP) in flight through the agent.
    pub active: AtomicU32,
    /// Requests or connections sent to it by the agent.
    pub total: AtomicU64,
    /// Connects by the agent that failed.
    pub connect_failures: AtomicU64,
}

impl EndpointState {
    /// Whether it may be chosen.
    pub fn usable(&self) -> bool {
        !self.down.load(Ordering::Relaxed)
    }
}

impl Snapshot {
    /// Builds the snapshot that follows `previous`, taking over ids and state by service name and endpoint address.
    pub fn build(config: &config::Config, previous: &Snapshot) -> Snapshot {
        let old: HashMap<&str, &Arc<Service>> =
            previous.services.iter().map(|service| (service.config.name.as_str(), service)).collect();
        let mut next_service_id = previous.next_service_id.max(1);
        let services: Vec<Arc<Service>> = config
            .services
            .iter()
            .map(|service| {
                let old = old.get(service.name.as_str()).copied();
                let id = old.map_or_else(
                    || {
                        next_service_id += 1;
                        next_service_id - 1
                    },
                    |old| old.id,
                );
                Arc::new(Service {
                    id,
                    endpoints: build_endpoints(&service.endpoints, old.map_or(&[], |old| &old.endpoints)),
                    cursor: old.map(|old| Arc::clone(&old.cursor)).unwrap_or_default(),
                    config: service.clone(),
                })
            })
            .collect();
        let by_address = services.iter().map(|service| (service.config.address, Arc::clone(service))).collect();
        let by_id = services.iter().map(|service| (service.id, Arc::clone(service))).collect();
        Snapshot { generation: previous.generation + 1, services, by_address, by_id, next_service_id }
    }

    /// The service that programs dial at `address`.
    pub fn by_address(&self, address: SocketAddr) -> Option<&Arc<Service>> {
        self.by_address.get(&address)
    }

    /// The service of this id.
    pub fn by_id(&self, id: u32) -> Option<&Arc<Service>> {
        self.by_id.get(&id)
    }
}

fn build_endpoints(configured: &[config::Endpoint], old: &[Arc<Endpoint>]) -> Vec<Arc<Endpoint>> {
    let mut next_id = old.iter().map(|endpoint| endpoint.id + 1).max().unwrap_or(0);
    configured
        .iter()
        .map(|endpoint| {
            let kept = old.iter().find(|old| old.address == endpoint.address);
            let id = kept.map_or_else(
                || {
                    next_id += 1;
                    next_id - 1
                },
                |kept| kept.id,
            );
            let state = kept.map(|kept| Arc::clone(&kept.state)).unwrap_or_default();
            Arc::new(Endpoint { id, address: endpoint.address, weight: endpoint.weight, state })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file;

    fn snapshot(services: &[(&str, u8, &[u8])], previous: &Snapshot) -> Snapshot {
        let line = |(name, address, endpoints): &(&str, u8, &[u8])| {
            let endpoints: Vec<String> = endpoints.iter().map(|last| format!("10.0.1.{last}:80")).collect();
            let endpoints = endpoints.join(", ");
            format!("  - {{name: {name}, address: 10.0.0.{address}:80, protocol: tcp, endpoints: [{endpoints}]}}\n")
        };
        let text: String = services.iter().map(line).collect();
        let config = file::parse(&format!("services:\n{text}"), "F").expect("a good file");
        Snapshot::build(&config, previous)
    }

    #[test]
    fn a_service_is_found_by_address_and_by_id() {
        let snapshot = snapshot(&[("a", 1, &[1]), ("b", 2, &[2])], &Snapshot::default());
        for service in &snapshot.services {
            assert!(Arc::ptr_eq(service, snapshot.by_address(service.config.address).expect("by address")));
            assert!(Arc::ptr_eq(service, snapshot.by_id(service.id).expect("by id")));
        }
        assert!(snapshot.by_id(99).is_none());
    }

    #[test]
    fn ids_and_state_outlive_a_reload_and_ids_are_not_given_twice() {
        let first = snapshot(&[("a", 1, &[1, 2]), ("b", 2, &[1])], &Snapshot::default());
        first.services[0].endpoints[1].state.down.store(true, Ordering::Relaxed);
        let second = snapshot(&[("c", 3, &[1]), ("a", 4, &[3, 2])], &first);
        let (old, new) = (&first.services[0], &second.services[1]);
        assert_eq!((old.id, second.generation), (new.id, first.generation + 1));
        assert_eq!(old.endpoints[1].id, new.endpoints[1].id);
        assert!(!new.endpoints[1].state.usable() && new.endpoints[0].state.usable());
        assert!(!old.endpoints.iter().any(|endpoint| endpoint.id == new.endpoints[0].id));
        assert!(!first.services.iter().any(|service| service.id == second.services[0].id));
        let third = snapshot(&[("b", 2, &[1])], &second);
        assert!(third.services[0].id > second.services[0].id, "b came back as a new service");
    }
}
