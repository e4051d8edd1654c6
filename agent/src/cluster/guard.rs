//! What is known of how services are guarded, node-wide. It outlives a reload.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU32, AtomicU64,
            Ordering::{AcqRel, Relaxed},
        },
    },
};

use super::{BreakerPhase, BreakerWord, Calls, Endpoint, ThresholdState};
use crate::config::{
    Guard,
    guard::{Breaker, Why},
};

/// In how many parts of its window a breaker counts at most.
pub const BUCKETS_MAX: usize = 10;

/// A switch that services and routes are degraded by.
#[derive(Debug)]
pub struct Switch {
    name: String,
    /// What the file said last.
    said: AtomicBool,
    on: AtomicBool,
}

impl Switch {
    /// What the file calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is on.
    pub fn is_on(&self) -> bool {
        self.on.load(Relaxed)
    }

    /// Sets it, until somebody sets it again or the file says something else than it did.
    pub fn set(&self, on: bool) {
        self.on.store(on, Relaxed);
    }
}

/// The switches of a configuration, by their names.
pub type Switches = BTreeMap<String, Arc<Switch>>;

/// Of what a file says. A switch that was there stays the same, and holds what was set at run time while the file says of it what it did.
pub(super) fn switches(said: &BTreeMap<String, bool>, before: &Switches) -> Switches {
    let switch = |(name, on): (&String, &bool)| {
        let known = before.get(name).map(Arc::clone);
        let switch =
            known.unwrap_or_else(|| Arc::new(Switch { name: name.clone(), said: (*on).into(), on: (*on).into() }));
        if switch.said.swap(*on, Relaxed) != *on {
            switch.set(*on);
        }
        (name.clone(), switch)
    };
    said.iter().map(switch).collect()
}

/// What is known of a breaker, in words that only its judge understands.
#[derive(Debug)]
pub struct BreakerState {
    /// What was configured.
    pub config: Breaker,
    /// What it is at.
    pub phase: AtomicU64,
    /// What was counted lately.
    pub counts: [AtomicU64; BUCKETS_MAX],
    /// When something bad was last counted, in milliseconds; 0 for never.
    pub bad_at_ms: AtomicU64,
    /// How often it turned, by [`BreakerPhase`].
    pub turned: [AtomicU64; 3],
    /// Requests that it kept from the service.
    pub short_circuits: AtomicU64,
    /// What became of the others, while somebody watches.
    pub calls: Calls,
}

impl BreakerState {
    /// Closed, with nothing counted.
    pub fn new(config: &Breaker) -> Self {
        let (phase, counts, bad_at_ms, turned, short_circuits, calls) = Default::default();
        Self { config: config.clone(), phase, counts, bad_at_ms, turned, short_circuits, calls }
    }

    /// The one there was, if it goes by these rules; else a new one.
    pub(super) fn following(known: Option<&Arc<Self>>, rules: &Breaker) -> Arc<Self> {
        let same = known.filter(|known| known.config == *rules).map(Arc::clone);
        same.unwrap_or_else(|| Arc::new(Self::new(rules)))
    }

    /// What it does; one that has rested for long enough is open until somebody asks.
    pub fn phase(&self) -> BreakerPhase {
        BreakerWord::of(self.phase.load(Relaxed)).phase
    }
}

/// What is counted of a guarded service.
#[derive(Debug, Default)]
pub struct Usage {
    /// Requests that have a place in its isolation.
    pub active: Count,
    /// Requests that are with who stands in for it.
    pub standing_in: Count,
    /// Requests that found no place.
    pub rejected: AtomicU64,
    /// Requests that were given up because they took too long.
    pub timeouts: AtomicU64,
    /// Requests that a fallback stood in for, by [`Why`].
    pub fallbacks: [AtomicU64; Why::ALL.len()],
    /// Requests for which it would have, if there had been room.
    pub fallbacks_rejected: AtomicU64,
    /// Requests that a switch degraded.
    pub degraded: AtomicU64,
    /// Requests that were given up because the time that their callers gave was over: no breaker counts them.
    pub callers_deadlines: AtomicU64,
}

