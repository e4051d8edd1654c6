//! Connections that come in: which go through the agent before a program has them, and what they may.

use std::{
    net::{Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    time::Duration,
};

use super::{
    Endpoint, Http, Mode, Policy, Protocol, Service, Shortcut, Tls,
    capture::{Cidr, NamespaceRules},
    filter::Filter,
    policy::Take,
    tls::Terminate,
};

/// Ports whose connections go through the agent.
#[derive(Clone, Debug, PartialEq)]
pub struct Inbound {
    /// Unique name.
    pub name: String,
    /// The ports; at least one. Of two rules that name the same port of a namespace the first holds.
    pub ports: Vec<RangeInclusive<u16>>,
    /// In which network namespaces.
    pub namespaces: NamespaceRules,
    /// What is spoken: HTTP of either version, opaque bytes, or whichever the first bytes are.
    pub protocol: Protocol,
    /// Clients speak TLS with the agent; the program hears what is said within.
    pub terminate: Option<Terminate>,
    /// What HTTP messages may take.
    pub http: Http,
    /// How long the agent waits for the program to accept.
    pub connect_timeout: Duration,
    /// How much is let in.
    pub limits: Limits,
    /// Who is let in.
    pub sources: Sources,
    /// What requests and responses pass, in the order of requests; names are unique.
    pub filters: Vec<Filter>,
}

/// How much is let in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Of everybody together, on this node.
    pub all: Take,
    /// Of one source address.
    pub per_source: Take,
}

/// Who is let in. A source is judged by the longest prefix that names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// Through the agent. If there are any, who is named nowhere is refused.
    pub allow: Vec<Cidr>,
    /// Refused.
    pub deny: Vec<Cidr>,
    /// To the program directly.
    pub pass: Vec<Cidr>,
}

impl Inbound {
    /// Whether it is about this port.
    pub fn covers(&self, port: u16) -> bool {
        self.ports.iter().any(|ports| ports.contains(&port))
    }

    /// Whether somebody has to count by source.
    pub fn counts_sources(&self) -> bool {
        self.limits.per_source != Take::default()
    }

    /// The service that the program itself is: its one endpoint is wherever the client dialled.
    pub fn as_service(&self) -> Service {
        let anywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        Service {
            name: self.name.clone(),
            address: anywhere,
            protocol: self.protocol,
            upstream_protocol: None,
            mode: Mode::Agent,
            policy: Policy::default(),
            http: self.http.clone(),
            tls: Tls::default(),
            shortcut: Shortcut::Off,
            original_dst: false,
            connect_timeout: self.connect_timeout,
            probe_interval: None,
            probe: None,
            outlier: None,
            strategy: None,
            timing: None,
            request_limits: Vec::new(),
            pending: None,
            filters: self.filters.clone(),
            guard: Default::default(),
            endpoint_drain: None,
            udp_idle_timeout: Duration::ZERO,
            routes: Vec::new(),
            endpoints: vec![Endpoint::at(anywhere)],
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::file;

    #[test]
    fn a_rule_covers_its_ports_and_ranges() {
        let text = "inbound: [{name: a, ports: [80, 8000-8010], protocol: tcp}]";
        let config = file::parse(text, "F").expect("a good file");
        let covered: Vec<bool> = [79, 80, 81, 8000, 8010, 8011].map(|port| config.inbound[0].covers(port)).into();
        assert_eq!(covered, [false, true, false, true, true, false]);
    }
}
