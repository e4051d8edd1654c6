//! Whether a service's limits let a request pass, before it goes to an endpoint.

mod queue;
mod rated;

use std::{
    rc::Rc,
    sync::{Arc, LazyLock, atomic::Ordering::Relaxed},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use http::{HeaderValue, header};
use smallvec::SmallVec;
use xxhash_rust::xxh64::xxh64;

pub(super) use self::queue::{Queue, Standing};
pub use self::rated::Rated;
use super::{
    guard::Patience,
    http::Reply,
    pending::{Line, knock},
};
use crate::{
    cluster::{LimitPlace, LimitState, RouteState, Service},
    config::{RequestLimit, request_limit::OnLimit, tuning::Part},
    limit::{
        adaptive::{self, Sample},
        calendar,
        request::{self, Judge, Left, Verdict},
    },
    route::Request,
};

/// What limits reckon from: all workers see the same time.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The limits of a service, ready to be asked.
pub(super) struct Gate {
    limits: Vec<Limit>,
    /// Those that requests wait for in lines of their own.
    queues: Vec<Rc<Queue>>,
    /// How many of them are asked first, once for each request. The others say whether there is room, and are asked again while one waits for it.
    first: usize,
    measures: bool,
    /// Whether any of them looks at the clock on the wall.
    asks_wall: bool,
    /// Whether any of them lets requests wait.
    waits: bool,
}

/// When limits are asked.
#[derive(Clone, Copy)]
struct When {
    now_ns: u64,
    /// The clock on the wall since 1970, for who goes by that.
    wall_ns: u64,
    /// How long a request may wait.
    patience_ns: u64,
}

struct Limit {
    state: Arc<LimitState>,
    judge: Asked,
}

/// Who is asked.
enum Asked {
    /// It counts requests.
    Counts(Judge),
    /// It measures what becomes of them.
    Measures(adaptive::Judge),
}

/// What a request took of limits; given back when it is dropped.
#[derive(Default)]
pub(super) struct Admitted {
    taken: SmallVec<[(Arc<LimitState>, LimitPlace); 2]>,
    /// Where others may be waiting for that.
    line: Option<Rc<Line>>,
    /// What its client is told of them.
    pub rated: Option<Box<Rated>>,
}

impl Admitted {
    /// Its client is told of this, too.
    pub(super) fn rate(&mut self, rated: Option<Box<Rated>>) {
        if rated.is_some() {
            self.rated = Rated::tighter(self.rated.take(), rated);
        }
    }

    /// Takes over what another has taken.
    pub(super) fn join(&mut self, mut other: Self) {
        match self.taken.is_empty() {
            true => std::mem::swap(&mut self.taken, &mut other.taken),
            false => self.taken.append(&mut other.taken),
        }
        self.rate(other.rated.take());
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        for (limit, place) in &self.taken {
            request::leave(limit.word(*place));
            if let Some(line) = limit.line() {
                knock(line);
            }
        }
        if let Some(line) = &self.line {
            line.knock();
        }
    }
}

impl Gate {
    /// Of a service.
    pub(super) fn of(service: &Service) -> Self {
        Self::new(&service.request_limits, service.config.pending.is_some())
    }

    /// Of a route; `None` if it has no limit.
    pub(super) fn of_route(state: &RouteState) -> Option<Rc<Self>> {
        (!state.request_limits.is_empty()).then(|| Rc::new(Self::new(&state.request_limits, false)))
    }

    fn new(states: &[Arc<LimitState>], has_line: bool) -> Self {
        let limit = |state: &Arc<LimitState>| {
            let wait_max_ns = state.config.wait_max.map_or(0, |wait| wait.as_nanos() as u64);
            let measures = || adaptive::Judge::of(&state.config.kind).map(Asked::Measures);
            let judge = Judge::new(&state.config.kind, wait_max_ns).map(Asked::Counts).or_else(measures)?;
            Some(Limit { judge, state: Arc::clone(state) })
        };
        let (lined, mut limits): (Vec<Limit>, Vec<Limit>) =
            states.iter().filter_map(limit).partition(|limit| limit.state.config.has_line());
        let mut first = limits.len();
        if has_line {
            limits.sort_by_key(Limit::is_of_room);
            first = limits.partition_point(|limit| !limit.is_of_room());
        }
        let measures = limits.iter().any(|limit| matches!(limit.judge, Asked::Measures(_)));
        let asks_wall = limits.iter().any(Limit::asks_wall);
        let waits = limits.iter().any(|limit| limit.state.config.wait_max.is_some());
        let queues = lined.into_iter().filter_map(Queue::of).collect();
        Self { limits, queues, first, measures, asks_wall, waits }
    }

    fn when(&self, now: Instant, patience_ns: u64) -> When {
        When { now_ns: now_ns(now), wall_ns: if self.asks_wall { wall_ns() } else { 0 }, patience_ns }
    }

    /// Whether what becomes of attempts is to be [`Self::seen`].
    pub(super) fn measures(&self) -> bool {
        self.measures
    }

    /// Takes up what became of an attempt. If its time says something: how long ago it was sent, and how long before its answer began.
    pub(super) fn seen(&self, sent: Option<(Duration, Duration)>, has_succeeded: bool, chance: impl Fn() -> u64) {
        let now_ns = now_ns(Instant::now());
        let asked_and_answered_ns = sent.map(|(ago, took)| {
            let asked_ns = now_ns.saturating_sub(ago.as_nanos() as u64);
            (asked_ns, asked_ns + took.as_nanos() as u64)
        });
        for limit in &self.limits {
            if let (Asked::Measures(judge), Some(known)) = (&limit.judge, limit.state.adaptive()) {
                judge.seen(known, Sample { now_ns, asked_and_answered_ns, has_succeeded }, chance());
            }
        }
    }

    /// Whether there is no limit.
    pub(super) fn is_open(&self) -> bool {
        self.limits.is_empty() && self.queues.is_empty()
    }

    /// The limits that requests wait for in lines of their own.
    pub(super) fn queues(&self) -> &[Rc<Queue>] {
        &self.queues
    }

    /// Asks every limit, but those that say whether there is room for who may wait for it. The request passes when it has waited for so long; its client waits for `patience` at most. What an earlier limit
    /// gave for good, as a token, is not taken back when a later one refuses: as with Envoy's and nginx's.
    pub(super) fn admit(
        &self,
        request: &Request<'_>,
        now: Instant,
        patience: Patience<'_>,
        chance: impl Fn() -> u64,
    ) -> Result<(Duration, Admitted), Over> {
        let patience = if self.waits { patience() } else { None };
        let when = self.when(now, patience.map_or(u64::MAX, |patience| patience.as_nanos() as u64));
        let (mut wait_ns, mut admitted) = (0, Admitted::default());
        for limit in &self.limits[..self.first] {
            match limit.ask(request, when, &chance) {
                (Verdict::After(wait), place) => {
                    wait_ns = wait_ns.max(wait);
                    admitted.rate(limit.rated(place, when));
                    let open = place.filter(|_| limit.counts_open());
                    admitted.taken.extend(open.map(|place| (Arc::clone(&limit.state), place)));
                }
                (Verdict::Refused(wait_ns), _) => {
                    return Err(Over { limit: Arc::clone(&limit.state), wait_ns, rated: admitted.rated.take() });
                }
            }
        }
        Ok((Duration::from_nanos(wait_ns), admitted))
    }

    /// What a client is told that asks nothing of them, because its answer is there already: what is left.
    fn rated(&self, request: &Request<'_>) -> Option<Box<Rated>> {
        let limits = self.limits.iter().chain(self.queues.iter().map(|queue| queue.limit()));
        let mut telling = limits.filter(|limit| limit.state.config.tells_limit).peekable();
        telling.peek()?;
        let when = When { now_ns: now_ns(Instant::now()), wall_ns: wall_ns(), patience_ns: 0 };
        telling.fold(None, |rated, limit| Rated::tighter(rated, limit.untouched(request, when)))
    }

    /// Takes room, if there is any, for a request that was admitted. Who waits in the line is told when it is given back.
    pub(super) fn room(
        &self,
        admitted: &mut Admitted,
        line: &Rc<Line>,
        (now, has_waited): (Instant, bool),
        chance: impl Fn() -> u64,
    ) -> bool {
        let when = self.when(now, 0);
        let mut taken = SmallVec::<[_; 2]>::new();
        for limit in &self.limits[self.first..] {
            let (verdict, place) = limit.decide(0, when, &chance);
            match (verdict, place) {
                (Verdict::After(_), Some(place)) => taken.push((Arc::clone(&limit.state), place)),
                (Verdict::After(_), None) => {}
                (Verdict::Refused(_), _) => {
                    taken
                        .iter()
                        .for_each(|(limit, place): &(Arc<LimitState>, LimitPlace)| request::leave(limit.word(*place)));
                    return false;
                }
            }
        }
        for limit in &self.limits[self.first..] {
            let state = &limit.state;
            if has_waited { &state.waited } else { &state.passed }.fetch_add(1, Relaxed);
            // These are of all requests together: there is one place.
            admitted.rate(limit.rated(taken.first().map(|(_, place)| *place), when));
        }
        admitted.taken.append(&mut taken);
        admitted.line = Some(Rc::clone(line));
        true
    }
}

impl Limit {
    /// Whether it bounds how many requests there are at once, whoever's they are.
    fn is_of_room(&self) -> bool {
        self.counts_open() && self.state.config.by.is_none()
    }

    fn counts_open(&self) -> bool {
        match &self.judge {
            Asked::Counts(judge) => judge.counts_open(),
            Asked::Measures(judge) => judge.counts_open(),
        }
    }

    fn ask(&self, request: &Request<'_>, when: When, chance: impl Fn() -> u64) -> (Verdict, Option<LimitPlace>) {
        let state = &self.state;
        let key = state.config.by.as_ref().map_or(0, |part| key(part, request));
        let (verdict, place) = self.decide(key, when, chance);
        let counter = match verdict {
            Verdict::After(0) => &state.passed,
            Verdict::After(_) => &state.waited,
            Verdict::Refused(_) => &state.refused,
        };
        counter.fetch_add(1, Relaxed);
        (verdict, place)
    }

    fn decide(
        &self,
        key: u64,
        When { now_ns, wall_ns, patience_ns }: When,
        chance: impl Fn() -> u64,
    ) -> (Verdict, Option<LimitPlace>) {
        let state = &self.state;
        let mut left_ns = None;
        if let Some(hours) = &state.config.hours {
            left_ns = calendar::left_ns(hours, wall_ns);
            if left_ns.is_none() {
                return (Verdict::After(0), None);
            }
        }
        let (verdict, place) = match (&self.judge, state.adaptive()) {
            (Asked::Counts(judge), _) => {
                let is_open = |word| judge.counts_open() && word > 0;
                let place = state.place(key, now_ns, judge.fresh(now_ns), is_open);
                let at_ns = if judge.goes_by_wall() { wall_ns } else { now_ns };
                let ask = |place| judge.ask(state.word(place), at_ns, patience_ns);
                (place.map_or(Verdict::Refused(None), ask), place)
            }
            (Asked::Measures(judge), Some(known)) => {
                (judge.ask(known, now_ns, chance()), state.place(key, now_ns, 0, |_| false))
            }
            (Asked::Measures(_), None) => (Verdict::After(0), None),
        };
        match (verdict, left_ns) {
            // When it does not hold any more, everybody may come.
            (Verdict::Refused(Some(wait_ns)), Some(left_ns)) => (Verdict::Refused(Some(wait_ns.min(left_ns))), place),
            (Verdict::After(wait_ns), Some(left_ns)) => (Verdict::After(wait_ns.min(left_ns)), place),
            _ => (verdict, place),
        }
    }

    /// What the client of a request is told that is counted there.
    fn rated(&self, place: Option<LimitPlace>, when: When) -> Option<Box<Rated>> {
        let (Asked::Counts(judge), Some(place)) = (&self.judge, place) else { return None };
        let at_ns = if judge.goes_by_wall() { when.wall_ns } else { when.now_ns };
        Rated::of(&self.state.config, || judge.left(self.state.word(place).load(Relaxed), at_ns))
    }

    /// What the client of a request is told that is not counted.
    fn untouched(&self, request: &Request<'_>, when: When) -> Option<Box<Rated>> {
        let (state, Asked::Counts(judge)) = (&self.state, &self.judge) else { return None };
        if state.config.hours.as_ref().is_some_and(|hours| calendar::left_ns(hours, when.wall_ns).is_none()) {
            return None;
        }
        let known = state.known(state.config.by.as_ref().map_or(0, |part| key(part, request)));
        let at_ns = if judge.goes_by_wall() { when.wall_ns } else { when.now_ns };
        Rated::of(&state.config, || judge.left(known.unwrap_or_else(|| judge.fresh(when.now_ns)), at_ns))
    }

    fn asks_wall(&self) -> bool {
        let is_aligned = matches!(&self.judge, Asked::Counts(judge) if judge.goes_by_wall());
        is_aligned || self.state.config.hours.is_some()
    }
}

/// What a client is told of the limits of its route and of its service by an answer that they do not count: of a cache.
pub(super) fn rated(gates: [Option<&Gate>; 2], request: &Request<'_>) -> Option<Box<Rated>> {
    gates.into_iter().flatten().fold(None, |rated, gate| Rated::tighter(rated, gate.rated(request)))
}

/// As limits reckon.
fn now_ns(now: Instant) -> u64 {
    now.saturating_duration_since(*EPOCH).as_nanos() as u64
}

/// The clock on the wall since 1970.
fn wall_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}

