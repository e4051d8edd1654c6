//! The corridor: a connection walks through the rooms in order.

mod admit;
mod asker;
pub mod auto;
mod circuit;
mod content;
mod filtered;
mod guard;
pub mod http;
pub mod http2;
pub mod inbound;
mod joining;
mod left;
mod mirror;
mod mishap;
mod one_way;
pub mod opaque;
mod own_time;
mod pending;
mod reach;
mod routed;
mod seldom;
mod strategy;
#[cfg(test)]
mod textbook;
mod timing;
mod tls;
mod translate;
mod whole;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    pin::Pin,
    rc::Rc,
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use arc_swap::{ArcSwap, Cache};
use tokio::sync::Notify;

pub(crate) use self::routed::members;
use self::{
    admit::Gate, circuit::Circuit, filtered::Chain, guard::Guard, pending::Line, routed::Routes, seldom::Seldom,
};
use crate::{
    balance::{Balancer, Site},
    cluster::{CanaryState, Dialler, Endpoint, Reason, Service, Shares, Snapshot},
    config::{self, Balance, HttpVersion, Protocol},
    connect::{Upstreams, Visit},
    kernel::Flows,
    limit,
    record::{Counter, Slab},
    ring::{Buffers, Socket, Stream, Watch},
    route::{Table, route},
};

/// Filters by the id of their service, and the service that they were made of.
type Chains = HashMap<u32, (Arc<config::Service>, Rc<Chain>)>;

/// What one worker has at hand to serve its connections.
pub struct Hop {
    /// Deadlines, and the coarse clock.
    pub watch: Rc<Watch>,
    /// Buffers not in use.
    pub buffers: Rc<Buffers>,
    /// Connections to endpoints.
    pub upstreams: Upstreams,
    /// What the kernel half knows of connections.
    pub flows: Flows,
    /// Where outcomes are counted.
    pub slab: Arc<Slab>,
    snapshot: RefCell<Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>>,
    clusters: RefCell<Clusters>,
    sources: RefCell<HashMap<u32, Rc<RefCell<limit::Sources>>>>,
    /// Filters that are ready, for as long as their service is the same.
    chains: RefCell<Chains>,
    endpoint_news: Box<dyn Fn(EndpointNews, u32, u32)>,
    is_draining: Cell<bool>,
    drain_begins: Notify,
    chance: Cell<u64>,
    requests: Cell<usize>,
    /// That there are no descriptors left.
    no_socket: Seldom,
}

/// What a worker finds of an endpoint that the node must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointNews {
    /// It could not be reached, and was set down.
    Down,
    /// It did worse than it should, and is ejected for this.
    Ejected(Reason),
}

/// The agent's own time is taken of one request in so many: it costs looks at the clock.
const OWN_TIME_SAMPLE: usize = 16;

/// How long a draining agent waits for the first request of a connection. Who dials has something to ask, and asks at once, however slow
/// its machine; who only keeps a connection warm must not hold up the drain.
const FIRST_REQUEST: Duration = Duration::from_secs(5);

/// A service as of one snapshot, ready for choosing an endpoint.
pub struct Cluster {
    /// The service.
    pub service: Arc<Service>,
    /// Which of its endpoints are meant; `None`: all.
    members: Option<Box<[bool]>>,
    /// Whether it stands for a service that is gone.
    is_gone: bool,
    /// Cursor of round robin, node-wide.
    cursor: Arc<AtomicUsize>,
    /// Where its requests go instead.
    routes: Option<Routes>,
    /// Who counts what becomes of its requests, if they are tried out.
    canary: Option<Arc<CanaryState>>,
    /// The limits of a route that measure what becomes of its requests, if these are its.
    measured: Option<Rc<Gate>>,
    /// What its requests pass before they go to an endpoint.
    gate: Gate,
    /// What they pass before that, if anything.
    chain: Option<Rc<Chain>>,
    /// What keeps it alive when its endpoints fail.
    guard: Option<Rc<Guard>>,
    /// Where requests wait until there is room for them.
    line: Option<Rc<Line>>,
    /// The breakers of its endpoints, if they have any.
    circuits: Box<[Rc<Circuit>]>,
    /// For a connection that came in: the way to the program, which is the service's one endpoint.
    visit: Option<Visit>,
    generation: u64,
    /// Of the shares that the balancer was made of.
    shares_version: u32,
    balancer: Balancer,
}

