//! The dialling end of a connection tells the accepting end what its packets do not: for whom it dialled, or what its client dialled.
//!
//! Both ends are on this host. The dialling end is established first (its ACK makes the accepting end), and publishes under what both
//! see alike: addresses and initial sequence numbers, which no two live connections share, whatever namespaces they are in.

use aya_ebpf::programs::SockOpsContext;
use sockway_common::{
    capture::settings_flags,
    counter::Counter,
    flow::{Accepted, Introduction, NOWHERE, conn_flags},
};

use crate::{
    count,
    maps::{ACCEPTED, CONNS, INTRODUCTIONS, SETTINGS},
    sock_ops, socket,
};

/// The dialling end is established.
#[inline(always)]
pub fn publish(ctx: &SockOpsContext) {
    let Some(conn) = socket::stored(&CONNS, socket::of_ops(ctx.ops)) else { return };
    if conn.flags & (conn_flags::INTRODUCES | conn_flags::TELLS_ORIGINAL) == 0 {
        return;
    }
    let key = &sock_ops::dialled_key(ctx);
    let told = |flag| if conn.flags & flag != 0 { conn.original } else { NOWHERE };
    let introduction =
        Introduction { source: told(conn_flags::INTRODUCES), original: told(conn_flags::TELLS_ORIGINAL), seal: 0 }
            .sealed(key);
    if INTRODUCTIONS.insert(key, &introduction, 0).is_ok() {
        count::one(Counter::IntroductionPublished);
    }
}

/// The accepting end is established, and nobody has accepted it yet.
#[inline(always)]
pub fn take(ctx: &SockOpsContext) {
    if !SETTINGS.get(0).is_some_and(|settings| settings.flags & settings_flags::INTRODUCTIONS != 0) {
        return;
    }
    let key = &sock_ops::accepted_key(ctx);
    let Some(introduction) = INTRODUCTIONS.get_ptr(key) else { return };
    // SAFETY: copied once, at once, and used only if the copy is whole.
    let introduction: Introduction = unsafe { core::ptr::read_volatile(introduction) };
    if !introduction.is_whole(key) {
        return;
    }
    let _ = INTRODUCTIONS.remove(key);
    let mut accepted = Accepted { peer: key.client, source: introduction.source, original: introduction.original };
    if socket::store(&ACCEPTED, socket::of_ops(ctx.ops), &mut accepted).is_some() {
        count::one(Counter::IntroductionTaken);
    }
}
