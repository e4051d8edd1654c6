//! Tunnels where one side at least speaks HTTP/2: WebSockets of real programs, and CONNECT between peers that tear and reset.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use sockway_tests::{
    agent::Agent,
    config::Service,
    frames::{END_HEADERS, END_STREAM, Peer, head, kind},
    origin::Origin,
    peers::{self, Nghttpd},
    process::{self, Process, Room},
    stage::Stage,
    translation::{Hop, STATUS_200, ask, body, framed, is_reset, rest, saying, stands_still},
    wait,
};

const CLIENT1: &str = include_str!("tunnels/client1.py");
const CLIENT2: &str = include_str!("tunnels/client2.py");
const SERVER1: &str = include_str!("tunnels/server1.py");
const SERVER2: &str = include_str!("tunnels/server2.py");

const CANCEL: u32 = 8;
const CONNECT_ERROR: u32 = 10;
/// SETTINGS_ENABLE_CONNECT_PROTOCOL (RFC 8441 section 3), with the value 1.
const OFFER: [u8; 6] = [0, 8, 0, 0, 0, 1];
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// Debian's python3, which has the libraries that setup installs, with a program.
fn python(program: &str, address: SocketAddr, more: &[&str]) -> Command {
    let (ip, port) = (address.ip().to_string(), address.port().to_string());
    let named = peers::python_command(program, &[&[&ip[..], &port], more].concat());
    let mut command = Command::new("/usr/bin/python3");
    command.args(named.get_args());
    command
}

fn server(stage: &Stage, program: &str) -> (Process, SocketAddr) {
    let address = stage.address();
    let process = Process::spawn(Room::of(&stage.origins), python(program, address, &[]));
    wait::until("a server of WebSockets to listen", wait::SOON, || stage.origin().dial(address).is_ok());
    (process, address)
}

#[track_caller]
fn talk(hop: &Hop, program: &str, waits: &str) -> String {
    let command = python(program, hop.service, &[waits, "5", "70000", "1000000", "1"]);
    let output = process::run(Room::of(&hop.stage.clients), command);
    assert!(output.status.success(), "{}{}", peers::stdout(&output), String::from_utf8_lossy(&output.stderr));
    peers::stdout(&output)
}

/// hypercorn 0.13 ends no stream behind a WebSocket's close, and the whole connection when its client does.
const LEAVES: &str = "leaves";
const ECHOED: &str = "5 True\n70000 True\n1000000 True\n1 True\nclosed 1000\n";

#[track_caller]
fn upgraded(hop: &Hop) {
    hop.agent.metric_comes_to("sockway_requests_total", &[("outcome", "upgraded")], 1.0);
}

/// An endpoint of HTTP/2 that takes extended CONNECT, opens what it is asked, and then does this with each frame of it.
fn opening(
    stage: &Stage,
    act: impl Fn(&mut Peer, u32, &[u8], bool) -> std::io::Result<()> + Send + Sync + 'static,
) -> Origin {
    let listener = stage.origin().listen(stage.address()).expect("a free address");
    Origin::start(listener, move |stream: &TcpStream, _| {
        let mut peer = Peer::server(stream)?;
        peer.send(kind::SETTINGS, 0, 0, &OFFER)?;
        while let Some(frame) = peer.read()? {
            match frame.kind {
                kind::HEADERS => peer.send(kind::HEADERS, END_HEADERS, frame.stream, &[STATUS_200])?,
                kind::DATA => act(&mut peer, frame.stream, &frame.payload, frame.ends_stream())?,
                _ => {}
            }
        }
        Ok(())
    })
}

/// Opens a plain tunnel on stream 1.
#[track_caller]
fn connect(client: &mut Peer) {
    let asked = head(&[(":method", "CONNECT"), (":authority", "a.example:443")]);
    client.send(kind::HEADERS, END_HEADERS, 1, &asked).unwrap();
    let answer = client.until(kind::HEADERS);
    assert_eq!((answer.payload[0], answer.ends_stream()), (STATUS_200, false));
}

