//! HTTP/1 through the real agent: framing, order, reuse, limits, and what it refuses.

use std::{
    fs,
    io::{BufReader, Read, Write},
    net::{Shutdown, SocketAddr},
};

use socket2::SockRef;
use sockway_tests::{
    agent::Agent,
    answer::{Answer, Session, read_answer, read_head},
    config::Service,
    origin::echoes,
    peers,
    process::Room,
    stage::Stage,
    wait,
    web::{Web, pattern},
};
use tempfile::NamedTempFile;

/// More than the kernel keeps for a client that reads slowly, in bytes.
const LONG: usize = 4 << 20;

/// A stage with one endpoint behind one HTTP service.
struct Hop {
    _agent: Agent,
    web: Web,
    service: SocketAddr,
    stage: Stage,
}

impl Hop {
    fn set() -> Option<Self> {
        let stage = Stage::set()?;
        let (web, service) = (stage.web("web"), stage.address());
        // One worker: how often the upstream's connections are reused can then be counted.
        let config = stage.config().set("workers: 1").service(Service::http("web", service).to(web.address()));
        Some(Self { _agent: Agent::start(&config), web, service, stage })
    }

    #[track_caller]
    fn session(&self) -> Session {
        self.stage.session(self.service)
    }

    /// Sends bytes on a connection of their own and gives everything that comes back, up to the end.
    fn converse(&self, bytes: &[u8]) -> String {
        let mut stream = self.stage.dial(self.service).expect("a connection");
        // The agent may refuse and close before everything is written.
        let _ = stream.write_all(bytes);
        let mut back = Vec::new();
        let _ = stream.read_to_end(&mut back);
        String::from_utf8_lossy(&back).into_owned()
    }
}

#[test]
fn connections_are_kept_on_both_sides() {
    let Some(hop) = Hop::set() else { return };
    let mut session = hop.session();
    for serial in 0..100 {
        let answer = session.get("/").unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (200, "web"));
        assert_eq!(answer.header("x-serial"), serial.to_string());
    }
    assert_eq!(hop.session().get("/").unwrap().header("x-connection"), "0", "the pool is shared by clients");
    assert_eq!(hop.web.connections(), 1);
}

