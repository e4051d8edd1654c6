//! UDP: where datagrams go, from where the replies seem to come, and for how long a conversation stays with one endpoint.

use std::{
    io::{IoSlice, IoSliceMut},
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, recvmsg, sendmmsg, sendmsg};
use sockway_tests::{
    address::mapped,
    agent::Agent,
    cgroup::Cgroup,
    config::Service,
    datagram::{Answering, ask, name_of, receive},
    door::Door,
    netns::{Netns, Veth},
    peers,
    process::{self, Room},
    stage::Stage,
    wait,
};
use tempfile::TempDir;

/// A client's address: any port, IPv4.
const ANY: &str = "0.0.0.0:0";
/// The same for IPv6, which takes IPv4-mapped addresses too.
const ANY_V6: &str = "[::]:0";

fn sends(agent: &Agent, verdict: &str) -> f64 {
    agent.metric("sockway_kernel_sends_total", &[("verdict", verdict)])
}

#[test]
fn sockets_are_balanced_in_turn_and_each_keeps_its_endpoint() {
    let Some(stage) = Stage::set() else { return };
    let endpoints = ["a", "b", "c"].map(|name| stage.datagrams(name));
    let service = stage.address();
    let to = endpoints.iter().map(Answering::address);
    let agent = Agent::start(&stage.config().service(Service::udp("turns", service).to_all(to)));

    let sockets: Vec<UdpSocket> = (0..6).map(|_| stage.socket(ANY)).collect();
    let first: Vec<String> = sockets.iter().map(|socket| name_of(socket, service)).collect();
    assert!(first.windows(4).all(|four| four[0] == four[3] && four[0] != four[1]), "not in turn: {first:?}");
    for _ in 0..10 {
        let again: Vec<String> = sockets.iter().map(|socket| name_of(socket, service)).collect();
        assert_eq!(again, first, "a conversation stays with its endpoint");
    }
    assert_eq!((sends(&agent, "balanced"), sends(&agent, "kept"), sends(&agent, "moved")), (6.0, 60.0, 0.0));
    agent.metric_comes_to("sockway_kernel_replies_total", &[("result", "reversed")], 66.0);
}

#[test]
fn replies_seem_to_come_from_the_address_that_was_asked_in_every_family() {
    // Trap T27: a resolver drops a reply from a stranger.
    let Some(stage) = Stage::set() else { return };
    let four = stage.datagrams("four");
    let six = stage.datagrams_at("six", stage.addresses.next_v6());
    let (service, service_v6) = (stage.address(), stage.addresses.next_v6());
    let config = stage
        .config()
        .service(Service::udp("four", service).to(four.address()))
        .service(Service::udp("six", service_v6).to(six.address()));
    let _agent = Agent::start(&config);

    let (v4, v6) = (stage.socket(ANY), stage.socket(ANY_V6));
    assert_eq!(name_of(&v4, service), "four");
    assert_eq!(name_of(&v6, service_v6), "six");
    assert_eq!(name_of(&v6, mapped(service)), "four", "an IPv6 socket asks an IPv4 service in mapped form");
    assert_eq!(name_of(&v6, service_v6), "six");
}

#[test]
fn every_call_that_sends_or_receives_is_covered() {
    let Some(stage) = Stage::set() else { return };
    let endpoint = stage.datagrams("far");
    let service = stage.address();
    let _agent = Agent::start(&stage.config().service(Service::udp("one", service).to(endpoint.address())));
    let socket = stage.socket(ANY);
    let to = SockaddrStorage::from(service);

    sendmsg(socket.as_raw_fd(), &[IoSlice::new(b"who")], &[], MsgFlags::empty(), Some(&to)).unwrap();
    let mut bytes = [0; 64];
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, None, MsgFlags::empty()).unwrap();
    assert_eq!(message.address, Some(to), "recvmsg");

    let texts = [[IoSlice::new(b"one")], [IoSlice::new(b"two")]];
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(2, None);
    let sent = sendmmsg(socket.as_raw_fd(), &mut headers, &texts, [Some(to), Some(to)], [], MsgFlags::empty()).unwrap();
    assert_eq!(sent.count(), 2);
    wait::until("both replies to wait", wait::SOON, || socket.peek_from(&mut [0; 8]).is_ok());
    assert_eq!(socket.peek_from(&mut [0; 8]).unwrap().1, service, "a look at the reply says the same");
    for _ in 0..2 {
        let (mut one, mut headers) = ([0; 64], MultiHeaders::<SockaddrStorage>::preallocate(1, None));
        let mut parts = [[IoSliceMut::new(&mut one)]];
        let received = recvmmsg(socket.as_raw_fd(), &mut headers, &mut parts, MsgFlags::MSG_WAITFORONE, None).unwrap();
        let from: Vec<_> = received.map(|message| message.address).collect();
        assert_eq!(from, [Some(to)], "recvmmsg");
    }
}

