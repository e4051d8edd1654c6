//! Cgroup v2: where it is mounted (in hybrid mode too), a cgroup's id, and the agent's own cgroup.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use super::outside;

/// Where cgroup v2 is mounted, by `/proc/self/mounts`: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` in hybrid mode, or elsewhere.
pub fn mount() -> Option<PathBuf> {
    mount_of("self")
}

/// The same of another process.
pub(super) fn mount_of(process: &str) -> Option<PathBuf> {
    mount_in(&fs::read_to_string(format!("/proc/{process}/mounts")).ok()?)
}

fn mount_in(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (path, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path.replace("\\040", " ")))
    })
}

/// The path of a configured cgroup (`/` or `/name…`) below the mount.
pub fn below(mount: &Path, path: &Path) -> PathBuf {
    match path.strip_prefix("/") {
        Ok(relative) if relative.as_os_str().is_empty() => mount.to_path_buf(),
        Ok(relative) => mount.join(relative),
        Err(_) => mount.join(path),
    }
}

/// The id that `bpf_get_current_cgroup_id` gives: the inode number of the cgroup's directory.
pub fn id(path: &Path) -> io::Result<u64> {
    fs::metadata(path).map(|meta| meta.ino())
}

/// The path below `mount` of the cgroup with this id; `None` when it is gone. Needs CAP_DAC_READ_SEARCH.
pub fn path_of(mount: &Path, id: u64) -> Option<PathBuf> {
    /// `struct file_handle` of `include/linux/exportfs.h`, with the room that a handle of kernfs takes.
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        id: u64,
    }
    /// `FILEID_KERNFS` of `include/linux/exportfs.h`.
    const KERNFS: i32 = 0xfe;
    let directory = File::open(mount).ok()?;
    let mut handle = Handle { bytes: size_of::<u64>() as u32, kind: KERNFS, id };
    // SAFETY: the handle says how long it is; a non-negative result is a new descriptor, and ours.
    let found = unsafe {
        let fd = libc::open_by_handle_at(directory.as_raw_fd(), (&raw mut handle).cast(), libc::O_PATH);
        (fd >= 0).then(|| OwnedFd::from_raw_fd(fd))?
    };
    let path = fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd())).ok()?;
    // Of another mount namespace the link tells the path as that has it.
    let path = path.strip_prefix(mount).or_else(|_| path.strip_prefix(outside::named(mount))).ok()?;
    Some(Path::new("/").join(path))
}

/// Opens a cgroup to attach to.
pub fn open(path: &Path) -> io::Result<File> {
    File::open(path)
}

/// Makes a cgroup, unless it is there, and moves this process into it.
pub fn enter(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    fs::write(path.join("cgroup.procs"), std::process::id().to_string())
}

/// The cgroup that this process is in, below `mount`.
pub fn current(mount: &Path) -> io::Result<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    Ok(below(mount, Path::new(path)))
}

/// Where the cgroups of these ids are, of those that are.
pub fn paths(mount: &Path, ids: &HashSet<u64>) -> HashMap<u64, PathBuf> {
    let (mut found, mut open) = (HashMap::new(), vec![mount.to_path_buf()]);
    while let Some(path) = open.pop().filter(|_| found.len() < ids.len()) {
        if let Ok(id) = id(&path)
            && ids.contains(&id)
        {
            found.insert(id, path.clone());
        }
        let entries = fs::read_dir(&path).into_iter().flatten().flatten();
        open.extend(
            entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()),
        );
    }
    found
}

/// Every process in a cgroup and below it, but not in the cgroups of `left_out`. What vanishes meanwhile is left out.
pub fn processes(path: &Path, left_out: &[PathBuf], found: &mut Vec<u32>) {
    if left_out.iter().any(|left_out| left_out == path) {
        return;
    }
    if let Ok(list) = fs::read_to_string(path.join("cgroup.procs")) {
        found.extend(list.lines().filter_map(|line| line.parse::<u32>().ok()));
    }
    let Ok(entries) = fs::read_dir(path) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            processes(&entry.path(), left_out, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_in_hybrid_mode_too() {
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(mount_in(hybrid), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(mount_in("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n"), Some(PathBuf::from("/sys/fs/cgroup")));
        assert_eq!(mount_in("proc /proc proc rw 0 0\n"), None);
    }

    #[test]
    fn the_root_and_a_path_stand_below_the_mount() {
        let mount = Path::new("/sys/fs/cgroup");
        assert_eq!(below(mount, Path::new("/")), mount);
        assert_eq!(below(mount, Path::new("/a/b")), Path::new("/sys/fs/cgroup/a/b"));
    }
}
