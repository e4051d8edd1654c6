//! Who takes connections when not all endpoints are alike: backups by priority, endpoints of the own zone, endpoints that have just come.
//! Counted connect by connect, as unmodified programs meet them.

use std::{collections::BTreeMap, net::SocketAddr};

use sockway_tests::{
    agent::{Agent, sockway},
    config::{Config, Service},
    origin::{Origin, read_name},
    stage::Stage,
    wait,
};

/// How often each of `count` connections was answered by whom; `refused` by nobody.
fn tally(stage: &Stage, service: SocketAddr, count: usize) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for _ in 0..count {
        let name = stage.ask_name(service).unwrap_or_else(|_| "refused".to_owned());
        *counts.entry(name).or_default() += 1;
    }
    counts
}

fn counts(expected: &[(&str, usize)]) -> BTreeMap<String, usize> {
    expected.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
}

/// Waits until the agent says that endpoints are up, or down: from then on the kernel half knows, too.
fn wait_up(agent: &Agent, service: &str, endpoint: SocketAddr, up: bool) {
    let labels = [("service", service), ("endpoint", &endpoint.to_string())];
    let expected = f64::from(u8::from(up));
    wait::until("an endpoint's health to be noticed", wait::SOON, || {
        agent.metric("sockway_endpoint_up", &labels) == expected
    });
}

/// A service whose endpoints are probed all the time.
fn probed(name: &str, address: SocketAddr) -> Service {
    Service::kernel_tcp(name, address).set("probe_interval_ms: 100")
}

#[test]
fn backups_take_what_the_first_cannot_and_give_it_back() {
    let Some(stage) = Stage::set() else { return };
    let ([a, b, c], service) = (["a", "b", "c"].map(|name| stage.echo(name)), stage.address());
    let backed = probed("backed", service).to(a.address()).to(b.address()).to_with(c.address(), "priority: 1");
    let agent = Agent::start(&stage.config().service(backed));
    assert_eq!(tally(&stage, service, 20), counts(&[("a", 10), ("b", 10)]));

    let (at_a, at_b) = (a.address(), b.address());
    a.die();
    wait_up(&agent, "backed", at_a, false);
    // Half of the level is up, which can carry 70 percent.
    assert_eq!(tally(&stage, service, 100), counts(&[("b", 70), ("c", 30)]));
    b.die();
    wait_up(&agent, "backed", at_b, false);
    assert_eq!(tally(&stage, service, 20), counts(&[("c", 20)]));

    let _back = [stage.echo_at("a", at_a), stage.echo_at("b", at_b)];
    wait_up(&agent, "backed", at_a, true);
    wait_up(&agent, "backed", at_b, true);
    assert_eq!(tally(&stage, service, 20), counts(&[("a", 10), ("b", 10)]));
}

#[test]
fn ejected_endpoints_make_room_for_backups_at_the_next_connect_also_while_the_agent_is_dead() {
    let Some(stage) = Stage::set() else { return };
    let backups = ["c", "d"].map(|name| stage.echo(name));
    let (plain, sticky) = (stage.address(), stage.address());
    let service = |name: &str, address| {
        let service = Service::kernel_tcp(name, address).set("eject: { failures: 3, for_ms: 3600000 }");
        let service = service.to(stage.address());
        let service = backups.iter().fold(service, |service, one| service.to_with(one.address(), "priority: 1"));
        service.to_with(stage.address(), "priority: 2")
    };
    let sticks = service("sticky", sticky).set("affinity_timeout_ms: 600000");
    let mut agent = Agent::start(&stage.config().service(service("plain", plain)).service(sticks));
    agent.sigkill();
    let found = tally(&stage, plain, 103);
    assert_eq!(found.get("refused"), Some(&3), "{found:?}");
    let took = |name: &str| found.get(name).copied().unwrap_or(0);
    // Either by chance: mean 50, sigma 5.
    assert!(took("c") + took("d") == 100 && took("c") > 20 && took("d") > 20, "{found:?}");
    let found = tally(&stage, sticky, 33);
    assert_eq!((found.get("refused"), found.len()), (Some(&3), 2), "a source stays with one backup: {found:?}");
}

#[test]
fn an_endpoint_that_drains_makes_room_for_its_backup() {
    let Some(stage) = Stage::set() else { return };
    let ([a, b], service) = (["a", "b"].map(|name| stage.echo(name)), stage.address());
    let config = stage.config();
    let with = |state: &str| {
        let service = Service::kernel_tcp("backed", service).to_with(a.address(), state);
        config.with_services([service.to_with(b.address(), "priority: 1")])
    };
    let agent = Agent::start(&with("state: active"));
    assert_eq!(tally(&stage, service, 10), counts(&[("a", 10)]));
    agent.reload(&with("state: draining"));
    assert_eq!(tally(&stage, service, 10), counts(&[("b", 10)]));
    agent.reload(&with("state: active"));
    assert_eq!(tally(&stage, service, 10), counts(&[("a", 10)]));
}

