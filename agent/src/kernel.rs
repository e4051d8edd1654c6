//! The only door to aya: loads the kernel half, compares the ABI, attaches and pins, writes services, reads counters and events.
//!
//! What comes in is the configuration and snapshots; what goes out are typed handles: [`Flows`] for the workers, [`Namespaces`] and
//! [`Events`] for the node. Nothing here judges traffic. Programs, links and maps are pinned and outlive the agent.
#![allow(unsafe_code, reason = "bpf(2), setns(2), mount(2) and the self-test's socket calls have no safe binding")]

mod abi;
mod alone;
mod caller;
mod carry;
pub mod cgroup;
mod choices;
mod detach;
mod diallers;
pub mod doctor;
mod events;
mod exclude;
mod failure;
mod fill;
mod flows;
mod grace;
mod heartbeat;
mod hooks;
mod inbound;
mod inlets;
mod joins;
mod last;
mod latency;
mod load;
mod log;
mod measured;
pub mod memory;
mod namespace;
mod offsets;
mod open;
mod outside;
mod parts;
mod pinned;
mod pins;
mod place;
mod probe;
mod refused;
pub mod rights;
mod ruled;
mod rules;
mod selftest;
mod services;
mod situation;
mod size;
mod sockets;
mod source;
mod sys;
mod timing;
mod tree;
mod watch;

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool, atomic::Ordering},
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, Map, MapData, PerCpuArray},
};
use sockway_common::{
    capture::{Settings, settings_flags},
    flow::{ENDPOINT_AGENT, Original, OriginalKey, TCP},
    service::EndpointKey,
    watch::Watch,
};

pub use self::services::Gate;
pub use self::{
    caller::{Caller, Process},
    choices::{Choice, Taken, algorithm_word},
    detach::detach,
    diallers::{Diallers, names_of, peer_of},
    events::{Event, EventStream, Events},
    failure::KernelError,
    fill::Fill,
    flows::{Flows, OriginalDst, socket_addr},
    heartbeat::Heartbeat,
    inlets::{Inlets, Look},
    joins::{Join, Verdict, Way},
    log::KernelLog,
    namespace::{Changes, Listening, Namespaces, Opened, named_cookies},
    outside::look as look_outside,
    pinned::Pinned,
    place::Place,
    selftest::Capability,
    situation::{Covered, Found, Listening as AgentListener, Situation, look},
    sockets::{Sockets, Target, Visited, holders, listening_cgroups},
    timing::HookTime,
    tree::{TreeNews, TreeStream},
    watch::{Untold, Wanted, Watcher},
};
use self::{
    carry::{Carry, Counts},
    exclude::Users,
    joins::ShortcutTable,
    last::LastSockets,
    parts::Lacking,
    pins::Pins,
    rules::Rules,
    services::{How, Limits, Tables},
};
use crate::{
    cluster::{Adopted, Service, Snapshot},
    config::{Capture, Config, Except},
};

/// Age at which the hooks take the agent for hung (trap T25). The agent beats four times a second, and a scheduling stall of
/// two seconds would be worse for callers than the kernel's own choice of an endpoint.
const HEARTBEAT_MAX_AGE_NS: u64 = 2_000_000_000;

/// Bytes that may wait in a peer's receive queue before a direction of the shortcut falls back to TCP; the peer's own receive buffer
/// bounds it too.
const SHORTCUT_BYTES_MAX: u32 = 1 << 20;

/// What the agent says when its pins are gone.
const LOST: &str =
    "its pins in bpffs are gone, and its hooks with them: nothing is captured until the agent is started again";

/// Age at which a published destination that nobody took is swept: longer than a handshake on loopback lasts.
const ORIGINAL_MAX_AGE_NS: u64 = 120_000_000_000;

