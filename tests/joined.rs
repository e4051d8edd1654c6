//! Joined pairs: where the agent has nothing more to decide, two programs' sockets send straight into each other. Every byte in order,
//! every end and reset, whatever one of the two does, and whatever becomes of the agent.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, recv},
};
use sockway_tests::{
    agent::{self, Agent},
    config::{Config, Service},
    door::Door,
    netns::{Netns, Veth},
    origin::Origin,
    pair::{accept, fill},
    patience, peers,
    process::{self, Room},
    socket::{readable, sent_by_tcp},
    stage::Stage,
    wait,
    web::pattern,
};

const ARMED: (&str, &[(&str, &str)]) = ("sockway_joins_total", &[("result", "armed")]);
const DIRECTIONS: &str = "sockway_kernel_joined_directions_total";
const FALLBACKS: &str = "sockway_kernel_joined_fallbacks_total";
const BYTES: &str = "sockway_kernel_joined_bytes_total";

/// Two programs' sockets whose connections meet in the agent, which has been told to join them.
struct Joined {
    client: TcpStream,
    server: TcpStream,
    agent: Agent,
    config: Config,
    address: SocketAddr,
    listener: TcpListener,
    stage: Stage,
}

impl Joined {
    /// `None` where root tests are switched off.
    fn set() -> Option<Self> {
        let stage = Stage::set()?;
        let addresses = (stage.address(), stage.address());
        Some(Self::at(stage, addresses))
    }

    fn at(stage: Stage, (address, endpoint): (SocketAddr, SocketAddr)) -> Self {
        let listener = stage.origin().listen(endpoint).unwrap();
        let service = Service::agent_tcp("joined", address).to(endpoint).set("shortcut: on");
        let config = stage.config_with_shortcut().service(service);
        let agent = Agent::start(&config);
        let client = stage.dial(address).unwrap();
        let server = accept(&listener);
        let joined = Self { client, server, agent, config, address, listener, stage };
        joined.wait_armed(1);
        joined
    }

    fn wait_armed(&self, pairs: usize) {
        wait::until("the pair to be armed", wait::SOON, || self.agent.metric(ARMED.0, ARMED.1) >= pairs as f64);
    }

    /// Another shortcut policy of its service takes effect.
    fn set_shortcut(&self, policy: &str) {
        let endpoint = self.listener.local_addr().unwrap();
        let service = Service::agent_tcp("joined", self.address).to(endpoint).set(&format!("shortcut: {policy}"));
        self.agent.reload(&self.config.with_services([service]));
    }

    fn directions(&self, result: &str) -> f64 {
        self.agent.metric(DIRECTIONS, &[("result", result)])
    }

    /// Sends a message each way and says whether both went straight.
    fn goes_straight(&self) -> bool {
        let before = self.agent.metric(BYTES, &[]);
        exchange(&self.client, &self.server, b"there");
        exchange(&self.server, &self.client, b"back");
        self.agent.metric(BYTES, &[]) == before + 9.0
    }
}

/// Reads, and waits on where a blocking read of a socket in the shortcut says that it does not wait (trap T3).
struct Patient<'s>(&'s TcpStream);

impl Read for Patient<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut stream = self.0;
        let would_block =
            |result: &io::Result<usize>| result.as_ref().is_err_and(|e| e.kind() == ErrorKind::WouldBlock);
        wait::until_some("something to read", wait::SOON, || {
            Some(stream.read(buffer)).filter(|read| !would_block(read))
        })
    }
}

#[track_caller]
fn exchange(from: &TcpStream, to: &TcpStream, message: &[u8]) {
    (&*from).write_all(message).unwrap();
    let mut back = vec![0; message.len()];
    Patient(to).read_exact(&mut back).unwrap();
    assert_eq!(back, message);
}

/// Waits for the first bytes.
fn wait_readable(stream: &TcpStream) {
    wait::until("the first bytes", wait::SOON, || readable(stream));
}

