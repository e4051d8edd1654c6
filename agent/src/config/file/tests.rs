//! Tables of what files say and what comes of it.

use std::{net::SocketAddr, path::PathBuf};

use proptest::prelude::*;
use rustix::time::{ClockId, clock_gettime};

use super::*;
use crate::config::policy::{Eject, Limits, Over, Policy, Rate, Source, Take};

/// Seconds of CPU that this thread has used: unlike the time of day it does not depend on what else the machine does.
fn cpu_seconds() -> i64 {
    clock_gettime(ClockId::ThreadCPUTime).tv_sec
}

fn problems(text: &str) -> Vec<String> {
    match parse(text, "F") {
        Ok(_) => Vec::new(),
        Err(error) => error.to_string().lines().map(str::to_owned).collect(),
    }
}

/// A file with one service, `change` being put in place of the `what` of a good one.
fn service(what: &str, change: &str) -> String {
    let good = "services:
  - name: a
    address: 10.0.0.1:80
    protocol: tcp
    endpoints: [10.0.0.2:80]
";
    assert!(good.contains(what), "{what}");
    good.replace(what, change)
}

const EVERY_KEY: &str = "instance: prod-1
workers: 3
drain_timeout_ms: 500
admin: { address: 127.0.0.1:0 }
capture:
  cgroup_mount: /sys/fs/cgroup/unified
  bpffs: /run/bpf
  cgroups:
    - { path: /kubepods, shortcut: on }
    - { path: /system.slice }
    - { path: /system.slice/**/quiet-?.*, capture: off }
  namespaces: { only: [host, cni-*, /run/docker/netns/*], except: [cni-bad] }
  except: { ports: [22, 8000-8010], cidrs: [10.0.0.0/8, \"fd00::/8\", 192.0.2.1], uids: [0, 1000-1010] }
services:
  - name: shop/orders
    address: 10.96.0.10:80
    protocol: http
    mode: kernel
    balance: weighted_random
    source: uid
    affinity_timeout_ms: 60000
    limits:
      connections: 100
      connections_per_second: 50
      per_source: { connections_per_second: 5, burst: 1 }
      over: forbid
    eject: { failures: 3 }
    shortcut: off
    connect_timeout_ms: 250
    probe_interval_ms: 100
    endpoints:
      - { address: 10.0.0.1:8080, weight: 3 }
      - 10.0.0.2:8080
  - name: six
    address: \"[fd00::10]:53\"
    protocol: tcp
    endpoints: [\"[fd00::1]:53\"]
  - name: six-udp
    address: \"[fd00::10]:53\"
    protocol: udp
    udp_idle_timeout_ms: 1500
    endpoints: [\"[fd00::1]:53\"]
";

#[test]
fn every_key_means_what_it_says() {
    let config = parse(EVERY_KEY, "F").expect("a good file");
    assert_eq!((config.instance.as_str(), config.workers), ("prod-1", 3));
    assert_eq!(config.drain_timeout, Duration::from_millis(500));
    assert_eq!(config.admin.address, SocketAddr::from(([127, 0, 0, 1], 0)));
    assert_eq!(config.capture.cgroup_mount, Some(PathBuf::from("/sys/fs/cgroup/unified")));
    assert_eq!(config.capture.bpffs, PathBuf::from("/run/bpf"));
    let rules: Vec<_> = config.capture.rules.iter().map(|r| (r.path.as_str(), r.shortcut)).collect();
    assert_eq!(
        rules,
        [
            ("/kubepods", Shortcut::On),
            ("/system.slice", Shortcut::Auto),
            ("/system.slice/**/quiet-?.*", Shortcut::Auto)
        ]
    );
    assert_eq!(config.capture.rules.iter().map(|rule| rule.capture).collect::<Vec<_>>(), [true, true, false]);
    let (namespaces, except) = (&config.capture.namespaces, &config.capture.except);
    let texts =
        |names: &[crate::config::capture::NamespaceName]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(texts(&namespaces.only), ["host", "cni-*", "/run/docker/netns/*"]);
    assert_eq!(texts(&namespaces.except), ["cni-bad"]);
    assert_eq!((&except.ports[..], &except.uids[..]), (&[22..=22, 8000..=8010][..], &[0..=0, 1000..=1010][..]));
    let blocks: Vec<String> = except.cidrs.iter().map(ToString::to_string).collect();
    assert_eq!(blocks, ["10.0.0.0/8", "fd00::/8", "192.0.2.1/32"]);
    let orders = &config.services[0];
    assert_eq!((orders.name.as_str(), orders.address.to_string().as_str()), ("shop/orders", "10.96.0.10:80"));
    assert_eq!((orders.protocol, orders.mode), (Protocol::Http, Mode::Kernel));
    assert_eq!((orders.policy.balance, orders.shortcut), (Balance::WeightedRandom, Shortcut::Off));
    let take = |connections, rate: Option<(u32, u32)>| Take {
        connections,
        rate: rate.map(|(per_second, burst)| Rate { per_second, burst }),
    };
    let expected = Policy {
        balance: Balance::WeightedRandom,
        source: Source::Uid,
        affinity_timeout: Some(Duration::from_secs(60)),
        limits: Some(Limits {
            service: take(Some(100), Some((50, 50))),
            per_source: take(None, Some((5, 1))),
            over: Over::Forbid,
        }),
        eject: Some(Eject { failures: 3, period: Duration::from_secs(30) }),
        ..Policy::default()
    };
    assert_eq!(orders.policy, expected);
    assert_eq!(orders.connect_timeout, Duration::from_millis(250));
    assert_eq!(orders.probe_interval, Some(Duration::from_millis(100)));
    let weights: Vec<_> = orders.endpoints.iter().map(|e| (e.address.to_string(), e.weight)).collect();
    assert_eq!(weights, [("10.0.0.1:8080".to_owned(), 3), ("10.0.0.2:8080".to_owned(), 1)]);
    assert_eq!((config.services[1].mode, config.services[1].probe_interval), (Mode::Kernel, None));
    let udp = &config.services[2];
    assert_eq!(
        (udp.mode, udp.protocol, udp.udp_idle_timeout),
        (Mode::Kernel, Protocol::Udp, Duration::from_millis(1500))
    );
    assert_eq!(config.services[1].udp_idle_timeout, Duration::from_secs(30));
}

