//! Cluster strategies: what callers of HTTP/1 and HTTP/2 are told, and what endpoints are asked, when some of them fail.

use std::{
    io::{BufReader, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use sockway_tests::{
    agent::{Agent, sockway},
    answer::{read_body, read_head},
    config::Service,
    origin::Origin,
    peers::Nghttpd,
    process::Room,
    stage::Stage,
    translation::HTTP2,
    twice::{BOTH, Said, Twice, curl},
    wait,
    web::{Web, pattern},
};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood";
const BUSY: &str = "HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy";
const BROKEN: &str = "HTTP/1.1 500 Broken\r\nContent-Length: 6\r\n\r\nbroken";
/// Ends the connection instead.
const MUTE: &str = "";

/// First lines and bodies.
type Requests = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

/// An endpoint that says the same to every request, and keeps them.
struct Told {
    origin: Origin,
    requests: Requests,
}

impl Told {
    fn to_say(stage: &Stage, answer: &'static str) -> Self {
        Self::to_say_after(stage, answer, Duration::ZERO)
    }

    fn to_say_after(stage: &Stage, answer: &'static str, after: Duration) -> Self {
        let requests = Requests::default();
        let kept = Arc::clone(&requests);
        let listener = stage.origin().listen(stage.address()).expect("a free address");
        let origin = Origin::start(listener, move |mut stream: &TcpStream, _| {
            let mut reader = BufReader::new(stream);
            while let Some(head) = read_head(&mut reader)? {
                let body = read_body(&mut reader, &head, false)?;
                kept.lock().expect("no thread panics with it").push((head.first, body));
                thread::sleep(after);
                if answer == MUTE {
                    break;
                }
                stream.write_all(answer.as_bytes())?;
            }
            Ok(())
        });
        Self { origin, requests }
    }

    fn address(&self) -> SocketAddr {
        self.origin.address()
    }

    fn requests(&self) -> usize {
        self.requests.lock().expect("no thread panics with it").len()
    }
}

/// The same service twice, by this strategy.
#[track_caller]
fn set(stage: Stage, strategy: &str, endpoints: &[SocketAddr]) -> Twice {
    set_with(stage, &[strategy], |service| service.to_all(endpoints.iter().copied()))
}

#[track_caller]
fn set_with(stage: Stage, keys: &[&str], with: impl Fn(Service) -> Service) -> Twice {
    let with = |service: Service| with(keys.iter().fold(service, |service, key| service.set(key)));
    // One worker: what takes turns does so for all requests.
    Twice::set(stage, &["workers: 1"], with, Vec::new())
}

fn efforts(field: &Twice, effort: &str) -> f64 {
    field.sum("sockway_cluster_efforts_total", ("effort", effort))
}

fn outcomes(field: &Twice, outcome: &str) -> f64 {
    field.agent.metric("sockway_requests_total", &[("outcome", outcome)])
}

#[test]
fn failover_asks_another_endpoint_for_what_may_be_repeated() {
    let Some(stage) = Stage::set() else { return };
    let (busy, mute, web) = (Told::to_say(&stage, BUSY), Told::to_say(&stage, MUTE), stage.web("good"));
    let endpoints = [busy.address(), mute.address(), web.address()];
    let field = set(stage, "cluster: failover", &endpoints);
    for http in BOTH {
        for _ in 0..6 {
            let said = field.curl("/", http);
            assert_eq!((said.status, &*said.body), (200, &b"good"[..]), "{said:?}");
        }
        let said = field.curl("/echo", &[http, &["-X", "PUT", "--data", "some body"]].concat());
        assert_eq!((said.status, &*said.body), (200, &b"some body"[..]), "{said:?}");
    }
    assert!(busy.requests() > 0 && mute.requests() > 0);
    assert_eq!(efforts(&field, "retried"), (busy.requests() + mute.requests()) as f64);
    // What has an effect each time is asked of one, and its answer is given.
    let (before, good) = (busy.requests() + mute.requests(), web.requests());
    let statuses: Vec<u16> =
        (0..6).map(|turn| field.curl("/echo", &[BOTH[turn % 2], &["--data", "x"]].concat()).status).collect();
    let failed = statuses.iter().filter(|status| **status != 200).count();
    assert_eq!(
        (busy.requests() + mute.requests() - before, web.requests() - good),
        (failed, 6 - failed),
        "{statuses:?}"
    );
    assert!(failed > 0 && statuses.iter().all(|status| [200, 502, 503].contains(status)), "{statuses:?}");
}

#[test]
fn failover_repeats_the_whole_body_where_it_is_told_to() {
    let Some(stage) = Stage::set() else { return };
    let (busy, web) = (Told::to_say(&stage, BUSY), stage.web("good"));
    let endpoints = [busy.address(), web.address()];
    let field = set(stage, "cluster: { strategy: failover, non_idempotent: on }", &endpoints);
    let body = pattern(60_000);
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), &body).expect("a body");
    let data = format!("@{}", file.path().display());
    for http in BOTH {
        let unknown = if http.is_empty() { "Transfer-Encoding: chunked" } else { "Content-Length:" };
        for more in [&[][..], &["-H", unknown], &["-H", "Expect: 100-continue"]] {
            for _ in 0..2 {
                let said = field.curl("/echo-chunked", &[http, more, &["--data-binary", &data]].concat());
                assert!(said.status == 200 && said.body == body, "{} {} {more:?}", said.text, said.body.len());
            }
        }
    }
    let asked = busy.requests.lock().unwrap();
    assert!(asked.len() >= 3 && asked.iter().all(|(_, found)| *found == body), "{}", asked.len());
}