/// Of a part of the request; those who do not say it are counted together.
fn key<'r>(part: &'r Part, request: &Request<'r>) -> u64 {
    let text = match part {
        Part::Header(name) => request.header(name),
        Part::Cookie(name) => request.cookie(name),
        Part::Query(name) => request.parameter(name),
        Part::Source => return xxh64(&request.caller.to_be_bytes(), 0),
    };
    text.map_or(0, |text| xxh64(text, 0))
}

/// A limit that does not let a request pass.
pub(super) struct Over {
    limit: Arc<LimitState>,
    wait_ns: Option<u64>,
    /// What is told of those that let it pass.
    rated: Option<Box<Rated>>,
}

impl Over {
    /// Whether the breaker of the service is to open by that.
    pub(super) fn breaks(&self) -> bool {
        self.limit.config.on_limit == OnLimit::Break
    }

    /// What the request is told.
    pub(super) fn reply(self) -> Reply {
        let mut reply = refusal(&self.limit.config, self.wait_ns);
        reply.rated = reply.rated.or(self.rated);
        reply
    }
}

/// What a request is told that a limit does not let pass, though it waited, or because it may not wait; somebody else may come so much later.
pub(super) fn refused(limit: &LimitState, after: Duration) -> Reply {
    limit.refused.fetch_add(1, Relaxed);
    refusal(&limit.config, Some(after.as_nanos() as u64))
}

fn refusal(config: &RequestLimit, wait_ns: Option<u64>) -> Reply {
    let mut reply = Reply::limited(config.status, &config.name, config.grpc_resource_exhausted);
    reply.insists = config.on_limit == OnLimit::Fallback;
    // Whole seconds, as RFC 9110 section 10.2.3 has them.
    let wait_s = wait_ns.map(|wait| wait.div_ceil(1_000_000_000).max(1));
    reply.fields.extend(wait_s.map(|wait| (header::RETRY_AFTER, HeaderValue::from(wait))));
    reply.rated = Rated::of(config, || Left { requests: 0, reset_ns: wait_ns.map(|wait| wait.max(1)) });
    reply
}
