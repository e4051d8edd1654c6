//! A socket dials, is established, or fails.
//!
//! Two programs of the same body: [`allow_shortcut`] is attached to cgroups whose rule lets sockets be enrolled in the shortcut (and
//! to the agent's own), [`deny_shortcut`] to the others. Where rules nest, the nearer cgroup's program runs first and its no stands.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB,
        BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_SOCK_OPS_TIMEOUT_INIT, BPF_TCP_CLOSE,
        BPF_TCP_SYN_SENT,
    },
    helpers::{
        bpf_ktime_get_ns,
        generated::{bpf_get_socket_cookie, bpf_map_delete_elem, bpf_setsockopt},
    },
    macros::sock_ops,
    programs::SockOpsContext,
};
use sockway_common::{
    capture::{Event, Settings, event_kind, settings_flags},
    counter::Counter,
    flow::{Conn, ENDPOINT_AGENT, FlowKey, conn_flags},
    join::{Half, Meeting, half_flags, half_state},
    service::EndpointKey,
};

use crate::{
    count, eject, event, introduce, latency,
    maps::{CONNS, ENDPOINT_STATS, HALVES, MEETINGS, SETTINGS, SHORTCUT, SYNS, SynKey},
    original, release, socket, watch,
};

/// The hook has nothing to say about the connection's parameters.
const DONE: u32 = 1;
/// Value of [`SYNS`]: the accepting side's rule.
const SYN_ALLOWED: u32 = 1;
const SYN_DENIED: u32 = 0;
/// `BPF_NOEXIST`.
const NO_EXIST: u64 = 1;
/// Level of TCP's socket options.
const IPPROTO_TCP: i32 = 6;
/// `TCP_NOTSENT_LOWAT`.
const TCP_NOTSENT_LOWAT: i32 = 25;
/// `BPF_EXIST`.
const EXIST: u64 = 2;

/// Sockets of a cgroup that allows the shortcut.
#[sock_ops]
pub fn allow_shortcut(ctx: SockOpsContext) -> u32 {
    on_socket(&ctx, true)
}

/// Sockets of a cgroup that does not.
#[sock_ops]
pub fn deny_shortcut(ctx: SockOpsContext) -> u32 {
    on_socket(&ctx, false)
}

#[inline(always)]
fn on_socket(ctx: &SockOpsContext, allowed: bool) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_TIMEOUT_INIT => on_syn(ctx, allowed),
        BPF_SOCK_OPS_TCP_CONNECT_CB => on_dial(ctx, allowed),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => on_dialled(ctx, allowed),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => on_accepted(ctx, allowed),
        BPF_SOCK_OPS_STATE_CB => on_state(ctx),
        _ => {}
    }
    DONE
}

/// A SYN came in (the kernel asks for the timeout of its request socket, before it answers): its sender, if it is on this host, will
/// find the note when the answer arrives. So a socket is enrolled only when its peer will be.
#[inline(always)]
fn on_syn(ctx: &SockOpsContext, allowed: bool) {
    // SAFETY: one field of the hook's context. A full socket here is a dialling one, which is none of this function's business.
    let is_request = unsafe { (*ctx.ops).is_fullsock } == 0;
    if !is_request || !shortcut_wanted() {
        return;
    }
    let key = SynKey { client: socket::remote(ctx), server: socket::local(ctx) };
    if allowed {
        let _ = SYNS.insert(&key, &SYN_ALLOWED, NO_EXIST);
    } else {
        let _ = SYNS.insert(&key, &SYN_DENIED, 0);
    }
}

/// A socket that was let go dials again (trap T30). The kernel has thrown away what came by TCP and was not read, but keeps the socket
/// enrolled, with what came by redirect: it would be read as the first bytes of the new connection.
#[inline(always)]
fn leave_earlier(ctx: &SockOpsContext) {
    if decided(ctx) {
        let cookie = cookie(ctx);
        // SAFETY: the helper takes a map and a key of its size; nothing enrolled is no error for us. aya has no method for it.
        unsafe { bpf_map_delete_elem((&raw const SHORTCUT).cast_mut().cast(), (&raw const cookie).cast()) };
        socket::forget(&HALVES, socket::of_ops(ctx.ops));
    }
}

