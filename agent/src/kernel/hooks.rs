//! The programs of the kernel half once they are loaded, and the cgroups they are attached to by links, pinned or not.
//!
//! Programs are kept as descriptors, so that cgroups that come later can be attached, too, long after the object was loaded. A hook whose
//! program this kernel refused, and that the agent does without, is attached nowhere.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use super::{KernelError, alone, cgroup, inbound, parts::Part, pins, sys};

/// What the programs of one cgroup get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// What they dial is captured; whether their sockets may be enrolled in the shortcut.
    Captured { shortcut: bool },
    /// What they dial passes, and their sockets are not enrolled, whatever a cgroup further up says.
    LeftOut,
    /// What the self-test dials, of one family of addresses, is captured.
    Tried,
    /// No longer captured, but sockets that were captured may be open: they are served to their end.
    Leaving,
}

/// Name of the program, and of its hook, which its pin is named after.
type Hook = (&'static str, &'static str);

/// What serves sockets that were captured, besides what watches them.
const SERVING: [Hook; 5] = [
    ("released", "sock_release"),
    ("peer_v4", "getpeername4"),
    ("peer_v6", "getpeername6"),
    ("receive_v4", "recvmsg4"),
    ("receive_v6", "recvmsg6"),
];
/// What captures: attached last, so that nothing is captured before the others are there, and taken away first.
const CAPTURING: [Hook; 4] =
    [("send_v4", "sendmsg4"), ("send_v6", "sendmsg6"), ("dial_v4", "connect4"), ("dial_v6", "connect6")];
/// Those of a cgroup that is left out of what is captured around it.
const PASSING: [Hook; 4] = [
    ("pass_send_v4", "sendmsg4"),
    ("pass_send_v6", "sendmsg6"),
    ("pass_dial_v4", "connect4"),
    ("pass_dial_v6", "connect6"),
];
/// What watches sockets, with the shortcut and without.
const WATCHING: Hook = ("allow_shortcut", "sockops");
const WATCHING_ONLY: Hook = ("deny_shortcut", "sockops");

/// What the self-test tries.
const TRIED: [Hook; 7] = [
    WATCHING,
    ("released", "sock_release"),
    ("peer_v4", "getpeername4"),
    ("receive_v4", "recvmsg4"),
    ("send_v4", "sendmsg4"),
    ("dial_v4", "connect4"),
    ANSWERING,
];

/// What answers `SO_ORIGINAL_DST`: attached while some service tells its endpoints what was dialled, since it is asked for every option
/// of every socket.
const ANSWERING: Hook = ("ask_option", "getsockopt");

/// `enum bpf_attach_type` of `include/uapi/linux/bpf.h`, by the names of hooks.
const ATTACH_TYPES: &[(&str, u32)] = &[
    ("sockops", 3),
    ("connect4", 10),
    ("connect6", 11),
    ("sendmsg4", 14),
    ("sendmsg6", 15),
    ("recvmsg4", 19),
    ("recvmsg6", 20),
    ("getpeername4", 29),
    ("getsockopt", 21),
    ("getpeername6", 30),
    ("sock_release", 34),
];

impl Policy {
    /// Whether it attaches this program.
    pub fn has(self, program: &str) -> bool {
        self.hooks().iter().any(|(name, _)| *name == program)
    }

    fn hooks(self) -> Vec<Hook> {
        match self {
            Self::Captured { shortcut: true } => [&[WATCHING], &SERVING[..], &CAPTURING].concat(),
            Self::Captured { shortcut: false } => [&[WATCHING_ONLY], &SERVING[..], &CAPTURING].concat(),
            Self::Tried => TRIED.to_vec(),
            Self::LeftOut => [&[WATCHING_ONLY], &PASSING[..]].concat(),
            Self::Leaving => [&[WATCHING_ONLY], &SERVING[..]].concat(),
        }
    }
}

/// The loaded programs.
#[derive(Debug)]
pub struct Hooks {
    programs: HashMap<String, OwnedFd>,
    answers_original: bool,
}

