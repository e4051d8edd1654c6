//! All that the main thread waits for, as one stream of news.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::{self, Interval, MissedTickBehavior},
};

use super::{
    admin::Question,
    bars::Bars,
    canary::Canaries,
    faults::{Faults, Ordered},
    gates::Gates,
    outlier::{Outliers, Verdict},
    probe::{Changed, Prober},
    processor::Processors,
    reload::{Read, Reloader},
    retire::{Retired, Retirer},
    warm::Warmer,
    watch::Watch,
    worker::WorkerEvent,
};
use crate::{
    cluster::Snapshot,
    kernel::{Event, EventStream, TreeStream},
};

/// How soon a worker that died is noticed, and a network namespace that has just got its name.
const LOOK: Duration = Duration::from_millis(250);
/// A look at every captured process, for network namespaces that no event told of, and for those that are gone.
const SCAN: Duration = Duration::from_secs(2);

/// What a connect published and nobody fetched takes room in a table of bounded size, but not in a hurry.
const SWEEP: Duration = Duration::from_secs(30);

/// Something happened.
#[derive(Debug)]
pub enum News {
    /// Time to look at the workers, and at the names of network namespaces.
    Look,
    /// Time to look for network namespaces.
    Scan,
    /// Time to remove what was published and not fetched.
    Sweep,
    /// A worker tells.
    Worker(WorkerEvent),
    /// Directories of the tree of cgroups, or names of network namespaces, have changed.
    Tree(Vec<i32>),
    /// The kernel half tells.
    Kernel(Event),
    /// An endpoint went up or down.
    Endpoint(Changed),
    /// An interval has found something of endpoints.
    Outliers(Vec<Verdict>),
    /// Time to look at the breakers of services that the kernel balances.
    Gates,
    /// Endpoints that warm up take more.
    Warmer,
    /// Endpoints on their way out have come further.
    Retired(Retired),
    /// The configuration was read again.
    Read(Read),
    /// Endpoints that somebody had left out for a while may be chosen again; with their services' names.
    Unbarred(Vec<(String, SocketAddr)>),
    /// Faults that nobody has renewed.
    Relieved(Vec<Ordered>),
    /// The admin endpoint asks.
    Asked(Question),
    /// A signal says to end; its number.
    Stop(i32),
}

/// Every source of news.
pub struct Senses {
    look: Interval,
    scan: Interval,
    sweep: Interval,
    workers: mpsc::UnboundedReceiver<WorkerEvent>,
    kernel: EventStream,
    tree: Option<TreeStream>,
    questions: mpsc::Receiver<Question>,
    file: Option<Watch>,
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
    /// Probes endpoints.
    pub prober: Prober,
    /// Finds endpoints that do worse than they should.
    pub outliers: Outliers,
    /// Judges services that the kernel balances by their handshakes.
    pub gates: Gates,
    /// Moves canaries on.
    pub canaries: Canaries,
    /// Knows how busy endpoints are.
    pub processors: Processors,
    /// Gives endpoints that have come their share little by little.
    pub warmer: Warmer,
    /// Endpoints that somebody wants left out for a while.
    pub bars: Bars,
    /// What goes wrong on purpose.
    pub faults: Faults,
    /// Ends what is connected to endpoints that left.
    pub retirer: Retirer,
    /// Reads the configuration again; absent when it came from no file.
    pub reloader: Option<Reloader>,
}