/// Sends `all` in chunks of varying length, and then the end.
fn send_in_chunks(stream: &TcpStream, all: &[u8], seed: u64) {
    let (mut rest, mut state) = (all, seed | 1);
    while !rest.is_empty() {
        // A linear congruential generator (Knuth's MMIX): which chunks come does not matter, that they differ does.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let most = if state >> 63 == 0 { 700 } else { 200_000 };
        let (chunk, later) = rest.split_at(((state >> 33) as usize % most + 1).min(rest.len()));
        (&*stream).write_all(chunk).unwrap();
        rest = later;
    }
    stream.shutdown(Shutdown::Write).unwrap();
}

#[track_caller]
fn reads_whole(stream: &TcpStream, all: &[u8]) {
    let mut back = Vec::with_capacity(all.len());
    Patient(stream).read_to_end(&mut back).unwrap();
    assert_eq!(back.len(), all.len());
    assert!(back == all, "bytes are in another order");
}

#[test]
fn the_bytes_of_a_joined_pair_go_past_the_agent_from_the_first_to_the_last() {
    let Some(joined) = Joined::set() else { return };
    for _ in 0..100 {
        exchange(&joined.client, &joined.server, &[1; 1_000]);
        exchange(&joined.server, &joined.client, &[2; 2_000]);
    }
    assert_eq!((sent_by_tcp(&joined.client).unwrap(), sent_by_tcp(&joined.server).unwrap()), (0, 0));
    let metrics = joined.agent.metrics();
    assert_eq!(metrics.get(DIRECTIONS, &[("result", "began")]), 2.0);
    assert_eq!(metrics.get(BYTES, &[]), 300_000.0);
    assert_eq!(metrics.get("sockway_kernel_joined_messages_total", &[]), 200.0);
    assert_eq!(metrics.get(FALLBACKS, &[]), 0.0);
    let service = [("service", "joined")];
    assert_eq!(metrics.get("sockway_kernel_service_joined_bytes_total", &service), 300_000.0);
    assert_eq!(metrics.get("sockway_kernel_service_shortcut_bytes_total", &service), 300_000.0);
    assert_eq!(metrics.get("sockway_kernel_service_shortcut_messages_total", &service), 200.0);
    assert_eq!(metrics.get("sockway_kernel_service_joins_total", &service), 2.0);
}

#[test]
fn what_went_past_the_agent_is_in_its_record() {
    let Some(joined) = Joined::set() else { return };
    exchange(&joined.client, &joined.server, &[1; 70_000]);
    exchange(&joined.server, &joined.client, &[2; 30_000]);
    drop((joined.client, joined.server));
    wait::until("the relay to be recorded", wait::SOON, || {
        joined.agent.metric("sockway_connections_closed_total", &[("reason", "relay_done")]) == 1.0
    });
    for (side, direction, bytes) in [
        ("downstream", "received", 70_000.0),
        ("upstream", "sent", 70_000.0),
        ("upstream", "received", 30_000.0),
        ("downstream", "sent", 30_000.0),
    ] {
        joined.agent.metric_comes_to("sockway_bytes_total", &[("side", side), ("direction", direction)], bytes);
    }
}

/// Traps T5 and T6: what is sent while the agent still dials goes through it, and nothing that follows overtakes it.
#[test]
fn every_byte_arrives_in_order_whoever_speaks_first_and_in_whatever_pieces() {
    let Some(joined) = Joined::set() else { return };
    let all = pattern(3_000_000);
    // Sends and receives at once, at once or after the other has begun.
    let talk = |stream: &TcpStream, leads: bool, seed| {
        if !leads {
            wait_readable(stream);
        }
        thread::scope(|scope| {
            scope.spawn(|| send_in_chunks(stream, &all, seed));
            reads_whole(stream, &all);
        });
    };
    for round in 0..12 {
        let client_leads = round % 2 == 0;
        thread::scope(|scope| {
            let client = joined.stage.dial(joined.address).unwrap();
            scope.spawn({
                let talk = &talk;
                move || talk(&client, client_leads, round)
            });
            talk(&accept(&joined.listener), !client_leads, round + 100);
        });
    }
    assert!(joined.agent.metric(BYTES, &[]) > 10_000_000.0, "{}", joined.agent.metrics().text());
}

