//! How the endpoints of a service are probed: its section `probe`.

use serde_json::{Value as Json, json};

use super::{
    SWITCHES,
    capture::range,
    guard, milliseconds,
    section::{Field, Path, Problems, Section},
};
use crate::config::{
    Protocol,
    probe::{Kind, Probe},
};

const KEYS: [&str; 15] = [
    "type",
    "interval_ms",
    "no_traffic_interval_ms",
    "timeout_ms",
    "rise",
    "fall",
    "jitter_percent",
    "on_change",
    "path",
    "host",
    "headers",
    "reuse_connection",
    "expect",
    "grpc_service",
    "command",
];

const INTERVAL_MS: u32 = 2_000; // HAProxy's, as are the next two
const RISE: u32 = 2;
const FALL: u32 = 3;
const NO_TRAFFIC_INTERVAL_MS: u32 = 60_000; // Envoy's
const TIMEOUT_MS: u32 = 1_000;
const MS_MAX: u32 = 86_400_000;
const TIMEOUT_MS_MAX: u32 = 60_000;
const COUNT_MAX: u32 = 1_000;
const WORDS_MAX: usize = 64; // of a command; more belongs into a script

#[derive(Clone, Copy, PartialEq, Eq)]
enum Type {
    Tcp,
    Http,
    Grpc,
    Command,
}

const TYPES: [(&str, Type); 4] =
    [("tcp", Type::Tcp), ("http", Type::Http), ("grpc", Type::Grpc), ("command", Type::Command)];

/// Reads the section if there is one.
pub(super) fn probe(
    section: &Section<'_>,
    protocol: Option<Protocol>,
    problems: &mut Problems,
) -> Option<Option<Probe>> {
    let Some(field) = section.get("probe") else { return Some(None) };
    if section.get("probe_interval_ms").is_some() {
        field.refuse("says what probe_interval_ms says, too; write interval_ms here, and remove that", problems);
    }
    let probe = read(&field, problems)?;
    let by_connection = !matches!(probe.kind, Kind::Command(_));
    if protocol == Some(Protocol::Udp) && by_connection {
        field.refuse("is by TCP, which nobody accepts there; write type: command, or leave the key out", problems);
    }
    Some(Some(probe))
}

fn read(field: &Field<'_>, problems: &mut Problems) -> Option<Probe> {
    let section = Section::open(field.node, &field.path, &KEYS, problems)?;
    let kind = section.or("type", || Type::Tcp, |field, p| field.choice(&TYPES, p), problems);
    for (key, of) in [
        ("path", Type::Http),
        ("expect", Type::Http),
        ("headers", Type::Http),
        ("grpc_service", Type::Grpc),
        ("command", Type::Command),
    ] {
        if let (Some(field), Some(kind)) = (section.get(key), kind.filter(|kind| *kind != of)) {
            let word = |kind| TYPES.iter().find(|(_, found)| *found == kind).map_or("", |(word, _)| word);
            let what = format!("says nothing for type: {}; write type: {}, or remove it", word(kind), word(of));
            field.refuse(what, problems);
        }
    }
    let mut number = |key, default, range| section.or(key, || default, |field, p| field.integer(range, p), problems);
    let interval = number("interval_ms", INTERVAL_MS, 1..=MS_MAX);
    let no_traffic_interval = number("no_traffic_interval_ms", NO_TRAFFIC_INTERVAL_MS, 1..=MS_MAX);
    let timeout = number("timeout_ms", TIMEOUT_MS, 1..=TIMEOUT_MS_MAX);
    let (rise, fall) = (number("rise", RISE, 1..=COUNT_MAX), number("fall", FALL, 1..=COUNT_MAX));
    let jitter_percent = number("jitter_percent", 0, 0..=100);
    let reuses = section.or("reuse_connection", || true, |field, p| field.choice(&SWITCHES, p), problems);
    let is_request = matches!(kind, None | Some(Type::Http | Type::Grpc));
    if let (false, Some(field)) = (is_request, section.get("reuse_connection")) {
        field.refuse("says nothing where no request is asked; write type: http or grpc, or remove it", problems);
    }
    let on_change = section.or("on_change", || Some(Vec::new()), |field, p| Some(command(field, p)), problems);
    let kind = kind.and_then(|kind| read_kind(kind, &section, problems));
    Some(Probe {
        kind: kind?,
        interval: milliseconds(interval?),
        no_traffic_interval: milliseconds(no_traffic_interval?.max(interval?)),
        timeout: milliseconds(timeout?),
        rise: rise?,
        fall: fall?,
        jitter_percent: jitter_percent?,
        reuses: reuses?,
        on_change: on_change??,
    })
}

