//! What is to stand in the tables for one service.

use sockway_common::{
    endpoint::{EjectPolicy, Endpoint, endpoint_state},
    flow::Address,
    limit::{Limit, LimitPolicy, over},
    service::{self, EndpointKey, STANDBY_MAX, Slot, algorithm, service_flags},
    watch::Name,
};

use super::How;
use crate::{
    balance::{self, Choice},
    cluster::{self, Departure, Service, Shares, Stage},
    config::{
        Balance, Mode, Protocol,
        policy::{Over, Rate, Source, Take},
    },
    kernel::flows,
};

/// One service as the tables are to have it.
pub struct Wanted {
    pub id: u32,
    pub address: Address,
    pub name: Name,
    pub flags: u32,
    pub left_out: bool,
    pub balance: Balance,
    pub maglev_table_size: u32,
    affinity_ms: u32,
    udp_idle_ms: u32,
    /// What is chosen from, with weights.
    pub choices: Vec<Choice>,
    /// Who takes connections while all of those are ejected.
    pub standby: Vec<Slot>,
    /// These and the ones that leave, each with its entry.
    pub endpoints: Vec<(u32, Endpoint)>,
    pub limits: Option<LimitPolicy>,
    pub eject: Option<EjectPolicy>,
}

impl Wanted {
    pub fn new(service: &Service, departure: Option<&Departure>, how: How) -> Self {
        let config = &service.config;
        let transport = config.protocol.transport();
        let shares = shares(service);
        let state = |weight: u32, endpoint: &cluster::Endpoint| match weight {
            0 if is_reachable(service, endpoint) => endpoint_state::STANDBY,
            _ => endpoint_state::ACTIVE,
        };
        let active = service.endpoints.iter().zip(&shares.weights);
        let active =
            active.map(|(endpoint, weight)| entry((service.id, transport), endpoint, state(*weight, endpoint)));
        Self {
            id: service.id,
            address: flows::address(config.address).of(transport),
            name: Name::new(&config.name),
            flags: flags(service, how.shortcut),
            left_out: how.left_out,
            balance: config.policy.balance,
            maglev_table_size: config.policy.maglev_table_size,
            affinity_ms: config.policy.affinity_timeout.map_or(0, |timeout| timeout.as_millis() as u32),
            udp_idle_ms: udp_idle_ms(service),
            choices: choices(service, &shares),
            standby: standby(service, &shares),
            endpoints: active.chain(departure.into_iter().flat_map(leaving)).collect(),
            limits: limits(service),
            eject: eject(service),
        }
    }

    /// The service's entry, with its slots.
    pub fn entry(&self, generation: u32, slots: u32) -> service::Service {
        let entry = service::Service {
            id: self.id,
            generation,
            slots,
            flags: self.flags,
            algorithm: algorithm_of(self.balance),
            affinity_ms: self.affinity_ms,
            udp_idle_ms: self.udp_idle_ms,
            seal: 0,
        };
        entry.sealed(&self.address)
    }
}

/// The entries of endpoints that leave.
pub fn leaving(departure: &Departure) -> Vec<(u32, Endpoint)> {
    let state = |endpoint: &cluster::Endpoint| match endpoint.state.stage() {
        // Nobody has told it yet.
        Stage::Active | Stage::Draining => endpoint_state::DRAINING,
        Stage::Dead | Stage::Gone => endpoint_state::DEAD,
    };
    let of = (departure.service, departure.config.protocol.transport());
    departure.endpoints.iter().map(|endpoint| entry(of, endpoint, state(endpoint))).collect()
}

fn entry((service, transport): (u32, u8), endpoint: &cluster::Endpoint, state: u32) -> (u32, Endpoint) {
    let key = EndpointKey { service, endpoint: endpoint.id };
    (endpoint.id, Endpoint { address: flows::address(endpoint.address).of(transport), state, seal: 0 }.sealed(&key))
}

fn udp_idle_ms(service: &Service) -> u32 {
    let milliseconds = service.config.udp_idle_timeout.as_millis();
    if service.config.protocol == Protocol::Udp { u32::try_from(milliseconds).unwrap_or(u32::MAX) } else { 0 }
}

