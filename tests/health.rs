//! Endpoints that do worse than they should are left out, for a while; and a restart of every endpoint, one after another, is not noticed.

use std::{
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant, SystemTime},
};

use sockway_tests::{
    agent::Agent,
    answer::read_head,
    config::Service,
    origin::Origin,
    patience,
    peers::{Nginx, Wrk, python_command},
    process::{Process, Room},
    stage::{Stage, tell},
    tls::{self, Authority},
    wait,
};

/// An HTTP endpoint that says 200, or 503 while it is ill.
struct Patient {
    origin: Origin,
    is_ill: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
}

impl Patient {
    fn new(stage: &Stage) -> Self {
        let (is_ill, asked) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let listener = stage.origin().listen(stage.address()).expect("a free address");
        let (ill, count) = (Arc::clone(&is_ill), Arc::clone(&asked));
        let origin = Origin::start(listener, move |mut stream, _| {
            for line in BufReader::new(stream).lines() {
                if line?.is_empty() {
                    count.fetch_add(1, SeqCst);
                    let status = if ill.load(SeqCst) { "503 Ill" } else { "200 OK" };
                    stream.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").as_bytes())?;
                }
            }
            Ok(())
        });
        Self { origin, is_ill, asked }
    }

    fn address(&self) -> SocketAddr {
        self.origin.address()
    }
}

fn ejected(agent: &Agent, service: &str) -> f64 {
    agent.metric("sockway_ejections_active", &[("service", service)])
}

#[test]
fn an_endpoint_that_answers_503_is_ejected_after_five_and_each_time_for_longer() {
    let Some(stage) = Stage::set() else { return };
    let patients: Vec<Patient> = (0..5).map(|_| Patient::new(&stage)).collect();
    let service = stage.address();
    let rules =
        "outlier: {max_ejection_percent: 20, base_ejection_ms: 1000, interval_ms: 50, enforcing_success_rate: 0}";
    let web = Service::http("web", service).to_all(patients.iter().map(Patient::address)).set(rules);
    let agent = Agent::start(&stage.config().service(web));
    let mut session = stage.session(service);
    let mut bad =
        |requests: usize| (0..requests).filter(|_| session.get("/").expect("an answer").status != 200).count();
    assert_eq!(bad(20), 0);

    patients[2].is_ill.store(true, SeqCst);
    let asked = patients[2].asked.load(SeqCst);
    let begun = Instant::now();
    assert_eq!(bad(100), 5, "{}", agent.log());
    assert!(begun.elapsed() < patience::deadline(Duration::from_millis(900)), "{:?}", begun.elapsed());
    assert_eq!((patients[2].asked.load(SeqCst) - asked, ejected(&agent, "web")), (5, 1.0));
    let labels = [("service", "web"), ("reason", "consecutive_5xx")];
    agent.metric_comes_to("sockway_ejections_total", &labels, 1.0);
    assert!(agent.log().contains("endpoint is ejected"));
    let status = agent.admin("/status").text();
    assert!(status.contains("\"ejected\":true") && status.contains("\"consecutive_5xx\":1"), "{status}");

    wait::until("the ejection to be over", wait::SOON, || ejected(&agent, "web") == 0.0);
    assert!(begun.elapsed() >= Duration::from_millis(1_000), "{:?}", begun.elapsed());
    // At once again, so that no interval in which it is well shortens the next.
    let begun = Instant::now();
    wait::until("it to be ejected again", wait::SOON, || bad(5) == 0 && ejected(&agent, "web") == 1.0);
    patients[2].is_ill.store(false, SeqCst);
    wait::until("that to be over", wait::SOON, || ejected(&agent, "web") == 0.0);
    assert!(begun.elapsed() >= Duration::from_millis(1_000), "{:?}", begun.elapsed());
    assert_eq!(bad(50), 0);
    assert!(agent.log().contains("ejection is over"));
}