#[test]
fn what_is_too_long_to_be_kept_goes_its_way_once() {
    let Some(stage) = Stage::set() else { return };
    let web = stage.web("good");
    let field = set(stage, "cluster: failover", &[web.address()]);
    let body = pattern(300_000);
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), &body).expect("a body");
    let data = format!("@{}", file.path().display());
    for http in BOTH {
        // Of unknown length.
        let unknown = if http.is_empty() { "Transfer-Encoding: chunked" } else { "Content-Length:" };
        for more in [&[][..], &["-H", unknown]] {
            let said = field.curl("/echo", &[http, more, &["-X", "PUT", "--data-binary", &data]].concat());
            assert!(said.status == 200 && said.body == body, "{} {} {more:?}", said.text, said.body.len());
        }
        let said = field.curl("/bytes/3000000", http);
        assert!(said.body == pattern(3_000_000) && said.status == 200, "{}", said.text);
        assert_eq!(field.curl("/status/204", http).status, 204);
        assert!(field.curl("/bytes/70", &[http, &["--head"]].concat()).body.is_empty());
    }
}

#[test]
fn failover_goes_on_to_endpoints_of_http2() {
    let Some(stage) = Stage::set() else { return };
    let (nobody, home, older, newer) = (stage.address(), stage.address(), stage.address(), stage.address());
    let _home = Nghttpd::start(Room::of(&stage.origins), stage.origin(), home, 3, &[]);
    let keys = |service: Service| service.set("cluster: failover").to(nobody).to(home);
    let config = stage
        .config()
        .service(keys(Service::http("older", older).set("upstream_protocol: http2")))
        .service(keys(Service::http2("newer", newer)));
    let agent = Agent::start(&config);
    for (service, http) in [(older, &[][..]), (newer, &[HTTP2])] {
        for method in ["GET", "POST"] {
            let said = curl(&stage, service, "/bytes", &[http, &["-X", method]].concat());
            assert_eq!(said.status, 200, "{said:?}");
            assert!(method == "POST" || said.body == b"nnn", "{said:?}");
        }
    }
    let retried = agent.metric("sockway_cluster_efforts_total", &[("effort", "retried"), ("service", "older")]);
    assert!(retried >= 1.0, "{retried}");
}