#[test]
fn a_program_may_end_its_direction_and_go_on_receiving() {
    for ends_first in ["client", "server"] {
        let Some(joined) = Joined::set() else { return };
        let (first, second) = match ends_first {
            "client" => (&joined.client, &joined.server),
            _ => (&joined.server, &joined.client),
        };
        exchange(first, second, b"before");
        (&*first).write_all(&pattern(500_000)).unwrap();
        first.shutdown(Shutdown::Write).unwrap();
        reads_whole(second, &pattern(500_000));
        exchange(second, first, b"after the end");
        let all = pattern(5_000_000);
        thread::scope(|scope| {
            scope.spawn(|| send_in_chunks(second, &all, 7));
            reads_whole(first, &all);
        });
        wait::until("the relay to be done", wait::SOON, || {
            joined.agent.metric("sockway_connections_closed_total", &[("reason", "relay_done")]) == 1.0
        });
    }
}

#[test]
fn a_reset_of_either_program_resets_the_other() {
    for resets in ["client", "server"] {
        let Some(joined) = Joined::set() else { return };
        assert!(joined.goes_straight());
        let (resets, other) = match resets {
            "client" => (joined.client, joined.server),
            _ => (joined.server, joined.client),
        };
        socket2::SockRef::from(&resets).set_linger(Some(Duration::ZERO)).unwrap();
        drop(resets);
        let error = Patient(&other).read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        let error = wait::until_some("a write to fail", wait::SOON, || (&other).write(b"x").err());
        assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
    }
}

/// Trap T13: a redirect knows no bound of its own.
#[test]
fn a_reader_that_stops_holds_five_mebibytes_at_most_and_gets_every_byte_in_order() {
    for slow in ["server", "client"] {
        let Some(joined) = Joined::set() else { return };
        let (from, to) = match slow {
            "server" => (&joined.client, &joined.server),
            _ => (&joined.server, &joined.client),
        };
        let sent = fill(from);
        assert!(sent <= 5 << 20, "{sent} bytes queued for a {slow} that does not read");
        joined.agent.metric_comes_to(FALLBACKS, &[("reason", "full")], 1.0);
        let all = pattern(patience::load(64 << 20).max(16 << 20));
        thread::scope(|scope| {
            scope.spawn(|| send_in_chunks(from, &all[sent..], 3));
            reads_whole(to, &all);
        });
        // The other direction is not touched by it.
        exchange(to, from, b"answer");
    }
}

/// Trap T6: redirect, TCP and redirect again, with a proof between that nothing is under way.
#[test]
fn a_direction_comes_back_when_a_slow_reader_has_caught_up() {
    for slow in ["server", "client"] {
        let Some(joined) = Joined::set() else { return };
        let (from, to) = match slow {
            "server" => (&joined.client, &joined.server),
            _ => (&joined.server, &joined.client),
        };
        let all = pattern(2_800_000);
        for _ in 0..5 {
            // More than goes straight to a reader that does not read, and less than the agent then queues behind it.
            (&*from).write_all(&all).unwrap();
            let mut back = vec![0; all.len()];
            Patient(to).read_exact(&mut back).unwrap();
            assert!(back == all, "bytes are in another order");
            wait::until("the pair to be joined again", wait::SOON, || joined.goes_straight());
        }
        joined.agent.metric_reaches(FALLBACKS, &[("reason", "full")], 5.0);
        assert!(joined.directions("came_back") >= 5.0);
    }
}

/// A reader that stumbles loses its sender to TCP and the agent, which must not be for good: the agent holds the sender until the reader has
/// caught up.
#[test]
fn a_sender_that_never_pauses_goes_straight_again_behind_every_stumble_of_its_reader() {
    let Some(joined) = Joined::set() else { return };
    let all = pattern(patience::load(32 << 20));
    // How soon depends on who gets a processor when: on a busy machine it may take many.
    let (stumbles_max, until) = (64, Instant::now() + wait::soon());
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                (&joined.client).write_all(&all).unwrap();
            }
            joined.client.shutdown(Shutdown::Write).unwrap();
        });
        let mut back = vec![0; all.len()];
        for stumble in 1.. {
            thread::sleep(Duration::from_millis(30));
            Patient(&joined.server).read_exact(&mut back).unwrap();
            assert!(back == all, "bytes are in another order");
            if stumble == stumbles_max || Instant::now() > until || joined.directions("came_back") >= 2.0 {
                break;
            }
        }
        over.store(true, Ordering::Relaxed);
        Patient(&joined.server).read_to_end(&mut back).unwrap();
    });
    let fallbacks = joined.agent.metric(FALLBACKS, &[("reason", "full")]);
    let came_back = joined.directions("came_back");
    assert!(came_back >= 2.0, "came back {came_back} times behind {fallbacks} stumbles");
}

