//! Network namespaces: finds those in which captured programs live, opens the agent's listeners inside them, and closes them when the
//! namespace is otherwise gone (a listener keeps a namespace alive, trap T26). No veth, route or iptables rule is touched.
//!
//! A namespace is found by an event of the kernel half (a program dialled from it), by a scan of the captured cgroups' processes, and by
//! its name below `/run/netns`, so that it is served before the first program in it dials.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::{
        fd::{AsFd, AsRawFd as _},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use aya::{
    Ebpf,
    maps::{HashMap as BpfHashMap, MapData, SkStorage},
};
use socket2::{Domain, Protocol, Socket, Type};
use sockway_common::capture::{LISTENER_TAG, Listener};

use super::{
    KernelError, Place,
    caller::host,
    ruled::Ruled,
    services,
    source::{Probe, Sources, Watched},
    sys,
};
use crate::{
    cluster::Snapshot,
    config::{NamespaceRules, capture::NAMED},
};

/// Accept queue of one listener; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// `SO_NETNS_COOKIE` of `include/uapi/asm-generic/socket.h`, Linux 5.14.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// The namespaces that are served.
#[derive(Debug)]
pub struct Namespaces {
    listeners: BpfHashMap<MapData, u64, Listener>,
    tags: SkStorage<MapData, u32>,
    /// Captured cgroups, and those left out of them.
    cgroups: (Vec<PathBuf>, Vec<PathBuf>),
    ruled: Ruled,
    /// By the inode of the namespace.
    served: HashMap<u64, Served>,
    /// Namespaces that could not be served, by inode, so that the log says so once.
    refused: HashSet<u64>,
    home: u64,
    sources: Sources,
}

#[derive(Debug)]
struct Served {
    cookie: u64,
    /// Where it was found last.
    path: PathBuf,
    /// Keeps the entry of SOURCES; `None` where addresses cannot be asked for.
    _source: Option<Watched>,
}

/// A namespace that is served from now on.
#[derive(Debug)]
pub struct Opened {
    /// The namespace's cookie.
    pub netns: u64,
    /// How it was found, for the log.
    pub found: String,
    /// For each worker the sockets it accepts from: 127.0.0.1, and ::1 where there is IPv6.
    pub workers: Vec<Vec<Listening>>,
}

/// One listening socket of the agent, non-blocking.
#[derive(Debug)]
pub struct Listening {
    /// The socket.
    pub socket: TcpListener,
    /// Cookie of the namespace it listens in.
    pub netns: u64,
    /// Whether it is for connections that come in: then also where it is.
    pub place: Option<Arc<Place>>,
}

/// What a scan changed.
#[derive(Debug, Default)]
pub struct Changes {
    /// Served from now on.
    pub opened: Vec<Opened>,
    /// Cookies of namespaces that are gone: the workers close their listeners.
    pub closed: Vec<u64>,
}

impl Namespaces {
    pub(super) fn new(ebpf: &mut Ebpf, rules: NamespaceRules) -> Result<Self, KernelError> {
        let mut listeners: BpfHashMap<MapData, u64, Listener> = services::table(ebpf, "LISTENERS")?;
        // What an agent before this one left: its sockets are gone, and the hook checks, but a stale entry costs it a lookup.
        let stale: Vec<u64> = listeners.keys().flatten().collect();
        for cookie in stale {
            let _ = listeners.remove(&cookie);
        }
        let home = inode(Path::new("/proc/self/ns/net")).unwrap_or(0);
        let tags = services::table(ebpf, "LISTENER_TAGS")?;
        let ruled = Ruled::new(ebpf, rules)?;
        let sources = Sources::new(ebpf)?;
        let cgroups = Default::default();
        Ok(Self { listeners, tags, cgroups, ruled, served: HashMap::new(), refused: HashSet::new(), home, sources })
    }

    /// Looks for namespaces in these cgroups, but not in those left out.
    pub fn follow(&mut self, captured: Vec<PathBuf>, left_out: Vec<PathBuf>) {
        self.cgroups = (captured, left_out);
    }

    /// Which namespaces are captured.
    pub(super) fn ruled(&mut self) -> &mut Ruled {
        &mut self.ruled
    }

