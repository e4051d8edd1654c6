//! What can be said of how a service is guarded, and what cannot.

use std::time::Duration;

use super::*;
use crate::config::{Config, file};

fn read(keys: &str) -> Result<Config, String> {
    let text = format!(
        "switches: {{sale: off}}\nservices:\n- {{name: a, address: 10.0.0.1:80, protocol: http, endpoints: [10.0.0.2:80],\n{keys}}}\n\
         - {{name: b, address: 10.0.0.3:80, protocol: http, endpoints: [10.0.0.4:80]}}\n"
    );
    file::parse(&text, "F").map_err(|error| error.to_string())
}

fn guard_of(keys: &str) -> Guard {
    let config = read(keys).unwrap_or_else(|error| panic!("{keys}: {error}"));
    let shown = file::show(&config).to_string();
    assert_eq!(file::parse(&shown, "shown").expect("what is shown can be read"), config, "{shown}");
    config.services[0].guard.clone()
}

fn breaker_of(keys: &str) -> Breaker {
    guard_of(&format!("breaker: {keys}")).breaker.expect("a breaker")
}

#[test]
fn a_service_of_which_nothing_is_said_is_not_guarded() {
    assert!(guard_of("mode: agent").is_idle());
}

#[test]
fn presets_are_the_numbers_of_their_sources() {
    // Requirements section 6, Hystrix timeout / concurrency / volume / error % / sleep: 1000 ms / 10 / 20 / 50 % / 500 ms (real 5000).
    let over = Over { window: Duration::from_secs(10), buckets: 10, requests: 20 };
    let hystrix = breaker_of("hystrix");
    assert_eq!(hystrix.kind, Kind::ErrorRatio { percent: 50, over });
    assert_eq!((hystrix.open_for, hystrix.half_open_requests), (Duration::from_secs(5), 1));
    assert!(hystrix.counts_rejected && hystrix.rests_from_try);
    assert_eq!(breaker_of("{}"), hystrix);
    assert_eq!(breaker_of("textbook"), Breaker { open_for: Duration::from_millis(500), ..hystrix });
    let isolation = Some(Isolation { timeout: Some(Duration::from_secs(1)), concurrency: Some(10) });
    assert_eq!(guard_of("isolation: textbook").isolation, isolation);
    assert_eq!(guard_of("isolation: hystrix").isolation, isolation);
    // Semantics 3.1, Sentinel: minRequestAmount 5, statIntervalMs 1000, slowRatioThreshold 1.0, a single try.
    let sentinel = breaker_of("{preset: sentinel, slow_ms: 200, open_ms: 7000}");
    let over = Over { window: Duration::from_secs(1), buckets: 1, requests: 5 };
    assert_eq!(sentinel.kind, Kind::SlowCalls { slow: Duration::from_millis(200), percent: 100, over });
    assert_eq!((sentinel.open_for, sentinel.half_open_requests), (Duration::from_secs(7), 1));
    assert!(!sentinel.counts_rejected);
    // Requirements section 6, console trigger / breaker duration: 50 per s / 30 s.
    let rate = breaker_of("{kind: trigger_rate}");
    assert_eq!((rate.kind, rate.open_for, rate.half_open_requests), (Kind::Rate(50), Duration::from_secs(30), 0));
}

#[test]
fn a_service_that_the_kernel_balances_has_a_breaker_of_its_handshakes() {
    assert_eq!(guard_of("mode: kernel, breaker: textbook").breaker, Some(breaker_of("textbook")));
    let of = |service: &str| file::parse(&format!("services: [{{name: a, address: 10.0.0.1:80, {service}}}]"), "F");
    let tcp =
        of("protocol: tcp, endpoints: [10.0.0.2:80], breaker: {kind: consecutive}").expect("it is balanced there");
    assert!(tcp.services[0].guard.breaker.is_some());
    for refused in ["protocol: tcp, mode: agent", "protocol: udp"] {
        let found =
            of(&format!("{refused}, endpoints: [10.0.0.2:80], breaker: {{kind: consecutive}}")).expect_err(refused);
        assert!(found.to_string().contains("is about requests"), "{found}");
    }
}

