//! Breakers, isolation, fallbacks and switches, through the agent: clients of HTTP/1, HTTP/2 and gRPC's framing, endpoints that fail.

use std::{
    io::{BufReader, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use sockway_tests::{
    agent::{Agent, sockway},
    answer::{read_body, read_head},
    config::Service,
    origin::Origin,
    stage::{Stage, tell},
    translation::{GRPC, HTTP2},
    twice::{Said, Twice, curl},
    wait,
};

const ALL: [&[&str]; 3] = [&[], &[HTTP2], &GRPC];

/// An endpoint whose mood can be changed.
struct Moody {
    origin: Origin,
    mood: Arc<Mood>,
}

#[derive(Default)]
struct Mood {
    /// What it answers; 0: it ends the connection instead.
    status: AtomicU64,
    pause_ms: AtomicU64,
    requests: AtomicUsize,
    last_bytes: AtomicUsize,
    is_grpc: AtomicBool,
}

impl Moody {
    fn at(stage: &Stage, status: u64) -> Self {
        let mood = Arc::new(Mood { status: status.into(), ..Mood::default() });
        let kept = Arc::clone(&mood);
        let listener = stage.origin().listen(stage.address()).expect("a free address");
        let origin = Origin::start(listener, move |mut stream: &TcpStream, _| {
            let mut reader = BufReader::new(stream);
            while let Some(head) = read_head(&mut reader)? {
                let body = read_body(&mut reader, &head, false)?;
                kept.last_bytes.store(body.len(), Relaxed);
                kept.requests.fetch_add(1, Relaxed);
                thread::sleep(Duration::from_millis(kept.pause_ms.load(Relaxed)));
                let status = kept.status.load(Relaxed);
                if status == 0 {
                    break;
                }
                if kept.is_grpc.load(Relaxed) {
                    let code = if status < 500 { 0 } else { 14 };
                    let head =
                        "HTTP/1.1 200 OK\r\nContent-Type: application/grpc\r\nTransfer-Encoding: chunked\r\n\r\n";
                    stream.write_all(format!("{head}0\r\ngrpc-status: {code}\r\n\r\n").as_bytes())?;
                    continue;
                }
                stream.write_all(format!("HTTP/1.1 {status} So\r\nContent-Length: 4\r\n\r\nmood").as_bytes())?;
            }
            Ok(())
        });
        Self { origin, mood }
    }

    fn address(&self) -> SocketAddr {
        self.origin.address()
    }

    fn says(&self, status: u64) {
        self.mood.status.store(status, Relaxed);
    }

    fn pauses(&self, ms: u64) {
        self.mood.pause_ms.store(ms, Relaxed);
    }

    fn requests(&self) -> usize {
        self.mood.requests.load(Relaxed)
    }
}

/// The same service twice with these keys, and more of them.
#[track_caller]
fn set(stage: Stage, top: &[&str], keys: &[&str], endpoint: SocketAddr, more: Vec<Service>) -> Twice {
    let with = |service: Service| keys.iter().fold(service, |service, key| service.set(key)).to(endpoint);
    Twice::set(stage, top, with, more)
}

/// What a request came to: a status of HTTP, or of gRPC.
fn outcome(said: &Said) -> u16 {
    said.field("grpc-status").map_or(said.status, |code| code.parse().expect("a number"))
}

#[test]
fn a_breaker_opens_is_tried_and_closes() {
    for arguments in ALL {
        let Some(stage) = Stage::set() else { return };
        let web = Moody::at(&stage, 200);
        let rule = "breaker: { kind: consecutive, failures: 3, open_ms: 400 }";
        let field = set(stage, &[], &[rule, "reason_header: on"], web.address(), Vec::new());
        let state = || field.metric("sockway_breaker_state", arguments, ("service", Twice::name(arguments)));
        let is_grpc = arguments.len() > 1;
        web.mood.is_grpc.store(is_grpc, Relaxed);
        let (good, bad, open) = if is_grpc { (0, 14, 14) } else { (200, 503, 503) };
        assert_eq!((outcome(&field.curl("/a", arguments)), state()), (good, 0.0));
        web.says(503);
        let opened = Instant::now();
        assert_eq!([(); 3].map(|()| outcome(&field.curl("/a", arguments))), [bad; 3]);
        assert_eq!((web.requests(), state()), (4, 2.0));
        let refused = field.curl("/a", arguments);
        if opened.elapsed() < Duration::from_millis(350) {
            assert_eq!((outcome(&refused), web.requests()), (open, 4), "{refused:?}");
            assert!(refused.text.contains("the breaker of the service is open"), "{refused:?}");
            if arguments.len() < 2 {
                assert_eq!(refused.field("x-sockway-reason"), Some("circuit_open"));
            }
            assert!(
                field.metric("sockway_breaker_short_circuits_total", arguments, ("service", Twice::name(arguments)))
                    >= 1.0
            );
        }
        // A failed try: it rests again.
        wait::until("a try", wait::SOON, || {
            field.curl("/a", arguments);
            web.requests() >= 5
        });
        assert_eq!(state(), 2.0);
        web.says(200);
        wait::until("it to close", wait::SOON, || outcome(&field.curl("/a", arguments)) == good);
        assert_eq!(state(), 0.0);
        assert_eq!([(); 5].map(|()| outcome(&field.curl("/a", arguments))), [good; 5]);
        assert_eq!(field.metric("sockway_breaker_transitions_total", arguments, ("to", "closed")), 1.0);
        assert!(field.metric("sockway_breaker_transitions_total", arguments, ("to", "open")) >= 2.0);
    }
}

#[test]
fn an_open_breaker_is_told_of_and_outlives_a_reload_of_the_rest() {
    let Some(stage) = Stage::set() else { return };
    let web = Moody::at(&stage, 500);
    let rule = "breaker: { kind: consecutive, failures: 1, open_ms: 600000 }";
    let field = set(stage, &[], &[rule], web.address(), Vec::new());
    field.curl("/a", &[]);
    field.reload(&["drain_timeout_ms: 4321"]);
    assert!(field.curl("/a", &[]).text.contains("breaker of the service is open"));
    let told = sockway(&["status", "--instance", field.agent.instance()]);
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(told.contains("breaker of web is open"), "{told}");
}

#[test]
fn a_routes_breaker_is_of_its_requests_alone() {
    for arguments in ALL {
        let Some(stage) = Stage::set() else { return };
        let (web, spare) = (Moody::at(&stage, 200), Moody::at(&stage, 200));
        let rule = "breaker: { kind: consecutive, failures: 2, open_ms: 600000";
        let route = |name: &str, more: &str| {
            format!("{{ name: {name}, match: {{ headers: {{ x-part: {name} }} }}, {rule}{more} }} }}")
        };
        let routes = format!(
            "routes: [{}, {}]",
            route("plain", ", on_open: fail"),
            route("spared", ", on_open: { cluster: spare }")
        );
        let other = Service::http("spare", stage.address()).to(spare.address());
        let keys = [routes.as_str(), "reason_header: on", "fallback: { respond: { status: 203 } }"];
        let field = set(stage, &[], &keys, web.address(), vec![other]);
        let is_grpc = arguments.len() > 1;
        [&web, &spare].into_iter().for_each(|it| it.mood.is_grpc.store(is_grpc, Relaxed));
        let (good, bad) = if is_grpc { (0, 14) } else { (200, 503) };
        let ask = |part: &str| field.curl("/a", &[arguments, &["-H", &format!("x-part: {part}")]].concat());
        web.says(503);
        for part in ["plain", "spared"] {
            assert_eq!([outcome(&ask(part)), outcome(&ask(part))], [bad; 2]);
        }
        assert_eq!(web.requests(), 4);
        let refused = ask("plain");
        assert_eq!((outcome(&refused), web.requests()), (bad, 4), "{refused:?}");
        assert!(refused.text.contains("breaker of the service is open"), "{refused:?}");
        assert_eq!((outcome(&ask("spared")), web.requests(), spare.requests()), (good, 4, 1));
        assert_eq!((outcome(&ask("none")), web.requests()), (bad, 5), "others have no breaker");
        let of = |family: &str, route| field.metric(family, arguments, ("route", route));
        for route in ["plain", "spared"] {
            assert_eq!(of("sockway_route_breaker_state", route), 2.0);
            assert_eq!(of("sockway_route_breaker_short_circuits_total", route), 1.0);
        }
        let told = sockway(&["status", "--instance", field.agent.instance()]);
        let told = String::from_utf8_lossy(&told.stdout).into_owned();
        let name = Twice::name(arguments);
        assert!(told.contains(&format!("the breaker of the route plain of {name} is open")), "{told}");
    }
}

#[test]
fn an_endpoint_whose_breaker_is_open_is_left_out_until_a_try_succeeds() {
    for arguments in ALL {
        let Some(stage) = Stage::set() else { return };
        let (good, bad) = (Moody::at(&stage, 200), Moody::at(&stage, 503));
        let service2 = arguments.contains(&HTTP2);
        let address = stage.address();
        let made = if service2 {
            Service::http2("web", address).set("upstream_protocol: http1")
        } else {
            Service::http("web", address)
        };
        let rule = "endpoint_breaker: { kind: consecutive, failures: 2, open_ms: 700, half_open_requests: 2 }";
        let web = made.set(rule).set("reason_header: on").to(good.address()).to(bad.address());
        let agent = Agent::start(&stage.config().service(web));
        let is_grpc = arguments.len() > 1;
        [&good, &bad].into_iter().for_each(|it| it.mood.is_grpc.store(is_grpc, Relaxed));
        let (fine, fails) = if is_grpc { (0, 14) } else { (200, 503) };
        let ask = || outcome(&curl(&stage, address, "/a", arguments));
        let of =
            |family: &str, at: SocketAddr| agent.metric(family, &[("service", "web"), ("endpoint", &at.to_string())]);
        let opened = Instant::now();
        let told: Vec<u16> = (0..8).map(|_| ask()).collect();
        let is_young = opened.elapsed() < Duration::from_millis(600);
        if is_young {
            assert_eq!(told.iter().filter(|it| **it == fails).count(), 2, "{told:?}");
            assert_eq!((good.requests(), bad.requests()), (6, 2));
            assert_eq!(of("sockway_endpoint_breaker_state", bad.address()), 2.0);
            let told = sockway(&["status", "--instance", agent.instance()]);
            let told = String::from_utf8_lossy(&told.stdout).into_owned();
            assert!(told.contains(&format!("the breaker of {} of web is", bad.address())), "{told}");
        }
        assert_eq!(of("sockway_endpoint_breaker_state", good.address()), 0.0);
        bad.says(200);
        wait::until("two tries to close it", wait::SOON, || {
            ask() == fine && of("sockway_endpoint_breaker_state", bad.address()) == 0.0
        });
        let before = bad.requests();
        wait::until("its share", wait::SOON, || ask() == fine && bad.requests() >= before + 3);
    }
}

#[test]
fn who_has_only_endpoints_with_open_breakers_is_told_so_or_goes_elsewhere() {
    let Some(stage) = Stage::set() else { return };
    let (one, two, spare) = (Moody::at(&stage, 500), Moody::at(&stage, 500), Moody::at(&stage, 200));
    let (plain, spared) = (stage.address(), stage.address());
    let service = |name, address, more: &str| {
        let rule = format!("endpoint_breaker: {{ kind: consecutive, failures: 1, open_ms: 600000{more} }}");
        let service = Service::http(name, address).set(&rule).set("reason_header: on");
        service.to(one.address()).to(two.address())
    };
    let other = Service::http("spare", stage.address()).to(spare.address());
    let services = [service("plain", plain, ""), service("spared", spared, ", on_open: { cluster: spare }"), other];
    let agent = Agent::start(&stage.config().with_services(services.to_vec()));
    let ask = |address| curl(&stage, address, "/a", &[]);
    assert_eq!([ask(plain).status, ask(plain).status], [500; 2]);
    let refused = ask(plain);
    assert_eq!((refused.status, refused.field("x-sockway-reason")), (503, Some("circuit_open")), "{refused:?}");
    assert_eq!((one.requests(), two.requests()), (1, 1));
    assert_eq!([ask(spared).status, ask(spared).status], [500; 2]);
    assert_eq!((ask(spared).body(), one.requests() + two.requests(), spare.requests()), ("mood", 4, 1));
    let told = sockway(&["explain", "--instance", agent.instance(), &format!("GET http://{plain}/a")]);
    let told = String::from_utf8_lossy(&told.stdout).into_owned() + &String::from_utf8_lossy(&told.stderr);
    assert!(told.contains(&format!("{} (its breaker is open)", one.address())), "{told}");
}

#[test]
fn a_breaker_learns_nothing_of_calls_whose_callers_gave_too_little_time() {
    let Some(stage) = Stage::set() else { return };
    let web = Moody::at(&stage, 200);
    let rule = "breaker: { kind: consecutive, failures: 1, open_ms: 600000 }";
    let keys = [rule, "timeout_ms: 1500", "outlier: { consecutive_5xx: 1, max_ejection_percent: 100 }"];
    let field = set(stage, &[], &keys, web.address(), Vec::new());
    web.mood.is_grpc.store(true, Relaxed);
    web.pauses(700);
    let impatient = [&GRPC[..], &["-H", "grpc-timeout: 100m"]].concat();
    let metric = |family| field.metric(family, &GRPC, ("service", "web2"));
    assert_eq!([(); 3].map(|()| outcome(&field.curl("/a", &impatient))), [4; 3]);
    assert_eq!(metric("sockway_breaker_callers_deadlines_total"), 3.0);
    assert_eq!((metric("sockway_breaker_state"), outcome(&field.curl("/a", &GRPC))), (0.0, 0));
    assert_eq!(metric("sockway_outlier_ejections_active"), 0.0);
    // The service's own time is another thing.
    web.pauses(4_000);
    assert_eq!(outcome(&field.curl("/a", &[&GRPC[..], &["-H", "grpc-timeout: 9S"]].concat())), 4);
    assert_eq!((metric("sockway_breaker_state"), metric("sockway_breaker_callers_deadlines_total")), (2.0, 3.0));
}

#[test]
fn the_example_of_two_commands_and_fifty_clients_comes_to_its_numbers() {
    // Requirement 001-39, with the numbers of section 6: concurrency 10, volume 20, 50 %, and the commands' own times.
    let Some(stage) = Stage::set() else { return };
    let job = Moody::at(&stage, 200);
    job.pauses(2_000);
    let (aaa, bbb) = (stage.address(), stage.address());
    let command = |name, address, timeout_ms: u32| {
        let isolation = format!("isolation: {{ preset: hystrix, timeout_ms: {timeout_ms} }}");
        Service::http(name, address).set("breaker: hystrix").set("reason_header: on").set(&isolation).to(job.address())
    };
    let agent = Agent::start(&stage.config().service(command("aaa", aaa, 1_000)).service(command("bbb", bbb, 5_000)));
    for (name, service, served, waits) in [("aaa", aaa, 504, 995..1_900), ("bbb", bbb, 200, 1_995..4_900)] {
        let began = Instant::now();
        let told: Vec<u16> = thread::scope(|scope| {
            let ask = || stage.session(service).get("/").expect("an answer").status;
            let clients: Vec<_> = (0..50).map(|_| scope.spawn(ask)).collect();
            clients.into_iter().map(|client| client.join().expect("no panic")).collect()
        });
        let (took, count) = (began.elapsed().as_millis(), |status| told.iter().filter(|it| **it == status).count());
        let metric = |family: &str| agent.metric(family, &[("service", name)]);
        let (rejected, short) =
            (metric("sockway_isolation_rejected_total"), metric("sockway_breaker_short_circuits_total"));
        tell(&format!("{name}: {} served, {rejected} rejected, {short} short-circuited, in {took} ms", count(served)));
        assert_eq!((count(served), count(503)), (10, 40), "{told:?}");
        // The twentieth that found no place opened it; workers may have been at one more each.
        assert!((20.0..=22.0).contains(&rejected) && rejected + short == 40.0, "{rejected} {short}");
        assert_eq!(metric("sockway_breaker_state"), 2.0);
        assert_eq!(metric("sockway_isolation_timeouts_total"), if name == "aaa" { 10.0 } else { 0.0 });
        assert_eq!(metric("sockway_isolation_active"), 0.0);
        assert!(waits.contains(&took), "{took} ms");
    }
}

#[test]
fn who_takes_too_long_is_given_up_and_who_finds_no_place_is_refused() {
    for arguments in ALL {
        let Some(stage) = Stage::set() else { return };
        let web = Moody::at(&stage, 200);
        let rule = "isolation: { timeout_ms: 1500, max_concurrency: 1 }";
        let field = set(stage, &[], &[rule, "reason_header: on"], web.address(), Vec::new());
        web.pauses(4_000);
        let (late, none) = if arguments.len() > 1 { (4, 14) } else { (504, 503) };
        thread::scope(|scope| {
            let first = scope.spawn(|| {
                let began = Instant::now();
                (field.curl("/a", arguments), began.elapsed())
            });
            wait::until("the first to be on its way", wait::SOON, || web.requests() == 1);
            let second = field.curl("/a", arguments);
            let (first, took) = first.join().expect("no panic");
            assert_eq!((outcome(&first), outcome(&second)), (late, none), "{first:?} {second:?}");
            assert!(took >= Duration::from_millis(1_495) && took < Duration::from_millis(3_900), "{took:?}");
            if arguments.len() < 2 {
                let reasons = [&first, &second].map(|said| said.field("x-sockway-reason"));
                assert_eq!(reasons, [Some("timeout"), Some("concurrency")]);
            }
        });
        web.pauses(0);
        assert_eq!(outcome(&field.curl("/a", arguments)), 200, "the place was given back");
        let count = |family| field.metric(family, arguments, ("service", Twice::name(arguments)));
        assert_eq!(count("sockway_isolation_timeouts_total"), 1.0);
        assert_eq!(count("sockway_isolation_rejected_total"), 1.0);
    }
}

#[test]
fn a_client_of_http1_keeps_its_connection_through_timeouts_and_refusals() {
    let Some(stage) = Stage::set() else { return };
    let web = Moody::at(&stage, 200);
    let rules = ["isolation: { timeout_ms: 200 }", "breaker: { kind: consecutive, failures: 2, open_ms: 300 }"];
    let field = set(stage, &[], &rules, web.address(), Vec::new());
    let mut session = field.stage.session(field.services[0]);
    let mut ask = || session.get("/").expect("an answer on the same connection").status;
    web.pauses(1_000);
    assert_eq!([ask(), ask(), ask()], [504, 504, 503]);
    web.pauses(0);
    wait::until("it to close", wait::SOON, || ask() == 200);
}

#[test]
fn a_fallback_answers_for_what_it_is_told_to() {
    for arguments in ALL {
        let Some(stage) = Stage::set() else { return };
        let web = Moody::at(&stage, 500);
        let respond = "respond: { status: 203, body: 'as ever', headers: { x-stale: 'yes' }, grpc_status: 9 }";
        let rules = [
            &format!("fallback: {{ on: [5xx, no_response, timeout, circuit_open, limit], {respond} }}"),
            "isolation: { timeout_ms: 300 }",
            "request_limits: [{ kind: fixed_window, limit: 4, window_ms: 3600000 }]",
            "reason_header: on",
        ];
        let field = set(stage, &[], &rules, web.address(), Vec::new());
        for (status, pause_ms, reason) in
            [(500, 0, "5xx"), (0, 0, "no_response"), (200, 1_000, "timeout"), (200, 0, ""), (200, 0, "limit")]
        {
            web.says(status);
            web.pauses(pause_ms);
            let said = field.curl("/a", arguments);
            if reason.is_empty() {
                assert_eq!((said.status, said.body()), (200, "mood"), "{said:?}");
            } else if arguments.len() > 1 {
                assert_eq!(outcome(&said), 9, "{reason}: {said:?}");
            } else {
                assert_eq!((said.status, said.body()), (203, "as ever"), "{reason}: {said:?}");
                let told = [said.field("x-stale"), said.field("x-sockway-reason")];
                assert_eq!(told, [Some("yes"), Some(reason)]);
            }
            if !reason.is_empty() {
                assert_eq!(field.metric("sockway_fallbacks_total", arguments, ("reason", reason)), 1.0);
            }
        }
    }
}

#[test]
fn another_service_answers_whole_requests_when_this_one_fails() {
    for arguments in [&[][..], &[HTTP2]] {
        let Some(stage) = Stage::set() else { return };
        let (web, backup, backup_at) = (Moody::at(&stage, 500), Moody::at(&stage, 201), stage.address());
        let rules = [
            "fallback: { on: [5xx, no_response, timeout, circuit_open], to: backup }",
            "isolation: { timeout_ms: 400 }",
            "breaker: { kind: consecutive, failures: 4, open_ms: 600000 }",
        ];
        let more = vec![Service::http("backup", backup_at).to(backup.address())];
        let field = set(stage, &[], &rules, web.address(), more);
        let post = [arguments, &["--data", "0123456789"]].concat();
        for (turn, (status, pause_ms)) in [(500, 0), (0, 0), (200, 2_000), (502, 0)].into_iter().enumerate() {
            web.says(status);
            web.pauses(pause_ms);
            let said = field.curl("/a", &post);
            assert_eq!((said.status, said.body()), (201, "mood"), "{status} {pause_ms}: {said:?}");
            assert_eq!(backup.requests(), turn + 1);
            assert_eq!(backup.mood.last_bytes.load(Relaxed), 10, "the whole body");
        }
        // The breaker has seen that the service itself failed.
        let asked = web.requests();
        assert_eq!((field.curl("/a", &post).status, web.requests(), backup.requests()), (201, asked, 5));
        assert_eq!(field.metric("sockway_fallbacks_total", arguments, ("reason", "circuit_open")), 1.0);
        // What its stand-in says is told as it is.
        backup.says(500);
        assert_eq!(field.curl("/a", arguments).status, 500);
    }
}

#[test]
fn on_open_says_who_answers_meanwhile() {
    let Some(stage) = Stage::set() else { return };
    let (web, backup, backup_at) = (Moody::at(&stage, 500), Moody::at(&stage, 201), stage.address());
    let breaker =
        |on_open| format!("breaker: {{ kind: consecutive, failures: 1, open_ms: 600000, on_open: {on_open} }}");
    let respond = "fallback: { respond: { status: 203 } }";
    for (on_open, expected) in [("fail", 503), ("{ cluster: backup }", 201), ("fallback", 203)] {
        let more = vec![Service::http("backup", backup_at).to(backup.address())];
        let service = stage.address();
        let guarded = Service::http("web", service).set(&breaker(on_open)).set(respond).to(web.address());
        let _agent = Agent::start(&stage.config().with_services([guarded].into_iter().chain(more)));
        assert_eq!(curl(&stage, service, "/a", &[]).status, 500);
        assert_eq!(curl(&stage, service, "/a", &[]).status, expected, "{on_open}");
    }
}

#[test]
fn a_switch_degrades_many_services_with_a_reload() {
    for arguments in ALL {
        let Some(stage) = Stage::set() else { return };
        let web = Moody::at(&stage, 200);
        let rule = "degrade: { switch: sale, respond: { status: 207, body: later, grpc_status: 8 } }";
        let field = set(stage, &["switches: { sale: off }"], &[rule], web.address(), Vec::new());
        assert_eq!(outcome(&field.curl("/a", arguments)), 200);
        field.reload(&["switches: { sale: on }"]);
        let expected = if arguments.len() > 1 { 8 } else { 207 };
        let said = field.curl("/a", arguments);
        assert_eq!((outcome(&said), web.requests()), (expected, 1), "{said:?}");
        assert_eq!(field.metric("sockway_degraded_requests_total", arguments, ("switch", "sale")), 1.0);
        field.agent.metric_comes_to("sockway_switch_on", &[("switch", "sale")], 1.0);
        field.reload(&["switches: { sale: off }"]);
        assert_eq!(outcome(&field.curl("/a", arguments)), 200);
    }
}

#[test]
fn a_switch_shifts_a_part_of_a_services_requests() {
    let Some(stage) = Stage::set() else { return };
    let (web, backup, backup_at) = (Moody::at(&stage, 200), Moody::at(&stage, 200), stage.address());
    let rule = "degrade: { switch: busy, shift: { percent: 30, to: backup } }";
    let more = vec![Service::http("backup", backup_at).to(backup.address())];
    let field = set(stage, &["switches: { busy: on }"], &[rule], web.address(), more);
    let mut session = field.stage.session(field.services[0]);
    assert!((0..1_000).all(|_| session.get("/").expect("an answer").status == 200));
    let shifted = backup.requests();
    // Four standard deviations of a thousand throws.
    assert!((242..=358).contains(&shifted) && web.requests() + shifted == 1_000, "{shifted}");
}
