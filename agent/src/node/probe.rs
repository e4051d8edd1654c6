//! Tries endpoints, to see whether they are well: those that failed, those that are suspected, and those that are to be probed always.
//!
//! Runs on the main thread, in the agent's own network namespace and cgroup, so that no probe is captured. What a result means is
//! `health`'s to say.

mod attempt;
pub(super) mod command;

use std::{
    collections::{BTreeSet, HashMap},
    hash::{BuildHasher, RandomState},
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

use self::attempt::Line;
use super::{
    due::until,
    hooks::{self, Hooks},
};
use crate::{
    cluster::{Endpoint, Service, Snapshot},
    config::{Mode, Protocol},
    health::{Change, Health, Probed, Rules, outlier::take_back},
    record::observed::Probes,
};

/// Probes in flight: each holds a socket for at most its service's connect timeout. What is due beyond it waits its turn.
const IN_FLIGHT_MAX: usize = 256;

/// Connections kept from one probe to the next; beyond it each probe makes its own.
const LINES_MAX: usize = 4_096;

/// Ids of a service and of one of its endpoints.
type Key = (u32, u32);

/// Every endpoint that is being probed or is to be.
#[derive(Default)]
pub struct Prober {
    watched: HashMap<Key, Watched>,
    due: BTreeSet<(Instant, Key)>,
    /// What was due, by when it may begin: put off by its jitter it takes nobody's place.
    ready: BTreeSet<(Instant, Key)>,
    in_flight: JoinSet<(Key, (Probed, Option<Line>))>,
    /// Connections that probes have left for the next.
    lines: HashMap<Key, Line>,
    hooks: Hooks,
    snapshot: Arc<Snapshot>,
    results: Probes,
    random: RandomState,
    turns: u64,
}

struct Watched {
    health: Health,
    service: Arc<Service>,
    endpoint: Arc<Endpoint>,
}

/// An endpoint that went up or down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed {
    /// Its service's id.
    pub service: u32,
    /// Its own id.
    pub endpoint: u32,
    /// Which of the two.
    pub change: Change,
}

impl Prober {
    /// Goes on with another snapshot: what is gone is forgotten, what is to be probed always is.
    pub fn follow(&mut self, snapshot: &Arc<Snapshot>) {
        let now = Instant::now();
        let last = std::mem::replace(&mut self.snapshot, Arc::clone(snapshot));
        let same = |(service, _): &Key| match (last.by_id(*service), snapshot.by_id(*service)) {
            (Some(last), Some(now)) => Arc::ptr_eq(last, now),
            _ => false,
        };
        let mut before: HashMap<Key, Watched> = self.watched.extract_if(|key, _| !same(key)).collect();
        self.due.retain(|(_, key)| same(key));
        self.ready.retain(|(_, key)| same(key));
        self.lines.retain(|key, _| same(key));
        for service in snapshot.changed_since(&last) {
            for endpoint in &service.endpoints {
                let (key, rules) = ((service.id, endpoint.id), rules(service));
                let mut health = match before.remove(&key) {
                    Some(watched) => watched.health,
                    None if rules.is_active() || endpoint.state.is_down() => {
                        Health::new(rules, endpoint.state.is_down(), now)
                    }
                    None => continue,
                };
                health.set_rules(rules, now);
                self.due.extend(health.due().map(|at| (at, key)));
                let (service, endpoint) = (Arc::clone(service), Arc::clone(endpoint));
                self.watched.insert(key, Watched { health, service, endpoint });
            }
        }
    }

    /// A worker could not connect to it. Whether that is news.
    pub fn failed(&mut self, service: u32, endpoint: u32) -> bool {
        self.judge((service, endpoint), |health, now| health.failed(now)) == Some(Change::Down)
    }

    /// The kernel half saw a handshake fail, in whatever namespace.
    pub fn suspected(&mut self, service: u32, endpoint: u32) {
        self.judge((service, endpoint), |health, now| {
            health.suspected(now);
            None
        });
    }

