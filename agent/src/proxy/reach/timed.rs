//! How long endpoints take to answer, for who goes by that: the clock is looked at, and what it says is kept node-wide.

use std::{
    cell::Cell,
    rc::Rc,
    sync::{
        Arc,
        atomic::Ordering::{AcqRel, Acquire, Relaxed},
    },
    time::Duration,
};

use crate::{
    balance::peak_ewma::{Estimate, Nanos, counted},
    cluster::{Endpoint, EndpointState, Latency, Seen, Service},
    config::{Balance, tuning::PeakEwma},
    kernel::monotonic_ns,
};

/// What one more request would cost an endpoint.
pub fn cost(state: &EndpointState, rules: &PeakEwma, now: Nanos) -> f64 {
    let latency = &state.latency;
    let estimate = match latency.estimate.load(Relaxed) {
        0 => begun(latency, rules, now),
        bits => Estimate::of(bits),
    };
    let waited = match latency.unanswered.load(Relaxed) {
        0 => Duration::ZERO,
        _ => Duration::from_nanos(now.saturating_sub(latency.since.load(Relaxed))),
    };
    estimate.cost(state.load(), waited, rules, now)
}

/// The estimate of an endpoint that nobody has asked yet wears off from when it was first looked at.
fn begun(latency: &Latency, rules: &PeakEwma, now: Nanos) -> Estimate {
    let start = Estimate::start(rules, now);
    latency.estimate.compare_exchange(0, start.bits(), AcqRel, Acquire).map_or_else(Estimate::of, |_| start)
}

/// What is told of an attempt, for who takes its time.
pub fn tell(timed: Option<&Timed>, seen: Seen) {
    if let Some(timed) = timed {
        timed.tell(has_failed(seen));
    }
}

/// Whether it says that the endpoint can do no more, or nothing at all: with HTTP's words, or gRPC's RESOURCE_EXHAUSTED and UNAVAILABLE.
fn has_failed(seen: Seen) -> bool {
    match seen {
        Seen::Connected => false,
        Seen::Answered { status, grpc_status } => status == 429 || status >= 500 || matches!(grpc_status, Some(8 | 14)),
        Seen::NotConnected | Seen::ConnectLate | Seen::NoResponse | Seen::Late => true,
    }
}

/// Who waits for an answer to begin, if anybody.
pub struct Heard {
    pub(super) timed: Option<Rc<Timed>>,
    pub(super) waited: Option<Rc<Waited>>,
}

impl Heard {
    /// Nobody waits.
    pub fn nobody() -> Self {
        Self { timed: None, waited: None }
    }

    /// It begins: how long the client takes to read it says nothing of the endpoint.
    pub fn now(&self) {
        if let Some(timed) = &self.timed {
            timed.heard();
        }
        if let Some(waited) = &self.waited {
            waited.took();
        }
    }
}

/// How long an attempt waits for its answer to begin, where a canary's guard or a limit goes by that.
pub struct Waited {
    began: Nanos,
    took: Cell<Option<Duration>>,
}

impl Waited {
    /// One that begins.
    pub fn begin() -> Self {
        Self { began: monotonic_ns(), took: Cell::new(None) }
    }

    /// Since it began.
    pub fn age(&self) -> Duration {
        Duration::from_nanos(monotonic_ns().saturating_sub(self.began))
    }

    /// Until the answer began, or else until now, when it does.
    pub fn took(&self) -> Duration {
        let took = self.took.get();
        let took = took.unwrap_or_else(|| self.age());
        self.took.set(Some(took));
        took
    }
}

/// An attempt whose time is taken. What it says counts when it is dropped, or before that when it is told how it went.
pub struct Timed {
    endpoint: Arc<Endpoint>,
    rules: PeakEwma,
    began: Nanos,
    /// Until the answer began.
    took: Cell<Option<Duration>>,
    is_told: Cell<bool>,
}

impl Timed {
    /// One that begins, if its service goes by that.
    pub fn begin(service: &Service, endpoint: &Arc<Endpoint>) -> Option<Self> {
        let policy = &service.config.policy;
        (policy.balance == Balance::PeakEwma).then(|| {
            let (began, latency) = (monotonic_ns(), &endpoint.state.latency);
            if latency.unanswered.fetch_add(1, Relaxed) == 0 {
                latency.since.store(began, Relaxed);
            }
            Self {
                endpoint: Arc::clone(endpoint),
                rules: policy.tuning.peak_ewma,
                began,
                took: Cell::new(None),
                is_told: Cell::new(false),
            }
        })
    }

    fn heard(&self) {
        if self.took.get().is_none() {
            self.took.set(Some(self.ended()));
        }
    }

    /// How it went, when that is known.
    pub fn tell(&self, has_failed: bool) {
        self.heard();
        if let (false, Some(took)) = (self.is_told.replace(true), self.took.get()) {
            self.sample(|before, now| before.sampled(counted(took, has_failed, &self.rules), &self.rules, now));
        }
    }

    /// It waits no more. Gives how long it did.
    fn ended(&self) -> Duration {
        let (now, latency) = (monotonic_ns(), &self.endpoint.state.latency);
        latency.unanswered.fetch_sub(1, Relaxed);
        latency.since.store(now, Relaxed);
        Duration::from_nanos(now.saturating_sub(self.began))
    }

    fn sample(&self, sampled: impl Fn(Estimate, Nanos) -> Estimate) {
        let now = monotonic_ns();
        let sampled = |bits| {
            let before = if bits == 0 { Estimate::start(&self.rules, self.began) } else { Estimate::of(bits) };
            Some(sampled(before, now).bits())
        };
        // It always gives one.
        let _ = self.endpoint.state.latency.estimate.fetch_update(AcqRel, Acquire, sampled);
    }
}

impl Drop for Timed {
    fn drop(&mut self) {
        if self.took.get().is_some() {
            return self.tell(false);
        }
        // Given up: all that is known is that it would have taken longer.
        let waited = self.ended();
        self.sample(|before, now| before.not_within(waited, now));
    }
}
