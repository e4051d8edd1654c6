//! Requests whose answers nobody waits for: the client is answered as soon as its request is taken, the endpoint gets it, and once its bytes
//! are written nothing of it is left here that anybody counts: no time runs, nobody tries again, and its endpoint has no more to do for all
//! that is known. What it answers is read and dropped, so that the connection can carry the next.

use std::{
    rc::Rc,
    sync::{
        Arc,
        atomic::{
            AtomicU32, AtomicU64,
            Ordering::{AcqRel, Relaxed},
        },
    },
    time::Duration,
};

use http::{HeaderValue, StatusCode};

use super::{
    Cluster, Hop,
    http::Reply,
    reach::{Shared, Tried, Upstream},
    strategy::empty,
    whole::{self, Answer, Whole},
};
use crate::{cluster::OneWayState, config::guard::Why, ring::spawn};

/// Most requests of a route that are taken and not yet written, node-wide: with bodies of 64 KiB they hold 64 MiB.
const TAKEN_MAX: u32 = 1024;
/// Most answers that are being read and dropped, node-wide: a connection with one more ends.
const DROPPED_MAX: u32 = 1024;
/// How long an answer may take that is read to be dropped: Envoy's route timeout. Then the connection ends.
const PATIENCE: Duration = Duration::from_secs(15);

/// A place among so many, given back by dropping it.
struct Place {
    state: Arc<OneWayState>,
    of: fn(&OneWayState) -> &AtomicU32,
}

impl Place {
    fn take(state: &Arc<OneWayState>, of: fn(&OneWayState) -> &AtomicU32, most: u32) -> Option<Self> {
        let place = Self { state: Arc::clone(state), of };
        (of(state).fetch_add(1, AcqRel) < most).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        (self.of)(&self.state).fetch_sub(1, AcqRel);
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

/// What a client is told whose request was taken: 202, and of gRPC an empty message that it went well, because a library that waits for a
/// message takes none for a failure.
pub(super) fn taken(is_grpc: bool) -> Answer {
    empty(is_grpc, StatusCode::ACCEPTED, HeaderValue::from_static("one_way"))
}

/// Sends a request that is all there, as a task of its own; refused when too many wait to be sent.
pub(super) fn send(
    hop: &Rc<Hop>,
    cluster: &Rc<Cluster>,
    (whole, tried): (Whole, Tried),
    state: &Arc<OneWayState>,
) -> Result<(), Reply> {
    let Some(place) = Place::take(state, |state| &state.taken, TAKEN_MAX) else {
        count(&state.busy);
        return Err(Reply::guarded(Why::Concurrency));
    };
    let (hop, cluster, state) = (Rc::clone(hop), Rc::clone(cluster), Arc::clone(state));
    spawn(async move {
        let is_sent = whole::send(&hop, &cluster, tried, (&whole, &state)).await;
        count(if is_sent { &state.sent } else { &state.failed });
        drop(place);
    });
    Ok(())
}

/// A request was streamed to its endpoint, all of it.
pub(super) fn was_sent(state: &OneWayState) {
    count(&state.sent);
}

/// A request that was streamed did not get to its endpoint, or not all of it.
pub(super) fn was_lost(state: &OneWayState) {
    count(&state.failed);
}

/// Reads the answer to a request that was written, and drops it.
pub(super) fn drop_answer(hop: &Rc<Hop>, mut upstream: Upstream, is_head: bool, state: &Arc<OneWayState>) {
    upstream.counts_no_more();
    let Some(place) = Place::take(state, |state| &state.dropping, DROPPED_MAX) else { return };
    let hop = Rc::clone(hop);
    spawn(async move {
        whole::drop_answer(&hop, upstream, is_head, PATIENCE).await;
        drop(place);
    });
}

/// The same of HTTP/2, by who reads it: to let go of the stream would take the request back.
pub(super) fn drop_response(mut shared: Shared, reading: impl Future<Output = ()> + 'static, state: &Arc<OneWayState>) {
    shared.counts_no_more();
    let Some(place) = Place::take(state, |state| &state.dropping, DROPPED_MAX) else { return };
    spawn(async move {
        let _ = tokio::time::timeout(PATIENCE, reading).await;
        drop((place, shared));
    });
}
