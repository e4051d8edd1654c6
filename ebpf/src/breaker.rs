//! May a service be dialled whose handshakes failed? The agent judges; what it lets through is counted here, exactly.

use core::ptr;

use sockway_common::{
    capture::Settings,
    endpoint::{ENDPOINT_BREAKER, EndpointLive},
    service::EndpointKey,
};

use crate::{
    atomic,
    maps::{ENDPOINT_LIVE, HEARTBEAT},
};

/// Whether a connect is refused. In doubt it passes: nobody judges while there is no agent that lives.
#[inline(always)]
pub fn refuses(service: u32, settings: &Settings, now: u64) -> bool {
    let heartbeat = HEARTBEAT.get(0).copied().unwrap_or(0);
    let is_alive = now.wrapping_sub(heartbeat) as i64 <= settings.heartbeat_max_age_ns as i64;
    is_alive && breaker_refuses(u64::from(service), now) != 0
}

/// [`refuses`] by the entry of the service; the verifier looks at it by itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn breaker_refuses(service: u64, now: u64) -> u64 {
    let key = EndpointKey { service: service as u32, endpoint: ENDPOINT_BREAKER };
    let Some(live) = ENDPOINT_LIVE.get_ptr_mut(&key) else { return 0 };
    // SAFETY: words of a map value.
    if unsafe { ptr::read_volatile(&raw const (*live).ejected_until_ns) } <= now || took_one(live) {
        return 0;
    }
    // The memory of an entry that was replaced may be another key's by now.
    if ENDPOINT_LIVE.get_ptr_mut(&key) != Some(live) {
        return 0;
    }
    // SAFETY: as above.
    unsafe { atomic::fetch_add(&raw mut (*live).open, 1) };
    1
}

/// Whether one of those that may pass was left.
#[inline(always)]
fn took_one(live: *mut EndpointLive) -> bool {
    // SAFETY: one word of a map value.
    unsafe { atomic::update(&raw mut (*live).failures, |left| left.checked_sub(1)) }
}
