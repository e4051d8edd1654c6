//! Breakers of services that the kernel balances: what the hooks have counted of their handshakes is judged here, and what was decided the
//! hooks enforce, at the next `connect()`.
//!
//! A handshake that began before the breaker turned counts with those after it: the hooks count them together.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::{
    breaker::{Judge, Outcome, Pass},
    cluster::{BreakerPhase, BreakerState, Service, Snapshot},
    config::Mode,
    kernel::{Gate, Kernel, monotonic_ns},
};

/// How often the hooks' counts are looked at. A failure is told of at once.
const LOOK: Duration = Duration::from_millis(50);
/// Most handshakes of a kind that are judged at one look: more say no more.
const HANDSHAKES_MAX: u64 = 100_000;
/// How much longer than the breaker is open the hooks refuse, if they are told nothing more.
const LEASE_NS: u64 = 2_000_000_000;

/// Those breakers.
#[derive(Default)]
pub struct Gates {
    watched: HashMap<u32, Watched>,
    look: Option<Interval>,
}

struct Watched {
    service: Arc<Service>,
    state: Arc<BreakerState>,
    judge: Judge,
    /// Handshakes that succeeded and that failed, until the last look; `None`: there was none.
    seen: Option<(u64, u64)>,
    /// Those that may try it.
    passes: Vec<Pass>,
    /// What the hooks go by.
    told: BreakerPhase,
    /// What was refused before the hooks began to count anew.
    refused: u64,
}

impl Gates {
    /// Looks after the breakers of `snapshot`; what is known of those that stay is kept.
    pub fn follow(&mut self, snapshot: &Snapshot) {
        let mut before = std::mem::take(&mut self.watched);
        for service in snapshot.services.iter().filter(|service| service.config.mode == Mode::Kernel) {
            let Some(state) = &service.guard.breaker else { continue };
            let known = before.remove(&service.id).filter(|known| Arc::ptr_eq(&known.state, state));
            let watched = match known {
                Some(known) => Watched { service: Arc::clone(service), ..known },
                None => Watched::new(service, state),
            };
            self.watched.insert(service.id, watched);
        }
    }

    /// When it is time to look.
    pub async fn turn(&mut self) {
        if self.watched.is_empty() {
            return std::future::pending().await;
        }
        let every = || {
            let mut every = interval(LOOK);
            every.set_missed_tick_behavior(MissedTickBehavior::Delay);
            every
        };
        self.look.get_or_insert_with(every).tick().await;
    }

    /// Looks at all of them.
    pub fn look(&mut self, kernel: &mut Kernel) {
        self.watched.values_mut().for_each(|watched| watched.look(kernel));
    }

    /// Looks at one, of which something was told.
    pub fn look_at(&mut self, service: u32, kernel: &mut Kernel) {
        if let Some(watched) = self.watched.get_mut(&service) {
            watched.look(kernel);
        }
    }
}

impl Watched {
    fn new(service: &Arc<Service>, state: &Arc<BreakerState>) -> Self {
        Self {
            service: Arc::clone(service),
            state: Arc::clone(state),
            judge: Judge::new(&state.config),
            seen: None,
            passes: Vec::new(),
            told: BreakerPhase::Closed,
            refused: state.short_circuits.load(Relaxed),
        }
    }

    fn look(&mut self, kernel: &mut Kernel) {
        let (service, now_ns) = (&self.service, monotonic_ns());
        let now = kernel.handshakes(service.id, service.endpoints.iter().map(|endpoint| endpoint.id));
        let before = self.seen.replace(now);
        if before.is_none() && self.state.phase() == BreakerPhase::Closed {
            // Whatever an agent before this one has left there.
            self.told = BreakerPhase::Closed;
            return kernel.set_gate(service.id, None);
        }
        let since = |count: fn((u64, u64)) -> u64| {
            before.map_or(0, |before| count(now).saturating_sub(count(before))).min(HANDSHAKES_MAX)
        };
        let (good, bad) = (since(|(good, _)| good), since(|(_, bad)| bad));
        let gate = kernel.gate(service.id).filter(|_| before.is_some());
        if let Some(gate) = gate {
            self.state.short_circuits.store(self.refused + gate.refused, Relaxed);
        }
        let is_untried = gate.is_some_and(|gate| gate.left > 0);
        let asked = judge(&self.judge, &self.state, &mut self.passes, (good, bad), is_untried, now_ns / 1_000_000);
        self.tell(kernel, asked, gate.unwrap_or_default(), now_ns);
    }

    /// Tells the hooks, if it is news: what the breaker does, and that so many more may try.
    fn tell(&mut self, kernel: &mut Kernel, asked: u64, gate: Gate, now_ns: u64) {
        let (phase, id) = (self.state.phase(), self.service.id);
        if phase == self.told && asked == 0 {
            return;
        }
        if phase != self.told {
            tracing::info!(service = self.service.config.name, breaker = phase.word(), "breaker turned");
        }
        self.told = phase;
        let open_ns = self.state.config.open_for.as_nanos() as u64;
        match phase {
            BreakerPhase::Closed => {
                self.refused += gate.refused;
                self.passes.clear();
                kernel.set_gate(id, None);
            }
            BreakerPhase::Open => {
                self.passes.clear();
                kernel.set_gate(id, Some((Gate { left: 0, ..gate }, now_ns + open_ns + LEASE_NS)));
            }
            // Nobody may dial for long, and then as many may try as before: who looks after that is the agent, while it lives.
            BreakerPhase::HalfOpen => kernel.set_gate(id, Some((Gate { left: asked, ..gate }, u64::MAX))),
        }
    }
}

