//! Canaries go up step by step while all is well, and back to nothing when it is not.

use std::{
    io::{BufReader, Write as _},
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use sockway_tests::{
    agent::Agent,
    answer::{Session, read_head},
    config::{Config, Service},
    origin::Origin,
    stage::Stage,
    wait,
    web::Web,
};

/// A service with an endpoint of each version.
struct Tried {
    stage: Stage,
    agent: Agent,
    service: SocketAddr,
    stable: Web,
    canary: Web,
}

const INTERVAL: Duration = Duration::from_secs(2);

impl Tried {
    /// With this guard.
    fn set(guard: &str) -> Option<Self> {
        let stage = Stage::set()?;
        let (stable, canary) = (stage.web("stable"), stage.web("canary"));
        let service = stage.address();
        let config = Self::config(&stage, service, [&stable, &canary], guard);
        Some(Self { agent: Agent::start(&config), stage, service, stable, canary })
    }

    fn config(stage: &Stage, service: SocketAddr, webs: [&Web; 2], guard: &str) -> Config {
        let routes = format!(
            "routes: [{{ name: release, subset: {{ version: v1 }}, canary: {{ subset: {{ version: v2 }}, \
             steps: [20, 60, 100], interval_ms: {}, guard: {guard} }} }}]",
            INTERVAL.as_millis()
        );
        let service = Service::http("web", service).set(&routes);
        let service = service.to_with(webs[0].address(), "labels: { version: v1 }");
        stage.config().service(service.to_with(webs[1].address(), "labels: { version: v2 }"))
    }

    fn percent(&self) -> f64 {
        self.agent.metric("sockway_route_canary_percent", &[("service", "web"), ("route", "release")])
    }

    /// Asks on and on until the canary gets this much, and tells how long that took.
    #[track_caller]
    fn ask_until(&self, session: &mut Session, path: &str, percent: f64) -> Duration {
        let begin = Instant::now();
        wait::until("the canary's part", wait::SOON, || {
            for _ in 0..50 {
                session.get(path).expect("an answer");
            }
            self.percent() == percent
        });
        begin.elapsed()
    }

    fn status(&self) -> serde_json::Value {
        let status: serde_json::Value = serde_json::from_str(&self.agent.admin("/status").text()).expect("JSON");
        status["services"][0]["canaries"][0].clone()
    }
}

#[test]
fn a_canary_that_is_well_gets_everything_in_the_end_and_outlives_a_reload() {
    let Some(tried) = Tried::set("{ requests_min: 60 }") else { return };
    let mut session = tried.stage.session(tried.service);
    assert_eq!(tried.percent(), 20.0);
    tried.ask_until(&mut session, "/", 60.0);
    let (of_stable, of_canary) = (tried.stable.requests(), tried.canary.requests());
    assert!(of_canary > 0 && of_stable > of_canary, "{of_stable} {of_canary}");
    let config = Tried::config(&tried.stage, tried.service, [&tried.stable, &tried.canary], "{ requests_min: 60 }");
    tried.agent.reload(&config.set("drain_timeout_ms: 9000"));
    assert_eq!(tried.percent(), 60.0);
    tried.ask_until(&mut session, "/", 100.0);
    wait::until("it to be promoted", wait::SOON, || {
        (0..50).for_each(|_| assert_eq!(session.get("/").expect("an answer").text(), "canary"));
        tried.status()["state"] == "promoted"
    });
}

#[test]
fn a_canary_that_answers_5xx_is_rolled_back_within_two_intervals_until_it_is_changed() {
    let Some(mut tried) = Tried::set("{ error_percent: 5, requests_min: 20 }") else { return };
    let mut session = tried.stage.session(tried.service);
    let took = tried.ask_until(&mut session, "/status/503", 0.0);
    assert!(took < 2 * INTERVAL, "{took:?}");
    let (status, errors) = (tried.status(), tried.canary.requests());
    assert_eq!((&status["state"], &status["reason"]), (&"rolled_back".into(), &"errors".into()), "{status}");
    assert!(errors >= 20 && status["errors"] == errors as u64, "{errors} {status}");
    for _ in 0..100 {
        assert_eq!(session.get("/").expect("an answer").text(), "stable");
    }
    assert_eq!(tried.canary.requests(), errors, "it is asked no more");
    tried.agent.sigterm();
    tried.agent.wait();
    tried.agent.start_again();
    assert_eq!((tried.status()["state"].as_str(), tried.percent()), (Some("rolled_back"), 0.0), "also after a restart");
    let mut session = tried.stage.session(tried.service);
    assert_eq!(session.get("/").expect("an answer").text(), "stable");
    tried.agent.sigkill();
    tried.agent.start_again();
    assert_eq!((tried.status()["reason"].as_str(), tried.percent()), (Some("errors"), 0.0), "and after a crash");
    let guard = "{ error_percent: 6, requests_min: 20 }";
    tried.agent.reload(&Tried::config(&tried.stage, tried.service, [&tried.stable, &tried.canary], guard));
    assert_eq!(tried.percent(), 20.0, "another guard is another canary");
}

#[test]
fn a_canary_that_answers_late_or_not_at_all_is_rolled_back() {
    let Some(stage) = Stage::set() else { return };
    let stable = stage.web("stable");
    let listener = stage.origin().listen(stage.address()).expect("an address");
    let slow = Origin::start(listener, |mut stream, _| {
        let mut reader = BufReader::new(stream);
        while read_head(&mut reader)?.is_some() {
            thread::sleep(Duration::from_millis(60));
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?;
        }
        Ok(())
    });
    let [late, dead] = [(); 2].map(|()| stage.address());
    let service = |name, address, tried, guard: &str| {
        let routes =
            format!("routes: [{{ subset: {{ v: '1' }}, canary: {{ subset: {{ v: '2' }}, guard: {guard} }} }}]");
        let service = Service::http(name, address).set(&routes).to_with(stable.address(), "labels: { v: '1' }");
        service.to_with(tried, "labels: { v: '2' }")
    };
    let config = stage
        .config()
        .service(service("late", late, slow.address(), "{ latency_ms: 50, latency_percentile: 90, requests_min: 5 }"))
        .service(service("dead", dead, stage.address(), "{ requests_min: 5 }"));
    let agent = Agent::start(&config);
    for (name, address, reason) in [("late", late, "latency"), ("dead", dead, "errors")] {
        let mut session = stage.session(address);
        wait::until("it to be rolled back", wait::SOON, || {
            (0..20).for_each(|_| drop(session.get("/").expect("an answer")));
            agent.metric("sockway_route_canary_rolled_back", &[("service", name)]) == 1.0
        });
        let status: serde_json::Value = serde_json::from_str(&agent.admin("/status").text()).expect("JSON");
        let found = status["services"].as_array().into_iter().flatten().find(|it| it["name"] == name);
        assert_eq!(found.expect("the service")["canaries"][0]["reason"], reason);
    }
}