#[test]
fn requests_on_one_connection_are_balanced_over_the_endpoints() {
    let Some(stage) = Stage::set() else { return };
    let (one, two) = (stage.web("one"), stage.web("two"));
    let service = stage.address();
    let balanced = Service::http("web", service).weighted(one.address(), 1).weighted(two.address(), 2);
    let _agent = Agent::start(&stage.config().set("workers: 1").service(balanced));
    let mut session = stage.session(service);
    let names: Vec<String> = (0..30).map(|_| session.get("/").unwrap().text()).collect();
    assert_eq!(names.iter().filter(|name| *name == "one").count(), 10, "{names:?}");
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let Some(hop) = Hop::set() else { return };
    let mut session = hop.session();
    let paths: Vec<String> =
        (0..40).map(|index| format!("/{}/{}", ["bytes", "chunked"][index % 2], index * 997)).collect();
    let requests: String = paths.iter().map(|path| format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n")).collect();
    session.write(requests.as_bytes()).unwrap();
    for index in 0..40 {
        assert_eq!(session.read("GET").unwrap().body, pattern(index * 997), "answer {index}");
    }
}

#[test]
fn pipelined_requests_with_bodies_do_not_run_into_each_other() {
    let Some(hop) = Hop::set() else { return };
    let mut session = hop.session();
    session
        .write(
            b"POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\nfirst\
              POST /echo HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nsec\r\n3\r\nond\r\n0\r\n\r\n\
              HEAD /bytes/9 HTTP/1.1\r\nHost: test\r\n\r\n\
              POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\nthird",
        )
        .unwrap();
    assert_eq!(session.read("POST").unwrap().text(), "first");
    assert_eq!(session.read("POST").unwrap().text(), "second");
    assert_eq!(session.read("HEAD").unwrap().header("content-length"), "9");
    assert_eq!(session.read("POST").unwrap().text(), "third");
}

#[test]
fn a_request_may_come_byte_by_byte() {
    let Some(hop) = Hop::set() else { return };
    let mut session = hop.session();
    session.stream().set_nodelay(true).unwrap();
    for byte in b"POST /echo HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nslow\r\n0\r\n\r\n" {
        session.write(&[*byte]).unwrap();
    }
    assert_eq!(session.read("POST").unwrap().text(), "slow");
}

#[test]
fn ten_megabytes_pass_both_ways_by_length_and_chunked() {
    let Some(hop) = Hop::set() else { return };
    let room = Room::of(&hop.stage.clients);
    let body = pattern(10_000_000);
    let (mut sent, received) = (NamedTempFile::new().unwrap(), NamedTempFile::new().unwrap());
    sent.write_all(&body).unwrap();
    let data = format!("@{}", sent.path().display());
    for coding in ["Content-Type: application/octet-stream", "Transfer-Encoding: chunked"] {
        for path in ["echo", "echo-chunked"] {
            let url = format!("http://{}/{path}", hop.service);
            let target = received.path().to_string_lossy();
            // curl sends `Expect: 100-continue` by itself with a body of this size.
            let arguments =
                ["--header", coding, "--data-binary", &data, "--output", &target, "--write-out", "%{http_code}", &url];
            let output = peers::curl(room, &arguments);
            assert_eq!(peers::stdout(&output), "200", "{}", String::from_utf8_lossy(&output.stderr));
            assert!(fs::read(received.path()).unwrap() == body, "{coding} to /{path}: other bytes came back");
        }
    }
}

#[test]
fn a_body_that_ends_with_the_upstreams_connection_arrives_whole() {
    let Some(hop) = Hop::set() else { return };
    assert_eq!(hop.session().get("/until-close/300000").unwrap().body, pattern(300_000));
    assert_eq!(hop.session().get("/").unwrap().status, 200);
}

#[test]
fn expect_100_continue_is_answered_before_the_body_is_sent() {
    let Some(hop) = Hop::set() else { return };
    let stream = hop.stage.dial(hop.service).unwrap();
    let mut reader = BufReader::new(&stream);
    (&stream)
        .write_all(b"POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        .unwrap();
    let mut interim = [0; 25];
    reader.read_exact(&mut interim).unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    (&stream).write_all(b"body").unwrap();
    assert_eq!(read_answer(&mut reader, "POST").unwrap().text(), "body");
}

#[test]
fn head_204_and_304_have_no_body_and_keep_the_connection() {
    let Some(hop) = Hop::set() else { return };
    let mut session = hop.session();
    let answer = session.call("HEAD", "/bytes/1234", &[]).unwrap();
    assert_eq!((answer.status, answer.header("content-length")), (200, "1234"));
    assert_eq!(session.get("/status/204").unwrap().status, 204);
    assert_eq!(session.get("/status/304").unwrap().status, 304);
    assert_eq!(session.get("/").unwrap().text(), "web");
    assert_eq!(hop.web.connections(), 1);
}

#[test]
fn an_http_1_0_client_gets_a_body_that_it_understands() {
    let Some(hop) = Hop::set() else { return };
    let back = hop.converse(b"GET /chunked/20000 HTTP/1.0\r\nHost: test\r\n\r\n");
    let (head, body) = back.split_once("\r\n\r\n").expect("an answer");
    assert!(head.contains(" 200 "), "{head}");
    assert!(!head.to_ascii_lowercase().contains("transfer-encoding"), "HTTP/1.0 knows no chunks: {head}");
    assert_eq!(body.len(), String::from_utf8_lossy(&pattern(20_000)).len());

    // ApacheBench and its kind ask to keep the connection.
    let mut session = hop.session();
    for _ in 0..2 {
        session.write(b"GET /bytes/10 HTTP/1.0\r\nHost: test\r\nConnection: keep-alive\r\n\r\n").unwrap();
        let answer = session.read("GET").unwrap();
        assert_eq!(answer.body.len(), 10);
        assert!(answer.header("connection").eq_ignore_ascii_case("keep-alive"), "{answer:?}");
    }
}

#[test]
fn connection_close_is_honoured_on_either_side() {
    let Some(hop) = Hop::set() else { return };
    let mut session = hop.session();
    session.write(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
    assert_eq!(session.read("GET").unwrap().text(), "web");
    assert!(session.at_end().unwrap());

    // The upstream's wish ends the upstream's connection; the client's may go on.
    let mut session = hop.session();
    assert_eq!(session.get("/close").unwrap().text(), "web");
    let next = session.get("/");
    if let Ok(answer) = next {
        assert_ne!(answer.header("x-connection"), "0");
    }
}

#[test]
fn a_last_response_arrives_whatever_the_client_says_behind_its_request() {
    let Some(hop) = Hop::set() else { return };
    let asked = |path: &str, behind: &str| {
        let mut session = hop.session();
        // So that much of the response is still with the agent when it ends the connection.
        SockRef::from(session.stream()).set_recv_buffer_size(65_536).unwrap();
        let last = "Host: test\r\nConnection: close\r\nContent-Length: 3\r\n\r\na=b";
        session.write(format!("POST {path} HTTP/1.1\r\n{last}{behind}").as_bytes()).unwrap();
        session
    };
    let whole = |mut session: Session| {
        let answer = session.read("POST").unwrap();
        assert_eq!(answer.body.len(), LONG);
        assert!(session.at_end().unwrap());
    };
    // Requests that nobody will answer.
    whole(asked(&format!("/bytes/{LONG}"), &"GET / HTTP/1.1\r\nHost: test\r\n\r\n".repeat(10_000)));
    // The CRLF that old browsers put behind a body.
    hop.web.say_gated("/later", 200, "", &"x".repeat(LONG));
    let mut session = asked("/later", "");
    wait::until("the request to arrive", wait::SOON, || hop.web.waiting() > 0);
    session.write(b"\r\n").unwrap();
    hop.web.open_gate();
    whole(session);
}

#[test]
fn hop_by_hop_headers_stay_on_their_hop() {
    let Some(hop) = Hop::set() else { return };
    let mut session = hop.session();
    session
        .write(
            b"GET /request HTTP/1.1\r\nHost: shop.test\r\nConnection: keep-alive, X-Private\r\nX-Private: 1\r\nKeep-Alive: timeout=5\r\n\
              Proxy-Connection: keep-alive\r\nTE: gzip\r\nX-Kept: two words\r\nUser-Agent: test/1\r\n\r\n",
        )
        .unwrap();
    let seen = session.read("GET").unwrap().text();
    assert!(seen.starts_with("GET /request HTTP/1.1\n"), "{seen}");
    assert!(
        seen.contains("host: shop.test\n")
            && seen.contains("x-kept: two words\n")
            && seen.contains("user-agent: test/1\n")
    );
    for name in ["x-private:", "keep-alive:", "proxy-connection:", "te:"] {
        assert!(!seen.lines().any(|line| line.starts_with(name)), "{name} went on: {seen}");
    }
}

#[test]
fn a_websocket_is_passed_through_in_both_directions() {
    let Some(hop) = Hop::set() else { return };
    let mut stream = hop.stage.dial(hop.service).unwrap();
    stream
        .write_all(
            b"GET /upgrade HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
              Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        )
        .unwrap();
    let head = read_head(&mut BufReader::with_capacity(1, &stream)).unwrap().unwrap();
    assert_eq!(head.word(1), "101", "{head:?}");
    assert_eq!(head.get("upgrade"), Some("websocket"));
    assert!(echoes(&stream, &pattern(300_000)).unwrap());
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn an_absolute_request_target_names_the_host() {
    let Some(hop) = Hop::set() else { return };
    let mut session = hop.session();
    session.write(b"GET http://real.test/request HTTP/1.1\r\nHost: other.test\r\n\r\n").unwrap();
    let seen = session.read("GET").unwrap().text();
    assert!(seen.contains("host: real.test\n"), "{seen}");
    assert_eq!(seen.matches("host:").count(), 1, "{seen}");
}

#[test]
fn garbage_is_refused_with_400_and_the_connection_ends() {
    let Some(hop) = Hop::set() else { return };
    let cases: [&[u8]; 6] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: test\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: test\r\n: empty name\r\n\r\n",
    ];
    for case in cases {
        let back = hop.converse(case);
        assert!(back.starts_with("HTTP/1.1 400 "), "{}: {back:?}", case.escape_ascii());
    }
    assert_eq!(hop.web.requests(), 0);
}

#[test]
fn a_head_without_end_is_refused_with_431() {
    let Some(hop) = Hop::set() else { return };
    let one = format!("GET / HTTP/1.1\r\nHost: test\r\nX-Long: {}\r\n\r\n", "x".repeat(1_000_000));
    let many = format!("GET / HTTP/1.1\r\nHost: test\r\n{}\r\n", "X-Many: header\r\n".repeat(20_000));
    for request in [one, many] {
        let back = hop.converse(request.as_bytes());
        // Written while the client still writes, the answer may be lost to the reset that follows; the origin never sees the request.
        assert!(back.is_empty() || back.starts_with("HTTP/1.1 431 "), "{back:?}");
    }
    assert_eq!(hop.web.requests(), 0);
    assert!(hop._agent.metrics().text().contains("431") || hop._agent.metrics().text().contains("too_large"));
    assert_eq!(hop.session().get("/").unwrap().status, 200);
}

/// RFC 9112, 6.1, and the shapes that other proxies were caught with: a second request hidden in each must never reach the origin.
const SMUGGLED: &[&[u8]] = &[
    b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
    b"Transfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\nG",
    b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    b"Content-Length: 5, 6\r\n\r\nhello!",
    b"Content-Length: +5\r\n\r\nhello",
    b"Content-Length: -5\r\n\r\nhello",
    b"Content-Length: 0x5\r\n\r\nhello",
    b"Content-Length: 1_0\r\n\r\nhello",
    b"Content-Length: \r\n\r\nhello",
    b"Content-Length: 99999999999999999999\r\n\r\nhello",
    b"Content-Length : 5\r\n\r\nhello",
    b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding: \xa0chunked\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding: ,chunked\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    b"X-Fold: a\r\n b\r\n\r\n",
    b" Leading: space\r\n\r\n",
    b"X-Bare: a\rb\r\n\r\n",
    b"X-Nul: a\x00b\r\n\r\n",
    b"X-Line: feed\nContent-Length: 5\r\n\r\nhello",
    b"X\xffNon-Ascii: 1\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n+1\r\na\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n-1\r\na\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n1_0\r\na\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n\r\na\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n1\r\naXX0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n11111111111111111\r\na\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n1;a\rb\r\na\r\n0\r\n\r\n",
];

#[test]
fn shapes_that_smuggle_requests_are_refused() {
    let Some(hop) = Hop::set() else { return };
    for shape in SMUGGLED {
        let request =
            [&b"POST /echo HTTP/1.1\r\nHost: test\r\n"[..], shape, b"GET /smuggled HTTP/1.1\r\nHost: test\r\n\r\n"]
                .concat();
        let back = hop.converse(&request);
        // One refusal and the end: nothing that follows on this connection is looked at.
        assert!(back.starts_with("HTTP/1.1 400 "), "{}: {back:?}", shape.escape_ascii());
        assert_eq!(back.matches("HTTP/1.1 ").count(), 1, "{}: {back:?}", shape.escape_ascii());
    }
    assert_eq!(hop.web.requests(), 0, "a whole request reached the origin");

    let with_te = b"POST /echo HTTP/1.0\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    assert!(hop.converse(with_te).starts_with("HTTP/1.1 400 "), "HTTP/1.0 knows no transfer coding");
}

#[test]
fn chunk_extensions_and_trailers_are_not_passed_on_raw() {
    let Some(hop) = Hop::set() else { return };
    let mut session = hop.session();
    session
        .write(
            b"POST /echo HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n\
              5;ext=1\r\nhello\r\n0006\r\n world\r\n0\r\nX-Trailer: 1\r\nContent-Length: 3\r\n\r\n",
        )
        .unwrap();
    assert_eq!(session.read("POST").unwrap().text(), "hello world");
    assert_eq!(session.get("/").unwrap().text(), "web", "and the framing is still right");
}

#[test]
fn an_answer_that_is_cut_short_is_not_passed_off_as_whole() {
    let Some(hop) = Hop::set() else { return };
    assert!(hop.session().get("/cut").is_err());
    assert_eq!(hop.session().get("/").unwrap().status, 200);
}

#[test]
fn a_client_that_leaves_in_the_middle_does_not_poison_the_pool() {
    let Some(hop) = Hop::set() else { return };
    assert_eq!(hop.session().get("/").unwrap().text(), "web");
    for _ in 0..20 {
        let mut session = hop.session();
        session.write(b"GET /bytes/3000000 HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
        let mut some = [0; 100];
        session.stream().read_exact(&mut some).unwrap();
        session.stream().shutdown(Shutdown::Both).unwrap();
        let mut session = hop.session();
        session.write(b"POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 1000\r\n\r\npart").unwrap();
        drop(session);
        assert_eq!(hop.session().get("/bytes/10").unwrap().body, pattern(10));
    }
    wait::until("the upstream's broken connections to end", wait::SOON, || hop.web.open_connections() <= 2);
}

#[test]
fn a_kept_connection_that_the_upstream_closed_costs_no_request() {
    let Some(stage) = Stage::set() else { return };
    let (web, service) = (stage.web("old"), stage.address());
    let address = web.address();
    let _agent = Agent::start(&stage.config().set("workers: 1").service(Service::http("web", service).to(address)));
    let mut session = stage.session(service);
    assert_eq!(session.get("/").unwrap().text(), "old");

    web.die();
    let _new = stage.web_at("new", address);
    assert_eq!(session.get("/").unwrap().text(), "new");
}

#[test]
fn many_clients_at_once_each_get_their_own_answer() {
    let Some(hop) = Hop::set() else { return };
    let mut sessions: Vec<Session> = (0..200).map(|_| hop.session()).collect();
    for round in 0..3 {
        for (index, session) in sessions.iter_mut().enumerate() {
            session
                .write(format!("GET /bytes/{} HTTP/1.1\r\nHost: test\r\n\r\n", index * 31 + round).as_bytes())
                .unwrap();
        }
        for (index, session) in sessions.iter_mut().enumerate() {
            let answer: Answer = session.read("GET").unwrap();
            assert_eq!(answer.body, pattern(index * 31 + round));
        }
    }
}

#[test]
fn a_slow_reader_does_not_make_the_agent_hoard() {
    let Some(hop) = Hop::set() else { return };
    let resident = || hop._agent.resident_kib();
    let before = resident();
    // 8 × 64 MB are asked for and not read: the agent may hold a few buffers of each, not the bodies.
    let mut sessions: Vec<Session> = (0..8).map(|_| hop.session()).collect();
    for session in &mut sessions {
        session.write(b"GET /bytes/64000000 HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    }
    wait::until("all requests to arrive", wait::SOON, || hop.web.requests() == 8);
    // Somebody else is served all the while.
    for _ in 0..50 {
        assert_eq!(hop.session().get("/bytes/100000").unwrap().body, pattern(100_000));
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 32 * 1024, "{grown} KiB more for eight slow readers");
}
