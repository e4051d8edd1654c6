//! Ways to dial: whatever call a program makes, and whatever it is written in, its connection arrives, and it sees what it would see if
//! Sockway were not there.

use std::{
    env, fs,
    io::{Read, Write},
    net::{IpAddr, SocketAddr},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use sockway_tests::{
    address::mapped,
    agent::Agent,
    cgroup::Cgroup,
    config::{Config, Service},
    door::Door,
    netns::{Netns, Veth},
    origin::{Origin, echoes, read_name},
    pair::accept,
    peers, pins,
    process::{self, Process, Room},
    socket::{disconnect, readable},
    stage::Stage,
    wait,
};

/// What `ways/ways.c` can do with an address that needs no more words.
const WAYS: [&str; 8] =
    ["blocking", "non-blocking", "fast-open", "fast-open-connect", "io-uring", "mptcp", "let-go", "exec"];

/// An address that no namespace of the tests has a route to, unless it is given one.
fn unroutable(host: u8) -> SocketAddr {
    SocketAddr::from(([10, 254, 0, host], 80))
}

/// The C program, compiled once for each run of this suite; where there is no compiler, `SOCKWAY_TEST_WAYS` names it.
fn ways() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        if let Some(program) = env::var_os("SOCKWAY_TEST_WAYS") {
            return program.into();
        }
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
        fs::create_dir_all(directory).expect("the directory of the tests' own files");
        let program = directory.join(format!("ways-{}", std::process::id()));
        let mut command = Command::new("gcc");
        command.args(["-Wall", "-Wextra", "-Werror", "-O1", "-o"]).arg(&program);
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("ways/ways.c"));
        let output = process::run(Room::default(), command);
        assert!(output.status.success(), "gcc: {}", String::from_utf8_lossy(&output.stderr));
        program
    })
}

/// Dials `address` in the given way from a room, and gives what the program has seen: the endpoint's name, the peer's address, its own.
#[track_caller]
fn dial(room: Room<'_>, way: &str, address: SocketAddr, more: &[&str]) -> String {
    let mut command = Command::new(ways());
    command.args([way, &address.ip().to_string(), &address.port().to_string()]).args(more);
    let output = process::run(room, command);
    assert!(output.status.success(), "{way} to {address}: {}", String::from_utf8_lossy(&output.stderr));
    peers::stdout(&output).trim_end().to_owned()
}

fn connects(agent: &Agent, verdict: &str) -> f64 {
    agent.metric("sockway_kernel_connects_total", &[("verdict", verdict)])
}

#[track_caller]
fn every_way_arrives(stage: &Stage, config: Config, shortcut: &str) {
    let (four, six) = (stage.echo("four"), stage.echo_at("six", stage.addresses.next_v6()));
    let kernel = [stage.address(), stage.addresses.next_v6()];
    let through_agent = [stage.address(), stage.addresses.next_v6()];
    let mut config = config;
    for (index, origin) in [&four, &six].into_iter().enumerate() {
        let kernel = Service::kernel_tcp(&format!("kernel-{index}"), kernel[index]).to(origin.address());
        let agent = Service::agent_tcp(&format!("agent-{index}"), through_agent[index]).to(origin.address());
        config = config.service(kernel.set(shortcut)).service(agent.set(shortcut));
    }
    let agent = Agent::start(&config);
    for way in WAYS {
        for service in kernel.into_iter().chain(through_agent) {
            let (name, own) = if service.is_ipv4() { ("four", "127.0.0.1:0") } else { ("six", "[::1]:0") };
            let seen = dial(Room::of(&stage.clients), way, service, &[]);
            assert!(seen.starts_with(&format!("{name} {service} {own}")), "{way} to {service}: {seen}");
        }
    }
    // Twice in each family and, where a way dials twice, twice more.
    let each = 2.0 * (WAYS.len() + 1) as f64;
    assert_eq!((connects(&agent, "balanced"), connects(&agent, "agent")), (each, each));
}

#[test]
fn every_way_to_connect_arrives_and_sees_honest_names() {
    // Traps T9 and T30 among them: MPTCP, non-blocking connects, a socket that is let go and dials again.
    let Some(stage) = Stage::set() else { return };
    every_way_arrives(&stage, stage.config(), "shortcut: off");
}

