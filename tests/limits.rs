//! Limits in the connect hook: exact while they hold, and given back once, however a connection ends (trap T30).

use std::{
    net::{SocketAddr, TcpStream},
    process::Command,
};

use sockway_tests::{
    agent::{self, Agent},
    config::Service,
    patience,
    process::Room,
    socket::disconnect,
    stage::Stage,
    wait,
};

/// Connections of programs that the agent says are open with a service.
fn open(agent: &Agent, service: &str) -> f64 {
    agent.metric("sockway_kernel_endpoint_open", &[("service", service)])
}

fn limited(service: SocketAddr, limits: &str) -> Service {
    Service::kernel_tcp("limited", service).set(&format!("limits: {{ {limits} }}"))
}

/// The error number of a dial that fails.
fn errno(dialled: std::io::Result<TcpStream>) -> Option<i32> {
    dialled.err().and_then(|error| error.raw_os_error())
}

/// Dials until the limit refuses, and holds what it got.
fn fill(stage: &Stage, service: SocketAddr, count: usize) -> Vec<TcpStream> {
    let held: Vec<TcpStream> = (0..count).map(|_| stage.dial(service).expect("within the limit")).collect();
    assert_eq!(errno(stage.dial(service)), Some(libc::ECONNREFUSED), "one too many");
    held
}

#[test]
fn no_more_connections_than_the_limit_are_open_and_each_that_closes_makes_room() {
    let Some(stage) = Stage::set() else { return };
    let (origin, service) = (stage.echo("a"), stage.address());
    let agent = Agent::start(&stage.config().service(limited(service, "connections: 3").to(origin.address())));
    let mut held = fill(&stage, service, 3);
    assert_eq!(open(&agent, "limited"), 3.0);
    let limit = |name: &str| agent.metric(&format!("sockway_kernel_service_limit_{name}"), &[("service", "limited")]);
    assert_eq!((limit("open"), limit("open_max")), (3.0, 3.0));
    for _ in 0..5 {
        held.pop();
        wait::until("the closed connection to be given back", wait::SOON, || open(&agent, "limited") == 2.0);
        held.push(stage.dial(service).expect("there is room"));
        assert_eq!(errno(stage.dial(service)), Some(libc::ECONNREFUSED));
    }
    agent.metric_reaches("sockway_kernel_over_limit_total", &[("limit", "connections")], 6.0);
    drop(held);
    wait::until("everything to be given back", wait::SOON, || open(&agent, "limited") == 0.0 && limit("open") == 0.0);
    drop(fill(&stage, service, 3));
}

#[test]
fn over_the_limit_a_connect_fails_with_the_error_that_was_chosen_or_passes() {
    let Some(stage) = Stage::set() else { return };
    let origin = stage.echo("a");
    let (forbids, passes) = (stage.address(), stage.address());
    // Nobody but this listens on the service's own address: only an untouched dial gets there.
    let _untouched = stage.echo_at("untouched", passes);
    let named = |name, address, over: &str| {
        let limits = format!("limits: {{ connections: 1, over: {over} }}");
        Service::kernel_tcp(name, address).set(&limits).to(origin.address())
    };
    let config = stage.config().service(named("forbids", forbids, "forbid")).service(named("passes", passes, "pass"));
    let agent = Agent::start(&config);
    let _first = stage.dial(forbids).unwrap();
    assert_eq!(errno(stage.dial(forbids)), Some(libc::EPERM));
    let _first = stage.dial(passes).unwrap();
    assert_eq!(stage.ask_name(passes).unwrap(), "untouched");
    for verdict in ["over_limit_forbidden", "over_limit_passed"] {
        assert_eq!(agent.metric("sockway_kernel_connects_total", &[("verdict", verdict)]), 1.0, "{verdict}");
    }
}