/// The SYN is about to leave: the agent, if that is where it goes, cannot accept before it can learn what was dialled.
#[inline(always)]
fn on_dial(ctx: &SockOpsContext, allowed: bool) {
    leave_earlier(ctx);
    let Some(conn) = socket::stored(&CONNS, socket::of_ops(ctx.ops)) else { return };
    conn.flags &= !conn_flags::DIALLING;
    if !allowed {
        conn.flags |= conn_flags::NEVER;
    }
    if conn.flags & conn_flags::AGENT != 0 {
        return;
    }
    if conn.endpoint == ENDPOINT_AGENT {
        original::publish(ctx, conn);
    }
    let _ = ctx.set_cb_flags((ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG) as i32);
    conn.flags |= conn_flags::WATCHED;
}

/// The dialling end is established; nothing has been sent.
#[inline(always)]
fn on_dialled(ctx: &SockOpsContext, allowed: bool) {
    introduce::publish(ctx);
    let Some(conn) = socket::stored(&CONNS, socket::of_ops(ctx.ops)) else { return };
    latency::established(conn);
    eject::established(conn);
    let wanted = conn.flags & (conn_flags::SHORTCUT | conn_flags::NEVER) == conn_flags::SHORTCUT;
    if allowed
        && wanted
        && !decided(ctx)
        && let Err(why) = enrol_client(ctx, conn)
    {
        count::one(why);
    }
}

/// Whether the program of a nearer cgroup has enrolled or refused this socket before.
#[inline(always)]
fn decided(ctx: &SockOpsContext) -> bool {
    socket::stored(&HALVES, socket::of_ops(ctx.ops)).is_some()
}

#[inline(always)]
fn enrol_client(ctx: &SockOpsContext, conn: &Conn) -> Result<(), Counter> {
    let settings = SETTINGS.get(0).ok_or(Counter::ShortcutRefused)?;
    let syn = SynKey { client: socket::local(ctx), server: socket::remote(ctx) };
    // SAFETY: copied out at once.
    let peer = unsafe { SYNS.get(&syn) }.copied().unwrap_or(SYN_DENIED);
    let _ = SYNS.remove(&syn);
    if peer != SYN_ALLOWED {
        return Err(Counter::ShortcutPeerRemote);
    }
    let key = dialled_key(ctx);
    let half = new_half(ctx, settings, key, half_state::WAITING)?;
    let (mine, theirs) = joinable(conn);
    (half.flags, half.service) = (mine, conn.service);
    let mut cookie = half.cookie;
    let meeting = Meeting {
        client_cookie: cookie,
        client_sock: half.sock,
        server_cookie: 0,
        server_sock: 0,
        service: conn.service,
        flags: theirs,
    };
    MEETINGS.insert(&key, &meeting, 0).map_err(|_| Counter::ShortcutRefused)?;
    if enrol(ctx, &mut cookie).is_err() {
        let _ = MEETINGS.remove(&key);
        return Err(Counter::ShortcutRefused);
    }
    hold(ctx, half);
    count::one(Counter::ShortcutClient);
    Ok(())
}

/// A direction that is held until it can be joined must not pile up in the sender what the agent has to pass on first. Above the 64 KiB of
/// a segment on loopback, so that Nagle's algorithm never has a sender wait for what it holds back itself.
#[inline(always)]
fn hold(ctx: &SockOpsContext, half: &Half) {
    if half.flags & half_flags::HOLD == 0 {
        return;
    }
    let mut bytes: u32 = 128 * 1024;
    // SAFETY: the helper takes the hook's context and reads four bytes. Refused, more piles up, and all else is as before.
    unsafe {
        bpf_setsockopt(
            ctx.as_ptr(),
            IPPROTO_TCP,
            TCP_NOTSENT_LOWAT,
            core::ptr::from_mut(&mut bytes).cast(),
            size_of::<u32>() as i32,
        )
    };
}