impl Senses {
    /// Begins to listen, to watch and to catch signals. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// When the system refuses a handler.
    pub fn new(
        workers: mpsc::UnboundedReceiver<WorkerEvent>,
        kernel: EventStream,
        tree: TreeStream,
        questions: mpsc::Receiver<Question>,
        mut reloader: Option<Reloader>,
        mut retirer: Retirer,
        (snapshot, cgroup_mount, mut canaries): (&Arc<Snapshot>, Option<&Path>, Canaries),
    ) -> io::Result<Self> {
        let file = reloader.as_ref().and_then(|reloader| watch(&reloader.paths()));
        if let Some(reloader) = &mut reloader {
            reloader.catch_up();
        }
        let mut prober = Prober::default();
        prober.follow(snapshot);
        let mut outliers = Outliers::default();
        outliers.follow(snapshot, Instant::now());
        let mut gates = Gates::default();
        gates.follow(snapshot);
        canaries.follow(snapshot, Instant::now());
        let mut processors = Processors::default();
        processors.follow(snapshot, cgroup_mount, Instant::now());
        retirer.follow(snapshot, Instant::now());
        Ok(Self {
            look: every(LOOK),
            scan: every(SCAN),
            sweep: every(SWEEP),
            workers,
            kernel,
            tree: Some(tree),
            questions,
            file,
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            prober,
            outliers,
            gates,
            canaries,
            processors,
            warmer: Warmer::default(),
            bars: Bars::default(),
            faults: Faults::default(),
            retirer,
            reloader,
        })
    }

    /// The next news. Dropping the future loses none.
    pub async fn next(&mut self) -> News {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return News::Stop(SignalKind::terminate().as_raw_value()),
                _ = self.interrupt.recv() => return News::Stop(SignalKind::interrupt().as_raw_value()),
                _ = self.look.tick() => return News::Look,
                _ = self.scan.tick() => return News::Scan,
                _ = self.sweep.tick() => return News::Sweep,
                Some(event) = self.workers.recv() => return News::Worker(event),
                Ok(event) = self.kernel.next() => return News::Kernel(event),
                watches = grown(&mut self.tree) => return News::Tree(watches),
                changed = self.prober.changed() => return News::Endpoint(changed),
                verdicts = self.outliers.changed() => return News::Outliers(verdicts),
                () = self.canaries.turn() => {}
                () = self.gates.turn() => return News::Gates,
                () = self.processors.turn() => {}
                () = self.warmer.changed() => return News::Warmer,
                over = self.bars.changed() => return News::Unbarred(over),
                over = self.faults.changed() => return News::Relieved(over),
                retired = self.retirer.changed() => return News::Retired(retired),
                read = ended(&mut self.reloader) => {
                    self.follow_files();
                    return News::Read(read);
                }
                Some(question) = self.questions.recv() => return News::Asked(question),
                _ = self.hangup.recv() => self.read_again("SIGHUP"),
                () = changed(&mut self.file) => self.read_again("the file changed"),
            }
        }
    }

    /// Watches the files that were read last: another text may name others.
    fn follow_files(&mut self) {
        let (Some(reloader), Some(file)) = (&mut self.reloader, &mut self.file) else { return };
        match file.follow(&reloader.paths()) {
            Ok(true) => reloader.begin(),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%error, "changes are not noticed any more; send SIGHUP after one");
                self.file = None;
            }
        }
    }

    fn read_again(&mut self, why: &'static str) {
        match &mut self.reloader {
            Some(reloader) => {
                tracing::debug!(why, "reading the configuration again");
                reloader.begin();
            }
            None => tracing::info!(why, "nothing to read again: the agent was started without a file"),
        }
    }
}

fn every(period: Duration) -> Interval {
    let mut interval = time::interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

fn watch(paths: &[PathBuf]) -> Option<Watch> {
    Watch::new(paths)
        .inspect_err(
            |error| tracing::warn!(file = ?paths.first(), %error, "changes are not noticed; send SIGHUP after one"),
        )
        .ok()
}

async fn ended(reloader: &mut Option<Reloader>) -> Read {
    match reloader {
        Some(reloader) => reloader.ended().await,
        None => std::future::pending().await,
    }
}

async fn changed(file: &mut Option<Watch>) {
    let Some(watch) = file else { return std::future::pending().await };
    if let Err(error) = watch.changed().await {
        tracing::warn!(%error, "the file is watched no more; send SIGHUP after a change");
        *file = None;
    }
}

/// What has changed in the tree of cgroups.
async fn grown(tree: &mut Option<TreeStream>) -> Vec<i32> {
    let Some(news) = tree else { return std::future::pending().await };
    match news.changed().await {
        Ok(watches) => watches,
        Err(error) => {
            tracing::warn!(%error, "the tree of cgroups is watched no more: what appears is captured by the next scan");
            *tree = None;
            Vec::new()
        }
    }
}
