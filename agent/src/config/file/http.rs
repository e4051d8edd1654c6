//! What HTTP messages may take: the section `http` of a service or an inbound rule.

use std::time::Duration;

use serde_json::{Value as Json, json};

use super::{
    milliseconds,
    section::{Field, Problems, Section},
    tree::Value,
};
use crate::config::{
    Protocol,
    http::{HEAD_BYTES_LIMIT, Http},
};

const KEYS: [&str; 5] =
    ["head_bytes_max", "head_fields_max", "head_timeout_ms", "response_timeout_ms", "stall_timeout_ms"];

const HEAD_BYTES_LEAST: u32 = 1_024; // less than browsers send
const HEAD_FIELDS_LIMIT: u32 = 10_000; // a hundred bytes each in the longest head
const HEAD_TIMEOUT_MS_MAX: u32 = 600_000;
const TIMEOUT_MS_MAX: u32 = 86_400_000;

/// Reads the section if there is one.
pub(super) fn http(section: &Section<'_>, protocol: Option<Protocol>, problems: &mut Problems) -> Option<Http> {
    if let (Some(Protocol::Tcp | Protocol::Udp), Some(field)) = (protocol, section.get("http")) {
        field.refuse(
            "limits HTTP, which is not what is spoken here; write protocol: http or auto, or remove it",
            problems,
        );
    }
    section.or("http", Http::default, read, problems)
}

fn read(field: &Field<'_>, problems: &mut Problems) -> Option<Http> {
    let section = Section::open(field.node, &field.path, &KEYS, problems)?;
    let default = Http::default();
    let number = |range: std::ops::RangeInclusive<u32>| {
        move |field: &Field<'_>, problems: &mut Problems| {
            field.integer(range.clone(), problems).map(|number| number as usize)
        }
    };
    let bytes = number(HEAD_BYTES_LEAST..=HEAD_BYTES_LIMIT as u32);
    let head_bytes_max = section.or("head_bytes_max", || default.head_bytes_max, bytes, problems);
    let fields = number(1..=HEAD_FIELDS_LIMIT);
    let head_fields_max = section.or("head_fields_max", || default.head_fields_max, fields, problems);
    let timeout = |field: &Field<'_>, p: &mut Problems| field.integer(1..=HEAD_TIMEOUT_MS_MAX, p).map(milliseconds);
    let head_timeout = section.or("head_timeout_ms", || default.head_timeout, timeout, problems);
    let response_timeout = section.or("response_timeout_ms", || default.response_timeout, or_never, problems);
    let stall_timeout = section.or("stall_timeout_ms", || default.stall_timeout, or_never, problems);
    Some(Http {
        head_bytes_max: head_bytes_max?,
        head_fields_max: head_fields_max?,
        head_timeout: head_timeout?,
        response_timeout: response_timeout?,
        stall_timeout: stall_timeout?,
    })
}

/// Milliseconds, or `never`.
fn or_never(field: &Field<'_>, problems: &mut Problems) -> Option<Option<Duration>> {
    match &field.node.value {
        Value::Text(text) if text == "never" => Some(None),
        _ => field.integer(1..=TIMEOUT_MS_MAX, problems).map(|number| Some(milliseconds(number))),
    }
}

/// As it would be written.
pub(super) fn show(http: &Http) -> Json {
    let millis = |time: Duration| json!(time.as_millis() as u64);
    let or_never = |time: Option<Duration>| time.map_or(json!("never"), millis);
    json!({
        "head_bytes_max": http.head_bytes_max,
        "head_fields_max": http.head_fields_max,
        "head_timeout_ms": millis(http.head_timeout),
        "response_timeout_ms": or_never(http.response_timeout),
        "stall_timeout_ms": or_never(http.stall_timeout),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::config::{
        ConfigError, HttpVersion,
        file::{self, parse},
        http::Http,
    };

    fn service(keys: &str) -> String {
        format!("services: [{{name: a, address: 10.0.0.1:80, endpoints: [127.0.0.1:80], {keys}}}]")
    }

    #[test]
    fn limits_are_read_and_shown_as_they_were() {
        let text = service(
            "protocol: http, http: {head_bytes_max: 1048576, head_fields_max: 1000, head_timeout_ms: 500, \
             response_timeout_ms: never, stall_timeout_ms: 60000}",
        );
        let config = parse(&text, "F").expect("a good file");
        let http = Http {
            head_bytes_max: 1 << 20,
            head_fields_max: 1000,
            head_timeout: Duration::from_millis(500),
            response_timeout: None,
            stall_timeout: Some(Duration::from_secs(60)),
        };
        assert_eq!(config.services[0].http, http);
        let again = parse(&file::show(&config).to_string(), "F").expect("what is shown can be read");
        assert_eq!(again, config);
        let inbound = "inbound: [{name: a, ports: [80], protocol: auto, http: {head_fields_max: 10}}]";
        let config = parse(inbound, "F").expect("a good file");
        assert_eq!(config.inbound[0].http, Http { head_fields_max: 10, ..Http::default() });
        let again = parse(&file::show(&config).to_string(), "F").expect("what is shown can be read");
        assert_eq!(again, config);
    }

    #[test]
    fn what_endpoints_speak_is_read_and_shown_as_it_was() {
        for (word, version) in [("http1", HttpVersion::Http1), ("http2", HttpVersion::Http2)] {
            for protocol in ["http", "http2", "auto"] {
                let text = service(&format!("protocol: {protocol}, upstream_protocol: {word}"));
                let config = parse(&text, "F").expect("a good file");
                assert_eq!(config.services[0].upstream_protocol, Some(version));
                let again = parse(&file::show(&config).to_string(), "F").expect("what is shown can be read");
                assert_eq!(again, config);
            }
        }
        let config = parse(&service("protocol: http"), "F").expect("a good file");
        assert_eq!(config.services[0].upstream_protocol, None);
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        for (keys, expected) in [
            (
                "protocol: http, http: {head_bytes_max: 1048577}",
                "services[0].http.head_bytes_max: 1048577 is out of range",
            ),
            ("protocol: http, http: {head_bytes_max: 10}", "services[0].http.head_bytes_max: 10 is out of range"),
            ("protocol: auto, http: {head_fields_max: 0}", "services[0].http.head_fields_max: 0 is out of range"),
            ("protocol: http, http: {head_timeout_ms: never}", "services[0].http.head_timeout_ms: "),
            ("protocol: http, http: {stall_timeout: 1}", "services[0].http.stall_timeout: unknown key"),
            ("protocol: tcp, upstream_protocol: http1", "services[0].upstream_protocol: says what HTTP becomes"),
            (
                "protocol: http, mode: kernel, upstream_protocol: http2",
                "services[0].upstream_protocol: is the agent's to do",
            ),
            (
                "protocol: http, upstream_protocol: http3",
                "services[0].upstream_protocol: unknown value \"http3\" (did you mean http",
            ),
            ("protocol: tcp, http: {}", "services[0].http: limits HTTP"),
        ] {
            let Err(ConfigError::Invalid { problems, .. }) = parse(&service(keys), "F") else { panic!("{keys}") };
            let found: Vec<String> =
                problems.iter().map(|problem| format!("{}: {}", problem.path, problem.what)).collect();
            assert!(found.len() == 1 && found[0].starts_with(expected), "{keys}: {found:?}");
        }
    }
}