impl Cluster {
    fn new(service: &Arc<Service>, generation: u64, routes: Option<Routes>, chain: Option<Rc<Chain>>) -> Self {
        Self { routes, chain, ..Self::of_subset(service, generation, None, &service.cursor) }
    }

    /// Some of a service's endpoints, which take turns by themselves.
    fn of_subset(
        service: &Arc<Service>,
        generation: u64,
        members: Option<Box<[bool]>>,
        cursor: &Arc<AtomicUsize>,
    ) -> Self {
        // Asked first: what is published meanwhile is noticed.
        let shares_version = service.shares.version();
        let shares = service.shares.current().unwrap_or_else(|| Arc::new(configured(service)));
        let shares = members.as_deref().map_or(shares.clone(), |members| Arc::new(only(members, &shares, service)));
        let site = |endpoint: &Arc<Endpoint>| Site { address: endpoint.address, weight: endpoint.weight };
        let sites: Vec<Site> = service.endpoints.iter().map(site).collect();
        let balancer = Balancer::new(&service.config.policy, &sites, &shares);
        Self {
            service: Arc::clone(service),
            members,
            is_gone: false,
            cursor: Arc::clone(cursor),
            routes: None,
            canary: None,
            measured: None,
            gate: Gate::of(service),
            chain: None,
            guard: Guard::of(service),
            line: Line::of(service),
            circuits: Circuit::of_endpoints(service),
            visit: None,
            generation,
            shares_version,
            balancer,
        }
    }

    /// None of its endpoints: what stands for a service that is gone.
    fn nobody(&self) -> Self {
        let members = vec![false; self.service.endpoints.len()].into();
        let none = Self::of_subset(&self.service, self.generation, Some(members), &self.cursor);
        Self { is_gone: true, ..none }
    }

    /// Whether an endpoint is meant.
    fn has(&self, endpoint: usize) -> bool {
        self.members.as_ref().is_none_or(|members| members[endpoint])
    }

    /// What its endpoints are spoken to in, by a client that speaks this.
    fn spoken_upstream(&self, client: HttpVersion) -> HttpVersion {
        let config = &self.service.config;
        config.upstream_protocol.unwrap_or(match config.protocol {
            Protocol::Http => HttpVersion::Http1,
            Protocol::Http2 => HttpVersion::Http2,
            Protocol::Auto | Protocol::Tcp | Protocol::Udp => client,
        })
    }

    /// Whether its requests pass more than limits that decide at once.
    fn is_guarded(&self) -> bool {
        self.guard.is_some() || self.line.is_some() || !self.gate.queues().is_empty()
    }

    /// Whether an endpoint may be up, or nobody is asked instead.
    fn has_hope(&self) -> bool {
        let keeps = self.guard.as_ref().is_some_and(|guard| guard.keeps());
        let is_up = |index: usize| self.has(index) && self.service.endpoints[index].state.usable();
        !keeps || (0..self.service.endpoints.len()).any(is_up)
    }

    /// Whether no endpoint is meant.
    fn is_empty(&self) -> bool {
        !(0..self.service.endpoints.len()).any(|endpoint| self.has(endpoint))
    }

    /// Whether somebody wants to know how long its endpoints take.
    fn goes_by_latency(&self) -> bool {
        self.gate.measures()
            || self.measured.is_some()
            || self.canary.as_deref().is_some_and(|canary| canary.rules.guard.latency.is_some())
    }

