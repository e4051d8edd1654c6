//! Frames that cost their sender nothing, sent without an end: the connection is ended, and others do not notice.

use std::{io, net::SocketAddr};

use sockway_tests::{
    agent::Agent,
    config::Service,
    frames::{END_HEADERS, END_STREAM, Frame, Peer, frame, kind, request},
    peers::{self, Nghttpd},
    process::Room,
    stage::Stage,
    translation::{STATUS_200, framed},
    wait,
};

const ENHANCE_YOUR_CALM: u32 = 11;

struct Hop {
    agent: Agent,
    _origin: Nghttpd,
    service: SocketAddr,
    stage: Stage,
}

impl Hop {
    fn set() -> Option<Self> {
        let stage = Stage::set()?;
        let (endpoint, service) = (stage.address(), stage.address());
        let origin = Nghttpd::start(Room::of(&stage.origins), stage.origin(), endpoint, 100, &[]);
        let config = stage.config().set("workers: 1").service(Service::http2("web", service).to(endpoint));
        Some(Self { agent: Agent::start(&config), _origin: origin, service, stage })
    }

    /// Sends these bytes and reads the reason that the agent gives for ending the connection; none when it said nothing.
    fn flood(&self, bytes: &[u8]) -> Option<u32> {
        let mut client = Peer::client(self.stage.dial(self.service).expect("a connection")).expect("a preface");
        // The agent may end it before everything is written.
        let _ = client.send_bytes(bytes);
        let next = |client: &mut Peer| -> io::Result<Option<u32>> {
            while let Some(frame) = client.read()? {
                if frame.kind == kind::GOAWAY {
                    return Ok(Some(frame.number(4)));
                }
            }
            Ok(None)
        };
        next(&mut client).unwrap_or(None)
    }

    #[track_caller]
    fn still_serves(&self) {
        let url = format!("http://{}/bytes", self.service);
        let output = peers::curl(Room::of(&self.stage.clients), &["--http2-prior-knowledge", "--fail", &url]);
        assert_eq!(peers::stdout(&output).len(), 100);
    }

    #[track_caller]
    fn counted(&self, kind: &str) {
        wait::until("the flood to be counted", wait::SOON, || {
            self.agent.metric("sockway_http2_floods_total", &[("kind", kind)]) >= 1.0
        });
    }
}

#[test]
fn what_a_peer_sends_does_not_fill_the_log() {
    let Some(hop) = Hop::set() else { return };
    let before = hop.agent.log().lines().count();
    assert!(before > 0, "there is a log");
    // Acknowledges what was never sent.
    hop.flood(&frame(kind::PING, 1, 0, &[7; 8]).repeat(3_000));
    hop.still_serves();
    let log = hop.agent.log();
    assert_eq!(log.lines().count(), before, "{log}");
}

#[test]
fn a_flood_of_pings_settings_or_priorities_ends_its_connection() {
    let Some(hop) = Hop::set() else { return };
    for flood in
        [frame(kind::PING, 0, 0, &[0; 8]), frame(kind::SETTINGS, 0, 0, &[]), frame(kind::PRIORITY, 0, 1, &[0; 5])]
    {
        assert_eq!(hop.flood(&flood.repeat(3_000)), Some(ENHANCE_YOUR_CALM), "kind {}", flood[3]);
    }
    hop.counted("control_frames");
    hop.still_serves();
}

