//! Connections that come in: how many are let in, how fast, and from where.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpStream},
    process::Command,
};

use sockway_tests::{
    agent::Agent,
    config::Config,
    door::Door,
    netns::{Netns, Veth},
    origin::read_name,
    peers,
    pod::{PORT, Scene, accepted, is_in, lookups, patient, refused},
    process::{self, Room},
    wait,
};

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
    // A SYN that was late is sent, and looked up, once more.
    let looked_up = lookups(&agent, "node");
    assert_eq!((looked_up >= 2.0, accepted(&agent)), (true, 0.0), "{looked_up}");
    assert_eq!(scene.ask(scene.at(PORT)).unwrap(), "pod");
    assert_eq!((lookups(&agent, "node"), accepted(&agent)), (looked_up, 1.0));

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
