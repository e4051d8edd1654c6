//! Balance and connect, until an endpoint answers: one that cannot be reached is set down, told of, and another is tried before the
//! client sees anything.

mod asked;
mod lease;
mod picked;
mod timed;

use std::{
    cell::Cell,
    io,
    rc::Rc,
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use smallvec::SmallVec;

use self::{
    lease::{Chosen, Lease},
    timed::Waited,
};
pub use self::{
    lease::{Shared, Upstream, Who},
    timed::Heard,
};
use super::{Cluster, EndpointNews, Hop};
use crate::{
    balance::{Ask, peak_ewma::Nanos},
    cluster::{Endpoint, Reason, Seen, Service, Stage},
    config::{Protocol, threshold::Threshold, tls::Within},
    connect::{ConnectError, Seat, Visit},
    health::outlier::{Court, has_failed},
    kernel::monotonic_ns,
    record::Counter,
    ring::{Buf, HandshakeError, Io, Stream},
};

/// Most endpoints tried for one request. With the default connect timeout of 1 s, a client waits no longer than it would by itself.
const TRIES_MAX: usize = 8;

/// Why no endpoint could be reached.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Unreached {
    /// Every one tried refused or was unreachable, or there is none.
    #[error("no endpoint accepts connections")]
    NoEndpoint,
    /// There is none to try.
    #[error("no endpoint has the labels that the route asks for")]
    NoSubset,
    /// A reload took the service away that the route leads to.
    #[error("the service that the route leads to is gone")]
    Gone,
    /// The last one tried did not accept in time.
    #[error("no endpoint accepted a connection within {0:?}")]
    Late(Duration),
    /// The last one tried accepted, and then did not begin with HTTP/2 in time.
    #[error("the endpoint said nothing of HTTP/2 within {0:?}")]
    Mute(Duration),
    /// The last one tried accepted, and then no TLS connection came about.
    #[error("TLS with the endpoint failed: {0}")]
    Tls(HandshakeError),
    /// The last one tried accepted, and does not speak HTTP/2.
    #[error("the endpoint does not speak HTTP/2")]
    NotHttp2,
    /// Their breakers are open.
    #[error("the breakers of all endpoints are open")]
    CircuitOpen,
    /// The service has as many connections, or requests that wait for one, as it may have.
    #[error("the service is overloaded: {}", .0.word())]
    Overflow(Threshold),
    /// Not the endpoints' fault.
    #[error("the agent is out of sockets")]
    NoSocket,
}

/// The endpoints that were tried for one request, and for whom.
pub struct Tried {
    indexes: SmallVec<[usize; 4]>,
    source: u64,
    key: Option<u64>,
    cost: u32,
    /// Whether nobody knows yet what is asked.
    is_early: bool,
    /// See [`Asker::is_untold`].
    is_untold: bool,
    /// The one that is to be tried, if only one is.
    only: Option<usize>,
    /// Which attempt at the request this is.
    pub turn: Turn,
}

/// Which of several attempts at a request one is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Turn {
    /// From 1, if the endpoint is told; else 0.
    pub nth: u32,
    /// How long its answer may take to begin; `None`: as long as the service allows.
    pub patience: Option<Duration>,
}

impl Tried {
    /// None yet.
    pub fn by(source: u64) -> Self {
        Self {
            indexes: SmallVec::new(),
            source,
            key: None,
            cost: 1,
            is_early: false,
            is_untold: false,
            only: None,
            turn: Turn::default(),
        }
    }

    /// None yet, for a connection that is dialled before anybody knows what is asked.
    pub fn early(source: u64) -> Self {
        Self { is_early: true, ..Self::by(source) }
    }

    /// Counts the endpoint of a connection that was made, and was no good, among them.
    pub fn add(&mut self, upstream: &Upstream) {
        self.indexes.push(upstream.lease.who.endpoint);
    }

    /// As [`Tried::add`].
    pub fn add_shared(&mut self, upstream: &Shared) {
        self.indexes.push(upstream.lease.who.endpoint);
    }
}

/// What a policy may ask.
struct World<'w> {
    hop: &'w Hop,
    cluster: &'w Cluster,
    tried: &'w Tried,
    /// The clock is looked at by who goes by it, and once.
    now: Cell<Option<Nanos>>,
}

