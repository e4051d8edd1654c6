//! Labels that a service, or one of its routes, asks endpoints for, and that none has: right by the rules, and hardly meant.

use std::{collections::BTreeMap, sync::Arc};

use crate::config::{
    Config, Endpoint, Route, Service, Strategy,
    route::{Action, Fallback, Forward, Target},
    strategy::Kind,
};

type Labels = BTreeMap<String, String>;

/// A line for each.
pub(super) fn lines(service: &Service, config: &Config) -> Vec<String> {
    let own = many(service.strategy.as_ref(), service);
    let own = own.map(|subset| warning("", subset, service, "503"));
    own.into_iter().chain(service.routes.iter().flat_map(|route| of_route(route, service, config))).collect()
}

fn of_route(route: &Route, service: &Service, config: &Config) -> Vec<String> {
    let Action::Forward(Forward { targets, canary, mirror, .. }) = &route.action else { return Vec::new() };
    let of_route = format!("route {}: ", route.name);
    let led_to = |target: &Target| match &target.to {
        None => Some(service),
        Some(name) => config.services.iter().find(|service| service.name == *name).map(Arc::as_ref),
    };
    let unmet = |target: &Target, then: &str| {
        let to = led_to(target)?;
        let meant = Some(&target.subset).filter(|labels| !labels.is_empty() && !has_any(to, labels))?;
        let (meant, then) = match &target.fallback {
            Fallback::NoFallback => (meant, then),
            Fallback::AnyEndpoint => (meant, "any endpoint is asked"),
            Fallback::DefaultSubset(labels) if has_any(to, labels) => (meant, "those of the default subset are asked"),
            Fallback::DefaultSubset(_) => (meant, then),
        };
        Some(warning(&of_route, meant, to, then))
    };
    let targets = targets.iter().enumerate().filter_map(|(place, target)| {
        unmet(target, if canary.is_some() && place == 1 { "the canary gets nothing" } else { "503" })
    });
    let copied = mirror.as_ref().and_then(|mirror| unmet(&mirror.target, "nothing is copied"));
    let asked = many(route.strategy.as_deref(), service).map(|subset| warning(&of_route, subset, service, "503"));
    targets.chain(copied).chain(asked).collect()
}

/// Whom a multicast asks, if that is nobody.
fn many<'s>(strategy: Option<&'s Strategy>, service: &Service) -> Option<&'s Labels> {
    let Kind::Broadcast(many) = &strategy?.kind else { return None };
    Some(&many.subset).filter(|labels| !labels.is_empty() && !has_any(service, labels))
}

fn has_any(service: &Service, labels: &Labels) -> bool {
    let has = |endpoint: &Endpoint| labels.iter().all(|(name, value)| endpoint.labels.get(name) == Some(value));
    service.endpoints.iter().any(|endpoint| !endpoint.is_draining && has(endpoint))
}

fn warning(of: &str, labels: &Labels, service: &Service, then: &str) -> String {
    let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    format!("WARNING: {of}no endpoint of {} has the labels {{{}}}: {then}", service.name, labels.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file;

    #[test]
    fn labels_that_no_endpoint_has_are_warned_of_with_what_comes_of_it() {
        let text = "services:
  - name: a
    address: 10.0.0.1:80
    protocol: http
    endpoints: [{address: 10.0.0.2:80, labels: {v: one}}, {address: 10.0.0.3:80, labels: {v: old}, state: draining}]
    cluster: {strategy: multicast, subset: {v: six}}
    routes:
      - {name: good, match: {path: /1}, subset: {v: one}}
      - {name: none, match: {path: /2}, subset: {v: two}}
      - {name: drains, match: {path: /3}, subset: {v: old}}
      - {name: any, match: {path: /4}, subset: {v: two}, subset_fallback: any_endpoint}
      - {name: default, match: {path: /5}, subset: {v: two}, subset_fallback: default_subset, default_subset: {v: one}}
      - {name: neither, match: {path: /6}, subset: {v: two}, subset_fallback: default_subset, default_subset: {v: six}}
      - {name: other, match: {path: /7}, to: b, subset: {v: one}}
      - {name: copied, match: {path: /8}, mirror: {to: b, subset: {v: one}}}
  - {name: b, address: 10.0.0.4:80, protocol: http, endpoints: [10.0.0.5:80]}
";
        let config = file::parse(text, "F").expect("a good file");
        let told = lines(&config.services[0], &config);
        let warned = |of: &str, who: &str, value: &str, then: &str| {
            format!("WARNING: {of}no endpoint of {who} has the labels {{v: {value}}}: {then}")
        };
        assert_eq!(
            told,
            [
                warned("", "a", "six", "503"),
                warned("route none: ", "a", "two", "503"),
                warned("route drains: ", "a", "old", "503"),
                warned("route any: ", "a", "two", "any endpoint is asked"),
                warned("route default: ", "a", "two", "those of the default subset are asked"),
                warned("route neither: ", "a", "two", "503"),
                warned("route other: ", "b", "one", "503"),
                warned("route copied: ", "b", "one", "nothing is copied"),
            ]
        );
        assert!(lines(&config.services[1], &config).is_empty());
    }
}