/// How many there are at once.
#[derive(Debug, Default)]
pub struct Count(AtomicU32);

impl Count {
    /// One more, if there is room; whether there was.
    pub fn take(&self, most: u32) -> bool {
        let one_more = |now: u32| (now < most).then_some(now + 1);
        self.0.fetch_update(AcqRel, Relaxed, one_more).is_ok()
    }

    /// One less.
    pub fn give_back(&self) {
        let _ = self.0.fetch_update(AcqRel, Relaxed, |now| now.checked_sub(1));
    }

    /// How many.
    pub fn now(&self) -> u32 {
        self.0.load(Relaxed)
    }
}

/// What is known of how a service or a route is guarded.
#[derive(Clone, Debug, Default)]
pub struct GuardState {
    /// Of its breaker.
    pub breaker: Option<Arc<BreakerState>>,
    /// Of those of its endpoints, in their order; none if they have none.
    pub endpoints: Vec<Arc<BreakerState>>,
    /// Of what is bounded of it.
    pub thresholds: Option<Arc<ThresholdState>>,
    /// Of its requests.
    pub usage: Arc<Usage>,
    /// What degrades it.
    pub switch: Option<Arc<Switch>>,
}

impl GuardState {
    /// Of what is configured, with what there was before.
    pub(super) fn of(config: &Guard, before: Option<&Self>, switches: &Switches) -> Self {
        let known = before.and_then(|before| before.breaker.as_ref());
        let breaker = config.breaker.as_ref().map(|rules| BreakerState::following(known, rules));
        let kept = before.and_then(|before| before.thresholds.clone());
        let switch = config.degrade.as_ref().and_then(|degrade| switches.get(&degrade.switch)).map(Arc::clone);
        Self {
            breaker,
            endpoints: Vec::new(),
            thresholds: config.thresholds.map(|_| kept.unwrap_or_default()),
            usage: before.map(|before| Arc::clone(&before.usage)).unwrap_or_default(),
            switch,
        }
    }
}

/// What is known of the breakers of endpoints, with what there was of those that stay.
pub(super) fn of_endpoints(
    config: &Guard,
    endpoints: &[Arc<Endpoint>],
    (known, states): (&[Arc<Endpoint>], &[Arc<BreakerState>]),
) -> Vec<Arc<BreakerState>> {
    let Some(rules) = &config.endpoint_breaker else { return Vec::new() };
    let known: HashMap<u32, &Arc<BreakerState>> = known.iter().map(|it| it.id).zip(states).collect();
    let state = |endpoint: &Arc<Endpoint>| BreakerState::following(known.get(&endpoint.id).copied(), rules);
    endpoints.iter().map(state).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_switch_keeps_what_was_set_until_the_file_says_otherwise() {
        let said = |on| BTreeMap::from([("sale".to_owned(), on)]);
        let first = switches(&said(false), &Switches::default());
        first["sale"].set(true);
        let second = switches(&said(false), &first);
        assert!(second["sale"].is_on() && Arc::ptr_eq(&first["sale"], &second["sale"]));
        let third = switches(&said(true), &second);
        third["sale"].set(false);
        assert!(!switches(&said(true), &third)["sale"].is_on());
        assert!(!switches(&said(false), &third)["sale"].is_on());
        assert!(switches(&BTreeMap::new(), &third).is_empty());
    }

    #[test]
    fn there_are_never_more_than_there_is_room_for() {
        let count = Count::default();
        assert_eq!([(); 3].map(|()| count.take(2)), [true, true, false]);
        count.give_back();
        assert!(count.take(2) && !count.take(2) && !count.take(0));
        (0..5).for_each(|_| count.give_back());
        assert_eq!(count.now(), 0);
    }
}
