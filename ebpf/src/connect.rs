//! A program dials. The verdict is which address its socket will really dial, or that it may not: only a limit of the service says so.

use core::{mem, ptr};

use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_sock_tuple,
    helpers::{
        bpf_get_current_pid_tgid, bpf_ktime_get_ns,
        generated::{bpf_get_current_cgroup_id, bpf_get_retval, bpf_set_retval, bpf_sk_lookup_tcp, bpf_sk_release},
    },
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use sockway_common::{
    capture::{Event, LISTENER_TAG, Settings, event_kind},
    counter::Counter,
    flow::{Address, Conn, ENDPOINT_AGENT, UDP, conn_flags},
    limit::over,
    service::{Service, service_flags},
};

use crate::{
    breaker, caller,
    choose::{self, service_at},
    count, event, exclude,
    limit::{self, Over},
    maps::{CONNS, HEARTBEAT, LISTENER_TAGS, LISTENERS, SETTINGS},
    mptcp, original, release, socket, source, udp, watch,
};

/// The hook lets `connect()` go on.
const ALLOW: i32 = 1;
/// The hook lets `connect()` fail, with the error that it has set (Linux 5.18), else with `EPERM`.
const FAIL: i32 = 0;
/// Errors of `connect()`, as Linux numbers them.
const EPERM: i32 = 1;
const ECONNREFUSED: i32 = 111;
/// 127.0.0.1 in network order.
pub const LOOPBACK_V4: u32 = 0x7f00_0001_u32.to_be();
/// Last word of ::1.
pub const LOOPBACK_V6: u32 = 1_u32.to_be();
/// Longer than the hooks of nested cgroups are apart. A program that dials the endpoint itself so soon after the service was connected to it
/// before both, or dialled in vain; else it is seen.
const UDP_DIAL_NS: u64 = 5_000_000;
/// The current network namespace, for `bpf_sk_lookup_tcp`.
const CURRENT_NETNS: u64 = u64::MAX;

/// `connect()` of an IPv4 socket.
#[cgroup_sock_addr(connect4)]
pub fn dial_v4(ctx: SockAddrContext) -> i32 {
    let dialled = socket::dialled_v4(ctx.sock_addr);
    source::forget_v4(&ctx, &dialled);
    let verdict = verdict(&ctx, &dialled);
    if let Verdict::Redirect { to, .. } = &verdict {
        source::keep_v4(&ctx);
        mptcp::tell_owner(&ctx);
        udp::note_connected(&ctx);
        socket::redirect_v4(ctx.sock_addr, to);
    }
    verdict.settle()
}

/// `connect()` of an IPv6 socket, to an IPv4-mapped address too.
#[cgroup_sock_addr(connect6)]
pub fn dial_v6(ctx: SockAddrContext) -> i32 {
    let dialled = socket::dialled_v6(ctx.sock_addr);
    source::forget_v6(&ctx, &dialled);
    let verdict = verdict(&ctx, &dialled);
    if let Verdict::Redirect { to, .. } = &verdict {
        source::keep_v6(&ctx);
        mptcp::tell_owner(&ctx);
        udp::note_connected(&ctx);
        socket::redirect_v6(ctx.sock_addr, to);
    }
    verdict.settle()
}

/// What becomes of one `connect()`.
enum Verdict {
    /// Untouched.
    Pass(Counter),
    /// To another address.
    Redirect { to: Address, counter: Counter },
    /// It fails at once, with this error (a negative errno).
    Fail { error: i32, counter: Counter },
    /// Untouched, and counted before: the hook of a nearer cgroup has put this address in, or has let it fail.
    Settled,
}

impl Verdict {
    /// Counts it, and says to the kernel whether `connect()` goes on.
    #[inline(always)]
    fn settle(&self) -> i32 {
        match self {
            Verdict::Pass(counter) | Verdict::Redirect { counter, .. } => count::one(*counter),
            Verdict::Fail { error, counter } => {
                count::one(*counter);
                // SAFETY: plain helper; what it refuses is an error number that is none.
                unsafe { bpf_set_retval(*error) };
                return FAIL;
            }
            Verdict::Settled => {}
        }
        ALLOW
    }
}