/// Takes up what became of handshakes: so many succeeded and failed. How many more may try the service now.
///
/// Which of them came first nobody knows: they are taken as evenly mixed. But a service that is being tried has failed if anybody has.
fn judge(
    judge: &Judge,
    state: &BreakerState,
    passes: &mut Vec<Pass>,
    (good, bad): (u64, u64),
    is_untried: bool,
    now_ms: u64,
) -> u64 {
    if state.phase() == BreakerPhase::Closed {
        for outcome in mixed(good, bad) {
            let (pass, _) = judge.ask(state, now_ms);
            if let Some(pass) = pass {
                judge.tell(state, pass, outcome, now_ms);
            }
            if state.phase() != BreakerPhase::Closed {
                break;
            }
        }
        return 0;
    }
    let outcomes = (0..bad).map(|_| Outcome::Failed(0)).chain((0..good).map(|_| Outcome::Answered(0)));
    for outcome in outcomes {
        let Some(pass) = passes.pop() else { break };
        judge.tell(state, pass, outcome, now_ms);
    }
    if state.phase() == BreakerPhase::Closed || is_untried {
        return 0;
    }
    let before = passes.len();
    for _ in 0..state.config.half_open_requests {
        passes.extend(judge.ask(state, now_ms).0);
    }
    if state.config.half_open_requests == 0 {
        // It closes by itself.
        judge.ask(state, now_ms);
    }
    (passes.len() - before) as u64
}

/// So many of each, evenly mixed.
fn mixed(good: u64, bad: u64) -> impl Iterator<Item = Outcome> {
    let all = good + bad;
    let is_bad = move |place: u64| (place + 1) * bad / all > place * bad / all;
    (0..all).map(move |place| if is_bad(place) { Outcome::Failed(0) } else { Outcome::Answered(0) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::guard::{Breaker, Kind, OnOpen, Over};

    fn rules(kind: Kind, half_open_requests: u32) -> Breaker {
        let open_for = Duration::from_millis(1_000);
        Breaker {
            kind,
            open_for,
            half_open_requests,
            rests_from_try: false,
            counts_rejected: false,
            on_open: OnOpen::Fail,
        }
    }

    /// A breaker fed by counts.
    struct Bench(Judge, BreakerState, Vec<Pass>);

    impl Bench {
        fn of(rules: &Breaker) -> Self {
            Self(Judge::new(rules), BreakerState::new(rules), Vec::new())
        }

        fn look(&mut self, counts: (u64, u64), now_ms: u64) -> (u64, BreakerPhase) {
            let asked = judge(&self.0, &self.1, &mut self.2, counts, false, now_ms);
            (asked, self.1.phase())
        }
    }

    #[test]
    fn failures_in_a_row_open_it_and_all_who_try_must_succeed() {
        use BreakerPhase::{Closed, HalfOpen, Open};
        let mut bench = Bench::of(&rules(Kind::Consecutive(3), 2));
        assert_eq!(bench.look((1, 5), 1_000), (0, Open), "at least three of the five came one after the other");
        let mut bench = Bench::of(&rules(Kind::Consecutive(3), 2));
        assert_eq!(bench.look((500, 900), 1_000), (0, Closed), "every third or so succeeds");
        let mut bench = Bench::of(&rules(Kind::Consecutive(3), 2));
        assert_eq!(bench.look((1, 1), 1_000), (0, Closed));
        assert_eq!(bench.look((0, 1), 1_050), (0, Closed));
        assert_eq!(bench.look((0, 1), 1_100), (0, Open));
        assert_eq!(bench.look((0, 7), 1_500), (0, Open), "of before");
        assert_eq!(bench.look((0, 0), 2_101), (2, HalfOpen));
        assert_eq!(bench.look((1, 0), 2_150), (0, HalfOpen));
        assert_eq!(bench.look((0, 1), 2_200), (0, Open));
        assert_eq!(bench.look((0, 0), 3_201), (2, HalfOpen));
        assert_eq!(bench.look((2, 0), 3_250), (0, Closed));
    }

    #[test]
    fn a_ratio_is_of_those_that_came_to_an_end() {
        let over = Over { window: Duration::from_secs(10), buckets: 10, requests: 20 };
        let mut bench = Bench::of(&rules(Kind::ErrorRatio { percent: 50, over }, 1));
        assert_eq!(bench.look((15, 4), 1_000), (0, BreakerPhase::Closed));
        assert_eq!(bench.look((0, 10), 1_050), (0, BreakerPhase::Closed), "14 of 29");
        assert_eq!(bench.look((0, 1), 1_100), (0, BreakerPhase::Open), "15 of 30");
    }
}
