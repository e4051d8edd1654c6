//! Which endpoint of a service takes a connection, or a datagram. Knows nothing of the hook that asks: who dials, and when, come in.
//!
//! An endpoint may be chosen while it is active and not ejected. A policy that names another is asked again; then whatever may be chosen
//! is looked for, first among the endpoints that have a share of the connections, then among those that stand by; and when there is
//! none, one that may not is better than nothing (a wrong verdict must not cut a service off).

use core::ptr;

use aya_ebpf::helpers::{bpf_get_current_uid_gid, bpf_get_prandom_u32, generated::bpf_get_current_cgroup_id};
use sockway_common::{
    endpoint::{Endpoint, EndpointLive, endpoint_state},
    flow::Address,
    service::{
        Affinity, CHUNK_SLOTS, ChunkKey, EndpointKey, STANDBY_CHUNK, STANDBY_MAX, Service, Slot, SourceKey, algorithm,
        service_flags, spread,
    },
};

use crate::{
    maps::{AFFINITY, ENDPOINT_LIVE, ENDPOINTS, SERVICES, SLOTS},
    repeat::{Turns, repeat},
    turn,
};

/// How often a policy is asked: each further ask keeps the proportions among those that may be chosen.
const ASKS_MAX: u64 = 4;
/// Slots that are looked through, for the least open endpoint or for any that may be chosen: of a larger table this many from a random
/// place on. 128 lookups take a few microseconds.
const SCAN_MAX: u64 = 128;

/// An endpoint that was chosen.
pub struct Chosen {
    /// Where it listens.
    pub address: Address,
    /// Its id within the service.
    pub endpoint: u32,
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

/// Who dials, as the service's limits, affinity and hashes know it. `netns` is the cookie of the program's network namespace. To be asked
/// in the program's own context.
#[inline(always)]
pub fn source(service: &Service, netns: u64) -> u64 {
    if service.flags & service_flags::SOURCE_CGROUP != 0 {
        // SAFETY: plain helper without arguments.
        unsafe { bpf_get_current_cgroup_id() }
    } else if service.flags & service_flags::SOURCE_UID != 0 {
        u64::from(bpf_get_current_uid_gid() as u32)
    } else {
        netns
    }
}

/// An endpoint of the service; `None` when there is none to choose. The agent may have swapped the table since the service was read: what
/// it replaced stays for a while.
#[inline(always)]
pub fn endpoint(service: &Service, source: u64, now: u64) -> Option<Chosen> {
    let (table, shape) = Table::of(service).packed();
    let id = choose(table, shape, source, now, u64::from(service.affinity_ms));
    if id == NONE {
        return None;
    }
    let endpoint = read_endpoint(service.id, id as u32)?;
    Some(Chosen { address: endpoint.address, endpoint: id as u32 })
}

/// Whether the endpoint of this id may be chosen.
#[inline(always)]
pub fn may_use(service: &Service, endpoint: u32, now: u64) -> bool {
    may(&Table::of(service), endpoint, now) == Some(true)
}

/// The id of an endpoint, [`NONE`] if there is none to choose.
#[inline(always)]
fn choose(table: u64, shape: u64, source: u64, now: u64, affinity_ms: u64) -> u64 {
    let Table { slots, algorithm, service, .. } = Table::unpacked(table, shape);
    if slots == 0 {
        return NONE;
    }
    if affinity_ms != 0 {
        let kept = kept_endpoint(table, shape, source, now, affinity_ms);
        if kept != NONE {
            return kept;
        }
    }
    let mut chosen = NONE;
    if algorithm == algorithm::LEAST_OPEN {
        chosen = least_open(table, shape, now);
    }
    if chosen == NONE {
        chosen = draw_endpoint(table, shape, source, now);
        if chosen != NONE && chosen & REFUSED != 0 {
            let mut usable = first_usable(table, shape, now);
            if usable == NONE {
                // A source that is to stay somewhere stays with one that stands by, too.
                let stays = affinity_ms != 0 || algorithm == algorithm::BY_SOURCE;
                usable = first_standby(table, shape, if stays { spread(source) } else { chance() }, now);
            }
            chosen = if usable == NONE { chosen & !REFUSED } else { usable };
        }
    }
    if chosen != NONE && affinity_ms != 0 {
        keep(service, source, now, chosen as u32);
    }
    chosen
}

/// No endpoint, where an id is given back as a number.
const NONE: u64 = u64::MAX;

/// What of a service is needed to choose.
#[derive(Clone, Copy)]
struct Table {
    service: u32,
    generation: u32,
    slots: u32,
    algorithm: u32,
    ejects: bool,
}

impl Table {
    #[inline(always)]
    fn of(service: &Service) -> Self {
        Self {
            service: service.id,
            generation: service.generation,
            slots: service.slots,
            algorithm: service.algorithm,
            ejects: service.flags & service_flags::EJECT != 0,
        }
    }

    /// In two numbers: the verifier looks at a function of numbers alone by itself, once, wherever it is called from. Looked at as part of
    /// each hook, with all that can have happened before, it would be beyond what the kernel looks at.
    #[inline(always)]
    fn packed(self) -> (u64, u64) {
        (
            u64::from(self.service) | u64::from(self.generation) << 32,
            u64::from(self.slots) | u64::from(self.algorithm) << 32 | u64::from(self.ejects) << 63,
        )
    }

