//! Connections that come in, as the running agent sees them.

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, AtomicUsize},
};

use super::{Changes, Endpoint, GuardState, Published, Service, filter};
use crate::config;

/// Ports whose connections come through the agent, with what all workers count of them.
#[derive(Debug)]
pub struct Inbound {
    /// What was configured.
    pub config: config::inbound::Inbound,
    /// The program, as the service that it is: its one endpoint is wherever the client dialled.
    pub service: Arc<Service>,
    /// Outlives a reload.
    pub state: Arc<InboundState>,
}

/// What is known of one rule, node-wide.
#[derive(Debug, Default)]
pub struct InboundState {
    /// Connections being served.
    pub open: AtomicU32,
    /// The token bucket of all connections.
    pub bucket: AtomicU64,
    /// Connections let in.
    pub accepted: AtomicU64,
    /// Connections refused, by [`Refused`] as a number.
    pub refused: [AtomicU64; Refused::ALL.len()],
}

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There are as many connections as may be.
    Connections,
    /// They come faster than they may.
    Rate,
    /// This source has as many connections as it may.
    SourceConnections,
    /// This source comes faster than it may.
    SourceRate,
}

impl Refused {
    /// All reasons, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Connections, Self::Rate, Self::SourceConnections, Self::SourceRate];

    /// Label of the metric.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Rate => "rate",
            Self::SourceConnections => "source_connections",
            Self::SourceRate => "source_rate",
        }
    }
}

/// Ids of the services that programs behind rules are: none that is dialled has one of them.
const IDS: u32 = 1 << 31;

/// The rules that follow `previous`, with the state of those of the same name.
pub(super) fn build(configured: &[config::inbound::Inbound], previous: &[Arc<Inbound>]) -> Vec<Arc<Inbound>> {
    let mut next_id = previous.iter().map(|rule| rule.service.id + 1).max().unwrap_or(IDS);
    let mut fresh_id = || {
        next_id += 1;
        next_id - 1
    };
    configured
        .iter()
        .map(|rule| {
            let old = previous.iter().find(|old| old.config.name == rule.name);
            let config = rule.as_service();
            let program = Endpoint {
                id: 0,
                address: config.address,
                weight: 1,
                level: 0,
                state: old.map(|old| Arc::clone(&old.service.endpoints[0].state)).unwrap_or_default(),
            };
            let service = Service {
                pace: None,
                ejections: Arc::default(),
                efforts: Arc::default(),
                id: old.map_or_else(&mut fresh_id, |old| old.service.id),
                endpoints: vec![Arc::new(program)],
                draining: Vec::new(),
                shares: Published::default(),
                has_shares: false,
                cursor: Arc::default(),
                early: AtomicUsize::default(),
                routes: Vec::new(),
                request_limits: Vec::new(),
                pending: None,
                filters: filter::states(&config.filters, old.map_or(&[][..], |old| &old.service.filters)),
                guard: GuardState::default(),
                load: Arc::default(),
                config: Arc::new(config),
                changes: Changes::default(),
            };
            let state = old.map(|old| Arc::clone(&old.state)).unwrap_or_default();
            Arc::new(Inbound { config: rule.clone(), service: Arc::new(service), state })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use crate::{cluster::Snapshot, config::file};

    #[test]
    fn counts_and_ids_follow_the_name_of_a_rule() {
        let snapshot =
            |text: &str, previous: &Snapshot| Snapshot::build(&file::parse(text, "F").expect("a good file"), previous);
        let first = snapshot("inbound: [{name: a, ports: [80], protocol: tcp}]", &Snapshot::default());
        first.inbound[0].state.open.store(3, Relaxed);
        let text = "inbound: [{name: b, ports: [81], protocol: tcp}, {name: a, ports: [80-90], protocol: http}]";
        let second = snapshot(text, &first);
        let (b, a) = (&second.inbound[0], &second.inbound[1]);
        assert_eq!((a.state.open.load(Relaxed), b.state.open.load(Relaxed)), (3, 0));
        assert_eq!(a.service.id, first.inbound[0].service.id);
        assert_ne!(a.service.id, b.service.id);
    }

    #[test]
    fn the_first_rule_for_a_port_of_a_namespace_holds() {
        let text = "inbound:
- {name: webs, ports: [80-89], protocol: http, namespaces: {only: [web-*]}}
- {name: all, ports: [80], protocol: tcp}
";
        let snapshot = Snapshot::build(&file::parse(text, "F").expect("a good file"), &Snapshot::default());
        let name =
            |path: &str, port| snapshot.inbound(&[path.to_owned()], false, port).map(|rule| rule.config.name.as_str());
        assert_eq!(name("/run/netns/web-1", 80), Some("webs"));
        assert_eq!(name("/run/netns/db", 80), Some("all"));
        assert_eq!(name("/run/netns/web-1", 89), Some("webs"));
        assert_eq!(name("/run/netns/db", 89), None);
    }
}
