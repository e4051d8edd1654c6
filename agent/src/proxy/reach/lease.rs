//! The place of a request in its endpoint's count of what is in flight.

use std::{
    mem,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use super::timed::{Heard, Timed, Waited, tell};
use crate::{
    cluster::{Endpoint, Seen},
    connect::Seat,
    proxy::{Cluster, Hop, circuit::Ticket},
    ring::Stream,
};

/// A connection to an endpoint, counted as in use there until it is dropped or kept.
pub struct Upstream {
    /// The connection.
    pub stream: Stream,
    /// Whether an earlier request was answered on it.
    pub reused: bool,
    pub(super) lease: Lease,
}

/// A place for a request on a connection that others use as well, counted as in use at its endpoint until it is dropped.
pub struct Shared {
    /// The place.
    pub seat: Seat,
    pub(super) lease: Lease,
}

impl Upstream {
    /// The one that is attempted.
    pub fn who(&self) -> &Who {
        &self.lease.who
    }

    /// It is not counted as in use any more: nobody waits for what it is used for.
    pub(in crate::proxy) fn counts_no_more(&mut self) {
        self.lease.give_back();
    }
}

impl Shared {
    /// The one that is attempted.
    pub fn who(&self) -> &Who {
        &self.lease.who
    }

    /// As [`Upstream::counts_no_more`].
    pub(in crate::proxy) fn counts_no_more(&mut self) {
        self.lease.give_back();
    }
}

/// An endpoint that is attempted; a copy outlives the attempt.
#[derive(Clone)]
pub struct Who {
    pub(super) cluster: Rc<Cluster>,
    pub(super) endpoint: usize,
    timed: Option<Rc<Timed>>,
    /// How long it takes, where somebody goes by that.
    waited: Option<Rc<Waited>>,
    /// Of the endpoint's breaker.
    ticket: Option<Rc<Ticket>>,
}

impl Who {
    /// Tells what became of the attempt, once; nothing is told of one that the client has given up.
    pub fn report(&self, hop: &Hop, seen: Seen) {
        tell(self.timed.as_deref(), seen);
        if let Some(ticket) = &self.ticket {
            ticket.saw(seen);
        }
        hop.report(&self.cluster, self.endpoint, seen, self.waited.as_deref());
    }

    /// Whose endpoint that is.
    pub fn cluster(&self) -> &Rc<Cluster> {
        &self.cluster
    }

    /// To be told when the answer begins.
    pub fn heard(&self) -> Heard {
        Heard { timed: self.timed.clone(), waited: self.waited.clone() }
    }

    pub(super) fn endpoint(&self) -> &Arc<Endpoint> {
        &self.cluster.service.endpoints[self.endpoint]
    }
}

/// An endpoint by its place, and what its breaker gave, if it has one.
pub(super) type Chosen = (usize, Option<Rc<Ticket>>);

/// The place in an endpoint's count of what is in flight.
pub(super) struct Lease {
    pub(super) who: Who,
    /// What it counts in the endpoint's load beyond one.
    surplus: u32,
    /// What it counts in the service's, where somebody goes by that.
    of_all: u64,
    is_out: bool,
}

impl Lease {
    pub(super) fn take(cluster: &Rc<Cluster>, (endpoint, ticket): Chosen, cost: u32) -> Self {
        let service = &cluster.service;
        let (chosen, surplus) = (&service.endpoints[endpoint], cost.saturating_sub(1));
        chosen.state.active.fetch_add(1, Relaxed);
        chosen.state.total.fetch_add(1, Relaxed);
        if surplus > 0 {
            chosen.state.surplus.fetch_add(surplus, Relaxed);
        }
        let of_all = service.config.policy.tuning.hash_balance_factor.map_or(0, |_| cost.into());
        if of_all > 0 {
            service.load.fetch_add(of_all, Relaxed);
        }
        let timed = Timed::begin(service, chosen).map(Rc::new);
        let waited = cluster.goes_by_latency().then(|| Rc::new(Waited::begin()));
        let who = Who { cluster: Rc::clone(cluster), endpoint, timed, waited, ticket };
        Self { who, surplus, of_all, is_out: true }
    }

    fn give_back(&mut self) {
        if !mem::take(&mut self.is_out) {
            return;
        }
        let state = &self.who.endpoint().state;
        state.active.fetch_sub(1, Relaxed);
        if self.surplus > 0 {
            state.surplus.fetch_sub(self.surplus, Relaxed);
        }
        if self.of_all > 0 {
            self.who.cluster.service.load.fetch_sub(self.of_all, Relaxed);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.give_back();
    }
}
