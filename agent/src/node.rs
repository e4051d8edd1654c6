//! One agent on one host, from start to end: opens everything in order, then sits on the main thread and hears the news: signals, the
//! configuration, the kernel half, the workers, the endpoints, the admin endpoint.
//!
//! Is never on the path of a connection. What it knows of traffic it reads from counters.

pub mod admin;
pub mod bars;
pub mod canary;
pub mod change;
mod descriptors;
pub mod drain;
mod due;
mod error;
pub mod faults;
pub mod gates;
pub mod history;
mod hooks;
mod jwks;
mod observe;
pub mod outlier;
pub mod probe;
pub mod processor;
pub mod pulse;
pub mod reload;
pub mod retire;
pub mod runfile;
pub mod senses;
pub mod warm;
pub mod watch;
pub mod worker;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

pub use self::error::NodeError;
use self::{
    admin::Question,
    canary::{Canaries, kept},
    history::{History, What},
    pulse::Pulse,
    reload::Reloader,
    retire::{Retired, Retirer},
    runfile::{Runfile, Running},
    senses::{News, Senses},
    worker::{Listening, Worker, WorkerEvent, WorkerShared},
};
use crate::{
    balance,
    cluster::{Service, Snapshot},
    config::{Config, Mode, file},
    health::{Change, outlier::Found},
    kernel::{self, Changes, Event, Inlets, Kernel, Look, Namespaces, Opened, memory},
    record::Slab,
};

/// What an agent is started with.
#[derive(Debug)]
pub struct Start {
    /// The configuration.
    pub config: Config,
    /// Where it was read, and what stood there; `None` for the embedded default, which does not change.
    pub source: Option<(PathBuf, String)>,
    /// The zone of this host, whatever the configuration says.
    pub zone: Option<String>,
    /// Whether to take the kernel half away at the end.
    pub detach_on_exit: bool,
}

/// How an agent ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Every connection was finished, or the time for it was over.
    Drained,
    /// A second signal of this number cut it short.
    Cut(i32),
}

/// Runs an agent until a signal ends it.
///
/// # Errors
///
/// When it cannot start, or a worker dies.
pub fn run(start: Start) -> Result<Ended, NodeError> {
    raise_descriptor_limit();
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| NodeError::System { what: "starting the main thread's runtime", source })?
        .block_on(live(start))
}

async fn live(start: Start) -> Result<Ended, NodeError> {
    // SIGHUP would end an agent that does not listen to it yet. What it means to have read is looked at once more when it does.
    let listening = |source| NodeError::System { what: "listening to signals", source };
    drop(signal(SignalKind::hangup()).map_err(listening)?);
    let config = Arc::new(in_zone(start.config, start.zone.as_deref()));
    let mut runfile = Runfile::take(Path::new(runfile::DIRECTORY), &config.instance)?;
    let history = History::open(config.audit.path_of(&config.instance), config.audit.bytes_max);
    let (doors, questions) = admin::open(&config, history.reader()).await?;
    let (mut node, mut senses) = Node::open(config, start.source, start.zone, questions, history)?;
    let admin = doors.address;
    runfile.write(&Running { pid: std::process::id(), admin, socket: doors.socket().to_owned() })?;
    node.say_ready(admin);
    let ended = serve(&mut node, &mut senses).await;
    // However it ended: what was changed is written down before anything else can go wrong.
    senses.canaries.close().await;
    node.history.close().await;
    let ended = ended?;
    if start.detach_on_exit {
        let pins = kernel::detach(&node.config.capture, &node.config.instance)?;
        tracing::info!(pins, "kernel half taken away");
    }
    Ok(ended)
}

/// Hears the news until a signal comes, then drains.
async fn serve(node: &mut Node, senses: &mut Senses) -> Result<Ended, NodeError> {
    loop {
        match senses.next().await {
            News::Stop(signal) => return drain::drain(node, senses, signal).await,
            news => node.hear(news, senses)?,
        }
    }
}

