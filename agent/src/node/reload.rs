//! Reads the configuration again: a whole new one comes out, or none and the reason in the log.
//!
//! Nearly all of a new configuration is the one before. Whoever reads it sorts that out, on a thread of its own: services of which the same
//! is said are the very same, so that the main thread need not look into them.

use std::{
    collections::HashMap,
    fmt::Display,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::task::JoinHandle;

use crate::{
    config::{Admin, Capture, Config, ConfigError, Service, file},
    record::observed::Reloads,
};

/// Reads one file again and again, and counts what came of it.
#[derive(Debug)]
pub struct Reloader {
    path: PathBuf,
    /// What was read last, good or bad: the same again is no news.
    seen: Option<Arc<Seen>>,
    /// What is in effect.
    current: Arc<Config>,
    reading: Option<JoinHandle<(Option<Seen>, Read, Duration)>>,
    /// How long the last reading took.
    read_time: Duration,
    /// It was asked for once more while it was being read.
    again: bool,
    counts: Reloads,
}

/// What was read: the text, and what stood in the files that it names.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    text: Arc<str>,
    files: Vec<(PathBuf, Option<Vec<u8>>)>,
}

impl Seen {
    fn of(text: Arc<str>) -> Self {
        let files = file::files(&text).into_iter().map(|path| {
            let bytes = file::bytes(&path).ok();
            (path, bytes)
        });
        Self { files: files.collect(), text }
    }
}

/// What reading again gave.
#[derive(Debug)]
pub enum Read {
    /// A configuration to apply, and what says so.
    New(Box<Config>, Arc<str>),
    /// The text is what it was.
    Same,
    /// The text has mistakes, or there is none.
    Bad(ConfigError),
}

impl Reloader {
    /// For the file that `text` was read from, and `current` from that.
    pub fn new(path: PathBuf, text: Arc<str>, current: Arc<Config>) -> Self {
        Self {
            path,
            seen: Some(Arc::new(Seen::of(text))),
            current,
            reading: None,
            read_time: Duration::ZERO,
            again: false,
            counts: Reloads::default(),
        }
    }

    /// How often, with what result.
    pub fn counts(&self) -> Reloads {
        self.counts
    }

    /// Begins to read if something is other than when the agent started: it may have changed before anybody watched.
    pub fn catch_up(&mut self) {
        // A pipe is read once.
        if self.path.is_file()
            && file::text(&self.path).ok().map(|text| Seen::of(text.into())).as_ref() != self.seen.as_deref()
        {
            self.begin();
        }
    }

    /// Begins to read, not on this thread: a file of ten thousand services takes longer than a heartbeat.
    pub fn begin(&mut self) {
        if self.reading.is_some() {
            self.again = true;
            return;
        }
        let (path, before, current) = (self.path.clone(), self.seen.clone(), Arc::clone(&self.current));
        self.reading = Some(tokio::task::spawn_blocking(move || {
            let started = Instant::now();
            let (seen, read) = read(&path, before.as_deref(), &current);
            (seen, read, started.elapsed())
        }));
    }

    /// Waits for what was begun, for ever if nothing was. Dropping the future loses nothing.
    pub async fn ended(&mut self) -> Read {
        let Some(reading) = &mut self.reading else { return std::future::pending().await };
        let ended = reading.await;
        self.reading = None;
        let Ok((seen, read, took)) = ended else { return Read::Same };
        (self.seen, self.read_time) = (seen.map(Arc::new), took);
        if std::mem::take(&mut self.again) {
            self.begin();
        }
        read
    }

    /// What was read took effect, in that long, and is now `current`.
    pub fn applied(&mut self, current: &Arc<Config>, apply_time: Duration) {
        self.current = Arc::clone(current);
        self.counts.applied += 1;
        (self.counts.read_time, self.counts.apply_time) = (self.read_time, apply_time);
        self.counts.last_refused = false;
    }

    /// Something else took effect, which took so long to read and to put in force, and is now `current`.
    pub fn follow(&mut self, current: &Arc<Config>, read_time: Duration, apply_time: Duration) {
        self.current = Arc::clone(current);
        (self.counts.read_time, self.counts.apply_time) = (read_time, apply_time);
    }

    /// What the file is called where it is told who changed something.
    pub fn name(&self) -> String {
        format!("file {}", self.path.display())
    }

    /// Whether the file said this when it was read last.
    pub fn says(&self, text: &str) -> bool {
        self.seen.as_ref().is_some_and(|seen| &*seen.text == text)
    }

