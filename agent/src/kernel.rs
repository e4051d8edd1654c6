//! The only door to aya: loads the kernel half, compares the ABI, attaches and pins, writes services, reads counters and events.
//!
//! What comes in is the configuration and snapshots; what goes out are typed handles: [`Flows`] for the workers, [`Namespaces`] and
//! [`Events`] for the node. Nothing here judges traffic. Programs, links and maps are pinned and outlive the agent.
#![allow(unsafe_code, reason = "bpf(2), setns(2), mount(2) and the self-test's socket calls have no safe binding")]

mod abi;
pub mod cgroup;
pub mod doctor;
mod events;
mod fill;
mod flows;
mod latency;
mod load;
mod log;
mod namespace;
mod offsets;
mod pinned;
mod pins;
mod selftest;
mod services;
mod sockets;
mod sys;
mod timing;
mod watch;

use std::{
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool, atomic::Ordering},
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, Map, MapData, PerCpuArray},
};
use sockway_common::{
    ABI_VERSION,
    capture::{Settings, settings_flags},
    counter::{self, Counter},
    flow::{ENDPOINT_AGENT, Original, OriginalKey, TCP},
    latency::EndpointLatency,
    service::{EndpointKey, EndpointStats},
    watch::Watch,
};

pub use self::{
    events::{Event, EventStream, Events},
    fill::Fill,
    flows::{Flows, OriginalDst, socket_addr},
    log::KernelLog,
    namespace::{Changes, Listening, Namespaces, Opened, named_cookies},
    pinned::Pinned,
    selftest::Capability,
    sockets::{Sockets, Target, Visited, holders},
    timing::HookTime,
    watch::{Untold, Wanted, Watcher},
};
use self::{load::Loaded, pins::Pins, services::Tables};
use crate::{
    cluster::{Service, Snapshot},
    config::{Capture, CaptureRule, Config},
};

/// Age at which the hooks take the agent for hung (trap T25). The main thread beats four times a second, and a scheduling stall of
/// two seconds would be worse for callers than the kernel's own choice of an endpoint.
const HEARTBEAT_MAX_AGE_NS: u64 = 2_000_000_000;

/// Bytes that may wait in a peer's receive queue before a direction of the shortcut falls back to TCP; the peer's own receive buffer
/// bounds it too.
const SHORTCUT_BYTES_MAX: u32 = 1 << 20;

/// Age at which a published destination that nobody took is swept: longer than any client waits in an accept queue.
const ORIGINAL_MAX_AGE_NS: u64 = 120_000_000_000;

/// The kernel half, loaded and attached.
pub struct Kernel {
    tables: Tables,
    settings: Array<MapData, Settings>,
    heartbeat: Array<MapData, u64>,
    counters: PerCpuArray<MapData, u64>,
    current: Settings,
    capabilities: Vec<Capability>,
    self_test_passed: bool,
    rules_allow: bool,
    shortcut: Arc<AtomicBool>,
    flows: Flows,
    events: Option<Events>,
    namespaces: Option<Namespaces>,
    log: Option<KernelLog>,
    originals: HashMap<MapData, OriginalKey, Original>,
    sockets: Sockets,
    watch: Array<MapData, Watch>,
    latencies: latency::Latencies,
    fill: fill::Tables,
    timing: timing::Timing,
}