/// The agent in its prime: everything is open.
pub struct Node {
    config: Arc<Config>,
    /// The zone that the agent was started with.
    zone: Option<String>,
    kernel: Kernel,
    namespaces: Namespaces,
    inlets: Inlets,
    snapshot: Arc<ArcSwap<Snapshot>>,
    workers: Vec<Worker>,
    slabs: Vec<Arc<Slab>>,
    /// None while the agent does not take connections.
    pulse: Option<Pulse>,
    not_ready: Option<String>,
    history: History,
    /// What the file said when it was taken up last.
    of_file: Arc<Config>,
    /// Whether something else is in effect than that.
    differs_from_file: bool,
}

impl Node {
    fn open(
        config: Arc<Config>,
        source: Option<(PathBuf, String)>,
        zone: Option<String>,
        questions: mpsc::Receiver<Question>,
        history: History,
    ) -> Result<(Self, Senses), NodeError> {
        let mut kernel = Kernel::open(&config)?;
        let (Some(events), Some(namespaces), Some(inlets)) =
            (kernel.take_events(), kernel.take_namespaces(), kernel.take_inlets())
        else {
            unreachable!("a kernel half that was just opened has them all");
        };
        let tree = kernel.tree_news()?;
        let snapshot =
            Arc::new(Snapshot::build(&config, &Snapshot::adopting(kernel.adopted(), history.reader().ledger().last())));
        share_out(&snapshot);
        let canaries = kept::path(&config.audit.path_of(&config.instance));
        let now = Duration::from_nanos(kernel::monotonic_ns());
        kept::restore(snapshot.services.iter().map(AsRef::as_ref), &kept::read(&canaries), now);
        jwks::follow(&snapshot);
        let current = Arc::new(ArcSwap::from(Arc::clone(&snapshot)));
        let (tell, hear) = mpsc::unbounded_channel();
        let slabs: Vec<Arc<Slab>> = (0..config.workers).map(|_| Arc::default()).collect();
        let workers = spawn_workers(&slabs, &kernel, &current, &tell)?;
        let text: Arc<str> = source.as_ref().map_or(file::DEFAULT, |(_, text)| text).into();
        let reloader = source.map(|(path, _)| Reloader::new(path, Arc::clone(&text), Arc::clone(&config)));
        let by = reloader.as_ref().map_or_else(|| file::DEFAULT_NAME.to_owned(), Reloader::name);
        let failed = |source| NodeError::System { what: "listening to signals and events", source };
        let (events, tree) = (events.listen().map_err(failed)?, tree.listen().map_err(failed)?);
        let retirer = Retirer::new(kernel.sockets().map_err(failed)?);
        let flows = kernel.flows();
        let seen = (&snapshot, flows.cgroup_mount(), Canaries::kept_in(canaries));
        let senses = Senses::new(hear, events, tree, questions, reloader, retirer, seen).map_err(failed)?;
        let started = What::Configured { old: None, new: Arc::clone(&config), text: Some(text) };
        let mut node = Self {
            of_file: Arc::clone(&config),
            config,
            zone,
            kernel,
            namespaces,
            inlets,
            snapshot: current,
            workers,
            slabs,
            pulse: None,
            not_ready: None,
            history,
            differs_from_file: false,
        };
        if let Some(log) = node.kernel.take_log() {
            tokio::spawn(log.forward());
        }
        // Services before listeners: ids that an agent before this one left in the tables must reach no worker of ours.
        node.kernel.apply(&snapshot)?;
        node.kernel.attach(&node.config.capture, &mut node.namespaces)?;
        node.kernel.measure_hooks(node.config.hook_stats);
        node.sweep();
        node.begin_pulse()?;
        node.namespaces.follow_services(&snapshot);
        let home = node.namespaces.open_home(node.workers.len())?;
        node.listen(home);
        node.inlets.follow(&node.config.inbound)?;
        // Whoever hears that the agent is ready finds connections that come in steered.
        node.scan();
        node.record("start", by, None, started, None);
        memory::give_back();
        Ok((node, senses))
    }