    /// How many namespaces are served, the agent's own included.
    pub fn len(&self) -> usize {
        self.served.len()
    }

    /// Whether none is served.
    pub fn is_empty(&self) -> bool {
        self.served.is_empty()
    }

    /// Goes by the services of this snapshot from now on.
    pub fn follow_services(&self, snapshot: &Snapshot) {
        self.sources.follow(snapshot);
    }

    /// Listens in the agent's own namespace.
    ///
    /// # Errors
    ///
    /// When sockets cannot be opened.
    pub fn open_home(&mut self, workers: usize) -> Result<Opened, KernelError> {
        self.open(Path::new("/proc/self/ns/net"), "the agent's own", workers)
    }

    /// Listens in the namespace of a process, unless it is served already or the process is gone.
    pub fn open_pid(&mut self, pid: u32, workers: usize) -> Option<Opened> {
        self.try_open(&PathBuf::from(format!("/proc/{pid}/ns/net")), &format!("process {pid}"), workers)
    }

    /// Listens in namespaces that have a name; cheap, for often.
    pub fn scan_named(&mut self, workers: usize) -> Vec<Opened> {
        self.ruled.look();
        named().into_iter().filter_map(|path| self.try_open(&path, &path.display().to_string(), workers)).collect()
    }

    /// Looks at every process of the captured cgroups and every name, opens what is new and closes what is gone.
    pub fn scan(&mut self, workers: usize) -> Changes {
        let mut opened = self.scan_named(workers);
        let mut pids = Vec::new();
        let (captured, left_out) = &self.cgroups;
        for cgroup in captured {
            super::cgroup::processes(cgroup, left_out, &mut pids);
        }
        let mut seen: HashSet<u64> = named().iter().filter_map(|path| inode(path)).chain([self.home]).collect();
        for pid in pids {
            let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
            if let Some(inode) = inode(&path)
                && seen.insert(inode)
            {
                opened.extend(self.try_open(&path, &format!("process {pid}"), workers));
                // Whoever it was found by may have gone.
                self.served.entry(inode).and_modify(|served| served.path = path);
            }
        }
        let mut closed = self.close_gone(&seen);
        closed.extend(self.close_left_out());
        self.refused.retain(|inode| seen.contains(inode));
        Changes { opened, closed }
    }

    /// The namespaces that are served, each by its inode and a path at which it was.
    pub fn served(&self) -> Vec<(u64, PathBuf)> {
        self.served.iter().map(|(inode, served)| (*inode, served.path.clone())).collect()
    }

    /// Stops serving every namespace: from now on the hooks balance in the kernel. The cookies whose listeners the workers close.
    pub fn close_all(&mut self) -> Vec<u64> {
        let cookies: Vec<u64> = self.served.drain().map(|(_, served)| served.cookie).collect();
        for cookie in &cookies {
            let _ = self.listeners.remove(cookie);
        }
        cookies
    }

    /// A served namespace in which no process lives, captured or not, and that has no name, lives by our listeners alone.
    fn close_gone(&mut self, seen: &HashSet<u64>) -> Vec<u64> {
        let mut doubtful: HashSet<u64> = self.served.keys().filter(|inode| !seen.contains(inode)).copied().collect();
        if doubtful.is_empty() {
            return Vec::new();
        }
        for_each_process(|path| {
            if let Some(inode) = inode(&path.join("ns/net")) {
                doubtful.remove(&inode);
            }
        });
        let gone: Vec<Served> = doubtful.iter().filter_map(|inode| self.served.remove(inode)).collect();
        for served in &gone {
            let _ = self.listeners.remove(&served.cookie);
        }
        gone.into_iter().map(|served| served.cookie).collect()
    }

    /// Nobody comes from a namespace that a rule has left out since.
    fn close_left_out(&mut self) -> Vec<u64> {
        let gone: Vec<u64> =
            self.served.keys().copied().filter(|inode| *inode != self.home && !self.ruled.captures(*inode)).collect();
        let gone: Vec<Served> = gone.iter().filter_map(|inode| self.served.remove(inode)).collect();
        for served in &gone {
            let _ = self.listeners.remove(&served.cookie);
        }
        gone.into_iter().map(|served| served.cookie).collect()
    }