#[test]
fn routes_and_endpoints_have_breakers_of_their_own() {
    let config = read(
        "breaker: hystrix, endpoint_breaker: {kind: consecutive, failures: 2}, routes: [{name: x, breaker: {preset: textbook, on_open: {cluster: b}}}]",
    );
    let config = config.expect("a good file");
    let shown = file::show(&config).to_string();
    assert_eq!(file::parse(&shown, "shown").expect("what is shown can be read"), config, "{shown}");
    let service = &config.services[0];
    assert_eq!(service.guard.endpoint_breaker.as_ref().map(|it| it.kind), Some(Kind::Consecutive(2)));
    let of_route = service.routes[0].breaker.as_ref().expect("a breaker");
    assert_eq!((of_route.open_for, &of_route.on_open), (Duration::from_millis(500), &OnOpen::Cluster("b".into())));
    let no = |keys: &str| read(keys).expect_err("no good file");
    assert!(no("routes: [{breaker: {on_open: {cluster: c}}}]").contains("c"));
    assert!(
        no("routes: [{breaker: hystrix, respond: {status: 200}}]")
            .contains("breaker: is of a request that is passed on")
    );
}

#[test]
fn everything_can_be_said() {
    assert_eq!(breaker_of("{kind: consecutive, failures: 7, half_open_requests: 3}").kind, Kind::Consecutive(7));
    assert_eq!(breaker_of("{on_open: {cluster: b}}").on_open, OnOpen::Cluster("b".into()));
    assert_eq!(breaker_of("{on_open: fail}").on_open, OnOpen::Fail);
    breaker_of("{kind: error_count, errors: 3, window_ms: 5000, requests_min: 9}");
    let guard = guard_of(
        "fallback: {on: [5xx, timeout], respond: {status: 203, body: hi, headers: {X-A: b}, grpc_status: 14}}, \
         isolation: {max_concurrency: 4}, degrade: {switch: sale, shift: {percent: 30, to: b}}, reason_header: on",
    );
    let fallback = guard.fallback.expect("a fallback");
    assert_eq!(fallback.on, [Why::ServerError, Why::Timeout]);
    let headers = vec![("x-a".to_owned(), "b".to_owned())];
    let respond = Respond { status: 203, body: "hi".to_owned(), headers, grpc_status: Some(14) };
    assert_eq!(fallback.instead, Instead::Respond(respond));
    assert_eq!(guard.isolation, Some(Isolation { timeout: None, concurrency: Some(4) }));
    let to = DegradeTo::Shift { percent: 30, to: "b".to_owned() };
    assert_eq!(guard.degrade, Some(Degrade { switch: "sale".to_owned(), to }));
    assert!(guard.tells_reason);
    let fallback = guard_of("fallback: {to: b, max_concurrency: 5}").fallback.expect("a fallback");
    assert_eq!((fallback.on.len(), fallback.concurrency), (8, Some(5)));
    guard_of("degrade: {switch: sale, respond: {}}");
}

#[test]
fn what_cannot_be_is_named() {
    for (keys, expected) in [
        ("breaker: envoy", "unknown value \"envoy\""),
        (
            "breaker: {kind: consecutive, error_percent: 5}",
            "error_percent: says nothing with kind: consecutive; remove it",
        ),
        ("breaker: {preset: sentinel, slow_ms: 5}", "open_ms: is missing; write how long it is open"),
        ("breaker: {kind: slow_calls}", "slow_ms: is missing; write after how long a request is slow"),
        ("breaker: {half_open_requests: 64}", "64 is out of range"),
        ("breaker: {on_open: {cluster: c}}", "\"c\" is no service of this file"),
        ("isolation: {}", "isolates from nothing; write timeout_ms or max_concurrency"),
        ("isolation: sentinel", "unknown value \"sentinel\""),
        ("fallback: {on: [limit]}", "one thing stands in: write either respond or to"),
        ("fallback: {respond: {}, max_concurrency: 1}", "says nothing where an answer is given at once"),
        ("fallback: {to: a}", "\"a\" is this service itself; name another"),
        ("fallback: {on: [degraded], to: b}", "unknown value \"degraded\""),
        ("fallback: {respond: {status: 204, body: x}}", "204 has no body; remove it"),
        ("fallback: {respond: {headers: {Content-Length: '3'}}}", "content-length decides how a message is read"),
        ("degrade: {switch: sale}", "write either respond or shift"),
        (
            "degrade: {switch: sails, respond: {}}",
            "\"sails\" is none of the file's switches; write switches: {sails: off}",
        ),
        ("mode: kernel, isolation: hystrix", "is about requests"),
        ("mode: kernel, breaker: {preset: sentinel, slow_ms: 9, open_ms: 9}", "goes by how long requests take"),
        ("mode: kernel, breaker: {on_open: {cluster: b}}", "list backups among the endpoints"),
    ] {
        let found = read(keys).expect_err(keys);
        assert!(found.contains("F:4:") && found.contains(expected), "{keys}: {found}");
    }
    let found = file::parse("switches: {'a b': on}", "F").expect_err("a bad name").to_string();
    assert!(found.contains("\"a b\" is no name of a switch"), "{found}");
}
