//! Whose sockets pass although they dial a service: users and network namespaces that a rule names, and cgroups left out of what is
//! captured around them.
//!
//! A cgroup that is left out has hooks of its own, which run before those of the cgroups around it: they mark the socket, and the outer
//! ones see the mark. Only sockets that dial a service are marked, so that others cost nothing. A nearer rule that captures has put an
//! endpoint's address in by then, which is no service: it is not marked, and stands.

use aya_ebpf::{
    bindings::bpf_sock_addr, helpers::bpf_get_current_uid_gid, macros::cgroup_sock_addr, maps::lpm_trie::Key,
    programs::SockAddrContext,
};
use sockway_common::{
    capture::{Settings, settings_flags},
    counter::Counter,
    flow::Address,
};

use crate::{
    maps::{EXCLUDED, EXCLUDED_USERS, RULED_NAMESPACES, SERVICES, SETTINGS},
    socket,
};

/// The hook lets the call go on.
const ALLOW: i32 = 1;
/// Bits of a user's number.
const USER_BITS: u32 = 32;

/// `connect()` of an IPv4 socket in a cgroup that is left out.
#[cgroup_sock_addr(connect4)]
pub fn pass_dial_v4(ctx: SockAddrContext) -> i32 {
    mark(ctx.sock_addr, &socket::dialled_v4(ctx.sock_addr));
    ALLOW
}

/// `connect()` of an IPv6 socket in a cgroup that is left out.
#[cgroup_sock_addr(connect6)]
pub fn pass_dial_v6(ctx: SockAddrContext) -> i32 {
    mark(ctx.sock_addr, &socket::dialled_v6(ctx.sock_addr));
    ALLOW
}

/// A datagram of an IPv4 socket in a cgroup that is left out.
#[cgroup_sock_addr(sendmsg4)]
pub fn pass_send_v4(ctx: SockAddrContext) -> i32 {
    mark(ctx.sock_addr, &socket::dialled_v4(ctx.sock_addr));
    ALLOW
}

/// A datagram of an IPv6 socket in a cgroup that is left out.
#[cgroup_sock_addr(sendmsg6)]
pub fn pass_send_v6(ctx: SockAddrContext) -> i32 {
    mark(ctx.sock_addr, &socket::dialled_v6(ctx.sock_addr));
    ALLOW
}

/// Out of memory the socket stays without a mark and is captured by the rule around it: the one case in which doubt does not pass.
#[inline(always)]
fn mark(addr: *mut bpf_sock_addr, dialled: &Address) {
    let Some(settings) = SETTINGS.get(0) else { return };
    if SERVICES.get_ptr(dialled).is_none() {
        return;
    }
    let mut rules = settings.rules;
    let _ = socket::store(&EXCLUDED, socket::of_addr(addr), &mut rules);
}

/// Whether the rules let this socket's call be captured, to be asked when it is to a service; if not, `counter`.
#[inline(always)]
pub fn check(ctx: &SockAddrContext, settings: &Settings, counter: Counter) -> Result<(), Counter> {
    let flags = settings.flags;
    if flags & settings_flags::EXCLUDES != 0
        && (is_user_excluded(flags) || is_namespace_excluded(ctx, flags) || is_marked(ctx, settings))
    {
        return Err(counter);
    }
    Ok(())
}

#[inline(always)]
fn is_user_excluded(flags: u32) -> bool {
    if flags & settings_flags::EXCLUDED_USERS == 0 {
        return false;
    }
    // The lower half is the user, as the initial user namespace counts.
    let user = bpf_get_current_uid_gid() as u32;
    EXCLUDED_USERS.get(Key::new(USER_BITS, user.to_be())).is_some()
}

#[inline(always)]
fn is_namespace_excluded(ctx: &SockAddrContext, flags: u32) -> bool {
    if flags & settings_flags::RULED_NAMESPACES == 0 {
        return false;
    }
    let netns = socket::netns(ctx);
    // SAFETY: copied out at once; the agent writes whole words.
    match unsafe { RULED_NAMESPACES.get(&netns) } {
        Some(captured) => *captured == 0,
        None => flags & settings_flags::UNNAMED_EXCLUDED != 0,
    }
}

#[inline(always)]
fn is_marked(ctx: &SockAddrContext, settings: &Settings) -> bool {
    settings.flags & settings_flags::EXCLUDED_CGROUPS != 0
        && socket::stored(&EXCLUDED, socket::of_addr(ctx.sock_addr)).is_some_and(|rules| *rules == settings.rules)
}