#[test]
fn every_way_to_connect_arrives_with_the_shortcut_too() {
    // Traps T6 and T9: early bytes are not overtaken, a subflow of MPTCP is not enrolled.
    let Some(stage) = Stage::set() else { return };
    every_way_arrives(&stage, stage.config_with_shortcut(), "shortcut: on");
}

#[test]
fn data_in_the_syn_is_not_lost_and_not_overtaken() {
    // Trap T6: with TCP Fast Open there are bytes under way before the connection is established.
    let Some(stage) = Stage::set() else { return };
    let pod = Netns::new();
    pod.add_address("10.64.255.1/32");
    let room = Room::of(&stage.clients).inside(&pod);
    // Client, server, data without a cookie at both ends, every listener (Documentation/networking/ip-sysctl.rst).
    peers::python(room, "open('/proc/sys/net/ipv4/tcp_fastopen', 'w').write(str(0x607))", &[]);
    let server = Door::open(Room::of(&stage.origins).inside(&pod));
    let endpoint = SocketAddr::from(([10, 64, 255, 1], 8080));
    let _inside = Origin::echo(server.listen(endpoint).unwrap(), "inside");
    let outside = stage.echo("outside");
    let services = [unroutable(1), unroutable(2)];
    let agent = Agent::start(
        &stage
            .config_with_shortcut()
            .service(Service::kernel_tcp("kernel", services[0]).to(endpoint).set("shortcut: on"))
            .service(Service::agent_tcp("agent", services[1]).to(outside.address()).set("shortcut: on")),
    );
    let door = Door::open(room);
    wait::until("the agent to serve the pod", wait::SOON, || door.dial(services[1]).is_ok());

    for way in ["fast-open", "fast-open-connect"] {
        for (service, name) in services.into_iter().zip(["inside", "outside"]) {
            let seen = dial(room, way, service, &[]);
            assert!(seen.starts_with(&format!("{name} {service} ")), "{way}: {seen}");
            assert!(seen.ends_with(" syn-data"), "{way} to {name}: nothing was proven: {seen}\n{}", agent.log());
        }
    }
}

#[test]
fn a_socket_that_was_refused_dials_again_and_arrives() {
    // Trap T30, in C: the same socket, without a look back.
    let Some(stage) = Stage::set() else { return };
    let origin = stage.echo("right");
    let (wrong, kernel, through_agent) = (stage.address(), stage.address(), stage.address());
    let agent = Agent::start(
        &stage
            .config()
            .service(Service::kernel_tcp("wrong", wrong).to(stage.address()))
            .service(Service::kernel_tcp("kernel", kernel).to(origin.address()))
            .service(Service::agent_tcp("agent", through_agent).to(origin.address())),
    );
    for service in [kernel, through_agent] {
        let seen = dial(Room::of(&stage.clients), "again", service, &[&wrong.port().to_string()]);
        assert_eq!(seen, format!("right {service} 127.0.0.1:0"));
    }
    agent.metric_comes_to("sockway_kernel_handshakes_failed_total", &[], 2.0);
}

#[test]
fn event_loops_of_other_languages_arrive() {
    let Some(stage) = Stage::set() else { return };
    let origin = stage.echo("loop");
    let (kernel, through_agent) = (stage.address(), stage.address());
    let _agent = Agent::start(
        &stage
            .config()
            .service(Service::kernel_tcp("kernel", kernel).to(origin.address()))
            .service(Service::agent_tcp("agent", through_agent).to(origin.address())),
    );
    let program = "import asyncio, sys\n\
        async def once(i):\n\
        \x20   r, w = await asyncio.open_connection(sys.argv[1], int(sys.argv[2]))\n\
        \x20   name = await r.readline(); w.write(b'x' * 100000); w.write_eof()\n\
        \x20   return name, len(await r.read()), w.get_extra_info('peername') == (sys.argv[1], int(sys.argv[2]))\n\
        async def main(): return await asyncio.gather(*map(once, range(20)))\n\
        print(set(asyncio.run(main())))\n";
    for service in [kernel, through_agent] {
        let arguments = [service.ip().to_string(), service.port().to_string()];
        let seen = peers::python(Room::of(&stage.clients), program, &[&arguments[0], &arguments[1]]);
        assert_eq!(seen, "{(b'loop\\n', 100000, True)}\n");
    }
}

