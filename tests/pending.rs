//! Requests that wait until their service has room for them, through the agent: clients of HTTP/1, HTTP/2 and gRPC's framing, an endpoint that answers
//! one request at a time, when the test says so.

use std::{
    io::{BufReader, Write as _},
    net::SocketAddr,
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};

use sockway_tests::{
    agent::{Agent, sockway},
    answer::{Session, read_head},
    config::Service,
    frames::{self, END_HEADERS, END_STREAM, Peer, kind},
    origin::Origin,
    peers,
    process::Room,
    stage::Stage,
    translation::{GRPC, HTTP2},
    wait,
};

/// One at a time, for as long as a test may take.
const ONE: &str = "request_limits: [{ kind: concurrency, limit: 1 }]";

/// An endpoint whose answers wait for leave.
struct Till {
    origin: Origin,
    counter: Arc<(Mutex<Counter>, Condvar)>,
}

#[derive(Default)]
struct Counter {
    /// The paths of its requests, in the order in which they came.
    came: Vec<String>,
    leaves: usize,
    is_over: bool,
}

impl Till {
    fn open(stage: &Stage) -> Self {
        let counter = Arc::<(Mutex<Counter>, Condvar)>::default();
        let kept = Arc::clone(&counter);
        let listener = stage.origin().listen(stage.address()).expect("a free address");
        let origin = Origin::start(listener, move |mut stream, _| {
            let mut reader = BufReader::new(stream);
            while let Some(head) = read_head(&mut reader)? {
                let (state, news) = &*kept;
                let mut state = state.lock().expect("no panic");
                state.came.push(head.word(1).trim_start_matches('/').to_owned());
                let mut state = news.wait_while(state, |state| state.leaves == 0 && !state.is_over).expect("no panic");
                state.leaves = state.leaves.saturating_sub(1);
                drop(state);
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?;
            }
            Ok(())
        });
        Self { origin, counter }
    }

    fn let_go(&self, requests: usize) {
        self.counter.0.lock().expect("no panic").leaves += requests;
        self.counter.1.notify_all();
    }

    fn came(&self) -> Vec<String> {
        self.counter.0.lock().expect("no panic").came.clone()
    }
}

impl Drop for Till {
    fn drop(&mut self) {
        self.counter.0.lock().expect("no panic").is_over = true;
        self.counter.1.notify_all();
    }
}

/// A service before a till.
struct Field {
    till: Till,
    agent: Agent,
    service: SocketAddr,
    stage: Stage,
}

impl Field {
    fn set(stage: Stage, service: impl FnOnce(SocketAddr) -> Service) -> Self {
        let (till, address) = (Till::open(&stage), stage.address());
        let service = service(address).set(ONE).to(till.origin.address());
        let agent = Agent::start(&stage.config().set("workers: 2").service(service));
        Self { till, agent, service: address, stage }
    }

    fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let of = [&[("service", "web")], labels].concat();
        self.agent.metric(&format!("sockway_pending_{name}"), &of)
    }

    fn depth(&self) -> f64 {
        self.metric("requests", &[])
    }

    fn refused(&self, reason: &str) -> f64 {
        self.metric("refused_total", &[("reason", reason)])
    }

    /// Asks on a connection of its own, and does not wait for the answer.
    fn ask(&self, path: usize, fields: &str) -> Session {
        let mut session = self.stage.session(self.service);
        session.write(format!("GET /{path} HTTP/1.1\r\nHost: a\r\n{fields}\r\n").as_bytes()).expect("room");
        session
    }

    /// As [`Field::ask`], for so many that one is with the endpoint and the others wait; each comes when the one before it stands in the line.
    fn fill(&self, requests: usize) -> Vec<Session> {
        let ask = |path| {
            let asked = self.ask(path, "");
            match path {
                0 => wait::until("the first to be with the endpoint", wait::SOON, || self.till.came().len() == 1),
                _ => wait::until("one more to wait", wait::SOON, || self.depth() == path as f64),
            }
            asked
        };
        (0..requests).map(ask).collect()
    }

    fn curl(&self, arguments: &[&str]) -> String {
        let url = format!("http://{}/late", self.service);
        let output = peers::curl(Room::of(&self.stage.clients), &[&["--include", &url], arguments].concat());
        String::from_utf8_lossy(&output.stdout).to_lowercase()
    }
}

