//! What hooks read of sockets: addresses from their contexts, storage, cookies, and fields of a peer through `bpf_probe_read_kernel`.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, BPF_TCP_ESTABLISHED, bpf_sock_addr, bpf_sock_ops},
    btf_maps::SkStorage,
    helpers::generated::{bpf_get_netns_cookie, bpf_probe_read_kernel, bpf_sk_storage_delete, bpf_sk_storage_get},
    programs::SockOpsContext,
};
use sockway_common::{capture::Settings, flow::Address};

use crate::maps::SCRATCH;

/// `AF_INET`.
pub const AF_INET: u32 = 2;

/// The destination that an IPv4 socket dials or asks for.
#[inline(always)]
pub fn dialled_v4(addr: *mut bpf_sock_addr) -> Address {
    // SAFETY: `addr` is the hook's context; each load is one 32-bit field of it.
    unsafe { Address::v4(ptr::read_volatile(&raw const (*addr).user_ip4), port(addr)).of(protocol(addr)) }
}

/// The destination that an IPv6 socket dials or asks for.
#[inline(always)]
pub fn dialled_v6(addr: *mut bpf_sock_addr) -> Address {
    // SAFETY: as above, word by word: the verifier refuses wider loads of a context.
    let ip = unsafe {
        [
            ptr::read_volatile(&raw const (*addr).user_ip6[0]),
            ptr::read_volatile(&raw const (*addr).user_ip6[1]),
            ptr::read_volatile(&raw const (*addr).user_ip6[2]),
            ptr::read_volatile(&raw const (*addr).user_ip6[3]),
        ]
    };
    Address::v6(ip, port(addr)).of(protocol(addr))
}

#[inline(always)]
fn port(addr: *mut bpf_sock_addr) -> u16 {
    // SAFETY: as above.
    unsafe { ptr::read_volatile(&raw const (*addr).user_port) as u16 }
}

/// The low byte of the socket's protocol: an MPTCP socket (262) is asked about as the TCP socket (6) that it shows its program.
#[inline(always)]
fn protocol(addr: *mut bpf_sock_addr) -> u8 {
    // SAFETY: as above.
    unsafe { ptr::read_volatile(&raw const (*addr).protocol) as u8 }
}

/// Whether the socket is connected.
#[inline(always)]
pub fn is_connected(addr: *mut bpf_sock_addr) -> bool {
    // SAFETY: `addr` is the hook's context, whose socket is a full one; its state is readable.
    unsafe { ptr::read_volatile(&raw const (*(*addr).__bindgen_anon_1.sk).state) == BPF_TCP_ESTABLISHED }
}

/// Whether the socket is connected to this address.
#[inline(always)]
pub fn is_connected_to(addr: *mut bpf_sock_addr, peer: &Address) -> bool {
    if !is_connected(addr) {
        return false;
    }
    // SAFETY: `addr` is the hook's context, whose socket is a full one; its addresses are readable word by word.
    unsafe {
        let sk = (*addr).__bindgen_anon_1.sk;
        if ptr::read_volatile(&raw const (*sk).dst_port) != peer.port {
            return false;
        }
        if is_inet(addr) {
            return ptr::read_volatile(&raw const (*sk).dst_ip4) == peer.ip[3];
        }
        let ip = [
            ptr::read_volatile(&raw const (*sk).dst_ip6[0]),
            ptr::read_volatile(&raw const (*sk).dst_ip6[1]),
            ptr::read_volatile(&raw const (*sk).dst_ip6[2]),
            ptr::read_volatile(&raw const (*sk).dst_ip6[3]),
        ];
        ip == peer.ip
    }
}

/// Whether it is an IPv4 socket; otherwise it is an IPv6 one.
#[inline(always)]
fn is_inet(addr: *mut bpf_sock_addr) -> bool {
    // SAFETY: one field of the hook's context.
    unsafe { ptr::read_volatile(&raw const (*addr).family) == AF_INET }
}

/// Whether the socket has an address of its own already: the program has bound it.
#[inline(always)]
pub fn is_bound(addr: *mut bpf_sock_addr) -> bool {
    // SAFETY: `addr` is the hook's context, whose socket is a full one; its addresses are readable word by word.
    unsafe {
        let sk = (*addr).__bindgen_anon_1.sk;
        if is_inet(addr) {
            return ptr::read_volatile(&raw const (*sk).src_ip4) != 0;
        }
        let ip = [
            ptr::read_volatile(&raw const (*sk).src_ip6[0]),
            ptr::read_volatile(&raw const (*sk).src_ip6[1]),
            ptr::read_volatile(&raw const (*sk).src_ip6[2]),
            ptr::read_volatile(&raw const (*sk).src_ip6[3]),
        ];
        // "Any" IPv4 address is none either, in mapped form.
        ip[0] | ip[1] | ip[3] != 0
    }
}

