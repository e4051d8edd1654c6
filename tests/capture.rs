//! Capture: what an unmodified program dials, where it arrives, and what it is told about it.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, UdpSocket},
    os::fd::AsFd,
    process::Command,
};

use sockway_tests::{
    address::mapped,
    agent::{self, Agent},
    cgroup::Cgroup,
    config::Service,
    door::Door,
    origin::{Origin, echoes, read_name},
    patience,
    peers::{self, Nginx, Redis},
    process::{self, Room},
    socket::disconnect,
    stage::Stage,
    wait,
};

/// Names of whoever answers `count` connects in a row.
fn names(stage: &Stage, service: SocketAddr, count: usize) -> Vec<String> {
    (0..count).map(|_| stage.ask_name(service).expect("an endpoint")).collect()
}

fn tally(names: &[String]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    names.iter().for_each(|name| *counts.entry(name.as_str()).or_default() += 1);
    counts
}

#[test]
fn a_kernel_service_takes_its_endpoints_in_turn() {
    let Some(stage) = Stage::set() else { return };
    let origins = ["a", "b", "c"].map(|name| stage.echo(name));
    let service = stage.address();
    let endpoints = origins.iter().map(Origin::address);
    let agent = Agent::start(&stage.config().service(Service::kernel_tcp("turns", service).to_all(endpoints)));

    let names = names(&stage, service, 90);
    assert_eq!(tally(&names), BTreeMap::from([("a", 30), ("b", 30), ("c", 30)]));
    assert!(names.windows(4).all(|four| four[0] == four[3]), "not in turn: {names:?}");
    agent.metric_comes_to("sockway_kernel_connects_total", &[("verdict", "balanced")], 90.0);
}

#[test]
fn weights_are_honoured_exactly_over_every_cycle() {
    let Some(stage) = Stage::set() else { return };
    let (one, two, five) = (stage.echo("one"), stage.echo("two"), stage.echo("five"));
    let service = stage.address();
    let weighted = Service::kernel_tcp("weights", service)
        .weighted(one.address(), 1)
        .weighted(two.address(), 2)
        .weighted(five.address(), 5);
    let _agent = Agent::start(&stage.config().service(weighted));

    let names = names(&stage, service, 80);
    assert_eq!(tally(&names), BTreeMap::from([("one", 10), ("two", 20), ("five", 50)]));
    // Exact from wherever one begins to look, not only in the sum.
    for cycle in names.windows(8) {
        assert_eq!(tally(cycle), BTreeMap::from([("one", 1), ("two", 2), ("five", 5)]));
    }
}

#[test]
fn weighted_random_follows_the_weights_within_four_sigma() {
    let Some(stage) = Stage::set() else { return };
    let weights = [("one", 1_u32), ("three", 3), ("six", 6)];
    let origins = weights.map(|(name, weight)| (stage.echo(name), weight));
    let service = stage.address();
    let chance = Service::kernel_tcp("chance", service).set("balance: weighted_random");
    let chance = origins.iter().fold(chance, |chance, (origin, weight)| chance.weighted(origin.address(), *weight));
    let _agent = Agent::start(&stage.config().service(chance));

    const COUNT: usize = 4_000;
    let names = names(&stage, service, COUNT);
    for (name, weight) in weights {
        let share = f64::from(weight) / 10.0;
        let (mean, sigma) = (COUNT as f64 * share, (COUNT as f64 * share * (1.0 - share)).sqrt());
        let found = tally(&names)[name] as f64;
        assert!((found - mean).abs() < 4.0 * sigma, "{name}: {found} of {COUNT}, {mean} expected, sigma {sigma:.1}");
    }
    // A fixed order would have the right shares, too.
    let runs = names.windows(2).filter(|two| two[0] == two[1]).count();
    assert!(runs > COUNT / 4, "only {runs} repetitions in {COUNT}: that is not random");
}

/// T27: programs compare.
#[test]
fn a_program_sees_the_address_that_it_dialled() {
    let Some(stage) = Stage::set() else { return };
    let origin = stage.echo("far");
    let (kernel, through_agent) = (stage.address(), stage.address());
    let _agent = Agent::start(
        &stage
            .config()
            .service(Service::kernel_tcp("kernel", kernel).to(origin.address()))
            .service(Service::agent_tcp("agent", through_agent).to(origin.address())),
    );
    for service in [kernel, through_agent] {
        let mut stream = stage.dial(service).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), service);
        assert_eq!(read_name(&mut stream).unwrap(), "far");
        assert_eq!(stream.peer_addr().unwrap(), service, "also once bytes have moved");
    }
}