    /// Probes what is due until some endpoint changes. Dropping the future loses nothing.
    pub async fn changed(&mut self) -> Changed {
        loop {
            self.launch();
            let ready = self.ready.first().filter(|_| self.in_flight.len() < IN_FLIGHT_MAX);
            let next = self.due.first().into_iter().chain(ready).map(|(at, _)| *at).min();
            tokio::select! {
                Some(ended) = self.in_flight.join_next() => {
                    let Ok((key, (result, line))) = ended else { continue };
                    self.leave(key, line);
                    count(&mut self.results, result);
                    let paced = self.watched.get(&key).map(|watched| rules(&watched.service));
                    let verdict = |health: &mut Health, now| {
                        paced.into_iter().for_each(|rules| health.set_rules(rules, now));
                        health.probed(result, now)
                    };
                    if let Some(change) = self.judge(key, verdict) {
                        self.say(key, change, result);
                        return Changed { service: key.0, endpoint: key.1, change };
                    }
                    if result == Probed::Accepted && self.unejects(key) {
                        self.tell_back(key);
                        return Changed { service: key.0, endpoint: key.1, change: Change::Up };
                    }
                }
                () = until(next) => {}
            }
        }
    }

    /// How many probes ended in each way.
    pub fn results(&self) -> Probes {
        self.results
    }

    fn launch(&mut self) {
        let now = Instant::now();
        while let Some((at, key)) = self.due.first().copied().filter(|(at, _)| *at <= now) {
            self.due.pop_first();
            let Some(watched) = self.watched.get(&key) else { continue };
            self.turns += 1;
            let jitter = jitter(&watched.service, self.random.hash_one(self.turns));
            self.ready.insert((if jitter.is_zero() { at } else { now + jitter }, key));
        }
        while self.in_flight.len() < IN_FLIGHT_MAX
            && let Some((at, key)) = self.ready.first().copied()
            && at <= now
        {
            self.ready.pop_first();
            let Some(watched) = self.watched.get(&key) else { continue };
            let (service, address) = (Arc::clone(&watched.service), watched.endpoint.address);
            let line = self.lines.remove(&key);
            self.in_flight.spawn(async move { (key, attempt::attempt(service, address, line).await) });
        }
    }

    /// Keeps a connection for the next probe, if there will be one.
    fn leave(&mut self, key: Key, line: Option<Line>) {
        if let (Some(line), true) = (line, self.lines.len() < LINES_MAX && self.watched.contains_key(&key)) {
            self.lines.insert(key, line);
        }
    }

    /// Takes an ejected endpoint back that a probe of its service has found well, if the rules say so.
    fn unejects(&self, key: Key) -> bool {
        let Some(Watched { service, endpoint, .. }) = self.watched.get(&key) else { return false };
        let may = service.config.outlier.as_ref().is_some_and(|rules| rules.probe_unejects)
            && rules(service).is_active()
            && !endpoint.state.is_down();
        let is_back = may && take_back(&service.ejections, &endpoint.state);
        if is_back {
            tracing::info!(service = service.config.name, endpoint = %endpoint.address, "a probe ends its ejection");
        }
        is_back
    }

    /// Runs the command that hears of ejections: this one is over.
    fn tell_back(&mut self, key: Key) {
        let Some(Watched { service, endpoint, .. }) = self.watched.get(&key) else { return };
        let Some(rules) = &service.config.outlier else { return };
        let (service, endpoint) = (service.config.name.as_str(), endpoint.address);
        self.hooks.run(&rules.on_change, hooks::News { service, endpoint, state: "back", reason: Some("probe") });
    }

    /// Only of what probes found: a worker that could not connect has said so, with the reason.
    fn say(&self, (service, endpoint): Key, change: Change, result: Probed) {
        let Some(service) = self.snapshot.by_id(service) else { return };
        let Some(endpoint) = service.endpoints.iter().find(|found| found.id == endpoint) else { return };
        let (service, endpoint) = (&service.config.name, endpoint.address);
        match change {
            Change::Up => tracing::info!(service, %endpoint, "endpoint is up"),
            Change::Down => tracing::info!(service, %endpoint, probe = ?result, "endpoint is down"),
        }
    }

