//! Ten thousand services: what one change of one endpoint costs, by the admin endpoint and by the file.

use std::net::SocketAddr;

use sockway_tests::{
    agent::{Agent, is_optimised},
    config::Service,
    stage::{Stage, tell},
};

/// As many as the goal says; a build without optimisation takes too long to read them.
fn services() -> usize {
    if is_optimised() { 10_000 } else { 1_000 }
}

/// Services that nobody dials.
fn others() -> impl Iterator<Item = Service> {
    (1..services()).map(|number| {
        let address = |first: usize| -> SocketAddr {
            format!("127.{first}.{}.{}:9", number / 250, number % 250 + 1).parse().expect("an address")
        };
        Service::kernel_tcp(&format!("other-{number}"), address(66)).to_all([address(80), address(81)])
    })
}

/// How long reading and checking the configuration in effect took, and putting it in force; in milliseconds.
fn took(agent: &Agent) -> [f64; 2] {
    let metrics = agent.metrics();
    ["read", "apply"].map(|what| metrics.get(&format!("sockway_config_{what}_seconds"), &[]) * 1e3)
}

#[test]
fn one_endpoint_of_ten_thousand_services_changes_without_reading_the_others_again() {
    let Some(stage) = Stage::set() else { return };
    let (a, b, service) = (stage.web("a"), stage.web("b"), stage.address());
    let to = |endpoints: &[SocketAddr]| Service::kernel_tcp("web", service).to_all(endpoints.iter().copied());
    let config = |endpoints: &[SocketAddr]| stage.config().with_services(others().chain([to(endpoints)]));
    let agent = Agent::start(&config(&[a.address()]));
    let answers = || {
        let before = (a.connections(), b.connections());
        assert_eq!(stage.session(service).get("/").expect("an answer").status, 200);
        (a.connections() - before.0, b.connections() - before.1)
    };
    assert_eq!(answers(), (1, 0));

    let path = |address| format!("/v1/services/web/endpoints/{address}");
    let put = agent.ask("PUT", &path(b.address()), "{}");
    assert_eq!(put.status, 200, "{}", put.text());
    let [set_read, set_applied] = took(&agent);
    assert_eq!(agent.ask("DELETE", &path(a.address()), "").status, 200);
    assert_eq!(answers(), (0, 1));

    agent.reload(&config(&[a.address()]));
    let [file_read, file_applied] = took(&agent);
    assert_eq!(answers(), (1, 0));
    tell(&format!(
        "one endpoint changed, of {} services: by the admin endpoint {set_read:.1} ms to check and {set_applied:.1} ms to put in \
         force, by the file {file_read:.1} ms and {file_applied:.1} ms",
        services()
    ));
    assert!(set_read * 5.0 < file_read, "{set_read} ms and {file_read} ms");

    // What is kept of a generation that nobody has written can be gone back to.
    let back = agent.ask("POST", "/v1/rollback/2", "");
    assert_eq!(back.status, 200, "{}", back.text());
    let back = agent.ask("DELETE", &path(a.address()), "");
    assert_eq!(back.status, 200, "{}", back.text());
    assert_eq!(answers(), (0, 1));
}
