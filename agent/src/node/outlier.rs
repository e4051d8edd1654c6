//! At the end of each interval: whose ejection is over, and who did worse than the others. What that is, is `health`'s to say.
//!
//! Runs on the main thread. What takes effect at once (so many failures in a row) the workers see to by themselves.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::Instant,
};

use super::{
    due::until,
    hooks::{Hooks, News},
};
use crate::{
    cluster::{Endpoint, EndpointState, Reason, Service, Snapshot},
    config::outlier as rules,
    health::outlier::{Court, Found, take_back},
    kernel::monotonic_ns,
};

/// Every service whose endpoints are judged by what became of their requests.
#[derive(Default)]
pub struct Outliers {
    watched: HashMap<u32, Watched>,
    random: RandomState,
    turns: u64,
    hooks: Hooks,
}

struct Watched {
    service: Arc<Service>,
    due: Instant,
}

/// What was found of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Its service's id.
    pub service: u32,
    /// Its own id.
    pub endpoint: u32,
    /// What.
    pub found: Found,
}

impl Outliers {
    /// Goes on with another snapshot; whether an endpoint was taken back because nobody judges it any more.
    pub fn follow(&mut self, snapshot: &Snapshot, now: Instant) -> bool {
        let mut before = std::mem::take(&mut self.watched);
        for service in &snapshot.services {
            let Some(rules) = &service.config.outlier else { continue };
            let goes_on = before.get(&service.id).map(|watched| watched.due);
            let due = goes_on.map_or(now + rules.interval, |due| due.min(now + rules.interval));
            self.watched.insert(service.id, Watched { service: Arc::clone(service), due });
        }
        let mut any = false;
        for (id, Watched { service, .. }) in before.drain() {
            let judged = self.watched.get(&id).map(|watched| &watched.service.endpoints);
            let is_judged = |id| judged.is_some_and(|judged| judged.iter().any(|endpoint| endpoint.id == id));
            let left = service.endpoints.iter().filter(|endpoint| !is_judged(endpoint.id));
            any |= left.filter(|endpoint| take_back(&service.ejections, &endpoint.state)).count() > 0;
        }
        any
    }

    /// A worker has ejected an endpoint. If it did so while the rules were taken away, nobody would ever take it back.
    pub fn ejected(&mut self, snapshot: &Snapshot, service: u32, endpoint: u32, reason: Reason) {
        let Some(service) = snapshot.by_id(service) else { return };
        let Some(endpoint) = service.endpoints.iter().find(|found| found.id == endpoint) else { return };
        match &service.config.outlier {
            Some(rules) => tell(&mut self.hooks, rules, (service, endpoint), ("ejected", Some(reason))),
            None => drop(take_back(&service.ejections, &endpoint.state)),
        }
    }

    /// Waits until an interval has found something. Dropping the future loses nothing.
    pub async fn changed(&mut self) -> Vec<Verdict> {
        loop {
            until(self.watched.values().map(|watched| watched.due).min()).await;
            let found = self.look(Instant::now(), monotonic_ns() / 1_000_000);
            if !found.is_empty() {
                return found;
            }
        }
    }

    /// Looks at the services that are due.
    fn look(&mut self, now: Instant, now_ms: u64) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        for Watched { service, due } in self.watched.values_mut().filter(|watched| watched.due <= now) {
            let Some(rules) = &service.config.outlier else { continue };
            *due = now + rules.interval;
            let states: Vec<&EndpointState> = service.endpoints.iter().map(|endpoint| &*endpoint.state).collect();
            let court = Court { rules, ejections: &service.ejections, hosts: states.len() };
            let chance = || {
                self.turns += 1;
                self.random.hash_one(self.turns)
            };
            for (place, found) in court.look(&states, now_ms, chance) {
                let endpoint = &service.endpoints[place];
                let name = &service.config.name;
                match found {
                    Found::Back => {
                        tracing::info!(service = name, endpoint = %endpoint.address, "ejection is over");
                        tell(&mut self.hooks, rules, (service, endpoint), ("back", None));
                    }
                    Found::Ejected(ejected) => {
                        tracing::info!(
                            service = name,
                            endpoint = %endpoint.address,
                            reason = ejected.reason.word(),
                            period = ?ejected.period,
                            "endpoint is ejected"
                        );
                        tell(&mut self.hooks, rules, (service, endpoint), ("ejected", Some(ejected.reason)));
                    }
                }
                verdicts.push(Verdict { service: service.id, endpoint: endpoint.id, found });
            }
        }
        verdicts
    }
}

