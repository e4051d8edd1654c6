//! How a service of the next snapshot is made of what is configured and of what was there before.

use std::{
    cell::OnceCell,
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{Arc, atomic::AtomicUsize},
};

use super::{
    Changes, Departure, Endpoint, EndpointState, GuardState, Pace, Published, Service, Snapshot, Stage, Switches,
    endpoint::level, filter, guard::of_endpoints, request_limit, routed,
};
use crate::config;

/// So many endpoints are looked at one by one.
const FEW: usize = 16;

/// The services of the snapshot before, to be found by name.
pub(super) struct Known<'s> {
    services: &'s [Arc<Service>],
    by_name: OnceCell<HashMap<&'s str, &'s Arc<Service>>>,
}

impl<'s> Known<'s> {
    /// Of these.
    pub(super) fn new(services: &'s [Arc<Service>]) -> Self {
        Self { services, by_name: OnceCell::new() }
    }

    /// The one that `service` follows. It mostly stands in the same place: the names are gathered only if one does not.
    pub(super) fn find(&self, service: &Arc<config::Service>, place: usize) -> Option<&'s Arc<Service>> {
        let name = service.name.as_str();
        let here = self.services.get(place);
        here.filter(|old| Arc::ptr_eq(&old.config, service) || old.config.name == name).or_else(|| {
            let gather = || self.services.iter().map(|service| (service.config.name.as_str(), service)).collect();
            self.by_name.get_or_init(gather).get(name).copied()
        })
    }
}

/// Whether the same is said of a service; at once if it is the very same text's.
pub(super) fn is_same(old: &Arc<config::Service>, new: &Arc<config::Service>) -> bool {
    Arc::ptr_eq(old, new) || old == new
}

/// A service that is new or was changed, and what leaves it.
pub(super) fn build_service(
    config: &Arc<config::Service>,
    id: u32,
    old: Option<&Arc<Service>>,
    previous: &Snapshot,
    (zone, switches): (Option<&str>, &Switches),
) -> (Service, Option<Arc<Departure>>) {
    let changes = old.map(|old| old.changes.clone()).unwrap_or_default();
    let adopted = previous.adopted.endpoints(id, &changes);
    let left = previous.departure(id).into_iter().flat_map(|departure| &departure.endpoints);
    let known: Vec<&Arc<Endpoint>> = old.iter().flat_map(|old| &old.endpoints).chain(&adopted).chain(left).collect();
    let own_zone = zone.filter(|_| config.policy.prefer_zone);
    let (endpoints, draining) = build_endpoints(&config.endpoints, own_zone, &known, &changes);
    if config.outlier.is_some() {
        endpoints.iter().for_each(|endpoint| endpoint.state.begin_marks());
    }
    let leaving = leave(&endpoints, draining.clone(), &known);
    let departure = Departure::new(id, config, leaving, &changes);
    let ejections = old.map(|old| Arc::clone(&old.ejections)).unwrap_or_default();
    let efforts = old.map(|old| Arc::clone(&old.efforts)).unwrap_or_default();
    let cursor = old.map(|old| Arc::clone(&old.cursor)).unwrap_or_default();
    let load = old.map(|old| Arc::clone(&old.load)).unwrap_or_default();
    let before = old.map(|old| (old.config.routes.as_slice(), old.routes.as_slice()));
    let routes = routed::states(&config.routes, before);
    let limits = old.map_or(&[][..], |old| &old.request_limits);
    let request_limits = request_limit::states(&config.request_limits, limits);
    let before = old.and_then(|old| old.pending.as_ref());
    let pending = config.pending.map(|_| before.map(Arc::clone).unwrap_or_default());
    let filters = filter::states(&config.filters, old.map_or(&[][..], |old| &old.filters));
    let mut guard = GuardState::of(&config.guard, old.map(|old| &old.guard), switches);
    let breakers = old.map_or((&[][..], &[][..]), |old| (&old.endpoints, &old.guard.endpoints));
    guard.endpoints = of_endpoints(&config.guard, &endpoints, breakers);
    let pace = Pace::of(config.timing.as_ref(), old.and_then(|old| old.pace.as_ref()));
    let (shares, has_shares) = (Published::default(), has_shares(config));
    let config = Arc::clone(config);
    let service = Service {
        id,
        endpoints,
        draining,
        shares,
        has_shares,
        cursor,
        early: AtomicUsize::default(),
        load,
        ejections,
        efforts,
        routes,
        request_limits,
        pending,
        filters,
        guard,
        pace,
        config,
        changes,
    };
    (service, departure)
}

/// See [`Service::has_shares`].
fn has_shares(config: &config::Service) -> bool {
    let policy = &config.policy;
    let levels = config.endpoints.iter().any(|endpoint| endpoint.priority > 0) || policy.prefer_zone;
    levels || policy.slow_start.is_some() || policy.panic_threshold_percent > 0
}

/// The configured endpoints of one service: those that take new connections, and those that are set to drain.
fn build_endpoints(
    configured: &[config::Endpoint],
    own_zone: Option<&str>,
    known: &[&Arc<Endpoint>],
    changes: &Changes,
) -> (Vec<Arc<Endpoint>>, Vec<Arc<Endpoint>>) {
    let mut next_id = known.iter().map(|endpoint| endpoint.id + 1).max().unwrap_or(0);
    // Of those of one address the first; a few are found sooner by looking at each.
    let by_address: HashMap<SocketAddr, &Arc<Endpoint>> = match known.len() {
        ..=FEW => HashMap::new(),
        _ => known.iter().rev().map(|known| (known.address, *known)).collect(),
    };
    let find = |address: SocketAddr| match known.len() {
        ..=FEW => known.iter().copied().find(|known| known.address == address),
        _ => by_address.get(&address).copied(),
    };
    let (mut active, mut draining) = (Vec::with_capacity(configured.len()), Vec::new());
    for endpoint in configured {
        let kept = find(endpoint.address);
        let id = kept.map_or_else(
            || {
                next_id += 1;
                next_id - 1
            },
            |kept| kept.id,
        );
        let state = kept.map_or_else(|| EndpointState::of(changes), |kept| Arc::clone(&kept.state));
        let level = level(endpoint, own_zone);
        let built = Arc::new(Endpoint { id, address: endpoint.address, weight: endpoint.weight, level, state });
        if endpoint.is_draining { &mut draining } else { &mut active }.push(built);
    }
    (active, draining)
}

/// What leaves a service that stays: what is set to drain, and what was known and is not listed any more.
fn leave(active: &[Arc<Endpoint>], draining: Vec<Arc<Endpoint>>, known: &[&Arc<Endpoint>]) -> Vec<Arc<Endpoint>> {
    let ids: HashSet<u32> = match known.len() {
        ..=FEW => HashSet::new(),
        _ => active.iter().chain(&draining).map(|endpoint| endpoint.id).collect(),
    };
    let listed = |known: &Arc<Endpoint>| match ids.is_empty() {
        true => active.iter().chain(&draining).any(|endpoint| endpoint.id == known.id),
        false => ids.contains(&known.id),
    };
    let unlisted: Vec<Arc<Endpoint>> = known
        .iter()
        .filter(|known| !listed(known) && known.state.stage() != Stage::Gone)
        .map(|known| Arc::clone(known))
        .collect();
    draining.into_iter().chain(unlisted).collect()
}
