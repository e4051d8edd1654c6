//! Namespaces: programs in pods are served where they are, with no wire, route or rule touched; and no pod is kept alive by us.

use std::{fs, io::Write as _, net::SocketAddr, os::fd::AsFd as _, process::Command, thread};

use nix::sys::signal::Signal;
use socket2::SockRef;
use sockway_tests::{
    agent::{self, Agent},
    config::Service,
    door::Door,
    netns::{Netns, Veth},
    origin::{Origin, echoes, read_name},
    patience, peers,
    process::{Process, Room},
    stage::Stage,
    wait,
};

/// An address that no namespace of the tests has a route to: only capture can make a connection to it.
fn unroutable(host: u8) -> SocketAddr {
    SocketAddr::from(([10, 254, 0, host], 80))
}

/// Whether anything listens on loopback in the namespace of this process.
fn listens_beside(pid: u32) -> bool {
    let table = fs::read_to_string(format!("/proc/{pid}/net/tcp")).expect("the namespace's table of sockets");
    table.lines().skip(1).any(|line| line.split_whitespace().nth(3) == Some("0A"))
}

fn name_of(door: &Door, service: SocketAddr) -> std::io::Result<String> {
    let mut stream = door.dial(service)?;
    stream.set_read_timeout(Some(wait::soon()))?;
    read_name(&mut stream)
}

#[test]
fn a_program_in_a_pod_reaches_an_agent_service_to_which_it_has_no_route() {
    let Some(stage) = Stage::set() else { return };
    let origin = stage.echo("host");
    let service = unroutable(1);
    let agent = Agent::start(&stage.config().service(Service::agent_tcp("pipe", service).to(origin.address())));
    let pod = Netns::new();
    let door = Door::open(Room::of(&stage.clients).inside(&pod));

    // The first connects tell the agent of the namespace; until it listens there, they find no endpoint.
    wait::until("the agent to serve the pod", wait::SOON, || name_of(&door, service).is_ok_and(|name| name == "host"));
    let mut stream = door.dial(service).unwrap();
    assert_eq!(stream.peer_addr().unwrap(), service);
    assert_eq!(read_name(&mut stream).unwrap(), "host");
    assert!(echoes(&stream, &[3; 1_000_000]).unwrap());
    agent.metric_reaches("sockway_namespaces", &[], 2.0);
}

#[test]
fn real_programs_in_a_pod_reach_an_http_service() {
    let Some(stage) = Stage::set() else { return };
    let web = stage.web("host");
    let service = unroutable(1);
    let _agent = Agent::start(&stage.config().service(Service::http("web", service).to(web.address())));
    let pod = Netns::new();
    let room = Room::of(&stage.clients).inside(&pod);
    let url = format!("http://{service}/");
    let call = || peers::stdout(&peers::curl(room, &["--write-out", " %{remote_ip}", &url]));
    wait::until("the agent to serve the pod", wait::SOON, || call() == format!("host {}", service.ip()));

    let program = "import http.client, sys\n\
        c = http.client.HTTPConnection(sys.argv[1], timeout=soon)\n\
        c.request('POST', '/echo', body=b'x' * 100000); print(len(c.getresponse().read()))\n";
    assert_eq!(peers::python(room, program, &[&service.to_string()]), "100000\n");
}

#[test]
fn a_pod_that_was_there_before_the_agent_is_found_by_scanning() {
    let Some(stage) = Stage::set() else { return };
    let origin = stage.echo("host");
    let service = unroutable(1);
    let pod = Netns::new();
    let door = Door::open(Room::of(&stage.clients).inside(&pod));
    let _agent = Agent::start(&stage.config().service(Service::agent_tcp("pipe", service).to(origin.address())));

    // Nothing has been dialled in there, so no event of the kernel half has told of it.
    wait::until("the agent to listen in the pod", wait::SOON, || listens_beside(door.pid()));
    wait::until("the agent to serve the pod", wait::SOON, || name_of(&door, service).is_ok());
    assert_eq!(name_of(&door, service).unwrap(), "host");
}

