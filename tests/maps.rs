//! Tables of the kernel half that are full: whoever finds no room passes, is counted, and the log names the key to raise. And tables of
//! another size: what lives in them is carried over.

use std::{
    collections::VecDeque,
    fs,
    io::Read as _,
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use nix::sys::signal::Signal;
use sockway_tests::{
    agent::Agent,
    config::Service,
    counts::{Counts, limited},
    datagram,
    door::Door,
    netns::Netns,
    origin::{Origin, read_name},
    pins,
    process::Room,
    stage::Stage,
    wait,
};

fn refused(agent: &Agent, map: &str) -> f64 {
    agent.metric("sockway_kernel_map_full_total", &[("map", map)])
}

/// Waits until the log tells once, and only once, that this table is full, and which key to raise.
fn await_warning(agent: &Agent, map: &str, key: &str) {
    let told = || {
        let log = agent.log();
        let is_about =
            |line: &&str| line.contains("is full") && line.contains(map) && line.contains(&format!("maps.{key}"));
        log.lines().filter(is_about).count()
    };
    wait::until(&format!("the log to tell of {map}"), wait::soon(), || told() > 0);
    assert_eq!(told(), 1, "{}", agent.log());
}

#[test]
fn endpoints_that_find_no_room_to_be_counted_are_dialled_all_the_same() {
    let Some(stage) = Stage::set() else { return };
    let (origin, [one, two]) = (stage.echo("origin"), [stage.address(), stage.address()]);
    let config = stage
        .config()
        .set("maps: { dialled_endpoints: 1 }")
        .service(Service::kernel_tcp("one", one).to(origin.address()))
        .service(Service::kernel_tcp("two", two).to(origin.address()));
    let agent = Agent::start(&config);
    assert_eq!(stage.ask_name(one).unwrap(), "origin");
    assert_eq!(refused(&agent, "ENDPOINT_STATS"), 0.0);
    for _ in 0..3 {
        assert_eq!(stage.ask_name(two).unwrap(), "origin");
    }
    for map in ["ENDPOINT_STATS", "LATENCIES"] {
        wait::until(map, wait::soon(), || refused(&agent, map) >= 3.0);
        await_warning(&agent, map, "dialled_endpoints");
    }
    let connects = |service| agent.metric("sockway_kernel_endpoint_connects_total", &[("service", service)]);
    assert_eq!((connects("one"), connects("two")), (1.0, 0.0));
}

#[test]
fn sources_that_a_limit_finds_no_room_to_count_are_not_limited() {
    let Some(stage) = Stage::set() else { return };
    let (origin, [one, two]) = (stage.echo("origin"), [stage.address(), stage.address()]);
    let limited =
        |name, address| Service::kernel_tcp(name, address).set("limits: { connections: 1 }").to(origin.address());
    let config = stage.config().set("maps: { sources: 1 }").service(limited("one", one)).service(limited("two", two));
    let agent = Agent::start(&config);
    let _held = stage.dial(one).expect("the first");
    assert_eq!(refused(&agent, "LIMITS"), 0.0);
    let held: Vec<TcpStream> = (0..3).map(|_| stage.dial(two).expect("what cannot be counted passes")).collect();
    assert_eq!(refused(&agent, "LIMITS"), held.len() as f64);
    await_warning(&agent, "LIMITS", "sources");
}

#[test]
fn udp_sockets_that_find_no_room_are_connected_all_the_same() {
    let Some(stage) = Stage::set() else { return };
    let (origin, service) = (stage.datagrams("origin"), stage.address());
    let config =
        stage.config().set("maps: { udp_sockets: 1 }").service(Service::udp("udp", service).to(origin.address()));
    let agent = Agent::start(&config);
    let sockets: Vec<_> = (0..3).map(|_| stage.socket("127.0.0.1:0")).collect();
    for socket in &sockets {
        socket.connect(service).expect("connect() of UDP");
        socket.send(b"?").expect("sent");
        assert!(datagram::receive(socket).is_ok(), "an answer");
    }
    assert_eq!(refused(&agent, "CONNECTED"), 2.0);
    await_warning(&agent, "CONNECTED", "udp_sockets");
}

#[test]
fn a_connection_that_cannot_be_told_of_is_balanced_in_the_kernel_instead_of_handed_to_the_agent() {
    let Some(stage) = Stage::set() else { return };
    let (origin, service) = (stage.echo("origin"), stage.address());
    let config =
        stage.config().set("maps: { accepting: 1 }").service(Service::agent_tcp("tcp", service).to(origin.address()));
    let agent = Agent::start(&config);
    // Where one connection may wait to be accepted, the next is never established while the agent stands still.
    let pod = Netns::new();
    pod.sysctl("net.core.somaxconn", "0");
    let client = Door::open(Room::of(&stage.clients).inside(&pod));
    let listener = Door::open(Room::of(&stage.origins).inside(&pod)).listen(origin.address()).unwrap();
    let _near = Origin::echo(listener, "near");
    let name = |mut stream: TcpStream| {
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(wait::soon())).unwrap();
        read_name(&mut stream).expect("every connection is served")
    };
    wait::until("the agent to serve the pod", wait::SOON, || client.dial(service).is_ok_and(|it| name(it) == "origin"));
    // How long it may stand still before it is taken for hung, a loaded host may miss. Each worker has a listener.
    wait::until("a connect that finds no room", wait::soon(), || {
        agent.stop();
        let mut begun: Vec<TcpStream> = (0..6).map(|_| client.begin(service).unwrap()).collect();
        agent.signal(Signal::SIGCONT);
        // The others are served too, some of them when their SYN is repeated.
        let last = name(begun.pop().unwrap());
        refused(&agent, "ORIGINALS") > 0.0 && last == "near"
    });
    assert!(agent.metric("sockway_kernel_connects_total", &[("verdict", "fail_open_no_room")]) > 0.0);
}