#[test]
fn ipv6_services_work_like_ipv4_ones() {
    let Some(stage) = Stage::set() else { return };
    let origin = stage.echo_at("six", stage.addresses.next_v6());
    let (kernel, through_agent) = (stage.addresses.next_v6(), stage.addresses.next_v6());
    let agent = Agent::start(
        &stage
            .config()
            .service(Service::kernel_tcp("kernel", kernel).to(origin.address()))
            .service(Service::agent_tcp("agent", through_agent).to(origin.address())),
    );
    for service in [kernel, through_agent] {
        let mut stream = stage.dial(service).unwrap();
        assert_eq!(read_name(&mut stream).unwrap(), "six");
        assert_eq!(stream.peer_addr().unwrap(), service);
        assert!(echoes(&stream, b"over IPv6").unwrap());
    }
    agent.metric_comes_to("sockway_kernel_connects_total", &[("verdict", "balanced")], 1.0);
    agent.metric_comes_to("sockway_kernel_connects_total", &[("verdict", "agent")], 1.0);
}

#[test]
fn ipv4_mapped_addresses_reach_ipv4_services() {
    let Some(stage) = Stage::set() else { return };
    let origin = stage.echo("mapped");
    let (kernel, through_agent) = (stage.address(), stage.address());
    let _agent = Agent::start(
        &stage
            .config()
            .service(Service::kernel_tcp("kernel", kernel).to(origin.address()))
            .service(Service::agent_tcp("agent", through_agent).to(origin.address())),
    );
    for service in [kernel, through_agent] {
        let mut stream = stage.dial(mapped(service)).unwrap();
        assert_eq!(read_name(&mut stream).unwrap(), "mapped");
        assert_eq!(stream.peer_addr().unwrap(), mapped(service), "an IPv6 socket names IPv4 peers in mapped form");
    }
}

#[test]
fn what_is_no_service_passes_untouched() {
    let Some(stage) = Stage::set() else { return };
    let (origin, plain) = (stage.echo("captured"), stage.echo("plain"));
    let service = stage.address();
    let agent = Agent::start(&stage.config().service(Service::kernel_tcp("some", service).to(origin.address())));

    assert_eq!(stage.ask_name(plain.address()).unwrap(), "plain");
    assert_eq!(stage.dial(plain.address()).unwrap().peer_addr().unwrap(), plain.address());
    assert_eq!(stage.ask_name(mapped(plain.address())).unwrap(), "plain");
    agent.metric_reaches("sockway_kernel_connects_total", &[("verdict", "not_service")], 3.0);
    // The same address with another port is another thing.
    assert!(stage.dial(stage.address()).is_err());
}

