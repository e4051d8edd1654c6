//! What is read is shown again, and what cannot be is named.

use super::*;
use crate::config::{Config, file};

fn read(service: &str) -> Result<Config, String> {
    let text = format!("services: [{{name: a, address: 10.0.0.1:80, {service}, endpoints: [10.0.0.2:80]}}]");
    file::parse(&text, "F").map_err(|error| error.to_string())
}

/// What a file says of a service that speaks HTTP, which is read the same when it is shown again.
fn tuned(service: &str) -> Tuning {
    let config = read(&format!("protocol: http, {service}")).expect("a good file");
    let shown = file::show(&config).to_string();
    assert_eq!(file::parse(&shown, "F").expect("what was shown is a good file"), config);
    config.services[0].policy.tuning.clone()
}

#[test]
fn defaults_are_the_field_s() {
    for balance in ["least_request", "peak_ewma", "ring_hash", "maglev"] {
        assert_eq!(tuned(&format!("balance: {balance}")), Tuning::default());
    }
}

#[test]
fn each_way_has_its_settings() {
    let rules = tuned("balance: least_request, least_request: {choice_count: 3, bias_percent: 50}").least_request;
    assert_eq!(rules, LeastRequest { of: Among::Some(3), bias_percent: 50 });
    assert_eq!(tuned("balance: least_request, least_request: {full_scan: on}").least_request.of, Among::All);
    let rules = tuned("balance: peak_ewma, peak_ewma: {decay_ms: 5000, start_ms: 0, penalty_ms: 0}").peak_ewma;
    let expected =
        PeakEwma { of: Among::Some(2), decay: Duration::from_secs(5), start: Duration::ZERO, penalty: Duration::ZERO };
    assert_eq!(rules, expected);
    let ring = |text: &str| tuned(&format!("balance: ring_hash, ring_hash: {{{text}}}")).ring_hash;
    assert_eq!(ring("hash: ketama"), Tuning::default().ring_hash);
    let envoy_s = RingHash { size_min: 1024, size_max: RING_SIZE_MAX, hash: PointHash::Xxh64 };
    assert_eq!([ring("hash: xxh64"), ring("size_min: 1024")], [envoy_s; 2]);
    assert_eq!(ring("size_max: 160").size_max, 160);
    let ring = tuned("balance: ring_hash, ring_hash: {size_min: 64, size_max: 128, hash: murmur2}").ring_hash;
    assert_eq!(ring, RingHash { size_min: 64, size_max: 128, hash: PointHash::Murmur2 });
}

#[test]
fn parts_of_a_request_are_read_in_order() {
    let text = "balance: maglev, hash_balance_factor: 125, hash_on: [{header: X-User, terminal: on}, \
                {cookie: sid}, {query: id}, {source: on}, {source_ip: on}, {cookie: lb, generate: {ttl_s: 60, path: /a}}, \
                {cookie: lc, generate: {}}]";
    let tuning = tuned(text);
    let given = |name: &str, ttl: Option<u64>, path: &str| {
        let (name, path) = (name.to_owned(), path.to_owned());
        HashKey::Given(GivenCookie { name, ttl: ttl.map(Duration::from_secs), path })
    };
    let parts = [
        HashOn { key: HashKey::Part(Part::Header("x-user".to_owned())), terminal: true },
        HashOn { key: HashKey::Part(Part::Cookie("sid".to_owned())), terminal: false },
        HashOn { key: HashKey::Part(Part::Query("id".to_owned())), terminal: false },
        HashOn { key: HashKey::Part(Part::Source), terminal: false },
        HashOn { key: HashKey::Address, terminal: false },
        HashOn { key: given("lb", Some(60), "/a"), terminal: false },
        HashOn { key: given("lc", None, "/"), terminal: false },
    ];
    assert_eq!((tuning.hash_balance_factor, &tuning.hash_on[..]), (Some(125), &parts[..]));
}

#[test]
fn a_request_s_cost_is_read() {
    let cost = |text: &str| tuned(&format!("balance: least_request, cost: {text}")).cost.expect("a cost");
    assert_eq!(cost("{header: X-Cost}"), Cost { header: Some("x-cost".to_owned()), default: 1, max: 1_000 });
    assert_eq!(cost("{default: 5000}"), Cost { header: None, default: 5_000, max: 5_000 });
}

#[test]
fn what_cannot_be_is_named() {
    for (service, expected) in [
        (
            "protocol: tcp, balance: least_request",
            "services[0].balance: is the agent's to do, and this service is balanced in the kernel; write mode: agent, or \
             least_connections",
        ),
        (
            "protocol: udp, balance: ring_hash",
            "services[0].balance: is the agent's to do, and this service is balanced in the kernel; write mode: agent, or maglev",
        ),
        (
            "protocol: tcp, mode: agent, balance: peak_ewma",
            "services[0].balance: goes by how long answers take, and protocol: tcp has none; write least_request, or another \
             protocol",
        ),
        (
            "protocol: http, mode: kernel, balance: maglev, hash_on: [{header: a}]",
            "services[0].hash_on: is the agent's to do; write mode: agent, or leave the key out",
        ),
        (
            "protocol: http, hash_on: [{header: a}]",
            "services[0].hash_on: says nothing unless balance is ring_hash, maglev or source_hash; write that, or remove it",
        ),
        (
            "protocol: http, balance: maglev, hash_on: [{header: a, query: b}]",
            "services[0].hash_on[0]: is not one part of a request; write one of header: NAME, cookie: NAME, query: NAME, source: \
             on, source_ip: on",
        ),
        (
            "protocol: http, balance: maglev, hash_balance_factor: 99",
            "services[0].hash_balance_factor: 99 is out of range; write a whole number from 100 to 10000",
        ),
        (
            "protocol: http, balance: ring_hash, ring_hash: {size_min: 10, size_max: 9}",
            "services[0].ring_hash.size_max: 9 is less than size_min, 10; write as many at least",
        ),
        (
            "protocol: http, balance: maglev, hash_on: [{header: a, source_ip: on}]",
            "services[0].hash_on[0]: is not one part of a request; write one of header: NAME, cookie: NAME, query: NAME, source: \
             on, source_ip: on",
        ),
        (
            "protocol: http, balance: maglev, hash_on: [{header: a, generate: {}}]",
            "services[0].hash_on[0].generate: is of cookies; write cookie: NAME beside it, or remove it",
        ),
        (
            "protocol: http, balance: maglev, hash_on: [{cookie: a, generate: {path: '/;x'}}]",
            "services[0].hash_on[0].generate.path: \"/;x\" is no path of a cookie; write / or /PATH",
        ),
        (
            "protocol: tcp, mode: agent, balance: maglev, hash_on: [{source_ip: on}, {header: a}]",
            "services[0].hash_on: goes by a request's head, and protocol: tcp has none; write source: on or source_ip: on, or \
             leave the key out",
        ),
        (
            "protocol: http, balance: maglev, hash_on: [{cookie: 'a b'}]",
            "services[0].hash_on[0].cookie: \"a b\" is no name; write letters, digits, - and _",
        ),
    ] {
        let found = read(service).expect_err("a mistake");
        assert!(found.starts_with("F:1:") && found.ends_with(expected), "{found}");
    }
}
