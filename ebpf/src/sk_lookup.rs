//! A connection comes in, and the kernel looks for who listens. The verdict is the program that would have it anyway, a listener of the
//! agent, or nobody.
//!
//! The hook is asked for every packet of TCP and UDP that belongs to no socket yet, in the namespaces to which it is attached. What is established
//! goes by itself, whoever serves it.

use core::ptr;

use aya_ebpf::{
    bindings::{BPF_SK_LOOKUP_F_NO_REUSEPORT, bpf_sk_lookup},
    helpers::bpf_ktime_get_ns,
    macros::sk_lookup,
    maps::lpm_trie::Key,
    programs::SkLookupContext,
};
use sockway_common::{
    counter::Counter,
    flow::{MAPPED, TCP},
    inbound::{
        AccessKey, EVERY_RULE, NETNS_BITS, PORT_BITS, Port, PortKey, RULE_BITS, SteerKey, port_flags, source_verdict,
    },
};

use crate::{
    count,
    maps::{HEARTBEAT, INBOUND_PORTS, INBOUND_SOCKETS, INBOUND_SOURCES, SETTINGS},
    socket::AF_INET,
};

/// Cookie of the network namespace that this copy of the program is attached to: the hook's context does not tell, so the agent loads
/// a copy for each. The value stands for nothing, but no other constant may have it: the linker makes one of those that are equal.
#[unsafe(no_mangle)]
pub static NETNS: u64 = 0x6e65_746e_7363_6f6b;

/// Nobody has it: the client is told so.
const DROP: u32 = 0;
/// Who was chosen has it, or who would have had it anyway.
const PASS: u32 = 1;
/// Bits of an address, IPv4 mapped.
const IP_BITS: u32 = 128;

/// A connection comes in.
#[sk_lookup]
pub fn steer(ctx: SkLookupContext) -> u32 {
    // SAFETY: one field of the hook's context.
    if unsafe { ptr::read_volatile(&raw const (*ctx.lookup).protocol) } != u32::from(TCP) {
        return PASS;
    }
    let verdict = verdict(&ctx);
    count::one(verdict);
    if let Counter::InboundDenied = verdict { DROP } else { PASS }
}

#[inline(always)]
fn verdict(ctx: &SkLookupContext) -> Counter {
    // SAFETY: one field of the hook's context, in host order.
    let local_port = unsafe { ptr::read_volatile(&raw const (*ctx.lookup).local_port) } as u16;
    let Some(port) = port_entry(local_port) else { return Counter::InboundOther };
    let (remote, local) = ends(ctx.lookup);
    // Trap T33: a program that dials its own namespace, and the agent that dials the program, come from the address they go to. The
    // interface tells nothing: it is not always the loopback.
    if remote == local {
        return Counter::InboundSelf;
    }
    // Trap T34: the node must be able to probe, whatever becomes of the agent.
    if source(EVERY_RULE, remote) == Some(source_verdict::PASS) {
        return Counter::InboundNode;
    }
    match source(port.rule, remote) {
        Some(source_verdict::PASS) => return Counter::InboundPassed,
        Some(source_verdict::DENY) => return Counter::InboundDenied,
        None if port.flags & port_flags::LISTED_ONLY != 0 => return Counter::InboundDenied,
        _ => {}
    }
    if is_hung() {
        return Counter::InboundHung;
    }
    let key = SteerKey { netns: netns(), family: family(ctx.lookup), listener: listener(ctx.lookup, &port, remote) };
    match INBOUND_SOCKETS.redirect_sk_lookup(ctx, &key, u64::from(BPF_SK_LOOKUP_F_NO_REUSEPORT)) {
        Ok(()) => Counter::InboundSteered,
        Err(_) => Counter::InboundNoListener,
    }
}

#[inline(always)]
fn port_entry(local_port: u16) -> Option<Port> {
    let netns = netns();
    let key = Key::new(NETNS_BITS + PORT_BITS, PortKey { netns, port: local_port.to_be() });
    let found: *const Port = INBOUND_PORTS.get(&key)?;
    // SAFETY: copied once, at once, and used only if the copy is whole.
    let port: Port = unsafe { ptr::read_volatile(found) };
    port.is_for(netns, local_port).then_some(port)
}

/// What a rule says of a source.
#[inline(always)]
fn source(rule: u32, ip: [u32; 4]) -> Option<u32> {
    INBOUND_SOURCES.get(&Key::new(RULE_BITS + IP_BITS, AccessKey { rule, ip }))?.of(rule)
}

/// Which of the agent's listeners. Spread by the client's address and port, or by the address alone; who could choose addresses that
/// meet gains nothing but to wait for one worker.
#[inline(always)]
fn listener(lookup: *mut bpf_sk_lookup, port: &Port, ip: [u32; 4]) -> u32 {
    let mut mixed = ip[0] ^ ip[1] ^ ip[2] ^ ip[3];
    if port.flags & port_flags::BY_SOURCE == 0 {
        // SAFETY: one field of the hook's context.
        mixed ^= u32::from(unsafe { ptr::read_volatile(&raw const (*lookup).remote_port) });
    }
    // Multiplicative hash with the golden ratio; its high bits are the mixed ones.
    let hash = u64::from(mixed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    // Of 2^32 hashes each listener has its share (D. Lemire, "Fast random integer generation in an interval", 2019).
    (hash * u64::from(port.listeners) >> 32) as u32
}

#[inline(always)]
fn is_hung() -> bool {
    // SAFETY: plain helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let heartbeat = HEARTBEAT.get(0).copied().unwrap_or(0);
    let Some(settings) = SETTINGS.get(0) else { return true };
    now.wrapping_sub(heartbeat) as i64 > settings.heartbeat_max_age_ns as i64
}

/// The client's address and the one it dialled, IPv4 mapped. Word by word: the verifier refuses wider loads of a context.
#[inline(always)]
fn ends(lookup: *mut bpf_sk_lookup) -> ([u32; 4], [u32; 4]) {
    // SAFETY: fields of the hook's context.
    unsafe {
        if family(lookup) == AF_INET {
            let remote = ptr::read_volatile(&raw const (*lookup).remote_ip4);
            let local = ptr::read_volatile(&raw const (*lookup).local_ip4);
            return ([0, 0, MAPPED, remote], [0, 0, MAPPED, local]);
        }
        let remote = [
            ptr::read_volatile(&raw const (*lookup).remote_ip6[0]),
            ptr::read_volatile(&raw const (*lookup).remote_ip6[1]),
            ptr::read_volatile(&raw const (*lookup).remote_ip6[2]),
            ptr::read_volatile(&raw const (*lookup).remote_ip6[3]),
        ];
        let local = [
            ptr::read_volatile(&raw const (*lookup).local_ip6[0]),
            ptr::read_volatile(&raw const (*lookup).local_ip6[1]),
            ptr::read_volatile(&raw const (*lookup).local_ip6[2]),
            ptr::read_volatile(&raw const (*lookup).local_ip6[3]),
        ];
        (remote, local)
    }
}

#[inline(always)]
fn family(lookup: *mut bpf_sk_lookup) -> u32 {
    // SAFETY: one field of the hook's context.
    unsafe { ptr::read_volatile(&raw const (*lookup).family) }
}

#[inline(always)]
fn netns() -> u64 {
    // SAFETY: the agent puts the value in before the program is loaded; the compiler must not take it for the one above.
    unsafe { ptr::read_volatile(&raw const NETNS) }
}
