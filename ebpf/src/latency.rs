//! Measures the connections of programs to an endpoint: how long a handshake took, and at the end how long a round trip did.

use core::ptr;

use aya_ebpf::{helpers::bpf_ktime_get_ns, programs::SockOpsContext};
use sockway_common::{
    counter::Counter,
    flow::{Conn, conn_flags},
    latency::EndpointLatency,
    service::EndpointKey,
};

use crate::{
    count,
    maps::{LATENCIES, NO_LATENCY},
};

/// `BPF_NOEXIST`.
const NO_EXIST: u64 = 1;

/// A dial has become a connection. Measured once, also where capture rules nest; not for the agent's own sockets, which dialled no service.
#[inline(always)]
pub fn established(conn: &mut Conn) {
    if conn.connect_us != 0 || conn.flags & conn_flags::AGENT != 0 {
        return;
    }
    // SAFETY: plain helper without arguments.
    let took_us = unsafe { bpf_ktime_get_ns() }.wrapping_sub(conn.dialled_ns) / 1000;
    // No SYN is retried for as long as 71 minutes, which is when this would saturate.
    conn.connect_us = took_us.clamp(1, u64::from(u32::MAX)) as u32;
    if let Some(latency) = of_endpoint(conn).or_else(|| begin(conn)) {
        latency.connect.count(conn.connect_us);
    }
}

/// A connection has ended.
#[inline(always)]
pub fn ended(ctx: &SockOpsContext, conn: &Conn) {
    if let Some(latency) = of_endpoint(conn) {
        latency.rtt.count(rtt_us(ctx));
        latency.retransmits += u64::from(retransmits(ctx));
    }
}

/// Smoothed round-trip time of the context's socket, in µs.
#[inline(always)]
pub fn rtt_us(ctx: &SockOpsContext) -> u32 {
    // The kernel keeps eight times as much.
    // SAFETY: one field of the hook's context.
    unsafe { ptr::read_volatile(&raw const (*ctx.ops).srtt_us) >> 3 }
}

/// Segments that the context's socket has sent again.
#[inline(always)]
pub fn retransmits(ctx: &SockOpsContext) -> u32 {
    // SAFETY: one field of the hook's context.
    unsafe { ptr::read_volatile(&raw const (*ctx.ops).total_retrans) }
}

/// What this CPU has measured of the endpoint that a socket was sent to.
#[inline(always)]
fn of_endpoint(conn: &Conn) -> Option<&'static mut EndpointLatency> {
    let key = EndpointKey { service: conn.service, endpoint: conn.endpoint };
    // SAFETY: this CPU's element; see `count::add`.
    unsafe { LATENCIES.get_ptr_mut(&key)?.as_mut() }
}

/// The first connection to an endpoint.
#[inline(always)]
fn begin(conn: &Conn) -> Option<&'static mut EndpointLatency> {
    let key = EndpointKey { service: conn.service, endpoint: conn.endpoint };
    // Another CPU may have been first: then the entry is there all the same.
    let _ = LATENCIES.insert(&key, &NO_LATENCY, NO_EXIST);
    let latency = of_endpoint(conn);
    if latency.is_none() {
        count::one(Counter::LatencyFull);
    }
    latency
}