#[test]
fn kernel_balanced_services_connect_pods_directly_and_at_once() {
    let Some(stage) = Stage::set() else { return };
    let (left, right) = (Netns::new(), Netns::new());
    let wire = Veth::between(&left, &right);
    let client = Door::open(Room::of(&stage.clients).inside(&left));
    let server = Door::open(Room::of(&stage.origins).inside(&right));
    let endpoint = SocketAddr::new(wire.right.into(), 8080);
    let _origin = Origin::echo(server.listen(endpoint).unwrap(), "right");
    let service = unroutable(1);
    let mut agent = Agent::start(&stage.config().service(Service::kernel_tcp("pod", service).to(endpoint)));

    let mut stream = client.dial(service).unwrap();
    assert_eq!(read_name(&mut stream).unwrap(), "right");
    assert_eq!(stream.peer_addr().unwrap(), service);
    assert_eq!(stream.local_addr().unwrap().ip(), wire.left, "straight over the wire between the pods");
    agent.sigkill();
    assert!(echoes(&stream, &[9; 1_000_000]).unwrap());
    assert_eq!(name_of(&client, service).unwrap(), "right");
}

#[test]
fn a_deleted_namespace_is_really_gone() {
    let Some(stage) = Stage::set() else { return };
    let origin = stage.echo("host");
    let service = unroutable(1);
    let agent = Agent::start(&stage.config().service(Service::agent_tcp("pipe", service).to(origin.address())));
    let (pod, neighbour) = (Netns::new(), Netns::new());
    let _wire = Veth::between(&pod, &neighbour);
    let beside = Door::open(Room::of(&stage.origins).inside(&neighbour));
    let devices = || fs::read_to_string(format!("/proc/{}/net/dev", beside.pid())).expect("the neighbour's devices");
    let door = Door::open(Room::of(&stage.clients).inside(&pod));
    wait::until("the agent to serve the pod", wait::SOON, || name_of(&door, service).is_ok());
    assert!(devices().contains("wire"));

    // Trap T26: a listener of the agent would keep the namespace alive. The wire's near end goes only when the kernel destroys it.
    drop(door);
    pod.delete();
    wait::until("the kernel to destroy the namespace", wait::SOON, || !devices().contains("wire"));
    assert_eq!(stage.ask_name(service).unwrap(), "host", "elsewhere the service goes on: {}", agent.log());
}

#[test]
fn pods_that_come_and_go_leave_nothing_in_the_agent() {
    let Some(stage) = Stage::set() else { return };
    let origin = stage.echo("host");
    let service = unroutable(1);
    let agent = Agent::start(&stage.config().service(Service::agent_tcp("pipe", service).to(origin.address())));
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", agent.pid())).expect("the agent's descriptors").count();
    let mut after_first = None;
    for _ in 0..10 {
        let pod = Netns::new();
        let door = Door::open(Room::of(&stage.clients).inside(&pod));
        wait::until("the agent to serve the pod", wait::SOON, || name_of(&door, service).is_ok());
        drop(door);
        let inode = pod.inode();
        pod.delete();
        wait::until("the agent to leave the pod", wait::SOON, || !holds(agent.pid(), inode));
        after_first.get_or_insert_with(descriptors);
    }
    // Other tests' namespaces come and go in the meantime, too: each holds a handful of descriptors at most.
    let first = after_first.unwrap();
    wait::until("the agent's descriptors to be closed", wait::SOON, || descriptors() < first + 10);
}

/// Whether a process has a descriptor of this namespace or a thread in it.
fn holds(pid: u32, inode: u64) -> bool {
    let namespace = format!("net:[{inode}]");
    let names = |directory: String, tail: &'static str| {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries.filter_map(move |entry| fs::read_link(entry.path().join(tail)).ok())
    };
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let mut descriptors = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok());
    names(format!("/proc/{pid}/task"), "ns/net").any(|name| name.to_string_lossy() == namespace)
        || descriptors.any(|name| name.to_string_lossy() == namespace)
}

/// T10: an address means nothing without its namespace.
#[test]
fn equal_addresses_in_different_pods_are_not_confused() {
    let Some(stage) = Stage::set() else { return };
    let services = [unroutable(1), unroutable(2)];
    let collected = services.map(|_| Origin::collect(stage.origin().listen(stage.address()).unwrap()));
    let mut config = stage.config();
    for (index, service) in services.into_iter().enumerate() {
        let name = format!("pod-{index}");
        config = config.service(Service::agent_tcp(&name, service).to(collected[index].0.address()));
    }
    let _agent = Agent::start(&config);
    let pods = [Netns::new(), Netns::new()];
    for (pod, service) in pods.iter().zip(services) {
        let door = Door::open(Room::of(&stage.clients).inside(pod));
        wait::until("the agent to serve the pod", wait::SOON, || door.dial(service).is_ok());
    }

    // Both pods dial from 127.0.0.1 and take their ports in the same order.
    let count = patience::load(1_000);
    let burst = |(pod, service): (&Netns, SocketAddr)| {
        let mut command = Command::new(agent::probe());
        command.args(["burst", &count.to_string(), "pod", &service.to_string()]);
        Process::spawn(Room::of(&stage.clients).inside(pod), command)
    };
    let mut bursts: Vec<Process> = pods.iter().zip(services).map(burst).collect();
    bursts.iter_mut().for_each(|burst| assert!(burst.wait(wait::SOON).success()));
    bursts.iter().for_each(|burst| assert_eq!(burst.stdout(), "0\n", "{}", burst.stderr()));
    for ((_, lines), service) in collected.iter().zip(services) {
        let whole = || lines.lock().unwrap().iter().filter(|line| !line.is_empty()).count();
        wait::until("every connection to arrive", wait::SOON, || whole() >= count);
        let end = format!("@{service}");
        assert!(lines.lock().unwrap().iter().all(|line| line.is_empty() || line.ends_with(&end)));
    }
}

