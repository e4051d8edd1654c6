//! Who may import whom: node → corridor → hands and judges → words. And which room a dependency belongs to.

use super::{
    Finding,
    source::{Source, has_word},
};

/// What the configuration and the cluster are called: everybody may know them.
const WORDS: &[&str] = &["config", "cluster", "chance"];
/// Rooms that decide, and touch nothing.
pub const JUDGES: &[&str] =
    &["sniff", "decode", "route", "filter", "limit", "breaker", "balance", "retry", "deadline", "health"];
/// Rooms that each touch one part of the world.
const HANDS: &[&str] = &["ring", "accept", "connect", "forward", "kernel", "discover", "record"];
/// Calls the rooms in order.
const CORRIDOR: &[&str] = &["proxy"];
/// Starts, stops and reloads everything.
const NODE: &[&str] = &["node", "command"];

/// A dependency, and the places below `agent/src/` that may name it.
const OWNED: &[(&str, &[&str])] = &[
    ("aya", &["kernel"]),
    ("aya_log", &["kernel"]),
    ("tokio_uring", RING),
    ("io_uring", RING),
    ("socket2", RING),
    ("serde", SERDE),
    ("serde_json", SERDE),
    ("serde_saphyr", &["config/file"]),
    ("metrics", &["record"]),
    ("metrics_exporter_prometheus", &["record"]),
    ("httparse", &["decode"]),
    ("h2", &["connect", "node/probe", "proxy/http2", "proxy/http/http2", "proxy/whole/http2", "proxy/translate"]),
    ("rustls", &["config/tls", "config/file/tls", "connect", "proxy/tls", "ring/stream/tls"]),
    ("rustls_native_certs", &["config/tls"]),
    ("webpki", &["config/tls"]),
    ("axum", &["node"]),
];
/// Opening a socket in another namespace needs what `ring` needs.
const RING: &[&str] = &[
    "ring",
    "accept",
    "connect",
    "forward",
    "node/worker",
    "kernel/namespace",
    "kernel/selftest",
    "kernel/source",
    "kernel/sockets",
];
/// What a person wrote, what a token claims, and what the admin address and the run-time file show.
const SERDE: &[&str] = &["config/file", "filter/jwt", "node", "record/observed", "command"];

pub fn check(source: &Source) -> Vec<Finding> {
    let mut findings = rooms(source);
    findings.extend(dependencies(source));
    findings
}

fn rooms(source: &Source) -> Vec<Finding> {
    let Some(room) = source.room() else { return Vec::new() };
    let end = source.shipped().map(|(_, line)| line.len() + 1).sum::<usize>().min(source.code.len());
    let shipped = &source.code[..end];
    let named = named_rooms(shipped).into_iter().filter(|(_, name)| name != room && !may_import(room, name));
    let finding = |(at, name): (usize, String)| {
        let line = shipped[..at].matches('\n').count() + 1;
        let remedy = format!(
            "`{room}` may not import `{name}`: pass what it needs as an argument, or move the code (node → proxy → hands and judges → config, cluster)"
        );
        Finding::new(&source.path, line, "imports go down", remedy)
    };
    named.map(finding).collect()
}

fn may_import(room: &str, name: &str) -> bool {
    let (is, among) = (|group: &[&str]| group.contains(&room), |group: &[&str]| group.contains(&name));
    if is(NODE) {
        true
    } else if is(CORRIDOR) {
        !among(NODE)
    } else if is(HANDS) {
        !among(NODE) && !among(CORRIDOR)
    } else if room == "filter" && name == "route" {
        // A request's head, and what is changed of one, are told there.
        true
    } else if is(JUDGES) || is(WORDS) {
        !among(NODE) && !among(CORRIDOR) && !among(HANDS) && !among(JUDGES)
    } else {
        // A room that stands in no list yet.
        true
    }
}

