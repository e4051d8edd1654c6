//! The traps of eBPF and sockmaps (T1 to T42) that no other suite holds, and the rule that each is held by a test that names it.

use std::{
    collections::BTreeSet,
    fs,
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
};

use sockway_tests::{
    agent::Agent,
    config::{Config, Service},
    origin::{echoes, read_name},
    pair::Pair,
    pins,
    stage::Stage,
    wait,
};

const BYTES: &str = "sockway_kernel_shortcut_bytes_total";

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests are a folder of the workspace")
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of the workspace").flatten() {
        match entry.path() {
            path if path.is_dir() => sources(&path, found),
            path if path.extension().is_some_and(|extension| extension == "rs") => found.push(path),
            _ => {}
        }
    }
}

/// The numbers of the traps that a text names.
fn named(text: &str) -> BTreeSet<u32> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric());
    words.filter_map(|word| word.strip_prefix('T')?.parse().ok()).collect()
}

#[test]
fn every_trap_is_held_by_a_test_that_names_it() {
    let mut files = Vec::new();
    sources(&workspace().join("tests"), &mut files);
    let texts = files.iter().map(|file| fs::read_to_string(file).expect("readable"));
    let held: BTreeSet<u32> = texts.flat_map(|text| named(&text)).collect();
    let missing: Vec<u32> = (1..=42).filter(|trap| !held.contains(trap)).collect();
    assert_eq!(missing, [0_u32; 0], "traps that no test names");
}

/// T11 (a map changed in the wrong context deadlocks), T19, T20, T21, T22 (what a spliced pair loses: ends, backpressure, progress): there is no
/// program of the kinds that have these traps. Nor one that reads messages, of which a verdict sees arbitrary pieces (T16).
#[test]
fn the_kernel_half_has_no_program_of_a_kind_that_deadlocks_or_loses_ends() {
    let object = workspace().join("target/ebpf/sockway.o");
    let Ok(object) = fs::read(&object) else {
        panic!("{} is not there; run these tests with `cargo xtask test`, which builds it", object.display())
    };
    let has = |name: &str| object.windows(name.len()).any(|window| window == name.as_bytes());
    assert!(has("sk_msg") && has("sockops"), "the names of sections can be found");
    for kind in ["sk_skb", "classifier", "kprobe", "fentry", "tracepoint", "xdp"] {
        assert!(!has(&format!("{kind}/")), "{kind}");
    }
}

/// T14: an egress redirect tells its writer that there is room when there is none, and never wakes it.
#[test]
fn bytes_are_redirected_into_receive_queues_only() {
    let mut files = Vec::new();
    sources(&workspace().join("ebpf/src"), &mut files);
    let text: String = files.iter().map(|file| fs::read_to_string(file).expect("readable")).collect();
    let redirects: Vec<&str> = text.lines().filter(|line| line.contains("redirect_msg(")).collect();
    assert!(!redirects.is_empty());
    assert!(redirects.iter().all(|line| line.contains("BPF_F_INGRESS")), "{redirects:?}");
}

/// T7: a program that is replaced is not replaced for the sockets that are enrolled, so what it does must stand in maps.
#[test]
fn a_later_agent_can_switch_the_shortcut_off_for_sockets_that_an_earlier_one_enrolled() {
    let Some(stage) = Stage::set() else { return };
    let (origin, service) = (stage.echo("origin"), stage.address());
    let pair = |says: &str| {
        let pair = Service::kernel_tcp("pair", service).to(origin.address()).set(&format!("shortcut: {says}"));
        stage.config_with_shortcut().service(pair)
    };
    let config = pair("on");
    let mut agent = Agent::start(&config);
    let mut stream = stage.dial(service).unwrap();
    assert_eq!(read_name(&mut stream).unwrap(), "origin");
    assert!(echoes(&stream, &[1; 1_000]).unwrap());
    agent.sigkill();
    let off = config.with_services([Service::kernel_tcp("pair", service).to(origin.address()).set("shortcut: off")]);
    agent.write_config(&off.yaml());
    agent.start_again();
    // The first messages after it find their direction's queue empty, and fall back.
    assert!(echoes(&stream, &[1; 1_000]).unwrap());
    let before = agent.metric(BYTES, &[]);
    assert!(echoes(&stream, &[1; 100_000]).unwrap());
    agent.metric_comes_to(BYTES, &[], before);
}

