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
        "kind: fault, bandwidth_bytes_per_second: 1000, percent: 5",
        "kind: cache",
        "kind: cache, bytes_max: 1000000, entry_bytes_max: 1000, heuristic_percent: 10, heuristic_max_s: 60, stale_if_error_s: 5, stale_while_revalidate_s: 6, wait_ms: 0, respond: off",
        "kind: compress",
        "kind: compress, codings: [gzip, br], level: 5, bytes_min: 10, types: [text/*, application/json]",
        "kind: api_key, query: key, keys: {ann: one}, forward_as: X-Client, forward: on",
        "kind: external_auth, to: a, path_prefix: /x/, headers: [A], copy: [X-B], timeout_ms: 5, fail: open",
        "kind: jwt, jwks_url: 'http://keys.example/set?a=b', issuer: me",
        "kind: jwt, jwks_url: 'https://[::1]:8443/', jwks_refresh_s: 60, jwks_timeout_ms: 5",
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
        ("filters: [{kind: fault, reset: on, bandwidth_bytes_per_second: 5}]", "goes wrong in one way"),
        ("filters: [{kind: cache, bytes_max: 1000, entry_bytes_max: 1001}]", "is more than bytes_max"),
        ("filters: [{kind: compress, codings: []}]", "compresses nothing"),
        ("filters: [{kind: compress, codings: [gzip, gzip]}]", "stands twice"),
        ("filters: [{kind: compress, codings: [gzip], level: 10}]", "gzip has levels from 1 to 9"),
        ("filters: [{kind: compress, types: [text]}]", "is no media type"),
        ("filters: [{kind: api_key}]", "services[0].filters[0].keys: is missing"),
        ("filters: [{kind: api_key, header: a, query: b, keys: {a: b}}]", "a key is said in one place"),
        ("filters: [{kind: api_key, keys_file: /none/there}]", "keys_file: /none/there cannot be read"),
        ("filters: [{kind: basic, users: {ann: plain}}]", "services[0].filters[0].users.ann: is no hash that is known"),
        ("filters: [{kind: external_auth}]", "services[0].filters[0].to: is missing"),
        ("filters: [{kind: external_auth, to: b}]", "services[0].filters[0].to: \"b\" is no service of this file"),
        ("filters: [{kind: external_auth, to: a, path_prefix: x}]", "is no path; begin it with /"),
        ("filters: [{kind: jwt, jwks_file: /none/there, jwks_url: 'http://a/b'}]", "come from one place"),
        ("filters: [{kind: jwt, jwks_url: 'ftp://a/b'}]", "is no address of a key set"),
        ("filters: [{kind: jwt, jwks_url: 'http://a:0x/b'}]", "is no address of a key set"),
        ("filters: [{kind: jwt, jwks_url: 'http://u@a/b'}]", "is no address of a key set"),
        ("filters: [{kind: jwt, jwks_url: 'http://a/b', jwks_roots: system}]", "is about https"),
        ("filters: [{kind: jwt, jwks_file: /none/there, jwks_refresh_s: 5}]", "is about jwks_url"),
        ("filters: [{kind: jwt}]", "services[0].filters[0].jwks_file: is missing"),
        ("filters: [{kind: request_id}, {kind: request_id}]", "another filter of the service is named request_id"),
        ("mode: kernel, filters: [{kind: request_id}]", "services[0].filters: look at requests"),
    ] {
        let said = read(filters).expect_err(filters);
        assert!(said.contains(expected), "{filters}: {said}");
    }
}
