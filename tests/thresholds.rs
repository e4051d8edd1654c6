//! Bounds on what a service has under way, through the agent: connections, who waits for one, requests, retries. Never one more than there
//! may be, whichever worker is asked.

use std::{
    io::{BufReader, Write as _},
    net::{SocketAddr, TcpStream},
    os::fd::AsRawFd as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, recv},
};
use sockway_tests::{
    agent::Agent,
    answer::{read_body, read_head},
    config::Service,
    origin::Origin,
    peers,
    process::Room,
    stage::Stage,
    translation::{GRPC, HTTP2},
    wait,
};

const ALL: [&[&str]; 3] = [&[], &[HTTP2], &GRPC];

/// An endpoint that takes its time, and knows the most that it ever had at once.
struct Busy {
    origin: Origin,
    known: Arc<Known>,
}

#[derive(Default)]
struct Known {
    /// Those that were accepted; what has ended stays.
    connections: Mutex<Vec<TcpStream>>,
    connections_max: AtomicUsize,
    requests: AtomicUsize,
    requests_max: AtomicUsize,
    total: AtomicUsize,
    status: AtomicU64,
}

impl Known {
    /// One more. What the other side has ended is over, whether its thread has looked or not.
    fn connects(&self, stream: TcpStream) {
        let mut connections = self.connections.lock().expect("no panic");
        connections.push(stream);
        let is_open = |stream: &TcpStream| {
            let peeked = recv(stream.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT);
            matches!(peeked, Ok(1..) | Err(Errno::EAGAIN))
        };
        connections.retain(is_open);
        self.connections_max.fetch_max(connections.len(), SeqCst);
    }
}

/// One more, for as long as it is there.
struct One<'k>(&'k AtomicUsize);

impl<'k> One<'k> {
    fn of(count: &'k AtomicUsize, most: &AtomicUsize) -> Self {
        most.fetch_max(count.fetch_add(1, SeqCst) + 1, SeqCst);
        Self(count)
    }
}

impl Drop for One<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

impl Busy {
    fn at(stage: &Stage, status: u64, takes: Duration) -> Self {
        let known = Arc::new(Known { status: status.into(), ..Known::default() });
        let kept = Arc::clone(&known);
        let listener = stage.origin().listen(stage.address()).expect("a free address");
        let origin = Origin::start(listener, move |mut stream: &TcpStream, _| {
            kept.connects(stream.try_clone()?);
            let mut reader = BufReader::new(stream);
            while let Some(head) = read_head(&mut reader)? {
                read_body(&mut reader, &head, false)?;
                let request = One::of(&kept.requests, &kept.requests_max);
                kept.total.fetch_add(1, SeqCst);
                thread::sleep(takes);
                drop(request);
                let status = kept.status.load(SeqCst);
                stream.write_all(format!("HTTP/1.1 {status} So\r\nContent-Length: 2\r\n\r\nok").as_bytes())?;
            }
            Ok(())
        });
        Self { origin, known }
    }

    fn address(&self) -> SocketAddr {
        self.origin.address()
    }
}

/// A status of HTTP or of gRPC, and all that was said.
fn curl(stage: &Stage, service: SocketAddr, arguments: &[&str]) -> (u16, String) {
    let url = format!("http://{service}/a");
    let output = peers::curl(Room::of(&stage.clients), &[&["--include", &url], arguments].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout).to_lowercase();
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned());
    let code = field("grpc-status: ").or_else(|| text.split(' ').nth(1).map(str::to_owned));
    (code.and_then(|code| code.trim().parse().ok()).expect("a status"), text)
}

/// What so many are told who ask at the same time.
fn ask(stage: &Stage, service: SocketAddr, arguments: &[&str], clients: usize) -> Vec<(u16, String)> {
    thread::scope(|scope| {
        let clients: Vec<_> = (0..clients).map(|_| scope.spawn(|| curl(stage, service, arguments))).collect();
        clients.into_iter().map(|client| client.join().expect("no panic")).collect()
    })
}

fn count(told: &[(u16, String)], status: u16) -> usize {
    told.iter().filter(|(it, _)| *it == status).count()
}

fn service(address: SocketAddr, arguments: &[&str]) -> Service {
    let made = match arguments.contains(&HTTP2) {
        true => Service::http2("web", address).set("upstream_protocol: http1"),
        false => Service::http("web", address),
    };
    made.set("reason_header: on")
}

