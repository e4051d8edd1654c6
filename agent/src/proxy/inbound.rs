//! A connection that came in: who is it, may it pass, and then on to the program that it dialled, as its protocol wants it.

use std::{cell::RefCell, net::SocketAddr, os::fd::OwnedFd, rc::Rc, sync::Arc, sync::atomic::Ordering::Relaxed};

use super::{Cluster, Hop, Serving, admit::Gate, auto, http, http2, opaque, tls};
use crate::{
    balance::{Balancer, Site},
    cluster::{Inbound, Refused, Service, Shares},
    config::Protocol,
    connect::Visit,
    kernel::{OriginalDst, Place, monotonic_ns},
    limit,
    record::Counter,
    ring::{Socket, Stream},
};

/// Serves one accepted connection of `client`.
pub async fn serve(hop: Rc<Hop>, socket: OwnedFd, place: Arc<Place>, client: SocketAddr) {
    hop.slab.count(Counter::Accepted);
    let socket = hop.upstreams.accepted_inside(socket, place.netns);
    let outcome = match Box::pin(accepted(&hop, socket, place, client)).await {
        // Its place is given back at its end.
        Ok((serving, _entered)) => serving.await,
        Err(refused) => refused,
    };
    hop.slab.count(outcome);
}

async fn accepted(
    hop: &Rc<Hop>,
    socket: Socket,
    place: Arc<Place>,
    client: SocketAddr,
) -> Result<(Serving<'_>, Entered), Counter> {
    // The hook changes no address: what the client dialled is where the connection ends.
    let dialled = socket.local().map_err(|_| Counter::NoOriginal)?;
    let rule = hop.inbound(&place, dialled.port());
    let Some(rule) = rule else {
        // Its rule is gone, or a program of the namespace has dialled our listener itself.
        socket.reset();
        return Err(Counter::NoService);
    };
    let entered = match Entered::by(hop, &rule, client) {
        Ok(entered) => entered,
        Err(refused) => {
            rule.state.refused[refused as usize].fetch_add(1, Relaxed);
            socket.reset();
            return Err(Counter::InboundRefused);
        }
    };
    let mut downstream = Stream::accepted(socket);
    let protocol = match &rule.config.terminate {
        None => rule.config.protocol,
        Some(terminate) => tls::accept(hop, &mut downstream, terminate, rule.config.protocol).await?,
    };
    let cluster = Rc::new(Cluster {
        guard: None,
        line: None,
        circuits: Box::default(),
        service: Arc::clone(&rule.service),
        members: None,
        is_gone: false,
        cursor: Arc::clone(&rule.service.cursor),
        routes: None,
        canary: None,
        measured: None,
        gate: Gate::of(&rule.service),
        chain: hop.chain(&rule.service),
        visit: Some(Visit::new(place, client, dialled)),
        generation: 0,
        shares_version: 0,
        balancer: only(&rule.service, dialled),
    });
    // Where there is one endpoint, no hash of the source is asked for.
    let original = OriginalDst { address: dialled, service: rule.service.id, source: 0 };
    let serving: Serving<'_> = match protocol {
        Protocol::Http => http::serve(hop, downstream, cluster, original, None),
        Protocol::Http2 => Box::pin(http2::serve(hop, downstream, cluster, original, None)),
        Protocol::Auto => auto::listen(hop, downstream, cluster, original).await?,
        Protocol::Tcp | Protocol::Udp => Box::pin(opaque::serve(hop, downstream, cluster, original.source)),
    };
    Ok((serving, entered))
}

/// Chooses among the one endpoint that there is.
fn only(service: &Service, program: SocketAddr) -> Balancer {
    let all = Shares { weights: vec![1], standby: Vec::new() };
    Balancer::new(&service.config.policy, &[Site::plain(program)], &all)
}

/// A place among the connections of a rule, given back when dropped.
struct Entered {
    rule: Arc<Inbound>,
    /// The worker's count of the client's address, where the rule limits that.
    source: Option<(Rc<RefCell<limit::Sources>>, std::net::IpAddr)>,
}

impl Entered {
    fn by(hop: &Hop, rule: &Arc<Inbound>, client: SocketAddr) -> Result<Self, Refused> {
        let limits = &rule.config.limits;
        if !limit::enter(&rule.state.open, limits.all.connections) {
            return Err(Refused::Connections);
        }
        // From here on what is refused gives its place back.
        let mut entered = Self { rule: Arc::clone(rule), source: None };
        let now = monotonic_ns();
        if rule.config.counts_sources() {
            let sources = hop.sources(rule.service.id);
            let ip = client.ip().to_canonical();
            sources.borrow_mut().enter(ip, &limits.per_source, now)?;
            entered.source = Some((sources, ip));
        }
        if limits.all.rate.is_some_and(|rate| !limit::take(&rule.state.bucket, rate, now)) {
            return Err(Refused::Rate);
        }
        rule.state.accepted.fetch_add(1, Relaxed);
        Ok(entered)
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        limit::leave(&self.rule.state.open);
        if let Some((sources, ip)) = &self.source {
            sources.borrow_mut().leave(*ip, monotonic_ns());
        }
    }
}

impl Hop {
    /// The rule for a port, as of now.
    fn inbound(&self, place: &Place, port: u16) -> Option<Arc<Inbound>> {
        self.snapshot.borrow_mut().load().inbound(&place.paths, place.is_host, port).cloned()
    }

    /// This worker's counts by source of a rule, by the id of its service.
    fn sources(&self, rule: u32) -> Rc<RefCell<limit::Sources>> {
        Rc::clone(self.sources.borrow_mut().entry(rule).or_default())
    }
}
