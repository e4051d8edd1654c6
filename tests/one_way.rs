//! Requests whose answers nobody waits for, through the agent: the client is answered at once, the endpoint gets all of it, and nothing is
//! held for it afterwards.

use std::{
    fs,
    time::{Duration, Instant},
};

use sockway_tests::{
    agent::Agent,
    config::Service,
    peers::{self, Nghttpd},
    process::Room,
    slow::Slow,
    stage::Stage,
    translation::HTTP2,
    wait,
};

const ONE_WAY: &str = "routes: [{ name: told, match: { path: { prefix: /after } }, one_way: on }]";

fn results(agent: &Agent, service: &str) -> [f64; 3] {
    ["sent", "failed", "busy"].map(|result| {
        agent.metric("sockway_oneway_total", &[("service", service), ("route", "told"), ("result", result)])
    })
}

fn curl(stage: &Stage, url: &str, arguments: &[&str]) -> String {
    let output = peers::curl(Room::of(&stage.clients), &[&["--include", url], arguments].concat());
    String::from_utf8_lossy(&output.stdout).to_lowercase()
}

#[test]
fn who_waits_for_no_answer_is_told_at_once_and_its_endpoint_works_on() {
    let Some(stage) = Stage::set() else { return };
    let slow = Slow::start(&stage);
    let services = [(); 4].map(|()| stage.address());
    let [plain, up, down, kept] = services;
    // A request that was waited for would take the only place, open the breaker, be late, or be tried again.
    let strict = |service: Service| {
        let isolated = "isolation: { max_concurrency: 1 }";
        let breaker = "breaker: { kind: consecutive, failures: 1 }";
        let late = "http: { response_timeout_ms: 200 }";
        service.set(ONE_WAY).set(isolated).set(breaker).set(late).set("timeout_ms: 3000").to(slow.address())
    };
    let config = stage
        .config()
        .service(strict(Service::http("plain", plain)))
        .service(strict(Service::http2("up", up).set("upstream_protocol: http1")))
        .service(strict(Service::http2("down", down).set("upstream_protocol: http1").set("cluster: failover")))
        .service(strict(Service::http("kept", kept).set("retry: { attempts: 2, on: [late, reset] }")));
    let agent = Agent::start(&config);
    let ways: [(&str, _, &[&str]); 4] =
        [("plain", plain, &[]), ("up", up, &[HTTP2]), ("down", down, &[HTTP2]), ("kept", kept, &[])];
    for (name, service, http) in ways {
        let before = slow.asked().len();
        let began = Instant::now();
        for (body, times) in [(&[][..], 1), (&["--data", "a body"], 2)] {
            let told = curl(&stage, &format!("http://{service}/after/20000"), &[http, body].concat());
            assert!(told.lines().next().is_some_and(|line| line.contains(" 202")), "{name}: {told}");
            assert!(told.contains("x-sockway-cluster: one_way\r\n") && told.ends_with("\r\n\r\n"), "{name}: {told}");
            slow.is_asked(before + times);
        }
        assert!(began.elapsed() < Duration::from_secs(15), "{name}: {:?}", began.elapsed());
        wait::until("both to be counted", wait::SOON, || results(&agent, name) == [2.0, 0.0, 0.0]);
        let active = agent.metric("sockway_isolation_active", &[("service", name)]);
        assert_eq!(active, 0.0, "{name} holds a place");
        let in_use = agent.metric("sockway_endpoint_active", &[("service", name)]);
        assert_eq!(in_use, 0.0, "{name} counts as in use");
        // Another is answered as ever: nothing has failed.
        let told = curl(&stage, &format!("http://{service}/"), http);
        assert!(told.contains(" 200") && told.ends_with("good"), "{name}: {told}");
        assert_eq!(slow.asked().len(), before + 3, "{name} tries again");
    }
    assert!(!slow.was_cut(), "who works for nobody's answer is let work");
    agent.metric_comes_to("sockway_requests_total", &[("outcome", "one_way")], 8.0);
}

#[test]
fn an_answer_that_is_dropped_leaves_its_connection_to_the_next() {
    let Some(stage) = Stage::set() else { return };
    let (slow, service) = (Slow::start(&stage), stage.address());
    let config =
        stage.config().set("workers: 1").service(Service::http("web", service).set(ONE_WAY).to(slow.address()));
    let agent = Agent::start(&config);
    let mut session = stage.session(service);
    wait::until("a connection to carry another request", wait::SOON, || {
        assert_eq!(session.get("/after/10").expect("an answer").status, 202);
        agent.metric("sockway_upstream_requests_total", &[("connection", "reused")]) >= 3.0
    });
    assert!(slow.origin.accepted() < slow.asked().len(), "{} connections", slow.origin.accepted());
}

