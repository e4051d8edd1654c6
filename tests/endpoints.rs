//! Endpoint death: HTTP callers never notice; dialled connections stop going there once it is noticed; and it comes back.

use std::{
    env,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    time::{Duration, Instant, SystemTime},
};

use sockway_tests::{
    agent::Agent,
    config::Service,
    door::Door,
    netns::{Netns, Veth},
    origin::Origin,
    patience,
    peers::{self, Nginx, Wrk},
    process::Room,
    stage::{Stage, tell},
    wait,
};

/// Whether the agent says that an endpoint is up.
fn up(agent: &Agent, service: &str, endpoint: SocketAddr) -> bool {
    agent.metric("sockway_endpoint_up", &[("service", service), ("endpoint", &endpoint.to_string())]) == 1.0
}

#[test]
fn no_http_call_fails_when_an_endpoint_dies_and_it_takes_part_again_when_it_is_back() {
    let Some(stage) = Stage::set() else { return };
    let (living, mortal) = (stage.web("living"), stage.web("mortal"));
    let (address, service) = (mortal.address(), stage.address());
    let agent = Agent::start(&stage.config().service(Service::http("web", service).to(living.address()).to(address)));
    let mut session = stage.session(service);
    let mut call = || {
        let answer = session.get("/").unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.text()
    };
    assert!((0..10).map(|_| call()).filter(|name| name == "mortal").count() >= 4);

    mortal.die();
    assert!((0..100).all(|_| call() == "living"));
    wait::until("the death to be told", wait::SOON, || !up(&agent, "web", address));

    let _back = stage.web_at("back", address);
    wait::until("the endpoint to be trusted again", wait::SOON, || call() == "back");
    assert!(up(&agent, "web", address));
}

#[test]
fn no_http_call_fails_when_an_endpoint_dies_under_load() {
    let Some(stage) = Stage::set() else { return };
    let (living, mortal, service) = (stage.address(), stage.address(), stage.address());
    let room = Room::of(&stage.origins);
    let _nginx = Nginx::start(room, stage.origin(), living, "living");
    let dying = Nginx::start(room, stage.origin(), mortal, "mortal");
    let agent = Agent::start(&stage.config().service(Service::http("web", service).to(living).to(mortal)));
    let wrk = Wrk::start(Room::of(&stage.clients), service, 16, Duration::from_secs(3));
    let sent =
        |endpoint: SocketAddr| agent.metric("sockway_endpoint_requests_total", &[("endpoint", &endpoint.to_string())]);
    wait::until("both endpoints to be used", wait::SOON, || sent(living) > 100.0 && sent(mortal) > 100.0);

    // SIGTERM: nginx closes its listener and idle connections at once, and cuts what is left.
    drop(dying);
    let load = wrk.report();
    assert_eq!((load.socket_errors, load.bad_answers), (0, 0), "{load:?}");
    assert!(load.requests > 500, "{load:?}");
}

#[test]
fn no_connect_of_a_kernel_service_fails_after_the_death_of_an_endpoint_is_noticed() {
    let Some(stage) = Stage::set() else { return };
    let (living, mortal) = (stage.echo("living"), stage.echo("mortal"));
    let (address, service) = (mortal.address(), stage.address());
    let agent =
        Agent::start(&stage.config().service(Service::kernel_tcp("pipe", service).to(living.address()).to(address)));
    assert!((0..10).map(|_| stage.ask_name(service).unwrap()).any(|name| name == "mortal"));

    mortal.die();
    // The first refused connect is what tells of it (trap T31): it is the only way to know without probes.
    wait::until("a connect to be refused", wait::SOON, || stage.ask_name(service).is_err());
    wait::until("the death to be noticed", wait::SOON, || !up(&agent, "pipe", address));
    for _ in 0..50 {
        assert_eq!(stage.ask_name(service).unwrap(), "living");
    }

    let _back = stage.echo_at("back", address);
    wait::until("the endpoint to be trusted again", wait::SOON, || stage.ask_name(service).unwrap() == "back");
    let names: Vec<String> = (0..20).map(|_| stage.ask_name(service).unwrap()).collect();
    assert_eq!(names.iter().filter(|name| *name == "back").count(), 10, "{names:?}");
}

#[test]
fn probes_notice_a_death_before_anybody_dials() {
    let Some(stage) = Stage::set() else { return };
    let (living, mortal) = (stage.echo("living"), stage.echo("mortal"));
    let (address, service) = (mortal.address(), stage.address());
    let probed = Service::kernel_tcp("pipe", service).to(living.address()).to(address).set("probe_interval_ms: 100");
    let agent = Agent::start(&stage.config().service(probed));
    wait::until("the endpoints to be probed", wait::SOON, || agent.metric("sockway_probes_total", &[]) >= 2.0);

    mortal.die();
    wait::until("the death to be noticed", wait::SOON, || !up(&agent, "pipe", address));
    for _ in 0..20 {
        assert_eq!(stage.ask_name(service).unwrap(), "living");
    }
}

