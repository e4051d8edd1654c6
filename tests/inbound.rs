//! Connections that come in: the agent has them first, the program and its client meet each other by their own addresses, and without the
//! agent the program serves by itself.

use std::{
    fs,
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    process::{Command, Output},
    thread,
};

use nix::sys::signal::Signal;
use sockway_tests::{
    agent::{Agent, sockway},
    answer::Session,
    config::Config,
    door::Door,
    netns::{Netns, Veth},
    origin::{Origin, echoes, read_name},
    patience,
    peers::{self, Nginx},
    pins,
    process::{self, Process, Room},
    stage::Stage,
    wait,
};

const PORT: u16 = 8080;

/// A pod with a program, and a client at the other end of a wire.
struct Scene {
    stage: Stage,
    pod: Netns,
    outside: Netns,
    wire: Veth,
    /// Into the pod, in the cgroup of origins, which is captured: where programs are that hear who their client is.
    program: Door,
    /// Into the client's namespace, in no captured cgroup.
    client: Door,
}

impl Scene {
    fn set() -> Option<Self> {
        let stage = Stage::set()?;
        let (pod, outside) = (Netns::new(), Netns::new());
        let wire = Veth::between(&outside, &pod);
        let program = Door::open(Room::of(&stage.origins).inside(&pod));
        let client = Door::open(Room::of(&stage.clients).inside(&outside));
        Some(Self { stage, pod, outside, wire, program, client })
    }

    /// A configuration that steers what comes in to the pod; `keys` are those of the rule beside its name and namespace.
    fn config(&self, keys: &str) -> Config {
        Config::new().capture(&self.stage.origins).inbound(&self.rule("web", keys))
    }

    fn rule(&self, name: &str, keys: &str) -> String {
        format!("name: {name}, namespaces: {{ only: [{}] }}, {keys}", self.pod.name())
    }

    /// Starts the agent, which steers the pod when it is ready.
    fn agent(&self, keys: &str) -> Agent {
        Agent::start(&self.config(keys))
    }

    fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.wire.right.into(), port)
    }

    fn at_v6(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.wire.right_v6.into(), port)
    }

    /// A program of the pod that tells each client its name, whom it sees, and then echoes.
    fn program(&self, name: &str, port: u16) -> Origin {
        self.program_at(name, SocketAddr::from(([0; 16], port)))
    }

    fn program_at(&self, name: &str, address: SocketAddr) -> Origin {
        let name = name.to_owned();
        Origin::start(self.program.listen(address).expect("a free port"), move |mut stream, _| {
            writeln!(stream, "{name} {} {}", plain(stream.peer_addr()?), plain(stream.local_addr()?))?;
            io::copy(&mut &*stream, &mut stream)?;
            stream.shutdown(std::net::Shutdown::Write)
        })
    }

    /// Dials from outside.
    fn dial(&self, address: SocketAddr) -> io::Result<TcpStream> {
        patient(self.client.dial(address)?)
    }

    /// What the program at `address` says to a client from outside, who checks that it is about itself.
    fn ask(&self, address: SocketAddr) -> io::Result<String> {
        let mut stream = self.dial(address)?;
        let said = read_name(&mut stream)?;
        let (name, seen) = said.split_once(' ').ok_or(ErrorKind::InvalidData)?;
        assert_eq!(seen, format!("{} {address}", stream.local_addr()?), "whom the program sees, and where");
        assert_eq!(stream.peer_addr()?, address);
        Ok(name.to_owned())
    }
}

/// An IPv4 address as such, also where a socket of IPv6 has it.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn patient(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_read_timeout(Some(wait::soon()))?;
    stream.set_write_timeout(Some(wait::soon()))?;
    Ok(stream)
}

/// Connections that the agent has let in, of the rule `web`.
fn accepted(agent: &Agent) -> f64 {
    agent.metric("sockway_inbound_connections_total", &[("inbound", "web")])
}

fn lookups(agent: &Agent, verdict: &str) -> f64 {
    agent.metric("sockway_kernel_inbound_lookups_total", &[("verdict", verdict)])
}

fn refused(agent: &Agent, reason: &str) -> f64 {
    agent.metric("sockway_inbound_refused_total", &[("inbound", "web"), ("reason", reason)])
}

