//! Services, clusters and endpoints as the running agent sees them: an immutable [`Snapshot`] over node-wide shared state.
//!
//! A reload builds a whole new snapshot. What must outlive it (an endpoint's health, its in-flight count, a service's id) is shared:
//! [`Snapshot::build`] takes it over from the previous snapshot by service name and endpoint address.

mod inbound;
mod index;
mod leaving;
mod shares;

use std::{
    cell::OnceCell,
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
};

use self::index::Index;
pub use self::{
    inbound::{Inbound, InboundState, Refused},
    leaving::{Departure, Leaving},
    shares::{Published, Shares},
};
use crate::config;

/// All services at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Counts reloads that took effect, from 1.
    pub generation: u64,
    /// In the order of the configuration.
    pub services: Vec<Arc<Service>>,
    /// Endpoints that take no new connections, and may still have old ones, by service; in the order of the services' ids, because a
    /// reload may leave as many as there are, and all of them are looked for at each scrape.
    pub departures: Vec<Arc<Departure>>,
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

    /// Connections that it may have at once, if that is limited.
    pub fn open_max(&self) -> Option<u32> {
        self.config.policy.limits.as_ref()?.service.connections
    }
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
    /// Endpoints of the lowest level come first: by their priorities, and where the own zone is preferred, it before others.
    pub level: u32,
    /// Outlives a reload.
    pub state: Arc<EndpointState>,
}

impl Endpoint {
    /// As configured: 0 takes connections first.
    pub fn priority(&self) -> u32 {
        self.level / LEVELS_EACH
    }
}

/// What is known of one endpoint, node-wide.
#[derive(Debug, Default)]
pub struct EndpointState {
    /// Set when it failed; cleared by a probe that it accepts.
    down: AtomicBool,
    /// Requests (HTTP) or connections (TCP) in flight through the agent.
    pub active: AtomicU32,
    /// Requests or connections sent to it by the agent.
    pub total: AtomicU64,
    /// Connects by the agent that failed.
    pub connect_failures: AtomicU64,
    /// A [`Stage`], as a number.
    stage: AtomicU8,
    /// The service's.
    changes: Changes,
    /// What it does not take of its weight yet, in percent.
    withheld_percent: AtomicU8,
}

/// How far an endpoint is on its way out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Stage {
    /// Takes new connections.
    #[default]
    Active,
    /// Takes none; those it has may go on for a while.
    Draining,
    /// Those it still has are being ended.
    Dead,
    /// It has none any more.
    Gone,
}

impl Stage {
    /// The field's word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Dead | Self::Gone => "dead",
        }
    }

    fn of(number: u8) -> Self {
        [Self::Active, Self::Draining, Self::Dead, Self::Gone][usize::from(number)]
    }

    /// Whether the time of its connections is over: the hooks are to know.
    fn is_over(self) -> bool {
        self >= Self::Dead
    }
}

impl EndpointState {
    /// Of an endpoint that nothing is known of.
    fn of(changes: &Changes) -> Arc<Self> {
        Arc::new(Self { changes: Changes::clone(changes), ..Self::default() })
    }

    /// Whether it may be chosen.
    pub fn usable(&self) -> bool {
        !self.down.load(Ordering::Relaxed)
    }

    /// Sets whether it failed. Whether that is news.
    pub fn set_down(&self, down: bool) -> bool {
        let is_news = self.down.swap(down, Ordering::Relaxed) != down;
        if is_news {
            self.changes.count();
        }
        is_news
    }

    /// What it takes of its weight, from 1 to 100: less than all while it warms up.
    pub fn warm_percent(&self) -> u32 {
        100 - u32::from(self.withheld_percent.load(Ordering::Relaxed).min(99))
    }

    /// Sets what it takes of its weight; whether that is news.
    pub fn set_warm_percent(&self, percent: u32) -> bool {
        let withheld = 100 - percent.clamp(1, 100) as u8;
        let is_news = self.withheld_percent.swap(withheld, Ordering::Relaxed) != withheld;
        if is_news {
            self.changes.count();
        }
        is_news
    }

