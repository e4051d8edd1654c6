//! How the agent balances requests, by what is known of endpoints and what stands in a request, as real clients meet it.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, BufReader, Write as _},
    net::{SocketAddr, TcpStream},
    process::Command,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use sockway_tests::{
    agent::Agent,
    answer::{Session, read_head},
    config::Service,
    origin::Origin,
    process::{Process, Room},
    stage::{Stage, tell},
    wait,
    web::Web,
};
use tempfile::TempDir;

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

fn webs(stage: &Stage) -> Vec<Web> {
    NAMES.iter().map(|name| stage.web(name)).collect()
}

fn service(stage: &Stage, webs: &[Web], keys: &[&str]) -> (SocketAddr, Service) {
    let address = stage.address();
    let service = Service::http("web", address).to_all(webs.iter().map(Web::address));
    (address, keys.iter().fold(service, |service, key| service.set(key)))
}

/// Who answers a request with these lines in its head.
fn ask(session: &mut Session, path: &str, fields: &str) -> String {
    begin(session, path, fields);
    session.read("GET").expect("an answer").text()
}

fn begin(session: &mut Session, path: &str, fields: &str) {
    session.write(format!("GET {path} HTTP/1.1\r\nHost: test\r\n{fields}\r\n").as_bytes()).expect("a connection");
}

/// An endpoint that has one worker, which takes so long for each request: who comes while it is busy waits.
fn one_at_a_time(stage: &Stage, takes: Duration) -> Origin {
    let listener = stage.origin().listen(stage.address()).expect("a free address");
    let worker = Arc::new(Mutex::new(()));
    Origin::start(listener, move |stream, _| answer_one_by_one(stream, &worker, takes))
}

fn answer_one_by_one(mut stream: &TcpStream, worker: &Mutex<()>, takes: Duration) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    while read_head(&mut reader)?.is_some() {
        let _busy = worker.lock().expect("no thread panics with it");
        thread::sleep(takes);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?;
    }
    Ok(())
}

/// How long the slowest hundredth of the requests of many clients takes at least.
fn slowest_hundredth(stage: &Stage, address: SocketAddr) -> Duration {
    const CLIENTS: usize = 24;
    const EACH: usize = 50;
    let sessions: Vec<Session> = (0..CLIENTS).map(|_| stage.session(address)).collect();
    let threads: Vec<_> = sessions
        .into_iter()
        .map(|mut session| {
            thread::spawn(move || {
                let timed = |_| {
                    let began = Instant::now();
                    assert_eq!(session.get("/").expect("an answer").status, 200);
                    began.elapsed()
                };
                (0..EACH).map(timed).collect::<Vec<Duration>>()
            })
        })
        .collect();
    let mut took: Vec<Duration> = threads.into_iter().flat_map(|thread| thread.join().expect("answers")).collect();
    took.sort_unstable();
    took[took.len() * 99 / 100]
}

#[test]
fn with_one_slow_endpoint_of_five_the_slowest_requests_wait_less_than_in_turn() {
    let Some(stage) = Stage::set() else { return };
    let (fast, slow) = (Duration::from_millis(1), Duration::from_millis(15));
    let takes = [fast, fast, slow, fast, fast];
    let mut found = BTreeMap::new();
    for balance in ["round_robin", "least_request", "peak_ewma"] {
        let origins = takes.map(|takes| one_at_a_time(&stage, takes));
        let address = stage.address();
        let service = Service::http("web", address).set(&format!("balance: {balance}"));
        let _agent = Agent::start(&stage.config().service(service.to_all(origins.iter().map(Origin::address))));
        found.insert(balance, slowest_hundredth(&stage, address));
    }
    tell(&format!("p99 with one slow endpoint of five: {found:?}"));
    let in_turn = found["round_robin"];
    for balance in ["least_request", "peak_ewma"] {
        assert!(found[balance] <= in_turn.mul_f64(0.7), "{balance}: {found:?}");
    }
}

/// nginx before the same endpoints.
fn nginx(stage: &Stage, servers: &str) -> (SocketAddr, Process, TempDir) {
    let (directory, address) = (TempDir::new().expect("a temporary directory"), stage.address());
    let path = directory.path().to_string_lossy().into_owned();
    let temporary =
        ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|what| format!("{what}_temp_path {path}/{what};"));
    let config = format!(
        "daemon off; master_process off; pid {path}/nginx.pid; events {{}} http {{ access_log off; {}
         upstream web {{ hash $http_x_key consistent; {servers} keepalive 16; }}
         server {{ listen {address}; keepalive_requests 100000; location / {{ proxy_pass http://web; proxy_http_version 1.1;
         proxy_set_header Connection ''; }} }} }}",
        temporary.join(" ")
    );
    let file = directory.path().join("nginx.conf");
    fs::write(&file, config).expect("nginx's configuration");
    let mut command = Command::new("nginx");
    command.arg("-c").arg(&file).arg("-e").arg(directory.path().join("error.log"));
    let process = Process::spawn(Room::of(&stage.origins), command);
    wait::until("nginx to listen", wait::SOON, || stage.origin().dial(address).is_ok());
    (address, process, directory)
}