impl Hooks {
    /// Of programs by their names, but for those that the agent does without.
    pub fn new(programs: HashMap<String, OwnedFd>) -> Self {
        Self { programs, answers_original: false }
    }

    /// Whether captured programs that are attached from now on can ask what their clients dialled.
    pub fn answer_original(&mut self, answers: bool) -> bool {
        std::mem::replace(&mut self.answers_original, answers) != answers
    }

    /// Attaches to `cgroup` what its policy asks for; the links are the caller's.
    pub fn attach(&self, path: &Path, policy: Policy) -> Result<Vec<OwnedFd>, KernelError> {
        let cgroup = open(path)?;
        self.hooks(policy).into_iter().map(|hook| self.link(hook, path, cgroup.as_fd())).collect()
    }

    /// The same by links pinned in `links`, each as `<cgroup id>-<hook>`. One that is pinned already has its program replaced, atomically;
    /// one that the policy does not ask for is taken away.
    pub fn pin(&self, path: &Path, policy: Policy, links: &Path) -> Result<(), KernelError> {
        self.pin_all(path, &self.hooks(policy), links)
    }

    fn hooks(&self, policy: Policy) -> Vec<Hook> {
        let mut hooks = policy.hooks();
        if self.answers_original && matches!(policy, Policy::Captured { .. }) {
            hooks.push(ANSWERING);
        }
        let lacks = |program: &str| Part::of(program).is_some() && !self.programs.contains_key(program);
        hooks.retain(|(program, _)| !lacks(program));
        hooks
    }

    /// Attaches to the agent's own cgroup only what watches sockets: they are never captured but take part in the shortcut.
    pub fn pin_own(&self, path: &Path, links: &Path) -> Result<(), KernelError> {
        self.pin_all(path, &[WATCHING], links)
    }

    fn pin_all(&self, path: &Path, hooks: &[Hook], links: &Path) -> Result<(), KernelError> {
        let cgroup = open(path)?;
        let id = id(path)?;
        unpin_others(id, hooks, links)?;
        for &hook in hooks {
            let pin = links.join(format!("{id}-{}", hook.1));
            if self.replace(hook, &pin)? {
                continue;
            }
            let link = self.link(hook, path, cgroup.as_fd())?;
            sys::pin(link.as_fd(), &pin).map_err(|source| KernelError::Pin { path: pin, source })?;
        }
        Ok(())
    }

    /// Takes away every pinned link of a cgroup, by its id: the cgroup itself may be gone.
    pub fn unpin(&self, id: u64, links: &Path) -> Result<(), KernelError> {
        ATTACH_TYPES.iter().try_for_each(|(hook, _)| unpin(&links.join(format!("{id}-{hook}"))))
    }

    /// Keeps of a cgroup that is gone what serves the sockets that it left behind: closed by their programs, or handed to others, they go
    /// on under its hooks. When the last one ends the kernel detaches the links (trap T36), and their pins go with the next call. Whether
    /// any are left.
    pub fn outlive(&self, id: u64, links: &Path) -> Result<bool, KernelError> {
        let hooks = Policy::Leaving.hooks();
        unpin_others(id, &hooks, links)?;
        let mut left = false;
        for hook in hooks {
            left |= self.replace(hook, &links.join(format!("{id}-{}", hook.1)))?;
        }
        Ok(left)
    }

    fn link(&self, (program, hook): Hook, path: &Path, cgroup: BorrowedFd<'_>) -> Result<OwnedFd, KernelError> {
        sys::attach(self.program(program)?, cgroup, attach_type(hook)).map_err(|source| {
            let (hook_type, hook, to) = (attach_type(hook), hook.into(), path.display().to_string());
            let is_refused = source.raw_os_error() == Some(libc::EPERM);
            match is_refused.then(|| alone::find(path, hook_type)).flatten() {
                Some(by) => KernelError::Alone { hook, to, by },
                None => KernelError::Attach { hook, to, source: Box::new(source) },
            }
        })
    }

