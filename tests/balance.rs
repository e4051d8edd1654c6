//! Balancing in the connect hook: every policy, what a source keeps, and who is left out, as unmodified programs meet it.

use std::{
    collections::{BTreeMap, HashSet},
    net::{SocketAddr, TcpListener, TcpStream},
};

use sockway_tests::{
    agent::Agent,
    cgroup::Cgroup,
    config::Service,
    door::Door,
    origin::{Origin, read_name},
    process::Room,
    stage::Stage,
    wait,
};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn balanced(stage: &Stage, policy: &str, origins: &[Origin]) -> (SocketAddr, Service) {
    let address = stage.address();
    let service = Service::kernel_tcp(policy, address).set(&format!("balance: {policy}"));
    (address, service.to_all(origins.iter().map(Origin::address)))
}

fn tally(stage: &Stage, service: SocketAddr, count: usize) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for _ in 0..count {
        *counts.entry(stage.ask_name(service).expect("an endpoint")).or_default() += 1;
    }
    counts
}

/// A connection that stays open, and who is at its other end.
fn hold(stage: &Stage, service: SocketAddr) -> (String, TcpStream) {
    let mut stream = stage.dial(service).expect("an endpoint");
    (read_name(&mut stream).expect("a name"), stream)
}

#[test]
fn random_uses_every_endpoint_in_no_order() {
    let Some(stage) = Stage::set() else { return };
    let origins = NAMES.map(|name| stage.echo(name));
    let (service, random) = balanced(&stage, "random", &origins);
    let _agent = Agent::start(&stage.config().service(random));
    let counts = tally(&stage, service, 1000);
    // Mean 250, sigma 13.7: five of them.
    assert!(counts.len() == 4 && counts.values().all(|count| (181..319).contains(count)), "{counts:?}");
}

#[test]
fn least_connections_goes_where_fewest_are_open_and_notices_what_closes() {
    let Some(stage) = Stage::set() else { return };
    let origins = NAMES.map(|name| stage.echo(name));
    let (service, least) = balanced(&stage, "least_connections", &origins);
    let agent = Agent::start(&stage.config().service(least));
    let mut held: Vec<(String, TcpStream)> = (0..40).map(|_| hold(&stage, service)).collect();
    let of = |held: &[(String, TcpStream)], name: &str| held.iter().filter(|(found, _)| found == name).count();
    assert!(NAMES.iter().all(|name| of(&held, name) == 10), "exactly even");

    // Eight of one endpoint close: the next eight connections are all its.
    let mut left = 8;
    held.retain(|(name, _)| {
        let goes = name == "c" && left > 0;
        left -= usize::from(goes);
        !goes
    });
    let endpoint = origins[2].address().to_string();
    wait::until("them to be counted as closed", wait::SOON, || {
        agent.metric("sockway_kernel_endpoint_open", &[("endpoint", &endpoint)]) == 2.0
    });
    for _ in 0..8 {
        held.push(hold(&stage, service));
        assert_eq!(held.last().map(|(name, _)| name.as_str()), Some("c"));
    }
    drop(held);
    wait::until("all to be counted as closed", wait::SOON, || agent.metric("sockway_kernel_endpoint_open", &[]) == 0.0);
}

#[test]
fn a_source_keeps_its_endpoint_by_hash_and_sources_are_spread() {
    let Some(stage) = Stage::set() else { return };
    let origins = NAMES.map(|name| stage.echo(name));
    // A source is a cgroup here: sixteen of them below the captured one.
    let cgroups: Vec<Cgroup> = (0..16).map(|index| stage.clients.child(&format!("source-{index}"))).collect();
    let doors: Vec<Door> = cgroups.iter().map(|cgroup| Door::open(Room::of(cgroup))).collect();
    let (hashed, by_hash) = balanced(&stage, "source_hash", &origins);
    let (maglev, by_maglev) = balanced(&stage, "maglev", &origins);
    let config = stage.config();
    let services = |gone: bool| {
        let lists = [by_hash.clone(), by_maglev.clone()].map(|service| service.set("source: cgroup"));
        if !gone {
            return lists.to_vec();
        }
        let three = origins[..3].iter().map(Origin::address);
        vec![
            Service::kernel_tcp("source_hash", hashed)
                .set("balance: source_hash")
                .set("source: cgroup")
                .to_all(three.clone()),
            Service::kernel_tcp("maglev", maglev).set("balance: maglev").set("source: cgroup").to_all(three),
        ]
    };
    let agent = Agent::start(&config.with_services(services(false)));
    let ask = |door: &Door, service| read_name(&mut door.dial(service).expect("an endpoint")).expect("a name");
    let names = |service| -> Vec<String> { doors.iter().map(|door| ask(door, service)).collect() };
    for service in [hashed, maglev] {
        let first = names(service);
        assert!((0..3).all(|_| names(service) == first), "a source stays");
        assert!(first.iter().collect::<HashSet<_>>().len() >= 2, "sources are spread: {first:?}");
    }
    // One of four endpoints goes: nearly all of the others' sources stay where they are.
    let before = names(maglev);
    agent.reload(&config.with_services(services(true)));
    let after = names(maglev);
    let moved = before.iter().zip(&after).filter(|(old, new)| *old != "d" && old != new).count();
    assert!(moved <= 2, "{before:?} {after:?}");
    assert!(!after.contains(&"d".to_owned()));
}