impl Ask for World<'_> {
    fn turn(&self) -> usize {
        let cursor = if self.tried.is_early { &self.cluster.service.early } else { &*self.cluster.cursor };
        cursor.fetch_add(1, Relaxed)
    }

    fn chance(&self) -> u64 {
        self.hop.chance()
    }

    fn load(&self, index: usize) -> u64 {
        self.cluster.service.endpoints[index].state.load()
    }

    fn load_of_all(&self) -> u64 {
        self.cluster.service.load.load(Relaxed)
    }

    fn cost(&self, index: usize) -> f64 {
        let now = self.now.get().unwrap_or_else(monotonic_ns);
        self.now.set(Some(now));
        timed::cost(
            &self.cluster.service.endpoints[index].state,
            &self.cluster.service.config.policy.tuning.peak_ewma,
            now,
        )
    }

    fn source(&self) -> u64 {
        self.tried.source
    }

    fn key(&self) -> Option<u64> {
        self.tried.key
    }
}

impl Hop {
    /// Everything that is told of attempts comes by here.
    fn report(&self, cluster: &Cluster, endpoint: usize, seen: Seen, waited: Option<&Waited>) {
        let service = &cluster.service;
        let found = &service.endpoints[endpoint];
        tracing::trace!(service = service.config.name, endpoint = %found.address, ?seen, "attempted");
        if let Some(canary) = &cluster.canary {
            let is_slow = canary.rules.guard.latency.zip(waited).is_some_and(|(limit, waited)| waited.took() > limit);
            canary.count(has_failed(seen), is_slow);
        }
        for gate in cluster.measured.as_deref().into_iter().chain([&cluster.gate]).filter(|gate| gate.measures()) {
            // How soon somebody fails says nothing of how much he gets done; that he is late does.
            let says = !has_failed(seen) || seen == Seen::Late;
            let sent = waited.filter(|_| says).map(|waited| (waited.age(), waited.took()));
            gate.seen(sent, !has_failed(seen), || self.chance());
        }
        if let (Some(rules), Some(marks)) = (&service.config.outlier, found.state.marks()) {
            let court = Court { rules, ejections: &service.ejections, hosts: service.endpoints.len() };
            let reasons = court.count(marks, seen);
            reasons.into_iter().flatten().for_each(|reason| self.eject(court, service, found, reason));
        }
    }

    /// It did one too many of something.
    fn eject(&self, court: Court<'_>, service: &Service, endpoint: &Endpoint, reason: Reason) {
        let now_ms = monotonic_ns() / 1_000_000;
        if let Some(ejected) = court.eject(&endpoint.state, reason, now_ms, self.chance()) {
            tracing::info!(
                service = service.config.name,
                endpoint = %endpoint.address,
                reason = reason.word(),
                period = ?ejected.period,
                "endpoint is ejected"
            );
            (self.endpoint_news)(EndpointNews::Ejected(reason), service.id, endpoint.id);
        }
    }

    /// A connection to an endpoint that was not tried before: a used one if there is, unless it must be `fresh`.
    pub(super) async fn reach(
        &self,
        cluster: &Rc<Cluster>,
        tried: &mut Tried,
        fresh: bool,
    ) -> Result<Upstream, Unreached> {
        if let Some(visit) = &cluster.visit {
            // Boxed, here and below: a connection is mostly there, and what making one needs is not to be carried about by every request.
            return Box::pin(self.reach_inside(cluster, visit, tried, fresh)).await;
        }
        let mut why = Unreached::NoEndpoint;
        let within = Within::of(&cluster.service.config);
        while let Some((chosen, ticket)) = self.draw(cluster, tried) {
            let endpoint = &cluster.service.endpoints[chosen];
            let used = if fresh { None } else { self.upstreams.reuse(&cluster.service, endpoint, tried.is_untold) };
            if let Some(stream) = used {
                self.slab.count(Counter::UpstreamReused);
                return Ok(lease(cluster, (chosen, ticket), stream, true, tried));
            }
            match Box::pin(self.upstreams.dial(&cluster.service, endpoint, within)).await {
                Ok(stream) => {
                    self.slab.count(Counter::UpstreamFresh);
                    return Ok(lease(cluster, (chosen, ticket), stream, false, tried));
                }
                Err(error) => why = self.missed(cluster, (chosen, ticket), error, tried, why)?,
            }
        }
        Err(none(cluster, why))
    }

    /// A place on a connection to an endpoint that was not tried before.
    pub(super) async fn reach_shared(&self, cluster: &Rc<Cluster>, tried: &mut Tried) -> Result<Shared, Unreached> {
        if let Some(visit) = &cluster.visit {
            return Box::pin(self.reach_shared_inside(cluster, visit, tried)).await;
        }
        let mut why = Unreached::NoEndpoint;
        while let Some((chosen, ticket)) = self.draw(cluster, tried) {
            let endpoint = &cluster.service.endpoints[chosen];
            match self.upstreams.seat(&cluster.service, endpoint, &self.buffers).await {
                Ok(seat) => return Ok(self.seated(cluster, (chosen, ticket), seat, tried)),
                Err(error) => why = self.missed(cluster, (chosen, ticket), error, tried, why)?,
            }
        }
        Err(none(cluster, why))
    }

