//! Services, clusters and endpoints as the running agent sees them: an immutable [`Snapshot`] over node-wide shared state.
//!
//! A reload builds a whole new snapshot. What must outlive it (an endpoint's health, its in-flight count, a service's id) is shared:
//! [`Snapshot::build`] takes it over from the previous snapshot by service name and endpoint address.

pub mod adaptive;
mod build;
pub mod cache;
mod calls;
mod canary;
mod dialler;
mod endpoint;
mod filter;
mod guard;
mod inbound;
mod index;
pub mod jwks;
mod keyed;
mod leaving;
mod outlier;
pub mod pace;
mod pending;
mod phase;
mod request_limit;
mod rolling;
mod routed;
mod seen;
mod shares;
mod strategy;
#[cfg(test)]
mod tests;
mod threshold;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize},
    },
};

pub use self::{
    adaptive::{Adaptive, Measured},
    calls::{CallTally, Calls, Watching},
    canary::{CanaryState, Counts, Stage as CanaryStage, Trouble},
    dialler::Dialler,
    endpoint::{Endpoint, EndpointState, Latency, Stage},
    filter::{FilterState, Outcome},
    guard::{BUCKETS_MAX, BreakerState, Count, GuardState, Switch, Switches, Usage},
    inbound::{Inbound, InboundState, Refused},
    leaving::{Departure, Leaving},
    outlier::{Ejections, Marks, Reason, Tally},
    pace::Pace,
    pending::{Line, PendingState, Unserved, Waiting},
    phase::{BreakerPhase, BreakerWord},
    request_limit::{LimitPlace, LimitState},
    rolling::Rolling,
    routed::{MirrorState, OneWayState, RouteState},
    seen::Seen,
    shares::{Published, Shares},
    strategy::{Cause, Effort, Efforts, Place},
    threshold::{Held, Overflow, ThresholdState},
};
use self::{
    build::{Known, build_service, is_same},
    index::Index,
};
use crate::config;

/// All services at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Counts the configurations that took effect, from 1, those of the agents before this one among them.
    pub generation: u64,
    /// Counts all that were built, also those of which the configuration knows nothing: what workers keep is of one of them.
    pub edition: u64,
    /// In the order of the configuration.
    pub services: Vec<Arc<Service>>,
    /// Endpoints that take no new connections, and may still have old ones, by service; in the order of the services' ids, because a
    /// reload may leave as many as there are, and all of them are looked for at each scrape.
    pub departures: Vec<Arc<Departure>>,
    /// What services and routes are degraded by.
    pub switches: Switches,
    /// In the order of the configuration: the first that covers a port holds.
    pub inbound: Vec<Arc<Inbound>>,
    index: Arc<Index>,
    /// The one that the endpoints' levels were found by.
    zone: Option<String>,
    next_service_id: u32,
    /// Until the first is built.
    adopted: Adopted,
}

/// Ids that an earlier agent gave to services, by what programs dial, and to their endpoints. Sockets still carry them: they are not given
/// to anybody else.
#[derive(Clone, Debug, Default)]
pub struct Adopted {
    services: HashMap<(SocketAddr, u8), u32>,
    endpoints: HashMap<u32, Vec<(u32, SocketAddr)>>,
}

impl Adopted {
    /// Of services (address and IP protocol, id) and endpoints (service, id, address).
    pub fn new(
        services: impl IntoIterator<Item = ((SocketAddr, u8), u32)>,
        endpoints: impl IntoIterator<Item = (u32, u32, SocketAddr)>,
    ) -> Self {
        let mut adopted = Self { services: services.into_iter().collect(), endpoints: HashMap::new() };
        for (service, endpoint, address) in endpoints {
            adopted.endpoints.entry(service).or_default().push((endpoint, address));
        }
        adopted
    }

    fn next_service_id(&self) -> u32 {
        self.services.values().chain(self.endpoints.keys()).max().map_or(0, |id| id + 1)
    }

    fn endpoints(&self, service: u32, changes: &Changes) -> Vec<Arc<Endpoint>> {
        let endpoint = |(id, address): &(u32, SocketAddr)| {
            Arc::new(Endpoint { id: *id, address: *address, weight: 1, level: 0, state: EndpointState::of(changes) })
        };
        self.endpoints.get(&service).into_iter().flatten().map(endpoint).collect()
    }
}

/// What programs dial, with its one cluster of endpoints.
#[derive(Debug)]
pub struct Service {
    /// Stable while the service's name is; also its id in the kernel half.
    pub id: u32,
    /// What was configured.
    pub config: Arc<config::Service>,
    /// Those that take new connections, in the order of the configuration; addresses are unique.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// Those that are set to drain: what was meant for them, others take.
    pub draining: Vec<Arc<Endpoint>>,
    /// Which part each endpoint takes now.
    pub shares: Published,
    /// Whether that changes without the configuration: there are levels of endpoints, or some warm up, or down is not always down.
    pub has_shares: bool,
    /// Cursor of round robin, node-wide.
    pub cursor: Arc<AtomicUsize>,
    /// As `cursor`, of connections that are dialled before anybody knows what is asked: each takes no turn of the requests that follow.
    pub early: AtomicUsize,
    /// Of its endpoints that do worse than they should; outlives a reload.
    pub ejections: Arc<Ejections>,
    /// What is counted of its strategy; outlives a reload.
    pub efforts: Arc<Efforts>,
    /// What is counted of its routes, in the order of the configuration.
    pub routes: Vec<RouteState>,
    /// What is known of its request limits, in the order of the configuration.
    pub request_limits: Vec<Arc<LimitState>>,
    /// Its requests that wait for room, if they may; outlives a reload.
    pub pending: Option<Arc<PendingState>>,
    /// What is known of its filters, in the order of the configuration.
    pub filters: Vec<Arc<FilterState>>,
    /// What is known of how it is guarded.
    pub guard: GuardState,
    /// How long its requests take, where its timeout follows that; outlives a reload.
    pub pace: Option<Pace>,
    /// How much all of its endpoints have to do, where somebody goes by that.
    pub load: Arc<AtomicU64>,
    /// How often one of its endpoints went up or down, or came further on its way out.
    pub changes: Changes,
}

