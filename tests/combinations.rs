//! Policies that meet: a deadline with filters, breakers, fallbacks, queues and retries; and what the calls of a gRPC library make of each
//! refusal.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use sockway_tests::{
    agent::Agent,
    config::Service,
    peers,
    process::{Process, Room},
    slow::Slow,
    stage::Stage,
    translation::HTTP2,
    wait,
};

const CALLS: &str = include_str!("combinations/calls.py");

fn curl(stage: &Stage, service: SocketAddr, path: &str, arguments: &[&str]) -> String {
    let url = format!("http://{service}{path}");
    let output = peers::curl(Room::of(&stage.clients), &[&["--include", &url], arguments].concat());
    String::from_utf8_lossy(&output.stdout).to_lowercase()
}

/// A server of grpcio.
struct Server {
    process: Process,
    address: SocketAddr,
}

impl Server {
    fn start(stage: &Stage) -> Self {
        let address = stage.address();
        let command = peers::python_command(CALLS, &["serve", &address.to_string()]);
        let process = Process::spawn(Room::of(&stage.origins), command);
        wait::until("a gRPC server", wait::SOON, || process.stdout().contains("serving"));
        Self { process, address }
    }

    /// How often it was asked.
    fn asked(&self) -> usize {
        self.process.stdout().matches("asked").count()
    }
}

/// What a call comes to.
fn call(stage: &Stage, service: SocketAddr, method: &str, said: &[&str]) -> String {
    let address = service.to_string();
    peers::python(Room::of(&stage.clients), CALLS, &[&["call", &address, method], said].concat()).trim().to_owned()
}

#[track_caller]
fn is_refused(told: &str, code: &str, why: &str) {
    assert!(told.starts_with(&format!("{code} - sockway: ")) && told.contains(why), "{told}");
}

#[test]
fn a_deadline_runs_while_filters_ask_others() {
    let Some(stage) = Stage::set() else { return };
    let (slow, judge) = (Slow::start(&stage), Slow::start(&stage));
    let [auth, one, two] = [(); 3].map(|()| stage.address());
    let filter = "filters: [{ kind: external_auth, to: auth, path_prefix: /after/20000, timeout_ms: 15000 }]";
    let timed = |service: Service| service.set(filter).set("timeout_ms: 200").to(slow.address());
    let config = stage
        .config()
        .service(Service::http("auth", auth).to(judge.address()))
        .service(timed(Service::http("one", one)))
        .service(timed(Service::http2("two", two).set("upstream_protocol: http1")));
    let agent = Agent::start(&config);
    for (service, http) in [(one, &[][..]), (two, &[HTTP2])] {
        let began = Instant::now();
        let told = curl(&stage, service, "/x", http);
        assert!(told.contains(" 504") && told.ends_with("sockway: the call's time is over\n"), "{told}");
        assert!(began.elapsed() >= Duration::from_millis(200) && began.elapsed() < Duration::from_secs(10));
        judge.is_cut();
    }
    assert_eq!((judge.asked().len(), slow.origin.accepted()), (2, 0), "nobody is asked for who was not let in");
    agent.metric_comes_to("sockway_requests_total", &[("outcome", "deadline_exceeded")], 2.0);
}

#[test]
fn a_breaker_opens_by_deadlines_and_its_fallback_has_what_is_left() {
    let Some(stage) = Stage::set() else { return };
    let (slow, other) = (Slow::start(&stage), Slow::start(&stage));
    let [one, two, backup] = [(); 3].map(|()| stage.address());
    let guarded = |service: Service| {
        let breaker = "breaker: { kind: consecutive, failures: 2, open_ms: 600000 }";
        let fallback = "fallback: { on: [circuit_open], to: backup }";
        service.set("timeout_ms: 300").set("deadline: {}").set(breaker).set(fallback).set("reason_header: on")
    };
    let config = stage
        .config()
        .service(guarded(Service::http("one", one)).to(slow.address()))
        .service(guarded(Service::http2("two", two).set("upstream_protocol: http1")).to(slow.address()))
        .service(Service::http("backup", backup).to(other.address()));
    let agent = Agent::start(&config);
    for (name, service, http) in [("one", one, &[][..]), ("two", two, &[HTTP2])] {
        for _ in 0..2 {
            let told = curl(&stage, service, "/after/20000", http);
            assert!(told.contains(" 504") && told.contains("x-sockway-reason: timeout\r\n"), "{name}: {told}");
        }
        assert_eq!(agent.metric("sockway_breaker_state", &[("service", name)]), 2.0, "{name}");
        let before = (slow.asked().len(), other.asked().len());
        let told = curl(&stage, service, "/after/1", http);
        assert!(told.contains(" 200") && told.ends_with("good"), "{name}: {told}");
        let asked = other.asked();
        let left = asked.last().and_then(|(_, head)| head.get("x-envoy-expected-rq-timeout-ms")).expect("what is left");
        assert!((1..=300).contains(&left.parse::<u64>().expect("a number")), "{name}: {left}");
        // The fallback has no more time than the request.
        let told = curl(&stage, service, "/after/20000", http);
        assert!(told.contains(" 504"), "{name}: {told}");
        other.is_cut();
        assert_eq!((slow.asked().len(), other.asked().len()), (before.0, before.1 + 2), "{name}");
        let stood_in = [("service", name), ("reason", "circuit_open")];
        assert_eq!(agent.metric("sockway_fallbacks_total", &stood_in), 2.0, "{name}");
    }
}

