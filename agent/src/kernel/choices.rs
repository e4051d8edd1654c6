//! What a service's connections are chosen from and held to, as the pinned tables say now: endpoints, affinity, limits.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use aya::maps::{HashMap as BpfHashMap, MapData};
use sockway_common::{
    endpoint::{ENDPOINT_BREAKER, Endpoint, EndpointLive, endpoint_state},
    limit::{Limit, LimitKey, LimitPolicy, LimitState, limit_scope},
    service::{Affinity, CHUNK_SLOTS, Chunk, ChunkKey, EndpointKey, Service, SourceKey, algorithm, service_flags},
};

use super::{Caller, KernelError, Pinned, flows, monotonic_ns};

/// An endpoint.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its part of the new connections, of 1; with the fewest open connections first, of those when all have as many for their weight.
    pub share: f64,
    /// `active`, `standby` (down, or a backup that is not needed), `draining` or `dead`.
    pub state: &'static str,
    /// How long it stays ejected.
    pub ejected_for: Option<Duration>,
    /// Its open connections, where the hooks keep count.
    pub open: Option<u64>,
}

/// A limit, and what is taken of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// `service` or `source`.
    pub scope: &'static str,
    /// Connections open.
    pub open: u64,
    /// Connections at once; 0 for any number.
    pub open_max: u64,
    /// From one connection to the next at the sustained rate; zero for any rate.
    pub interval: Duration,
    /// Whether the next connection is over it.
    pub is_over: bool,
}

/// The limits of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// One of `sockway_common::limit::over`.
    pub over: u32,
    /// Those that there are.
    pub taken: Vec<Taken>,
}

/// How a service's endpoints are chosen, in words.
pub fn algorithm_word(service: &Service) -> &'static str {
    match service.algorithm {
        algorithm::IN_TURN => "in turn",
        algorithm::AT_RANDOM => "at random",
        algorithm::BY_SOURCE => "by the hash of the source",
        algorithm::LEAST_OPEN => "the fewest open connections for their weight first",
        _ => "in a way that this version does not know",
    }
}

/// Every endpoint of a service, those that take no new connections too, each with its part of the choices.
pub fn endpoints(pinned: &Pinned, service: &Service) -> Result<Vec<Choice>, KernelError> {
    let shares = shares(pinned, service)?;
    let table: BpfHashMap<MapData, EndpointKey, Endpoint> = pinned.table("ENDPOINTS")?;
    let mut found = Vec::new();
    // Endpoints without a slot are found by their key alone.
    for (key, endpoint) in table.iter().flatten().filter(|(key, _)| key.service == service.id) {
        let live: Option<EndpointLive> = pinned.entry("ENDPOINT_LIVE", &key)?;
        let ejected = live.map_or(0, |live| live.ejected_until_ns.saturating_sub(monotonic_ns()));
        found.push(Choice {
            address: flows::socket_addr(&endpoint.address),
            share: shares.get(&key.endpoint).copied().unwrap_or(0.0),
            state: state_word(endpoint.state),
            ejected_for: (ejected > 0).then(|| Duration::from_nanos(ejected)),
            open: live.map(|live| live.open),
        });
    }
    found.sort_by_key(|choice| choice.address);
    Ok(found)
}

fn state_word(state: u32) -> &'static str {
    match state {
        endpoint_state::ACTIVE => "active",
        endpoint_state::STANDBY => "standby",
        endpoint_state::DRAINING => "draining",
        _ => "dead",
    }
}

/// The part of the choices that falls on each endpoint, by the slots.
fn shares(pinned: &Pinned, service: &Service) -> Result<HashMap<u32, f64>, KernelError> {
    let chunks: BpfHashMap<MapData, ChunkKey, Chunk> = pinned.table("SLOTS")?;
    let mut weights: HashMap<u32, f64> = HashMap::new();
    for chunk in 0..service.slots.div_ceil(CHUNK_SLOTS as u32) {
        let key = ChunkKey { service: service.id, generation: service.generation, chunk };
        let Ok(slots) = chunks.get(&key, 0) else { continue };
        let left = (service.slots - chunk * CHUNK_SLOTS as u32) as usize;
        for slot in slots.slots.iter().take(left) {
            if service.algorithm == algorithm::LEAST_OPEN {
                *weights.entry(slot.first).or_default() += f64::from(slot.threshold);
                continue;
            }
            let first = f64::from(slot.threshold) / f64::from(u32::MAX);
            *weights.entry(slot.first).or_default() += first;
            *weights.entry(slot.second).or_default() += 1.0 - first;
        }
    }
    let all: f64 = weights.values().sum();
    weights.values_mut().for_each(|weight| *weight /= all);
    Ok(weights)
}