fn flags(service: &Service, shortcut: bool) -> u32 {
    let config = &service.config;
    let source = match config.policy.source {
        Source::Namespace => 0,
        Source::Cgroup => service_flags::SOURCE_CGROUP,
        Source::Uid => service_flags::SOURCE_UID,
    };
    let live = config.policy.balance == Balance::LeastConnections || config.policy.eject.is_some();
    [
        (config.mode == Mode::Agent, service_flags::AGENT),
        (shortcut, service_flags::SHORTCUT),
        (service.config.original_dst, service_flags::ORIGINAL_DST),
        (flows::is_opaque(service), service_flags::OPAQUE),
        (live, service_flags::LIVE),
        (config.policy.eject.is_some(), service_flags::EJECT),
        (config.mode == Mode::Kernel && config.guard.breaker.is_some(), service_flags::BREAKER),
        (limits(service).is_some(), service_flags::LIMITED),
    ]
    .into_iter()
    .filter(|(set, _)| *set)
    .fold(source, |flags, (_, flag)| flags | flag)
}

fn algorithm_of(balance: Balance) -> u32 {
    match balance {
        Balance::RoundRobin => algorithm::IN_TURN,
        // The last two only while there is no agent that lives.
        Balance::Random | Balance::WeightedRandom | Balance::LeastRequest | Balance::PeakEwma => algorithm::AT_RANDOM,
        Balance::LeastConnections => algorithm::LEAST_OPEN,
        Balance::SourceHash | Balance::Maglev | Balance::RingHash => algorithm::BY_SOURCE,
    }
}

/// A hook can point a socket only at an address of its own family: endpoints of the other one are for the agent alone.
fn is_reachable(service: &Service, endpoint: &cluster::Endpoint) -> bool {
    endpoint.address.is_ipv4() == service.config.address.is_ipv4()
}

fn shares(service: &Service) -> Shares {
    // Where TLS begins or ends in the agent, no connection goes past it: what is to be secret would be sent in plain.
    let is_tls = service.config.tls.is_spoken();
    balance::shares::of(service, |endpoint| !is_tls && is_reachable(service, endpoint))
}

/// The endpoints to choose from.
fn choices(service: &Service, shares: &Shares) -> Vec<Choice> {
    let taking = service.endpoints.iter().zip(&shares.weights).filter(|(_, weight)| **weight > 0);
    taking
        .map(|(endpoint, weight)| Choice { endpoint: endpoint.id, weight: *weight, address: endpoint.address })
        .collect()
}

/// Who stands by, level after level: as many as a hook looks through.
fn standby(service: &Service, shares: &Shares) -> Vec<Slot> {
    let standby = &shares.standby[..shares.standby.len().min(STANDBY_MAX)];
    let mut slots = Vec::with_capacity(standby.len());
    for level in standby.chunk_by(|(_, level), (_, next)| level == next) {
        let (first, count) = (slots.len() as u32, level.len() as u32);
        slots.extend(level.iter().map(|(index, _)| Slot::standby(service.endpoints[*index].id, first, count)));
    }
    slots
}

fn limits(service: &Service) -> Option<LimitPolicy> {
    let limits = service.config.policy.limits.as_ref()?;
    let policy = LimitPolicy {
        service: limit(&limits.service),
        source: limit(&limits.per_source),
        over: match limits.over {
            Over::Refuse => over::REFUSE,
            Over::Forbid => over::FORBID,
            Over::Pass => over::PASS,
        },
        seal: 0,
    };
    Some(policy.sealed(service.id))
}

fn limit(take: &Take) -> Limit {
    let (interval_ns, tolerance_ns) = take.rate.map_or((0, 0), |Rate { per_second, burst }| {
        // Rounded up: never faster than was said.
        let interval_ns = 1_000_000_000_u64.div_ceil(u64::from(per_second));
        (interval_ns, interval_ns * u64::from(burst - 1))
    });
    Limit { connections: take.connections.map_or(0, u64::from), interval_ns, tolerance_ns }
}

fn eject(service: &Service) -> Option<EjectPolicy> {
    let eject = service.config.policy.eject?;
    let policy = EjectPolicy { for_ns: eject.period.as_nanos() as u64, failures: eject.failures, seal: 0 };
    Some(policy.sealed(service.id))
}
