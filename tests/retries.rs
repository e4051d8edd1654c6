//! Retries through the agent: what is tried again and what is not, how soon, how often, and what endpoints are told of it.

use std::{
    io::{BufReader, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use sockway_tests::{
    agent::Agent,
    answer::{Head, read_body, read_head},
    config::Service,
    frames::{Peer, kind},
    origin::Origin,
    peers,
    process::Room,
    stage::Stage,
    translation::HTTP2,
    twice::{BOTH, Said, Twice, curl},
    wait,
};

const GOOD: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood";
const BUSY: &str = "HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy";
/// Ends the connection instead.
const MUTE: &str = "";
const REFUSED_STREAM: u32 = 7;

/// Requests, and when they came.
type Requests = Arc<Mutex<Vec<(Instant, Head)>>>;

/// An endpoint that says one thing after the other, the last again and again, each after a time, and keeps what it was asked.
struct Told {
    origin: Origin,
    requests: Requests,
}

impl Told {
    fn to_say(stage: &Stage, answers: &'static [&'static str]) -> Self {
        Self::to_say_after(stage, answers, Duration::ZERO)
    }

    fn to_say_after(stage: &Stage, answers: &'static [&'static str], after: Duration) -> Self {
        let requests = Requests::default();
        let kept = Arc::clone(&requests);
        let listener = stage.origin().listen(stage.address()).expect("a free address");
        let origin = Origin::start(listener, move |mut stream: &TcpStream, _| {
            let mut reader = BufReader::new(stream);
            while let Some(head) = read_head(&mut reader)? {
                read_body(&mut reader, &head, false)?;
                let nth = {
                    let mut kept = kept.lock().expect("no thread panics with it");
                    kept.push((Instant::now(), head));
                    kept.len() - 1
                };
                thread::sleep(after);
                let answer = answers[nth.min(answers.len() - 1)];
                stream.write_all(answer.as_bytes())?;
                if answer == MUTE || answer.contains("Content-Length: 100\r\n") {
                    break;
                }
            }
            Ok(())
        });
        Self { origin, requests }
    }

    fn address(&self) -> SocketAddr {
        self.origin.address()
    }

    fn asked(&self) -> Vec<(Instant, Head)> {
        self.requests.lock().expect("no thread panics with it").clone()
    }

    fn requests(&self) -> usize {
        self.asked().len()
    }

    /// How long after the first each of the others came.
    fn gaps(&self) -> Vec<Duration> {
        let asked = self.asked();
        asked.windows(2).map(|pair| pair[1].0 - pair[0].0).collect()
    }
}

/// The same service twice, with these keys.
#[track_caller]
fn set(stage: Stage, keys: &[&str], endpoints: &[SocketAddr]) -> Twice {
    let with =
        |service: Service| keys.iter().fold(service, |service, key| service.set(key)).to_all(endpoints.iter().copied());
    Twice::set(stage, &["workers: 1"], with, Vec::new())
}

fn call(field: &Twice) -> Said {
    let call = ["-H", "content-type: application/grpc", "-H", "te: trailers", "--data-binary", "x", HTTP2];
    field.curl("/", &call)
}

fn retries(field: &Twice, reason: &str) -> f64 {
    field.sum("sockway_retries_total", ("reason", reason))
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn each_failure_is_tried_at_another_endpoint_where_it_is_named_and_nowhere_else() {
    for (on, reason, answer, given) in [
        ("reset", "reset", MUTE, 502),
        ("gateway_error", "gateway_error", BUSY, 503),
        ("5xx", "5xx", "HTTP/1.1 500 Broken\r\nContent-Length: 0\r\n\r\n", 500),
        ("retriable_4xx", "4xx", "HTTP/1.1 409 Conflict\r\nContent-Length: 0\r\n\r\n", 409),
        ("{ statuses: [418] }", "4xx", "HTTP/1.1 418 Teapot\r\nContent-Length: 0\r\n\r\n", 418),
    ] {
        for is_named in [true, false] {
            let Some(stage) = Stage::set() else { return };
            let answers: &'static [&'static str] = Box::leak(Box::new([answer]));
            let (bad, good) = (Told::to_say(&stage, answers), Told::to_say(&stage, &[GOOD]));
            let retry = format!("retry: {{ on: [{}] }}", if is_named { on } else { "late" });
            let field = set(stage, &[&retry], &[bad.address(), good.address()]);
            for http in BOTH {
                let mut statuses = [field.curl("/", http).status, field.curl("/", http).status];
                statuses.sort_unstable();
                assert_eq!(statuses, if is_named { [200, 200] } else { [200, given] }, "{on} {http:?}");
                // What is not idempotent is sent once.
                let mut statuses = [(); 2].map(|()| field.curl("/", &[http, &["--data", "x"]].concat()).status);
                statuses.sort_unstable();
                assert_eq!(statuses, [200, given], "{on} {http:?}");
            }
            let retries = retries(&field, reason);
            assert!(if is_named { retries >= 2.0 } else { retries == 0.0 }, "{on}: {retries}");
            assert_eq!(bad.requests() as f64, retries + if is_named { 2.0 } else { 4.0 }, "{on}");
        }
    }
}