    /// Who dialled, if a route or a filter asks for it.
    fn dialler(&self, accepted: BorrowedFd<'_>, source: u64, now: Duration) -> Option<Box<Dialler>> {
        let of_routes = self.routes.as_ref().and_then(|routes| routes.dialler(accepted, source, now));
        match &self.chain {
            None => of_routes,
            Some(chain) => chain.introduce(of_routes, (accepted, source), now),
        }
    }

    /// Whether its endpoints take their shares as before.
    fn has_its_shares(&self) -> bool {
        self.shares_version == self.service.shares.version()
    }
}

/// What the endpoints take while there is no more to say than their weights.
fn configured(service: &Service) -> Shares {
    let alike = service.config.policy.balance == Balance::Random;
    let weights = service.endpoints.iter().map(|endpoint| if alike { 1 } else { endpoint.weight });
    Shares { weights: weights.collect(), standby: Vec::new() }
}

/// What some endpoints take: what they take of all, or if that is nothing, by their weights.
fn only(members: &[bool], shares: &Shares, service: &Service) -> Shares {
    let kept = |shares: &Shares| -> Vec<u32> {
        shares.weights.iter().zip(members).map(|(weight, is_member)| if *is_member { *weight } else { 0 }).collect()
    };
    let standby = shares.standby.iter().filter(|(index, _)| members[*index]).copied().collect();
    let weights = kept(shares);
    match weights.iter().all(|weight| *weight == 0) {
        true => Shares { weights: kept(&configured(service)), standby: Vec::new() },
        false => Shares { weights, standby },
    }
}

/// The clusters of one snapshot that this worker has needed.
#[derive(Default)]
struct Clusters {
    generation: u64,
    by_id: HashMap<u32, Rc<Cluster>>,
    /// What was prepared of routes, for as long as they are the same.
    tables: HashMap<u32, (Arc<config::Service>, Rc<Table>)>,
}

impl Clusters {
    /// Another snapshot holds.
    fn begin(&mut self, snapshot: &Snapshot) {
        self.generation = snapshot.edition;
        self.by_id.clear();
        self.tables.retain(|id, (config, _)| snapshot.by_id(*id).is_some_and(|it| Arc::ptr_eq(&it.config, config)));
    }

    fn table(&mut self, service: &Service) -> Rc<Table> {
        let make = || (Arc::clone(&service.config), Rc::new(Table::new(&service.config.routes)));
        Rc::clone(&self.tables.entry(service.id).or_insert_with(make).1)
    }
}

impl Hop {
    /// `endpoint_news` is told service and endpoint when one was found unreachable, or was ejected; `seed` is any random number.
    pub fn new(
        snapshot: Arc<ArcSwap<Snapshot>>,
        flows: Flows,
        slab: Arc<Slab>,
        endpoint_news: Box<dyn Fn(EndpointNews, u32, u32)>,
        seed: u64,
    ) -> Self {
        let (watch, buffers) = (Rc::<Watch>::default(), Rc::<Buffers>::default());
        Self {
            upstreams: Upstreams::new(Rc::clone(&watch), flows.clone(), Arc::clone(&slab), Rc::clone(&buffers)),
            watch,
            buffers,
            flows,
            slab,
            snapshot: RefCell::new(Cache::new(snapshot)),
            clusters: RefCell::default(),
            sources: RefCell::default(),
            chains: RefCell::default(),
            endpoint_news,
            is_draining: Cell::new(false),
            drain_begins: Notify::new(),
            chance: Cell::new(seed),
            requests: Cell::new(0),
            no_socket: Seldom::default(),
        }
    }

    /// No more requests after those in flight and the first of each connection; idle connections end.
    pub fn drain(&self) {
        self.is_draining.set(true);
        self.drain_begins.notify_waiters();
        self.watch.drain(FIRST_REQUEST);
        self.upstreams.close_idle();
    }

    /// Whether [`Hop::drain`] was called.
    pub fn is_draining(&self) -> bool {
        self.is_draining.get()
    }

