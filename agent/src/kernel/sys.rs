//! The few `bpf(2)` calls that aya 0.14 lacks: take an element in one call, make and update a cgroup link by descriptors alone, storage of
//! a socket by descriptor, a program without an object.

use std::{
    ffi::{CStr, CString},
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya::Pod;

const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_GET_NEXT_KEY: libc::c_int = 4;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_PROG_TEST_RUN: libc::c_int = 10;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_ENABLE_STATS: libc::c_int = 32;
const BPF_LINK_DETACH: libc::c_int = 34;
const BPF_PROG_TYPE_SOCKET_FILTER: u32 = 1;
/// Flag of an update: only where there is none.
const BPF_NOEXIST: u64 = 1;

/// The arm of `union bpf_attr` that element calls use (`include/uapi/linux/bpf.h`).
#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    zero: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The beginning of the arm that `BPF_PROG_LOAD` uses; the rest may be left out.
#[repr(C)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
}

#[repr(C)]
struct ObjectAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

#[repr(C)]
struct LinkCreateAttr {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
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

/// The beginning of the arm that `BPF_MAP_CREATE` uses; the rest may be left out.
#[repr(C)]
struct CreateAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

#[repr(C)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

#[repr(C)]
struct IdAttr {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

/// The beginning of the arm that `BPF_PROG_QUERY` uses; the rest may be left out.
#[repr(C)]
struct QueryAttr {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
}

#[repr(C)]
struct StatsAttr {
    kind: u32,
}

/// The beginning of `struct bpf_map_info`, which the kernel fills as far as there is room.
#[repr(C)]
#[derive(Default)]
struct MapInfo {
    map_type: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

/// The beginning of `struct bpf_prog_info`, up to what is read of it.
#[repr(C)]
struct ProgramInfo {
    before: [u64; 24],
    run_time_ns: u64,
    run_count: u64,
}

/// The beginning of `struct bpf_link_info`.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    link_type: u32,
    id: u32,
    prog_id: u32,
}

/// The beginning of `struct bpf_prog_info`, up to the name.
#[repr(C)]
struct ProgramName {
    before: [u64; 8],
    name: [u8; 16],
}

/// What a map was made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// `BPF_MAP_TYPE_…`.
    pub kind: u32,
    /// Size of a key.
    pub key_bytes: u32,
    /// Size of a value, on one CPU.
    pub value_bytes: u32,
    /// Entries that have room.
    pub entries_max: u32,
    /// `BPF_F_…`.
    pub flags: u32,
}

impl Shape {
    const HASH: u32 = 1;
    const PER_CPU_HASH: u32 = 5;
    const EVICTING_HASH: u32 = 9;
    const TRIE: u32 = 11;
    const RING: u32 = 27;
    const SOCK_HASH: u32 = 18;

    /// Whether it fills up: no array, and nothing that makes room by itself.
    pub fn is_hash(&self) -> bool {
        matches!(self.kind, Self::HASH | Self::PER_CPU_HASH | Self::TRIE | Self::SOCK_HASH)
    }

    /// Whether its entries can be copied into one of another size.
    pub fn can_be_copied(&self) -> bool {
        (self.is_hash() && !self.holds_sockets()) || self.kind == Self::EVICTING_HASH
    }

    /// Whether its size is in bytes.
    pub fn is_ring(&self) -> bool {
        self.kind == Self::RING
    }

    /// Whether it has a value for each CPU.
    pub fn is_per_cpu(&self) -> bool {
        self.kind == Self::PER_CPU_HASH
    }

    /// Whether its values are sockets.
    pub fn holds_sockets(&self) -> bool {
        self.kind == Self::SOCK_HASH
    }
}

#[repr(C)]
struct TestRunAttr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
}

fn bpf<T>(command: libc::c_int, attr: &T) -> io::Result<RawFd> {
    // SAFETY: `attr` is one of the structs above, laid out as the kernel wants it for `command`, and lives through the call; the pointers
    // inside it are to live values of the sizes that the map was created with (the typed callers below see to it).
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as RawFd) }
}

/// Reads an element; `V` must be the map's own value type (not of a per-CPU map).
pub fn lookup<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = std::mem::MaybeUninit::<V>::zeroed();
    let attr = ElementAttr {
        map_fd: map.as_raw_fd() as u32,
        zero: 0,
        key: std::ptr::from_ref(key) as u64,
        value: value.as_mut_ptr() as u64,
        flags: 0,
    };
    match bpf(BPF_MAP_LOOKUP_ELEM, &attr) {
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

/// Pins what a descriptor stands for at `path`.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let attr = ObjectAttr { pathname: name.as_ptr() as u64, bpf_fd: object.as_raw_fd() as u32, file_flags: 0 };
    bpf(BPF_OBJ_PIN, &attr).map(|_| ())
}

