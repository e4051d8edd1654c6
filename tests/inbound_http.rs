//! Requests that come in: each connection of a client's has its own way to the program.

use sockway_tests::{
    answer::Session,
    peers::{self, Nginx},
    pod::{PORT, Scene, accepted},
    process::Room,
};

#[test]
fn nginx_logs_the_clients_that_http_requests_come_from() {
    let Some(scene) = Scene::set() else { return };
    let room = Room::of(&scene.stage.origins).inside(&scene.pod);
    let name = "$remote_addr $remote_port $server_addr";
    let _nginx = Nginx::start(room, &scene.program, scene.at(PORT), name);
    let agent = scene.agent(&format!("ports: [{PORT}], protocol: http"));
    let url = format!("http://{}/", scene.at(PORT));
    let format = ["--write-out", "%{local_ip} %{local_port} %{remote_ip}\n"];
    // Two requests on one connection of curl, and two connections: each is told of its own client.
    for _ in 0..2 {
        let outside = Room::of(&scene.stage.clients).inside(&scene.outside);
        let said = peers::stdout(&peers::curl(outside, &[&format[..], &[&url, &url]].concat()));
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines.len(), 4, "{said}");
        assert!(lines.iter().all(|line| *line == lines[0]), "{said}");
    }
    assert_eq!(accepted(&agent), 2.0);
    assert_eq!(agent.metric("sockway_requests_total", &[("outcome", "2xx")]), 4.0);
}

#[test]
fn connections_to_the_program_are_never_shared_among_clients() {
    let Some(scene) = Scene::set() else { return };
    let room = Room::of(&scene.stage.origins).inside(&scene.pod);
    let _nginx = Nginx::start(room, &scene.program, scene.at(PORT), "$remote_port");
    let _agent = scene.agent(&format!("ports: [{PORT}], protocol: http"));
    let mut sessions: Vec<Session> = (0..4).map(|_| Session::on(scene.dial(scene.at(PORT)).unwrap())).collect();
    for _ in 0..3 {
        for session in &mut sessions {
            let said = session.get("/").unwrap().text();
            assert_eq!(said.trim(), session.stream().local_addr().unwrap().port().to_string());
        }
    }
}