    /// How far it is on its way out.
    pub fn stage(&self) -> Stage {
        Stage::of(self.stage.load(Ordering::Relaxed))
    }

    /// Sets how far it is on its way out. That it begins to drain is no news: the snapshot that says so is another.
    pub fn set_stage(&self, stage: Stage) {
        let before = Stage::of(self.stage.swap(stage as u8, Ordering::Relaxed));
        if before.is_over() != stage.is_over() {
            self.changes.count();
        }
    }
}

impl Snapshot {
    /// No service yet, and ids to be taken over by the first snapshot with some.
    pub fn adopting(adopted: Adopted) -> Snapshot {
        Snapshot { next_service_id: adopted.next_service_id(), adopted, ..Snapshot::default() }
    }

    /// Builds the snapshot that follows `previous`, taking over ids and state by service name and endpoint address. Endpoints that were
    /// there and no longer are, leave. A service of which nothing is said anew is the very same.
    pub fn build(config: &config::Config, previous: &Snapshot) -> Snapshot {
        let known = Known::new(&previous.services);
        let mut next_service_id = previous.next_service_id.max(1);
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
            let (built, departure) = build_service(service, id, old, previous, config.zone.as_deref());
            services.push(Arc::new(built));
            departures.extend(departure);
        }
        let index = Index::of(&services, &previous.services, &previous.index);
        departures.extend(previous.orphans(&index));
        departures.sort_unstable_by_key(|departure| departure.service);
        let inbound = inbound::build(&config.inbound, &previous.inbound);
        Snapshot {
            generation: previous.generation + 1,
            services,
            departures,
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

    /// The same without some services: what the kernel half is told.
    pub fn without(&self, left_out: impl Fn(&Service) -> bool) -> Snapshot {
        let kept = |service: &&Arc<Service>| !left_out(service);
        Snapshot {
            generation: self.generation,
            services: self.services.iter().filter(kept).map(Arc::clone).collect(),
            departures: self.departures.clone(),
            ..Snapshot::default()
        }
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

    /// The service of this id.
    pub fn by_id(&self, id: u32) -> Option<&Arc<Service>> {
        self.index.by_id(id).map(|place| &self.services[place])
    }
}

/// The services of the snapshot before, to be found by name.
struct Known<'s> {
    services: &'s [Arc<Service>],
    by_name: OnceCell<HashMap<&'s str, &'s Arc<Service>>>,
}

impl<'s> Known<'s> {
    fn new(services: &'s [Arc<Service>]) -> Self {
        Self { services, by_name: OnceCell::new() }
    }

    /// The one that `service` follows. It mostly stands in the same place: the names are gathered only if one does not.
    fn find(&self, service: &Arc<config::Service>, place: usize) -> Option<&'s Arc<Service>> {
        let name = service.name.as_str();
        let here = self.services.get(place);
        here.filter(|old| Arc::ptr_eq(&old.config, service) || old.config.name == name).or_else(|| {
            let gather = || self.services.iter().map(|service| (service.config.name.as_str(), service)).collect();
            self.by_name.get_or_init(gather).get(name).copied()
        })
    }
}

/// Whether the same is said of a service; at once if it is the very same text's.
fn is_same(old: &Arc<config::Service>, new: &Arc<config::Service>) -> bool {
    Arc::ptr_eq(old, new) || old == new
}

