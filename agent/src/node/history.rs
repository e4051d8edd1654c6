//! Every change of the configuration: its generation, what differs, when, by whom, and what came of it. Written down off the main thread,
//! in the order in which the changes were made.

pub mod diff;
mod ledger;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time,
};

use self::diff::{Difference, Differences};
pub use self::ledger::{KEPT, Ledger};
use crate::{
    config::{Config, file},
    record::observed::Changes,
};

/// Changes that wait to be written: a disk that takes so long is broken.
const WAITING_MAX: usize = 64;
/// How long until what the disk did not take is tried again: a full one is soon made room on, or not soon.
const AGAIN: Duration = Duration::from_secs(5);
/// How long an agent that ends waits for its last changes to be written.
const CLOSE_MAX: Duration = Duration::from_secs(2);

/// One change, as it is written down.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When: RFC 3339, UTC.
    pub at: String,
    /// The generation that is in effect afterwards; a change that is refused, or is not of the configuration, makes none.
    pub generation: u64,
    /// What was changed: `start`, `reload`, `config`, `service`, `endpoint`, `request_limit`, `rollback`, `eject`, …
    pub change: String,
    /// By whom: a file, a token, whoever opened the socket.
    pub by: String,
    /// What came of it.
    pub outcome: Outcome,
    /// Why it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What is to be known about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// What is said otherwise than before.
    #[serde(default)]
    pub diff: Vec<Difference>,
    /// How many more differences there are.
    #[serde(default)]
    pub more: usize,
}

/// What came of a change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It is in effect.
    #[default]
    Applied,
    /// Nothing changed.
    Refused,
}

/// What a change is about.
#[derive(Debug)]
pub enum What {
    /// Another configuration is in effect, which this text says. Without an old one: the agent has just started.
    Configured {
        /// The one before.
        old: Option<Arc<Config>>,
        /// The one in effect.
        new: Arc<Config>,
        /// What was read; `None`: one item of what was in effect has changed.
        text: Option<Arc<str>>,
    },
    /// Nothing changed, for this reason.
    Refused(String),
    /// Something beside the configuration.
    Beside(Vec<Difference>),
}

/// A change, to be written down.
#[derive(Debug)]
pub struct Record {
    /// The generation in effect now.
    pub generation: u64,
    /// See [`Entry::change`].
    pub change: &'static str,
    /// See [`Entry::by`].
    pub by: String,
    /// See [`Entry::note`].
    pub note: Option<String>,
    /// What it is about.
    pub what: What,
    /// Who waits until it is written.
    pub told: Option<oneshot::Sender<Entry>>,
}

