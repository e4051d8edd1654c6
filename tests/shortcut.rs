//! The shortcut: bytes go socket to socket, bounded and in order; off where this kernel's deviations would show (`deviations.rs`).

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    process::Command,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use sockway_tests::{
    agent::{self, Agent, sockway},
    config::{Config, Service},
    door::Door,
    netns::{Netns, Veth},
    origin::{Origin, echoes, read_name},
    pair::{Pair, accept, fill},
    patience,
    peers::{self, Nginx, Redis, Wrk},
    process::{self, Room},
    socket::{disconnect, sent_by_tcp},
    stage::Stage,
    wait,
    web::pattern,
};

const BYTES: &str = "sockway_kernel_shortcut_bytes_total";
const MESSAGES: &str = "sockway_kernel_shortcut_messages_total";
const FALLBACKS: &str = "sockway_kernel_shortcut_fallbacks_total";

#[test]
fn bytes_between_two_programs_go_from_socket_to_socket_both_ways() {
    let Some(stage) = Stage::set() else { return };
    let (origin, service) = (stage.echo("origin"), stage.address());
    let pair = Service::kernel_tcp("pair", service).to(origin.address()).set("shortcut: on");
    let agent = Agent::start(&stage.config_with_shortcut().service(pair));
    let mut stream = stage.dial(service).unwrap();
    assert_eq!(read_name(&mut stream).unwrap(), "origin");
    for _ in 0..100 {
        assert!(echoes(&stream, &[1; 1_000]).unwrap());
    }
    agent.metric_reaches(BYTES, &[], 200_000.0);
    agent.metric_reaches(MESSAGES, &[], 200.0);
    agent.metric_comes_to("sockway_kernel_shortcut_sockets_total", &[("result", "client")], 1.0);
    agent.metric_comes_to("sockway_kernel_shortcut_sockets_total", &[("result", "server")], 1.0);
    assert_eq!(agent.metric(FALLBACKS, &[]), 0.0);
}

#[test]
fn both_legs_of_an_http_call_take_the_shortcut() {
    let Some(stage) = Stage::set() else { return };
    let (web, service) = (stage.web("web"), stage.address());
    let http = Service::http("web", service).to(web.address()).set("shortcut: on");
    let agent = Agent::start(&stage.config_with_shortcut().service(http));
    let mut session = stage.session(service);
    for _ in 0..100 {
        assert_eq!(session.get("/bytes/1000").unwrap().body, pattern(1_000));
    }
    // Request and answer on each of two legs.
    let messages = agent.metric(MESSAGES, &[]);
    assert!(messages >= 400.0, "{messages} messages of 100 calls");
    agent.metric_comes_to("sockway_kernel_shortcut_sockets_total", &[("result", "server")], 2.0);
}

#[test]
fn one_no_is_enough() {
    // Who says no: the clients' rule, the origins' rule, the origins by not being captured, the service.
    for (clients, origins, service_says) in
        [("off", Some("on"), "on"), ("on", Some("off"), "on"), ("on", None, "on"), ("on", Some("on"), "off")]
    {
        let Some(stage) = Stage::set() else { return };
        let (origin, service) = (stage.echo("origin"), stage.address());
        let mut config = Config::new().capture_with(&stage.clients, clients);
        if let Some(origins) = origins {
            config = config.capture_with(&stage.origins, origins);
        }
        let pair = Service::kernel_tcp("pair", service).to(origin.address()).set(&format!("shortcut: {service_says}"));
        let agent = Agent::start(&config.service(pair));
        let stream = stage.dial(service).unwrap();
        assert_eq!(read_name(&mut &stream).unwrap(), "origin");
        assert!(echoes(&stream, &[1; 100_000]).unwrap());
        let metrics = agent.metrics();
        let case = (clients, origins, service_says);
        assert_eq!(metrics.get(BYTES, &[]), 0.0, "{case:?}");
        for enrolled in ["client", "server"] {
            assert_eq!(metrics.get("sockway_kernel_shortcut_sockets_total", &[("result", enrolled)]), 0.0, "{case:?}");
        }
    }
}