#[test]
fn failfast_asks_once() {
    let Some(stage) = Stage::set() else { return };
    let (mute, web) = (Told::to_say(&stage, MUTE), stage.web("good"));
    let endpoints = [mute.address(), web.address()];
    let field = set(stage, "cluster: failfast", &endpoints);
    for http in BOTH {
        let (asked, good) = (mute.requests(), web.requests());
        let statuses: Vec<u16> = (0..6).map(|_| field.curl("/", http).status).collect();
        let count = |status| statuses.iter().filter(|found| **found == status).count();
        assert_eq!((count(502), count(200)), (mute.requests() - asked, web.requests() - good), "{statuses:?}");
        assert_eq!((count(502), count(200)), (3, 3), "{statuses:?}");
    }
}

#[test]
fn failsafe_says_that_it_went_well_and_tells_whose_word_that_is() {
    let Some(stage) = Stage::set() else { return };
    let endpoints = [MUTE, BROKEN, OK].map(|answer| Told::to_say(&stage, answer));
    let addresses = endpoints.each_ref().map(Told::address);
    let field = set(stage, "cluster: failsafe", &addresses);
    for http in BOTH {
        let said: Vec<Said> = (0..6).map(|_| field.curl("/", &[http, &["--data", "x"]].concat())).collect();
        assert!(said.iter().all(|said| said.status == 200), "{said:?}");
        let ours = said.iter().filter(|said| said.text.contains("x-sockway-cluster: failsafe"));
        assert_eq!(ours.inspect(|said| assert!(said.body.is_empty(), "{said:?}")).count(), 4);
        assert_eq!(said.iter().filter(|said| said.body == b"good").count(), 2);
    }
    assert_eq!((efforts(&field, "absorbed"), outcomes(&field, "failsafe")), (8.0, 8.0));
    let grpc = ["-H", "content-type: application/grpc", "-H", "te: trailers", "--data-binary", "@/dev/null", HTTP2];
    let said: Vec<Said> = (0..3).map(|_| field.curl("/a.B/C", &grpc)).collect();
    let empty = said.iter().filter(|said| said.body.starts_with(&[0; 5]) && said.text.contains("application/grpc"));
    assert_eq!(empty.count(), 2, "{said:?}");
}

#[test]
fn forking_takes_the_first_good_answer_and_gives_the_others_up() {
    let Some(stage) = Stage::set() else { return };
    let slow = Told::to_say_after(&stage, OK, Duration::from_secs(3));
    let (broken, web) = (Told::to_say(&stage, BROKEN), stage.web("good"));
    let endpoints = [slow.address(), broken.address(), web.address()];
    let field = set(stage, "cluster: { strategy: forking, forks: 3 }", &endpoints);
    for http in BOTH {
        let began = Instant::now();
        let said = field.curl("/", http);
        assert_eq!((said.status, &*said.body), (200, &b"good"[..]), "{said:?}");
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }
    wait::until("all to be asked twice", wait::SOON, || (slow.requests(), broken.requests()) == (2, 2));
    wait::until("the slow one's connections to be ended", wait::SOON, || slow.origin.open() == 0);
    assert_eq!((web.requests(), efforts(&field, "copied")), (2, 4.0));
    // A POST goes to one of them.
    field.curl("/", &["--data", "x", "--max-time", "10"]);
    assert_eq!(slow.requests() + broken.requests() + web.requests(), 7);
}