    /// Lets `verdict` judge the endpoint, then acts on it: state, next probe.
    fn judge(&mut self, key: Key, verdict: impl FnOnce(&mut Health, Instant) -> Option<Change>) -> Option<Change> {
        let now = Instant::now();
        if !self.watched.contains_key(&key) {
            let watched = self.begin(key, now)?;
            self.watched.insert(key, watched);
        }
        let watched = self.watched.get_mut(&key)?;
        let before = watched.health.due();
        let change = verdict(&mut watched.health, now);
        if let Some(change) = change {
            watched.endpoint.state.set_down(change == Change::Down);
            tell(&mut self.hooks, watched, change);
        }
        let after = watched.health.due();
        if before != after {
            before.map(|at| self.due.remove(&(at, key)));
            self.due.extend(after.map(|at| (at, key)));
        }
        let address = watched.endpoint.address;
        if after.is_none() {
            self.watched.remove(&key);
            self.lines.remove(&key);
        }
        if change == Some(Change::Down) {
            self.suspect_elsewhere(address, key);
        }
        change
    }

    /// What is down in one service is probably down in every other that has the same address.
    fn suspect_elsewhere(&mut self, address: SocketAddr, known: Key) {
        let snapshot = Arc::clone(&self.snapshot);
        for service in &snapshot.services {
            for endpoint in service.endpoints.iter().filter(|endpoint| endpoint.address == address) {
                // A TCP connect says nothing about who takes datagrams there.
                if service.config.protocol == Protocol::Udp {
                    continue;
                }
                let key = (service.id, endpoint.id);
                if key != known && !endpoint.state.is_down() {
                    self.suspected(key.0, key.1);
                }
            }
        }
    }

    /// Begins to watch an endpoint that there was no reason to watch until now.
    fn begin(&self, (service, endpoint): Key, now: Instant) -> Option<Watched> {
        let service = self.snapshot.by_id(service)?;
        let endpoint = service.endpoints.iter().find(|found| found.id == endpoint)?;
        let health = Health::new(rules(service), false, now);
        Some(Watched { health, service: Arc::clone(service), endpoint: Arc::clone(endpoint) })
    }
}

fn count(probes: &mut Probes, result: Probed) {
    *match result {
        Probed::Accepted => &mut probes.accepted,
        Probed::Refused => &mut probes.refused,
        Probed::Unfit => &mut probes.unfit,
        Probed::Failed => &mut probes.failed,
    } += 1;
}

/// What a service says of its probes, as its traffic is now.
fn rules(service: &Service) -> Rules {
    let has_traffic = || {
        let came = |endpoint: &Arc<Endpoint>| endpoint.state.total.load(Ordering::Relaxed) > 0;
        service.config.mode == Mode::Kernel || service.endpoints.iter().any(came)
    };
    match &service.config.probe {
        Some(probe) => Rules::of(probe, has_traffic()),
        None => service.config.probe_interval.into(),
    }
}

/// By how much a probe is put off.
fn jitter(service: &Service, chance: u64) -> Duration {
    let most =
        service.config.probe.as_ref().map_or(Duration::ZERO, |probe| probe.interval * probe.jitter_percent / 100);
    Duration::from_micros(chance % (most.as_micros() as u64 + 1))
}

