//! Where programs and maps are kept in bpffs, so that they outlive the agent: `<bpffs>/sockway/<instance>/{maps,links}`.

use std::{
    ffi::CString,
    fs, io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use super::{KernelError, carry::ASIDE, sys};

/// The pins of one instance.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
}

/// `BPF_FS_MAGIC` of `include/uapi/linux/magic.h`.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

impl Pins {
    /// The pins of `instance` below `bpffs`. Touches nothing.
    pub fn new(bpffs: &Path, instance: &str) -> Self {
        Self { root: bpffs.join("sockway").join(instance) }
    }

    /// Makes the directories, and mounts bpffs first where it is not.
    pub fn create(&self, bpffs: &Path) -> Result<(), KernelError> {
        if !is_bpffs(bpffs) {
            mount(bpffs).map_err(|source| KernelError::Bpffs { path: bpffs.to_path_buf(), source })?;
            tracing::info!(path = %bpffs.display(), "bpffs mounted");
        }
        for directory in [self.maps(), self.links()] {
            fs::create_dir_all(&directory).map_err(|source| KernelError::Pin { path: directory, source })?;
        }
        Ok(())
    }

    /// Where everything is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where is what was set aside when a layout changed.
    pub fn aside(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        let is_aside = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(ASIDE));
        entries.map(|entry| entry.path()).filter(is_aside).collect()
    }

    /// Where maps are pinned.
    pub fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    /// Where links are pinned.
    pub fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// Whether anything of this instance is pinned.
    pub fn exist(&self) -> bool {
        let has_any = |path: &Path| fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some());
        has_any(&self.maps()) || has_any(&self.links()) || !self.aside().is_empty()
    }

    /// Takes everything away, and no hook runs when it returns: links first, so that no program runs without its maps. How many pins
    /// there were.
    pub fn remove(&self) -> io::Result<usize> {
        let aside: usize = self.aside().iter().map(|aside| remove_aside(aside)).sum::<io::Result<usize>>()?;
        Ok(aside + remove_aside(&self.root)?)
    }
}

/// What a directory of pins holds, in the order in which it is taken away: links, maps, and maps that only changed their size.
const PARTS: [&str; 3] = ["links", "maps", RESIZED];
/// Where maps stand aside that only changed their size.
pub const RESIZED: &str = "resized";

/// Takes away what is pinned in one directory, and the directory. How many pins there were.
pub fn remove_aside(root: &Path) -> io::Result<usize> {
    let mut removed = 0;
    for part in PARTS {
        let directory = root.join(part);
        let entries = match fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let path = entry?.path();
            if part == PARTS[0] {
                remove_link(&path)?
            } else {
                fs::remove_file(&path)?
            }
            removed += 1;
        }
        fs::remove_dir(&directory)?;
    }
    match fs::remove_dir(root) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(removed),
    }
}

/// Takes a pinned link out of its hook and its pin away. One that cannot be detached (its cgroup is gone) goes with its pin.
pub fn remove_link(path: &Path) -> io::Result<()> {
    if let Err(error) = sys::pinned(path).and_then(|link| sys::detach_link(link.as_fd())) {
        tracing::debug!(%error, pin = %path.display(), "a link was not detached before its pin was removed");
    }
    fs::remove_file(path)
}

/// Whether a BPF file system is mounted at `path`.
pub fn is_bpffs(path: &Path) -> bool {
    let Ok(name) = c_path(path) else { return false };
    // SAFETY: all zero is a valid `statfs`, which the call fills; the path is a C string.
    unsafe {
        let mut info: libc::statfs = std::mem::zeroed();
        libc::statfs(name.as_ptr(), &raw mut info) == 0 && info.f_type as i64 == BPF_FS_MAGIC
    }
}

fn mount(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    let name = c_path(path)?;
    // SAFETY: all arguments are C strings or null.
    let result = unsafe { libc::mount(c"bpf".as_ptr(), name.as_ptr(), c"bpf".as_ptr(), 0, std::ptr::null()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn c_path(path: &Path) -> io::Result<CString> {
    use std::os::unix::ffi::OsStrExt as _;
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}
