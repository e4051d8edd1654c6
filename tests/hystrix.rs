//! What breakers do, as Hystrix's dashboard and turbine read it.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use serde_json::Value;
use sockway_tests::{agent::Agent, config::Service, stage::Stage, wait};

/// A stream of events.
struct Events(BufReader<TcpStream>);

impl Events {
    fn open(admin: SocketAddr, query: &str) -> (String, Self) {
        let mut stream = TcpStream::connect(admin).expect("it listens");
        stream.set_read_timeout(Some(wait::SOON)).expect("a time");
        write!(stream, "GET /hystrix.stream{query} HTTP/1.0\r\nHost: a\r\n\r\n").expect("sent");
        let mut events = Self(BufReader::new(stream));
        let status = events.line();
        while !events.line().is_empty() {}
        (status, events)
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("a line in time");
        line.trim_end().to_owned()
    }

    /// The next event of this type that is told of this breaker.
    fn next(&mut self, kind: &str, name: &str) -> Value {
        loop {
            let line = self.line();
            let Some(event) = line.strip_prefix("data: ") else { continue };
            let event: Value = serde_json::from_str(event).expect("JSON");
            if (event["type"].as_str(), event["name"].as_str()) == (Some(kind), Some(name)) {
                return event;
            }
        }
    }
}

#[test]
fn a_dashboard_sees_commands_succeed_fail_and_be_kept_from_their_service() {
    let Some(stage) = Stage::set() else { return };
    let (good, bad) = (stage.address(), stage.address());
    let web = stage.web("web");
    let nobody = stage.address();
    let keys = [
        "breaker: { kind: consecutive, failures: 3, open_ms: 600000 }",
        "isolation: { timeout_ms: 20000, max_concurrency: 7 }",
    ];
    let with = |service: Service| keys.iter().fold(service, |service, key| service.set(key));
    let services = [with(Service::http("good", good)).to(web.address()), with(Service::http("bad", bad)).to(nobody)];
    let agent = Agent::start(&stage.config().with_services(services.to_vec()));
    let (status, mut events) = Events::open(agent.admin_address(), "?delay=100");
    assert!(status.contains(" 200 "), "{status}");
    let pool = events.next("HystrixThreadPool", "good");
    assert_eq!((&pool["currentMaximumPoolSize"], &pool["reportingHosts"]), (&7.into(), &1.into()));
    let mut session = stage.session(good);
    (0..4).for_each(|_| assert_eq!(session.get("/").expect("an answer").status, 200));
    let mut failing = stage.session(bad);
    (0..5).for_each(|_| assert_eq!(failing.get("/").expect("an answer").status, 503));
    let mut at = |name: &str, key: &str, value: u64| {
        let mut last = Value::Null;
        wait::until(&format!("{key} of {name} to be {value}"), wait::SOON, || {
            last = events.next("HystrixCommand", name);
            last[key] == value
        });
        last
    };
    let seen = at("good", "rollingCountSuccess", 4);
    assert_eq!(
        (&seen["isCircuitBreakerOpen"], &seen["errorPercentage"], &seen["group"]),
        (&false.into(), &0.into(), &"good".into())
    );
    assert!(seen["latencyExecute"]["99.5"].is_u64() && seen["propertyValue_executionTimeoutInMilliseconds"] == 20_000);
    let seen = at("bad", "rollingCountShortCircuited", 2);
    assert_eq!(
        (&seen["isCircuitBreakerOpen"], &seen["rollingCountFailure"], &seen["errorPercentage"]),
        (&true.into(), &3.into(), &100.into())
    );
}

#[test]
fn streams_are_few_and_make_room_when_their_clients_leave() {
    let Some(stage) = Stage::set() else { return };
    let agent =
        Agent::start(&stage.config().service(Service::http("web", stage.address()).to(stage.web("web").address())));
    let mut open: Vec<Events> = (0..5).map(|_| Events::open(agent.admin_address(), "").1).collect();
    assert_eq!(open[0].line(), "ping:");
    let (status, mut refused) = Events::open(agent.admin_address(), "");
    let mut why = String::new();
    refused.0.read_to_string(&mut why).expect("all of it");
    assert!(status.contains(" 503 ") && why.contains("MaxConcurrentConnections reached: 5"), "{status}: {why}");
    let (status, _) = Events::open(agent.admin_address(), "?delay=1");
    assert!(status.contains(" 503 ") || status.contains(" 400 "), "{status}");
    drop(open);
    wait::until("a place", wait::SOON, || Events::open(agent.admin_address(), "").0.contains(" 200 "));
}