#[test]
fn what_a_connection_took_is_given_back_however_it_ends() {
    let Some(stage) = Stage::set() else { return };
    let (origin, mute) = (stage.echo("a"), stage.address());
    let (service, refuses) = (stage.address(), stage.address());
    let two = |name, address| Service::kernel_tcp(name, address).set("limits: { connections: 2 }");
    let agent = Agent::start(
        &stage.config().service(two("good", service).to(origin.address())).service(two("refuses", refuses).to(mute)),
    );
    let empty = |name: &str| wait::until("everything to be given back", wait::SOON, || open(&agent, name) == 0.0);

    // Closed, disconnected, and used again for another connection.
    drop(stage.dial(service).unwrap());
    empty("good");
    let socket = stage.dial(service).unwrap();
    for _ in 0..5 {
        disconnect(&socket).unwrap();
        stage.client().redial(std::os::fd::AsFd::as_fd(&socket), service).unwrap();
    }
    assert_eq!(open(&agent, "good"), 1.0);
    drop(socket);
    empty("good");

    // Refused, again and again.
    for _ in 0..20 {
        assert_eq!(errno(stage.dial(refuses)), Some(libc::ECONNREFUSED));
    }
    empty("refuses");

    // Killed with all it has.
    let program = "import socket, sys, time\nhost, port = sys.argv[1].rsplit(':', 1)\n\
        held = [socket.create_connection((host, int(port))) for _ in range(2)]\nprint('held', flush=True)\ntime.sleep(60)\n";
    let mut command = Command::new("python3");
    command.args(["-c", program, &service.to_string()]);
    let mut holder = stage.clients.spawn(command);
    wait::until("the program to hold both", wait::SOON, || holder.stdout().contains("held"));
    assert_eq!(errno(stage.dial(service)), Some(libc::ECONNREFUSED));
    holder.kill();
    empty("good");
    drop(fill(&stage, service, 2));
}

#[test]
fn limits_hold_while_the_agent_is_dead_and_the_next_agent_does_not_forget() {
    let Some(stage) = Stage::set() else { return };
    let (origin, service) = (stage.echo("a"), stage.address());
    let mut agent = Agent::start(&stage.config().service(limited(service, "connections: 4").to(origin.address())));
    let mut held = fill(&stage, service, 4);
    agent.sigkill();
    assert_eq!(errno(stage.dial(service)), Some(libc::ECONNREFUSED));
    held.truncate(2);
    wait::until("two to be given back", wait::SOON, || {
        held.extend(stage.dial(service).ok());
        held.len() == 4
    });
    agent.start_again();
    assert_eq!(open(&agent, "limited"), 4.0);
    assert_eq!(errno(stage.dial(service)), Some(libc::ECONNREFUSED));
    held.clear();
    wait::until("everything to be given back", wait::SOON, || open(&agent, "limited") == 0.0);
    drop(fill(&stage, service, 4));
}

#[test]
fn a_rate_lets_a_burst_through_and_no_more_and_other_sources_are_not_concerned() {
    let Some(stage) = Stage::set() else { return };
    let (origin, service) = (stage.echo("a"), stage.address());
    // One in a hundred seconds after the burst: no machine is too slow for that. A source is a cgroup here.
    let limits = "per_source: { connections_per_second: 1, burst: 5 }";
    let _agent = Agent::start(
        &stage
            .config()
            .capture(&stage.origins)
            .service(limited(service, limits).set("source: cgroup").to(origin.address())),
    );
    let passed = (0..30).filter(|_| stage.dial(service).is_ok()).count();
    assert!((5..15).contains(&passed), "{passed} of a burst of 5 at one a second");
    assert!(stage.origin().dial(service).is_ok(), "another source has a burst of its own");
}

#[test]
fn all_cores_together_never_get_more_than_the_limit() {
    let Some(stage) = Stage::set() else { return };
    let (origin, service) = (stage.echo("a"), stage.address());
    const LIMIT: usize = 8;
    let agent =
        Agent::start(&stage.config().service(limited(service, &format!("connections: {LIMIT}")).to(origin.address())));
    // Twice as many threads as the limit: it is contended all the time. A million attempts in all.
    let (threads, each) = (16, patience::load(62_500));
    let mut command = Command::new(agent::probe());
    command.args(["crowd", &threads.to_string(), &each.to_string(), &service.to_string()]);
    let output = sockway_tests::process::run(Room::of(&stage.clients), command);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    let number = |name: &str| -> usize {
        let found = text.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        found.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no {name} in {text:?}"))
    };
    assert_eq!(number("attempts"), threads * each);
    assert!(number("most") <= LIMIT, "{text}");
    assert_eq!(number("full"), LIMIT, "all of the limit can be had at once: {text}");
    wait::until("everything to be given back", wait::SOON, || open(&agent, "limited") == 0.0);
    drop(fill(&stage, service, LIMIT));
}
