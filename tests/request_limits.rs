//! Limits on requests, through the agent: real clients of HTTP/1, HTTP/2 and gRPC's framing, real endpoints.

use std::{
    io::{BufReader, Write as _},
    net::SocketAddr,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use sockway_tests::{
    agent::{Agent, sockway},
    answer::read_head,
    config::Service,
    origin::Origin,
    peers::{self, Nghttpd, Wrk},
    process::Room,
    stage::{Stage, tell},
    translation::HTTP2,
    wait,
};

fn limited(service: SocketAddr, limits: &str, endpoint: SocketAddr) -> Service {
    Service::http("limited", service).set(&format!("request_limits: [{limits}]")).to(endpoint)
}

/// How many requests a limit decided on so.
fn decided(agent: &Agent, decision: &str) -> f64 {
    agent.metric("sockway_request_limit_decisions_total", &[("service", "limited"), ("decision", decision)])
}

fn curl(stage: &Stage, service: SocketAddr, arguments: &[&str]) -> String {
    let url = format!("http://{service}/");
    let output = peers::curl(Room::of(&stage.clients), &[&["--include", &url], arguments].concat());
    String::from_utf8_lossy(&output.stdout).to_lowercase()
}

#[test]
fn a_token_bucket_over_two_workers_admits_its_rate_within_a_hundredth() {
    let Some(stage) = Stage::set() else { return };
    let (web, service) = (stage.web("a"), stage.address());
    let rule = "{ kind: token_bucket, limit: 1000, burst: 500 }";
    let config = stage.config().set("workers: 2").service(limited(service, rule, web.address()));
    let agent = Agent::start(&config);
    let mut load = Wrk::start(Room::of(&stage.clients), service, 16, Duration::from_secs(10));
    wait::until("the load to be over the limit", wait::SOON, || decided(&agent, "refused") > 500.0);
    // A busy machine may take its time to say a number: it is of some moment between two.
    let read = || {
        let began = Instant::now();
        (began, decided(&agent, "passed"), Instant::now())
    };
    let (before_at, before, before_by) = read();
    thread::sleep(Duration::from_secs(5));
    let (after_at, after, after_by) = read();
    assert!(load.running(), "the load ended early");
    let passed = after - before;
    let (least, most) = ((after_at - before_by).as_secs_f64(), (after_by - before_at).as_secs_f64());
    let report = load.report();
    let (asked, refused) = (report.requests, report.bad_answers);
    tell(&format!("{passed} admitted in {least:.3} to {most:.3} s, of {asked} asked, {refused} refused"));
    // A hundredth, and what the bucket may have held before or behind: workers of a busy machine may come late by half a second.
    let range = 990.0 * least - 500.0..=1010.0 * most + 500.0;
    assert!(range.contains(&passed), "{passed} are not within {range:?}");
    assert_eq!(report.socket_errors, 0, "who is refused keeps the connection");
    // Each of the sixteen may have been cut off when the load ended.
    let (seen, passed) = (web.requests() as f64, decided(&agent, "passed"));
    assert!((passed - 16.0..=passed).contains(&seen), "{seen} of {passed}: no endpoint sees what was refused");
}

#[test]
fn who_is_refused_is_told_why_and_when_to_come_again() {
    let Some(stage) = Stage::set() else { return };
    let (web, service, service2) = (stage.web("a"), stage.address(), stage.address());
    let rule = "{ name: hourly, kind: fixed_window, limit: 1, window_ms: 3600000, headers: on }";
    let rule2 = "{ name: hourly, kind: fixed_window, limit: 1, window_ms: 3600000, grpc_status: resource_exhausted }";
    let second = Service::http2("second", service2).set("upstream_protocol: http1");
    let second = second.set(&format!("request_limits: [{rule2}]")).to(web.address());
    let _agent = Agent::start(&stage.config().service(limited(service, rule, web.address())).service(second));
    assert!(curl(&stage, service, &[]).starts_with("http/1.1 200"));
    let refused = curl(&stage, service, &[]);
    assert!(refused.starts_with("http/1.1 429 too many requests"), "{refused}");
    assert!(refused.ends_with("sockway: over the limit hourly\n"), "{refused}");
    let retry_after: u64 = field(&refused, "retry-after").parse().expect("seconds");
    assert!((1..=3600).contains(&retry_after));
    assert_eq!(
        ["limit", "remaining", "reset"].map(|name| field(&refused, &format!("x-ratelimit-{name}"))),
        ["1", "0", &retry_after.to_string()]
    );
    assert!(curl(&stage, service2, &[HTTP2]).starts_with("http/2 200"));
    assert!(curl(&stage, service2, &[HTTP2]).starts_with("http/2 429"));
    let call = ["--header", "content-type: application/grpc", "--header", "te: trailers", "--data-binary", "x"];
    let refused = curl(&stage, service2, &[&[HTTP2][..], &call].concat());
    assert!(refused.starts_with("http/2 200") && field(&refused, "grpc-status") == "8", "{refused}");
    assert_eq!(web.requests(), 2);
}

#[test]
fn a_limit_that_tells_of_itself_does_so_on_every_answer() {
    let Some(stage) = Stage::set() else { return };
    let (web, nobody) = (stage.web("a"), stage.address());
    let up = stage.address();
    let _h2 = Nghttpd::start_answering(Room::of(&stage.origins), stage.origin(), up);
    let [service, service2, translated, dead, instead, other] = [(); 6].map(|()| stage.address());
    let window = |name: &str, limit: u32, more: &str| {
        format!("{{ name: {name}, kind: fixed_window, limit: {limit}, window_ms: 3600000{more} }}")
    };
    let (hourly, quiet) = (window("hourly", 3, ", headers: on"), window("quiet", 100, ""));
    let with = |service: Service, limits: &str| service.set(&format!("request_limits: [{limits}]"));
    let routed = format!(
        "routes: [{{ match: {{ headers: {{ x-tight: yes }} }}, request_limits: [{}] }}]",
        window("tight", 2, ", headers: on")
    );
    let config = stage
        .config()
        .service(with(Service::http("limited", service), &format!("{quiet}, {hourly}")).set(&routed).to(web.address()))
        .service(with(Service::http2("second", service2), &hourly).to(up))
        .service(
            with(Service::http2("translated", translated), &hourly).set("upstream_protocol: http1").to(web.address()),
        )
        .service(with(Service::http("dead", dead), &hourly).to(nobody))
        .service(
            with(Service::http("instead", instead), &window("one", 1, ", headers: on"))
                .set("fallback: { on: [limit], to: other }")
                .to(web.address()),
        )
        .service(Service::http("other", other).to(web.address()));
    let agent = Agent::start(&config);
    let told = |answer: &str| {
        let all = ["limit", "remaining", "reset"].map(|name| {
            let found: Vec<&str> =
                answer.lines().filter_map(|line| line.strip_prefix(&format!("x-ratelimit-{name}: "))).collect();
            assert!(found.len() < 2, "{answer}");
            found.first().map_or(0, |value| value.parse::<u64>().expect("a number"))
        });
        (answer.split(' ').nth(1).expect("a status").to_owned(), all[0], all[1], (1..=3600).contains(&all[2]))
    };
    let seen = |service, arguments: &[&str]| told(&curl(&stage, service, arguments));
    let was = |status: &str, limit, remaining| (status.to_owned(), limit, remaining, true);
    let tight = ["--header", "x-tight: yes"];
    assert_eq!(seen(service, &[]), was("200", 3, 2));
    assert_eq!(seen(service, &tight), was("200", 2, 1), "the one of which less is left");
    assert_eq!(seen(service, &tight), was("200", 2, 0));
    assert_eq!(seen(service, &tight), was("429", 2, 0));
    assert_eq!(seen(service, &[]), was("429", 3, 0));
    for service in [service2, translated] {
        assert_eq!(seen(service, &[HTTP2]), was("200", 3, 2));
        let call = ["--header", "content-type: application/grpc", "--header", "te: trailers", "--data-binary", "x"];
        let call = [&[HTTP2][..], &call].concat();
        assert_eq!(seen(service, &[HTTP2]), was("200", 3, 1));
        let _ = seen(service, &call);
        assert_eq!(seen(service, &[HTTP2]), was("429", 3, 0));
        let refused = curl(&stage, service, &call);
        assert_eq!((told(&refused), field(&refused, "grpc-status")), (was("200", 3, 0), "14"));
    }
    assert_eq!(seen(dead, &[]), was("503", 3, 2), "an answer of the agent's own");
    assert_eq!(seen(instead, &[]), was("200", 1, 0));
    assert_eq!(seen(instead, &[]), was("200", 1, 0), "of who stands in");
    assert_eq!(seen(other, &[]), ("200".to_owned(), 0, 0, false), "nobody said that it should");
    drop(agent);
}

#[test]
fn over_a_limit_that_calls_for_it_the_fallback_answers_that_is_for_something_else() {
    let Some(stage) = Stage::set() else { return };
    let (web, service) = (stage.web("a"), stage.address());
    let limits = "{ kind: fixed_window, limit: 1, window_ms: 3600000, by: { header: x-a }, on_limit: fallback }, \
                  { name: usual, kind: fixed_window, limit: 1, window_ms: 3600000, by: { header: x-b } }";
    let fallback = "fallback: { on: [timeout], respond: { status: 203, body: instead } }";
    let agent = Agent::start(
        &stage.config().service(limited(service, limits, web.address()).set(fallback).set("reason_header: on")),
    );
    let ask = |a: &str, b: &str| curl(&stage, service, &["-H", &format!("x-a: {a}"), "-H", &format!("x-b: {b}")]);
    assert!(ask("1", "1").starts_with("http/1.1 200"));
    let instead = ask("1", "2");
    assert!(instead.starts_with("http/1.1 203") && instead.ends_with("instead"), "{instead}");
    assert_eq!(field(&instead, "x-sockway-reason"), "limit");
    assert!(ask("2", "1").starts_with("http/1.1 429"), "the fallback is not for limits");
    let fallbacks = agent.metric("sockway_fallbacks_total", &[("service", "limited"), ("reason", "limit")]);
    assert_eq!((fallbacks, web.requests()), (1.0, 1));
}

#[test]
fn over_a_limit_that_breaks_all_requests_take_the_backup_path_for_the_breakers_time() {
    // 000-32: over limit -> trigger breaker -> switch to backup path.
    let Some(stage) = Stage::set() else { return };
    let (web, backup, service, second) = (stage.web("a"), stage.web("b"), stage.address(), stage.address());
    let limits =
        "{ kind: window_average, limit: 1, window_ms: 60000, by: { header: x-user }, on_limit: break, name: quota }";
    let breaker = "breaker: { kind: consecutive, open_ms: 3600000, on_open: { cluster: backup } }";
    let config = stage.config().service(limited(service, limits, web.address()).set(breaker));
    let agent = Agent::start(&config.service(Service::http("backup", second).to(backup.address())));
    let mut session = stage.session(service);
    let mut ask = |user: &str| {
        session.write(format!("GET / HTTP/1.1\r\nHost: a\r\nX-User: {user}\r\n\r\n").as_bytes()).expect("room");
        session.read("GET").expect("an answer").status
    };
    let asked = (1..).take_while(|_| ask("ann") == 200 && backup.requests() == 0).count();
    assert!((60..=70).contains(&asked), "{asked} of 60 in a minute");
    assert_eq!((web.requests(), backup.requests()), (asked, 1));
    assert_eq!(ask("bob"), 200, "within his own limit, and the breaker is open");
    assert_eq!((web.requests(), backup.requests()), (asked, 2));
    agent.metric_comes_to("sockway_breaker_state", &[("service", "limited")], 2.0);
}

#[test]
fn a_days_quota_ends_at_midnight_and_a_limit_may_hold_for_some_hours_only() {
    const DAY_S: u64 = 86_400;
    let Some(stage) = Stage::set() else { return };
    let (web, service, by_day, by_night) = (stage.web("a"), stage.address(), stage.address(), stage.address());
    let now_s = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let clock = |hours: u64| {
        let at = (now_s() + hours * 3_600) % DAY_S;
        format!("{:02}:{:02}", at / 3_600, at % 3_600 / 60)
    };
    let rule = "{ kind: fixed_window, limit: 1, aligned: day, utc_offset: \"+05:30\" }";
    let during = |name: &str, at: SocketAddr, from: u64, until: u64| {
        let rule = "kind: fixed_window, limit: 1, window_ms: 86400000";
        let rule = format!("request_limits: [{{ {rule}, between: \"{}-{}\" }}]", clock(from), clock(until));
        Service::http(name, at).set(&rule).to(web.address())
    };
    // From an hour ago to in an hour, and from then on for another.
    let (now, later) = (during("now", by_day, 23, 1), during("later", by_night, 1, 2));
    let _agent =
        Agent::start(&stage.config().service(limited(service, rule, web.address())).service(now).service(later));
    let said = |at: SocketAddr| curl(&stage, at, &[])[9..12].to_owned();
    assert_eq!([by_day, by_day, by_night, by_night].map(said), ["200", "429", "200", "200"]);
    let left = || DAY_S - (now_s() + 5 * 3_600 + 1_800) % DAY_S;
    assert_eq!(said(service), "200");
    let before = left();
    let refused = curl(&stage, service, &[]);
    let after = left();
    let told: u64 = field(&refused, "retry-after").parse().expect("seconds");
    assert!((after..=before).contains(&told), "{told} is not from {after} to {before}");
}

#[test]
fn a_route_has_limits_of_its_own_beside_its_services() {
    let Some(stage) = Stage::set() else { return };
    let (web, service, service2) = (stage.web("a"), stage.address(), stage.address());
    let hour = "window_ms: 3600000";
    let limits = format!("request_limits: [{{ kind: fixed_window, limit: 1, {hour} }}]");
    let routes =
        format!("routes: [{{ name: slow, match: {{ path: {{ prefix: /slow }} }}, {limits} }}, {{ name: rest }}]");
    let all = format!("{{ name: all, kind: fixed_window, limit: 3, {hour} }}");
    let fallback = "fallback: { on: [limit], respond: { status: 203, body: instead } }";
    let first = limited(service, &all, web.address()).set(&routes);
    let second = Service::http2("second", service2).set("upstream_protocol: http1").set(&routes).set(fallback);
    let agent = Agent::start(&stage.config().service(first).service(second.to(web.address())));
    let ask = |at: SocketAddr, path: &str, more: &[&str]| {
        let url = format!("http://{at}{path}");
        let output = peers::curl(Room::of(&stage.clients), &[&["--include", &url], more].concat());
        String::from_utf8_lossy(&output.stdout).to_lowercase()
    };
    // The endpoint knows none of the paths, and says so.
    let statuses = ["/slow/a", "/slow/b", "/c", "/d", "/e"].map(|path| ask(service, path, &[])[9..12].to_owned());
    assert_eq!(statuses, ["404", "429", "404", "404", "429"], "what the route refuses, the service does not count");
    assert!(ask(service, "/slow/a", &[]).ends_with("over the limit fixed_window\n"));
    assert!(ask(service, "/e", &[]).ends_with("over the limit all\n"));
    assert!(ask(service2, "/slow", &[HTTP2]).starts_with("http/2 404"));
    let instead = ask(service2, "/slow", &[HTTP2]);
    assert!(instead.starts_with("http/2 203") && instead.ends_with("instead"), "{instead}");
    let of_route = |decision: &str| {
        let labels = [("service", "limited"), ("route", "slow"), ("decision", decision)];
        agent.metric("sockway_route_limit_decisions_total", &labels)
    };
    assert_eq!((of_route("passed"), of_route("refused"), decided(&agent, "refused")), (1.0, 2.0, 2.0));
    let shown: serde_json::Value = serde_json::from_str(&agent.admin("/v1/services/limited").text()).expect("JSON");
    assert_eq!(
        (&shown["request_limits"][1]["route"], &shown["request_limits"][1]["refused"]),
        (&"slow".into(), &2.into())
    );
    let told = sockway(&["explain", "--instance", agent.instance(), &format!("GET http://{service}/slow/a")]);
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(told.contains("limited      fixed_window, fixed_window of 1\n"), "{told}");
}

fn field<'a>(answer: &'a str, name: &str) -> &'a str {
    let of = |line: &'a str| line.strip_prefix(name)?.strip_prefix(": ");
    answer.lines().find_map(of).unwrap_or_else(|| panic!("no {name} in {answer}")).trim()
}

