//! Loads the kernel half's object, with its maps pinned or private.

use std::{
    collections::HashMap,
    io, iter,
    os::fd::{AsFd as _, OwnedFd},
    panic,
    path::Path,
    sync::{Mutex, PoisonError},
    thread,
    time::Instant,
};

use aya::{
    Ebpf, EbpfLoader,
    programs::{Program, ProgramError, ProgramType, SkMsg},
    sys::{BpfHelper, is_helper_supported},
};

use super::{
    KernelError, abi,
    hooks::Hooks,
    memory, offsets,
    parts::{Lacking, Part},
    probe,
    refused::Refused,
    sys::Shape,
};

/// The kernel half, unless this binary was built without it. Aligned as aya wants it; a static, so that there is one copy to forget.
#[cfg(sockway_ebpf)]
pub static OBJECT: Option<&[u8]> = Some(aya::include_bytes_aligned!(env!("SOCKWAY_EBPF_OBJECT")));
/// This binary was built without the kernel half.
#[cfg(not(sockway_ebpf))]
pub static OBJECT: Option<&[u8]> = None;

/// Every map of the object that is kept when the agent is gone.
pub const MAPS: &[&str] = &[
    "SETTINGS",
    "HEARTBEAT",
    "SERVICES",
    "SLOTS",
    "ENDPOINTS",
    "ENDPOINT_LIVE",
    "ENDPOINT_STATS",
    "LIMIT_POLICIES",
    "LIMITS",
    "EJECT_POLICIES",
    "AFFINITY",
    "CURSORS",
    "TURNS",
    "LISTENERS",
    "SOURCES",
    "EXCLUDED_USERS",
    "RULED_NAMESPACES",
    "EXCLUDED",
    "LISTENER_TAGS",
    "CONNS",
    "CONVERSATIONS",
    "CONNECTED",
    "FORMER",
    "ORIGINALS",
    "DIALLED",
    "COUNTERS",
    "EVENTS",
    "EVENTS_SENT",
    "SYNS",
    "MEETINGS",
    "HALVES",
    "SHORTCUT_STATS",
    "WATCH",
    "FLOWS",
    "REPORTED",
    "NAMES",
    "LATENCIES",
    "INBOUND_PORTS",
    "INBOUND_SOURCES",
    "INBOUND_SOCKETS",
    "INTRODUCTIONS",
    "ACCEPTED",
];
/// Entries that have room in each table of a private copy, at most: it serves a handful of sockets, and large tables would cost
/// milliseconds to make and free.
const PRIVATE_ENTRIES_MAX: u32 = 1024;
/// Programs that are loaded at the same time, at most: the verifier takes some megabytes for each.
const LOADED_AT_A_TIME_MAX: usize = 4;
/// How often a program is given to the verifier if a signal interrupts that: as often as libbpf does.
const LOAD_TRIES_MAX: usize = 5;
/// The sockhash, apart because a program is attached to it.
pub const SHORTCUT_MAP: &str = "SHORTCUT";
/// That program.
pub const SHORTCUT_PROGRAM: &str = "send_direct";
/// The program that tells how full the queue of a joined program's socket is.
pub const LOOKING_AT_QUEUE: &str = "look_at_queue";

/// The program of the sk_lookup hook, and what tells it its namespace.
pub const STEERING: &str = "steer";
const STEERING_NETNS: &str = "NETNS";

/// The names of all pinned maps.
pub fn names() -> impl Iterator<Item = &'static str> {
    MAPS.iter().copied().chain([SHORTCUT_MAP])
}

/// What the object's maps are made with, by name.
pub fn shapes() -> Result<HashMap<String, Shape>, KernelError> {
    let object = OBJECT.ok_or(KernelError::NotBuilt)?;
    let parsed = aya_obj::Object::parse(object).map_err(|source| KernelError::Object { source: Box::new(source) })?;
    let shape = |map: &aya_obj::Map| Shape {
        kind: map.map_type(),
        key_bytes: map.key_size(),
        value_bytes: map.value_size(),
        entries_max: map.max_entries(),
        flags: map.map_flags(),
    };
    Ok(parsed.maps.iter().map(|(name, map)| (name.clone(), shape(map))).collect())
}

