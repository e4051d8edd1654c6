//! Bytes that are not understood: relayed both ways, ends and resets passed on as they come, and no deadline, for silence means nothing.
//!
//! Where the programs at both ends are in the shortcut they are joined: their sockets send straight to each other, and what is left to the
//! relay is to wait for the end, and to carry what a slow reader has no room for.

use std::{cell::Cell, os::fd::AsFd as _, rc::Rc};

use super::{
    Cluster, Hop,
    asker::Asker,
    guard::StandingIn,
    joining::Joining,
    reach::{Tried, Upstream},
};
use crate::{
    cluster::{Seen, Service},
    config::guard::Why,
    forward::{Relayed, relay},
    kernel::Way,
    record::{Bytes, Counter},
    ring::Stream,
};

/// Serves one connection.
pub async fn serve(hop: &Rc<Hop>, mut downstream: Stream, cluster: Rc<Cluster>, source: u64) -> Counter {
    let asker = cluster.asker(hop, downstream.socket.as_fd(), source);
    let Some((cluster, mut upstream, _place)) = reach(hop, cluster, asker).await else {
        // The program would have met the same: a connection that is not to be had.
        downstream.socket.reset();
        return Counter::RelayNoEndpoint;
    };
    upstream.who().report(hop, Seen::Connected);
    relay_joined(hop, &cluster.service, &mut downstream, &mut upstream.stream).await
}

/// A new connection to an endpoint of the service, or of the one that stands in for it.
///
/// While all endpoints of a service that somebody stands in for are known to be down nobody waits for them: a probe finds out when one is up.
async fn reach(
    hop: &Rc<Hop>,
    cluster: Rc<Cluster>,
    asker: Asker,
) -> Option<(Rc<Cluster>, Upstream, Option<StandingIn>)> {
    if cluster.guard.is_none() || cluster.has_hope() {
        match hop.reach(&cluster, &mut Tried::for_connection(&cluster, asker), true).await {
            Ok(upstream) => return Some((cluster, upstream, None)),
            Err(_) if cluster.guard.is_none() => return None,
            Err(_) => {}
        }
    }
    reach_instead(hop, &cluster, asker).await.map(|(cluster, upstream, place)| (cluster, upstream, Some(place)))
}

/// The same, of the one that stands in for it.
pub(super) async fn reach_instead(
    hop: &Rc<Hop>,
    cluster: &Cluster,
    asker: Asker,
) -> Option<(Rc<Cluster>, Upstream, StandingIn)> {
    let (other, place) = hop.stand_in(cluster.guard.as_ref()?, Why::Unreached)?;
    tracing::debug!(service = cluster.service.config.name, by = other.service.config.name, "another stands in");
    let upstream = hop.reach(&other, &mut Tried::for_connection(&other, asker), true).await.ok()?;
    Some((other, upstream, place))
}

/// Relays until both sides have ended, joined if that can be.
pub(super) async fn relay_joined(
    hop: &Hop,
    service: &Service,
    downstream: &mut Stream,
    upstream: &mut Stream,
) -> Counter {
    let (there, back) = (Cell::new(0), Cell::new(0));
    let is_tls = downstream.is_tls() || upstream.is_tls();
    let joining = Joining::new(hop, service, !is_tls);
    let relayed = relay(downstream, upstream, &hop.buffers, (&there, &back), &joining).await;
    let there = there.get() + joining.straight(Way::There);
    let back = back.get() + joining.straight(Way::Back);
    hop.slab.count_bytes(Bytes::DownstreamReceived, there);
    hop.slab.count_bytes(Bytes::UpstreamSent, there);
    hop.slab.count_bytes(Bytes::UpstreamReceived, back);
    hop.slab.count_bytes(Bytes::DownstreamSent, back);
    match relayed {
        Relayed::Done => Counter::RelayDone,
        Relayed::FirstBroke => Counter::RelayClientReset,
        Relayed::SecondBroke => Counter::RelayUpstreamReset,
        Relayed::NoMemory => Counter::NoMemory,
    }
}
