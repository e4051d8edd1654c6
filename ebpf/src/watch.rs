//! Tells whoever watches (`sockway flows`) about flows that have ended. Nobody watching is the rule: then it costs one look at an array.

use core::ptr;

use aya_ebpf::{
    bindings::BPF_RB_NO_WAKEUP,
    helpers::{
        bpf_get_current_pid_tgid, bpf_ktime_get_ns, bpf_ringbuf_submit,
        generated::{bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_ktime_get_coarse_ns},
    },
    programs::SockOpsContext,
};
use sockway_common::{
    capture::SOCK_DONE,
    counter::Counter,
    flow::{Address, Conn, ENDPOINT_AGENT, conn_flags},
    udp::Conversation,
    watch::{ERROR_UNKNOWN, Flow, Reported, Watch, cause, flow_flags, slice},
};

use crate::{
    count, latency,
    maps::{FLOWS, HALVES, REPORTED, SETTINGS, WATCH},
    socket,
};

/// Notes of a program that dials what will not be found out later, when it may be gone: its command and its cgroup. Of many it is decided
/// here which are reported when they end: the others cost next to nothing.
#[inline(always)]
pub fn note_who(conn: &mut Conn) {
    let Some(watch) = watching(conn.dialled_ns) else { return };
    if !watch.wants(conn.service, conn.pid, &conn.actual) {
        return;
    }
    let Some(reported) = REPORTED.get_ptr_mut(0) else { return };
    // SAFETY: this CPU's element; see `count::add`.
    unsafe {
        begin_slice(reported, conn.dialled_ns);
        if (*reported).noted >= watch.flows_max {
            return;
        }
        (*reported).noted += 1;
    }
    conn.flags |= conn_flags::NOTED;
    name_program(conn);
}

#[inline(always)]
fn name_program(conn: &mut Conn) {
    // SAFETY: the helper writes as many bytes as it is told; the other takes no arguments.
    unsafe {
        bpf_get_current_comm(conn.command.as_mut_ptr().cast(), size_of_val(&conn.command) as u32);
        conn.cgroup = bpf_get_current_cgroup_id();
    }
}

/// A `connect()` that did not dial what it could have: the verdict says why.
#[inline(always)]
pub fn not_dialled(dialled: &Address, service: u32, netns: u64, verdict: Counter) {
    let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let Some(flow) = begin(service, pid, dialled, None) else { return };
    // SAFETY: a reserved record, of which all that is not zero is written here.
    unsafe {
        let conn = &mut (*flow).conn;
        (conn.original, conn.actual) = (*dialled, *dialled);
        (conn.service, conn.endpoint) = (service, ENDPOINT_AGENT);
        (conn.netns, conn.pid, conn.verdict) = (netns, pid, verdict as u32);
        conn.dialled_ns = bpf_ktime_get_ns();
        name_program(conn);
        (*flow).ended_ns = conn.dialled_ns;
        (*flow).cause = cause::NOT_DIALLED;
        submit(flow);
    }
}

/// A TCP socket that has left `state` and is closed now.
#[inline(always)]
pub fn closed(ctx: &SockOpsContext, conn: &Conn, state: u32) {
    let Some(flow) = begin(conn.service, conn.pid, &conn.actual, Some(conn)) else { return };
    // SAFETY: a reserved record; the context's fields are read one by one, as the verifier wants it.
    unsafe {
        (*flow).conn = *conn;
        (*flow).ended_ns = bpf_ktime_get_ns();
        (*flow).received_bytes = ptr::read_volatile(&raw const (*ctx.ops).bytes_received);
        (*flow).sent_bytes = ptr::read_volatile(&raw const (*ctx.ops).bytes_acked);
        (*flow).rtt_us = latency::rtt_us(ctx);
        (*flow).retransmits = latency::retransmits(ctx);
        (*flow).state = state;
        ptr::write(&raw mut (*flow).local, socket::local(ctx));
        look_inside(flow, socket::of_ops(ctx.ops));
        add_shortcut(flow, socket::of_ops(ctx.ops));
        submit(flow);
    }
}

/// A UDP socket that was connected to an endpoint is so no more, by this cause.
#[inline(always)]
pub fn disconnected(conn: &Conn, cause: u32) {
    let Some(flow) = begin(conn.service, conn.pid, &conn.actual, Some(conn)) else { return };
    // SAFETY: a reserved record.
    unsafe {
        (*flow).conn = *conn;
        (*flow).ended_ns = bpf_ktime_get_ns();
        (*flow).cause = cause;
        submit(flow);
    }
}

/// A UDP socket that had this conversation is released.
#[inline(always)]
pub fn conversed(conversation: &Conversation, netns: u64) {
    let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let Some(flow) = begin(conversation.service, pid, &conversation.actual, None) else { return };
    // SAFETY: a reserved record, of which all that is not zero is written here.
    unsafe {
        let conn = &mut (*flow).conn;
        (conn.original, conn.actual) = (conversation.original, conversation.actual);
        (conn.service, conn.endpoint) = (conversation.service, conversation.endpoint);
        (conn.netns, conn.pid, conn.verdict) = (netns, pid, Counter::SendBalanced as u32);
        name_program(conn);
        (*flow).ended_ns = bpf_ktime_get_ns();
        (*flow).cause = cause::CONVERSED;
        (*flow).state = conversation.state;
        (*flow).datagrams = conversation.sent;
        submit(flow);
    }
}