/// The program that tells whether programs may read the kernel's memory.
pub const LOOKING_INSIDE: &str = "look_inside";

/// What tells a private copy that it is in no namespace: no cookie is 0.
pub const NO_NETNS: u64 = 0;

/// Which programs of the object are wanted, by their names.
pub type Wanted = fn(&str) -> bool;

/// Every program.
pub fn all(_: &str) -> bool {
    true
}

/// A loaded object.
#[derive(Debug)]
pub struct Loaded {
    /// The maps and programs.
    pub ebpf: Ebpf,
    /// Programs that this kernel lacks something for, and that the agent does without.
    pub refused: Vec<Refused>,
    wanted: Wanted,
}

impl Loaded {
    /// Loads the object. With `pins`, maps that are pinned there are taken over, and new ones are pinned and have these sizes.
    pub fn new(pins: Option<(&Path, &HashMap<&'static str, u32>)>, wanted: Wanted) -> Result<Self, KernelError> {
        Self::with(pins, wanted, has_loop())
    }

    /// The same, for a kernel that runs loops for programs or does not.
    fn with(
        pins: Option<(&Path, &HashMap<&'static str, u32>)>,
        wanted: Wanted,
        has_loop: bool,
    ) -> Result<Self, KernelError> {
        let object = OBJECT.ok_or(KernelError::NotBuilt)?;
        abi::check_object(object)?;
        let mut loader = EbpfLoader::new();
        // Nothing in the object is relocated by the kernel's BTF, and parsing it takes a hundred milliseconds.
        loader.btf(None);
        // What the programs may know before the verifier sees them.
        let can_peek = u32::from(probe::can_peek(object)?);
        let task_flags = offsets::task_flags().filter(|_| can_peek != 0).unwrap_or(0);
        let has_mptcp = u32::from(offsets::of_running_kernel().is_ok_and(|offsets| offsets.is_mptcp != 0));
        loader.override_global("TASK_FLAGS", &task_flags, true).override_global("HAS_MPTCP", &has_mptcp, true);
        let has_loop = u32::from(has_loop);
        loader.override_global("CAN_PEEK", &can_peek, true).override_global("HAS_LOOP", &has_loop, true);
        loader.override_global(STEERING_NETNS, &NO_NETNS, true);
        let shapes = shapes()?;
        if let Some((pins, sizes)) = pins {
            for name in names() {
                loader.map_pin_path(name, pins.join(name));
            }
            for (name, entries_max) in sizes {
                loader.map_max_entries(name, *entries_max);
            }
        } else {
            let is_large = |shape: &Shape| !shape.is_ring() && shape.entries_max > PRIVATE_ENTRIES_MAX;
            for (name, _) in shapes.iter().filter(|(_, shape)| is_large(shape)) {
                loader.map_max_entries(name, PRIVATE_ENTRIES_MAX);
            }
        }
        let mut ebpf = loader.load(object).map_err(|source| KernelError::Load { source: Box::new(source) })?;
        let refused = load_programs(&mut ebpf, wanted)?;
        Ok(Self { ebpf, refused, wanted })
    }

    /// What this kernel lacks.
    pub fn lacking(&self) -> Lacking {
        Lacking::of(self.refused.iter().map(|refused| refused.program.as_str()))
    }

    /// Puts the program of the sockhash in place. It stays when this process ends, as long as the map is pinned.
    pub fn attach_shortcut(&mut self) -> Result<(), KernelError> {
        if self.lacking().has(Part::Shortcut) {
            return Ok(());
        }
        let map = self.ebpf.map(SHORTCUT_MAP).ok_or(KernelError::NoMap { name: SHORTCUT_MAP })?;
        let fd = aya::maps::SockHash::<_, u64>::try_from(map)
            .and_then(|map| map.fd().try_clone().map_err(aya::maps::MapError::IoError))
            .map_err(|source| KernelError::Map { name: SHORTCUT_MAP, source: Box::new(source) })?;
        let failed = |source| KernelError::Attach {
            hook: SHORTCUT_PROGRAM.into(),
            to: SHORTCUT_MAP.into(),
            source: Box::new(source),
        };
        let program: &mut SkMsg = self.program(SHORTCUT_PROGRAM)?.try_into().map_err(failed)?;
        let link = program.attach(&fd).map_err(failed)?;
        // aya would detach it on drop (trap T39), and the kernel does so when the last descriptor of the map is closed.
        std::mem::forget(program.take_link(link).map_err(failed)?);
        Ok(())
    }

    /// The programs that are attached to cgroups; they outlive the loaded object.
    pub fn hooks(&self) -> Result<Hooks, KernelError> {
        let (mut programs, lacking) = (HashMap::new(), self.lacking());
        let is_loaded = |name: &str| (self.wanted)(name) && !lacking.has_program(name);
        for (name, program) in self.ebpf.programs().filter(|(name, _)| is_loaded(name)) {
            let fd = program.fd().and_then(|fd| fd.try_clone().map_err(Into::into));
            let fd = fd.map_err(|source| KernelError::Program { hook: name.to_owned(), source: Box::new(source) })?;
            programs.insert(
                name.to_owned(),
                fd.as_fd().try_clone_to_owned().map_err(|source| KernelError::Program {
                    hook: name.to_owned(),
                    source: Box::new(source.into()),
                })?,
            );
        }
        Ok(Hooks::new(programs))
    }

    /// The same of a program's own, to be run or attached by itself.
    pub fn descriptor(&mut self, name: &str) -> Result<OwnedFd, KernelError> {
        let fd = self.program(name)?.fd().and_then(|fd| fd.as_fd().try_clone_to_owned().map_err(Into::into));
        fd.map_err(|source| KernelError::Program { hook: name.into(), source: Box::new(source) })
    }

    fn program(&mut self, name: &str) -> Result<&mut Program, KernelError> {
        self.ebpf.program_mut(name).ok_or_else(|| KernelError::NoProgram { name: name.to_owned() })
    }
}

/// Loads every program that is wanted, also behind one that is refused: what this kernel lacks is told whole. The verifier takes a tenth of a second for
/// each of the large ones, and much longer beside a load that fills the processors: several are loaded at a time.
fn load_programs(ebpf: &mut Ebpf, wanted: Wanted) -> Result<Vec<Refused>, KernelError> {
    let at_a_time = thread::available_parallelism().map_or(1, usize::from).min(LOADED_AT_A_TIME_MAX);
    let programs = Mutex::new(ebpf.programs_mut().filter(|(name, _)| wanted(name)));
    let next = || programs.lock().unwrap_or_else(PoisonError::into_inner).next();
    let load = || iter::from_fn(next).filter_map(|(name, program)| Some((name, load_program(name, program).err()?)));
    let failed: Vec<_> = thread::scope(|scope| {
        let loaders: Vec<_> = (0..at_a_time).map(|_| scope.spawn(|| load().collect::<Vec<_>>())).collect();
        let joined =
            loaders.into_iter().map(|loader| loader.join().unwrap_or_else(|panic| panic::resume_unwind(panic)));
        joined.flatten().collect()
    });
    let mut refused = Vec::new();
    for (name, error) in failed {
        tracing::debug!(program = name, %error, "a program is refused");
        refused.push(match Part::of(name) {
            // For whatever reason: the rest works.
            Some(_) => Refused::for_any_reason(name, &error),
            None => Refused::read(name, error)
                .map_err(|source| KernelError::Program { hook: name.to_owned(), source: Box::new(source) })?,
        });
    }
    refused.sort_by(|one, other| one.program.cmp(&other.program));
    if refused.iter().all(|refused| Part::of(&refused.program).is_some()) {
        return Ok(refused);
    }
    Err(KernelError::Lacks { refused })
}

/// A copy of the object of which only the program of the sk_lookup hook is loaded, for one network namespace; on the maps pinned in `maps`.
pub fn steering(maps: &Path, netns: u64) -> Result<Ebpf, KernelError> {
    let object = OBJECT.ok_or(KernelError::NotBuilt)?;
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    for name in MAPS.iter().copied().chain([SHORTCUT_MAP]) {
        loader.map_pin_path(name, maps.join(name));
    }
    loader.override_global(STEERING_NETNS, &netns, true);
    let mut ebpf = loader.load(object).map_err(|source| KernelError::Load { source: Box::new(source) })?;
    memory::forget(object);
    let program = ebpf.program_mut(STEERING).ok_or_else(|| KernelError::NoProgram { name: STEERING.into() })?;
    load_program(STEERING, program)
        .map_err(|source| KernelError::Program { hook: STEERING.into(), source: Box::new(source) })?;
    Ok(ebpf)
}

/// Whether the kernel runs loops for programs: then the verifier looks at them once.
fn has_loop() -> bool {
    is_helper_supported(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_loop).unwrap_or(false)
}

fn load_program(name: &str, program: &mut Program) -> Result<(), ProgramError> {
    uninterrupted(|| verify(name, program))
}

/// A signal of this process that comes while the verifier is at work makes it give up: as libbpf does, it is asked again.
fn uninterrupted(mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    for _ in 1..LOAD_TRIES_MAX {
        match load() {
            Err(ProgramError::LoadError { io_error, .. }) if io_error.kind() == io::ErrorKind::WouldBlock => {}
            loaded => return loaded,
        }
    }
    load()
}

fn verify(name: &str, program: &mut Program) -> Result<(), ProgramError> {
    let began = Instant::now();
    match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::SkMsg(program) => program.load(),
        Program::SocketFilter(program) => program.load(),
        Program::SkLookup(program) => program.load(),
        Program::CgroupSockopt(program) => program.load(),
        // The object has no other kind; a new one is added here.
        _ => Err(ProgramError::UnexpectedProgramType),
    }?;
    let looked_at = program.info().ok().and_then(|info| info.verified_instruction_count());
    tracing::debug!(program = name, instructions = looked_at, elapsed = ?began.elapsed(), "verified");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_that_signals_interrupt_is_tried_a_few_times_and_no_other() {
        let tries = |kind: io::ErrorKind, failing: usize| {
            let mut tried = 0;
            let loaded = uninterrupted(|| {
                tried += 1;
                let verifier_log = aya_obj::VerifierLog::new(String::new());
                let failed = ProgramError::LoadError { io_error: kind.into(), verifier_log };
                if tried > failing { Ok(()) } else { Err(failed) }
            });
            (loaded.is_ok(), tried)
        };
        assert_eq!(tries(io::ErrorKind::WouldBlock, 2), (true, 3));
        assert_eq!(tries(io::ErrorKind::WouldBlock, 9), (false, LOAD_TRIES_MAX));
        assert_eq!(tries(io::ErrorKind::PermissionDenied, 2), (false, 1));
    }

    #[test]
    fn the_verifier_takes_the_same_programs_where_it_must_follow_every_turn_of_their_loops() {
        if OBJECT.is_none() || !rustix::process::geteuid().is_root() {
            return eprintln!("skipped: only root loads programs, and only if they have been built");
        }
        let refused = |has_loop| {
            let loaded = Loaded::with(None, all, has_loop).unwrap();
            loaded.refused.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(refused(false), refused(has_loop()));
    }
}
