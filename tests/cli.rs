//! The command line: what is refused, how it is said, and what can be asked.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    process::Output,
};

use sockway_tests::{
    agent::{self, Agent, command_of, sockway},
    cgroup::Cgroup,
    config::{Config, Service},
    pins,
    process::{self, Room},
    stage::{Stage, allowed},
};
use tempfile::TempDir;

/// A file with this text, and its directory.
fn file_of(text: &str) -> (TempDir, String) {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("sockway.yaml");
    fs::write(&path, text).unwrap();
    let path = path.to_string_lossy().into_owned();
    (directory, path)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
}

/// A bad file, the line in it that is wrong, and words of the message: the path of the key above all.
const BAD: &[(&str, usize, &[&str])] = &[
    ("workers: 2\nwonders: 3\n", 2, &["wonders"]),
    ("workers: none\n", 1, &["workers"]),
    ("workers: 0\n", 1, &["workers"]),
    ("instance: Not A Name\n", 1, &["instance"]),
    ("admin: { address: nowhere }\n", 1, &["admin.address"]),
    ("capture:\n  cgroups:\n    - { path: relative }\n", 3, &["capture.cgroups[0].path"]),
    ("capture:\n  cgroups:\n    - { path: /a, shortcut: maybe }\n", 3, &["capture.cgroups[0].shortcut"]),
    (
        "services:\n  - name: a\n    address: 127.0.0.1:0\n    protocol: tcp\n    endpoints: [127.0.0.2:80]\n",
        3,
        &["services[0].address"],
    ),
    (
        "services:\n  - name: a\n    address: 127.0.0.1\n    protocol: tcp\n    endpoints: [127.0.0.2:80]\n",
        3,
        &["services[0].address"],
    ),
    (
        "services:\n  - name: a\n    address: 127.0.0.1:80\n    endpoints: [127.0.0.2:80]\n",
        2,
        &["services[0]", "protocol"],
    ),
    (
        "services:\n  - name: a\n    address: 127.0.0.1:80\n    protocol: carrier-pigeon\n    endpoints: [127.0.0.2:80]\n",
        4,
        &["services[0].protocol"],
    ),
    (
        "services:\n  - name: a\n    address: 127.0.0.1:80\n    protocol: tcp\n    endpoints: []\n",
        5,
        &["services[0].endpoints"],
    ),
    (
        "services:\n  - name: a\n    address: 127.0.0.1:80\n    protocol: tcp\n    endpoints: [127.0.0.2:80, 127.0.0.2:80]\n",
        5,
        &["services[0].endpoints[1]"],
    ),
    (
        "services:\n  - name: a\n    address: 127.0.0.1:80\n    protocol: tcp\n    endpoints:\n      - { address: 127.0.0.2:80, weight: 0 }\n",
        6,
        &["services[0].endpoints[0].weight"],
    ),
    (
        "services:\n  - name: a\n    address: 127.0.0.1:80\n    protocol: tcp\n    endpoints:\n      - { address: 127.0.0.2:99999 }\n",
        6,
        &["services[0].endpoints[0].address"],
    ),
    (
        "services:\n  - { name: a, address: 127.0.0.1:80, protocol: tcp, endpoints: [127.0.0.2:80] }\n  - { name: a, address: 127.0.0.1:81, protocol: tcp, endpoints: [127.0.0.2:80] }\n",
        3,
        &["services[1].name"],
    ),
    (
        "services:\n  - { name: a, address: 127.0.0.1:80, protocol: tcp, endpoints: [127.0.0.2:80] }\n  - { name: b, address: 127.0.0.1:80, protocol: tcp, endpoints: [127.0.0.2:80] }\n",
        3,
        &["services[1].address"],
    ),
    ("services: [\n", 2, &[]),
];

#[test]
fn a_bad_file_is_refused_with_its_line_and_the_path_of_the_key() {
    if !allowed() {
        return;
    }
    for (text, line, words) in BAD {
        let (_directory, path) = file_of(text);
        let output = sockway(&["check", &path]);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(64), "{text}\n{said}");
        // A file that just breaks off may be reported at its last line or after it.
        let at = |line: usize| said.contains(&format!("{path}:{line}:"));
        assert!(at(*line) || words.is_empty() && at(line - 1), "line {line} of\n{text}\n{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{words:?} for\n{text}\n{said}");
    }
}

#[test]
fn every_problem_of_a_file_is_told_at_once() {
    if !allowed() {
        return;
    }
    let (_directory, path) = file_of(
        "services:\n  - { name: a, address: 127.0.0.1:0, protocol: tcp, endpoints: [127.0.0.2:80] }\n  - { name: b, address: 127.0.0.1:81, protocol: tcp, endpoints: [] }\n",
    );
    let output = sockway(&["check", &path]);
    let said = said(&output);
    assert_eq!(output.status.code(), Some(64));
    assert!(said.contains(&format!("{path}:2:")) && said.contains(&format!("{path}:3:")), "{said}");
}

