//! What the connect hooks would find for one caller and one address: read from the pinned tables and links of the running kernel, so that it
//! is what the hooks go by, whether or not an agent lives. Judges nothing.

use std::{
    fs::File,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd as _,
    time::Duration,
};

use aya::maps::{
    MapData,
    lpm_trie::{Key, LpmTrie},
};
use sockway_common::{
    capture::{Listener, Settings, settings_flags},
    flow::{TCP, UDP},
    service::{Service, service_flags},
};

use super::{
    Caller, KernelError, Pinned,
    caller::Process,
    choices::{self, Choice, Limits},
    sockets, sys,
};

/// What the hooks would find.
#[derive(Clone, Debug)]
pub struct Situation {
    /// What the agent has told the hooks.
    pub settings: Settings,
    /// Since the agent's last heartbeat; `None` when there was none.
    pub heartbeat_age: Option<Duration>,
    /// The hooks over the caller's cgroup, nearest first, of those cgroups that have any; `None` when no process was named.
    pub hooks: Option<Vec<Covered>>,
    /// Whether the caller is in the agent's own cgroup.
    pub is_own: bool,
    /// Whether a rule leaves the caller's user out.
    pub is_user_excluded: bool,
    /// What a rule says of the caller's network namespace: whether it is captured.
    pub namespace_rule: Option<bool>,
    /// What stands at the address.
    pub service: Option<Found>,
    /// The other protocol, if a service of that one stands there.
    pub other: Option<&'static str>,
}

/// A cgroup with hooks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Covered {
    /// Path below the mount.
    pub cgroup: String,
    /// The program that runs at `connect()`.
    pub dial: Option<String>,
    /// The program that watches sockets.
    pub sockets: Option<String>,
}

/// A service, and what it would be dialled with.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its entry.
    pub service: Service,
    /// Its name, if an agent of this version wrote it.
    pub name: Option<String>,
    /// The agent's listener in the caller's network namespace, for services of the agent.
    pub listener: Option<Listening>,
    /// Its endpoints, those that take no new connections too.
    pub endpoints: Vec<Choice>,
    /// The endpoint that the caller stays with, and how long yet.
    pub affinity: Option<(SocketAddr, Duration)>,
    /// Its limits, and what is taken of them.
    pub limits: Limits,
    /// Whether its breaker lets nobody pass now.
    pub is_open: bool,
}

/// A listener of the agent that the table names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listening {
    /// Where it is said to listen.
    pub address: SocketAddr,
    /// Whether a socket with the agent's tag listens there.
    pub is_tagged: bool,
}

/// Reads the tables.
///
/// # Errors
///
/// When one cannot be read.
pub fn look(pinned: &Pinned, caller: &Caller, dialled: SocketAddr, protocol: u8) -> Result<Situation, KernelError> {
    let settings: Settings = pinned.entry("SETTINGS", &0_u32)?.ok_or(KernelError::NoMap { name: "SETTINGS" })?;
    let heartbeat: u64 = pinned.entry("HEARTBEAT", &0_u32)?.unwrap_or(0);
    let age = Duration::from_nanos(super::monotonic_ns().saturating_sub(heartbeat));
    let process = caller.process.as_ref();
    let service = pinned.service_at(dialled, protocol)?;
    Ok(Situation {
        heartbeat_age: (heartbeat != 0).then_some(age),
        hooks: process.map(|process| hooks_over(pinned, process, dialled.ip())),
        is_own: process
            .is_some_and(|process| process.cgroups.first().is_some_and(|own| own.1 == settings.agent_cgroup)),
        is_user_excluded: match process {
            Some(process) if settings.flags & settings_flags::EXCLUDED_USERS != 0 => is_excluded(pinned, process.uid)?,
            _ => false,
        },
        namespace_rule: namespace_rule(pinned, &settings, caller.netns)?,
        service: service.map(|service| found(pinned, caller, dialled, service)).transpose()?,
        other: other(pinned, dialled, protocol)?,
        settings,
    })
}

fn other(pinned: &Pinned, dialled: SocketAddr, protocol: u8) -> Result<Option<&'static str>, KernelError> {
    let (other, name) = if protocol == TCP { (UDP, "udp") } else { (TCP, "tcp") };
    Ok(pinned.service_at(dialled, other)?.map(|_| name))
}

fn found(pinned: &Pinned, caller: &Caller, dialled: SocketAddr, service: Service) -> Result<Found, KernelError> {
    let listener = match service.flags & service_flags::AGENT {
        0 => None,
        _ => listener(pinned, caller, dialled.ip())?,
    };
    let name = pinned.name_of(service.id)?;
    let endpoints = choices::endpoints(pinned, &service)?;
    let affinity = choices::affinity(pinned, &service, caller)?;
    let limits = choices::limits(pinned, &service, caller)?;
    let is_open = choices::is_open(pinned, &service)?;
    Ok(Found { service, name, listener, endpoints, affinity, limits, is_open })
}

/// The programs of the links that are pinned for the cgroups over a process.
fn hooks_over(pinned: &Pinned, process: &Process, dialled: IpAddr) -> Vec<Covered> {
    let dial = if dialled.to_canonical().is_ipv4() { "connect4" } else { "connect6" };
    let program = |id: u64, hook: &str| {
        let link = sys::pinned(&pinned.links().join(format!("{id}-{hook}"))).ok()?;
        sys::program_of_link(link.as_fd()).ok()
    };
    let covered = |(path, id): &(std::path::PathBuf, u64)| Covered {
        cgroup: path.display().to_string(),
        dial: program(*id, dial),
        sockets: program(*id, "sockops"),
    };
    let has_any = |covered: &Covered| covered.dial.is_some() || covered.sockets.is_some();
    process.cgroups.iter().map(covered).filter(has_any).collect()
}

fn is_excluded(pinned: &Pinned, uid: u32) -> Result<bool, KernelError> {
    let users: LpmTrie<MapData, u32, u32> = pinned.table("EXCLUDED_USERS")?;
    Ok(users.get(&Key::new(32, uid.to_be()), 0).is_ok())
}

fn namespace_rule(pinned: &Pinned, settings: &Settings, netns: u64) -> Result<Option<bool>, KernelError> {
    if settings.flags & settings_flags::RULED_NAMESPACES == 0 {
        return Ok(None);
    }
    let rule: Option<u32> = pinned.entry("RULED_NAMESPACES", &netns)?;
    let unnamed = (settings.flags & settings_flags::UNNAMED_EXCLUDED != 0).then_some(false);
    Ok(rule.map(|captured| captured != 0).or(unnamed))
}

fn listener(pinned: &Pinned, caller: &Caller, dialled: IpAddr) -> Result<Option<Listening>, KernelError> {
    let entry: Option<Listener> = pinned.entry("LISTENERS", &caller.netns)?;
    let Some(entry) = entry else { return Ok(None) };
    let (ip, port) = if dialled.to_canonical().is_ipv4() {
        (IpAddr::from([127, 0, 0, 1]), u16::from_be(entry.port_v4))
    } else {
        (IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]), u16::from_be(entry.port_v6))
    };
    if port == 0 {
        return Ok(None);
    }
    let address = SocketAddr::new(ip, port);
    let tags = pinned.open("LISTENER_TAGS")?;
    let failed = |source| KernelError::Listen { namespace: caller.netns_file.display().to_string(), source };
    let netns = File::open(&caller.netns_file).map_err(failed)?;
    let is_tagged = sockets::is_tagged(tags.as_fd(), &netns, address).map_err(failed)?;
    Ok(Some(Listening { address, is_tagged }))
}