#[test]
fn a_configuration_is_shown_in_the_shape_of_the_file() {
    for text in [EVERY_KEY, DEFAULT, ""] {
        let config = parse(text, "F").expect("a good file");
        assert_eq!(parse(&show(&config).to_string(), "shown").expect("what is shown can be read"), config);
    }
}

#[test]
fn the_default_file_says_the_defaults() {
    assert_eq!(parse(DEFAULT, DEFAULT_NAME).expect("good"), parse("", "F").expect("good"));
}

#[test]
fn the_commented_example_of_the_default_file_is_good() {
    let (_, examples) = DEFAULT.split_once("services: []\n").expect("the examples follow");
    let examples = examples.replace("inbound: []", "inbound:");
    let examples: String = examples.lines().map(|line| format!("{}\n", line.trim_start_matches('#'))).collect();
    let config = parse(&format!("services:\n{examples}"), "F").expect("a good file");
    assert_eq!(config.services[0].endpoints[0].weight, 3);
    assert_eq!(config.inbound[0].ports, [8080..=8080, 9000..=9010]);
}

#[test]
fn the_config_map_of_the_daemon_set_is_good() {
    let manifest = include_str!("../../../deploy/daemonset.yaml");
    let (_, rest) = manifest.split_once("config.yaml: |\n").expect("it holds a configuration");
    let (text, _) = rest.split_once("---").expect("another object follows");
    let config = parse(text, "F").expect("a good file");
    assert_eq!(config.capture.rules[0].path.as_str(), "/kubepods.slice");
    // What Kubernetes reads of it is YAML too.
    let objects: Vec<serde_json::Value> = serde_saphyr::from_multiple(manifest).expect("YAML");
    assert_eq!(objects.len(), 3);
    assert_eq!(objects[2]["spec"]["template"]["spec"]["hostNetwork"], true);
}

