//! A connection ends, and what it held is given back: once, however it ends (trap T30).
//!
//! A TCP socket whose SYN was about to leave is watched by sock_ops, which sees it close wherever that happens, also long after the
//! program has gone. Every other socket ends here, when its last descriptor is closed, or in the connect hook, when it dials again.

use core::ptr;

use aya_ebpf::{macros::cgroup_sock, programs::SockContext};
use sockway_common::{
    counter::Counter,
    flow::{Conn, TCP, conn_flags, held},
    service::{EndpointKey, EndpointStats, Service, service_flags},
    watch::cause,
};

use crate::{
    atomic, count, limit,
    maps::{CONNS, ENDPOINT_LIVE, ENDPOINT_STATS, NO_STATS},
    socket, udp,
};

/// The hook has nothing to forbid.
const DONE: i32 = 1;
/// `BPF_NOEXIST`.
const NO_EXIST: u64 = 1;
/// `TCP_CLOSE`.
const CLOSE: u32 = 7;

/// The last descriptor of a socket is closed.
#[cgroup_sock(sock_release)]
pub fn released(ctx: SockContext) -> i32 {
    if let Some(conn) = socket::stored(&CONNS, ctx.sock.cast()) {
        udp::tell_ended(conn, cause::RELEASED);
        udp::forget_connected(&ctx, conn);
        if conn.held != 0 && !is_watched(&ctx, conn) {
            all(conn);
        }
    }
    udp::tell_conversations(&ctx);
    DONE
}

/// Whether sock_ops will see this socket close.
#[inline(always)]
fn is_watched(ctx: &SockContext, conn: &Conn) -> bool {
    // SAFETY: two fields of the hook's context.
    let (protocol, state) = unsafe {
        (ptr::read_volatile(&raw const (*ctx.sock).protocol), ptr::read_volatile(&raw const (*ctx.sock).state))
    };
    protocol == u32::from(TCP) && state != CLOSE && conn.flags & conn_flags::WATCHED != 0
}

/// Counts one more open connection to an endpoint, or to the agent: what is to be given back, bits of [`held`].
#[inline(always)]
pub fn count_open(service: &Service, endpoint: u32) -> u64 {
    let key = EndpointKey { service: service.id, endpoint };
    let mut what = 0;
    if let Some(stats) = stats_of(&key) {
        // SAFETY: this CPU's element; see `count::add`.
        unsafe { (*stats).connects += 1 };
        what |= held::ENDPOINT;
    }
    if service.flags & service_flags::LIVE != 0
        && let Some(live) = ENDPOINT_LIVE.get_ptr_mut(&key)
    {
        // SAFETY: eight aligned bytes of a map value.
        unsafe { atomic::fetch_add(&raw mut (*live).open, 1) };
        what |= held::LIVE;
    }
    what
}

/// Counts a conversation of UDP with an endpoint: a connect that is never open, since nobody tells its end.
#[inline(always)]
pub fn count_conversation(service: u32, endpoint: u32) {
    if let Some(stats) = stats_of(&EndpointKey { service, endpoint }) {
        // SAFETY: this CPU's element; see `count::add`.
        unsafe {
            (*stats).connects += 1;
            (*stats).closed += 1;
        }
    }
}

/// What this CPU has counted for an endpoint; the first connect to it makes the entry.
#[inline(always)]
fn stats_of(key: &EndpointKey) -> Option<*mut EndpointStats> {
    if let Some(stats) = ENDPOINT_STATS.get_ptr_mut(key) {
        return Some(stats);
    }
    // Another CPU may have been first: then the entry is there all the same.
    let _ = ENDPOINT_STATS.insert(key, &NO_STATS, NO_EXIST);
    let stats = ENDPOINT_STATS.get_ptr_mut(key);
    if stats.is_none() {
        count::one(Counter::EndpointStatsFull);
    }
    stats
}

/// Gives back all that a connection holds; what that was, which is nothing the second time.
#[inline(always)]
pub fn all(conn: &mut Conn) -> u64 {
    // SAFETY: eight aligned bytes of a map value.
    let what = unsafe { atomic::fetch_and(&raw mut conn.held, 0) };
    if what != 0 {
        give_back(conn.service, conn.endpoint, conn.source, what);
    }
    what
}

/// Gives back bits of [`held`].
#[inline(always)]
pub fn give_back(service: u32, endpoint: u32, source: u64, what: u64) {
    give_back_all(u64::from(service) | u64::from(endpoint) << 32, source, what);
}

/// [`give_back`] in numbers; the verifier looks at it by itself, as at [`crate::choose::draw_endpoint`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn give_back_all(key: u64, source: u64, what: u64) -> u64 {
    let key = EndpointKey { service: key as u32, endpoint: (key >> 32) as u32 };
    if what & held::ENDPOINT != 0
        && let Some(stats) = ENDPOINT_STATS.get_ptr_mut(&key)
    {
        // SAFETY: this CPU's element; see `count::add`.
        unsafe { (*stats).closed += 1 };
    }
    if what & held::LIVE != 0
        && let Some(live) = ENDPOINT_LIVE.get_ptr_mut(&key)
    {
        // SAFETY: eight aligned bytes of a map value.
        unsafe {
            // A table that was made anew has counted too few: below zero the endpoint would be taken for the least open for ever.
            if atomic::fetch_add(&raw mut (*live).open, u64::MAX) as i64 <= 0 {
                atomic::fetch_add(&raw mut (*live).open, 1);
            }
        }
    }
    limit::give_back(key.service, source, what);
    what
}