    /// Puts our program behind the link pinned at `pin`. False: there is none, or its cgroup is gone (trap T36) and the pin with it.
    fn replace(&self, (program, _): Hook, pin: &Path) -> Result<bool, KernelError> {
        let Ok(link) = sys::pinned(pin) else { return Ok(false) };
        if sys::update_link(link.as_fd(), self.program(program)?).is_ok() {
            return Ok(true);
        }
        let _ = fs::remove_file(pin);
        Ok(false)
    }

    fn program(&self, name: &str) -> Result<BorrowedFd<'_>, KernelError> {
        let program = self.programs.get(name);
        program.map(OwnedFd::as_fd).ok_or_else(|| KernelError::NoProgram { name: name.to_owned() })
    }
}

/// Whether what watches the agent's own cgroup, of this id, is pinned: it is from the agent's start to its detachment.
pub fn is_own_pinned(id: u64, links: &Path) -> bool {
    links.join(format!("{id}-{}", WATCHING.1)).exists()
}

/// The ids of cgroups that have pinned links. A link that this agent does not know of is taken away.
pub fn pinned(links: &Path) -> Result<HashSet<u64>, KernelError> {
    let failed = |source| KernelError::Pin { path: links.into(), source };
    let mut ids = HashSet::new();
    for entry in fs::read_dir(links).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        if name.to_str().is_some_and(inbound::is_pin) {
            continue;
        }
        let parts = name.to_str().and_then(|name| name.split_once('-'));
        match parts.filter(|(_, hook)| is_known(hook)).and_then(|(id, _)| id.parse::<u64>().ok()) {
            Some(id) => {
                ids.insert(id);
            }
            None => unpin(&entry.path())?,
        }
    }
    Ok(ids)
}

/// Takes away every pinned link by which sockets dial; what serves those that have dialled stays.
pub fn unpin_dialling(links: &Path) -> Result<(), KernelError> {
    let failed = |source| KernelError::Pin { path: links.into(), source };
    for entry in fs::read_dir(links).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let hook = name.to_str().and_then(|name| name.split_once('-')).map(|(_, hook)| hook);
        if hook.is_some_and(|hook| CAPTURING.iter().any(|(_, dialling)| *dialling == hook)) {
            unpin(&entry.path())?;
        }
    }
    Ok(())
}

/// Takes away the pinned links of a cgroup, but for those at these hooks.
fn unpin_others(id: u64, hooks: &[Hook], links: &Path) -> Result<(), KernelError> {
    let others = ATTACH_TYPES.iter().filter(|(hook, _)| hooks.iter().all(|(_, asked)| asked != hook));
    others.into_iter().try_for_each(|(hook, _)| unpin(&links.join(format!("{id}-{hook}"))))
}

/// Takes away a pinned link, if there is one.
fn unpin(pin: &Path) -> Result<(), KernelError> {
    match pins::remove_link(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(KernelError::Pin { path: pin.into(), source: error })
        }
        _ => Ok(()),
    }
}

fn is_known(hook: &str) -> bool {
    ATTACH_TYPES.iter().any(|(known, _)| *known == hook)
}

fn attach_type(hook: &str) -> u32 {
    ATTACH_TYPES.iter().find(|(name, _)| *name == hook).map_or(u32::MAX, |(_, number)| *number)
}

fn open(path: &Path) -> Result<fs::File, KernelError> {
    cgroup::open(path).map_err(failed(path))
}

fn id(path: &Path) -> Result<u64, KernelError> {
    cgroup::id(path).map_err(failed(path))
}

fn failed(path: &Path) -> impl Fn(io::Error) -> KernelError {
    let path: PathBuf = path.into();
    move |source| KernelError::Cgroup { path: path.clone(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_hook_has_its_kind() {
        for policy in [
            Policy::Captured { shortcut: true },
            Policy::Captured { shortcut: false },
            Policy::LeftOut,
            Policy::Tried,
            Policy::Leaving,
        ] {
            for (program, hook) in policy.hooks() {
                assert_ne!(attach_type(hook), u32::MAX, "{program} at {hook}");
            }
        }
    }
}