impl Kernel {
    /// Loads, attaches and pins. Nothing is captured until [`Kernel::apply`] names services; what an earlier agent of this instance
    /// left pinned goes on meanwhile, and its programs are replaced one by one, atomically.
    ///
    /// # Errors
    ///
    /// Each names its phase; [`KernelError::remedy`] says what to do. Nothing of this call stays attached.
    pub fn open(config: &Config) -> Result<Self, KernelError> {
        let capture = &config.capture;
        let mount = cgroup_mount(capture)?;
        let rules = rule_paths(&mount, &capture.rules)?;
        let pins = Pins::new(&capture.bpffs, &config.instance);
        pins.create(&capture.bpffs)?;
        abi::check_pinned(&pins.maps().join("SETTINGS"))?;
        raise_memlock();

        let capabilities = selftest::run(&mount, &config.instance);
        let self_test_passed = selftest::allows_shortcut(&capabilities);
        let offsets = offsets::of_running_kernel();

        let own = own_cgroup(&mount, &config.instance);
        cgroup::enter(&own).map_err(|source| KernelError::Cgroup { path: own.clone(), source })?;
        let own_id = cgroup::id(&own).map_err(|source| KernelError::Cgroup { path: own.clone(), source })?;

        let mut loaded = Loaded::new(Some(&pins.maps()))?;
        let current = Settings {
            abi_version: ABI_VERSION,
            flags: 0,
            agent_cgroup: own_id,
            heartbeat_max_age_ns: HEARTBEAT_MAX_AGE_NS,
            shortcut_bytes_max: SHORTCUT_BYTES_MAX,
            offsets: offsets.clone().unwrap_or_default(),
        };
        let mut settings: Array<MapData, Settings> = services::table(&mut loaded.ebpf, "SETTINGS")?;
        settings.set(0, current, 0).map_err(services::map_error("SETTINGS"))?;
        attach(&mut loaded, &pins, &rules, &own, self_test_passed)?;

        let rules_allow =
            offsets.is_ok() && rules.iter().any(|(_, rule)| flows::allows(rule.shortcut, self_test_passed));
        warn_of_deviations(config, self_test_passed, &capabilities);
        let shortcut = Arc::new(AtomicBool::new(false));
        let ebpf = &mut loaded.ebpf;
        let kernel = Self {
            flows: Flows::of_kernel(
                descriptor(ebpf, "ORIGINALS")?,
                descriptor(ebpf, "CONNS")?,
                Arc::clone(&shortcut),
                self_test_passed,
            ),
            events: Some(Events::new(ebpf)?),
            log: KernelLog::new(ebpf),
            originals: services::table(ebpf, "ORIGINALS")?,
            sockets: Sockets::new(descriptor(ebpf, "CONNS")?),
            watch: services::table(ebpf, "WATCH")?,
            latencies: latency::Latencies::new(ebpf)?,
            fill: fill::Tables::new(&pins.maps()),
            timing: timing::Timing::new(ebpf),
            namespaces: Some(Namespaces::new(ebpf, rules.iter().map(|(path, _)| path.clone()).collect())?),
            tables: Tables::new(ebpf)?,
            heartbeat: services::table(ebpf, "HEARTBEAT")?,
            counters: services::table(ebpf, "COUNTERS")?,
            settings,
            current,
            capabilities,
            self_test_passed,
            rules_allow,
            shortcut,
        };
        drop(loaded);
        give_memory_back();
        Ok(kernel)
    }

    /// Makes the kernel half balance what `snapshot` says, leaving out endpoints that are down.
    ///
    /// # Errors
    ///
    /// When a table is full or out of memory: services written before the failure are in force, the others as they were.
    pub fn apply(&mut self, snapshot: &Snapshot) -> Result<(), KernelError> {
        let (rules_allow, passed) = (self.rules_allow, self.self_test_passed);
        let allows = |service: &Service| {
            let is_tcp = service.config.protocol.transport() == TCP;
            rules_allow && is_tcp && flows::allows(service.config.shortcut, passed)
        };
        let any = snapshot.services.iter().any(|service| allows(service));
        self.shortcut.store(any, Ordering::Relaxed);
        let flags = if any { settings_flags::SHORTCUT } else { 0 };
        if flags != self.current.flags {
            self.current.flags = flags;
            self.settings.set(0, self.current, 0).map_err(services::map_error("SETTINGS"))?;
        }
        self.tables.apply(snapshot, allows)
    }

    /// Tells the hooks that the agent lives.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, which it has no reason to.
    pub fn heartbeat(&mut self) -> Result<(), KernelError> {
        self.heartbeat.set(0, monotonic_ns(), 0).map_err(services::map_error("HEARTBEAT"))
    }