#[test]
fn one_no_is_enough_where_rules_nest() {
    for (outer, inner, joined) in [("on", "on", true), ("on", "off", false), ("off", "on", false)] {
        let Some(stage) = Stage::set() else { return };
        let (origin, service) = (stage.echo("origin"), stage.address());
        let pod = stage.clients.child("pod");
        let config = Config::new()
            .capture_with(&stage.clients, outer)
            .capture_with(&pod, inner)
            .capture_with(&stage.origins, "on");
        let agent = Agent::start(
            &config.service(Service::kernel_tcp("pair", service).to(origin.address()).set("shortcut: on")),
        );
        let door = Door::open(Room::of(&pod));
        let stream = door.dial(service).unwrap();
        assert_eq!(read_name(&mut &stream).unwrap(), "origin");
        assert!(echoes(&stream, &[1; 10_000]).unwrap());
        assert_eq!(agent.metric(BYTES, &[]) > 0.0, joined, "{outer} outside, {inner} inside");
        drop((agent, door));
    }
}

#[test]
fn auto_means_what_the_self_test_of_the_running_kernel_says() {
    let Some(stage) = Stage::set() else { return };
    let (origin, service) = (stage.echo("origin"), stage.address());
    let config = Config::new().capture_with(&stage.clients, "auto").capture_with(&stage.origins, "auto");
    let agent = Agent::start(&config.service(Service::kernel_tcp("pair", service).to(origin.address())));
    let metrics = agent.metrics();
    let check = |name: &str| {
        assert!(metrics.has("sockway_kernel_capability", &[("name", name)]), "{name}");
        metrics.get("sockway_kernel_capability", &[("name", name)]) == 1.0
    };
    let checks = ["join", "fionread", "splice", "blocking_read", "order", "bound"]
        .map(|name| check(&format!("shortcut_{name}")));
    let passes = checks.iter().all(|passed| *passed);

    let mut stream = stage.dial(service).unwrap();
    assert_eq!(read_name(&mut stream).unwrap(), "origin");
    assert!(echoes(&stream, &[1; 10_000]).unwrap());
    let bytes = agent.metric(BYTES, &[]);
    assert_eq!(bytes > 0.0, passes, "{bytes} bytes by the shortcut; self-test {checks:?}");
    // From 6.1 to 7.2 a shortcut is bounded and in order, and splice does not see it; FIONREAD is right on 7.2 and on none before.
    assert_eq!(
        checks,
        [true, checks[1], false, checks[3], true, true],
        "this kernel mends or breaks something: revisit the self-test"
    );
}

/// T13: a redirect knows no bound of its own; T6: what falls back never comes back before what went before it.
#[test]
fn a_slow_reader_is_bounded_and_gets_every_byte_in_order() {
    let Some(pair) = Pair::join() else { return };
    let sent = fill(&pair.client);
    // One MiB by the shortcut, and what TCP itself queues at either end.
    assert!(sent < 16 << 20, "{sent} bytes queued for a reader that does not read");
    pair.agent.metric_comes_to(FALLBACKS, &[("reason", "full")], 1.0);

    let all = pattern(patience::load(64 << 20).max(16 << 20));
    thread::scope(|scope| {
        scope.spawn(|| {
            (&pair.client).write_all(&all[sent..]).unwrap();
            pair.client.shutdown(Shutdown::Write).unwrap();
        });
        let mut back = Vec::with_capacity(all.len());
        (&pair.server).read_to_end(&mut back).unwrap();
        assert_eq!(back.len(), all.len());
        assert!(back == all, "bytes are in another order");
    });
    // The other direction is not touched by it.
    (&pair.server).write_all(b"answer").unwrap();
    let mut answer = [0; 6];
    (&pair.client).read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"answer");
}

/// T13: a writer at the bound of a redirect would never be woken.
#[test]
fn a_writer_at_the_bound_is_woken_when_the_reader_reads() {
    let Some(pair) = Pair::join() else { return };
    let sent = fill(&pair.client);
    let epoll = Epoll::new(EpollCreateFlags::empty()).unwrap();
    let flags = EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
    epoll.add(&pair.client, EpollEvent::new(flags, 0)).unwrap();
    let mut events = [EpollEvent::empty()];
    let wait = |events: &mut [_], milliseconds: u16| epoll.wait(events, EpollTimeout::from(milliseconds)).unwrap();
    assert_eq!(wait(&mut events, 200), 0, "there is no room");

    let mut rest = sent;
    let mut buffer = vec![0; 1 << 20];
    while rest > 0 {
        rest -= (&pair.server).read(&mut buffer).unwrap();
    }
    assert_eq!(wait(&mut events, 5_000), 1, "an edge-triggered writer would sleep for ever");
}

