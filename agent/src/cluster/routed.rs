//! What is counted of a service's routes, node-wide. It outlives a reload, by the route's name.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, AtomicUsize},
    },
};

use super::{BreakerState, CanaryState, LimitState, Pace, request_limit};
use crate::config::{
    Route,
    route::{Action, Forward},
};

/// What is counted of one route.
#[derive(Clone, Debug, Default)]
pub struct RouteState {
    /// Requests that took it.
    pub requests: Arc<AtomicU64>,
    /// Cursors of round robin, one for each of its targets.
    pub cursors: Vec<Arc<AtomicUsize>>,
    /// How far its canary has come, if it has one.
    pub canary: Option<Arc<CanaryState>>,
    /// Of its breaker, if it has one.
    pub breaker: Option<Arc<BreakerState>>,
    /// Of the copies of its requests, if there are any.
    pub mirror: Option<Arc<MirrorState>>,
    /// How long its requests take, where its timeout follows that.
    pub pace: Option<Pace>,
    /// What is known of its request limits, in the order of the configuration.
    pub request_limits: Vec<Arc<LimitState>>,
    /// Of its requests, if nobody waits for answers.
    pub one_way: Option<Arc<OneWayState>>,
}

/// What became of requests whose answers nobody waits for.
#[derive(Debug, Default)]
pub struct OneWayState {
    /// All of their bytes were written.
    pub sent: AtomicU64,
    /// Nobody took them, or not all of them; or their clients broke off.
    pub failed: AtomicU64,
    /// They were refused: too many were taken and not yet written.
    pub busy: AtomicU64,
    /// Those that are.
    pub taken: AtomicU32,
    /// Answers that are being read and dropped.
    pub dropping: AtomicU32,
}

/// What became of the copies of a route's requests.
#[derive(Debug, Default)]
pub struct MirrorState {
    /// They were answered, with whatever.
    pub answered: AtomicU64,
    /// Nobody took them, or they got no answer, or none in time.
    pub failed: AtomicU64,
    /// There were none: the requests' bodies were too long.
    pub too_large: AtomicU64,
    /// There were none: too many were under way.
    pub busy: AtomicU64,
    /// Those under way.
    pub active: AtomicU32,
    /// Cursor of round robin.
    pub cursor: Arc<AtomicUsize>,
}

/// Of these routes, in their order, with what there was of those `before`.
pub(super) fn states(routes: &[Route], before: Option<(&[Route], &[RouteState])>) -> Vec<RouteState> {
    let known: HashMap<&str, &RouteState> =
        before.into_iter().flat_map(|(routes, states)| routes.iter().map(|it| it.name.as_str()).zip(states)).collect();
    let state = |route: &Route| {
        let mut state = known.get(route.name.as_str()).copied().cloned().unwrap_or_default();
        let Action::Forward(Forward { targets, canary, mirror, .. }) = &route.action else {
            return RouteState { requests: state.requests, ..RouteState::default() };
        };
        state.request_limits = request_limit::states(&route.request_limits, &state.request_limits);
        state.one_way = route.one_way.then(|| state.one_way.unwrap_or_default());
        state.pace = Pace::of(route.timing.as_ref(), state.pace.as_ref());
        state.cursors.resize_with(targets.len(), Arc::default);
        state.breaker = route.breaker.as_ref().map(|rules| BreakerState::following(state.breaker.as_ref(), rules));
        state.mirror = mirror.as_ref().map(|_| state.mirror.unwrap_or_default());
        state.canary = canary.as_ref().map(|rules| {
            let same = state.canary.filter(|known| known.is_of(rules, targets));
            same.unwrap_or_else(|| Arc::new(CanaryState::new(rules, targets)))
        });
        state
    };
    routes.iter().map(state).collect()
}