/// The kernel half, loaded and attached.
pub struct Kernel {
    tables: Tables,
    shortcut_table: ShortcutTable,
    settings: Array<MapData, Settings>,
    heartbeat: Option<Heartbeat>,
    counters: PerCpuArray<MapData, u64>,
    current: Settings,
    capabilities: Vec<Capability>,
    self_test_passed: bool,
    can_shortcut: bool,
    lacking: Lacking,
    rules: Rules,
    carry: Carry,
    captured: LastSockets,
    users: Users,
    except: Except,
    shortcut: Arc<AtomicBool>,
    flows: Flows,
    events: Option<Events>,
    namespaces: Option<Namespaces>,
    inlets: Option<Inlets>,
    log: Option<KernelLog>,
    originals: HashMap<MapData, OriginalKey, Original>,
    sockets: Sockets,
    watch: Array<MapData, Watch>,
    latencies: latency::Latencies,
    fill: fill::Tables,
    is_lost: bool,
    timing: timing::Timing,
    limits: Limits,
}

impl Kernel {
    /// Attaches to the cgroups that the rules capture, once [`Kernel::apply`] has named the services: hooks of an earlier agent are replaced
    /// one by one, atomically, by hooks that find the same.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn attach(&mut self, capture: &Capture, namespaces: &mut Namespaces) -> Result<(), KernelError> {
        self.tell_rules(ruled_flags(capture))?;
        self.carry.step_aside()?;
        let counts = self.begin_counts()?;
        self.rules.begin()?;
        self.settle_counts(counts);
        self.carry.take_over()?;
        self.follow_cgroups(namespaces);
        Ok(())
    }

    /// If what is taken of the limits goes to a table of another size, hooks count below zero from now on.
    fn begin_counts(&mut self) -> Result<Option<Counts>, KernelError> {
        // An agent that was killed while it did this has left counts in both tables, and nobody knows what of them was copied.
        if self.current.flags & settings_flags::CARRYING != 0 {
            return Ok(None);
        }
        let counts = self.carry.counts()?;
        let flag = if counts.is_some() { settings_flags::CARRYING } else { 0 };
        self.set_flags(settings_flags::CARRYING, flag)?;
        Ok(counts)
    }

    /// Adds what the hooks before have counted meanwhile: they are all replaced.
    fn settle_counts(&mut self, counts: Option<Counts>) {
        if self.current.flags & settings_flags::CARRYING == 0 {
            return;
        }
        let settled = grace::wait().and_then(|()| counts.map_or(Ok(Vec::new()), |counts| counts.since()));
        match settled {
            Ok(since) => self.limits.settle(&since),
            Err(error) => {
                tracing::warn!(%error, "what was taken of the limits while hooks were replaced is not counted");
                self.limits.settle(&[]);
            }
        }
        if let Err(error) = self.set_flags(settings_flags::CARRYING, 0) {
            tracing::warn!(%error, "limits may count below zero until the agent starts again");
        }
    }

    /// Makes the kernel half balance what `snapshot` says, leaving out endpoints that are down.
    ///
    /// # Errors
    ///
    /// When a table is full or out of memory: services written before the failure are in force, the others as they were.
    pub fn apply(&mut self, snapshot: &Snapshot) -> Result<(), KernelError> {
        let passed = self.self_test_passed;
        let rules_allow = self.can_shortcut && self.rules.say().1;
        let allows = |service: &Service| {
            let is_tcp = service.config.protocol.transport() == TCP;
            rules_allow && is_tcp && flows::allows(service.config.shortcut, passed)
        };
        let any = snapshot.services.iter().any(|service| allows(service));
        self.shortcut.store(any, Ordering::Relaxed);
        self.set_flags(settings_flags::SHORTCUT, if any { settings_flags::SHORTCUT } else { 0 })?;
        let counted = snapshot.services.iter().filter(|service| allows(service));
        self.shortcut_table.keep(counted.map(|service| service.id))?;
        let tells_original = snapshot.services.iter().any(|service| service.config.original_dst);
        self.rules.answer_original(tells_original)?;
        let introduces = tells_original || !snapshot.inbound.is_empty();
        let introductions = if introduces { settings_flags::INTRODUCTIONS } else { 0 };
        self.set_flags(settings_flags::INTRODUCTIONS, introductions)?;
        let left_out =
            |service: &Service| self.except.covers(service.config.address) || self.lacking.leaves_out(service);
        self.tables.apply(snapshot, |service| How { shortcut: allows(service), left_out: left_out(service) })
    }

    /// Says in the log what a configuration asks for and this kernel lacks.
    pub fn tell_lacking(&self, config: &Config) {
        self.lacking.tell(config);
    }

    /// Puts other capture rules in force, for what is dialled from now on. With an error [`Kernel::capture_as_before`] must be called.
    ///
    /// # Errors
    ///
    /// When a cgroup that a new rule names is not there, or the kernel refuses.
    pub fn capture(&mut self, capture: &Capture, namespaces: &mut Namespaces) -> Result<(), KernelError> {
        self.rules.check(&capture.rules)?;
        // More users for a moment, never fewer.
        self.users.set(&capture.except.uids)?;
        self.rules.set(&capture.rules)?;
        self.say_captured(capture, namespaces)
    }

    /// Puts capture rules in force again, as far as that can be done.
    ///
    /// # Errors
    ///
    /// What could not be done.
    pub fn capture_as_before(&mut self, capture: &Capture, namespaces: &mut Namespaces) -> Result<(), KernelError> {
        let users = self.users.set(&capture.except.uids);
        let rules = self.rules.restore(&capture.rules);
        self.say_captured(capture, namespaces).and(users).and(rules)
    }

    /// The rules are in force: tells the hooks, and follows what they capture.
    fn say_captured(&mut self, capture: &Capture, namespaces: &mut Namespaces) -> Result<(), KernelError> {
        namespaces.ruled().set(capture.namespaces.clone());
        self.except = capture.except.clone();
        self.tell_rules(ruled_flags(capture))?;
        self.follow_cgroups(namespaces);
        Ok(())
    }

    /// Attaches cgroups that have come and a rule captures, and lets go of those that are gone. `news`: what the tree told.
    pub fn follow(&mut self, news: &[i32], namespaces: &mut Namespaces) {
        if self.rules.is_of_names(news) {
            namespaces.ruled().forget();
            namespaces.ruled().look();
        }
        match self.rules.follow() {
            Ok(true) => self.follow_cgroups(namespaces),
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "cgroups that came or went are not followed"),
        }
    }

    /// Why nothing is captured, if nothing is.
    pub fn lost(&self) -> Option<&'static str> {
        self.is_lost.then_some(LOST)
    }

    /// Takes away hooks that stand only for sockets of rules withdrawn, when none of those is left, and slots that were replaced; says in
    /// the log which tables have no room. To be called from time to time.
    pub fn let_go(&mut self) {
        let was_lost = std::mem::replace(&mut self.is_lost, self.rules.are_lost());
        if self.is_lost && !was_lost {
            tracing::error!("{LOST}");
        }
        self.carry.let_go();
        self.rules.bury();
        self.tables.tidy();
        let counters = &self.counters;
        self.fill.look(|counter| measured::count(counters, counter));
        if self.rules.is_leaving()
            && self.captured.are_gone()
            && let Err(error) = self.rules.leave()
        {
            tracing::warn!(%error, "hooks of cgroups no longer captured stay until the agent starts again");
        }
    }

    /// Tells which cgroups' processes are to be looked at for network namespaces.
    pub fn follow_cgroups(&self, namespaces: &mut Namespaces) {
        let (captured, left_out) = self.rules.cgroups();
        namespaces.follow(captured, left_out);
    }

    /// The source of news of cgroups and named network namespaces.
    ///
    /// # Errors
    ///
    /// When descriptors have run out.
    pub fn tree_news(&self) -> Result<TreeNews, KernelError> {
        self.rules.news()
    }

    /// What the hooks must know of the rules. The mark goes with the flag: a mark of other rules means nothing.
    fn tell_rules(&mut self, flags: u32) -> Result<(), KernelError> {
        let left_out = if self.rules.say().0 { settings_flags::EXCLUDED_CGROUPS } else { 0 };
        self.current.rules = self.rules.mark();
        self.current.flags = self.current.flags & !settings_flags::EXCLUDES | flags | left_out;
        self.settings.set(0, self.current, 0).map_err(services::map_error("SETTINGS"))
    }

    fn set_flags(&mut self, of: u32, flags: u32) -> Result<(), KernelError> {
        let flags = self.current.flags & !of | flags;
        if flags != self.current.flags {
            self.current.flags = flags;
            self.settings.set(0, self.current, 0).map_err(services::map_error("SETTINGS"))?;
        }
        Ok(())
    }

    /// Ids that an earlier agent gave, for the first snapshot.
    pub fn adopted(&self) -> Adopted {
        self.tables.adopted()
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

    /// What tells the hooks that the agent lives; `None` when it was taken before.
    pub fn take_heartbeat(&mut self) -> Option<Heartbeat> {
        self.heartbeat.take()
    }

    /// The room that opens listeners in network namespaces; `None` when it was taken before.
    pub fn take_namespaces(&mut self) -> Option<Namespaces> {
        self.namespaces.take()
    }

    /// The room that steers connections that come in; `None` when it was taken before.
    pub fn take_inlets(&mut self) -> Option<Inlets> {
        self.inlets.take()
    }

    /// The kernel half's log; `None` when it was taken before.
    pub fn take_log(&mut self) -> Option<KernelLog> {
        self.log.take()
    }

    /// Tidies up, and looks after the tables: what clients published and nobody accepted (they gave up while they waited, or their agent
    /// was killed), what was measured of endpoints that are not in `snapshot`, a watcher that was killed. To be called from time to
    /// time. How many entries of the tables nobody needed.
    pub fn sweep(&mut self, snapshot: &Snapshot) -> usize {
        let swept = self.limits.sweep(monotonic_ns());
        watch::end_stale(&mut self.watch);
        self.fill.watch();
        let is_there = |key: &EndpointKey| match key.endpoint {
            ENDPOINT_AGENT => snapshot.by_id(key.service).is_some(),
            endpoint => snapshot.endpoint(key.service, endpoint).is_some(),
        };
        self.latencies.keep(is_there);
        self.tables.keep_stats(is_there);
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
        swept + stale.len()
    }
}