#[test]
fn an_absent_key_and_an_empty_one_are_the_same() {
    for text in ["services:\n", "capture:\n", "admin:\n", "instance: ~\n", "{}"] {
        assert_eq!(parse(text, "F").expect(text), parse("", "F").expect("good"));
    }
}

#[test]
fn a_mapped_address_is_the_ipv4_address_it_stands_for() {
    let config = parse(&service("10.0.0.1:80", "\"[::ffff:10.0.0.1]:80\""), "F").expect("a good file");
    assert_eq!(config.services[0].address, SocketAddr::from(([10, 0, 0, 1], 80)));
}

#[test]
fn each_mistake_is_named_with_its_place_and_a_remedy() {
    let cases: &[(&str, &str)] = &[
        ("instance: Prod\n", "F:1:11: instance: \"Prod\" is no instance name; write 1 to 32 of a-z, 0-9 and -"),
        ("instance: 7\n", "F:1:11: instance: expected a text, found a number; put it in quotes"),
        ("workers: 0\n", "F:1:10: workers: 0 is out of range; write a whole number from 1 to 1024"),
        ("workers: 1025\n", "F:1:10: workers: 1025 is out of range; write a whole number from 1 to 1024"),
        ("workers: -1\n", "F:1:10: workers: -1 is out of range; write a whole number from 1 to 1024"),
        (
            "workers: 99999999999999999999999\n",
            "F:1:10: workers: expected a whole number from 1 to 1024, found a number with a fraction, or too many digits",
        ),
        ("workers: two\n", "F:1:10: workers: expected a whole number from 1 to 1024, found a text"),
        (
            "drain_timeout_ms: 0\n",
            "F:1:19: drain_timeout_ms: 0 is out of range; write a whole number from 1 to 3600000",
        ),
        ("wrokers: 2\n", "F:1:1: wrokers: unknown key; did you mean workers?"),
        (
            "zebra: 2\n",
            "F:1:1: zebra: unknown key; known here: instance, zone, workers, drain_timeout_ms, admin, audit, hook_stats, maps, capture, switches, services, inbound",
        ),
        ("admin: { adress: 127.0.0.1:1 }\n", "F:1:10: admin.adress: unknown key; did you mean address?"),
        (
            "admin: 127.0.0.1:9901\n",
            "F:1:8: admin: expected a mapping, found a text; write its keys: address, socket, tokens, token_file",
        ),
        (
            "admin: { address: localhost:9901 }\n",
            "F:1:19: admin.address: \"localhost:9901\" is not an address; names are not resolved: write the IP address and port, as 10.0.0.1:80",
        ),
        (
            "capture: { cgroups: [] }\n",
            "F:1:21: capture.cgroups: captures nothing; name a cgroup, or leave the key out to capture the whole host",
        ),
        (
            "capture: { cgroups: [ { path: kubepods } ] }\n",
            "F:1:31: capture.cgroups[0].path: \"kubepods\" does not begin with /; write an absolute path",
        ),
        (
            "capture: { cgroups: [ { path: /a/../b } ] }\n",
            "F:1:31: capture.cgroups[0].path: contains \"..\"; write the path without going up",
        ),
        (
            "capture: { cgroups: [ { path: /a }, { path: /a/ } ] }\n",
            "F:1:45: capture.cgroups[1].path: /a is listed twice; keep one",
        ),
        (
            "capture: { cgroups: [ { shortcut: on } ] }\n",
            "F:1:23: capture.cgroups[0].path: is missing; write the cgroup's path below the cgroup v2 mount, as /kubepods",
        ),
        (
            "capture: { cgroups: [ { path: /, shortcut: true } ] }\n",
            "F:1:44: capture.cgroups[0].shortcut: expected one of auto, on, off, found true or false",
        ),
        ("capture: { bpffs: sys }\n", "F:1:19: capture.bpffs: \"sys\" does not begin with /; write an absolute path"),
        ("services: {}\n", "F:1:11: services: expected a list, found a mapping; begin each item with \"- \""),
        (
            "services: [ a ]\n",
            "F:1:13: services[0]: expected a mapping, found a text; write its keys: name, preset, address, protocol, upstream_protocol, mode, http, tls, shortcut, original_dst, connect_timeout_ms, probe_interval_ms, probe, outlier, cluster, retry, request_limits, pending, filters, endpoint_drain_ms, udp_idle_timeout_ms, endpoints, routes, timeout_ms, timeout, deadline, breaker, endpoint_breaker, thresholds, isolation, fallback, degrade, reason_header, balance, source, affinity_timeout_ms, maglev_table_size, limits, eject, prefer_zone, slow_start, panic_threshold_percent, least_request, peak_ewma, \
             ring_hash, hash_on, hash_balance_factor, cost",
        ),
        (
            "- a\n",
            "F:1:1: expected a mapping, found a list; write its keys: instance, zone, workers, drain_timeout_ms, admin, audit, hook_stats, maps, capture, switches, services, inbound",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(problems(text), [*expected], "{text}");
    }
}

#[test]
fn each_mistake_in_a_service_is_named_with_its_place_and_a_remedy() {
    let cases: &[(&str, &str, &str)] = &[
        (
            "name: a",
            "name: a b",
            "F:2:11: services[0].name: \"a b\" is no service name; write 1 to 63 of A-Z, a-z, 0-9 and . _ - /",
        ),
        (
            "name: a",
            "name: ''",
            "F:2:11: services[0].name: \"\" is no service name; write 1 to 63 of A-Z, a-z, 0-9 and . _ - /",
        ),
        ("name: a", "name: 12", "F:2:11: services[0].name: expected a text, found a number; put it in quotes"),
        (
            "10.0.0.1:80",
            "10.0.0.1",
            "F:3:14: services[0].address: \"10.0.0.1\" is not an address; add a port: 10.0.0.1:80, or \"[::1]:80\" for IPv6",
        ),
        ("10.0.0.1:80", "10.0.0.1:0", "F:3:14: services[0].address: port 0 is no port; write a port from 1 to 65535"),
        (
            "10.0.0.1:80",
            "10.0.0.1:65536",
            "F:3:14: services[0].address: \"10.0.0.1:65536\" is not an address; write it as 10.0.0.1:80, or as \"[::1]:80\" for IPv6",
        ),
        (
            "10.0.0.1:80",
            "0.0.0.0:80",
            "F:3:14: services[0].address: 0.0.0.0 means \"any address\", which is none to connect to; write the address of one host",
        ),
        (
            "10.0.0.1:80",
            "224.0.0.1:80",
            "F:3:14: services[0].address: 224.0.0.1 is for many receivers, and a service sends each caller to one; write the address of one host",
        ),
        (
            "10.0.0.1:80",
            "'[fe80::1%3]:80'",
            "F:3:14: services[0].address: an IPv6 zone (%…) is not supported; write a global, unique local or loopback address",
        ),
        ("    protocol: tcp\n", "", "F:2:5: services[0].protocol: is missing; write tcp, http, http2, udp or auto"),
        (
            "protocol: tcp",
            "protocol: htpp",
            "F:4:15: services[0].protocol: unknown value \"htpp\" (did you mean http?); write one of tcp, http, http2, udp, auto",
        ),
        (
            "protocol: tcp",
            "protocol: grpc",
            "F:4:15: services[0].protocol: unknown value \"grpc\"; write one of tcp, http, http2, udp, auto",
        ),
        (
            "protocol: tcp",
            "protocol: tcp\n    connect_timeout_ms: 0",
            "F:5:25: services[0].connect_timeout_ms: 0 is out of range; write a whole number from 1 to 120000",
        ),
        (
            "protocol: tcp",
            "protocol: tcp\n    probe_interval_ms: 0",
            "F:5:24: services[0].probe_interval_ms: 0 is out of range; write a whole number from 1 to 3600000",
        ),
        (
            "protocol: tcp",
            "protocol: tcp\n    conect_timeout_ms: 5",
            "F:5:5: services[0].conect_timeout_ms: unknown key; did you mean connect_timeout_ms?",
        ),
        (
            "protocol: tcp",
            "protocol: udp\n    mode: agent",
            "F:5:11: services[0].mode: the agent speaks no UDP: its datagrams are balanced in the kernel; leave the key out",
        ),
        (
            "protocol: tcp",
            "protocol: udp\n    shortcut: on",
            "F:5:15: services[0].shortcut: datagrams have no shortcut, it joins TCP sockets; leave the key out",
        ),
        (
            "protocol: tcp",
            "protocol: udp\n    eject: { failures: 5, for_ms: 1000 }",
            "F:5:12: services[0].eject: counts handshakes that failed, and datagrams have none; leave the key out",
        ),
        (
            "protocol: tcp",
            "protocol: udp\n    probe_interval_ms: 100",
            "F:5:24: services[0].probe_interval_ms: a probe is a TCP connect, which nobody accepts there; leave the key out",
        ),
        (
            "protocol: tcp",
            "protocol: udp\n    udp_idle_timeout_ms: 0",
            "F:5:26: services[0].udp_idle_timeout_ms: 0 is out of range; write a whole number from 1 to 3600000",
        ),
        (
            "protocol: tcp",
            "protocol: tcp\n    udp_idle_timeout_ms: 100",
            "F:5:26: services[0].udp_idle_timeout_ms: ends conversations of UDP, and this service has none; leave the key out",
        ),
        ("[10.0.0.2:80]", "[]", "F:5:16: services[0].endpoints: has no endpoint; list at least one IP:PORT"),
        ("    endpoints: [10.0.0.2:80]\n", "", "F:2:5: services[0].endpoints: is missing; list at least one IP:PORT"),
        (
            "[10.0.0.2:80]",
            "10.0.0.2:80",
            "F:5:16: services[0].endpoints: expected a list, found a text; begin each item with \"- \"",
        ),
        (
            "[10.0.0.2:80]",
            "[{address: 10.0.0.2:80, weight: 0}]",
            "F:5:48: services[0].endpoints[0].weight: 0 is out of range; write a whole number from 1 to 65535",
        ),
        (
            "[10.0.0.2:80]",
            "[{address: 10.0.0.2:80, weight: 65536}]",
            "F:5:48: services[0].endpoints[0].weight: 65536 is out of range; write a whole number from 1 to 65535",
        ),
        ("[10.0.0.2:80]", "[{weight: 2}]", "F:5:17: services[0].endpoints[0].address: is missing; write IP:PORT"),
        (
            "[10.0.0.2:80]",
            "[{address: 10.0.0.2:0}]",
            "F:5:27: services[0].endpoints[0].address: port 0 is no port; write a port from 1 to 65535",
        ),
        (
            "[10.0.0.2:80]",
            "[10.0.0.2:80, {address: 10.0.0.2:80}]",
            "F:5:40: services[0].endpoints[1].address: 10.0.0.2:80 is listed twice; keep one and give it more weight",
        ),
        (
            "[10.0.0.2:80]",
            "[10.0.0.1:80]",
            "F:5:17: services[0].endpoints[0]: is the service's own address, a loop; write where the service's program listens",
        ),
        (
            "[10.0.0.2:80]",
            "['[::1]:80']",
            "F:5:17: services[0].endpoints[0]: is of the other IP family than the service, which the kernel cannot turn a socket to; use one family, or mode: agent",
        ),
    ];
    for (what, change, expected) in cases {
        assert_eq!(problems(&service(what, change)), [*expected], "{change}");
    }
}

#[test]
fn what_cannot_be_captured_is_named() {
    let cases: &[(&str, &str)] = &[
        (
            "cgroups: [{path: /a**/b}]",
            "cgroups[0].path: \"**\" stands for whole components and must be one by itself; write /a/**/b, or * within a component",
        ),
        ("cgroups: [{path: /a, capture: maybe}]", "cgroups[0].capture: unknown value \"maybe\"; write one of on, off"),
        (
            "cgroups: [{path: /, capture: on}, {path: /a, capture: off, shortcut: on}]",
            "cgroups[1].shortcut: means nothing where capture is off; remove one of the two",
        ),
        (
            "cgroups: [{path: /a, capture: off}]",
            "cgroups: captures nothing: every rule says capture: off; add one that captures what is around them",
        ),
        ("cgroups: [{path: /a/*}, {path: /a//*}]", "cgroups[1].path: /a/* is listed twice; keep one"),
        (
            "namespaces: {only: []}",
            "namespaces.only: captures nothing; name a namespace, or leave the key out to capture all",
        ),
        (
            "namespaces: {except: [a/b]}",
            "namespaces.except[0]: \"a/b\" is no name of a namespace; write a name of /run/netns, a path, or host",
        ),
        (
            "namespaces: {except: [/run/**]}",
            "namespaces.except[0]: would be searched for in the whole file system; write * for each component",
        ),
        ("except: {ports: [0]}", "except.ports[0]: 0 is out of range; write a whole number from 1 to 65535"),
        (
            "except: {ports: [9-8]}",
            "except.ports[0]: \"9-8\" is no port and no range of them; write 22 or 8000-8010, from 1 to 65535",
        ),
        (
            "except: {ports: [1-70000]}",
            "except.ports[0]: \"1-70000\" is no port and no range of them; write 22 or 8000-8010, from 1 to 65535",
        ),
        (
            "except: {cidrs: [ten]}",
            "except.cidrs[0]: \"ten\" is no block of addresses; write it as 10.0.0.0/8 or fd00::/8",
        ),
        (
            "except: {cidrs: [10.0.0.1/8]}",
            "except.cidrs[0]: \"10.0.0.1/8\" has bits set behind its prefix, or a prefix longer than the address; write it as 10.0.0.0/8",
        ),
        (
            "except: {uids: [root]}",
            "except.uids[0]: \"root\" is no user and no range of them; write 0 or 1000-1010, from 0 to 4294967294",
        ),
        ("except: {uid: [0]}", "except.uid: unknown key; did you mean uids?"),
    ];
    for (what, expected) in cases {
        let found = problems(&format!("capture:\n  {what}\n"));
        let found: Vec<&str> =
            found.iter().filter_map(|line| line.split_once("capture.").map(|(_, rest)| rest)).collect();
        assert_eq!(found, [*expected], "{what}");
    }
}

#[test]
fn services_that_do_not_go_together_are_named() {
    let two = |second: &str| {
        let first = "  - {name: a, address: 10.0.0.1:80, protocol: tcp, endpoints: [10.1.0.1:80]}";
        problems(&format!("services:\n{first}\n{second}\n"))
    };
    assert_eq!(
        two("  - {name: a, address: 10.0.0.1:80, protocol: tcp, endpoints: [10.1.0.1:80]}"),
        [
            "F:3:12: services[1].name: \"a\" is also the name of the service on line 2; choose another",
            "F:3:24: services[1].address: 10.0.0.1:80 is also the address of the service on line 2; give one of them another",
        ]
    );
    assert!(
        two("  - {name: b, address: 10.0.0.1:80, protocol: udp, endpoints: [10.0.0.1:81]}").is_empty(),
        "a TCP service and a UDP service may have the same address"
    );
    assert!(
        two("  - {name: b, address: 10.0.0.2:80, protocol: udp, endpoints: [10.0.0.1:80]}").is_empty(),
        "a UDP endpoint at the address of a TCP service leads nowhere back"
    );
    assert_eq!(
        two("  - {name: b, address: 10.0.0.2:80, protocol: tcp, endpoints: [10.0.0.1:80]}"),
        [
            "F:3:64: services[1].endpoints[0]: is the address of the service \"a\" on line 2, and what is captured once is not \
          captured again; list the endpoints of \"a\" here"
        ]
    );
}

#[test]
fn all_mistakes_are_reported_at_once_in_the_order_of_the_file() {
    let text = "instance: X\nworkers: 0\nservices:\n  - {nmae: a, address: nowhere, endpoints: []}\n  - 3\nadmn: 1\n";
    let lines: Vec<String> =
        problems(text).iter().map(|line| line.split(": ").next().unwrap_or("").to_owned()).collect();
    assert_eq!(lines, ["F:1:11", "F:2:10", "F:4:5", "F:4:5", "F:4:6", "F:4:24", "F:4:44", "F:5:5", "F:6:1"]);
}

#[test]
fn a_syntax_error_has_its_line() {
    for (text, start, part) in [
        ("instance: a\nworkers: [1\n", "F:2:10: unclosed bracket '['", ""),
        ("instance: a\n\tworkers: 1\n", "F:1:11: ", "tab"),
        ("instance: a\ninstance: b\n", "F:2:1: ", "instance"),
        ("services:\n  - address: [::1]:80\n", "F:2:", "\"[::1]:80\""),
        ("instance: *nobody\n", "F:1:11: ", ""),
        ("a: 1\n---\nb: 2\n", "F:", ""),
    ] {
        let found = problems(text);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with(start) && found[0].contains(part), "{found:?}");
    }
}

