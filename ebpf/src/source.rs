//! A socket on its way to the agent's listener on loopback keeps the address that it would have had: it is bound to it before.
//!
//! `bpf_bind` with port 0 chooses no port: that is left to `connect()`, which may use one port towards several peers, as always. A
//! socket that the program has bound itself is left as it is, and so is one that dials loopback, whose address would be loopback too.

use aya_ebpf::{bindings::sockaddr, helpers::generated::bpf_bind, programs::SockAddrContext};
use sockway_common::{
    capture::Source,
    counter::Counter,
    flow::{Address, Conn, ENDPOINT_AGENT, MAPPED, conn_flags},
};

use crate::{
    count,
    maps::{CONNS, SOURCES},
    socket,
};

/// `AF_INET6`.
const AF_INET6: u16 = 10;
/// First byte of IPv4 loopback addresses.
const LOOPBACK_NET: u8 = 127;

/// `struct sockaddr_in` without its padding's meaning.
#[repr(C)]
struct InetName {
    family: u16,
    port: u16,
    ip: u32,
    zero: u64,
}

/// `struct sockaddr_in6`.
#[repr(C)]
struct Inet6Name {
    family: u16,
    port: u16,
    flow: u32,
    ip: [u32; 4],
    scope: u32,
}

/// An IPv4 socket is about to be sent somewhere: if that is the agent, it keeps its address. Without success it goes on without.
#[inline(always)]
pub fn keep_v4(ctx: &SockAddrContext) {
    let Some((conn, source)) = wanted(ctx) else { return };
    if source.v4 != 0 {
        let bound = bind_v4(ctx, source.v4);
        note(conn, bound);
    }
}

/// The same of an IPv6 socket, which may dial an IPv4-mapped address.
#[inline(always)]
pub fn keep_v6(ctx: &SockAddrContext) {
    let Some((conn, source)) = wanted(ctx) else { return };
    let ip = if conn.original.is_v4() { [0, 0, MAPPED, source.v4] } else { source.v6 };
    if ip[3] != 0 || ip[0] != 0 {
        let bound = bind_v6(ctx, ip);
        note(conn, bound);
    }
}

/// An IPv4 socket that was bound for an earlier `connect()` dials again: as if it had never been (trap T30). The kernel binds only a
/// socket without a port, which is when it may dial again.
#[inline(always)]
pub fn forget_v4(ctx: &SockAddrContext, dialled: &Address) {
    if was_bound(ctx, dialled) {
        bind_v4(ctx, 0);
    }
}

/// The same of an IPv6 socket.
#[inline(always)]
pub fn forget_v6(ctx: &SockAddrContext, dialled: &Address) {
    if was_bound(ctx, dialled) {
        bind_v6(ctx, [0; 4]);
    }
}

/// What to bind a socket to that goes to the agent, if anything.
#[inline(always)]
fn wanted(ctx: &SockAddrContext) -> Option<(&'static mut Conn, &'static Source)> {
    let conn = socket::stored(&CONNS, socket::of_addr(ctx.sock_addr))?;
    if conn.endpoint != ENDPOINT_AGENT || is_loopback(&conn.original) || socket::is_bound(ctx.sock_addr) {
        return None;
    }
    // SAFETY: the entry is replaced whole by the agent; an address that is not this namespace's is refused when it is bound to.
    let source = unsafe { SOURCES.get(&conn.netns) }?;
    Some((conn, source))
}

#[inline(always)]
fn note(conn: &mut Conn, bound: bool) {
    if bound {
        conn.flags |= conn_flags::BOUND;
        count::one(Counter::SourceBound);
    } else {
        count::one(Counter::SourceRefused);
    }
}

#[inline(always)]
fn was_bound(ctx: &SockAddrContext, dialled: &Address) -> bool {
    let Some(conn) = socket::stored(&CONNS, socket::of_addr(ctx.sock_addr)) else { return false };
    let nested = conn.flags & conn_flags::DIALLING != 0 && conn.actual == *dialled;
    let was_bound = conn.flags & conn_flags::BOUND != 0 && !nested;
    if was_bound {
        conn.flags &= !conn_flags::BOUND;
    }
    was_bound
}

#[inline(always)]
fn bind_v4(ctx: &SockAddrContext, ip: u32) -> bool {
    let mut name = InetName { family: socket::AF_INET as u16, port: 0, ip, zero: 0 };
    // SAFETY: the helper reads one name of the given length.
    unsafe { bpf_bind(ctx.sock_addr, (&raw mut name).cast::<sockaddr>(), size_of::<InetName>() as i32) == 0 }
}

#[inline(always)]
fn bind_v6(ctx: &SockAddrContext, ip: [u32; 4]) -> bool {
    let mut name = Inet6Name { family: AF_INET6, port: 0, flow: 0, ip, scope: 0 };
    // SAFETY: as above.
    unsafe { bpf_bind(ctx.sock_addr, (&raw mut name).cast::<sockaddr>(), size_of::<Inet6Name>() as i32) == 0 }
}

#[inline(always)]
fn is_loopback(address: &Address) -> bool {
    if address.is_v4() {
        return address.ip[3].to_ne_bytes()[0] == LOOPBACK_NET;
    }
    address.ip[0] == 0 && address.ip[1] == 0 && address.ip[2] == 0 && address.ip[3] == 1_u32.to_be()
}