#[test]
fn a_stranger_stays_a_stranger() {
    let Some(stage) = Stage::set() else { return };
    let (endpoint, stranger) = (stage.datagrams("known"), stage.datagrams("stranger"));
    let service = stage.address();
    let agent = Agent::start(&stage.config().service(Service::udp("some", service).to(endpoint.address())));

    let socket = stage.socket(ANY);
    assert_eq!(name_of(&socket, service), "known");
    assert_eq!(name_of(&socket, stranger.address()), "stranger", "no service: to and fro untouched");
    assert_eq!(
        name_of(&stage.socket(ANY), endpoint.address()),
        "known",
        "asked directly, an endpoint answers for itself"
    );
    assert_eq!((sends(&agent, "balanced"), sends(&agent, "not_service")), (1.0, 2.0));
    agent.metric_comes_to("sockway_kernel_replies_total", &[("result", "stranger")], 2.0);
}

#[test]
fn an_endpoint_that_is_asked_by_its_own_address_answers_for_itself_also_where_the_service_was_asked() {
    let Some(stage) = Stage::set() else { return };
    let (endpoint, service) = (stage.datagrams("known"), stage.address());
    let _agent = Agent::start(&stage.config().service(Service::udp("some", service).to(endpoint.address())));

    let socket = stage.socket(ANY);
    for _ in 0..2 {
        // Each checks whom the reply seems to be from.
        assert_eq!(name_of(&socket, service), "known");
        assert_eq!(name_of(&socket, endpoint.address()), "known");
        assert_eq!(name_of(&socket, endpoint.address()), "known");
    }
}

#[test]
fn when_an_endpoint_goes_the_next_datagram_goes_elsewhere_and_its_late_reply_is_still_understood() {
    // Trap T28: a stale endpoint must not keep a conversation for ever.
    let Some(stage) = Stage::set() else { return };
    let (service, address) = (stage.address(), stage.address());
    let old = stage.origin().bind(address).unwrap();
    old.set_read_timeout(Some(wait::soon())).unwrap();
    let config = stage.config().service(Service::udp("moves", service).to(address));
    let agent = Agent::start(&config);
    let socket = stage.socket(ANY);
    socket.send_to(b"slow", service).unwrap();
    let (_, client) = receive(&old).unwrap();

    let new = stage.datagrams("new");
    agent.reload(&config.with_services([Service::udp("moves", service).to(new.address())]));
    assert_eq!(name_of(&socket, service), "new");
    assert_eq!(sends(&agent, "moved"), 1.0);
    old.send_to(b"at last", client).unwrap();
    assert_eq!(receive(&socket).unwrap(), ("at last".to_owned(), service));
    assert_eq!(name_of(&socket, service), "new", "the late reply does not bring the old endpoint back");
    assert_eq!(sends(&agent, "kept"), 1.0);
}

#[test]
fn a_conversation_that_was_idle_for_long_enough_is_over() {
    let Some(stage) = Stage::set() else { return };
    let endpoints = ["a", "b"].map(|name| stage.datagrams(name));
    let service = stage.address();
    let to = endpoints.iter().map(Answering::address);
    let idle = Duration::from_millis(200);
    let udp = Service::udp("idle", service).to_all(to).set(&format!("udp_idle_timeout_ms: {}", idle.as_millis()));
    let agent = Agent::start(&stage.config().service(udp));

    let socket = stage.socket(ANY);
    let first = name_of(&socket, service);
    let begun = Instant::now();
    wait::until("the conversation to be over", wait::SOON, || begun.elapsed() > idle + idle / 10);
    assert_ne!(name_of(&socket, service), first, "the next one in turn");
    assert_eq!((sends(&agent, "balanced"), sends(&agent, "moved")), (2.0, 0.0));
}