#[test]
fn files_and_pipes_are_sent_and_received_without_a_copy() {
    let Some(stage) = Stage::set() else { return };
    let origin = stage.echo("zero");
    let (kernel, through_agent) = (stage.address(), stage.address());
    let _agent = Agent::start(
        &stage
            .config()
            .service(Service::kernel_tcp("kernel", kernel).to(origin.address()))
            .service(Service::agent_tcp("agent", through_agent).to(origin.address())),
    );
    let program = "import os, socket, sys, tempfile, threading\n\
        s = socket.create_connection((sys.argv[1], int(sys.argv[2]))); f = s.makefile('rb', buffering=0)\n\
        name = f.readline(); data = os.urandom(1 << 20)\n\
        t = tempfile.TemporaryFile(); t.write(data); t.flush()\n\
        def send():\n\
        \x20   at = 0\n\
        \x20   while at < len(data): at += os.sendfile(s.fileno(), t.fileno(), at, len(data) - at)\n\
        \x20   s.shutdown(socket.SHUT_WR)\n\
        threading.Thread(target=send).start()\n\
        r, w = os.pipe(); back = b''\n\
        while n := os.splice(s.fileno(), w, 65536): back += os.read(r, n)\n\
        print(name, back == data)\n";
    for service in [kernel, through_agent] {
        let arguments = [service.ip().to_string(), service.port().to_string()];
        let seen = peers::python(Room::of(&stage.clients), program, &[&arguments[0], &arguments[1]]);
        assert_eq!(seen, "b'zero\\n' True\n");
    }
}

#[test]
fn a_socket_that_is_handed_to_another_process_stays_what_it_is() {
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
        // The door hands it over with SCM_RIGHTS, to this process, which is in no captured cgroup; and back to be dialled anew.
        let mut stream = stage.dial(service).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), service);
        assert_eq!(read_name(&mut stream).unwrap(), "far");
        assert!(echoes(&stream, &[5; 100_000]).unwrap());
        // Its new holder lets it go and dials with it: the socket is its maker's still, and so is its capture.
        disconnect(&stream).unwrap();
        socket2::SockRef::from(&stream).connect(&service.into()).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), service);
        assert_eq!(read_name(&mut stream).unwrap(), "far");
    }
}

#[test]
fn an_address_that_the_program_has_chosen_is_kept() {
    let Some(stage) = Stage::set() else { return };
    let peers_seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let origin = Origin::start(stage.origin().listen(stage.address()).unwrap(), {
        let seen = std::sync::Arc::clone(&peers_seen);
        move |mut stream, _| {
            seen.lock().unwrap().push(stream.peer_addr()?);
            stream.write_all(b"ok\n")
        }
    });
    let (kernel, through_agent) = (stage.address(), stage.address());
    let _agent = Agent::start(
        &stage
            .config()
            .service(Service::kernel_tcp("kernel", kernel).to(origin.address()))
            .service(Service::agent_tcp("agent", through_agent).to(origin.address())),
    );
    let program = "import socket, sys\n\
        for port in 0, 0:\n\
        \x20   s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n\
        \x20   s.bind(('127.7.7.7', port)); s.connect((sys.argv[1], int(sys.argv[2])))\n\
        \x20   print(s.getsockname()[0], s.recv(3))\n";
    for service in [kernel, through_agent] {
        let arguments = [service.ip().to_string(), service.port().to_string()];
        let seen = peers::python(Room::of(&stage.clients), program, &[&arguments[0], &arguments[1]]);
        assert_eq!(seen, "127.7.7.7 b'ok\\n'\n".repeat(2));
    }
    let from_it = peers_seen.lock().unwrap().iter().filter(|peer| peer.ip() == IpAddr::from([127, 7, 7, 7])).count();
    assert_eq!(from_it, 2, "a balanced socket reaches its endpoint from there");
}

