//! The admin endpoint: Prometheus text that says what happened, readiness, and the configuration in effect.

use std::{io::Write, time::Duration};

use sockway_common::counter;
use sockway_tests::{
    agent::{Agent, sockway},
    config::Service,
    metrics::Metrics,
    origin::read_name,
    stage::Stage,
    wait,
};

/// Time in which keys of tables are counted twice.
const COUNTED_AGAIN: Duration = Duration::from_secs(75);

#[test]
fn every_metric_has_a_help_line_and_a_type() {
    let Some(stage) = Stage::set() else { return };
    let (web, service) = (stage.web("web"), stage.address());
    let agent = Agent::start(&stage.config().service(Service::http("web", service).to(web.address())));
    assert_eq!(stage.session(service).get("/").unwrap().status, 200);

    let answer = agent.admin("/metrics");
    assert!(answer.header("content-type").starts_with("text/plain"), "{answer:?}");
    let metrics = Metrics::parse(answer.text());
    let is_histogram = |family: &str| metrics.type_of(family) == Some("histogram");
    for name in metrics.names() {
        assert!(name.starts_with("sockway_"), "{name}");
        let parts = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| name.strip_suffix(end))
            .filter(|family| is_histogram(family));
        let family = parts.unwrap_or(name);
        assert!(metrics.has_help(family), "no help for {family}");
        let kind = metrics.type_of(family).unwrap_or_else(|| panic!("no type for {family}"));
        assert_eq!(kind == "counter", family.ends_with("_total"), "{family} is a {kind}");
    }
}

#[test]
fn every_counter_of_the_kernel_half_is_there_from_the_start() {
    let Some(stage) = Stage::set() else { return };
    let agent = Agent::start(&stage.config());
    let metrics = agent.metrics();
    for counter in counter::ALL {
        let name = format!("sockway_kernel_{}", counter.name());
        assert!(metrics.has(&name, counter.labels()), "{name} {:?}", counter.labels());
    }
}

/// T41: counters are added up over every possible CPU.
#[test]
fn traffic_is_counted_where_it_went() {
    let Some(stage) = Stage::set() else { return };
    let (web, origin) = (stage.web("web"), stage.echo("origin"));
    let (http, tcp, kernel) = (stage.address(), stage.address(), stage.address());
    let agent = Agent::start(
        &stage
            .config()
            .service(Service::http("http", http).to(web.address()))
            .service(Service::agent_tcp("tcp", tcp).to(origin.address()))
            .service(Service::kernel_tcp("kernel", kernel).to(origin.address())),
    );
    let mut session = stage.session(http);
    for _ in 0..7 {
        session.get("/bytes/1000").unwrap();
    }
    let mut streams: Vec<_> = [tcp, tcp, kernel, kernel, kernel].map(|service| stage.dial(service).unwrap()).into();
    streams.iter_mut().for_each(|stream| assert_eq!(read_name(stream).unwrap(), "origin"));

    let endpoint = |metric: &str, service: &str| agent.metric(metric, &[("service", service)]);
    wait::until("the requests to be recorded", wait::SOON, || {
        endpoint("sockway_endpoint_requests_total", "http") == 7.0
    });
    assert_eq!(endpoint("sockway_endpoint_requests_total", "tcp"), 2.0);
    assert_eq!(endpoint("sockway_endpoint_active", "tcp"), 2.0);
    assert_eq!(endpoint("sockway_kernel_endpoint_connects_total", "kernel"), 3.0);
    assert_eq!(endpoint("sockway_endpoint_up", "kernel"), 1.0);
    agent.metric_comes_to("sockway_connections_active", &[], 3.0);
    drop((session, streams));
    wait::until("the connections to end", wait::SOON, || agent.metric("sockway_connections_active", &[]) == 0.0);
}

#[test]
fn latencies_are_a_histogram_whose_buckets_add_up() {
    let Some(stage) = Stage::set() else { return };
    let (web, service) = (stage.web("web"), stage.address());
    let agent = Agent::start(&stage.config().service(Service::http("web", service).to(web.address())));
    let mut session = stage.session(service);
    for _ in 0..500 {
        session.get("/").unwrap();
    }
    // The agent's own share is taken of a sample of the requests.
    for (family, fewest) in [("sockway_request_duration_seconds", 500.0), ("sockway_overhead_seconds", 1.0)] {
        let count = || agent.metric(&format!("{family}_count"), &[]);
        wait::until(&format!("{family} to be recorded"), wait::SOON, || count() >= fewest);
        let metrics = agent.metrics();
        let bucket = |bound: &str| metrics.get(&format!("{family}_bucket"), &[("le", bound)]);
        assert!(count() <= 500.0 && bucket("+Inf") == count(), "{family}");
        let rising = ["0.00005", "0.001", "0.1", "1", "+Inf"].map(bucket);
        assert!(rising.is_sorted(), "{family}: {rising:?}");
        let sum = metrics.get(&format!("{family}_sum"), &[]);
        assert!(sum > 0.0 && sum < 60.0, "{family}: {sum} s");
    }
}