#[test]
fn who_cannot_be_reached_is_left_for_another() {
    let Some(stage) = Stage::set() else { return };
    let good = Told::to_say(&stage, &[GOOD]);
    let nobody = stage.address();
    let field = set(stage, &["retry: { on: [connect_failure] }"], &[nobody, good.address()]);
    for http in BOTH {
        // Nobody can have seen it: it may be anything.
        let statuses = [(); 2].map(|()| field.curl("/", &[http, &["--data", "x"]].concat()).status);
        assert_eq!(statuses, [200, 200]);
    }
    assert!(retries(&field, "connect_failure") >= 1.0);
}

#[test]
fn who_is_late_is_left_for_another() {
    let Some(stage) = Stage::set() else { return };
    let (slow, good) = (Told::to_say_after(&stage, &[GOOD], millis(3000)), Told::to_say(&stage, &[GOOD]));
    let keys = "retry: { on: [late], per_try_timeout_ms: 150, non_idempotent: on }";
    let field = set(stage, &[keys], &[slow.address(), good.address()]);
    for http in BOTH {
        for _ in 0..2 {
            let began = Instant::now();
            assert_eq!(field.curl("/", &[http, &["--data", "x"]].concat()).status, 200);
            assert!(began.elapsed() < millis(2000), "{:?}", began.elapsed());
        }
    }
    assert!(retries(&field, "late") >= 2.0);
}

#[test]
fn a_refused_stream_is_tried_at_another_endpoint_whatever_it_asks() {
    let Some(stage) = Stage::set() else { return };
    let listener = stage.origin().listen(stage.address()).expect("a free address");
    let refusing = Origin::start(listener, |stream, _| {
        let mut peer = Peer::server(stream)?;
        while let Some(frame) = peer.read()? {
            if frame.kind == kind::HEADERS {
                peer.send(kind::RST_STREAM, 0, frame.stream, &REFUSED_STREAM.to_be_bytes())?;
            }
        }
        Ok(())
    });
    let (good, service) = (stage.address(), stage.address());
    let _good = peers::Nghttpd::start_answering(Room::of(&stage.origins), stage.origin(), good);
    let with = Service::http2("web", service).set("retry: { attempts: 1, on: [refused_stream] }");
    let with = with.to(refusing.address()).to(good);
    let agent = Agent::start(&stage.config().set("workers: 1").service(with));
    for _ in 0..2 {
        let said = curl(&stage, service, "/", &[HTTP2, "--data", "x"]);
        assert!(![0, 502, 503].contains(&said.status), "{said:?}");
    }
    agent.metric_reaches("sockway_retries_total", &[("reason", "refused_stream")], 1.0);
}

#[test]
fn a_call_is_tried_again_by_its_status_wherever_that_stands() {
    const ONLY: &str =
        "HTTP/1.1 200 OK\r\nContent-Type: application/grpc\r\ngrpc-status: 14\r\nContent-Length: 0\r\n\r\n";
    const BEHIND: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/grpc\r\nTransfer-Encoding: chunked\r\n\r\n\
                          0\r\ngrpc-status: 14\r\n\r\n";
    const WELL: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/grpc\r\nTransfer-Encoding: chunked\r\n\r\n\
                        5\r\n\0\0\0\0\0\r\n0\r\ngrpc-status: 0\r\n\r\n";
    for answers in [&[ONLY, ONLY, WELL][..], &[BEHIND, BEHIND, WELL]] {
        let Some(stage) = Stage::set() else { return };
        let told = Told::to_say(&stage, answers);
        let keys = "retry: { attempts: 3, on: [{ grpc: [unavailable] }] }";
        let field = set(stage, &[keys], &[told.address()]);
        let said = call(&field);
        assert!(said.status == 200 && said.text.contains("grpc-status: 0\r\n"), "{said:?}");
        let of = |head: &Head, name: &str| head.get(name).map(str::to_owned);
        let found: Vec<_> = told
            .asked()
            .iter()
            .map(|(_, head)| (of(head, "x-envoy-attempt-count"), of(head, "grpc-previous-rpc-attempts")))
            .collect();
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(found, [(text("1"), None), (text("2"), text("1")), (text("3"), text("2"))]);
        assert_eq!(retries(&field, "grpc"), 2.0);
    }
}