#[test]
fn programs_outside_the_captured_cgroups_are_left_alone() {
    let Some(stage) = Stage::set() else { return };
    let origin = stage.echo("behind");
    let service = stage.address();
    let _agent = Agent::start(&stage.config().service(Service::kernel_tcp("some", service).to(origin.address())));

    let refused = stage.origin().dial(service).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn descendants_of_a_captured_cgroup_are_captured() {
    let Some(stage) = Stage::set() else { return };
    let origin = stage.echo("behind");
    let service = stage.address();
    let _agent = Agent::start(&stage.config().service(Service::kernel_tcp("some", service).to(origin.address())));

    // Made after the agent attached, as a container runtime makes them.
    let (pod, container);
    pod = stage.clients.child("pod");
    container = pod.child("container");
    let door = Door::open(Room::of(&container));
    assert_eq!(read_name(&mut door.dial(service).unwrap()).unwrap(), "behind");
    drop(door);
    drop(container);
}

#[test]
fn nested_rules_capture_a_connection_once() {
    let Some(stage) = Stage::set() else { return };
    let origins = ["a", "b", "c"].map(|name| stage.echo(name));
    let (kernel, through_agent) = (stage.address(), stage.address());
    let pod = stage.clients.child("pod");
    let config = stage
        .config()
        .capture(&pod)
        .service(Service::kernel_tcp("kernel", kernel).to_all(origins.iter().map(Origin::address)))
        .service(Service::agent_tcp("agent", through_agent).to_all(origins.iter().map(Origin::address)));
    let agent = Agent::start(&config);
    let door = Door::open(Room::of(&pod));
    // The hooks of both cgroups see each connect (trap T32): only one may take its turn.
    for service in [kernel, through_agent] {
        let names: Vec<String> = (0..9).map(|_| read_name(&mut door.dial(service).unwrap()).unwrap()).collect();
        assert_eq!(tally(&names), BTreeMap::from([("a", 3), ("b", 3), ("c", 3)]), "{names:?}");
        assert_eq!(door.dial(service).unwrap().peer_addr().unwrap(), service);
    }
    let verdict = |verdict| agent.metric("sockway_kernel_connects_total", &[("verdict", verdict)]);
    assert_eq!((verdict("balanced"), verdict("agent"), verdict("not_service")), (10.0, 10.0, 0.0));
    drop((agent, door));
}

#[test]
fn data_that_goes_with_the_connect_arrives() {
    let Some(stage) = Stage::set() else { return };
    let origin = stage.echo("fast");
    let (kernel, through_agent) = (stage.address(), stage.address());
    let agent = Agent::start(
        &stage
            .config()
            .service(Service::kernel_tcp("kernel", kernel).to(origin.address()))
            .service(Service::agent_tcp("agent", through_agent).to(origin.address())),
    );
    // MSG_FASTOPEN: sendto() is the connect(), which is captured all the same.
    let program = "import socket, sys\n\
        s = socket.socket()\n\
        s.sendto(b'early', 0x20000000, (sys.argv[1], int(sys.argv[2])))\n\
        s.shutdown(socket.SHUT_WR)\n\
        print(b''.join(iter(lambda: s.recv(100), b'')))\n";
    for service in [kernel, through_agent] {
        let (ip, port) = (service.ip().to_string(), service.port().to_string());
        assert_eq!(peers::python(Room::of(&stage.clients), program, &[&ip, &port]), "b'fast\\nearly'\n");
    }
    for verdict in ["balanced", "agent"] {
        agent.metric_comes_to("sockway_kernel_connects_total", &[("verdict", verdict)], 1.0);
    }
}

#[test]
fn udp_to_a_services_address_is_not_touched() {
    let Some(stage) = Stage::set() else { return };
    let origin = stage.echo("behind");
    let service = stage.address();
    let _agent = Agent::start(&stage.config().service(Service::kernel_tcp("some", service).to(origin.address())));

    let socket = UdpSocket::bind(service).unwrap();
    socket.set_read_timeout(Some(wait::soon())).unwrap();
    let program = "import socket, sys\n\
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
        s.connect((sys.argv[1], int(sys.argv[2])))\n\
        s.send(b'datagram')\n";
    peers::python(Room::of(&stage.clients), program, &[&service.ip().to_string(), &service.port().to_string()]);
    let mut bytes = [0; 16];
    let length = socket.recv(&mut bytes).unwrap();
    assert_eq!(&bytes[..length], b"datagram");
}

#[test]
fn a_socket_may_be_connected_elsewhere_after_it_was_refused() {
    let Some(stage) = Stage::set() else { return };
    let (first, plain) = (stage.echo("service"), stage.echo("plain"));
    let (dead, alive) = (stage.address(), stage.address());
    let _agent = Agent::start(
        &stage
            .config()
            .service(Service::kernel_tcp("dead", dead).to(stage.address()))
            .service(Service::kernel_tcp("alive", alive).to(first.address())),
    );
    for (then, name) in [(alive, "service"), (plain.address(), "plain")] {
        let socket = stage.client().begin(dead).unwrap();
        wait::until("the first connect to be refused", wait::SOON, || socket.take_error().unwrap().is_some());
        socket.set_nonblocking(false).unwrap();
        let mut stream = stage.client().redial(socket.as_fd(), then).unwrap();
        stream.set_read_timeout(Some(wait::soon())).unwrap();
        assert_eq!(read_name(&mut stream).unwrap(), name);
        assert_eq!(stream.peer_addr().unwrap(), then, "not the address of the connect before");
    }
}

#[test]
fn a_socket_may_be_disconnected_and_connected_elsewhere() {
    let Some(stage) = Stage::set() else { return };
    let (first, plain) = (stage.echo("service"), stage.echo("plain"));
    let (kernel, through_agent) = (stage.address(), stage.address());
    let _agent = Agent::start(
        &stage
            .config()
            .service(Service::kernel_tcp("kernel", kernel).to(first.address()))
            .service(Service::agent_tcp("agent", through_agent).to(first.address())),
    );
    let mut stream = stage.dial(kernel).unwrap();
    // Trap T30: the same socket again and again, as services and not, each time with nothing left of the time before.
    for (then, name) in
        [(plain.address(), "plain"), (through_agent, "service"), (plain.address(), "plain"), (kernel, "service")]
    {
        disconnect(&stream).unwrap();
        stream = stage.client().redial(stream.as_fd(), then).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), then);
        stream.set_read_timeout(Some(wait::soon())).unwrap();
        assert_eq!(read_name(&mut stream).unwrap(), name);
    }
}

