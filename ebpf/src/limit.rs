//! May one more connection pass? Reserves what it takes, exactly: whatever the number of CPUs that ask at once, never more than the limit
//! is taken, and nobody is refused while there is room.

use core::ptr;

use sockway_common::{
    capture::settings_flags,
    counter::Counter,
    flow::held,
    limit::{LIMIT_DEAD, Limit, LimitCarried, LimitKey, LimitPolicy, LimitState, limit_scope},
};

use crate::{
    atomic, count,
    maps::{LIMIT_POLICIES, LIMITS, SETTINGS},
};

/// `BPF_NOEXIST`.
const NO_EXIST: u64 = 1;
/// `-EEXIST`: another CPU made the entry first.
const EXISTS: i32 = -17;

/// Nothing taken. Not on the stack, of which the hook and what it calls have 512 bytes together.
static FRESH: LimitState = LimitState { open: 0, theoretical_ns: 0 };

/// Over a limit.
pub struct Over {
    /// What the service wants done about it, one of `sockway_common::limit::over`.
    pub policy: u32,
    /// Which limit it was.
    pub counter: Counter,
}

/// Reserves one connection of `source` with a service: what is held then, bits of [`held`], to be given back by [`give_back`].
#[inline(always)]
pub fn reserve(service: u32, source: u64, now: u64) -> Result<u64, Over> {
    let result = reserve_all(u64::from(service), source, now);
    if result & OVER == 0 {
        return Ok(result);
    }
    let counter = match result & 0xff {
        SERVICE_CONNECTIONS => Counter::OverServiceConnections,
        SERVICE_RATE => Counter::OverServiceRate,
        SOURCE_CONNECTIONS => Counter::OverSourceConnections,
        _ => Counter::OverSourceRate,
    };
    Err(Over { policy: (result >> 8) as u32 & 0xff, counter })
}

/// In a result of [`reserve_all`]: over the limit that the lowest byte names; the next is the service's policy.
const OVER: u64 = 1 << 63;
const SERVICE_CONNECTIONS: u64 = 0;
const SERVICE_RATE: u64 = 1;
const SOURCE_CONNECTIONS: u64 = 2;
const SOURCE_RATE: u64 = 3;

/// [`reserve`] in numbers; the verifier looks at it by itself, as at [`crate::choose::draw_endpoint`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn reserve_all(service: u64, source: u64, now: u64) -> u64 {
    let service = service as u32;
    // In doubt it passes: a policy that is replaced under our eyes, twice.
    let Some(policy) = policy_of(service).or_else(|| policy_of(service)) else { return 0 };
    let over = |limit: u64| OVER | u64::from(policy.over) << 8 | limit;
    let mut taken = 0;
    let key = key_of_source(service, source);
    match take(&key, &policy.source, now) {
        RESERVED => taken |= held::SOURCE,
        UNLIMITED => {}
        TOO_MANY => return over(SOURCE_CONNECTIONS),
        _ => return over(SOURCE_RATE),
    }
    let limit = match take(&key_of_service(service), &policy.service, now) {
        RESERVED => return taken | held::SERVICE,
        UNLIMITED => return taken,
        TOO_MANY => SERVICE_CONNECTIONS,
        _ => SERVICE_RATE,
    };
    if taken & held::SOURCE != 0 {
        take_back(&key, policy.source.interval_ns);
    }
    over(limit)
}

/// Gives back what [`reserve`] took, when the connection has ended.
#[inline(always)]
pub fn give_back(service: u32, source: u64, what: u64) {
    if what & held::SOURCE != 0 {
        take_back(&key_of_source(service, source), 0);
    }
    if what & held::SERVICE != 0 {
        take_back(&key_of_service(service), 0);
    }
}

