//! A program asks who is at the other end. Who dialled hears the address it dialled, not the one its socket was sent to; who accepted
//! hears the client, not the agent that dialled on the client's behalf: accept() asks here, too.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use sockway_common::{
    counter::Counter,
    flow::{Address, NOWHERE, conn_flags},
};

use crate::{
    count,
    maps::{ACCEPTED, CONNS},
    socket, udp,
};

/// The hook lets `getpeername()` go on.
const ALLOW: i32 = 1;

/// `getpeername()` of an IPv4 socket.
#[cgroup_sock_addr(getpeername4)]
pub fn peer_v4(ctx: SockAddrContext) -> i32 {
    if let Some((name, counter)) = name(&ctx, &socket::dialled_v4(ctx.sock_addr)) {
        socket::redirect_v4(ctx.sock_addr, &name);
        count::one(counter);
    }
    ALLOW
}

/// `getpeername()` of an IPv6 socket.
#[cgroup_sock_addr(getpeername6)]
pub fn peer_v6(ctx: SockAddrContext) -> i32 {
    if let Some((name, counter)) = name(&ctx, &socket::dialled_v6(ctx.sock_addr)) {
        socket::redirect_v6(ctx.sock_addr, &name);
        count::one(counter);
    }
    ALLOW
}

/// The name of this peer.
#[inline(always)]
fn name(ctx: &SockAddrContext, peer: &Address) -> Option<(Address, Counter)> {
    match original(ctx, peer) {
        Some(original) => Some((original, Counter::PeerName)),
        None => Some((source(ctx, peer)?, Counter::SourceName)),
    }
}

/// What the socket dialled, if its peer is still the one it was sent to and it is not the agent's own.
#[inline(always)]
fn original(ctx: &SockAddrContext, peer: &Address) -> Option<Address> {
    let socket = socket::of_addr(ctx.sock_addr);
    if let Some(conn) = socket::stored(&CONNS, socket)
        && conn.flags & conn_flags::AGENT == 0
        && conn.actual == *peer
    {
        return Some(conn.original);
    }
    udp::former(socket, peer)
}

/// For whom the peer of an accepted socket dialled, if it is still the same peer.
#[inline(always)]
fn source(ctx: &SockAddrContext, peer: &Address) -> Option<Address> {
    let accepted = socket::stored(&ACCEPTED, socket::of_addr(ctx.sock_addr))?;
    (accepted.peer == *peer && accepted.source.protocol != NOWHERE.protocol).then_some(accepted.source)
}
