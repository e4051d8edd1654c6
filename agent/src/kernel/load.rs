//! Loads the kernel half's object, with its maps pinned or private, and attaches its programs.

use std::{
    fs,
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
};

use aya::{
    Ebpf, EbpfLoader,
    programs::{CgroupAttachMode, CgroupSockAddr, Program, SkMsg, SockOps, links::FdLink},
};

use super::{KernelError, abi, pins, sys};

/// The kernel half, unless this binary was built without it. Aligned as aya wants it.
#[cfg(sockway_ebpf)]
pub const OBJECT: Option<&[u8]> = Some(aya::include_bytes_aligned!(env!("SOCKWAY_EBPF_OBJECT")));
/// This binary was built without the kernel half.
#[cfg(not(sockway_ebpf))]
pub const OBJECT: Option<&[u8]> = None;

/// Every map of the object that is kept when the agent is gone.
pub const MAPS: [&str; 22] = [
    "SETTINGS",
    "HEARTBEAT",
    "SERVICES",
    "SLOTS",
    "CURSORS",
    "ENDPOINT_STATS",
    "LISTENERS",
    "LISTENER_TAGS",
    "CONNS",
    "CONVERSATIONS",
    "ORIGINALS",
    "COUNTERS",
    "EVENTS",
    "EVENTS_SENT",
    "SYNS",
    "MEETINGS",
    "HALVES",
    "WATCH",
    "FLOWS",
    "REPORTED",
    "NAMES",
    "LATENCIES",
];
/// Those of them whose size costs time and memory even when they are empty.
const LARGE_MAPS: [&str; 10] = [
    "SERVICES",
    "SLOTS",
    "CURSORS",
    "ENDPOINT_STATS",
    "LISTENERS",
    "ORIGINALS",
    "SYNS",
    "MEETINGS",
    "NAMES",
    "LATENCIES",
];
/// The sockhash, apart because a program is attached to it.
pub const SHORTCUT_MAP: &str = "SHORTCUT";

/// The hooks on addresses: name of the program, and of its pin.
const ADDRESS_HOOKS: [(&str, &str); 8] = [
    ("peer_v4", "getpeername4"),
    ("peer_v6", "getpeername6"),
    ("receive_v4", "recvmsg4"),
    ("receive_v6", "recvmsg6"),
    ("send_v4", "sendmsg4"),
    ("send_v6", "sendmsg6"),
    ("dial_v4", "connect4"),
    ("dial_v6", "connect6"),
];

/// A loaded object.
#[derive(Debug)]
pub struct Loaded {
    /// The maps and programs.
    pub ebpf: Ebpf,
}

impl Loaded {
    /// Loads the object. With `pins`, maps that are pinned there are taken over and new ones are pinned.
    pub fn new(pins: Option<&Path>) -> Result<Self, KernelError> {
        let object = OBJECT.ok_or(KernelError::NotBuilt)?;
        abi::check_object(object)?;
        let mut loader = EbpfLoader::new();
        // Nothing in the object is relocated by the kernel's BTF, and parsing it takes a hundred milliseconds.
        loader.btf(None);
        if let Some(pins) = pins {
            for name in MAPS.into_iter().chain([SHORTCUT_MAP]) {
                loader.map_pin_path(name, pins.join(name));
            }
        } else {
            // A private copy serves a handful of sockets: large tables would cost milliseconds to make and free.
            for name in LARGE_MAPS {
                loader.map_max_entries(name, 1024);
            }
        }
        let mut ebpf = loader.load(object).map_err(|source| KernelError::Load { source: Box::new(source) })?;
        for (name, program) in ebpf.programs_mut() {
            load_program(program)
                .map_err(|source| KernelError::Program { hook: name.to_owned(), source: Box::new(source) })?;
        }
        Ok(Self { ebpf })
    }

    /// Puts the program of the sockhash in place. It stays when this process ends, as long as the map is pinned.
    pub fn attach_shortcut(&mut self) -> Result<(), KernelError> {
        let map = self.ebpf.map(SHORTCUT_MAP).ok_or(KernelError::NoMap { name: SHORTCUT_MAP })?;
        let fd = aya::maps::SockHash::<_, u64>::try_from(map)
            .and_then(|map| map.fd().try_clone().map_err(aya::maps::MapError::IoError))
            .map_err(|source| KernelError::Map { name: SHORTCUT_MAP, source: Box::new(source) })?;
        let failed = |source| KernelError::Attach {
            hook: "send_direct".into(),
            to: SHORTCUT_MAP.into(),
            source: Box::new(source),
        };
        let program: &mut SkMsg = self.program("send_direct")?.try_into().map_err(failed)?;
        let link = program.attach(&fd).map_err(failed)?;
        // aya would detach it on drop (trap T39), and the kernel does so when the last descriptor of the map is closed.
        std::mem::forget(program.take_link(link).map_err(failed)?);
        Ok(())
    }

