//! What a connection takes of its service's limits, of its source's and of its endpoint's open connections is given back exactly once,
//! however the connection ends and whoever ends it (trap T30). See `outlived.rs` for those that outlive what they belong to.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream, UdpSocket},
    os::fd::AsFd,
    process::Command,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use socket2::SockRef;
use sockway_tests::{
    agent::{self, Agent},
    config::Service,
    counts::{Counts, LIMIT, limited},
    datagram::ask,
    door::Door,
    netns::{Netns, Veth},
    origin::Origin,
    patience, peers,
    process::{self, Process, Room},
    socket::disconnect,
    stage::Stage,
    wait,
};

/// A service's address to which no namespace of the tests has a route.
const UNROUTABLE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 254, 0, 1)), 80);

#[track_caller]
fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.expect_err("an error").raw_os_error().expect("one of the system's")
}

fn of_kernel(service: SocketAddr) -> Service {
    limited(Service::kernel_tcp("limited", service))
}

/// A listener that accepts nothing, with its queue full: every further SYN is dropped, as by a host that is gone.
fn silent(door: &Door, address: SocketAddr) -> (TcpStream, Vec<TcpStream>) {
    let listener = door.make(address).unwrap();
    SockRef::from(&listener).bind(&address.into()).unwrap();
    SockRef::from(&listener).listen(0).unwrap();
    let full = (0..4).map(|_| door.begin(address).unwrap()).collect();
    (listener, full)
}

/// Gives up connecting, or a connection whose bytes nobody acknowledges, after so long (`TCP_USER_TIMEOUT`, RFC 5482).
fn give_up_after(socket: &TcpStream, patience: Duration) {
    SockRef::from(socket).set_tcp_user_timeout(Some(patience)).unwrap();
}

#[test]
fn a_connect_that_never_gets_to_dial_takes_nothing_and_one_that_fails_is_given_back_with_its_socket() {
    let Some(stage) = Stage::set() else { return };
    let (near, far) = (Netns::new(), Netns::new());
    let wire = Veth::between(&near, &far);
    let endpoint = SocketAddr::new(wire.right.into(), 80);
    let room = Room::of(&stage.clients).inside(&near);
    let (client, server) = (Door::open(room), Door::open(Room::of(&stage.origins).inside(&far)));
    let _origin = Origin::echo(server.listen(endpoint).unwrap(), "far");
    let nowhere = SocketAddr::from(([10, 254, 0, 2], 80));
    let of_nowhere = Service::kernel_tcp("nowhere", nowhere).set("limits: { connections: 1 }");
    let config = stage.config().service(of_kernel(UNROUTABLE).to(endpoint));
    let agent = Agent::start(&config.service(of_nowhere.to(SocketAddr::from(([10, 255, 0, 9], 80)))));
    let counts = Counts::of(agent.instance(), UNROUTABLE, &client);
    let balanced = || agent.metric("sockway_kernel_connects_total", &[("verdict", "balanced")]);

    // EINVAL: the address is too short, or of no length at all. No hook runs.
    let short = "import ctypes, socket, sys\nip, port = sys.argv[1].rsplit(':', 1)\n\
        raw = socket.AF_INET.to_bytes(2, sys.byteorder) + int(port).to_bytes(2, 'big') + socket.inet_aton(ip) + bytes(8)\n\
        libc = ctypes.CDLL(None, use_errno=True)\n\
        for length in (8, 1, -1):\n    s = socket.socket(); print(libc.connect(s.fileno(), raw, length), ctypes.get_errno())\n";
    assert_eq!(peers::python(room, short, &[&UNROUTABLE.to_string()]), "-1 22\n".repeat(3));
    assert_eq!((balanced(), counts.taken()), (0.0, [0; 3]));

    // EINVAL behind the hook: from a loopback address there is no way to the endpoint.
    let bound = client.make(UNROUTABLE).unwrap();
    SockRef::from(&bound).bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    assert_eq!(errno(client.redial(bound.as_fd(), UNROUTABLE)), libc::EINVAL);
    assert_eq!(balanced(), 1.0, "the hook ran");
    drop(bound);
    counts.expect(0, "EINVAL");

    // ENETUNREACH: no route to the endpoint. The only connection that the service has is to be had again and again.
    for _ in 0..5 {
        assert_eq!(errno(client.dial(nowhere)), libc::ENETUNREACH);
    }

    // EADDRNOTAVAIL: there is one local port, and it is in use.
    near.sysctl("net.ipv4.ip_local_port_range", "40000 40000");
    let first = client.dial(UNROUTABLE).unwrap();
    let failed = client.make(UNROUTABLE).unwrap();
    for _ in 0..5 {
        assert_eq!(errno(client.redial(failed.as_fd(), UNROUTABLE)), libc::EADDRNOTAVAIL);
    }
    // Nothing tells the kernel half that connect() failed before a SYN left: the socket holds its one until it is closed or dials again.
    counts.expect(2, "what failed is held once, however often it was tried");
    near.sysctl("net.ipv4.ip_local_port_range", "40000 49999");
    drop(client.redial(failed.as_fd(), UNROUTABLE).unwrap());
    counts.expect(2, "a socket that failed has dialled again");
    drop(failed);
    counts.expect(1, "and is closed");
    drop(first);
    counts.expect_nothing(&client, "the first is closed, too");
}