#[test]
fn the_kernel_half_knows_who_is_ejected_and_a_probe_may_end_it() {
    let Some(stage) = Stage::set() else { return };
    let patients: Vec<Patient> = (0..2).map(|_| Patient::new(&stage)).collect();
    let (service, probed) = (stage.address(), stage.address());
    let rules = "outlier: {max_ejection_percent: 50, consecutive_5xx: 1}";
    let to_both = |service: Service| service.to_all(patients.iter().map(Patient::address)).set(rules);
    let probes = to_both(Service::http("probed", probed)).set("probe_interval_ms: 100");
    let mut agent = Agent::start(&stage.config().service(to_both(Service::http("web", service))).service(probes));
    patients[0].is_ill.store(true, SeqCst);
    let fill = |service| (0..4).for_each(|_| drop(stage.session(service).get("/")));
    fill(service);
    wait::until("the ejection", wait::SOON, || ejected(&agent, "web") == 1.0);
    fill(probed);
    wait::until("a probe to end the other", wait::SOON, || {
        agent.log().contains("a probe ends its ejection") && ejected(&agent, "probed") == 0.0
    });
    // From now on the kernel half balances alone.
    agent.sigkill();
    let accepted = patients[0].origin.accepted();
    for _ in 0..20 {
        assert_eq!(stage.session(service).get("/").expect("an answer").status, 200);
    }
    assert_eq!(patients[0].origin.accepted(), accepted);
}

/// Restarts five servers one after another under load; gives what of the load failed.
fn restart_all(rules: &str) -> Option<u64> {
    let stage = Stage::set()?;
    let (addresses, service): ([SocketAddr; 5], _) = (std::array::from_fn(|_| stage.address()), stage.address());
    let start = |address| Nginx::start(Room::of(&stage.origins), stage.origin(), address, "web");
    let mut servers = addresses.map(|address| Some(start(address)));
    let web = Service::http("web", service).to_all(addresses).set(rules);
    let agent = Agent::start(&stage.config().service(web));
    let mut wrk = Wrk::start(Room::of(&stage.clients), service, 8, Duration::from_secs(20));
    let sent = |address: SocketAddr| {
        agent.metric("sockway_endpoint_requests_total", &[("service", "web"), ("endpoint", &address.to_string())])
    };
    for (server, address) in servers.iter_mut().zip(addresses) {
        let before = sent(address);
        wait::until("it to be used", wait::SOON, || sent(address) > before + 50.0);
        drop(server.take());
        let others = || addresses.iter().map(|address| sent(*address)).sum::<f64>();
        let all = others();
        wait::until("the load to go on", wait::SOON, || others() > all + 200.0);
        *server = Some(start(address));
        let before = sent(address);
        wait::until("it to be used again", wait::SOON, || sent(address) > before + 50.0);
    }
    assert!(wrk.running(), "the load was to outlast the restarts");
    let load = wrk.report();
    let failed = load.socket_errors + load.bad_answers;
    tell(&format!("{rules}: {failed} of {} requests failed while five endpoints restarted", load.requests));
    Some(failed)
}

#[test]
fn nobody_notices_a_restart_of_every_endpoint_with_probes_only() {
    assert!(restart_all("probe_interval_ms: 100").is_none_or(|failed| failed == 0));
}

#[test]
fn hardly_anybody_notices_a_restart_of_every_endpoint_with_nothing_but_passive_ejection() {
    let rules = "outlier: {max_ejection_percent: 20, base_ejection_ms: 500, interval_ms: 100}";
    assert!(restart_all(rules).is_none_or(|failed| failed <= 5));
}

/// Whether the agent says that an endpoint is up.
fn is_up(agent: &Agent, service: &str, endpoint: SocketAddr) -> bool {
    agent.metric("sockway_endpoint_up", &[("service", service), ("endpoint", &endpoint.to_string())]) == 1.0
}

