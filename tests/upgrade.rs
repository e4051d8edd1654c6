//! An agent takes over from one of another version: its object in place, its maps where they are still the same, and what lives with
//! sockets until they are gone; each while connections run (traps T36, T37, T38).

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::PathBuf,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use sockway_tests::{
    agent::{Agent, next_binary, sockway},
    config::Service,
    door::Door,
    origin::{echoes, read_name},
    pins,
    process::{self, Room},
    stage::Stage,
    wait,
};

/// Connections that are open while agents change.
const OPEN: usize = 2_000;

/// Open connections of a kernel-balanced service.
fn open(stage: &Stage, service: SocketAddr, count: usize) -> Vec<TcpStream> {
    (0..count)
        .map(|_| {
            let mut stream = stage.dial(service).unwrap();
            assert_eq!(read_name(&mut stream).unwrap(), "origin");
            stream
        })
        .collect()
}

/// None of them was lost, and each knows whom it dialled.
fn all_live(streams: &[TcpStream], service: SocketAddr, when: &str) {
    for stream in streams {
        assert_eq!(stream.peer_addr().unwrap(), service, "{when}");
        assert!(echoes(stream, b"still here").unwrap(), "{when}");
    }
}

fn aside(instance: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(pins::directory(instance)).unwrap().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.to_string_lossy().contains("before-")).collect()
}

fn balanced(agent: &Agent) -> f64 {
    agent.metric("sockway_kernel_connects_total", &[("verdict", "balanced")])
}

/// Dials again and again behind a door of its own while `act` runs. How often; none failed.
fn while_dialling(stage: &Stage, service: SocketAddr, act: impl FnOnce()) -> usize {
    let door = Door::open(Room::of(&stage.clients));
    let (stop, dialled) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let dialling = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let mut stream = door.dial(service).expect("no connect fails while agents change");
                stream.set_read_timeout(Some(wait::soon())).unwrap();
                assert_eq!(stream.peer_addr().unwrap(), service);
                assert_eq!(read_name(&mut stream).unwrap(), "origin");
                dialled.fetch_add(1, Ordering::Relaxed);
            }
        });
        // Also when the test has failed: a scope waits for its threads.
        let ended = catch_unwind(AssertUnwindSafe(act));
        stop.store(true, Ordering::Relaxed);
        dialling.join().unwrap();
        ended.unwrap_or_else(|panic| resume_unwind(panic));
    });
    dialled.into_inner()
}

#[test]
fn an_upgrade_across_a_layout_loses_no_connection_and_no_count() {
    let (Some(stage), Some(next)) = (Stage::set(), next_binary()) else { return };
    let (origin, service) = (stage.echo("origin"), stage.address());
    let config = stage.config().service(Service::kernel_tcp("pipe", service).to(origin.address()));
    let mut agent = Agent::start(&config);
    let streams = open(&stage, service, OPEN);
    assert_eq!(balanced(&agent), OPEN as f64);

    let dialled = while_dialling(&stage, service, || {
        agent.sigkill();
        agent.start_again_as(&next);
    });
    assert!(dialled > 10, "{dialled}");
    all_live(&streams, service, "after the upgrade");
    assert_eq!(balanced(&agent), (OPEN + dialled) as f64, "counts go on in the maps that fit");
    assert_eq!(aside(agent.instance()).len(), 1, "{:?}", pins::all(agent.instance()));

    // The hooks that stepped aside are found again by every later agent.
    agent.sigkill();
    agent.start_again_as(&next);
    all_live(&streams, service, "after another start");
    let newer = open(&stage, service, 100);

    // With the last socket of the layout before, they go; those of the new layout do not notice.
    drop(streams);
    wait::until("what stood aside to go", 2 * wait::SOON, || aside(agent.instance()).is_empty());
    all_live(&newer, service, "after the old layout is gone");
    let dials = OPEN + dialled + 100;
    assert_eq!(balanced(&agent), dials as f64);
}

