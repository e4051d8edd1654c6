//! Torture of the shortcut: for a minute, thousands of connections used in every way a program can, every byte and every end checked.
//!
//! `SOCKWAY_TORTURE_SECONDS` says how long (60), `SOCKWAY_TORTURE_SEED` repeats the plans of an earlier run.

use std::{
    env,
    net::SocketAddr,
    process::Command,
    time::{Duration, SystemTime},
};

use sockway_tests::{
    agent::{self, Agent},
    config::{Config, Service},
    netns::{Netns, Veth},
    process::{Process, Room},
    stage::{Stage, tell},
    wait,
};

/// How many connections are open at once.
const THREADS: usize = 16;

fn seconds() -> u64 {
    env::var("SOCKWAY_TORTURE_SECONDS")
        .map_or(60, |seconds| seconds.parse().expect("SOCKWAY_TORTURE_SECONDS is a number"))
}

fn seed() -> u64 {
    let fresh = || SystemTime::UNIX_EPOCH.elapsed().map_or(0, |age| age.as_millis() as u64);
    env::var("SOCKWAY_TORTURE_SEED")
        .map_or_else(|_| fresh(), |seed| seed.parse().expect("SOCKWAY_TORTURE_SEED is a number"))
}

fn start(room: Room<'_>, arguments: &[String]) -> Process {
    let mut command = Command::new(agent::probe());
    command.args(arguments);
    Process::spawn(room, command)
}

/// Where a torture takes place, and what it goes through.
struct Field<'a> {
    client: Room<'a>,
    server: Room<'a>,
    /// Endpoints, each with who leads the connections there.
    endpoints: Vec<String>,
    /// The services in front of them, in the same form, each as often as its share.
    services: Vec<String>,
    config: Config,
    /// Where the server is told that all is done.
    end: SocketAddr,
}

impl<'a> Field<'a> {
    fn new(client: Room<'a>, server: Room<'a>, config: Config, end: SocketAddr) -> Self {
        let endpoints = vec![format!("client@{end}")];
        Self { client, server, endpoints, services: Vec::new(), config, end }
    }

    /// Three quarters of the connections are balanced in the kernel, one quarter goes through the agent.
    fn on_this_host(stage: &'a Stage, shortcut: &'static str) -> Self {
        let config = Config::new().capture_with(&stage.clients, shortcut).capture_with(&stage.origins, shortcut);
        let mut field = Self::new(Room::of(&stage.clients), Room::of(&stage.origins), config, stage.address());
        for leader in ["client", "server"] {
            let address = || stage.address();
            let kernel = Service::kernel_tcp(&format!("kernel-{leader}"), field.share(leader, 3, address()));
            field.add(kernel, shortcut, leader, [address(), address()]);
            let agent = Service::agent_tcp(&format!("agent-{leader}"), field.share(leader, 1, address()));
            field.add(agent, shortcut, leader, [address(), address()]);
        }
        field
    }

    /// Gives a service's address its share of the connections.
    fn share(&mut self, leader: &str, share: usize, service: SocketAddr) -> SocketAddr {
        self.services.extend(vec![format!("{leader}@{service}"); share]);
        service
    }

    fn add(&mut self, service: Service, shortcut: &str, leader: &str, endpoints: [SocketAddr; 2]) {
        self.endpoints.extend(endpoints.map(|endpoint| format!("{leader}@{endpoint}")));
        let service = service.set(&format!("shortcut: {shortcut}")).to_all(endpoints);
        self.config = self.config.clone().service(service);
    }
}

/// Runs the two programs against each other and gives what the client counted.
fn torture(field: &Field<'_>, seconds: u64, seed: u64) -> String {
    let words = |first: &[&str], rest: &[String]| -> Vec<String> {
        first.iter().map(|word| (*word).to_owned()).chain(rest.iter().cloned()).collect()
    };
    let seed = seed.to_string();
    let mut server = start(field.server, &words(&["torture-server", &seed], &field.endpoints));
    wait::until("the torturing server to listen", wait::SOON, || {
        server.stdout().contains("ready") || server.ended().is_some()
    });
    let (threads, end, seconds_word) = (THREADS.to_string(), field.end.to_string(), seconds.to_string());
    let first = ["torture-client", &seed, &seconds_word, &threads, &end];
    let mut client = start(field.client, &words(&first, &field.services));
    // The programs' own watchdogs end them long before this.
    let client_status = client.wait(Duration::from_secs(seconds + 120));
    let told = |process: &Process| format!("{}{}", process.stdout(), process.stderr());
    assert!(client_status.success(), "seed {seed}\nclient: {}\nserver: {}", told(&client), told(&server));
    let server_status = server.wait(Duration::from_secs(120));
    assert!(server_status.success(), "seed {seed}\nclient: {}\nserver: {}", told(&client), told(&server));
    tell(&format!("seed {seed}\nclient:\n{}server:\n{}", client.stdout(), server.stdout()));
    client.stdout()
}

#[test]
fn every_byte_and_every_end_arrives_however_programs_use_the_shortcut() {
    let Some(stage) = Stage::set() else { return };
    let (seconds, seed) = (seconds(), seed());
    let field = Field::on_this_host(&stage, "on");
    let agent = Agent::start(&field.config);
    let counted = torture(&field, seconds, seed);

    let count = |what: &str| {
        let line = counted.lines().find_map(|line| line.trim().strip_suffix(what)?.trim().parse::<u64>().ok());
        line.unwrap_or(0)
    };
    assert!(count("  connections") >= 20 * seconds, "hardly any torture: {counted}");
    let metrics = agent.metrics();
    let kernel = |name: &str| metrics.get(&format!("sockway_kernel_{name}"), &[]);
    tell(&format!(
        "shortcut: {} MB in {} messages, {} fallbacks",
        kernel("shortcut_bytes_total") / 1e6,
        kernel("shortcut_messages_total"),
        kernel("shortcut_fallbacks_total")
    ));
    assert!(kernel("shortcut_bytes_total") > 2e5 * seconds as f64 && kernel("shortcut_fallbacks_total") > 0.0);
}

#[test]
fn every_byte_and_every_end_arrives_between_two_pods() {
    let Some(stage) = Stage::set() else { return };
    let (left, right) = (Netns::new(), Netns::new());
    let wire = Veth::between(&left, &right);
    let (client, server) = (Room::of(&stage.clients).inside(&left), Room::of(&stage.origins).inside(&right));
    let endpoint = |port: u16| SocketAddr::new(wire.right.into(), port);
    let mut field = Field::new(client, server, stage.config_with_shortcut(), endpoint(1));
    for (index, leader) in [(1_u8, "client"), (2, "server")] {
        // No namespace has a route to a service's address: what gets through was captured.
        let service = field.share(leader, 1, SocketAddr::from(([10, 254, 0, index], 80)));
        let ports = u16::from(index) * 1_000;
        field.add(Service::kernel_tcp(leader, service), "on", leader, [endpoint(ports), endpoint(ports + 1)]);
    }
    let agent = Agent::start(&field.config);
    torture(&field, seconds().div_ceil(6), seed());
    assert!(agent.metric("sockway_kernel_shortcut_bytes_total", &[]) > 1e5);
}

#[test]
fn the_same_torture_without_the_shortcut_shows_what_is_not_its_doing() {
    let Some(stage) = Stage::set() else { return };
    let field = Field::on_this_host(&stage, "off");
    let agent = Agent::start(&field.config);
    torture(&field, seconds().div_ceil(10), seed());
    assert_eq!(agent.metric("sockway_kernel_shortcut_bytes_total", &[]), 0.0);
}
