//! The kernel half. Each module is one hook (or one family of it), and each hook is a verdict: what it means for the traffic, and a
//! counter for it. In doubt a hook passes: the program goes on as if Sockway were not there.
//!
//! - [`connect`]: a program dials: pass, balance, or hand to the agent;
//!   ([`choose`]: which endpoint; [`turn`]: taking turns; [`limit`]: may it pass now? [`breaker`]: may the service be used now?);
//! - [`eject`]: an endpoint whose handshakes fail in a row is left out for a time;
//! - [`sweep`]: the agent has idle entries of the limits removed;
//! - [`exclude`]: whose sockets pass: users, network namespaces, cgroups within captured ones;
//! - [`caller`]: is it a program that dials, or the kernel itself?
//! - [`inside`]: may programs read the kernel's memory?
//! - [`mptcp`]: what a subflow dialled is told to the socket above it;
//! - [`udp`]: a program sends a datagram without connecting, or receives one;
//! - [`source`]: a socket that goes to the agent keeps the address that it would have had;
//! - [`peer`]: a program asks whom it dialled;
//! - [`release`]: a program closes a socket, or a connection ends otherwise: what it held is given back;
//! - [`sock_ops`]: a socket dials, is established, or fails: original destinations, enrolment in the shortcut, failed handshakes;
//! - [`latency`]: how long handshakes and round trips take;
//! - [`watch`]: a flow has ended, and somebody watches;
//! - [`sk_lookup`]: a connection comes in: to the program, to the agent, or to nobody;
//! - [`introduce`]: the dialling end of a connection tells the accepting end for whom it dialled, or what;
//! - [`sockopt`]: a program asks what its client dialled;
//! - [`sk_msg`]: an enrolled socket sends: to the peer's socket, past the agent ([`join`]), or through TCP.
//!
//! Programs and maps are pinned and outlive the agent.
#![no_std]
#![no_main]
// Atomic addition with a result, which core does not offer on this target.
#![feature(asm_experimental_arch)]

mod atomic;
mod breaker;
mod caller;
mod choose;
mod connect;
mod count;
mod eject;
mod event;
mod exclude;
mod inside;
mod introduce;
mod join;
mod latency;
mod limit;
mod maps;
mod mptcp;
mod original;
mod peer;
mod release;
mod repeat;
mod sk_lookup;
mod sk_msg;
mod sock_ops;
mod socket;
mod sockopt;
mod source;
mod sweep;
mod turn;
mod udp;
mod watch;

/// What the agent compares with its own before it loads this object.
#[unsafe(no_mangle)]
#[unsafe(link_section = "sockway_abi")]
pub static SOCKWAY_ABI: [u32; sockway_common::ABI_NAMES.len()] = sockway_common::ABI_STAMP;

/// The helpers used here are partly GPL-only.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
pub static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
