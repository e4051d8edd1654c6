//! Reload: a whole new snapshot or no change at all; connections live on.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sys::signal::Signal;
use sockway_tests::{
    agent::Agent,
    config::{Config, Service},
    origin::{echoes, read_name},
    patience,
    peers::{Nginx, Wrk},
    process::Room,
    stage::Stage,
    wait,
};
use tempfile::TempDir;

/// A new configuration that names another endpoint must show at once for whoever dials next.
fn moves_to(stage: &Stage, service: SocketAddr, name: &str) -> bool {
    stage.ask_name(service).is_ok_and(|found| found == name)
}

#[test]
fn an_edited_file_takes_effect_by_itself() {
    let Some(stage) = Stage::set() else { return };
    let (old, new) = (stage.echo("old"), stage.echo("new"));
    let (kept, added) = (stage.address(), stage.address());
    let config = stage.config();
    let agent = Agent::start(&config.with_services([Service::kernel_tcp("kept", kept).to(old.address())]));
    assert!(moves_to(&stage, kept, "old"));

    agent.reload(&config.with_services([
        Service::kernel_tcp("kept", kept).to(new.address()),
        Service::agent_tcp("added", added).to(new.address()),
    ]));
    assert!(moves_to(&stage, kept, "new") && moves_to(&stage, added, "new"));

    agent.reload(&config.with_services([Service::agent_tcp("added", added).to(old.address())]));
    assert!(moves_to(&stage, added, "old"));
    assert!(stage.dial(kept).is_err(), "a service that is gone is no longer captured");
    let metrics = agent.metrics();
    assert_eq!(metrics.get("sockway_config_reloads_total", &[("result", "applied")]), 2.0);
    assert!(
        metrics.get("sockway_config_read_seconds", &[]) > 0.0 && metrics.get("sockway_config_apply_seconds", &[]) > 0.0
    );
}

#[test]
fn a_file_written_in_place_takes_effect() {
    let Some(stage) = Stage::set() else { return };
    let (old, new) = (stage.echo("old"), stage.echo("new"));
    let service = stage.address();
    let config = stage.config();
    let agent = Agent::start(&config.with_services([Service::kernel_tcp("web", service).to(old.address())]));
    let before = agent.generation();
    fs::write(
        agent.config_file(),
        config.with_services([Service::kernel_tcp("web", service).to(new.address())]).yaml(),
    )
    .unwrap();
    agent.wait_generation_after(before);
    assert!(moves_to(&stage, service, "new"));
}

#[test]
fn sighup_reloads() {
    let Some(stage) = Stage::set() else { return };
    let origin = stage.echo("origin");
    let service = stage.address();
    let agent = Agent::start(&stage.config().service(Service::kernel_tcp("web", service).to(origin.address())));
    let loads = || agent.metric("sockway_config_reloads_total", &[]);
    let before = loads();
    agent.signal(Signal::SIGHUP);
    wait::until("the signal to be followed", wait::SOON, || loads() > before);
    assert!(moves_to(&stage, service, "origin"));
}

#[test]
fn sighup_does_not_end_an_agent_that_starts() {
    let Some(stage) = Stage::set() else { return };
    let origin = stage.echo("origin");
    let service = stage.address();
    let mut agent = Agent::start(&stage.config().service(Service::kernel_tcp("web", service).to(origin.address())));
    agent.sigkill();
    agent.begin_again();
    // It enters its cgroup before the kernel half is loaded, which takes longest.
    let cgroup = format!("/proc/{}/cgroup", agent.pid());
    wait::until("the agent to be under way", wait::SOON, || {
        fs::read_to_string(&cgroup).is_ok_and(|cgroups| cgroups.contains("sockway-agent-"))
    });
    let is_ready = |agent: &Agent| agent.log().matches(": ready ").count() > 0;
    assert!(!is_ready(&agent), "too late to try");
    agent.signal(Signal::SIGHUP);
    wait::until("the agent to be ready", wait::SOON, || {
        assert!(agent.running(), "{}", agent.log());
        is_ready(&agent)
    });
    assert!(moves_to(&stage, service, "origin"));
}

/// Lays out a directory as Kubernetes mounts a ConfigMap: the file is a link through `..data`, which is swapped as a whole.
struct ConfigMap {
    directory: PathBuf,
    versions: u32,
}

impl ConfigMap {
    fn mount(directory: &Path, text: &str) -> Self {
        let mut map = Self { directory: directory.to_owned(), versions: 0 };
        map.publish(text);
        symlink("..data/sockway.yaml", directory.join("sockway.yaml")).unwrap();
        map
    }

