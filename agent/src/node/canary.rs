//! Moves canaries on: again and again asks of each what comes next. What that is, is `route`'s to say.
//!
//! Runs on the main thread. What part of the requests a canary gets, workers read where it is written.

pub mod kept;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    task::{self, JoinHandle},
    time,
};

use self::kept::Kept;
use super::due::until;
use crate::{
    cluster::{CanaryStage as Stage, CanaryState, Service, Snapshot},
    kernel::monotonic_ns,
    route::canary,
};

/// So often in an interval a canary is looked at, so that it is rolled back in a small part of one.
const LOOKS: u32 = 10;
/// And at least so often.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// How long an agent that ends waits until their state is written.
const CLOSE_MAX: Duration = Duration::from_secs(2);

/// Every canary there is.
#[derive(Default)]
pub struct Canaries {
    services: Vec<Arc<Service>>,
    /// When they are looked at next: who waits for it is interrupted often. `None`: there is none.
    due: Option<Instant>,
    keeper: Option<Keeper>,
}

/// Writes down how far they have come, off the main thread and one time after the other.
struct Keeper {
    path: Arc<Path>,
    writing: Option<JoinHandle<()>>,
    /// Something has changed since.
    is_stale: bool,
}

impl Canaries {
    /// Whose state is kept in this file.
    pub fn kept_in(path: PathBuf) -> Self {
        Self { keeper: Some(Keeper { path: path.into(), writing: None, is_stale: false }), ..Self::default() }
    }

    /// Goes on with another snapshot.
    pub fn follow(&mut self, snapshot: &Snapshot, now: Instant) {
        let has_any = |service: &&Arc<Service>| service.routes.iter().any(|route| route.canary.is_some());
        let had_any = !self.services.is_empty();
        self.services = snapshot.services.iter().filter(has_any).map(Arc::clone).collect();
        self.keep(had_any || !self.services.is_empty());
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
        until(self.due).await;
        self.due = self.pause().map(|pause| Instant::now() + pause);
        let any = self.look(Duration::from_nanos(monotonic_ns()));
        self.keep(any);
    }

    /// Writes down how far they have come, if that changed and nobody is writing.
    fn keep(&mut self, has_changed: bool) {
        let Some(keeper) = &mut self.keeper else { return };
        keeper.is_stale |= has_changed;
        if !keeper.is_stale || keeper.writing.as_ref().is_some_and(|writing| !writing.is_finished()) {
            return;
        }
        keeper.is_stale = false;
        let kept: Vec<Kept> = kept_of(&self.services);
        let path = Arc::clone(&keeper.path);
        keeper.writing = Some(task::spawn_blocking(move || {
            if let Err(error) = kept::write(&path, &kept) {
                tracing::warn!(file = %path.display(), %error, "how far canaries have come is not kept; set audit.path to where it can be");
            }
        }));
    }

    /// Waits until all is written.
    pub async fn close(&mut self) {
        for _ in 0..2 {
            if let Some(writing) = self.keeper.as_mut().and_then(|keeper| keeper.writing.take()) {
                let _ = time::timeout(CLOSE_MAX, writing).await;
            }
            self.keep(false);
        }
    }

    fn each(&self) -> impl Iterator<Item = (&str, &str, &CanaryState)> {
        self.services.iter().flat_map(|service| {
            let routes = service.config.routes.iter().zip(&service.routes);
            routes.filter_map(|(route, state)| {
                Some((service.config.name.as_str(), route.name.as_str(), state.canary.as_deref()?))
            })
        })
    }

    /// Whether one has come further, or back.
    fn look(&self, now: Duration) -> bool {
        let mut any = false;
        for (service, route, canary) in self.each() {
            let counts = canary.counts();
            let Some(stage) = canary::next(&canary.rules, &canary.stage(), counts, now) else { continue };
            canary.set_stage(stage);
            any = true;
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
        any
    }
}

/// What is to be kept of the canaries of these services.
fn kept_of(services: &[Arc<Service>]) -> Vec<Kept> {
    let routes = services.iter().flat_map(|service| {
        service.config.routes.iter().zip(&service.routes).map(move |(route, state)| (service, route, state))
    });
    routes.filter_map(|(service, route, state)| kept::of(service, route, state.canary.as_deref()?)).collect()
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