/// Whether a connection was let in: whoever is refused reads a reset, or cannot even connect.
fn is_in(stream: io::Result<TcpStream>) -> bool {
    match stream.and_then(|mut stream| read_name(&mut stream)) {
        Ok(_) => true,
        Err(error) => {
            let kinds = [ErrorKind::ConnectionReset, ErrorKind::ConnectionRefused, ErrorKind::UnexpectedEof];
            assert!(kinds.contains(&error.kind()), "{error}");
            false
        }
    }
}

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
fn nginx_logs_the_clients_that_http_requests_come_from() {
    let Some(scene) = Scene::set() else { return };
    let room = Room::of(&scene.stage.origins).inside(&scene.pod);
    let name = "$remote_addr $remote_port $server_addr";
    let _nginx = Nginx::start(room, &scene.program, scene.at(PORT), name);
    let agent = scene.agent(&format!("ports: [{PORT}], protocol: http"));
    let url = format!("http://{}/", scene.at(PORT));
    let format = ["--write-out", "%{local_ip} %{local_port} %{remote_ip}\n"];
    // Two requests on one connection of curl, and two connections: each is told of its own client.
    for _ in 0..2 {
        let outside = Room::of(&scene.stage.clients).inside(&scene.outside);
        let said = peers::stdout(&peers::curl(outside, &[&format[..], &[&url, &url]].concat()));
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines.len(), 4, "{said}");
        assert!(lines.iter().all(|line| *line == lines[0]), "{said}");
    }
    assert_eq!(accepted(&agent), 2.0);
    assert_eq!(agent.metric("sockway_requests_total", &[("outcome", "2xx")]), 4.0);
}

