//! What is counted, and the watchdog: a connection that lives too long is told in full, and ends the program.

use std::{
    collections::BTreeMap,
    fmt::Display,
    process,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    LIFE_MAX,
    plan::{Plan, Side},
};

/// How many failures are told in full: a kernel that loses bytes loses them in thousands of connections.
const TOLD_MAX: u64 = 12;

/// One side's connections and counts.
#[derive(Debug, Default)]
pub struct Watch {
    counts: Mutex<BTreeMap<String, u64>>,
    living: Mutex<BTreeMap<u64, Arc<Life>>>,
    serial: AtomicU64,
}

/// One connection as the watchdog sees it.
#[derive(Debug)]
pub struct Life {
    /// Bytes written so far.
    pub sent: AtomicU64,
    /// Bytes read and found right so far.
    pub received: AtomicU64,
    serial: u64,
    side: Side,
    name: String,
    born: Instant,
    told: Mutex<(Option<Plan>, &'static str)>,
}

impl Watch {
    /// Starts the watchdog. The server is given longer, so that both sides' states are told before the client ends everything.
    pub fn start(side: Side) -> Arc<Self> {
        let watch = Arc::new(Self::default());
        let patience = if side == Side::Client { LIFE_MAX + Duration::from_secs(3) } else { LIFE_MAX };
        let watched = Arc::clone(&watch);
        thread::spawn(move || watched.keep_watch(side, patience));
        watch
    }

    /// Counts something that happened.
    pub fn count(&self, what: impl Display) {
        *self.counts.lock().expect("no thread panics with it").entry(what.to_string()).or_default() += 1;
    }

    /// Takes a connection under watch.
    pub fn begin(&self, side: Side, name: String) -> Arc<Life> {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let (sent, received) = (AtomicU64::new(0), AtomicU64::new(0));
        let told = Mutex::new((None, "begin"));
        let life = Arc::new(Life { sent, received, serial, side, name, born: Instant::now(), told });
        self.living.lock().expect("no thread panics with it").insert(serial, Arc::clone(&life));
        life
    }

    /// A connection has ended as planned.
    pub fn end(&self, life: &Life) {
        self.living.lock().expect("no thread panics with it").remove(&life.serial);
    }

    /// A connection has not gone as planned: tells it on standard error.
    pub fn fail(&self, life: &Life, what: &dyn Display) {
        self.count("failed");
        if self.counted("failed") <= TOLD_MAX {
            eprintln!("FAILED: {what}: {}", life.describe());
        }
        self.end(life);
    }

    /// What was counted, a line each.
    pub fn report(&self) -> String {
        let counts = self.counts.lock().expect("no thread panics with it");
        counts.iter().map(|(what, count)| format!("{count:>9}  {what}\n")).collect()
    }

    /// How often something was counted.
    pub fn counted(&self, what: &str) -> u64 {
        self.counts.lock().expect("no thread panics with it").get(what).copied().unwrap_or(0)
    }

    /// How many connections are under watch.
    pub fn living(&self) -> usize {
        self.living.lock().expect("no thread panics with it").len()
    }

    fn keep_watch(&self, side: Side, patience: Duration) {
        loop {
            thread::sleep(Duration::from_millis(250));
            let living: Vec<Arc<Life>> =
                self.living.lock().expect("no thread panics with it").values().cloned().collect();
            let hanging: Vec<_> = living.iter().filter(|life| life.born.elapsed() > patience).collect();
            hanging.iter().for_each(|life| eprintln!("HANGS: {}", life.describe()));
            match (hanging.is_empty(), side) {
                (true, _) => {}
                (false, Side::Client) => process::exit(3),
                // Told once; the client decides when it is over.
                (false, Side::Server) => return,
            }
        }
    }
}

impl Life {
    /// Says what the connection is about to do.
    pub fn phase(&self, phase: &'static str) {
        self.told.lock().expect("no thread panics with it").1 = phase;
    }

    /// Says what the connection is to do in all.
    pub fn plan(&self, plan: Plan) {
        self.told.lock().expect("no thread panics with it").0 = Some(plan);
    }

    fn describe(&self) -> String {
        let (plan, phase) = *self.told.lock().expect("no thread panics with it");
        let moved = (self.sent.load(Ordering::Relaxed), self.received.load(Ordering::Relaxed));
        format!(
            "{:?} of {} for {:?} in phase {phase}: sent {}, received {} of {plan:?}",
            self.side,
            self.name,
            self.born.elapsed(),
            moved.0,
            moved.1
        )
    }
}