#[test]
fn who_stays_with_a_backup_goes_back_when_the_first_is_up_again() {
    let Some(stage) = Stage::set() else { return };
    let ([a, b], service) = (["a", "b"].map(|name| stage.echo(name)), stage.address());
    let sticky = probed("sticky", service).set("affinity_timeout_ms: 600000");
    let agent = Agent::start(&stage.config().service(sticky.to(a.address()).to_with(b.address(), "priority: 1")));
    assert_eq!(tally(&stage, service, 5), counts(&[("a", 5)]));
    let address = a.address();
    a.die();
    wait_up(&agent, "sticky", address, false);
    assert_eq!(tally(&stage, service, 5), counts(&[("b", 5)]), "it does not stay with one that is down");
    let _back = stage.echo_at("a", address);
    wait_up(&agent, "sticky", address, true);
    assert_eq!(tally(&stage, service, 5), counts(&[("a", 5)]));
}

/// Endpoints a and b in zone east, c in zone west, d in none.
fn zoned(service: Service, [a, b, c, d]: [SocketAddr; 4]) -> Service {
    let service = service.set("prefer_zone: on").to_with(a, "zone: east").to_with(b, "zone: east");
    service.to_with(c, "zone: west").to(d)
}

fn four(stage: &Stage) -> ([Origin; 4], [SocketAddr; 4]) {
    let origins = ["a", "b", "c", "d"].map(|name| stage.echo(name));
    let addresses = [0, 1, 2, 3].map(|index: usize| origins[index].address());
    (origins, addresses)
}

#[test]
fn the_own_zone_comes_first_and_spills_to_the_others() {
    let Some(stage) = Stage::set() else { return };
    let (([a, b, _c, _d], addresses), service) = (four(&stage), stage.address());
    let agent = Agent::start(&stage.config().set("zone: east").service(zoned(probed("zoned", service), addresses)));
    assert_eq!(tally(&stage, service, 20), counts(&[("a", 10), ("b", 10)]));
    a.die();
    wait_up(&agent, "zoned", addresses[0], false);
    assert_eq!(tally(&stage, service, 100), counts(&[("b", 70), ("c", 15), ("d", 15)]));
    b.die();
    wait_up(&agent, "zoned", addresses[1], false);
    assert_eq!(tally(&stage, service, 20), counts(&[("c", 10), ("d", 10)]));
}

#[test]
fn the_zone_that_an_agent_is_started_with_holds_before_the_configuration_and_through_reloads() {
    let Some(stage) = Stage::set() else { return };
    let ((_origins, addresses), service) = (four(&stage), stage.address());
    let config = stage.config().set("zone: east");
    let of = |config: &Config| config.with_services([zoned(Service::kernel_tcp("zoned", service), addresses)]);
    let agent = Agent::start_through(&["env", "SOCKWAY_ZONE=west"], &of(&config));
    assert_eq!(tally(&stage, service, 10), counts(&[("c", 10)]));
    agent.reload(&of(&config.set("drain_timeout_ms: 500")));
    assert_eq!(tally(&stage, service, 10), counts(&[("c", 10)]));
}

#[test]
fn a_zone_variable_that_is_empty_says_nothing() {
    let Some(stage) = Stage::set() else { return };
    let ((_origins, addresses), service) = (four(&stage), stage.address());
    let config = stage.config().set("zone: east").service(zoned(Service::kernel_tcp("zoned", service), addresses));
    let agent = Agent::start_through(&["env", "SOCKWAY_ZONE="], &config);
    let status: serde_json::Value = serde_json::from_str(&agent.admin("/status").text()).unwrap();
    assert_eq!(status["zone"], "east");
    let endpoints = status["services"][0]["endpoints"].as_array().expect("the endpoints");
    let zones: Vec<&str> = endpoints.iter().filter_map(|endpoint| endpoint["zone"].as_str()).collect();
    assert_eq!(zones, ["east", "east", "west"], "{status:#}");
    assert!(endpoints.iter().all(|endpoint| endpoint["warm_percent"] == 100), "{status:#}");
}

fn slow(name: &str, address: SocketAddr, window_ms: u32) -> Service {
    probed(name, address).set(&format!("slow_start: {{ window_ms: {window_ms} }}"))
}

