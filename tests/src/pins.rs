//! What an agent has pinned in bpffs, seen from outside.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

/// `BPF_MAP_LOOKUP_ELEM`, `BPF_MAP_UPDATE_ELEM`, `BPF_OBJ_GET` of `enum bpf_cmd`.
const LOOKUP: libc::c_long = 1;
const UPDATE: libc::c_long = 2;
const OBJ_GET: libc::c_long = 7;

/// Where an instance's pins are.
pub fn directory(instance: &str) -> PathBuf {
    PathBuf::from("/sys/fs/bpf/sockway").join(instance)
}

/// Every pinned object of an instance, wherever below its directory.
pub fn all(instance: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![directory(instance)];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() { open.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}

/// Changes the first word of an array's entry 0: of the settings, that is the ABI version of who wrote them.
pub fn change_first_word(pin: &Path, value_bytes: usize, change: impl FnOnce(u32) -> u32) -> io::Result<()> {
    let map = open(pin)?;
    let mut value = vec![0_u8; value_bytes];
    element(LOOKUP, &map, &mut value)?;
    let word = u32::from_ne_bytes([value[0], value[1], value[2], value[3]]);
    value[..4].copy_from_slice(&change(word).to_ne_bytes());
    element(UPDATE, &map, &mut value)
}

/// `union bpf_attr` for `BPF_OBJ_GET`.
#[repr(C)]
struct ObjGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// `union bpf_attr` for the map element commands.
#[repr(C)]
struct Element {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

fn open(pin: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let attr = ObjGet { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: the attribute has the command's layout, and `path` lives until the call returns.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, OBJ_GET, &raw const attr, size_of::<ObjGet>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that the kernel has just made for this call; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn element(command: libc::c_long, map: &OwnedFd, value: &mut [u8]) -> io::Result<()> {
    let key = 0_u32;
    let attr = Element {
        map_fd: map.as_raw_fd() as u32,
        padding: 0,
        key: (&raw const key) as u64,
        value: value.as_mut_ptr() as u64,
        flags: 0,
    };
    // SAFETY: the attribute has the commands' layout; key and value live until the call returns, and the caller gives the value's size.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const attr, size_of::<Element>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