/// Every `crate::NAME`, in a group as well, with its place.
fn named_rooms(code: &str) -> Vec<(usize, String)> {
    code.match_indices("crate::")
        .filter(|(at, _)| !code[..*at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$'))
        .flat_map(|(at, prefix)| {
            let rest = &code[at + prefix.len()..];
            let names = if rest.starts_with('{') { group(rest) } else { vec![identifier(rest)] };
            names.into_iter().filter(|name| !name.is_empty()).map(move |name| (at, name))
        })
        .collect()
}

/// The first names in a `{…}`, whatever is nested below them.
fn group(text: &str) -> Vec<String> {
    let (mut depth, mut names, mut fresh) = (0, Vec::new(), false);
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            break;
        }
        if depth == 1 && (c == '{' || c == ',') {
            fresh = true;
        } else if fresh && !c.is_whitespace() {
            fresh = false;
            names.push(identifier(&text[at..]));
        }
    }
    names
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

fn dependencies(source: &Source) -> Vec<Finding> {
    let Ok(below) = source.path.strip_prefix("agent/src") else { return Vec::new() };
    let below = below.to_string_lossy();
    let foreign = OWNED.iter().filter(|(_, places)| !places.iter().any(|place| is_at(&below, place)));
    let found = foreign.flat_map(|(name, places)| {
        source.shipped().filter(move |(_, line)| names(line, name)).map(move |(number, _)| (number, *name, *places))
    });
    found
        .map(|(number, name, places)| {
            let remedy = format!("only {} may name `{name}`", places.join(", "));
            Finding::new(&source.path, number, "dependencies belong to rooms", remedy)
        })
        .collect()
}

/// Whether a file is this room or part of it: `ring` is `ring.rs` and all in `ring/`.
fn is_at(below: &str, place: &str) -> bool {
    below
        .strip_prefix(place)
        .is_some_and(|rest| rest.starts_with('/') || rest.starts_with('.') || rest.starts_with('_'))
}

/// Whether a line uses a crate: `name::…`, `use name…`, but not `crate::…::name::…`.
fn names(line: &str, name: &str) -> bool {
    let path = format!("{name}::");
    let in_path = line
        .match_indices(&path)
        .any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':'));
    in_path || (line.trim_start().starts_with("use ") && has_word(line, name) && line.contains(&format!("use {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<(usize, &'static str)> {
        check(&Source::new(path, text)).iter().map(|finding| (finding.line, finding.rule)).collect()
    }

    #[test]
    fn an_import_that_goes_up_is_found() {
        assert_eq!(
            found("agent/src/connect.rs", "use crate::config;\nuse crate::node::worker;\n"),
            [(2, "imports go down")]
        );
        assert_eq!(found("agent/src/cluster.rs", "use crate::balance::Pick;\n"), [(1, "imports go down")]);
        assert_eq!(found("agent/src/proxy/http.rs", "use crate::node;\n"), [(1, "imports go down")]);
        assert_eq!(found("agent/src/record.rs", "fn f() { crate::proxy::g() }\n"), [(1, "imports go down")]);
    }

    #[test]
    fn a_judge_imports_neither_hand_nor_judge() {
        assert_eq!(found("agent/src/route.rs", "use crate::ring::Stream;\n").len(), 1);
        assert_eq!(found("agent/src/route.rs", "use crate::decode::Head;\n").len(), 1);
        assert!(
            found("agent/src/decode/http1.rs", "use crate::decode::Head;\nuse crate::config::Config;\n").is_empty()
        );
    }

    #[test]
    fn every_name_of_a_group_is_seen() {
        let text = "use crate::{\n    cluster::{Endpoint, Service},\n    proxy::{http, opaque},\n    node,\n};\n";
        assert_eq!(found("agent/src/connect.rs", text).len(), 2);
    }

    #[test]
    fn imports_that_go_down_pass() {
        assert!(found("agent/src/node.rs", "use crate::{proxy, ring, balance, config};\n").is_empty());
        assert!(found("agent/src/proxy.rs", "use crate::{connect, decode::Head, cluster};\n").is_empty());
    }

    #[test]
    fn a_dependency_outside_its_room_is_found() {
        assert_eq!(found("agent/src/node.rs", "use aya::Ebpf;\n"), [(1, "dependencies belong to rooms")]);
        assert_eq!(found("agent/src/proxy.rs", "fn f() { tokio_uring::spawn(x) }\n").len(), 1);
        assert_eq!(found("agent/src/config.rs", "use serde::Deserialize;\n").len(), 1);
        assert_eq!(found("agent/src/node.rs", "use metrics::counter;\n").len(), 1);
    }

    #[test]
    fn a_dependency_in_its_room_passes() {
        assert!(found("agent/src/kernel/load.rs", "use aya::Ebpf;\n").is_empty());
        assert!(found("agent/src/node/worker.rs", "use tokio_uring::net;\n").is_empty());
        assert!(found("agent/src/record/prometheus.rs", "use metrics::counter;\n").is_empty());
        assert!(found("agent/src/node/admin.rs", "use crate::record::metrics::x;\n").is_empty());
    }
}