fn status(session: &mut Session) -> u16 {
    session.read("GET").expect("an answer").status
}

#[test]
fn requests_wait_in_their_order_and_a_full_line_refuses_at_once_until_a_fifth_of_it_is_gone() {
    let Some(stage) = Stage::set() else { return };
    let field =
        Field::set(stage, |at| Service::http("web", at).set("pending: { requests_max: 10, wait_max_ms: 60000 }"));
    let mut asked = field.fill(11);
    assert_eq!((field.depth(), field.metric("accepting", &[])), (10.0, 0.0));
    let refused = field.ask(99, "").read("GET").expect("an answer at once: nothing was let go");
    assert_eq!(refused.status, 503);
    assert!(refused.head.get("retry-after").is_some_and(|after| after.parse::<u32>().is_ok_and(|after| after >= 1)));
    assert_eq!(refused.text(), "sockway: as many requests wait for the service as may\n");
    // What a person sees of it.
    let shown = field.agent.admin("/v1/services/web").text();
    let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
    let pending = &shown["pending"];
    assert_eq!((&pending["depth"], &pending["accepting"]), (&10.into(), &false.into()), "{shown}");
    assert!(pending["oldest_ms"].as_u64().is_some());
    assert_eq!(pending["refused"]["full"], 1);
    let told = sockway(&["status", "--instance", field.agent.instance()]);
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    let row = told.lines().skip_while(|line| !line.starts_with("PENDING")).nth(1).unwrap_or_else(|| panic!("{told}"));
    let cells: Vec<&str> = row.split_whitespace().collect();
    assert_eq!((&cells[..3], cells[4]), (&["web", "10", "10"][..], "NO"), "{told}");
    // One gone is not enough, two are.
    field.till.let_go(1);
    assert_eq!(status(&mut asked[0]), 200);
    wait::until("the next to be with the endpoint", wait::SOON, || field.depth() == 9.0);
    assert_eq!(status(&mut field.ask(98, "")), 503);
    field.till.let_go(1);
    assert_eq!(status(&mut asked[1]), 200);
    wait::until("the next to be with the endpoint", wait::SOON, || field.depth() == 8.0);
    asked.push(field.ask(11, ""));
    wait::until("it to be let in", wait::SOON, || field.depth() == 9.0);
    assert_eq!(field.metric("accepting", &[]), 1.0);
    field.till.let_go(100);
    for session in &mut asked[2..] {
        assert_eq!(status(session), 200);
    }
    let in_order: Vec<String> = (0..12).map(|path| path.to_string()).collect();
    assert_eq!(field.till.came(), in_order);
    assert_eq!((field.depth(), field.metric("served_total", &[]), field.refused("full")), (0.0, 11.0, 2.0));
    // Who finds room does not wait.
    assert_eq!(status(&mut field.ask(50, "")), 200);
    assert_eq!(field.metric("served_total", &[]), 11.0);
}

#[test]
fn who_waits_leaves_the_line_when_his_time_is_over_or_his_client_goes_and_not_when_it_is_his_turn() {
    let Some(stage) = Stage::set() else { return };
    let field = Field::set(stage, |at| {
        Service::http("web", at).set("pending: { wait_max_ms: 60000 }").set("deadline: { accept: all }")
    });
    let mut asked = field.fill(2);
    let began = Instant::now();
    let late = field.ask(7, "x-envoy-expected-rq-timeout-ms: 300\r\n").read("GET").expect("an answer");
    assert_eq!((late.status, field.refused("deadline")), (504, 1.0));
    assert!(began.elapsed() >= Duration::from_millis(300));
    let gone = field.ask(8, "");
    wait::until("it to wait", wait::SOON, || field.depth() == 2.0);
    asked.push(field.ask(2, ""));
    wait::until("another behind it to wait", wait::SOON, || field.depth() == 3.0);
    drop(gone);
    wait::until("it to be forgotten", wait::SOON, || field.depth() == 2.0);
    assert_eq!(field.refused("client_gone"), 1.0);
    // The first of the line may be the one, too: then the next has its turn.
    let head = asked.remove(1);
    drop(head);
    wait::until("it to be forgotten", wait::SOON, || field.depth() == 1.0);
    assert_eq!(field.till.came(), ["0"], "all of that while the endpoint was busy with the first");
    field.till.let_go(2);
    assert!(asked.iter_mut().all(|session| status(session) == 200));
    assert_eq!(field.till.came(), ["0", "2"]);
}