#[test]
fn a_server_of_grpc_says_when_it_may_be_asked_again() {
    const LATER: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/grpc\r\ngrpc-status: 14\r\n\
                         grpc-retry-pushback-ms: 400\r\nContent-Length: 0\r\n\r\n";
    const NEVER: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/grpc\r\ngrpc-status: 14\r\n\
                         grpc-retry-pushback-ms: -1\r\nContent-Length: 0\r\n\r\n";
    let Some(stage) = Stage::set() else { return };
    let told = Told::to_say(&stage, &[LATER, NEVER]);
    let field = set(stage, &["retry: { attempts: 5, on: [{ grpc: [unavailable] }] }"], &[told.address()]);
    let said = call(&field);
    assert_eq!(said.field("grpc-status"), Some("14"), "{said:?}");
    let gaps = told.gaps();
    assert!(gaps.len() == 1 && gaps[0] >= millis(400) && gaps[0] < millis(1500), "{gaps:?}");
}

#[test]
fn retries_wait_as_long_as_they_are_told_and_their_endpoint_says() {
    const LATER: &str = "HTTP/1.1 503 Busy\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n";
    let Some(stage) = Stage::set() else { return };
    let told = Told::to_say(&stage, &[BUSY, BUSY, BUSY, GOOD, LATER, GOOD]);
    let keys = "retry: { attempts: 3, back_off: { base_ms: 100, max_ms: 100, heed_answers: on } }";
    let field = set(stage, &[keys], &[told.address()]);
    assert_eq!(field.curl("/", &[]).status, 200);
    let gaps = told.gaps();
    assert!(gaps.len() == 3 && gaps.iter().all(|gap| *gap < millis(1000)), "{gaps:?}");
    assert!(gaps.iter().any(|gap| *gap > millis(2)), "somebody has waited: {gaps:?}");
    assert_eq!(field.curl("/", &[HTTP2]).status, 200);
    let last = *told.gaps().last().expect("a retry");
    assert!(last >= millis(1000) && last < millis(2500), "{last:?}");
}

#[test]
fn no_retry_begins_behind_the_requests_time() {
    let Some(stage) = Stage::set() else { return };
    let told = Told::to_say_after(&stage, &[BUSY], millis(60));
    let keys = ["retry: { attempts: 10, back_off: { base_ms: 50, max_ms: 100 } }", "timeout_ms: 400"];
    let field = set(stage, &keys, &[told.address()]);
    for http in BOTH {
        let before = told.requests();
        let began = Instant::now();
        let said = field.curl("/", http);
        assert!([503, 504].contains(&said.status), "{said:?}");
        assert!(began.elapsed() < millis(1500), "{:?}", began.elapsed());
        let asked = told.asked().split_off(before);
        assert!((2..=7).contains(&asked.len()), "{}", asked.len());
        assert!(asked.last().expect("some").0 - asked[0].0 < millis(400));
    }
}

#[test]
fn what_fails_does_not_become_a_multiple_of_itself() {
    const CLIENTS: usize = 40;
    let Some(stage) = Stage::set() else { return };
    let told: Vec<Told> = (0..4).map(|_| Told::to_say_after(&stage, &[BUSY], millis(300))).collect();
    let endpoints: Vec<SocketAddr> = told.iter().map(Told::address).collect();
    let field = set(stage, &["retry: { attempts: 3, budget: { percent: 20, min: 3 } }"], &endpoints);
    let asking: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let mut session = field.stage.session(field.services[0]);
            thread::spawn(move || session.get("/").expect("an answer").status)
        })
        .collect();
    assert!(asking.into_iter().all(|asking| asking.join().expect("a client") == 503));
    let asked: usize = told.iter().map(Told::requests).sum();
    let over = field.agent.metric("sockway_cluster_efforts_total", &[("effort", "over_budget"), ("service", "web")]);
    assert_eq!(asked as f64, CLIENTS as f64 + retries(&field, "gateway_error"));
    // At most 8 of 40 at a time, each three times; who comes behind finds room again.
    assert!(asked > CLIENTS && asked <= 2 * CLIENTS, "{asked} asked, {over} over the budget");
    assert!(over >= 10.0, "{over}");
}