#[test]
fn there_are_never_more_requests_than_there_may_be() {
    for arguments in ALL {
        let Some(stage) = Stage::set() else { return };
        let (web, address) = (Busy::at(&stage, 200, Duration::from_millis(1_500)), stage.address());
        let web_service = service(address, arguments).set("thresholds: { max_requests: 3 }").to(web.address());
        let agent = Agent::start(&stage.config().service(web_service));
        let told = ask(&stage, address, arguments, 8);
        let no = if arguments.len() > 1 { 14 } else { 503 };
        let served = web.known.total.load(SeqCst);
        assert!(served >= 3 && count(&told, no) == 8 - served, "{told:?}");
        assert_eq!(web.known.requests_max.load(SeqCst), 3);
        let metric = |family: &str| agent.metric(family, &[("service", "web"), ("threshold", "max_requests")]);
        assert_eq!(metric("sockway_threshold_overflow_total") as usize, 8 - served);
        assert_eq!(metric("sockway_threshold_active"), 0.0);
        if arguments.is_empty() {
            let refused = told.iter().find(|(status, _)| *status == 503).expect("one is refused");
            assert!(
                refused.1.contains("x-sockway-reason: overflow") && refused.1.contains("max_requests"),
                "{refused:?}"
            );
        }
    }
}

#[test]
fn there_are_never_more_connections_than_there_may_be_and_the_others_wait_for_one() {
    for arguments in [&ALL[0], &ALL[1]] {
        let Some(stage) = Stage::set() else { return };
        let (web, address) = (Busy::at(&stage, 200, Duration::from_millis(300)), stage.address());
        let keys = ["thresholds: { max_connections: 2 }", "connect_timeout_ms: 30000"];
        let web_service = keys.iter().fold(service(address, arguments), |service, key| service.set(key));
        let agent = Agent::start(&stage.config().service(web_service.to(web.address())));
        // Over and over: what one worker keeps unused, the other must get.
        for _ in 0..3 {
            let told = ask(&stage, address, arguments, 6);
            assert_eq!(count(&told, 200), 6, "{told:?}");
        }
        assert!(web.known.connections_max.load(SeqCst) <= 2, "{}", web.known.connections_max.load(SeqCst));
        let metric = |family: &str, of| agent.metric(family, &[("service", "web"), ("threshold", of)]);
        assert!(metric("sockway_threshold_active", "max_connections") <= 2.0);
        assert_eq!(metric("sockway_threshold_active", "max_pending_requests"), 0.0);
    }
}

#[test]
fn who_finds_too_many_waiting_is_refused_and_who_waits_too_long_too() {
    let Some(stage) = Stage::set() else { return };
    let (web, address) = (Busy::at(&stage, 200, Duration::from_millis(3_000)), stage.address());
    let keys = ["thresholds: { max_connections: 1, max_pending_requests: 1 }", "connect_timeout_ms: 700"];
    let web_service = keys.iter().fold(service(address, &[]), |service, key| service.set(key)).to(web.address());
    let agent = Agent::start(&stage.config().service(web_service));
    let overflow = |of| agent.metric("sockway_threshold_overflow_total", &[("service", "web"), ("threshold", of)]);
    thread::scope(|scope| {
        let first = scope.spawn(|| curl(&stage, address, &[]));
        wait::until("the first to be served", wait::SOON, || web.known.total.load(SeqCst) == 1);
        let told = ask(&stage, address, &[], 4);
        assert_eq!(count(&told, 503), 4, "{told:?}");
        assert_eq!(first.join().expect("no panic").0, 200);
    });
    assert_eq!(
        (overflow("max_connections") + overflow("max_pending_requests"), web.known.total.load(SeqCst)),
        (4.0, 1)
    );
    assert!(overflow("max_connections") >= 1.0 && overflow("max_pending_requests") >= 1.0);
}

#[test]
fn a_retry_for_which_there_is_no_room_is_not_made() {
    let Some(stage) = Stage::set() else { return };
    let ends = [(); 2].map(|()| Busy::at(&stage, 503, Duration::ZERO));
    let address = stage.address();
    let web = service(address, &[]).set("retry: { on: [gateway_error] }").set("thresholds: { max_retries: 0 }");
    let agent = Agent::start(&stage.config().service(ends.iter().fold(web, |web, end| web.to(end.address()))));
    assert_eq!(curl(&stage, address, &[]).0, 503);
    assert_eq!(ends.iter().map(|end| end.known.total.load(SeqCst)).sum::<usize>(), 1);
    let overflow = [("service", "web"), ("threshold", "max_retries")];
    agent.metric_comes_to("sockway_threshold_overflow_total", &overflow, 1.0);
}
