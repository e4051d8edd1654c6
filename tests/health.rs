//! Endpoints that do worse than they should are left out, for a while; and a restart of every endpoint, one after another, is not noticed.

use std::{
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use sockway_tests::{
    agent::Agent,
    config::Service,
    origin::Origin,
    patience,
    peers::{Nginx, Wrk},
    process::Room,
    stage::{Stage, tell},
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
    assert_eq!(agent.metric("sockway_ejections_total", &labels), 1.0);
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
