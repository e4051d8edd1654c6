//! Bytes that are not understood: relayed both ways, ends and resets passed on as they come, and no deadline, for silence means nothing.

use std::{cell::Cell, rc::Rc};

use super::{Cluster, Hop, reach::Tried};
use crate::{
    forward::{Relayed, relay},
    record::{Bytes, Counter},
    ring::Stream,
};

/// Serves one connection.
pub async fn serve(hop: &Rc<Hop>, mut downstream: Stream, cluster: Rc<Cluster>) -> Counter {
    let Ok(mut upstream) = hop.reach(&cluster, &mut Tried::default(), true).await else {
        // The program would have met the same: a connection that is not to be had.
        downstream.socket.reset();
        return Counter::RelayNoEndpoint;
    };
    relay_counted(hop, &mut downstream, &mut upstream.stream).await
}

/// Relays until both sides have ended.
pub(super) async fn relay_counted(hop: &Hop, downstream: &mut Stream, upstream: &mut Stream) -> Counter {
    let (there, back) = (Cell::new(0), Cell::new(0));
    let relayed = relay(downstream, upstream, &hop.buffers, (&there, &back)).await;
    hop.slab.count_bytes(Bytes::DownstreamReceived, there.get());
    hop.slab.count_bytes(Bytes::UpstreamSent, there.get());
    hop.slab.count_bytes(Bytes::UpstreamReceived, back.get());
    hop.slab.count_bytes(Bytes::DownstreamSent, back.get());
    match relayed {
        Relayed::Done => Counter::RelayDone,
        Relayed::FirstBroke => Counter::RelayClientReset,
        Relayed::SecondBroke => Counter::RelayUpstreamReset,
    }
}