/// Attaches a program to a cgroup, or to a network namespace. `attach_type` is one of `enum bpf_attach_type`. The link of a cgroup is always "multi"
/// (trap T32), and the kernel refuses flags that say so (`cgroup_bpf_link_attach`). With EPERM another's program may stand alone on this
/// cgroup or above it: see [`attached`].
pub fn attach(program: BorrowedFd<'_>, to: BorrowedFd<'_>, attach_type: u32) -> io::Result<OwnedFd> {
    let attr =
        LinkCreateAttr { prog_fd: program.as_raw_fd() as u32, target_fd: to.as_raw_fd() as u32, attach_type, flags: 0 };
    // SAFETY: a non-negative result is a new descriptor, and ours.
    bpf(BPF_LINK_CREATE, &attr).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The first program that is attached to a cgroup at this hook, by its id, and the flags that it was attached with: `BPF_F_ALLOW_…`.
pub fn attached(cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<Option<(u32, u32)>> {
    let mut ids = [0_u32; 64]; // BPF_CGROUP_MAX_PROGS
    let mut attr = QueryAttr {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_type,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr() as u64,
        count: ids.len() as u32,
    };
    let at = std::ptr::from_mut(&mut attr);
    // SAFETY: laid out as the kernel wants it, which fills `ids` as far as `count` says, and writes flags and count.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, at, size_of::<QueryAttr>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((attr.count > 0).then_some((ids[0], attr.attach_flags)))
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

/// A link header of nobody's, the smallest packet that the kernel takes: it takes it off before the program sees what stands behind.
pub const LINK_HEADER: [u8; 14] = [0; 14];

/// Runs a program of a socket filter's kind once, here and now, on a packet that never was on a network: what it returned.
pub fn run_program(program: BorrowedFd<'_>, packet: &[u8]) -> io::Result<u32> {
    let mut attr = TestRunAttr {
        prog_fd: program.as_raw_fd() as u32,
        retval: 0,
        data_size_in: packet.len() as u32,
        data_size_out: 0,
        data_in: packet.as_ptr() as u64,
        data_out: 0,
        repeat: 1,
        duration: 0,
        ctx_size_in: 0,
        ctx_size_out: 0,
        ctx_in: 0,
        ctx_out: 0,
    };
    let attr_size = size_of::<TestRunAttr>();
    // SAFETY: as in `bpf`, of an argument that the kernel writes its result into.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attr, attr_size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(attr.retval) }
}

/// Loads a program of a socket filter's kind that refers to no map.
pub fn load_filter(instructions: &[aya_obj::generated::bpf_insn], license: &CStr) -> io::Result<OwnedFd> {
    let attr = LoadAttr {
        prog_type: BPF_PROG_TYPE_SOCKET_FILTER,
        insn_cnt: instructions.len() as u32,
        insns: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
    };
    // SAFETY: a non-negative result is a new descriptor, and ours.
    bpf(BPF_PROG_LOAD, &attr).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
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

/// Moves this thread, and nothing else of the process, into a network namespace of its own, which nobody else is in, and whose loopback
/// device is down.
pub fn leave_netns() -> io::Result<()> {
    // SAFETY: takes flags, and changes this thread only.
    match unsafe { libc::unshare(libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What a map was made with.
pub fn shape(map: BorrowedFd<'_>) -> io::Result<Shape> {
    let mut info = MapInfo::default();
    object_info(map, &mut info)?;
    Ok(Shape {
        kind: info.map_type,
        key_bytes: info.key_size,
        value_bytes: info.value_size,
        entries_max: info.max_entries,
        flags: info.map_flags,
    })
}

/// How often a program ran, and for how many nanoseconds, while the kernel kept count.
pub fn run_time(program: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    let mut info = ProgramInfo { before: [0; 24], run_time_ns: 0, run_count: 0 };
    object_info(program, &mut info)?;
    Ok((info.run_count, info.run_time_ns))
}

/// The name of the program behind a link; the kernel keeps fifteen characters of it. Needs CAP_SYS_ADMIN.
pub fn program_of_link(link: BorrowedFd<'_>) -> io::Result<String> {
    let mut info = LinkInfo::default();
    object_info(link, &mut info)?;
    program_name(info.prog_id)
}

/// The name of a program; as above.
pub fn program_name(id: u32) -> io::Result<String> {
    // SAFETY: a non-negative result is a new descriptor, and ours.
    let program = bpf(BPF_PROG_GET_FD_BY_ID, &IdAttr { id, next_id: 0, open_flags: 0 })
        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })?;
    let mut info = ProgramName { before: [0; 8], name: [0; 16] };
    object_info(program.as_fd(), &mut info)?;
    let end = info.name.iter().position(|byte| *byte == 0).unwrap_or(info.name.len());
    Ok(String::from_utf8_lossy(&info.name[..end]).into_owned())
}

fn object_info<T>(object: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    let attr = InfoAttr {
        bpf_fd: object.as_raw_fd() as u32,
        info_len: size_of::<T>() as u32,
        info: std::ptr::from_mut(info) as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &attr).map(|_| ())
}

/// Has the kernel keep the run times of all programs for as long as the descriptor is open (`BPF_STATS_RUN_TIME`). Needs Linux 5.8.
pub fn measure_programs() -> io::Result<OwnedFd> {
    // SAFETY: a non-negative result is a new descriptor, and ours.
    bpf(BPF_ENABLE_STATS, &StatsAttr { kind: 0 }).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes a map without a name.
pub fn create_map(shape: &Shape) -> io::Result<OwnedFd> {
    let attr = CreateAttr {
        map_type: shape.kind,
        key_size: shape.key_bytes,
        value_size: shape.value_bytes,
        max_entries: shape.entries_max,
        map_flags: shape.flags,
    };
    // SAFETY: a non-negative result is a new descriptor, and ours.
    bpf(BPF_MAP_CREATE, &attr).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Reads an element's bytes; `key` and `value` must be as long as for [`put`].
pub fn get(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<()> {
    let attr = ElementAttr {
        map_fd: map.as_raw_fd() as u32,
        zero: 0,
        key: key.as_ptr() as u64,
        value: value.as_mut_ptr() as u64,
        flags: 0,
    };
    bpf(BPF_MAP_LOOKUP_ELEM, &attr).map(|_| ())
}

/// Visits every entry of a map: key and value as bytes, as for [`put`]. What comes or goes meanwhile may be left out.
///
/// # Errors
///
/// The visitor's.
pub fn for_each(
    map: BorrowedFd<'_>,
    shape: &Shape,
    mut visit: impl FnMut(&[u8], &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let cpus = if shape.is_per_cpu() { aya::util::nr_cpus().map_err(|(_, error)| error)? } else { 1 };
    let mut value = vec![0_u8; (shape.value_bytes as usize).next_multiple_of(8) * cpus];
    let mut key: Option<Vec<u8>> = None;
    while let Some(next) = next_key(map, shape, key.as_deref()) {
        if get(map, &next, &mut value).is_ok() {
            visit(&next, &value)?;
        }
        key = Some(next);
    }
    Ok(())
}

/// The key behind this one; `None` when it was the last.
fn next_key(map: BorrowedFd<'_>, shape: &Shape, key: Option<&[u8]>) -> Option<Vec<u8>> {
    let mut next = vec![0_u8; shape.key_bytes as usize];
    let attr = ElementAttr {
        map_fd: map.as_raw_fd() as u32,
        zero: 0,
        // Null asks for the first.
        key: key.map_or(0, |key| key.as_ptr() as u64),
        value: next.as_mut_ptr() as u64,
        flags: 0,
    };
    bpf(BPF_MAP_GET_NEXT_KEY, &attr).is_ok().then_some(next)
}

/// Puts an element of bytes into a map that has none of this key.
pub fn put_new(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    put_with(map, key, value, BPF_NOEXIST)
}

/// Puts an element of bytes into a map; `key` and `value` must be as long as its shape says (a value of a per-CPU map once for each
/// possible CPU, rounded up to eight bytes).
pub fn put(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    put_with(map, key, value, 0)
}

fn put_with(map: BorrowedFd<'_>, key: &[u8], value: &[u8], flags: u64) -> io::Result<()> {
    let attr = ElementAttr {
        map_fd: map.as_raw_fd() as u32,
        zero: 0,
        key: key.as_ptr() as u64,
        value: value.as_ptr() as u64,
        flags,
    };
    bpf(BPF_MAP_UPDATE_ELEM, &attr).map(|_| ())
}

/// Counts a map's keys by asking for each, up to `most`. What is removed meanwhile may end the count early.
pub fn count_keys(map: BorrowedFd<'_>, shape: &Shape, most: u64) -> u64 {
    let mut key: Option<Vec<u8>> = None;
    let mut counted = 0;
    while counted < most
        && let Some(next) = next_key(map, shape, key.as_deref())
    {
        key = Some(next);
        counted += 1;
    }
    counted
}
