//! Deadlines through the agent: what is left of a request's time on its way through several agents, what is refused when nothing is, and what
//! becomes of the work of a client that went away.

use std::{
    net::SocketAddr,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use sockway_tests::{
    agent::{Agent, sockway},
    answer::{Head, Session},
    cgroup::Cgroup,
    config::Service,
    peers,
    process::{Process, Room},
    slow::Slow,
    stage::{Stage, tell},
    translation::HTTP2,
    wait,
    web::Web,
};

const LEFT: &str = "x-envoy-expected-rq-timeout-ms";

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn curl(stage: &Stage, service: SocketAddr, path: &str, arguments: &[&str]) -> String {
    let url = format!("http://{service}{path}");
    let output = peers::curl(Room::of(&stage.clients), &[&["--include", &url], arguments].concat());
    String::from_utf8_lossy(&output.stdout).to_lowercase()
}

/// A client that is killed when it is dropped.
fn leaving(stage: &Stage, service: SocketAddr, path: &str, arguments: &[&str]) -> Process {
    let mut command = Command::new("curl");
    command.args(["--silent", "--noproxy", "*", &format!("http://{service}{path}")]).args(arguments);
    Process::spawn(Room::of(&stage.clients), command)
}

fn timed_out(agent: &Agent) -> f64 {
    agent.metric("sockway_requests_total", &[("outcome", "deadline_exceeded")])
}

/// Each agent's endpoint is a service of the next one, which captures it.
#[test]
fn through_three_agents_no_work_begins_behind_the_budget_and_the_last_sees_what_is_left() {
    let Some(stage) = Stage::set() else { return };
    let slow = Slow::start(&stage);
    let [first, second, third] = [(); 3].map(|()| stage.address());
    let hop = |name, address, keys: &[&str], to| {
        keys.iter().fold(Service::http(name, address).set("deadline: {}"), |service, key| service.set(key)).to(to)
    };
    // The second lets one pass each 60 ms, and the others wait.
    let queue = "request_limits: [{ kind: leaky_bucket, limit: 50, window_ms: 3000, queue: 10 }]";
    let config = stage.config().set("workers: 1").service(hop("first", first, &["timeout_ms: 300"], second));
    let of_first = Cgroup::of_agent(config.instance());
    let config2 = stage.config().without_rules().capture(&of_first).set("workers: 1");
    let config2 = config2.service(hop("second", second, &[queue], third));
    let of_second = Cgroup::of_agent(config2.instance());
    let config3 = stage.config().without_rules().capture(&of_second).set("workers: 1");
    let config3 = config3.service(hop("third", third, &[], slow.address()));
    let agents = [&config3, &config2, &config].map(Agent::start);
    // Connections are made, and tables are warm.
    for _ in 0..3 {
        assert_eq!(stage.session(first).get("/warm").unwrap().status, 200);
    }
    // Ten ask at once: when each began, what it was told, and how long that took.
    let burst = |service: SocketAddr| -> Vec<(Instant, u16, Duration)> {
        let asking: Vec<_> = (0..10)
            .map(|turn| {
                let mut session = stage.session(service);
                let ask = move || {
                    let began = Instant::now();
                    (began, session.get(&format!("/{turn}")).expect("an answer").status, began.elapsed())
                };
                thread::spawn(ask)
            })
            .collect();
        asking.into_iter().map(|asking| asking.join().expect("a client")).collect()
    };
    let turn = |head: &Head| -> usize { head.word(1)[1..].parse().expect("a turn") };
    let (mut errors, mut noise) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        // What this machine, as busy as it is, takes to carry a request from a client to a server that reads it.
        let before = slow.asked().len();
        let told = burst(slow.address());
        noise.extend(slow.asked().split_off(before).iter().map(|(at, head)| *at - told[turn(head)].0));
        let before = slow.asked().len();
        let told = burst(first);
        let asked = slow.asked().split_off(before);
        let good = told.iter().filter(|(_, status, _)| *status == 200).count();
        assert!((2..10).contains(&good), "{told:?}");
        assert!(asked.len() <= good + 1, "{} asked, {good} answered: {told:?}", asked.len());
        assert!(told.iter().all(|(_, status, _)| [200, 429, 504].contains(status)), "{told:?}");
        for (at, head) in asked {
            let left: u64 = head.get(LEFT).expect("what is left").parse().expect("a number");
            let spent = at - told[turn(&head)].0;
            // What a busy machine takes to carry a request from one agent to the next, neither of them sees.
            assert!(spent < millis(400), "work begins {spent:?} after it was asked for");
            assert!(left + spent.as_millis() as u64 <= 400, "{left} ms are left after {spent:?}");
            errors.push(millis(300).saturating_sub(spent).abs_diff(millis(left)));
        }
        // The queue runs empty.
        thread::sleep(millis(300));
    }
    errors.sort();
    noise.sort();
    let (median, noise) = (errors[errors.len() / 2], noise[noise.len() / 2]);
    tell(&format!(
        "what is left is told to within {median:?} at the median, {:?} at the 90th of a hundred; to carry a request takes {noise:?}",
        errors[errors.len() * 9 / 10]
    ));
    // What lies between one's clock and the next one's no agent sees: four times the way from who sends to who reads.
    assert!(median <= millis(5) + noise * 4, "{errors:?}, noise {noise:?}");
    drop(agents);
}