/// A message that still goes through TCP when another thread's switches the direction must not be overtaken by what its own thread sends
/// next.
#[test]
fn threads_that_share_a_socket_each_keep_their_order() {
    /// Each byte says whose it is, in two bits, and which one of its thread's, by its number modulo a prime that no message's length is a
    /// multiple of: messages may be cut anywhere while they wait for room.
    fn byte(thread: u8, number: usize) -> u8 {
        thread << 6 | (number % 61) as u8
    }
    let bytes_each = patience::load(8_000_000);
    let Some(joined) = Joined::set() else { return };
    for _ in 0..3 {
        // Anew each time: the switch is at the beginning.
        let client = joined.stage.dial(joined.address).unwrap();
        let server = accept(&joined.listener);
        thread::scope(|scope| {
            let client = &client;
            let send = move |thread: u8| {
                let mut sent = 0;
                while sent < bytes_each {
                    let length = (bytes_each - sent).min(3_000 + sent % 40_000);
                    let message: Vec<u8> = (sent..sent + length).map(|number| byte(thread, number)).collect();
                    sent += (&*client).write(&message).unwrap();
                }
            };
            (0..4).for_each(|thread| drop(scope.spawn(move || send(thread))));
            let (mut read, mut buffer) = ([0; 4], vec![0; 100_000]);
            while read.iter().sum::<usize>() < 4 * bytes_each {
                let length = Patient(&server).read(&mut buffer).unwrap();
                for got in &buffer[..length] {
                    let thread = got >> 6;
                    let number = &mut read[usize::from(thread)];
                    assert_eq!(*got, byte(thread, *number), "thread {thread}, byte {number}");
                    *number += 1;
                }
            }
        });
    }
}

#[test]
fn programs_see_a_reset_when_the_agent_is_killed_behind_what_had_arrived() {
    let Some(mut joined) = Joined::set() else { return };
    assert!(joined.goes_straight());
    (&joined.client).write_all(&pattern(100_000)).unwrap();
    joined.agent.sigkill();
    let mut arrived = vec![0; 100_000];
    Patient(&joined.server).read_exact(&mut arrived).unwrap();
    assert!(arrived == pattern(100_000));
    for stream in [&joined.server, &joined.client] {
        let error = Patient(stream).read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "not an end, as if all had been said");
    }
    // The successor trusts nothing that the dead agent armed, and joins anew.
    joined.agent.start_again();
    joined.client = joined.stage.dial(joined.address).unwrap();
    joined.server = accept(&joined.listener);
    joined.wait_armed(1);
    assert!(joined.goes_straight());
}

#[test]
fn a_shortcut_that_is_switched_off_at_run_time_relays_and_switched_on_joins_what_begins_then() {
    let Some(joined) = Joined::set() else { return };
    assert!(joined.goes_straight());
    joined.set_shortcut("off");
    for _ in 0..20 {
        assert!(!joined.goes_straight());
        exchange(&joined.client, &joined.server, &pattern(100_000));
        exchange(&joined.server, &joined.client, &pattern(100_000));
    }
    joined.agent.metric_comes_to(FALLBACKS, &[("reason", "off")], 2.0);
    joined.set_shortcut("on");
    // Bytes have come to the programs by TCP: a reader may wait for more there, and would not see others.
    assert!(!joined.goes_straight());
    let client = joined.stage.dial(joined.address).unwrap();
    let server = accept(&joined.listener);
    joined.wait_armed(2);
    exchange(&client, &server, b"first");
    joined.agent.metric_reaches(BYTES, &[], 14.0);
}

