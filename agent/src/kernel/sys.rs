//! The few `bpf(2)` calls that aya 0.14 lacks: take an element in one call, update a cgroup link, storage of a socket by descriptor.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya::Pod;

const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_int = 21;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;

/// The arm of `union bpf_attr` that element calls use (`include/uapi/linux/bpf.h`).
#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    zero: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct ObjectAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

#[repr(C)]
struct LinkUpdateAttr {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

#[repr(C)]
struct LinkDetachAttr {
    link_fd: u32,
}

fn bpf<T>(command: libc::c_int, attr: &T) -> io::Result<RawFd> {
    // SAFETY: `attr` is one of the structs above, laid out as the kernel wants it for `command`, and lives through the call; the pointers
    // inside it are to live values of the sizes that the map was created with (the typed callers below see to it).
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as RawFd) }
}

/// Takes an element out of a hash map: what it was, or `None`. Needs Linux 5.14.
///
/// `K` and `V` must be the map's own key and value types.
pub fn take<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    read(BPF_MAP_LOOKUP_AND_DELETE_ELEM, map, key)
}

/// Reads an element; `V` must be the map's own value type (not of a per-CPU map).
pub fn lookup<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    read(BPF_MAP_LOOKUP_ELEM, map, key)
}

fn read<K: Pod, V: Pod>(command: libc::c_int, map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = std::mem::MaybeUninit::<V>::zeroed();
    let attr = ElementAttr {
        map_fd: map.as_raw_fd() as u32,
        zero: 0,
        key: std::ptr::from_ref(key) as u64,
        value: value.as_mut_ptr() as u64,
        flags: 0,
    };
    match bpf(command, &attr) {
        // SAFETY: the kernel has filled it; `Pod` types take every bit pattern.
        Ok(_) => Ok(Some(unsafe { value.assume_init() })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Puts `value` into a socket's storage.
pub fn store<V: Pod>(map: BorrowedFd<'_>, socket: BorrowedFd<'_>, value: &V) -> io::Result<()> {
    let key: i32 = socket.as_raw_fd();
    let attr = ElementAttr {
        map_fd: map.as_raw_fd() as u32,
        zero: 0,
        key: std::ptr::from_ref(&key) as u64,
        value: std::ptr::from_ref(value) as u64,
        flags: 0,
    };
    bpf(BPF_MAP_UPDATE_ELEM, &attr).map(|_| ())
}

/// Opens what is pinned at `path`.
pub fn pinned(path: &Path) -> io::Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let attr = ObjectAttr { pathname: name.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: a non-negative result is a new descriptor, and ours.
    bpf(BPF_OBJ_GET, &attr).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Puts another program behind a link, atomically: no connection falls between the two.
pub fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let attr = LinkUpdateAttr {
        link_fd: link.as_raw_fd() as u32,
        new_prog_fd: program.as_raw_fd() as u32,
        flags: 0,
        old_prog_fd: 0,
    };
    bpf(BPF_LINK_UPDATE, &attr).map(|_| ())
}

/// Takes a link's program out of its hook, at once: unlinking the last pin does so only some time after. Needs Linux 5.9.
pub fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    bpf(BPF_LINK_DETACH, &LinkDetachAttr { link_fd: link.as_raw_fd() as u32 }).map(|_| ())
}

/// A value that the kernel wrote into bytes; `None` if there are too few of them.
pub fn from_bytes<V: Pod>(bytes: &[u8]) -> Option<V> {
    // SAFETY: there are enough bytes, read unaligned; `Pod` types take every bit pattern.
    (bytes.len() >= size_of::<V>()).then(|| unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) })
}

/// Moves this thread, and nothing else of the process, into a network namespace.
pub fn enter_netns(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes a descriptor, and changes this thread only.
    match unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