/// Counts what changed in the state that a service's endpoints share with the node, so that who looks at ten thousand services need not
/// look at each endpoint.
#[derive(Clone, Debug, Default)]
pub struct Changes(Arc<AtomicU64>);

impl Service {
    /// What programs dial: the address, and the number of the IP protocol.
    pub fn dialled(&self) -> (SocketAddr, u8) {
        (self.config.address, self.config.protocol.transport())
    }

    /// How long its requests take, and those of its routes by name, where a timeout follows that.
    pub fn paces(&self) -> impl Iterator<Item = (Option<&str>, &Pace)> {
        let routes = self.config.routes.iter().zip(&self.routes);
        let of_routes = routes.filter_map(|(route, state)| Some((Some(route.name.as_str()), state.pace.as_ref()?)));
        self.pace.iter().map(|pace| (None, pace)).chain(of_routes)
    }

    /// Connections that it may have at once, if that is limited.
    pub fn open_max(&self) -> Option<u32> {
        self.config.policy.limits.as_ref()?.service.connections
    }
}

impl Snapshot {
    /// No service yet, and ids to be taken over by the first snapshot with some. `generation` was the last of the agent before this one.
    pub fn adopting(adopted: Adopted, generation: u64) -> Snapshot {
        Snapshot { generation, next_service_id: adopted.next_service_id(), adopted, ..Snapshot::default() }
    }

    /// Builds the snapshot that follows `previous`, taking over ids and state by service name and endpoint address. Endpoints that were
    /// there and no longer are, leave. A service of which nothing is said anew is the very same.
    pub fn build(config: &config::Config, previous: &Snapshot) -> Snapshot {
        let known = Known::new(&previous.services);
        let mut next_service_id = previous.next_service_id.max(1);
        let switches = guard::switches(&config.switches, &previous.switches);
        let mut departures = Vec::new();
        let mut services = Vec::with_capacity(config.services.len());
        let zone_stays = previous.zone == config.zone;
        for (place, service) in config.services.iter().enumerate() {
            let old = known.find(service, place);
            let same_zone = zone_stays || !service.policy.prefer_zone;
            if let Some(old) = old.filter(|old| is_same(&old.config, service) && same_zone) {
                services.push(Arc::clone(old));
                departures.extend(previous.departure(old.id).cloned());
                continue;
            }
            let dialled = (service.address, service.protocol.transport());
            let adopted = previous.adopted.services.get(&dialled).copied();
            let id = old.map(|old| old.id).or(adopted).unwrap_or_else(|| {
                next_service_id += 1;
                next_service_id - 1
            });
            let (built, departure) = build_service(service, id, old, previous, (config.zone.as_deref(), &switches));
            services.push(Arc::new(built));
            departures.extend(departure);
        }
        let index = Index::of(&services, &previous.services, &previous.index);
        departures.extend(previous.orphans(&index));
        departures.sort_unstable_by_key(|departure| departure.service);
        let inbound = inbound::build(&config.inbound, &previous.inbound);
        Snapshot {
            generation: previous.generation + 1,
            edition: previous.edition + 1,
            services,
            departures,
            switches,
            inbound,
            index,
            zone: config.zone.clone(),
            next_service_id,
            adopted: Adopted::default(),
        }
    }

    /// An endpoint by the ids of its service and itself, with what was configured for the service; one that leaves too.
    pub fn endpoint(&self, service: u32, endpoint: u32) -> Option<(&config::Service, &Arc<Endpoint>)> {
        let active = self.by_id(service).and_then(|service| {
            let found = service.endpoints.iter().find(|found| found.id == endpoint)?;
            Some((&*service.config, found))
        });
        active.or_else(|| {
            let departure = self.departure(service)?;
            Some((&*departure.config, departure.endpoint(endpoint)?))
        })
    }

    /// The service that programs dial at `address` with the IP protocol of this number.
    pub fn by_address(&self, address: SocketAddr, transport: u8) -> Option<&Arc<Service>> {
        self.index.by_address(address, transport).map(|place| &self.services[place])
    }

    /// The rule for a port of a network namespace that stands at these paths, or is the host's.
    pub fn inbound(&self, paths: &[String], host: bool, port: u16) -> Option<&Arc<Inbound>> {
        self.inbound.iter().find(|rule| rule.config.covers(port) && rule.config.namespaces.captures(paths, host))
    }

    /// The services that are not the very same as in `last`.
    pub fn changed_since<'s>(&'s self, last: &Snapshot) -> impl Iterator<Item = &'s Arc<Service>> {
        self.services.iter().filter(|service| !last.by_id(service.id).is_some_and(|last| Arc::ptr_eq(last, service)))
    }

    /// The switch of this name; to be set and read at any time.
    pub fn switch(&self, name: &str) -> Option<&Arc<Switch>> {
        self.switches.get(name)
    }

    /// The service of this name.
    pub fn by_name(&self, name: &str) -> Option<&Arc<Service>> {
        self.index.by_name(name).map(|place| &self.services[place])
    }

    /// The service of this id.
    pub fn by_id(&self, id: u32) -> Option<&Arc<Service>> {
        self.index.by_id(id).map(|place| &self.services[place])
    }
}