/// A client that writes and closes is gone before the agent accepts. Where the kernel keeps no TIME_WAIT state for it (here: none at all,
/// elsewhere when there are too many), the next connection may have its port at once.
#[test]
fn a_port_that_is_used_again_before_the_agent_accepts_is_not_confused() {
    let Some(stage) = Stage::set() else { return };
    let services = [unroutable(1), unroutable(2)];
    let collected = services.map(|_| Origin::collect(stage.origin().listen(stage.address()).unwrap()));
    let mut config = stage.config();
    for (index, service) in services.into_iter().enumerate() {
        config = config.service(Service::agent_tcp(&format!("svc-{index}"), service).to(collected[index].0.address()));
    }
    let agent = Agent::start(&config);
    let pod = Netns::new();
    pod.sysctl("net.ipv4.tcp_max_tw_buckets", "0");
    let door = Door::open(Room::of(&stage.clients).inside(&pod));
    wait::until("the agent to serve the pod", wait::SOON, || door.dial(services[0]).is_ok());

    agent.signal(Signal::SIGSTOP);
    let mut port = 0;
    for (service, line) in services.into_iter().zip(["first\n", "second\n"]) {
        let mut client = wait::until_some("the port to be free", wait::SOON, || {
            let socket = door.make(service).unwrap();
            SockRef::from(&socket).set_reuse_address(true).unwrap();
            SockRef::from(&socket).bind(&SocketAddr::from(([127, 0, 0, 1], port)).into()).ok()?;
            door.redial(socket.as_fd(), service).ok()
        });
        port = client.local_addr().unwrap().port();
        client.write_all(line.as_bytes()).unwrap();
    }
    agent.signal(Signal::SIGCONT);
    wait::until("the second to arrive", wait::SOON, || !collected[1].1.lock().unwrap().is_empty());
    assert_eq!(*collected[1].1.lock().unwrap(), ["second"], "what was sent to the second service");
    // Of the first the kernel has said that it was reset; what it sent may have come before.
    assert!(collected[0].1.lock().unwrap().iter().all(|line| line == "first"));
    assert_eq!(agent.metric("sockway_connections_closed_total", &[("reason", "no_original_destination")]), 0.0);
}

#[test]
fn pods_that_dial_at_the_same_time_are_all_found() {
    let Some(stage) = Stage::set() else { return };
    let web = stage.web("host");
    let service = unroutable(1);
    let _agent = Agent::start(&stage.config().service(Service::http("web", service).to(web.address())));
    let pods: Vec<Netns> = (0..8).map(|_| Netns::new()).collect();
    thread::scope(|scope| {
        for pod in &pods {
            scope.spawn(|| {
                let door = Door::open(Room::of(&stage.clients).inside(pod));
                wait::until("the agent to serve the pod", wait::SOON, || door.dial(service).is_ok());
                let stream = door.dial(service).unwrap();
                stream.set_read_timeout(Some(wait::soon())).unwrap();
                assert_eq!(sockway_tests::answer::Session::on(stream).get("/").unwrap().text(), "host");
            });
        }
    });
}

#[test]
fn ipv6_works_in_a_pod() {
    let Some(stage) = Stage::set() else { return };
    let origin = stage.echo_at("host", stage.addresses.next_v6());
    let service: SocketAddr = "[fd00:254::1]:80".parse().unwrap();
    let _agent = Agent::start(&stage.config().service(Service::agent_tcp("pipe", service).to(origin.address())));
    let pod = Netns::new();
    let door = Door::open(Room::of(&stage.clients).inside(&pod));
    wait::until("the agent to serve the pod", wait::SOON, || name_of(&door, service).is_ok_and(|name| name == "host"));
    assert_eq!(door.dial(service).unwrap().peer_addr().unwrap(), service);
}
