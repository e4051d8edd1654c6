//! Endpoints on their way out: set to drain, or listed no more. Each may keep its connections for its service's time, then they are ended
//! in every network namespace; UDP, which has no end of its own, at once.

use std::{
    collections::HashMap,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::task::{self, JoinHandle};

use super::due::until;
use crate::{
    cluster::{Departure, Endpoint, Leaving, Snapshot, Stage},
    config::{self, Protocol},
    kernel::{Sockets, Target, Visited},
};

/// Time between two visits to the host's sockets: one that was dialled just before its endpoint left may only appear at the next.
const VISIT_AGAIN: Duration = Duration::from_millis(250);
/// Visits after which what is still there is left alone: something refuses to end, and the log has said what.
const VISITS_MAX: u32 = 20;

/// Endpoints of one change that are told of one by one: a reload may leave a hundred thousand, and the log would hold the main thread up
/// for longer than a heartbeat.
const TOLD_MAX: usize = 100;

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
    /// The snapshot followed last.
    snapshot: Arc<Snapshot>,
    /// What `exits` say, kept because the next is asked for whenever there is news of anything.
    outlook: Outlook,
}

/// What is to be done next of all exits.
#[derive(Clone, Copy, Debug, Default)]
struct Outlook {
    /// When the first that drains will have to be declared dead.
    dead_at: Option<Instant>,
    /// Whether any is dead, to be visited.
    any_dead: bool,
}

struct Exit {
    config: Arc<config::Service>,
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
        Self {
            sockets: Arc::new(sockets),
            exits: HashMap::new(),
            visit: None,
            visit_at: None,
            snapshot: Arc::default(),
            outlook: Outlook::default(),
        }
    }

    /// Goes on with another snapshot: what leaves begins to drain, what has come back is active.
    pub fn follow(&mut self, snapshot: &Arc<Snapshot>, now: Instant) {
        let last = std::mem::replace(&mut self.snapshot, Arc::clone(snapshot));
        let stays = |departure: &Departure, other: &Snapshot| {
            other.departure(departure.service).is_some_and(|other| std::ptr::eq(&**other, departure))
        };
        let mut before = HashMap::new();
        for left in last.departures.iter().filter(|departure| !stays(departure, snapshot)) {
            let keys = left.endpoints.iter().map(|endpoint| (left.service, endpoint.id));
            before.extend(keys.filter_map(|key| self.exits.remove_entry(&key)));
        }
        let mut begun = 0;
        let leaving = snapshot.departures.iter().filter(|departure| !stays(departure, &last));
        for leaving in leaving.flat_map(|departure| departure.leaving()) {
            if leaving.endpoint.state.stage() == Stage::Gone {
                continue;
            }
            let key = (leaving.service, leaving.endpoint.id);
            let mut exit = before.remove(&key).unwrap_or_else(|| {
                begun += 1;
                Exit::begin(&leaving, now, begun <= TOLD_MAX)
            });
            exit.endpoint = Arc::clone(leaving.endpoint);
            self.exits.insert(key, exit);
        }
        if begun > TOLD_MAX {
            tracing::info!(endpoints = begun - TOLD_MAX, "further endpoints drain");
        }
        for endpoint in snapshot.changed_since(&last).flat_map(|service| &service.endpoints) {
            if endpoint.state.stage() != Stage::Active {
                endpoint.state.set_stage(Stage::Active);
            }
        }
        self.look();
    }

    /// Looks at all exits.
    fn look(&mut self) {
        self.outlook = Outlook::default();
        for exit in self.exits.values() {
            match exit.endpoint.state.stage() {
                Stage::Draining => {
                    let earlier = |at: Instant| self.outlook.dead_at.is_none_or(|first| at < first);
                    if let Some(at) = exit.dead_at.filter(|at| earlier(*at)) {
                        self.outlook.dead_at = Some(at);
                    }
                }
                Stage::Dead => self.outlook.any_dead = true,
                Stage::Active | Stage::Gone => {}
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
        let waits = self.visit.is_none() && self.outlook.any_dead;
        let visit_at = waits.then(|| self.visit_at.unwrap_or(now));
        self.outlook.dead_at.into_iter().chain(visit_at).min()
    }

    /// Declares dead what is past its time; which these are.
    fn turn(&mut self, now: Instant) -> Vec<Key> {
        let mut dead = Vec::new();
        if self.outlook.dead_at.is_none_or(|at| at > now) {
            return dead;
        }
        for (key, exit) in &self.exits {
            let state = &exit.endpoint.state;
            if state.stage() == Stage::Draining && exit.dead_at.is_some_and(|at| at <= now) {
                state.set_stage(Stage::Dead);
                dead.push(*key);
            }
        }
        if !dead.is_empty() {
            self.visit_at = None;
            self.look();
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
        let mut gone = 0;
        for key in keys {
            let Some(exit) = self.exits.get_mut(key) else { continue };
            exit.visits += 1;
            if exit.endpoint.state.stage() == Stage::Dead && (is_clean || exit.visits >= VISITS_MAX) {
                gone += 1;
                if gone <= TOLD_MAX {
                    tracing::info!(service = exit.config.name, endpoint = %exit.endpoint.address, "endpoint is gone");
                }
                exit.endpoint.state.set_stage(Stage::Gone);
                self.exits.remove(key);
            }
        }
        if gone > TOLD_MAX {
            tracing::info!(endpoints = gone - TOLD_MAX, "further endpoints are gone");
        }
        self.look();
        gone > 0
    }
}

impl Exit {
    fn begin(leaving: &Leaving<'_>, now: Instant, told: bool) -> Self {
        let (config, endpoint) = (leaving.config, leaving.endpoint);
        let target =
            Target { service: config.address, endpoint: endpoint.address, is_udp: config.protocol == Protocol::Udp };
        // A datagram socket knows no end: what it was pointed at would stay for as long as the program does.
        let time = if target.is_udp { Some(Duration::ZERO) } else { config.endpoint_drain };
        if told {
            tracing::info!(service = config.name, endpoint = %endpoint.address, ?time, "endpoint drains");
        }
        endpoint.state.set_stage(Stage::Draining);
        let dead_at = time.map(|time| now + time);
        Self { config: Arc::clone(config), target, endpoint: Arc::clone(endpoint), dead_at, visits: 0 }
    }
}

async fn ended(visit: &mut Option<Visit>) -> io::Result<Visited> {
    match visit {
        Some(visit) => (&mut visit.task).await.unwrap_or_else(|error| Err(io::Error::other(error))),
        None => std::future::pending().await,
    }
}