/// Where changes are told to.
#[derive(Debug)]
pub struct History {
    ledger: Arc<Mutex<Ledger>>,
    tell: mpsc::Sender<(SystemTime, Record)>,
    writing: JoinHandle<()>,
    unwritten: Arc<AtomicUsize>,
    /// How many there were, by what was changed, by whom, and what came of it.
    counts: BTreeMap<[&'static str; 3], u64>,
}

/// Who wants to read what was written; reads and parses files, never on the main thread.
#[derive(Clone, Debug)]
pub struct Reader(Arc<Mutex<Ledger>>);

impl Reader {
    /// What is written.
    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl History {
    /// Reads what was written before, and begins to write. Must be called within a tokio runtime.
    pub fn open(path: PathBuf, bytes_max: u32) -> Self {
        Self::open_trying(path, bytes_max, AGAIN)
    }

    fn open_trying(path: PathBuf, bytes_max: u32, again: Duration) -> Self {
        let ledger = Arc::new(Mutex::new(Ledger::open(path, bytes_max.into())));
        let (tell, hear) = mpsc::channel(WAITING_MAX);
        let unwritten = Arc::<AtomicUsize>::default();
        let writing = tokio::spawn(write(hear, Reader(Arc::clone(&ledger)), Arc::clone(&unwritten), again));
        Self { ledger, tell, writing, unwritten, counts: BTreeMap::new() }
    }

    /// For who wants to read.
    pub fn reader(&self) -> Reader {
        Reader(Arc::clone(&self.ledger))
    }

    /// Tells of a change that was made, or refused, just now.
    pub fn add(&mut self, record: Record) {
        let result = if matches!(record.what, What::Refused(_)) { "refused" } else { "applied" };
        *self.counts.entry([record.change, kind_of(&record.by), result]).or_default() += 1;
        if let Err(error) = self.tell.try_send((SystemTime::now(), record)) {
            tracing::error!(%error, "a change is not written down");
        }
    }

    /// How many were told of since the agent started.
    pub fn counts(&self) -> Vec<Changes> {
        let counts = self.counts.iter();
        counts.map(|([change, by, result], count)| Changes { change, by, result, count: *count }).collect()
    }

    /// How many the disk has not taken yet.
    pub fn unwritten(&self) -> usize {
        self.unwritten.load(Relaxed)
    }

    /// Waits until all is written.
    pub async fn close(self) {
        drop(self.tell);
        if time::timeout(CLOSE_MAX, self.writing).await.is_err() {
            tracing::error!("the last changes are not written down: the disk takes too long");
        }
    }
}

/// What kind of somebody this is: metrics name nobody.
fn kind_of(by: &str) -> &'static str {
    let word = by.split([' ', ',']).next();
    ["file", "socket", "token"].into_iter().find(|kind| word == Some(kind)).unwrap_or("agent")
}

async fn write(
    mut records: mpsc::Receiver<(SystemTime, Record)>,
    reader: Reader,
    unwritten: Arc<AtomicUsize>,
    again: Duration,
) {
    loop {
        let next = match unwritten.load(Relaxed) {
            0 => Ok(records.recv().await),
            _ => time::timeout(again, records.recv()).await,
        };
        let has_ended = matches!(next, Ok(None));
        let (reader, unwritten) = (reader.clone(), Arc::clone(&unwritten));
        let written = move || {
            match next {
                Ok(Some((at, record))) => write_one(&reader, at, record),
                // It is time to, or the last time that it can be.
                Ok(None) | Err(_) => reader.ledger().try_again(),
            }
            unwritten.store(reader.ledger().unwritten(), Relaxed);
        };
        let _ = tokio::task::spawn_blocking(written).await;
        if has_ended {
            return;
        }
    }
}

fn write_one(reader: &Reader, at: SystemTime, record: Record) {
    let Record { generation, change, by, note, what, told } = record;
    let mut entry = Entry { at: rfc3339(at), generation, change: change.to_owned(), by, note, ..Entry::default() };
    let mut kept = None;
    match what {
        What::Configured { old, new, text } => {
            let text = text.unwrap_or_else(|| file::written(&new).into());
            let old = old.or_else(|| before_start(&reader.ledger(), &text));
            let Differences { told, more } = old.map(|old| diff::between(&old, &new)).unwrap_or_default();
            (entry.diff, entry.more, kept) = (told, more, Some(text));
        }
        What::Refused(error) => (entry.outcome, entry.error) = (Outcome::Refused, Some(error)),
        What::Beside(diff) => entry.diff = diff,
    }
    let mut ledger = reader.ledger();
    ledger.add(entry.clone(), kept.as_deref());
    if let Some(trouble) = ledger.trouble() {
        let what = format!("this is not written down: {trouble}");
        entry.note = Some(entry.note.map_or(what.clone(), |note| format!("{note}; {what}")));
    }
    drop(ledger);
    if let Some(told) = told {
        let _ = told.send(entry); // who asked may have gone
    }
}

/// What was in effect when the agent before this one ended, if it said anything else.
fn before_start(ledger: &Ledger, text: &str) -> Option<Arc<Config>> {
    let before = ledger.text(ledger.last()).filter(|before| before != text)?;
    file::parse(&before, "the configuration before").ok().map(Arc::new)
}

/// To the millisecond, in UTC.
pub fn rfc3339(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Days of the proleptic Gregorian calendar, in eras of 400 years that begin in March.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, year) = if month < 10 { (month + 3, year) } else { (month - 9, year + 1) };
    let (hour, minute) = (second / 3_600, second / 60 % 60);
    format!(
        "{:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}.{:03}Z",
        year + 400 * era,
        second % 60,
        since.subsec_millis()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_told_as_rfc_3339_says() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_007, "2000-02-29T00:00:00.007Z"),
            (1_709_251_199_999, "2024-02-29T23:59:59.999Z"),
            (1_767_225_600_000, "2026-01-01T00:00:00.000Z"),
            (4_107_542_399_000, "2100-02-28T23:59:59.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_millis(ms)), text);
        }
    }

    #[tokio::test]
    async fn changes_are_counted_by_what_was_changed_by_which_kind_of_somebody_and_what_came_of_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut history = History::open(directory.path().join("audit.jsonl"), 1 << 20);
        let refused = || What::Refused("no".to_owned());
        let beside = || What::Beside(Vec::new());
        for (change, by, what) in [
            ("reload", "file /etc/sockway.yaml", refused()),
            ("reload", "file /etc/filet.yaml", refused()),
            ("endpoint", "socket, user 0", beside()),
            ("endpoint", "socket", beside()),
            ("endpoint", "token socket", beside()),
            ("fault", "agent", beside()),
            ("start", file::DEFAULT_NAME, beside()),
        ] {
            history.add(Record { generation: 1, change, by: by.to_owned(), note: None, what, told: None });
        }
        let counted: Vec<_> = history.counts().iter().map(|it| (it.change, it.by, it.result, it.count)).collect();
        history.close().await;
        assert_eq!(
            counted,
            [
                ("endpoint", "socket", "applied", 2),
                ("endpoint", "token", "applied", 1),
                ("fault", "agent", "applied", 1),
                ("reload", "file", "refused", 2),
                ("start", "agent", "applied", 1),
            ]
        );
    }

    #[tokio::test]
    async fn changes_are_written_in_order_and_a_start_is_compared_with_what_was_before() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("audit.jsonl");
        let parsed = |text: &str| Arc::new(file::parse(text, "F").expect("a good file"));
        let configured = |old: Option<&str>, new: &str| What::Configured {
            old: old.map(parsed),
            new: parsed(new),
            text: Some(new.into()),
        };
        let record =
            |generation, change, what| Record { generation, change, by: "F".into(), note: None, what, told: None };
        let mut history = History::open(path.clone(), 1 << 20);
        history.add(record(1, "start", configured(None, "drain_timeout_ms: 5")));
        history.add(record(2, "reload", configured(Some("drain_timeout_ms: 5"), "drain_timeout_ms: 6")));
        history.add(record(2, "reload", What::Refused("F:1:1: no".into())));
        history.close().await;
        let mut history = History::open(path, 1 << 20);
        assert_eq!(history.reader().ledger().last(), 2);
        history.add(record(3, "start", configured(None, "drain_timeout_ms: 7")));
        let reader = history.reader();
        history.close().await;
        let told = |entry: &Entry| {
            let change = entry.diff.first().map(|one| (one.old.clone(), one.new.clone()));
            (entry.generation, entry.outcome, change.map(|(old, new)| format!("{old:?} {new:?}")))
        };
        let change = |old, new| Some(format!("Some(Number({old})) Some(Number({new}))"));
        assert_eq!(
            reader.ledger().entries().map(told).collect::<Vec<_>>(),
            [
                (1, Outcome::Applied, None),
                (2, Outcome::Applied, change(5, 6)),
                (2, Outcome::Refused, None),
                (3, Outcome::Applied, change(6, 7)),
            ]
        );
    }

    #[tokio::test]
    async fn what_a_full_disk_did_not_take_is_tried_again_without_another_change() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("audit.jsonl");
        let add = async |history: &mut History| {
            let what = What::Beside(Vec::new());
            let (told, hear) = oneshot::channel();
            let by = "agent".into();
            history.add(Record { generation: 1, change: "fault", by, note: None, what, told: Some(told) });
            hear.await.expect("an entry")
        };
        let lines = || std::fs::read_to_string(&path).expect("readable").lines().count();
        // Written to as a disk that has no room.
        std::os::unix::fs::symlink("/dev/full", &path).expect("a link");
        let mut history = History::open_trying(path.clone(), 1 << 20, Duration::from_millis(10));
        assert!(add(&mut history).await.note.is_some());
        std::fs::remove_file(&path).expect("removable");
        let written = async {
            while history.reader().ledger().unwritten() > 0 {
                time::sleep(Duration::from_millis(1)).await;
            }
        };
        time::timeout(Duration::from_secs(10), written).await.expect("it is tried again");
        assert_eq!((lines(), history.reader().ledger().trouble()), (1, None));
        history.close().await;
        // And once more at the end.
        std::fs::remove_file(&path).expect("removable");
        std::os::unix::fs::symlink("/dev/full", &path).expect("a link");
        let mut history = History::open(path.clone(), 1 << 20);
        assert!(add(&mut history).await.note.is_some());
        std::fs::remove_file(&path).expect("removable");
        history.close().await;
        assert_eq!(lines(), 1);
    }
}