#[test]
fn retries_and_hedges_end_with_the_deadline() {
    let Some(stage) = Stage::set() else { return };
    let (slow, other) = (Slow::start(&stage), Slow::start(&stage));
    let [one, two] = [stage.address(), stage.address()];
    let hedged = |service: Service| {
        let retry = "retry: { attempts: 5, on: [late], per_try_timeout_ms: 120, back_off: { base_ms: 10, max_ms: 20 }, \
                     hedge: { after_ms: 60, max: 1 } }";
        service.set(retry).set("timeout_ms: 400").to(slow.address()).to(other.address())
    };
    let config = stage
        .config()
        .set("workers: 1")
        .service(hedged(Service::http("one", one)))
        .service(hedged(Service::http2("two", two).set("upstream_protocol: http1")));
    let agent = Agent::start(&config);
    for (name, service, http) in [("one", one, &[][..]), ("two", two, &[HTTP2])] {
        let asked = || slow.asked().len() + other.asked().len();
        let before = asked();
        let began = Instant::now();
        let told = curl(&stage, service, "/after/20000", http);
        let spent = began.elapsed();
        assert!(told.contains(" 504"), "{name}: {told}");
        assert!(spent >= Duration::from_millis(350) && spent < Duration::from_secs(10), "{name}: {spent:?}");
        let tries = asked() - before;
        assert!((2..=12).contains(&tries), "{name}: {tries} tries");
        // Nobody goes on behind the deadline: not a try, and no work.
        for _ in 0..tries {
            wait::until("all work to end", wait::SOON, || slow.was_cut() || other.was_cut());
        }
        assert_eq!(asked() - before, tries, "{name}");
        assert!(agent.metric("sockway_retries_total", &[("service", name)]) >= 1.0, "{name}");
    }
}

#[test]
fn a_grpc_library_reads_what_breakers_and_limits_say() {
    let Some(stage) = Stage::set() else { return };
    let server = Server::start(&stage);
    let [broken, limited, exhausted] = [(); 3].map(|()| stage.address());
    let breaker = "breaker: { kind: consecutive, failures: 1, open_ms: 600000 }";
    let limit = |keys: &str| format!("request_limits: [{{ kind: token_bucket, limit: 1, window_ms: 600000{keys} }}]");
    let config = stage
        .config()
        .service(Service::http2("broken", broken).set(breaker).to(server.address))
        .service(Service::http2("limited", limited).set(&limit("")).to(server.address))
        .service(
            Service::http2("exhausted", exhausted).set(&limit(", grpc_status: resource_exhausted")).to(server.address),
        );
    let _agent = Agent::start(&config);
    assert_eq!(call(&stage, broken, "fail", &[]), "UNAVAILABLE - the server fails");
    is_refused(&call(&stage, broken, "ok", &[]), "UNAVAILABLE", "breaker");
    assert_eq!(call(&stage, limited, "ok", &[]), "OK good");
    is_refused(&call(&stage, limited, "ok", &[]), "UNAVAILABLE", "limit");
    assert_eq!(call(&stage, exhausted, "ok", &[]), "OK good");
    is_refused(&call(&stage, exhausted, "ok", &[]), "RESOURCE_EXHAUSTED", "limit");
    assert_eq!(server.asked(), 3);
}

#[test]
fn a_grpc_library_reads_what_filters_and_fallbacks_say() {
    let Some(stage) = Stage::set() else { return };
    let server = Server::start(&stage);
    let [keyed, denied, said, to, backup] = [(); 5].map(|()| stage.address());
    let key = "filters: [{ kind: api_key, header: x-api-key, keys: { ann: secret } }]";
    let deny = "filters: [{ kind: access, deny: { sources: [0.0.0.0/0] } }]";
    let nobody = stage.address();
    let config = stage
        .config()
        .service(Service::http2("keyed", keyed).set(key).to(server.address))
        .service(Service::http2("denied", denied).set(deny).to(server.address))
        .service(
            Service::http2("said", said)
                .set("fallback: { respond: { status: 503, body: closed, grpc_status: 8 } }")
                .to(nobody),
        )
        .service(Service::http2("to", to).set("fallback: { to: backup }").to(nobody))
        .service(Service::http2("backup", backup).to(server.address));
    let _agent = Agent::start(&config);
    let told = call(&stage, keyed, "ok", &[]);
    assert!(told.starts_with("UNAUTHENTICATED - "), "{told}");
    assert_eq!(call(&stage, keyed, "ok", &["x-api-key=secret"]), "OK good");
    let told = call(&stage, denied, "ok", &[]);
    assert!(told.starts_with("PERMISSION_DENIED - "), "{told}");
    let told = call(&stage, said, "ok", &[]);
    assert!(told.starts_with("RESOURCE_EXHAUSTED - "), "{told}");
    assert_eq!(call(&stage, to, "ok", &[]), "OK good");
    assert_eq!(server.asked(), 2);
}