#[test]
fn who_comes_too_late_is_refused_and_nobody_is_asked() {
    let Some(stage) = Stage::set() else { return };
    let (slow, service, service2) = (Slow::start(&stage), stage.address(), stage.address());
    let config = stage.config().service(Service::http("web", service).set("deadline: {}").to(slow.address())).service(
        Service::http2("rpc", service2).set("upstream_protocol: http1").set("deadline: {}").to(slow.address()),
    );
    let agent = Agent::start(&config);
    let over = ["-H", "Timeout: 0"];
    let told = curl(&stage, service, "/", &over);
    assert!(told.starts_with("http/1.1 504") && told.ends_with("sockway: the call's time is over\n"), "{told}");
    assert!(curl(&stage, service2, "/", &[&over[..], &[HTTP2]].concat()).starts_with("http/2 504"));
    let call = ["-H", "content-type: application/grpc", "-H", "te: trailers", "-H", "grpc-timeout: 0m"];
    let told = curl(&stage, service2, "/", &[&call[..], &["--data-binary", "x", HTTP2]].concat());
    assert!(told.starts_with("http/2 200") && told.contains("grpc-status: 4\r\n"), "{told}");
    assert_eq!((slow.origin.accepted(), timed_out(&agent)), (0, 3.0));
    // What is no time says nothing.
    for not in ["Timeout: soon", "X-Envoy-Expected-Rq-Timeout-Ms: 0", "x-mosn-global-timeout: -1"] {
        assert!(curl(&stage, service, "/", &["-H", not]).starts_with("http/1.1 200"), "{not}");
    }
}

#[test]
fn an_answer_that_is_not_whole_in_time_is_cut_off_and_its_endpoint_told() {
    let Some(stage) = Stage::set() else { return };
    let slow = Slow::start(&stage);
    let [plain, kept, up, down] = [(); 4].map(|()| stage.address());
    let timed = |service: Service| service.set("timeout_ms: 150").to(slow.address());
    let config = stage
        .config()
        .service(timed(Service::http("plain", plain)))
        .service(timed(Service::http("kept", kept).set("cluster: failfast")))
        .service(timed(Service::http2("up", up).set("upstream_protocol: http1")))
        .service(timed(Service::http2("down", down).set("upstream_protocol: http1").set("cluster: failfast")));
    let agent = Agent::start(&config);
    let ways: [(SocketAddr, &[&str]); 4] = [(plain, &[]), (kept, &[]), (up, &[HTTP2]), (down, &[HTTP2])];
    for (service, http) in ways {
        for body in [&[][..], &["--data", "a body"], &["-H", "Transfer-Encoding: chunked", "--data", "a body"]] {
            let began = Instant::now();
            let told = curl(&stage, service, "/after/20000", &[http, body].concat());
            let spent = began.elapsed();
            assert!(told.lines().next().is_some_and(|line| line.contains(" 504")), "{http:?} {body:?}: {told}");
            assert!(spent >= millis(150) && spent < millis(2000), "{spent:?}");
            slow.is_cut();
        }
        let told = curl(&stage, service, "/half", http);
        assert!(told.contains(" 200") && told.ends_with("half"), "{told}");
        slow.is_cut();
        assert!(curl(&stage, service, "/", http).ends_with("good"));
    }
    wait::until("each to be counted", wait::SOON, || timed_out(&agent) == 16.0);
    // The connection goes on, on which nothing was sent that was not answered.
    let mut session = stage.session(plain);
    assert_eq!(session.get("/after/20000").unwrap().status, 504);
    assert_eq!(session.get("/").unwrap().status, 200);
}