/// Who dials, as the service's limits and affinity know it; `None` when no process was named that would tell.
fn source(service: &Service, caller: &Caller) -> Option<u64> {
    let process = caller.process.as_ref();
    if service.flags & service_flags::SOURCE_CGROUP != 0 {
        process?.cgroups.first().map(|(_, id)| *id)
    } else if service.flags & service_flags::SOURCE_UID != 0 {
        process.map(|process| process.uid.into())
    } else {
        Some(caller.netns)
    }
}

/// The endpoint that the caller stays with, and for how long if it does not dial meanwhile.
pub fn affinity(
    pinned: &Pinned,
    service: &Service,
    caller: &Caller,
) -> Result<Option<(SocketAddr, Duration)>, KernelError> {
    let (Some(source), true) = (source(service, caller), service.affinity_ms != 0) else { return Ok(None) };
    let bound: Option<Affinity> = pinned.entry("AFFINITY", &SourceKey { source, service: service.id, zero: 0 })?;
    let Some(bound) = bound else { return Ok(None) };
    let until = bound.last_ns + u64::from(service.affinity_ms) * 1_000_000;
    let left = until.saturating_sub(monotonic_ns());
    let key = EndpointKey { service: service.id, endpoint: bound.endpoint };
    let endpoint: Option<Endpoint> = pinned.entry("ENDPOINTS", &key)?;
    let usable = endpoint.filter(|endpoint| left > 0 && endpoint.state == endpoint_state::ACTIVE);
    Ok(usable.map(|endpoint| (flows::socket_addr(&endpoint.address), Duration::from_nanos(left))))
}

/// Whether the service's breaker lets nobody pass now.
pub fn is_open(pinned: &Pinned, service: &Service) -> Result<bool, KernelError> {
    if service.flags & service_flags::BREAKER == 0 {
        return Ok(false);
    }
    let key = EndpointKey { service: service.id, endpoint: ENDPOINT_BREAKER };
    let gate: Option<EndpointLive> = pinned.entry("ENDPOINT_LIVE", &key)?;
    Ok(gate.is_some_and(|gate| gate.failures == 0 && gate.ejected_until_ns > monotonic_ns()))
}

/// The service's limits and what is taken of them now.
pub fn limits(pinned: &Pinned, service: &Service, caller: &Caller) -> Result<Limits, KernelError> {
    if service.flags & service_flags::LIMITED == 0 {
        return Ok(Limits::default());
    }
    let policy: Option<LimitPolicy> = pinned.entry("LIMIT_POLICIES", &service.id)?;
    let Some(policy) = policy.filter(|policy| policy.is_whole(service.id)) else { return Ok(Limits::default()) };
    let mut taken = Vec::new();
    let of_service = LimitKey { source: 0, service: service.id, scope: limit_scope::SERVICE };
    let of_source =
        source(service, caller).map(|source| LimitKey { source, service: service.id, scope: limit_scope::SOURCE });
    for (scope, limit, key) in [("source", policy.source, of_source), ("service", policy.service, Some(of_service))] {
        if let Some(key) = key
            && limit != Limit::default()
        {
            let state: Option<LimitState> = pinned.entry("LIMITS", &key)?;
            taken.push(compare(scope, &limit, state.unwrap_or_default()));
        }
    }
    Ok(Limits { over: policy.over, taken })
}

fn compare(scope: &'static str, limit: &Limit, state: LimitState) -> Taken {
    let too_many = limit.connections != 0 && state.open >= limit.connections;
    let too_fast = limit.interval_ns != 0 && limit.arrival(state.theoretical_ns, monotonic_ns()).is_none();
    Taken {
        scope,
        open: state.open,
        open_max: limit.connections,
        interval: Duration::from_nanos(limit.interval_ns),
        is_over: too_many || too_fast,
    }
}
