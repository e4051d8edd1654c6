//! `sockway explain`: what it says of a connection is what becomes of it, for each path and each reason.

use std::{
    net::{Ipv6Addr, SocketAddr},
    os::unix::process::CommandExt,
    process::{Command, Output},
};

use serde_json::Value;
use sockway_tests::{
    agent::{self, Agent, command_of, sockway},
    cgroup::Cgroup,
    config::{Config, Service},
    door::Door,
    netns::Netns,
    process::{self, Room},
    stage::{Stage, allowed},
    wait,
};

/// A user that no test host gives to anybody.
const USER: u32 = 3_000_019;

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
}

/// What it says of a connection from `from` to `address`.
#[track_caller]
fn explain(instance: &str, address: SocketAddr, from: &str, options: &[&str]) -> Value {
    let address = address.to_string();
    let output = sockway(
        &[&["explain", "--json", "--instance", instance, "--connect", &address, "--from", from], options].concat(),
    );
    assert!(output.status.success(), "{}", said(&output));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", said(&output)))
}

/// [`explain`] while the agent lives: a slow machine may miss its heartbeats for a moment, and is told so.
#[track_caller]
fn explain_living(instance: &str, address: SocketAddr, from: &str) -> Value {
    let told = || explain(instance, address, from, &[]);
    wait::until_some("the agent not to pass for hung", wait::SOON, || Some(told()).filter(|told| !is_hung(told)))
}

fn is_hung(told: &Value) -> bool {
    told["now"]["verdict"] == "fail_open_hung"
}

/// Explains a connection, makes it, and sees that the verdict that was told is the one that is counted. The agent lives: what is told and
/// made while a slow machine missed its heartbeats is told and made again.
#[track_caller]
fn explain_and_dial(agent: &Agent, door: &Door, address: SocketAddr) -> Value {
    let counted = |verdict: &str| agent.metric("sockway_kernel_connects_total", &[("verdict", verdict)]);
    wait::until_some("a connection of an agent that does not pass for hung", wait::SOON, || {
        let told = explain_living(agent.instance(), address, &door.pid().to_string());
        let verdict = told["now"]["verdict"].as_str().unwrap_or_else(|| panic!("no hook would run: {told:#}"));
        let (before, hung) = (counted(verdict), counted("fail_open_hung"));
        // The hook has judged when connect() returns; whether anybody answers, a namespace whose loopback is down learns late.
        let _ = door.begin(address);
        if counted("fail_open_hung") > hung {
            return None;
        }
        assert_eq!(counted(verdict), before + 1.0, "{verdict} was told and is not what happened: {told:#}");
        Some(told)
    })
}

#[track_caller]
fn assert_verdict(told: &Value, path: &str, verdict: &str) {
    assert_eq!((&told["now"]["path"], &told["now"]["verdict"]), (&path.into(), &verdict.into()), "{told:#}");
}

#[test]
fn a_service_of_the_kernel_is_explained_with_its_endpoints_and_their_shares() {
    let Some(stage) = Stage::set() else { return };
    let (one, three) = (stage.echo("one"), stage.echo("three"));
    let (turns, chance) = (stage.address(), stage.address());
    let weighted =
        |name, address| Service::kernel_tcp(name, address).weighted(one.address(), 1).weighted(three.address(), 3);
    let agent = Agent::start(
        &stage
            .config()
            .service(weighted("turns", turns))
            .service(weighted("chance", chance).set("balance: weighted_random")),
    );
    for (name, service) in [("turns", turns), ("chance", chance)] {
        let told = explain_and_dial(&agent, stage.client(), service);
        assert_verdict(&told, "kernel", "balanced");
        assert_eq!((&told["service"]["name"], &told["service"]["mode"]), (&name.into(), &"kernel".into()));
        let share = |address: SocketAddr| {
            let endpoints = told["service"]["endpoints"].as_array().unwrap();
            let found = endpoints.iter().find(|endpoint| endpoint["address"] == address.to_string());
            found.and_then(|endpoint| endpoint["share"].as_f64()).unwrap_or_else(|| panic!("{address} in {told:#}"))
        };
        assert!((share(one.address()) - 0.25).abs() < 1e-6, "{told:#}");
        assert!((share(three.address()) - 0.75).abs() < 1e-6, "{told:#}");
        assert_eq!(told["captured_by"], stage.clients.path());
        assert_eq!(told["from"]["process"]["cgroup"], stage.clients.path());
        assert_eq!(told["without_agent"], told["now"], "the agent has nothing to do with it");
    }
}