/// T5: bytes that came by TCP before the enrolment must not be overtaken by redirected ones.
#[test]
fn what_is_sent_before_accept_arrives() {
    let Some(pair) = Pair::join() else { return };
    for (messages, close) in [(1, false), (100, false), (1, true), (100, true)] {
        let early = pair.stage.dial(pair.service).unwrap();
        for index in 0..messages {
            (&early).write_all(&[index as u8; 1_000]).unwrap();
        }
        let kept = (!close).then_some(early);
        let mut late = accept(&pair.listener);
        let mut back = vec![0; messages * 1_000];
        late.read_exact(&mut back).unwrap();
        assert!(back.chunks(1_000).enumerate().all(|(index, chunk)| chunk.iter().all(|byte| *byte == index as u8)));
        drop(kept);
        assert_eq!(late.read(&mut [0]).unwrap(), 0, "and then the end");
    }
}

/// T4: a socket that is taken out of the sockmap with redirected bytes unread loses them.
#[test]
fn two_thousand_connections_that_write_and_close_at_once_arrive_whole() {
    let Some(stage) = Stage::set() else { return };
    let (kernel, through_agent) = (stage.address(), stage.address());
    let collect = || Origin::collect(stage.origin().listen(stage.address()).unwrap());
    let ((first, first_lines), (second, second_lines)): ((Origin, Arc<Mutex<Vec<String>>>), _) = (collect(), collect());
    let agent = Agent::start(
        &stage
            .config_with_shortcut()
            .service(Service::kernel_tcp("kernel", kernel).to(first.address()).set("shortcut: on"))
            .service(Service::agent_tcp("agent", through_agent).to(second.address()).set("shortcut: on")),
    );
    for (service, lines) in [(kernel, first_lines), (through_agent, second_lines)] {
        let count = patience::load(2_000);
        let mut command = Command::new(agent::probe());
        command.args(["burst", &count.to_string(), "hello", &service.to_string()]);
        let output = process::run(Room::of(&stage.clients), command);
        assert_eq!(peers::stdout(&output), "0\n", "{}", String::from_utf8_lossy(&output.stderr));
        wait::until("every line to arrive", wait::SOON, || lines.lock().unwrap().len() >= count);
        let mut lines = lines.lock().unwrap();
        lines.sort_unstable();
        lines.dedup();
        assert_eq!(lines.len(), count);
        assert!(lines.iter().all(|line| line.ends_with(&format!("@{service}"))));
    }
    assert!(agent.metric(BYTES, &[]) > 0.0);
}

