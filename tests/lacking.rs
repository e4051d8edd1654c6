//! A kernel that lacks something: the agent goes on without it, and says in every place what does not work; it ends only where nothing would.

use std::{fs, net::SocketAddr, process::Command};

use sockway_tests::{
    agent::Agent,
    config::{Config, Service},
    datagram::name_of,
    metrics::Metrics,
    netns::Netns,
    pins,
    process::{self, Room},
    refused::{HELPER_NAME, Refused},
    stage::Stage,
    wait,
};
use tempfile::TempDir;

/// What the agent does without: a program of each part, the capability, and words of what does not work.
const PARTS: [(&str, &str, &str); 6] = [
    ("steer", "inbound", "rules of `inbound` have no effect"),
    ("ask_option", "original_dst", "`original_dst: on` has no effect"),
    ("receive_v6", "datagrams", "`protocol: udp` are not balanced"),
    ("peer_v4", "peer_name", "getpeername() answers the endpoint"),
    ("sweep_limits", "limits_sweep", "idle sources stay"),
    ("send_direct", "shortcut_join", "`shortcut` has no effect"),
];

/// Whether the running kernel can do something, as the metrics say.
fn can(metrics: &Metrics, name: &str) -> bool {
    metrics.get("sockway_kernel_capability", &[("name", name)]) == 1.0
}

