//! Connections that come in: the agent has them first, the program and its client meet each other by their own addresses, and without the
//! agent the program serves by itself. See `inbound_limits.rs` for who is let in, and `inbound_http.rs` for requests.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    process::{Command, Output},
    thread,
};

use nix::sys::signal::Signal;
use sockway_tests::{
    agent::{Agent, sockway},
    config::Config,
    door::Door,
    netns::{Netns, Veth},
    origin::{Origin, echoes, read_name},
    patience, peers, pins,
    pod::{PORT, Scene, accepted, is_in, lookups, patient},
    process::{Process, Room},
    wait,
};

#[test]
fn program_and_client_meet_each_other_by_their_own_addresses_through_the_agent() {
    let Some(scene) = Scene::set() else { return };
    let _program = scene.program("pod", PORT);
    let agent = scene.agent(&format!("ports: [{PORT}], protocol: tcp"));
    // Trap T35: the way back is the usual one, with reverse-path filters in force, for nobody's address is changed.
    scene.pod.sysctl("net.ipv4.conf.all.rp_filter", "1");
    for (count, address) in [scene.at(PORT), scene.at_v6(PORT)].into_iter().enumerate() {
        assert_eq!(scene.ask(address).unwrap(), "pod");
        assert_eq!(accepted(&agent), count as f64 + 1.0);
    }
    let stream = scene.dial(scene.at(PORT)).unwrap();
    read_name(&mut &stream).unwrap();
    assert!(echoes(&stream, &[7; 3_000_000]).unwrap());
    drop(stream);
    wait::until("the agent to be done with it", wait::SOON, || {
        agent.metric("sockway_inbound_connections_active", &[("inbound", "web")]) == 0.0
    });
    // Trap T33: the agent's own dials pass, so nothing goes round.
    assert!(lookups(&agent, "agent") >= 3.0 && lookups(&agent, "self") >= 3.0);
    assert_eq!(accepted(&agent), 3.0);
}

#[test]
fn accept_itself_gives_a_python_server_the_address_of_the_client() {
    let Some(scene) = Scene::set() else { return };
    let program = "import socket, sys\n\
        s = socket.socket(socket.AF_INET6); s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)\n\
        s.bind(('::', int(sys.argv[1]))); s.listen(8); print('listening', flush=True)\n\
        while True:\n\
        \x20c, a = s.accept(); c.sendall(f'{a[0]} {a[1]} {c.getpeername()[1]} {c.getsockname()[0]}\\n'.encode()); c.close()\n";
    let mut command = Command::new("python3");
    command.args(["-c", program, &PORT.to_string()]);
    let server = Process::spawn(Room::of(&scene.stage.origins).inside(&scene.pod), command);
    wait::until("python to listen", wait::SOON, || server.stdout().contains("listening"));
    let agent = scene.agent(&format!("ports: [{PORT}], protocol: tcp"));
    for address in [scene.at(PORT), scene.at_v6(PORT)] {
        let mut stream = scene.dial(address).unwrap();
        let said = read_name(&mut stream).unwrap();
        let local = stream.local_addr().unwrap();
        let mapped = |ip: IpAddr| if ip.is_ipv4() { format!("::ffff:{ip}") } else { ip.to_string() };
        let expected = format!("{} {port} {port} {}", mapped(local.ip()), mapped(address.ip()), port = local.port());
        assert_eq!(said, expected);
    }
    assert_eq!(accepted(&agent), 2.0);
}

