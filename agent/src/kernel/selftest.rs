//! The self-test of the running kernel: what the hooks do here, tried in a scratch cgroup with a private copy of the kernel half, on
//! loopback sockets of this process, for connections that come in in a network namespace of their own. Less than 200 ms; every result is a
//! metric and a line of `doctor`.
//!
//! The capture checks must pass for the agent to be of use. The shortcut checks say whether a program in a sockhash sees what it would
//! see without: where one fails, `shortcut: auto` means off.

mod inbound;
mod shortcut;

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use aya::maps::{Array, HashMap as BpfHashMap, MapData, PerCpuArray};
use sockway_common::{
    ABI_VERSION,
    capture::{LISTENER_TAG, Listener, Settings, settings_flags},
    counter::Counter,
    endpoint::{Endpoint, endpoint_state},
    flow::{Address, UDP},
    service::{Chunk, ChunkKey, EndpointKey, Service, Slot, algorithm, service_flags},
};

use super::{
    cgroup, flows,
    hooks::Policy,
    load::{self, Loaded, Wanted},
    offsets,
    parts::Part,
    refused::Refused,
    services, sys,
};

/// One thing that was tried on the running kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Name of the check: label of its metric.
    pub name: &'static str,
    /// The part of the kernel half that it is of; `None` for what the agent cannot do without.
    pub part: Option<Part>,
    /// Whether the kernel does what is expected.
    pub passed: bool,
    /// Whether the kernel refuses a program of the part, which then has no effect at all.
    pub refused: bool,
    /// What was seen.
    pub detail: String,
}

/// Longest wait of any socket call here: a broken kernel must not hang the start, and a busy one must not seem broken.
const PATIENCE: Duration = Duration::from_millis(500);

/// The checks of the shortcut: `auto` needs all of them.
const SHORTCUT: &str = "shortcut_";

/// Whether `shortcut: auto` means on.
pub fn allows_shortcut(capabilities: &[Capability]) -> bool {
    let mut checks = capabilities.iter().filter(|capability| capability.name.starts_with(SHORTCUT)).peekable();
    checks.peek().is_some() && checks.all(|capability| capability.passed)
}

/// Whether a program is one that the checks make use of: the verifier looks at no other for them.
pub fn is_tried(program: &str) -> bool {
    let others = [load::SHORTCUT_PROGRAM, load::STEERING, load::LOOKING_INSIDE, Part::Sweep.programs()[0]];
    Policy::Tried.has(program) || others.contains(&program)
}

/// Adds what was refused of programs that were not tried.
pub fn add_refused(capabilities: &mut [Capability], refused: &[Refused]) {
    for refused in refused {
        let part = Part::of(&refused.program);
        for capability in capabilities.iter_mut().filter(|capability| part.is_some() && capability.part == part) {
            (capability.passed, capability.refused) = (false, true);
            capability.detail = refused.to_string();
        }
    }
}

/// Runs every check, with the programs that are wanted, which those are among that [`is_tried`]. This process is moved into a scratch
/// cgroup below `mount` and back.
pub fn run(mount: &Path, instance: &str, wanted: Wanted) -> Vec<Capability> {
    let started = Instant::now();
    let capabilities = match Bench::new(mount, instance, wanted) {
        Ok(mut bench) => bench.run(),
        Err(why) => vec![Capability { name: "load", part: None, passed: false, refused: true, detail: why }],
    };
    tracing::debug!(elapsed = ?started.elapsed(), "self-test of the running kernel");
    capabilities
}

/// The scratch cgroup, the private kernel half, and one service in it. Everything goes when it is dropped.
struct Bench {
    loaded: Loaded,
    _scratch: Scratch,
    settings: Array<MapData, Settings>,
    current: Settings,
    services: BpfHashMap<MapData, Address, Service>,
    slots: BpfHashMap<MapData, ChunkKey, Chunk>,
    endpoints: BpfHashMap<MapData, EndpointKey, Endpoint>,
    heartbeat: Array<MapData, u64>,
    listeners: BpfHashMap<MapData, u64, Listener>,
    tags: aya::maps::SkStorage<MapData, u32>,
    counters: PerCpuArray<MapData, u64>,
    endpoint: TcpListener,
}

