//! Cgroups of the tests: made below the mount of cgroup v2, never the root; emptied and removed when dropped.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{self, Command},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::{
    patience,
    process::{Process, Room},
};

static SERIAL: AtomicU32 = AtomicU32::new(0);

/// A cgroup of one test.
#[derive(Debug)]
pub struct Cgroup {
    directory: PathBuf,
    path: String,
}

impl Cgroup {
    /// Makes a cgroup with a unique name.
    pub fn new(name: &str) -> Self {
        Self::make(format!("/sockway-test-{}-{}-{name}", process::id(), SERIAL.fetch_add(1, Ordering::Relaxed)))
    }

    /// Makes a cgroup below this one; drop it first.
    pub fn child(&self, name: &str) -> Self {
        Self::make(format!("{}/{name}", self.path))
    }

    /// Makes the cgroup into which the agent of this instance moves itself, before it does: so that a test can capture it.
    pub fn of_agent(instance: &str) -> Self {
        Self::make(format!("/sockway-agent-{instance}"))
    }

    fn make(path: String) -> Self {
        let directory = mount().join(&path[1..]);
        fs::create_dir(&directory)
            .unwrap_or_else(|error| panic!("cannot make cgroup {}: {error}", directory.display()));
        Self { directory, path }
    }

    /// Its path below the mount of cgroup v2, as a configuration names it.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Starts a program in it; the program ends with the test.
    pub fn spawn(&self, command: Command) -> Process {
        Process::spawn(Room::of(self), command)
    }

    fn remove(&self) -> bool {
        // cgroup.kill takes whatever was forked, too: nothing can run away from it.
        let _ = fs::write(self.directory.join("cgroup.kill"), "1");
        fs::remove_dir(&self.directory).is_ok() || !self.directory.exists()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Killed processes leave the cgroup when they are reaped, which their parent may still be about to do.
        let start = Instant::now();
        while !self.remove() {
            if start.elapsed() > patience::deadline(Duration::from_secs(5)) {
                eprintln!("could not remove cgroup {}", self.directory.display());
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Where cgroup v2 is mounted: not always /sys/fs/cgroup, in hybrid mode it is elsewhere.
pub fn mount() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc/self/mounts");
    let mount = mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let point = words.next()?;
        (words.next()? == "cgroup2").then(|| PathBuf::from(point))
    });
    mount.expect("these tests need a mount of cgroup v2 (mount -t cgroup2 none /sys/fs/cgroup/unified)")
}