#[test]
fn a_connected_socket_speaks_with_one_endpoint_and_sees_what_it_dialled() {
    let Some(stage) = Stage::set() else { return };
    let endpoints = ["a", "b"].map(|name| stage.datagrams(name));
    let six = stage.datagrams_at("six", stage.addresses.next_v6());
    let (service, service_v6) = (stage.address(), stage.addresses.next_v6());
    let config = stage
        .config()
        .service(Service::udp("turns", service).to_all(endpoints.iter().map(Answering::address)))
        .service(Service::udp("six", service_v6).to(six.address()));
    let agent = Agent::start(&config);

    let mut names = Vec::new();
    for (any, dialled) in [(ANY, service), (ANY_V6, mapped(service)), (ANY_V6, service_v6)] {
        let socket = stage.socket(any);
        socket.connect(dialled).unwrap();
        assert_eq!(socket.peer_addr().unwrap(), dialled);
        socket.send(b"who").unwrap();
        let (answer, from) = receive(&socket).unwrap();
        assert_eq!(from, dialled, "recvfrom names the peer although there is but one");
        // `sendto` on a connected socket: to where it is connected, or the kernel would drop the reply.
        for _ in 0..4 {
            assert_eq!(ask(&socket, dialled, "who").unwrap(), (answer.clone(), dialled));
        }
        assert_eq!(socket.peer_addr().unwrap(), dialled);
        names.push(answer);
    }
    assert_eq!(names, ["a:who", "b:who", "six:who"]);
    assert_eq!(sends(&agent, "connected"), 12.0);
    agent.metric_comes_to("sockway_kernel_connects_total", &[("verdict", "balanced")], 3.0);
}