/// An endpoint of HTTP/1 that opens tunnels and hands each to `act`.
fn tunnels(stage: &Stage, act: impl Fn(TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> Origin {
    let listener = stage.origin().listen(stage.address()).expect("a free address");
    Origin::start(listener, move |mut stream: &TcpStream, _| {
        let mut asked = Vec::new();
        while !asked.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            asked.extend(byte);
        }
        assert!(
            asked.starts_with(b"CONNECT a.example:443 HTTP/1.1\r\nhost: a.example:443\r\n"),
            "{}",
            asked.escape_ascii()
        );
        // The first bytes of the tunnel come with the head.
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nhello ")?;
        act(stream.try_clone()?)
    })
}

#[test]
fn a_websocket_over_http2_reaches_a_server_of_http1() {
    let Some(stage) = Stage::set() else { return };
    let (_server, address) = server(&stage, SERVER1);
    let hop = Hop::down(stage, address);
    assert_eq!(talk(&hop, CLIENT2, "waits"), format!("200 echo False\n{ECHOED}"));
    upgraded(&hop);
}

#[test]
fn a_websocket_of_http1_reaches_a_server_of_http2() {
    let Some(stage) = Stage::set() else { return };
    let (_server, address) = server(&stage, SERVER2);
    let hop = Hop::up(stage, [address]);
    assert_eq!(talk(&hop, CLIENT1, LEAVES), format!("echo\n{ECHOED}"));
    upgraded(&hop);
}

#[test]
fn a_websocket_over_http2_stays_what_it_is() {
    let Some(stage) = Stage::set() else { return };
    let (_server, endpoint) = server(&stage, SERVER2);
    let service = stage.address();
    let hop = Hop::of(stage, Service::http2("web", service).to(endpoint), service);
    assert_eq!(talk(&hop, CLIENT2, LEAVES), format!("200 echo False\n{ECHOED}"));
    upgraded(&hop);
}

#[test]
fn an_endpoint_that_offers_no_extended_connect_is_not_asked_for_it() {
    let Some(stage) = Stage::set() else { return };
    let endpoint = stage.address();
    let _origin = Nghttpd::start(Room::of(&stage.origins), stage.origin(), endpoint, 100, &["--no-content-length"]);
    let hop = Hop::up(stage, [endpoint]);
    let upgrade = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: {KEY}\r\n\r\n"
    );
    let (told, _) = ask(hop.client1(), upgrade.as_bytes());
    assert!(told.starts_with("HTTP/1.1 501 ") && told.contains("extended CONNECT"), "{told}");
    hop.counted("connect_method");
    let keyless = upgrade.replace(KEY, "none");
    let (told, _) = ask(hop.client1(), keyless.as_bytes());
    assert!(told.starts_with("HTTP/1.1 400 ") && told.contains("key"), "{told}");
}

