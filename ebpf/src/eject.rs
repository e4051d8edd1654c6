//! Passive ejection: an endpoint whose handshakes fail in a row is left out for a time (trap T31), also while the agent is dead.

use core::ptr;

use sockway_common::{
    capture::Settings,
    counter::Counter,
    endpoint::{EjectPolicy, EndpointLive},
    flow::{Conn, conn_flags},
    service::EndpointKey,
};

use crate::{
    atomic, count,
    maps::{EJECT_POLICIES, ENDPOINT_LIVE},
    socket,
};

/// Errors of a socket that say something of its endpoint, as Linux numbers them: ENETUNREACH, ETIMEDOUT, ECONNREFUSED, EHOSTDOWN,
/// EHOSTUNREACH. A program that gives up leaves none of them.
const ENDPOINTS_FAULT: [i32; 5] = [101, 110, 111, 112, 113];

/// The handshake succeeded.
#[inline(always)]
pub fn established(conn: &Conn) {
    if conn.flags & conn_flags::EJECTS == 0 {
        return;
    }
    if let Some(live) = live(conn) {
        // SAFETY: words of a map value. Written only where there is something to forget: the line is shared by all CPUs.
        unsafe {
            if ptr::read_volatile(&raw const (*live).failures) != 0 {
                ptr::write_volatile(&raw mut (*live).failures, 0);
            }
        }
    }
}

/// The handshake of `socket` failed, at `now`.
#[inline(always)]
pub fn failed(conn: &Conn, socket: *mut core::ffi::c_void, settings: &Settings, now: u64) {
    if conn.flags & conn_flags::EJECTS == 0 || settings.offsets.error == 0 {
        return;
    }
    let Some(error) = socket::number(socket).and_then(|sock| socket::peek::<i32>(sock, settings.offsets.error)) else {
        return;
    };
    let Some(policy) = policy_of(conn.service) else { return };
    if !ENDPOINTS_FAULT.contains(&error) {
        return;
    }
    let Some(live) = live(conn) else { return };
    // SAFETY: words of a map value.
    unsafe {
        if atomic::fetch_add(&raw mut (*live).failures, 1) + 1 >= u64::from(policy.failures) {
            ptr::write_volatile(&raw mut (*live).failures, 0);
            ptr::write_volatile(&raw mut (*live).ejected_until_ns, now + policy.for_ns);
            count::one(Counter::Ejected);
        }
    }
}

#[inline(always)]
fn policy_of(service: u32) -> Option<EjectPolicy> {
    // SAFETY: copied once, at once, and used only if the copy is whole; one that is being replaced counts this failure not.
    let policy: EjectPolicy = unsafe { ptr::read_volatile(EJECT_POLICIES.get_ptr(&service)?) };
    policy.is_whole(service).then_some(policy)
}

#[inline(always)]
fn live(conn: &Conn) -> Option<*mut EndpointLive> {
    ENDPOINT_LIVE.get_ptr_mut(&EndpointKey { service: conn.service, endpoint: conn.endpoint })
}