fn read_kind(kind: Type, section: &Section<'_>, problems: &mut Problems) -> Option<Kind> {
    match kind {
        Type::Tcp => Some(Kind::Tcp),
        Type::Http => {
            let path = section.or("path", || "/".to_owned(), path, problems);
            let host = section.or("host", || None, |field, p| visible(field, p).map(Some), problems);
            let headers = section.or("headers", Vec::new, guard::headers, problems);
            let expect = section.or("expect", || vec![200..=200], statuses, problems);
            Some(Kind::Http { path: path?, host: host?, headers: headers?, expect: expect? })
        }
        Type::Grpc => {
            let service = section.or("grpc_service", String::new, visible, problems);
            Some(Kind::Grpc { service: service? })
        }
        Type::Command => {
            let field = section.require("command", "list a program's path and its arguments", problems)?;
            command(&field, problems).map(Kind::Command)
        }
    }
}

/// A text that may stand in a request's head.
fn visible(field: &Field<'_>, problems: &mut Problems) -> Option<String> {
    let text = field.text(problems)?;
    if text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Some(text.to_owned());
    }
    field.refuse("holds what no request's head can; write visible ASCII characters, no blanks", problems);
    None
}

fn path(field: &Field<'_>, problems: &mut Problems) -> Option<String> {
    let path = visible(field, problems)?;
    if path.starts_with('/') {
        return Some(path);
    }
    field.refuse("does not begin with /; write the path of a request, as /healthz", problems);
    None
}

pub(super) fn statuses(field: &Field<'_>, problems: &mut Problems) -> Option<Vec<std::ops::RangeInclusive<u32>>> {
    let items = field.list(problems)?;
    let read = |(index, node)| {
        let item = Field { node, path: Path::Item(&field.path, index) };
        range(&item, 100..=599, "status", "200 or 200-299", problems)
    };
    let read: Vec<_> = items.iter().enumerate().map(read).collect();
    if read.is_empty() {
        field.refuse("expects nothing; list statuses, as [200-299], or remove it", problems);
        return None;
    }
    read.into_iter().collect()
}

/// A program's path and its arguments.
pub(super) fn command(field: &Field<'_>, problems: &mut Problems) -> Option<Vec<String>> {
    let items = field.list(problems)?;
    if items.is_empty() || items.len() > WORDS_MAX {
        field.refuse(format!("is no command; list a program's path and up to {WORDS_MAX} arguments"), problems);
        return None;
    }
    let word = |(index, node)| {
        let item = Field { node, path: Path::Item(&field.path, index) };
        if index == 0 {
            // No shell, no PATH: what is run is what is named.
            return item.path(problems).map(|path| path.display().to_string());
        }
        item.text(problems).map(str::to_owned)
    };
    let words: Vec<Option<String>> = items.iter().enumerate().map(word).collect();
    words.into_iter().collect()
}