    /// An endpoint could not be reached: it is set down, and counted among those that were tried. Gives what to say if there is no other.
    fn missed(
        &self,
        cluster: &Cluster,
        (chosen, ticket): Chosen,
        error: ConnectError,
        tried: &mut Tried,
        mut why: Unreached,
    ) -> Result<Unreached, Unreached> {
        if let ConnectError::Ours(error) = error {
            return Err(self.no_socket(&error));
        }
        if let ConnectError::Overflow(of) = error {
            return Err(Unreached::Overflow(of));
        }
        let service = &cluster.service;
        let name = &service.config.name;
        tried.indexes.push(chosen);
        let is_late = matches!(error, ConnectError::Late(_) | ConnectError::Mute(_));
        let seen = if is_late { Seen::ConnectLate } else { Seen::NotConnected };
        if let Some(ticket) = &ticket {
            ticket.saw(seen);
        }
        self.report(cluster, chosen, seen, None);
        match &error {
            ConnectError::Late(timeout) => why = Unreached::Late(*timeout),
            ConnectError::Mute(timeout) => why = Unreached::Mute(*timeout),
            ConnectError::NotHttp2 => why = Unreached::NotHttp2,
            ConnectError::Tls(error) => why = Unreached::Tls(error.clone()),
            ConnectError::Failed(_) | ConnectError::Ours(_) | ConnectError::Overflow(_) => {}
        }
        if is_its_fault(cluster, &error) {
            self.set_down(name, service.id, &service.endpoints[chosen], &error);
        } else {
            tracing::debug!(service = name, %error, "an endpoint accepted, and no more");
        }
        Ok(why)
    }

    /// A connection to the program that a client has dialled. There is no other to try, and none to set down: what it refuses now it may
    /// take the next time.
    async fn reach_inside(
        &self,
        cluster: &Rc<Cluster>,
        visit: &Visit,
        tried: &mut Tried,
        fresh: bool,
    ) -> Result<Upstream, Unreached> {
        if !tried.indexes.is_empty() {
            return Err(Unreached::NoEndpoint);
        }
        if !fresh && let Some(stream) = visit.reuse(tried.is_untold) {
            self.slab.count(Counter::UpstreamReused);
            return Ok(lease(cluster, (0, None), stream, true, tried));
        }
        match self.upstreams.dial_inside(&cluster.service, visit).await {
            Ok(stream) => {
                self.slab.count(Counter::UpstreamFresh);
                Ok(lease(cluster, (0, None), stream, false, tried))
            }
            Err(error) => Err(self.missed_inside(cluster, error, tried)),
        }
    }

    /// As [`Hop::reach_inside`], for a place on a connection.
    async fn reach_shared_inside(
        &self,
        cluster: &Rc<Cluster>,
        visit: &Visit,
        tried: &mut Tried,
    ) -> Result<Shared, Unreached> {
        if !tried.indexes.is_empty() {
            return Err(Unreached::NoEndpoint);
        }
        match self.upstreams.seat_inside(&cluster.service, visit, &self.buffers).await {
            Ok(seat) => Ok(self.seated(cluster, (0, None), seat, tried)),
            Err(error) => Err(self.missed_inside(cluster, error, tried)),
        }
    }

    fn no_socket(&self, error: &io::Error) -> Unreached {
        if self.no_socket.is_due(self.watch.now()) {
            tracing::error!(%error, "no socket for a connection to an endpoint");
        }
        Unreached::NoSocket
    }

    fn missed_inside(&self, cluster: &Cluster, error: ConnectError, tried: &mut Tried) -> Unreached {
        let why = match error {
            ConnectError::Ours(error) => {
                return self.no_socket(&error);
            }
            ConnectError::Late(timeout) | ConnectError::Mute(timeout) => Unreached::Late(timeout),
            ConnectError::NotHttp2 => Unreached::NotHttp2,
            ConnectError::Overflow(of) => Unreached::Overflow(of),
            ConnectError::Failed(_) | ConnectError::Tls(_) => Unreached::NoEndpoint,
        };
        let seen = if matches!(why, Unreached::Late(_)) { Seen::ConnectLate } else { Seen::NotConnected };
        self.report(cluster, 0, seen, None);
        cluster.service.endpoints[0].state.connect_failures.fetch_add(1, Relaxed);
        tried.indexes.push(0);
        why
    }

    fn seated(&self, cluster: &Rc<Cluster>, chosen: Chosen, seat: Seat, tried: &Tried) -> Shared {
        self.slab.count(if seat.reused { Counter::UpstreamReused } else { Counter::UpstreamFresh });
        Shared { seat, lease: Lease::take(cluster, chosen, tried.cost) }
    }

