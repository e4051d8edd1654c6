//! TLS that ends and begins in the real agent: real programs, certificates that change, and peers that break the rules.

use std::{
    fs,
    io::{self, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    path::Path,
    process::Output,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use sockway_tests::{
    agent::Agent,
    answer::{read_answer, read_head, write_request},
    config::{Config, Service},
    origin::Origin,
    peers::{self, Nghttpd, Nginx},
    process::Room,
    stage::Stage,
    tls::{self, Authority, Pair},
    wait,
    web::pattern,
};
use tempfile::NamedTempFile;

const MIB: usize = 1 << 20;

fn terminate(pairs: &[&Pair]) -> String {
    let pairs: Vec<String> = pairs.iter().map(|pair| pair.yaml()).collect();
    format!("tls: {{ terminate: {{ certificates: [{}], handshake_timeout_ms: 400 }} }}", pairs.join(", "))
}

fn originate(keys: &str) -> String {
    format!("tls: {{ originate: {{ {keys} }} }}")
}

/// A stage with one service.
struct Hop {
    agent: Agent,
    config: Config,
    service: SocketAddr,
    stage: Stage,
}

impl Hop {
    fn by(stage: Stage, service: impl FnOnce(SocketAddr) -> Service) -> Self {
        let address = stage.address();
        let config = stage.config().set("workers: 1").service(service(address));
        Self { agent: Agent::start(&config), config, service: address, stage }
    }

    /// `curl` to `https://name/path`, which is the service whatever the name.
    fn curl_tls(&self, root: &Path, name: &str, path: &str, arguments: &[&str]) -> Output {
        let port = self.service.port();
        let url = format!("https://{name}:{port}{path}");
        let resolve = format!("{name}:{port}:{}", self.service.ip());
        let common = ["--cacert", root.to_str().unwrap(), "--resolve", &resolve, &url];
        peers::curl(Room::of(&self.stage.clients), &[&common, arguments].concat())
    }

    fn curl(&self, path: &str, arguments: &[&str]) -> Output {
        let url = format!("http://{}{path}", self.service);
        peers::curl(Room::of(&self.stage.clients), &[&[url.as_str()], arguments].concat())
    }

    /// A client of TLS, before its handshake.
    fn client(&self, root: &Path, name: &str) -> tls::Client {
        tls::client(self.stage.dial(self.service).expect("a connection"), root, name)
    }

    fn closed(&self, reason: &str) -> f64 {
        self.agent.metric("sockway_connections_closed_total", &[("reason", reason)])
    }

    #[track_caller]
    fn wait_closed(&self, reason: &str) {
        wait::until(reason, wait::SOON, || self.closed(reason) == 1.0);
    }
}

#[track_caller]
fn body(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    peers::stdout(output)
}

#[test]
fn curl_asks_by_tls_and_the_endpoint_answers_in_plain() {
    let Some(stage) = Stage::set() else { return };
    let authority = Authority::new();
    let (pair, origin) = (authority.issue("a", &["a.example"]), stage.web("plain"));
    let hop = Hop::by(stage, |address| Service::http("web", address).set(&terminate(&[&pair])).to(origin.address()));
    let told = hop.curl_tls(&authority.root(), "a.example", "/", &["--write-out", " %{http_version}"]);
    assert_eq!(body(&told), "plain 1.1", "the endpoint's protocol is what is agreed on");
    let tls12 = hop.curl_tls(&authority.root(), "a.example", "/", &["--tls-max", "1.2"]);
    assert_eq!(body(&tls12), "plain");
    hop.agent.metric_comes_to("sockway_tls_handshakes_total", &[], 2.0);
    let stranger = hop.curl_tls(&Authority::new().root(), "a.example", "/", &[]);
    assert_eq!(stranger.status.code(), Some(60), "curl trusts somebody else");
    hop.wait_closed("tls_refused");
}

#[test]
fn long_bodies_go_both_ways_under_tls_unchanged() {
    let Some(stage) = Stage::set() else { return };
    let authority = Authority::new();
    let (pair, origin) = (authority.issue("a", &["a.example"]), stage.web("plain"));
    let hop = Hop::by(stage, |address| Service::http("web", address).set(&terminate(&[&pair])).to(origin.address()));
    let (mut sent, got) = (NamedTempFile::new().unwrap(), NamedTempFile::new().unwrap());
    sent.write_all(&pattern(10 * MIB)).unwrap();
    let (data, to) = (format!("@{}", sent.path().display()), got.path().to_str().unwrap());
    for path in ["/echo", "/echo-chunked"] {
        body(&hop.curl_tls(&authority.root(), "a.example", path, &["--data-binary", &data, "--output", to]));
        assert!(fs::read(got.path()).unwrap() == pattern(10 * MIB), "{path}");
    }
}

#[test]
fn http2_is_agreed_on_by_alpn_where_the_service_speaks_it() {
    let Some(stage) = Stage::set() else { return };
    let authority = Authority::new();
    let pair = authority.issue("a", &["a.example"]);
    let endpoint = stage.address();
    let _origin = Nghttpd::start(Room::of(&stage.origins), stage.origin(), endpoint, 3_000_000, &[]);
    for service in [Service::http2 as fn(&str, SocketAddr) -> Service, Service::auto] {
        let hop =
            Hop::by(Stage::set().unwrap(), |address| service("web", address).set(&terminate(&[&pair])).to(endpoint));
        let got = NamedTempFile::new().unwrap();
        let output = ["--output", got.path().to_str().unwrap(), "--write-out", "%{http_version} %{response_code}"];
        let told = hop.curl_tls(&authority.root(), "a.example", "/bytes", &output);
        assert_eq!(body(&told), "2 200");
        assert!(fs::read(got.path()).unwrap() == vec![b'n'; 3_000_000]);
    }
}

#[test]
fn a_client_that_wants_http1_gets_it_from_a_service_of_any_protocol() {
    let Some(stage) = Stage::set() else { return };
    let authority = Authority::new();
    let (pair, origin) = (authority.issue("a", &["a.example"]), stage.web("either"));
    let hop = Hop::by(stage, |address| Service::auto("web", address).set(&terminate(&[&pair])).to(origin.address()));
    for way in ["--http1.1", "--no-alpn"] {
        assert_eq!(body(&hop.curl_tls(&authority.root(), "a.example", "/", &[way])), "either", "{way}");
    }
}

#[test]
fn the_certificate_is_chosen_by_the_name_that_is_asked_for() {
    let Some(stage) = Stage::set() else { return };
    let (first, second) = (Authority::new(), Authority::new());
    let pairs = [first.issue("a", &["a.example"]), second.issue("b", &["b.example", "*.b.example"])];
    let origin = stage.web("plain");
    let hop = Hop::by(stage, |address| {
        Service::http("web", address).set(&terminate(&[&pairs[0], &pairs[1]])).to(origin.address())
    });
    for (authority, name) in [(&first, "a.example"), (&second, "b.example"), (&second, "c.b.example")] {
        assert_eq!(body(&hop.curl_tls(&authority.root(), name, "/", &[])), "plain", "{name}");
    }
    // Not by the second's root: who asks for another name is shown the first, which is not of that name.
    let other = hop.curl_tls(&first.root(), "other.example", "/", &[]);
    assert_eq!(other.status.code(), Some(60));
}

#[test]
fn a_new_certificate_is_shown_at_once_and_open_connections_go_on() {
    let Some(stage) = Stage::set() else { return };
    let (old, new) = (Authority::new(), Authority::new());
    let (pair, origin) = (old.issue("a", &["a.example"]), stage.web("plain"));
    let hop = Hop::by(stage, |address| Service::http("web", address).set(&terminate(&[&pair])).to(origin.address()));
    let mut open = BufReader::new(hop.client(&old.root(), "a.example"));
    let mut ask = || {
        write_request(open.get_mut(), "GET", "/", b"")?;
        read_answer(&mut open, "GET")
    };
    assert_eq!(ask().unwrap().text(), "plain");
    let generation = hop.agent.generation();
    let renewed = new.issue("a", &["a.example"]);
    fs::rename(&renewed.key, &pair.key).unwrap();
    fs::rename(&renewed.cert, &pair.cert).unwrap();
    hop.agent.wait_generation_after(generation);
    assert_eq!(body(&hop.curl_tls(&new.root(), "a.example", "/", &[])), "plain");
    assert_eq!(hop.curl_tls(&old.root(), "a.example", "/", &[]).status.code(), Some(60));
    assert_eq!(ask().unwrap().text(), "plain", "a connection that was open");
}

#[test]
fn a_certificate_that_cannot_be_used_is_refused_with_its_place_and_the_old_one_goes_on() {
    let Some(stage) = Stage::set() else { return };
    let authority = Authority::new();
    let (pair, origin) = (authority.issue("a", &["a.example"]), stage.web("plain"));
    let hop = Hop::by(stage, |address| Service::http("web", address).set(&terminate(&[&pair])).to(origin.address()));
    let refused = || hop.agent.metric("sockway_config_reloads_total", &[("result", "refused")]);
    let still_serves = |why: &str| {
        wait::until(why, wait::SOON, || hop.agent.log().contains(why));
        assert_eq!(body(&hop.curl_tls(&authority.root(), "a.example", "/", &[])), "plain");
        assert!(refused() >= 1.0);
    };
    let good = [fs::read(&pair.cert).unwrap(), fs::read(&pair.key).unwrap()];
    authority.issue_until("a", &["a.example"], 2020);
    still_serves("expired on 2020-01-01 00:00:00 UTC; renew it");
    fs::write(&pair.cert, &good[0]).unwrap();
    still_serves("holds the key of another certificate");
    fs::remove_file(&pair.key).unwrap();
    still_serves("cannot be read: No such file");
    assert!(hop.agent.log().contains("sockway.yaml:"), "where it is named: {}", hop.agent.log());
    fs::write(&pair.key, &good[1]).unwrap();
    wait::until("the old pair to be good again", wait::SOON, || {
        hop.agent.metric("sockway_config_last_reload_success", &[]) == 1.0
    });
}

#[test]
fn who_does_not_speak_tls_is_told_so_and_counted() {
    let Some(stage) = Stage::set() else { return };
    let authority = Authority::new();
    let (pair, origin) = (authority.issue("a", &["a.example"]), stage.web("plain"));
    let hop = Hop::by(stage, |address| Service::http("web", address).set(&terminate(&[&pair])).to(origin.address()));
    let mut garbage = hop.stage.dial(hop.service).unwrap();
    garbage.write_all(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").unwrap();
    let mut told = Vec::new();
    let _ = garbage.read_to_end(&mut told);
    assert_eq!((told[0], told.len()), (21, 7), "an alert and nothing else: {told:?}");
    hop.wait_closed("not_tls");
    assert_eq!(origin.connections(), 0);
    drop(hop.stage.dial(hop.service).unwrap());
    hop.wait_closed("tls_client_aborted");
}

#[test]
fn a_handshake_that_does_not_go_on_is_ended() {
    let Some(stage) = Stage::set() else { return };
    let authority = Authority::new();
    let (pair, origin) = (authority.issue("a", &["a.example"]), stage.web("plain"));
    let hop = Hop::by(stage, |address| Service::http("web", address).set(&terminate(&[&pair])).to(origin.address()));
    let mut slow = hop.stage.dial(hop.service).unwrap();
    // The beginning of a record of a client hello, and then nothing.
    slow.write_all(&[22, 3, 1, 2, 0, 1]).unwrap();
    assert_eq!(slow.read(&mut [0; 16]).unwrap_or(0), 0);
    hop.wait_closed("tls_handshake_timeout");
}

/// A stream that sends every byte by itself.
struct Dripping(TcpStream);

impl Write for Dripping {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(&bytes[..bytes.len().min(1)])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Read for Dripping {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.read(bytes)
    }
}

#[test]
fn handshake_and_request_may_come_byte_by_byte() {
    let Some(stage) = Stage::set() else { return };
    let authority = Authority::new();
    let (pair, origin) = (authority.issue("a", &["a.example"]), stage.web("plain"));
    let hop = Hop::by(stage, |address| Service::http("web", address).set(&terminate(&[&pair])).to(origin.address()));
    let whole = hop.client(&authority.root(), "a.example");
    whole.sock.set_nodelay(true).unwrap();
    let mut client = BufReader::new(rustls::StreamOwned::new(whole.conn, Dripping(whole.sock)));
    write_request(client.get_mut(), "POST", "/echo", &pattern(500)).unwrap();
    assert_eq!(read_answer(&mut client, "POST").unwrap().body, pattern(500));
}

#[test]
fn a_response_that_ends_with_the_connection_is_ended_by_tls() {
    let Some(stage) = Stage::set() else { return };
    let authority = Authority::new();
    let (pair, origin) = (authority.issue("a", &["a.example"]), stage.web("plain"));
    let hop = Hop::by(stage, |address| Service::http("web", address).set(&terminate(&[&pair])).to(origin.address()));
    let mut client = BufReader::new(hop.client(&authority.root(), "a.example"));
    write_request(client.get_mut(), "GET", "/until-close/300000", b"").unwrap();
    // rustls tells an end without close_notify as an error.
    assert!(read_answer(&mut client, "GET").unwrap().body == pattern(300_000));
    let mut client = BufReader::new(hop.client(&authority.root(), "a.example"));
    write_request(client.get_mut(), "GET", "/cut", b"").unwrap();
    assert!(read_answer(&mut client, "GET").is_err(), "cut off by the endpoint, and so by the agent");
}

#[test]
fn opaque_bytes_and_their_ends_pass_through_tls() {
    let Some(stage) = Stage::set() else { return };
    let authority = Authority::new();
    let pair = authority.issue("a", &["a.example"]);
    // Hears all before it says anything: each side ends by itself.
    let origin = Origin::start(stage.origin().listen(stage.address()).unwrap(), |mut stream, _| {
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard)?;
        stream.write_all(&heard)
    });
    let hop =
        Hop::by(stage, |address| Service::agent_tcp("bytes", address).set(&terminate(&[&pair])).to(origin.address()));
    let mut client = hop.client(&authority.root(), "a.example");
    client.write_all(&pattern(3 * MIB)).unwrap();
    client.conn.send_close_notify();
    client.flush().unwrap();
    let mut back = Vec::new();
    client.read_to_end(&mut back).unwrap();
    assert!(back == pattern(3 * MIB), "{} bytes", back.len());
    hop.wait_closed("relay_done");
    let metrics = hop.agent.metrics();
    for result in metrics.values_of("sockway_joins_total", "result") {
        assert_eq!(metrics.get("sockway_joins_total", &[("result", result)]), 0.0, "never joined: {result}");
    }
}

#[test]
fn the_shortcut_may_carry_tls_and_never_joins_it() {
    let Some(stage) = Stage::set() else { return };
    let authority = Authority::new();
    let (pair, origin) = (authority.issue("a", &["a.example"]), stage.web("plain"));
    let address = stage.address();
    let service = Service::agent_tcp("bytes", address).set(&terminate(&[&pair])).set("shortcut: on");
    let config = stage.config_with_shortcut().service(service.to(origin.address()));
    let hop = Hop { agent: Agent::start(&config), config, service: address, stage };
    let got = NamedTempFile::new().unwrap();
    let path = format!("/bytes/{}", 3 * MIB);
    body(&hop.curl_tls(&authority.root(), "a.example", &path, &["--output", got.path().to_str().unwrap()]));
    assert!(fs::read(got.path()).unwrap() == pattern(3 * MIB));
    assert_eq!(hop.agent.metric("sockway_joins_total", &[("result", "armed")]), 0.0);
}

#[test]
fn what_a_client_cuts_off_is_no_end_for_the_endpoint() {
    let Some(stage) = Stage::set() else { return };
    let authority = Authority::new();
    let pair = authority.issue("a", &["a.example"]);
    let (tell, hear) = std::sync::mpsc::channel();
    let tell = std::sync::Mutex::new(tell);
    let origin = Origin::start(stage.origin().listen(stage.address()).unwrap(), move |mut stream, _| {
        let ended = stream.read_to_end(&mut Vec::new());
        let _ = tell.lock().unwrap().send(ended.map_err(|error| error.kind()));
        Ok(())
    });
    let hop =
        Hop::by(stage, |address| Service::agent_tcp("bytes", address).set(&terminate(&[&pair])).to(origin.address()));
    let mut client = hop.client(&authority.root(), "a.example");
    client.write_all(b"the beginning").unwrap();
    client.sock.shutdown(Shutdown::Write).unwrap();
    assert_eq!(hear.recv_timeout(wait::SOON).unwrap(), Err(io::ErrorKind::ConnectionReset));
    hop.wait_closed("relay_client_reset");
}

#[test]
fn an_endpoint_that_wants_a_certificate_is_shown_it() {
    let Some(stage) = Stage::set() else { return };
    let (servers, clients) = (Authority::new(), Authority::new());
    let (server, own) = (servers.issue("s", &["s.example"]), clients.issue("c", &["agent"]));
    let endpoint = stage.address();
    let listen = format!(
        "listen {endpoint} ssl backlog=1024; ssl_certificate {}; ssl_certificate_key {}; ssl_client_certificate {}; \
         ssl_verify_client on;",
        server.cert.display(),
        server.key.display(),
        clients.root().display()
    );
    let _origin = Nginx::start_with(Room::of(&stage.origins), stage.origin(), &listen, endpoint, "secret");
    let keys = format!("roots: {}, server_name: s.example", servers.root().display());
    let hop = Hop::by(stage, |address| {
        let keys = format!("{keys}, certificate: {}", own.yaml());
        Service::http("web", address).set(&originate(&keys)).to(endpoint)
    });
    for _ in 0..3 {
        assert_eq!(body(&hop.curl("/", &["--fail"])), "secret\n");
    }
    assert_eq!(hop.agent.metric("sockway_upstream_connects_total", &[("result", "accepted")]), 1.0, "one is used");
    // Without one: nginx answers, and says no.
    let without = Service::http("web", hop.service).set(&originate(&keys)).to(endpoint);
    hop.agent.reload(&hop.config.with_services([without]));
    assert!(body(&hop.curl("/", &[])).contains("No required SSL certificate was sent"));
}

#[test]
fn an_endpoint_that_misses_a_certificate_says_so_to_the_client() {
    let Some(stage) = Stage::set() else { return };
    let authority = Authority::new();
    let listener = stage.origin().listen(stage.address()).unwrap();
    let endpoint = listener.local_addr().unwrap();
    let pair = authority.issue("s", &["s.example"]);
    let _origin = tls::origin(listener, &pair, Some(&authority.root()), |_, _| Ok(()));
    let keys = format!("roots: {}, server_name: s.example", authority.root().display());
    let hop = Hop::by(stage, |address| Service::http("web", address).set(&originate(&keys)).to(endpoint));
    let told = body(&hop.curl("/", &["--write-out", "%{response_code}"]));
    assert!(told.contains("CertificateRequired") && told.ends_with("502"), "{told}");
}

#[test]
fn an_endpoint_that_nobody_trusted_vouches_for_is_refused_with_the_reason() {
    let Some(stage) = Stage::set() else { return };
    let (trusted, stranger) = (Authority::new(), Authority::new());
    let listener = stage.origin().listen(stage.address()).unwrap();
    let endpoint = listener.local_addr().unwrap();
    let _origin = tls::origin(listener, &stranger.issue("s", &["s.example"]), None, |_, _| Ok(()));
    let keys = format!("roots: {}, server_name: s.example", trusted.root().display());
    let hop = Hop::by(stage, |address| Service::http("web", address).set(&originate(&keys)).to(endpoint));
    let told = body(&hop.curl("/", &["--write-out", "%{response_code}"]));
    assert!(
        told.starts_with("sockway: TLS with the endpoint failed: invalid peer certificate: UnknownIssuer"),
        "{told}"
    );
    assert!(told.ends_with("502"), "{told}");
    hop.agent.metric_comes_to("sockway_upstream_connects_total", &[("result", "tls_failed")], 1.0);
    hop.agent.metric_comes_to("sockway_requests_total", &[("outcome", "endpoint_tls")], 1.0);
}

#[test]
fn an_endpoint_of_another_name_is_refused_and_one_of_its_address_is_not() {
    let Some(stage) = Stage::set() else { return };
    let authority = Authority::new();
    let endpoint = stage.address();
    let pair = authority.issue("s", &["s.example", &endpoint.ip().to_string()]);
    let listener = stage.origin().listen(endpoint).unwrap();
    let _origin = tls::origin(listener, &pair, None, |server, _| answer_each(server));
    let other = stage.address();
    let [by_address, by_name] = ["", ", server_name: other.example"]
        .map(|name| originate(&format!("roots: {}{name}", authority.root().display())));
    let hop = Hop::by(stage, |address| Service::http("web", address).set(&by_address).to(endpoint));
    assert_eq!(body(&hop.curl("/", &[])), "sealed");
    let services = [(hop.service, &by_address), (other, &by_name)]
        .map(|(address, tls)| Service::http(&format!("w{}", address.port()), address).set(tls).to(endpoint));
    hop.agent.reload(&hop.config.with_services(services));
    let told = peers::stdout(&peers::curl(Room::of(&hop.stage.clients), &[&format!("http://{other}/")]));
    assert!(told.contains("certificate not valid for name \"other.example\""), "{told}");
}

/// Answers requests until there are no more.
fn answer_each(server: &mut tls::Server) -> io::Result<()> {
    let mut reader = BufReader::new(server);
    while read_head(&mut reader)?.is_some() {
        reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsealed")?;
    }
    Ok(())
}

#[test]
fn retries_and_cluster_strategies_go_to_endpoints_under_tls() {
    let Some(stage) = Stage::set() else { return };
    let authority = Authority::new();
    let pair = authority.issue("s", &["s.example"]);
    let origins = ["503 Busy", "200 OK"].map(|status| {
        let (asked, listener) = (Arc::<AtomicUsize>::default(), stage.origin().listen(stage.address()).unwrap());
        let count = Arc::clone(&asked);
        let origin = tls::origin(listener, &pair, None, move |server, _| {
            let mut reader = BufReader::new(server);
            while read_head(&mut reader)?.is_some() {
                count.fetch_add(1, SeqCst);
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 6\r\n\r\nsealed");
                reader.get_mut().write_all(answer.as_bytes())?;
            }
            Ok(())
        });
        (origin, asked)
    });
    let keys = originate(&format!("roots: {}, server_name: s.example", authority.root().display()));
    let to_both = |service: Service| service.to_all(origins.iter().map(|(origin, _)| origin.address())).set(&keys);
    let ways = [
        "retry: { attempts: 1, on: [5xx] }",
        "cluster: { strategy: failover, failed_status: [503] }",
        "cluster: { strategy: forking, forks: 2 }",
        "cluster: { strategy: broadcast, aggregate: any }",
    ];
    let addresses = ways.map(|way| (way, stage.address(), stage.address()));
    let services = addresses.iter().enumerate().flat_map(|(number, (way, http1, http2))| {
        let of_http1 = Service::http(&format!("one-{number}"), *http1);
        let of_http2 = Service::http2(&format!("two-{number}"), *http2).set("upstream_protocol: http1");
        [of_http1, of_http2].map(|service| to_both(service).set(way))
    });
    let agent = Agent::start(&stage.config().with_services(services));
    for (way, http1, http2) in addresses {
        for (address, arguments) in [(http1, &[][..]), (http2, &["--http2-prior-knowledge"][..])] {
            let before = origins.each_ref().map(|(_, asked)| asked.load(SeqCst));
            for _ in 0..4 {
                let url = format!("http://{address}/");
                let written = [&url, "--output", "/dev/null", "--write-out", "%{response_code}"];
                let told = peers::curl(Room::of(&stage.clients), &[&written, arguments].concat());
                assert_eq!(body(&told), "200", "{way} {arguments:?}: {}", agent.log());
            }
            for ((_, asked), before) in origins.iter().zip(before) {
                assert!(asked.load(SeqCst) > before, "{way} {arguments:?}: both are asked");
            }
        }
    }
    assert_eq!(agent.metric("sockway_upstream_connects_total", &[("result", "tls_failed")]), 0.0);
}

#[test]
fn a_response_cut_off_without_close_notify_is_not_whole() {
    let Some(stage) = Stage::set() else { return };
    let authority = Authority::new();
    let pair = authority.issue("s", &["s.example"]);
    let listener = stage.origin().listen(stage.address()).unwrap();
    let endpoint = listener.local_addr().unwrap();
    let _origin = tls::origin(listener, &pair, None, |server, _| {
        let head = read_head(&mut BufReader::new(&mut *server))?.ok_or(io::ErrorKind::UnexpectedEof)?;
        server.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
        server.write_all(&pattern(100_000))?;
        if head.word(1) == "/whole" { tls::say_end(server) } else { server.sock.shutdown(Shutdown::Write) }
    });
    let keys = format!("roots: {}, server_name: s.example", authority.root().display());
    let hop = Hop::by(stage, |address| Service::http("web", address).set(&originate(&keys)).to(endpoint));
    let got = NamedTempFile::new().unwrap();
    let output = ["--output", got.path().to_str().unwrap()];
    body(&hop.curl("/whole", &output));
    assert!(fs::read(got.path()).unwrap() == pattern(100_000));
    let cut = hop.curl("/cut", &output);
    assert!(!cut.status.success(), "curl took it for the whole");
    hop.agent.metric_comes_to("sockway_requests_total", &[("outcome", "response_aborted")], 1.0);
}

#[test]
fn http2_is_spoken_to_endpoints_under_tls_and_long_bodies_come_back() {
    let Some(stage) = Stage::set() else { return };
    let authority = Authority::new();
    let pair = authority.issue("s", &["s.example"]);
    let endpoint = stage.address();
    let _origin = Nghttpd::start_tls(Room::of(&stage.origins), stage.origin(), endpoint, 3_000_000, &pair);
    let keys = format!("roots: {}, server_name: s.example", authority.root().display());
    let hop = Hop::by(stage, |address| Service::http2("web", address).set(&originate(&keys)).to(endpoint));
    let (mut sent, got) = (NamedTempFile::new().unwrap(), NamedTempFile::new().unwrap());
    sent.write_all(&pattern(10 * MIB)).unwrap();
    let (data, to) = (format!("@{}", sent.path().display()), got.path().to_str().unwrap());
    let h2 = ["--http2-prior-knowledge", "--output", to];
    body(&hop.curl("/bytes", &h2));
    assert!(fs::read(got.path()).unwrap() == vec![b'n'; 3_000_000]);
    body(&hop.curl("/echo", &[&h2[..], &["--data-binary", &data]].concat()));
    assert!(fs::read(got.path()).unwrap() == pattern(10 * MIB));
}

#[test]
fn both_sides_may_speak_tls_and_the_endpoint_sees_another_client() {
    let Some(stage) = Stage::set() else { return };
    let (outside, inside) = (Authority::new(), Authority::new());
    let pair = outside.issue("a", &["a.example"]);
    let listener = stage.origin().listen(stage.address()).unwrap();
    let endpoint = listener.local_addr().unwrap();
    let own = inside.issue("agent", &["agent"]);
    let server = inside.issue("s", &["s.example"]);
    let _origin = tls::origin(listener, &server, Some(&inside.root()), |server, _| {
        let mut heard = Vec::new();
        server.read_to_end(&mut heard)?;
        server.write_all(&heard)?;
        tls::say_end(server)
    });
    let hop = Hop::by(stage, |address| {
        let tls = format!(
            "tls: {{ terminate: {{ certificates: [{}] }}, originate: {{ roots: {}, server_name: s.example, certificate: {} }} }}",
            pair.yaml(),
            inside.root().display(),
            own.yaml()
        );
        Service::agent_tcp("bytes", address).set(&tls).to(endpoint)
    });
    let mut client = hop.client(&outside.root(), "a.example");
    client.write_all(&pattern(MIB)).unwrap();
    client.conn.send_close_notify();
    client.flush().unwrap();
    let mut back = Vec::new();
    client.read_to_end(&mut back).unwrap();
    assert!(back == pattern(MIB), "{} bytes", back.len());
}

#[test]
fn without_the_agent_nothing_secret_goes_to_the_endpoint_in_plain() {
    let Some(stage) = Stage::set() else { return };
    let authority = Authority::new();
    let origin = stage.echo("plain");
    let keys = originate(&format!("roots: {}", authority.root().display()));
    let mut hop = Hop::by(stage, |address| Service::agent_tcp("bytes", address).set(&keys).to(origin.address()));
    hop.agent.sigkill();
    wait::until("the kernel half to see that it is gone", Duration::from_secs(5), || {
        hop.stage.dial(hop.service).is_err()
    });
    assert_eq!(origin.accepted(), 0);
}
