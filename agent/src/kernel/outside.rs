//! What `ip netns exec` hides: in a mount namespace of its own it puts a new /sys over the old one, and so over bpffs and cgroup v2. The agent
//! sees them as before, and so does whoever has begun this: who may look through their eyes finds them.

use std::{
    fs, iter,
    path::{Component, Path, PathBuf},
};

use super::{cgroup, pins::is_bpffs};
use crate::config::Capture;

/// Most processes that are looked at from this one up: more stand above none.
const ANCESTORS_MAX: usize = 64;

/// Where to look for what is pinned and for cgroups: as configured; or where bpffs is hidden here, as the `agent` or an ancestor sees it.
pub fn look(capture: Capture, agent: Option<u32>) -> Capture {
    if is_bpffs(&capture.bpffs) {
        return capture;
    }
    let through = |pid: u32| Some((pid, seen(pid, &capture.bpffs))).filter(|(_, bpffs)| is_bpffs(bpffs));
    let Some((pid, bpffs)) = agent.into_iter().chain(ancestors()).find_map(through) else { return capture };
    let mount = capture.cgroup_mount.clone().or_else(|| cgroup::mount_of(&pid.to_string()));
    Capture { bpffs, cgroup_mount: mount.map(|mount| seen(pid, &mount)), ..capture }
}

/// Whether this process has other mounts than one of its ancestors has, or may not look at the nearest.
pub fn is_elsewhere() -> bool {
    let of = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let own = of(std::process::id());
    let mut above = ancestors().map(of).peekable();
    above.peek().is_some_and(Option::is_none) || above.flatten().any(|it| own.as_ref() != Some(&it))
}

/// A path as a process sees it.
fn seen(pid: u32, path: &Path) -> PathBuf {
    Path::new("/proc").join(pid.to_string()).join("root").join(path.strip_prefix("/").unwrap_or(path))
}

/// What a path is called there, if it is seen through a process; any other is called as it is.
pub fn named(path: &Path) -> PathBuf {
    let mut parts = path.components();
    let way = [parts.next(), parts.next(), parts.next(), parts.next()];
    let is_seen = matches!(way, [_, Some(Component::Normal(proc)), _, Some(Component::Normal(root))]
        if proc == "proc" && root == "root" && path.is_absolute());
    if is_seen { Path::new("/").join(parts) } else { path.to_owned() }
}

/// The processes above this one, nearest first.
fn ancestors() -> impl Iterator<Item = u32> {
    let above = |pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()?;
        (parent != 0).then_some(parent)
    };
    iter::successors(Some(std::process::id()), above).skip(1).take(ANCESTORS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_named_as_it_is_outside() {
        for path in ["/sys/fs/bpf/sockway", "/", "/proc/self"] {
            let path = Path::new(path);
            assert_eq!(named(&seen(7, path)), path);
            assert_eq!(named(path), path);
        }
        assert_eq!(ancestors().next(), Some(std::os::unix::process::parent_id()));
    }
}
