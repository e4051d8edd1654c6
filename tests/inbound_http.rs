//! Requests that come in: each connection of a client's has its own way to the program.

use std::{
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Output,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use sockway_tests::{
    agent::Agent,
    answer::Session,
    frames::{END_HEADERS, END_STREAM, Peer, kind, request},
    origin::Origin,
    peers::{self, Nghttpd, Nginx, h2load},
    pod::{PORT, Scene, accepted, refused},
    process::{self, Process, Room},
    tls::{Authority, Pair},
    wait,
};

/// `:status: 200`, from the static table (RFC 7541 appendix A).
const STATUS_200: u8 = 0x88;
const CANCEL: u32 = 8;

fn in_pod(scene: &Scene) -> Room<'_> {
    Room::of(&scene.stage.origins).inside(&scene.pod)
}

fn outside(scene: &Scene) -> Room<'_> {
    Room::of(&scene.stage.clients).inside(&scene.outside)
}

fn answered(agent: &Agent, outcome: &str) -> f64 {
    agent.metric("sockway_requests_total", &[("outcome", outcome)])
}

/// What a program of HTTP/2 has met.
#[derive(Debug, Default)]
struct Met {
    connections: AtomicUsize,
    taken_back: AtomicUsize,
}

/// A program that answers a request of HTTP/2 with the client's port, and one with a body not at all.
fn telling(scene: &Scene, port: u16, met: Arc<Met>) -> Origin {
    let listener = scene.program.listen(SocketAddr::from(([0; 16], port))).expect("a free port");
    Origin::start(listener, move |stream: &TcpStream, _| {
        let client = stream.peer_addr()?.port().to_string();
        let mut peer = Peer::server(stream)?;
        met.connections.fetch_add(1, Ordering::Relaxed);
        while let Some(frame) = peer.read()? {
            if frame.kind == kind::HEADERS && frame.ends_stream() {
                peer.send(kind::HEADERS, END_HEADERS, frame.stream, &[STATUS_200])?;
                peer.send(kind::DATA, END_STREAM, frame.stream, client.as_bytes())?;
            } else if frame.kind == kind::RST_STREAM {
                met.taken_back.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    })
}

/// Three requests on a connection are answered with the port of its client; a fourth is taken back.
fn three_answers(client: &mut (String, Peer), first: u32) {
    let (port, peer) = client;
    for stream in [first, first + 2, first + 4] {
        peer.send(kind::HEADERS, END_HEADERS | END_STREAM, stream, &request("GET", "/", &[])).unwrap();
    }
    peer.send(kind::HEADERS, END_HEADERS, first + 6, &request("POST", "/", &[])).unwrap();
    for _ in 0..3 {
        assert_eq!(String::from_utf8(peer.until(kind::DATA).payload).unwrap(), *port);
    }
    peer.send(kind::RST_STREAM, 0, first + 6, &CANCEL.to_be_bytes()).unwrap();
}

#[test]
fn streams_of_one_client_share_a_connection_to_the_program_that_no_other_client_uses() {
    let Some(scene) = Scene::set() else { return };
    for (port, protocol) in [(PORT, "http2"), (PORT + 1, "auto")] {
        let met = Arc::<Met>::default();
        let _program = telling(&scene, port, Arc::clone(&met));
        let agent = scene.agent(&format!("ports: [{port}], protocol: {protocol}"));
        let client = |_| {
            let stream = scene.dial(scene.at(port)).unwrap();
            (stream.local_addr().unwrap().port().to_string(), Peer::client(stream).unwrap())
        };
        let mut clients: Vec<(String, Peer)> = (0..3).map(client).collect();
        for first in [1, 9, 17] {
            clients.iter_mut().for_each(|client| three_answers(client, first));
        }
        wait::until("the program to hear what is taken back", wait::SOON, || {
            met.taken_back.load(Ordering::Relaxed) == 9
        });
        assert_eq!((answered(&agent, "2xx"), accepted(&agent)), (27.0, 3.0), "{protocol}");
        assert_eq!(met.connections.load(Ordering::Relaxed), 3, "{protocol}");
        drop(clients);
        wait::until("the agent to be done with them", wait::SOON, || {
            agent.metric("sockway_inbound_connections_active", &[("inbound", "web")]) == 0.0
        });
    }
}

#[test]
fn many_streams_and_long_bodies_come_in_within_the_limits_of_the_rule() {
    let Some(scene) = Scene::set() else { return };
    let _program = Nghttpd::start(in_pod(&scene), &scene.program, scene.at(PORT), 300_000, &[]);
    let limits = "limits: { per_source: { connections: 4 } }";
    let agent = scene.agent(&format!("ports: [{PORT}], protocol: http2, {limits}"));
    let report = h2load(outside(&scene), 400, 4, 16, &format!("http://{}/bytes", scene.at(PORT)));
    assert!(report.contains("400 succeeded, 0 failed, 0 errored"), "{report}");
    let mut inside: Vec<Peer> = Vec::new();
    wait::until("the places to be free", wait::SOON, || {
        inside = (0..4).map(|_| Peer::client(scene.dial(scene.at(PORT)).unwrap()).unwrap()).collect();
        inside.iter_mut().all(|peer| matches!(peer.read(), Ok(Some(frame)) if frame.kind == kind::SETTINGS))
    });
    let before = refused(&agent, "source_connections");
    // Who is refused sees it while connecting or while reading.
    assert!(scene.dial(scene.at(PORT)).and_then(Peer::client).and_then(|mut peer| peer.read()).is_err());
    assert_eq!(refused(&agent, "source_connections"), before + 1.0);
}

#[test]
fn calls_of_grpc_come_in_to_a_server_of_grpcio() {
    const PYTHON: &str = include_str!("grpc_clients/peer.py");
    let Some(scene) = Scene::set() else { return };
    let python = |role: &str| {
        let mut command = peers::python_command(PYTHON, &[role, &scene.at(PORT).to_string()]);
        // A proxy that the environment names is not asked for the way.
        command.env("no_grpc_proxy", "*").env("no_proxy", "*");
        command
    };
    let server = Process::spawn(in_pod(&scene), python("serve"));
    wait::until("a gRPC server", wait::SOON, || server.stdout().contains("serving"));
    let agent = scene.agent(&format!("ports: [{PORT}], protocol: auto"));
    let said = process::run(outside(&scene), python("call"));
    assert!(peers::stdout(&said).ends_with("done\n"), "{said:?}");
    agent.metric_reaches("sockway_grpc_responses_total", &[("status", "OK")], 500.0);
    drop(server);
    let said = process::run(outside(&scene), python("nobody"));
    assert!(peers::stdout(&said).ends_with("done\n"), "{said:?}");
}

#[test]
fn a_program_of_http1_behind_a_rule_of_http2_is_a_bad_gateway() {
    let Some(scene) = Scene::set() else { return };
    let _program = Nginx::start(in_pod(&scene), &scene.program, scene.at(PORT), "nginx");
    let agent = scene.agent(&format!("ports: [{PORT}], protocol: http2"));
    let url = format!("http://{}/", scene.at(PORT));
    let said = peers::curl(outside(&scene), &["--http2-prior-knowledge", "--write-out", " %{response_code}", &url]);
    let said = peers::stdout(&said);
    assert!(said.contains("does not speak HTTP/2") && said.ends_with(" 502"), "{said}");
    agent.metric_comes_to("sockway_inbound_connect_failures_total", &[("inbound", "web")], 1.0);
}

/// A rule that ends TLS.
fn terminate((port, protocol): (u16, &str), pair: &Pair) -> String {
    format!("ports: [{port}], protocol: {protocol}, tls: {{ terminate: {{ certificates: [{}] }} }}", pair.yaml())
}

fn curl_tls(scene: &Scene, port: u16, root: &Path) -> Output {
    let resolve = format!("web.example:{port}:{}", scene.at(port).ip());
    let url = format!("https://web.example:{port}/");
    let root = root.to_str().unwrap();
    peers::curl(outside(scene), &["--cacert", root, "--resolve", &resolve, "--write-out", "%{http_version}", &url])
}

#[test]
fn tls_ends_at_the_agent_and_the_program_hears_its_client_in_plain() {
    let Some(scene) = Scene::set() else { return };
    let authority = Authority::new();
    let pair = authority.issue("web", &["web.example"]);
    let _nginx = Nginx::start(in_pod(&scene), &scene.program, scene.at(PORT), "$scheme $remote_addr");
    let config = scene.config(&terminate((PORT, "http"), &pair));
    let agent = Agent::start(&config);
    let said = peers::stdout(&curl_tls(&scene, PORT, &authority.root()));
    assert_eq!(said, format!("http {}\n1.1", scene.wire.left));
    // A certificate that takes the place of another is shown without a restart.
    let other = Authority::new();
    let renewed = other.issue("web", &["web.example"]);
    for (new, old) in [(&renewed.key, &pair.key), (&renewed.cert, &pair.cert)] {
        std::fs::copy(new, old).unwrap();
    }
    wait::until("the new certificate to be shown", wait::SOON, || {
        curl_tls(&scene, PORT, &other.root()).status.success()
    });

    let _nghttpd = Nghttpd::start_answering(in_pod(&scene), &scene.program, scene.at(PORT + 1));
    agent.reload(&config.with_inbound(&[&scene.rule("web", &terminate((PORT + 1, "auto"), &pair))]));
    let said = peers::stdout(&curl_tls(&scene, PORT + 1, &other.root()));
    assert_eq!(said, "nghttpd\n2", "agreed on in the handshake");
    let plain = scene.dial(scene.at(PORT + 1)).and_then(Peer::client).and_then(|mut peer| peer.read());
    assert!(!matches!(plain, Ok(Some(_))), "{plain:?}");
    wait::until("who speaks no TLS to be counted", wait::SOON, || {
        agent.metric("sockway_connections_closed_total", &[("reason", "not_tls")]) == 1.0
    });
}

#[test]
fn nginx_logs_the_clients_that_http_requests_come_from() {
    let Some(scene) = Scene::set() else { return };
    let room = in_pod(&scene);
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
    agent.metric_comes_to("sockway_requests_total", &[("outcome", "2xx")], 4.0);
}

#[test]
fn connections_to_the_program_are_never_shared_among_clients() {
    let Some(scene) = Scene::set() else { return };
    let room = in_pod(&scene);
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
