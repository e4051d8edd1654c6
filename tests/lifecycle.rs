//! From start to the last trace: draining, staying pinned, starting again, detaching, and refusing what does not fit.

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::unix::fs::OpenOptionsExt as _,
    time::Duration,
};

use nix::{sys::stat::Mode, unistd::mkfifo};
use sockway_tests::{
    agent::{self, Agent, command_of, run_file, sockway},
    cgroup,
    config::Service,
    origin::{echoes, read_name},
    patience, pins,
    process::{self, Room},
    stage::Stage,
    wait,
};

#[test]
fn sigterm_lets_answers_in_flight_finish_and_exits_with_0() {
    let Some(stage) = Stage::set() else { return };
    let (web, service) = (stage.web("web"), stage.address());
    let mut agent = Agent::start(&stage.config().service(Service::http("web", service).to(web.address())));
    let mut flying = stage.session(service);
    flying.write(b"GET /gate HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    let mut idle = stage.session(service);
    assert_eq!(idle.get("/").unwrap().status, 200);
    wait::until("the answer to stand at the gate", wait::SOON, || web.waiting() == 1);

    agent.sigterm();
    assert!(idle.at_end().unwrap(), "idle connections are closed");
    assert!(agent.running(), "an answer is still in flight");
    // Meanwhile new connections are balanced in the kernel.
    assert_eq!(stage.session(service).get("/").unwrap().text(), "web");
    web.open_gate();
    let answer = flying.read("GET").unwrap();
    assert_eq!((answer.status, answer.body.len()), (200, 1000));
    assert_eq!(agent.wait().code(), Some(0), "{}", agent.log());
    assert_eq!(stage.session(service).get("/").unwrap().text(), "web");
}

#[test]
fn no_connect_fails_while_the_agent_drains() {
    let Some(stage) = Stage::set() else { return };
    let (web, service) = (stage.web("web"), stage.address());
    let mut agent = Agent::start(&stage.config().service(Service::http("web", service).to(web.address())));
    for round in 0..5 {
        agent.sigterm();
        let mut calls = 0;
        while agent.running() || calls < 50 {
            // A request may meet the very moment of closing; its connection was accepted, so it is answered.
            assert_eq!(stage.session(service).get("/").unwrap().text(), "web", "call {calls} of round {round}");
            calls += 1;
        }
        assert_eq!(agent.wait().code(), Some(0), "{}", agent.log());
        agent.start_again();
    }
}

#[test]
fn what_was_accepted_before_a_drain_has_its_first_request_answered_and_nobody_waits_for_who_asks_nothing() {
    let Some(stage) = Stage::set() else { return };
    let (web, service) = (stage.web("web"), stage.address());
    let config = stage.config().set("drain_timeout_ms: 3600000");
    let mut agent = Agent::start(&config.service(Service::http("web", service).to(web.address())));
    let mut asked = stage.session(service);
    assert_eq!(asked.get("/").unwrap().text(), "web");
    let (mut late, mut mute) = (stage.session(service), stage.session(service));
    let accepted = || agent.metric("sockway_connections_opened_total", &[]) >= 3.0;
    wait::until("all to be accepted", wait::SOON, accepted);

    agent.sigterm();
    assert!(asked.at_end().unwrap(), "the drain has begun: what was asked before and is idle is closed");
    let answer = late.get("/").unwrap();
    assert_eq!((answer.status, answer.text().as_str(), answer.header("connection")), (200, "web", "close"));
    assert!(late.at_end().unwrap());
    assert!(mute.at_end().unwrap(), "who asks nothing is not waited for");
    assert_eq!(agent.wait().code(), Some(0), "{}", agent.log());
}

#[test]
fn a_drain_ends_at_its_deadline() {
    let Some(stage) = Stage::set() else { return };
    let (web, origin) = (stage.web("web"), stage.echo("origin"));
    let (http, tcp) = (stage.address(), stage.address());
    let config = stage
        .config()
        .set("drain_timeout_ms: 700")
        .service(Service::http("http", http).to(web.address()))
        .service(Service::agent_tcp("tcp", tcp).to(origin.address()));
    let mut agent = Agent::start(&config);
    let mut flying = stage.session(http);
    flying.write(b"GET /gate HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    wait::until("the answer to stand at the gate", wait::SOON, || web.waiting() == 1);
    let mut stream = stage.dial(tcp).unwrap();
    assert_eq!(read_name(&mut stream).unwrap(), "origin");

    agent.sigterm();
    let start = std::time::Instant::now();
    assert!(echoes(&stream, b"still carried").unwrap());
    agent.wait();
    assert!(
        (Duration::from_millis(600)..patience::deadline(Duration::from_secs(5))).contains(&start.elapsed()),
        "{:?}",
        start.elapsed()
    );
    assert!(flying.read("GET").is_err(), "what was cut must not look whole");
}

#[test]
fn opaque_connections_may_finish_while_the_agent_drains() {
    let Some(stage) = Stage::set() else { return };
    let (origin, service) = (stage.echo("origin"), stage.address());
    let mut agent = Agent::start(&stage.config().service(Service::agent_tcp("tcp", service).to(origin.address())));
    let mut stream = stage.dial(service).unwrap();
    assert_eq!(read_name(&mut stream).unwrap(), "origin");
    agent.sigterm();
    assert!(echoes(&stream, &[4; 2_000_000]).unwrap());
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    assert_eq!(agent.wait().code(), Some(0), "{}", agent.log());
}

#[test]
fn kernel_services_go_on_after_the_agent_has_ended() {
    let Some(stage) = Stage::set() else { return };
    let (one, two, service) = (stage.echo("one"), stage.echo("two"), stage.address());
    let pipe = Service::kernel_tcp("pipe", service).to(one.address()).to(two.address());
    let mut agent = Agent::start(&stage.config().service(pipe));
    let mut before = stage.dial(service).unwrap();
    let name = read_name(&mut before).unwrap();

    agent.sigterm();
    assert_eq!(agent.wait().code(), Some(0));
    assert!(echoes(&before, &[8; 100_000]).unwrap(), "the connection to {name} does not notice");
    let names: Vec<String> = (0..10).map(|_| stage.ask_name(service).unwrap()).collect();
    assert_eq!(names.iter().filter(|name| *name == "one").count(), 5, "{names:?}");
    assert_eq!(stage.dial(service).unwrap().peer_addr().unwrap(), service);
    assert!(!run_file(agent.instance()).exists(), "no agent says that it runs");
}

#[test]
fn detach_leaves_nothing_behind() {
    let Some(stage) = Stage::set() else { return };
    let (origin, service) = (stage.echo("origin"), stage.address());
    let pipe = Service::kernel_tcp("pipe", service).to(origin.address());
    let mut agent = Agent::start(&stage.config().service(pipe));
    let mut before = stage.dial(service).unwrap();
    assert_eq!(read_name(&mut before).unwrap(), "origin");
    assert!(!pins::all(agent.instance()).is_empty());
    agent.sigkill();
    let own = cgroup::mount().join(format!("sockway-agent-{}", agent.instance()));
    assert!(own.is_dir());
    // As an agent leaves it that is killed within its self-test.
    let scratch = cgroup::mount().join(format!("sockway-self-test-{}-{}", agent.instance(), agent.pid()));
    fs::create_dir(&scratch).unwrap();

    let output = sockway(&["detach", "--instance", agent.instance()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(pins::all(agent.instance()).is_empty() && !pins::directory(agent.instance()).exists());
    assert!(!own.exists() && !scratch.exists(), "its cgroups are there");
    assert!(!run_file(agent.instance()).exists(), "its run-time file is there");
    assert!(stage.dial(service).is_err(), "programs dial as if we had never been there");
    assert!(echoes(&before, b"an open connection is an ordinary one").unwrap());
    assert!(sockway(&["detach", "--instance", agent.instance()]).status.success(), "nothing to do is no failure");
}

#[test]
fn an_agent_that_is_detached_while_it_runs_says_that_it_captures_nothing_and_does_when_it_is_started_again() {
    let Some(stage) = Stage::set() else { return };
    let (origin, service) = (stage.echo("origin"), stage.address());
    let pipe = Service::kernel_tcp("pipe", service).to(origin.address());
    let mut agent = Agent::start(&stage.config().service(pipe));
    assert_eq!(stage.ask_name(service).unwrap(), "origin");

    let output = sockway(&["detach", "--instance", agent.instance()]);
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("captures nothing from now on"), "{output:?}");
    assert!(stage.dial(service).is_err(), "programs dial as if we had never been there");
    wait::until("the agent to notice", wait::soon(), || agent.log().contains("its pins in bpffs are gone"));
    let answer = agent.admin("/ready");
    assert!(answer.status == 503 && answer.text().contains("nothing is captured"), "{answer:?}");

    agent.sigkill();
    agent.start_again();
    assert_eq!(stage.ask_name(service).unwrap(), "origin");
}

#[test]
fn an_agent_that_was_told_so_takes_everything_away_when_it_ends() {
    let Some(stage) = Stage::set() else { return };
    let (origin, kernel, through_agent) = (stage.echo("origin"), stage.address(), stage.address());
    let config = stage
        .config()
        .service(Service::kernel_tcp("kernel", kernel).to(origin.address()))
        .service(Service::agent_tcp("agent", through_agent).to(origin.address()));
    let mut agent = Agent::start_detaching(&config);
    let mut streams = [kernel, through_agent].map(|service| stage.dial(service).unwrap());
    streams.iter_mut().for_each(|stream| assert_eq!(read_name(stream).unwrap(), "origin"));

    agent.sigterm();
    // What is open finishes before anything is taken away.
    streams.iter().for_each(|stream| assert!(echoes(stream, &[1; 100_000]).unwrap()));
    let [before, through] = streams;
    drop(through);
    assert_eq!(agent.wait().code(), Some(0), "{}", agent.log());
    assert!(!pins::directory(agent.instance()).exists() && !run_file(agent.instance()).exists());
    assert!(!cgroup::mount().join(format!("sockway-agent-{}", agent.instance())).exists(), "its cgroup is there");
    assert!(stage.dial(kernel).is_err() && stage.dial(through_agent).is_err());
    assert!(echoes(&before, b"ordinary").unwrap());
}

#[test]
fn what_was_changed_is_written_down_also_where_nothing_can_be_taken_away() {
    let Some(stage) = Stage::set() else { return };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit");
    mkfifo(&path, Mode::S_IRWXU).unwrap();
    // A disk that takes its time: no line goes through until somebody reads.
    let mut pipe = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
    while pipe.write(&[b'\n'; 4096]).is_ok() {}
    let (origin, service) = (stage.echo("origin"), stage.address());
    let pipe_to =
        |ms| Service::kernel_tcp("pipe", service).to(origin.address()).set(&format!("endpoint_drain_ms: {ms}"));
    let config = stage.config().set(&format!("audit: {{ path: {} }}", path.display()));
    let mut agent = Agent::start_detaching(&config.with_services([pipe_to(1)]));
    agent.reload(&config.with_services([pipe_to(2)]));
    let obstacle = pins::directory(agent.instance()).join("links/obstacle");
    fs::create_dir(&obstacle).unwrap();

    agent.sigterm();
    wait::until("the end to begin", wait::SOON, || agent.log().contains("drained"));
    let mut written = Vec::new();
    wait::until("the agent to end", wait::SOON, || {
        let _ = pipe.read_to_end(&mut written);
        !agent.running()
    });
    let _ = pipe.read_to_end(&mut written);
    fs::remove_dir(&obstacle).unwrap();
    assert_ne!(agent.wait().code(), Some(0));
    assert!(agent.log().contains("obstacle") || agent.log().contains("links"), "{}", agent.log());
    let written = String::from_utf8_lossy(&written);
    assert!(written.contains("\"start\"") && written.contains("\"reload\""), "{}", written.trim());
}

#[test]
fn the_config_file_names_what_is_detached_as_well() {
    let Some(stage) = Stage::set() else { return };
    let (origin, service) = (stage.echo("origin"), stage.address());
    let mut agent = Agent::start(&stage.config().service(Service::kernel_tcp("pipe", service).to(origin.address())));
    agent.sigkill();
    let output = sockway(&["detach", "--config", &agent.config_file().to_string_lossy()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!pins::directory(agent.instance()).exists());
    assert!(stage.dial(service).is_err());
}

#[test]
fn a_second_agent_of_the_same_instance_is_refused_and_the_first_does_not_notice() {
    let Some(stage) = Stage::set() else { return };
    let (web, service) = (stage.web("web"), stage.address());
    let agent = Agent::start(&stage.config().service(Service::http("web", service).to(web.address())));
    let mut session = stage.session(service);
    assert_eq!(session.get("/").unwrap().status, 200);

    let output =
        process::run(Room::default(), command_of(&["run", "--config", &agent.config_file().to_string_lossy()]));
    let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(69), "{said}");
    assert!(said.contains(agent.instance()), "{said}");
    assert_eq!(session.get("/").unwrap().status, 200);
    assert_eq!(stage.session(service).get("/").unwrap().text(), "web");
    assert!(run_file(agent.instance()).exists());
}

#[test]
fn agents_of_different_instances_live_side_by_side() {
    let (Some(left), Some(right)) = (Stage::set(), Stage::set()) else { return };
    let (web, service) = (left.web("left"), left.address());
    let other = right.web("right");
    let _left = Agent::start(&left.config().service(Service::http("web", service).to(web.address())));
    let mut second = Agent::start(&right.config().service(Service::http("web", service).to(other.address())));
    // The same address means another thing to the programs of another cgroup.
    assert_eq!(left.session(service).get("/").unwrap().text(), "left");
    assert_eq!(right.session(service).get("/").unwrap().text(), "right");
    second.sigkill();
    assert_eq!(left.session(service).get("/").unwrap().text(), "left");
    assert_eq!(right.session(service).get("/").unwrap().text(), "right");
}

#[test]
fn pins_of_another_abi_version_are_refused_with_both_versions_named() {
    let Some(stage) = Stage::set() else { return };
    let (origin, service) = (stage.echo("origin"), stage.address());
    let mut agent = Agent::start(&stage.config().service(Service::kernel_tcp("pipe", service).to(origin.address())));
    agent.sigkill();
    let all = pins::all(agent.instance());
    let is_settings = |path: &&std::path::PathBuf| path.to_string_lossy().to_ascii_lowercase().contains("settings");
    let settings = all.iter().find(is_settings).unwrap_or_else(|| panic!("no settings among {all:?}"));
    let bytes = size_of::<sockway_common::capture::Settings>();
    pins::change_first_word(settings, bytes, |version| version + 4_711).unwrap();

    let output =
        process::run(Room::default(), command_of(&["run", "--config", &agent.config_file().to_string_lossy()]));
    let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(69), "{said}");
    let (ours, theirs) = (sockway_common::ABI_VERSION, sockway_common::ABI_VERSION + 4_711);
    assert!(said.contains(&theirs.to_string()) && said.contains(&format!(" {ours}")), "{said}");
    assert!(said.contains("detach"), "and the remedy: {said}");
    assert_eq!(stage.ask_name(service).unwrap(), "origin", "what is pinned is left as it is");

    assert!(sockway(&["detach", "--instance", agent.instance()]).status.success());
    agent.start_again();
    assert_eq!(stage.ask_name(service).unwrap(), "origin");
}

#[test]
fn an_agent_that_starts_again_takes_over_what_is_pinned_without_a_gap() {
    let Some(stage) = Stage::set() else { return };
    let (one, two, service) = (stage.echo("one"), stage.echo("two"), stage.address());
    let config = stage.config();
    let mut agent = Agent::start(&config.with_services([Service::kernel_tcp("pipe", service).to(one.address())]));
    assert_eq!(stage.ask_name(service).unwrap(), "one");
    agent.sigkill();

    // Another configuration, taken up while programs keep dialling.
    agent.write_config(&config.with_services([Service::kernel_tcp("pipe", service).to(two.address())]).yaml());
    std::thread::scope(|scope| {
        let (done, stop) = std::sync::mpsc::channel::<()>();
        let dialling = scope.spawn({
            let stage = &stage;
            move || {
                let mut names = Vec::new();
                while stop.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                    names.push(stage.ask_name(service).expect("no connect fails while an agent starts"));
                }
                names
            }
        });
        agent.start_again();
        done.send(()).unwrap();
        let names = dialling.join().unwrap();
        assert!(names.is_sorted(), "first all the old endpoint, then all the new one: {names:?}");
    });
    assert_eq!(stage.ask_name(service).unwrap(), "two");
}

#[test]
fn killing_and_starting_again_many_times_leaves_no_trace_of_the_dead() {
    let Some(stage) = Stage::set() else { return };
    let (web, service) = (stage.web("web"), stage.address());
    let mut agent = Agent::start(&stage.config().service(Service::http("web", service).to(web.address())));
    let mut pinned = pins::all(agent.instance());
    for _ in 0..5 {
        assert_eq!(stage.session(service).get("/").unwrap().text(), "web");
        agent.sigkill();
        agent.start_again();
        let now = pins::all(agent.instance());
        assert_eq!(now, pinned, "pins pile up");
        pinned = now;
    }
}

#[test]
fn an_agent_at_rest_is_small() {
    let Some(stage) = Stage::set() else { return };
    let (web, service) = (stage.web("web"), stage.address());
    let agent = Agent::start(&stage.config().service(Service::http("web", service).to(web.address())));
    assert_eq!(stage.session(service).get("/").unwrap().status, 200);
    // The goal holds for the release build that `cargo xtask test` makes.
    if agent::binary().to_string_lossy().contains("/release/") {
        assert!(agent.resident_kib() <= 20 * 1024, "{} KiB resident", agent.resident_kib());
    }
}

#[test]
fn a_connection_that_is_open_when_the_agent_is_killed_ends_at_once() {
    let Some(stage) = Stage::set() else { return };
    let (origin, service) = (stage.echo("origin"), stage.address());
    let mut agent = Agent::start(&stage.config().service(Service::agent_tcp("tcp", service).to(origin.address())));
    let mut stream = stage.dial(service).unwrap();
    assert_eq!(read_name(&mut stream).unwrap(), "origin");
    agent.sigkill();
    // It cannot live on, and must not hang: the program may dial again.
    let _ = stream.write_all(b"x");
    assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)));
    wait::until("the origin's side to end, too", wait::SOON, || origin.open() == 0);
    assert!(fs::metadata(format!("/proc/{}", agent.pid())).is_err());
    assert_eq!(stage.ask_name(service).unwrap(), "origin");
}
