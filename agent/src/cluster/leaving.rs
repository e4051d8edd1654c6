//! Endpoints on their way out, kept by service: a reload that changes one service shares those of all others with the snapshot before.

use std::sync::{Arc, atomic::Ordering};

use super::{Changes, Endpoint, Snapshot, Stage, index::Index};
use crate::config;

/// What leaves one service: endpoints that are set to drain, or that the configuration no longer lists (or their service).
#[derive(Debug)]
pub struct Departure {
    /// The service's id.
    pub service: u32,
    /// What was configured for the service when it last was.
    pub config: Arc<config::Service>,
    /// In the order of their ids; at least one.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// The service's.
    pub changes: Changes,
}

/// One endpoint that takes no new connections, and may still have old ones. Its id stays its own meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct Leaving<'s> {
    /// The service's id.
    pub service: u32,
    /// What was configured for the service when it last was.
    pub config: &'s Arc<config::Service>,
    /// The endpoint.
    pub endpoint: &'s Arc<Endpoint>,
}

impl Departure {
    /// `None` when nothing leaves.
    pub(super) fn new(
        service: u32,
        config: &Arc<config::Service>,
        mut endpoints: Vec<Arc<Endpoint>>,
        changes: &Changes,
    ) -> Option<Arc<Self>> {
        endpoints.sort_unstable_by_key(|endpoint| endpoint.id);
        let departure = Self { service, config: Arc::clone(config), endpoints, changes: Changes::clone(changes) };
        (!departure.endpoints.is_empty()).then(|| Arc::new(departure))
    }

    /// The endpoints, each by itself.
    pub fn leaving(&self) -> impl Iterator<Item = Leaving<'_>> {
        let leaving = |endpoint| Leaving { service: self.service, config: &self.config, endpoint };
        self.endpoints.iter().map(leaving)
    }

    /// The endpoint of this id.
    pub fn endpoint(&self, id: u32) -> Option<&Arc<Endpoint>> {
        let found = self.endpoints.binary_search_by_key(&id, |endpoint| endpoint.id).ok()?;
        Some(&self.endpoints[found])
    }

    /// The same without the endpoints that have left for good; `None` when that is all of them.
    pub(super) fn without_gone(self: &Arc<Self>) -> Option<Arc<Self>> {
        if self.endpoints.iter().all(is_there) {
            return Some(Arc::clone(self));
        }
        let there = self.endpoints.iter().filter(|endpoint| is_there(endpoint)).map(Arc::clone).collect();
        Self::new(self.service, &self.config, there, &self.changes)
    }
}

impl Snapshot {
    /// Every endpoint that leaves, in the order of the ids of its service and itself.
    pub fn leaving(&self) -> impl Iterator<Item = Leaving<'_>> {
        self.departures.iter().flat_map(|departure| departure.leaving())
    }

    /// What leaves the service of this id.
    pub fn departure(&self, service: u32) -> Option<&Arc<Departure>> {
        let found = self.departures.binary_search_by_key(&service, |departure| departure.service).ok()?;
        Some(&self.departures[found])
    }

    /// The same without the endpoints that have left for good.
    pub fn without_gone(&self) -> Snapshot {
        let departures = self.departures.iter().filter_map(Departure::without_gone).collect();
        Snapshot { departures, ..self.clone() }
    }

    /// What leaves with, and has left, the services that are not in the index of the snapshot that follows.
    pub(super) fn orphans(&self, next: &Arc<Index>) -> Vec<Arc<Departure>> {
        let is_kept = |service: u32| next.by_id(service).is_some();
        let services = if Arc::ptr_eq(next, &self.index) { &[][..] } else { &self.services[..] };
        let removed = services.iter().filter(|service| !is_kept(service.id)).filter_map(|service| {
            let left = self.departure(service.id).into_iter().flat_map(|departure| &departure.endpoints);
            let endpoints = service.endpoints.iter().chain(left).filter(|endpoint| is_there(endpoint));
            Departure::new(service.id, &service.config, endpoints.map(Arc::clone).collect(), &service.changes)
        });
        let is_orphan = |service: u32| !is_kept(service) && self.by_id(service).is_none();
        let before = self.departures.iter().filter(|departure| is_orphan(departure.service));
        removed.chain(before.filter_map(Departure::without_gone)).collect()
    }
}

/// Whether connections to it may be left.
fn is_there(endpoint: &Arc<Endpoint>) -> bool {
    endpoint.state.stage() != Stage::Gone
}

impl Changes {
    /// One more.
    pub(super) fn count(&self) {
        self.0.fetch_add(1, Ordering::Release);
    }

    /// How many there were: what was read after this number is no older than it.
    pub fn so_far(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}