#[test]
fn a_line_that_is_too_slow_gives_up_who_waited_for_too_long() {
    let Some(stage) = Stage::set() else { return };
    let field = Field::set(stage, |at| {
        let service = Service::http("web", at).set("pending: { wait_max_ms: 300 }").set("reason_header: on");
        service.set("isolation: { max_concurrency: 1 }")
    });
    let _first = field.ask(0, "");
    wait::until("the first to be with the endpoint", wait::SOON, || field.till.came().len() == 1);
    let mut waiting = [1, 2, 3].map(|path| field.ask(path, ""));
    for session in &mut waiting {
        let answer = session.read("GET").expect("an answer");
        assert_eq!((answer.status, answer.head.get("x-sockway-reason")), (503, Some("pending")));
        assert!(answer.head.get("retry-after").is_some());
    }
    // The second and third may have found it shut already.
    assert!(field.refused("wait_max") >= 1.0 && field.refused("wait_max") + field.refused("full") == 3.0);
    assert_eq!(field.metric("accepting", &[]), 1.0, "nobody is left who waits");
    let rejected = field.agent.metric("sockway_isolation_rejected_total", &[("service", "web")]);
    assert_eq!(rejected, 0.0, "who waits is not refused by the isolation");
}

#[test]
fn a_fallback_stands_in_for_who_is_not_let_in() {
    let Some(stage) = Stage::set() else { return };
    let field = Field::set(stage, |at| {
        let service = Service::http("web", at).set("pending: { requests_max: 1, wait_max_ms: 60000 }");
        service.set("fallback: { on: [pending], respond: { status: 200, body: later } }")
    });
    let mut asked = field.fill(2);
    let instead = field.ask(9, "").read("GET").expect("an answer");
    assert_eq!((instead.status, instead.text().as_str()), (200, "later"));
    field.till.let_go(2);
    assert!(asked.iter_mut().all(|session| status(session) == 200));
    assert_eq!(field.till.came(), ["0", "1"]);
}

#[test]
fn streams_of_http2_wait_in_the_same_line_and_a_client_that_is_refused_is_asked_to_go_elsewhere_once() {
    let Some(stage) = Stage::set() else { return };
    let field = Field::set(stage, |at| {
        let service = Service::http2("web", at).set("upstream_protocol: http1");
        service.set("pending: { requests_max: 5, wait_max_ms: 60000 }")
    });
    let dial = || Peer::client(field.stage.dial(field.service).expect("it accepts")).expect("a connection");
    let ask = |peer: &mut Peer, stream: u32| {
        let head = frames::request("GET", &format!("/{stream}"), &[]);
        peer.send(kind::HEADERS, END_HEADERS | END_STREAM, stream, &head).expect("room");
    };
    let mut client = dial();
    for (depth, stream) in (0..6).zip((1..).step_by(2)) {
        ask(&mut client, stream);
        wait::until("it to wait", wait::SOON, || field.depth() == f64::from(depth) && !field.till.came().is_empty());
    }
    let refused = field.curl(&[HTTP2]);
    assert!(refused.starts_with("http/2 503") && refused.contains("\nretry-after: "), "{refused}");
    let refused = field.curl(&GRPC);
    assert!(refused.starts_with("http/2 200") && refused.contains("\ngrpc-status: 14"), "{refused}");
    // Made while requests are refused: it is not asked to go.
    let mut late = dial();
    ask(&mut late, 1);
    assert_eq!(late.until(kind::HEADERS).stream, 1);
    late.send(kind::PING, 0, 0, &[7; 8]).expect("room");
    let mut next = std::iter::from_fn(|| late.read().expect("it goes on"));
    let next = next.find(|frame| matches!(frame.kind, kind::PING | kind::GOAWAY)).map(|frame| frame.kind);
    assert_eq!(next, Some(kind::PING));
    ask(&mut client, 13);
    client.until(kind::GOAWAY);
    // What waits on it is served all the same.
    field.till.let_go(6);
    wait::until("all of them to be served", wait::SOON, || field.metric("served_total", &[]) == 5.0);
    wait::until("all of them to have come", wait::SOON, || field.till.came().len() == 6);
    assert_eq!(field.till.came(), ["1", "3", "5", "7", "9", "11"]);
}
