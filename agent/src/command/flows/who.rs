//! What numbers of a flow are called: a service by its id, a cgroup by its id, a network namespace by its cookie, a program by its process.
//! Looked up once, then remembered.

use std::{collections::HashMap, fs, path::PathBuf, time::Duration};

use tokio::time::Instant;

use crate::{
    config::Capture,
    kernel::{self, Pinned, cgroup},
};

/// Between two looks for names that were not found: there may be none.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Cgroups remembered at once; a host has fewer alive, and short-lived ones must not fill the memory of a long watch.
const CGROUPS_MAX: usize = 65_536;

/// Names, as far as they are known.
pub struct Who {
    pinned: Pinned,
    mount: Option<PathBuf>,
    services: Book<u32>,
    namespaces: Book<u64>,
    cgroups: HashMap<u64, Option<String>>,
}

impl Who {
    /// Knows nothing yet.
    pub fn new(pinned: Pinned, capture: &Capture) -> Self {
        let mount = capture.cgroup_mount.clone().or_else(cgroup::mount);
        Self { pinned, mount, services: Book::default(), namespaces: Book::default(), cgroups: HashMap::new() }
    }

    /// A service's name, while it is configured.
    pub fn service(&mut self, id: u32) -> Option<String> {
        self.services.find(id, || self.pinned.names().unwrap_or_default())
    }

    /// A network namespace's name: `host`, or what `ip netns` calls it.
    pub fn namespace(&mut self, cookie: u64) -> Option<String> {
        self.namespaces.find(cookie, kernel::named_cookies)
    }

    /// A cgroup's path below its mount, while it is there.
    pub fn cgroup(&mut self, id: u64) -> Option<String> {
        let mount = self.mount.as_ref()?;
        if self.cgroups.len() >= CGROUPS_MAX {
            self.cgroups.clear();
        }
        let look = || cgroup::path_of(mount, id).map(|path| path.display().to_string());
        self.cgroups.entry(id).or_insert_with(look).clone()
    }
}

/// A program that dialled before somebody watched, if it is still there: its command and its cgroup's path.
pub fn program(pid: u32) -> (Option<String>, Option<String>) {
    let command = fs::read_to_string(format!("/proc/{pid}/comm")).ok().map(|text| text.trim_end().to_owned());
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    (command, cgroups.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned))
}

/// Names of one kind, read all at once.
#[derive(Debug)]
struct Book<K> {
    names: HashMap<K, String>,
    read: Option<Instant>,
}

impl<K> Default for Book<K> {
    fn default() -> Self {
        Self { names: HashMap::new(), read: None }
    }
}

impl<K: Eq + std::hash::Hash> Book<K> {
    fn find(&mut self, key: K, read: impl FnOnce() -> HashMap<K, String>) -> Option<String> {
        let is_old = self.read.is_none_or(|at| at.elapsed() > LOOK_AGAIN);
        if is_old && !self.names.contains_key(&key) {
            self.names = read();
            self.read = Some(Instant::now());
        }
        self.names.get(&key).cloned()
    }
}