#[test]
fn a_reset_breaks_a_joined_pair_like_any_other() {
    let Some(pair) = Pair::join() else { return };
    socket2::SockRef::from(&pair.client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(pair.client);
    let error = (&pair.server).read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

/// T17: the peer's memory may be another's by now; T10: and a socket is known by its cookie, not by its address.
#[test]
fn a_joined_socket_may_be_disconnected_and_joined_again() {
    let Some(mut pair) = Pair::join() else { return };
    for _ in 0..5 {
        disconnect(&pair.client).unwrap();
        let again = pair.stage.client().redial(std::os::fd::AsFd::as_fd(&pair.client), pair.service).unwrap();
        (pair.client, pair.server) = (again, accept(&pair.listener));
        // Joined or not (the kernel may refuse to enrol a socket twice), every byte arrives, both ways.
        pair.redirects(b"up");
        (&pair.server).write_all(b"down").unwrap();
        let mut back = [0; 4];
        pair.client.set_read_timeout(Some(wait::soon())).unwrap();
        (&pair.client).read_exact(&mut back).unwrap();
        assert_eq!(&back, b"down");
    }
}

/// T39: what the agent has attached must outlive it.
#[test]
fn a_joined_pair_does_not_notice_that_the_agent_dies() {
    let Some(mut pair) = Pair::join() else { return };
    pair.agent.sigkill();
    let exchange = |bytes: &[u8], from: &TcpStream, to: &TcpStream| {
        (&*from).write_all(bytes).unwrap();
        let mut back = vec![0; bytes.len()];
        (&*to).read_exact(&mut back).unwrap();
        assert_eq!(back, bytes);
    };
    for _ in 0..100 {
        exchange(&[1; 5_000], &pair.client, &pair.server);
        exchange(&[2; 5_000], &pair.server, &pair.client);
    }
    let late = pair.stage.dial(pair.service).unwrap();
    exchange(&[3; 5_000], &late, &accept(&pair.listener));
    assert_eq!(sent_by_tcp(&pair.client).unwrap(), 0, "still by the shortcut");
    assert_eq!(sent_by_tcp(&late).unwrap(), 0, "new pairs, too: the kernel half is pinned");
}

#[test]
fn a_joined_pair_goes_on_over_tcp_when_the_kernel_half_is_detached() {
    let Some(mut pair) = Pair::join() else { return };
    pair.agent.sigkill();
    assert!(sockway(&["detach", "--instance", pair.agent.instance()]).status.success());
    // The kernel frees the sockhash some time after its last reference; both before and after, every byte must arrive.
    let mut by_tcp = 0;
    wait::until("bytes to go by TCP", wait::SOON, || {
        (&pair.client).write_all(b"message").unwrap();
        let mut back = [0; 7];
        (&pair.server).read_exact(&mut back).unwrap();
        assert_eq!(&back, b"message");
        by_tcp = sent_by_tcp(&pair.client).unwrap();
        by_tcp > 0
    });
}

#[test]
fn programs_in_different_pods_take_the_shortcut() {
    let Some(stage) = Stage::set() else { return };
    let (left, right) = (Netns::new(), Netns::new());
    let wire = Veth::between(&left, &right);
    let client = Door::open(Room::of(&stage.clients).inside(&left));
    let server = Door::open(Room::of(&stage.origins).inside(&right));
    let endpoint = SocketAddr::new(wire.right.into(), 8080);
    let _origin = Origin::echo(server.listen(endpoint).unwrap(), "right");
    let service = SocketAddr::from(([10, 254, 0, 1], 80));
    let agent = Agent::start(
        &stage.config_with_shortcut().service(Service::kernel_tcp("pods", service).to(endpoint).set("shortcut: on")),
    );
    let stream = client.dial(service).unwrap();
    assert_eq!(read_name(&mut &stream).unwrap(), "right");
    for _ in 0..20 {
        assert!(echoes(&stream, &[1; 10_000]).unwrap());
    }
    agent.metric_reaches(BYTES, &[], 400_000.0);
    assert_eq!(sent_by_tcp(&stream).unwrap(), 0);
}

#[test]
fn ipv6_pairs_take_the_shortcut() {
    let Some(stage) = Stage::set() else { return };
    let (endpoint, service) = (stage.addresses.next_v6(), stage.addresses.next_v6());
    let _origin = stage.echo_at("six", endpoint);
    let agent = Agent::start(
        &stage.config_with_shortcut().service(Service::kernel_tcp("six", service).to(endpoint).set("shortcut: on")),
    );
    let mut stream = stage.dial(service).unwrap();
    assert_eq!(read_name(&mut stream).unwrap(), "six");
    assert!(echoes(&stream, &[1; 10_000]).unwrap());
    agent.metric_reaches(BYTES, &[], 20_000.0);
}

#[test]
fn real_programs_do_not_notice_the_shortcut() {
    let Some(stage) = Stage::set() else { return };
    let (nginx, redis) = (stage.address(), stage.address());
    let (kernel, http, pipe) = (stage.address(), stage.address(), stage.address());
    let _nginx = Nginx::start(Room::of(&stage.origins), stage.origin(), nginx, "nginx");
    let _redis = Redis::start(Room::of(&stage.origins), redis);
    let agent = Agent::start(
        &stage
            .config_with_shortcut()
            .service(Service::kernel_tcp("kernel", kernel).to(nginx).set("shortcut: on"))
            .service(Service::http("http", http).to(nginx).set("shortcut: on"))
            .service(Service::kernel_tcp("redis", pipe).to(redis).set("shortcut: on")),
    );
    let room = Room::of(&stage.clients);
    for service in [kernel, http] {
        assert_eq!(peers::stdout(&peers::curl(room, &[&format!("http://{service}/")])), "nginx\n");
        let load = Wrk::start(room, service, 16, Duration::from_secs(2)).report();
        assert_eq!((load.socket_errors, load.bad_answers), (0, 0), "{load:?}");
        assert!(load.requests > patience::load(1_000) as u64, "{load:?}");
    }
    let requests = patience::load(20_000).to_string();
    let report = peers::redis(room, "redis-benchmark", pipe, &["-q", "-n", &requests, "-c", "20", "-t", "set,get"]);
    assert_eq!(report.matches("requests per second").count(), 2, "{report}");
    assert!(agent.metric(BYTES, &[]) > patience::load(1_000_000) as f64);
}
