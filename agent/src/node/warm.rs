//! Endpoints that have come, or come back, and get their share little by little, where their service says so.
//!
//! One that has come is one that a reload adds to a service that was there before: what a service, or an agent, begins with is taken for
//! warm. One that comes back has accepted a probe after it was down.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use super::due::until;
use crate::{
    balance::slow_start::weight_percent,
    cluster::{Endpoint, Service, Snapshot},
    config::policy::SlowStart,
};

/// Steps in which a weight grows: each writes the service's table anew.
const STEPS: u32 = 20;
/// Longest and shortest time between two steps.
const STEP_MAX: Duration = Duration::from_secs(1);
const STEP_MIN: Duration = Duration::from_millis(100);

/// Ids of a service and of one of its endpoints.
type Key = (u32, u32);

/// Every endpoint that is not warm yet.
#[derive(Debug, Default)]
pub struct Warmer {
    warming: HashMap<Key, Warming>,
}

#[derive(Debug)]
struct Warming {
    rules: SlowStart,
    since: Instant,
    /// When its weight is looked at again.
    due: Instant,
    endpoint: Arc<Endpoint>,
}

impl Warmer {
    /// Goes on with the snapshot that follows `old`, before it takes effect.
    pub fn follow(&mut self, old: &Snapshot, new: &Snapshot, now: Instant) {
        let mut before = std::mem::take(&mut self.warming);
        for service in &new.services {
            let Some(rules) = service.config.policy.slow_start else { continue };
            let known = old.by_id(service.id);
            for endpoint in &service.endpoints {
                let is_new = known.is_some_and(|known| known.endpoints.iter().all(|known| known.id != endpoint.id));
                let since = if is_new { Some(now) } else { None };
                let goes_on = before.remove(&(service.id, endpoint.id)).map(|warming| warming.since);
                if let Some(since) = since.or(goes_on) {
                    self.warm(service.id, endpoint, rules, since, now);
                }
            }
        }
        // No longer listed, or no longer by such a rule.
        for warming in before.values() {
            warming.endpoint.state.set_warm_percent(100);
        }
    }

    /// An endpoint accepts again.
    pub fn risen(&mut self, service: &Service, endpoint: u32, now: Instant) {
        if let Some(rules) = service.config.policy.slow_start
            && let Some(endpoint) = service.endpoints.iter().find(|found| found.id == endpoint)
        {
            self.warm(service.id, endpoint, rules, now, now);
        }
    }

    fn warm(&mut self, service: u32, endpoint: &Arc<Endpoint>, rules: SlowStart, since: Instant, now: Instant) {
        let mut warming = Warming { rules, since, due: now, endpoint: Arc::clone(endpoint) };
        warming.step(now);
        if warming.is_cold() {
            self.warming.insert((service, endpoint.id), warming);
        } else {
            self.warming.remove(&(service, endpoint.id));
        }
    }

    /// Waits until a weight has grown. Dropping the future loses nothing.
    pub async fn changed(&mut self) {
        loop {
            until(self.warming.values().map(|warming| warming.due).min()).await;
            if self.step(Instant::now()) {
                return;
            }
        }
    }

    /// Whether any weight has grown.
    fn step(&mut self, now: Instant) -> bool {
        let due = self.warming.values_mut().filter(|warming| warming.due <= now);
        let grown = due.map(|warming| warming.step(now)).filter(|grown| *grown).count();
        self.warming.retain(|_, warming| warming.is_cold());
        grown > 0
    }
}

impl Warming {
    /// Gives the endpoint the weight of its age; whether that is another.
    fn step(&mut self, now: Instant) -> bool {
        self.due = now + (self.rules.window / STEPS).clamp(STEP_MIN, STEP_MAX);
        let percent = weight_percent(&self.rules, now.saturating_duration_since(self.since)).unwrap_or(100);
        self.endpoint.state.set_warm_percent(percent)
    }

    fn is_cold(&self) -> bool {
        self.endpoint.state.warm_percent() < 100
    }
}

#[cfg(test)]
mod tests {
    use tokio::time;

    use super::*;
    use crate::config::file;

    fn snapshot(endpoints: &[u8], more: &str, previous: &Snapshot) -> Snapshot {
        let endpoints: Vec<String> = endpoints.iter().map(|last| format!("10.0.1.{last}:80")).collect();
        let text = format!(
            "services: [{{name: a, address: 10.0.0.1:80, protocol: tcp, endpoints: [{}] {more}}}]",
            endpoints.join(", ")
        );
        Snapshot::build(&file::parse(&text, "F").expect("a good file"), previous)
    }

    fn percents(snapshot: &Snapshot) -> Vec<u32> {
        snapshot.services[0].endpoints.iter().map(|endpoint| endpoint.state.warm_percent()).collect()
    }

    const SLOW: &str = ", slow_start: {window_ms: 10000}";

    #[test]
    fn what_comes_to_a_service_warms_up_and_what_it_began_with_is_warm() {
        let (mut warmer, start) = (Warmer::default(), Instant::now());
        let first = snapshot(&[1, 2], SLOW, &Snapshot::default());
        warmer.follow(&Snapshot::default(), &first, start);
        assert_eq!(percents(&first), [100, 100]);
        let second = snapshot(&[1, 2, 3], SLOW, &first);
        warmer.follow(&first, &second, start);
        assert_eq!(percents(&second), [100, 100, 10]);
        let at = |tenths: u64| start + Duration::from_millis(100 * tenths);
        assert!(!warmer.step(at(4)), "nothing is due");
        assert!(!warmer.step(at(10)), "it has grown by nothing");
        assert!(warmer.step(at(50)));
        assert_eq!(percents(&second), [100, 100, 50]);
        // Another reload does not begin anew.
        let third = snapshot(&[1, 2, 3, 4], SLOW, &second);
        warmer.follow(&second, &third, at(60));
        assert_eq!(percents(&third), [100, 100, 60, 10]);
        assert!(warmer.step(at(100)));
        assert_eq!(percents(&third), [100, 100, 100, 40]);
        assert_eq!(warmer.warming.len(), 1);
        let plain = snapshot(&[1, 2, 3, 4], "", &third);
        warmer.follow(&third, &plain, at(110));
        assert_eq!(percents(&plain), [100; 4]);
        assert!(warmer.warming.is_empty());
    }

    #[test]
    fn what_accepts_again_begins_anew() {
        let (mut warmer, start) = (Warmer::default(), Instant::now());
        let slow = snapshot(&[1, 2], SLOW, &Snapshot::default());
        let service = &slow.services[0];
        warmer.risen(service, service.endpoints[1].id, start);
        warmer.step(start + Duration::from_secs(7));
        assert_eq!(percents(&slow), [100, 70]);
        warmer.risen(service, service.endpoints[1].id, start + Duration::from_secs(8));
        assert_eq!(percents(&slow), [100, 10]);
    }

    #[tokio::test]
    async fn steps_come_by_themselves_until_all_is_warm() {
        let mut warmer = Warmer::default();
        let fast = snapshot(&[1, 2], ", slow_start: {window_ms: 2000}", &Snapshot::default());
        let service = &fast.services[0];
        warmer.risen(service, service.endpoints[0].id, Instant::now());
        assert_eq!(percents(&fast), [50, 100], "as if it were a second old");
        while percents(&fast) != [100, 100] {
            time::timeout(Duration::from_secs(20), warmer.changed()).await.expect("a step");
        }
        assert!(warmer.warming.is_empty());
        assert!(time::timeout(STEP_MIN, warmer.changed()).await.is_err(), "nothing is left to do");
    }
}