#[test]
fn a_service_of_the_agent_is_explained_while_it_lives_hangs_and_is_dead() {
    let Some(stage) = Stage::set() else { return };
    let (web, service) = (stage.web("web"), stage.address());
    let mut agent = Agent::start(&stage.config().service(Service::http("web", service).to(web.address())));
    let told = explain_and_dial(&agent, stage.client(), service);
    assert_verdict(&told, "agent", "agent");
    assert_eq!(told["service"]["listener"]["tagged"], true, "{told:#}");
    let without = &told["without_agent"];
    assert_eq!((&without["path"], &without["verdict"]), (&"kernel".into(), &"fail_open_not_tagged".into()));
    assert_eq!(told["service"]["endpoints"][0]["address"], web.address().to_string());

    // Hung: it listens, and its heart does not beat.
    agent.stop();
    let now = || explain(agent.instance(), service, &stage.client().pid().to_string(), &[]);
    wait::until("the heartbeat to be old", wait::SOON, || is_hung(&now()));
    assert_eq!(now()["service"]["listener"]["tagged"], true);
    agent.sigkill();
    let told = explain(agent.instance(), service, &stage.client().pid().to_string(), &[]);
    assert_verdict(&told, "kernel", "fail_open_hung");
    assert_eq!(told["service"]["listener"]["tagged"], false, "its listeners went with it: {told:#}");
    assert_eq!(told["service"]["name"], "web", "the names are in the tables");
    assert_eq!(stage.session(service).get("/").unwrap().status, 200);
}

#[test]
fn an_agent_that_has_just_died_is_seen_by_its_missing_listener() {
    let Some(stage) = Stage::set() else { return };
    let (web, service) = (stage.web("web"), stage.address());
    let mut agent = Agent::start(&stage.config().service(Service::http("web", service).to(web.address())));
    agent.sigkill();
    let told = explain(agent.instance(), service, &stage.client().pid().to_string(), &[]);
    // Two seconds later the heartbeat tells first.
    let verdict = told["now"]["verdict"].as_str().unwrap();
    assert!(["fail_open_not_tagged", "fail_open_hung"].contains(&verdict), "{told:#}");
    assert_eq!(told["now"]["path"], "kernel");
}

#[test]
fn a_namespace_without_a_listener_of_the_agent_is_told() {
    let Some(stage) = Stage::set() else { return };
    let netns = Netns::new();
    // There the agent does not listen: what comes to its address could not arrive.
    netns.ip(&["link", "set", "lo", "down"]);
    let service = stage.address();
    let agent = Agent::start(&stage.config().service(Service::agent_tcp("web", service).to(stage.address())));
    let inside = Door::open(Room::of(&stage.clients).inside(&netns));
    let told = explain_and_dial(&agent, &inside, service);
    assert_verdict(&told, "kernel", "fail_open_no_listener");
    assert_eq!(told["from"]["netns"], netns.name());
    let by_name = explain_living(agent.instance(), service, netns.name());
    assert_verdict(&by_name, "kernel", "fail_open_no_listener");
    assert_eq!(by_name["from"]["process"], Value::Null);
    let host = explain_living(agent.instance(), service, "host");
    assert_verdict(&host, "agent", "agent");
}

#[test]
fn what_is_not_captured_is_told_with_the_reason() {
    let Some(stage) = Stage::set() else { return };
    let (inner, left_out) = (stage.clients.child("inner"), stage.clients.child("left-out"));
    let (origin, service) = (stage.echo("origin"), stage.address());
    let config = stage
        .config()
        .rule(left_out.path(), "capture: off")
        .set_capture(&format!("except: {{ uids: [{USER}] }}"))
        .service(Service::kernel_tcp("some", service).to(origin.address()));
    let agent = Agent::start(&config);
    let user = Door::open(Room::of(&stage.clients).as_user(USER));
    assert_verdict(&explain_and_dial(&agent, stage.client(), service), "kernel", "balanced");
    assert_verdict(&explain_and_dial(&agent, stage.client(), stage.address()), "passed", "not_service");
    assert_verdict(&explain_and_dial(&agent, &user, service), "passed", "excluded");
    let below = Door::open(Room::of(&inner));
    let told = explain_and_dial(&agent, &below, service);
    assert_eq!(told["captured_by"], stage.clients.path(), "a rule holds for what is below it");

    let out = Door::open(Room::of(&left_out));
    let passes = |pid: u32, word: &str| {
        let told = explain(agent.instance(), service, &pid.to_string(), &[]);
        assert_eq!((&told["now"]["path"], &told["now"]["verdict"]), (&"passed".into(), &Value::Null), "{told:#}");
        assert!(told["now"]["why"].as_str().unwrap().contains(word), "{told:#}");
    };
    passes(out.pid(), "capture: off");
    passes(stage.origin().pid(), "no capture rule covers");
    let own = explain(agent.instance(), service, &agent.pid().to_string(), &[]);
    assert_verdict(&own, "passed", "own");
}