#[test]
fn an_agent_service_may_have_endpoints_of_the_other_family() {
    let Some(stage) = Stage::set() else { return };
    let (four, six) = (stage.echo("four"), stage.echo_at("six", stage.addresses.next_v6()));
    let service = stage.address();
    let both = Service::agent_tcp("both", service).to(four.address()).to(six.address());
    let mut agent = Agent::start(&stage.config().service(both));
    assert_eq!(tally(&names(&stage, service, 10)), BTreeMap::from([("four", 5), ("six", 5)]));
    // The kernel cannot turn an IPv4 socket into an IPv6 one: by itself it takes the endpoints of the socket's own family.
    agent.sigkill();
    assert_eq!(tally(&names(&stage, service, 10)), BTreeMap::from([("four", 10)]));
}

#[test]
fn non_blocking_connects_are_captured_like_blocking_ones() {
    let Some(stage) = Stage::set() else { return };
    let origin = stage.echo("later");
    let (kernel, through_agent) = (stage.address(), stage.address());
    let _agent = Agent::start(
        &stage
            .config()
            .service(Service::kernel_tcp("kernel", kernel).to(origin.address()))
            .service(Service::agent_tcp("agent", through_agent).to(origin.address())),
    );
    for service in [kernel, through_agent] {
        let mut stream = stage.client().begin(service).unwrap();
        wait::until("the connect to complete", wait::SOON, || stream.peer_addr().is_ok());
        assert_eq!(stream.peer_addr().unwrap(), service);
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(wait::soon())).unwrap();
        assert_eq!(read_name(&mut stream).unwrap(), "later");
    }
}

/// T23: else every connection of the agent would come back to it.
#[test]
fn the_agents_own_connections_are_never_captured() {
    let Some(stage) = Stage::set() else { return };
    let origin = stage.echo("origin");
    let service = stage.address();
    let config = stage.config();
    // The agent lives in a cgroup of its own, wherever it was started: capture that, too, and start it in a captured one.
    let own = Cgroup::of_agent(config.instance());
    let config = config.capture(&own).service(Service::agent_tcp("pipe", service).to(origin.address()));
    let agent = Agent::start_in(Room::of(&stage.clients), &config);

    for _ in 0..5 {
        assert_eq!(stage.ask_name(service).unwrap(), "origin");
    }
    let verdict = |verdict| agent.metric("sockway_kernel_connects_total", &[("verdict", verdict)]);
    assert!(verdict("own") >= 5.0, "the agent's upstream connections met the hook, which let them pass");
    assert_eq!((verdict("agent"), verdict("balanced"), verdict("not_service")), (5.0, 0.0, 0.0));
}