/// Microseconds since midnight UTC, now.
fn time_of_day_us() -> i64 {
    let now = SystemTime::UNIX_EPOCH.elapsed().expect("a clock that is set");
    (now.as_micros() % 86_400_000_000) as i64
}

/// The same of each line of the agent's log that says that an endpoint is down: the moment of the decision.
fn downs_us(log: &str) -> Vec<i64> {
    let time_of = |line: &str| {
        let (hours, rest) = line.split_once('T')?.1.split_once('Z')?.0.split_once(':')?;
        let (minutes, seconds) = rest.split_once(':')?;
        let seconds: f64 = seconds.parse().ok()?;
        let whole = hours.parse::<i64>().ok()? * 3600 + minutes.parse::<i64>().ok()? * 60;
        Some(whole * 1_000_000 + (seconds * 1e6) as i64)
    };
    log.lines().filter(|line| line.contains("endpoint is down")).filter_map(time_of).collect()
}

/// Prints how long after the agent's decision the last connect was begun that still went to the endpoint, and the first that did not: the
/// decision took effect between the two. `SOCKWAY_EJECT_SERVICES` is how many other services the agent has (100).
#[test]
fn no_connect_goes_to_an_endpoint_from_the_moment_when_the_agent_says_that_it_is_down() {
    const ROUNDS: usize = 20;
    let Some(stage) = Stage::set() else { return };
    let (living, address, service) = (stage.echo("living"), stage.address(), stage.address());
    let others = env::var("SOCKWAY_EJECT_SERVICES")
        .map_or(100, |others| others.parse().expect("SOCKWAY_EJECT_SERVICES is a number"));
    let other = |index: u32| {
        let ip = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 112, 0, 0)) + index);
        let endpoints = (1..=10).map(|host| SocketAddr::from(([10, 113, 0, host], 80)));
        Service::kernel_tcp(&format!("other-{index}"), SocketAddr::from((ip, 80))).to_all(endpoints)
    };
    // Nearly every connect goes to the one that dies, so that the first that does not tells when.
    let mostly = Service::kernel_tcp("pipe", service).set("balance: weighted_random");
    let mostly = mostly.weighted(living.address(), 1).weighted(address, 1_000);
    let agent = Agent::start(
        &(0..others).map(other).fold(stage.config().service(mostly), |config, other| config.service(other)),
    );
    let (mut last_us, mut first_us) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let mortal = stage.echo_at("mortal", address);
        wait::until("the endpoint to be trusted", wait::SOON, || {
            up(&agent, "pipe", address) && stage.ask_name(service).is_ok_and(|name| name == "mortal")
        });
        mortal.die();
        let (mut refused_us, mut arrived_us) = (0, 0);
        wait::until("the agent to decide, and connects to arrive", wait::SOON, || {
            // Many between two looks at the log, one right behind the other.
            for _ in 0..100 {
                let begun_us = time_of_day_us();
                match stage.dial(service) {
                    Ok(_) if arrived_us == 0 => arrived_us = begun_us,
                    Ok(_) => {}
                    Err(_) => (refused_us, arrived_us) = (begun_us, 0),
                }
            }
            arrived_us != 0 && downs_us(&agent.log()).len() > round
        });
        let decided_us = downs_us(&agent.log())[round];
        last_us.push((refused_us - decided_us).max(0));
        first_us.push((arrived_us - decided_us).max(0));
        // What it has told it has done.
        wait::until("the agent to tell", wait::SOON, || !up(&agent, "pipe", address));
        (0..20).for_each(|_| assert_eq!(stage.ask_name(service).unwrap(), "living", "round {round}"));
    }
    for (what, mut late_us) in [("the last connect that went there", last_us), ("the first that did not", first_us)] {
        late_us.sort_unstable();
        let (p50, most) = (late_us[ROUNDS / 2], late_us[ROUNDS - 1]);
        tell(&format!(
            "from the agent's decision to {what}: p50 {p50} µs, most {most} µs, {ROUNDS} times, beside {others} services"
        ));
    }
}

#[test]
fn a_connection_through_the_agent_skips_an_unreachable_endpoint() {
    let Some(stage) = Stage::set() else { return };
    let living = stage.echo("living");
    let (dead, service) = (stage.address(), stage.address());
    let agent =
        Agent::start(&stage.config().service(Service::agent_tcp("pipe", service).to(dead).to(living.address())));
    for _ in 0..20 {
        assert_eq!(stage.ask_name(service).unwrap(), "living");
    }
    assert!(!up(&agent, "pipe", dead));
    assert!(agent.metric("sockway_endpoint_connect_failures_total", &[("endpoint", &dead.to_string())]) >= 1.0);
}

#[test]
fn an_endpoint_that_never_answers_is_given_up_after_the_connect_timeout() {
    let Some(stage) = Stage::set() else { return };
    let living = stage.web("living");
    let (silent, service) = (stage.address(), stage.address());
    // A full accept queue drops every further SYN, as a host that is gone does.
    let _full = fill_backlog(silent);
    let web = Service::http("web", service).to(silent).to(living.address()).set("connect_timeout_ms: 300");
    let agent = Agent::start(&stage.config().set("workers: 1").service(web));
    let start = Instant::now();
    for _ in 0..4 {
        assert_eq!(stage.session(service).get("/").unwrap().text(), "living");
    }
    assert!(start.elapsed() < patience::deadline(Duration::from_secs(3)), "four calls took {:?}", start.elapsed());
    assert!(!up(&agent, "web", silent));
}

