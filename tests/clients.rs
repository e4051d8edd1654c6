//! Clients of HTTP as they are, through the real agent: what each of them does in its own way arrives, and so does its answer.

use std::{
    fs,
    io::{self, Write as _},
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
};

use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_ED25519};
use sockway_tests::{
    agent::Agent,
    config::Service,
    origin::Origin,
    peers::{self, Nghttpd, Nginx},
    process::{self, Process, Room},
    stage::{Stage, tell},
    tls::Authority,
    wait,
    web::pattern,
};
use tempfile::TempDir;

const HTTP_CLIENT: &str = include_str!("clients/http_client.py");
const WEBSOCKET: &str = include_str!("clients/websocket.py");
const JAVA: &str = include_str!("clients/Peer.java");

/// One endpoint behind two services: one that is told its protocol, and one that is not.
struct Hop {
    agent: Agent,
    services: [SocketAddr; 2],
    stage: Stage,
}

impl Hop {
    fn to(stage: Stage, endpoint: SocketAddr, told: fn(&str, SocketAddr) -> Service) -> Self {
        let services = [stage.address(), stage.address()];
        let config = stage
            .config()
            .service(told("told", services[0]).to(endpoint))
            .service(Service::auto("sniffed", services[1]).to(endpoint));
        Self { agent: Agent::start(&config), services, stage }
    }

    /// What a program prints; panics when it fails.
    #[track_caller]
    fn run(&self, program: &str, arguments: &[&str]) -> String {
        let mut command = Command::new(program);
        command.args(arguments);
        self.run_command(command)
    }

    #[track_caller]
    fn run_command(&self, command: Command) -> String {
        let shown = format!("{command:?}");
        let output = process::run(Room::of(&self.stage.clients), command);
        let said = peers::stdout(&output);
        assert!(output.status.success(), "{shown}: {said}{}", String::from_utf8_lossy(&output.stderr));
        said
    }
}

#[test]
fn ab_speaks_http_1_0_with_and_without_keeping_connections() {
    let Some(stage) = Stage::set() else { return };
    let endpoint = stage.address();
    let _nginx = Nginx::start(Room::of(&stage.origins), stage.origin(), endpoint, "nginx");
    let hop = Hop::to(stage, endpoint, Service::http);
    let body = TempDir::new().unwrap();
    let file = body.path().join("body");
    fs::write(&file, pattern(20_000)).unwrap();
    let post = ["-T", "text/plain", "-p", file.to_str().unwrap()];
    for service in hop.services {
        let url = format!("http://{service}/");
        for (more, kept) in [(&[][..], 0), (&["-k"], 200), (&[&["-k"], &post[..]].concat(), 200)] {
            let report = hop.run("ab", &[&["-q", "-n", "200", "-c", "8"], more, &[&url]].concat());
            let value = |name: &str| {
                let line = report.lines().find_map(|line| line.strip_prefix(name));
                line.map_or(0, |value| value.trim().parse::<u32>().expect("a number"))
            };
            let seen =
                ["Complete requests:", "Failed requests:", "Non-2xx responses:", "Keep-Alive requests:"].map(value);
            assert_eq!(seen, [200, 0, 0, kept], "{more:?}: {report}");
        }
    }
    hop.agent.metric_comes_to("sockway_requests_total", &[("outcome", "2xx")], 1_200.0);
}

#[test]
fn libraries_of_python_send_and_read_bodies_of_every_framing() {
    let Some(stage) = Stage::set() else { return };
    let web = stage.web("web");
    let hop = Hop::to(stage, web.address(), Service::http);
    for service in hop.services {
        let command = peers::python_command(HTTP_CLIENT, &[&service.to_string()]);
        assert_eq!(hop.run_command(command), "done\n");
    }
}

#[test]
fn clients_of_java_are_served_in_http_1_when_they_ask_for_h2c() {
    let Some(stage) = Stage::set() else { return };
    let (java, compiler) = (Path::new("/usr/bin/java"), Path::new("/usr/bin/javac"));
    if !java.is_file() || !compiler.is_file() {
        return tell("SKIPPED: there is no JDK here (Debian's default-jdk-headless); python3 dials as Java does");
    }
    let web = stage.web("web");
    let hop = Hop::to(stage, web.address(), Service::http);
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("Peer.java");
    fs::write(&file, JAVA).unwrap();
    hop.run("javac", &["-d", directory.path().to_str().unwrap(), file.to_str().unwrap()]);
    for service in hop.services {
        let options = ["-XX:TieredStopAtLevel=1", "-cp", directory.path().to_str().unwrap()];
        let (address, soon) = (service.to_string(), wait::soon().as_secs().to_string());
        assert_eq!(hop.run("java", &[&options[..], &["Peer", &address, &soon]].concat()), "done\n");
    }
}

#[test]
fn websockets_pass_whole_between_clients_and_servers_of_python_and_node() {
    let Some(stage) = Stage::set() else { return };
    let endpoint = stage.address();
    let room = Room::of(&stage.origins);
    let server = Process::spawn(room, peers::python_command(WEBSOCKET, &["serve", &endpoint.to_string()]));
    wait::until("a WebSocket server", wait::SOON, || server.stdout().contains("serving"));
    let hop = Hop::to(stage, endpoint, Service::http);
    for service in hop.services {
        let command = peers::python_command(WEBSOCKET, &["call", &service.to_string()]);
        assert_eq!(hop.run_command(command), "done\n");
    }
    let Some(packages) = peers::node_packages() else { return };
    let wscat = packages.join(".bin/wscat");
    for service in hop.services {
        let mut command = Command::new(&wscat);
        command.args(["--connect", &format!("ws://{service}/"), "--execute", "hello there", "--wait", "1"]);
        // It ends when there is nobody to type.
        command.stdin(Stdio::piped());
        assert_eq!(hop.run_command(command), "hello there\n");
    }
}

