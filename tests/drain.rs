//! Drain: an endpoint that leaves takes no new connections, keeps those it has for its time, and then they are ended wherever they are,
//! and no others.

use std::{
    io::{ErrorKind, Read},
    net::{SocketAddr, TcpStream},
};

use sockway_tests::{
    agent::Agent,
    config::{Config, Service},
    door::Door,
    netns::{Netns, Veth},
    origin::{Origin, echoes, read_name},
    process::Room,
    stage::Stage,
    wait,
};

const AT_ONCE: &str = "endpoint_drain_ms: 0";
const LATER: &str = "endpoint_drain_ms: 3600000";

/// Dials until this endpoint answers; the connection stays open.
fn dial_to(stage: &Stage, service: SocketAddr, name: &str) -> TcpStream {
    let mut last = None;
    wait::until("a connection to the endpoint", wait::SOON, || {
        let mut stream = stage.dial(service).expect("the service accepts");
        let is_it = read_name(&mut stream).is_ok_and(|found| found == name);
        last = Some(stream);
        is_it
    });
    last.expect("dialled")
}

/// Whether the connection was ended from outside: neither endpoint nor program has closed it.
fn was_aborted(mut stream: &TcpStream) -> bool {
    matches!(stream.read(&mut [0; 1]), Err(error) if error.kind() == ErrorKind::ConnectionAborted)
}

fn lives(stream: &TcpStream) -> bool {
    echoes(stream, b"still there").is_ok_and(|echoed| echoed)
}

fn leaving(agent: &Agent, endpoint: SocketAddr, state: &str) -> bool {
    agent.metrics().has("sockway_endpoint_leaving", &[("endpoint", &endpoint.to_string()), ("state", state)])
}

/// Two echo endpoints of one kernel-balanced service.
struct Pair {
    stage: Stage,
    service: SocketAddr,
    stays: Origin,
    goes: Origin,
}

impl Pair {
    fn set() -> Option<Self> {
        let stage = Stage::set()?;
        let (stays, goes, service) = (stage.echo("stays"), stage.echo("goes"), stage.address());
        Some(Self { stage, service, stays, goes })
    }

    fn both(&self, key: &str) -> Service {
        self.one(key).to(self.goes.address())
    }

    fn one(&self, key: &str) -> Service {
        Service::kernel_tcp("pipe", self.service).set(key).to(self.stays.address())
    }

    fn config(&self, service: Service) -> Config {
        self.stage.config().service(service)
    }
}

#[test]
fn an_endpoint_that_is_listed_no_more_keeps_its_connections_for_its_time_and_takes_no_new_ones() {
    let Some(pair) = Pair::set() else { return };
    let config = pair.config(pair.both(LATER));
    let agent = Agent::start(&config);
    let old = dial_to(&pair.stage, pair.service, "goes");
    agent.reload(&config.with_services([pair.one(LATER)]));
    wait::until("the endpoint to drain", wait::SOON, || leaving(&agent, pair.goes.address(), "draining"));
    assert!((0..20).all(|_| pair.stage.ask_name(pair.service).unwrap() == "stays"));
    assert!(lives(&old));
    assert_eq!(old.peer_addr().unwrap(), pair.service);
}

#[test]
fn when_its_time_is_over_its_connections_are_ended_and_nobody_elses() {
    let Some(pair) = Pair::set() else { return };
    let (stage, endpoint) = (&pair.stage, pair.goes.address());
    let other = stage.address();
    let others = Service::kernel_tcp("other", other).to(endpoint);
    let config = pair.config(pair.both(AT_ONCE)).service(others.clone());
    let agent = Agent::start(&config);
    let ended: Vec<TcpStream> = (0..50).map(|_| dial_to(stage, pair.service, "goes")).collect();
    let kept = dial_to(stage, pair.service, "stays");
    // The same program and the same endpoint, but not dialled through this service.
    let (direct, of_other) = (stage.dial(endpoint).unwrap(), stage.dial(other).unwrap());
    for mut stream in [&direct, &of_other] {
        assert_eq!(read_name(&mut stream).unwrap(), "goes");
    }

    agent.reload(&config.with_services([pair.one(AT_ONCE), others]));
    assert!(ended.iter().all(was_aborted));
    assert!(lives(&kept) && lives(&direct) && lives(&of_other));
    wait::until("the endpoint to be forgotten", wait::SOON, || {
        !["draining", "dead"].iter().any(|state| leaving(&agent, endpoint, state))
    });
}