/// As it would be written.
pub(super) fn show(probe: &Probe) -> Json {
    let mut shown = json!({
        "interval_ms": probe.interval.as_millis() as u64,
        "no_traffic_interval_ms": probe.no_traffic_interval.as_millis() as u64,
        "timeout_ms": probe.timeout.as_millis() as u64,
        "rise": probe.rise,
        "fall": probe.fall,
        "jitter_percent": probe.jitter_percent,
        "on_change": (!probe.on_change.is_empty()).then_some(&probe.on_change),
    });
    let kind = match &probe.kind {
        Kind::Tcp => "tcp",
        Kind::Http { path, host, headers, expect } => {
            (shown["path"], shown["host"]) = (json!(path), json!(host));
            let fields: serde_json::Map<String, Json> =
                headers.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
            shown["headers"] = json!((!fields.is_empty()).then_some(fields));
            shown["expect"] = json!(expect.iter().map(super::range).collect::<Vec<String>>());
            "http"
        }
        Kind::Grpc { service } => {
            shown["grpc_service"] = json!(service);
            "grpc"
        }
        Kind::Command(command) => {
            shown["command"] = json!(command);
            "command"
        }
    };
    if matches!(probe.kind, Kind::Http { .. } | Kind::Grpc { .. }) {
        shown["reuse_connection"] = json!(super::show::word(&SWITCHES, probe.reuses));
    }
    shown["type"] = json!(kind);
    shown
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{Config, file};

    fn read(keys: &str) -> Result<Config, String> {
        let text = format!(
            "services:\n- {{name: a, address: 10.0.0.1:80, protocol: http, endpoints: [10.0.0.2:80],\n  {keys}}}"
        );
        file::parse(&text, "F").map_err(|error| error.to_string())
    }

    #[test]
    fn every_kind_is_read_and_shown_again() {
        let kind = |keys: &str| {
            let config = read(keys).expect("a good file");
            let shown = file::show(&config).to_string();
            assert_eq!(file::parse(&shown, "F").expect("a good file"), config);
            config.services[0].probe.clone().expect("a probe")
        };
        let probe = kind("probe: {interval_ms: 500, jitter_percent: 10, on_change: [/bin/true, up]}");
        let (interval, timeout) = (Duration::from_millis(500), Duration::from_secs(1));
        let on_change = vec!["/bin/true".to_owned(), "up".to_owned()];
        let (no_traffic_interval, jitter_percent) = (Duration::from_secs(60), 10);
        let expected = Probe {
            kind: Kind::Tcp,
            interval,
            no_traffic_interval,
            timeout,
            rise: 2,
            fall: 3,
            jitter_percent,
            reuses: true,
            on_change,
        };
        assert_eq!(probe, expected);
        let http = Kind::Http {
            path: "/up".to_owned(),
            host: Some("a.b".to_owned()),
            headers: vec![("x-probe".to_owned(), "yes".to_owned())],
            expect: vec![200..=204, 301..=301],
        };
        let said = kind(
            "probe: {type: http, path: /up, host: a.b, headers: {X-Probe: 'yes'}, reuse_connection: off, expect: [200-204, 301]}",
        );
        assert_eq!((said.kind, said.reuses), (http, false));
        assert_eq!(kind("probe: {type: grpc, grpc_service: s}").kind, Kind::Grpc { service: "s".to_owned() });
        let command = Kind::Command(vec!["/bin/test".to_owned(), "-e".to_owned()]);
        assert_eq!(kind("probe: {type: command, command: [/bin/test, -e]}").kind, command);
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (keys, expected) in [
            (
                "probe: {interval_ms: 0}",
                "probe.interval_ms: 0 is out of range; write a whole number from 1 to 86400000",
            ),
            ("probe: {path: /}", "probe.path: says nothing for type: tcp; write type: http, or remove it"),
            ("probe: {type: http, path: up}", "probe.path: does not begin with /"),
            ("probe: {type: http, path: '/a b'}", "probe.path: holds what no request's head can"),
            ("probe: {type: http, expect: [99]}", "probe.expect[0]: 99 is out of range"),
            ("probe: {type: http, headers: {Host: a}}", "probe.headers"),
            ("probe: {headers: {a: b}}", "probe.headers: says nothing for type: tcp"),
            ("probe: {reuse_connection: on}", "probe.reuse_connection: says nothing where no request is asked"),
            ("probe: {type: command}", "probe.command: is missing; list a program's path and its arguments"),
            ("probe: {type: command, command: [test]}", "probe.command[0]: \"test\" does not begin with /"),
            ("probe: {}, probe_interval_ms: 5", "probe: says what probe_interval_ms says, too"),
        ] {
            let found = read(keys).expect_err("a mistake");
            assert!(found.contains("F:3:") && found.contains(expected), "{found}");
        }
    }
}
