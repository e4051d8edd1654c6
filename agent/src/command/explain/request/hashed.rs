//! Which endpoint a request reaches by what is hashed of it, as far as that stands in the request.

use http::request::Parts;
use serde_json::{Value, json};

use crate::{
    balance::{Ask, Balancer, Site, key},
    cluster::{Service, Shares},
    config::tuning::{HashKey, Part},
    route::Request,
};

/// What is known of who asks: the hash of what the request says. Nobody has anything to do.
struct Known(u64);

impl Ask for Known {
    fn turn(&self) -> usize {
        0
    }

    fn chance(&self) -> u64 {
        0
    }

    fn load(&self, _: usize) -> u64 {
        0
    }

    fn load_of_all(&self) -> u64 {
        0
    }

    fn cost(&self, _: usize) -> f64 {
        0.0
    }

    fn source(&self) -> u64 {
        0
    }

    fn key(&self) -> Option<u64> {
        Some(self.0)
    }
}

/// The endpoint, and by what it is chosen; or what it would be chosen by if that were known. `may` says which may be. Nothing where no hash is
/// asked for, or where a part of the requests goes to others by priority.
pub(super) fn chosen(service: &Service, parts: &Parts, may: impl Fn(usize) -> bool) -> Option<Value> {
    let policy = &service.config.policy;
    let rules = &policy.tuning.hash_on;
    let levels = |place: usize| service.endpoints[place].level != service.endpoints[0].level;
    if !policy.balance.hashes() || rules.is_empty() || (0..service.endpoints.len()).any(levels) {
        return None;
    }
    let request = Request::of_parts(parts, false, 0);
    let (mut by, mut is_known) = (Vec::new(), true);
    for rule in rules {
        let (name, found) = match &rule.key {
            HashKey::Part(Part::Source) => ("who dials".to_owned(), Some(None)),
            HashKey::Address => ("the address that it comes from".to_owned(), Some(None)),
            HashKey::Part(part) => (word(part), value(part, &request).map(Some)),
            HashKey::Given(cookie) => match request.cookie(&cookie.name).filter(|value| !value.is_empty()) {
                None => (format!("the cookie {}, which it is given", cookie.name), Some(None)),
                value => (format!("the cookie {}", cookie.name), Some(value)),
            },
        };
        let Some(value) = found else { continue };
        by.push(name);
        is_known &= value.is_some();
        if rule.terminal {
            break;
        }
    }
    if by.is_empty() {
        return Some(json!({ "by": "chance: it has nothing that is hashed" }));
    }
    let by = by.join(" and ");
    let sites: Vec<Site> = service.endpoints.iter().map(|it| Site { address: it.address, weight: it.weight }).collect();
    let weight = |(place, site): (usize, &Site)| if may(place) { site.weight } else { 0 };
    let shares = Shares { weights: sites.iter().enumerate().map(weight).collect(), standby: Vec::new() };
    let balancer = Balancer::new(policy, &sites, &shares);
    let hash = |key: &HashKey| match key {
        HashKey::Part(part) => value(part, &request).map(|value| balancer.hash(value)),
        HashKey::Given(cookie) => request.cookie(&cookie.name).map(|value| balancer.hash(value)),
        HashKey::Address => None,
    };
    let endpoint = key::of(rules, hash).filter(|_| is_known).and_then(|key| balancer.choose(&may, Known(key)));
    Some(json!({ "by": by, "endpoint": endpoint.map(|place| service.endpoints[place].address.to_string()) }))
}

fn value<'r>(part: &'r Part, request: &Request<'r>) -> Option<&'r [u8]> {
    match part {
        Part::Header(name) => request.header(name),
        Part::Cookie(name) => request.cookie(name),
        Part::Query(name) => request.parameter(name),
        Part::Source => None,
    }
}

fn word(part: &Part) -> String {
    match part {
        Part::Header(name) => format!("the header {name}"),
        Part::Cookie(name) => format!("the cookie {name}"),
        Part::Query(name) => format!("the parameter {name}"),
        Part::Source => "who dials".to_owned(),
    }
}

/// In words.
pub(super) fn tell(chosen: &Value) -> Option<String> {
    let by = chosen["by"].as_str()?;
    Some(match chosen["endpoint"].as_str() {
        Some(endpoint) => format!("{endpoint}, by {by}"),
        None => format!("by {by}"),
    })
}
