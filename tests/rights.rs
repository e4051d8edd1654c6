//! The agent with each of its capabilities dropped: it says by name which it lacks, and what works without it works.

use std::{fs, net::SocketAddr, path::PathBuf};

use sockway_tests::{
    agent::{Agent, restricted},
    cgroup::Cgroup,
    config::{Config, Service},
    door::Door,
    netns::Netns,
    origin::{Origin, read_name},
    pins,
    process::{self, Room},
    stage::Stage,
    wait,
};
use tempfile::TempDir;

/// What the agent asks for.
const ALL: [&str; 6] = ["BPF", "PERFMON", "NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE", "DAC_OVERRIDE"];

fn all_but(dropped: &[&str]) -> Vec<&'static str> {
    ALL.into_iter().filter(|name| !dropped.contains(name)).collect()
}

fn right(agent: &Agent, name: &str) -> f64 {
    agent.metric("sockway_right", &[("capability", &format!("CAP_{name}"))])
}

fn file_of(config: &Config) -> (TempDir, PathBuf) {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("sockway.yaml");
    fs::write(&path, config.yaml()).unwrap();
    (directory, path)
}

#[test]
fn with_what_it_asks_for_and_no_more_everything_works() {
    let Some(stage) = Stage::set() else { return };
    let (web, origin) = (stage.web("web"), stage.echo("origin"));
    let (http, tcp) = (stage.address(), SocketAddr::from(([10, 254, 0, 21], 80)));
    let config = stage
        .config()
        .service(Service::http("http", http).to(web.address()))
        .service(Service::agent_tcp("tcp", tcp).to(origin.address()));
    let agent = Agent::start_with_rights(&config, &ALL);
    assert_eq!(stage.session(http).get("/").unwrap().text(), "web");
    let pod = Netns::new();
    let door = Door::open(Room::of(&stage.clients).inside(&pod));
    wait::until("the pod to be served", wait::SOON, || {
        door.dial(tcp).is_ok_and(|mut stream| read_name(&mut stream).is_ok_and(|name| name == "origin"))
    });
    assert!(ALL.iter().all(|name| right(&agent, name) == 1.0));
    assert!(!agent.log().contains("runs without"), "{}", agent.log());
}

#[test]
fn without_a_needed_capability_it_ends_and_names_it_with_what_it_is_for() {
    let Some(stage) = Stage::set() else { return };
    // CAP_SYS_ADMIN stands in for the first two.
    for (dropped, name, what) in [
        (&["BPF", "SYS_ADMIN"][..], "CAP_BPF", "cannot be loaded"),
        (&["PERFMON", "SYS_ADMIN"], "CAP_PERFMON", "the verifier refuses"),
        (&["NET_ADMIN"], "CAP_NET_ADMIN", "cannot be attached"),
    ] {
        let config = stage.config();
        let (_directory, file) = file_of(&config);
        let run = restricted(&["run", "--config", &file.to_string_lossy()], &all_but(dropped));
        let output = process::run(Room::default(), run);
        let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(77), "{dropped:?}: {said}");
        assert!(said.contains(&format!("without {name} ")) && said.contains(what), "{dropped:?}: {said}");
        assert!(!pins::directory(config.instance()).exists(), "nothing is left");

        let doctor = process::run(Room::default(), restricted(&["doctor"], &all_but(dropped)));
        let told = String::from_utf8_lossy(&doctor.stderr) + String::from_utf8_lossy(&doctor.stdout);
        let line = told.lines().find(|line| line.contains("capabilities")).unwrap_or_else(|| panic!("{told}"));
        assert!(line.starts_with("MISSING") && line.contains(name), "{line}");
    }
}

#[test]
fn without_sys_admin_other_namespaces_are_balanced_in_the_kernel_and_the_rest_works() {
    let Some(stage) = Stage::set() else { return };
    let web = stage.web("web");
    let (http, tcp) = (stage.address(), SocketAddr::from(([10, 254, 0, 22], 80)));
    let pod = Netns::new();
    let door = Door::open(Room::of(&stage.clients).inside(&pod));
    let inside = Origin::echo(door.listen(SocketAddr::from(([127, 0, 0, 1], 8080))).unwrap(), "inside");
    let config = stage
        .config()
        .service(Service::http("http", http).to(web.address()))
        .service(Service::agent_tcp("tcp", tcp).to(inside.address()));
    let agent = Agent::start_with_rights(&config, &all_but(&["SYS_ADMIN"]));
    assert_eq!(stage.session(http).get("/").unwrap().text(), "web", "in its own namespace the agent serves");
    assert_eq!(read_name(&mut door.dial(tcp).unwrap()).unwrap(), "inside", "in the pod the kernel balances");
    assert_eq!((right(&agent, "SYS_ADMIN"), right(&agent, "BPF")), (0.0, 1.0));
    assert!(agent.log().contains("runs without CAP_SYS_ADMIN: network namespaces other than"), "{}", agent.log());
    agent.metric_reaches("sockway_kernel_connects_total", &[("verdict", "fail_open_no_listener")], 1.0);
}

#[test]
fn without_sys_ptrace_namespaces_are_served_by_their_names() {
    let Some(stage) = Stage::set() else { return };
    let (origin, tcp) = (stage.echo("origin"), SocketAddr::from(([10, 254, 0, 23], 80)));
    let config = stage.config().service(Service::agent_tcp("tcp", tcp).to(origin.address()));
    let agent = Agent::start_with_rights(&config, &all_but(&["SYS_PTRACE"]));
    let pod = Netns::new();
    let door = Door::open(Room::of(&stage.clients).inside(&pod));
    wait::until("the pod to be served", wait::SOON, || {
        door.dial(tcp).is_ok_and(|mut stream| read_name(&mut stream).is_ok_and(|name| name == "origin"))
    });
    assert!(agent.log().contains("runs without CAP_SYS_PTRACE"), "{}", agent.log());
}

#[test]
fn without_dac_override_the_agents_cgroup_must_be_there() {
    let Some(stage) = Stage::set() else { return };
    let (origin, service) = (stage.echo("origin"), stage.address());
    let config = stage.config().service(Service::kernel_tcp("pipe", service).to(origin.address()));
    let (_directory, file) = file_of(&config);
    let rights = all_but(&["DAC_OVERRIDE"]);
    let output = process::run(Room::default(), restricted(&["run", "--config", &file.to_string_lossy()], &rights));
    let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(77), "{said}");
    assert!(said.contains("sockway-agent-") && said.contains("give CAP_DAC_OVERRIDE"), "{said}");

    let own = Cgroup::of_agent(config.instance());
    let agent = Agent::start_with_rights(&config, &rights);
    assert_eq!(stage.ask_name(service).unwrap(), "origin");
    assert_eq!(right(&agent, "DAC_OVERRIDE"), 0.0);
    drop(agent);
    drop(own);
}
