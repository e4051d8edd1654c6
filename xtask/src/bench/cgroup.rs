//! The cgroups of a run: one tree, `/sockway-bench`, with one group per role. Never the root group. Taking the tree down ends every
//! process in it, however deep its parent forked.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::interrupt;

const TREE: &str = "sockway-bench";

/// The tree, removed when dropped.
#[derive(Debug)]
pub struct Tree {
    mount: PathBuf,
}

impl Tree {
    /// Makes the tree; what a run that was killed left of it goes first.
    pub fn plant() -> Result<Self> {
        let tree = Self { mount: mount()? };
        tree.fell()?;
        make(&tree.path())?;
        Ok(tree)
    }

    /// The group of one role, made on first use.
    pub fn group(&self, role: &str) -> Result<Cgroup> {
        let path = self.path().join(role);
        make(&path)?;
        Ok(Cgroup { name: format!("/{TREE}/{role}"), path })
    }

    /// CPU time of everything that ever ran in the tree.
    pub fn cpu(&self) -> Result<Duration> {
        let path = self.path().join("cpu.stat");
        let text = fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
        let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec ")?.parse().ok());
        usage.map(Duration::from_micros).context("cpu.stat has no usage_usec")
    }

    fn path(&self) -> PathBuf {
        self.mount.join(TREE)
    }

    fn fell(&self) -> Result<()> {
        let path = self.path();
        if !path.exists() {
            return Ok(());
        }
        fs::write(path.join("cgroup.kill"), "1").with_context(|| format!("killing what runs in {}", path.display()))?;
        // A group can be removed once the last of its processes is reaped.
        for _ in 0..250 {
            if remove(&path).is_ok() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        remove(&path).with_context(|| format!("removing {}", path.display()))
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        if let Err(error) = self.fell() {
            eprintln!("bench: left behind: {error:#}");
        }
    }
}

/// One group.
#[derive(Debug)]
pub struct Cgroup {
    /// Its path below the mount, as a capture rule names it.
    pub name: String,
    path: PathBuf,
}

impl Cgroup {
    /// Writing a process id into this file moves the process in.
    pub fn door(&self) -> Result<fs::File> {
        let path = self.path.join("cgroup.procs");
        fs::OpenOptions::new().write(true).open(&path).with_context(|| format!("{}", path.display()))
    }
}

fn make(path: &Path) -> Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("making the cgroup {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Children first: `rmdir` takes a group that has none.
fn remove(path: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

/// Where cgroup v2 is mounted: not always `/sys/fs/cgroup`.
fn mount() -> Result<PathBuf> {
    interrupt::check()?;
    let mounts = fs::read_to_string("/proc/self/mounts").context("/proc/self/mounts")?;
    match cgroup2(&mounts) {
        Some(path) => Ok(path),
        None => bail!("cgroup v2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup/unified"),
    }
}

fn cgroup2(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let path = fields.next()?;
        (fields.next()? == "cgroup2").then(|| path.into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup_v2_is_found_beside_the_groups_of_v1() {
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n";
        assert_eq!(cgroup2(hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(cgroup2("tmpfs /tmp tmpfs rw 0 0\n"), None);
    }
}
