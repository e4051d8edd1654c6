//! A program dials. The verdict is which address its socket will really dial; `connect()` itself is always allowed.

use core::{mem, ptr};

use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_sock_tuple,
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_prandom_u32, bpf_ktime_get_ns,
        generated::{bpf_get_current_cgroup_id, bpf_get_netns_cookie, bpf_sk_lookup_tcp, bpf_sk_release},
    },
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use sockway_common::{
    capture::{Event, LISTENER_TAG, Settings, event_kind},
    counter::Counter,
    flow::{Address, Conn, ENDPOINT_AGENT, UDP, conn_flags},
    service::{EndpointKey, Service, Slot, SlotKey, service_flags},
};

use crate::{
    caller, count, event, exclude,
    maps::{CONNS, CURSORS, ENDPOINT_STATS, HEARTBEAT, LISTENER_TAGS, LISTENERS, SERVICES, SETTINGS, SLOTS},
    mptcp, socket, source, watch,
};

/// The hook lets `connect()` go on.
const ALLOW: i32 = 1;
/// 127.0.0.1 in network order.
const LOOPBACK_V4: u32 = 0x7f00_0001_u32.to_be();
/// Last word of ::1.
const LOOPBACK_V6: u32 = 1_u32.to_be();
/// Longer than the hooks of nested cgroups are apart, shorter than a program takes to dial the endpoint itself after the service.
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
        socket::redirect_v4(ctx.sock_addr, to);
    }
    verdict.count();
    ALLOW
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
        socket::redirect_v6(ctx.sock_addr, to);
    }
    verdict.count();
    ALLOW
}

/// What becomes of one `connect()`.
enum Verdict {
    /// Untouched.
    Pass(Counter),
    /// To another address.
    Redirect { to: Address, counter: Counter },
    /// Untouched, and counted before: the hook of a nearer cgroup has put this address in.
    Settled,
}

impl Verdict {
    #[inline(always)]
    fn count(&self) {
        match self {
            Verdict::Pass(counter) | Verdict::Redirect { counter, .. } => count::one(*counter),
            Verdict::Settled => {}
        }
    }
}

#[inline(always)]
fn verdict(ctx: &SockAddrContext, dialled: &Address) -> Verdict {
    match try_dial(ctx, dialled) {
        Ok((to, counter)) => Verdict::Redirect { to, counter },
        Err(counter) => {
            if is_settled(ctx, dialled) {
                return Verdict::Settled;
            }
            Verdict::Pass(counter)
        }
    }
}

/// Whether the hook of a nearer cgroup has just put this address in. If not, what an earlier connect() of this socket left must not
/// answer for this one (trap T30), and is forgotten.
#[inline(always)]
fn is_settled(ctx: &SockAddrContext, dialled: &Address) -> bool {
    let socket = socket::of_addr(ctx.sock_addr);
    let Some(conn) = socket::stored(&CONNS, socket) else { return false };
    if conn.flags & conn_flags::DIALLING != 0 && conn.actual == *dialled && is_under_way(conn) {
        return true;
    }
    socket::forget(&CONNS, socket);
    false
}

/// Of TCP, the flag says it: it is taken away when the SYN leaves. UDP has no such moment, but its hooks run within one `connect()`.
#[inline(always)]
fn is_under_way(conn: &Conn) -> bool {
    // SAFETY: plain helper without arguments.
    conn.original.protocol != UDP || unsafe { bpf_ktime_get_ns() }.wrapping_sub(conn.dialled_ns) < UDP_DIAL_NS
}

#[inline(always)]
fn try_dial(ctx: &SockAddrContext, dialled: &Address) -> Result<(Address, Counter), Counter> {
    let settings = SETTINGS.get(0).ok_or(Counter::ConnectNotService)?;
    // SAFETY: plain helper without arguments.
    if unsafe { bpf_get_current_cgroup_id() } == settings.agent_cgroup {
        return Err(Counter::ConnectOwn);
    }
    let service = &service_at(dialled).ok_or(Counter::ConnectNotService)?;
    if caller::is_kernel() {
        return Err(Counter::ConnectKernel);
    }
    exclude::check(ctx, settings, Counter::ConnectExcluded)?;

    let (agent, counter) = if service.flags & service_flags::AGENT != 0 {
        match agent_address(ctx, settings, dialled, service) {
            Ok(to) => (Some((to, ENDPOINT_AGENT)), Counter::ConnectAgent),
            Err(why) => (None, why),
        }
    } else {
        (None, Counter::ConnectBalanced)
    };
    let Some((to, endpoint)) = agent.or_else(|| choose(dialled, service)) else {
        watch::not_dialled(dialled, service.id, netns(ctx), Counter::ConnectNoEndpoint);
        return Err(Counter::ConnectNoEndpoint);
    };
    remember(ctx, dialled, &to, service, endpoint, counter)?;
    count_endpoint(service.id, endpoint);
    Ok((to, counter))
}

/// The service at an address. An entry that is being replaced under our eyes is read once more.
#[inline(always)]
pub fn service_at(dialled: &Address) -> Option<Service> {
    read_service(dialled).or_else(|| read_service(dialled))
}

#[inline(always)]
fn read_service(dialled: &Address) -> Option<Service> {
    // SAFETY: copied once, at once, and used only if the copy is whole.
    let service: Service = unsafe { ptr::read_volatile(SERVICES.get_ptr(dialled)?) };
    service.is_whole(dialled).then_some(service)
}