#[test]
fn ten_thousand_keys_find_the_endpoints_that_nginx_finds_for_them() {
    let Some(stage) = Stage::set() else { return };
    let webs = webs(&stage);
    let weights = [1, 2, 1, 3, 1];
    let address = stage.address();
    let keys = ["balance: ring_hash", "ring_hash: { hash: ketama }", "hash_on: [{ header: x-key }]"];
    let service = keys.iter().fold(Service::http("web", address), |service, key| service.set(key));
    let of = || webs.iter().map(Web::address).zip(weights);
    let service = of().fold(service, |service, (address, weight)| service.weighted(address, weight));
    let _agent = Agent::start(&stage.config().service(service));
    let servers: String = of().map(|(address, weight)| format!("server {address} weight={weight}; ")).collect();
    let (nginx, _process, _directory) = nginx(&stage, &servers);
    let mut ours = stage.session(address);
    let mut theirs = Session::on(stage.origin().dial(nginx).expect("nginx"));
    for key in 0..10_000 {
        let field = format!("X-Key: user-{key}\r\n");
        assert_eq!(ask(&mut ours, "/", &field), ask(&mut theirs, "/", &field), "user-{key}");
    }
}

#[test]
fn a_request_goes_where_its_key_says_and_the_first_terminal_part_decides() {
    let Some(stage) = Stage::set() else { return };
    for balance in ["ring_hash", "maglev", "source_hash"] {
        let mut webs = webs(&stage);
        let on = "hash_on: [{ header: X-User, terminal: on }, { cookie: sid }, { query: id }]";
        let (address, service) = service(&stage, &webs, &[&format!("balance: {balance}"), on]);
        let _agent = Agent::start(&stage.config().service(service));
        let mut session = stage.session(address);
        let user = |number: usize| format!("X-User: user-{number}\r\n");
        let names: Vec<String> = (0..40).map(|number| ask(&mut session, "/", &user(number))).collect();
        for (number, name) in names.iter().enumerate() {
            assert_eq!(ask(&mut stage.session(address), "/", &user(number)), *name, "{balance}: another connection");
            let more = format!("{}Cookie: x=1; sid=abc\r\n", user(number));
            assert_eq!(ask(&mut session, "/", &more), *name, "{balance}: what follows a terminal part says nothing");
        }
        let used = |names: &[String]| NAMES.iter().filter(|name| names.iter().any(|found| found == *name)).count();
        assert_eq!(used(&names), 5, "{balance}: {names:?}");
        let of_cookies: Vec<String> =
            (0..40).map(|number| ask(&mut session, "/", &format!("Cookie: a=b; sid={number}\r\n"))).collect();
        assert!(used(&of_cookies) >= 4, "{balance}: {of_cookies:?}");
        assert_eq!(ask(&mut session, "/", "Cookie: sid=7; a=c\r\n"), of_cookies[7], "{balance}: one cookie of many");
        let nobody: Vec<String> = (0..60).map(|_| ask(&mut session, "/", "")).collect();
        assert!(used(&nobody) >= 4, "{balance}: who has no key goes anywhere: {nobody:?}");

        // One dies: its keys find others, and nobody else's move.
        webs.pop().expect("e").die();
        for (number, name) in names.iter().enumerate() {
            let now = ask(&mut session, "/", &user(number));
            assert!(now == *name || name == "e" && now != "e", "{balance}: user-{number} {name} {now}");
        }
    }
}

/// So many requests that are answered half, each on its own connection. Who has them, by how many each endpoint has.
fn hold(stage: &Stage, address: SocketAddr, webs: &[Web], fields: &[&str]) -> (Vec<Session>, Vec<usize>) {
    let held = |webs: &[Web]| webs.iter().map(Web::waiting).sum::<usize>();
    let sessions = fields.iter().map(|fields| {
        let before = held(webs);
        let mut session = stage.session(address);
        begin(&mut session, "/gate", fields);
        wait::until("a request to be held", wait::SOON, || held(webs) == before + 1);
        session
    });
    let sessions = sessions.collect();
    (sessions, webs.iter().map(Web::waiting).collect())
}

#[test]
fn what_a_request_says_to_cost_counts_as_so_many() {
    let Some(stage) = Stage::set() else { return };
    let webs = webs(&stage);
    let keys = ["balance: least_request", "least_request: { full_scan: on }", "cost: { header: x-cost, max: 8 }"];
    let (address, service) = service(&stage, &webs, &keys);
    let _agent = Agent::start(&stage.config().service(service));
    let mut fields = vec!["X-Cost: 100\r\n"];
    fields.extend([""; 32]);
    let (sessions, mut held) = hold(&stage, address, &webs, &fields);
    held.sort_unstable();
    // Eight for the dear one, at most: the others have as many each.
    assert_eq!(held, [1, 8, 8, 8, 8]);
    webs.iter().for_each(Web::open_gate);
    drop(sessions);
}

#[test]
fn with_a_balance_factor_no_endpoint_has_more_than_its_part() {
    let Some(stage) = Stage::set() else { return };
    let webs = webs(&stage);
    let keys = ["balance: ring_hash", "hash_on: [{ header: x-user }]", "hash_balance_factor: 150"];
    let (address, service) = service(&stage, &webs, &keys);
    let _agent = Agent::start(&stage.config().service(service));
    let (sessions, held) = hold(&stage, address, &webs, &["X-User: same\r\n"; 20]);
    // ceil(20 / 5 * 1.5)
    assert_eq!(held.iter().max(), Some(&6), "{held:?}");
    webs.iter().for_each(Web::open_gate);
    drop(sessions);
}