/// Removes the entry of `key` if nothing is taken and no burst is remembered; whether it did. Only the agent's sweep does so, one key
/// after the other: the sources of a host (namespaces, cgroups, users) are few, and a hook that removed would be met by one that counts.
#[inline(always)]
pub fn sweep(key: &LimitKey, now: u64) -> bool {
    let Some(state) = LIMITS.get_ptr_mut(key) else { return false };
    // SAFETY: words of a map value, which is this key's until we remove it.
    let idle = unsafe {
        ptr::read_volatile(&raw const (*state).theoretical_ns) <= now
            && atomic::compare_exchange(&raw mut (*state).open, 0, LIMIT_DEAD) == 0
    };
    idle && LIMITS.remove(key).is_ok()
}

/// Adds what the hooks before took and gave back in a table of another size; whether there was room for it.
#[inline(always)]
pub fn settle(carried: &LimitCarried) -> bool {
    let Some(state) = entry(&carried.key) else { return false };
    let to_ns = carried.theoretical_ns;
    // SAFETY: words of a map value; while counts are carried over, nobody removes one.
    unsafe {
        atomic::fetch_add(&raw mut (*state).open, carried.opened as u64);
        atomic::update(&raw mut (*state).theoretical_ns, |before| (before < to_ns).then_some(to_ns));
    }
    true
}

/// Whether some hooks still count in the table before: then a count below zero is one that the other table has too many.
#[inline(always)]
fn is_carrying() -> bool {
    SETTINGS.get(0).is_some_and(|settings| settings.flags & settings_flags::CARRYING != 0)
}

/// The entry of `key`, dead or not, made if there is none; `None` when there is no room for it.
#[inline(always)]
fn entry(key: &LimitKey) -> Option<*mut LimitState> {
    if let Some(state) = LIMITS.get_ptr_mut(key) {
        return Some(state);
    }
    // Another CPU may make it first.
    let _ = LIMITS.insert(key, &FRESH, NO_EXIST);
    LIMITS.get_ptr_mut(key)
}

#[inline(always)]
fn policy_of(service: u32) -> Option<LimitPolicy> {
    // SAFETY: copied once, at once, and used only if the copy is whole.
    let policy: LimitPolicy = unsafe { ptr::read_volatile(LIMIT_POLICIES.get_ptr(&service)?) };
    policy.is_whole(service).then_some(policy)
}

#[inline(always)]
fn key_of_source(service: u32, source: u64) -> LimitKey {
    LimitKey { source, service, scope: limit_scope::SOURCE }
}

#[inline(always)]
fn key_of_service(service: u32) -> LimitKey {
    LimitKey { source: 0, service, scope: limit_scope::SERVICE }
}

/// What came of [`take`]: one is taken, and to be given back.
const RESERVED: u64 = 0;
/// Nothing is limited here, or there is no room to count: it passes.
const UNLIMITED: u64 = 1;
const TOO_MANY: u64 = 2;
const TOO_FAST: u64 = 3;

#[inline(always)]
fn take(key: &LimitKey, limit: &Limit, now: u64) -> u64 {
    if limit.connections == 0 && limit.interval_ns == 0 {
        return UNLIMITED;
    }
    let service = u64::from(key.service) | u64::from(key.scope) << 32;
    let taken = take_connection(key.source, service, limit.connections);
    if taken == RESERVED && limit.interval_ns != 0 {
        let taken = take_token(key.source, service, limit.interval_ns, limit.tolerance_ns, now);
        if taken != RESERVED {
            take_back(key, 0);
        }
        return taken;
    }
    taken
}

#[inline(always)]
fn unpacked(source: u64, service: u64) -> LimitKey {
    LimitKey { source, service: service as u32, scope: (service >> 32) as u32 }
}

/// Takes one connection, of `most` (0: any number); the verifier looks at it by itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn take_connection(source: u64, service: u64, most: u64) -> u64 {
    let key = unpacked(source, service);
    // Twice, written out: Linux before 6.7 refuses a loop whose last step runs into its head without a jump (10e14e9652bf), which is how
    // the compiler lays one out here. An entry that is swept while we look costs the second look: one further takes another sweep in
    // between, and there is one in half a minute.
    match try_connection(&key, most) {
        SWEPT => match try_connection(&key, most) {
            SWEPT => TOO_MANY,
            taken => taken,
        },
        taken => taken,
    }
}