    /// The cluster for what a connection dialled, as of now.
    fn cluster(&self, service: u32, dialled: SocketAddr) -> Option<Rc<Cluster>> {
        let mut cache = self.snapshot.borrow_mut();
        let snapshot = cache.load();
        let mut clusters = self.clusters.borrow_mut();
        if clusters.generation != snapshot.edition {
            clusters.begin(snapshot);
        }
        if let Some(cluster) = clusters.by_id.get(&service).filter(|cluster| cluster.has_its_shares()) {
            return Some(Rc::clone(cluster));
        }
        let service = route(snapshot, service, dialled)?;
        let routes = Routes::new(service, snapshot, &self.flows, || clusters.table(service));
        let cluster = Rc::new(Cluster::new(service, snapshot.edition, routes, self.chain(service)));
        clusters.by_id.insert(service.id, Rc::clone(&cluster));
        Some(cluster)
    }

    /// The cluster of a service, as of now.
    fn cluster_of(&self, service: u32) -> Option<Rc<Cluster>> {
        let address = self.snapshot.borrow_mut().load().by_id(service)?.config.address;
        self.cluster(service, address)
    }

    /// Brings a connection's cluster up to date; one whose service is gone stays as it was: connections live on.
    fn refresh(&self, cluster: &mut Rc<Cluster>) {
        if cluster.visit.is_some() {
            return;
        }
        let generation = self.snapshot.borrow_mut().load().edition;
        if (cluster.generation != generation || !cluster.has_its_shares())
            && let Some(current) = self.cluster(cluster.service.id, cluster.service.config.address)
        {
            *cluster = current;
        }
    }

    /// Whether the agent's own time is to be taken of the request that begins.
    fn samples_own_time(&self) -> bool {
        let requests = self.requests.get();
        self.requests.set(requests.wrapping_add(1));
        requests.is_multiple_of(OWN_TIME_SAMPLE)
    }

    /// 64 random bits: splitmix64 (G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number generators", 2014).
    fn chance(&self) -> u64 {
        let state = self.chance.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.chance.set(state);
        let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }
}

/// A connection that is being served, to its end.
///
/// Boxed by itself, so that what came before it, however much that needed, is gone meanwhile: of connections there may be tens of thousands.
type Serving<'h> = Pin<Box<dyn Future<Output = Counter> + 'h>>;

/// Serves one accepted connection: what did it dial, which service is that, and then as the service's protocol wants it. What is `held` for as
/// long is given here, where it takes its place once: an `async` block around this would have it, and all else, twice.
pub async fn serve<T>(hop: Rc<Hop>, socket: OwnedFd, held: T) {
    hop.slab.count(Counter::Accepted);
    let outcome = match Box::pin(accepted(&hop, socket)).await {
        Ok(serving) => serving.await,
        Err(refused) => refused,
    };
    hop.slab.count(outcome);
    drop(held);
}

async fn accepted(hop: &Rc<Hop>, socket: OwnedFd) -> Result<Serving<'_>, Counter> {
    let mut downstream = Stream::accepted(Socket::accepted(socket, &hop.watch));
    let original = hop.flows.original(downstream.socket.as_fd()).ok_or(Counter::NoOriginal)?;
    let cluster = hop.cluster(original.service, original.address).ok_or(Counter::NoService)?;
    let config = &cluster.service.config;
    let protocol = match &config.tls.terminate {
        None => config.protocol,
        Some(terminate) => tls::accept(hop, &mut downstream, terminate, config.protocol).await?,
    };
    Ok(match protocol {
        Protocol::Http => http::serve(hop, downstream, cluster, original, None),
        Protocol::Http2 => Box::pin(http2::serve(hop, downstream, cluster, original, None)),
        Protocol::Auto => auto::listen(hop, downstream, cluster, original).await?,
        // No UDP comes this way: such a service is balanced in the kernel. What a reload made of the id in between is opaque to us.
        Protocol::Tcp | Protocol::Udp => Box::pin(opaque::serve(hop, downstream, cluster, original.source)),
    })
}