/// Keeps with the socket what it dialled.
#[inline(always)]
fn remember(
    ctx: &SockAddrContext,
    dialled: &Address,
    to: &Address,
    service: &Service,
    endpoint: u32,
    verdict: Counter,
) -> Result<(), Counter> {
    let shortcut = if service.flags & service_flags::SHORTCUT != 0 { conn_flags::SHORTCUT } else { 0 };
    let hold = if service.flags & service_flags::OPAQUE != 0 { conn_flags::HOLD } else { 0 };
    let mut conn = Conn {
        #[cfg(feature = "next-layout")]
        moved: 0,
        original: *dialled,
        actual: *to,
        service: service.id,
        endpoint,
        netns: netns(ctx),
        source: netns(ctx),
        // SAFETY: plain helper without arguments.
        dialled_ns: unsafe { bpf_ktime_get_ns() },
        held: 0,
        flags: shortcut | hold | conn_flags::DIALLING,
        pid: (bpf_get_current_pid_tgid() >> 32) as u32,
        connect_us: 0,
        verdict: verdict as u32,
        cgroup: 0,
        command: [0; 16],
    };
    let conn = socket::store(&CONNS, socket::of_addr(ctx.sock_addr), &mut conn).ok_or(Counter::ConnectNoStorage)?;
    watch::note_who(conn);
    Ok(())
}

/// An endpoint of the service; `None` when there is none to choose. The agent may have swapped the table since the service was read:
/// then once more with what stands there now.
#[inline(always)]
pub fn choose(dialled: &Address, service: &Service) -> Option<(Address, u32)> {
    take_slot(service).or_else(|| take_slot(&service_at(dialled)?))
}

/// An endpoint by the slot table.
#[inline(always)]
fn take_slot(service: &Service) -> Option<(Address, u32)> {
    if service.slots == 0 {
        return None;
    }
    let in_turn = service.flags & service_flags::IN_TURN != 0;
    let turn = if in_turn { next_turn(service.id) } else { random() };
    let key = SlotKey { service: service.id, generation: service.generation, slot: turn % service.slots };
    // SAFETY: copied once, at once, and used only if the copy is whole.
    let slot: Slot = unsafe { ptr::read_volatile(SLOTS.get_ptr(&key)?) };
    if !slot.is_whole(&key) {
        return None;
    }
    if in_turn || random() <= slot.threshold {
        Some((slot.first, slot.first_id))
    } else {
        Some((slot.second, slot.second_id))
    }
}

/// Counts up the cursor of a service. Shared by all CPUs, so that taking turns is exact.
#[inline(always)]
fn next_turn(service: u32) -> u32 {
    let Some(cursor) = CURSORS.get_ptr_mut(&service) else { return random() };
    let mut turn = 1_u64;
    // SAFETY: the pointer is to a map value, eight bytes, aligned. Rust's atomics have no `fetch_add` on this target, the machine has.
    unsafe {
        core::arch::asm!(
            "{turn} = atomic_fetch_add((u64 *)({cursor} + 0), {turn})",
            cursor = in(reg) cursor,
            turn = inout(reg) turn,
            options(nostack),
        );
    }
    turn as u32
}

#[inline(always)]
fn random() -> u32 {
    // SAFETY: plain helper without arguments.
    unsafe { bpf_get_prandom_u32() }
}

/// The agent's listener in the caller's namespace, if the agent lives; else why not.
#[inline(always)]
fn agent_address(
    ctx: &SockAddrContext,
    settings: &Settings,
    dialled: &Address,
    service: &Service,
) -> Result<Address, Counter> {
    // Loopback is behind no other device: the agent would never hear of it.
    if socket::is_bound_to_device(ctx.sock_addr) {
        return Err(Counter::ConnectBoundDevice);
    }
    // SAFETY: plain helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let heartbeat = HEARTBEAT.get(0).copied().unwrap_or(0);
    if now.wrapping_sub(heartbeat) as i64 > settings.heartbeat_max_age_ns as i64 {
        return Err(Counter::ConnectHung);
    }
    let netns = netns(ctx);
    // SAFETY: the entry is replaced whole by the agent.
    let Some(listener) = (unsafe { LISTENERS.get(&netns) }) else {
        report_unseen(netns, service.id);
        return Err(Counter::ConnectNoListener);
    };
    let v4 = dialled.is_v4();
    let to = if v4 {
        Address::v4(LOOPBACK_V4, listener.port_v4)
    } else {
        Address::v6([0, 0, 0, LOOPBACK_V6], listener.port_v6)
    };
    if to.port == 0 {
        return Err(Counter::ConnectNoListener);
    }
    if is_tagged(ctx, &to, v4) { Ok(to) } else { Err(Counter::ConnectNotTagged) }
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
fn netns(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the helper takes the hook's context.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

#[inline(always)]
fn report_unseen(netns: u64, service: u32) {
    let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    event::send(&Event { kind: event_kind::UNSEEN_NAMESPACE, pid, netns, service, endpoint: ENDPOINT_AGENT }, netns);
}

#[inline(always)]
pub fn count_endpoint(service: u32, endpoint: u32) {
    if let Some(stats) = ENDPOINT_STATS.get_ptr_mut(&EndpointKey { service, endpoint }) {
        // SAFETY: this CPU's element; see `count::add`.
        unsafe { (*stats).connects += 1 };
    }
}
