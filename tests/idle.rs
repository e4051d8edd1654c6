//! Connections that say nothing: what they hold, and that they are still there when they speak again.

use std::{thread, time::Duration};

use sockway_tests::{agent::Agent, config::Service, process::allow_descriptors, stage::Stage};

const CONNECTIONS_MAX: u64 = 2000;
/// What of the descriptors that this process may have is for others than one test's clients.
const OTHERS: u64 = 512;
/// Longer than a connection stays awake.
const SLEEP: Duration = Duration::from_secs(1);
/// A buffer would be 4 KiB and the state of an exchange 3; what is left is less than 2.
const KIB_EACH_MAX: u64 = 4;
/// What the agent keeps for all of them together: its stock of buffers, and tables that grow by doubling.
const KIB_IN_ALL_MAX: u64 = 4096;

/// As many connections as there can be: each is a descriptor here, and may be two more of the endpoint, which stands here too.
fn connections() -> u64 {
    CONNECTIONS_MAX.min(allow_descriptors().saturating_sub(OTHERS) / 6)
}

/// Opens connections of which each asks once, lets them sleep, and has each ask again: they hold little meanwhile.
fn sleeps_lightly(protocol: fn(&str, std::net::SocketAddr) -> Service) {
    let Some(stage) = Stage::set() else { return };
    let connections = connections();
    let (web, service) = (stage.web("web"), stage.address());
    let config = stage.config().set("workers: 1").service(protocol("web", service).to(web.address()));
    let agent = Agent::start(&config);
    let asked = || {
        let mut session = stage.session(service);
        assert_eq!(session.get("/").unwrap().status, 200);
        session
    };
    // What the first needs is needed once.
    let mut sessions: Vec<_> = (0..200).map(|_| asked()).collect();
    thread::sleep(SLEEP);
    let before = agent.resident_kib();
    sessions.extend((0..connections).map(|_| asked()));
    thread::sleep(SLEEP);
    let held = agent.resident_kib().saturating_sub(before);
    for session in &mut sessions {
        assert_eq!(session.get("/").unwrap().status, 200, "after its sleep");
    }
    assert!(held < KIB_IN_ALL_MAX + connections * KIB_EACH_MAX, "{held} KiB by {connections} connections");
}

#[test]
fn an_idle_connection_of_http_holds_no_buffer() {
    sleeps_lightly(Service::http);
}

#[test]
fn nor_does_one_whose_protocol_was_found_out() {
    sleeps_lightly(Service::auto);
}

#[test]
fn what_comes_in_pieces_to_a_sleeping_connection_is_a_request() {
    let Some(stage) = Stage::set() else { return };
    let (web, service) = (stage.web("web"), stage.address());
    let _agent = Agent::start(&stage.config().service(Service::http("web", service).to(web.address())));
    let mut session = stage.session(service);
    for _ in 0..3 {
        for piece in ["GET / HT", "TP/1.1\r\nHost: x\r", "\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n"] {
            thread::sleep(SLEEP / 2);
            session.write(piece.as_bytes()).unwrap();
        }
        assert_eq!(session.read("GET").unwrap().status, 200);
        assert_eq!(session.read("GET").unwrap().status, 200);
    }
}