    fn hear(&mut self, news: News, senses: &mut Senses) -> Result<(), NodeError> {
        match news {
            News::Look => self.look()?,
            News::Scan => self.scan(),
            News::Tree(watches) => self.follow(&watches),
            News::Sweep => self.sweep(),
            News::Worker(WorkerEvent::EndpointDown { service, endpoint }) => {
                if senses.prober.failed(service, endpoint) {
                    self.apply_current();
                }
            }
            News::Worker(WorkerEvent::EndpointEjected { service, endpoint, reason }) => {
                senses.outliers.ejected(&self.snapshot.load(), service, endpoint, reason);
                self.apply_current();
            }
            News::Kernel(Event::ConnectFailed { service, endpoint, .. }) => {
                senses.prober.suspected(service, endpoint);
                senses.gates.look_at(service, &mut self.kernel);
            }
            News::Gates => senses.gates.look(&mut self.kernel),
            News::Kernel(Event::UnseenNamespace { pid, .. }) => {
                if let Some(opened) = self.namespaces.open_pid(pid, self.workers.len()) {
                    self.listen(opened);
                    self.look_for_inlets();
                }
            }
            News::Endpoint(changed) => {
                if changed.change == Change::Up {
                    self.warm(senses, changed.service, changed.endpoint);
                }
                self.apply_current();
            }
            News::Outliers(verdicts) => {
                let back = verdicts.iter().filter(|verdict| verdict.found == Found::Back);
                for verdict in back {
                    self.warm(senses, verdict.service, verdict.endpoint);
                }
                self.apply_current();
            }
            News::Warmer => self.apply_current(),
            News::Retired(Retired::Dead(dead)) => self.end(&dead),
            News::Retired(Retired::Gone) => self.forget_gone(),
            News::Read(read) => self.reload(read, senses),
            News::Relieved(faults) => self.relieve(faults, senses),
            News::Asked(Question::See(see)) => self.answer(see, senses),
            News::Asked(Question::Change(proposal)) => self.propose(*proposal, senses),
            News::Unbarred(endpoints) => {
                for (service, endpoint) in endpoints {
                    tracing::info!(service, %endpoint, "ejection by hand is over");
                }
                self.apply_current();
            }
            News::Stop(_) => {}
        }
        Ok(())
    }

    /// An endpoint is back.
    fn warm(&self, senses: &mut Senses, service: u32, endpoint: u32) {
        if let Some(service) = self.snapshot.load().by_id(service) {
            senses.warmer.risen(service, endpoint, Instant::now());
        }
    }

    /// From now on the kernel half is told that the agent lives, as long as all of it does.
    fn begin_pulse(&mut self) -> Result<(), NodeError> {
        let Some(mut heartbeat) = self.kernel.take_heartbeat() else { return Ok(()) };
        heartbeat.beat()?;
        let pulse = Pulse::begin(heartbeat, self.workers.iter().map(Worker::progress).collect())
            .map_err(|source| NodeError::System { what: "starting the thread of the heartbeat", source })?;
        self.pulse = Some(pulse);
        Ok(())
    }

    /// Looks at what is cheap enough to be looked at often.
    fn look(&mut self) -> Result<(), NodeError> {
        self.check_workers()?;
        let opened = self.namespaces.scan_named(self.workers.len());
        if !opened.is_empty() {
            opened.into_iter().for_each(|opened| self.listen(opened));
            self.look_for_inlets();
        }
        Ok(())
    }

    fn check_workers(&self) -> Result<(), NodeError> {
        match self.workers.iter().position(Worker::is_finished) {
            Some(dead) => Err(NodeError::WorkerDied(dead)),
            None => Ok(()),
        }
    }

    /// Cgroups, or names of network namespaces, have come or gone.
    fn follow(&mut self, watches: &[i32]) {
        self.kernel.follow(watches, &mut self.namespaces);
    }

    fn scan(&mut self) {
        // What the news did not tell: no watch may have been left for it.
        self.follow(&[]);
        self.kernel.let_go();
        let Changes { opened, closed } = self.namespaces.scan(self.workers.len());
        for opened in opened {
            self.listen(opened);
        }
        for netns in closed {
            tracing::info!(netns, "network namespace is gone");
            self.unlisten(netns);
        }
        self.look_for_inlets();
    }