#[test]
fn a_handshake_that_is_given_up_or_times_out_is_given_back_once() {
    let Some(stage) = Stage::set() else { return };
    let (origin, service) = (stage.address(), stage.address());
    let full = silent(stage.origin(), origin);
    let agent = Agent::start(&stage.config().service(of_kernel(service).to(origin)));
    let counts = Counts::of(agent.instance(), service, stage.client());

    let mut begun: Vec<TcpStream> = (0..LIMIT).map(|_| stage.client().begin(service).unwrap()).collect();
    assert_eq!(errno(stage.client().begin(service)), libc::ECONNREFUSED, "a handshake under way is taken, too");
    counts.expect(LIMIT, "under way");
    begun.truncate(LIMIT as usize / 2);
    counts.expect(LIMIT / 2, "closed before the handshake");
    begun.iter().for_each(|stream| disconnect(stream).unwrap());
    counts.expect(0, "disconnected before the handshake");
    drop(begun);
    counts.expect(0, "closed after that");

    // ETIMEDOUT: the socket stays with its program.
    let socket = stage.client().make(service).unwrap();
    give_up_after(&socket, Duration::from_millis(300));
    for _ in 0..2 {
        assert_eq!(errno(stage.client().redial(socket.as_fd(), service)), libc::ETIMEDOUT);
        counts.expect(0, "timed out");
    }
    drop(socket);
    counts.expect(0, "timed out, and closed");
    drop(full);
    let _origin = stage.echo_at("late", origin);
    counts.expect_nothing(stage.client(), "handshakes that ended");
}

#[test]
fn a_connection_that_its_peer_ends_is_given_back_while_its_program_still_holds_it() {
    let Some(stage) = Stage::set() else { return };
    let (origin, service) = (stage.address(), stage.address());
    let agent = Agent::start(&stage.config().service(of_kernel(service).to(origin)));
    let counts = Counts::of(agent.instance(), service, stage.client());

    // The listener goes with connections in its queue that nobody has accepted.
    let listener = stage.origin().listen(origin).unwrap();
    let queued: Vec<TcpStream> = (0..3).map(|_| stage.dial(service).unwrap()).collect();
    counts.expect(3, "in the queue");
    drop(listener);
    counts.expect(0, "the listener is gone");

    // Reset by who has accepted.
    let resetting = Origin::start(stage.origin().listen(origin).unwrap(), |stream, _| {
        SockRef::from(stream).set_linger(Some(Duration::ZERO))
    });
    // connect() may see the reset already.
    let reset: Vec<TcpStream> = (0..3).map(|_| stage.client().begin(service).unwrap()).collect();
    wait::until("the origin to accept", wait::SOON, || resetting.accepted() == 3);
    counts.expect(0, "reset");
    drop(resetting);

    // The same sockets dial where nobody listens, then where somebody does.
    let sockets: Vec<&TcpStream> = queued.iter().chain(&reset).collect();
    sockets.iter().for_each(|socket| socket.set_nonblocking(false).unwrap());
    for socket in &sockets {
        disconnect(*socket).unwrap();
        assert_eq!(errno(stage.client().redial(socket.as_fd(), service)), libc::ECONNREFUSED);
    }
    counts.expect(0, "refused");
    let _origin = stage.echo_at("again", origin);
    for socket in &sockets {
        drop(stage.client().redial(socket.as_fd(), service).unwrap());
    }
    counts.expect(6, "used again");
    drop((queued, reset));
    counts.expect_nothing(stage.client(), "ended by peers");
}

