//! What is counted of a service's routes, node-wide. It outlives a reload, by the route's name.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize},
    },
};

use crate::config::{Route, route::Action};

/// What is counted of one route.
#[derive(Clone, Debug, Default)]
pub struct RouteState {
    /// Requests that took it.
    pub requests: Arc<AtomicU64>,
    /// Cursors of round robin, one for each of its targets.
    pub cursors: Vec<Arc<AtomicUsize>>,
}

/// Of these routes, in their order, with what there was of those `before`.
pub(super) fn states(routes: &[Route], before: Option<(&[Route], &[RouteState])>) -> Vec<RouteState> {
    let known: HashMap<&str, &RouteState> =
        before.into_iter().flat_map(|(routes, states)| routes.iter().map(|it| it.name.as_str()).zip(states)).collect();
    let state = |route: &Route| {
        let mut state = known.get(route.name.as_str()).copied().cloned().unwrap_or_default();
        let targets = match &route.action {
            Action::Forward(forward) => forward.targets.len(),
            Action::Redirect(_) | Action::Respond(_) => 0,
        };
        state.cursors.resize_with(targets, Arc::default);
        state
    };
    routes.iter().map(state).collect()
}