    /// Attaches every cgroup hook to `cgroup`; `allow` chooses the variant for the shortcut. The dialling hooks come last, so that no
    /// connection is captured before the others are there. With `pins` each link is pinned under `<cgroup id>-<hook>`, and one that
    /// is pinned already has its program replaced, atomically.
    pub fn attach(&mut self, cgroup: &Path, allow: bool, pins: Option<&Path>) -> Result<Vec<FdLink>, KernelError> {
        let mut links = self.attach_sockets(cgroup, allow, pins)?;
        links.extend(self.attach_hooks(cgroup, &ADDRESS_HOOKS, pins)?);
        Ok(links)
    }

    /// Attaches to `cgroup` only what watches sockets: for the agent's own, which are never captured but take part in the shortcut.
    pub fn attach_sockets(
        &mut self,
        cgroup: &Path,
        allow: bool,
        pins: Option<&Path>,
    ) -> Result<Vec<FdLink>, KernelError> {
        let program = if allow { "allow_shortcut" } else { "deny_shortcut" };
        self.attach_hooks(cgroup, &[(program, "sockops")], pins)
    }

    fn attach_hooks(
        &mut self,
        cgroup: &Path,
        hooks: &[(&'static str, &str)],
        pins: Option<&Path>,
    ) -> Result<Vec<FdLink>, KernelError> {
        let file = super::cgroup::open(cgroup).map_err(|source| KernelError::Cgroup { path: cgroup.into(), source })?;
        let id = super::cgroup::id(cgroup).map_err(|source| KernelError::Cgroup { path: cgroup.into(), source })?;
        let mut links = Vec::new();
        for &(program, pin) in hooks {
            let path = pins.map(|pins| pins.join(format!("{id}-{pin}")));
            if let Some(path) = &path
                && self.replace(program, path)?
            {
                continue;
            }
            let failed =
                |source| KernelError::Attach { hook: program.into(), to: cgroup.display().to_string(), source };
            let link = attach_to_cgroup(self.program(program)?, file.as_fd()).map_err(failed)?;
            match path {
                Some(path) => {
                    drop(link.pin(&path).map_err(|source| KernelError::PinLink { path, source: Box::new(source) })?)
                }
                None => links.push(link),
            }
        }
        Ok(links)
    }

    /// Puts our program behind the link pinned at `path`. False: there is none, or its cgroup is gone (trap T36) and the pin with it.
    fn replace(&mut self, program: &str, path: &Path) -> Result<bool, KernelError> {
        let Ok(link) = sys::pinned(path) else { return Ok(false) };
        let program_fd = self
            .program(program)?
            .fd()
            .and_then(|fd| fd.try_clone().map_err(Into::into))
            .map_err(|source| KernelError::Program { hook: program.into(), source: Box::new(source) })?;
        if sys::update_link(link.as_fd(), program_fd.as_fd()).is_ok() {
            return Ok(true);
        }
        let _ = fs::remove_file(path);
        Ok(false)
    }

    fn program(&mut self, name: &str) -> Result<&mut Program, KernelError> {
        self.ebpf.program_mut(name).ok_or_else(|| KernelError::NoProgram { name: name.to_owned() })
    }
}

/// Removes the pinned links of cgroups that are no longer captured.
pub fn unpin_others(links: &Path, kept: &[u64]) -> std::io::Result<()> {
    for entry in fs::read_dir(links)? {
        let entry = entry?;
        let name = entry.file_name();
        let id = name.to_str().and_then(|name| name.split_once('-')).and_then(|(id, _)| id.parse::<u64>().ok());
        if id.is_none_or(|id| !kept.contains(&id)) {
            pins::remove_link(&entry.path())?;
        }
    }
    Ok(())
}

fn load_program(program: &mut Program) -> Result<(), aya::programs::ProgramError> {
    match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::SkMsg(program) => program.load(),
        // The object has no other kind; a new one is added here.
        _ => Err(aya::programs::ProgramError::UnexpectedProgramType),
    }
}

fn attach_to_cgroup(
    program: &mut Program,
    cgroup: BorrowedFd<'_>,
) -> Result<FdLink, Box<dyn std::error::Error + Send + Sync>> {
    // A link of a cgroup is always "multi", whatever another has on this cgroup, above or below it (trap T32), and the kernel refuses
    // flags that say so (`cgroup_bpf_link_attach`); aya's name for "no flags" is `Single`.
    let mode = CgroupAttachMode::Single;
    Ok(match program {
        Program::CgroupSockAddr(program) => {
            let program: &mut CgroupSockAddr = program;
            let link = program.attach(cgroup, mode)?;
            program.take_link(link)?.try_into()?
        }
        Program::SockOps(program) => {
            let program: &mut SockOps = program;
            let link = program.attach(cgroup, mode)?;
            program.take_link(link)?.try_into()?
        }
        _ => return Err(aya::programs::ProgramError::UnexpectedProgramType.into()),
    })
}