/// T8: a socket is in one owner's sockmap at a time. What the first agent dials is a service of the second, so that both want it.
#[test]
fn a_socket_that_another_owner_has_enrolled_is_left_to_it() {
    let Some(stage) = Stage::set() else { return };
    let (origin, service, between) = (stage.echo("origin"), stage.address(), stage.address());
    let from_to = |from, to| {
        let both = Config::new().capture_with(&stage.clients, "on").capture_with(&stage.origins, "on");
        both.service(Service::kernel_tcp("pair", from).to(to).set("shortcut: on"))
    };
    let first = Agent::start(&from_to(service, between));
    let second = Agent::start(&from_to(between, origin.address()));
    for _ in 0..20 {
        let mut stream = stage.dial(service).unwrap();
        assert_eq!(read_name(&mut stream).unwrap(), "origin");
        assert!(echoes(&stream, &[1; 100_000]).unwrap());
    }
    let sum = |name: &str, labels: &[(&str, &str)]| first.metric(name, labels) + second.metric(name, labels);
    assert!(sum("sockway_kernel_shortcut_sockets_total", &[("result", "client")]) >= 20.0, "one has the sockets");
    assert!(sum("sockway_kernel_shortcut_sockets_total", &[("result", "refused")]) >= 20.0, "the other was refused");
}

/// T15: a redirect to a socket that is gone must not fail the write with EACCES, which no program expects.
#[test]
fn a_writer_whose_peer_is_gone_gets_the_errors_of_tcp() {
    let Some(mut pair) = Pair::join() else { return };
    drop(pair.server);
    let mut failed = None;
    wait::until("a write to fail", wait::SOON, || {
        failed = pair.client.write(&[1; 10_000]).err();
        failed.is_some()
    });
    let kind = failed.expect("it failed").kind();
    assert!(matches!(kind, ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{kind:?}");
}

/// T18: where the kernel says nothing of its types (no BTF), the offsets that the bound and the identity of the peer need are not known.
#[test]
fn without_the_kernels_types_there_is_no_shortcut_and_everything_else_works() {
    let Some(stage) = Stage::set() else { return };
    let (origin, service) = (stage.echo("origin"), stage.address());
    let pair = Service::kernel_tcp("pair", service).to(origin.address()).set("shortcut: on");
    let hide = "mount --bind /dev/null /sys/kernel/btf/vmlinux && exec \"$@\"";
    let wrapper = ["unshare", "--mount", "--propagation", "private", "sh", "-c", hide, "sh"];
    let agent = Agent::start_through(&wrapper, &stage.config_with_shortcut().service(pair));
    let mut stream = stage.dial(service).unwrap();
    assert_eq!((read_name(&mut stream).unwrap().as_str(), stream.peer_addr().unwrap()), ("origin", service));
    assert!(echoes(&stream, &[1; 100_000]).unwrap());
    assert_eq!(agent.metric(BYTES, &[]), 0.0);
    agent.metric_comes_to("sockway_kernel_connects_total", &[("verdict", "balanced")], 1.0);
}

/// T42: after a reboot bpffs is empty; T39: and what a killed agent leaves attached is found by its pins alone.
#[test]
fn an_agent_whose_pins_are_gone_starts_as_on_the_first_day() {
    let Some(stage) = Stage::set() else { return };
    let (origin, service) = (stage.echo("origin"), stage.address());
    let mut agent = Agent::start(&stage.config().service(Service::kernel_tcp("pipe", service).to(origin.address())));
    assert_eq!(stage.ask_name(service).unwrap(), "origin");
    agent.sigkill();
    assert_eq!(stage.ask_name(service).unwrap(), "origin", "the kernel half works without the agent");
    pins::all(agent.instance()).iter().for_each(|pin| fs::remove_file(pin).expect("a pin can be removed"));
    fs::remove_dir_all(pins::directory(agent.instance())).expect("the directories are empty");
    agent.start_again();
    assert_eq!(stage.ask_name(service).unwrap(), "origin");
    agent.metric_comes_to("sockway_kernel_connects_total", &[("verdict", "balanced")], 1.0);
}