#[test]
fn requests_that_are_taken_back_at_once_end_their_connection() {
    let Some(hop) = Hop::set() else { return };
    let head = request("GET", "/bytes", &[]);
    let pair = |number: u32| {
        let stream = 2 * number + 1;
        let asked = frame(kind::HEADERS, END_HEADERS | END_STREAM, stream, &head);
        [asked, frame(kind::RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
    };
    let flood: Vec<u8> = (0..2_000).flat_map(pair).collect();
    assert_eq!(hop.flood(&flood), Some(ENHANCE_YOUR_CALM));
    hop.counted("resets");
    hop.still_serves();
}

#[test]
fn requests_that_are_taken_back_in_the_same_breath_are_nobodys_work() {
    let Some(hop) = Hop::set() else { return };
    let head = request("GET", "/bytes", &[]);
    let asked = |stream| frame(kind::HEADERS, END_HEADERS | END_STREAM, stream, &head);
    let back =
        |number: u32| [asked(2 * number + 1), frame(kind::RST_STREAM, 0, 2 * number + 1, &[0, 0, 0, 8])].concat();
    let mut client = Peer::client(hop.stage.dial(hop.service).unwrap()).unwrap();
    client.send_bytes(&(0..20).flat_map(back).chain(asked(41)).collect::<Vec<u8>>()).unwrap();
    while client.until(kind::DATA).stream != 41 {}
    let requests = |outcome| hop.agent.metric("sockway_requests_total", &[("outcome", outcome)]);
    wait::until("all to be counted", wait::SOON, || requests("client_aborted") + requests("2xx") == 21.0);
    assert_eq!(hop.agent.metric("sockway_upstream_requests_total", &[]), 1.0);
}

#[test]
fn calls_that_are_given_up_within_their_responses_are_no_flood() {
    let Some(stage) = Stage::set() else { return };
    let origin = framed(&stage, |peer, frame, _| match frame.kind {
        kind::HEADERS => peer.send(kind::HEADERS, END_HEADERS, frame.stream, &[STATUS_200]),
        // As if it had been on its way.
        kind::RST_STREAM => peer.send(kind::DATA, 0, frame.stream, b"late"),
        _ => Ok(()),
    });
    let service = stage.address();
    let config = stage.config().set("workers: 1").service(Service::http2("web", service).to(origin.address()));
    let agent = Agent::start(&config);
    let mut client = Peer::client(stage.dial(service).unwrap()).unwrap();
    for number in 0..1_500 {
        let stream = 2 * number + 1;
        client.send(kind::HEADERS, END_HEADERS | END_STREAM, stream, &request("GET", "/", &[])).unwrap();
        let is_answer = |frame: &Frame| {
            assert_ne!(frame.kind, kind::GOAWAY, "after {number}");
            frame.kind == kind::HEADERS && frame.stream == stream
        };
        while !is_answer(&client.read().unwrap().expect("an answer")) {}
        client.send(kind::RST_STREAM, 0, stream, &8_u32.to_be_bytes()).unwrap();
    }
    assert_eq!(agent.metric("sockway_http2_floods_total", &[("kind", "resets")]), 0.0);
    let connects = agent.metric("sockway_upstream_connects_total", &[("result", "accepted")]);
    assert_eq!(connects, 1.0, "what came late for one call ended the connection of all");
}

#[test]
fn a_head_that_never_ends_ends_its_connection() {
    let Some(hop) = Hop::set() else { return };
    let begun = frame(kind::HEADERS, END_STREAM, 1, &request("GET", "/", &[]));
    let more = frame(kind::CONTINUATION, 0, 1, &sockway_tests::frames::head(&[("x", "1")]));
    assert_eq!(hop.flood(&[begun, more.repeat(1_000)].concat()), Some(ENHANCE_YOUR_CALM));
    hop.counted("continuations");
    hop.still_serves();
}

#[test]
fn a_head_that_unpacks_to_megabytes_is_not_unpacked() {
    let Some(hop) = Hop::set() else { return };
    // One field of 4 000 bytes, kept in the table, and then named 10 000 times in a byte each.
    let mut head = request("GET", "/", &[]);
    head.extend([0x40, 1, b'x', 0x7f, 0xa1, 0x1e]);
    head.extend([b'a'; 4_000]);
    head.extend([0xbe; 10_000]);
    let bomb = frame(kind::HEADERS, END_HEADERS | END_STREAM, 1, &head);
    let (before, reason) = (hop.agent.resident_kib(), hop.flood(&bomb));
    assert_eq!(reason, Some(ENHANCE_YOUR_CALM));
    hop.counted("heads");
    assert!(hop.agent.resident_kib() < before + 8 * 1024);
    hop.still_serves();
}

#[test]
fn a_body_of_empty_frames_ends_its_connection() {
    let Some(hop) = Hop::set() else { return };
    let begun = frame(kind::HEADERS, END_HEADERS, 1, &request("POST", "/", &[]));
    let empty = frame(kind::DATA, 0, 1, &[]);
    assert_eq!(hop.flood(&[begun, empty.repeat(20_000)].concat()), Some(ENHANCE_YOUR_CALM));
    hop.counted("small_data");
    hop.still_serves();
}

#[test]
fn streams_that_break_rules_again_and_again_end_their_connection() {
    let Some(hop) = Hop::set() else { return };
    let head = request("GET", "/bytes", &[("connection", "close")]);
    let broken = |number: u32| frame(kind::HEADERS, END_HEADERS | END_STREAM, 2 * number + 1, &head);
    assert_eq!(hop.flood(&(0..1_000).flat_map(broken).collect::<Vec<u8>>()), Some(ENHANCE_YOUR_CALM));
    hop.counted("heads");
    hop.still_serves();
}

#[test]
fn what_is_not_http2_ends_its_connection() {
    let Some(hop) = Hop::set() else { return };
    let mut stream = hop.stage.dial(hop.service).unwrap();
    io::Write::write_all(&mut stream, b"\x16\x03\x01 is not HTTP/2, and longer than its preface").unwrap();
    let mut back = Vec::new();
    let _ = io::Read::read_to_end(&mut stream, &mut back);
    wait::until("it to be counted", wait::SOON, || {
        hop.agent.metric("sockway_connections_closed_total", &[("reason", "not_http2")]) == 1.0
    });
    hop.still_serves();
}