#[test]
fn a_broadcast_reaches_all_and_comes_to_what_its_rule_says() {
    for (aggregate, bad, expected) in
        [("all", 0, 200), ("all", 1, 500), ("any", 2, 200), ("any", 3, 500), ("quorum", 1, 200), ("quorum", 2, 500)]
    {
        let Some(stage) = Stage::set() else { return };
        let answers = (0..3).map(|index| if index < bad { BROKEN } else { OK });
        let endpoints: Vec<Told> = answers.map(|answer| Told::to_say(&stage, answer)).collect();
        let addresses: Vec<SocketAddr> = endpoints.iter().map(Told::address).collect();
        let field = set(stage, &format!("cluster: {{ strategy: broadcast, aggregate: {aggregate} }}"), &addresses);
        for (turn, http) in BOTH.into_iter().enumerate() {
            let said = field.curl("/purge", &[http, &["--data", "key=1"]].concat());
            let body: &[u8] = if expected == 200 { b"good" } else { b"broken" };
            assert_eq!((said.status, &*said.body), (expected, body), "{aggregate} {bad}");
            wait::until("all to be asked", wait::SOON, || endpoints.iter().all(|it| it.requests() == turn + 1));
        }
        for endpoint in &endpoints {
            let asked = endpoint.requests.lock().unwrap();
            assert!(asked.iter().all(|it| *it == ("POST /purge HTTP/1.1".to_owned(), b"key=1".to_vec())), "{asked:?}");
        }
    }
}

#[test]
fn a_broadcast_goes_on_when_the_caller_has_its_answer_or_is_gone() {
    let Some(stage) = Stage::set() else { return };
    let slow = Told::to_say_after(&stage, BROKEN, Duration::from_secs(1));
    let (quick, dead) = (Told::to_say(&stage, OK), stage.address());
    let endpoints = [slow.address(), quick.address()];
    let strategy = "cluster: { strategy: broadcast, aggregate: first }";
    let field = set(stage, strategy, &endpoints);
    for http in BOTH {
        assert_eq!(field.curl("/", http).status, 200);
    }
    wait::until("the slow one to be asked", wait::SOON, || slow.requests() == 2);
    let connections = slow.origin.accepted();
    assert_eq!(field.curl("/x", &["-X", "PUT", "--data", "x"]).status, 200);
    wait::until("the slow one to be asked again", wait::SOON, || slow.requests() == 3);
    // Each answer was read to its end, although nobody wanted it: its connection is used again, or another was needed meanwhile.
    assert!(slow.origin.accepted() <= connections + 1);
    let long = "x".repeat(70_000);
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), long).expect("a body");
    let data = format!("@{}", file.path().display());
    for http in BOTH {
        let said = field.curl("/", &[http, &["--data-binary", &data]].concat());
        assert_eq!(said.status, 413, "{said:?}");
    }
    let stage = field.stage;
    drop(field.agent);
    let field = set(stage, "cluster: broadcast", &[quick.address(), dead]);
    for http in BOTH {
        assert_eq!(field.curl("/", http).status, 503, "not everybody got it");
    }
}

#[test]
fn a_multicast_is_for_those_with_the_labels() {
    let Some(stage) = Stage::set() else { return };
    let webs = ["one", "two", "three"].map(|name| stage.web(name));
    let with = |service: Service| {
        let service = service.to_with(webs[0].address(), "labels: { group: a }");
        service.to_with(webs[1].address(), "labels: { group: a }").to_with(webs[2].address(), "labels: { group: b }")
    };
    let field = set_with(stage, &["cluster: { strategy: multicast, subset: { group: a } }"], with);
    for http in BOTH {
        assert_eq!(field.curl("/", http).status, 200);
    }
    wait::until("both to be asked", wait::SOON, || webs[..2].iter().all(|web| web.requests() == 2));
    assert_eq!(webs[2].requests(), 0);
    let (stage, agent) = (field.stage, field.agent);
    drop(agent);
    // A broadcast by way of a route that leads to a subset.
    let routes = "routes: [{ match: { path: { prefix: /b } }, subset: { group: b }, rewrite: { prefix: / } }]";
    let field = set_with(stage, &["cluster: broadcast", routes], with);
    for http in BOTH {
        assert_eq!((field.curl("/b/", http).status, field.curl("/", http).status), (200, 200));
    }
    wait::until("those that are meant to be asked", wait::SOON, || webs.each_ref().map(Web::requests) == [4, 4, 4]);
}

