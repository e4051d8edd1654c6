//! What is right by itself and wrong together: names and addresses used twice, endpoints that lead back, families that do not mix.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
};

use super::{
    section::{Path, Position, Problem, Problems},
    service::Draft,
};
use crate::config::{Endpoint, Mode, Protocol, Service};

/// What programs dial: the same IP and port of another IP protocol is another thing.
type Dialled = (SocketAddr, u8);

/// Remembers every service of a file, then says what does not go together.
#[derive(Default)]
pub(super) struct Conflicts {
    services: Vec<Placed>,
}

/// What of one service may conflict with another.
struct Placed {
    index: usize,
    mode: Option<Mode>,
    transport: u8,
    name: Option<(Position, String)>,
    address: Option<(Position, SocketAddr)>,
    endpoints: Vec<PlacedEndpoint>,
    /// Services that its routes and filters name.
    named: Vec<(Position, String, String)>,
    /// Services that are to stand in for it.
    stand_ins: Vec<(Position, String, String)>,
    protocol: Option<Protocol>,
}

struct PlacedEndpoint {
    at: Position,
    index: usize,
    short: bool,
    address: SocketAddr,
}

impl Conflicts {
    pub(super) fn add(&mut self, index: usize, draft: &Draft) {
        let endpoints = draft.endpoints.iter().map(|endpoint| PlacedEndpoint {
            at: endpoint.at,
            index: endpoint.index,
            short: endpoint.short,
            address: endpoint.endpoint.address,
        });
        self.services.push(Placed {
            index,
            mode: draft.mode(),
            // One that could not be read is noted already, and is most probably TCP.
            transport: draft.protocol.unwrap_or(Protocol::Tcp).transport(),
            name: draft.name.clone(),
            address: draft.address,
            endpoints: endpoints.collect(),
            named: draft.routes.iter().flat_map(|routes| &routes.named).chain(&draft.named).cloned().collect(),
            stand_ins: draft.guarded_by.services.clone(),
            protocol: draft.protocol,
        });
    }

    /// A service that was found good before. Its endpoints are looked at only if there may be another address among the services by now.
    pub(super) fn add_known(&mut self, index: usize, service: &Service, with_endpoints: bool) {
        let endpoint = |(index, endpoint): (usize, &Endpoint)| PlacedEndpoint {
            at: Position::START,
            index,
            short: false,
            address: endpoint.address,
        };
        let endpoints = service.endpoints.iter().enumerate().filter(|_| with_endpoints).map(endpoint);
        self.services.push(Placed {
            index,
            mode: Some(service.mode),
            transport: service.protocol.transport(),
            name: Some((Position::START, service.name.clone())),
            address: Some((Position::START, service.address)),
            endpoints: endpoints.collect(),
            named: Vec::new(),
            stand_ins: Vec::new(),
            protocol: Some(service.protocol),
        });
    }

    pub(super) fn report(&self, services: &Path<'_>, problems: &mut Problems) {
        let mut names: HashMap<&str, Position> = HashMap::new();
        let mut addresses: HashMap<Dialled, (Position, &Placed)> = HashMap::new();
        for service in &self.services {
            let path = Path::Item(services, service.index);
            if let Some((at, name)) = &service.name
                && let Some(first) = insert_new(&mut names, name.as_str(), *at)
            {
                let what = format!("\"{name}\" is also the name of the service on line {}; choose another", first.line);
                problems.note(*at, &Path::Key(&path, "name"), what);
            }
            if let Some((at, address)) = service.address
                && let Some((first, _)) = insert_new(&mut addresses, (address, service.transport), (at, service))
            {
                let what = format!(
                    "{address} is also the address of the service on line {}; give one of them another",
                    first.line
                );
                problems.note(at, &Path::Key(&path, "address"), what);
            }
        }
        let spoken: HashMap<&str, Option<Protocol>> =
            self.services.iter().filter_map(|it| Some((it.name.as_ref()?.1.as_str(), it.protocol))).collect();
        for service in &self.services {
            service.report_named(&spoken, problems);
            service.report(&Path::Item(services, service.index), &addresses, problems);
        }
    }
}

impl Placed {
    /// Services that routes and filters name and that are not there, or speak no HTTP.
    fn report_named(&self, spoken: &HashMap<&str, Option<Protocol>>, problems: &mut Problems) {
        let own = self.name.as_ref().map(|(_, name)| name);
        for (at, path, name) in self.stand_ins.iter().filter(|(_, _, name)| Some(name) == own) {
            let what = format!("\"{name}\" is this service itself; name another");
            problems.0.push(Problem { at: *at, path: path.clone(), what });
        }
        let is_tcp = self.protocol == Some(Protocol::Tcp);
        for (at, path, name) in self.named.iter().chain(&self.stand_ins) {
            let what = match spoken.get(name.as_str()) {
                None => "is no service of this file; write the name of one",
                Some(Some(Protocol::Tcp)) if is_tcp => continue,
                Some(Some(Protocol::Http | Protocol::Http2 | Protocol::Udp)) if is_tcp => {
                    "is a service that does not take bytes as they come; name one with protocol: tcp or auto"
                }
                Some(Some(Protocol::Tcp | Protocol::Udp)) => {
                    "is a service that does not speak HTTP; write protocol: http there, or name another"
                }
                Some(_) => continue,
            };
            problems.0.push(Problem { at: *at, path: path.clone(), what: format!("\"{name}\" {what}") });
        }
    }

    fn report(&self, path: &Path<'_>, addresses: &HashMap<Dialled, (Position, &Placed)>, problems: &mut Problems) {
        let endpoints = Path::Key(path, "endpoints");
        let mut seen = HashSet::new();
        for endpoint in &self.endpoints {
            let Some(what) = self.objection(endpoint.address, !seen.insert(endpoint.address), addresses) else {
                continue;
            };
            let item = Path::Item(&endpoints, endpoint.index);
            let path = if endpoint.short { item } else { Path::Key(&item, "address") };
            problems.note(endpoint.at, &path, what);
        }
    }

    fn objection(
        &self,
        endpoint: SocketAddr,
        twice: bool,
        addresses: &HashMap<Dialled, (Position, &Placed)>,
    ) -> Option<String> {
        if twice {
            return Some(format!("{endpoint} is listed twice; keep one and give it more weight"));
        }
        let own = self.address.map(|(_, address)| address);
        if own == Some(endpoint) {
            return Some("is the service's own address, a loop; write where the service's program listens".to_owned());
        }
        if let Some((at, other)) = addresses.get(&(endpoint, self.transport)) {
            let name = other.name.as_ref().map_or("?", |(_, name)| name.as_str());
            return Some(format!(
                "is the address of the service \"{name}\" on line {}, and what is captured once is not captured again; \
                 list the endpoints of \"{name}\" here",
                at.line
            ));
        }
        let mixed = own.is_some_and(|address| address.is_ipv4() != endpoint.is_ipv4());
        (mixed && self.mode == Some(Mode::Kernel)).then(|| {
            "is of the other IP family than the service, which the kernel cannot turn a socket to; \
             use one family, or mode: agent"
                .to_owned()
        })
    }
}

/// Inserts what is new; gives back what stood there already.
fn insert_new<K: std::hash::Hash + Eq, V: Copy>(map: &mut HashMap<K, V>, key: K, value: V) -> Option<V> {
    match map.entry(key) {
        std::collections::hash_map::Entry::Occupied(entry) => Some(*entry.get()),
        std::collections::hash_map::Entry::Vacant(entry) => {
            entry.insert(value);
            None
        }
    }
}