    fn publish(&mut self, text: &str) {
        self.versions += 1;
        let version = format!("..version-{}", self.versions);
        fs::create_dir(self.directory.join(&version)).unwrap();
        fs::write(self.directory.join(&version).join("sockway.yaml"), text).unwrap();
        symlink(&version, self.directory.join("..data_tmp")).unwrap();
        fs::rename(self.directory.join("..data_tmp"), self.directory.join("..data")).unwrap();
        let _ = fs::remove_dir_all(self.directory.join(format!("..version-{}", self.versions - 1)));
    }
}

#[test]
fn a_config_map_that_is_swapped_takes_effect() {
    let Some(stage) = Stage::set() else { return };
    let (old, new) = (stage.echo("old"), stage.echo("new"));
    let service = stage.address();
    let config = stage.config();
    let to = |endpoint: SocketAddr| config.with_services([Service::kernel_tcp("web", service).to(endpoint)]).yaml();
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("sockway.yaml");
    let mut map = ConfigMap::mount(directory.path(), &to(old.address()));
    let agent = Agent::start_with(Room::default(), config.instance(), directory, &file);
    assert!(moves_to(&stage, service, "old"));

    for (endpoint, name) in [(new.address(), "new"), (old.address(), "old"), (new.address(), "new")] {
        let before = agent.generation();
        map.publish(&to(endpoint));
        agent.wait_generation_after(before);
        assert!(moves_to(&stage, service, name));
    }
}

#[test]
fn a_bad_file_changes_nothing_and_is_counted() {
    let Some(stage) = Stage::set() else { return };
    let (origin, other) = (stage.echo("origin"), stage.echo("other"));
    let (service, half) = (stage.address(), stage.address());
    let config = stage.config();
    let agent = Agent::start(&config.with_services([Service::kernel_tcp("web", service).to(origin.address())]));
    let generation = agent.generation();
    let refused = || agent.metric("sockway_config_reloads_total", &[("result", "refused")]);

    let half_good = config
        .with_services([
            Service::kernel_tcp("web", service).to(other.address()),
            Service::kernel_tcp("half", half).to(other.address()).set("balance: by_magic"),
        ])
        .yaml();
    for (count, text) in ["services: [", &half_good, "no key at all"].into_iter().enumerate() {
        agent.write_config(text);
        wait::until("the file to be refused", wait::SOON, || refused() > count as f64);
        assert_eq!(agent.generation(), generation);
        assert!(moves_to(&stage, service, "origin") && stage.dial(half).is_err());
    }
    assert!(agent.log().contains("by_magic"), "the log says what is wrong: {}", agent.log());

    agent.reload(&config.with_services([Service::kernel_tcp("web", service).to(other.address())]));
    assert!(moves_to(&stage, service, "other"), "a good file is taken after bad ones");
}

#[test]
fn a_file_that_is_gone_for_a_while_changes_nothing() {
    let Some(stage) = Stage::set() else { return };
    let (origin, other) = (stage.echo("origin"), stage.echo("other"));
    let service = stage.address();
    let config = stage.config();
    let agent = Agent::start(&config.with_services([Service::kernel_tcp("web", service).to(origin.address())]));
    fs::remove_file(agent.config_file()).unwrap();
    agent.signal(Signal::SIGHUP);
    wait::until("the missing file to be noticed", wait::SOON, || {
        agent.metric("sockway_config_reloads_total", &[("result", "refused")]) >= 1.0
    });
    assert!(moves_to(&stage, service, "origin"));
    agent.reload(&config.with_services([Service::kernel_tcp("web", service).to(other.address())]));
    assert!(moves_to(&stage, service, "other"));
}

#[test]
fn open_connections_live_on_through_a_reload() {
    let Some(stage) = Stage::set() else { return };
    let (old, new) = (stage.echo("old"), stage.echo("new"));
    let (kernel, through_agent) = (stage.address(), stage.address());
    let config = stage.config();
    let both = |endpoint: SocketAddr| {
        config.with_services([
            Service::kernel_tcp("kernel", kernel).to(endpoint),
            Service::agent_tcp("agent", through_agent).to(endpoint),
        ])
    };
    let agent = Agent::start(&both(old.address()));
    let mut streams = [kernel, through_agent].map(|service| stage.dial(service).unwrap());
    streams.iter_mut().for_each(|stream| assert_eq!(read_name(stream).unwrap(), "old"));

    agent.reload(&both(new.address()));
    for (stream, service) in streams.iter().zip([kernel, through_agent]) {
        assert!(echoes(stream, &[5; 500_000]).unwrap());
        assert_eq!(stream.peer_addr().unwrap(), service);
        assert!(moves_to(&stage, service, "new"));
    }
    // Even when their service is gone.
    agent.reload(&config.with_services([]));
    streams.iter().for_each(|stream| assert!(echoes(stream, &[6; 500_000]).unwrap()));
}