#[test]
fn an_endpoint_that_comes_gets_its_share_little_by_little() {
    let Some(stage) = Stage::set() else { return };
    let ([a, b], service) = (["a", "b"].map(|name| stage.echo(name)), stage.address());
    let config = stage.config();
    let hour = slow("slow", service, 3_600_000).to(a.address());
    let agent = Agent::start(&config.with_services([hour.clone()]));
    assert_eq!(tally(&stage, service, 5), counts(&[("a", 5)]), "what is there from the start is warm");
    agent.reload(&config.with_services([hour.to(b.address())]));
    assert_eq!(tally(&stage, service, 110), counts(&[("a", 100), ("b", 10)]));
    let told = sockway(&["status", "--instance", agent.instance()]);
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert_eq!(told.matches("  warms 10%  ").count(), 1, "{told}");
    // In a short window it grows to all of its weight.
    agent.reload(&config.with_services([slow("slow", service, 2_000).to(a.address()).to(b.address())]));
    wait::until("both to be warm", wait::SOON, || tally(&stage, service, 20) == counts(&[("a", 10), ("b", 10)]));
}

#[test]
fn an_endpoint_that_comes_back_gets_its_share_little_by_little() {
    let Some(stage) = Stage::set() else { return };
    let ([a, b], service) = (["a", "b"].map(|name| stage.echo(name)), stage.address());
    let hour = slow("slow", service, 3_600_000).to(a.address()).to(b.address());
    let agent = Agent::start(&stage.config().service(hour));
    assert_eq!(tally(&stage, service, 20), counts(&[("a", 10), ("b", 10)]));
    let address = a.address();
    a.die();
    wait_up(&agent, "slow", address, false);
    let _back = stage.echo_at("a", address);
    wait_up(&agent, "slow", address, true);
    assert_eq!(tally(&stage, service, 110), counts(&[("a", 10), ("b", 100)]));
}

#[test]
fn with_least_connections_a_new_endpoint_is_not_buried() {
    let Some(stage) = Stage::set() else { return };
    let ([a, b], service) = (["a", "b"].map(|name| stage.echo(name)), stage.address());
    let config = stage.config();
    let slow = Service::kernel_tcp("least", service).set("balance: least_connections");
    let slow = slow.set("slow_start: { window_ms: 3600000 }").to(a.address());
    let agent = Agent::start(&config.with_services([slow.clone()]));
    agent.reload(&config.with_services([slow.to(b.address())]));
    // A tenth of its weight: one connection for ten.
    let held: Vec<_> = (0..22)
        .map(|_| {
            let mut stream = stage.dial(service).expect("an endpoint");
            (read_name(&mut stream).expect("a name"), stream)
        })
        .collect();
    let of_b = held.iter().filter(|(name, _)| name == "b").count();
    assert_eq!(of_b, 2);
}

#[test]
fn below_the_panic_threshold_endpoints_that_are_down_are_used_again() {
    let Some(stage) = Stage::set() else { return };
    let (a, brave, careful) = (stage.echo("a"), stage.address(), stage.address());
    let dead = [stage.address(), stage.address()];
    let service = |name, address| probed(name, address).to(a.address()).to_all(dead);
    let panics = service("brave", brave).set("panic_threshold_percent: 50");
    let agent = Agent::start(&stage.config().service(panics).service(service("careful", careful)));
    for name in ["brave", "careful"] {
        dead.iter().for_each(|endpoint| wait_up(&agent, name, *endpoint, false));
    }
    assert_eq!(tally(&stage, brave, 30), counts(&[("a", 10), ("refused", 20)]));
    assert_eq!(tally(&stage, careful, 30), counts(&[("a", 30)]));
}

#[test]
fn through_the_agent_backups_and_zones_hold_as_well_and_while_it_is_dead() {
    let Some(stage) = Stage::set() else { return };
    let ((_origins, addresses), zones) = (four(&stage), stage.address());
    let ([first, backup], service) = (["first", "backup"].map(|name| stage.web(name)), stage.address());
    let backed = Service::http("backed", service).to(first.address()).to_with(backup.address(), "priority: 1");
    let config = stage.config().set("zone: east").service(backed);
    let mut agent = Agent::start(&config.service(zoned(Service::agent_tcp("zoned", zones), addresses)));
    assert_eq!(tally(&stage, zones, 20), counts(&[("a", 10), ("b", 10)]));
    let mut session = stage.session(service);
    let mut call = || {
        let answer = session.get("/").expect("an answer");
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.text()
    };
    assert!((0..10).all(|_| call() == "first"));
    let address = first.address();
    first.die();
    assert!((0..10).all(|_| call() == "backup"), "not one call fails");
    let _back = stage.web_at("first", address);
    wait::until("calls to go where they belong", wait::SOON, || call() == "first");
    assert!((0..10).all(|_| call() == "first"));

    agent.sigkill();
    let fallen_back = tally(&stage, zones, 20);
    assert_eq!(fallen_back, counts(&[("a", 10), ("b", 10)]));
}