    fn try_open(&mut self, path: &Path, found: &str, workers: usize) -> Option<Opened> {
        let inode = inode(path)?;
        if self.served.contains_key(&inode) || !self.ruled.captures(inode) {
            return None;
        }
        match self.open(path, found, workers) {
            Ok(opened) => Some(opened),
            Err(error) => {
                if self.refused.insert(inode) {
                    tracing::warn!(%error, found, "network namespace is not served: agent services are balanced in the kernel there");
                }
                None
            }
        }
    }

    fn open(&mut self, path: &Path, found: &str, workers: usize) -> Result<Opened, KernelError> {
        let failed = |source| KernelError::Listen { namespace: found.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let inode = file.metadata().map_err(failed)?.ino();
        let mut inside = inside(file, move || open_inside(workers)).map_err(failed)?;
        for socket in inside.v4.iter().chain(&inside.v6) {
            self.tags.insert(socket, LISTENER_TAG, 0).map_err(services::map_error("LISTENER_TAGS"))?;
        }
        let source = inside.probe.take().map(|probe| self.sources.watch(inside.cookie, probe));
        let entry = Listener { port_v4: port(&inside.v4), port_v6: port(&inside.v6) };
        // Last: a hook that finds the entry finds tagged sockets.
        self.listeners.insert(inside.cookie, entry, 0).map_err(services::map_error("LISTENERS"))?;
        self.served.insert(inode, Served { cookie: inside.cookie, path: path.to_owned(), _source: source });
        self.refused.remove(&inode);
        Ok(Opened { netns: inside.cookie, found: found.to_owned(), workers: inside.shared_out(workers, None) })
    }
}

/// Sockets opened inside a namespace.
pub(super) struct Inside {
    /// The namespace's cookie.
    pub(super) cookie: u64,
    /// One for each worker.
    pub(super) v4: Vec<TcpListener>,
    /// The same, or none at all.
    pub(super) v6: Vec<TcpListener>,
    pub(super) probe: Option<Probe>,
}

impl Inside {
    /// The sockets of each worker.
    pub(super) fn shared_out(self, workers: usize, place: Option<&Arc<Place>>) -> Vec<Vec<Listening>> {
        let mut shares: Vec<Vec<Listening>> = (0..workers).map(|_| Vec::new()).collect();
        for family in [self.v4, self.v6] {
            for (share, socket) in shares.iter_mut().zip(family) {
                share.push(Listening { socket, netns: self.cookie, place: place.cloned() });
            }
        }
        shares
    }
}

/// Opens listeners in the namespace of the calling thread.
pub(super) fn open_inside(workers: usize) -> io::Result<Inside> {
    let v4 = listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), workers)?;
    // No IPv6 in this namespace, or none at all: IPv4 alone is served.
    let v6 = listen(SocketAddr::from((Ipv6Addr::LOCALHOST, 0)), workers).unwrap_or_default();
    loopback_is_up(&v4)?;
    let cookie = cookie(&v4[0])?;
    Ok(Inside { cookie, v4, v6, probe: Probe::open().ok() })
}

/// Does something in a network namespace, on a thread of its own, which ends after it: a thread that has changed its namespace is of no
/// other use.
pub(super) fn inside<T: Send + 'static>(
    namespace: File,
    act: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    // Where one is already nobody need be entered, which takes CAP_SYS_ADMIN.
    let is_own = inode(Path::new("/proc/self/ns/net")) == namespace.metadata().ok().map(|meta| meta.ino());
    let enter = move || {
        if !is_own {
            sys::enter_netns(namespace.as_fd())?;
        }
        act()
    };
    let thread = thread::Builder::new().name("netns".into()).spawn(enter)?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
}