#[test]
fn a_server_that_does_not_switch_opens_no_websocket() {
    for (answer, status) in [
        (&b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"[..], "502"),
        (
            b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n",
            "502",
        ),
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", "403"),
    ] {
        let Some(stage) = Stage::set() else { return };
        let origin = saying(&stage, answer, answer.len());
        let hop = Hop::down(stage, origin.address());
        let command = python(CLIENT2, hop.service, &[LEAVES]);
        let output = process::run(Room::of(&hop.stage.clients), command);
        let told = peers::stdout(&output);
        assert!(told.starts_with(status), "{told}{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn each_half_of_a_tunnel_ends_by_itself() {
    let Some(stage) = Stage::set() else { return };
    let origin = tunnels(&stage, |mut stream| {
        let mut all = Vec::new();
        stream.read_to_end(&mut all)?;
        stream.write_all(&all)
    });
    let hop = Hop::down(stage, origin.address());
    let mut client = hop.client2();
    connect(&mut client);
    assert_eq!(client.until(kind::DATA).payload, b"hello ");
    client.send(kind::DATA, END_STREAM, 1, b"world").unwrap();
    let frames = rest(&mut client, 1);
    assert!(body(&frames) == b"world" && frames.last().unwrap().ends_stream(), "{frames:?}");
    upgraded(&hop);
}

#[test]
fn each_half_of_a_tunnel_of_http2_ends_by_itself() {
    let Some(stage) = Stage::set() else { return };
    // The endpoint ends its half first, and is sent more.
    let seen = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&seen);
    let origin = opening(&stage, move |peer, stream, bytes, _| {
        if counted.fetch_add(bytes.len(), Ordering::SeqCst) == 0 {
            peer.send(kind::DATA, END_STREAM, stream, b"over")?;
        }
        Ok(())
    });
    let service = stage.address();
    let hop = Hop::of(stage, Service::http2("web", service).to(origin.address()), service);
    let mut client = hop.client2();
    connect(&mut client);
    client.send(kind::DATA, 0, 1, b"first").unwrap();
    let frames = rest(&mut client, 1);
    assert!(body(&frames) == b"over" && frames.last().unwrap().kind == kind::DATA, "{frames:?}");
    client.send(kind::DATA, END_STREAM, 1, b" and more").unwrap();
    wait::until("the rest to arrive", wait::SOON, || seen.load(Ordering::SeqCst) == 14);
    upgraded(&hop);
    // And so between HTTP/1 and HTTP/2.
    let (told, is_clean) = {
        let origin =
            opening(&hop.stage, |peer, stream, bytes, is_last| peer.send(kind::DATA, u8::from(is_last), stream, bytes));
        let address = hop.stage.address();
        let config = hop
            .stage
            .config()
            .service(Service::http("up", address).set("upstream_protocol: http2").to(origin.address()));
        let _agent = Agent::start(&config);
        let client = hop.stage.dial(address).unwrap();
        (&client).write_all(b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\nearly ").unwrap();
        (&client).write_all(b"late").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut told = String::new();
        let is_clean = (&client).read_to_string(&mut told).is_ok();
        (told, is_clean)
    };
    assert!(told.starts_with("HTTP/1.1 200 ") && told.ends_with("\r\n\r\nearly late") && is_clean, "{told}");
}

#[test]
fn what_was_said_before_a_tunnel_was_reset_without_an_error_arrives() {
    let Some(stage) = Stage::set() else { return };
    // RFC 9113 section 8.1: nghttpx ends tunnels so.
    let origin = opening(&stage, |peer, stream, _, _| {
        for _ in 0..60 {
            peer.send(kind::DATA, 0, stream, &[b'x'; 1_000])?;
        }
        peer.send(kind::DATA, END_STREAM, stream, b"over")?;
        peer.send(kind::RST_STREAM, 0, stream, &0_u32.to_be_bytes())
    });
    let hop = Hop::up(stage, [origin.address()]);
    for _ in 0..10 {
        let client = hop.client1();
        (&client).write_all(b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\nask").unwrap();
        let mut told = Vec::new();
        let is_clean = (&client).read_to_end(&mut told).is_ok();
        let at = told.windows(4).position(|at| at == b"\r\n\r\n").map_or(0, |at| at + 4);
        let said = &told[at..];
        assert!(said.len() == 60_004 && said.ends_with(b"xover") && is_clean, "{} bytes, {is_clean}", said.len());
    }
    let ends = || hop.agent.metric("sockway_connections_closed_total", &[("reason", "relay_done")]);
    wait::until("them to be counted", wait::SOON, || ends() == 10.0);
}

#[test]
fn a_reset_of_one_side_of_a_tunnel_is_one_of_the_other() {
    let Some(stage) = Stage::set() else { return };
    // The connection's side resets.
    let origin = tunnels(&stage, |stream| {
        socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO))?;
        (&stream).read_exact(&mut [0])?;
        stream.shutdown(Shutdown::Read)?;
        Ok(())
    });
    let hop = Hop::down(stage, origin.address());
    let mut client = hop.client2();
    connect(&mut client);
    client.send(kind::DATA, 0, 1, b"x and what nobody reads").unwrap();
    let frames = rest(&mut client, 1);
    assert!(is_reset(&frames, CONNECT_ERROR), "{frames:?}");
}

#[test]
fn a_stream_that_is_reset_resets_the_connection_of_its_tunnel() {
    let Some(stage) = Stage::set() else { return };
    let how = Arc::new(AtomicUsize::new(0));
    let told = Arc::clone(&how);
    let origin = tunnels(&stage, move |mut stream| {
        let ended = stream.read_to_end(&mut Vec::new());
        told.store(if ended.is_err() { 2 } else { 1 }, Ordering::SeqCst);
        Ok(())
    });
    let hop = Hop::down(stage, origin.address());
    let mut client = hop.client2();
    connect(&mut client);
    client.send(kind::RST_STREAM, 0, 1, &CANCEL.to_be_bytes()).unwrap();
    wait::until("the endpoint to hear of it", wait::SOON, || how.load(Ordering::SeqCst) > 0);
    assert_eq!(how.load(Ordering::SeqCst), 2, "a reset, and no end");
    // And where the endpoint is the one of HTTP/2.
    let origin =
        opening(&hop.stage, |peer, stream, _, _| peer.send(kind::RST_STREAM, 0, stream, &CANCEL.to_be_bytes()));
    let address = hop.stage.address();
    let config =
        hop.stage.config().service(Service::http("up", address).set("upstream_protocol: http2").to(origin.address()));
    let agent = Agent::start(&config);
    let (told, is_clean) = ask(hop.stage.dial(address).unwrap(), b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\nx");
    assert!(told.starts_with("HTTP/1.1 200 ") && !is_clean, "{told}");
    wait::until("it to be counted", wait::SOON, || {
        agent.metric("sockway_connections_closed_total", &[("reason", "relay_upstream_reset")]) == 1.0
    });
}

#[test]
fn who_leaves_before_the_answer_takes_the_request_along() {
    let Some(stage) = Stage::set() else { return };
    let last = Arc::new(AtomicUsize::new(usize::MAX));
    let seen = Arc::clone(&last);
    let origin = framed(&stage, move |_, frame, _| {
        if frame.stream != 0 {
            seen.store(frame.kind.into(), Ordering::SeqCst);
        }
        Ok(())
    });
    let is_last = |kind: u8| last.load(Ordering::SeqCst) == usize::from(kind);
    let hop = Hop::up(stage, [origin.address()]);
    let client = hop.client1();
    (&client).write_all(b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n").unwrap();
    socket2::SockRef::from(&client).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    wait::until("the endpoint to be asked", wait::SOON, || is_last(kind::HEADERS));
    drop(client);
    hop.counted("client_aborted");
    wait::until("it to be taken back", wait::SOON, || is_last(kind::RST_STREAM));
}

#[test]
fn who_reads_nothing_of_a_tunnel_stops_its_sender() {
    let Some(stage) = Stage::set() else { return };
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    let origin = tunnels(&stage, move |mut stream| {
        loop {
            counted.fetch_add(stream.write(&[0; 16_384])?, Ordering::SeqCst);
        }
    });
    let hop = Hop::down(stage, origin.address());
    let before = hop.agent.resident_kib();
    let mut client = hop.client2();
    connect(&mut client);
    stands_still(&sent);
    assert!(hop.agent.resident_kib() < before + 4 * 1024, "nothing is kept without a bound");
    drop(client);
}

#[test]
fn the_target_of_connect_is_a_host_and_a_port() {
    let Some(stage) = Stage::set() else { return };
    let origin = framed(&stage, |_, _, _| Ok(()));
    let hop = Hop::auto(stage, origin.address());
    let mut client = hop.client2();
    assert!(client.until(kind::SETTINGS).payload.chunks(6).any(|setting| setting == OFFER), "it is offered");
    for (number, authority) in (0..).zip(["a.example", "", "u@a:1"]) {
        let stream = 2 * number + 1;
        let asked = head(&[(":method", "CONNECT"), (":authority", authority)]);
        client.send(kind::HEADERS, END_HEADERS, stream, &asked).unwrap();
        let reset = client.until(kind::RST_STREAM);
        assert_eq!((reset.stream, reset.number(0)), (stream, 1), "{authority}");
    }
}
