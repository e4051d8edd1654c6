//! Who dialled a connection that a worker has accepted: what its network namespace is called, and where its cgroup is. Asked once for a
//! connection, of a service that wants to know; what paths say is kept for a moment, since there may be a thousand.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    fs::{self, File},
    io,
    net::{IpAddr, SocketAddr},
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use super::{cgroup, ruled};
use crate::{cluster::Dialler, config::NamespaceRules};

/// How long the paths of namespaces hold: who gives one a name waits no longer for it to be known by that.
const PATHS_HOLD: Duration = Duration::from_secs(1);
/// Cgroups that are remembered: more than a host has pods.
const CGROUPS_MAX: usize = 4096;
/// The host's own namespace: that of process 1.
const HOST: &str = "/proc/1/ns/net";
/// `SIOCGSKNS` of `include/uapi/linux/sockios.h`, Linux 4.10: the network namespace of a socket. Needs CAP_NET_ADMIN.
const SIOCGSKNS: libc::Ioctl = 0x894C;

/// What a worker knows of the programs that dial one service.
#[derive(Debug)]
pub struct Diallers {
    /// Which names of namespaces are asked for, if any.
    rules: NamespaceRules,
    /// Where cgroups are, if they are asked for.
    mount: Option<PathBuf>,
    /// Paths by the inodes of namespaces, since when they hold, and which one is the host's.
    paths: RefCell<HashMap<u64, Vec<String>>>,
    read_at: Cell<Option<Duration>>,
    host: Cell<u64>,
    cgroups: RefCell<HashMap<u64, String>>,
}

impl Diallers {
    /// For who asks for these names of namespaces, and, if there is a mount, for cgroups.
    pub fn new(rules: NamespaceRules, mount: Option<PathBuf>) -> Self {
        Self {
            rules,
            mount,
            paths: RefCell::default(),
            read_at: Cell::default(),
            host: Cell::default(),
            cgroups: RefCell::default(),
        }
    }

    /// Who dialled: the socket was accepted in the program's own network namespace, and `source` is its cgroup's id. What cannot be found
    /// out is left out.
    pub fn look(&self, accepted: BorrowedFd<'_>, source: u64, now: Duration) -> Dialler {
        let mut dialler = Dialler { cgroup: self.cgroup(source), ..Dialler::default() };
        if self.rules.is_empty() {
            return dialler;
        }
        match namespace_of(accepted) {
            Ok(inode) => {
                self.refresh(inode, now);
                dialler.namespaces = self.paths.borrow().get(&inode).cloned().unwrap_or_default();
                dialler.is_host = inode == self.host.get();
            }
            Err(error) => tracing::debug!(%error, "the namespace of a connection is not known"),
        }
        dialler
    }

    /// Reads the paths again if they are old, or say nothing of this namespace.
    fn refresh(&self, inode: u64, now: Duration) {
        let is_known = self.paths.borrow().contains_key(&inode);
        if is_known && self.read_at.get().is_some_and(|read_at| now.saturating_sub(read_at) < PATHS_HOLD) {
            return;
        }
        let mut paths = ruled::paths(&self.rules);
        // Without a name it has none for as long as the others hold theirs.
        paths.entry(inode).or_default();
        self.paths.replace(paths);
        self.host.set(fs::metadata(HOST).map_or(0, |meta| meta.ino()));
        self.read_at.set(Some(now));
    }

    fn cgroup(&self, id: u64) -> Option<String> {
        let mount = self.mount.as_ref()?;
        let mut cgroups = self.cgroups.borrow_mut();
        if let Some(known) = cgroups.get(&id) {
            return Some(known.clone());
        }
        let path = cgroup::path_of(mount, id)?.to_str()?.to_owned();
        if cgroups.len() >= CGROUPS_MAX {
            cgroups.clear();
        }
        cgroups.insert(id, path.clone());
        Some(path)
    }
}

/// What the namespace whose file this is is called: the paths at which it stands below `/run/netns`, and this one; and whether it is the
/// host's.
pub fn names_of(file: &Path) -> (Vec<String>, bool) {
    let inode = |path: &Path| fs::metadata(path).map_or(0, |meta| meta.ino());
    let own = inode(file);
    let mut names = ruled::paths(&NamespaceRules::default()).remove(&own).unwrap_or_default();
    names.extend(file.to_str().map(str::to_owned));
    (names, own == inode(Path::new(HOST)))
}

/// The address that an accepted connection comes from.
pub fn peer_of(accepted: BorrowedFd<'_>) -> Option<IpAddr> {
    let peer = SocketAddr::try_from(rustix::net::getpeername(accepted).ok()??).ok()?;
    Some(peer.ip().to_canonical())
}

/// The inode of the network namespace that a socket lives in.
fn namespace_of(socket: BorrowedFd<'_>) -> io::Result<u64> {
    // SAFETY: takes no argument; a non-negative result is a new descriptor, and ours.
    let namespace = unsafe {
        let fd = libc::ioctl(socket.as_raw_fd(), SIOCGSKNS);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    Ok(File::from(namespace).metadata()?.ino())
}