#[test]
fn connections_to_the_program_are_never_shared_among_clients() {
    let Some(scene) = Scene::set() else { return };
    let room = Room::of(&scene.stage.origins).inside(&scene.pod);
    let _nginx = Nginx::start(room, &scene.program, scene.at(PORT), "$remote_port");
    let _agent = scene.agent(&format!("ports: [{PORT}], protocol: http"));
    let mut sessions: Vec<Session> = (0..4).map(|_| Session::on(scene.dial(scene.at(PORT)).unwrap())).collect();
    for _ in 0..3 {
        for session in &mut sessions {
            let said = session.get("/").unwrap().text();
            assert_eq!(said.trim(), session.stream().local_addr().unwrap().port().to_string());
        }
    }
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
fn probes_from_the_node_go_to_the_program_whatever_the_rule_says() {
    let Some(scene) = Scene::set() else { return };
    let _program = scene.program("pod", PORT);
    // Trap T34: the agent runs on a node of its own, to which the pod has a wire.
    let node = Netns::new();
    let wire = Veth::between(&node, &scene.pod);
    let kubelet = Door::open(Room::of(&scene.stage.clients).inside(&node));
    let config = scene.config(&format!("ports: [{PORT}], protocol: tcp, allow: [{}]", scene.wire.left));
    let agent = Agent::start_in(Room::default().inside(&node), &config);
    for address in [IpAddr::from(wire.right), IpAddr::from(wire.right_v6)] {
        let mut probe = patient(kubelet.dial(SocketAddr::new(address, PORT)).unwrap()).unwrap();
        let expected = format!("pod {} {}", probe.local_addr().unwrap(), SocketAddr::new(address, PORT));
        assert_eq!(read_name(&mut probe).unwrap(), expected);
    }
    assert_eq!((lookups(&agent, "node"), accepted(&agent)), (2.0, 0.0));
    assert_eq!(scene.ask(scene.at(PORT)).unwrap(), "pod");
    assert_eq!((lookups(&agent, "node"), accepted(&agent)), (2.0, 1.0));

    // An address that the node gets later is the node's, too.
    node.add_address("10.9.8.7/32");
    scene.pod.ip(&["route", "add", "10.9.8.7/32", "via", &wire.left.to_string()]);
    let dial_from = |ip: &str| {
        let mut command = Command::new("python3");
        let program = "import socket, sys\n\
            s = socket.create_connection((sys.argv[2], int(sys.argv[3])), 10, (sys.argv[1], 0)); print(s.makefile().readline())";
        command.args(["-c", program, ip, &wire.right.to_string(), &PORT.to_string()]);
        // Until then the rule refuses it.
        peers::stdout(&process::run(Room::of(&scene.stage.clients).inside(&node), command))
    };
    wait::until("the agent to hear of the node's new address", wait::SOON, || {
        let before = lookups(&agent, "node");
        dial_from("10.9.8.7").starts_with("pod 10.9.8.7:") && lookups(&agent, "node") > before
    });
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
fn no_more_connections_at_once_than_the_rule_says() {
    let Some(scene) = Scene::set() else { return };
    let _program = scene.program("pod", PORT);
    let agent = scene.agent(&format!("ports: [{PORT}], protocol: tcp, limits: {{ connections: 3 }}"));
    let enter = || {
        let stream = scene.dial(scene.at(PORT)).unwrap();
        read_name(&mut &stream).unwrap();
        stream
    };
    let mut inside: Vec<TcpStream> = (0..3).map(|_| enter()).collect();
    for _ in 0..5 {
        assert!(!is_in(scene.dial(scene.at(PORT))));
    }
    assert_eq!((accepted(&agent), refused(&agent, "connections")), (3.0, 5.0));
    inside.pop();
    wait::until("the place to be free", wait::SOON, || is_in(scene.dial(scene.at(PORT))));
    assert_eq!(accepted(&agent), 4.0);
}

#[test]
fn a_source_has_no_more_connections_than_the_rule_gives_it_however_many_workers_there_are() {
    let Some(scene) = Scene::set() else { return };
    let _program = scene.program("pod", PORT);
    let config =
        scene.config(&format!("ports: [{PORT}], protocol: tcp, limits: {{ per_source: {{ connections: 4 }} }}"));
    let agent = Agent::start(&config.set("workers: 4"));
    let other = Netns::new();
    let wire = Veth::between(&other, &scene.pod);
    let elsewhere = Door::open(Room::of(&scene.stage.clients).inside(&other));
    let at_other = SocketAddr::new(wire.right.into(), PORT);
    let mut inside = Vec::new();
    for _ in 0..40 {
        // Who is refused sees it while connecting or while reading: the reset may come before connect(2) looks.
        if let Ok(stream) = scene.dial(scene.at(PORT))
            && read_name(&mut &stream).is_ok()
        {
            inside.push(stream);
        }
    }
    assert_eq!((inside.len(), accepted(&agent), refused(&agent, "source_connections")), (4, 4.0, 36.0));
    assert!(is_in(elsewhere.dial(at_other).and_then(patient)), "another source has its own places");
    inside.clear();
    wait::until("a place to be free", wait::SOON, || is_in(scene.dial(scene.at(PORT))));
}

#[test]
fn connections_that_come_faster_than_the_rule_says_are_refused() {
    let Some(scene) = Scene::set() else { return };
    let _program = scene.program("pod", PORT);
    let limits = "limits: { connections_per_second: 1, burst: 5 }";
    let agent = scene.agent(&format!("ports: [{PORT}], protocol: tcp, {limits}"));
    let began = std::time::Instant::now();
    let passed = (0..50).filter(|_| is_in(scene.dial(scene.at(PORT)))).count();
    let most = 5 + began.elapsed().as_secs() as usize + 1;
    assert!((5..=most).contains(&passed), "{passed} passed, at most {most} may have");
    assert_eq!((accepted(&agent), refused(&agent, "rate")), (passed as f64, 50.0 - passed as f64));
}

#[test]
fn sources_are_allowed_denied_or_passed_by_the_longest_prefix() {
    let Some(scene) = Scene::set() else { return };
    let _program = scene.program("pod", PORT);
    let (own, own_v6) = (scene.wire.left, scene.wire.left_v6);
    let rule = |lists: &str| scene.rule("web", &format!("ports: [{PORT}], protocol: tcp, {lists}"));
    let config = Config::new().capture(&scene.stage.origins);
    let mut agent = Agent::start(&config.with_inbound(&[&rule(&format!("deny: [10.0.0.0/8], allow: [{own}]"))]));
    let with = |agent: &Agent, lists: &str| agent.reload(&config.with_inbound(&[&rule(lists)]));
    let refuses = |address| scene.dial(address).unwrap_err().kind() == ErrorKind::ConnectionRefused;
    assert_eq!(scene.ask(scene.at(PORT)).unwrap(), "pod", "a longer prefix allows");
    assert!(refuses(scene.at_v6(PORT)), "where some are allowed, who is not named is refused");
    assert_eq!((accepted(&agent), lookups(&agent, "denied")), (1.0, 1.0));

    with(&agent, &format!("deny: [{own_v6}]"));
    assert_eq!(scene.ask(scene.at(PORT)).unwrap(), "pod", "where nobody is allowed by name, who is not denied is in");
    assert!(refuses(scene.at_v6(PORT)));
    assert_eq!(accepted(&agent), 2.0);

    with(&agent, &format!("deny: [10.0.0.0/8, '::/0'], pass: [{own}]"));
    assert_eq!(scene.ask(scene.at(PORT)).unwrap(), "pod");
    assert!(refuses(scene.at_v6(PORT)));
    assert_eq!((accepted(&agent), lookups(&agent, "passed")), (2.0, 1.0), "passed means directly");

    // Who is denied stays so while there is no agent.
    agent.sigkill();
    assert!(refuses(scene.at_v6(PORT)));
    assert_eq!(scene.ask(scene.at(PORT)).unwrap(), "pod");
    agent.start_again();
    assert!(refuses(scene.at_v6(PORT)));
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
