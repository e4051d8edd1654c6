//! A breaker of a route or of an endpoint, as requests meet it: asked before them, told how they went.

use std::{cell::Cell, rc::Rc, sync::Arc, sync::atomic::Ordering::Relaxed, time::Instant};

use super::{Cluster, guard::milliseconds};
use crate::{
    breaker::{Judge, Outcome, Pass},
    cluster::{BreakerPhase, BreakerState, Endpoint, Seen, Service, Usage},
    config::guard::OnOpen,
    health::outlier::has_failed,
};

/// A breaker, ready to be asked.
pub(super) struct Circuit {
    /// For the log.
    service: Arc<Service>,
    of: Of,
    judge: Judge,
    state: Arc<BreakerState>,
}

/// Whose it is.
enum Of {
    /// That of a route, by its place.
    Route(usize),
    /// That of an endpoint.
    Endpoint(Arc<Endpoint>),
}

/// Leave to pass. Unless it is told how the request went, nothing is learned of it.
pub(super) struct Ticket {
    circuit: Rc<Circuit>,
    pass: Cell<Option<Pass>>,
    began: Instant,
}

impl Circuit {
    fn new(service: &Arc<Service>, of: Of, state: &Arc<BreakerState>) -> Rc<Self> {
        let judge = Judge::new(&state.config);
        Rc::new(Self { service: Arc::clone(service), of, judge, state: Arc::clone(state) })
    }

    /// Of a service's endpoints, in their order; none if they have none.
    pub fn of_endpoints(service: &Arc<Service>) -> Box<[Rc<Self>]> {
        let circuit = |(endpoint, state): (&Arc<Endpoint>, &Arc<BreakerState>)| {
            Self::new(service, Of::Endpoint(Arc::clone(endpoint)), state)
        };
        service.endpoints.iter().zip(&service.guard.endpoints).map(circuit).collect()
    }

    /// Of each of a service's routes, if it has one.
    pub fn of_route(service: &Arc<Service>, index: usize) -> Option<Rc<Self>> {
        let state = service.routes.get(index)?.breaker.as_ref()?;
        Some(Self::new(service, Of::Route(index), state))
    }

    /// What becomes of requests that it does not let pass.
    pub fn on_open(&self) -> &OnOpen {
        &self.state.config.on_open
    }

    /// Whether a request would pass now. Nothing is taken.
    pub fn would_pass(&self, now: Instant) -> bool {
        self.judge.would_pass(&self.state, milliseconds(now))
    }

    /// Leave to pass, if there is any.
    pub fn ask(self: &Rc<Self>, now: Instant) -> Option<Ticket> {
        let (pass, news) = self.judge.ask(&self.state, milliseconds(now));
        self.turned(news);
        if pass.is_none() {
            self.refused();
        }
        pass.map(|pass| Ticket { circuit: Rc::clone(self), pass: Some(pass).into(), began: now })
    }

    /// It has kept a request from where it would have gone.
    pub fn refused(&self) {
        self.state.short_circuits.fetch_add(1, Relaxed);
    }

    fn turned(&self, news: Option<BreakerPhase>) {
        let Some(phase) = news else { return };
        let service = &self.service.config;
        match &self.of {
            Of::Route(index) => {
                let route = service.routes.get(*index).map_or("", |route| route.name.as_str());
                tracing::info!(service = service.name, route, breaker = phase.word(), "breaker turned");
            }
            Of::Endpoint(endpoint) => {
                let endpoint = endpoint.address;
                tracing::info!(service = service.name, %endpoint, breaker = phase.word(), "breaker turned");
            }
        }
    }
}

impl Ticket {
    /// How the request went, for the first that says so.
    pub fn tell(&self, outcome: Outcome) {
        let Some(pass) = self.pass.take() else { return };
        let circuit = &self.circuit;
        circuit.turned(circuit.judge.tell(&circuit.state, pass, outcome, milliseconds(Instant::now())));
    }

    /// What is counted of the service.
    pub fn usage(&self) -> &Usage {
        &self.circuit.service.guard.usage
    }

    /// The same, of what became of an attempt at an endpoint.
    pub fn saw(&self, seen: Seen) {
        let took_ms = self.began.elapsed().as_millis() as u64;
        self.tell(if has_failed(seen) { Outcome::Failed(took_ms) } else { Outcome::Answered(took_ms) });
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.tell(Outcome::Unknown);
    }
}

impl Cluster {
    /// Whether the breaker of an endpoint keeps requests from it.
    pub(super) fn is_open(&self, endpoint: usize, now: Instant) -> bool {
        self.circuits.get(endpoint).is_some_and(|circuit| !circuit.would_pass(now))
    }

    /// Whether those of all its endpoints do; the request that is refused for that is counted.
    pub(super) fn refuses(&self, now: Instant) -> bool {
        let circuits = || (0..self.circuits.len()).filter(|index| self.has(*index)).map(|index| &self.circuits[index]);
        let all = circuits().next().is_some() && circuits().all(|circuit| !circuit.would_pass(now));
        if all {
            circuits().for_each(|circuit| circuit.refused());
        }
        all
    }
}
