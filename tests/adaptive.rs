//! Limits that find their own number, through the agent: a server of so many places, and more clients than it can serve.

use std::{
    io::{BufReader, Write as _},
    net::SocketAddr,
    process::Command,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use sockway_tests::{
    agent::Agent,
    answer::read_head,
    cgroup::Cgroup,
    config::Service,
    origin::Origin,
    stage::{Stage, tell},
    wait,
};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A server that serves so many at once, each for so long; whoever else comes stands in a line.
struct Server {
    free: Mutex<isize>,
    left: Condvar,
    takes: Duration,
    /// How many are here, and the most that ever were.
    here: AtomicUsize,
    most: AtomicUsize,
}

impl Server {
    fn start(stage: &Stage, places: isize, takes: Duration) -> (Arc<Self>, Origin) {
        let (here, most) = Default::default();
        let server = Arc::new(Self { free: Mutex::new(places), left: Condvar::new(), takes, here, most });
        let origin = Origin::start(stage.origin().listen(stage.address()).expect("a listener"), {
            let server = Arc::clone(&server);
            move |mut stream, _| {
                let mut reader = BufReader::new(stream);
                while read_head(&mut reader)?.is_some() {
                    server.serve();
                    stream.write_all(OK)?;
                }
                Ok(())
            }
        });
        (server, origin)
    }

    fn serve(&self) {
        self.most.fetch_max(self.here.fetch_add(1, Relaxed) + 1, Relaxed);
        let free = self.free.lock().expect("no panic");
        let mut free = self.left.wait_while(free, |free| *free <= 0).expect("no panic");
        *free -= 1;
        drop(free);
        thread::sleep(self.takes);
        self.here.fetch_sub(1, Relaxed);
        self.add(1);
    }

    /// So many more places, or fewer.
    fn add(&self, places: isize) {
        *self.free.lock().expect("no panic") += places;
        self.left.notify_one();
    }
}

/// What clients were told, and how many within the time that is still of use to them.
#[derive(Default)]
struct Told {
    good: AtomicUsize,
    late: AtomicUsize,
    refused: AtomicUsize,
}

impl Told {
    /// A second's, over this time.
    fn good_in(&self, time: Duration) -> f64 {
        let (began, before) = (Instant::now(), self.good.load(Relaxed));
        thread::sleep(time);
        (self.good.load(Relaxed) - before) as f64 / began.elapsed().as_secs_f64()
    }
}

/// Ends the load, also when a test fails under it.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// So many clients ask at this pace, each on a connection of its own, while `during` runs.
fn under_load(
    stage: &Stage,
    service: SocketAddr,
    (clients, pace, patience): (usize, Duration, Duration),
    during: impl FnOnce(&Told),
) {
    let (told, over) = (Told::default(), AtomicBool::new(false));
    thread::scope(|scope| {
        for client in 0..clients {
            let mut session = stage.session(service);
            let (told, over) = (&told, &over);
            scope.spawn(move || {
                let mut due = Instant::now() + pace * client as u32 / clients as u32;
                while !over.load(Relaxed) {
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                    due = (due + pace).max(Instant::now());
                    let began = Instant::now();
                    let count = match session.get("/").expect("an answer").status {
                        200 if began.elapsed() <= patience => &told.good,
                        200 => &told.late,
                        _ => &told.refused,
                    };
                    count.fetch_add(1, Relaxed);
                }
            });
        }
        let _over = Over(&over);
        during(&told);
    });
}

/// What a server of this many places gets done in a second.
fn capacity(places: f64, takes: Duration) -> f64 {
    places / takes.as_secs_f64()
}

#[test]
fn a_gradient_finds_what_a_server_gets_done_and_follows_it_when_it_halves() {
    let Some(stage) = Stage::set() else { return };
    let (takes, service) = (Duration::from_millis(40), stage.address());
    let (server, origin) = Server::start(&stage, 16, takes);
    let rule = "{ kind: gradient, min: 4, min_rtt_requests: 20 }";
    let limited = Service::http("limited", service).set(&format!("request_limits: [{rule}]")).to(origin.address());
    let agent = Agent::start(&stage.config().service(limited));
    // Three times what the server gets done: 1 200 a second of which it does 400.
    let load = (120, Duration::from_millis(100), takes * 4);
    under_load(&stage, service, load, |told| {
        let limit = || agent.metric("sockway_request_limit_concurrency", &[("service", "limited")]);
        wait::until("the limit to be found", wait::SOON, || limit() >= 16.0);
        let (peak, found) = (capacity(16.0, takes), told.good_in(Duration::from_secs(3)));
        let at = limit();
        server.add(-8);
        thread::sleep(Duration::from_secs(2));
        let (half, followed) = (capacity(8.0, takes), told.good_in(Duration::from_secs(3)));
        tell(&format!(
            "16 places: {found:.0} good a second of {peak:.0}, limit {at}; 8 places: {followed:.0} of {half:.0}, \
             limit {}; {} refused, {} late",
            limit(),
            told.refused.load(Relaxed),
            told.late.load(Relaxed),
        ));
        assert!((16.0..=16.0 * 1.25 + 10.0).contains(&at), "the formula's: {at}");
        assert!(found >= 0.9 * peak, "goodput at three times the load: {found} of {peak}");
        assert!((0.8 * half..=1.2 * half).contains(&followed), "{followed} of {half}");
        assert!(told.refused.load(Relaxed) > 0);
    });
}

#[test]
fn without_a_limit_the_same_load_leaves_every_client_too_late() {
    let Some(stage) = Stage::set() else { return };
    let (takes, service) = (Duration::from_millis(40), stage.address());
    let (_server, origin) = Server::start(&stage, 16, takes);
    let _agent = Agent::start(&stage.config().service(Service::http("free", service).to(origin.address())));
    under_load(&stage, service, (120, Duration::from_millis(100), takes * 4), |told| {
        thread::sleep(Duration::from_secs(1));
        let good = told.good_in(Duration::from_secs(2));
        assert!(good < 0.5 * capacity(16.0, takes), "what the limit is for: {good}");
    });
}

/// A server that fails so many of a hundred.
fn failing(stage: &Stage) -> (Arc<AtomicU16>, Origin) {
    let percent = Arc::new(AtomicU16::new(0));
    let origin = Origin::start(stage.origin().listen(stage.address()).expect("a listener"), {
        let (percent, asked) = (Arc::clone(&percent), AtomicUsize::new(0));
        move |mut stream, _| {
            let mut reader = BufReader::new(stream);
            while read_head(&mut reader)?.is_some() {
                let fails = asked.fetch_add(1, Relaxed) % 100 < usize::from(percent.load(Relaxed));
                stream.write_all(if fails { b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n" } else { OK })?;
            }
            Ok(())
        }
    });
    (percent, origin)
}

#[test]
fn admission_refuses_by_its_formula_while_much_fails_and_nothing_once_it_is_over() {
    let Some(stage) = Stage::set() else { return };
    let (service, (percent, origin)) = (stage.address(), failing(&stage));
    let rule = "{ kind: admission, window_ms: 2000, status: 429 }";
    let limited = Service::http("limited", service).set(&format!("request_limits: [{rule}]")).to(origin.address());
    let _agent = Agent::start(&stage.config().service(limited));
    let mut session = stage.session(service);
    let mut refused_of = |asked: usize| {
        (0..asked).filter(|_| session.get("/").expect("an answer").status == 429).count() as f64 / asked as f64
    };
    assert_eq!(refused_of(300), 0.0);
    percent.store(100, Relaxed);
    thread::sleep(Duration::from_millis(2_200));
    refused_of(100);
    let refused = refused_of(1_000);
    assert!((0.7..=0.9).contains(&refused), "all fails, so four in five are refused: {refused}");
    percent.store(0, Relaxed);
    wait::until("it to recover", wait::SOON, || refused_of(100) == 0.0);
}

#[test]
fn admission_of_a_route_goes_by_what_succeeds_of_that_route_alone() {
    let Some(stage) = Stage::set() else { return };
    let (service, (percent, origin)) = (stage.address(), failing(&stage));
    let rule = "{ kind: admission, window_ms: 2000, status: 429 }";
    let routes =
        format!("routes: [{{ name: some, match: {{ path: / }}, request_limits: [{rule}] }}, {{ name: rest }}]");
    let limited = Service::http("limited", service).set(&routes).to(origin.address());
    let agent = Agent::start(&stage.config().service(limited));
    let mut session = stage.session(service);
    let mut refused_of = |path: &str, asked: usize| {
        (0..asked).filter(|_| session.get(path).expect("an answer").status == 429).count() as f64 / asked as f64
    };
    percent.store(100, Relaxed);
    assert_eq!(refused_of("/other", 300), 0.0, "that route has no limit");
    percent.store(0, Relaxed);
    assert_eq!(refused_of("/", 300), 0.0, "what failed was another's");
    percent.store(100, Relaxed);
    thread::sleep(Duration::from_millis(2_200));
    refused_of("/", 100);
    let refused = refused_of("/", 1_000);
    assert!((0.7..=0.9).contains(&refused), "all fails, so four in five are refused: {refused}");
    let labels = [("service", "limited"), ("route", "some"), ("decision", "refused")];
    assert!(agent.metric("sockway_route_limit_decisions_total", &labels) >= 700.0);
    percent.store(0, Relaxed);
    wait::until("it to recover", wait::SOON, || refused_of("/", 100) == 0.0);
}

#[test]
fn bbr_lets_no_more_in_at_once_than_get_done_for_a_service_and_for_a_route() {
    let Some(stage) = Stage::set() else { return };
    let takes = Duration::from_millis(40);
    // A processor that is never idle: it limits from the first request on.
    let limits = "request_limits: [{ kind: bbr, cpu_percent: 0, window_ms: 2000 }]";
    let of_route = format!("routes: [{{ name: slow, match: {{ path: / }}, {limits} }}]");
    let services = [(stage.address(), limits, "request"), (stage.address(), &*of_route, "route")];
    let servers = [(); 2].map(|()| Server::start(&stage, 8, takes));
    let of = |((service, limits, name), (_, origin)): (&(SocketAddr, &str, &str), &(Arc<Server>, Origin))| {
        Service::http(&format!("of-{name}"), *service).set(limits).to(origin.address())
    };
    let agent = Agent::start(&stage.config().with_services(services.iter().zip(&servers).map(of)));
    for ((service, _, name), (server, _)) in services.iter().zip(&servers) {
        let of_service = format!("of-{name}");
        let labels = [("service", &*of_service), ("limit", "bbr")];
        let limit = || agent.metric(&format!("sockway_{name}_limit_concurrency"), &labels);
        // Three times what the server gets done: of sixty clients all but eight would stand in its line.
        under_load(&stage, *service, (60, Duration::from_millis(100), takes * 5), |told| {
            wait::until("the limit to be found", wait::SOON, || limit() >= 8.0);
            let (good, full) = (told.good_in(Duration::from_secs(3)), capacity(8.0, takes));
            let (at, most, refused) = (limit(), server.most.load(Relaxed), told.refused.load(Relaxed));
            tell(&format!("{good:.0} good a second of {full:.0}, limit {at}, {most} at once, {refused} refused"));
            assert!(good > 0.6 * full, "{good} of {full}");
            assert!(most < 45, "{most} at once");
            assert!(refused > 0);
        });
        wait::until("all places to be given back", wait::SOON, || {
            agent.metric(&format!("sockway_{name}_limit_open"), &labels) == 0.0
        });
    }
}

/// A server that works for a hundredth of a second of processor time for each request.
const BUSY: &str = r#"
import socketserver, time
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        while self.request.recv(4096):
            end = time.thread_time() + 0.01
            while time.thread_time() < end: pass
            self.request.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
"#;

#[test]
fn bbr_goes_by_the_processor_time_of_who_listens() {
    let Some(stage) = Stage::set() else { return };
    let (service, own) = (stage.address(), Cgroup::new("busy"));
    let at = stage.address();
    let program = format!("{BUSY}\nServer(('{}', {}), Handler).serve_forever()", at.ip(), at.port());
    let mut python = Command::new("python3");
    python.args(["-c", &program]);
    let _server = own.spawn(python);
    wait::until("it to listen", wait::SOON, || std::net::TcpStream::connect(at).is_ok());
    let rule = "{ kind: bbr, cpu_percent: 1 }";
    let limited = Service::http("limited", service).set(&format!("request_limits: [{rule}]")).to(at);
    let agent = Agent::start(&stage.config().service(limited));
    let metric = |name: &str| agent.metric(name, &[("service", "limited")]);
    assert_eq!(metric("sockway_request_limit_processor_busy_ratio"), 0.0);
    let patience = Duration::from_secs(60);
    // By itself a request takes as long as it must.
    under_load(&stage, service, (1, Duration::from_millis(20), patience), |_| thread::sleep(Duration::from_secs(1)));
    under_load(&stage, service, (6, Duration::from_millis(1), patience), |told| {
        wait::until("its processor time to be seen", wait::SOON, || {
            metric("sockway_request_limit_processor_busy_ratio") > 0.05
        });
        wait::until("some to be refused", wait::SOON, || told.refused.load(Relaxed) > 0);
        assert!(told.good.load(Relaxed) > 0);
        tell(&format!("{} may be on their way", metric("sockway_request_limit_concurrency")));
    });
}

#[test]
fn a_gradient_and_a_bbr_of_a_route_go_by_the_requests_of_that_route_alone() {
    let Some(stage) = Stage::set() else { return };
    let (takes, service) = (Duration::from_millis(40), stage.address());
    let (_server, origin) = Server::start(&stage, 8, takes);
    let limits = "request_limits: [{ kind: gradient, min: 4, min_rtt_requests: 20 }, { kind: bbr }]";
    let routes = format!("routes: [{{ name: slow, match: {{ path: / }}, {limits} }}, {{ name: rest }}]");
    let agent =
        Agent::start(&stage.config().service(Service::http("limited", service).set(&routes).to(origin.address())));
    let of =
        |name: &str, limit: &str| agent.metric(name, &[("service", "limited"), ("route", "slow"), ("limit", limit)]);
    for _ in 0..30 {
        assert_eq!(stage.session(service).get("/other").expect("an answer").status, 200);
    }
    assert_eq!(of("sockway_route_limit_concurrency", "gradient"), 0.0, "nothing was asked of that route");
    // Three times what the server gets done.
    let load = (60, Duration::from_millis(100), takes * 4);
    under_load(&stage, service, load, |told| {
        let limit = || of("sockway_route_limit_concurrency", "gradient");
        wait::until("the limit to be found", wait::SOON, || limit() >= 8.0);
        let good = told.good_in(Duration::from_secs(3));
        tell(&format!("{good:.0} good a second of {:.0}, limit {}", capacity(8.0, takes), limit()));
        assert!(good > 0.5 * capacity(8.0, takes), "{good}");
        assert!(told.refused.load(Relaxed) > 0);
    });
    wait::until("all places to be given back", wait::SOON, || of("sockway_route_limit_open", "gradient") == 0.0);
    assert_eq!(of("sockway_route_limit_open", "bbr"), 0.0);
}

#[test]
fn what_a_gradient_has_no_room_for_waits_where_the_service_has_a_line() {
    let Some(stage) = Stage::set() else { return };
    let (takes, service) = (Duration::from_millis(40), stage.address());
    let (_server, origin) = Server::start(&stage, 8, takes);
    let limits = "request_limits: [{ kind: gradient, min: 4, min_rtt_requests: 20 }, { kind: bbr }]";
    let pending = "pending: { requests_max: 1000, wait_max_ms: 20000 }";
    let limited = Service::http("limited", service).set(limits).set(pending).to(origin.address());
    let agent = Agent::start(&stage.config().service(limited));
    let of = |name: &str| agent.metric(name, &[("service", "limited")]);
    let load = (60, Duration::from_millis(100), Duration::from_secs(60));
    under_load(&stage, service, load, |told| {
        wait::until("some to wait", wait::SOON, || of("sockway_pending_requests") > 0.0);
        wait::until("some to be served that waited", wait::SOON, || of("sockway_pending_served_total") > 100.0);
        assert_eq!(told.refused.load(Relaxed), 0, "there is room in the line for all of them");
        let served = told.good_in(Duration::from_secs(3));
        assert!(served > 0.5 * capacity(8.0, takes), "{served}");
    });
    wait::until("nobody to wait", wait::SOON, || of("sockway_pending_requests") == 0.0);
}