/// Whether anything is pinned for `instance`.
pub fn pinned(capture: &Capture, instance: &str) -> bool {
    Pins::new(&capture.bpffs, instance).exist()
}

/// What the settings say of users and network namespaces.
fn ruled_flags(capture: &Capture) -> u32 {
    let users = if capture.except.uids.is_empty() { 0 } else { settings_flags::EXCLUDED_USERS };
    let namespaces = match (capture.namespaces.is_empty(), capture.namespaces.captures_unnamed()) {
        (true, _) => 0,
        (false, true) => settings_flags::RULED_NAMESPACES,
        (false, false) => settings_flags::RULED_NAMESPACES | settings_flags::UNNAMED_EXCLUDED,
    };
    users | namespaces
}

fn cgroup_mount(capture: &Capture) -> Result<PathBuf, KernelError> {
    capture.cgroup_mount.clone().or_else(cgroup::mount).ok_or(KernelError::NoCgroup)
}

fn own_cgroup(mount: &Path, instance: &str) -> PathBuf {
    mount.join(format!("sockway-agent-{instance}"))
}

/// A descriptor of a map that outlives the loaded object.
fn descriptor(ebpf: &Ebpf, name: &'static str) -> Result<OwnedFd, KernelError> {
    let map = ebpf.map(name).ok_or(KernelError::NoMap { name })?;
    let data = match map {
        Map::HashMap(data) | Map::LruHashMap(data) | Map::Array(data) | Map::SkStorage(data) => data,
        _ => return Err(KernelError::NoMap { name }),
    };
    data.fd().as_fd().try_clone_to_owned().map_err(|source| KernelError::Map { name, source: Box::new(source.into()) })
}

/// `CLOCK_MONOTONIC`, which is what `bpf_ktime_get_ns` reads.
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call fills one struct.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