    /// Every counter of the hooks, added up over the CPUs.
    pub fn counters(&self) -> Vec<(Counter, u64)> {
        let sum = |counter: Counter| self.counters.get(&(counter as u32), 0).map_or(0, |values| values.iter().sum());
        counter::ALL.iter().map(|counter| (*counter, sum(*counter))).collect()
    }

    /// What the connect hooks counted for each endpoint, added up over the CPUs.
    pub fn endpoint_stats(&self) -> Vec<(EndpointKey, EndpointStats)> {
        self.tables.stats()
    }

    /// What the workers ask about single connections.
    pub fn flows(&self) -> Flows {
        self.flows.clone()
    }

    /// The sockets of the host that hooks have pointed at endpoints.
    ///
    /// # Errors
    ///
    /// When descriptors have run out.
    pub fn sockets(&self) -> io::Result<Sockets> {
        self.sockets.try_clone()
    }

    /// What the self-test of the running kernel found.
    pub fn capabilities(&self) -> &[Capability] {
        &self.capabilities
    }

    /// The stream of events; `None` when it was taken before.
    pub fn take_events(&mut self) -> Option<Events> {
        self.events.take()
    }

    /// The room that opens listeners in network namespaces; `None` when it was taken before.
    pub fn take_namespaces(&mut self) -> Option<Namespaces> {
        self.namespaces.take()
    }

    /// The kernel half's log; `None` when it was taken before.
    pub fn take_log(&mut self) -> Option<KernelLog> {
        self.log.take()
    }

    /// What the hooks measured of the connections to each endpoint, added up over the CPUs.
    pub fn latencies(&self) -> Vec<(EndpointKey, EndpointLatency)> {
        self.latencies.read()
    }

    /// How full the tables are.
    pub fn fill(&self) -> Vec<Fill> {
        self.fill.read()
    }

    /// Has the kernel keep the hooks' run times, or no more.
    pub fn measure_hooks(&mut self, wanted: bool) {
        if let Err(error) = self.timing.measure(wanted) {
            tracing::warn!(%error, "hook_stats: the kernel does not measure its programs (CAP_SYS_ADMIN and Linux 5.8 are needed)");
        }
    }

    /// The hooks' run times; none while nobody has the kernel keep them.
    pub fn hook_times(&self) -> Vec<HookTime> {
        self.timing.read()
    }

    /// Tidies up, and looks after the tables: what clients published and nobody accepted (they gave up while they waited, or their agent
    /// was killed), what was measured of endpoints that are not in `snapshot`, a watcher that was killed. To be called from time to
    /// time. How many published destinations nobody had fetched.
    pub fn sweep(&mut self, snapshot: &Snapshot) -> usize {
        watch::end_stale(&mut self.watch);
        self.fill.watch();
        self.latencies.keep(|key| match key.endpoint {
            ENDPOINT_AGENT => snapshot.by_id(key.service).is_some(),
            endpoint => snapshot.endpoint(key.service, endpoint).is_some(),
        });
        let oldest = monotonic_ns().saturating_sub(ORIGINAL_MAX_AGE_NS);
        let stale: Vec<OriginalKey> = self
            .originals
            .iter()
            .flatten()
            .filter(|(_, original)| original.published_ns < oldest)
            .map(|(key, _)| key)
            .collect();
        for key in &stale {
            let _ = self.originals.remove(key);
        }
        stale.len()
    }
}

/// Takes away everything that is pinned for `instance`, and its cgroup when it is empty: every socket goes on as plain TCP. How many
/// pins there were.
///
/// # Errors
///
/// When a pin cannot be removed.
pub fn detach(capture: &Capture, instance: &str) -> Result<usize, KernelError> {
    let pins = Pins::new(&capture.bpffs, instance);
    switch_shortcut_off(&pins.maps().join("SETTINGS"));
    let removed = pins.remove().map_err(|source| KernelError::Pin { path: pins.links(), source })?;
    if let Ok(mount) = cgroup_mount(capture) {
        let own = own_cgroup(&mount, instance);
        if cgroup::current(&mount).is_ok_and(|current| current == own) {
            cgroup::enter(&mount).map_err(|source| KernelError::Cgroup { path: mount, source })?;
        }
        // Busy while another agent runs in it, absent when none ever did: both are well.
        let _ = fs::remove_dir(own);
    }
    Ok(removed)
}

