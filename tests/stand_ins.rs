//! A service of bytes whose endpoints cannot be reached, and another that stands in for it: a database and its backup.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use nix::sys::socket::{Backlog, listen};
use sockway_tests::{
    agent::Agent,
    config::Service,
    peers::{self, Redis},
    process::Room,
    stage::Stage,
    wait,
};

/// A server that accepts nobody any more: who dials it gets no answer.
struct Mute {
    listener: TcpListener,
    _queued: Vec<TcpStream>,
}

impl Mute {
    fn at(stage: &Stage, address: SocketAddr) -> Self {
        let listener = stage.origin().listen(address).expect("a free address");
        listen(&listener, Backlog::new(0).expect("a number")).expect("a shorter queue");
        let mut queued = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
            queued.push(stream);
            assert!(queued.len() < 8, "its queue is never full");
        }
        Self { listener, _queued: queued }
    }

    fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("its address")
    }
}

#[test]
fn a_backup_database_answers_while_the_first_does_not_and_no_longer() {
    let Some(stage) = Stage::set() else { return };
    let primary = Mute::at(&stage, stage.address());
    let (service, backup, backup_at) = (stage.address(), stage.address(), stage.address());
    let _backup = Redis::start(Room::of(&stage.origins), backup_at);
    let keys = ["fallback: { to: backup }", "connect_timeout_ms: 300", "probe_interval_ms: 100"];
    let database = keys.iter().fold(Service::agent_tcp("database", service), |it, key| it.set(key));
    let services = [database.to(primary.address()), Service::kernel_tcp("backup", backup).to(backup_at)];
    let agent = Agent::start(&stage.config().with_services(services.to_vec()));
    let room = Room::of(&stage.clients);
    let redis = |arguments: &[&str]| peers::redis(room, "redis-cli", service, arguments);
    assert_eq!(redis(&["set", "whose", "backup"]), "OK\n", "after the first one's connect timeout");
    assert_eq!(redis(&["get", "whose"]), "backup\n");
    let began = Instant::now();
    (0..5).for_each(|_| assert_eq!(redis(&["get", "whose"]), "backup\n"));
    assert!(began.elapsed() < Duration::from_secs(30));
    let fallbacks = [("service", "database"), ("reason", "unreached")];
    agent.metric_comes_to("sockway_fallbacks_total", &fallbacks, 7.0);
    // It is there again.
    let at = primary.address();
    drop(primary);
    let _primary = Redis::start(Room::of(&stage.origins), at);
    assert_eq!(peers::redis(Room::of(&stage.origins), "redis-cli", at, &["set", "whose", "primary"]), "OK\n");
    wait::until("the first one to answer", wait::SOON, || redis(&["get", "whose"]) == "primary\n");
}

#[test]
fn who_speaks_first_and_who_does_not_reach_the_backup_of_a_service_of_any_protocol() {
    let Some(stage) = Stage::set() else { return };
    let (service, backup) = (stage.address(), stage.address());
    let echo = stage.echo("backup");
    let nobody = stage.address();
    let services = [
        Service::auto("any", service).set("fallback: { to: backup }").to(nobody),
        Service::auto("backup", backup).to(echo.address()),
    ];
    let _agent = Agent::start(&stage.config().with_services(services.to_vec()));
    let mut stream = stage.dial(service).expect("a connection");
    stream.write_all(b"\x01\x02not http\n").expect("sent");
    let expected = b"backup\n\x01\x02not http\n";
    let mut said = vec![0; expected.len()];
    stream.read_exact(&mut said).expect("an answer");
    assert_eq!(said, expected);
    assert_eq!(stage.ask_name(service).expect("an answer"), "backup");
}