/// What the checks dial: nobody listens there.
const DIALLED: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 66, 254, 254)), 1);

/// Ids of the services that the checks dial.
const TCP_SERVICE: u32 = 1;
const UDP_SERVICE: u32 = 2;

/// `SO_ORIGINAL_DST` of linux/netfilter_ipv4.h.
const SO_ORIGINAL_DST: libc::c_int = 80;

type Check = fn(&mut Bench) -> Result<String, String>;

/// Name, and the part of the kernel half without which it is not tried.
const CHECKS: [(&str, Option<Part>, Check); 15] = [
    ("capture", None, Bench::capture),
    ("own_cgroup_bypass", None, Bench::own_cgroup_bypass),
    ("listener_tag", None, Bench::listener_tag),
    ("peer_name", Some(Part::PeerName), Bench::peer_name),
    ("datagrams", Some(Part::Datagrams), Bench::datagrams),
    ("original_dst", Some(Part::OriginalDst), Bench::original_dst),
    ("inbound", Some(Part::Inbound), inbound::steered),
    ("limits_sweep", Some(Part::Sweep), Bench::limits_sweep),
    ("kernel_memory", Some(Part::Inside), Bench::kernel_memory),
    ("shortcut_join", Some(Part::Shortcut), shortcut::join),
    ("shortcut_fionread", Some(Part::Shortcut), shortcut::fionread),
    ("shortcut_splice", Some(Part::Shortcut), shortcut::splice),
    ("shortcut_blocking_read", Some(Part::Shortcut), shortcut::blocking_read),
    ("shortcut_order", Some(Part::Shortcut), shortcut::order),
    ("shortcut_bound", Some(Part::Shortcut), shortcut::bound),
];

