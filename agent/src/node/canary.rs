//! Moves canaries on: again and again asks of each what comes next. What that is, is `route`'s to say.
//!
//! Runs on the main thread. What part of the requests a canary gets, workers read where it is written.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time;

use crate::{
    cluster::{CanaryStage as Stage, CanaryState, Service, Snapshot},
    kernel::monotonic_ns,
    route::canary,
};

/// So often in an interval a canary is looked at, so that it is rolled back in a small part of one.
const LOOKS: u32 = 10;
/// And at least so often.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Every canary there is.
#[derive(Default)]
pub struct Canaries {
    services: Vec<Arc<Service>>,
    /// When they are looked at next: who waits for it is interrupted often. `None`: there is none.
    due: Option<Instant>,
}

impl Canaries {
    /// Goes on with another snapshot.
    pub fn follow(&mut self, snapshot: &Snapshot, now: Instant) {
        let has_any = |service: &&Arc<Service>| service.routes.iter().any(|route| route.canary.is_some());
        self.services = snapshot.services.iter().filter(has_any).map(Arc::clone).collect();
        let next = self.pause().map(|pause| now + pause);
        self.due = next.map(|next| self.due.map_or(next, |due| due.min(next)));
    }

    /// How long until they are looked at again.
    fn pause(&self) -> Option<Duration> {
        let pause = self.each().map(|(_, _, canary)| canary.rules.interval / LOOKS).min();
        pause.map(|pause| pause.min(PAUSE_MAX))
    }

    /// Waits until it is time to look at them again, and does. Dropping the future loses nothing.
    pub async fn turn(&mut self) {
        match self.due {
            Some(due) => time::sleep_until(due.into()).await,
            None => std::future::pending().await,
        }
        self.due = self.pause().map(|pause| Instant::now() + pause);
        self.look(Duration::from_nanos(monotonic_ns()));
    }

    fn each(&self) -> impl Iterator<Item = (&str, &str, &CanaryState)> {
        self.services.iter().flat_map(|service| {
            let routes = service.config.routes.iter().zip(&service.routes);
            routes.filter_map(|(route, state)| {
                Some((service.config.name.as_str(), route.name.as_str(), state.canary.as_deref()?))
            })
        })
    }

    fn look(&self, now: Duration) {
        for (service, route, canary) in self.each() {
            let counts = canary.counts();
            let Some(stage) = canary::next(&canary.rules, &canary.stage(), counts, now) else { continue };
            canary.set_stage(stage);
            let percent = canary.percent();
            match stage {
                Stage::RolledBack(trouble) => tracing::warn!(
                    service,
                    route,
                    reason = trouble.word(),
                    requests = counts.requests,
                    errors = counts.errors,
                    slow = counts.slow,
                    "canary is rolled back"
                ),
                Stage::Promoted => tracing::info!(service, route, percent, "canary is promoted"),
                Stage::Begun | Stage::Step { .. } => tracing::info!(service, route, percent, "canary takes a step"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cluster::Trouble, config::file};

    fn snapshot(canary: &str, previous: &Snapshot) -> Snapshot {
        let text = format!(
            "services: [{{name: a, address: 10.0.0.1:80, protocol: http, endpoints: [10.0.0.2:80], \
             routes: [{{name: r, canary: {{subset: {{v: '2'}}, {canary}}}}}]}}]"
        );
        Snapshot::build(&file::parse(&text, "F").unwrap_or_else(|error| panic!("{error}")), previous)
    }

    fn state(snapshot: &Snapshot) -> &CanaryState {
        snapshot.services[0].routes[0].canary.as_deref().expect("a canary")
    }

    #[test]
    fn a_canary_outlives_a_reload_and_begins_anew_when_another_is_configured() {
        let first = snapshot("steps: [10, 100]", &Snapshot::default());
        let mut canaries = Canaries::default();
        canaries.follow(&first, Instant::now());
        let at = |seconds| Duration::from_secs(seconds);
        canaries.look(at(1));
        assert_eq!(state(&first).percent(), 10);
        (0..20).for_each(|_| state(&first).count(false, false));
        canaries.look(at(61));
        assert_eq!(state(&first).percent(), 100);
        let second = snapshot("steps: [10, 100], to: a", &snapshot("steps: [10, 100]", &first));
        assert_eq!(state(&second).percent(), 10, "another target");
        let third = snapshot("steps: [10, 100]", &first);
        canaries.follow(&third, Instant::now());
        assert_eq!(state(&third).percent(), 100, "the same");
        (0..20).for_each(|_| state(&third).count(true, false));
        canaries.look(at(62));
        assert_eq!((state(&third).percent(), state(&third).stage()), (0, Stage::RolledBack(Trouble::Errors)));
        assert_eq!(state(&first).percent(), 0, "workers that do not know of the reload yet");
        assert_eq!(state(&snapshot("steps: [20, 100]", &third)).percent(), 20);
    }

    #[tokio::test]
    async fn a_canary_is_looked_at_however_often_the_wait_is_interrupted() {
        let snapshot = snapshot("interval_ms: 1000", &Snapshot::default());
        let mut canaries = Canaries::default();
        canaries.follow(&snapshot, Instant::now());
        let looked_at = || state(&snapshot).stage() != Stage::Begun;
        let begin = Instant::now();
        while !looked_at() && begin.elapsed() < Duration::from_secs(10) {
            let _ = time::timeout(Duration::from_millis(20), canaries.turn()).await;
        }
        assert!(looked_at());
    }
}