#[test]
fn a_program_that_listens_dials_its_own_service_and_reaches_itself() {
    let Some(stage) = Stage::set() else { return };
    let (kernel, through_agent) = (stage.address(), stage.address());
    let endpoint = stage.address();
    // In the captured cgroup, as a pod that is an endpoint of the service it calls.
    let _own = Origin::echo(stage.client().listen(endpoint).unwrap(), "myself");
    // And one that listens on the very address that is a service: who dials it comes to the service's endpoint.
    let shadowed = Origin::echo(stage.client().listen(kernel).unwrap(), "shadowed");
    let agent = Agent::start(
        &stage
            .config()
            .service(Service::kernel_tcp("kernel", kernel).to(endpoint))
            .service(Service::agent_tcp("agent", through_agent).to(endpoint)),
    );
    assert_eq!(stage.ask_name(kernel).unwrap(), "myself");
    assert_eq!(stage.ask_name(through_agent).unwrap(), "myself");
    assert_eq!(shadowed.accepted(), 0);
    agent.reload(&stage.config().service(Service::agent_tcp("agent", through_agent).to(endpoint)));
    assert_eq!(stage.ask_name(kernel).unwrap(), "shadowed", "no service any more: untouched");
}

#[test]
fn a_pod_in_the_hosts_network_and_a_process_of_the_host_are_captured_alike() {
    let Some(stage) = Stage::set() else { return };
    let origin = stage.echo("far");
    let (kernel, through_agent) = (stage.address(), stage.address());
    let agent = Agent::start(
        &stage
            .config()
            .service(Service::kernel_tcp("kernel", kernel).to(origin.address()))
            .service(Service::agent_tcp("agent", through_agent).to(origin.address())),
    );
    // A cgroup of its own and the network namespace of the host: what `hostNetwork: true` makes.
    let pod = stage.clients.child("pod");
    let door = Door::open(Room::of(&pod));
    for service in [kernel, through_agent] {
        for dialled in [service, mapped(service)] {
            let mut stream = door.dial(dialled).unwrap();
            assert_eq!(stream.peer_addr().unwrap(), dialled);
            assert_eq!(read_name(&mut stream).unwrap(), "far");
        }
    }
    assert_eq!((connects(&agent, "balanced"), connects(&agent, "agent")), (2.0, 2.0));
    drop(door);
    drop(pod);
}

/// A `connect4` program of somebody else on a cgroup, for as long as the process lives.
fn foreign(cgroup: &Path, words: &[&str]) -> Process {
    let mut command = Command::new(ways());
    command.args(["foreign", &cgroup.to_string_lossy()]).args(words);
    let process = Process::spawn(Room::default(), command);
    wait::until("the foreign program to be attached", wait::SOON, || {
        assert!(process.stderr().is_empty(), "{}", process.stderr());
        process.stdout().contains("attached")
    });
    process
}

#[test]
fn what_a_foreign_hook_on_a_nearer_cgroup_says_is_respected() {
    // Trap T32: its program runs first.
    let Some(stage) = Stage::set() else { return };
    let (origin, elsewhere) = (stage.echo("ours"), stage.echo("elsewhere"));
    let service = stage.address();
    let agent = Agent::start(&stage.config().service(Service::kernel_tcp("some", service).to(origin.address())));
    let (changed, denied) = (stage.clients.child("changed"), stage.clients.child("denied"));
    let to = elsewhere.address();
    let changing = foreign(changed.directory(), &[&to.ip().to_string(), &to.port().to_string()]);
    let denying = foreign(denied.directory(), &[]);

    let door = Door::open(Room::of(&changed));
    let mut stream = door.dial(service).unwrap();
    assert_eq!(read_name(&mut stream).unwrap(), "elsewhere", "a changed destination is final");
    assert_eq!(stream.peer_addr().unwrap(), to, "that peer's name is not ours to change");
    let shut = Door::open(Room::of(&denied));
    assert_eq!(shut.dial(service).unwrap_err().raw_os_error(), Some(libc::EPERM));
    assert_eq!(stage.ask_name(service).unwrap(), "ours", "elsewhere the service goes on");
    assert_eq!(connects(&agent, "not_service"), 1.0);
    drop((changing, denying, door, shut));
    drop((changed, denied));
}