#[test]
fn what_is_left_is_told_in_the_words_of_who_is_asked() {
    let Some(stage) = Stage::set() else { return };
    let (web, services) = (stage.web("a"), [(); 4].map(|()| stage.address()));
    let [all, mosn, reset, rpc] = services;
    let service = |service: Service, keys: &str| service.set(keys).to(web.address());
    let config = stage
        .config()
        .service(service(Service::http("all", all), "deadline: {}"))
        .service(service(Service::http("mosn", mosn), "deadline: { accept: [x-mosn-global-timeout] }"))
        .service(service(Service::http("reset", reset).set("timeout_ms: 5000"), "deadline: { reset: on }"))
        .service(service(Service::http2("rpc", rpc).set("upstream_protocol: http1"), "deadline: {}"));
    let _agent = Agent::start(&config);
    let seen = |service, arguments: &[&str]| {
        assert!(curl(&stage, service, "/request", arguments).contains(" 200"), "{arguments:?}");
        read(&web)
    };
    let envoy = ["-H", "X-Envoy-Expected-Rq-Timeout-Ms: 9000"];
    let go = ["-H", "Timeout: 8000000000"];
    let grpc = ["-H", "content-type: application/grpc", "-H", "te: trailers", "--data-binary", "x"];
    let within = |found: Option<&String>, most: u64| {
        let value: u64 = found.expect("a field").parse().expect("a number");
        assert!((most * 3 / 4..=most).contains(&value), "{value} of {most}");
    };
    let found = seen(all, &envoy);
    within(found.get(LEFT), 9000);
    assert!(!found.contains_key("timeout") && !found.contains_key("grpc-timeout"));
    // The least of all.
    let found = seen(all, &[&envoy[..], &go].concat());
    within(found.get(LEFT), 8000);
    within(found.get("timeout"), 8_000_000_000);
    let found = seen(all, &[]);
    assert!(!found.contains_key(LEFT), "nobody has said anything: {found:?}");
    // What is not minded stays what it is.
    let found = seen(mosn, &[&envoy[..], &["-H", "x-mosn-global-timeout: 4000"]].concat());
    assert_eq!(found.get(LEFT).map(String::as_str), Some("9000"));
    within(found.get("x-mosn-global-timeout"), 4000);
    // Time begins anew.
    let found = seen(reset, &[&["-H", "X-Envoy-Expected-Rq-Timeout-Ms: 1"][..], &go].concat());
    within(found.get(LEFT), 5000);
    assert!(!found.contains_key("timeout"), "{found:?}");
    // A gRPC call is told in gRPC's.
    let found = seen(rpc, &[&[HTTP2][..], &envoy, &grpc].concat());
    within(found.get(LEFT), 9000);
    let value = found.get("grpc-timeout").expect("gRPC's own field").strip_suffix('u').expect("microseconds");
    within(Some(&value.to_owned()), 9_000_000);
}

