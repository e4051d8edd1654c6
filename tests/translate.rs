//! HTTP/1 and HTTP/2 on two sides of the real agent, between real programs and between peers that count frames.

use std::net::SocketAddr;

use sockway_tests::{
    agent::Agent,
    config::Service,
    peers::{self, Nghttpd, h2load},
    process::Room,
    stage::Stage,
};

/// A stage with one service.
struct Hop {
    agent: Agent,
    service: SocketAddr,
    stage: Stage,
}

impl Hop {
    fn of(stage: Stage, service: Service, address: SocketAddr) -> Self {
        // One worker: how many connections it makes to the endpoint can then be counted.
        let config = stage.config().set("workers: 1").service(service);
        Self { agent: Agent::start(&config), service: address, stage }
    }

    fn auto(stage: Stage, endpoint: SocketAddr) -> Self {
        let address = stage.address();
        Self::of(stage, Service::auto("web", address).to(endpoint), address)
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.service)
    }

    /// What curl tells of version and status, and the body.
    #[track_caller]
    fn curl(&self, path: &str, arguments: &[&str]) -> (String, Vec<u8>) {
        let url = self.url(path);
        let common = ["--write-out", "\n%{http_version} %{response_code}", &url];
        let output = peers::curl(Room::of(&self.stage.clients), &[&common, arguments].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let at = output.stdout.iter().rposition(|byte| *byte == b'\n').expect("what curl was to write");
        (String::from_utf8_lossy(&output.stdout[at + 1..]).into_owned(), output.stdout[..at].to_vec())
    }
}

const HTTP2: &str = "--http2-prior-knowledge";

#[test]
fn http2_under_auto_is_served_stream_by_stream_on_the_connection_that_was_dialled() {
    let Some(stage) = Stage::set() else { return };
    let address = stage.address();
    let _origin = Nghttpd::start(Room::of(&stage.origins), stage.origin(), address, 1_000, &[]);
    let hop = Hop::auto(stage, address);
    assert_eq!(hop.curl("/bytes", &[HTTP2]), ("2 200".into(), vec![b'n'; 1_000]));
    assert_eq!(hop.agent.metric("sockway_upstream_connects_total", &[("result", "accepted")]), 1.0);
    let report = h2load(Room::of(&hop.stage.clients), 500, 2, 8, &hop.url("/bytes"));
    assert!(report.contains("500 succeeded, 0 failed, 0 errored"), "{report}");
    assert_eq!(hop.agent.metric("sockway_requests_total", &[("outcome", "2xx")]), 501.0);
    assert_eq!(hop.agent.metric("sockway_connections_sniffed_total", &[("protocol", "http2")]), 3.0);
}

#[test]
fn http1_under_the_same_key_is_served_as_before() {
    let Some(stage) = Stage::set() else { return };
    let web = stage.web("one");
    let hop = Hop::auto(stage, web.address());
    assert_eq!(hop.curl("/", &[]), ("1.1 200".into(), b"one".to_vec()));
    assert_eq!(hop.agent.metric("sockway_connections_sniffed_total", &[("protocol", "http1")]), 1.0);
}
