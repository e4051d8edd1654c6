//! A program asks what its client dialled, as proxies do of a netfilter redirect: `SO_ORIGINAL_DST`, and its IPv6 twin.
//!
//! Every other option, and every socket that was told nothing, gets what the kernel had to say: result, length and bytes.

use core::ptr;

use aya_ebpf::{bindings::bpf_sockopt, macros::cgroup_sockopt, programs::SockoptContext};
use sockway_common::{counter::Counter, flow::Address, flow::NOWHERE};

use crate::{count, maps::ACCEPTED, socket};

/// The hook lets the call return.
const ALLOW: i32 = 1;
/// `SOL_IP`.
const SOL_IP: i32 = 0;
/// `SOL_IPV6`.
const SOL_IPV6: i32 = 41;
/// `SO_ORIGINAL_DST` of linux/netfilter_ipv4.h, and `IP6T_SO_ORIGINAL_DST` of linux/netfilter_ipv6/ip6_tables.h.
const ORIGINAL_DST: i32 = 80;
/// `AF_INET`.
const AF_INET: u16 = 2;
/// `AF_INET6`.
const AF_INET6: u16 = 10;

/// `struct sockaddr_in`.
#[repr(C)]
struct SockaddrV4 {
    family: u16,
    port: u16,
    ip: u32,
    zero: [u32; 2],
}

/// `struct sockaddr_in6`.
#[repr(C)]
struct SockaddrV6 {
    family: u16,
    port: u16,
    flow_info: u32,
    ip: [u32; 4],
    scope_id: u32,
}

/// `getsockopt()`.
#[cgroup_sockopt(getsockopt)]
pub fn ask_option(ctx: SockoptContext) -> i32 {
    // SAFETY: two fields of the hook's context.
    let asked = unsafe { ((*ctx.sockopt).level, (*ctx.sockopt).optname) };
    let answered = match asked {
        (SOL_IP, ORIGINAL_DST) => answer_v4(ctx.sockopt),
        (SOL_IPV6, ORIGINAL_DST) => answer_v6(ctx.sockopt),
        _ => None,
    };
    if answered.is_some() {
        count::one(Counter::OriginalAnswered);
    }
    ALLOW
}

#[inline(always)]
fn answer_v4(sockopt: *mut bpf_sockopt) -> Option<()> {
    let original = original(sockopt)?;
    if !original.is_v4() {
        return None;
    }
    let value = SockaddrV4 { family: AF_INET, port: original.port, ip: original.ip[3], zero: [0; 2] };
    write(sockopt, value)
}

#[inline(always)]
fn answer_v6(sockopt: *mut bpf_sockopt) -> Option<()> {
    let original = original(sockopt)?;
    if original.is_v4() {
        return None;
    }
    let value = SockaddrV6 { family: AF_INET6, port: original.port, flow_info: 0, ip: original.ip, scope_id: 0 };
    write(sockopt, value)
}

/// What the socket was told that its client dialled.
#[inline(always)]
fn original(sockopt: *mut bpf_sockopt) -> Option<Address> {
    // SAFETY: a field of the hook's context; the union holds the socket pointer.
    let socket = unsafe { (*sockopt).__bindgen_anon_1.sk };
    let original = socket::stored(&ACCEPTED, socket.cast())?.original;
    (original.protocol != NOWHERE.protocol).then_some(original)
}

/// Answers with `value`, if the caller has room for it.
#[inline(always)]
fn write<T>(sockopt: *mut bpf_sockopt, value: T) -> Option<()> {
    // SAFETY: the context's fields; the value is written only between the bounds that the context gives.
    unsafe {
        let room = (*sockopt).__bindgen_anon_2.optval.cast::<T>();
        let end = (*sockopt).__bindgen_anon_3.optval_end.cast::<T>();
        if room.add(1) > end {
            return None;
        }
        ptr::write(room, value);
        (*sockopt).optlen = size_of::<T>() as i32;
        (*sockopt).retval = 0;
    }
    Some(())
}
