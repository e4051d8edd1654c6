//! What keeps a service alive when its endpoints fail, around each of its requests: whether a switch degrades it, whether the limits, the
//! breaker and the isolation let it pass, and what stands in for an answer that is not to be had.

mod enter;
mod leave;
mod why;

use std::{
    cell::Cell,
    rc::Rc,
    sync::{LazyLock, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use http::{HeaderName, HeaderValue};

use self::why::{has_failed, why};
pub(super) use self::why::{is_server_error, seems, why_of};
use super::{
    Cluster,
    admit::{Admitted, Gate},
    asker::Asker,
    circuit::{Circuit, Ticket},
    http::Reply,
    pending::Stand,
    strategy,
};
use crate::{
    breaker::{Judge, Outcome, Pass},
    cluster::{BreakerPhase, BreakerState, GuardState, Held, Service, Usage},
    config::{
        self, HttpVersion, Strategy,
        guard::{DegradeTo, Instead, OnOpen, Respond, Why},
    },
};

const REASON: HeaderName = HeaderName::from_static("x-sockway-reason");

/// What breakers reckon from: all workers see the same time.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// As they reckon.
pub(super) fn milliseconds(now: Instant) -> u64 {
    now.saturating_duration_since(*EPOCH).as_millis() as u64
}

/// How a service is guarded, ready to be asked.
pub(super) struct Guard {
    /// Of the service, for the log.
    name: String,
    rules: config::Guard,
    state: GuardState,
    judge: Option<Judge>,
}

/// What a request has of a guard; given back when it is dropped.
pub(super) struct Leave {
    guard: Option<Rc<Guard>>,
    extra: Extra,
    /// Of the breaker, until it was told how the request went.
    pass: Cell<Option<Pass>>,
    has_place: bool,
    began: Instant,
    /// When it is given up, if no answer has begun.
    pub until: Option<Instant>,
}

/// What its route says of a request.
#[derive(Clone, Copy)]
pub(super) struct OfRoute<'r> {
    /// Its limits.
    pub gate: Option<&'r Gate>,
    /// Its breaker.
    pub circuit: Option<&'r Rc<Circuit>>,
}

impl OfRoute<'_> {
    /// Whether that is nothing.
    pub fn is_none(self) -> bool {
        self.gate.is_none() && self.circuit.is_none()
    }
}

/// What a request has beside what the guard of its service gives.
#[derive(Default)]
pub(super) struct Extra {
    /// Of its route's breaker.
    ticket: Option<Ticket>,
    /// Among the service's requests, where those are bounded.
    held: Option<Held>,
    /// Whether its caller gave less time than the service does.
    is_callers_time: bool,
}

/// A request that goes to another service instead; what that took is given back when it is dropped.
pub(super) struct StandingIn {
    /// Where a place is kept for it.
    place: Option<Rc<Guard>>,
}

/// Who keeps a request while it is asked for, because somebody else may have to be asked.
pub(super) struct Keeping<'k> {
    /// What is done about failures.
    pub rules: Option<&'k Strategy>,
    pub guard: Option<&'k Rc<Guard>>,
    pub leave: Option<&'k Leave>,
    /// What the client speaks, whether within TLS, and who that is.
    pub client: HttpVersion,
    pub is_secure: bool,
    pub asker: Asker,
}

/// A request that may go on.
pub(super) struct Entered {
    /// To whom.
    pub cluster: Rc<Cluster>,
    /// After so long.
    pub wait: Duration,
    pub admitted: Admitted,
    pub leave: Option<Leave>,
    /// Whether that is another service than was asked.
    pub standing_in: Option<StandingIn>,
    /// Whether it has to wait for room yet.
    pub stand: Option<Stand>,
    pub extra: Extra,
}

/// A request that a service lets in.
pub(super) struct Passed {
    pub wait: Duration,
    pub admitted: Admitted,
    pub leave: Option<Leave>,
    pub stand: Option<Stand>,
}

/// A place in the isolation of a service, for a request that has not been let in yet; given back when it is dropped.
pub(super) struct Kept<'g> {
    guard: &'g Rc<Guard>,
    has_place: bool,
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        if self.has_place {
            self.guard.usage().active.give_back();
        }
    }
}

impl Kept<'_> {
    /// The request is let in, if the breaker lets it.
    pub(super) fn enter(mut self, now: Instant) -> Result<Leave, Why> {
        let pass = self.guard.passed(now)?.into();
        let has_place = std::mem::take(&mut self.has_place);
        let (guard, extra) = (Some(Rc::clone(self.guard)), Extra::default());
        Ok(Leave { guard, extra, pass, has_place, began: now, until: self.guard.until(now) })
    }
}

