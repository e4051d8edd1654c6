//! Filters that are read, shown and read again, and what is said of those that cannot be.

use crate::config::{Config, file};

fn read(filters: &str) -> Result<Config, String> {
    let text = format!(
        "services:\n- {{name: a, address: 10.0.0.1:80, protocol: http, endpoints: [10.0.0.2:80],\n  {filters}}}"
    );
    file::parse(&text, "F").map_err(|error| error.to_string())
}

#[test]
fn each_kind_is_read_and_shown_again() {
    for filter in [
        "kind: headers, request: {set: {x-a: '1'}, remove: [x-b]}, response: {add: {x-c: '{{2}}'}}",
        "kind: request_id",
        "kind: request_id, header: X-Id, uuid: v4, keep: off, respond: off",
        "kind: cors, origins: ['*']",
        "kind: cors, origins: ['https://a', '*.b', {regex: '.*'}], methods: [PUT], headers: [X-A], expose: [X-B], credentials: on, max_age_s: 600",
        "kind: access, allow: {sources: [10.0.0.0/8]}, deny: {callers: [{namespace: web}, {cgroup: /a/**}]}",
        "kind: body_limit, bytes_max: 1000",
        "kind: fault, percent: 5, delay_ms: 100, abort_status: 503, grpc_status: 14, match: {headers: {x-fault: on1}}",
        "kind: fault, reset: on",
        "kind: api_key, query: key, keys: {ann: one}, forward_as: X-Client, forward: on",
        "kind: external_auth, to: a, path_prefix: /x/, headers: [A], copy: [X-B], timeout_ms: 5, fail: open",
        "kind: basic, users: {ann: '{SHA}2jmj7l5rSw0yVb/vlWAYkK/YBwk='}",
    ] {
        let config = read(&format!("filters: [{{{filter}}}]")).unwrap_or_else(|why| panic!("{filter}: {why}"));
        let shown = file::show(&config).to_string();
        let again = file::parse(&shown, "G").unwrap_or_else(|why| panic!("{shown}: {why}"));
        assert_eq!(again.services[0].filters, config.services[0].filters, "{shown}");
    }
}

#[test]
fn what_is_wrong_is_said_with_its_place_and_a_remedy() {
    for (filters, expected) in [
        (
            "filters: [{kind: header}]",
            "F:3:20: services[0].filters[0].kind: unknown value \"header\" (did you mean headers?)",
        ),
        ("filters: [{kind: headers}]", "F:3:13: services[0].filters[0]: changes nothing"),
        ("filters: [{kind: headers, request: {set: {a: '{b}'}}}]", "services[0].filters[0].request: takes {b}"),
        ("filters: [{kind: cors}]", "services[0].filters[0].origins: is missing"),
        ("filters: [{kind: cors, origins: [a]}]", "services[0].filters[0].origins[0]: \"a\" is no origin"),
        ("filters: [{kind: cors, origins: ['*'], credentials: on}]", "lets every page act as its visitor"),
        ("filters: [{kind: access}]", "refuses nobody"),
        ("filters: [{kind: body_limit}]", "bytes_max: is missing"),
        ("filters: [{kind: body_limit, bytes_max: 1, reset: on}]", "says nothing with kind: body_limit"),
        ("filters: [{kind: fault}]", "nothing goes wrong"),
        ("filters: [{kind: fault, reset: on, abort_status: 503}]", "goes wrong in one way"),
        ("filters: [{kind: fault, reset: on, grpc_status: 14}]", "is told with abort_status"),
        ("filters: [{kind: api_key}]", "services[0].filters[0].keys: is missing"),
        ("filters: [{kind: api_key, header: a, query: b, keys: {a: b}}]", "a key is said in one place"),
        ("filters: [{kind: api_key, keys_file: /none/there}]", "keys_file: /none/there cannot be read"),
        ("filters: [{kind: basic, users: {ann: plain}}]", "services[0].filters[0].users.ann: is no hash that is known"),
        ("filters: [{kind: external_auth}]", "services[0].filters[0].to: is missing"),
        ("filters: [{kind: external_auth, to: b}]", "services[0].filters[0].to: \"b\" is no service of this file"),
        ("filters: [{kind: external_auth, to: a, path_prefix: x}]", "is no path; begin it with /"),
        ("filters: [{kind: jwt}]", "services[0].filters[0].jwks_file: is missing"),
        ("filters: [{kind: request_id}, {kind: request_id}]", "another filter of the service is named request_id"),
        ("mode: kernel, filters: [{kind: request_id}]", "services[0].filters: look at requests"),
    ] {
        let said = read(filters).expect_err(filters);
        assert!(said.contains(expected), "{filters}: {said}");
    }
}