#[test]
fn reloads_under_load_cost_no_request() {
    let Some(stage) = Stage::set() else { return };
    let (first, second) = (stage.address(), stage.address());
    let (http, kernel) = (stage.address(), stage.address());
    let _nginxes =
        [first, second].map(|address| Nginx::start(Room::of(&stage.origins), stage.origin(), address, "nginx"));
    let config = stage.config();
    let services = |endpoints: &[SocketAddr]| -> Config {
        config.with_services([
            Service::http("http", http).to_all(endpoints.iter().copied()),
            Service::kernel_tcp("kernel", kernel).to_all(endpoints.iter().copied()),
        ])
    };
    let agent = Agent::start(&services(&[first, second]));
    let span = Duration::from_secs(4);
    let mut loads = [http, kernel].map(|service| Wrk::start(Room::of(&stage.clients), service, 8, span));
    let mut reloads = 0;
    while loads.iter_mut().all(Wrk::running) {
        let endpoints = [vec![first], vec![second], vec![first, second]];
        agent.reload(&services(&endpoints[reloads % 3]));
        let answer = stage.session([http, kernel][reloads % 2]).get("/").unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (200, "nginx\n"));
        reloads += 1;
    }
    assert!(reloads >= patience::load(5), "only {reloads} reloads in {span:?}");
    for load in loads.map(Wrk::report) {
        assert_eq!((load.socket_errors, load.bad_answers), (0, 0), "{reloads} reloads: {load:?}");
        assert!(load.requests > patience::load(500) as u64, "{load:?}");
    }
}

#[test]
fn round_robin_stays_exact_after_a_reload() {
    let Some(stage) = Stage::set() else { return };
    let origins: Vec<_> = ["a", "b", "c", "d"].map(|name| stage.echo(name)).into_iter().collect();
    let service = stage.address();
    let config = stage.config();
    let to = |count: usize| {
        config.with_services([
            Service::kernel_tcp("web", service).to_all(origins[..count].iter().map(|origin| origin.address()))
        ])
    };
    let agent = Agent::start(&to(1));
    for count in [3, 4, 2, 4] {
        agent.reload(&to(count));
        let before: Vec<usize> = origins.iter().map(|origin| origin.accepted()).collect();
        for _ in 0..count * 5 {
            stage.ask_name(service).unwrap();
        }
        let grown: Vec<usize> = origins.iter().zip(before).map(|(origin, before)| origin.accepted() - before).collect();
        assert!(grown[..count].iter().all(|&grown| grown == 5), "{count} endpoints: {grown:?}");
    }
}

/// Trap T25: the main thread is at work for longer than the hooks wait for a heartbeat.
#[test]
fn an_agent_that_writes_great_tables_is_not_taken_for_hung() {
    /// What the hooks wait for.
    const HEARTBEAT_MAX_AGE: f64 = 2.0;
    let Some(stage) = Stage::set() else { return };
    let origin = stage.echo("origin");
    let (service, great) = (stage.address(), [stage.address(), stage.address(), stage.address()]);
    let config = stage.config().set("maps: { slots: 2097152 }");
    let config = config.service(Service::agent_tcp("pipe", service).to(origin.address()));
    let agent = Agent::start(&config);
    let before = agent.generation();
    // Half a million entries each: as large as one can be.
    let tables = great.iter().enumerate().map(|(index, address)| {
        let table = Service::kernel_tcp(&format!("great-{index}"), *address).set("balance: maglev");
        table.set("maglev_table_size: 5000011").to(origin.address())
    });
    agent.write_config(&tables.fold(config, Config::service).yaml());
    let mut dialled = 0;
    wait::until("the tables to be written", 4 * wait::SOON, || {
        assert_eq!(stage.ask_name(service).unwrap(), "origin");
        dialled += 1;
        moves_to(&stage, great[2], "origin")
    });
    agent.wait_generation_after(before);
    let metrics = agent.metrics();
    let took = metrics.get("sockway_config_apply_seconds", &[]);
    println!("{dialled} connects in the {took} s that it took");
    assert_eq!(metrics.get("sockway_kernel_connects_total", &[("verdict", "fail_open_hung")]), 0.0, "in {took} s");
    if took < HEARTBEAT_MAX_AGE {
        println!("SKIPPED: this machine writes them within {took} s, before a heartbeat is due");
    }
}