fn read(web: &Web) -> std::collections::HashMap<String, String> {
    let (head, _) = web.last().expect("a request");
    head.lines()
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

#[test]
fn a_route_has_a_time_of_its_own() {
    let Some(stage) = Stage::set() else { return };
    let (slow, service) = (Slow::start(&stage), stage.address());
    let routes = "routes: [{ match: { path: { prefix: /after/700 } }, timeout_ms: 100 }]";
    let with = Service::http("web", service).set("timeout_ms: 20000").set(routes).to(slow.address());
    let _agent = Agent::start(&stage.config().service(with));
    assert!(curl(&stage, service, "/after/700", &[]).starts_with("http/1.1 504"));
    assert!(curl(&stage, service, "/after/400", &[]).starts_with("http/1.1 200"));
}

#[test]
fn a_timeout_that_is_found_follows_a_server_that_slows_down() {
    let Some(stage) = Stage::set() else { return };
    let (slow, services) = (Slow::start(&stage), [stage.address(), stage.address()]);
    let auto = "timeout: { auto: { factor: 3, min_ms: 20, max_ms: 9000 } }";
    let routed = format!("routes: [{{ name: slow, match: {{ path: {{ prefix: /after }} }}, {auto} }}]");
    let web = Service::http("web", services[0]).set(auto).to(slow.address());
    let rpc = Service::http2("rpc", services[1]).set("upstream_protocol: http1").set(&routed).to(slow.address());
    let agent = Agent::start(&stage.config().service(web).service(rpc));
    for (service, http, name, route) in [(services[0], &[][..], "web", ""), (services[1], &[HTTP2], "rpc", "slow")] {
        let timeout = || agent.metric("sockway_timeout_auto_seconds", &[("service", name), ("route", route)]);
        let many = |times: u32| {
            let url = format!("http://{service}/after/10");
            if http.is_empty() {
                let mut session = stage.session(service);
                (0..times).for_each(|_| assert_eq!(session.get("/after/10").expect("an answer").status, 200));
            } else {
                peers::h2load(Room::of(&stage.clients), times, 2, 2, &url);
            }
        };
        // Until enough is known, nobody is given up.
        many(99);
        assert_eq!(timeout(), 9.0, "{name}");
        many(50);
        let found = timeout();
        assert!((0.02..9.0).contains(&found), "{name}: {found}");
        // A busy machine makes a longer one, not another rule.
        let later = format!("/after/{}", (found * 2000.0) as u64 + 1);
        assert!(curl(&stage, service, &later, http).contains(" 504"), "{name}: {found}");
        let asked = (1..=80).find(|_| curl(&stage, service, &later, http).contains(" 200"));
        assert!(asked.is_some_and(|asked| asked > 1), "{name}: {asked:?} of {found}, now {}", timeout());
        assert!(timeout() > found * 2.0);
        let told = sockway(&["status", "--instance", agent.instance()]);
        let told = String::from_utf8_lossy(&told.stdout);
        assert!(told.contains(&format!("timeout      {name}")) && told.contains("(p99 "), "{told}");
    }
}

#[test]
fn a_client_that_went_away_takes_its_work_with_it() {
    let Some(stage) = Stage::set() else { return };
    let slow = Slow::start(&stage);
    let [plain, kept, up, down] = [(); 4].map(|()| stage.address());
    let config = stage
        .config()
        .service(Service::http("plain", plain).to(slow.address()))
        .service(Service::http("kept", kept).set("cluster: failover").to(slow.address()))
        .service(Service::http2("up", up).set("upstream_protocol: http1").to(slow.address()))
        .service(
            Service::http2("down", down).set("upstream_protocol: http1").set("cluster: failover").to(slow.address()),
        );
    let _agent = Agent::start(&config);
    let ways: [(SocketAddr, &[&str]); 4] = [(plain, &[]), (kept, &[]), (up, &[HTTP2]), (down, &[HTTP2])];
    for (service, http) in ways {
        for body in [&[][..], &["--data", "a body"]] {
            let before = slow.asked().len();
            let client = leaving(&stage, service, "/after/20000", &[http, body].concat());
            slow.is_asked(before + 1);
            drop(client);
            slow.is_cut();
        }
    }
}

#[test]
fn who_leaves_while_it_waits_for_its_turn_is_never_heard_of() {
    let Some(stage) = Stage::set() else { return };
    let (slow, services) = (Slow::start(&stage), [stage.address(), stage.address()]);
    let queue = "request_limits: [{ kind: leaky_bucket, limit: 1, window_ms: 1500, queue: 5 }]";
    let config = stage
        .config()
        .service(Service::http("web", services[0]).set(queue).to(slow.address()))
        .service(Service::http2("web2", services[1]).set("upstream_protocol: http1").set(queue).to(slow.address()));
    let agent = Agent::start(&config);
    for (service, http, name) in [(services[0], &[][..], "web"), (services[1], &[HTTP2], "web2")] {
        let before = slow.asked().len();
        assert!(curl(&stage, service, "/first", http).contains(" 200"));
        let client = leaving(&stage, service, "/second", http);
        let waits = [("service", name), ("decision", "waited")];
        wait::until("the second to wait", wait::SOON, || {
            agent.metric("sockway_request_limit_decisions_total", &waits) == 1.0
        });
        let gone = agent.metric("sockway_requests_total", &[("outcome", "client_aborted")]);
        drop(client);
        wait::until("its leaving to be seen before its turn", millis(1000), || {
            agent.metric("sockway_requests_total", &[("outcome", "client_aborted")]) == gone + 1.0
        });
        assert!(curl(&stage, service, "/third", http).contains(" 200"));
        let paths: Vec<String> =
            slow.asked().split_off(before).iter().map(|(_, head)| head.word(1).to_owned()).collect();
        assert_eq!(paths, ["/first", "/third"], "{name}");
    }
}

#[test]
fn nobody_waits_for_a_turn_behind_its_time() {
    let Some(stage) = Stage::set() else { return };
    let (slow, service) = (Slow::start(&stage), stage.address());
    let queue = "request_limits: [{ kind: leaky_bucket, limit: 1, window_ms: 2000, queue: 5 }]";
    let with = Service::http("web", service).set(queue).set("timeout_ms: 500").to(slow.address());
    let _agent = Agent::start(&stage.config().service(with));
    let mut session = Session::on(stage.dial(service).expect("a connection"));
    assert_eq!(session.get("/").unwrap().status, 200);
    let began = Instant::now();
    assert_eq!(session.get("/").unwrap().status, 429, "its turn would come too late");
    assert!(began.elapsed() < millis(400), "{:?}", began.elapsed());
    assert_eq!(slow.asked().len(), 1);
}