#[test]
fn a_namespace_that_a_rule_leaves_out_is_told() {
    let Some(stage) = Stage::set() else { return };
    let netns = Netns::new();
    let service = stage.address();
    let rules = format!("namespaces: {{ except: [{}] }}", netns.name());
    let config = stage.config().set_capture(&rules);
    let agent = Agent::start(&config.service(Service::kernel_tcp("some", service).to(stage.address())));
    let inside = Door::open(Room::of(&stage.clients).inside(&netns));
    assert_verdict(&explain_and_dial(&agent, &inside, service), "passed", "excluded");
    assert_verdict(&explain_and_dial(&agent, stage.client(), service), "kernel", "balanced");
}

/// `ip netns exec` puts a new /sys over bpffs and cgroup v2.
#[test]
fn where_ip_netns_hides_what_is_attached_it_is_found_all_the_same() {
    let Some(stage) = Stage::set() else { return };
    let (netns, service) = (Netns::new(), stage.address());
    let agent = Agent::start(&stage.config().service(Service::kernel_tcp("some", service).to(stage.address())));
    let inside = |instance: &str| {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", netns.name()]).arg(agent::binary());
        command.args(["explain", "--json", "--instance", instance, "--connect", &service.to_string()]);
        process::run(Room::of(&stage.clients), command)
    };
    let output = inside(agent.instance());
    assert!(output.status.success(), "{}", said(&output));
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_verdict(&told, "kernel", "balanced");
    assert_eq!((&told["from"]["netns"], &told["service"]["name"]), (&netns.name().into(), &"some".into()), "{told:#}");
    let cgroup = told["from"]["process"]["cgroup"].as_str().unwrap_or_default();
    assert!(stage.clients.path().ends_with(cgroup) && told["captured_by"] == cgroup, "{told:#}");
    // The shell that has begun it sees what it does not.
    let output = inside("nobody");
    assert_eq!(output.status.code(), Some(69));
    assert!(said(&output).contains("there is no /sys/fs/bpf/sockway/nobody/maps"), "{}", said(&output));
    // Nobody lets himself be looked through by who may do less than he.
    let less = agent::restricted(&["explain", "--connect", &service.to_string()], &["sys_admin", "bpf"]);
    let mut command = Command::new("ip");
    command.args(["netns", "exec", netns.name()]).arg(less.get_program()).args(less.get_args());
    let output = process::run(Room::default(), command);
    assert_eq!(output.status.code(), Some(69));
    assert!(said(&output).contains("/sys/fs/bpf is hidden") && said(&output).contains("--from"), "{}", said(&output));
}

#[test]
fn a_service_without_an_endpoint_to_choose_is_told() {
    let Some(stage) = Stage::set() else { return };
    let service = stage.address();
    let other_family = SocketAddr::from((Ipv6Addr::LOCALHOST, 9));
    let mut agent = Agent::start(&stage.config().service(Service::agent_tcp("other", service).to(other_family)));
    let told = explain(agent.instance(), service, &stage.client().pid().to_string(), &[]);
    assert_verdict(&told, "agent", "agent");
    assert_eq!(told["without_agent"]["verdict"], "no_endpoint");
    agent.sigkill();
    let told = explain(agent.instance(), service, &stage.client().pid().to_string(), &[]);
    assert_verdict(&told, "passed", "no_endpoint");
}

#[test]
fn tcp_and_udp_services_at_one_address_are_told_apart() {
    let Some(stage) = Stage::set() else { return };
    let (stream, datagram) = (stage.echo("stream"), stage.datagrams("datagram"));
    let address = stage.address();
    let config = stage
        .config()
        .service(Service::kernel_tcp("streams", address).to(stream.address()))
        .service(Service::udp("datagrams", address).to(datagram.address()));
    let agent = Agent::start(&config);
    let from = stage.client().pid().to_string();
    for (protocol, name) in [("tcp", "streams"), ("udp", "datagrams")] {
        let told = explain(agent.instance(), address, &from, &["--protocol", protocol]);
        assert_eq!((&told["service"]["name"], &told["protocol"]), (&name.into(), &protocol.into()), "{told:#}");
    }
    agent.reload(&config.with_services([Service::udp("datagrams", address).to(datagram.address())]));
    let told = explain(agent.instance(), address, &from, &[]);
    assert_verdict(&told, "passed", "not_service");
    assert!(told["now"]["why"].to_string().contains("--protocol udp"), "{told:#}");
}