#[test]
fn an_upgrade_that_is_cut_short_at_any_moment_is_finished_by_the_next_agent() {
    let (Some(stage), Some(next)) = (Stage::set(), next_binary()) else { return };
    let (origin, service) = (stage.echo("origin"), stage.address());
    let config = stage.config().service(Service::kernel_tcp("pipe", service).to(origin.address()));
    let mut agent = Agent::start(&config);
    let streams = open(&stage, service, 200);
    let dialled = while_dialling(&stage, service, || {
        agent.sigkill();
        // From before anything is done to when all is: the whole start takes some hundred milliseconds.
        for moment in (0..20).map(|step| Duration::from_millis(step * 40)) {
            agent.begin_again_as(&next);
            thread::sleep(moment); // the moment of the cut is what this test is about, not something waited for
            agent.sigkill();
        }
        agent.start_again_as(&next);
    });
    assert!(dialled > 10, "{dialled}");
    all_live(&streams, service, "after an upgrade in pieces");
    drop(streams);
    wait::until("what stood aside to go", 2 * wait::SOON, || aside(agent.instance()).is_empty());
    assert_eq!(stage.ask_name(service).unwrap(), "origin");
}

#[test]
fn pins_of_a_later_version_are_refused_and_go_on() {
    let (Some(stage), Some(next)) = (Stage::set(), next_binary()) else { return };
    let (origin, service) = (stage.echo("origin"), stage.address());
    let mut agent = Agent::start(&stage.config().service(Service::kernel_tcp("pipe", service).to(origin.address())));
    let streams = open(&stage, service, 10);
    agent.sigkill();
    agent.start_again_as(&next);
    agent.sigkill();
    let before = pins::all(agent.instance());
    let output = process::run(
        Room::default(),
        sockway_tests::agent::command_of(&["run", "--config", &agent.config_file().to_string_lossy()]),
    );
    let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(69), "{said}");
    let ours = sockway_common::ABI_VERSION;
    assert!(said.contains(&format!("version {}", ours + 1)) && said.contains(&format!("version {ours}")), "{said}");
    assert_eq!(pins::all(agent.instance()), before);
    all_live(&streams, service, "with nobody in charge");
    assert_eq!(stage.ask_name(service).unwrap(), "origin");

    // What stands aside goes with the rest.
    assert!(sockway(&["detach", "--instance", agent.instance()]).status.success());
    assert!(!pins::directory(agent.instance()).exists());
    streams.iter().for_each(|stream| assert!(echoes(stream, b"ordinary").unwrap()));
}

#[test]
fn an_upgrade_of_the_object_in_place_replaces_programs_and_nothing_else() {
    let Some(stage) = Stage::set() else { return };
    let (origin, service) = (stage.echo("origin"), stage.address());
    let config = stage.config().service(Service::kernel_tcp("pipe", service).to(origin.address()));
    let mut agent = Agent::start(&config);
    let pinned = pins::all(agent.instance());
    let streams = open(&stage, service, OPEN);
    let dialled = while_dialling(&stage, service, || {
        agent.sigterm();
        agent.wait();
        agent.start_again();
    });
    all_live(&streams, service, "after the restart");
    assert_eq!(pins::all(agent.instance()), pinned);
    assert_eq!(balanced(&agent), (OPEN + dialled) as f64);
}

#[test]
fn uninstalling_under_load_makes_every_connection_an_ordinary_one() {
    let Some(stage) = Stage::set() else { return };
    let (origin, service) = (stage.echo("origin"), stage.address());
    let mut agent = Agent::start(&stage.config().service(Service::kernel_tcp("pipe", service).to(origin.address())));
    let streams = open(&stage, service, OPEN);
    agent.sigkill();
    assert!(sockway(&["detach", "--instance", agent.instance()]).status.success());
    for stream in &streams {
        assert!(echoes(stream, b"ordinary").unwrap());
        assert_eq!(stream.peer_addr().unwrap(), origin.address(), "and says so");
    }
    assert!(stage.dial(service).is_err());
}