/// A listener that accepts nothing, with as many connections in its queue as it takes.
fn fill_backlog(address: SocketAddr) -> (TcpListener, Vec<socket2::Socket>) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&address.into()).unwrap();
    socket.listen(0).unwrap();
    let dial = || {
        let client = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        client.set_nonblocking(true).unwrap();
        let _ = client.connect(&address.into());
        client
    };
    let clients: Vec<_> = (0..4).map(|_| dial()).collect();
    (socket.into(), clients)
}

#[test]
fn when_every_endpoint_is_dead_an_http_caller_is_told_why() {
    let Some(stage) = Stage::set() else { return };
    let service = stage.address();
    let _agent =
        Agent::start(&stage.config().service(Service::http("web", service).to(stage.address()).to(stage.address())));
    for _ in 0..5 {
        let answer = stage.session(service).get("/").unwrap();
        assert!([502, 503].contains(&answer.status), "{answer:?}");
        assert!(!answer.text().trim().is_empty(), "a local reply has a reason");
    }
    let output = peers::curl(Room::of(&stage.clients), &["--write-out", "%{http_code}", &format!("http://{service}/")]);
    assert!(output.status.success());
}

#[test]
fn all_endpoints_back_from_the_dead_are_found_again() {
    let Some(stage) = Stage::set() else { return };
    let addresses = [stage.address(), stage.address()];
    let (http, kernel) = (stage.address(), stage.address());
    let _agent = Agent::start(
        &stage
            .config()
            .service(Service::http("http", http).to_all(addresses))
            .service(Service::kernel_tcp("kernel", kernel).to_all(addresses)),
    );
    assert!(stage.session(http).get("/").unwrap().status >= 500);
    assert!(stage.dial(kernel).is_err());
    let _back = addresses.map(|address| stage.web_at("back", address));
    for service in [http, kernel] {
        wait::until("the endpoints to be found", wait::SOON, || {
            stage.dial(service).is_ok_and(|stream| {
                sockway_tests::answer::Session::on(stream).get("/").is_ok_and(|answer| answer.text() == "back")
            })
        });
    }
}

#[test]
fn an_endpoint_in_another_pod_dies_with_its_pod() {
    let Some(stage) = Stage::set() else { return };
    // The agent lives in a namespace of its own here, with wires to two pods.
    let (host, one, two) = (Netns::new(), Netns::new(), Netns::new());
    let wires = [Veth::between(&host, &one), Veth::between(&host, &two)];
    let doors = [&one, &two].map(|pod| Door::open(Room::of(&stage.origins).inside(pod)));
    let addresses = wires.map(|wire| SocketAddr::new(wire.right.into(), 80));
    let mut origins: Vec<Origin> = (0..2)
        .map(|index| Origin::echo(doors[index].listen(addresses[index]).unwrap(), ["one", "two"][index]))
        .collect();
    let service = SocketAddr::from(([10, 254, 0, 1], 80));
    let pipe = Service::agent_tcp("pipe", service).to_all(addresses).set("connect_timeout_ms: 300");
    let config = stage.config().service(pipe);
    let client = Door::open(Room::of(&stage.clients).inside(&host));
    let _agent = Agent::start_in(Room::of(&stage.origins).inside(&host), &config);
    let name = || {
        let mut stream = client.dial(service).expect("a connect never fails");
        stream.set_read_timeout(Some(wait::soon())).unwrap();
        sockway_tests::origin::read_name(&mut stream)
    };
    let names: Vec<String> = (0..4).map(|_| name().unwrap()).collect();
    assert!(names.contains(&"one".to_owned()) && names.contains(&"two".to_owned()), "{names:?}");

    let [_, second] = doors;
    origins.pop().unwrap().die();
    drop(second);
    two.delete();
    for _ in 0..10 {
        assert_eq!(name().unwrap(), "one");
    }
}

#[test]
fn python_keeps_calling_while_endpoints_come_and_go() {
    let Some(stage) = Stage::set() else { return };
    let (living, address, service) = (stage.web("living"), stage.address(), stage.address());
    let _agent = Agent::start(&stage.config().service(Service::http("web", service).to(living.address()).to(address)));
    let program = "import http.client, sys\n\
        c = http.client.HTTPConnection(sys.argv[1], timeout=soon)\n\
        for n in range(int(sys.argv[2])):\n    c.request('GET', '/bytes/1000'); r = c.getresponse(); assert r.status == 200 and len(r.read()) == 1000, r.status\n\
        print('whole')\n";
    let calls = patience::load(600).to_string();
    let mut caller = stage.clients.spawn(peers::python_command(program, &[&service.to_string(), &calls]));
    while caller.ended().is_none() {
        stage.web_at("fleeting", address).die();
    }
    assert_eq!(caller.stdout(), "whole\n", "{}", caller.stderr());
}