/// Flags for the two halves of a connection: the one at the other end from the agent may be joined.
#[inline(always)]
fn joinable(conn: &Conn) -> (u32, u32) {
    let (hold, roomy) = if conn.flags & conn_flags::HOLD != 0 { (half_flags::HOLD, half_flags::ROOMY) } else { (0, 0) };
    if conn.flags & conn_flags::AGENT != 0 {
        (roomy, half_flags::MAY_JOIN | hold)
    } else if conn.endpoint == ENDPOINT_AGENT {
        (half_flags::MAY_JOIN | hold, roomy)
    } else {
        (0, 0)
    }
}

/// The accepting end is established; nothing has been received. If the dialling end was enrolled, so is this one, and they are a pair.
#[inline(always)]
fn on_accepted(ctx: &SockOpsContext, allowed: bool) {
    original::take(ctx);
    introduce::take(ctx);
    if !shortcut_wanted() || decided(ctx) {
        return;
    }
    if !allowed {
        refuse_accepted(ctx);
        return;
    }
    if let Err(why) = enrol_server(ctx) {
        count::one(why);
    }
}

/// A half that has fallen back keeps an outer cgroup's program from enrolling this socket.
#[inline(always)]
fn refuse_accepted(ctx: &SockOpsContext) {
    let mut half = Half { key: accepted_key(ctx), ..Half::fallen_back() };
    let _ = socket::store(&HALVES, socket::of_ops(ctx.ops), &mut half);
}

#[inline(always)]
fn enrol_server(ctx: &SockOpsContext) -> Result<(), Counter> {
    let key = accepted_key(ctx);
    let Some(meeting) = MEETINGS.get_ptr(&key) else { return Ok(()) };
    // SAFETY: copied once; the memory may be another's by now, which is why the socket itself is asked below.
    let meeting = unsafe { core::ptr::read_volatile(meeting) };
    let settings = SETTINGS.get(0).ok_or(Counter::ShortcutRefused)?;
    if !socket::is_peer(
        meeting.client_sock,
        meeting.client_cookie,
        &key.server,
        &key.client,
        key.server_sequence,
        settings,
    ) {
        return Err(Counter::ShortcutRefused);
    }
    let half = new_half(ctx, settings, key, half_state::FALLBACK)?;
    half.flags = half_flags::SERVER | meeting.flags;
    half.service = meeting.service;
    half.peer_cookie = meeting.client_cookie;
    half.peer_sock = meeting.client_sock;
    half.limit_bytes = socket::receive_limit(half.peer_sock, settings);
    let mut cookie = half.cookie;
    enrol(ctx, &mut cookie).map_err(|_| Counter::ShortcutRefused)?;
    half.state = if half.flags & half_flags::HOLD != 0 { half_state::HELD } else { half_state::JOINED };
    // Gone: the client has sent its first bytes, through TCP, and that direction stays there.
    let _ = MEETINGS.insert(&key, &Meeting { server_cookie: cookie, server_sock: half.sock, ..meeting }, EXIST);
    hold(ctx, half);
    count::one(Counter::ShortcutServer);
    Ok(())
}

/// The name of a flow, as its dialling end finds it at establishment.
#[inline(always)]
pub fn dialled_key(ctx: &SockOpsContext) -> FlowKey {
    // SAFETY: two fields of the hook's context.
    let (client_sequence, server_sequence) = unsafe { ((*ctx.ops).snd_nxt, (*ctx.ops).rcv_nxt) };
    FlowKey { client: socket::local(ctx), server: socket::remote(ctx), client_sequence, server_sequence }
}

