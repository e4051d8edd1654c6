//! The harness by itself, with no agent: what the other tests stand on holds.

use std::{fs, io::Write, net::SocketAddr, process::Command};

use sockway_tests::{
    cgroup::Cgroup,
    door::Door,
    netns::{Netns, Veth},
    origin::{Origin, echoes, read_name},
    peers::{self, Nginx, Redis, Wrk},
    process::{self, Room},
    stage::{Stage, allowed},
    wait,
};

#[test]
fn a_program_runs_in_the_cgroup_that_it_was_started_in_and_ends_with_it() {
    if !allowed() {
        return;
    }
    let cgroup = Cgroup::new("harness");
    let mut command = Command::new("sleep");
    command.arg("600");
    let mut sleeper = cgroup.spawn(command);
    let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", sleeper.pid())).unwrap();
    assert!(cgroups.lines().any(|line| line == format!("0::{}", cgroup.path())), "{cgroups}");

    let directory = cgroup.directory().to_owned();
    drop(cgroup);
    assert!(!directory.exists());
    sleeper.wait(wait::SOON);
}

#[test]
fn a_door_dials_and_listens_in_its_own_namespace() {
    if !allowed() {
        return;
    }
    let (left, right) = (Netns::new(), Netns::new());
    let wire = Veth::between(&left, &right);
    let cgroup = Cgroup::new("harness");
    let (client, server) = (Door::open(Room::of(&cgroup).inside(&left)), Door::open(Room::of(&cgroup).inside(&right)));
    let address = SocketAddr::new(wire.right.into(), 80);
    let _origin = Origin::echo(server.listen(address).unwrap(), "right");

    let mut stream = client.dial(address).unwrap();
    assert_eq!(stream.local_addr().unwrap().ip(), wire.left);
    assert_eq!(read_name(&mut stream).unwrap(), "right");
    assert!(echoes(&stream, &[7; 3_000_000]).unwrap());
    assert!(server.dial(SocketAddr::from(([192, 0, 2, 1], 80))).is_err(), "a namespace of the tests has no way out");
}

#[test]
fn a_dead_origin_refuses_and_cuts_its_connections() {
    let Some(stage) = Stage::set() else { return };
    let origin = stage.echo("mortal");
    let address = origin.address();
    let mut stream = stage.dial(address).unwrap();
    assert_eq!(read_name(&mut stream).unwrap(), "mortal");
    assert_eq!((origin.accepted(), origin.open()), (1, 1));

    origin.die();
    assert!(read_name(&mut stream).is_err());
    assert_eq!(stage.dial(address).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn the_web_origin_answers_every_way_of_framing() {
    let Some(stage) = Stage::set() else { return };
    let web = stage.web("spider");
    let mut session = stage.session(web.address());
    assert_eq!(session.get("/").unwrap().text(), "spider");
    assert_eq!(session.get("/chunked/100000").unwrap().body, sockway_tests::web::pattern(100_000));
    assert_eq!(session.call("POST", "/echo", b"hello").unwrap().text(), "hello");
    assert_eq!(session.get("/status/204").unwrap().status, 204);
    assert_eq!(session.get("/until-close/70000").unwrap().body.len(), 70_000);
    assert!(session.at_end().unwrap());
    assert_eq!((web.connections(), web.requests()), (1, 5));
}

#[test]
fn the_gate_holds_an_answer_until_it_is_opened() {
    let Some(stage) = Stage::set() else { return };
    let web = stage.web("gated");
    let mut session = stage.session(web.address());
    session.write(b"GET /gate HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    wait::until("the answer to stand at the gate", wait::SOON, || web.waiting() == 1);
    web.open_gate();
    assert_eq!(session.read("GET").unwrap().body.len(), 1000);
}

#[test]
fn real_programs_talk_to_each_other() {
    let Some(stage) = Stage::set() else { return };
    let (web, redis) = (stage.address(), stage.address());
    let _nginx = Nginx::start(Room::of(&stage.origins), stage.client(), web, "nginx");
    let _redis = Redis::start(Room::of(&stage.origins), redis);
    let room = Room::of(&stage.clients);
    assert_eq!(peers::stdout(&peers::curl(room, &[&format!("http://{web}/")])), "nginx\n");
    assert_eq!(peers::redis(room, "redis-cli", redis, &["ping"]), "PONG\n");
    let load = Wrk::start(room, web, 8, std::time::Duration::from_secs(1)).report();
    assert!(load.requests > 100 && load.socket_errors == 0 && load.bad_answers == 0, "{load:?}");
}

#[test]
fn a_burst_leaves_one_line_on_every_connection() {
    let Some(stage) = Stage::set() else { return };
    let address = stage.address();
    let (_origin, lines) = Origin::collect(stage.origin().listen(address).unwrap());
    let mut command = Command::new(sockway_tests::agent::probe());
    command.args(["burst", "200", "hello", &address.to_string()]);
    let output = process::run(Room::of(&stage.clients), command);
    assert_eq!(peers::stdout(&output), "0\n");
    wait::until("every line to arrive", wait::SOON, || lines.lock().unwrap().len() == 200);
    assert!(lines.lock().unwrap().contains(&format!("hello#199@{address}")));
}

#[test]
fn a_second_connect_on_a_socket_is_made_behind_the_door() {
    let Some(stage) = Stage::set() else { return };
    let origin = stage.echo("second");
    let refused = stage.client().begin(stage.address()).unwrap();
    wait::until("the first connect to fail", wait::SOON, || refused.take_error().unwrap().is_some());
    refused.set_nonblocking(false).unwrap();
    let mut stream = stage.client().redial(std::os::fd::AsFd::as_fd(&refused), origin.address()).unwrap();
    assert_eq!(read_name(&mut stream).unwrap(), "second");
    stream.write_all(b"x").unwrap();
}