fn run(agent: &Refused, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(agent.path());
    command.args(arguments);
    let output = process::run(Room::default(), command);
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn doctor_names_each_part_that_the_kernel_refuses_and_nothing_else() {
    if !sockway_tests::stage::allowed() {
        return;
    }
    let every: Vec<&str> = PARTS.iter().map(|(_, capability, _)| *capability).collect();
    for (program, capability, without) in PARTS {
        let (code, told) = run(&Refused::new(&[program]), &["doctor"]);
        assert_eq!(code, Some(0), "{program}: {told}");
        let line = |name: &str| {
            let line = told.lines().find(|line| line.split_whitespace().nth(1) == Some(name));
            line.unwrap_or_else(|| panic!("no {name} in {told}")).to_owned()
        };
        let bad = line(capability);
        assert!(bad.starts_with("warn") && bad.contains(HELPER_NAME) && bad.contains(without), "{bad}");
        assert!(bad.contains(&format!("`{program}`")), "{bad}");
        for other in every.iter().filter(|other| **other != capability) {
            assert!(line(other).starts_with("ok"), "{program} is refused, and doctor says: {}", line(other));
        }
    }
}

#[test]
fn a_kernel_that_is_locked_down_has_no_shortcut_and_the_rest_works() {
    let Some(stage) = Stage::set() else { return };
    let (origin, web) = (stage.echo("origin"), stage.web("web"));
    let (tcp, http, udp) = (stage.address(), stage.address(), stage.address());
    let balanced = stage.datagrams("balanced");
    let config = stage
        .config()
        .service(Service::kernel_tcp("tcp", tcp).to(origin.address()).set("eject: { failures: 3 }").set("shortcut: on"))
        .service(Service::http("http", http).to(web.address()))
        .service(Service::udp("udp", udp).to(balanced.address()));
    let binary = Refused::locked_down();
    let agent = Agent::start_as(&binary.path(), &config);

    let mut stream = stage.dial(tcp).unwrap();
    assert_eq!(sockway_tests::origin::read_name(&mut stream).unwrap(), "origin");
    assert_eq!(stream.peer_addr().unwrap(), tcp, "getpeername() is answered");
    assert_eq!(stage.session(http).get("/").unwrap().text(), "web");
    assert_eq!(name_of(&stage.socket("0.0.0.0:0"), udp), "balanced");
    let metrics = agent.metrics();
    assert!(!can(&metrics, "kernel_memory") && !can(&metrics, "shortcut_join"));
    for (_, capability, _) in PARTS.iter().filter(|(_, capability, _)| *capability != "shortcut_join") {
        assert!(can(&metrics, capability), "{capability}");
    }
    let log = agent.log();
    for without in ["`eject` has no effect", "`shortcut` has no effect"] {
        let line = log.lines().find(|line| line.contains("the configuration asks for") && line.contains(without));
        assert!(line.is_some_and(|line| line.contains("ERROR")), "{without}: {log}");
    }
    let (code, status) = run(&binary, &["status", "--instance", config.instance()]);
    assert!(code == Some(0) && status.contains("lacks kernel_memory:"), "{status}");
    let (code, told) = run(&binary, &["doctor"]);
    assert_eq!(code, Some(0), "{told}");
    for (capability, program, without) in [
        ("kernel_memory", "`look_inside`", "what the kernel itself dials"),
        ("shortcut_join", "`send_direct`", "`shortcut` has no effect"),
    ] {
        let line = told.lines().find(|line| line.split_whitespace().nth(1) == Some(capability));
        let line = line.unwrap_or_else(|| panic!("no {capability} in {told}"));
        assert!(line.starts_with("warn") && line.contains(HELPER_NAME), "{line}");
        assert!(line.contains(program) && line.contains(without), "{line}");
    }
}

#[test]
fn what_the_kernel_does_not_refuse_works_and_the_rest_is_told() {
    let Some(stage) = Stage::set() else { return };
    let (origin, web) = (stage.echo("origin"), stage.web("web"));
    let (tcp, http, udp) = (stage.address(), stage.address(), stage.address());
    let (balanced, itself) = (stage.datagrams("balanced"), stage.datagrams_at("itself", udp));
    let config = stage
        .config()
        .service(
            Service::kernel_tcp("tcp", tcp)
                .to(origin.address())
                .set("original_dst: on")
                .set("limits: { per_source: { connections: 100 } }"),
        )
        .service(Service::http("http", http).to(web.address()))
        .service(Service::udp("udp", udp).to(balanced.address()))
        .inbound("name: in, ports: [80], protocol: tcp, namespaces: { only: [nowhere] }");
    let binary = Refused::new(&["steer", "ask_option", "send_v4", "sweep_limits", "send_direct"]);
    let agent = Agent::start_as(&binary.path(), &config);

    let mut stream = stage.dial(tcp).unwrap();
    assert_eq!(sockway_tests::origin::read_name(&mut stream).unwrap(), "origin");
    assert_eq!(stream.peer_addr().unwrap(), tcp, "getpeername() is answered");
    assert_eq!(stage.session(http).get("/").unwrap().text(), "web");
    assert_eq!(name_of(&stage.socket("0.0.0.0:0"), udp), "itself", "datagrams go where they are sent");
    drop(itself);

    let metrics = agent.metrics();
    for gone in ["inbound", "original_dst", "datagrams", "limits_sweep", "shortcut_join"] {
        assert!(!can(&metrics, gone), "{gone}");
    }
    assert!(["capture", "listener_tag", "own_cgroup_bypass", "peer_name"].iter().all(|name| can(&metrics, name)));
    let log = agent.log();
    for (_, capability, without) in PARTS {
        let asked = matches!(capability, "inbound" | "original_dst" | "datagrams" | "limits_sweep");
        let line = log.lines().find(|line| line.contains("the configuration asks for") && line.contains(without));
        assert_eq!(line.is_some_and(|line| line.contains("ERROR")), asked, "{capability}: {log}");
    }
    let (code, status) = run(&binary, &["status", "--instance", config.instance()]);
    assert_eq!(code, Some(0), "{status}");
    let told = status.lines().find(|line| line.starts_with("kernel")).unwrap_or_else(|| panic!("{status}"));
    assert!(told.contains("lacks datagrams, inbound, limits_sweep, original_dst:"), "{told}");
}

#[test]
fn a_reload_that_asks_for_what_the_kernel_lacks_takes_effect_but_for_that_and_says_so() {
    let Some(stage) = Stage::set() else { return };
    let (origin, service, pod) = (stage.echo("origin"), stage.address(), Netns::new());
    let binary = Refused::new(&["steer"]);
    let config = stage.config();
    let agent = Agent::start_as(&binary.path(), &config);
    assert!(!agent.log().contains("the configuration asks for"), "{}", agent.log());
    let rule = format!("name: in, ports: [80], protocol: tcp, namespaces: {{ only: [{}] }}", pod.name());
    agent.reload(&config.inbound(&rule).service(Service::kernel_tcp("tcp", service).to(origin.address())));
    assert_eq!(stage.ask_name(service).unwrap(), "origin");
    wait::until("the log to say it", wait::SOON, || agent.log().contains("rules of `inbound` have no effect"));
    assert!(!pins::all(agent.instance()).iter().any(|pin| pin.to_string_lossy().contains("sk_lookup")));
}

#[test]
fn without_a_hook_on_connect_it_ends_and_names_what_is_lacking() {
    let Some(stage) = Stage::set() else { return };
    let config: Config = stage.config();
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("sockway.yaml");
    fs::write(&file, config.yaml()).unwrap();
    let binary = Refused::new(&["dial_v4", "steer"]);
    let (code, said) = run(&binary, &["run", "--config", &file.to_string_lossy()]);
    assert!(code == Some(69) && said.contains(HELPER_NAME) && said.contains("`dial_v4`, `steer`"), "{code:?}: {said}");
    let (code, told) = run(&binary, &["doctor"]);
    assert_eq!(code, Some(69), "{told}");
    let line = told.lines().find(|line| line.contains("load")).unwrap_or_else(|| panic!("{told}"));
    assert!(line.starts_with("MISSING") && line.contains("`dial_v4`"), "{line}");
    let links = pins::directory(config.instance()).join("links");
    let is_attached = links.read_dir().is_ok_and(|mut links| links.next().is_some());
    // The tables it had made before stay for its successor.
    let (code, said) = run(&binary, &["detach", "--instance", config.instance()]);
    assert_eq!((is_attached, code), (false, Some(0)), "{said}");
}

#[test]
fn status_tells_of_the_rules_for_connections_that_come_in() {
    let Some(_stage) = Stage::set() else { return };
    let address: SocketAddr = ([127, 0, 0, 1], 0).into();
    let config = Config::new()
        .set(&format!("admin: {{ address: '{address}' }}"))
        .inbound("name: web, ports: [8080, 9000-9010], protocol: http, namespaces: { only: [nowhere] }");
    let agent = Agent::start(&config);
    let output = sockway_tests::agent::sockway(&["status", "--instance", agent.instance()]);
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let row = told.lines().find(|line| line.starts_with("web ")).unwrap_or_else(|| panic!("{told}"));
    let cells: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(cells, ["web", "8080,9000-9010", "http", "0", "0", "0"], "{told}");
    assert!(!told.contains("\nkernel "), "this kernel lacks nothing: {told}");
}