#[test]
fn connections_of_a_program_in_another_network_namespace_are_ended_too() {
    let Some(stage) = Stage::set() else { return };
    let (near, far) = (Netns::new(), Netns::new());
    let wire = Veth::between(&near, &far);
    let endpoint = SocketAddr::from((wire.right, 80));
    let origin = Door::open(Room::of(&stage.origins).inside(&far));
    let _goes = Origin::echo(origin.listen(endpoint).unwrap(), "goes");
    let client = Door::open(Room::of(&stage.clients).inside(&near));
    let service = SocketAddr::from(([10, 254, 0, 1], 80));
    let piped = Service::kernel_tcp("pipe", service).set(AT_ONCE).to(endpoint);
    let config = stage.config().service(piped);
    let agent = Agent::start(&config);
    let mut stream = client.dial(service).unwrap();
    stream.set_read_timeout(Some(wait::soon())).unwrap();
    assert_eq!(read_name(&mut stream).unwrap(), "goes");

    agent.reload(&config.with_services([]));
    assert!(was_aborted(&stream));
}

#[test]
fn an_endpoint_that_is_set_to_drain_does_as_one_that_is_removed_and_stays_listed() {
    let Some(pair) = Pair::set() else { return };
    let config = pair.config(pair.both(AT_ONCE));
    let agent = Agent::start(&config);
    let old = dial_to(&pair.stage, pair.service, "goes");
    let draining = pair.one(AT_ONCE).to_with(pair.goes.address(), "state: draining");
    agent.reload(&config.with_services([draining]));
    assert!(was_aborted(&old));
    wait::until("it to be dead", wait::SOON, || leaving(&agent, pair.goes.address(), "dead"));
    assert!((0..20).all(|_| pair.stage.ask_name(pair.service).unwrap() == "stays"));

    agent.reload(&config);
    wait::until("it to take connections again", wait::SOON, || pair.stage.ask_name(pair.service).unwrap() == "goes");
}

#[test]
fn an_endpoint_that_comes_back_before_its_time_is_over_keeps_what_it_has() {
    let Some(pair) = Pair::set() else { return };
    let config = pair.config(pair.both(LATER));
    let agent = Agent::start(&config);
    let old = dial_to(&pair.stage, pair.service, "goes");
    agent.reload(&config.with_services([pair.one(LATER)]));
    wait::until("the endpoint to drain", wait::SOON, || leaving(&agent, pair.goes.address(), "draining"));
    agent.reload(&config);
    wait::until("it to take connections again", wait::SOON, || pair.stage.ask_name(pair.service).unwrap() == "goes");
    assert!(!leaving(&agent, pair.goes.address(), "draining"));
    assert!(lives(&old));
}

#[test]
fn connections_through_the_agent_are_ended_when_the_time_of_their_endpoint_is_over() {
    let Some(stage) = Stage::set() else { return };
    let (stays, goes, service) = (stage.echo("stays"), stage.echo("goes"), stage.address());
    let one = || Service::agent_tcp("pipe", service).set(AT_ONCE).to(stays.address());
    let config = stage.config().service(one().to(goes.address()));
    let agent = Agent::start(&config);
    let (mut ended, kept) = (dial_to(&stage, service, "goes"), dial_to(&stage, service, "stays"));
    agent.reload(&config.with_services([one()]));
    let mut rest = Vec::new();
    let read = ended.read_to_end(&mut rest);
    // An end would say that the endpoint had said all.
    assert!(read.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionReset), "{read:?}");
    assert!(lives(&kept));
}