#[inline(always)]
fn verdict(ctx: &SockAddrContext, dialled: &Address) -> Verdict {
    let Some(settings) = SETTINGS.get(0) else { return Verdict::Pass(Counter::ConnectNotService) };
    // SAFETY: plain helper without arguments.
    if unsafe { bpf_get_current_cgroup_id() } == settings.agent_cgroup {
        return Verdict::Pass(Counter::ConnectOwn);
    }
    let socket = socket::of_addr(ctx.sock_addr);
    let left = socket::stored(&CONNS, socket);
    if let Some(conn) = left {
        if conn.flags & conn_flags::DIALLING != 0 && conn.actual == *dialled && is_under_way(ctx, conn) {
            return Verdict::Settled;
        }
        // What an earlier connect() of this socket took and left must not answer for this one (trap T30).
        release::all(conn);
        udp::forget_connected(ctx, conn);
        udp::replaced(ctx, conn, dialled);
        socket::forget(&CONNS, socket);
    } else if dialled.protocol == UDP {
        udp::forget_former(ctx, dialled);
    }
    // SAFETY: plain helper without arguments.
    if unsafe { bpf_get_retval() } < 0 {
        return Verdict::Settled;
    }
    let Some(service) = service_at(dialled) else { return Verdict::Pass(Counter::ConnectNotService) };
    if caller::is_kernel() {
        return Verdict::Pass(Counter::ConnectKernel);
    }
    match exclude::check(ctx, settings, Counter::ConnectExcluded) {
        Ok(()) => dial(ctx, settings, dialled, &service),
        Err(counter) => Verdict::Pass(counter),
    }
}

/// Of TCP, the flag says it: it is taken away when the SYN leaves. UDP has no such moment, but its hooks run within one `connect()`, and behind
/// that the socket is connected.
#[inline(always)]
fn is_under_way(ctx: &SockAddrContext, conn: &Conn) -> bool {
    if conn.original.protocol != UDP {
        return true;
    }
    // SAFETY: plain helper without arguments.
    let is_recent = unsafe { bpf_ktime_get_ns() }.wrapping_sub(conn.dialled_ns) < UDP_DIAL_NS;
    is_recent && (conn.flags & conn_flags::STAYED != 0 || !socket::is_connected_to(ctx.sock_addr, &conn.actual))
}

/// A service is dialled.
#[inline(always)]
fn dial(ctx: &SockAddrContext, settings: &Settings, dialled: &Address, service: &Service) -> Verdict {
    // SAFETY: plain helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let netns = socket::netns(ctx);
    if service.flags & service_flags::BREAKER != 0 && breaker::refuses(service.id, settings, now) {
        watch::not_dialled(dialled, service.id, netns, Counter::ConnectOpen);
        return Verdict::Fail { error: -ECONNREFUSED, counter: Counter::ConnectOpen };
    }
    let mut conn = Conn {
        original: *dialled,
        actual: *dialled,
        service: service.id,
        endpoint: ENDPOINT_AGENT,
        netns,
        source: choose::source(service, netns),
        dialled_ns: now,
        held: 0,
        flags: flags(service),
        pid: (bpf_get_current_pid_tgid() >> 32) as u32,
        connect_us: 0,
        verdict: 0,
        cgroup: 0,
        command: [0; 16],
    };
    if service.flags & service_flags::LIMITED != 0 {
        match limit::reserve(service.id, conn.source, now) {
            Ok(held) => conn.held = held,
            Err(over) => {
                let (error, counter) = over_limit(&over);
                watch::not_dialled(dialled, service.id, netns, counter);
                return if error == 0 { Verdict::Pass(counter) } else { Verdict::Fail { error, counter } };
            }
        }
    }
    match direct(ctx, settings, service, &mut conn) {
        Ok(counter) => Verdict::Redirect { to: conn.actual, counter },
        Err(counter) => {
            release::give_back(conn.service, conn.endpoint, conn.source, conn.held);
            watch::not_dialled(dialled, service.id, netns, counter);
            Verdict::Pass(counter)
        }
    }
}

#[inline(always)]
fn flags(service: &Service) -> u32 {
    let mut flags = conn_flags::DIALLING;
    if service.flags & service_flags::SHORTCUT != 0 {
        flags |= conn_flags::SHORTCUT;
    }
    if service.flags & service_flags::EJECT != 0 {
        flags |= conn_flags::EJECTS;
    }
    if service.flags & service_flags::OPAQUE != 0 {
        flags |= conn_flags::HOLD;
    }
    if service.flags & service_flags::ORIGINAL_DST != 0 {
        flags |= conn_flags::TELLS_ORIGINAL;
    }
    flags
}

/// What `connect()` fails with by that limit, or 0, and what it is counted as. Not the verdict: of one that has no error the compiler would keep
/// whatever stands in a register, which the verifier refuses.
#[inline(always)]
fn over_limit(over: &Over) -> (i32, Counter) {
    count::one(over.counter);
    match over.policy {
        over::FORBID => (-EPERM, Counter::ConnectForbidden),
        over::PASS => (0, Counter::ConnectOver),
        _ => (-ECONNREFUSED, Counter::ConnectRefused),
    }
}

