//! Endpoints on their way out: set to drain, or listed no more. Each may keep its connections for its service's time, then they are ended
//! in every network namespace; UDP, which has no end of its own, at once.

use std::{
    collections::HashMap,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    task::{self, JoinHandle},
    time,
};

use crate::{
    cluster::{Endpoint, Leaving, Snapshot, Stage},
    config::Protocol,
    kernel::{Sockets, Target, Visited},
};

/// Time between two visits to the host's sockets: one that was dialled just before its endpoint left may only appear at the next.
const VISIT_AGAIN: Duration = Duration::from_millis(250);
/// Visits after which what is still there is left alone: something refuses to end, and the log has said what.
const VISITS_MAX: u32 = 20;

/// Ids of a service and of one of its endpoints.
type Key = (u32, u32);

/// What has changed.
#[derive(Debug, PartialEq, Eq)]
pub enum Retired {
    /// The time of these is over: the agent's own connections to them are to be ended.
    Dead(Vec<Key>),
    /// Some have no connection any more: they can be forgotten.
    Gone,
}

/// Every endpoint on its way out.
pub struct Retirer {
    sockets: Arc<Sockets>,
    exits: HashMap<Key, Exit>,
    visit: Option<Visit>,
    visit_at: Option<Instant>,
}

struct Exit {
    name: String,
    target: Target,
    endpoint: Arc<Endpoint>,
    /// When its time is over; `None`: never.
    dead_at: Option<Instant>,
    visits: u32,
}

struct Visit {
    keys: Vec<Key>,
    task: JoinHandle<io::Result<Visited>>,
}

impl Retirer {
    /// No endpoint yet. `sockets` is where connections are found and ended.
    pub fn new(sockets: Sockets) -> Self {
        Self { sockets: Arc::new(sockets), exits: HashMap::new(), visit: None, visit_at: None }
    }

    /// Goes on with another snapshot: what leaves begins to drain, what has come back is active.
    pub fn follow(&mut self, snapshot: &Snapshot, now: Instant) {
        let mut before = std::mem::take(&mut self.exits);
        for leaving in snapshot.leaving.iter().filter(|leaving| leaving.endpoint.state.stage() != Stage::Gone) {
            let key = (leaving.service, leaving.endpoint.id);
            let mut exit = before.remove(&key).unwrap_or_else(|| Exit::begin(leaving, now));
            exit.endpoint = Arc::clone(&leaving.endpoint);
            self.exits.insert(key, exit);
        }
        for endpoint in snapshot.services.iter().flat_map(|service| &service.endpoints) {
            if endpoint.state.stage() != Stage::Active {
                endpoint.state.set_stage(Stage::Active);
            }
        }
    }

    /// Waits until something changes. Dropping the future loses nothing.
    pub async fn changed(&mut self) -> Retired {
        loop {
            let next = self.next(Instant::now());
            tokio::select! {
                visited = ended(&mut self.visit) => {
                    let Some(Visit { keys, .. }) = self.visit.take() else { continue };
                    if self.judge(&keys, visited, Instant::now()) {
                        return Retired::Gone;
                    }
                }
                () = until(next) => {
                    let dead = self.turn(Instant::now());
                    self.launch();
                    if !dead.is_empty() {
                        return Retired::Dead(dead);
                    }
                }
            }
        }
    }

    /// When there is something to do, if nothing else happens.
    fn next(&self, now: Instant) -> Option<Instant> {
        let draining = self.exits.values().filter(|exit| exit.endpoint.state.stage() == Stage::Draining);
        let dead_at = draining.filter_map(|exit| exit.dead_at).min();
        let waits = self.visit.is_none() && self.exits.values().any(|exit| exit.endpoint.state.stage() == Stage::Dead);
        let visit_at = waits.then(|| self.visit_at.unwrap_or(now));
        dead_at.into_iter().chain(visit_at).min()
    }

    /// Declares dead what is past its time; which these are.
    fn turn(&mut self, now: Instant) -> Vec<Key> {
        let mut dead = Vec::new();
        for (key, exit) in &self.exits {
            let state = &exit.endpoint.state;
            if state.stage() == Stage::Draining && exit.dead_at.is_some_and(|at| at <= now) {
                state.set_stage(Stage::Dead);
                dead.push(*key);
            }
        }
        if !dead.is_empty() {
            self.visit_at = None;
        }
        dead
    }

    /// Visits the host's sockets for all that is dead, unless a visit is under way or it is too early.
    fn launch(&mut self) {
        if self.visit.is_some() || self.visit_at.is_some_and(|at| at > Instant::now()) {
            return;
        }
        let dead = self.exits.iter().filter(|(_, exit)| exit.endpoint.state.stage() == Stage::Dead);
        let (keys, targets): (Vec<Key>, Vec<Target>) = dead.map(|(key, exit)| (*key, exit.target)).unzip();
        if keys.is_empty() {
            return;
        }
        let sockets = Arc::clone(&self.sockets);
        self.visit = Some(Visit { keys, task: task::spawn_blocking(move || sockets.end(&targets)) });
    }

    /// What a visit means for the endpoints it was about. Whether any is gone.
    fn judge(&mut self, keys: &[Key], visited: io::Result<Visited>, now: Instant) -> bool {
        self.visit_at = Some(now + VISIT_AGAIN);
        let visited = visited.unwrap_or_else(|error| {
            tracing::warn!(%error, "connections to dead endpoints could not be looked for");
            Visited { unseen: 1, ..Visited::default() }
        });
        if visited.ended > 0 {
            tracing::info!(connections = visited.ended, "connections to endpoints whose time is over were ended");
        }
        let is_clean = visited == Visited::default();
        let mut any_gone = false;
        for key in keys {
            let Some(exit) = self.exits.get_mut(key) else { continue };
            exit.visits += 1;
            if exit.endpoint.state.stage() == Stage::Dead && (is_clean || exit.visits >= VISITS_MAX) {
                tracing::info!(service = exit.name, endpoint = %exit.endpoint.address, "endpoint is gone");
                exit.endpoint.state.set_stage(Stage::Gone);
                self.exits.remove(key);
                any_gone = true;
            }
        }
        any_gone
    }
}

impl Exit {
    fn begin(leaving: &Leaving, now: Instant) -> Self {
        let (config, endpoint) = (&leaving.config, &leaving.endpoint);
        let target =
            Target { service: config.address, endpoint: endpoint.address, is_udp: config.protocol == Protocol::Udp };
        // A datagram socket knows no end: what it was pointed at would stay for as long as the program does.
        let time = if target.is_udp { Some(Duration::ZERO) } else { config.endpoint_drain };
        let name = config.name.clone();
        tracing::info!(service = name, endpoint = %endpoint.address, ?time, "endpoint drains");
        endpoint.state.set_stage(Stage::Draining);
        Self { name, target, endpoint: Arc::clone(endpoint), dead_at: time.map(|time| now + time), visits: 0 }
    }
}

async fn ended(visit: &mut Option<Visit>) -> io::Result<Visited> {
    match visit {
        Some(visit) => (&mut visit.task).await.unwrap_or_else(|error| Err(io::Error::other(error))),
        None => std::future::pending().await,
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