#[test]
fn an_agent_with_a_bad_file_attaches_nothing() {
    let Some(stage) = Stage::set() else { return };
    let config = stage.config().service(Service::kernel_tcp("pipe", stage.address()));
    let (_directory, path) = file_of(&config.yaml());
    let output = sockway(&["run", "--config", &path]);
    assert_eq!(output.status.code(), Some(64), "{}", said(&output));
    assert!(said(&output).contains("services[0].endpoints"), "{}", said(&output));
    assert!(!pins::directory(config.instance()).exists() && !agent::run_file(config.instance()).exists());
}

#[test]
fn a_file_or_a_cgroup_that_is_not_there_is_named() {
    let Some(stage) = Stage::set() else { return };
    let output = sockway(&["run", "--config", "/nonexistent/sockway.yaml"]);
    assert!(!output.status.success() && said(&output).contains("/nonexistent/sockway.yaml"), "{}", said(&output));

    let gone = Cgroup::new("gone");
    let path = gone.path().to_owned();
    let config = Config::new().capture(&stage.clients).capture(&gone);
    drop(gone);
    let (_directory, file) = file_of(&config.yaml());
    let output = sockway(&["run", "--config", &file]);
    assert_eq!(output.status.code(), Some(69), "{}", said(&output));
    assert!(said(&output).contains(&path), "{}", said(&output));
    assert!(!pins::directory(config.instance()).exists(), "nothing stays attached to the cgroup that is there");
}

#[test]
fn check_says_what_a_good_file_means() {
    let Some(stage) = Stage::set() else { return };
    let (service, endpoint) = (stage.address(), stage.address());
    let (_directory, path) = file_of(&stage.config().service(Service::http("shop/front", service).to(endpoint)).yaml());
    let output = sockway(&["check", &path]);
    assert_eq!(output.stdout, sockway(&["check", "--config", &path]).stdout, "as `run` takes it");
    let said = said(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    for word in ["shop/front", &service.to_string(), &endpoint.to_string(), stage.clients.path()] {
        assert!(said.contains(word), "{word} is not in {said}");
    }
}

#[test]
fn wrong_usage_exits_with_64() {
    if !allowed() {
        return;
    }
    for arguments in [&["fly"][..], &["run", "--altitude", "3"], &["check"], &["check", "a", "--config", "b"]] {
        let output = sockway(arguments);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {}", said(&output));
    }
    let help = sockway(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    for command in ["run", "check", "doctor", "status", "detach"] {
        assert!(said(&help).contains(command), "{command}");
    }
}

#[test]
fn doctor_finds_what_this_host_has() {
    if !allowed() {
        return;
    }
    let output = sockway(&["doctor"]);
    let said = said(&output).to_lowercase();
    assert_eq!(output.status.code(), Some(0), "this host runs the agent: {said}");
    for word in ["kernel", "btf", "cgroup", "io_uring", "bpffs"] {
        assert!(said.contains(word), "{word} is not in {said}");
    }
}

#[test]
fn doctor_names_a_remedy_for_what_is_missing() {
    if !allowed() {
        return;
    }
    // Without privileges much is missing, whatever the host has.
    let output = process::run(Room::default(), unprivileged(&["doctor"]));
    assert_eq!(output.status.code(), Some(69), "{}", said(&output));
    assert!(said(&output).to_lowercase().contains("cap_"), "{}", said(&output));
}

#[test]
fn without_permission_run_exits_with_77() {
    let Some(stage) = Stage::set() else { return };
    let (directory, path) = file_of(&stage.config().yaml());
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let output = process::run(Room::default(), unprivileged(&["run", "--config", &path]));
    assert_eq!(output.status.code(), Some(77), "{}", said(&output));
}

/// The binary under test as `nobody`.
fn unprivileged(arguments: &[&str]) -> std::process::Command {
    let mut command = command_of(arguments);
    command.uid(65_534).gid(65_534);
    command
}

#[test]
fn status_shows_the_running_agent() {
    let Some(stage) = Stage::set() else { return };
    let (web, dead, service) = (stage.web("web"), stage.address(), stage.address());
    let agent = Agent::start(&stage.config().service(Service::http("shop/front", service).to(web.address()).to(dead)));
    for _ in 0..4 {
        assert_eq!(stage.session(service).get("/").unwrap().text(), "web");
    }
    for by in [["--instance", agent.instance()], ["--config", &agent.config_file().to_string_lossy()]] {
        let output = sockway(&[&["status"], &by[..]].concat());
        let said = said(&output).to_lowercase();
        assert_eq!(output.status.code(), Some(0), "{said}");
        for word in ["shop/front", &service.to_string(), &web.address().to_string(), &dead.to_string(), "down"] {
            assert!(said.contains(word), "{word} is not in {said}");
        }
    }
}

#[test]
fn status_says_that_no_agent_runs() {
    let Some(stage) = Stage::set() else { return };
    let config = stage.config();
    let output = sockway(&["status", "--instance", config.instance()]);
    assert_eq!(output.status.code(), Some(69), "{}", said(&output));
    assert!(said(&output).contains(config.instance()), "{}", said(&output));

    let mut agent = Agent::start(&config);
    agent.sigkill();
    let output = sockway(&["status", "--instance", config.instance()]);
    assert_eq!(output.status.code(), Some(69), "a killed agent's file is not believed: {}", said(&output));
}
