//! Copies of requests: they arrive whole, and the client neither waits for them nor hears of them.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use sockway_tests::{
    agent::Agent, config::Service, origin::Origin, peers, peers::Nghttpd, process::Room, stage::Stage,
    translation::HTTP2, wait, web::Web, web::pattern,
};

const BOTH: [&[&str]; 2] = [&[], &[HTTP2]];

/// Who gets copies.
struct Shadowed {
    stage: Stage,
    agent: Agent,
    service: SocketAddr,
    service2: SocketAddr,
    primary: Web,
    shadow: Web,
}

impl Shadowed {
    /// Clients of either HTTP, endpoints of HTTP/1; every request is copied.
    fn set() -> Option<Self> {
        let stage = Stage::set()?;
        let (primary, shadow) = (stage.web("primary"), stage.web("shadow"));
        let (service, service2, other) = (stage.address(), stage.address(), stage.address());
        let routes = "routes: [{ name: copied, mirror: { to: shadow }, request_headers: { set: { x-set: s } } }]";
        let config = stage
            .config()
            .service(Service::http("web", service).set(routes).to(primary.address()))
            .service(Service::http2("web2", service2).set("upstream_protocol: http1").set(routes).to(primary.address()))
            .service(Service::http("shadow", other).to(shadow.address()));
        Some(Self { agent: Agent::start(&config), stage, service, service2, primary, shadow })
    }

    /// What the client hears.
    #[track_caller]
    fn curl(&self, path: &str, arguments: &[&str]) -> Vec<u8> {
        let service = if arguments.contains(&HTTP2) { self.service2 } else { self.service };
        let url = format!("http://{service}{path}");
        peers::curl(Room::of(&self.stage.clients), &[&[url.as_str()], arguments].concat()).stdout
    }

    /// What was copied, when it has come.
    #[track_caller]
    fn copy(&self, count: usize) -> (String, Vec<u8>) {
        wait::until("a copy", wait::SOON, || self.shadow.requests() == count);
        self.shadow.last().expect("one")
    }

    fn outcome(&self, outcome: &str) -> f64 {
        let metrics = self.agent.metrics();
        ["web", "web2"]
            .map(|service| {
                let labels = [("service", service), ("route", "copied"), ("outcome", outcome)];
                metrics.get("sockway_route_mirrored_total", &labels)
            })
            .iter()
            .sum()
    }
}

#[test]
fn a_copy_has_what_the_request_had_and_says_that_it_is_one() {
    let Some(shadowed) = Shadowed::set() else { return };
    let large = "x".repeat(40_000);
    let mut copies = 0;
    for http in BOTH {
        for (body, fields) in
            [("", &[][..]), ("small", &[]), (&large, &[]), (&large, &["-H", "Transfer-Encoding: chunked"])]
        {
            let data = if body.is_empty() { vec![] } else { vec!["--data-binary", body] };
            let fields = if http.is_empty() { fields } else { &[] };
            let told = shadowed.curl("/echo/q", &[http, &["-H", "Host: a.example:81"], fields, &data].concat());
            assert!(told == body.as_bytes(), "the client's answer is that of its endpoint");
            copies += 1;
            let (head, copied) = shadowed.copy(copies);
            assert!(copied == body.as_bytes(), "{http:?}: {} bytes of {}", copied.len(), body.len());
            let head = head.to_ascii_lowercase();
            let method = if body.is_empty() { "get" } else { "post" };
            assert!(head.starts_with(&format!("{method} /echo/q http/1.1\n")), "{head}");
            assert!(head.contains("\nhost: a.example-shadow:81\n") && head.contains("\nx-set: s\n"), "{head}");
            assert!(!head.contains("expect:") && !head.contains("transfer-encoding"), "{head}");
        }
    }
    wait::until("all answers to be read", wait::SOON, || shadowed.outcome("answered") == copies as f64);
    assert_eq!(shadowed.primary.requests(), copies);
    assert!(shadowed.shadow.connections() < copies, "connections carry one copy after the other");
}

#[test]
fn a_body_that_is_too_long_is_passed_on_and_not_copied() {
    let Some(shadowed) = Shadowed::set() else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("body");
    std::fs::write(&file, pattern(200_000)).expect("a file");
    let data = format!("@{}", file.display());
    let chunked = ["-H", "Transfer-Encoding: chunked"];
    for fields in [&[][..], &chunked, &[HTTP2]] {
        let told = shadowed.curl("/echo", &[fields, &["--data-binary", &data]].concat());
        assert!(told == pattern(200_000), "{fields:?}");
    }
    assert_eq!(shadowed.outcome("too_large"), 3.0);
    assert_eq!((shadowed.primary.requests(), shadowed.shadow.requests()), (3, 0));
}