    /// Steers connections that come in as the rules and the namespaces are now.
    fn look_for_inlets(&mut self) {
        if self.inlets.is_idle() {
            return;
        }
        let Look { let_go, gone, opened } = self.inlets.look(&self.namespaces.served(), self.workers.len());
        for worker in &self.workers {
            // Old listeners first: new ones may be of the same namespace.
            let_go.iter().for_each(|netns| worker.let_go(*netns));
            gone.iter().for_each(|netns| worker.end_inside(*netns));
        }
        for netns in let_go {
            tracing::info!(netns, "connections that come in are the programs' own");
        }
        for opened in opened {
            tracing::info!(netns = opened.netns, found = opened.found, "connections that come in are the agent's");
            self.hand_out(opened);
        }
    }

    fn sweep(&mut self) {
        let swept = self.kernel.sweep(&self.snapshot.load());
        if swept > 0 {
            tracing::debug!(swept, "entries that nobody needs any more are removed from the tables");
        }
    }

    fn listen(&self, opened: Opened) {
        tracing::info!(netns = opened.netns, found = opened.found, "network namespace is served");
        self.hand_out(opened);
    }

    fn hand_out(&self, opened: Opened) {
        for (worker, share) in self.workers.iter().zip(opened.workers) {
            for kernel::Listening { socket, netns, place } in share {
                worker.listen(Listening { socket, netns, place });
            }
        }
    }

    fn unlisten(&self, netns: u64) {
        for worker in &self.workers {
            worker.unlisten(netns);
        }
    }

    /// Tells the workers and the kernel half which endpoints take what now.
    fn apply_current(&mut self) {
        share_out(&self.snapshot.load());
        if let Err(error) = self.kernel.apply(&self.snapshot.load()) {
            tracing::error!(%error, "the kernel half does not know of the endpoint's change");
        }
    }

    /// Ends the agent's own connections to endpoints whose time is over.
    fn end(&self, dead: &[(u32, u32)]) {
        for worker in &self.workers {
            dead.iter().for_each(|(service, endpoint)| worker.end_endpoint(*service, *endpoint));
        }
    }

    /// Forgets endpoints that have left without a connection remaining.
    fn forget_gone(&mut self) {
        self.snapshot.store(Arc::new(self.snapshot.load().without_gone()));
        self.apply_current();
    }

    fn say_ready(&self, admin: SocketAddr) {
        tracing::info!(
            instance = self.config.instance,
            %admin,
            workers = self.workers.len(),
            services = self.config.services.len(),
            "ready"
        );
    }
}

/// The configuration of an agent that was told its zone.
fn in_zone(config: Config, zone: Option<&str>) -> Config {
    let zone = zone.map(str::to_owned).or(config.zone);
    Config { zone, ..config }
}

/// Tells the workers what each endpoint takes now, where it is not always the same.
fn share_out(snapshot: &Snapshot) {
    let by_workers = |service: &&Arc<Service>| service.config.mode == Mode::Agent && service.has_shares;
    for service in snapshot.services.iter().filter(by_workers) {
        service.shares.publish(balance::shares::of(service, |_| true));
    }
}

fn spawn_workers(
    slabs: &[Arc<Slab>],
    kernel: &Kernel,
    snapshot: &Arc<ArcSwap<Snapshot>>,
    events: &mpsc::UnboundedSender<WorkerEvent>,
) -> Result<Vec<Worker>, NodeError> {
    let spawn = |(index, slab): (usize, &Arc<Slab>)| {
        let shared = WorkerShared {
            snapshot: Arc::clone(snapshot),
            flows: kernel.flows(),
            slab: Arc::clone(slab),
            events: events.clone(),
        };
        Worker::spawn(index, shared)
            .map_err(|source| NodeError::System { what: "starting a worker (io_uring)", source })
    };
    slabs.iter().enumerate().map(spawn).collect()
}

/// Each connection through the agent takes two descriptors: as many as the system gives.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files stays where it is");
    }
}