/// The same as its accepting end finds it.
#[inline(always)]
pub fn accepted_key(ctx: &SockOpsContext) -> FlowKey {
    // SAFETY: two fields of the hook's context.
    let (client_sequence, server_sequence) = unsafe { ((*ctx.ops).rcv_nxt, (*ctx.ops).snd_nxt) };
    FlowKey { client: socket::remote(ctx), server: socket::local(ctx), client_sequence, server_sequence }
}

/// A half for this socket. Not for a subflow of MPTCP, which a sockmap breaks (trap T9).
#[inline(always)]
fn new_half(ctx: &SockOpsContext, settings: &Settings, key: FlowKey, state: u32) -> Result<&'static mut Half, Counter> {
    let socket = socket::of_ops(ctx.ops);
    let mut half = Half { key, cookie: cookie(ctx), state, ..Half::fallen_back() };
    let half = socket::store(&HALVES, socket, &mut half).ok_or(Counter::ShortcutRefused)?;
    // The verifier lets nobody calculate with a socket pointer; written into a map value and read back it is a number.
    // SAFETY: a field of a map value that this hook holds.
    let sock = unsafe {
        core::ptr::write_volatile((&raw mut half.sock).cast::<*mut core::ffi::c_void>(), socket);
        core::ptr::read_volatile(&raw const half.sock)
    };
    let offset = settings.offsets.is_mptcp;
    if offset != 0 && socket::peek::<u8>(sock, offset).unwrap_or(1) & 1 != 0 {
        socket::forget(&HALVES, socket::of_ops(ctx.ops));
        return Err(Counter::ShortcutMptcp);
    }
    Ok(half)
}

#[inline(always)]
fn enrol(ctx: &SockOpsContext, cookie: &mut u64) -> Result<(), i32> {
    // SAFETY: the context itself, not a copy: the helper finds the socket through it.
    SHORTCUT.update(cookie, unsafe { &mut *ctx.ops }, NO_EXIST)
}

/// A connection is closed: what it held is given back, and it is counted, once.
#[inline(always)]
fn on_state(ctx: &SockOpsContext) {
    let (from, to) = (ctx.arg(0), ctx.arg(1));
    if to != BPF_TCP_CLOSE {
        return;
    }
    let Some(conn) = socket::stored(&CONNS, socket::of_ops(ctx.ops)) else { return };
    release::all(conn);
    if conn.flags & conn_flags::ENDED != 0 {
        return;
    }
    conn.flags |= conn_flags::ENDED;
    if from == BPF_TCP_SYN_SENT {
        on_failed(ctx, conn);
    } else {
        latency::ended(ctx, conn);
    }
    watch::closed(ctx, conn, from);
}

/// A dial ended before it was established: the endpoint refused, nobody answered, or the program gave up.
#[inline(always)]
fn on_failed(ctx: &SockOpsContext, conn: &Conn) {
    let key = EndpointKey { service: conn.service, endpoint: conn.endpoint };
    if let Some(stats) = ENDPOINT_STATS.get_ptr_mut(&key) {
        // SAFETY: this CPU's element; see `count::add`.
        unsafe { (*stats).failures += 1 };
    }
    count::one(Counter::HandshakeFailed);
    if conn.endpoint == ENDPOINT_AGENT {
        return;
    }
    if let Some(settings) = SETTINGS.get(0) {
        // SAFETY: plain helper without arguments.
        eject::failed(conn, socket::of_ops(ctx.ops), settings, unsafe { bpf_ktime_get_ns() });
    }
    let event = Event {
        kind: event_kind::CONNECT_FAILED,
        pid: 0,
        netns: conn.netns,
        service: conn.service,
        endpoint: conn.endpoint,
    };
    event::send(&event, u64::from(conn.service) << 32 | u64::from(conn.endpoint));
}

#[inline(always)]
fn shortcut_wanted() -> bool {
    SETTINGS.get(0).is_some_and(|settings| settings.flags & settings_flags::SHORTCUT != 0)
}

#[inline(always)]
fn cookie(ctx: &SockOpsContext) -> u64 {
    // SAFETY: the helper takes the hook's context.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}
