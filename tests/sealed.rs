//! Endpoints that speak HTTP/2 within TLS and nothing else: strategies, copies and questions reach them, and so do probes.

use std::{fs, net::SocketAddr, path::PathBuf, process::Command};

use sockway_tests::{
    agent::Agent,
    config::Service,
    filtered::{body, field, status},
    peers::{self, python_command},
    process::{Process, Room},
    stage::Stage,
    tls::{Authority, Pair},
    translation::HTTP2,
    wait,
};
use tempfile::TempDir;

const NAMES: [&str; 3] = ["good", "busy", "mute"];

/// nginx: an endpoint that answers, one that is busy (503), and one that resets what it is asked.
struct Sealed {
    addresses: [SocketAddr; 3],
    directory: TempDir,
    _process: Process,
    authority: Authority,
    stage: Stage,
}

impl Sealed {
    fn set() -> Option<Self> {
        let (stage, authority) = (Stage::set()?, Authority::new());
        let (addresses, directory) =
            ([(); 3].map(|()| stage.address()), TempDir::new().expect("a temporary directory"));
        let Pair { cert, key } = authority.issue("s", &["s.example"]);
        let path = directory.path().to_string_lossy().into_owned();
        let temporary =
            ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|what| format!("{what}_temp_path {path}/{what};"));
        let says = ["return 200 good", "return 503 busy", "return 444"];
        let server = |((address, name), says): ((&SocketAddr, &str), &str)| {
            let (cert, key) = (cert.display(), key.display());
            format!(
                "server {{ listen {address} ssl http2; ssl_certificate {cert}; ssl_certificate_key {key};
                 access_log {path}/{name}.log told; location / {{ {says}; }} }} "
            )
        };
        let servers: String = addresses.iter().zip(NAMES).zip(says).map(server).collect();
        let config = format!(
            "daemon off; master_process off; pid {path}/nginx.pid; events {{}}
             http {{ log_format told '$request_method $uri $server_protocol $host'; {} {servers} }}",
            temporary.join(" ")
        );
        fs::write(directory.path().join("nginx.conf"), config).expect("nginx's configuration");
        let mut command = Command::new("nginx");
        command.arg("-p").arg(directory.path()).arg("-c").arg(directory.path().join("nginx.conf"));
        command.arg("-e").arg(directory.path().join("error.log"));
        let process = Process::spawn(Room::of(&stage.origins), command);
        wait::until("nginx to listen", wait::SOON, || addresses.iter().all(|it| stage.origin().dial(*it).is_ok()));
        Some(Self { addresses, directory, _process: process, authority, stage })
    }

    fn originate(&self) -> String {
        format!("tls: {{ originate: {{ roots: {}, server_name: s.example }} }}", self.authority.root().display())
    }

    /// For clients of HTTP/1 and of HTTP/2, to endpoints of these names.
    fn services(&self, name: &str, keys: &[&str], endpoints: &[&str]) -> [(Service, SocketAddr); 2] {
        let addresses = [self.stage.address(), self.stage.address()];
        let with = |service: Service| {
            let service = keys.iter().fold(service.set(&self.originate()), |service, key| service.set(key));
            let of = |name: &&str| (self.address(name), format!("labels: {{ name: {name} }}"));
            endpoints.iter().map(of).fold(service, |service, (address, keys)| service.to_with(address, &keys))
        };
        let one = with(Service::http(name, addresses[0]).set("upstream_protocol: http2"));
        let two = with(Service::http2(&format!("{name}-h2"), addresses[1]));
        [(one, addresses[0]), (two, addresses[1])]
    }

    fn address(&self, name: &str) -> SocketAddr {
        self.addresses[NAMES.iter().position(|it| *it == name).expect("one of them")]
    }

    /// What an endpoint was asked so far.
    fn asked(&self, name: &str) -> Vec<String> {
        let file: PathBuf = self.directory.path().join(format!("{name}.log"));
        fs::read_to_string(file).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    #[track_caller]
    fn curl(&self, service: SocketAddr, arguments: &[&str]) -> String {
        let url = format!("http://{service}/x");
        let output = peers::curl(Room::of(&self.stage.clients), &[&["--include", &url], arguments].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        peers::stdout(&output).to_lowercase()
    }
}

/// What was said: status, body, and whose word that is.
fn said(answer: &str) -> (&str, &str, Option<&str>) {
    (status(answer), body(answer), field(answer, "x-sockway-cluster"))
}

#[test]
fn every_strategy_asks_them_as_it_asks_others() {
    let Some(sealed) = Sealed::set() else { return };
    let put: &[&str] = &["-X", "PUT", "--data", "some body"];
    let all: &[&str] = &["good", "busy", "mute"];
    type Case<'c> = (&'c str, &'c [&'c str], &'c [&'c str], (&'c str, &'c str, Option<&'c str>), &'c [&'c str]);
    // The rule, the endpoints, how they are asked, what is said, and who must have been asked in the end.
    let cases: &[Case<'_>] = &[
        ("cluster: failover", all, &[], ("200", "good", None), all),
        ("cluster: failover", all, put, ("200", "good", None), all),
        ("cluster: { strategy: failover, non_idempotent: on }", all, &["--data", "x"], ("200", "good", None), all),
        ("retry: { attempts: 2, on: [5xx, reset] }", all, &[], ("200", "good", None), all),
        ("cluster: failfast", &["busy"], &[], ("503", "busy", None), &["busy"]),
        ("cluster: failsafe", &["busy"], put, ("200", "", Some("failsafe")), &["busy"]),
        ("cluster: failsafe", &["mute"], &[], ("200", "", Some("failsafe")), &["mute"]),
        ("cluster: { strategy: failback, interval_ms: 100 }", &["busy"], put, ("202", "", Some("failback")), &["busy"]),
        ("cluster: { strategy: forking, forks: 3 }", all, &[], ("200", "good", None), all),
        ("cluster: { strategy: broadcast, aggregate: any }", all, put, ("200", "good", None), all),
        ("cluster: { strategy: broadcast, aggregate: all }", &["good", "busy"], put, ("503", "busy", None), &["good"]),
        ("cluster: { strategy: multicast, subset: { name: good } }", all, &["--data", "x"], ("200", "good", None), &[]),
        ("routes: [{ one_way: on }]", &["good"], put, ("202", "", Some("one_way")), &["good"]),
    ];
    let services: Vec<_> = cases
        .iter()
        .enumerate()
        .map(|(number, (rule, endpoints, ..))| sealed.services(&format!("case{number}"), &[rule], endpoints))
        .collect();
    let all_services = services.iter().flatten().map(|(service, _)| service.clone());
    let _agent = Agent::start(&sealed.stage.config().set("workers: 1").with_services(all_services));
    for ((rule, _, arguments, expected, asked), services) in cases.iter().zip(&services) {
        for ((_, service), http) in services.iter().zip([&[][..], &[HTTP2]]) {
            let before = NAMES.map(|name| sealed.asked(name).len());
            for _ in 0..3 {
                let answer = sealed.curl(*service, &[http, arguments].concat());
                assert_eq!(said(&answer), *expected, "{rule} {http:?}: {answer}");
            }
            for (name, before) in NAMES.iter().zip(before).filter(|(name, _)| asked.contains(name)) {
                // What a stream that is reset was about is not written down.
                let is_asked = || *name == "mute" || sealed.asked(name).len() > before;
                wait::until(&format!("{name} to be asked: {rule} {http:?}"), wait::SOON, is_asked);
            }
        }
    }
    // What failed is sent again, in the end.
    wait::until("busy to be asked by who waits", wait::SOON, || sealed.asked("busy").len() > 40);
    for name in NAMES {
        let asked = sealed.asked(name);
        assert!(asked.iter().all(|line| line.contains(" /x HTTP/2.0 ")), "{name}: {asked:?}");
    }
}

#[test]
fn copies_and_questions_of_filters_reach_them() {
    let Some(sealed) = Sealed::set() else { return };
    let web = sealed.stage.web("own");
    let targets = [sealed.services("sealed", &[], &["good"]), sealed.services("no", &[], &["busy"])];
    let [copied, let_in, kept_out] = [(); 3].map(|()| sealed.stage.address());
    let config = sealed
        .stage
        .config()
        .with_services(targets.into_iter().flatten().map(|(service, _)| service))
        .service(Service::http("copied", copied).set("routes: [{ mirror: { to: sealed } }]").to(web.address()))
        .service(Service::http("in", let_in).set("filters: [{ kind: external_auth, to: sealed }]").to(web.address()))
        .service(Service::http("out", kept_out).set("filters: [{ kind: external_auth, to: 'no' }]").to(web.address()));
    let _agent = Agent::start(&config);
    assert_eq!(status(&sealed.curl(copied, &["--data", "x"])), "404", "{:?}", web.last());
    wait::until("the copy", wait::SOON, || !sealed.asked("good").is_empty());
    let copy = sealed.asked("good").remove(0);
    assert!(copy.starts_with("POST /x HTTP/2.0 ") && copy.ends_with("-shadow"), "{copy}");
    assert_eq!(field(&sealed.curl(let_in, &[]), "x-origin"), Some("own"));
    assert_eq!(field(&sealed.curl(kept_out, &[]), "x-origin"), None);
    assert!(sealed.asked("busy")[0].contains(" HTTP/2.0 "), "{:?}", sealed.asked("busy"));
}

/// A server of grpcio under TLS, whose `Health/Check` says SERVING while the file is there.
const GRPC_HEALTH: &str = r#"
import os, sys, grpc
from concurrent import futures
def check(request, context):
    return b"\x08\x01" if os.path.exists(sys.argv[2]) else b"\x08\x02"
handler = grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": grpc.unary_unary_rpc_method_handler(check)})
server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[handler])
read = lambda path: open(path, "rb").read()
server.add_secure_port(sys.argv[1], grpc.ssl_server_credentials([(read(sys.argv[4]), read(sys.argv[3]))]))
server.start()
server.wait_for_termination()
"#;

