//! A program asks whom it dialled: it hears the address it dialled, not the one its socket was sent to.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use sockway_common::{
    counter::Counter,
    flow::{Address, conn_flags},
};

use crate::{count, maps::CONNS, socket};

/// The hook lets `getpeername()` go on.
const ALLOW: i32 = 1;

/// `getpeername()` of an IPv4 socket.
#[cgroup_sock_addr(getpeername4)]
pub fn peer_v4(ctx: SockAddrContext) -> i32 {
    if let Some(original) = original(&ctx, &socket::dialled_v4(ctx.sock_addr)) {
        socket::redirect_v4(ctx.sock_addr, &original);
        count::one(Counter::PeerName);
    }
    ALLOW
}

/// `getpeername()` of an IPv6 socket.
#[cgroup_sock_addr(getpeername6)]
pub fn peer_v6(ctx: SockAddrContext) -> i32 {
    if let Some(original) = original(&ctx, &socket::dialled_v6(ctx.sock_addr)) {
        socket::redirect_v6(ctx.sock_addr, &original);
        count::one(Counter::PeerName);
    }
    ALLOW
}

/// What the socket dialled, if its peer is still the one it was sent to and it is not the agent's own.
#[inline(always)]
fn original(ctx: &SockAddrContext, peer: &Address) -> Option<Address> {
    let conn = socket::stored(&CONNS, socket::of_addr(ctx.sock_addr))?;
    (conn.flags & conn_flags::AGENT == 0 && conn.actual == *peer).then_some(conn.original)
}