/// Trap T6 from the reader's side: a `recv()` that waits for all (`MSG_WAITALL`) within TCP sees nothing of what comes by redirect, and
/// takes what comes by TCP next before it. So a joined program never gets anything by TCP.
#[test]
fn a_reader_that_waits_for_all_misses_nothing_and_mixes_nothing_up() {
    let Some(joined) = Joined::set() else { return };
    let all = pattern(6_000_000);
    for round in 0..8 {
        let client = joined.stage.dial(joined.address).unwrap();
        // Before the agent has armed the pair: through it.
        (&client).write_all(&all[..4]).unwrap();
        let server = accept(&joined.listener);
        thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let (mut back, mut buffer) = (Vec::new(), vec![0; 138_452]);
                while back.len() < all.len() {
                    match recv(server.as_raw_fd(), &mut buffer, MsgFlags::MSG_WAITALL) {
                        Ok(0) => panic!("ended after {} bytes", back.len()),
                        Ok(count) => back.extend_from_slice(&buffer[..count]),
                        Err(Errno::EAGAIN) => {}
                        Err(error) => panic!("{error} after {} bytes", back.len()),
                    }
                }
                assert!(back == all, "bytes are in another order");
            });
            joined.wait_armed(round + 2);
            all[4..].chunks(259_236).for_each(|chunk| (&client).write_all(chunk).unwrap());
            reader.join().unwrap();
        });
    }
    assert!(joined.agent.metric(BYTES, &[]) > 1e6);
}

#[test]
fn one_no_is_enough_and_the_other_leg_takes_the_shortcut() {
    // Who says no, and what becomes of it.
    for (clients, origins, result) in [
        ("off", Some("on"), "client_not_in_shortcut"),
        ("on", Some("off"), "endpoint_not_in_shortcut"),
        ("on", None, "endpoint_not_in_shortcut"),
    ] {
        let Some(stage) = Stage::set() else { return };
        let (endpoint, address) = (stage.address(), stage.address());
        let mut config = Config::new().capture_with(&stage.clients, clients);
        if let Some(origins) = origins {
            config = config.capture_with(&stage.origins, origins);
        }
        let listener = stage.origin().listen(endpoint).unwrap();
        let agent = Agent::start(&config.service(Service::agent_tcp("one", address).to(endpoint).set("shortcut: on")));
        let client = stage.dial(address).unwrap();
        let server = accept(&listener);
        let case = (clients, origins);
        for _ in 0..50 {
            exchange(&client, &server, &pattern(3_000));
            exchange(&server, &client, &pattern(3_000));
        }
        let metrics = agent.metrics();
        assert_eq!(metrics.get("sockway_joins_total", &[("result", result)]), 1.0, "{case:?} {}", metrics.text());
        assert_eq!(metrics.get(BYTES, &[]), 0.0, "{case:?}");
        assert_eq!(metrics.get(DIRECTIONS, &[("result", "refused")]), 1.0, "{case:?}");
        // All but what was sent before the leg was released.
        assert!(metrics.get("sockway_kernel_shortcut_bytes_total", &[]) > 290_000.0, "{case:?} {}", metrics.text());
    }
}

#[test]
fn a_pair_whose_service_says_no_is_relayed() {
    let Some(stage) = Stage::set() else { return };
    let (endpoint, address) = (stage.address(), stage.address());
    let listener = stage.origin().listen(endpoint).unwrap();
    let service = Service::agent_tcp("no", address).to(endpoint).set("shortcut: off");
    let agent = Agent::start(&stage.config_with_shortcut().service(service));
    let client = stage.dial(address).unwrap();
    exchange(&client, &accept(&listener), &pattern(100_000));
    assert_eq!(agent.metric("sockway_kernel_shortcut_bytes_total", &[]), 0.0);
    assert_eq!(agent.metric("sockway_joins_total", &[]), 0.0);
}