/// A service that is new or was changed, and what leaves it.
fn build_service(
    config: &Arc<config::Service>,
    id: u32,
    old: Option<&Arc<Service>>,
    previous: &Snapshot,
    zone: Option<&str>,
) -> (Service, Option<Arc<Departure>>) {
    let changes = old.map(|old| old.changes.clone()).unwrap_or_default();
    let adopted = previous.adopted.endpoints(id, &changes);
    let left = previous.departure(id).into_iter().flat_map(|departure| &departure.endpoints);
    let known: Vec<&Arc<Endpoint>> = old.iter().flat_map(|old| &old.endpoints).chain(&adopted).chain(left).collect();
    let own_zone = zone.filter(|_| config.policy.prefer_zone);
    let (endpoints, draining) = build_endpoints(&config.endpoints, own_zone, &known, &changes);
    let leaving = leave(&endpoints, draining.clone(), &known);
    let departure = Departure::new(id, config, leaving, &changes);
    let cursor = old.map(|old| Arc::clone(&old.cursor)).unwrap_or_default();
    let (shares, has_shares) = (Published::default(), has_shares(config));
    let config = Arc::clone(config);
    (Service { id, endpoints, draining, shares, has_shares, cursor, config, changes }, departure)
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
    let (mut active, mut draining) = (Vec::with_capacity(configured.len()), Vec::new());
    for endpoint in configured {
        let kept = known.iter().find(|known| known.address == endpoint.address);
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

/// Every priority is two levels: the own zone, if it is preferred, and elsewhere.
const LEVELS_EACH: u32 = 2;

fn level(endpoint: &config::Endpoint, own_zone: Option<&str>) -> u32 {
    let elsewhere = own_zone.is_some() && endpoint.zone.as_deref() != own_zone;
    LEVELS_EACH * u32::from(endpoint.priority) + u32::from(elsewhere)
}

/// What leaves a service that stays: what is set to drain, and what was known and is not listed any more.
fn leave(active: &[Arc<Endpoint>], draining: Vec<Arc<Endpoint>>, known: &[&Arc<Endpoint>]) -> Vec<Arc<Endpoint>> {
    let listed = |known: &Arc<Endpoint>| active.iter().chain(&draining).any(|endpoint| endpoint.id == known.id);
    let unlisted: Vec<Arc<Endpoint>> = known
        .iter()
        .filter(|known| !listed(known) && known.state.stage() != Stage::Gone)
        .map(|known| Arc::clone(known))
        .collect();
    draining.into_iter().chain(unlisted).collect()
}

#[cfg(test)]
mod tests {
    use sockway_common::flow::{TCP, UDP};

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
            assert!(Arc::ptr_eq(service, snapshot.by_address(service.config.address, TCP).expect("by address")));
            assert!(Arc::ptr_eq(service, snapshot.by_id(service.id).expect("by id")));
        }
        assert!(snapshot.by_id(99).is_none());
        assert!(snapshot.by_address(snapshot.services[0].config.address, UDP).is_none());
    }

    #[test]
    fn ids_of_an_earlier_agent_are_taken_over_and_given_to_nobody_else() {
        let at = |text: &str| -> SocketAddr { text.parse().expect("an address") };
        let services = [((at("10.0.0.1:80"), TCP), 7), ((at("10.0.0.9:80"), TCP), 11)];
        let endpoints = [(7, 3, at("10.0.1.2:80")), (7, 5, at("10.0.1.9:80")), (12, 0, at("10.0.1.1:80"))];
        let adopting = Snapshot::adopting(Adopted::new(services, endpoints));
        let first = snapshot(&[("a", 1, &[1, 2]), ("b", 2, &[1])], &adopting);
        assert_eq!(first.services.iter().map(|service| service.id).collect::<Vec<u32>>(), [7, 13]);
        assert_eq!(first.services[0].endpoints.iter().map(|found| found.id).collect::<Vec<u32>>(), [6, 3]);
        assert_eq!(first.leaving().map(|leaving| leaving.endpoint.id).collect::<Vec<u32>>(), [5]);
    }

    #[test]
    fn what_is_listed_no_more_leaves_until_it_is_gone_and_its_id_is_not_given_again() {
        let first = snapshot(&[("a", 1, &[1, 2]), ("b", 2, &[7])], &Snapshot::default());
        let second = snapshot(&[("a", 1, &[1, 3])], &first);
        let leaving = |snapshot: &Snapshot| -> Vec<(u32, u32)> {
            snapshot.leaving().map(|leaving| (leaving.service, leaving.endpoint.id)).collect()
        };
        let (a, b) = (first.services[0].id, first.services[1].id);
        assert_eq!(leaving(&second), [(a, 1), (b, 0)]);
        assert_eq!(second.services[0].endpoints[1].id, 2);
        assert_eq!(second.endpoint(a, 1).expect("leaves").1.address, first.services[0].endpoints[1].address);
        let third = snapshot(&[("a", 1, &[1, 2])], &second);
        assert_eq!(third.services[0].endpoints[1].id, 1, "it came back as what it was");
        assert_eq!(leaving(&third), [(a, 2), (b, 0)]);
        third.leaving().for_each(|leaving| leaving.endpoint.state.set_stage(Stage::Gone));
        assert_eq!(leaving(&third.without_gone()), []);
        assert_eq!(
            leaving(&snapshot(&[("a", 1, &[1])], &third)),
            [(a, 1)],
            "of what was changed, who is gone is forgotten"
        );
    }

    #[test]
    fn a_service_of_which_nothing_is_said_anew_is_the_very_same_and_tells_what_changes_of_its_endpoints() {
        let first = snapshot(&[("a", 1, &[1, 2]), ("b", 2, &[7, 8])], &Snapshot::default());
        let second = snapshot(&[("a", 1, &[1]), ("b", 2, &[7])], &first);
        let third = snapshot(&[("a", 1, &[3]), ("b", 2, &[7])], &second);
        let (old, new) = (&second.services[1], &third.services[1]);
        assert!(Arc::ptr_eq(old, new) && !Arc::ptr_eq(&second.services[0], &third.services[0]));
        let departures = |snapshot: &Snapshot| snapshot.departure(old.id).cloned().expect("one leaves");
        assert!(Arc::ptr_eq(&departures(&second), &departures(&third)));
        let so_far = new.changes.so_far();
        assert!(new.endpoints[0].state.set_down(true) && !new.endpoints[0].state.set_down(true));
        departures(&third).endpoints[0].state.set_stage(Stage::Draining);
        assert_eq!(new.changes.so_far(), so_far + 1, "that it leaves, the snapshot says");
        departures(&third).endpoints[0].state.set_stage(Stage::Dead);
        assert_eq!(new.changes.so_far(), so_far + 2, "what leaves is the service's, too");
        assert!(Arc::ptr_eq(&second.index, &third.index), "what is dialled is the same");
        assert_eq!(third.services[0].changes.so_far(), 0);
    }

    #[test]
    fn ids_and_state_outlive_a_reload_and_ids_are_not_given_twice() {
        let first = snapshot(&[("a", 1, &[1, 2]), ("b", 2, &[1])], &Snapshot::default());
        first.services[0].endpoints[1].state.set_down(true);
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

    #[test]
    fn another_zone_changes_the_services_that_prefer_it_and_no_others() {
        let service = |name: &str, last: u8, prefer: &str| {
            format!(
                "  - {{name: {name}, address: 10.0.0.{last}:80, protocol: tcp, prefer_zone: {prefer}, endpoints: \
                 [{{address: 10.0.1.1:80, zone: east}}, {{address: 10.0.1.2:80, priority: 2}}]}}\n"
            )
        };
        let services = format!("services:\n{}{}", service("prefers", 1, "on"), service("plain", 2, "off"));
        let build = |zone: &str, previous: &Snapshot| {
            let text = format!("zone: {zone}\n{services}");
            Snapshot::build(&file::parse(&text, "F").expect("a good file"), previous)
        };
        let levels = |snapshot: &Snapshot| -> Vec<u32> {
            snapshot.services.iter().flat_map(|service| &service.endpoints).map(|endpoint| endpoint.level).collect()
        };
        let east = build("east", &Snapshot::default());
        assert_eq!(levels(&east), [0, 5, 0, 4]);
        let west = build("west", &east);
        assert_eq!(levels(&west), [1, 5, 0, 4]);
        let same = |index: usize| Arc::ptr_eq(&east.services[index], &west.services[index]);
        assert_eq!([same(0), same(1)], [false, true]);
    }
}