#[test]
fn each_key_has_a_limit_of_its_own_that_a_reload_of_the_rest_does_not_forget() {
    let Some(stage) = Stage::set() else { return };
    let (web, service) = (stage.web("a"), stage.address());
    let rule = "{ kind: sliding_window, limit: 2, window_ms: 3600000, by: { header: X-User } }";
    let config = stage.config().service(limited(service, rule, web.address()));
    let agent = Agent::start(&config);
    let ask = |user: &str| curl(&stage, service, &["--header", &format!("x-user: {user}")])[9..12].to_owned();
    assert_eq!(["ann", "ann", "ann", "bob", "bob", "bob"].map(ask), ["200", "200", "429", "200", "200", "429"]);
    agent.reload(&config.with_services([limited(service, rule, web.address()).set("connect_timeout_ms: 999")]));
    assert_eq!(["ann", "eve"].map(ask), ["429", "200"]);
    let more = rule.replace("limit: 2", "limit: 3");
    agent.reload(&config.with_services([limited(service, &more, web.address())]));
    assert_eq!(["ann", "ann", "ann", "ann"].map(ask), ["200", "200", "200", "429"], "another limit begins anew");
}

#[test]
fn never_are_more_at_once_than_the_limit_and_each_that_ends_makes_room() {
    let Some(stage) = Stage::set() else { return };
    let (web, service) = (stage.web("a"), stage.address());
    let rule = "{ kind: concurrency, limit: 3, status: 503 }";
    let agent = Agent::start(&stage.config().service(limited(service, rule, web.address())));
    thread::scope(|scope| {
        let gate = || stage.session(service).get("/gate").expect("an answer").status;
        let held: Vec<_> = (0..3).map(|_| scope.spawn(gate)).collect();
        wait::until("three to be on their way", wait::SOON, || web.waiting() == 3);
        for _ in 0..5 {
            assert_eq!(stage.session(service).get("/").expect("an answer").status, 503);
        }
        web.open_gate();
        held.into_iter().for_each(|held| assert_eq!(held.join().expect("no panic"), 200));
    });
    let mut session = stage.session(service);
    for _ in 0..10 {
        assert_eq!(session.get("/").expect("an answer").status, 200);
    }
    // Who goes away gives the place back, too.
    let before = decided(&agent, "passed");
    let gone: Vec<_> = (0..3)
        .map(|_| {
            let mut session = stage.session(service);
            session.write(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n12").expect("room");
            session
        })
        .collect();
    wait::until("the places to be taken", wait::SOON, || decided(&agent, "passed") == before + 3.0);
    assert_eq!(session.get("/").expect("an answer").status, 503);
    drop(gone);
    wait::until("the places to be free", wait::SOON, || session.get("/").expect("an answer").status == 200);
    assert!(decided(&agent, "refused") >= 6.0);
}

#[test]
fn a_leaky_bucket_lets_requests_out_one_by_one() {
    const SPACING: Duration = Duration::from_millis(10);
    let Some(stage) = Stage::set() else { return };
    let times: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let seen = Arc::clone(&times);
    let listener = stage.origin().listen(stage.address()).expect("a free address");
    let endpoint = Origin::start(listener, move |stream, _| {
        let mut reader = BufReader::new(stream);
        while read_head(&mut reader)?.is_some() {
            seen.lock().expect("no panic").push(Instant::now());
            (&mut &*stream).write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?;
        }
        Ok(())
    });
    let service = stage.address();
    let rule = "{ kind: leaky_bucket, limit: 100, queue: 50 }";
    let agent = Agent::start(&stage.config().service(limited(service, rule, endpoint.address())));
    let load = Wrk::start(Room::of(&stage.clients), service, 16, Duration::from_secs(3)).report();
    assert_eq!((load.bad_answers, load.socket_errors), (0, 0), "sixteen fit the queue");
    let times = times.lock().expect("no panic").clone();
    let mut apart: Vec<Duration> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    apart.sort_unstable();
    let median = apart[apart.len() / 2];
    tell(&format!("{} requests, {median:?} apart at the median", times.len()));
    // Two processors that a whole test suite shares; alone it is within a tenth of that.
    assert!(median.abs_diff(SPACING) <= Duration::from_millis(1), "{median:?}");
    assert!(decided(&agent, "waited") > decided(&agent, "passed"));
    let (span, most) = (times[times.len() - 1] - times[0], times.len() as u32 - 1);
    // The first may have been late.
    assert!(span + Duration::from_millis(300) >= SPACING * most, "{most} in {span:?} are too many");
}

#[test]
fn who_waits_for_a_window_passes_in_the_next_that_has_room_in_both_protocols() {
    let Some(stage) = Stage::set() else { return };
    let (web, service, service2) = (stage.web("a"), stage.address(), stage.address());
    let rule = |kind: &str| {
        format!("{{ kind: {kind}, limit: 2, window_ms: 2000, on_limit: {{ wait: {{ max_ms: 30000 }} }} }}")
    };
    let second = Service::http2("second", service2).set("upstream_protocol: http1");
    let second = second.set(&format!("request_limits: [{}]", rule("sliding_window"))).to(web.address());
    let agent =
        Agent::start(&stage.config().service(limited(service, &rule("fixed_window"), web.address())).service(second));
    for (at, arguments, name) in [(service, &[][..], "limited"), (service2, &[HTTP2][..], "second")] {
        let began = Instant::now();
        thread::scope(|scope| {
            let ask = || curl(&stage, at, arguments);
            let told: Vec<_> = (0..7).map(|_| scope.spawn(ask)).collect();
            told.into_iter().for_each(|told| assert!(told.join().expect("no panic").contains(" 200")));
        });
        // Two in each window: the last one comes three windows behind the first, wherever in its own that came.
        assert!(began.elapsed() >= Duration::from_secs(4), "{name}: {:?}", began.elapsed());
        let decided = |decision: &str| {
            agent.metric("sockway_request_limit_decisions_total", &[("service", name), ("decision", decision)])
        };
        assert_eq!((decided("passed") + decided("waited"), decided("refused")), (7.0, 0.0), "{name}");
        assert!(decided("waited") >= 3.0, "{name}");
    }
}

#[test]
fn who_waits_for_a_place_gets_it_in_his_turn_or_is_refused_when_he_waited_for_long_enough() {
    let Some(stage) = Stage::set() else { return };
    let web = stage.web("a");
    let [service, service2, short, timed] = [(); 4].map(|()| stage.address());
    let routes = "routes: [{ name: root, match: { path: / }, timeout_ms: 1000 }]";
    let rule = |wait_ms: u32| {
        format!("request_limits: [{{ kind: concurrency, limit: 1, on_limit: {{ wait: {{ max_ms: {wait_ms} }} }} }}]")
    };
    let config = stage
        .config()
        .service(Service::http("limited", service).set(&rule(60_000)).to(web.address()))
        .service(
            Service::http2("second", service2).set("upstream_protocol: http1").set(&rule(60_000)).to(web.address()),
        )
        .service(Service::http("short", short).set(&rule(200)).to(web.address()))
        .service(Service::http("timed", timed).set(&rule(60_000)).set(routes).to(web.address()));
    let agent = Agent::start(&config);
    let waiting =
        |name: &str| agent.metric("sockway_request_limit_waiting", &[("service", name), ("limit", "concurrency")]);
    let ask = |at: SocketAddr, path: &str, arguments: &[&str]| {
        let url = format!("http://{at}{path}");
        let output = peers::curl(Room::of(&stage.clients), &[&["--include", &url], arguments].concat());
        String::from_utf8_lossy(&output.stdout).to_lowercase()
    };
    let order = Mutex::new(Vec::new());
    thread::scope(|scope| {
        let mut held = Vec::new();
        let all: [(SocketAddr, &[&str], &str, u32); 3] =
            [(service, &[], "limited", 3), (service2, &[HTTP2], "second", 3), (short, &[], "short", 0)];
        for (taken, (at, arguments, name, most)) in all.into_iter().enumerate() {
            let ask = &ask;
            held.push(scope.spawn(move || ask(at, "/gate", arguments)));
            wait::until("the place to be taken", wait::SOON, || web.waiting() == taken + 1);
            for place in 0..most {
                let order = &order;
                held.push(scope.spawn(move || {
                    let told = ask(at, "/", arguments);
                    order.lock().expect("no panic").push((name, place));
                    told
                }));
                wait::until("it to wait", wait::SOON, || waiting(name) == f64::from(place + 1));
            }
        }
        let began = Instant::now();
        let refused = ask(short, "/", &[]);
        assert!(refused.starts_with("http/1.1 429") && refused.ends_with("over the limit concurrency\n"), "{refused}");
        assert!(began.elapsed() >= Duration::from_millis(200), "{:?}", began.elapsed());
        // Nobody waits past his deadline.
        let ask = &ask;
        held.push(scope.spawn(move || ask(timed, "/gate", &[])));
        wait::until("the place to be taken", wait::SOON, || web.waiting() == 4);
        assert!(ask(timed, "/", &[]).starts_with("http/1.1 504"));
        // Who goes away stands there no more.
        assert!(ask(service, "/", &["--max-time", "0.3"]).is_empty());
        wait::until("its place in the line to be free", wait::SOON, || waiting("limited") == 3.0);
        web.open_gate();
        held.into_iter().for_each(|held| assert!(held.join().expect("no panic").contains(" 200")));
    });
    let order = order.into_inner().expect("no panic");
    let of = |of: &str| order.iter().filter(|(name, _)| *name == of).map(|(_, place)| *place).collect::<Vec<_>>();
    let sum = |name: &str| of(name).len();
    // Curl's processes end as they like; that each got his turn the endpoint saw one at a time.
    assert_eq!((sum("limited"), sum("second")), (3, 3));
    for name in ["limited", "second"] {
        assert_eq!(waiting(name), 0.0);
        let waited =
            agent.metric("sockway_request_limit_decisions_total", &[("service", name), ("decision", "waited")]);
        assert_eq!(waited, 3.0, "{name}");
    }
}

#[test]
fn a_quota_may_end_at_midnight_of_a_place() {
    let Some(stage) = Stage::set() else { return };
    let (web, service) = (stage.web("a"), stage.address());
    // Half past what it is elsewhere.
    let rule = "{ kind: fixed_window, limit: 1, aligned: day, time_zone: Asia/Kolkata }";
    let _agent = Agent::start(&stage.config().service(limited(service, rule, web.address())));
    let left = || {
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        86_400 - (now_s + 5 * 3_600 + 1_800) % 86_400
    };
    assert!(curl(&stage, service, &[]).starts_with("http/1.1 200"));
    let before = left();
    let refused = curl(&stage, service, &[]);
    let told: u64 = field(&refused, "retry-after").parse().expect("seconds");
    assert!((left()..=before).contains(&told), "{told} is not up to {before}");
}