#[test]
fn thousands_of_connections_that_write_and_close_at_once_arrive_whole() {
    let Some(stage) = Stage::set() else { return };
    let address = stage.address();
    let (origin, lines): (Origin, Arc<Mutex<Vec<String>>>) =
        Origin::collect(stage.origin().listen(stage.address()).unwrap());
    let service = Service::agent_tcp("burst", address).to(origin.address()).set("shortcut: on");
    let agent = Agent::start(&stage.config_with_shortcut().service(service));
    let count = patience::load(4_000);
    // So many that places which are not given back would run out.
    for round in 1..=5 {
        let mut command = Command::new(agent::probe());
        command.args(["burst", &count.to_string(), &format!("round {round}"), &address.to_string()]);
        let output = process::run(Room::of(&stage.clients), command);
        assert_eq!(peers::stdout(&output), "0\n", "{}", String::from_utf8_lossy(&output.stderr));
        // Four thousand connections, each by a thread of its own at the origin.
        wait::until("every line to arrive", 4 * wait::SOON, || lines.lock().unwrap().len() >= round * count);
    }
    let mut lines = lines.lock().unwrap();
    lines.sort_unstable();
    lines.dedup();
    assert_eq!(lines.len(), 5 * count);
    let armed = agent.metric(ARMED.0, ARMED.1);
    wait::until("a pair to be armed still", wait::SOON, || {
        assert!(stage.dial(address).unwrap().write_all(b"last\n").is_ok());
        agent.metric(ARMED.0, ARMED.1) > armed
    });
}

#[test]
fn pairs_are_joined_over_ipv6_and_from_one_family_to_the_other() {
    for (dials_v6, endpoint_v6) in [(true, true), (false, true), (true, false)] {
        let Some(stage) = Stage::set() else { return };
        let of = |v6: bool| if v6 { stage.addresses.next_v6() } else { stage.address() };
        let addresses = (of(dials_v6), of(endpoint_v6));
        let joined = Joined::at(stage, addresses);
        assert!(joined.goes_straight(), "{addresses:?}");
        assert_eq!(sent_by_tcp(&joined.client).unwrap(), 0, "{addresses:?}");
    }
}

#[test]
fn programs_in_different_pods_are_joined() {
    let Some(stage) = Stage::set() else { return };
    let (left, right) = (Netns::new(), Netns::new());
    let wire = Veth::between(&left, &right);
    let client = Door::open(Room::of(&stage.clients).inside(&left));
    let server = Door::open(Room::of(&stage.origins).inside(&right));
    let endpoint = SocketAddr::new(wire.right.into(), 8080);
    let address = SocketAddr::from(([10, 254, 0, 1], 80));
    let config =
        stage.config_with_shortcut().service(Service::agent_tcp("pods", address).to(endpoint).set("shortcut: on"));
    // The agent dials from where it can reach the endpoint.
    let agent = Agent::start_in(Room::default().inside(&left), &config);
    let listener = server.listen(endpoint).unwrap();
    wait::until("the pod's namespace to be served", wait::SOON, || agent.metric("sockway_namespaces", &[]) >= 1.0);
    let near = client.dial(address).unwrap();
    near.set_read_timeout(Some(wait::soon())).unwrap();
    let far = accept(&listener);
    for _ in 0..20 {
        exchange(&near, &far, &pattern(10_000));
        exchange(&far, &near, &pattern(10_000));
    }
    assert!(agent.metric(BYTES, &[]) >= 300_000.0, "{}", agent.metrics().text());
}

#[test]
fn a_websocket_is_joined_once_both_have_switched() {
    let Some(stage) = Stage::set() else { return };
    let (endpoint, address) = (stage.address(), stage.address());
    let listener = stage.origin().listen(endpoint).unwrap();
    let agent = Agent::start(
        &stage.config_with_shortcut().service(Service::http("web", address).to(endpoint).set("shortcut: on")),
    );
    let client = stage.dial(address).unwrap();
    (&client).write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").unwrap();
    let server = accept(&listener);
    read_head(&server);
    (&server)
        .write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        .unwrap();
    read_head(&client);
    wait::until("the pair to be armed", wait::SOON, || agent.metric(ARMED.0, ARMED.1) == 1.0);
    for _ in 0..20 {
        exchange(&client, &server, &pattern(10_000));
        exchange(&server, &client, &pattern(10_000));
    }
    assert_eq!(agent.metric(BYTES, &[]), 400_000.0, "{}", agent.metrics().text());
}

fn read_head(stream: &TcpStream) {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        Patient(stream).read_exact(&mut byte).unwrap();
        head.extend(byte);
    }
}