#[test]
fn what_is_huge_or_deep_or_unfolds_is_refused_quickly() {
    let bomb = (0..30).fold("a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n".to_owned(), |text, i| {
        let next = i + 1;
        text + &format!("a{next}: &a{next} [*a{i},*a{i},*a{i},*a{i},*a{i},*a{i},*a{i},*a{i}]\n")
    });
    let begun = cpu_seconds();
    let told = &problems(&bomb)[0];
    assert!(told.contains("aliases (*NAME) unfold to more values than a file of this length may have"), "{told}");
    for text in
        ["[".repeat(100_000), "- ".repeat(100_000), "{a: ".repeat(10_000), bomb, " ".repeat(tree::BYTES_MAX + 1)]
    {
        assert_eq!(problems(&text).len(), 1, "{}…", &text[..20]);
    }
    assert!(cpu_seconds() - begun < 5);
}

#[test]
fn what_services_share_may_be_said_once() {
    let labels: String = (0..50).map(|i| format!("l{i}: v{i}, ")).collect();
    let mut text = format!(
        "services:\n  - {{ name: s, address: 10.0.0.1:80, protocol: tcp, endpoints: [{{ address: 11.0.0.1:80, labels: &l {{ {labels} }} }}] }}\n"
    );
    for i in 0..1_000 {
        let (high, low) = (1 + i / 250, i % 250);
        text += &format!(
            "  - {{ name: s{i}, address: 10.{high}.{low}.1:80, protocol: tcp, endpoints: [{{ address: 11.{high}.{low}.1:80, labels: *l }}] }}\n"
        );
    }
    let config = parse(&text, "F").expect("a good file");
    assert_eq!(config.services[1_000].endpoints[0].labels.len(), 50);
}