/// Whether the program has bound the socket to a network device (`SO_BINDTODEVICE`).
#[inline(always)]
pub fn is_bound_to_device(addr: *mut bpf_sock_addr) -> bool {
    // SAFETY: as above.
    unsafe { ptr::read_volatile(&raw const (*(*addr).__bindgen_anon_1.sk).bound_dev_if) != 0 }
}

/// Writes an IPv4 destination into the context. Stores are volatile: merged into one 64-bit store, the verifier refuses them.
#[inline(always)]
pub fn redirect_v4(addr: *mut bpf_sock_addr, to: &Address) {
    // SAFETY: `addr` is the hook's context.
    unsafe {
        ptr::write_volatile(&raw mut (*addr).user_ip4, to.ip[3]);
        ptr::write_volatile(&raw mut (*addr).user_port, u32::from(to.port));
    }
}

/// Writes an IPv6 destination into the context.
#[inline(always)]
pub fn redirect_v6(addr: *mut bpf_sock_addr, to: &Address) {
    // SAFETY: `addr` is the hook's context.
    unsafe {
        ptr::write_volatile(&raw mut (*addr).user_ip6[0], to.ip[0]);
        ptr::write_volatile(&raw mut (*addr).user_ip6[1], to.ip[1]);
        ptr::write_volatile(&raw mut (*addr).user_ip6[2], to.ip[2]);
        ptr::write_volatile(&raw mut (*addr).user_ip6[3], to.ip[3]);
        ptr::write_volatile(&raw mut (*addr).user_port, u32::from(to.port));
    }
}