#[test]
fn an_answer_that_took_a_while_is_counted_as_slow() {
    let Some(stage) = Stage::set() else { return };
    let (web, service) = (stage.web("web"), stage.address());
    let agent = Agent::start(&stage.config().service(Service::http("web", service).to(web.address())));
    let mut session = stage.session(service);
    session.write(b"GET /gate HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    wait::until("the answer to stand at the gate", wait::SOON, || web.waiting() == 1);
    wait::throughout("the answer is held", Duration::from_millis(300), || web.waiting() == 1);
    web.open_gate();
    assert_eq!(session.read("GET").unwrap().status, 200);

    let family = "sockway_request_duration_seconds";
    wait::until("it to be recorded", wait::SOON, || agent.metric(&format!("{family}_count"), &[]) == 1.0);
    let metrics = agent.metrics();
    assert_eq!(metrics.get(&format!("{family}_bucket"), &[("le", "0.25")]), 0.0);
    assert!((0.3..15.0).contains(&metrics.get(&format!("{family}_sum"), &[])));
}

#[test]
fn refused_requests_are_counted_by_reason() {
    let Some(stage) = Stage::set() else { return };
    let (web, service) = (stage.web("web"), stage.address());
    let agent = Agent::start(&stage.config().service(Service::http("web", service).to(web.address())));
    let before = agent.metrics();
    let mut session = stage.session(service);
    session.write(b"GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\nHost: test\r\n\r\n").unwrap();
    assert_eq!(session.read("GET").unwrap().status, 400);
    // Whatever the counters are called, one of the agent's own (not of a probe or a scrape) has moved and tells of a bad request.
    wait::until("the refusal to be counted", wait::SOON, || {
        let now = agent.metrics();
        let moved = |name: &str| now.get(name, &[]) > before.get(name, &[]) && name.contains("requests");
        now.names().iter().any(|name| moved(name))
    });
}

#[test]
fn ready_config_and_unknown_paths_answer() {
    let Some(stage) = Stage::set() else { return };
    let (web, service) = (stage.web("web"), stage.address());
    let agent = Agent::start(&stage.config().service(Service::http("shop/front", service).to(web.address())));
    assert_eq!(agent.admin("/ready").status, 200);
    let config = agent.admin("/config");
    assert_eq!(config.status, 200);
    for shown in ["shop/front", &service.to_string(), &web.address().to_string(), stage.clients.path()] {
        assert!(config.text().contains(shown), "{shown} is not in {}", config.text());
    }
    assert_eq!(agent.admin("/no-such-path").status, 404);
}

#[test]
fn the_admin_endpoint_answers_while_a_client_of_it_hangs() {
    let Some(stage) = Stage::set() else { return };
    let agent = Agent::start(&stage.config());
    let mut hanging: Vec<_> = (0..20).map(|_| std::net::TcpStream::connect(agent.admin_address()).unwrap()).collect();
    hanging.iter_mut().for_each(|stream| stream.write_all(b"GET /metr").unwrap());
    for _ in 0..20 {
        assert_eq!(agent.admin("/ready").status, 200);
    }
}

#[test]
fn self_test_results_are_metrics_and_lines_of_doctor() {
    let Some(stage) = Stage::set() else { return };
    let agent = Agent::start(&stage.config());
    let metrics = agent.metrics();
    assert_eq!(metrics.type_of("sockway_kernel_capability"), Some("gauge"));
    let doctor = sockway(&["doctor"]);
    let doctor = String::from_utf8_lossy(&doctor.stdout);
    let names = metrics.values_of("sockway_kernel_capability", "name");
    assert!(names.len() >= 5, "{names:?}");
    // What two threads race for may come out differently twice.
    for name in names.into_iter().filter(|name| *name != "shortcut_blocking_read") {
        let passed = metrics.get("sockway_kernel_capability", &[("name", name)]) == 1.0;
        let line = doctor.lines().find(|line| line.split_whitespace().nth(1) == Some(name));
        let line = line.unwrap_or_else(|| panic!("no line for {name} in {doctor}"));
        assert_eq!(line.starts_with("ok"), passed, "{line}");
    }
}

#[test]
fn handshakes_and_round_trips_are_histograms_by_service_and_endpoint() {
    let Some(stage) = Stage::set() else { return };
    let (one, two, refusing) = (stage.echo("one"), stage.echo("two"), stage.address());
    let (up, down) = (stage.address(), stage.address());
    let up_service = Service::kernel_tcp("up", up).to(one.address()).to(two.address());
    let down_service = Service::kernel_tcp("down", down).to(refusing);
    let agent = Agent::start(&stage.config().service(up_service).service(down_service));
    for _ in 0..10 {
        stage.ask_name(up).unwrap();
    }
    assert!(stage.dial(down).is_err());

    let ended = || agent.metric("sockway_kernel_rtt_seconds_count", &[("service", "up")]);
    wait::until("every connection to end", wait::SOON, || ended() == 10.0);
    let metrics = agent.metrics();
    for family in ["sockway_kernel_connect_seconds", "sockway_kernel_rtt_seconds"] {
        let bucket = |bound| metrics.get(&format!("{family}_bucket"), &[("service", "up"), ("le", bound)]);
        assert_eq!(metrics.get(&format!("{family}_count"), &[("service", "up")]), 10.0);
        let rising = ["0.000016", "0.000064", "0.001024", "1.048576", "+Inf"].map(bucket);
        assert!(rising.is_sorted() && rising[3] > 0.0 && rising[4] == 10.0, "{family}: {rising:?}");
        let sum = metrics.get(&format!("{family}_sum"), &[("service", "up")]);
        assert!(sum > 0.0 && sum < 60.0, "{family}: {sum} s");
    }
    for endpoint in [one.address(), two.address()].map(|address| address.to_string()) {
        let labels = [("service", "up"), ("endpoint", endpoint.as_str())];
        assert_eq!(metrics.get("sockway_kernel_endpoint_connect_seconds_count", &labels), 5.0);
        assert!(metrics.has("sockway_kernel_endpoint_retransmits_total", &labels));
    }
    assert!(!metrics.has("sockway_kernel_connect_seconds_count", &[("service", "down")]), "it never got that far");
    let status = sockway(&["status", "--json", "--instance", agent.instance()]);
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    let endpoint = &status["services"][0]["endpoints"][0];
    let mean = endpoint["connect_us"]["mean"].as_u64().unwrap_or_else(|| panic!("{status:#}"));
    assert!(mean > 0 && endpoint["connect_us"]["p50_max"].as_u64().is_some(), "{endpoint:#}");
}

/// T40: tables take memory as they fill, and how much is told.
#[test]
fn tables_tell_how_full_they_are() {
    let Some(stage) = Stage::set() else { return };
    let origin = stage.echo("origin");
    let services: Vec<Service> =
        (0..7).map(|index| Service::kernel_tcp(&format!("s{index}"), stage.address()).to(origin.address())).collect();
    let last = stage.address();
    let config = stage.config();
    let agent = Agent::start(&config.with_services(services.clone()));
    let entries = |map: &str| agent.metric("sockway_kernel_map_entries", &[("map", map)]);
    assert_eq!((entries("SERVICES"), entries("NAMES"), entries("LATENCIES")), (7.0, 7.0, 0.0));

    let more = services.into_iter().chain([Service::kernel_tcp("last", last).to(origin.address())]);
    agent.reload(&config.with_services(more));
    stage.ask_name(last).unwrap();
    // Before Linux 6.4 the agent counts keys, now and then.
    let told = |what, look: &dyn Fn() -> bool| wait::until(what, COUNTED_AGAIN, look);
    // The last is a value for each CPU, made by a hook.
    let wanted = (8.0, 8.0, 1.0);
    told("what was added", &|| (entries("SERVICES"), entries("NAMES"), entries("LATENCIES")) == wanted);
    agent.reload(&config);
    // A name stays for as long as endpoints of its service have connections to finish.
    told("what was taken away", &|| (entries("SERVICES"), entries("NAMES")) == (0.0, 8.0));

    let metrics = agent.metrics();
    for map in metrics.values_of("sockway_kernel_map_entries", "map") {
        let labels = [("map", map)];
        let (now, most) = (entries(map), metrics.get("sockway_kernel_map_entries_max", &labels));
        assert!(now < most, "{map}: {now} of {most}");
    }
    let bytes = metrics.get("sockway_kernel_map_bytes", &[]);
    assert!(bytes > 0.0 && bytes < f64::from(64 << 20), "{bytes} bytes of maps");
}

#[test]
fn the_hooks_run_time_is_measured_while_it_is_asked_for() {
    let Some(stage) = Stage::set() else { return };
    let (origin, service) = (stage.echo("origin"), stage.address());
    let config = stage.config().service(Service::kernel_tcp("timed", service).to(origin.address()));
    let agent = Agent::start(&config);
    agent.reload(&config.clone().set("hook_stats: on"));
    let of = |metric: &str| agent.metric(metric, &[("hook", "dial_v4")]);
    let (runs, time) = ("sockway_kernel_hook_runs_total", "sockway_kernel_hook_run_time_seconds_total");
    let before = (of(runs), of(time));
    for _ in 0..20 {
        stage.ask_name(service).unwrap();
    }
    assert_eq!(of(runs) - before.0, 20.0);
    let took = of(time) - before.1;
    assert!(took > 0.0 && took < 1.0, "{took} s");
    for hook in ["dial_v6", "deny_shortcut", "peer_v4"] {
        assert!(agent.metrics().has(runs, &[("hook", hook)]), "{hook}");
    }
}
