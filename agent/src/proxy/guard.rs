//! What keeps a service alive when its endpoints fail, around each of its requests: whether a switch degrades it, whether the limits, the
//! breaker and the isolation let it pass, and what stands in for an answer that is not to be had.

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
    Cluster, Hop,
    admit::{Admitted, Gate, Rated, Standing},
    asker::Asker,
    circuit::{Circuit, Ticket},
    http::Reply,
    pending::{Refusal, Stand},
    strategy,
    timing::Time,
};
use crate::{
    breaker::{Judge, Outcome, Pass},
    cluster::{BreakerPhase, BreakerState, GuardState, Held, Service, Usage},
    config::{
        self, HttpVersion, Strategy,
        guard::{DegradeTo, Instead, OnOpen, Respond, Why},
        threshold::Threshold,
    },
    record::Counter,
    route::Request,
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

impl Hop {
    /// The cluster of the service of this name, as of now.
    fn cluster_named(&self, name: &str) -> Option<Rc<Cluster>> {
        let service = self.snapshot.borrow_mut().load().by_name(name)?.id;
        self.cluster_of(service)
    }

    /// Another service that is to answer instead of a guarded one, if there is room for the request there.
    pub(super) fn stand_in(&self, guard: &Rc<Guard>, why: Why) -> Option<(Rc<Cluster>, StandingIn)> {
        self.stand_in_for(guard, why, false)
    }

    /// As [`Hop::stand_in`], for what somebody may insist on.
    pub(super) fn stand_in_for(&self, guard: &Rc<Guard>, why: Why, insists: bool) -> Option<(Rc<Cluster>, StandingIn)> {
        let name = guard.goes_to(why, insists)?;
        self.stand_in_by(guard, why, name)
    }

    /// The same of one that is named.
    fn stand_in_by(&self, guard: &Rc<Guard>, why: Why, name: &str) -> Option<(Rc<Cluster>, StandingIn)> {
        let cluster = self.cluster_named(name)?;
        let most = guard.rules.fallback.as_ref().and_then(|fallback| fallback.concurrency);
        let usage = guard.usage();
        if most.is_some_and(|most| !usage.standing_in.take(most)) {
            usage.fallbacks_rejected.fetch_add(1, Relaxed);
            return None;
        }
        usage.fallbacks[why as usize].fetch_add(1, Relaxed);
        Some((cluster, StandingIn { place: most.map(|_| Rc::clone(guard)) }))
    }

    /// Whether a request may go on, and to whom; or what it is told. Who has a time waits no longer than that.
    pub(super) fn enter(
        &self,
        home: &Rc<Cluster>,
        of_route: OfRoute<'_>,
        request: &Request<'_>,
        (now, time): (Instant, Option<Time>),
    ) -> Result<Entered, Reply> {
        let patience: Patience<'_> = &|| time.map(|time| time.left());
        let mut cluster = Rc::clone(home);
        match home.guard.as_ref().and_then(|guard| guard.degraded(|| self.chance())) {
            Some(DegradeTo::Respond(respond)) => {
                return Err(Reply::instead(respond, Counter::Degraded));
            }
            // One that was removed meanwhile takes nothing.
            Some(DegradeTo::Shift { to, .. }) => cluster = self.cluster_named(to).unwrap_or(cluster),
            None => {}
        }
        let mut ticket = None;
        if let Some(circuit) = of_route.circuit {
            ticket = circuit.ask(now);
            if ticket.is_none() {
                let other = self.around(circuit, &cluster)?;
                return self.enter_at(other, None, request, now, patience);
            }
        }
        let mut entered = self.enter_at((cluster, None), of_route.gate, request, now, patience)?;
        if entered.standing_in.is_none() {
            entered.extra.ticket = ticket;
        }
        entered.extra.is_callers_time = time.is_some_and(|time| time.is_callers());
        Ok(entered)
    }

    /// Who is asked while the breaker of a route is open.
    fn around(&self, circuit: &Circuit, cluster: &Cluster) -> Result<(Rc<Cluster>, Option<StandingIn>), Reply> {
        let mut reply = Reply::guarded(Why::CircuitOpen);
        let other = match (circuit.on_open(), &cluster.guard) {
            (OnOpen::Fail, _) | (OnOpen::Fallback, None) => None,
            (OnOpen::Cluster(name), Some(guard)) => self.stand_in_by(guard, Why::CircuitOpen, name),
            (OnOpen::Cluster(name), None) => {
                self.cluster_named(name).map(|cluster| (cluster, StandingIn { place: None }))
            }
            (OnOpen::Fallback, Some(guard)) => self.stand_in(guard, Why::CircuitOpen),
        };
        reply.is_last = *circuit.on_open() != OnOpen::Fallback;
        other.map(|(cluster, place)| (cluster, Some(place))).ok_or(reply)
    }

    /// As [`Hop::enter`], of who is meant by now, or stands in for that one.
    pub(super) fn enter_at(
        &self,
        (mut cluster, mut standing_in): (Rc<Cluster>, Option<StandingIn>),
        mut of_route: Option<&Gate>,
        request: &Request<'_>,
        now: Instant,
        patience: Patience<'_>,
    ) -> Result<Entered, Reply> {
        let mut rated = None;
        loop {
            let (why, mut reply) = match self.pass(&cluster, of_route.take(), request, now, patience) {
                Ok((Passed { wait, mut admitted, leave, stand }, held)) => {
                    admitted.rate(rated);
                    let extra = Extra { held, ..Extra::default() };
                    return Ok(Entered { cluster, wait, admitted, leave, standing_in, stand, extra });
                }
                Err(refused) => refused,
            };
            let other = cluster.guard.as_ref().filter(|_| standing_in.is_none());
            let Some((other, place)) = other.and_then(|guard| self.stand_in_for(guard, why, reply.insists)) else {
                reply.rated = Rated::tighter(rated, reply.rated);
                return Err(reply);
            };
            (cluster, standing_in, rated) = (other, Some(place), reply.rated);
        }
    }

    /// Whether a route and the service that it leads to let a request in.
    fn pass(
        &self,
        cluster: &Cluster,
        of_route: Option<&Gate>,
        request: &Request<'_>,
        now: Instant,
        patience: Patience<'_>,
    ) -> Result<(Passed, Option<Held>), Refusal> {
        let mut rated = None;
        self.pass_by(cluster, (of_route, &mut rated), request, now, patience).map_err(|(why, mut reply)| {
            reply.rated = Rated::tighter(rated, reply.rated);
            (why, reply)
        })
    }

    /// The same; what is told of limits that let it pass is known also if something else does not.
    fn pass_by(
        &self,
        cluster: &Cluster,
        (of_route, rated): (Option<&Gate>, &mut Option<Box<Rated>>),
        request: &Request<'_>,
        now: Instant,
        patience: Patience<'_>,
    ) -> Result<(Passed, Option<Held>), Refusal> {
        if !cluster.circuits.is_empty() && cluster.refuses(now) {
            return Err((Why::CircuitOpen, Reply::guarded(Why::CircuitOpen)));
        }
        let held = cluster.service.hold(Threshold::Requests);
        let held = held.map_err(|overflow| (Why::Overflow, Reply::overflow(overflow.0)))?;
        let (mut wait, mut admitted, mut queues) = (Duration::ZERO, Admitted::default(), Vec::new());
        for gate in of_route.into_iter().chain([&cluster.gate]).filter(|gate| !gate.is_open()) {
            let (for_long, mut taken) = gate.admit(request, now, patience, || self.chance()).map_err(|over| {
                let broken = cluster.guard.as_ref().filter(|guard| over.breaks() && guard.trip(now));
                match broken {
                    Some(_) => (Why::CircuitOpen, Reply::guarded(Why::CircuitOpen)),
                    None => (Why::Limit, over.reply()),
                }
            })?;
            wait = wait.max(for_long);
            *rated = Rated::tighter(rated.take(), taken.rated.take());
            admitted.join(taken);
            queues.extend_from_slice(gate.queues());
        }
        let standing = Standing::of(queues, wait, &mut admitted, (now, patience));
        if let Some(standing) = standing.map_err(|reply| (why_of(&reply), reply))? {
            admitted.rate(rated.take());
            let stand = Some(Stand::Queued(standing));
            return Ok((Passed { wait, admitted, leave: None, stand }, held));
        }
        let passed = match &cluster.line {
            None => {
                let leave = cluster.guard.as_ref().map(|guard| guard.enter(now)).transpose();
                let leave = leave.map_err(|why| (why, Reply::guarded(why)))?;
                Ok(Passed { wait, admitted, leave, stand: None })
            }
            Some(line) if wait.is_zero() => self.room_or_line(cluster, line, admitted, (now, patience())),
            Some(_) => Ok(Passed { wait, admitted, leave: None, stand: Some(Stand::Later) }),
        };
        let mut passed = passed?;
        passed.admitted.rate(rated.take());
        Ok((passed, held))
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