    /// What was read is what was read before.
    pub fn unchanged(&mut self) {
        self.counts.unchanged += 1;
        tracing::debug!(file = %self.path.display(), "configuration read again: unchanged");
    }

    /// What was read cannot take effect.
    pub fn refused(&mut self, error: &dyn Display) {
        self.counts.refused += 1;
        self.counts.last_refused = true;
        for line in error.to_string().lines() {
            tracing::error!("{line}");
        }
        tracing::error!(file = %self.path.display(), "configuration refused: the one before stays in effect");
    }

    /// The file, and those that it names.
    pub fn paths(&self) -> Vec<PathBuf> {
        let named = self.seen.iter().flat_map(|seen| &seen.files).map(|(path, _)| path.clone());
        std::iter::once(self.path.clone()).chain(named).collect()
    }
}

fn read(path: &Path, before: Option<&Seen>, current: &Config) -> (Option<Seen>, Read) {
    let text = match file::text_again(path) {
        Ok(text) => text,
        Err(error) => return (None, Read::Bad(error)),
    };
    let seen = Seen::of(text.into());
    if before == Some(&seen) {
        return (Some(seen), Read::Same);
    }
    let name = path.display().to_string();
    if seen.text.trim().is_empty() {
        // Somebody has emptied it and is about to write: to take that for "no services" would drop them all.
        return (Some(seen), Read::Bad(ConfigError::empty(name)));
    }
    let read = file::parse(&seen.text, &name).map(|mut config| {
        share(&mut config.services, &current.services);
        Read::New(Box::new(config), Arc::clone(&seen.text))
    });
    (Some(seen), read.unwrap_or_else(Read::Bad))
}

/// Puts the services in effect in the place of those that say the same under the same name.
pub fn share(new: &mut [Arc<Service>], current: &[Arc<Service>]) {
    let by_name: HashMap<&str, &Arc<Service>> =
        current.iter().map(|service| (service.name.as_str(), service)).collect();
    for service in new {
        let is_same = |current: &&&Arc<Service>| Arc::ptr_eq(current, service) || **current == service;
        if let Some(same) = by_name.get(service.name.as_str()).filter(is_same) {
            *service = Arc::clone(same);
        }
    }
}