/// Sockets that are enrolled keep the program they have for as long as they live: it falls back to TCP at the next message.
fn switch_shortcut_off(settings: &Path) {
    let Ok(mut settings) = MapData::from_pin(settings).map(Map::Array).and_then(Array::<_, Settings>::try_from) else {
        return;
    };
    if let Ok(current) = settings.get(&0, 0) {
        let _ = settings.set(0, Settings { flags: 0, ..current }, 0);
    }
}

/// Whether anything is pinned for `instance`.
pub fn pinned(capture: &Capture, instance: &str) -> bool {
    Pins::new(&capture.bpffs, instance).exist()
}

fn attach(
    loaded: &mut Loaded,
    pins: &Pins,
    rules: &[(PathBuf, CaptureRule)],
    own: &Path,
    self_test_passed: bool,
) -> Result<(), KernelError> {
    let links = pins.links();
    loaded.attach_shortcut()?;
    // The agent's own sockets take part in the shortcut; whether they do is decided for each by service.
    loaded.attach_sockets(own, true, Some(&links))?;
    let mut kept = vec![id_of(own)?];
    for (path, rule) in rules {
        loaded.attach(path, flows::allows(rule.shortcut, self_test_passed), Some(&links))?;
        kept.push(id_of(path)?);
    }
    load::unpin_others(&links, &kept).map_err(|source| KernelError::Pin { path: links, source })
}

fn id_of(path: &Path) -> Result<u64, KernelError> {
    cgroup::id(path).map_err(|source| KernelError::Cgroup { path: path.into(), source })
}

fn cgroup_mount(capture: &Capture) -> Result<PathBuf, KernelError> {
    capture.cgroup_mount.clone().or_else(cgroup::mount).ok_or(KernelError::NoCgroup)
}

fn rule_paths(mount: &Path, rules: &[CaptureRule]) -> Result<Vec<(PathBuf, CaptureRule)>, KernelError> {
    rules
        .iter()
        .map(|rule| {
            let path = cgroup::below(mount, &rule.path);
            match fs::metadata(path.join("cgroup.procs")) {
                Ok(_) => Ok((path, rule.clone())),
                Err(source) => Err(KernelError::Cgroup { path, source }),
            }
        })
        .collect()
}

fn own_cgroup(mount: &Path, instance: &str) -> PathBuf {
    mount.join(format!("sockway-agent-{instance}"))
}

/// A descriptor of a map that outlives the loaded object.
fn descriptor(ebpf: &Ebpf, name: &'static str) -> Result<OwnedFd, KernelError> {
    let map = ebpf.map(name).ok_or(KernelError::NoMap { name })?;
    let data = match map {
        Map::HashMap(data) | Map::SkStorage(data) => data,
        _ => return Err(KernelError::NoMap { name }),
    };
    data.fd().as_fd().try_clone_to_owned().map_err(|source| KernelError::Map { name, source: Box::new(source.into()) })
}

/// Kernels before 5.11 charge maps to this limit (trap T40); later ones ignore it.
fn raise_memlock() {
    let unlimited = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the call reads one struct.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const unlimited) };
}

/// Reading the kernel's BTF and loading take 20 MB for a moment, which the allocator would keep for itself.
pub fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number, and may be called at any time.
    unsafe {
        libc::malloc_trim(0)
    };
}

/// Says once, in the log, what a shortcut that was switched on by hand changes on this kernel.
fn warn_of_deviations(config: &Config, passed: bool, capabilities: &[Capability]) {
    let forced = config.services.iter().any(|service| service.shortcut == crate::config::Shortcut::On);
    if passed || !forced {
        return;
    }
    for capability in capabilities.iter().filter(|capability| !capability.passed) {
        tracing::warn!(check = capability.name, detail = %capability.detail, "shortcut is on although this kernel's self-test fails");
    }
}