/// In a result of [`try_connection`]: the entry was swept meanwhile.
const SWEPT: u64 = 4;

#[inline(always)]
fn try_connection(key: &LimitKey, most: u64) -> u64 {
    let Some(state) = living(key) else {
        count::one(Counter::LimitTableFull);
        return UNLIMITED;
    };
    if !take_open(state, most) {
        return TOO_MANY;
    }
    // The memory of an entry that was swept may be another key's by now: what was taken there is not ours.
    if LIMITS.get_ptr_mut(key) == Some(state) {
        return RESERVED;
    }
    // SAFETY: a map value; where something is taken it is nobody's to remove.
    unsafe { atomic::fetch_add(&raw mut (*state).open, u64::MAX) };
    SWEPT
}

/// Takes one token of a key in which a connection is taken; the verifier looks at it by itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn take_token(source: u64, service: u64, interval_ns: u64, tolerance_ns: u64, now: u64) -> u64 {
    let limit = Limit { connections: 0, interval_ns, tolerance_ns };
    let Some(state) = LIMITS.get_ptr_mut(&unpacked(source, service)) else { return UNLIMITED };
    // SAFETY: one word of a map value.
    let is_taken = unsafe { atomic::update(&raw mut (*state).theoretical_ns, |before| limit.arrival(before, now)) };
    if is_taken { RESERVED } else { TOO_FAST }
}

/// The entry of `key`, made if there is none; `None` when there is no room for it. One that is being swept is gone in a moment.
#[inline(always)]
fn living(key: &LimitKey) -> Option<*mut LimitState> {
    if is_carrying() {
        return entry(key);
    }
    let mut found = LIMITS.get_ptr_mut(key);
    // A loop for the verifier to follow: as a function of the kernel's it would be one call deeper than the stack allows on Linux 6.1.
    for _ in 0..atomic::TRIES_MAX {
        // SAFETY: one word of a map value.
        if let Some(state) = found
            && unsafe { ptr::read_volatile(&raw const (*state).open) } != LIMIT_DEAD
        {
            return Some(state);
        }
        // One way through for both, so that the loop ends in a jump: see `take_connection`. What is being swept answers that it exists.
        if LIMITS.insert(key, &FRESH, NO_EXIST).is_err_and(|error| error != EXISTS) {
            return None;
        }
        found = LIMITS.get_ptr_mut(key);
    }
    None
}

/// Whether one was taken: there was room, and the entry is not being swept.
#[inline(always)]
fn take_open(state: *mut LimitState, most: u64) -> bool {
    let most = if most == 0 { LIMIT_DEAD } else { most };
    // Asked anew at each try, not kept: with one word more this is beyond what Linux 6.1 lets calls have of the stack.
    let has_room = |open: u64| open < most || (open as i64) < 0 && is_carrying();
    // SAFETY: one word of a map value.
    unsafe { atomic::update(&raw mut (*state).open, |open| has_room(open).then_some(open + 1)) }
}

/// Gives back one connection, and the token that it took if it never was one.
#[inline(always)]
fn take_back(key: &LimitKey, interval_ns: u64) {
    let may_be_negative = is_carrying();
    let found = if may_be_negative { entry(key) } else { LIMITS.get_ptr_mut(key) };
    let Some(state) = found else { return };
    // SAFETY: a map value in which we have taken one: it is this key's until we give it back.
    unsafe {
        if interval_ns != 0 {
            atomic::fetch_add(&raw mut (*state).theoretical_ns, interval_ns.wrapping_neg());
        }
        // A table that was made anew has counted too few: below zero it would refuse everything for ever.
        if atomic::fetch_add(&raw mut (*state).open, u64::MAX) as i64 <= 0 && !may_be_negative {
            atomic::fetch_add(&raw mut (*state).open, 1);
        }
    }
}
