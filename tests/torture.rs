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

/// Endpoints, each with who leads the connections there, and the services in front of them in the same form.
struct Field {
    endpoints: Vec<String>,
    services: Vec<String>,
    config: Config,
    /// Where the server is told that all is done.
    end: SocketAddr,
}

impl Field {
    /// Three quarters of the connections are balanced in the kernel, one quarter goes through the agent.
    fn lay_out(stage: &Stage, shortcut: &'static str) -> Self {
        let config = Config::new().capture_with(&stage.clients, shortcut).capture_with(&stage.origins, shortcut);
        let mut field = Self { endpoints: Vec::new(), services: Vec::new(), config, end: stage.address() };
        field.endpoints.push(format!("client@{}", field.end));
        for (mode, share) in [("kernel", 3), ("agent", 1)] {
            let service_of = if mode == "kernel" { Service::kernel_tcp } else { Service::agent_tcp };
            for leader in ["client", "server"] {
                let (service, endpoints) = (stage.address(), [stage.address(), stage.address()]);
                field.endpoints.extend(endpoints.map(|endpoint| format!("{leader}@{endpoint}")));
                field.services.extend(vec![format!("{leader}@{service}"); share]);
                let service = service_of(&format!("{mode}-{leader}"), service).to_all(endpoints);
                field.config = field.config.service(service.set(&format!("shortcut: {shortcut}")));
            }
        }
        field
    }
}

/// Runs the two programs against each other and gives what the client counted.
fn torture(stage: &Stage, field: &Field, seconds: u64, seed: u64) -> String {
    let words = |first: &[&str], rest: &[String]| -> Vec<String> {
        first.iter().map(|word| (*word).to_owned()).chain(rest.iter().cloned()).collect()
    };
    let seed = seed.to_string();
    let mut server = start(Room::of(&stage.origins), &words(&["torture-server", &seed], &field.endpoints));
    wait::until("the torturing server to listen", wait::SOON, || {
        server.stdout().contains("ready") || server.ended().is_some()
    });
    let (threads, end, seconds_word) = (THREADS.to_string(), field.end.to_string(), seconds.to_string());
    let first = ["torture-client", &seed, &seconds_word, &threads, &end];
    let mut client = start(Room::of(&stage.clients), &words(&first, &field.services));
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
    let field = Field::lay_out(&stage, "on");
    let agent = Agent::start(&field.config);
    let counted = torture(&stage, &field, seconds, seed);

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
fn the_same_torture_without_the_shortcut_shows_what_is_not_its_doing() {
    let Some(stage) = Stage::set() else { return };
    let field = Field::lay_out(&stage, "off");
    let agent = Agent::start(&field.config);
    torture(&stage, &field, seconds().div_ceil(10), seed());
    assert_eq!(agent.metric("sockway_kernel_shortcut_bytes_total", &[]), 0.0);
}