#[test]
fn a_long_request_is_streamed_and_answered_when_all_of_it_is_sent() {
    const BYTES: usize = 3_000_000;
    let Some(stage) = Stage::set() else { return };
    let slow = Slow::start(&stage);
    let [plain, up] = [stage.address(), stage.address()];
    let config = stage
        .config()
        .service(Service::http("plain", plain).set(ONE_WAY).to(slow.address()))
        .service(Service::http2("up", up).set("upstream_protocol: http1").set(ONE_WAY).to(slow.address()));
    let agent = Agent::start(&config);
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("body");
    fs::write(&file, vec![b'x'; BYTES]).expect("a file");
    let data = format!("@{}", file.display());
    let mut sent = 0;
    for (name, service, http) in [("plain", plain, &[][..]), ("up", up, &[HTTP2])] {
        for (times, framing) in [(1.0, &[][..]), (2.0, &["-H", "Transfer-Encoding: chunked"])] {
            let framing = if http.is_empty() { framing } else { &[] };
            let arguments = [http, framing, &["--data-binary", &data]].concat();
            let told = curl(&stage, &format!("http://{service}/after/20000"), &arguments);
            assert!(told.contains(" 202"), "{name}: {told}");
            sent += BYTES as u64;
            wait::until("all of it to arrive", wait::SOON, || slow.bytes() == sent);
            wait::until("it to be counted", wait::SOON, || results(&agent, name) == [times, 0.0, 0.0]);
        }
    }
    assert!(!slow.was_cut());
}

#[test]
fn a_long_request_is_streamed_to_endpoints_of_http2_too() {
    const BYTES: usize = 3_000_000;
    let Some(stage) = Stage::set() else { return };
    let up = stage.address();
    let origin = Nghttpd::start_answering(Room::of(&stage.origins), stage.origin(), up);
    let [down, both] = [stage.address(), stage.address()];
    let routes = "routes: [{ name: told, match: { path: / }, one_way: on }]";
    let config = stage
        .config()
        .set("workers: 1")
        .service(Service::http("down", down).set("upstream_protocol: http2").set(routes).to(up))
        .service(Service::http2("both", both).set(routes).to(up));
    let agent = Agent::start(&config);
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("body");
    fs::write(&file, vec![b'x'; BYTES]).expect("a file");
    let data = format!("@{}", file.display());
    let chunked: &[&str] = &["-H", "Transfer-Encoding: chunked"];
    let ways: [(&str, _, &[&str], f64); 3] =
        [("down", down, &[], 1.0), ("down", down, chunked, 2.0), ("both", both, &[HTTP2], 1.0)];
    for (name, service, framing, times) in ways {
        let arguments = [framing, &["--data-binary", &data]].concat();
        let told = curl(&stage, &format!("http://{service}/"), &arguments);
        assert!(told.contains(" 202"), "{name}: {told}");
        wait::until("it to be counted", wait::SOON, || results(&agent, name) == [times, 0.0, 0.0]);
        wait::until("it to be in nobody's way", wait::SOON, || {
            agent.metric("sockway_endpoint_active", &[("service", name)]) == 0.0
        });
    }
    // All of it has come, and on one connection for each service: nobody was reset.
    wait::until("all bodies to end", wait::SOON, || origin.log().matches("END_STREAM").count() >= 3);
    assert!(!origin.log().contains("RST_STREAM"), "{}", origin.log());
}

#[test]
fn who_reaches_nobody_has_been_answered_and_is_counted() {
    let Some(stage) = Stage::set() else { return };
    let services = [stage.address(), stage.address()];
    let nobody = stage.address();
    let config = stage
        .config()
        .service(Service::http("one", services[0]).set(ONE_WAY).to(nobody))
        .service(Service::http2("two", services[1]).set(ONE_WAY).to(nobody));
    let agent = Agent::start(&config);
    for (name, service, http) in [("one", services[0], &[][..]), ("two", services[1], &[HTTP2])] {
        assert!(curl(&stage, &format!("http://{service}/after"), http).contains(" 202"));
        wait::until("it to be counted", wait::SOON, || results(&agent, name) == [0.0, 1.0, 0.0]);
        assert!(curl(&stage, &format!("http://{service}/"), http).contains(" 503"), "{name}");
    }
}