#[test]
fn curl_is_answered_in_whichever_version_it_begins_with() {
    let Some(stage) = Stage::set() else { return };
    let web = stage.web("web");
    let sniffed = |name: &str, address| Service::auto(name, address).set("upstream_protocol: http1");
    let hop = Hop::to(stage, web.address(), sniffed);
    // `--http2` asks for h2c by an Upgrade, which is declined by silence (RFC 9110 section 7.8).
    let versions = [("--http1.0", "1.1"), ("--http1.1", "1.1"), ("--http2", "1.1"), ("--http2-prior-knowledge", "2")];
    for (version, told) in versions {
        // Each in a call of its own: curl 7.88 itself fails when it uses a connection of prior knowledge again.
        for (path, more, body) in [("/", &[][..], "web"), ("/echo", &["--data-binary", "a body"], "a body")] {
            let url = format!("http://{}{path}", hop.services[0]);
            let common = [version, "--write-out", " %{http_version}", &url];
            let output = peers::curl(Room::of(&hop.stage.clients), &[&common, more].concat());
            let error = String::from_utf8_lossy(&output.stderr);
            assert_eq!(peers::stdout(&output), format!("{body} {told}"), "{version} {path}: {error}");
        }
    }
}

#[test]
fn nghttp_gets_puts_and_multiplexes() {
    let Some(stage) = Stage::set() else { return };
    let endpoint = stage.address();
    let _nghttpd = Nghttpd::start(Room::of(&stage.origins), stage.origin(), endpoint, 400_000, &[]);
    let hop = Hop::to(stage, endpoint, Service::http2);
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("body");
    fs::write(&file, pattern(400_000)).unwrap();
    for service in hop.services {
        let url = |path: &str| format!("http://{service}{path}");
        assert_eq!(hop.run("nghttp", &[&url("/bytes")]), "n".repeat(400_000));
        // The smallest windows that there are, padding, and several requests at a time.
        let many =
            ["--null-out", "--stat", "--multiply", "20", "--window-bits", "16", "--padding", "64", &url("/bytes")];
        let report = hop.run("nghttp", &many);
        assert_eq!(report.matches(" 200 ").count(), 20, "{report}");
        let trailer = ["--trailer", "x-checksum: 1", "--data", file.to_str().unwrap(), &url("/echo")];
        let mut command = Command::new("nghttp");
        command.args(trailer);
        let output = process::run(Room::of(&hop.stage.clients), command);
        assert!(output.stdout == pattern(400_000), "what was sent came back as {} bytes", output.stdout.len());
    }
}

#[test]
fn openssl_is_shown_the_certificate_of_a_name_whose_signature_it_can_check() {
    let Some(stage) = Stage::set() else { return };
    let (authority, service, origin) = (Authority::new(), stage.address(), stage.web("plain"));
    let kinds = [("ecdsa", &PKCS_ECDSA_P256_SHA256), ("ed", &PKCS_ED25519)];
    let pairs = kinds.map(|(name, kind)| authority.issue_for(name, &["web.example"], kind));
    let tls = format!("tls: {{ terminate: {{ certificates: [{}, {}] }} }}", pairs[0].yaml(), pairs[1].yaml());
    let _agent = Agent::start(&stage.config().service(Service::http("web", service).set(&tls).to(origin.address())));
    for (can, shown) in [("ECDSA+SHA256:ed25519", "CN = ecdsa"), ("ECDSA+SHA256", "CN = ecdsa"), ("ed25519", "CN = ed")]
    {
        for name in [&["-servername", "web.example"][..], &["-noservername"]] {
            let mut command = Command::new("openssl");
            command.args(["s_client", "-sigalgs", can, "-connect", &service.to_string()]).args(name);
            let output = process::run(Room::of(&stage.clients), command);
            let told = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(told.contains(&format!("subject={shown}\n")), "{can}, {name:?}: {told}");
        }
    }
}

#[test]
fn openssl_is_told_at_once_that_nothing_is_negotiated_again() {
    let Some(stage) = Stage::set() else { return };
    let listener = stage.origin().listen(stage.address()).unwrap();
    // It says nothing: what the client hears is the agent's own.
    let silent = Origin::start(listener, |mut stream, _| io::copy(&mut stream, &mut io::sink()).map(drop));
    let (authority, service) = (Authority::new(), stage.address());
    let pair = authority.issue("web", &["web.example"]);
    let tls = format!("tls: {{ terminate: {{ certificates: [{}] }} }}", pair.yaml());
    let config = stage.config().service(Service::agent_tcp("web", service).set(&tls).to(silent.address()));
    let _agent = Agent::start(&config);
    let (stdin, mut keyboard) = io::pipe().unwrap();
    let mut command = Command::new("openssl");
    command.args(["s_client", "-tls1_2", "-connect", &service.to_string()]).stdin(stdin);
    let mut client = Process::spawn(Room::of(&stage.clients), command);
    wait::until("a handshake", wait::SOON, || client.stdout().contains("Verify return code"));
    keyboard.write_all(b"R\n").unwrap();
    assert!(!client.wait(wait::SOON).success());
    assert!(client.stderr().contains("no renegotiation"), "{}", client.stderr());
}