#[test]
fn the_original_destination_is_right_however_fast_the_client_is() {
    let Some(stage) = Stage::set() else { return };
    let (left, right) = (stage.address(), stage.address());
    let collect = || Origin::collect(stage.origin().listen(stage.address()).unwrap());
    let ((left_origin, left_lines), (right_origin, right_lines)) = (collect(), collect());
    let agent = Agent::start(
        &stage
            .config()
            .service(Service::agent_tcp("left", left).to(left_origin.address()))
            .service(Service::agent_tcp("right", right).to(right_origin.address())),
    );
    let count = patience::load(4_000);
    let mut command = Command::new(agent::probe());
    command.args(["burst", &count.to_string(), "hello", &left.to_string(), &right.to_string()]);
    let output = process::run(Room::of(&stage.clients), command);
    assert_eq!(peers::stdout(&output), "0\n", "{}", String::from_utf8_lossy(&output.stderr));

    for (lines, service) in [(left_lines, left), (right_lines, right)] {
        wait::until("every connection to arrive", wait::SOON, || lines.lock().unwrap().len() >= count / 2);
        let lines = lines.lock().unwrap();
        assert_eq!(lines.len(), count / 2);
        let end = format!("@{service}");
        let astray: Vec<&String> = lines.iter().filter(|line| !line.ends_with(&end)).collect();
        assert!(astray.is_empty(), "{} connections of {service} went astray: {:?}", astray.len(), astray.first());
    }
    agent.metric_comes_to("sockway_kernel_connects_total", &[("verdict", "agent")], count as f64);
}

#[test]
fn opaque_bytes_pass_through_the_agent_both_ways_with_half_close() {
    let Some(stage) = Stage::set() else { return };
    let origin = stage.echo("pipe");
    let service = stage.address();
    let _agent = Agent::start(&stage.config().service(Service::agent_tcp("pipe", service).to(origin.address())));

    let mut stream = stage.dial(service).unwrap();
    assert_eq!(read_name(&mut stream).unwrap(), "pipe");
    let bytes = sockway_tests::web::pattern(8_000_003);
    assert!(echoes(&stream, &bytes).unwrap());
    stream.write_all(b"last words").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"last words");
    wait::until("the origin's side to end", wait::SOON, || origin.open() == 0);
}

#[test]
fn curl_and_python_reach_kernel_and_http_services() {
    let Some(stage) = Stage::set() else { return };
    let endpoint = stage.address();
    let (kernel, http) = (stage.address(), stage.address());
    let _nginx = Nginx::start(Room::of(&stage.origins), stage.origin(), endpoint, "nginx");
    let _agent = Agent::start(
        &stage
            .config()
            .service(Service::kernel_tcp("kernel", kernel).to(endpoint))
            .service(Service::http("http", http).to(endpoint)),
    );
    let room = Room::of(&stage.clients);
    let program = "import http.client, sys\n\
        c = http.client.HTTPConnection(sys.argv[1], timeout=soon)\n\
        for _ in range(3):\n    c.request('GET', '/'); print(c.getresponse().read().decode(), end='')\n\
        print(c.sock.getpeername())\n";
    for service in [kernel, http] {
        let output = peers::curl(room, &["--write-out", "%{remote_ip}:%{remote_port}", &format!("http://{service}/")]);
        assert_eq!(peers::stdout(&output), format!("nginx\n{service}"));
        let said = peers::python(room, program, &[&service.to_string()]);
        assert_eq!(said, format!("nginx\nnginx\nnginx\n('{}', {})\n", service.ip(), service.port()));
    }
}

#[test]
fn redis_works_over_a_kernel_service_and_through_the_agent() {
    let Some(stage) = Stage::set() else { return };
    let endpoint = stage.address();
    let (kernel, through_agent) = (stage.address(), stage.address());
    let _redis = Redis::start(Room::of(&stage.origins), endpoint);
    let agent = Agent::start(
        &stage
            .config()
            .service(Service::kernel_tcp("kernel", kernel).to(endpoint))
            .service(Service::agent_tcp("agent", through_agent).to(endpoint)),
    );
    let room = Room::of(&stage.clients);
    for service in [kernel, through_agent] {
        assert_eq!(peers::redis(room, "redis-cli", service, &["set", "key", &service.to_string()]), "OK\n");
        assert_eq!(peers::redis(room, "redis-cli", service, &["get", "key"]), format!("{service}\n"));
        let requests = patience::load(20_000).to_string();
        let arguments = ["-q", "-n", &requests, "-c", "20", "-P", "4", "-t", "set,get,lpush"];
        let report = peers::redis(room, "redis-benchmark", service, &arguments);
        assert_eq!(report.matches("requests per second").count(), 3, "{report}");
    }
    agent.metric_reaches("sockway_kernel_connects_total", &[("verdict", "balanced")], 62.0);
    agent.metric_reaches("sockway_kernel_connects_total", &[("verdict", "agent")], 62.0);
}