#[test]
fn ten_thousand_services_of_ten_endpoints_are_read() {
    let mut text = "services:\n".to_owned();
    for i in 0..10_000 {
        let (high, low) = (i / 250, i % 250);
        text += &format!("  - name: s{i}\n    address: 10.{high}.{low}.1:80\n    protocol: tcp\n    endpoints:\n");
        for endpoint in 0..10 {
            text += &format!("      - {{ address: 11.{high}.{low}.{endpoint}:8080, weight: {} }}\n", endpoint + 1);
        }
    }
    let begun = cpu_seconds();
    let config = parse(&text, "F").expect("a good file");
    let took = cpu_seconds() - begun;
    assert_eq!((config.services.len(), config.services[9_999].endpoints.len()), (10_000, 10));
    // The promise is two seconds for a release build.
    let bound = if cfg!(debug_assertions) { 20 } else { 2 };
    assert!(took < bound, "{took} s");
}

#[test]
fn a_file_that_is_not_there_says_so() {
    let error = read(FilePath::new("/nonexistent/sockway.yaml")).expect_err("no such file");
    assert!(error.to_string().starts_with("/nonexistent/sockway.yaml: cannot be read: "), "{error}");
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC{0,200}") {
        let _ = parse(&text, "F");
    }

    #[test]
    fn no_yaml_like_text_panics(text in "([a-z_]{1,8}|[:\\-{}\\[\\],&*!|>'\"%@#?\n \t]|services|endpoints|address|10.0.0.1:80|name){0,60}") {
        let _ = parse(&text, "F");
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse(&String::from_utf8_lossy(&bytes), "F");
    }
}