impl Bench {
    fn new(mount: &Path, instance: &str, wanted: Wanted) -> Result<Self, String> {
        let offsets = offsets::of_running_kernel().unwrap_or_default();
        let mut loaded = Loaded::new(None, wanted).map_err(|error| error.to_string())?;
        let mut scratch = Scratch::enter(mount, instance).map_err(|error| format!("scratch cgroup: {error}"))?;
        let endpoint = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|error| error.to_string())?;
        loaded.attach_shortcut().map_err(|error| error.to_string())?;
        let hooks = loaded.hooks().map_err(|error| error.to_string())?;
        scratch.links = hooks.attach(&scratch.path, Policy::Tried).map_err(|error| error.to_string())?;
        let current = Settings {
            abi_version: ABI_VERSION,
            flags: settings_flags::SHORTCUT,
            agent_cgroup: 0,
            heartbeat_max_age_ns: super::HEARTBEAT_MAX_AGE_NS,
            shortcut_bytes_max: super::SHORTCUT_BYTES_MAX,
            offsets,
            rules: 0,
        };
        let ebpf = &mut loaded.ebpf;
        let text = |error: super::KernelError| error.to_string();
        let mut bench = Self {
            settings: services::table(ebpf, "SETTINGS").map_err(text)?,
            services: services::table(ebpf, "SERVICES").map_err(text)?,
            slots: services::table(ebpf, "SLOTS").map_err(text)?,
            endpoints: services::table(ebpf, "ENDPOINTS").map_err(text)?,
            heartbeat: services::table(ebpf, "HEARTBEAT").map_err(text)?,
            listeners: services::table(ebpf, "LISTENERS").map_err(text)?,
            tags: services::table(ebpf, "LISTENER_TAGS").map_err(text)?,
            counters: services::table(ebpf, "COUNTERS").map_err(text)?,
            loaded,
            _scratch: scratch,
            current,
            endpoint,
        };
        bench.set(|_| {})?;
        bench.serve(service_flags::SHORTCUT)?;
        Ok(bench)
    }

    fn run(&mut self) -> Vec<Capability> {
        CHECKS.into_iter().map(|(name, part, check)| self.try_one(name, part, check)).collect()
    }

    /// A check of what the kernel lacks says why: what else it saw would only be the consequence.
    fn try_one(&mut self, name: &'static str, part: Option<Part>, check: Check) -> Capability {
        let refused = self.loaded.refused.iter().find(|refused| part.is_some() && Part::of(&refused.program) == part);
        if let Some(refused) = refused {
            return Capability { name, part, passed: false, refused: true, detail: refused.to_string() };
        }
        let seen = check(self);
        let passed = seen.is_ok();
        Capability { name, part, passed, refused: false, detail: seen.unwrap_or_else(|seen| seen) }
    }

    /// Changes the settings of the private kernel half.
    fn set(&mut self, change: impl FnOnce(&mut Settings)) -> Result<(), String> {
        let mut settings = self.current;
        change(&mut settings);
        self.settings.set(0, settings, 0).map_err(|error| error.to_string())
    }

    /// One service at [`DIALLED`] with one endpoint: the listener of this bench.
    fn serve(&mut self, flags: u32) -> Result<(), String> {
        let to = flows::address(self.endpoint.local_addr().map_err(text)?);
        self.serve_by(TCP_SERVICE, flows::address(DIALLED), to, flags)
    }

    fn serve_by(&mut self, id: u32, dialled: Address, to: Address, flags: u32) -> Result<(), String> {
        let key = EndpointKey { service: id, endpoint: 0 };
        let endpoint = Endpoint { address: to, state: endpoint_state::ACTIVE, seal: 0 };
        self.endpoints.insert(key, endpoint.sealed(&key), 0).map_err(text)?;
        let key = ChunkKey { service: id, generation: 1, chunk: 0 };
        let mut chunk = Chunk::default();
        chunk.slots[0] = Slot::only(0);
        self.slots.insert(key, chunk, 0).map_err(text)?;
        let service = Service {
            id,
            generation: 1,
            slots: 1,
            flags,
            algorithm: algorithm::AT_RANDOM,
            affinity_ms: 0,
            udp_idle_ms: 0,
            seal: 0,
        };
        self.services.insert(dialled, service.sealed(&dialled), 0).map_err(text)
    }

    /// A connection through the hooks: the dialling and the accepting end.
    fn connect(&self) -> Result<(TcpStream, TcpStream), String> {
        let client = TcpStream::connect_timeout(&DIALLED, PATIENCE).map_err(|error| format!("connect: {error}"))?;
        let (server, _) = self.endpoint.accept().map_err(text)?;
        for socket in [&client, &server] {
            socket.set_read_timeout(Some(PATIENCE)).map_err(text)?;
            socket.set_write_timeout(Some(PATIENCE)).map_err(text)?;
            socket.set_nodelay(true).map_err(text)?;
        }
        Ok((client, server))
    }

    fn counter(&self, counter: Counter) -> u64 {
        self.counters.get(&(counter as u32), 0).map_or(0, |values| values.iter().sum())
    }

    fn capture(&mut self) -> Result<String, String> {
        self.connect()?;
        Ok("connect() is balanced in the kernel".into())
    }

    fn peer_name(&mut self) -> Result<String, String> {
        let (client, _server) = self.connect()?;
        let peer = client.peer_addr().map_err(text)?;
        if peer == DIALLED {
            Ok("getpeername() answers what was dialled".into())
        } else {
            Err(format!("getpeername() answers {peer} for {DIALLED}"))
        }
    }

    fn own_cgroup_bypass(&mut self) -> Result<String, String> {
        let own = cgroup::id(&self._scratch.path).map_err(text)?;
        self.set(|settings| settings.agent_cgroup = own)?;
        let refused = TcpStream::connect_timeout(&DIALLED, PATIENCE).map_err(|error| error.kind());
        self.set(|_| {})?;
        match refused {
            Err(io::ErrorKind::ConnectionRefused) => Ok("the agent's own connections are not captured".into()),
            other => Err(format!("a connection of the agent's own cgroup was captured: {other:?}")),
        }
    }

    /// A datagram goes to the endpoint, and the answer seems to come from the service.
    fn datagrams(&mut self) -> Result<String, String> {
        let endpoint = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map_err(text)?;
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map_err(text)?;
        for socket in [&endpoint, &client] {
            socket.set_read_timeout(Some(PATIENCE)).map_err(text)?;
        }
        let of_udp = |address| Address { protocol: UDP, ..flows::address(address) };
        let to = endpoint.local_addr().map_err(text)?;
        self.serve_by(UDP_SERVICE, of_udp(DIALLED), of_udp(to), 0)?;
        client.send_to(b"there", DIALLED).map_err(text)?;
        let (_, from) = endpoint.recv_from(&mut [0; 8]).map_err(|error| format!("at the endpoint: {error}"))?;
        endpoint.send_to(b"back", from).map_err(text)?;
        match client.recv_from(&mut [0; 8]).map_err(|error| format!("the answer: {error}"))? {
            (_, DIALLED) => Ok("datagrams are balanced, and answers come from what was asked".into()),
            (_, other) => Err(format!("the answer came from {other}, asked was {DIALLED}")),
        }
    }

    /// The accepting end is told what was dialled.
    fn original_dst(&mut self) -> Result<String, String> {
        self.set(|settings| settings.flags |= settings_flags::INTRODUCTIONS)?;
        self.serve(service_flags::ORIGINAL_DST)?;
        let pair = self.connect();
        self.serve(service_flags::SHORTCUT)?;
        self.set(|_| {})?;
        let (_client, server) = pair?;
        // SAFETY: all zero is a valid `sockaddr_in`, and the kernel writes at most `length` bytes into it.
        let (result, told) = unsafe {
            let mut told: libc::sockaddr_in = std::mem::zeroed();
            let mut length = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            let room = (&raw mut told).cast();
            let result = libc::getsockopt(server.as_raw_fd(), libc::SOL_IP, SO_ORIGINAL_DST, room, &raw mut length);
            (result, told)
        };
        if result != 0 {
            return Err(format!("getsockopt(SO_ORIGINAL_DST): {}", io::Error::last_os_error()));
        }
        let told = SocketAddr::from((told.sin_addr.s_addr.to_ne_bytes(), u16::from_be(told.sin_port)));
        match told {
            DIALLED => Ok("SO_ORIGINAL_DST answers what was dialled".into()),
            other => Err(format!("SO_ORIGINAL_DST answers {other} for {DIALLED}")),
        }
    }

    /// The program that removes idle entries of the limits can be run; here there are none.
    fn limits_sweep(&mut self) -> Result<String, String> {
        let program = self.loaded.descriptor(Part::Sweep.programs()[0]).map_err(text)?;
        sys::run_program(program.as_fd(), &sys::LINK_HEADER).map_err(text)?;
        Ok("idle entries of the limits can be removed".into())
    }

    /// Hooks can look at what no context shows.
    fn kernel_memory(&mut self) -> Result<String, String> {
        let program = self.loaded.descriptor(Part::Inside.programs()[0]).map_err(text)?;
        match sys::run_program(program.as_fd(), &sys::LINK_HEADER).map_err(text)? {
            0 => Err("the kernel's memory reads as unreadable".into()),
            _ => Ok("hooks read what no context shows".into()),
        }
    }

    fn listener_tag(&mut self) -> Result<String, String> {
        let agent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(text)?;
        let port = agent.local_addr().map_err(text)?.port().to_be();
        let cookie = super::namespace::cookie(&agent).map_err(text)?;
        self.heartbeat.set(0, super::monotonic_ns(), 0).map_err(text)?;
        self.listeners.insert(cookie, Listener { port_v4: port, port_v6: 0 }, 0).map_err(text)?;
        self.serve(service_flags::AGENT)?;
        let decoy = self.connect().map(|_| ());
        self.tags.insert(&agent, LISTENER_TAG, 0).map_err(text)?;
        agent.set_nonblocking(true).map_err(text)?;
        let client = TcpStream::connect_timeout(&DIALLED, PATIENCE);
        let accepted = agent.accept();
        self.serve(service_flags::SHORTCUT)?;
        let _ = self.listeners.remove(&cookie);
        decoy.map_err(|error| format!("an untagged listener on the agent's port: {error}"))?;
        client.map_err(|error| format!("the tagged listener: {error}"))?;
        accepted.map_err(|error| format!("the tagged listener was not reached: {error}"))?;
        Ok("connections go to a tagged listener only".into())
    }
}