    #[inline(always)]
    fn unpacked(table: u64, shape: u64) -> Self {
        Self {
            service: table as u32,
            generation: (table >> 32) as u32,
            slots: shape as u32,
            algorithm: (shape >> 32) as u32 & 0xff,
            ejects: shape >> 63 != 0,
        }
    }

    /// The slot that stands so many behind another, as in a ring.
    #[inline(always)]
    fn slot_from(&self, start: u64, step: u64) -> Option<Slot> {
        let slots = u64::from(self.slots);
        if slots == 0 {
            return None;
        }
        read_slot(self, start.wrapping_add(step) % slots)
    }
}

/// The id of the endpoint that this source was sent to before, if that is not too long ago and it may still be chosen; else [`NONE`]. See
/// [`Table::packed`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn kept_endpoint(table: u64, shape: u64, source: u64, now: u64, affinity_ms: u64) -> u64 {
    let table = Table::unpacked(table, shape);
    let Some(bound) = AFFINITY.get_ptr_mut(&SourceKey { source, service: table.service, zero: 0 }) else { return NONE };
    // SAFETY: two words of a map value; torn, they name another endpoint of this service, or none.
    let Affinity { last_ns, endpoint, .. } = unsafe { ptr::read_volatile(bound) };
    if now.wrapping_sub(last_ns) > affinity_ms * 1_000_000 || may(&table, endpoint, now) != Some(true) {
        return NONE;
    }
    // SAFETY: one word of a map value.
    unsafe { (*bound).last_ns = now };
    u64::from(endpoint)
}

#[inline(always)]
fn keep(service: u32, source: u64, now: u64, endpoint: u32) {
    let key = SourceKey { source, service, zero: 0 };
    let _ = AFFINITY.insert(&key, &Affinity { last_ns: now, endpoint, zero: 0 }, 0);
}

/// With an id: the endpoint may not be chosen, but nothing better was found.
const REFUSED: u64 = 1 << 32;

/// The id of the endpoint that the table says, asked until it names one that may be chosen; see [`Table::packed`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn draw_endpoint(table: u64, shape: u64, source: u64, now: u64) -> u64 {
    let mut draw = Draw { table: Table::unpacked(table, shape), source, now, drawn: NONE };
    repeat::<_, ASKS_MAX>(ASKS_MAX, &mut draw);
    draw.drawn
}

struct Draw {
    table: Table,
    source: u64,
    now: u64,
    drawn: u64,
}

impl Turns for Draw {
    #[inline(always)]
    fn turn(&mut self, ask: u64) -> bool {
        let word = match self.table.algorithm {
            algorithm::IN_TURN => turn::next(self.table.service, self.now).unwrap_or_else(chance),
            // Asked again, the hash of another number: what one source is sent to instead does not depend on the others.
            algorithm::BY_SOURCE => spread(self.source.wrapping_add(ask)),
            _ => chance(),
        };
        let Some(id) = self.table.slot_from(word, 0).map(named) else { return false };
        match may(&self.table, id, self.now) {
            Some(true) => {
                self.drawn = u64::from(id);
                return true;
            }
            Some(false) => self.drawn = u64::from(id) | REFUSED,
            None => {}
        }
        false
    }
}

/// Of a slot's two endpoints the one that chance falls on.
#[inline(always)]
fn named(slot: Slot) -> u32 {
    if slot.threshold == u32::MAX || random() <= slot.threshold { slot.first } else { slot.second }
}

/// The first endpoint from a random slot on that may be chosen; see [`Table::packed`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn first_usable(table: u64, shape: u64, now: u64) -> u64 {
    let table = Table::unpacked(table, shape);
    let mut usable = Usable { table, start: chance(), now, found: NONE };
    repeat::<_, SCAN_MAX>(u64::from(table.slots), &mut usable);
    usable.found
}

struct Usable {
    table: Table,
    start: u64,
    now: u64,
    found: u64,
}

impl Turns for Usable {
    #[inline(always)]
    fn turn(&mut self, step: u64) -> bool {
        let Some(slot) = self.table.slot_from(self.start, step) else { return false };
        if may(&self.table, slot.first, self.now) != Some(true) {
            return false;
        }
        self.found = u64::from(slot.first);
        true
    }
}

/// The first endpoint that stands by and is not ejected: of each level, in order, all are looked at, from the one that `start` falls on.
/// See [`Table::packed`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn first_standby(table: u64, shape: u64, start: u64, now: u64) -> u64 {
    let mut standby = Standby { table: Table::unpacked(table, shape), start, now, found: NONE };
    repeat::<_, { STANDBY_MAX as u64 }>(STANDBY_MAX as u64, &mut standby);
    standby.found
}

struct Standby {
    table: Table,
    start: u64,
    now: u64,
    found: u64,
}