/// One socket for each worker on one port: the kernel spreads connections over them.
fn listen(address: SocketAddr, workers: usize) -> io::Result<Vec<TcpListener>> {
    let mut address = address;
    (0..workers)
        .map(|_| {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
            socket.set_reuse_port(true)?;
            if address.is_ipv6() {
                socket.set_only_v6(true)?;
            }
            socket.set_nonblocking(true)?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            // A connection that came in has the port of the program that it was for, and holds it until its TIME_WAIT is over: the program
            // must be able to bind it again meanwhile, as it could if it had the connection itself. It goes by what the listener allows.
            socket.set_reuse_address(true)?;
            let socket = TcpListener::from(socket);
            address = socket.local_addr()?;
            Ok(socket)
        })
        .collect()
}

/// A connection to a loopback device that is down would fail: then better no listener, and the kernel half balances.
fn loopback_is_up(listeners: &[TcpListener]) -> io::Result<()> {
    let Some(listener) = listeners.first() else { return Ok(()) };
    // SAFETY: all zero is a valid `ifreq`; the name is shorter than its field, and the call fills the flags.
    let up = unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        libc::ioctl(listener.as_raw_fd(), libc::SIOCGIFFLAGS as _, &raw mut request) == 0
            && i32::from(request.ifr_ifru.ifru_flags) & libc::IFF_UP != 0
    };
    if up { Ok(()) } else { Err(io::Error::other("its loopback device is down (ip link set lo up)")) }
}

/// The cookie of the network namespace that a socket lives in.
pub(super) fn cookie(socket: &impl AsFd) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// A listener's port in network order; 0 when there is none.
fn port(listeners: &[TcpListener]) -> u16 {
    listeners.first().and_then(|socket| socket.local_addr().ok()).map_or(0, |address| address.port().to_be())
}

/// The namespaces that have a name. A name whose namespace is not mounted on it (any more) is an ordinary file, and left out.
pub(super) fn named() -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(NAMED) else { return Vec::new() };
    let device = fs::metadata("/proc/self/ns/net").map(|meta| meta.dev()).ok();
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| fs::metadata(path).is_ok_and(|meta| Some(meta.dev()) == device))
        .collect()
}

/// Every network namespace in which a process lives or that has a name, each once. What vanishes meanwhile is left out.
///
/// # Errors
///
/// When there is no list of processes.
pub(super) fn every() -> io::Result<Vec<File>> {
    fs::metadata("/proc/self/ns/net")?;
    let mut paths = named();
    for_each_process(|process| paths.push(process.join("ns/net")));
    let (mut seen, mut found) = (HashSet::new(), Vec::new());
    for path in paths {
        if inode(&path).is_some_and(|inode| seen.insert(inode)) {
            found.extend(File::open(&path));
        }
    }
    Ok(found)
}

/// What the namespaces are called that have a name, by cookie; that of process 1 is `host`, or this process's own where nobody may look at that.
pub fn named_cookies() -> HashMap<u64, String> {
    let name = |path: PathBuf| Some((path.file_name()?.to_str()?.to_owned(), path));
    let named = named().into_iter().filter_map(name);
    // The host's last: what it is called does not depend on whether it has a name as well. One that only may be it is called by its name.
    let (host, is_certain) = host();
    let home = ("host".to_owned(), host);
    let namespaces: Vec<(String, PathBuf)> =
        if is_certain { named.chain([home]).collect() } else { [home].into_iter().chain(named).collect() };
    let look = move || namespaces.into_iter().filter_map(|(name, path)| Some((cookie_of(&path)?, name))).collect();
    thread::spawn(look).join().unwrap_or_default()
}

/// The cookie of the namespace of this file. Only for a thread that is of no other use: it is in that namespace afterwards.
fn cookie_of(path: &Path) -> Option<u64> {
    let namespace = File::open(path).ok()?;
    sys::enter_netns(namespace.as_fd()).ok()?;
    own_cookie().ok()
}

/// The cookie of the network namespace that this thread is in.
pub(super) fn own_cookie() -> io::Result<u64> {
    cookie(&Socket::new(Domain::UNIX, Type::DGRAM, None)?)
}

pub(super) fn inode(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|meta| meta.ino())
}

pub(super) fn for_each_process(mut visit: impl FnMut(&Path)) {
    let Ok(entries) = fs::read_dir("/proc") else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_str().is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit())) {
            visit(&entry.path());
        }
    }
}
