//! Connections that say nothing: what they hold, and that they are still there when they speak again.

use std::{thread, time::Duration};

use sockway_tests::{agent::Agent, config::Service, stage::Stage};

const CONNECTIONS: u64 = 1500;
/// Longer than a connection stays awake.
const SLEEP: Duration = Duration::from_secs(1);
/// A buffer alone would be 4 KiB, and the state of an exchange 3.
const KIB_EACH_MAX: u64 = 3;

/// Opens connections of which each asks once, lets them sleep, and has each ask again. Gives what they held, in KiB each.
fn held(protocol: fn(&str, std::net::SocketAddr) -> Service) -> Option<u64> {
    let stage = Stage::set()?;
    let (web, service) = (stage.web("web"), stage.address());
    let config = stage.config().set("workers: 1").service(protocol("web", service).to(web.address()));
    let agent = Agent::start(&config);
    let asked = || {
        let mut session = stage.session(service);
        assert_eq!(session.get("/").unwrap().status, 200);
        session
    };
    // What the first needs is needed once.
    let mut sessions: Vec<_> = (0..50).map(|_| asked()).collect();
    thread::sleep(SLEEP);
    let before = agent.resident_kib();
    sessions.extend((0..CONNECTIONS).map(|_| asked()));
    thread::sleep(SLEEP);
    let held = agent.resident_kib().saturating_sub(before) / CONNECTIONS;
    for session in &mut sessions {
        assert_eq!(session.get("/").unwrap().status, 200, "after its sleep");
    }
    Some(held)
}

#[test]
fn an_idle_connection_of_http_holds_no_buffer() {
    let Some(held) = held(Service::http) else { return };
    assert!(held < KIB_EACH_MAX, "{held} KiB");
}

#[test]
fn nor_does_one_whose_protocol_was_found_out() {
    let Some(held) = held(Service::auto) else { return };
    assert!(held < KIB_EACH_MAX, "{held} KiB");
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
