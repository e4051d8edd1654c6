//! `sockway flows`: every connection of a service is told when it ends: who, to what, by which path, how much, how long, and how it ended.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv6Addr, Shutdown, SocketAddr, TcpStream},
    os::fd::AsFd,
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use serde_json::Value;
use socket2::SockRef;
use sockway_tests::{
    agent::{self, Agent, command_of, sockway},
    cgroup::Cgroup,
    config::{Config, Service},
    datagram::name_of,
    door::Door,
    netns::Netns,
    origin::{Origin, echoes, read_name},
    process::{self, Process, Room},
    stage::{Stage, allowed},
    wait,
};

/// A running `sockway flows --json`.
struct Tail(Process);

impl Tail {
    /// Starts to watch, and waits until the watch has begun.
    #[track_caller]
    fn begin(instance: &str, options: &[&str]) -> Self {
        let tail = Self(Process::spawn(Room::default(), command_of(&Self::command(instance, options))));
        wait::until("the watch to begin", wait::SOON, || tail.0.stderr().contains("watching instance"));
        tail
    }

    fn command<'a>(instance: &'a str, options: &[&'a str]) -> Vec<&'a str> {
        [&["flows", "--json", "--instance", instance], options].concat()
    }

    /// What it has told so far.
    fn told(&self) -> Vec<Value> {
        let text = self.0.stdout();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
    }

    /// Waits for so many connections, of all that it tells.
    #[track_caller]
    fn wait_for(&self, count: usize) -> Vec<Value> {
        wait::until(&format!("{count} connections to be told"), wait::SOON, || self.told().len() >= count);
        let told = self.told();
        assert_eq!(told.len(), count, "{told:#?}");
        told
    }

    /// The one connection that it tells.
    #[track_caller]
    fn only(&self) -> Value {
        self.wait_for(1).remove(0)
    }
}

fn said(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Sends bytes to an echo origin, takes them back and closes in order.
fn converse(mut stream: TcpStream, bytes: usize) {
    read_name(&mut stream).expect("a name");
    assert!(echoes(&stream, &vec![7; bytes]).expect("an echo"));
    stream.shutdown(Shutdown::Write).expect("an end");
    assert_eq!(stream.read(&mut [0]).expect("the other end"), 0);
}

#[test]
fn a_connection_is_told_with_who_what_where_and_how_much() {
    let Some(stage) = Stage::set() else { return };
    let (origin, service) = (stage.echo("origin"), stage.address());
    let agent = Agent::start(&stage.config().service(Service::kernel_tcp("shop/orders", service).to(origin.address())));
    let tail = Tail::begin(agent.instance(), &[]);
    let stream = stage.dial(service).unwrap();
    let local = stream.local_addr().unwrap().to_string();
    assert_eq!(tail.told(), [] as [Value; 0], "it is told when it ends");
    converse(stream, 100_000);

    let flow = tail.only();
    for (key, value) in [
        ("command", "sockway-probe"),
        ("cgroup", stage.clients.path()),
        ("netns", "host"),
        ("local", &local),
        ("service", "shop/orders"),
        ("dialled", &service.to_string()),
        ("protocol", "tcp"),
        ("endpoint", &origin.address().to_string()),
        ("path", "kernel"),
        ("verdict", "balanced"),
        ("ended", "closed by the program"),
    ] {
        assert_eq!(flow[key], value, "{key} of {flow:#}");
    }
    let number = |key: &str| flow[key].as_u64().unwrap_or_else(|| panic!("{key} of {flow:#}"));
    assert_eq!(number("pid"), u64::from(stage.client().pid()));
    assert_eq!((number("sent_bytes"), number("received_bytes")), (100_000, 100_000 + "origin\n".len() as u64));
    assert_eq!((number("shortcut_sent_bytes"), number("retransmits")), (0, 0));
    assert!(number("connect_us") > 0 && number("rtt_us") > 0);
    assert!(number("lasted_us") >= number("connect_us"), "{flow:#}");
}

#[test]
fn what_went_from_socket_to_socket_is_counted_apart() {
    let Some(stage) = Stage::set() else { return };
    let (origin, service) = (stage.echo("origin"), stage.address());
    let direct = Service::kernel_tcp("direct", service).set("shortcut: on").to(origin.address());
    let agent = Agent::start(&stage.config_with_shortcut().service(direct));
    let tail = Tail::begin(agent.instance(), &[]);
    let mut stream = stage.dial(service).unwrap();
    read_name(&mut stream).unwrap();
    assert!(echoes(&stream, &[7; 1000]).unwrap());
    drop(stream);
    let flow = tail.only();
    assert_eq!((&flow["path"], &flow["verdict"]), (&"shortcut".into(), &"balanced".into()), "{flow:#}");
    assert_eq!((&flow["sent_bytes"], &flow["shortcut_sent_bytes"]), (&0.into(), &1000.into()), "{flow:#}");
}

#[test]
fn the_text_is_a_table_with_one_line_for_each_connection() {
    let Some(stage) = Stage::set() else { return };
    let (origin, service) = (stage.echo("origin"), stage.address());
    let agent = Agent::start(&stage.config().service(Service::kernel_tcp("orders", service).to(origin.address())));
    let mut tail =
        Process::spawn(Room::default(), command_of(&["flows", "--instance", agent.instance(), "--count", "1"]));
    wait::until("the watch to begin", wait::SOON, || tail.stderr().contains("watching instance"));
    converse(stage.dial(service).unwrap(), 10);
    assert!(tail.wait(wait::SOON).success());
    let text = tail.stdout();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(lines[0].starts_with("TIME (UTC)"), "{text}");
    let column = |name: &str| lines[0].find(name).unwrap_or_else(|| panic!("no {name} in {text}"));
    for (name, cell) in
        [("SERVICE", "orders"), ("ENDPOINT", &origin.address().to_string()), ("PATH", "kernel"), ("SENT", "10")]
    {
        assert!(lines[1][column(name)..].starts_with(cell), "{name} in\n{text}");
    }
    assert!(lines[1].ends_with(&format!("closed by the program [{} in host]", stage.clients.path())), "{text}");
    assert!(tail.stderr().contains("1 connections shown, 0 over the rate, 0 lost"), "{}", tail.stderr());
}

#[test]
fn how_a_connection_ended_is_told() {
    let Some(stage) = Stage::set() else { return };
    let (silent, service) = (stage.address(), stage.address());
    let (nobody, refusing) = (stage.address(), stage.address());
    // Reads a line, then ends the connection as the line says.
    let origin = Origin::start(stage.origin().listen(silent).unwrap(), |mut stream, _| {
        let mut word = [0; 5];
        stream.read_exact(&mut word)?;
        if &word == b"reset" {
            SockRef::from(stream).set_linger(Some(Duration::ZERO))?;
        }
        if &word != b"reset" && &word != b"close" {
            let _ = stream.read(&mut [0]);
        }
        stream.flush()
    });
    let agent = Agent::start(
        &stage
            .config()
            .service(Service::kernel_tcp("up", service).to(origin.address()))
            .service(Service::kernel_tcp("down", nobody).to(refusing)),
    );
    let ended = |act: &dyn Fn()| {
        let tail = Tail::begin(agent.instance(), &["--count", "1"]);
        act();
        let flow = tail.only();
        flow["ended"].as_str().unwrap().to_owned()
    };
    let dial = |word: &[u8; 5]| {
        let mut stream = stage.dial(service).unwrap();
        stream.write_all(word).unwrap();
        stream
    };
    assert_eq!(ended(&|| drop(dial(b"byyou"))), "closed by the program");
    assert_eq!(
        ended(&|| {
            let mut stream = dial(b"close");
            assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        }),
        "closed by the peer"
    );
    assert_eq!(
        ended(&|| {
            let mut stream = dial(b"reset");
            assert!(stream.read(&mut [0]).is_err());
        }),
        "reset by the peer"
    );
    assert_eq!(
        ended(&|| {
            let stream = dial(b"byyou");
            SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        }),
        "reset by the program"
    );
    assert_eq!(ended(&|| assert!(stage.dial(nobody).is_err())), "refused");
}

#[test]
fn a_connection_through_the_agent_and_one_that_the_kernel_balanced_in_its_stead_are_told_apart() {
    let Some(stage) = Stage::set() else { return };
    let (web, service) = (stage.web("web"), stage.address());
    let mut agent = Agent::start(&stage.config().service(Service::http("web", service).to(web.address())));
    let tail = Tail::begin(agent.instance(), &["--count", "1"]);
    assert_eq!(stage.session(service).get("/").unwrap().status, 200);
    let flow = tail.only();
    assert_eq!((&flow["path"], &flow["verdict"], &flow["endpoint"]), (&"agent".into(), &"agent".into(), &Value::Null));

    // The hooks tell by themselves, and the names are in the tables.
    agent.sigkill();
    let tail = Tail::begin(agent.instance(), &["--service", "web"]);
    assert_eq!(stage.session(service).get("/").unwrap().status, 200);
    let flow = tail.only();
    let verdict = flow["verdict"].as_str().unwrap();
    assert!(flow["path"] == "kernel" && verdict.starts_with("fail_open_"), "{flow:#}");
    assert_eq!((&flow["service"], &flow["endpoint"]), (&"web".into(), &web.address().to_string().into()));
}

#[test]
fn a_dial_that_found_no_endpoint_is_told_with_its_reason() {
    let Some(stage) = Stage::set() else { return };
    let service = stage.address();
    let other_family = SocketAddr::from((Ipv6Addr::LOCALHOST, 9));
    let mut agent = Agent::start(&stage.config().service(Service::agent_tcp("other", service).to(other_family)));
    agent.sigkill();
    let tail = Tail::begin(agent.instance(), &[]);
    assert!(stage.dial(service).is_err());
    let flow = tail.only();
    assert_eq!((&flow["path"], &flow["verdict"]), (&"passed".into(), &"no_endpoint".into()), "{flow:#}");
    assert_eq!((&flow["command"], &flow["ended"]), (&"sockway-probe".into(), &"no endpoint".into()));
}

#[test]
fn filters_show_one_service_one_process_or_one_endpoint() {
    let Some(stage) = Stage::set() else { return };
    let (one, two) = (stage.echo("one"), stage.echo("two"));
    let (single, both) = (stage.address(), stage.address());
    let agent = Agent::start(
        &stage
            .config()
            .service(Service::kernel_tcp("single", single).to(one.address()))
            .service(Service::kernel_tcp("both", both).to(one.address()).to(two.address())),
    );
    let second = Door::open(Room::of(&stage.clients));
    let (pid, endpoint, address) = (second.pid().to_string(), two.address().to_string(), both.to_string());
    for (options, expected) in
        [(["--service", "both"], 3), (["--service", &address], 3), (["--endpoint", &endpoint], 1), (["--pid", &pid], 1)]
    {
        let tail = Tail::begin(agent.instance(), &options);
        // Two endpoints in turn: of two dials one goes to each.
        for service in [single, both, both] {
            converse(stage.dial(service).unwrap(), 1);
        }
        converse(second.dial(if expected == 3 { both } else { single }).unwrap(), 1);
        // One that is told for sure, behind which nothing is under way.
        tail.wait_for(expected);
    }
}

#[test]
fn a_connection_that_began_before_the_watch_has_a_command_too() {
    let Some(stage) = Stage::set() else { return };
    let (origin, service) = (stage.echo("origin"), stage.address());
    let agent = Agent::start(&stage.config().service(Service::kernel_tcp("old", service).to(origin.address())));
    let stream = stage.dial(service).unwrap();
    let tail = Tail::begin(agent.instance(), &[]);
    converse(stream, 1);
    let flow = tail.only();
    assert_eq!((&flow["command"], &flow["cgroup"]), (&"sockway-probe".into(), &stage.clients.path().into()));
}

#[test]
fn a_socket_that_dials_twice_is_told_twice() {
    let Some(stage) = Stage::set() else { return };
    let (origin, up, down) = (stage.echo("origin"), stage.address(), stage.address());
    let agent = Agent::start(
        &stage
            .config()
            .service(Service::kernel_tcp("down", down).to(stage.address()))
            .service(Service::kernel_tcp("up", up).to(origin.address())),
    );
    let tail = Tail::begin(agent.instance(), &[]);
    let socket = stage.client().begin(down).unwrap();
    tail.wait_for(1);
    assert!(socket.take_error().unwrap().is_some(), "the first dial was refused");
    socket.set_nonblocking(false).unwrap();
    let stream = stage.client().redial(socket.as_fd(), up).unwrap();
    drop(socket);
    converse(stream, 1);
    let told = tail.wait_for(2);
    let services: Vec<&Value> = told.iter().map(|flow| &flow["service"]).collect();
    assert_eq!(services, ["down", "up"]);
    assert_eq!(told[0]["connect_us"], Value::Null, "never established: {:#}", told[0]);
}

#[test]
fn where_capture_rules_nest_a_connection_is_told_and_counted_once() {
    let Some(stage) = Stage::set() else { return };
    let inner = stage.clients.child("inner");
    let (origin, service) = (stage.echo("origin"), stage.address());
    let config = stage.config().capture(&inner).service(Service::kernel_tcp("nested", service).to(origin.address()));
    let agent = Agent::start(&config);
    let door = Door::open(Room::of(&inner));
    let tail = Tail::begin(agent.instance(), &[]);
    for _ in 0..3 {
        converse(door.dial(service).unwrap(), 1);
    }
    let told = tail.wait_for(3);
    assert_eq!(told[0]["cgroup"], inner.path());
    let count = |name: &str| agent.metric(name, &[("service", "nested")]);
    assert_eq!(count("sockway_kernel_endpoint_connect_seconds_count"), 3.0);
    assert_eq!(count("sockway_kernel_endpoint_rtt_seconds_count"), 3.0);
}

#[test]
fn ipv6_and_other_network_namespaces_are_told_with_their_names() {
    let Some(stage) = Stage::set() else { return };
    let netns = Netns::new();
    netns.add_address("fd00:5ee4::1/128");
    let room = Room::of(&stage.clients).inside(&netns);
    let (inside, endpoint) = (Door::open(room), "[fd00:5ee4::1]:8080".parse().unwrap());
    let origin = Origin::echo(inside.listen(endpoint).unwrap(), "six");
    let service: SocketAddr = "[fd00:5ee4::a]:80".parse().unwrap();
    let agent = Agent::start(&stage.config().service(Service::kernel_tcp("six", service).to(origin.address())));
    let tail = Tail::begin(agent.instance(), &[]);
    converse(inside.dial(service).unwrap(), 5);
    let flow = tail.only();
    assert_eq!((&flow["dialled"], &flow["endpoint"]), (&service.to_string().into(), &endpoint.to_string().into()));
    assert_eq!(flow["netns"], netns.name(), "{flow:#}");
    assert_eq!(flow["sent_bytes"], 5);
}

#[test]
fn what_is_over_the_rate_is_counted_and_said() {
    let Some(stage) = Stage::set() else { return };
    let (endpoint, service) = (stage.address(), stage.address());
    let (_origin, lines) = Origin::collect(stage.origin().listen(endpoint).unwrap());
    let agent = Agent::start(&stage.config().service(Service::kernel_tcp("many", service).to(endpoint)));
    let mut tail = Tail::begin(agent.instance(), &["--rate", "1"]);
    // What is dialled in the eighth of a second in which the watch begins may be from before it.
    thread::sleep(Duration::from_millis(150));
    let mut burst = Command::new(agent::probe());
    burst.args(["burst", "500", "x", &service.to_string()]);
    assert!(process::run(Room::of(&stage.clients), burst).status.success());
    wait::until("every line to arrive", wait::SOON, || lines.lock().unwrap().len() == 500);
    let over = || agent.metric("sockway_kernel_flows_total", &[("result", "over_rate")]);
    let told = || agent.metric("sockway_kernel_flows_total", &[("result", "reported")]);
    wait::until("every connection to be counted", wait::SOON, || over() + told() == 500.0);
    assert!(over() > 0.0 && told() > 0.0, "{} over the rate, {} told", over(), told());
    tail.0.signal(nix::sys::signal::Signal::SIGINT);
    assert!(tail.0.wait(wait::SOON).success());
    let summary = format!("{} connections shown, {} over the rate, 0 lost", told(), over());
    assert!(tail.0.stderr().contains(&summary), "{summary} in {}", tail.0.stderr());
    // The program is gone: it was noted who is to be told of when it dialled.
    assert!(tail.told().iter().all(|flow| flow["command"] == "sockway-probe"), "{:#?}", tail.told());
}

#[test]
fn what_a_slow_reader_is_not_told_at_once_it_is_told_later() {
    let Some(stage) = Stage::set() else { return };
    let (endpoint, service) = (stage.address(), stage.address());
    let (_origin, lines) = Origin::collect(stage.origin().listen(endpoint).unwrap());
    let agent = Agent::start(&stage.config().service(Service::kernel_tcp("many", service).to(endpoint)));
    let mut command =
        command_of(&Tail::command(agent.instance(), &["--rate", "1000000", "--count", "700", "--for", "60"]));
    let mut tail = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(tail.stderr.take().unwrap()).lines();
    assert!(said.next().unwrap().unwrap().contains("watching instance"));
    let burst = |count: usize, all: usize| {
        let mut burst = Command::new(agent::probe());
        burst.args(["burst", &count.to_string(), "x", &service.to_string()]);
        assert!(process::run(Room::of(&stage.clients), burst).status.success());
        wait::until("every line to arrive", wait::SOON, || lines.lock().unwrap().len() == all);
    };
    // More than the pipe has room for; and its reader is away for longer than a watch holds that nobody renews.
    burst(500, 500);
    thread::sleep(Duration::from_millis(2_500));
    burst(200, 700);
    let told = BufReader::new(tail.stdout.take().unwrap()).lines().count();
    assert_eq!(told, 700);
    let summary = said.last().unwrap().unwrap();
    assert!(summary.contains("700 connections shown, 0 over the rate, 0 lost"), "{summary}");
    assert!(tail.wait().unwrap().success());
}

#[test]
fn one_watches_at_a_time_and_a_killed_watcher_keeps_nobody_out() {
    let Some(stage) = Stage::set() else { return };
    let agent = Agent::start(&stage.config());
    let mut first = Tail::begin(agent.instance(), &[]);
    let second = sockway(&Tail::command(agent.instance(), &["--for", "0"]));
    assert_eq!(second.status.code(), Some(69), "{}", said(&second));
    assert!(said(&second).contains(&format!("process {} watches", first.0.pid())), "{}", said(&second));
    first.0.kill();
    assert!(sockway(&Tail::command(agent.instance(), &["--for", "0.01"])).status.success());
}

#[test]
fn a_killed_watcher_is_told_nothing_for_long() {
    let Some(stage) = Stage::set() else { return };
    let (origin, service) = (stage.echo("origin"), stage.address());
    let agent = Agent::start(&stage.config().service(Service::kernel_tcp("quiet", service).to(origin.address())));
    let mut tail = Tail::begin(agent.instance(), &[]);
    let told = || agent.metric("sockway_kernel_flows_total", &[("result", "reported")]);
    let talk = || converse(stage.dial(service).unwrap(), 1);
    talk();
    assert_eq!(told(), 1.0);
    tail.0.kill();
    wait::until("the hooks to fall silent", wait::SOON, || {
        let before = told();
        talk();
        told() == before
    });
}

#[test]
fn a_reader_that_goes_away_ends_the_watch() {
    let Some(stage) = Stage::set() else { return };
    let (origin, service) = (stage.echo("origin"), stage.address());
    let agent = Agent::start(&stage.config().service(Service::kernel_tcp("first", service).to(origin.address())));
    let mut shell = Command::new("sh");
    // The shell's own words: a guest of `test-kernel` has no other programs.
    let line = format!(
        "{} flows --json --instance {} | {{ IFS= read -r line; printf '%s\\n' \"$line\"; }}",
        agent::binary().display(),
        agent.instance()
    );
    shell.args(["-c", &line]);
    let mut shell = Process::spawn(Room::default(), shell);
    wait::until("the watch to begin", wait::SOON, || shell.stderr().contains("watching instance"));
    wait::until("the pipeline to end", wait::SOON, || {
        converse(stage.dial(service).unwrap(), 1);
        shell.ended().is_some()
    });
    assert_eq!(shell.stdout().lines().count(), 1, "printed: {:?}; said: {}", shell.stdout(), shell.stderr());
}

#[test]
fn what_cannot_be_watched_is_refused_with_what_to_do() {
    if !allowed() {
        return;
    }
    let cgroup = Cgroup::new("watched");
    let agent = Agent::start(&Config::new().capture(&cgroup));
    let instance = agent.instance();
    for (options, code, words) in [
        (&["--instance", "nobody-started-this"][..], 69, &["nothing is attached", "sockway run"][..]),
        (&["--instance", instance, "--service", "no-such"], 64, &["no service is called no-such"]),
        (&["--instance", instance, "--service", "127.0.0.1:9"], 69, &["no service stands at 127.0.0.1:9"]),
        (&["--instance", instance, "--for", "soon"], 64, &["number of seconds"]),
        (&["--instance", instance, "--count", "0"], 64, &["--count"]),
    ] {
        let output = sockway(&[&["flows"], options].concat());
        assert_eq!(output.status.code(), Some(code), "{options:?}: {}", said(&output));
        assert!(words.iter().all(|word| said(&output).contains(word)), "{options:?}: {}", said(&output));
    }
    let mut command = command_of(&["flows", "--instance", instance]);
    command.uid(65_534).gid(65_534);
    let output = process::run(Room::default(), command);
    assert_eq!(output.status.code(), Some(77), "{}", said(&output));
    assert!(said(&output).contains("run as root"), "{}", said(&output));
}

#[test]
fn datagrams_are_told_by_service_and_endpoint_when_their_socket_is_closed() {
    let Some(stage) = Stage::set() else { return };
    let (one, other) = (stage.datagrams("one"), stage.datagrams("other"));
    let (first, second) = (stage.address(), stage.address());
    let config = stage
        .config()
        .service(Service::udp("first", first).to(one.address()))
        .service(Service::udp("second", second).to(other.address()));
    let agent = Agent::start(&config);
    let tail = Tail::begin(agent.instance(), &[]);
    let socket = stage.socket("0.0.0.0:0");
    for _ in 0..3 {
        assert_eq!(name_of(&socket, first), "one");
    }
    assert_eq!(name_of(&socket, second), "other");
    assert_eq!(tail.told(), [] as [Value; 0], "it is told when the socket is closed");
    drop(socket);
    let mut told = tail.wait_for(2);
    told.sort_by_key(|flow| flow["service"].to_string());
    for (flow, service, dialled, endpoint, sent) in
        [(&told[0], "first", first, one.address(), 3), (&told[1], "second", second, other.address(), 1)]
    {
        for (key, value) in [
            ("service", service),
            ("dialled", &dialled.to_string()),
            ("endpoint", &endpoint.to_string()),
            ("protocol", "udp"),
            ("path", "kernel"),
            ("verdict", "balanced"),
            ("netns", "host"),
            ("ended", "closed by the program"),
        ] {
            assert_eq!(flow[key], value, "{key} of {flow:#}");
        }
        assert_eq!(flow["sent_datagrams"], sent, "{flow:#}");
        assert!(flow["sent_bytes"].is_null() && flow["lasted_us"].is_null(), "{flow:#}");
    }
}

#[test]
fn a_conversation_that_went_elsewhere_is_told_with_both_endpoints() {
    let Some(stage) = Stage::set() else { return };
    let (one, other, service) = (stage.datagrams("one"), stage.datagrams("other"), stage.address());
    let to = |address| stage.config().service(Service::udp("dns", service).to(address));
    let config = to(one.address());
    let agent = Agent::start(&config);
    let tail = Tail::begin(agent.instance(), &["--service", "dns"]);
    let socket = stage.socket("0.0.0.0:0");
    assert_eq!(name_of(&socket, service), "one");
    agent.reload(&config.with_services([Service::udp("dns", service).to(other.address())]));
    assert_eq!(name_of(&socket, service), "other");
    drop(socket);
    let told = tail.wait_for(2);
    let ended = |address: SocketAddr| {
        let flow = told.iter().find(|flow| flow["endpoint"] == address.to_string());
        flow.unwrap_or_else(|| panic!("{told:#?}"))["ended"].clone()
    };
    assert_eq!(ended(one.address()), "moved to another endpoint");
    assert_eq!(ended(other.address()), "closed by the program");
}

#[test]
fn a_connected_socket_of_datagrams_is_told_when_it_is_closed() {
    let Some(stage) = Stage::set() else { return };
    let (endpoint, service) = (stage.datagrams("one"), stage.address());
    let agent = Agent::start(&stage.config().service(Service::udp("dns", service).to(endpoint.address())));
    let tail = Tail::begin(agent.instance(), &[]);
    let program = "import socket, sys\n\
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect((sys.argv[1], int(sys.argv[2])))\n\
        s.settimeout(soon); s.send(b'x'); assert s.recv(9) == b'one:x'; s.close()";
    let (ip, port) = (service.ip().to_string(), service.port().to_string());
    sockway_tests::peers::python(Room::of(&stage.clients), program, &[&ip, &port]);
    let flow = tail.only();
    assert_eq!(
        (&flow["command"], &flow["protocol"], &flow["service"]),
        (&"python3".into(), &"udp".into(), &"dns".into())
    );
    assert_eq!(flow["endpoint"], endpoint.address().to_string());
    assert_eq!(flow["ended"], "closed by the program");
    assert!(flow["lasted_us"].as_u64().is_some_and(|us| us > 0) && flow["sent_bytes"].is_null(), "{flow:#}");
}

#[test]
fn a_connected_socket_of_datagrams_that_dials_anew_is_told_when_it_does() {
    let Some(stage) = Stage::set() else { return };
    let (one, service) = (stage.datagrams("one"), stage.address());
    let agent = Agent::start(&stage.config().service(Service::udp("dns", service).to(one.address())));
    let tail = Tail::begin(agent.instance(), &[]);
    let socket = stage.socket("0.0.0.0:0");
    [service, one.address(), service].into_iter().for_each(|to| socket.connect(to).unwrap());
    assert_eq!(tail.only()["ended"], "dialled anew by the program");
    drop(socket);
    assert_eq!(tail.wait_for(2)[1]["ended"], "closed by the program");
}

#[test]
fn where_capture_rules_nest_datagrams_are_told_once() {
    let Some(stage) = Stage::set() else { return };
    let inner = stage.clients.child("inner");
    let (endpoint, service) = (stage.datagrams("one"), stage.address());
    let config = stage.config().capture(&inner).service(Service::udp("dns", service).to(endpoint.address()));
    let agent = Agent::start(&config);
    let tail = Tail::begin(agent.instance(), &[]);
    let program = "import socket, sys\n\
        at = (sys.argv[1], int(sys.argv[2]))\n\
        def one(ask):\n\
        \x20   s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(soon); ask(s); assert s.recv(9) == b'one:x'; s.close()\n\
        one(lambda s: s.sendto(b'x', at)); one(lambda s: (s.connect(at), s.send(b'x'))); one(lambda s: s.sendto(b'x', at))";
    let (ip, port) = (service.ip().to_string(), service.port().to_string());
    sockway_tests::peers::python(Room::of(&inner), program, &[&ip, &port]);
    let told = tail.wait_for(3);
    let sent: Vec<Option<u64>> = told.iter().map(|flow| flow["sent_datagrams"].as_u64()).collect();
    assert_eq!(sent, [Some(1), None, Some(1)], "{told:#?}");
}