#[test]
fn whether_the_shortcut_is_allowed_is_told() {
    let Some(stage) = Stage::set() else { return };
    let (origin, on, off) = (stage.echo("origin"), stage.address(), stage.address());
    let never = stage.clients.child("never");
    let config = stage
        .config_with_shortcut()
        .capture_with(&never, "off")
        .service(Service::kernel_tcp("on", on).set("shortcut: on").to(origin.address()))
        .service(Service::kernel_tcp("off", off).set("shortcut: off").to(origin.address()));
    let agent = Agent::start(&config);
    let denied = Door::open(Room::of(&never));
    for (door, service, allowed) in [(stage.client(), on, true), (stage.client(), off, false), (&denied, on, false)] {
        let told = explain(agent.instance(), service, &door.pid().to_string(), &[]);
        assert_eq!(told["shortcut"]["allowed"], allowed, "{told:#}");
    }
}

#[test]
fn the_text_says_it_in_words() {
    let Some(stage) = Stage::set() else { return };
    let (web, service) = (stage.web("web"), stage.address());
    let agent = Agent::start(&stage.config().service(Service::http("shop/web", service).to(web.address())));
    let pid = stage.client().pid().to_string();
    let connect = service.to_string();
    let output = sockway(&["explain", "--instance", agent.instance(), "--connect", &connect, "--from", &pid]);
    let text = said(&output);
    for line in [
        format!(
            "tcp {service} from process {pid} (sockway-probe, user 0) in cgroup {}, network namespace host",
            stage.clients.path()
        ),
        "path         agent: the service is the agent's".to_owned(),
        format!("captured     by the rule of cgroup {}", stage.clients.path()),
        "service      shop/web (id ".to_owned(),
        "if it dies   kernel: no socket with the agent's tag".to_owned(),
        format!("{}", web.address()),
    ] {
        assert!(text.lines().any(|found| found.starts_with(&line)), "no line {line:?} in\n{text}");
    }
}

#[test]
fn what_cannot_be_explained_is_refused_with_what_to_do() {
    if !allowed() {
        return;
    }
    let cgroup = Cgroup::new("explained");
    let agent = Agent::start(&Config::new().capture(&cgroup));
    let instance = agent.instance();
    let mut gone = Command::new("true").spawn().unwrap();
    let pid = gone.id().to_string();
    gone.wait().unwrap();
    for (options, code, words) in [
        (
            &["--instance", "nobody-started-this", "--connect", "127.0.0.1:1"][..],
            69,
            &["nothing is attached", "sockway run"][..],
        ),
        (&["--instance", instance, "--connect", "127.0.0.1:1", "--from", &pid], 69, &["no process", &pid]),
        (
            &["--instance", instance, "--connect", "127.0.0.1:1", "--from", "no-such"],
            69,
            &["no network namespace no-such"],
        ),
        (&["--instance", instance, "--connect", "nowhere"], 64, &["--connect"]),
        (&["--instance", instance], 64, &["--connect"]),
    ] {
        let output = sockway(&[&["explain"], options].concat());
        assert_eq!(output.status.code(), Some(code), "{options:?}: {}", said(&output));
        assert!(words.iter().all(|word| said(&output).contains(word)), "{options:?}: {}", said(&output));
    }
    let mut command = command_of(&["explain", "--instance", instance, "--connect", "127.0.0.1:1"]);
    command.uid(65_534).gid(65_534);
    let output = process::run(Room::default(), command);
    assert_eq!(output.status.code(), Some(77), "{}", said(&output));
}

#[test]
fn a_limit_that_is_reached_is_told_with_what_is_taken() {
    let Some(stage) = Stage::set() else { return };
    let (origin, refusing, passing) = (stage.echo("origin"), stage.address(), stage.address());
    let limited = |name, address, over| {
        let limits = format!("limits: {{ connections: 1, over: {over} }}");
        Service::kernel_tcp(name, address).set(&limits).to(origin.address())
    };
    let agent = Agent::start(
        &stage.config().service(limited("refusing", refusing, "refuse")).service(limited("passing", passing, "pass")),
    );
    assert_verdict(&explain_and_dial(&agent, stage.client(), refusing), "kernel", "balanced");
    let open = [refusing, passing].map(|service| {
        // What was dialled above has to be given back first.
        wait::until_some("room under the limit", wait::SOON, || stage.dial(service).ok())
    });
    let told = explain_and_dial(&agent, stage.client(), refusing);
    assert_verdict(&told, "refused", "over_limit_refused");
    let limit = &told["service"]["limits"][0];
    assert_eq!(
        (&limit["of"], &limit["open"], &limit["open_max"]),
        (&"service".into(), &1.into(), &1.into()),
        "{told:#}"
    );
    assert_verdict(&explain_and_dial(&agent, stage.client(), passing), "passed", "over_limit_passed");
    drop(open);
    wait::until("what was taken to be given back", wait::SOON, || {
        explain(agent.instance(), refusing, &stage.client().pid().to_string(), &[])["now"]["path"] == "kernel"
    });
}