impl Entered {
    /// Nothing is taken for a request that goes to nobody.
    pub(super) fn none(cluster: &Rc<Cluster>) -> Self {
        let (wait, admitted) = Default::default();
        Self {
            cluster: Rc::clone(cluster),
            wait,
            admitted,
            leave: None,
            standing_in: None,
            stand: None,
            extra: Extra::default(),
        }
    }
}

impl Drop for Leave {
    fn drop(&mut self) {
        self.tell(Outcome::Unknown);
        if let (true, Some(guard)) = (self.has_place, &self.guard) {
            guard.usage().active.give_back();
        }
    }
}

impl Drop for StandingIn {
    fn drop(&mut self) {
        if let Some(guard) = &self.place {
            guard.usage().standing_in.give_back();
        }
    }
}

impl Guard {
    /// Of a service; `None` if it has none.
    pub(super) fn of(service: &Service) -> Option<Rc<Self>> {
        let rules = service.config.guard.clone();
        if rules.is_idle() {
            return None;
        }
        let judge = rules.breaker.as_ref().map(Judge::new);
        Some(Rc::new(Self { name: service.config.name.clone(), rules, state: service.guard.clone(), judge }))
    }

    fn usage(&self) -> &Usage {
        &self.state.usage
    }

    fn breaker(&self) -> Option<(&Judge, &BreakerState)> {
        self.judge.as_ref().zip(self.state.breaker.as_deref())
    }

    fn turned(&self, news: Option<BreakerPhase>) {
        if let Some(phase) = news {
            tracing::info!(service = self.name, breaker = phase.word(), "breaker turned");
        }
    }

    /// Whether a request may pass.
    pub(super) fn enter(self: &Rc<Self>, now: Instant) -> Result<Leave, Why> {
        let pass = self.passed(now)?.into();
        let most = self.places();
        let has_place = most.is_some_and(|most| self.usage().active.take(most));
        let (guard, extra) = (Some(Rc::clone(self)), Extra::default());
        let leave = Leave { guard, extra, pass, has_place, began: now, until: self.until(now) };
        if most.is_some() && !has_place {
            leave.tell(Outcome::Rejected);
            self.usage().rejected.fetch_add(1, Relaxed);
            return Err(Why::Concurrency);
        }
        Ok(leave)
    }

    /// Whether its breaker lets a request pass.
    fn passed(&self, now: Instant) -> Result<Option<Pass>, Why> {
        let Some((judge, state)) = self.breaker() else { return Ok(None) };
        let (passed, news) = judge.ask(state, milliseconds(now));
        self.turned(news);
        if passed.is_none() {
            state.short_circuits.fetch_add(1, Relaxed);
            return Err(Why::CircuitOpen);
        }
        Ok(passed)
    }

    /// Whether its breaker is open, and stays so: then nobody need wait for room.
    pub(super) fn refuses(&self, now: Instant) -> bool {
        let Some((judge, state)) = self.breaker().filter(|(_, state)| state.phase() == BreakerPhase::Open) else {
            return false;
        };
        let now_ms = milliseconds(now);
        let (passed, news) = judge.ask(state, now_ms);
        self.turned(news);
        match passed {
            Some(pass) => self.turned(judge.tell(state, pass, Outcome::Unknown, now_ms)),
            None => drop(state.short_circuits.fetch_add(1, Relaxed)),
        }
        passed.is_none()
    }

    /// Opens its breaker, if there is one: it has got more than it may.
    fn trip(&self, now: Instant) -> bool {
        let Some((judge, state)) = self.breaker() else { return false };
        self.turned(judge.trip(state, milliseconds(now)));
        state.short_circuits.fetch_add(1, Relaxed);
        true
    }

    /// How many requests it may have at once.
    fn places(&self) -> Option<u32> {
        self.rules.isolation.as_ref()?.concurrency
    }

    /// When a request is given up that begins now, if no answer has begun.
    fn until(&self, now: Instant) -> Option<Instant> {
        Some(now + self.rules.isolation.as_ref()?.timeout?)
    }

