//! Connections that come in.

use std::{collections::HashMap, sync::Arc};

use super::{
    capture::{cidr, each, namespaces, port},
    filter, http, milliseconds,
    policy::{KEYS_OF_A_TAKE, take},
    section::{Field, Path, Position, Problem, Problems, Section},
    service::{CONNECT_TIMEOUT_MS, CONNECT_TIMEOUT_MS_MAX, service_name},
    tls,
};
use crate::config::{
    Protocol, Service,
    capture::{Cidr, NamespaceRules},
    inbound::{Inbound, Limits, Sources},
    policy::Take,
};

pub(super) const INBOUND_PROTOCOLS: [(&str, Protocol); 4] =
    [("tcp", Protocol::Tcp), ("http", Protocol::Http), ("http2", Protocol::Http2), ("auto", Protocol::Auto)];

/// Reads the rules; `services` are those of the file, if they could be read.
pub(super) fn inbound(
    field: &Field<'_>,
    services: Option<&[Arc<Service>]>,
    problems: &mut Problems,
) -> Option<Vec<Inbound>> {
    let items = field.list(problems)?;
    let mut names: HashMap<String, Position> = HashMap::new();
    let mut rules = Vec::new();
    for (index, node) in items.iter().enumerate() {
        let item = Field { node, path: Path::Item(&field.path, index) };
        rules.extend(rule(&item, &mut names, services, problems));
    }
    Some(rules)
}

fn rule(
    field: &Field<'_>,
    names: &mut HashMap<String, Position>,
    services: Option<&[Arc<Service>]>,
    problems: &mut Problems,
) -> Option<Inbound> {
    let keys = [
        "name",
        "ports",
        "namespaces",
        "protocol",
        "http",
        "tls",
        "connect_timeout_ms",
        "limits",
        "allow",
        "deny",
        "pass",
        "filters",
    ];
    let section = Section::open(field.node, &field.path, &keys, problems)?;
    let name_field = section.require("name", "write a name that no other inbound rule has", problems);
    let name = name_field.and_then(|field| name(&field, names, problems));
    let ports = section.require("ports", "list the ports that programs listen on, as 8080 or 8000-8010", problems);
    let ports = ports.and_then(|field| {
        let ports = each(&field, problems, port);
        if ports.as_ref().is_some_and(Vec::is_empty)
            && field.list(&mut Problems::default()).is_some_and(<[_]>::is_empty)
        {
            field.refuse("has no port; list at least one, or remove the rule", problems);
        }
        ports
    });
    let protocol = section.require("protocol", "write tcp, http, http2 or auto", problems);
    let protocol = protocol.and_then(|field| field.choice(&INBOUND_PROTOCOLS, problems));
    let http = http::http(&section, protocol, problems);
    let terminate = tls::inbound(&section, protocol, problems);
    let namespaces = section.or("namespaces", NamespaceRules::default, namespaces, problems);
    let timeout = section.or(
        "connect_timeout_ms",
        || CONNECT_TIMEOUT_MS,
        |field, p| field.integer(1..=CONNECT_TIMEOUT_MS_MAX, p),
        problems,
    );
    let limits = section.or("limits", Limits::default, limits, problems);
    let sources = sources(&section, problems);
    let mut named = Vec::new();
    let filters = filter::filters(&section, None, protocol, &mut named, problems);
    for (at, path, name) in named {
        let said = services.map(|services| services.iter().find(|service| service.name == name));
        let what = match said {
            Some(None) => "is no service of this file; write the name of one",
            Some(Some(service)) if matches!(service.protocol, Protocol::Tcp | Protocol::Udp) => {
                "is a service that does not speak HTTP; write protocol: http there, or name another"
            }
            // Or what is wrong with the services is said already.
            _ => continue,
        };
        problems.0.push(Problem { at, path, what: format!("\"{name}\" {what}") });
    }
    Some(Inbound {
        name: name?,
        ports: ports?,
        namespaces: namespaces?,
        protocol: protocol?,
        http: http?,
        terminate: terminate?,
        connect_timeout: milliseconds(timeout?),
        limits: limits?,
        sources: sources?,
        filters: filters?,
    })
}

fn name(field: &Field<'_>, names: &mut HashMap<String, Position>, problems: &mut Problems) -> Option<String> {
    let name = service_name(field, problems)?;
    match names.get(&name) {
        Some(first) => {
            let what = format!("\"{name}\" is also the name of the rule on line {}; choose another", first.line);
            field.refuse(what, problems);
        }
        None => {
            names.insert(name.clone(), field.node.at);
        }
    }
    Some(name)
}

fn limits(field: &Field<'_>, problems: &mut Problems) -> Option<Limits> {
    let keys = ["connections", "connections_per_second", "burst", "per_source"];
    let section = Section::open(field.node, &field.path, &keys, problems)?;
    let all = take(&section, problems);
    let per_source = section.or(
        "per_source",
        Take::default,
        |field, problems| take(&Section::open(field.node, &field.path, &KEYS_OF_A_TAKE, problems)?, problems),
        problems,
    );
    Some(Limits { all: all?, per_source: per_source? })
}