/// Runs the service's command, if it wants to hear of changes.
fn tell(hooks: &mut Hooks, watched: &Watched, change: Change) {
    let Some(probe) = &watched.service.config.probe else { return };
    let (service, endpoint) = (watched.service.config.name.as_str(), watched.endpoint.address);
    let state = if change == Change::Up { "up" } else { "down" };
    hooks.run(&probe.on_change, hooks::News { service, endpoint, state, reason: None });
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use tokio::time;

    use super::*;
    use crate::config::file;

    const PATIENCE: Duration = Duration::from_secs(5);

    fn snapshot(endpoint: SocketAddr, more: &str, previous: &Snapshot) -> Arc<Snapshot> {
        let text =
            format!("services: [{{name: a, address: 10.0.0.1:80, protocol: tcp, endpoints: ['{endpoint}'] {more}}}]");
        Arc::new(Snapshot::build(&file::parse(&text, "F").expect("a good file"), previous))
    }

    fn following(snapshot: &Arc<Snapshot>) -> Prober {
        let mut prober = Prober::default();
        prober.follow(snapshot);
        prober
    }

    fn only(snapshot: &Snapshot) -> (u32, &Arc<Endpoint>) {
        (snapshot.services[0].id, &snapshot.services[0].endpoints[0])
    }

    fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bindable");
        let address = listener.local_addr().expect("bound");
        (listener, address)
    }

    #[tokio::test]
    async fn an_endpoint_that_failed_is_down_until_it_accepts() {
        let (listener, address) = listener();
        drop(listener);
        let snapshot = snapshot(address, "", &Snapshot::default());
        let mut prober = following(&snapshot);
        let (service, endpoint) = only(&snapshot);
        assert!(prober.failed(service, endpoint.id), "it is news");
        assert!(!prober.failed(service, endpoint.id), "it is news once");
        assert!(!endpoint.state.usable());
        assert!(time::timeout(Duration::from_millis(150), prober.changed()).await.is_err(), "nothing listens yet");
        assert!(prober.results().refused > 0);
        let _listener = TcpListener::bind(address).expect("free again");
        time::timeout(PATIENCE, prober.changed()).await.expect("it is found");
        assert!(endpoint.state.usable());
        assert!(prober.watched.is_empty() && prober.due.is_empty(), "there is no more reason to probe it");
    }

    #[tokio::test]
    async fn an_endpoint_that_is_only_suspected_stays_up_if_it_accepts() {
        let (_listener, address) = listener();
        let snapshot = snapshot(address, "", &Snapshot::default());
        let mut prober = following(&snapshot);
        let (service, endpoint) = only(&snapshot);
        prober.suspected(service, endpoint.id);
        assert!(time::timeout(Duration::from_millis(200), prober.changed()).await.is_err());
        assert_eq!((prober.results().accepted, endpoint.state.usable()), (1, true));
    }

    #[tokio::test]
    async fn an_endpoint_with_an_interval_is_found_dead_by_itself() {
        let (listener, address) = listener();
        drop(listener);
        let snapshot = snapshot(address, ", probe_interval_ms: 50", &Snapshot::default());
        let mut prober = following(&snapshot);
        time::timeout(PATIENCE, prober.changed()).await.expect("it is found");
        assert!(!only(&snapshot).1.state.usable());
    }

    #[tokio::test]
    async fn probes_that_are_put_off_take_nobodys_place() {
        let (listener, address) = listener();
        drop(listener);
        let many = (1..=2 * IN_FLIGHT_MAX as u16).map(|port| format!("'127.0.0.1:{port}'")).collect::<Vec<_>>();
        let hour = "probe: {interval_ms: 3600000, jitter_percent: 100}";
        let text = format!(
            "services: [{{name: a, address: 10.0.0.1:80, protocol: tcp, endpoints: [{}], {hour}}}, \
             {{name: b, address: 10.0.0.2:80, protocol: tcp, endpoints: ['{address}'], probe_interval_ms: 50}}]",
            many.join(", ")
        );
        let text = file::parse(&text, "F").expect("a good file");
        let snapshot = Arc::new(Snapshot::build(&text, &Snapshot::default()));
        let mut prober = following(&snapshot);
        let found = async { while prober.changed().await.service != snapshot.services[1].id {} };
        time::timeout(PATIENCE, found).await.expect("it is found");
        assert!(!snapshot.services[1].endpoints[0].state.usable());
    }

    #[tokio::test]
    async fn an_endpoint_that_failed_in_one_service_is_found_down_in_the_others() {
        let (listener, address) = listener();
        drop(listener);
        let more = format!("}}, {{name: b, address: 10.0.0.2:80, protocol: tcp, endpoints: ['{address}']");
        let snapshot = snapshot(address, &more, &Snapshot::default());
        let mut prober = following(&snapshot);
        let (service, endpoint) = only(&snapshot);
        prober.failed(service, endpoint.id);
        time::timeout(PATIENCE, prober.changed()).await.expect("it is found");
        assert!(!snapshot.services[1].endpoints[0].state.usable());
    }

    #[tokio::test]
    async fn a_reload_keeps_what_is_down_and_forgets_what_is_gone() {
        let (listener, address) = listener();
        drop(listener);
        let first = snapshot(address, "", &Snapshot::default());
        let mut prober = following(&first);
        let (service, endpoint) = only(&first);
        prober.failed(service, endpoint.id);
        let second = snapshot(address, ", connect_timeout_ms: 10", &first);
        prober.follow(&second);
        assert_eq!((prober.watched.len(), prober.due.len()), (1, 1));
        prober.follow(&Arc::default());
        assert!(prober.watched.is_empty() && prober.due.is_empty());
        assert!(!prober.failed(service, endpoint.id), "nobody knows it any more");
    }
}
