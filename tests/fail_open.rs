//! Fail-open: a dead, hung or impersonated agent never stops a program's new connections.

use std::{net::SocketAddr, time::Duration};

use nix::sys::signal::Signal;
use sockway_tests::{
    agent::Agent,
    config::Service,
    origin::{echoes, read_name},
    patience,
    peers::{Nginx, Wrk},
    process::Room,
    stage::Stage,
    wait,
};

/// Verdict of a connect that the kernel balanced because the agent did not look alive.
const HUNG: &[(&str, &str)] = &[("verdict", "fail_open_hung")];

#[test]
fn new_connections_of_an_agent_service_are_balanced_in_the_kernel_when_the_agent_was_killed() {
    let Some(stage) = Stage::set() else { return };
    let (one, two) = (stage.web("one"), stage.web("two"));
    let service = stage.address();
    let config = stage.config().service(Service::http("web", service).to(one.address()).to(two.address()));
    let mut agent = Agent::start(&config);
    assert_eq!(stage.session(service).get("/").unwrap().status, 200);
    let through_agent = one.connections() + two.connections();

    agent.sigkill();
    // At once: no connect fails, not even the first.
    let names: Vec<String> = (0..20).map(|_| stage.session(service).get("/").unwrap().text()).collect();
    assert_eq!(names.iter().filter(|name| *name == "one").count(), 10, "{names:?}");
    assert_eq!(one.connections() + two.connections(), through_agent + 20);
    assert_eq!(stage.dial(service).unwrap().peer_addr().unwrap(), service);
}

#[test]
fn an_agent_that_starts_again_captures_again_and_finds_what_the_kernel_counted_meanwhile() {
    let Some(stage) = Stage::set() else { return };
    let web = stage.web("web");
    let service = stage.address();
    let mut agent = Agent::start(&stage.config().service(Service::http("web", service).to(web.address())));
    assert_eq!(stage.session(service).get("/").unwrap().status, 200);
    agent.sigkill();
    for _ in 0..5 {
        assert_eq!(stage.session(service).get("/").unwrap().status, 200);
    }

    agent.start_again();
    let before = agent.metric("sockway_kernel_connects_total", &[("verdict", "agent")]);
    assert_eq!(stage.session(service).get("/").unwrap().text(), "web");
    let metrics = agent.metrics();
    assert_eq!(metrics.get("sockway_kernel_connects_total", &[("verdict", "agent")]), before + 1.0);
    let fail_open = ["fail_open_no_listener", "fail_open_not_tagged", "fail_open_hung", "fail_open_no_room"]
        .map(|verdict| metrics.get("sockway_kernel_connects_total", &[("verdict", verdict)]));
    assert_eq!(fail_open.iter().sum::<f64>(), 5.0, "counted while no agent ran: {fail_open:?}");
}

#[test]
fn kernel_balanced_connections_do_not_notice_that_the_agent_is_killed_under_load() {
    let Some(stage) = Stage::set() else { return };
    let endpoint = stage.address();
    let service = stage.address();
    let _nginx = Nginx::start(Room::of(&stage.origins), stage.origin(), endpoint, "nginx");
    let mut agent = Agent::start(&stage.config().service(Service::kernel_tcp("web", service).to(endpoint)));

    let mut wrk = Wrk::start(Room::of(&stage.clients), service, 16, Duration::from_secs(4));
    wait::until("the load to arrive", wait::SOON, || {
        agent.metric("sockway_kernel_connects_total", &[("verdict", "balanced")]) >= 16.0
    });
    agent.sigkill();
    assert!(wrk.running());
    while wrk.running() {
        assert_eq!(stage.session(service).get("/").unwrap().text(), "nginx\n");
    }
    let load = wrk.report();
    assert_eq!((load.socket_errors, load.bad_answers), (0, 0), "{load:?}");
    assert!(load.requests > patience::load(1_000) as u64, "{load:?}");
}