#[test]
fn a_probe_by_http_takes_an_endpoint_from_the_kernel_half_and_gives_it_back_and_a_command_is_told() {
    let Some(stage) = Stage::set() else { return };
    let patients: Vec<Patient> = (0..2).map(|_| Patient::new(&stage)).collect();
    let (service, ill) = (stage.address(), patients[0].address());
    let directory = tempfile::tempdir().expect("a directory");
    let told = directory.path().join("told");
    let hook = format!("echo $SOCKWAY_SERVICE $SOCKWAY_ENDPOINT $SOCKWAY_STATE >> {}", told.display());
    let probe = format!("probe: {{type: http, path: /up, interval_ms: 100, on_change: [/bin/sh, -c, '{hook}']}}");
    let pipe = Service::kernel_tcp("pipe", service).to_all(patients.iter().map(Patient::address)).set(&probe);
    let agent = Agent::start(&stage.config().service(pipe));
    wait::until("both to be probed", wait::SOON, || patients.iter().all(|patient| patient.asked.load(SeqCst) > 1));
    assert!(is_up(&agent, "pipe", ill));

    patients[0].is_ill.store(true, SeqCst);
    wait::until("it to be left out", wait::SOON, || !is_up(&agent, "pipe", ill));
    for _ in 0..20 {
        assert_eq!(stage.session(service).get("/").expect("an answer").status, 200);
    }
    agent.metric_reaches("sockway_probes_total", &[("result", "unfit")], 1.0);
    patients[0].is_ill.store(false, SeqCst);
    wait::until("it to be used again", wait::SOON, || is_up(&agent, "pipe", ill));
    let expected = format!("pipe {ill} down\npipe {ill} up\n");
    wait::until("the command to be run", wait::SOON, || {
        std::fs::read_to_string(&told).is_ok_and(|told| told == expected)
    });
}

#[test]
fn a_command_is_told_of_an_ejection_with_its_reason_and_of_its_end() {
    let Some(stage) = Stage::set() else { return };
    let patients: Vec<Patient> = (0..2).map(|_| Patient::new(&stage)).collect();
    let (service, ill) = (stage.address(), patients[0].address());
    let directory = tempfile::tempdir().expect("a directory");
    let told = directory.path().join("told");
    let hook = format!("echo $SOCKWAY_SERVICE $SOCKWAY_ENDPOINT $SOCKWAY_STATE $SOCKWAY_REASON >> {}", told.display());
    let rules = format!(
        "outlier: {{max_ejection_percent: 50, base_ejection_ms: 200, interval_ms: 50, on_change: [/bin/sh, -c, '{hook}']}}"
    );
    let web = Service::http("web", service).to_all(patients.iter().map(Patient::address)).set(&rules);
    let agent = Agent::start(&stage.config().service(web));
    patients[0].is_ill.store(true, SeqCst);
    let mut session = stage.session(service);
    while ejected(&agent, "web") == 0.0 {
        (0..4).for_each(|_| drop(session.get("/").expect("an answer")));
    }
    patients[0].is_ill.store(false, SeqCst);
    let expected = format!("web {ill} ejected consecutive_5xx\nweb {ill} back\n");
    wait::until("the command to be run twice", wait::SOON, || {
        std::fs::read_to_string(&told).is_ok_and(|told| told == expected)
    });
}

