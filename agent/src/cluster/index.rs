//! Where in a snapshot a service stands, by what programs dial, by its id and by its name. A reload that neither adds nor removes a service, nor gives
//! one another address, shares the index with the snapshot before.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use super::Service;

/// The places of services, found by address and IP protocol, by id, or by name.
#[derive(Debug, Default)]
pub(super) struct Index {
    by_address: HashMap<(SocketAddr, u8), usize>,
    by_id: HashMap<u32, usize>,
    by_name: HashMap<String, usize>,
}

impl Index {
    /// Of these services; the one of the services `before` if it is the same.
    pub(super) fn of(services: &[Arc<Service>], before: &[Arc<Service>], index: &Arc<Self>) -> Arc<Self> {
        let same = |(new, old): (&Arc<Service>, &Arc<Service>)| {
            Arc::ptr_eq(new, old) || (new.id, new.dialled()) == (old.id, old.dialled())
        };
        if services.len() == before.len() && services.iter().zip(before).all(same) {
            return Arc::clone(index);
        }
        let placed = || services.iter().enumerate();
        Arc::new(Self {
            by_address: placed().map(|(place, service)| (service.dialled(), place)).collect(),
            by_name: placed().map(|(place, service)| (service.config.name.clone(), place)).collect(),
            by_id: placed().map(|(place, service)| (service.id, place)).collect(),
        })
    }

    pub(super) fn by_address(&self, address: SocketAddr, transport: u8) -> Option<usize> {
        self.by_address.get(&(address, transport)).copied()
    }

    pub(super) fn by_name(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    pub(super) fn by_id(&self, id: u32) -> Option<usize> {
        self.by_id.get(&id).copied()
    }
}