/// Finds where the connection goes, to the agent or to an endpoint, and keeps it with the socket.
#[inline(always)]
fn direct(ctx: &SockAddrContext, settings: &Settings, service: &Service, conn: &mut Conn) -> Result<Counter, Counter> {
    let mut counter = Counter::ConnectBalanced;
    let mut agent = None;
    if service.flags & service_flags::AGENT != 0 {
        match agent_address(ctx, settings, conn) {
            Ok(to) => {
                agent = Some(to);
                counter = Counter::ConnectAgent;
            }
            Err(why) => counter = why,
        }
    }
    if let Some(to) = agent {
        conn.actual = to;
    } else {
        let chosen = choose::endpoint(service, conn.source, conn.dialled_ns).ok_or(Counter::ConnectNoEndpoint)?;
        conn.actual = chosen.address;
        conn.endpoint = chosen.endpoint;
    }
    let reserved = conn.held;
    conn.held |= release::count_open(service, conn.endpoint);
    conn.verdict = counter as u32;
    let Some(stored) = socket::store(&CONNS, socket::of_addr(ctx.sock_addr), conn) else {
        release::give_back(conn.service, conn.endpoint, conn.source, conn.held & !reserved);
        conn.held = reserved;
        return Err(Counter::ConnectNoStorage);
    };
    watch::note_who(stored);
    Ok(counter)
}

/// The agent's listener in the caller's namespace, if the agent lives; else why not.
#[inline(always)]
fn agent_address(ctx: &SockAddrContext, settings: &Settings, conn: &Conn) -> Result<Address, Counter> {
    // Loopback is behind no other device: the agent would never hear of it.
    if socket::is_bound_to_device(ctx.sock_addr) {
        return Err(Counter::ConnectBoundDevice);
    }
    let heartbeat = HEARTBEAT.get(0).copied().unwrap_or(0);
    if conn.dialled_ns.wrapping_sub(heartbeat) as i64 > settings.heartbeat_max_age_ns as i64 {
        return Err(Counter::ConnectHung);
    }
    // SAFETY: the entry is replaced whole by the agent.
    let Some(listener) = (unsafe { LISTENERS.get(&conn.netns) }) else {
        report_unseen(conn);
        return Err(Counter::ConnectNoListener);
    };
    let v4 = conn.original.is_v4();
    let to = if v4 {
        Address::v4(LOOPBACK_V4, listener.port_v4)
    } else {
        Address::v6([0, 0, 0, LOOPBACK_V6], listener.port_v6)
    };
    if to.port == 0 {
        return Err(Counter::ConnectNoListener);
    }
    if !is_tagged(ctx, &to, v4) {
        return Err(Counter::ConnectNotTagged);
    }
    if original::has_room() { Ok(to) } else { Err(Counter::ConnectNoRoom) }
}

/// Whether the socket that listens on `to` is the agent's (trap T24: another may have taken the port).
#[inline(always)]
fn is_tagged(ctx: &SockAddrContext, to: &Address, v4: bool) -> bool {
    // SAFETY: all zero is a valid tuple.
    let mut tuple: bpf_sock_tuple = unsafe { mem::zeroed() };
    let size = if v4 {
        // SAFETY: the union's IPv4 arm, written whole.
        unsafe {
            tuple.__bindgen_anon_1.ipv4.saddr = to.ip[3];
            tuple.__bindgen_anon_1.ipv4.daddr = to.ip[3];
            tuple.__bindgen_anon_1.ipv4.dport = to.port;
            size_of_val(&tuple.__bindgen_anon_1.ipv4)
        }
    } else {
        // SAFETY: the union's IPv6 arm, written whole.
        unsafe {
            tuple.__bindgen_anon_1.ipv6.saddr = to.ip;
            tuple.__bindgen_anon_1.ipv6.daddr = to.ip;
            tuple.__bindgen_anon_1.ipv6.dport = to.port;
            size_of_val(&tuple.__bindgen_anon_1.ipv6)
        }
    };
    // SAFETY: the tuple is initialised; the reference that a hit carries is given back below on every path.
    unsafe {
        let found = bpf_sk_lookup_tcp(ctx.as_ptr(), ptr::from_mut(&mut tuple).cast(), size as u32, CURRENT_NETNS, 0);
        if found.is_null() {
            return false;
        }
        let tagged = socket::stored(&LISTENER_TAGS, found.cast()).is_some_and(|tag| *tag == LISTENER_TAG);
        bpf_sk_release(found.cast());
        tagged
    }
}

#[inline(always)]
fn report_unseen(conn: &Conn) {
    let event = Event {
        kind: event_kind::UNSEEN_NAMESPACE,
        pid: conn.pid,
        netns: conn.netns,
        service: conn.service,
        endpoint: ENDPOINT_AGENT,
    };
    event::send(&event, conn.netns);
}