#[test]
fn a_connection_that_is_destroyed_from_outside_is_given_back_while_its_program_still_holds_it() {
    let Some(stage) = Stage::set() else { return };
    let (origin, full, service, waits) = (stage.address(), stage.address(), stage.address(), stage.address());
    let _full = silent(stage.origin(), full);
    // Nobody accepts: what a program does not close stays open.
    let listener = stage.origin().listen(origin).unwrap();
    let agent = Agent::start(
        &stage
            .config()
            .service(of_kernel(service).to(origin))
            .service(limited(Service::kernel_tcp("waits", waits)).to(full)),
    );
    let (counts, waiting) =
        (Counts::of(agent.instance(), service, stage.client()), Counts::of(agent.instance(), waits, stage.client()));
    let destroy = |endpoint: SocketAddr| {
        let mut command = Command::new("ss");
        command.args(["-K", "-t", "state", "connected", "dst", &endpoint.to_string()]);
        let output = process::run(Room::default(), command);
        assert!(output.status.success(), "ss -K needs CONFIG_INET_DIAG_DESTROY: {output:?}");
    };
    let held: Vec<TcpStream> = (0..5).map(|_| stage.dial(service).unwrap()).collect();
    let half_closed = stage.dial(service).unwrap();
    half_closed.shutdown(Shutdown::Write).unwrap();
    counts.expect(6, "open");
    destroy(origin);
    counts.expect(0, "established ones and one that was half closed are destroyed");
    drop((held, half_closed));
    drop(listener);
    // The door, which made the listener, lets go of its own in its own time.
    let listener = wait::until_some("the address to be free", wait::SOON, || stage.origin().listen(origin).ok());
    let _origin = Origin::echo(listener, "a");
    counts.expect_nothing(stage.client(), "and closed");

    let begun: Vec<TcpStream> = (0..3).map(|_| stage.client().begin(waits).unwrap()).collect();
    waiting.expect(3, "under way");
    destroy(full);
    waiting.expect(0, "handshakes are destroyed");
    drop(begun);
    waiting.expect(0, "and closed");
}

#[test]
fn a_socket_that_many_hold_is_given_back_when_the_last_lets_go() {
    let Some(stage) = Stage::set() else { return };
    let (origin, service) = (stage.echo("a"), stage.address());
    let agent = Agent::start(&stage.config().service(of_kernel(service).to(origin.address())));
    let counts = Counts::of(agent.instance(), service, stage.client());

    // dup: in this process; the door, which dialled, has let go of its own.
    let stream = stage.dial(service).unwrap();
    let copy = stream.try_clone().unwrap();
    let last = copy.try_clone().unwrap();
    drop((stream, copy));
    counts.expect(1, "one copy is left");
    drop(last);
    counts.expect(0, "no copy is left");

    // fork: three children, and their parent, which ends first.
    let program = "import os, socket, sys, time\nhost, port = sys.argv[1].rsplit(':', 1)\n\
        held = socket.create_connection((host, int(port)))\nagain = os.dup(held.fileno())\n\
        for n in range(3):\n    pid = os.fork()\n    if pid == 0:\n        time.sleep(600)\n    print(pid, flush=True)\n";
    let mut command = Command::new("python3");
    command.args(["-c", program, &service.to_string()]);
    let output = process::run(Room::of(&stage.clients), command);
    let children: Vec<i32> = peers::stdout(&output).lines().map(|pid| pid.parse().expect("a pid")).collect();
    let [first, second, third] = children[..] else { panic!("three children of {output:?}") };
    let end = |pid: i32| {
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        let lives = || fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
        wait::until("a child to be gone", wait::SOON, || !lives());
    };
    end(first);
    end(second);
    counts.expect(1, "one child is left");
    end(third);
    counts.expect_nothing(stage.client(), "no child is left");
}

#[test]
fn a_program_that_is_killed_gives_back_a_hundred_sockets_in_every_state() {
    let Some(stage) = Stage::set() else { return };
    let (origin, silent_at) = (stage.echo("a"), stage.address());
    let _full = silent(stage.origin(), silent_at);
    let (service, waits, refuses) = (stage.address(), stage.address(), stage.address());
    let many = |name, address| Service::kernel_tcp(name, address).set("limits: { connections: 100 }");
    let agent = Agent::start(
        &stage
            .config()
            .service(many("good", service).to(origin.address()))
            .service(many("waits", waits).to(silent_at))
            .service(many("refuses", refuses).to(stage.address())),
    );
    let open = |name: &str| agent.metric("sockway_kernel_endpoint_open", &[("service", name)]);
    let program = "import socket, struct, sys, time\n\
        good, waits, refuses = [(host, int(port)) for host, port in (word.rsplit(':', 1) for word in sys.argv[1:])]\n\
        held = [socket.create_connection(good) for _ in range(40)]\n\
        for s in held[:10]: s.shutdown(socket.SHUT_WR)\n\
        for s in held[10:20]: s.sendall(bytes(1 << 20))\n\
        for s in held[20:25]: s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))\n\
        for address in (waits, refuses):\n    for _ in range(30):\n        s = socket.socket(); s.setblocking(False); s.connect_ex(address); held.append(s)\n\
        print('held', flush=True)\ntime.sleep(600)\n";
    let mut command = Command::new("python3");
    command.args(["-c", program]).args([service, waits, refuses].map(|address| address.to_string()));
    let mut holder = stage.clients.spawn(command);
    wait::until("the program to hold all", wait::SOON, || holder.stdout().contains("held"));
    wait::until("those that wait to be counted", wait::SOON, || open("waits") == 30.0);
    assert!(open("good") >= 30.0);
    holder.kill();
    for name in ["good", "waits", "refuses"] {
        wait::until("everything to be given back", wait::SOON, || open(name) == 0.0);
    }
    let held: Vec<TcpStream> = (0..100).map(|_| stage.dial(service).expect("within the limit")).collect();
    assert_eq!(errno(stage.dial(service)), libc::ECONNREFUSED, "one too many of {}", held.len());
}