#[test]
fn sockets_that_find_no_room_for_the_shortcut_talk_by_tcp() {
    let Some(stage) = Stage::set() else { return };
    let (origin, service) = (stage.echo("origin"), stage.address());
    let config = stage
        .config_with_shortcut()
        .set("maps: { shortcut_sockets: 1 }")
        .service(Service::kernel_tcp("tcp", service).set("shortcut: on").to(origin.address()));
    let agent = Agent::start(&config);
    for _ in 0..3 {
        assert_eq!(stage.ask_name(service).unwrap(), "origin");
    }
    wait::until("a socket that finds no room", wait::soon(), || refused(&agent, "SHORTCUT") > 0.0);
    assert_eq!(agent.metric("sockway_kernel_shortcut_sockets_total", &[("result", "server")]), 0.0, "no pair");
}

#[test]
fn what_is_held_is_carried_over_when_a_table_is_made_in_another_size() {
    let Some(stage) = Stage::set() else { return };
    let (origin, service) = (stage.echo("origin"), stage.address());
    let config = stage
        .config()
        .service(Service::kernel_tcp("tcp", service).set("limits: { connections: 1 }").to(origin.address()));
    let room = |agent: &Agent| agent.metric("sockway_kernel_map_entries_max", &[("map", "LIMITS")]);
    let mut agent = Agent::start(&config);
    let held = stage.dial(service).expect("the first");
    for sources in [200_000.0, 9.0] {
        agent.sigterm();
        assert!(agent.wait().success());
        agent.write_config(&config.clone().set(&format!("maps: {{ sources: {sources}, services: 8 }}")).yaml());
        agent.start_again();
        assert_eq!(room(&agent), sources);
        assert!(stage.dial(service).and_then(|mut stream| stream.read(&mut [0])).is_err(), "the first still holds it");
    }
    agent.sigterm();
    assert!(agent.wait().success());
    agent.write_config(&config.yaml());
    agent.start_again();
    assert!(room(&agent) > 9.0, "what is not said is as large as the services need");
    drop(held);
    wait::until("what was held to be given back", wait::soon(), || stage.ask_name(service).is_ok());
}

