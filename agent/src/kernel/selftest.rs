//! The self-test of the running kernel: what the hooks do here, tried in a scratch cgroup with a private copy of the kernel half, on
//! loopback sockets of this process. Less than 200 ms; every result is a metric and a line of `doctor`.
//!
//! The capture checks must pass for the agent to be of use. The shortcut checks say whether a program in a sockhash sees what it would
//! see without: where one fails, `shortcut: auto` means off.

mod shortcut;

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use aya::maps::{Array, HashMap as BpfHashMap, MapData, PerCpuArray};
use sockway_common::{
    ABI_VERSION,
    capture::{LISTENER_TAG, Listener, Settings, settings_flags},
    counter::Counter,
    endpoint::{Endpoint, endpoint_state},
    flow::Address,
    service::{Chunk, ChunkKey, EndpointKey, Service, Slot, algorithm, service_flags},
};

use super::{cgroup, flows, hooks::Policy, load::Loaded, offsets, services};

/// One thing that was tried on the running kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Name of the check: label of its metric.
    pub name: &'static str,
    /// Whether the kernel does what is expected.
    pub passed: bool,
    /// What was seen.
    pub detail: String,
}

/// Longest wait of any socket call here: a broken kernel must not hang the start.
const PATIENCE: Duration = Duration::from_millis(100);

/// The checks of the shortcut: `auto` needs all of them.
const SHORTCUT: &str = "shortcut_";

/// Whether `shortcut: auto` means on.
pub fn allows_shortcut(capabilities: &[Capability]) -> bool {
    let mut checks = capabilities.iter().filter(|capability| capability.name.starts_with(SHORTCUT)).peekable();
    checks.peek().is_some() && checks.all(|capability| capability.passed)
}

/// Runs every check. This process is moved into a scratch cgroup below `mount` and back.
pub fn run(mount: &Path, instance: &str) -> Vec<Capability> {
    let started = Instant::now();
    let capabilities = match Bench::new(mount, instance) {
        Ok(mut bench) => bench.run(),
        Err(why) => vec![Capability { name: "load", passed: false, detail: why }],
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
const DIALLED: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(127, 66, 254, 254)), 1);

type Check = fn(&mut Bench) -> Result<String, String>;

const CHECKS: [(&str, Check); 10] = [
    ("capture", Bench::capture),
    ("peer_name", Bench::peer_name),
    ("own_cgroup_bypass", Bench::own_cgroup_bypass),
    ("listener_tag", Bench::listener_tag),
    ("shortcut_join", shortcut::join),
    ("shortcut_fionread", shortcut::fionread),
    ("shortcut_splice", shortcut::splice),
    ("shortcut_blocking_read", shortcut::blocking_read),
    ("shortcut_order", shortcut::order),
    ("shortcut_bound", shortcut::bound),
];

impl Bench {
    fn new(mount: &Path, instance: &str) -> Result<Self, String> {
        let offsets = offsets::of_running_kernel().unwrap_or_default();
        let mut loaded = Loaded::new(None).map_err(|error| error.to_string())?;
        let mut scratch = Scratch::enter(mount, instance).map_err(|error| format!("scratch cgroup: {error}"))?;
        let endpoint = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|error| error.to_string())?;
        loaded.attach_shortcut().map_err(|error| error.to_string())?;
        let hooks = loaded.hooks().map_err(|error| error.to_string())?;
        scratch.links =
            hooks.attach(&scratch.path, Policy::Captured { shortcut: true }).map_err(|error| error.to_string())?;
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
        CHECKS
            .into_iter()
            .map(|(name, check)| match self.try_one(name, check) {
                Ok(detail) => Capability { name, passed: true, detail },
                Err(detail) => Capability { name, passed: false, detail },
            })
            .collect()
    }

    /// A check of the shortcut says what the kernel lacks for it, if it does: what else it saw would only be the consequence.
    fn try_one(&mut self, name: &str, check: Check) -> Result<String, String> {
        match self.loaded.refused.first() {
            Some(lacks) if name.starts_with(SHORTCUT) => Err(lacks.to_string()),
            _ => check(self),
        }
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
        let key = EndpointKey { service: 1, endpoint: 0 };
        let endpoint = Endpoint { address: to, state: endpoint_state::ACTIVE, seal: 0 };
        self.endpoints.insert(key, endpoint.sealed(&key), 0).map_err(text)?;
        let (key, dialled) = (ChunkKey { service: 1, generation: 1, chunk: 0 }, flows::address(DIALLED));
        let mut chunk = Chunk::default();
        chunk.slots[0] = Slot::only(0);
        self.slots.insert(key, chunk, 0).map_err(text)?;
        let service = Service {
            id: 1,
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
        let path = mount.join(format!("sockway-self-test-{instance}-{}", std::process::id()));
        cgroup::enter(&path)?;
        Ok(Self { path, back, links: Vec::new() })
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