#[test]
fn a_foreign_hook_that_lets_no_other_be_is_named_and_keeps_the_agent_from_no_cgroup_but_its_own() {
    let Some(stage) = Stage::set() else { return };
    let (origin, service) = (stage.echo("ours"), stage.address());
    let config = Config::new().service(Service::kernel_tcp("some", service).to(origin.address()));
    let (alone, other) = (stage.clients.child("alone"), stage.clients.child("other"));
    let below = alone.child("below");
    let _foreign = foreign(alone.directory(), &["alone"]);
    // One that a pattern means among others.
    let agent = Agent::start(&config.clone().rule(&format!("{}/*", stage.clients.path()), "shortcut: off"));
    let told = format!("on {} lets no other be there", alone.directory().display());
    assert!(agent.log().contains(&told), "{}", agent.log());
    let captures = |cgroup: &Cgroup| {
        let links = pins::directory(agent.instance()).join("links");
        let id = cgroup.directory().metadata().expect("a cgroup").ino();
        ["connect6", "sendmsg4"].map(|hook| links.join(format!("{id}-{hook}")).exists())
    };
    assert_eq!((captures(&alone), captures(&other)), ([false; 2], [true; 2]), "all of what is dialled or nothing");
    assert_eq!(read_name(&mut Door::open(Room::of(&other)).dial(service).unwrap()).unwrap(), "ours");
    agent.reload(&config.clone().capture(&other));
    // One that is asked for, at the cgroup or below it.
    for cgroup in [&alone, &below] {
        let refused = agent.metric("sockway_config_reloads_total", &[("result", "refused")]);
        agent.write_config(&config.clone().capture(cgroup).yaml());
        wait::until("the file to be refused", wait::SOON, || {
            agent.metric("sockway_config_reloads_total", &[("result", "refused")]) > refused
        });
        let line = format!("to {}: program ", cgroup.directory().display());
        let told = format!("{told}; have it attached with BPF_F_ALLOW_MULTI");
        let is_told = |log: &str| log.lines().any(|log| log.contains(&line) && log.contains(&told));
        assert!(is_told(&agent.log()), "{}", agent.log());
    }
    assert_eq!(read_name(&mut Door::open(Room::of(&other)).dial(service).unwrap()).unwrap(), "ours");
    drop(below);
    drop((alone, other));
}

#[test]
fn a_captured_socket_has_the_address_that_it_would_have_had() {
    let Some(stage) = Stage::set() else { return };
    let (origin, plain) = (stage.echo("host"), stage.echo_at("six", stage.addresses.next_v6()));
    let services = [unroutable(1), "[fd00:254::1]:80".parse().unwrap()];
    let agent = Agent::start(
        &stage
            .config()
            .service(Service::agent_tcp("four", services[0]).to(origin.address()))
            .service(Service::agent_tcp("six", services[1]).to(plain.address())),
    );
    let (pod, neighbour) = (Netns::new(), Netns::new());
    let wire = Veth::between(&pod, &neighbour);
    pod.ip(&["route", "add", "10.254.0.0/16", "via", &wire.right.to_string()]);
    pod.add_address("fd00:64::7/128");
    pod.ip(&["route", "add", "fd00:254::/64", "dev", "lo", "src", "fd00:64::7"]);
    let door = Door::open(Room::of(&stage.clients).inside(&pod));
    wait::until("the agent to serve the pod", wait::SOON, || {
        services.iter().all(|service| door.dial(*service).is_ok_and(|mut stream| read_name(&mut stream).is_ok()))
    });

    let own: [IpAddr; 2] = [wire.left.into(), "fd00:64::7".parse().unwrap()];
    for (dialled, own) in [(services[0], own[0]), (services[1], own[1])] {
        wait::until("the socket's own name to be honest", wait::SOON, || {
            door.dial(dialled).unwrap().local_addr().unwrap().ip() == own
        });
        let stream = door.dial(dialled).unwrap();
        assert_eq!((stream.local_addr().unwrap().ip(), stream.peer_addr().unwrap()), (own, dialled));
        assert_eq!(read_name(&mut &stream).unwrap(), if dialled.is_ipv4() { "host" } else { "six" });
        assert!(echoes(&stream, &[1; 300_000]).unwrap());
    }
    let stream = door.dial(mapped(services[0])).unwrap();
    assert_eq!(stream.local_addr().unwrap().ip(), IpAddr::from(wire.left.to_ipv6_mapped()));
    assert_eq!(read_name(&mut &stream).unwrap(), "host");
    agent.metric_reaches("sockway_kernel_sources_total", &[("result", "bound")], 3.0);

    // What was bound for us is not bound for good: towards loopback the socket has a loopback address again (trap T30).
    let inside = Door::open(Room::of(&stage.origins).inside(&pod));
    let local = Origin::echo(inside.listen("127.0.0.1:9000".parse().unwrap()).unwrap(), "local");
    let stream = door.dial(services[0]).unwrap();
    disconnect(&stream).unwrap();
    socket2::SockRef::from(&stream).connect(&local.address().into()).unwrap();
    assert_eq!(stream.local_addr().unwrap().ip(), IpAddr::from([127, 0, 0, 1]));
    assert_eq!(read_name(&mut &stream).unwrap(), "local");
}