#[test]
fn failback_sends_what_failed_again_later() {
    let Some(stage) = Stage::set() else { return };
    let endpoint = stage.address();
    let strategy = "cluster: { strategy: failback, interval_ms: 400, retries: 100, tasks: 2 }";
    let field = set(stage, strategy, &[endpoint]);
    for http in BOTH {
        let said = field.curl("/echo", &[http, &["-X", "PUT", "--data", "note"]].concat());
        assert_eq!((said.status, said.body.len()), (202, 0), "{said:?}");
        assert!(said.text.contains("x-sockway-cluster: failback"), "{}", said.text);
        assert_eq!(field.curl("/echo", &[http, &["--data", "note"]].concat()).status, 503, "a POST is not sent again");
    }
    let waiting = || {
        let of = |service| field.agent.metric("sockway_cluster_waiting", &[("service", service)]);
        [of("web"), of("web2")]
    };
    assert_eq!((waiting(), outcomes(&field, "failback")), ([1.0, 1.0], 2.0));
    assert_eq!(field.curl("/1", &[]).status, 202);
    assert_eq!(field.curl("/2", &[]).status, 503, "no more than two wait");
    assert_eq!((efforts(&field, "full"), efforts(&field, "deferred")), (1.0, 3.0));
    let web = field.stage.web_at("back", endpoint);
    wait::until("nobody to wait any more", wait::SOON, || waiting() == [0.0, 0.0]);
    assert_eq!((efforts(&field, "delivered"), efforts(&field, "dropped"), web.requests()), (3.0, 0.0, 3));
    assert_eq!(field.curl("/", &[]).status, 200);
}

#[test]
fn failback_gives_up_after_its_tries_and_keeps_nothing_of_a_service_that_is_gone() {
    let Some(stage) = Stage::set() else { return };
    let (short, long, mute) = (stage.address(), stage.address(), Told::to_say(&stage, MUTE));
    let failback = |more: &str| format!("cluster: {{ strategy: failback, non_idempotent: on, {more} }}");
    let services = [
        Service::http("short", short).set(&failback("interval_ms: 50")).to(mute.address()),
        Service::http("long", long).set(&failback("interval_ms: 600000")).to(mute.address()),
    ];
    let config = stage.config().with_services(services.clone());
    let agent = Agent::start(&config);
    let efforts =
        |service, effort| agent.metric("sockway_cluster_efforts_total", &[("service", service), ("effort", effort)]);
    assert_eq!(curl(&stage, short, "/", &["--data", "x"]).status, 202);
    wait::until("it to be dropped", wait::SOON, || efforts("short", "dropped") == 1.0);
    assert_eq!(mute.requests(), 4, "once, and three times again");
    assert_eq!(curl(&stage, long, "/", &["--data", "x"]).status, 202);
    agent.metric_comes_to("sockway_cluster_waiting", &[("service", "long")], 1.0);
    let [short, _] = services;
    agent.reload(&config.with_services([short]));
    wait::until("it to be given up", wait::SOON, || agent.log().contains("orphaned"));
    assert_eq!(mute.requests(), 5);
}

#[test]
fn the_strategy_is_named_to_who_asks() {
    let Some(stage) = Stage::set() else { return };
    let web = stage.web("good");
    let field = set(stage, "cluster: { strategy: failover, retries: 1 }", &[web.address()]);
    let status: serde_json::Value = serde_json::from_slice(&field.agent.admin("/status").body).expect("JSON");
    assert_eq!(status["services"][0]["cluster"], "failover");
    let config: serde_json::Value = serde_json::from_slice(&field.agent.admin("/config").body).expect("JSON");
    assert_eq!(config["config"]["services"][0]["cluster"]["retries"], 1);
    let output = sockway(&["explain", "GET http://web/", "--json", "--instance", field.agent.instance()]);
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(told["targets"][0]["cluster"], "failover", "{told:#}");
}