#[test]
fn probes_ask_them_in_http2_and_in_grpc() {
    let Some(sealed) = Sealed::set() else { return };
    let stage = &sealed.stage;
    let (rpc, serving) = (stage.address(), sealed.directory.path().join("serving"));
    fs::write(&serving, "").expect("writable");
    let Pair { cert, key } = sealed.authority.issue("rpc", &["s.example"]);
    let files = [&serving, &cert, &key].map(|file| file.display().to_string());
    let command = python_command(GRPC_HEALTH, &[&rpc.to_string(), &files[0], &files[1], &files[2]]);
    let _server = Process::spawn(Room::of(&stage.origins), command);
    wait::until("the server to listen", wait::SOON, || stage.origin().dial(rpc).is_ok());
    let probe =
        |what: &str| format!("probe: {{ {what}, interval_ms: 50, no_traffic_interval_ms: 50, fall: 1, rise: 1 }}");
    let by_grpc = probe("type: grpc");
    let service = |service: Service, probe: &str, to: SocketAddr| service.set(&sealed.originate()).set(probe).to(to);
    let mut config = stage.config().service(service(Service::http2("rpc", stage.address()), &by_grpc, rpc));
    let by_http = probe("type: http, path: /up");
    for name in NAMES {
        let one = Service::http(&format!("{name}1"), stage.address()).set("upstream_protocol: http2");
        let two = Service::http2(&format!("{name}2"), stage.address());
        for one in [one, two] {
            config = config.service(service(one, &by_http, sealed.address(name)));
        }
    }
    // Whom nobody vouches for is not well, whatever he would answer.
    let stranger = Authority::new();
    let trusts = format!("tls: {{ originate: {{ roots: {}, server_name: s.example }} }}", stranger.root().display());
    let strange = Service::http2("strange", stage.address()).set(&trusts).set(&by_http).to(sealed.address("good"));
    let agent = Agent::start(&config.service(strange));
    let is_up = |service: &str, endpoint: SocketAddr| {
        agent.metric("sockway_endpoint_up", &[("service", service), ("endpoint", &endpoint.to_string())]) == 1.0
    };
    for name in ["busy1", "busy2", "mute1", "mute2"] {
        wait::until(&format!("{name} to be down"), wait::SOON, || !is_up(name, sealed.address(&name[..4])));
    }
    wait::until("a stranger to be down", wait::SOON, || !is_up("strange", sealed.address("good")));
    wait::until("the good one to be probed", wait::SOON, || sealed.asked("good").len() > 10);
    assert!(["good1", "good2"].iter().all(|name| is_up(name, sealed.address("good"))), "{}", agent.log());
    assert!(
        sealed.asked("good").iter().all(|line| line.starts_with("GET /up HTTP/2.0 ")),
        "{:?}",
        sealed.asked("good")
    );
    assert!(is_up("rpc", rpc), "{}", agent.log());
    fs::remove_file(&serving).expect("removable");
    wait::until("what serves no more to be down", wait::SOON, || !is_up("rpc", rpc));
    fs::write(&serving, "").expect("writable");
    wait::until("what serves again to be up", wait::SOON, || is_up("rpc", rpc));
}