#[test]
fn new_connections_of_an_agent_service_work_at_once_when_the_agent_is_killed_under_load() {
    let Some(stage) = Stage::set() else { return };
    let endpoint = stage.address();
    let service = stage.address();
    let _nginx = Nginx::start(Room::of(&stage.origins), stage.origin(), endpoint, "nginx");
    let mut agent = Agent::start(&stage.config().service(Service::http("web", service).to(endpoint)));
    let wrk = Wrk::start(Room::of(&stage.clients), service, 16, Duration::from_secs(2));
    wait::until("the load to arrive", wait::SOON, || {
        agent.metric("sockway_kernel_connects_total", &[("verdict", "agent")]) >= 16.0
    });

    agent.sigkill();
    for _ in 0..200 {
        assert_eq!(stage.session(service).get("/").unwrap().text(), "nginx\n");
    }
    // What was in flight through the agent ended with it, and so may what wrk dials while the kernel still takes the process down: a few
    // errors for each of its connections. Then it is served by the kernel's choice.
    let load = wrk.report();
    assert_eq!(load.bad_answers, 0, "{load:?}");
    assert!(load.socket_errors <= 16 * 8, "{load:?}");
}

/// T25: its listener is there, and its queue fills.
#[test]
fn a_hung_agent_loses_its_connections_to_the_kernel_within_moments() {
    let Some(stage) = Stage::set() else { return };
    let origin = stage.echo("origin");
    let service = stage.address();
    let agent = Agent::start(&stage.config().service(Service::agent_tcp("pipe", service).to(origin.address())));
    assert_eq!(stage.ask_name(service).unwrap(), "origin");
    let before = origin.accepted();

    agent.stop();
    // Its listener still takes connections into the backlog, so only the age of the heartbeat (2 s) tells the kernel.
    let stopped = std::time::Instant::now();
    wait::until("the kernel to balance by itself", Duration::from_secs(10), || {
        let stream = stage.dial(service).expect("a connect never fails");
        stream.set_read_timeout(Some(patience::deadline(Duration::from_millis(100)))).unwrap();
        read_name(&mut &stream).is_ok_and(|name| name == "origin")
    });
    assert!(
        stopped.elapsed() < patience::deadline(Duration::from_secs(5)),
        "noticed only after {:?}",
        stopped.elapsed()
    );
    for _ in 0..20 {
        assert_eq!(stage.ask_name(service).unwrap(), "origin");
    }
    assert!(origin.accepted() >= before + 21);

    agent.signal(Signal::SIGCONT);
    wait::until("the agent to be trusted again", wait::SOON, || {
        let before = agent.metric("sockway_kernel_connects_total", &[("verdict", "agent")]);
        stage.ask_name(service).unwrap() == "origin"
            && agent.metric("sockway_kernel_connects_total", &[("verdict", "agent")]) > before
    });
    agent.metric_reaches("sockway_kernel_connects_total", HUNG, 21.0);
}

#[test]
fn connections_in_the_agent_live_on_when_it_was_only_stopped_for_a_while() {
    let Some(stage) = Stage::set() else { return };
    let origin = stage.echo("origin");
    let service = stage.address();
    let agent = Agent::start(&stage.config().service(Service::agent_tcp("pipe", service).to(origin.address())));
    let mut stream = stage.dial(service).unwrap();
    assert_eq!(read_name(&mut stream).unwrap(), "origin");

    agent.stop();
    std::io::Write::write_all(&mut stream, b"patience").unwrap();
    agent.signal(Signal::SIGCONT);
    let mut back = [0; 8];
    std::io::Read::read_exact(&mut stream, &mut back).unwrap();
    assert_eq!(&back, b"patience");
    assert!(echoes(&stream, &[1; 100_000]).unwrap());
}