/// Any error as text.
fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// A cgroup for the length of the test, with this process in it.
struct Scratch {
    path: PathBuf,
    back: PathBuf,
    links: Vec<OwnedFd>,
}

impl Scratch {
    fn enter(mount: &Path, instance: &str) -> io::Result<Self> {
        let back = cgroup::current(mount)?;
        remove_dead(mount, instance);
        let path = mount.join(format!("{}{}", scratch_name(instance), std::process::id()));
        cgroup::enter(&path)?;
        Ok(Self { path, back, links: Vec::new() })
    }
}

/// What the names of an instance's scratch cgroups begin with; the process id follows.
fn scratch_name(instance: &str) -> String {
    format!("sockway-self-test-{instance}-")
}

/// Removes what processes that were killed within their self-test have left. One that lives has its cgroup still, and keeps it.
pub(super) fn remove_dead(mount: &Path, instance: &str) {
    let name = scratch_name(instance);
    for entry in fs::read_dir(mount).into_iter().flatten().flatten() {
        let pid = entry.file_name().to_str().and_then(|found| found.strip_prefix(&name)?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            // Refused, somebody is in it.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.links.clear();
        let left = cgroup::enter(&self.back).and_then(|()| fs::remove_dir(&self.path));
        if let Err(error) = left {
            tracing::warn!(%error, path = %self.path.display(), "the self-test's scratch cgroup could not be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn something_of_each_part_is_tried_and_what_was_not_is_told_when_it_is_refused() {
        for (_, part, _) in CHECKS {
            assert!(part.is_none_or(|part| part.programs().iter().any(|program| is_tried(program))), "{part:?}");
        }
        assert!(["dial_v6", "settle_limits", "deny_shortcut", "pass_dial_v4"].iter().all(|program| !is_tried(program)));
        let capability = |name, part| Capability { name, part, passed: true, refused: false, detail: "fine".into() };
        let mut seen = [capability("limits_sweep", Some(Part::Sweep)), capability("capture", None)];
        add_refused(&mut seen, &[Refused { program: "settle_limits".into(), lacks: "much".into() }]);
        assert_eq!(seen.each_ref().map(|seen| (seen.passed, seen.refused)), [(false, true), (true, false)]);
        assert!(seen[0].detail.contains("settle_limits"), "{}", seen[0].detail);
    }

    #[test]
    fn only_what_the_dead_left_is_removed() {
        let mount = tempfile::tempdir().unwrap();
        let (dead, living) = (u32::MAX, std::process::id());
        let names = [("a", dead), ("a", living), ("ab", dead), ("a-0", dead)]
            .map(|(instance, pid)| scratch_name(instance) + &pid.to_string());
        names.iter().for_each(|name| fs::create_dir(mount.path().join(name)).unwrap());
        remove_dead(mount.path(), "a");
        assert_eq!(names.map(|name| mount.path().join(name).exists()), [false, true, true, true]);
    }
}