#[test]
fn a_change_of_a_pods_address_is_followed() {
    let Some(stage) = Stage::set() else { return };
    let origin = stage.echo("host");
    let service = unroutable(1);
    let _agent = Agent::start(&stage.config().service(Service::agent_tcp("pipe", service).to(origin.address())));
    let pod = Netns::new();
    for address in ["10.64.255.1/32", "10.64.255.2/32"] {
        pod.add_address(address);
    }
    let route = |verb: &str, source: &str| pod.ip(&["route", verb, "10.254.0.0/16", "dev", "lo", "src", source]);
    let door = Door::open(Room::of(&stage.clients).inside(&pod));
    wait::until("the agent to serve the pod", wait::SOON, || door.dial(service).is_ok());
    let own = || door.dial(service).unwrap().local_addr().unwrap().ip().to_string();

    assert_eq!(own(), "127.0.0.1", "without a route to the service there is no address to keep");
    for (verb, source) in [("add", "10.64.255.1"), ("replace", "10.64.255.2")] {
        route(verb, source);
        wait::until("the change to be followed", wait::SOON, || own() == source);
    }
    pod.ip(&["route", "del", "10.254.0.0/16"]);
    wait::until("the change to be followed", wait::SOON, || own() == "127.0.0.1");
}

#[test]
fn a_socket_on_a_device_is_balanced_in_the_kernel_and_not_sent_to_loopback() {
    let Some(stage) = Stage::set() else { return };
    let (left, right) = (Netns::new(), Netns::new());
    let wire = Veth::between(&left, &right);
    let server = Door::open(Room::of(&stage.origins).inside(&right));
    let endpoint = SocketAddr::new(wire.right.into(), 8080);
    let _origin = Origin::echo(server.listen(endpoint).unwrap(), "right");
    let service = unroutable(1);
    let agent = Agent::start(&stage.config().service(Service::agent_tcp("pipe", service).to(endpoint)));
    let room = Room::of(&stage.clients).inside(&left);
    let door = Door::open(room);
    wait::until("the agent to serve the pod", wait::SOON, || {
        door.dial(service).is_ok() && connects(&agent, "agent") > 0.0
    });

    let program = "import os, socket, sys\n\
        device = next(name for _, name in socket.if_nameindex() if name != 'lo')\n\
        s = socket.socket(); s.settimeout(soon); s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())\n\
        s.connect((sys.argv[1], int(sys.argv[2]))); print(s.recv(6), s.getpeername()[0])\n";
    let seen = peers::python(room, program, &[&service.ip().to_string(), &service.port().to_string()]);
    assert_eq!(seen, format!("b'right\\n' {}\n", service.ip()));
    assert_eq!(connects(&agent, "fail_open_bound_device"), 1.0);
}

#[test]
fn a_reader_of_bytes_sees_no_difference_when_its_own_service_name_is_dialled_in_mapped_form() {
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
        for way in ["blocking", "non-blocking", "fast-open", "io-uring", "mptcp"] {
            let seen = dial(Room::of(&stage.clients), way, mapped(service), &[]);
            assert!(seen.starts_with(&format!("mapped {} ", mapped(service))), "{way}: {seen}");
        }
        let mut stream = stage.dial(mapped(service)).unwrap();
        let mut name = [0; 7];
        stream.read_exact(&mut name).unwrap();
        assert_eq!(&name, b"mapped\n");
    }
}