#[test]
fn a_grpc_library_is_retried_as_its_server_says() {
    let Some(stage) = Stage::set() else { return };
    let server = Server::start(&stage);
    let service = stage.address();
    let retry = "retry: { attempts: 2, on: [{ grpc: [unavailable] }], back_off: { base_ms: 1, max_ms: 2 } }";
    let config = stage.config().service(Service::http2("web", service).set(retry).to(server.address));
    let agent = Agent::start(&config);
    // A back-off lets the one endpoint be asked again.
    assert_eq!(call(&stage, service, "once", &["x-key=a"]), "OK good");
    assert_eq!(server.asked(), 2);
    let began = Instant::now();
    assert_eq!(call(&stage, service, "once", &["x-key=b", "x-pushback=700"]), "OK good");
    assert!(began.elapsed() >= Duration::from_millis(700), "{:?}", began.elapsed());
    assert_eq!(server.asked(), 4);
    // Less than nothing: not again.
    let told = call(&stage, service, "once", &["x-key=c", "x-pushback=-1"]);
    assert_eq!((told.as_str(), server.asked()), ("UNAVAILABLE - the server fails once", 5));
    // Nor behind the deadline, which the client keeps itself, too.
    let told = call(&stage, service, "once", &["x-key=d", "x-pushback=5000", "x-timeout=1"]);
    assert!(["UNAVAILABLE", "DEADLINE_EXCEEDED"].iter().any(|code| told.starts_with(code)), "{told}");
    assert_eq!(server.asked(), 6);
    agent.metric_comes_to("sockway_retries_total", &[("service", "web")], 2.0);
}

#[test]
fn a_grpc_call_that_goes_one_way_is_answered_with_an_empty_message() {
    let Some(stage) = Stage::set() else { return };
    let server = Server::start(&stage);
    let service = stage.address();
    let routes = "routes: [{ name: told, one_way: on }]";
    let config = stage.config().service(Service::http2("web", service).set(routes).to(server.address));
    let agent = Agent::start(&config);
    assert_eq!(call(&stage, service, "slow", &["x-seconds=5"]), "OK and nothing");
    assert_eq!(call(&stage, service, "fail", &[]), "OK and nothing");
    wait::until("the server to be asked", wait::SOON, || server.asked() == 2);
    let sent = [("service", "web"), ("route", "told"), ("result", "sent")];
    agent.metric_comes_to("sockway_oneway_total", &sent, 2.0);
}

#[test]
fn a_grpc_calls_time_begins_anew_where_callers_are_not_believed_and_who_leaves_takes_it_back() {
    let Some(stage) = Stage::set() else { return };
    let server = Server::start(&stage);
    let [plain, told, reset] = [(); 3].map(|()| stage.address());
    let config = stage
        .config()
        .service(Service::http2("plain", plain).to(server.address))
        .service(Service::http2("told", told).set("deadline: {}").to(server.address))
        .service(
            Service::http2("reset", reset).set("deadline: { reset: on }").set("timeout_ms: 500000").to(server.address),
        );
    let _agent = Agent::start(&config);
    let left = |service| -> u32 {
        let told = call(&stage, service, "left", &["x-timeout=90"]);
        told.strip_prefix("OK ").and_then(|left| left.parse().ok()).unwrap_or_else(|| panic!("{told}"))
    };
    // The server rounds to whole seconds.
    for (service, expected) in [(plain, 60..=90), (told, 60..=90), (reset, 400..=500)] {
        let left = left(service);
        assert!(expected.contains(&left), "{left} of {expected:?} seconds");
    }
    for (times, service) in [(1, plain), (2, told), (3, reset)] {
        let before = server.asked();
        let mut command = peers::python_command(CALLS, &["call", &service.to_string(), "slow", "x-seconds=60"]);
        command.env("no_grpc_proxy", "*");
        let client = Process::spawn(Room::of(&stage.clients), command);
        wait::until("the server to be asked", wait::SOON, || server.asked() > before);
        drop(client);
        let taken_back = || server.process.stdout().matches("taken back").count();
        wait::until("the call to be taken back", wait::SOON, || taken_back() == times);
    }
}