/// `new` with what cannot change while the agent runs taken from `old`, and the names of those keys.
pub fn keep_fixed(old: &Config, new: Config) -> (Config, Vec<&'static str>) {
    let mut kept = Vec::new();
    let mut differs = |key, differs| {
        if differs {
            kept.push(key)
        }
    };
    differs("instance", old.instance != new.instance);
    differs("workers", old.workers != new.workers);
    differs("admin.address", old.admin.address != new.admin.address);
    differs("admin.socket", old.admin.socket != new.admin.socket);
    differs("audit", old.audit != new.audit);
    differs("maps", old.maps != new.maps);
    differs("capture.cgroup_mount", old.capture.cgroup_mount != new.capture.cgroup_mount);
    differs("capture.bpffs", old.capture.bpffs != new.capture.bpffs);
    let config = Config {
        instance: old.instance.clone(),
        workers: old.workers,
        admin: Admin { address: old.admin.address, socket: old.admin.socket.clone(), ..new.admin },
        audit: old.audit.clone(),
        capture: Capture {
            cgroup_mount: old.capture.cgroup_mount.clone(),
            bpffs: old.capture.bpffs.clone(),
            ..new.capture
        },
        zone: new.zone,
        drain_timeout: new.drain_timeout,
        hook_stats: new.hook_stats,
        maps: old.maps,
        switches: new.switches,
        services: new.services,
        inbound: new.inbound,
    };
    (config, kept)
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::*;
    use crate::config::Except;

    #[test]
    fn what_cannot_change_is_kept_and_named_and_the_rest_applies() {
        let parse = |text| file::parse(text, "F").expect("a good file");
        let old = parse("{instance: a, workers: 1, drain_timeout_ms: 5}");
        let text = "{instance: b, workers: 2, drain_timeout_ms: 6, admin: {address: '127.0.0.1:1', socket: /s}, audit: {path: /a}, \
                    maps: {sources: 7}, capture: {bpffs: /b, cgroup_mount: /c, except: {ports: [22]}}}";
        let (config, kept) = keep_fixed(&old, parse(text));
        assert_eq!(
            kept,
            [
                "instance",
                "workers",
                "admin.address",
                "admin.socket",
                "audit",
                "maps",
                "capture.cgroup_mount",
                "capture.bpffs"
            ]
        );
        let except = Except { ports: vec![22..=22], ..Except::default() };
        let capture = Capture { except, ..old.capture.clone() };
        assert_eq!(config, Config { drain_timeout: Duration::from_millis(6), capture, ..old.clone() });
        assert_eq!(keep_fixed(&old, old.clone()), (old.clone(), vec![]));
    }

    #[tokio::test]
    async fn a_pipe_in_the_files_place_is_refused_and_not_waited_for() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("f.yaml");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("a pipe");
        let mut reloader = Reloader::new(path, "workers: 1".into(), parsed("workers: 1"));
        reloader.begin();
        let read = tokio::time::timeout(Duration::from_secs(10), reloader.ended()).await.expect("nobody waits");
        assert!(matches!(read, Read::Bad(error) if error.to_string().contains("no regular file")));
    }

    fn parsed(text: &str) -> Arc<Config> {
        Arc::new(file::parse(text, "F").expect("a good file"))
    }

    #[tokio::test]
    async fn services_of_which_the_same_is_said_are_the_very_same() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("f.yaml");
        let service = |last: u8, port: u16| {
            format!("  - {{name: s{last}, address: 10.0.0.{last}:80, protocol: tcp, endpoints: ['10.0.1.1:{port}']}}\n")
        };
        let text = |services: &[(u8, u16)]| {
            let lines: String = services.iter().map(|(last, port)| service(*last, *port)).collect();
            format!("services:\n{lines}")
        };
        let before = text(&[(1, 80), (2, 80), (3, 80)]);
        let current = parsed(&before);
        let mut reloader = Reloader::new(path.clone(), before.into(), Arc::clone(&current));
        fs::write(&path, text(&[(3, 80), (2, 81), (1, 80), (4, 80)])).expect("writable");
        reloader.begin();
        let Read::New(config, _) = reloader.ended().await else { panic!("a good file") };
        let same = |new: &Arc<Service>| current.services.iter().any(|old| Arc::ptr_eq(old, new));
        assert_eq!(config.services.iter().map(same).collect::<Vec<bool>>(), [true, false, true, false]);
        assert_eq!(*config, *parsed(&fs::read_to_string(&path).expect("readable")));
    }

    #[tokio::test]
    async fn a_change_before_anybody_watched_is_caught_up_with() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("f.yaml");
        fs::write(&path, "workers: 1").expect("writable");
        let mut same = Reloader::new(path.clone(), "workers: 1".into(), parsed("workers: 1"));
        same.catch_up();
        assert!(same.reading.is_none());
        let mut changed = Reloader::new(path, "workers: 2".into(), parsed("workers: 2"));
        changed.catch_up();
        assert!(matches!(changed.ended().await, Read::New(config, _) if config.workers == 1));
    }

    #[tokio::test]
    async fn the_same_text_is_no_news_and_a_bad_one_is_told_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("f.yaml");
        let mut reloader = Reloader::new(path.clone(), "workers: 1".into(), parsed("workers: 1"));
        let mut after = async |text: Option<&str>| {
            match text {
                Some(text) => fs::write(&path, text).expect("writable"),
                None => fs::remove_file(&path).expect("removable"),
            }
            reloader.begin();
            let read = reloader.ended().await;
            match &read {
                Read::New(config, _) => reloader.applied(&Arc::new(Config::clone(config)), Duration::from_millis(7)),
                Read::Same => reloader.unchanged(),
                Read::Bad(error) => reloader.refused(error),
            }
            let counts = reloader.counts();
            assert_eq!(
                (counts.read_time > Duration::ZERO, counts.apply_time.as_millis()),
                (counts.applied > 0, counts.applied as u128 * 7)
            );
            (read, Reloads { read_time: Duration::ZERO, apply_time: Duration::ZERO, ..counts })
        };
        assert!(matches!(after(Some("workers: 1")).await, (Read::Same, Reloads { unchanged: 1, .. })));
        assert!(matches!(
            after(Some("workers: 0")).await,
            (Read::Bad(_), Reloads { refused: 1, last_refused: true, .. })
        ));
        assert!(matches!(
            after(Some("workers: 0")).await,
            (Read::Same, Reloads { refused: 1, last_refused: true, .. })
        ));
        assert!(matches!(after(Some("\n")).await, (Read::Bad(_), Reloads { refused: 2, .. })));
        assert!(matches!(after(None).await, (Read::Bad(_), Reloads { refused: 3, .. })));
        let (read, counts) = after(Some("workers: 1")).await;
        assert!(matches!(read, Read::New(config, _) if config.workers == 1));
        assert_eq!(counts, Reloads { applied: 1, refused: 3, unchanged: 2, ..Reloads::default() });
    }
}