/// Cookie of the network namespace of a sock_addr context's socket.
#[inline(always)]
pub fn netns(ctx: &impl EbpfContext) -> u64 {
    // SAFETY: the helper takes the hook's context.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

/// The socket of a sock_addr context.
#[inline(always)]
pub fn of_addr(addr: *mut bpf_sock_addr) -> *mut c_void {
    // SAFETY: `addr` is the hook's context; the union holds the socket pointer.
    unsafe { (*addr).__bindgen_anon_1.sk.cast() }
}

/// The socket of a sock_ops context; null for a request socket.
#[inline(always)]
pub fn of_ops(ops: *mut bpf_sock_ops) -> *mut c_void {
    // SAFETY: `ops` is the hook's context; the union holds the socket pointer.
    unsafe { (*ops).__bindgen_anon_2.sk.cast() }
}

/// This end's address of a sock_ops context.
#[inline(always)]
pub fn local(ctx: &SockOpsContext) -> Address {
    // The kernel gives the local port in host order.
    let port = (ctx.local_port() as u16).to_be();
    if ctx.family() == AF_INET {
        return Address::v4(ctx.local_ip4(), port);
    }
    // SAFETY: `ops` is the hook's context, read word by word.
    let ip = unsafe {
        [
            ptr::read_volatile(&raw const (*ctx.ops).local_ip6[0]),
            ptr::read_volatile(&raw const (*ctx.ops).local_ip6[1]),
            ptr::read_volatile(&raw const (*ctx.ops).local_ip6[2]),
            ptr::read_volatile(&raw const (*ctx.ops).local_ip6[3]),
        ]
    };
    Address::v6(ip, port)
}

/// The other end's address of a sock_ops context.
#[inline(always)]
pub fn remote(ctx: &SockOpsContext) -> Address {
    // The kernel gives the remote port in network order, in the upper half of a little-endian word.
    let port = (ctx.remote_port() >> 16) as u16;
    if ctx.family() == AF_INET {
        return Address::v4(ctx.remote_ip4(), port);
    }
    // SAFETY: `ops` is the hook's context, read word by word.
    let ip = unsafe {
        [
            ptr::read_volatile(&raw const (*ctx.ops).remote_ip6[0]),
            ptr::read_volatile(&raw const (*ctx.ops).remote_ip6[1]),
            ptr::read_volatile(&raw const (*ctx.ops).remote_ip6[2]),
            ptr::read_volatile(&raw const (*ctx.ops).remote_ip6[3]),
        ]
    };
    Address::v6(ip, port)
}

/// What `map` holds for `socket`.
#[inline(always)]
pub fn stored<T>(map: &'static SkStorage<T>, socket: *mut c_void) -> Option<&'static mut T> {
    // Only a context of sock_ops can hold null; the verifier wants to see it tested.
    if socket.is_null() {
        return None;
    }
    // SAFETY: the helper checks the socket; the value lives as long as the hook runs (RCU), and is this socket's alone.
    unsafe { bpf_sk_storage_get(map_ptr(map), socket, ptr::null_mut(), 0).cast::<T>().as_mut() }
}

/// Puts `value` into `map` for `socket`, over what is there.
#[inline(always)]
pub fn store<T: Copy>(map: &'static SkStorage<T>, socket: *mut c_void, value: &mut T) -> Option<&'static mut T> {
    if socket.is_null() {
        return None;
    }
    // SAFETY: as in `stored`; the helper copies the initial value.
    let slot = unsafe {
        bpf_sk_storage_get(map_ptr(map), socket, ptr::from_mut(value).cast(), u64::from(BPF_SK_STORAGE_GET_F_CREATE))
            .cast::<T>()
            .as_mut()
    }?;
    *slot = *value;
    Some(slot)
}

/// What `map` holds for `socket`, made of zeroes when there is nothing yet.
#[inline(always)]
pub fn stored_or_zeroed<T>(map: &'static SkStorage<T>, socket: *mut c_void) -> Option<&'static mut T> {
    // SAFETY: as in `stored`; without an initial value the kernel makes one of zeroes.
    unsafe {
        bpf_sk_storage_get(map_ptr(map), socket, ptr::null_mut(), u64::from(BPF_SK_STORAGE_GET_F_CREATE))
            .cast::<T>()
            .as_mut()
    }
}

/// Takes away what `map` holds for `socket`.
#[inline(always)]
pub fn forget<T>(map: &'static SkStorage<T>, socket: *mut c_void) {
    if socket.is_null() {
        return;
    }
    // SAFETY: the helper checks both; nothing stored is no error for us.
    unsafe { bpf_sk_storage_delete(map_ptr(map), socket) };
}

#[inline(always)]
fn map_ptr<T>(map: &'static SkStorage<T>) -> *mut c_void {
    ptr::from_ref(map).cast_mut().cast()
}

/// A socket as a number, for [`peek`]: the verifier lets nobody calculate with the pointer, and written into a map value and read back
/// it is a number. A hook that comes in between on this CPU may leave its own: for what does no harm if it is another's.
#[inline(always)]
pub fn number(socket: *mut c_void) -> Option<u64> {
    if socket.is_null() {
        return None;
    }
    let scratch = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: eight aligned bytes of a map value.
    unsafe {
        ptr::write_volatile(scratch.cast::<*mut c_void>(), socket);
        Some(ptr::read_volatile(scratch))
    }
}

/// Whether programs may read the kernel's memory, set by the agent when it loads this: where not, the verifier must not see the helper.
/// Its first value is nobody else's (see [`crate::mptcp`]).
#[unsafe(no_mangle)]
static CAN_PEEK: u32 = 0x5357_0003;

/// Reads a field of a kernel object that may be gone: memory that cannot be read gives `None`, memory that was reused gives
/// anything, which is why callers compare the socket cookie first (trap T17). On a kernel that is locked down always `None`.
#[inline(always)]
pub fn peek<T: Copy + Default>(object: u64, offset: u32) -> Option<T> {
    if can_peek() { read(object, offset) } else { None }
}

/// Whether programs may read the kernel's memory. The verifier does not look at what is behind a no.
#[inline(always)]
pub fn can_peek() -> bool {
    // SAFETY: a constant that the agent sets before the program is loaded.
    unsafe { ptr::read_volatile(&raw const CAN_PEEK) != 0 }
}

/// The same without a look at whether it is allowed, for programs that are nothing without: where it is not, the kernel refuses them whole.
#[inline(always)]
pub fn read<T: Copy + Default>(object: u64, offset: u32) -> Option<T> {
    let mut value = T::default();
    // SAFETY: the helper copes with any source address.
    let failed = unsafe {
        bpf_probe_read_kernel(
            ptr::from_mut(&mut value).cast(),
            size_of::<T>() as u32,
            (object + u64::from(offset)) as *const c_void,
        )
    };
    (failed == 0).then_some(value)
}

/// Whether `sock` is the other end of a connection of which nothing has been sent in our direction yet: it has the cookie that we were
/// told, its ports are ours the other way round, and the next byte it expects is the first that we will send. Asked once for each
/// connection, since what told us of it (an LRU map) may be overwritten while it is read, and bytes must never reach a stranger.
#[inline(always)]
pub fn is_peer(sock: u64, cookie: u64, local: &Address, remote: &Address, sequence: u32, settings: &Settings) -> bool {
    let offsets = &settings.offsets;
    let ports = u32::from(local.port) | u32::from(u16::from_be(remote.port)) << 16;
    peek::<u64>(sock, offsets.cookie) == Some(cookie)
        && peek::<u32>(sock, offsets.ports) == Some(ports)
        && peek::<u32>(sock, offsets.rcv_nxt) == Some(sequence)
}

/// Bytes that may wait in a socket's receive queue: its receive buffer, at most what the settings say.
#[inline(always)]
pub fn receive_limit(sock: u64, settings: &Settings) -> u32 {
    let buffer: i32 = peek(sock, settings.offsets.rcvbuf).unwrap_or(0);
    (buffer as u32).min(settings.shortcut_bytes_max)
}