#[test]
fn what_the_kernel_dials_by_itself_is_left_alone() {
    // Trap T29: a thread of the kernel that works for a captured program. MPTCP's path manager is one: it dials what a server announces.
    let Some(stage) = Stage::set() else { return };
    let (left, right) = (Netns::new(), Netns::new());
    let wire = Veth::between(&left, &right);
    let (first, second) = (SocketAddr::new(wire.right.into(), 8080), SocketAddr::from(([10, 64, 254, 2], 8080)));
    right.add_address("10.64.254.2/32");
    left.ip(&["route", "add", "10.64.254.2/32", "via", &wire.right.to_string()]);
    for (netns, accepted) in [(&left, "2"), (&right, "0")] {
        netns.ip(&["mptcp", "limits", "set", "subflows", "2", "add_addr_accepted", accepted]);
    }
    right.ip(&["mptcp", "endpoint", "add", "10.64.254.2", "signal"]);
    let server = "import socket\n\
        l = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262); l.bind(('0.0.0.0', 8080)); l.listen()\n\
        print('ready', flush=True); s, _ = l.accept(); s.send(b'x'); s.recv(1); s.recv(1)\n";
    let mut command = Command::new("python3");
    command.args(["-c", server]);
    let server = Process::spawn(Room::of(&stage.origins).inside(&right), command);
    wait::until("the server to listen", wait::SOON, || server.stdout().contains("ready"));
    // What is announced is the address of a service: a program that dialled it would be balanced, to nowhere.
    let nowhere = SocketAddr::new(wire.right.into(), 9);
    let agent = Agent::start(
        &stage
            .config()
            .service(Service::kernel_tcp("first", unroutable(1)).to(first))
            .service(Service::kernel_tcp("second", second).to(nowhere)),
    );
    let client = "import socket\n\
        s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262); s.connect(('10.254.0.1', 80))\n\
        s.recv(1); s.send(b'y'); s.recv(1)\n";
    let mut command = Command::new("python3");
    command.args(["-c", client]);
    let client = Process::spawn(Room::of(&stage.clients).inside(&left), command);
    wait::until("the kernel to dial by itself", wait::SOON, || {
        assert!(client.stderr().is_empty(), "{}", client.stderr());
        connects(&agent, "kernel") > 0.0
    });
    wait::until("the second subflow to join the first", wait::SOON, || joined(client.pid()) > 0);
    assert_eq!(connects(&agent, "balanced"), 1.0);
}

/// How many further subflows of MPTCP connections were answered in the network namespace of this process (`MPJoinSynAckRx`).
fn joined(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/net/netstat")).expect("the namespace's counters");
    let mut lines = text.lines().filter(|line| line.starts_with("MPTcpExt:"));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let found = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "MPJoinSynAckRx");
    found.expect("this kernel counts it").1.parse().expect("a number")
}

#[test]
fn what_was_not_read_of_the_connection_before_is_not_read_of_the_one_after() {
    // Trap T30 with the shortcut: the kernel keeps a socket enrolled that is let go, with what came by redirect.
    let Some(stage) = Stage::set() else { return };
    let (service, endpoint) = (stage.address(), stage.address());
    let listener = stage.origin().listen(endpoint).unwrap();
    let plain = Origin::echo(stage.origin().listen(stage.address()).unwrap(), "plain");
    let _agent = Agent::start(
        &stage.config_with_shortcut().service(Service::kernel_tcp("pair", service).to(endpoint).set("shortcut: on")),
    );
    let client = stage.dial(service).unwrap();
    let again = |address: SocketAddr| {
        disconnect(&client).unwrap();
        socket2::SockRef::from(&client).connect(&address.into()).unwrap();
    };
    for round in 0..10_u8 {
        (&accept(&listener)).write_all(b"never read").unwrap();
        wait::until("the bytes to be there", wait::SOON, || readable(&client));
        again(service);
        let server = accept(&listener);
        (&server).write_all(&[round]).unwrap();
        let mut byte = [0];
        (&client).read_exact(&mut byte).unwrap();
        assert_eq!(byte[0], round, "bytes of the connection before");
        (&server).write_all(b"nor this").unwrap();
        wait::until("the bytes to be there", wait::SOON, || readable(&client));
        again(plain.address());
        assert_eq!(read_name(&mut &client).unwrap(), "plain");
        again(service);
    }
}