#[test]
fn what_is_taken_and_given_back_while_a_table_is_made_in_another_size_is_counted_whole() {
    let Some(stage) = Stage::set() else { return };
    let (origin, service) = (stage.echo("origin"), stage.address());
    let config = stage.config().service(limited(Service::kernel_tcp("limited", service)).to(origin.address()));
    let mut agent = Agent::start(&config);
    let (held, is_over) = (stage.dial(service).expect("the first"), AtomicBool::new(false));
    let busy = || {
        let mut streams = VecDeque::new();
        while !is_over.load(Ordering::Relaxed) {
            streams.extend(stage.dial(service));
            if streams.len() > 3 {
                streams.pop_front();
            }
        }
    };
    thread::scope(|scope| {
        (0..2).for_each(|_| drop(scope.spawn(busy)));
        for sources in [9, 200_000, 10, 100_000, 11, 50_000] {
            agent.sigterm();
            assert!(agent.wait().success());
            agent.write_config(&config.clone().set(&format!("maps: {{ sources: {sources} }}")).yaml());
            agent.start_again();
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let counts = Counts::of(agent.instance(), service, stage.client());
    counts.expect(1, "one is left");
    drop(held);
    counts.expect_nothing(stage.client(), "all are closed");
}

#[test]
fn a_table_of_limits_that_has_counted_too_few_does_not_refuse_everything() {
    let Some(stage) = Stage::set() else { return };
    let (origin, service) = (stage.echo("origin"), stage.address());
    let mut agent =
        Agent::start(&stage.config().service(limited(Service::kernel_tcp("limited", service)).to(origin.address())));
    let held: Vec<TcpStream> = (0..3).map(|_| stage.dial(service).expect("within the limit")).collect();
    agent.sigkill();
    // What they took is forgotten; they give it back all the same.
    let table = pins::all(agent.instance()).into_iter().find(|pin| pin.ends_with("LIMITS")).expect("the table");
    fs::remove_file(table).unwrap();
    agent.start_again();
    let another = stage.dial(service).expect("within the limit");
    drop(held);
    drop(another);
    Counts::of(agent.instance(), service, stage.client()).expect_nothing(stage.client(), "all are closed");
}

#[test]
fn endpoints_of_which_too_few_connections_were_counted_do_not_take_all() {
    let Some(stage) = Stage::set() else { return };
    let (origins, service) = ([stage.echo("a"), stage.echo("b")], stage.address());
    let least = Service::kernel_tcp("least", service).set("balance: least_connections");
    let mut agent = Agent::start(&stage.config().service(least.to_all(origins.each_ref().map(Origin::address))));
    let dial = |many: usize| (0..many).map(|_| stage.dial(service).expect("dialled")).collect::<Vec<TcpStream>>();
    let are_open = |[a, b]: [usize; 2]| {
        wait::until("as many to be open", wait::SOON, || (origins[0].open(), origins[1].open()) == (a, b));
    };
    let mut held = dial(10);
    are_open([5, 5]);
    agent.sigkill();
    // What is open is forgotten; it is closed all the same, at one endpoint sooner.
    let table = pins::all(agent.instance()).into_iter().find(|pin| pin.ends_with("ENDPOINT_LIVE")).expect("the table");
    fs::remove_file(table).unwrap();
    agent.start_again();
    let is_of_a = |stream: &mut TcpStream| read_name(stream).unwrap() == "a";
    held.retain_mut(|stream| !is_of_a(stream));
    are_open([0, 5]);
    let _again = dial(10);
    are_open([5, 10]);
}

#[test]
fn a_reload_that_finds_no_room_is_refused_whole_and_names_the_key() {
    let Some(stage) = Stage::set() else { return };
    let (before, after, service) = (stage.echo("before"), stage.echo("after"), stage.address());
    let config = stage.config().set("maps: { endpoints: 1, services: 1 }");
    let with = |origin| config.with_services([Service::kernel_tcp("tcp", service).to(origin)]);
    let agent = Agent::start(&with(before.address()));
    // The one that leaves needs its place for a while longer.
    agent.write_config(&with(after.address()).yaml());
    agent.signal(Signal::SIGHUP);
    let told = |what: &str| wait::until(what, wait::soon(), || agent.log().contains(what));
    told("table ENDPOINTS of the kernel half has no room for 2 entries; raise maps.endpoints");
    assert_eq!(stage.ask_name(service).unwrap(), "before");
    let other = Service::kernel_tcp("other", stage.address()).to(after.address());
    agent.write_config(&with(before.address()).service(other).yaml());
    agent.signal(Signal::SIGHUP);
    told("maps.services: is room for 1, and the file has 2 services; write at least 4");
    assert_eq!(stage.ask_name(service).unwrap(), "before");
}

/// A service whose table has 20 slots, in two chunks of ten, which other weights make another table.
fn uneven(service: SocketAddr, endpoints: [SocketAddr; 2], weight: u32) -> Service {
    Service::kernel_tcp("uneven", service).weighted(endpoints[0], weight).weighted(endpoints[1], 20 - weight)
}

#[test]
fn reloads_in_quick_succession_find_the_room_of_the_tables_that_they_replace() {
    let Some(stage) = Stage::set() else { return };
    let (origins, service) = ([stage.echo("a"), stage.echo("b")], stage.address());
    let endpoints = origins.each_ref().map(Origin::address);
    // Room for two tables: what stands there, and the one that takes its place.
    let config = stage.config().set("maps: { slots: 4 }");
    let with = |weight| config.with_services([uneven(service, endpoints, weight)]);
    let agent = Agent::start(&with(1));
    for weight in [3, 7, 9, 11, 13, 17] {
        agent.reload(&with(weight));
        assert!(stage.ask_name(service).is_ok());
    }
    assert!(!agent.log().contains("is full"), "{}", agent.log());
}

#[test]
fn a_table_of_slots_that_found_no_room_leaves_the_room_that_there_was() {
    let Some(stage) = Stage::set() else { return };
    let (origins, service) = ([stage.echo("a"), stage.echo("b")], stage.address());
    let endpoints = origins.each_ref().map(Origin::address);
    let config = stage.config().set("maps: { slots: 4 }");
    let with = |weight| config.with_services([uneven(service, endpoints, weight)]);
    let mut agent = Agent::start(&with(1));
    for (refused, weight) in [3, 7, 9].into_iter().enumerate() {
        let large = Service::kernel_tcp("uneven", service).weighted(endpoints[0], 1).weighted(endpoints[1], 50);
        agent.write_config(&config.with_services([large]).yaml());
        agent.signal(Signal::SIGHUP);
        wait::until("the reload to be refused", wait::soon(), || {
            agent.log().matches("table SLOTS of the kernel half is full").count() > refused
        });
        assert!(stage.ask_name(service).is_ok(), "what stands goes on");
        agent.reload(&with(weight));
        assert!(stage.ask_name(service).is_ok());
    }
    assert!(!agent.log().contains("does not know of the endpoint's change"), "{}", agent.log());
    // What an agent that is killed has left half replaced is in nobody's way either.
    agent.sigkill();
    agent.write_config(&with(11).yaml());
    agent.start_again();
    assert!(stage.ask_name(service).is_ok());
}

#[test]
fn programs_dial_on_while_the_tables_of_services_are_made_in_another_size() {
    // Trap T37: until they are replaced, the hooks before find what they found, whatever the new agent writes.
    let Some(stage) = Stage::set() else { return };
    let (origin, service) = (stage.echo("origin"), stage.address());
    let (answering, datagrams) = (stage.datagrams("origin"), stage.address());
    let config = stage
        .config()
        .service(Service::kernel_tcp("tcp", service).to(origin.address()))
        .service(Service::udp("udp", datagrams).to(answering.address()));
    let mut agent = Agent::start(&config);
    let is_over = AtomicBool::new(false);
    let busy = || {
        let mut dialled = 0;
        while !is_over.load(Ordering::Relaxed) {
            assert_eq!(stage.ask_name(service).expect("every connect arrives"), "origin");
            let socket = stage.socket("127.0.0.1:0");
            assert_eq!(datagram::ask(&socket, datagrams, "who").expect("every datagram arrives").0, "origin:who");
            dialled += 1;
        }
        dialled
    };
    thread::scope(|scope| {
        let programs = [scope.spawn(busy), scope.spawn(busy)];
        for sizes in ["slots: 9", "services: 9", "endpoints: 9", "slots: 99, endpoints: 99", "services: 99"] {
            agent.sigkill();
            agent.write_config(&config.clone().set(&format!("maps: {{ {sizes} }}")).yaml());
            agent.start_again();
        }
        is_over.store(true, Ordering::Relaxed);
        assert!(programs.into_iter().all(|program| program.join().expect("no program fails") > 0));
    });
}
