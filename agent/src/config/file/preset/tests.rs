//! What a preset says, what it leaves alone, and where it cannot be.

use std::time::Duration;

use crate::config::{
    Config, file,
    guard::{Breaker, Guard, Isolation},
    request_limit::Kind,
};

fn read(keys: &str) -> Result<Config, String> {
    let text = format!("services:\n- {{name: a, address: 10.0.0.1:80,\n{keys}}}\n");
    file::parse(&text, "F").map_err(|error| error.to_string())
}

fn good(keys: &str) -> Config {
    let config = read(keys).unwrap_or_else(|error| panic!("{keys}: {error}"));
    let shown = file::show(&config).to_string();
    assert_eq!(file::parse(&shown, "shown").expect("what is shown can be read"), config, "{shown}");
    config
}

const HTTP: &str =
    "protocol: http, endpoints: [10.0.0.2:80, {address: 10.0.0.3:80, weight: 0}, {address: 10.0.0.4:80, weight: 7}]";

#[test]
fn textbook_is_what_the_file_would_say_with_all_of_its_numbers() {
    let said = "request_limits: [{name: average, kind: window_average, limit: 100, window_ms: 60000}, \
                {name: tokens, kind: token_bucket, limit: 1, window_ms: 500, burst: 100, starts: empty, on_limit: {wait: {max_ms: 3000}}}], \
                pending: {requests_max: 1000, wait_max_ms: 3000}, \
                breaker: {error_percent: 50, requests_min: 20, open_ms: 500}, isolation: {timeout_ms: 1000, max_concurrency: 10}";
    let endpoints = "endpoints: [{address: 10.0.0.2:80, weight: 100}, {address: 10.0.0.3:80, weight: 100}, {address: 10.0.0.4:80, weight: 7}]";
    assert_eq!(good(&format!("preset: textbook, {HTTP}")), good(&format!("protocol: http, {endpoints}, {said}")));
}

#[test]
fn what_a_service_says_itself_stays_and_an_empty_key_is_said() {
    let of = |keys: &str| (*good(&format!("preset: textbook, {HTTP}, {keys}")).services[0]).clone();
    let textbook = of("reason_header: off");
    let service = of("breaker: {preset: textbook, open_ms: 7000}, request_limits: [{kind: concurrency, limit: 3}]");
    assert!(matches!(service.request_limits[..], [ref only] if only.kind == Kind::Concurrency { limit: 3 }));
    let breaker = textbook.guard.breaker.clone().map(|breaker| Breaker { open_for: Duration::from_secs(7), ..breaker });
    assert_eq!(service.guard, Guard { breaker, ..textbook.guard.clone() });
    let bare = of("breaker: null, request_limits: [], isolation: {timeout_ms: 1000}");
    assert_eq!((&bare.guard.breaker, bare.request_limits.len()), (&None, 0));
    assert_eq!(bare.pending, None, "nothing says how much room there is to wait for");
    assert_eq!(bare.guard.isolation, Some(Isolation { timeout: Some(Duration::from_secs(1)), concurrency: None }));
}

#[test]
fn a_preset_is_refused_where_nobody_sees_requests_and_by_a_name_that_none_has() {
    for (keys, expected) in [
        ("preset: textbook, protocol: tcp, endpoints: [10.0.0.2:80]", "services[0].preset: is about requests"),
        ("preset: textbook, protocol: udp, endpoints: [10.0.0.2:80]", "services[0].preset: is about requests"),
        (
            "preset: textbook, protocol: http, mode: kernel, endpoints: [10.0.0.2:80]",
            "services[0].preset: is about requests",
        ),
        (
            "preset: textbok, protocol: http, endpoints: [10.0.0.2:80]",
            "unknown value \"textbok\" (did you mean textbook?)",
        ),
    ] {
        let found = read(keys).expect_err(keys);
        assert!(
            found.starts_with("F:3:9: ") && found.contains(expected) && found.lines().count() == 1,
            "{keys}: {found}"
        );
    }
    let found = read(&HTTP.replace("weight: 7", "weight: 0")).expect_err("weights of 0").to_string();
    assert!(found.contains("weight: 0 is out of range"), "without the preset a weight is none: {found}");
}