impl Turns for Standby {
    #[inline(always)]
    fn turn(&mut self, step: u64) -> bool {
        let Some(own) = read_slot(&self.table, STANDBY_SLOT + step) else { return true };
        let (level, count) = (u64::from(own.second), u64::from(own.threshold));
        if count == 0 {
            return true;
        }
        let turned = level + step.wrapping_sub(level).wrapping_add(self.start & u64::from(u32::MAX)) % count;
        if let Some(slot) = read_slot(&self.table, STANDBY_SLOT + turned)
            && may_stand_in(&self.table, slot.first, self.now)
        {
            self.found = u64::from(slot.first);
            return true;
        }
        false
    }
}

/// Number of the first standby endpoint, as [`read_slot`] counts.
const STANDBY_SLOT: u64 = STANDBY_CHUNK as u64 * CHUNK_SLOTS as u64;

/// The endpoint with the fewest open connections for its weight, this one included; of several the first from a random place on. See
/// [`Table::packed`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn least_open(table: u64, shape: u64, now: u64) -> u64 {
    let table = Table::unpacked(table, shape);
    let mut least = Least { table, start: chance(), now, best: NONE, load: 1, weight: 0 };
    repeat::<_, SCAN_MAX>(u64::from(table.slots), &mut least);
    let best = least.best;
    if best != NONE && may(&table, best as u32, now) == Some(true) { best } else { NONE }
}

struct Least {
    table: Table,
    start: u64,
    now: u64,
    best: u64,
    /// Of the best; before there is one, more load for its weight than any has.
    load: u64,
    weight: u64,
}

impl Turns for Least {
    #[inline(always)]
    fn turn(&mut self, step: u64) -> bool {
        if let Some(slot) = self.table.slot_from(self.start, step)
            && let Some(live) = live(&self.table, slot.first)
            && is_not_ejected(&live, self.now)
        {
            let (load, weight) = (live.open.wrapping_add(1), u64::from(slot.threshold));
            // load / weight < best load / best weight, without fractions.
            if load.wrapping_mul(self.weight) < self.load.wrapping_mul(weight) {
                (self.best, self.load, self.weight) = (u64::from(slot.first), load, weight);
            }
        }
        false
    }
}

/// Whether the endpoint of this id may be chosen; `None` when it cannot be.
#[inline(always)]
fn may(table: &Table, id: u32, now: u64) -> Option<bool> {
    let endpoint = read_endpoint(table.service, id)?;
    let ejected = table.ejects && live(table, id).is_some_and(|live| !is_not_ejected(&live, now));
    Some(endpoint.state == endpoint_state::ACTIVE && !ejected)
}

/// Whether the endpoint of this id, which stands by, may be chosen.
#[inline(always)]
fn may_stand_in(table: &Table, id: u32, now: u64) -> bool {
    let Some(endpoint) = read_endpoint(table.service, id) else { return false };
    let ejected = table.ejects && live(table, id).is_some_and(|live| !is_not_ejected(&live, now));
    endpoint.state != endpoint_state::DRAINING && !ejected
}

/// The endpoint of this id, unless its connections are being ended.
#[inline(always)]
fn read_endpoint(service: u32, endpoint: u32) -> Option<Endpoint> {
    let key = EndpointKey { service, endpoint };
    // SAFETY: copied once, at once, and used only if the copy is whole.
    let endpoint: Endpoint = unsafe { ptr::read_volatile(ENDPOINTS.get_ptr(&key)?) };
    (endpoint.is_whole(&key) && endpoint.state != endpoint_state::DEAD).then_some(endpoint)
}

#[inline(always)]
fn live(table: &Table, endpoint: u32) -> Option<EndpointLive> {
    // SAFETY: copied once; each word is whole, and that they are of one moment matters to nobody.
    Some(unsafe { ptr::read_volatile(ENDPOINT_LIVE.get_ptr(&EndpointKey { service: table.service, endpoint })?) })
}

#[inline(always)]
fn is_not_ejected(live: &EndpointLive, now: u64) -> bool {
    live.ejected_until_ns <= now
}

#[inline(always)]
fn read_slot(table: &Table, index: u64) -> Option<Slot> {
    let chunk = (index / CHUNK_SLOTS as u64) as u32;
    let key = ChunkKey { service: table.service, generation: table.generation, chunk };
    let chunk = SLOTS.get_ptr(&key)?;
    let mut at = index % CHUNK_SLOTS as u64;
    // The compiler knows that the remainder is small, and the verifier does not: the comparison below is for the verifier, and this
    // hides from the compiler that it is always true. (An instruction, since the kernel refuses line information of none.)
    // SAFETY: a register is copied to itself.
    unsafe { core::arch::asm!("{at} = {at}", at = inout(reg) at, options(nostack, nomem)) };
    if at >= CHUNK_SLOTS as u64 {
        return None;
    }
    // SAFETY: within the chunk, as just compared; copied once.
    Some(unsafe { ptr::read_volatile((&raw const (*chunk).slots).cast::<Slot>().add(at as usize)) })
}

#[inline(always)]
fn chance() -> u64 {
    u64::from(random())
}

#[inline(always)]
fn random() -> u32 {
    // SAFETY: plain helper without arguments.
    unsafe { bpf_get_prandom_u32() }
}
