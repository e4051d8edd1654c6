//! Who is in the way of a hook: a program of somebody else, on the cgroup or above it, that was attached to stand alone (trap T32).
//!
//! The kernel then refuses all others with EPERM, and says no more. Nothing is changed here: whose the program is, and whether it may go,
//! nobody here knows.

use std::{
    fmt,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use super::{cgroup, sys};

/// `BPF_F_ALLOW_OVERRIDE`: a program below takes this one's place.
const ALLOW_OVERRIDE: u32 = 1;
/// `BPF_F_ALLOW_MULTI`: there may be others.
const ALLOW_MULTI: u32 = 2;

/// A program that stands alone.
#[derive(Debug, PartialEq, Eq)]
pub struct Alone {
    id: u32,
    name: Option<String>,
    cgroup: PathBuf,
}

impl fmt::Display for Alone {
    fn fmt(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name.as_deref().filter(|name| !name.is_empty()).unwrap_or("without a name");
        write!(text, "program {} ({name}) on {}", self.id, self.cgroup.display())
    }
}

/// Who keeps others from a cgroup at a hook (`enum bpf_attach_type`), if somebody does.
pub fn find(path: &Path, attach_type: u32) -> Option<Alone> {
    let alone = |cgroup: &Path, allowed: u32| {
        let (id, flags) = attached(cgroup, attach_type)?;
        let alone = Alone { id, name: sys::program_name(id).ok(), cgroup: cgroup.into() };
        Some((flags & allowed == 0).then_some(alone))
    };
    // The nearest above decides for those further up; outside of the mount there is nothing to ask.
    alone(path, ALLOW_MULTI)
        .flatten()
        .or_else(|| path.ancestors().skip(1).find_map(|above| alone(above, ALLOW_MULTI | ALLOW_OVERRIDE)).flatten())
}

/// The program on this cgroup, if there is one, with its flags.
fn attached(path: &Path, attach_type: u32) -> Option<(u32, u32)> {
    let cgroup = cgroup::open(path).ok()?;
    sys::attached(cgroup.as_fd(), attach_type).ok().flatten()
}