#[test]
fn a_connected_udp_socket_is_one_until_it_is_closed_or_dials_anew() {
    // Also traps T27 and T28: nothing tells of the end of a UDP socket's conversation but the socket's own.
    let Some(stage) = Stage::set() else { return };
    let (a, b, tcp) = (stage.datagrams("a"), stage.datagrams("b"), stage.echo("tcp"));
    let (one, other) = (stage.address(), stage.address());
    let config = stage
        .config()
        .service(limited(Service::udp("limited", one)).to(a.address()))
        .service(limited(Service::kernel_tcp("limited-tcp", one)).to(tcp.address()))
        .service(Service::udp("other", other).to(b.address()));
    let agent = Agent::start(&config);
    let open = |name: &str| agent.metric("sockway_kernel_endpoint_open", &[("service", name)]);
    let expect = |count: f64, when: &str| wait::until(when, wait::SOON, || open("limited") == count);
    let socket = || stage.socket("127.0.0.1:0");

    // Datagrams without connect() take nothing: there is no end to give them back at.
    assert_eq!(ask(&socket(), one, "who").unwrap().0, "a:who");
    expect(0.0, "nothing to be taken");

    let mut held: Vec<UdpSocket> = (0..LIMIT).map(|_| socket()).collect();
    held.iter().for_each(|socket| socket.connect(one).unwrap());
    expect(LIMIT as f64, "all to be taken");
    let over = socket();
    assert_eq!(errno(over.connect(one)), libc::ECONNREFUSED);
    assert_eq!(open("limited-tcp"), 0.0, "another protocol at the same address is another service");
    // The same once more, and another: one socket, one connection.
    for _ in 0..5 {
        held[0].connect(one).unwrap();
    }
    expect(LIMIT as f64, "as many as before");
    held[0].connect(other).unwrap();
    expect(LIMIT as f64 - 1.0, "one to be given back");
    over.connect(one).unwrap();
    expect(LIMIT as f64, "and taken again");
    // No hook sees a UDP socket disconnect (`udp_disconnect`): what it took stays with it.
    held[1..4].iter().for_each(|socket| disconnect(socket).unwrap());
    expect(LIMIT as f64, "what is disconnected to keep what it took");
    held[1].connect(b.address()).unwrap();
    expect(LIMIT as f64 - 1.0, "what dials elsewhere to give it back");
    // dup: the last descriptor counts.
    let copy = held[5].try_clone().unwrap();
    held.truncate(5);
    drop(over);
    expect(4.0, "what is closed to be given back, but for the copy");
    drop((copy, held));
    expect(0.0, "everything to be given back");
    let held: Vec<UdpSocket> = (0..LIMIT).map(|_| socket()).collect();
    held.iter().for_each(|socket| socket.connect(one).unwrap());
    assert_eq!(errno(socket().connect(one)), libc::ECONNREFUSED, "not one more");
}

#[test]
fn twenty_thousand_connects_of_four_programs_leave_nothing_taken() {
    let Some(stage) = Stage::set() else { return };
    let (origin, _lines) = Origin::collect(stage.origin().listen(stage.address()).unwrap());
    let service = stage.address();
    // Without a limit that refuses, but counted all the same.
    let roomy = Service::kernel_tcp("limited", service)
        .set("limits: { connections: 1000000, per_source: { connections: 1000000 } }")
        .set("balance: least_connections")
        .to(origin.address());
    let config = stage.config();
    let agent = Agent::start(&config.with_services([roomy]));
    let counts = Counts::of(agent.instance(), service, stage.client());
    let each = patience::load(5_000);
    let burst = |_| {
        let mut command = Command::new(agent::probe());
        command.args(["burst", &each.to_string(), "text", &service.to_string()]);
        stage.clients.spawn(command)
    };
    let mut programs: Vec<Process> = (0..4).map(burst).collect();
    for program in &mut programs {
        assert!(program.wait(Duration::from_secs(120)).success(), "{}", program.stderr());
        assert_eq!(program.stdout(), "0\n", "failed connects: {}", program.stderr());
    }
    counts.expect(0, "all have ended");
    agent.metric_comes_to("sockway_kernel_connects_total", &[("verdict", "balanced")], 4.0 * each as f64);
    agent.reload(&config.with_services([of_kernel(service).to(origin.address())]));
    counts.expect_nothing(stage.client(), "and the whole limit can be had");
}