#[test]
fn nobody_waits_for_who_gets_copies_and_nobody_hears_of_their_failures() {
    let Some(stage) = Stage::set() else { return };
    let primary = stage.web("primary");
    let (mute, _) = Origin::collect(stage.origin().listen(stage.address()).expect("an address"));
    let [service, silent, dead] = [(); 3].map(|()| stage.address());
    let routes = "routes: [{ name: silent, match: { path: /bytes/1 }, mirror: { to: silent } }, \
                  { name: dead, match: { path: /bytes/2 }, mirror: { to: dead } }, \
                  { name: some, match: { path: /bytes/3 }, mirror: { to: dead, percent: 20 } }]";
    let config = stage
        .config()
        .service(Service::http("web", service).set(routes).to(primary.address()))
        .service(Service::http("silent", silent).set("http: { response_timeout_ms: 2000 }").to(mute.address()))
        .service(Service::http("dead", dead).to(stage.address()));
    let agent = Agent::start(&config);
    let mut session = stage.session(service);
    let begin = Instant::now();
    for _ in 0..20 {
        assert_eq!(session.get("/bytes/1").unwrap().status, 200);
        assert_eq!(session.get("/bytes/2").unwrap().status, 200);
    }
    assert!(begin.elapsed() < Duration::from_secs(2), "waited for who says nothing: {:?}", begin.elapsed());
    let count =
        |route, outcome| agent.metric("sockway_route_mirrored_total", &[("route", route), ("outcome", outcome)]);
    wait::until("the copies to fail", wait::SOON, || {
        count("silent", "failed") == 20.0 && count("dead", "failed") == 20.0
    });
    assert_eq!(count("silent", "answered") + count("dead", "answered"), 0.0);
    for _ in 0..500 {
        assert_eq!(session.get("/bytes/3").unwrap().status, 200);
    }
    wait::until("the last to fail", wait::SOON, || count("some", "failed") >= 60.0);
    // Five standard deviations of a binomial with n = 500, p = 0.2.
    assert!(count("some", "failed") <= 145.0, "{}", count("some", "failed"));
}

#[test]
fn copies_go_to_endpoints_of_http2_and_from_requests_to_such() {
    let Some(stage) = Stage::set() else { return };
    let shadow = stage.web("shadow");
    let (home, away) = (stage.address(), stage.address());
    let _home = Nghttpd::start(Room::of(&stage.origins), stage.origin(), home, 3, &[]);
    let _away = Nghttpd::start(Room::of(&stage.origins), stage.origin(), away, 5, &[]);
    let [older, newer, two, one] = [(); 4].map(|()| stage.address());
    let routes = "routes: [{ name: new, mirror: { to: two } }, \
                  { name: old, match: { headers: { x-to: old } }, mirror: { to: one } }]";
    let config = stage
        .config()
        .service(Service::http("older", older).set("upstream_protocol: http2").set(routes).to(home))
        .service(Service::http2("newer", newer).set(routes).to(home))
        .service(Service::http2("two", two).to(away))
        .service(Service::http("one", one).to(shadow.address()));
    let agent = Agent::start(&config);
    let body = "y".repeat(30_000);
    for (http, service, name) in [(&[][..], older, "older"), (&[HTTP2], newer, "newer")] {
        let before = shadow.requests();
        for (fields, route) in [(&[][..], "new"), (&["-H", "x-to: old"], "old")] {
            let url = format!("http://{service}/bytes");
            let arguments = [&[url.as_str(), "--data-binary", &body], http, fields].concat();
            let told = peers::curl(Room::of(&stage.clients), &arguments).stdout;
            assert!(told == body.as_bytes(), "what is uploaded is echoed: {} bytes", told.len());
            let labels = [("service", name), ("route", route), ("outcome", "answered")];
            let answered = || agent.metric("sockway_route_mirrored_total", &labels) == 1.0;
            wait::until("the copy to be answered", wait::SOON, answered);
        }
        assert_eq!(shadow.requests(), before + 1);
        assert!(shadow.last().is_some_and(|(_, copied)| copied == body.as_bytes()));
    }
}
