//! Who would dial: a process, or anybody in a network namespace.

use std::{
    fs::{self, File},
    io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    thread,
};

use super::{cgroup, namespace, sys};

/// Where `ip netns` keeps names.
const NAMED: &str = "/run/netns";

/// Who would dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The process; `None` for anybody in the namespace.
    pub process: Option<Process>,
    /// Cookie of the network namespace.
    pub netns: u64,
    /// File of the network namespace.
    pub netns_file: PathBuf,
}

/// A process that would dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its command.
    pub command: String,
    /// Its real user, which is what the hooks ask for.
    pub uid: u32,
    /// Its cgroup and those above it, nearest first: path below the mount, and id.
    pub cgroups: Vec<(PathBuf, u64)>,
}

impl Caller {
    /// A process of this host; `mount` is that of cgroup v2.
    ///
    /// # Errors
    ///
    /// When there is none, or this user may not look.
    pub fn process(pid: u32, mount: &Path) -> io::Result<Self> {
        let directory = Path::new("/proc").join(pid.to_string());
        let read = |name| fs::read_to_string(directory.join(name));
        let status = read("status")?;
        let uid = status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next()?.parse().ok());
        let cgroup = read("cgroup")?;
        let cgroup = cgroup.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/").to_owned();
        let process = Process {
            pid,
            command: read("comm")?.trim_end().to_owned(),
            uid: uid.ok_or_else(|| io::Error::other("its status names no user"))?,
            cgroups: chain(mount, Path::new(&cgroup)),
        };
        Self::inside(directory.join("ns/net"), Some(process))
    }

    /// Anybody in a network namespace: its name (`ip netns`), `host` for that of process 1, or the path of its file.
    ///
    /// # Errors
    ///
    /// When there is none, or this user may not look.
    pub fn namespace(name: &str) -> io::Result<Self> {
        let file = match name {
            "host" => host().0,
            path if path.contains('/') => PathBuf::from(path),
            name => Path::new(NAMED).join(name),
        };
        Self::inside(file, None)
    }

    fn inside(netns_file: PathBuf, process: Option<Process>) -> io::Result<Self> {
        let file = File::open(&netns_file)?;
        // A thread of its own: one that has changed its namespace is of no other use.
        let look = move || sys::enter_netns(file.as_fd()).and_then(|()| namespace::own_cookie());
        let netns = thread::spawn(look).join().map_err(|_| io::Error::other("the thread panicked"))??;
        Ok(Self { process, netns, netns_file })
    }
}

/// The namespace of process 1, and true; this process's own, and false, where nobody may look at that.
pub(super) fn host() -> (PathBuf, bool) {
    let first = PathBuf::from("/proc/1/ns/net");
    if File::open(&first).is_ok() { (first, true) } else { (PathBuf::from("/proc/self/ns/net"), false) }
}

/// A cgroup and those above it that can be seen, nearest first.
fn chain(mount: &Path, cgroup: &Path) -> Vec<(PathBuf, u64)> {
    cgroup
        .ancestors()
        .filter_map(|path| Some((path.to_owned(), cgroup::id(&cgroup::below(mount, path)).ok()?)))
        .collect()
}