#[test]
fn with_affinity_a_source_stays_until_its_time_is_over_or_its_endpoint_is() {
    let Some(stage) = Stage::set() else { return };
    let origins = NAMES.map(|name| stage.echo(name));
    let (service, long) = balanced(&stage, "round_robin", &origins);
    let short = stage.address();
    let brief =
        Service::kernel_tcp("brief", short).set("affinity_timeout_ms: 1").to_all(origins.iter().map(Origin::address));
    let config = stage.config();
    let agent = Agent::start(&config.with_services([long.set("affinity_timeout_ms: 600000"), brief]));
    let counts = tally(&stage, service, 30);
    assert_eq!(counts.len(), 1, "{counts:?}");
    wait::until("a source to be balanced anew when its time is over", wait::SOON, || tally(&stage, short, 8).len() > 1);

    let (stays, _) = counts.first_key_value().expect("one");
    let others = origins.iter().zip(NAMES).filter(|(_, name)| name != stays).map(|(origin, _)| origin.address());
    let without = Service::kernel_tcp("round_robin", service).set("affinity_timeout_ms: 600000").to_all(others);
    agent.reload(&config.with_services([without]));
    let now = tally(&stage, service, 30);
    assert!(now.len() == 1 && !now.contains_key(stays), "{now:?}");
}

#[test]
fn an_endpoint_that_fails_handshakes_is_ejected_for_a_time_also_while_the_agent_is_dead() {
    let Some(stage) = Stage::set() else { return };
    let (living, dead, service) = (stage.echo("living"), stage.address(), stage.address());
    let ejecting = Service::kernel_tcp("ejects", service).set("eject: { failures: 3, for_ms: 3600000 }");
    let mut agent = Agent::start(&stage.config().service(ejecting.to(living.address()).to(dead)));
    agent.sigkill();
    // In turn every second dial meets the dead one, until it has failed three times.
    let refused = (0..40).filter(|_| stage.dial(service).is_err()).count();
    assert_eq!(refused, 3);
    agent.start_again();
    agent.metric_comes_to("sockway_kernel_ejections_total", &[], 1.0);
    assert!((0..10).all(|_| stage.ask_name(service).is_ok()));
}

#[test]
fn a_program_that_gives_up_says_nothing_against_the_endpoint() {
    let Some(stage) = Stage::set() else { return };
    let (living, silent, service) = (stage.echo("living"), stage.address(), stage.address());
    // A full accept queue drops every further SYN.
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    full.bind(&silent.into()).unwrap();
    full.listen(0).unwrap();
    let full = TcpListener::from(full);
    let _waiting: Vec<TcpStream> = (0..4).filter_map(|_| stage.origin().begin(silent).ok()).collect();
    let ejecting = Service::kernel_tcp("ejects", service).set("eject: { failures: 1, for_ms: 3600000 }");
    let agent = Agent::start(&stage.config().service(ejecting.to(silent).to(living.address())));
    // Begun and closed at once.
    for _ in 0..6 {
        drop(stage.client().begin(service).unwrap());
    }
    let failed = || agent.metric("sockway_kernel_handshakes_failed_total", &[]);
    wait::until("the handshakes to be given up", wait::SOON, || failed() >= 1.0);
    assert_eq!(agent.metric("sockway_kernel_ejections_total", &[]), 0.0);
    drop(full);
}