#[test]
fn the_kernel_half_skips_an_endpoint_as_soon_as_it_is_ejected() {
    const TURNS: usize = 15;
    let Some(stage) = Stage::set() else { return };
    let (a, b, service) = (stage.web("a"), stage.web("b"), stage.address());
    let agent =
        Agent::start(&stage.config().service(Service::kernel_tcp("pipe", service).to_all([a.address(), b.address()])));
    let path = format!("/v1/services/pipe/endpoints/{}/eject", a.address());
    let connect = || {
        let before = a.connections();
        assert_eq!(stage.session(service).get("/").expect("an answer").status, 200);
        a.connections() > before
    };
    let mut took: Vec<Duration> = (0..TURNS)
        .map(|_| {
            wait::until("it to be used", wait::SOON, connect);
            std::thread::scope(|scope| {
                let begun = Instant::now();
                let asked = scope.spawn(|| agent.ask("POST", &path, r#"{"for_ms": 3600000}"#).status);
                // As long as anything goes there; who takes turns is back after one other.
                let (mut last, mut others) = (begun, 0);
                while !asked.is_finished() || others < 4 {
                    let began = Instant::now();
                    (last, others) = if connect() { (began, 0) } else { (last, others + 1) };
                }
                assert_eq!(asked.join().expect("no panic"), 200);
                assert_eq!(agent.ask("DELETE", &path, "").status, 200);
                last - begun
            })
        })
        .collect();
    took.sort();
    tell(&format!("from an ejection's request to the last connect that still went there: {took:?}"));
    // The quickest, since what else runs here is none of the agent's doing.
    assert!(took[0] <= Duration::from_millis(20), "{took:?}");
}

/// From the failed probe to the last connect that still goes there, 20 ms of the agent's: of eight services the quickest.
#[test]
fn the_kernel_half_skips_an_endpoint_as_soon_as_its_probe_has_failed() {
    let Some(stage) = Stage::set() else { return };
    let (good, directory) = (stage.web("good"), tempfile::tempdir().expect("a directory"));
    let fields: Vec<_> = (0..8)
        .map(|index| {
            let file = |what: &str| directory.path().join(format!("{what}-{index}"));
            (format!("s{index}"), stage.address(), stage.web("ill"), file("well"), file("failed"))
        })
        .collect();
    let config = fields.iter().fold(stage.config(), |config, (name, service, ill, well, failed)| {
        std::fs::write(well, "").expect("writable");
        // Only this endpoint's file is ever missing, and who finds that says when.
        let (well, failed, port) = (well.display(), failed.display(), ill.address().port());
        let command = format!(
            "case $SOCKWAY_ENDPOINT in *:{port}) test -e {well} && exit 0; test -e {failed} || date +%s%N > {failed}; exit 1;; esac"
        );
        let probe =
            format!("probe: {{type: command, interval_ms: 100, fall: 1, command: [/bin/sh, -c, '{command}']}}");
        config.service(Service::kernel_tcp(name, *service).to_all([ill.address(), good.address()]).set(&probe))
    });
    let _agent = Agent::start(&config);
    let mut spans: Vec<Duration> = Vec::new();
    for (_, service, ill, well, failed) in &fields {
        let connect = || {
            let (began, before) = (SystemTime::now(), ill.connections());
            assert_eq!(stage.session(*service).get("/").expect("an answer").status, 200);
            (ill.connections() > before).then_some(began)
        };
        wait::until("it to be used", wait::SOON, || connect().is_some());
        std::fs::remove_file(well).expect("removable");
        // Who takes turns is back after one other.
        let (mut last, mut others) = (SystemTime::now(), 0);
        wait::until("it to be used no more", wait::SOON, || {
            (last, others) = connect().map_or((last, others + 1), |began| (began, 0));
            others > 4
        });
        let said = std::fs::read_to_string(failed).expect("the time at which its probe failed");
        let failed = SystemTime::UNIX_EPOCH + Duration::from_nanos(said.trim().parse().expect("a time"));
        spans.push(last.duration_since(failed).unwrap_or_default());
    }
    spans.sort_unstable();
    tell(&format!("from a failed probe to the last connect that still went there: {spans:?}"));
    assert!(spans[0] <= Duration::from_millis(20), "{spans:?}");
}

#[test]
fn a_probe_speaks_tls_says_its_fields_and_keeps_its_connection_unless_told_not_to() {
    let Some(stage) = Stage::set() else { return };
    let authority = Authority::new();
    let pair = authority.issue("s", &["s.example"]);
    let origins = [(); 2].map(|()| {
        let (asked, listener) = (Arc::<AtomicUsize>::default(), stage.origin().listen(stage.address()).unwrap());
        let count = Arc::clone(&asked);
        let origin = tls::origin(listener, &pair, None, move |server, _| {
            let mut reader = BufReader::new(server);
            while let Some(head) = read_head(&mut reader)? {
                let said = (head.word(1), head.get("host"), head.get("x-probe"));
                let status = if said == ("/up", Some("a.example"), Some("yes")) { "204 Good" } else { "200 What" };
                count.fetch_add(1, SeqCst);
                let answer = format!("HTTP/1.1 {status}\r\n\r\n").replace("What\r\n", "What\r\nContent-Length: 0\r\n");
                reader.get_mut().write_all(answer.as_bytes())?;
                if !head.keeps_alive() {
                    break;
                }
            }
            Ok(())
        });
        (origin, asked)
    });
    let roots = authority.root();
    let service = |name: &str, keys: &str, origin: &Origin| {
        let probe = format!(
            "probe: {{type: http, path: /up, host: a.example, headers: {{X-Probe: 'yes'}}, expect: [204], interval_ms: 50, \
             no_traffic_interval_ms: 50, fall: 1 {keys}}}"
        );
        let tls = format!("tls: {{originate: {{roots: {}, server_name: s.example}}}}", roots.display());
        Service::http(name, stage.address()).to(origin.address()).set(&tls).set(&probe)
    };
    let [(kept, kept_asked), (anew, anew_asked)] = &origins;
    let services = [service("kept", "", kept), service("anew", ", reuse_connection: off", anew)];
    let agent = Agent::start(&stage.config().with_services(services));
    wait::until("both to be probed", wait::SOON, || {
        [kept_asked, anew_asked].iter().all(|asked| asked.load(SeqCst) >= 5)
    });
    assert!(is_up(&agent, "kept", kept.address()) && is_up(&agent, "anew", anew.address()), "{}", agent.log());
    assert_eq!(agent.metric("sockway_probes_total", &[("result", "unfit")]), 0.0);
    assert_eq!((kept.accepted(), anew.accepted() >= 5), (1, true));
}

#[test]
fn a_command_says_how_an_endpoint_does() {
    let Some(stage) = Stage::set() else { return };
    let (only, service) = (stage.echo("only"), stage.address());
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("well");
    let probe = format!(
        "probe: {{type: command, command: [/usr/bin/test, -e, {}], interval_ms: 100, fall: 2, rise: 1}}",
        file.display()
    );
    let agent =
        Agent::start(&stage.config().service(Service::kernel_tcp("pipe", service).to(only.address()).set(&probe)));
    wait::until("it to be found ill", wait::SOON, || !is_up(&agent, "pipe", only.address()));
    std::fs::write(&file, "").expect("writable");
    wait::until("it to be found well", wait::SOON, || is_up(&agent, "pipe", only.address()));
}

/// A server of grpcio that answers `Health/Check` of "ready" as the file says: SERVING while it is there.
const GRPC_HEALTH: &str = r#"
import os, sys, grpc
from concurrent import futures
def check(request, context):
    if request != b"\x0a\x05ready":
        context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
    return b"\x08\x01" if os.path.exists(sys.argv[2]) else b"\x08\x02"
handler = grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": grpc.unary_unary_rpc_method_handler(check)})
server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[handler])
server.add_insecure_port(sys.argv[1])
server.start()
server.wait_for_termination()
"#;

#[test]
fn a_probe_by_grpc_asks_a_server_of_grpcio_for_its_health() {
    let Some(stage) = Stage::set() else { return };
    let (address, unknown, service) = (stage.address(), stage.address(), stage.address());
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("serving");
    std::fs::write(&file, "").expect("writable");
    let command = python_command(GRPC_HEALTH, &[&address.to_string(), &file.display().to_string()]);
    let _server = Process::spawn(Room::of(&stage.origins), command);
    wait::until("the server to listen", wait::SOON, || stage.dial(address).is_ok());
    let probed = |name, service, asked| {
        let probe =
            format!("probe: {{type: grpc, grpc_service: {asked}, interval_ms: 100, no_traffic_interval_ms: 100}}");
        Service::http2(name, service).to(address).set(&probe)
    };
    let config = stage.config().service(probed("ready", service, "ready")).service(probed("unknown", unknown, "other"));
    let agent = Agent::start(&config);
    wait::until("what is unknown to be down", wait::SOON, || !is_up(&agent, "unknown", address));
    assert!(is_up(&agent, "ready", address), "{}", agent.log());
    std::fs::remove_file(&file).expect("removable");
    wait::until("what serves no more to be down", wait::SOON, || !is_up(&agent, "ready", address));
    std::fs::write(&file, "").expect("writable");
    wait::until("what serves again to be up", wait::SOON, || is_up(&agent, "ready", address));
}