#[test]
fn the_first_good_answer_wins_and_the_slow_one_is_taken_back() {
    let Some(stage) = Stage::set() else { return };
    let (slow, good) = (Told::to_say_after(&stage, &[GOOD], millis(4000)), Told::to_say(&stage, &[GOOD]));
    let keys = "retry: { on: [reset], hedge: { after_ms: 100 } }";
    let field = set(stage, &[keys], &[slow.address(), good.address()]);
    for http in BOTH {
        for _ in 0..2 {
            let began = Instant::now();
            assert_eq!(field.curl("/", http).status, 200);
            assert!(began.elapsed() < millis(3000), "{:?}", began.elapsed());
        }
    }
    assert!(slow.requests() >= 2, "both were asked");
    assert_eq!(slow.requests() as f64, retries(&field, "hedged"));
    wait::until("the slow one to be told", wait::SOON, || slow.origin.open() == 0);
}

#[test]
fn nothing_is_tried_again_of_which_a_byte_was_passed_on() {
    const CUT: &str = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf";
    let Some(stage) = Stage::set() else { return };
    let told = Told::to_say(&stage, &[CUT, CUT, GOOD]);
    let field = set(stage, &["retry: { attempts: 3, on: [5xx] }"], &[told.address()]);
    for http in BOTH {
        // Whatever curl has read of it before the connection was reset.
        let said = field.heard("/", http);
        assert!([0, 200].contains(&said.status) && !said.text.contains("good"), "{said:?}");
    }
    assert_eq!(told.requests(), 2);
}

#[test]
fn a_route_has_retries_of_its_own() {
    let Some(stage) = Stage::set() else { return };
    let told = Told::to_say(&stage, &[BUSY, GOOD, BUSY]);
    let routes = "routes: [{ match: { methods: [GET] }, retry: { attempts: 2 } }]";
    let field = set(stage, &[routes], &[told.address()]);
    assert_eq!(field.curl("/", &[]).status, 200);
    assert_eq!(field.curl("/", &["-X", "PUT"]).status, 503);
    assert_eq!((told.requests(), retries(&field, "gateway_error")), (3, 1.0));
}

/// What most requests need is little, and what a failed one needs is made of where it stood: nothing of it may be lost, nor of what follows.
#[test]
fn a_request_that_is_sent_again_is_the_same_and_what_stands_behind_it_is_answered_next() {
    let Some(stage) = Stage::set() else { return };
    let (busy, web, alone) = (Told::to_say(&stage, &[BUSY]), stage.web("b"), Told::to_say(&stage, &[BUSY]));
    let services = [stage.address(), stage.address()];
    let retry = "retry: { attempts: 1, on: [5xx], non_idempotent: on, back_off: { base_ms: 1, max_ms: 2 } }";
    let config = stage
        .config()
        .set("workers: 1")
        .service(Service::http("web", services[0]).set(retry).to(busy.address()).to(web.address()))
        .service(Service::http("alone", services[1]).set("cluster: failover").to(alone.address()));
    let agent = Agent::start(&config);
    let mut session = stage.session(services[0]);
    for turn in 0..6 {
        let body = format!("body {turn}").repeat(turn * 20 + 1);
        let answer = session.call("POST", "/echo", body.as_bytes()).expect("an answer");
        assert_eq!((answer.status, answer.text()), (200, body));
    }
    assert!(busy.requests() > 0, "nobody has failed");
    let told = busy.asked().pop().expect("a request").1;
    assert_eq!((told.get("x-envoy-attempt-count"), told.length().is_some()), (Some("1"), true));
    // Three at once: of each its own answer, in their order.
    let requests: String =
        (1..=3).map(|turn| format!("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nbody-{turn}")).collect();
    session.write(requests.as_bytes()).expect("a connection");
    for turn in 1..=3 {
        assert_eq!(session.read("POST").expect("an answer").text(), format!("body-{turn}"));
    }
    assert_eq!(session.call("HEAD", "/", b"").expect("an answer").status, 200);
    // Nobody else is there: what failed is what is said, whole, and the connection goes on.
    let mut session = stage.session(services[1]);
    for _ in 0..3 {
        let answer = session.get("/").expect("an answer");
        assert_eq!((answer.status, answer.text().as_str()), (503, "busy"));
    }
    agent.metric_comes_to("sockway_requests_total", &[("outcome", "5xx")], 3.0);
}