/// Runs the service's command, if it wants to hear of ejections.
fn tell(
    hooks: &mut Hooks,
    rules: &rules::Outlier,
    (service, endpoint): (&Service, &Endpoint),
    (state, reason): (&'static str, Option<Reason>),
) {
    let (service, endpoint, reason) = (service.config.name.as_str(), endpoint.address, reason.map(Reason::word));
    hooks.run(&rules.on_change, News { service, endpoint, state, reason });
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::Ordering::Relaxed, time::Duration};

    use tokio::time;

    use super::*;
    use crate::{cluster::Seen, config::file};

    const RULES: &str = "outlier: {interval_ms: 50, base_ejection_ms: 100, max_ejection_percent: 100}, ";

    fn snapshot(rules: &str, endpoints: &[u8], previous: &Snapshot) -> Snapshot {
        let endpoints: Vec<String> = endpoints.iter().map(|last| format!("10.0.1.{last}:80")).collect();
        let text = format!(
            "services: [{{name: a, address: 10.0.0.1:80, protocol: http, {rules} endpoints: [{}]}}]",
            endpoints.join(", ")
        );
        Snapshot::build(&file::parse(&text, "F").expect("a good file"), previous)
    }

    fn eject(snapshot: &Snapshot, place: usize) {
        let service = &snapshot.services[0];
        let rules = service.config.outlier.as_ref().expect("rules");
        let court = Court { rules, ejections: &service.ejections, hosts: service.endpoints.len() };
        let state = &service.endpoints[place].state;
        for _ in 0..5 {
            court.count(state.marks().expect("marks"), Seen::NoResponse);
        }
        court.eject(state, Reason::Consecutive5xx, monotonic_ns() / 1_000_000, 0).expect("it is ejected");
    }

    #[tokio::test]
    async fn an_ejection_ends_by_itself() {
        let snapshot = snapshot(RULES, &[1, 2], &Snapshot::default());
        let mut outliers = Outliers::default();
        outliers.follow(&snapshot, Instant::now());
        eject(&snapshot, 1);
        let found = time::timeout(Duration::from_secs(5), outliers.changed()).await.expect("it ends");
        assert_eq!(found, [Verdict { service: snapshot.services[0].id, endpoint: 1, found: Found::Back }]);
        assert!(snapshot.services[0].endpoints[1].state.usable());
    }

    #[test]
    fn an_ejection_outlives_a_reload_unless_nobody_judges_the_endpoint_any_more() {
        let first = snapshot(RULES, &[1, 2, 3], &Snapshot::default());
        let mut outliers = Outliers::default();
        outliers.follow(&first, Instant::now());
        (0..3).for_each(|place| eject(&first, place));
        let second = snapshot(RULES, &[1, 2, 4], &first);
        assert!(outliers.follow(&second, Instant::now()));
        let ejected = |snapshot: &Snapshot| -> Vec<bool> {
            snapshot.services[0].endpoints.iter().map(|endpoint| endpoint.state.is_ejected()).collect()
        };
        assert_eq!((ejected(&first), ejected(&second)), (vec![true, true, false], vec![true, true, false]));
        assert_eq!(second.services[0].ejections.active.load(Relaxed), 2);
        let third = snapshot("", &[1, 2, 4], &second);
        assert!(outliers.follow(&third, Instant::now()));
        assert_eq!((ejected(&third), outliers.watched.len()), (vec![false; 3], 0));
        eject(&second, 0);
        outliers.ejected(&third, third.services[0].id, 0, Reason::Consecutive5xx);
        assert_eq!(ejected(&third), [false; 3], "a worker that did not know yet");
    }
}