    /// The next endpoint to try, with leave of its breaker.
    fn draw(&self, cluster: &Cluster, tried: &mut Tried) -> Option<Chosen> {
        loop {
            let chosen = self.choose(cluster, tried)?;
            let Some(circuit) = cluster.circuits.get(chosen) else { return Some((chosen, None)) };
            match circuit.ask(Instant::now()) {
                Some(ticket) => return Some((chosen, Some(Rc::new(ticket)))),
                // Somebody was faster, and took the last try.
                None => tried.indexes.push(chosen),
            }
        }
    }

    /// The next endpoint to try.
    fn choose(&self, cluster: &Cluster, tried: &Tried) -> Option<usize> {
        if tried.indexes.len() >= TRIES_MAX {
            return None;
        }
        if tried.only.is_some() {
            return tried.only.filter(|only| !tried.indexes.contains(only));
        }
        let endpoints = &cluster.service.endpoints;
        let now = (!cluster.circuits.is_empty()).then(Instant::now);
        let is_open = |index: usize| now.is_some_and(|now| cluster.is_open(index, now));
        let untried = |index: usize| cluster.has(index) && !tried.indexes.contains(&index) && !is_open(index);
        let usable = |index: usize| endpoints[index].state.usable() && untried(index);
        // All down: any may have come back, and a wrong guess costs no more than refusing would.
        let world = || World { hop: self, cluster, tried, now: Cell::new(None) };
        cluster.balancer.choose(usable, world()).or_else(|| cluster.balancer.choose(untried, world()))
    }

    fn set_down(&self, name: &str, service: u32, endpoint: &Endpoint, error: &ConnectError) {
        if endpoint.state.set_down(true) {
            tracing::info!(service = name, endpoint = %endpoint.address, %error, "endpoint is down");
            (self.endpoint_news)(EndpointNews::Down, service, endpoint.id);
        }
    }

    /// Gives a connection on which nothing was said yet, but by the endpoint what is in `first`, to the requests of HTTP/2, if they have none.
    pub(super) async fn share(&self, upstream: Upstream, first: Option<Buf>) {
        let Upstream { stream, lease, .. } = upstream;
        let who = &lease.who;
        if let Some(visit) = &who.cluster.visit {
            let io = Io::new(stream, &self.buffers, first);
            return self.upstreams.share_inside(&who.cluster.service, visit, io).await;
        }
        if !self.is_draining() && who.endpoint().state.stage() == Stage::Active {
            let io = Io::new(stream, &self.buffers, first);
            self.upstreams.share(&who.cluster.service, who.endpoint(), io).await;
        }
    }

    /// Keeps the connection of a finished exchange for the next.
    pub(super) fn keep(&self, upstream: Upstream) {
        let Upstream { stream, lease, .. } = upstream;
        let who = &lease.who;
        if let Some(visit) = &who.cluster.visit {
            return visit.keep(stream);
        }
        if !self.is_draining() && who.endpoint().state.stage() == Stage::Active {
            self.upstreams.keep(&who.cluster.service, who.endpoint(), stream);
        }
    }
}

/// What is said when there is no other endpoint to try.
pub(super) fn none(cluster: &Cluster, why: Unreached) -> Unreached {
    match why {
        Unreached::NoEndpoint if cluster.is_gone => Unreached::Gone,
        Unreached::NoEndpoint if !cluster.circuits.is_empty() && cluster.refuses(Instant::now()) => {
            Unreached::CircuitOpen
        }
        Unreached::NoEndpoint if cluster.members.is_some() && cluster.is_empty() => Unreached::NoSubset,
        why => why,
    }
}

/// Whether an endpoint is set down.
fn is_its_fault(cluster: &Cluster, error: &ConnectError) -> bool {
    let config = &cluster.service.config;
    match error {
        // The probes that would find it up again speak no TLS.
        ConnectError::Tls(_) | ConnectError::Overflow(_) => false,
        // Where the client chooses what is spoken, one that chooses badly would take the endpoints from everybody else.
        ConnectError::NotHttp2 | ConnectError::Mute(_) => {
            config.protocol != Protocol::Auto || config.upstream_protocol.is_some()
        }
        ConnectError::Failed(_) | ConnectError::Late(_) | ConnectError::Ours(_) => true,
    }
}

fn lease(cluster: &Rc<Cluster>, chosen: Chosen, stream: Stream, reused: bool, tried: &Tried) -> Upstream {
    Upstream { stream, reused, lease: Lease::take(cluster, chosen, tried.cost) }
}
