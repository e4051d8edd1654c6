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

/// What may go wrong with a transfer, besides that it never ends.
#[derive(Debug)]
pub enum Fault {
    /// Other bytes came than were sent, or not as many.
    Bytes(String),
    /// It did not begin or end as planned: an error.
    End(String),
}

impl Fault {
    /// It did not begin or end as planned.
    pub fn end(what: impl Display) -> Self {
        Self::End(what.to_string())
    }
}

/// One side's connections and counts.
#[derive(Debug, Default)]
pub struct Watch {
    counts: Mutex<BTreeMap<String, u64>>,
    transfers: AtomicU64,
    bytes: AtomicU64,
    wrong_bytes: AtomicU64,
    lost_ends: AtomicU64,
    hangs: AtomicU64,
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

    /// A transfer has ended as planned.
    pub fn end(&self, life: &Life) {
        self.transfers.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(life.received.load(Ordering::Relaxed), Ordering::Relaxed);
        self.forget(life);
    }

    /// A transfer has not gone as planned: tells it on standard error.
    pub fn fail(&self, life: &Life, fault: &Fault) {
        let (kind, what, count) = match fault {
            Fault::Bytes(what) => ("wrong bytes", what, &self.wrong_bytes),
            Fault::End(what) => ("lost end", what, &self.lost_ends),
        };
        count.fetch_add(1, Ordering::Relaxed);
        if self.faults() <= TOLD_MAX {
            eprintln!("{kind}: {what}: {}", life.describe());
        }
        self.end(life);
    }

    /// No transfer: a connection that nobody meant.
    pub fn forget(&self, life: &Life) {
        self.living.lock().expect("no thread panics with it").remove(&life.serial);
    }

    /// Whether any transfer has not gone as planned.
    pub fn has_faults(&self) -> bool {
        self.faults() > 0
    }

    /// Whoever is still under watch never ends: tells and counts it.
    pub fn give_up(&self) {
        let living = self.living();
        self.tell_hanging(&living);
    }

    /// What was counted, a line each.
    pub fn report(&self) -> String {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let sums = [
            ("transfers", count(&self.transfers)),
            ("bytes", count(&self.bytes)),
            ("wrong bytes", count(&self.wrong_bytes)),
            ("lost ends", count(&self.lost_ends)),
            ("hangs", count(&self.hangs)),
        ];
        let counts = self.counts.lock().expect("no thread panics with it");
        let all = sums.into_iter().chain(counts.iter().map(|(what, count)| (what.as_str(), *count)));
        all.map(|(what, count)| format!("{count:>12}  {what}\n")).collect()
    }

    fn faults(&self) -> u64 {
        [&self.wrong_bytes, &self.lost_ends, &self.hangs].map(|count| count.load(Ordering::Relaxed)).iter().sum()
    }

    /// How many connections are under watch.
    pub fn count_living(&self) -> usize {
        self.living().len()
    }

    fn living(&self) -> Vec<Arc<Life>> {
        self.living.lock().expect("no thread panics with it").values().cloned().collect()
    }

    fn keep_watch(&self, side: Side, patience: Duration) {
        loop {
            thread::sleep(Duration::from_millis(250));
            let hanging: Vec<_> = self.living().into_iter().filter(|life| life.born.elapsed() > patience).collect();
            self.tell_hanging(&hanging);
            match (hanging.is_empty(), side) {
                (true, _) => {}
                (false, Side::Client) => {
                    print!("{}", self.report());
                    process::exit(3)
                }
                // Told once; the client decides when it is over.
                (false, Side::Server) => return,
            }
        }
    }

    /// One that has all its bytes and waits for the end has lost that; any other hangs.
    fn tell_hanging(&self, hanging: &[Arc<Life>]) {
        for life in hanging {
            let (kind, count) = if life.has_all() { ("lost end", &self.lost_ends) } else { ("hangs", &self.hangs) };
            count.fetch_add(1, Ordering::Relaxed);
            eprintln!("{kind}: {}", life.describe());
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

    /// Whether it has received every byte that it was to receive, and nothing is left but to see the end.
    fn has_all(&self) -> bool {
        let (plan, phase) = *self.told.lock().expect("no thread panics with it");
        let received = self.received.load(Ordering::Relaxed);
        phase == "read" && plan.is_some_and(|plan| received == plan.sends(self.side.other()))
    }

    fn describe(&self) -> String {
        let (plan, phase) = *self.told.lock().expect("no thread panics with it");
        let number = plan.map_or_else(|| "of no number yet".to_owned(), |plan| plan.number.to_string());
        let moved = (self.sent.load(Ordering::Relaxed), self.received.load(Ordering::Relaxed));
        format!(
            "transfer {number}, {:?} of {} for {:?} in phase {phase}: sent {}, received {} of {plan:?}",
            self.side,
            self.name,
            self.born.elapsed(),
            moved.0,
            moved.1
        )
    }
}