/// Whether somebody watches, or did until a moment ago.
#[inline(always)]
pub fn is_on() -> bool {
    WATCH.get(0).is_some_and(|watch| watch.until_ns != 0)
}

/// The watcher, if there is one at `now`.
#[inline(always)]
fn watching(now: u64) -> Option<&'static Watch> {
    WATCH.get(0).filter(|watch| watch.until_ns > now)
}

/// A record of the ring buffer, all zero, if there is a watcher who wants to see the flow. `dialled`: the flow was [noted](note_who), or is
/// not one of those that are reported.
#[inline(always)]
fn begin(service: u32, pid: u32, endpoint: &Address, dialled: Option<&Conn>) -> Option<*mut Flow> {
    let watch = WATCH.get(0)?;
    if watch.until_ns == 0 || !watch.wants(service, pid, endpoint) {
        return None;
    }
    // Most of many: no clock is asked for them, so that a watcher that was killed has them counted until somebody ends its watch.
    if dialled.is_some_and(|conn| conn.flags & conn_flags::NOTED == 0 && !watch.may_be_later_than(conn.dialled_ns)) {
        count::one(Counter::FlowOverRate);
        return None;
    }
    // The clock of the last tick is exact enough for leases and slices, and costs a tenth.
    // SAFETY: plain helper without arguments.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    if watch.until_ns <= now {
        return None;
    }
    if !within_rate(watch, now) {
        count::one(Counter::FlowOverRate);
        return None;
    }
    let Some(mut record) = FLOWS.reserve::<Flow>(0) else {
        count::one(Counter::FlowLost);
        return None;
    };
    let flow = record.as_mut_ptr();
    // The record is given back by `submit`, from its address.
    core::mem::forget(record);
    // SAFETY: as long as a `Flow`, in which every bit pattern is valid.
    unsafe { ptr::write_bytes(flow, 0, 1) };
    Some(flow)
}

/// # Safety
///
/// `flow` comes from [`begin`] and is not used afterwards.
#[inline(always)]
unsafe fn submit(flow: *mut Flow) {
    // The reader looks by itself: waking it would cost each flow more than everything else here.
    // SAFETY: by the caller.
    unsafe { bpf_ringbuf_submit(flow.cast(), u64::from(BPF_RB_NO_WAKEUP)) };
    count::one(Counter::FlowReported);
}

/// Whether this CPU may report another flow in the slice of time that runs.
#[inline(always)]
fn within_rate(watch: &Watch, now: u64) -> bool {
    let Some(reported) = REPORTED.get_ptr_mut(0) else { return false };
    // SAFETY: this CPU's element; see `count::add`.
    unsafe {
        begin_slice(reported, now);
        if (*reported).flows >= watch.flows_max {
            return false;
        }
        (*reported).flows += 1;
    }
    true
}

/// Begins the slice that `now` is in, if it is a new one: the clock of the last tick may still tell of the one before.
///
/// # Safety
///
/// `reported` is this CPU's element.
#[inline(always)]
unsafe fn begin_slice(reported: *mut Reported, now: u64) {
    let slice = slice(now);
    // SAFETY: by the caller.
    unsafe {
        if (*reported).slice < slice {
            *reported = Reported { slice, flows: 0, noted: 0 };
        }
    }
}

/// What went past TCP.
///
/// # Safety
///
/// `flow` comes from [`begin`].
#[inline(always)]
unsafe fn add_shortcut(flow: *mut Flow, sk: *mut core::ffi::c_void) {
    let Some(half) = socket::stored(&HALVES, sk) else { return };
    // SAFETY: by the caller.
    unsafe {
        (*flow).shortcut_sent_bytes = half.redirected_bytes + half.joined_bytes;
        if half.redirected_bytes > 0 || half.peer_cookie != 0 {
            (*flow).flags |= flow_flags::SHORTCUT;
        }
        if half.joined_bytes > 0 {
            (*flow).flags |= flow_flags::JOINED;
        }
    }
}

/// Why the socket was closed, and whether its peer's FIN had come in: fields that no context shows.
///
/// # Safety
///
/// `flow` comes from [`begin`].
#[inline(always)]
unsafe fn look_inside(flow: *mut Flow, sk: *mut core::ffi::c_void) {
    // SAFETY: by the caller.
    unsafe {
        (*flow).error = ERROR_UNKNOWN;
        let Some(settings) = SETTINGS.get(0) else { return };
        if settings.offsets.error == 0 || sk.is_null() {
            return;
        }
        // The verifier lets nobody calculate with a socket pointer; written into the record and read back it is a number.
        let field = &raw mut (*flow).shortcut_sent_bytes;
        ptr::write_volatile(field.cast::<*mut core::ffi::c_void>(), sk);
        let address = ptr::read_volatile(field);
        ptr::write_volatile(field, 0);
        (*flow).error = socket::peek::<u32>(address, settings.offsets.error).unwrap_or(ERROR_UNKNOWN);
        let flags: u64 = socket::peek(address, settings.offsets.flags).unwrap_or(0);
        if flags & 1 << SOCK_DONE != 0 {
            (*flow).flags |= flow_flags::FIN_RECEIVED;
        }
    }
}