#[test]
fn other_ports_and_other_namespaces_are_untouched() {
    let Some(scene) = Scene::set() else { return };
    let (_served, _other) = (scene.program("served", PORT), scene.program("other", PORT + 1));
    let neighbour = Netns::new();
    let wire = Veth::between(&scene.outside, &neighbour);
    let beside = Door::open(Room::of(&scene.stage.origins).inside(&neighbour));
    let address = SocketAddr::new(wire.right.into(), PORT);
    let _neighbour = Origin::echo(beside.listen(address).unwrap(), "neighbour");
    let agent = scene.agent(&format!("ports: [{PORT}], protocol: tcp"));
    assert_eq!(scene.ask(scene.at(PORT + 1)).unwrap(), "other");
    assert_eq!(read_name(&mut scene.dial(address).unwrap()).unwrap(), "neighbour");
    assert_eq!(scene.dial(scene.at(PORT + 2)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert_eq!((accepted(&agent), lookups(&agent, "agent")), (0.0, 0.0));
    assert!(lookups(&agent, "other_port") >= 2.0);
    assert_eq!(scene.ask(scene.at(PORT)).unwrap(), "served");
    assert_eq!(accepted(&agent), 1.0);
}

#[test]
fn a_program_that_dials_its_own_namespace_does_so_directly() {
    let Some(scene) = Scene::set() else { return };
    let _program = scene.program("pod", PORT);
    let agent = scene.agent(&format!("ports: [{PORT}], protocol: tcp"));
    // Trap T33: the interface is not always the loopback, the addresses tell.
    for address in [scene.at(PORT), scene.at_v6(PORT), SocketAddr::from(([127, 0, 0, 1], PORT))] {
        let mut stream = patient(scene.program.dial(address).unwrap()).unwrap();
        let expected = format!("pod {} {address}", stream.local_addr().unwrap());
        assert_eq!(read_name(&mut stream).unwrap(), expected);
    }
    assert_eq!(accepted(&agent), 0.0);
    assert!(lookups(&agent, "self") >= 3.0);
}

#[test]
fn a_killed_agent_leaves_the_program_serving_at_the_next_connection_and_its_successor_takes_over() {
    let Some(scene) = Scene::set() else { return };
    let _program = scene.program("pod", PORT);
    let mut agent = scene.agent(&format!("ports: [{PORT}], protocol: tcp"));
    for round in 0..3 {
        assert_eq!(scene.ask(scene.at(PORT)).unwrap(), "pod");
        assert_eq!(accepted(&agent), 1.0, "round {round}");
        agent.sigkill();
        // At once: no connection fails, not even the first.
        for _ in 0..20 {
            assert_eq!(scene.ask(scene.at(PORT)).unwrap(), "pod");
            assert_eq!(scene.ask(scene.at_v6(PORT)).unwrap(), "pod");
        }
        agent.start_again();
        // Two seconds after its last heartbeat it passes for hung, which a slow machine may reach before the last of them. The hook is
        // asked for packets: a late one of a connection that was cut may be among them.
        let direct = lookups(&agent, "fail_open_no_listener") + lookups(&agent, "fail_open_hung");
        assert!(direct >= 40.0 * f64::from(round + 1), "round {round}: {direct}");
    }
    assert!(lookups(&agent, "fail_open_no_listener") >= 1.0, "none came before the heartbeat was old");
}

#[test]
fn a_drained_agent_finishes_what_it_has_and_leaves_the_rest_to_the_program() {
    let Some(scene) = Scene::set() else { return };
    let _program = scene.program("pod", PORT);
    let mut agent = scene.agent(&format!("ports: [{PORT}], protocol: tcp"));
    let stream = scene.dial(scene.at(PORT)).unwrap();
    read_name(&mut &stream).unwrap();
    agent.sigterm();
    wait::until("the agent to drain", wait::SOON, || agent.admin("/ready").status != 200);
    assert_eq!(scene.ask(scene.at(PORT)).unwrap(), "pod");
    assert!(echoes(&stream, &[1; 100_000]).unwrap());
    assert_eq!(accepted(&agent), 1.0);
    drop(stream);
    assert!(agent.wait().success());
    assert_eq!(scene.ask(scene.at(PORT)).unwrap(), "pod");
}

#[test]
fn a_hung_agent_is_passed_by() {
    let Some(scene) = Scene::set() else { return };
    let _program = scene.program("pod", PORT);
    let agent = scene.agent(&format!("ports: [{PORT}], protocol: tcp"));
    assert_eq!(scene.ask(scene.at(PORT)).unwrap(), "pod");
    agent.stop();
    let answers = || {
        let mut stream = scene.client.dial(scene.at(PORT)).ok()?;
        stream.set_read_timeout(Some(patience::deadline(std::time::Duration::from_millis(200)))).ok()?;
        read_name(&mut stream).ok()
    };
    // Trap T25: nothing answers until its heartbeat is old.
    wait::until_some("the hook to find that the agent hangs", wait::SOON, answers);
    for _ in 0..20 {
        assert_eq!(scene.ask(scene.at(PORT)).unwrap(), "pod");
    }
    agent.signal(Signal::SIGCONT);
    wait::until("the agent to have connections again", wait::SOON, || {
        let before = accepted(&agent);
        scene.ask(scene.at(PORT)).unwrap() == "pod" && accepted(&agent) > before
    });
    assert!(lookups(&agent, "fail_open_hung") >= 20.0);
}

#[test]
fn a_reload_takes_ports_up_and_lets_them_go() {
    let Some(scene) = Scene::set() else { return };
    let (_one, _two) = (scene.program("one", PORT), scene.program("two", PORT + 1));
    let config = scene.config(&format!("ports: [{PORT}], protocol: tcp"));
    let agent = Agent::start(&config);
    let both = |agent: &Agent| {
        assert_eq!(scene.ask(scene.at(PORT)).unwrap(), "one");
        assert_eq!(scene.ask(scene.at(PORT + 1)).unwrap(), "two");
        accepted(agent)
    };
    assert_eq!(both(&agent), 1.0);
    let kept = scene.dial(scene.at(PORT)).unwrap();
    read_name(&mut &kept).unwrap();

    agent
        .reload(&config.with_inbound(&[&scene.rule("web", &format!("ports: [{}-{}], protocol: tcp", PORT, PORT + 1))]));
    assert_eq!(both(&agent), 4.0, "the second port is taken up, the count goes on");
    agent.reload(&config.with_inbound(&[&scene.rule("web", &format!("ports: [{}], protocol: tcp", PORT + 1))]));
    assert_eq!(both(&agent), 5.0, "the first port is let go");
    agent.reload(&config.with_inbound(&[]));
    assert_eq!(scene.ask(scene.at(PORT)).unwrap(), "one");
    assert!(!agent.metrics().has("sockway_inbound_connections_total", &[]));
    assert!(!link_pins(agent.instance()), "a namespace that no rule names has no link");
    agent.reload(&config);
    assert_eq!(both(&agent), 1.0, "a new rule counts anew");
    assert!(echoes(&kept, &[5; 100_000]).unwrap(), "a connection outlives its rule");
}

/// Whether an instance has a link of the sk_lookup hook pinned.
fn link_pins(instance: &str) -> bool {
    pins::all(instance).iter().any(|pin| pin.to_string_lossy().ends_with("-sk_lookup"))
}

#[test]
fn a_program_that_does_not_listen_refuses_through_the_agent_too() {
    let Some(scene) = Scene::set() else { return };
    let agent = scene.agent(&format!("ports: [{PORT}], protocol: tcp"));
    assert!(!is_in(scene.dial(scene.at(PORT))));
    wait::until("the failure to be counted", wait::SOON, || {
        agent.metric("sockway_inbound_connect_failures_total", &[("inbound", "web")]) == 1.0
    });
    // Nothing is set down: the program is asked anew each time.
    let _program = scene.program("pod", PORT);
    assert_eq!(scene.ask(scene.at(PORT)).unwrap(), "pod");
}

#[test]
fn a_program_that_starts_again_has_its_port_though_the_agent_still_has_its_clients() {
    let Some(scene) = Scene::set() else { return };
    let program = scene.program("before", PORT);
    let _agent = scene.agent(&format!("ports: [{PORT}], protocol: tcp"));
    let mut held = scene.dial(scene.at(PORT)).unwrap();
    assert!(read_name(&mut held).unwrap().starts_with("before"));
    let mut held_v6 = scene.dial(scene.at_v6(PORT)).unwrap();
    assert!(read_name(&mut held_v6).unwrap().starts_with("before"));
    drop(program);
    let _again = scene.program("after", PORT);
    assert_eq!(scene.ask(scene.at(PORT)).unwrap(), "after");
    drop((held, held_v6));
}

#[test]
fn a_reset_passes_through_in_both_directions() {
    let Some(scene) = Scene::set() else { return };
    let listener = scene.program.listen(SocketAddr::from(([0; 16], PORT))).unwrap();
    let _agent = scene.agent(&format!("ports: [{PORT}], protocol: tcp"));
    let reset =
        |stream: &TcpStream| socket2::SockRef::from(stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    for by_client in [true, false] {
        let client = scene.dial(scene.at(PORT)).unwrap();
        let (program, _) = listener.accept().unwrap();
        let program = patient(program).unwrap();
        (&client).write_all(b"x").unwrap();
        (&program).read_exact(&mut [0]).unwrap();
        let (breaks, hears) = if by_client { (client, program) } else { (program, client) };
        reset(&breaks);
        drop(breaks);
        assert_eq!((&hears).read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
}

#[test]
fn a_namespace_that_is_deleted_while_it_is_served_is_really_gone() {
    let Some(scene) = Scene::set() else { return };
    let origin = scene.program("pod", PORT);
    let agent = scene.agent(&format!("ports: [{PORT}], protocol: http"));
    let Scene { stage, pod, outside, wire, program, client } = scene;
    // Trap T26: neither listeners, nor links, nor connections of clients who do not leave keep it alive.
    let idle = client.dial(SocketAddr::new(wire.right.into(), PORT)).unwrap();
    let busy = client.dial(SocketAddr::new(wire.right.into(), PORT)).unwrap();
    (&busy).write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    wait::until("the connections to be served", wait::SOON, || accepted(&agent) == 2.0);
    let beside = Door::open(Room::of(&stage.origins).inside(&outside));
    let devices = || fs::read_to_string(format!("/proc/{}/net/dev", beside.pid())).expect("the client's devices");
    assert!(devices().contains("wire"));
    drop((origin, program));
    pod.delete();
    // The wire's near end goes only when the kernel destroys the namespace.
    wait::until("the kernel to destroy the namespace", wait::SOON, || !devices().contains("wire"));
    wait::until("the link's pin to be gone", wait::SOON, || !link_pins(agent.instance()));
    drop((idle, busy));
}

#[test]
fn namespaces_that_come_later_are_steered_and_equal_addresses_in_them_are_not_confused() {
    let Some(scene) = Scene::set() else { return };
    let config = Config::new().capture(&scene.stage.origins);
    let rule = |name: &str, netns: &Netns, port| {
        format!("name: {name}, namespaces: {{ only: [{}] }}, ports: [{port}], protocol: tcp", netns.name())
    };
    let (one, two) = (Netns::new(), Netns::new());
    let agent = Agent::start(&config.inbound(&rule("one", &one, PORT)).inbound(&rule("two", &two, PORT)));
    let count = |name: &str| agent.metric("sockway_inbound_connections_total", &[("inbound", name)]);
    for (name, pod, ip) in [("one", &one, "10.201.0.1"), ("two", &two, "10.201.0.1")] {
        // The client is in the pod itself, at another address than the program.
        pod.add_address(&format!("{ip}/32"));
        pod.add_address("10.201.0.2/32");
        let door = Door::open(Room::of(&scene.stage.origins).inside(pod));
        let address: SocketAddr = format!("{ip}:{PORT}").parse().unwrap();
        let _program = Origin::echo(door.listen(address).unwrap(), name);
        let program = "import socket, sys\n\
            s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10, ('10.201.0.2', 0)); print(s.makefile().readline(), end='')";
        let room = Room::of(&scene.stage.clients).inside(pod);
        wait::until("the pod to be steered", wait::SOON, || {
            assert_eq!(peers::python(room, program, &[ip, &PORT.to_string()]), format!("{name}\n"));
            count(name) >= 1.0
        });
    }
}

#[test]
fn many_connections_at_once_are_spread_over_the_workers_and_each_meets_its_own_client() {
    let Some(scene) = Scene::set() else { return };
    let _program = scene.program("pod", PORT);
    let agent = scene.agent(&format!("ports: [{PORT}], protocol: tcp"));
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..100 {
                    assert_eq!(scene.ask(scene.at(PORT)).unwrap(), "pod");
                }
            });
        }
    });
    assert_eq!(accepted(&agent), 800.0);
    let introduced = |result| agent.metric("sockway_kernel_introductions_total", &[("result", result)]);
    assert_eq!((introduced("published"), introduced("taken")), (800.0, 800.0));
}

#[test]
fn detach_takes_the_links_away_and_programs_serve_by_themselves() {
    let Some(scene) = Scene::set() else { return };
    let _program = scene.program("pod", PORT);
    let mut agent = scene.agent(&format!("ports: [{PORT}], protocol: tcp, deny: [{}]", scene.wire.left));
    assert!(scene.dial(scene.at(PORT)).is_err());
    agent.sigkill();
    assert!(scene.dial(scene.at(PORT)).is_err(), "the link holds without the agent");
    let output: Output = sockway(&["detach", "--instance", agent.instance()]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(pins::all(agent.instance()), Vec::<std::path::PathBuf>::new());
    assert_eq!(scene.ask(scene.at(PORT)).unwrap(), "pod");
}