/// `CLOCK_MONOTONIC`, which is what `bpf_ktime_get_ns` reads.
fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call fills one struct.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Why the kernel half could not be loaded, attached or written.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the variants are")]
pub enum KernelError {
    #[error("this binary was built without the kernel half")]
    NoObject,
    #[error("this binary was built without the kernel half")]
    NotBuilt,
    #[error("the two halves do not match: {what}")]
    Abi { what: String },
    #[error("{}: pinned by another version: {what}", path.display())]
    PinnedAbi { path: PathBuf, what: String },
    #[error("cgroup v2 is not mounted")]
    NoCgroup,
    #[error("cgroup {}: {source}", path.display())]
    Cgroup { path: PathBuf, source: io::Error },
    #[error("mounting bpffs at {}: {source}", path.display())]
    Bpffs { path: PathBuf, source: io::Error },
    #[error("pinning at {}: {source}", path.display())]
    Pin { path: PathBuf, source: io::Error },
    #[error("pinning a link at {}: {source}", path.display())]
    PinLink { path: PathBuf, source: Box<aya::pin::PinError> },
    #[error("loading the kernel half: {}", chain(source.as_ref()))]
    Load { source: Box<aya::EbpfError> },
    #[error("loading the program `{hook}`: {}", chain(source.as_ref()))]
    Program { hook: String, source: Box<aya::programs::ProgramError> },
    #[error("the kernel half has no program `{name}`")]
    NoProgram { name: String },
    #[error("attaching `{hook}` to {to}: {}", chain(source.as_ref()))]
    Attach { hook: String, to: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("the kernel half has no map `{name}`")]
    NoMap { name: &'static str },
    #[error("map {name}: {}", chain(source.as_ref()))]
    Map { name: &'static str, source: Box<aya::maps::MapError> },
    #[error("nothing is attached for instance {instance}: there is no {}", path.display())]
    NotPinned { instance: String, path: PathBuf },
    #[error("process {watcher} watches the flows of this instance already, and only one can")]
    Watched { watcher: u32 },
    #[error("{path}: {source}")]
    Cpus { path: &'static str, source: io::Error },
    #[error("listening in network namespace {namespace}: {source}")]
    Listen { namespace: String, source: io::Error },
}

impl KernelError {
    /// What to do about it.
    pub fn remedy(&self) -> Option<String> {
        if self.is_permission() {
            return Some("run as root, or with CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON and CAP_SYS_ADMIN".into());
        }
        Some(match self {
            Self::NotBuilt => "build with `cargo xtask build`, which embeds it".into(),
            Self::Abi { .. } => "build both halves from one source with `cargo xtask build`".into(),
            Self::PinnedAbi { .. } => {
                "stop the other version and take its pins away with `sockway detach`, or run the version that made them"
                    .into()
            }
            Self::NotPinned { .. } => {
                "start its agent with `sockway run`, or name the right one with --instance".into()
            }
            Self::Watched { .. } => "wait for its end, or end it".into(),
            Self::NoCgroup => {
                "mount it: mount -t cgroup2 none /sys/fs/cgroup/unified, or set capture.cgroup_mount".into()
            }
            Self::Cgroup { .. } => "make the cgroup, or correct capture.cgroups in the configuration".into(),
            Self::Bpffs { .. } => "mount it by hand: mount -t bpf bpf /sys/fs/bpf".into(),
            Self::Load { .. } | Self::Program { .. } | Self::Attach { .. } => {
                "`sockway doctor` tells what this kernel lacks; Linux 6.0 or later with BTF is needed".into()
            }
            _ => return None,
        })
    }

    /// Exit code by `sysexits.h`: 77 no permission, 69 something this host lacks, 71 a system call that failed.
    pub fn exit_code(&self) -> u8 {
        if self.is_permission() {
            return 77;
        }
        match self {
            Self::Map { .. } | Self::Listen { .. } | Self::Cpus { .. } => 71,
            _ => 69,
        }
    }

    fn is_permission(&self) -> bool {
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            if let Some(error) = error.downcast_ref::<io::Error>()
                && matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES))
            {
                return true;
            }
            source = error.source();
        }
        false
    }
}

/// An error with its causes, each once.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