#[test]
fn a_connected_socket_hears_that_nobody_listens() {
    let Some(stage) = Stage::set() else { return };
    let service = stage.address();
    let _agent = Agent::start(&stage.config().service(Service::udp("nobody", service).to(stage.address())));

    let socket = stage.socket(ANY);
    socket.connect(service).unwrap();
    socket.send(b"anybody?").unwrap();
    // The ICMP error of the endpoint's host is the socket's own.
    assert_eq!(receive(&socket).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn a_connected_socket_is_told_when_its_endpoint_goes() {
    // Trap T28: connect() on UDP would pin the endpoint for as long as the program lives.
    let Some(stage) = Stage::set() else { return };
    let (old, new) = (stage.datagrams("old"), stage.datagrams("new"));
    let service = stage.address();
    let config = stage.config().service(Service::udp("moves", service).to(old.address()));
    let agent = Agent::start(&config);
    let socket = stage.socket(ANY);
    socket.connect(service).unwrap();
    assert_eq!(ask(&socket, service, "who").unwrap().0, "old:who");

    agent.reload(&config.with_services([Service::udp("moves", service).to(new.address())]));
    assert_eq!(receive(&socket).unwrap_err().kind(), std::io::ErrorKind::ConnectionAborted);
    // What every client of UDP does after an error: connect once more.
    socket.connect(service).unwrap();
    assert_eq!(ask(&socket, service, "who").unwrap(), ("new:who".to_owned(), service));
}

#[test]
fn a_socket_that_is_closed_or_dials_elsewhere_is_no_longer_listed() {
    // What would stay would fill the table in the end, and name sockets that are another's by now.
    let Some(stage) = Stage::set() else { return };
    let (endpoint, plain) = (stage.datagrams("behind"), stage.datagrams("plain"));
    let service = stage.address();
    let agent = Agent::start(&stage.config().service(Service::udp("some", service).to(endpoint.address())));
    let listed = || agent.metric("sockway_kernel_map_entries", &[("map", "CONNECTED")]);

    let sockets: Vec<UdpSocket> = (0..10).map(|_| stage.socket(ANY)).collect();
    sockets.iter().for_each(|socket| socket.connect(service).unwrap());
    // Before Linux 6.4 the agent counts keys, every half minute.
    let comes_to = |count: f64| {
        wait::until(&format!("{count} sockets in the table"), Duration::from_secs(75), || listed() == count);
    };
    comes_to(10.0);
    sockets[0].connect(plain.address()).unwrap();
    comes_to(9.0);
    drop(sockets);
    comes_to(0.0);
}

#[test]
fn a_socket_may_be_connected_again_and_let_go() {
    // Trap T30, for UDP: what an earlier connect() left answers for no later one.
    let Some(stage) = Stage::set() else { return };
    let (endpoint, plain) = (stage.datagrams("behind"), stage.datagrams("plain"));
    let service = stage.address();
    let _agent = Agent::start(&stage.config().service(Service::udp("some", service).to(endpoint.address())));

    let socket = stage.socket(ANY);
    socket.connect(service).unwrap();
    assert_eq!(ask(&socket, service, "who").unwrap().0, "behind:who");
    socket.connect(plain.address()).unwrap();
    assert_eq!(socket.peer_addr().unwrap(), plain.address());
    assert_eq!(ask(&socket, plain.address(), "who").unwrap(), ("plain:who".to_owned(), plain.address()));
    socket.connect(service).unwrap();
    assert_eq!(socket.peer_addr().unwrap(), service);
    // connect(AF_UNSPEC): from now on it speaks with everybody.
    sockway_tests::socket::disconnect(&socket).unwrap();
    assert!(socket.peer_addr().is_err());
    assert_eq!(name_of(&socket, service), "behind");
    assert_eq!(name_of(&socket, plain.address()), "plain");
}

#[test]
fn an_ipv6_socket_that_is_let_go_still_hears_the_service_that_it_was_connected_to() {
    // Linux lets it hear nobody but its former peer: another endpoint would answer in vain.
    let Some(stage) = Stage::set() else { return };
    let endpoints = ["a", "b"].map(|name| stage.datagrams_at(name, stage.addresses.next_v6()));
    let service = stage.addresses.next_v6();
    let to = endpoints.iter().map(Answering::address);
    let config = stage.config().service(Service::udp("turns", service).to_all(to));
    let agent = Agent::start(&config);

    for _ in 0..2 {
        let socket = stage.socket(ANY_V6);
        socket.connect(service).unwrap();
        let name = ask(&socket, service, "who").unwrap();
        sockway_tests::socket::disconnect(&socket).unwrap();
        assert!(socket.peer_addr().is_err());
        for _ in 0..3 {
            assert_eq!(name_of(&socket, service), name.0.trim_end_matches(":who"));
        }
    }
    // What its endpoint can no longer be asked, another is: whether it is heard is the kernel's.
    let socket = stage.socket(ANY_V6);
    socket.connect(service).unwrap();
    let name = ask(&socket, service, "who").unwrap().0;
    sockway_tests::socket::disconnect(&socket).unwrap();
    let left = endpoints.iter().zip(["a:who", "b:who"]).find(|(_, own)| *own != name).expect("the other").0;
    agent.reload(&config.with_services([Service::udp("turns", service).to(left.address())]));
    let before = sends(&agent, "balanced");
    socket.send_to(b"who", service).unwrap();
    assert_eq!(sends(&agent, "balanced"), before + 1.0);
}

#[test]
fn a_tcp_service_and_a_udp_service_share_an_address() {
    let Some(stage) = Stage::set() else { return };
    let (datagrams, stream) = (stage.datagrams("datagrams"), stage.echo("stream"));
    let service = stage.address();
    let config = stage
        .config()
        .service(Service::udp("udp", service).to(datagrams.address()))
        .service(Service::agent_tcp("tcp", service).to(stream.address()));
    let agent = Agent::start(&config);

    assert_eq!(name_of(&stage.socket(ANY), service), "datagrams");
    assert_eq!(stage.ask_name(service).unwrap(), "stream");
    // One of them goes, the other stays.
    agent.reload(&config.with_services([Service::udp("udp", service).to(datagrams.address())]));
    assert_eq!(name_of(&stage.socket(ANY), service), "datagrams");
    assert!(stage.dial(service).is_err());
}

#[test]
fn a_ninth_conversation_pushes_out_the_one_that_was_quiet_for_longest() {
    let Some(stage) = Stage::set() else { return };
    let endpoints: Vec<UdpSocket> = (0..9)
        .map(|_| {
            let endpoint = stage.origin().bind(stage.address()).unwrap();
            endpoint.set_read_timeout(Some(wait::soon())).unwrap();
            endpoint
        })
        .collect();
    let services: Vec<SocketAddr> = endpoints.iter().map(|_| stage.address()).collect();
    let config = services.iter().zip(&endpoints).enumerate().fold(stage.config(), |config, (index, (service, to))| {
        config.service(Service::udp(&format!("s{index}"), *service).to(to.local_addr().unwrap()))
    });
    let agent = Agent::start(&config);

    let socket = stage.socket(ANY);
    let mut clients = Vec::new();
    for (service, endpoint) in services.iter().zip(&endpoints) {
        socket.send_to(b"hello", service).unwrap();
        clients.push(receive(endpoint).unwrap().1);
    }
    agent.metric_comes_to("sockway_kernel_conversations_evicted_total", &[], 1.0);
    for (index, (endpoint, client)) in endpoints.iter().zip(&clients).enumerate() {
        endpoint.send_to(b"late", client).unwrap();
        let expected = if index == 0 { endpoint.local_addr().unwrap() } else { services[index] };
        assert_eq!(receive(&socket).unwrap().1, expected, "conversation {index}");
    }
}

#[test]
fn threads_that_share_a_socket_never_hear_a_reply_under_another_name() {
    let Some(stage) = Stage::set() else { return };
    let endpoints: Vec<Answering> = (0..4).map(|index| stage.datagrams(&format!("s{index}"))).collect();
    let services: Vec<SocketAddr> = endpoints.iter().map(|_| stage.address()).collect();
    let config = services.iter().zip(&endpoints).enumerate().fold(stage.config(), |config, (index, (service, to))| {
        // Idle after a millisecond: entries are written anew all the time.
        let udp = Service::udp(&format!("s{index}"), *service).set("udp_idle_timeout_ms: 1");
        config.service(udp.to(to.address()))
    });
    let _agent = Agent::start(&config);

    const ROUNDS: usize = 2_000;
    let socket = stage.socket(ANY);
    thread::scope(|scope| {
        for service in &services {
            let (socket, services) = (&socket, &services);
            scope.spawn(move || {
                for _ in 0..ROUNDS {
                    socket.send_to(b"x", service).unwrap();
                    // Whichever thread takes it: the name says who answered, and the address must be that service's.
                    let (answer, from) = receive(socket).unwrap();
                    let index: usize = answer[1..2].parse().unwrap();
                    assert_eq!(from, services[index]);
                }
            });
        }
    });
}

#[test]
fn a_resolver_resolves_names_over_udp() {
    // Trap T27 with the C library's own resolver, which connects its sockets, and with one that does not.
    let Some(stage) = Stage::set() else { return };
    let server = Answering::with(stage.origin().bind(stage.address()).unwrap(), dns_answer);
    let service = stage.addresses.with_port(53);
    let _agent = Agent::start(&stage.config().service(Service::udp("dns", service).to(server.address())));
    let room = Room::of(&stage.clients);

    let directory = TempDir::new().unwrap();
    let resolv = directory.path().join("resolv.conf");
    std::fs::write(&resolv, format!("nameserver {}\noptions timeout:5 attempts:1\n", service.ip())).unwrap();
    let mut command = Command::new("unshare");
    let script = "mount --bind \"$1\" /etc/resolv.conf && exec python3 -c \"$2\"";
    let program = "import socket; print(sorted({a[4][0] for a in socket.getaddrinfo('orders.sockway.test', 80)}))";
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(&resolv).arg(program);
    let output = process::run(room, command);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(peers::stdout(&output), "['192.0.2.7', '2001:db8::7']\n");

    let program = "import socket, struct, sys\n\
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(soon)\n\
        name = b''.join(bytes([len(p)]) + p for p in b'orders.sockway.test'.split(b'.')) + b'\\0'\n\
        s.sendto(struct.pack('>6H', 77, 0x100, 1, 0, 0, 0) + name + struct.pack('>2H', 1, 1), (sys.argv[1], 53))\n\
        data, peer = s.recvfrom(512)\n\
        print(peer == (sys.argv[1], 53), struct.unpack('>H', data[:2])[0], socket.inet_ntoa(data[-4:]))\n";
    assert_eq!(peers::python(room, program, &[&service.ip().to_string()]), "True 77 192.0.2.7\n");
}

/// Answers a DNS query (RFC 1035, 4.1) of one question with 192.0.2.7 or 2001:db8::7.
fn dns_answer(query: &[u8]) -> Vec<u8> {
    let question = 12 + query[12..].iter().position(|byte| *byte == 0).expect("a name") + 5;
    let wants_v6 = query[question - 4..question - 2] == [0, 28];
    let address: &[u8] =
        if wants_v6 { &[0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7] } else { &[192, 0, 2, 7] };
    let header = [query[0], query[1], 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0];
    let record = [0xc0, 12, 0, if wants_v6 { 28 } else { 1 }, 0, 1, 0, 0, 0, 60, 0, address.len() as u8];
    [&header, &query[12..question], &record, address].concat()
}

#[test]
fn nested_rules_capture_a_datagram_once() {
    let Some(stage) = Stage::set() else { return };
    let endpoints = ["a", "b", "c"].map(|name| stage.datagrams(name));
    let service = stage.address();
    let pod = stage.clients.child("pod");
    let to = endpoints.iter().map(Answering::address);
    let agent = Agent::start(&stage.config().capture(&pod).service(Service::udp("turns", service).to_all(to)));

    let door = Door::open(Room::of(&pod));
    let mut names = Vec::new();
    for connected in [false, true, false] {
        let socket = door.bind(ANY.parse().unwrap()).unwrap();
        socket.set_read_timeout(Some(wait::soon())).unwrap();
        if connected {
            socket.connect(service).unwrap();
            assert_eq!(socket.peer_addr().unwrap(), service);
        }
        names.push(name_of(&socket, service));
    }
    assert_eq!(names, ["a", "b", "c"], "each took one turn");
    agent.metric_comes_to("sockway_kernel_connects_total", &[("verdict", "balanced")], 1.0);
    drop(door);
    drop(pod);
}

#[test]
fn datagrams_of_the_agent_are_left_alone() {
    // Trap T23.
    let Some(stage) = Stage::set() else { return };
    let endpoint = stage.datagrams("behind");
    let service = stage.address();
    let config = stage.config().service(Service::udp("some", service).to(endpoint.address()));
    let own = Cgroup::of_agent(config.instance());
    let agent = Agent::start(&config.clone().capture(&own));

    let program = "import socket, sys\n\
        a = (sys.argv[1], int(sys.argv[2]))\n\
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', a)\n\
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(a); print(s.getpeername() == a)\n";
    let arguments = [service.ip().to_string(), service.port().to_string()];
    assert_eq!(peers::python(Room::of(&own), program, &[&arguments[0], &arguments[1]]), "True\n");
    assert_eq!((sends(&agent, "own"), sends(&agent, "balanced")), (1.0, 0.0));
    assert_eq!(agent.metric("sockway_kernel_connects_total", &[("verdict", "balanced")]), 0.0);
    drop(agent);
    drop(own);
}

#[test]
fn datagrams_go_from_pod_to_pod_and_go_on_without_the_agent() {
    let Some(stage) = Stage::set() else { return };
    let (left, right) = (Netns::new(), Netns::new());
    let wire = Veth::between(&left, &right);
    let client = Door::open(Room::of(&stage.clients).inside(&left));
    let server = Door::open(Room::of(&stage.origins).inside(&right));
    let endpoint = SocketAddr::new(wire.right.into(), 5353);
    let _answering = Answering::start(server.bind(endpoint).unwrap(), "right");
    // An address that the pod has no route to: only the hook can make a datagram to it arrive.
    let service = SocketAddr::from(([10, 254, 0, 1], 53));
    let mut agent = Agent::start(&stage.config().service(Service::udp("pod", service).to(endpoint)));

    let socket = client.bind(ANY.parse().unwrap()).unwrap();
    socket.set_read_timeout(Some(wait::soon())).unwrap();
    assert_eq!(name_of(&socket, service), "right");
    agent.sigkill();
    assert_eq!(name_of(&socket, service), "right");
    let connected = client.bind(ANY.parse().unwrap()).unwrap();
    connected.set_read_timeout(Some(wait::soon())).unwrap();
    connected.connect(service).unwrap();
    assert_eq!(connected.local_addr().unwrap().ip(), wire.left);
    assert_eq!(name_of(&connected, service), "right");
}

/// The kernel may let connect() fail when the hook has been asked already: here the second service's endpoint is behind no route.
#[test]
fn a_socket_that_dials_in_vain_is_still_connected_to_what_it_dialled_before() {
    let Some(stage) = Stage::set() else { return };
    let netns = Netns::new();
    let (service, in_vain, endpoint) = (stage.address(), stage.address(), stage.address());
    let nowhere = SocketAddr::from(([192, 0, 2, 1], 9));
    let config = stage
        .config()
        .service(Service::udp("there", service).to(endpoint))
        .service(Service::udp("nowhere", in_vain).to(nowhere));
    let _agent = Agent::start(&config);
    let program = "import socket, sys\n\
        there, vain, at = [(ip, int(port)) for ip, port in (a.split(':') for a in sys.argv[1:])]\n\
        new = lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
        e = new(); e.bind(at); s = new(); s.settimeout(soon)\n\
        def fails(to):\n\
        \x20   try: s.connect(to); print('connected')\n\
        \x20   except OSError: pass\n\
        def peer():\n\
        \x20   try: return s.getpeername()\n\
        \x20   except OSError: return None\n\
        def hears():\n\
        \x20   s.send(b'x'); e.sendto(b'y', e.recvfrom(9)[1]); return s.recvfrom(9)[1]\n\
        fails(vain); assert peer() is None, peer()\n\
        s.connect(there); assert peer() == there\n\
        fails(vain); assert peer() == there, peer()\n\
        assert hears() == there\n\
        fails(vain); fails(vain); assert peer() == there and hears() == there, peer()\n\
        s.connect(there); fails(('192.0.2.2', 9)); assert peer() == there, peer()\n\
        fails(('192.0.2.2', 9)); fails(vain); assert peer() == there and hears() == there, peer()\n\
        s.connect(at); assert peer() == at and hears() == at, peer()\n\
        print('good')";
    let addresses = [service, in_vain, endpoint].map(|address| address.to_string());
    let room = Room::of(&stage.clients).inside(&netns);
    assert_eq!(peers::python(room, program, &addresses.each_ref().map(String::as_str)), "good\n");
}

#[test]
fn an_endpoint_that_is_dialled_right_behind_its_service_goes_by_its_own_address() {
    // Trap T30: where rules nest, the hooks further out meet the endpoint's address, too, and within the same connect().
    let Some(stage) = Stage::set() else { return };
    let pod = stage.clients.child("pod");
    let endpoints = [stage.datagrams("four"), stage.datagrams_at("six", stage.addresses.next_v6())];
    let services = [stage.address(), stage.addresses.next_v6()];
    let limited = |of: usize| {
        let service = Service::udp(["four", "six"][of], services[of]).to(endpoints[of].address());
        service.set("limits: { connections: 1 }")
    };
    let _agent = Agent::start(&stage.config().capture(&pod).service(limited(0)).service(limited(1)));
    for cgroup in [&stage.clients, &pod] {
        let door = Door::open(Room::of(cgroup));
        for (service, endpoint) in services.into_iter().zip(endpoints.each_ref().map(Answering::address)) {
            let bind = || door.bind(if service.is_ipv4() { ANY } else { ANY_V6 }.parse().unwrap()).unwrap();
            // A socket that was handed over is closed when the door has let go of it, too.
            let connect = |socket: &UdpSocket| {
                wait::until("a place to be free", wait::SOON, || socket.connect(service).is_ok());
            };
            let socket = bind();
            connect(&socket);
            socket.connect(endpoint).unwrap();
            assert_eq!(socket.peer_addr().unwrap(), endpoint);
            bind().connect(service).expect("what it took to be given back");
            // From there to the service, which is at the same place.
            connect(&socket);
            assert_eq!(socket.peer_addr().unwrap(), service);
            assert!(bind().connect(service).is_err(), "it has taken the only place");
        }
    }
    drop(pod);
}