#[test]
fn a_decoy_on_the_dead_agents_port_gets_no_connection() {
    let Some(stage) = Stage::set() else { return };
    let origin = stage.echo("origin");
    let service = stage.address();
    let mut agent = Agent::start(&stage.config().service(Service::agent_tcp("pipe", service).to(origin.address())));
    assert_eq!(stage.ask_name(service).unwrap(), "origin");
    let ports = listening_ports(agent.pid());
    assert!(!ports.is_empty(), "the agent listens on loopback");

    // Trap T24: somebody else takes the ports. They are not tagged, so nothing is sent there.
    agent.sigkill();
    let decoys: Vec<_> = ports
        .iter()
        .map(|&port| {
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            sockway_tests::origin::Origin::echo(stage.origin().listen(address).expect("the agent's old port"), "decoy")
        })
        .collect();
    for _ in 0..20 {
        assert_eq!(stage.ask_name(service).unwrap(), "origin");
    }
    assert!(decoys.iter().all(|decoy| decoy.accepted() == 0));
    agent.start_again();
    assert_eq!(stage.ask_name(service).unwrap(), "origin");
    agent.metric_reaches("sockway_kernel_connects_total", &[("verdict", "fail_open_not_tagged")], 20.0);
}

#[test]
fn a_decoy_that_shares_the_living_agents_port_gets_no_connection_either() {
    let Some(stage) = Stage::set() else { return };
    let origin = stage.echo("origin");
    let service = stage.address();
    let agent = Agent::start(&stage.config().service(Service::agent_tcp("pipe", service).to(origin.address())));
    for port in listening_ports(agent.pid()) {
        // On another loopback address the port is free; a lookup that is careless about addresses would find this one.
        let decoy = stage.addresses.with_port(port);
        let decoy = sockway_tests::origin::Origin::echo(stage.origin().listen(decoy).unwrap(), "decoy");
        for _ in 0..5 {
            assert_eq!(stage.ask_name(service).unwrap(), "origin");
        }
        assert_eq!(decoy.accepted(), 0);
    }
}

#[test]
fn an_agent_with_hardly_a_descriptor_left_leaves_new_connections_to_the_kernel_until_there_are_some() {
    let Some(stage) = Stage::set() else { return };
    let origin = stage.echo("origin");
    let service = stage.address();
    let config = stage.config().service(Service::agent_tcp("pipe", service).to(origin.address()));
    let agent = Agent::start_through(&["prlimit", "--nofile=400:400"], &config);
    let by_agent = || agent.metric("sockway_kernel_connects_total", &[("verdict", "agent")]);

    let dial = |_| {
        let mut stream = stage.dial(service).expect("a connect never fails");
        assert_eq!(read_name(&mut stream).expect("an endpoint"), "origin");
        stream
    };
    let streams: Vec<_> = (0..400).map(dial).collect();
    streams.iter().for_each(|stream| assert!(echoes(stream, b"still there").unwrap()));
    assert_eq!(agent.metric("sockway_accept_errors_total", &[]), 0.0);
    let taken = by_agent();
    assert!((10.0..200.0).contains(&taken), "{taken}");
    agent.metric_comes_to("sockway_kernel_connects_total", HUNG, 400.0 - taken);
    assert_eq!(agent.log().matches("hardly any descriptors are left").count(), 1, "{}", agent.log());

    drop(streams);
    wait::until("the agent to take connections again", wait::SOON, || {
        dial(0);
        by_agent() > taken
    });
}

/// Ports on 127.0.0.1 on which a process listens in the test's own namespace.
fn listening_ports(pid: u32) -> Vec<u16> {
    let sockets: Vec<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("the agent's descriptors")
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .filter_map(|target| Some(target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let table = std::fs::read_to_string("/proc/self/net/tcp").expect("the table of sockets");
    let mut ports: Vec<u16> = table
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        // 0A is LISTEN, 0100007F is 127.0.0.1.
        .filter(|words| words[3] == "0A" && sockets.iter().any(|inode| inode == words[9]))
        .filter_map(|words| u16::from_str_radix(words[1].strip_prefix("0100007F:")?, 16).ok())
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}
