//! From nothing to a kernel half that is loaded and pinned, step by step; what an earlier agent of the instance left is taken over.

use std::sync::{Arc, atomic::AtomicBool};

use aya::maps::{Array, MapData};
use sockway_common::{
    ABI_VERSION,
    capture::{Settings, settings_flags},
};

use super::{
    Capability, Events, Flows, HEARTBEAT_MAX_AGE_NS, Heartbeat, Inlets, Kernel, KernelError, KernelLog, Namespaces,
    SHORTCUT_BYTES_MAX, Sockets, abi,
    carry::Carry,
    cgroup, cgroup_mount, descriptor,
    exclude::Users,
    fill,
    joins::{Joins, ShortcutTable},
    last::LastSockets,
    latency,
    load::{self, Loaded},
    memory, offsets, own_cgroup,
    parts::{Lacking, Part},
    pins::Pins,
    rights::{self, Right},
    ruled_flags,
    rules::{self, Places, Rules},
    selftest,
    services::{self, LimitPrograms, Limits, Tables},
    size, timing,
};
use crate::config::Config;

impl Kernel {
    /// Loads and pins, and takes over the maps that an earlier agent of this instance left, whose hooks go on as they are until
    /// [`Kernel::attach`].
    ///
    /// # Errors
    ///
    /// Each names its phase; [`KernelError::remedy`] says what to do. Nothing of this call stays attached.
    pub fn open(config: &Config) -> Result<Self, KernelError> {
        let capture = &config.capture;
        check_rights()?;
        let mount = cgroup_mount(capture)?;
        let pins = Pins::new(&capture.bpffs, &config.instance);
        if !pins.exist() {
            rules::all_there(&mount, &capture.rules)?;
        }
        pins.create(&capture.bpffs)?;
        let version = abi::pinned_version(&pins.maps().join("SETTINGS"))?;
        raise_memlock();

        let mut capabilities = selftest::run(&mount, &config.instance, selftest::is_tried);
        let self_test_passed = selftest::allows_shortcut(&capabilities);
        let offsets = offsets::of_running_kernel();

        let own = own_cgroup(&mount, &config.instance);
        cgroup::enter(&own).map_err(|source| KernelError::Cgroup { path: own.clone(), source })?;
        let own_id = cgroup::id(&own).map_err(|source| KernelError::Cgroup { path: own.clone(), source })?;

        let sizes = size::sizes(config, |table| Carry::room(&pins, table));
        let carry = Carry::begin(&pins, version, &size::resized(load::shapes()?, &sizes))?;
        let mut loaded = Loaded::new(Some((&pins.maps(), &sizes)), load::all)?;
        selftest::add_refused(&mut capabilities, &loaded.refused);
        carry.fill()?;
        let mut users = Users::new(&mut loaded.ebpf)?;
        users.set(&capture.except.uids)?;
        let namespaces = Namespaces::new(&mut loaded.ebpf, capture.namespaces.clone())?;
        let mut settings: Array<MapData, Settings> = services::table(&mut loaded.ebpf, "SETTINGS")?;
        // What an agent before this one left out stays left out all the while; and what it has begun to carry over, `attach` ends.
        let kept = settings_flags::EXCLUDED_CGROUPS | settings_flags::CARRYING;
        let flags = settings.get(&0, 0).map_or(0, |before: Settings| before.flags) & kept;
        let before = settings.get(&0, 0).map_or(0, |before: Settings| before.rules);
        let current = Settings {
            abi_version: ABI_VERSION,
            flags: flags | ruled_flags(capture),
            agent_cgroup: own_id,
            heartbeat_max_age_ns: HEARTBEAT_MAX_AGE_NS,
            shortcut_bytes_max: SHORTCUT_BYTES_MAX,
            offsets: offsets.clone().unwrap_or_default(),
            rules: before,
        };
        settings.set(0, current, 0).map_err(services::map_error("SETTINGS"))?;
        loaded.attach_shortcut()?;
        let links = pins.links();
        let places = Places { mount: &mount, own: &own, links: &links };
        let rules = Rules::new(loaded.hooks()?, places, &capture.rules, self_test_passed)?;

        let lacking = loaded.lacking();
        let can_shortcut = offsets.is_ok() && !lacking.has(Part::Shortcut);
        loaded.refused.iter().for_each(|refused| tracing::warn!(%refused, "this kernel lacks something"));
        lacking.tell(config);
        warn_of_deviations(config, self_test_passed, &capabilities);
        let shortcut = Arc::new(AtomicBool::new(false));
        let limits = limit_programs(&mut loaded, &lacking)?;
        let queue_looker =
            if lacking.has(Part::Shortcut) { None } else { Some(loaded.descriptor(load::LOOKING_AT_QUEUE)?) };
        let ebpf = &mut loaded.ebpf;
        let kernel = Self {
            limits: Limits::new(services::table(ebpf, "LIMITS")?, limits),
            flows: Flows::of_kernel(
                mount.clone(),
                descriptor(ebpf, "DIALLED")?,
                descriptor(ebpf, "CONNS")?,
                Joins::new(ebpf, queue_looker)?,
                Arc::clone(&shortcut),
                self_test_passed,
            ),
            events: Some(Events::new(ebpf)?),
            log: KernelLog::new(ebpf),
            originals: services::table(ebpf, "ORIGINALS")?,
            sockets: Sockets::new(descriptor(ebpf, "CONNS")?, descriptor(ebpf, "CONNECTED")?),
            watch: services::table(ebpf, "WATCH")?,
            latencies: latency::Latencies::new(ebpf)?,
            fill: fill::Tables::new(&pins.maps()),
            is_lost: false,
            timing: timing::Timing::new(ebpf),
            namespaces: Some(namespaces),
            shortcut_table: ShortcutTable::new(ebpf)?,
            inlets: Some(Inlets::new(ebpf, &pins, !lacking.has(Part::Inbound))?),
            tables: Tables::new(ebpf, sizes)?,
            heartbeat: Some(Heartbeat::new(ebpf)?),
            counters: services::table(ebpf, "COUNTERS")?,
            settings,
            current,
            capabilities,
            self_test_passed,
            can_shortcut,
            lacking,
            rules,
            carry,
            captured: LastSockets::of(descriptor(ebpf, "CONNS")?),
            users,
            except: capture.except.clone(),
            shortcut,
        };
        drop(loaded);
        if let Some(object) = load::OBJECT {
            memory::forget(object);
        }
        memory::give_back();
        Ok(kernel)
    }
}

/// The programs that change the counts of limits for the agent, where this kernel takes them.
fn limit_programs(loaded: &mut Loaded, lacking: &Lacking) -> Result<Option<LimitPrograms>, KernelError> {
    if lacking.has(Part::Sweep) {
        return Ok(None);
    }
    let [sweeper, settler] = ["sweep_limits", "settle_limits"].map(|program| loaded.descriptor(program));
    Ok(Some(LimitPrograms { sweeper: sweeper?, settler: settler? }))
}

/// Without some rights nothing works, without others something does not, which is said once.
fn check_rights() -> Result<(), KernelError> {
    let (needed, others): (Vec<&Right>, Vec<&Right>) = rights::lacking().into_iter().partition(|right| right.is_needed);
    for right in others {
        tracing::warn!("runs without {}: {}", right.name, right.without);
    }
    if needed.is_empty() { Ok(()) } else { Err(KernelError::Rights { what: rights::told(&needed) }) }
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

/// Kernels before 5.11 charge maps to this limit (trap T40); later ones ignore it.
fn raise_memlock() {
    let unlimited = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the call reads one struct.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const unlimited) };
}
