//! Which address a program's socket would have if the agent were not there: for each network namespace that is served, the one that
//! the kernel gives to a connection to an agent service.
//!
//! The connect hook binds a socket to it before it sends the socket to the agent's listener on loopback, so that `getsockname` and what
//! the agent sees as its peer are the program's own address and not 127.0.0.1. Asked of the kernel inside the namespace (`connect()` of a
//! UDP socket sends nothing) when the namespace is opened, when its addresses or routes change, and when the services do.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use aya::{
    Ebpf,
    maps::{HashMap as BpfHashMap, MapData},
};
use socket2::{Domain, Socket, Type};
use sockway_common::capture::Source;
use tokio::{io::unix::AsyncFd, sync::watch, task::JoinHandle, time};

use super::{KernelError, flows, services};
use crate::{cluster::Snapshot, config::Mode};

/// Services that are asked about in each namespace. Nearly always the first has a route, and all have the same.
const TARGETS_MAX: usize = 64;
/// Between two looks at one namespace, however often its routes change.
const PAUSE: Duration = Duration::from_millis(50);

/// The table that the connect hook reads, and what is asked to fill it.
#[derive(Clone, Debug)]
pub(super) struct Sources(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    table: Mutex<BpfHashMap<MapData, u64, Source>>,
    targets: watch::Sender<Vec<SocketAddr>>,
}

impl Sources {
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        let mut table: BpfHashMap<MapData, u64, Source> = services::table(ebpf, "SOURCES")?;
        // An agent before this one left them; addresses may have changed since.
        let stale: Vec<u64> = table.keys().flatten().collect();
        for cookie in stale {
            let _ = table.remove(&cookie);
        }
        Ok(Self(Arc::new(Shared { table: Mutex::new(table), targets: watch::Sender::new(Vec::new()) })))
    }

    /// Asks about the agent services of this snapshot from now on.
    pub(super) fn follow(&self, snapshot: &Snapshot) {
        let through_agent = snapshot.services.iter().filter(|service| service.config.mode == Mode::Agent);
        let addresses = through_agent.map(|service| service.config.address);
        let targets: Vec<SocketAddr> = addresses.filter(|address| !address.ip().is_loopback()).collect();
        self.0.targets.send_if_modified(|before| {
            let changed = *before != targets;
            *before = targets;
            changed
        });
    }

    /// Keeps the entry of the namespace of this cookie true until the returned value is dropped. Must be called within a tokio runtime.
    pub(super) fn watch(&self, cookie: u64, probe: Probe) -> Watched {
        let mut targets = self.0.targets.subscribe();
        self.0.write(cookie, probe.source(&targets.borrow_and_update()));
        let shared = Arc::clone(&self.0);
        let task = tokio::spawn(async move {
            if let Err(error) = keep(&shared, cookie, &probe, targets).await {
                tracing::warn!(netns = cookie, %error, "changes of addresses in a network namespace are not seen any more");
            }
        });
        Watched { shared: Arc::clone(&self.0), cookie, task }
    }
}

impl Shared {
    fn write(&self, cookie: u64, source: Source) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let result = if source == Source::default() { table.remove(&cookie) } else { table.insert(cookie, source, 0) };
        match result {
            Ok(()) | Err(aya::maps::MapError::KeyNotFound) => {}
            // Without an entry, or with an old one whose address is gone, captured sockets have 127.0.0.1: no connection suffers.
            Err(error) => {
                tracing::debug!(netns = cookie, %error, "the source address of a network namespace was not written")
            }
        }
    }
}

/// A namespace whose entry is kept true. Dropped, it is let go.
#[derive(Debug)]
pub(super) struct Watched {
    shared: Arc<Shared>,
    cookie: u64,
    task: JoinHandle<()>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
        self.shared.write(self.cookie, Source::default());
    }
}

async fn keep(
    shared: &Shared,
    cookie: u64,
    probe: &Probe,
    mut targets: watch::Receiver<Vec<SocketAddr>>,
) -> io::Result<()> {
    let news = watched(&probe.news)?;
    loop {
        tokio::select! {
            readable = news.readable() => {
                let mut readable = readable?;
                drain(&probe.news);
                readable.clear_ready();
            }
            changed = targets.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
            }
        }
        let source = probe.source(&targets.borrow_and_update());
        shared.write(cookie, source);
        time::sleep(PAUSE).await;
    }
}

fn watched(news: &OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned, and stays the same for as long as it is.
    Ok(unsafe { AsyncFd::register(news.try_clone()?) }?)
}

/// What is said does not matter, nor whether some of it was lost (`ENOBUFS`): the kernel is asked anew.
fn drain(news: &OwnedFd) {
    let mut bytes = [0_u8; 16 * 1024];
    loop {
        // SAFETY: the kernel writes at most as many bytes as there are.
        let received = unsafe { libc::recv(news.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        if received < 0 && io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock {
            return;
        }
    }
}

/// Sockets in one namespace by which the agent hears of changes and asks for addresses, without going there again.
#[derive(Debug)]
pub(super) struct Probe {
    news: OwnedFd,
    v4: Option<Socket>,
    v6: Option<Socket>,
}

impl Probe {
    /// Opens them in the namespace of this thread.
    pub(super) fn open() -> io::Result<Self> {
        let datagram = |domain| Socket::new(domain, Type::DGRAM, None).ok();
        Ok(Self { news: listen_to_routes()?, v4: datagram(Domain::IPV4), v6: datagram(Domain::IPV6) })
    }

    fn source(&self, targets: &[SocketAddr]) -> Source {
        let of = |socket: &Option<Socket>, is_v4: bool| {
            let socket = socket.as_ref()?;
            targets
                .iter()
                .filter(|target| target.is_ipv4() == is_v4)
                .take(TARGETS_MAX)
                .find_map(|target| source_towards(socket, *target))
                .map(|ip| flows::address(SocketAddr::new(ip, 0)).ip)
        };
        Source { v4: of(&self.v4, true).map_or(0, |ip| ip[3]), zero: 0, v6: of(&self.v6, false).unwrap_or_default() }
    }
}

/// The address that the kernel would give to a connection to `target`; `None` where it has no route, or one that needs no honesty.
fn source_towards(socket: &Socket, target: SocketAddr) -> Option<IpAddr> {
    socket.connect(&target.into()).ok()?;
    let name = socket.local_addr();
    // The port that connect() has taken is free again.
    disconnect(socket);
    let ip = name.ok()?.as_socket()?.ip();
    let is_link_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    (!ip.is_loopback() && !ip.is_unspecified() && !is_link_local).then_some(ip)
}

fn disconnect(socket: &Socket) {
    // SAFETY: all zeroes is a valid address of the family AF_UNSPEC.
    let nowhere: libc::sockaddr = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel reads one address of the given length.
    unsafe { libc::connect(socket.as_raw_fd(), &raw const nowhere, size_of::<libc::sockaddr>() as libc::socklen_t) };
}

/// A socket that becomes readable when an address or a route of this namespace changes (`rtnetlink(7)`).
fn listen_to_routes() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: makes a descriptor, which is owned at once.
    let socket = unsafe {
        let socket = libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE);
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(socket)
    };
    // SAFETY: all zeroes is a valid address.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
    address.nl_groups =
        (libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV4_ROUTE | libc::RTMGRP_IPV6_IFADDR | libc::RTMGRP_IPV6_ROUTE)
            as u32;
    // SAFETY: the kernel reads one address of the given length.
    let bound = unsafe {
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_nl>() as libc::socklen_t)
    };
    if bound == 0 { Ok(socket) } else { Err(io::Error::last_os_error()) }
}