fn sources(section: &Section<'_>, problems: &mut Problems) -> Option<Sources> {
    let mut seen: HashMap<(std::net::IpAddr, u8), &str> = HashMap::new();
    let mut list = |key: &'static str, problems: &mut Problems| {
        let Some(field) = section.get(key) else { return Some(Vec::new()) };
        let mut known = |field: &Field<'_>, problems: &mut Problems| {
            let block: Cidr = cidr(field, problems)?;
            if let Some(other) = seen.insert((block.ip(), block.prefix()), key) {
                field.refuse(format!("{block} is listed twice, before under {other}; keep one"), problems);
            }
            Some(block)
        };
        let items = field.list(problems)?;
        let item = |(index, node)| known(&Field { node, path: Path::Item(&field.path, index) }, problems);
        Some(items.iter().enumerate().filter_map(item).collect())
    };
    let (allow, deny, pass) = (list("allow", problems), list("deny", problems), list("pass", problems));
    Some(Sources { allow: allow?, deny: deny?, pass: pass? })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{ConfigError, file, policy::Rate};

    #[test]
    fn a_rule_is_read_whole_and_shown_as_it_was() {
        let text = "inbound:
  - name: web
    ports: [8080, 9000-9010]
    namespaces: { only: ['web-*'], except: [host] }
    protocol: http
    connect_timeout_ms: 250
    limits: { connections: 100, connections_per_second: 50, burst: 10, per_source: { connections: 3 } }
    allow: [10.0.0.0/8, 'fd00::/8']
    deny: [10.9.0.0/16]
    pass: [10.1.2.3]
";
        let config = file::parse(text, "F").expect("a good file");
        let rule = &config.inbound[0];
        assert_eq!(rule.connect_timeout, Duration::from_millis(250));
        assert_eq!(rule.limits.all, Take { connections: Some(100), rate: Some(Rate { per_second: 50, burst: 10 }) });
        assert_eq!(rule.limits.per_source, Take { connections: Some(3), rate: None });
        assert_eq!((rule.sources.allow.len(), rule.sources.deny.len(), rule.sources.pass[0].prefix()), (2, 1, 32));
        assert!(rule.namespaces.captures(&["/run/netns/web-1".into()], false));
        assert!(!rule.namespaces.captures(&[], false));
        let again = file::parse(&file::show(&config).to_string(), "F").expect("what is shown can be read");
        assert_eq!(again, config);
    }

    #[test]
    fn what_a_rule_does_not_say_is_filled_in() {
        let config = file::parse("inbound: [{name: a, ports: [80], protocol: tcp}]", "F").expect("a good file");
        let rule = &config.inbound[0];
        assert!(rule.namespaces.captures(&[], false) && rule.namespaces.captures(&[], true));
        assert_eq!((&rule.limits, &rule.sources), (&Limits::default(), &Sources::default()));
        assert_eq!(file::parse("{}", "F").expect("a good file").inbound, []);
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        let problems = |text: &str| match file::parse(text, "F") {
            Err(ConfigError::Invalid { problems, .. }) => {
                problems.into_iter().map(|problem| format!("{}: {}", problem.path, problem.what)).collect()
            }
            other => vec![format!("{other:?}")],
        };
        for (rule, expected) in [
            ("{ports: [80], protocol: tcp}", "inbound[0].name: is missing"),
            ("{name: a, protocol: tcp}", "inbound[0].ports: is missing"),
            ("{name: a, ports: [], protocol: tcp}", "inbound[0].ports: has no port"),
            ("{name: a, ports: [0], protocol: tcp}", "inbound[0].ports[0]: 0 is out of range"),
            ("{name: a, ports: [9-8], protocol: tcp}", "inbound[0].ports[0]: \"9-8\" is no port"),
            ("{name: a, ports: [80]}", "inbound[0].protocol: is missing"),
            ("{name: a, ports: [80], protocol: udp}", "inbound[0].protocol: unknown value \"udp\""),
            ("{name: a, ports: [80], protocol: tcp, allow: [10.0.0.1/8]}", "inbound[0].allow[0]: \"10.0.0.1/8\""),
            (
                "{name: a, ports: [80], protocol: tcp, allow: [10.0.0.0/8], deny: [10.0.0.0/8]}",
                "inbound[0].deny[0]: 10.0.0.0/8 is listed twice",
            ),
            ("{name: a, ports: [80], protocol: tcp, limits: {burst: 3}}", "inbound[0].limits.burst: says nothing"),
            (
                "{name: a, ports: [80], protocol: tcp, limits: {per_source: {connections: 0}}}",
                "inbound[0].limits.per_source.connections: 0 is out of range",
            ),
            (
                "{name: a, ports: [80], protocol: http, filters: [{kind: external_auth, to: x}]}",
                "inbound[0].filters[0].to: \"x\" is no service of this file",
            ),
            ("{name: a, ports: [80], protocol: tcp, limit: 3}", "inbound[0].limit: unknown key; did you mean limits?"),
            (
                "{name: a, ports: [80], protocol: tcp}, {name: a, ports: [81], protocol: tcp}",
                "inbound[1].name: \"a\" is also the name",
            ),
        ] {
            let found: Vec<String> = problems(&format!("inbound: [{rule}]"));
            assert!(found.len() == 1 && found[0].starts_with(expected), "{rule}: {found:?}");
        }
    }
}