    /// A place in its isolation, if there is one.
    pub(super) fn place(self: &Rc<Self>) -> Option<Kept<'_>> {
        let has_place = match self.places() {
            Some(most) if !self.usage().active.take(most) => return None,
            most => most.is_some(),
        };
        Some(Kept { guard: self, has_place })
    }

    /// What is done while its breaker is open, or those of all its endpoints.
    fn on_open(&self) -> Option<&OnOpen> {
        let is_closed = |state: &std::sync::Arc<BreakerState>| state.phase() == BreakerPhase::Closed;
        let is_open = self.state.breaker.as_ref().is_some_and(|state| !is_closed(state));
        let own = self.rules.breaker.as_ref();
        let rules = own.filter(|_| is_open).or(self.rules.endpoint_breaker.as_ref()).or(own)?;
        Some(&rules.on_open)
    }

    /// Who is asked instead of the service; somebody may insist on that, whatever the fallback is for.
    fn goes_to(&self, why: Why, insists: bool) -> Option<&str> {
        if why == Why::CircuitOpen {
            match self.on_open().unwrap_or(&OnOpen::Fallback) {
                OnOpen::Cluster(name) => return Some(name),
                OnOpen::Fail => return None,
                OnOpen::Fallback => {}
            }
        }
        let fallback = self.rules.fallback.as_ref().filter(|fallback| insists || fallback.on.contains(&why))?;
        match &fallback.instead {
            Instead::To(name) => Some(name),
            Instead::Respond(_) => None,
        }
    }

    /// What is said instead of an answer of the agent's own; as [`Guard::goes_to`].
    fn says(&self, why: Why, insists: bool) -> Option<&Respond> {
        let is_failing = self.on_open().is_some_and(|on_open| *on_open != OnOpen::Fallback);
        if why == Why::CircuitOpen && is_failing {
            return None;
        }
        let fallback = self.rules.fallback.as_ref().filter(|fallback| insists || fallback.on.contains(&why))?;
        match &fallback.instead {
            Instead::Respond(respond) => Some(respond),
            Instead::To(_) => None,
        }
    }

    /// Whether answers of 5xx are not for the client.
    pub(super) fn replaces_errors(&self) -> bool {
        self.replaces(Why::ServerError)
    }

    /// Whether something is said instead of an answer that is not to be had.
    pub(super) fn replaces(&self, why: Why) -> bool {
        self.says(why, false).is_some()
    }

    /// Whether requests are kept, because another service may have to be asked.
    pub(super) fn keeps(&self) -> bool {
        let instead = self.rules.fallback.as_ref().map(|fallback| &fallback.instead);
        matches!(instead, Some(Instead::To(_)))
    }

    /// An answer of the agent's own, as the client is told it.
    pub(super) fn dress(&self, mut reply: Reply) -> Reply {
        let Some(why) = why(reply.counter) else { return reply };
        let rated = reply.rated.take();
        let mut reply = match self.says(why, reply.insists).filter(|_| !reply.is_last) {
            Some(respond) => {
                self.usage().fallbacks[why as usize].fetch_add(1, Relaxed);
                Reply::instead(respond, reply.counter)
            }
            None => reply,
        };
        reply.rated = rated;
        if self.rules.tells_reason {
            reply.fields.push((REASON, HeaderValue::from_static(why.word())));
        }
        reply
    }

    /// Why what came of asking is not for the client.
    pub(super) fn why(&self, outcome: &strategy::Outcome) -> Option<Why> {
        match outcome {
            strategy::Outcome::Refused(reply) => why(reply.counter),
            strategy::Outcome::Answered(answer) if answer.seen().status().is_some_and(|status| status >= 500) => {
                Some(Why::ServerError)
            }
            strategy::Outcome::Answered(_) | strategy::Outcome::Ours(..) => None,
        }
    }

    /// What a switch makes of a request.
    fn degraded(&self, chance: impl FnOnce() -> u64) -> Option<&DegradeTo> {
        let degrade = self.rules.degrade.as_ref()?;
        if !self.state.switch.as_ref()?.is_on() {
            return None;
        }
        if let DegradeTo::Shift { percent, .. } = &degrade.to
            && chance() % 100 >= u64::from(*percent)
        {
            return None;
        }
        self.usage().degraded.fetch_add(1, Relaxed);
        Some(&degrade.to)
    }
}

/// How long a request may wait, if that is bounded: the clock is looked at where it has to.
pub(super) type Patience<'p> = &'p dyn Fn() -> Option<Duration>;

/// What becomes of a future, unless its time is over before.
pub(super) async fn by<T>(until: Option<Instant>, future: impl Future<Output = T>) -> Option<T> {
    match until {
        Some(until) => tokio::time::timeout_at(until.into(), future).await.ok(),
        None => Some(future.await),
    }
}
