//! HTTP/2 through the real agent, between real programs and between peers that count frames.

use std::{
    fs,
    io::{self, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, Sender},
    },
    time::Duration,
};

use sockway_tests::{
    agent::Agent,
    config::Service,
    frames::{self, END_HEADERS, END_STREAM, Frame, Peer, kind, request},
    origin::Origin,
    peers::{self, Nghttpd, h2load},
    process::Room,
    stage::Stage,
    wait,
};
use tempfile::NamedTempFile;

/// `:status: 200`, from the static table (RFC 7541 appendix A).
const STATUS_200: u8 = 0x88;
const STATUS_400: u8 = 0x8c;
const PROTOCOL_ERROR: u32 = 1;
const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;

/// A stage with one HTTP/2 service.
struct Hop {
    agent: Agent,
    service: SocketAddr,
    stage: Stage,
}

impl Hop {
    fn to(stage: Stage, endpoints: impl IntoIterator<Item = SocketAddr>) -> Self {
        let service = stage.address();
        // One worker: how many connections it makes to the endpoint can then be counted.
        let config = stage.config().set("workers: 1").service(Service::http2("web", service).to_all(endpoints));
        Self { agent: Agent::start(&config), service, stage }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.service)
    }

    #[track_caller]
    fn curl(&self, path: &str, arguments: &[&str]) -> (String, Vec<u8>) {
        let body = NamedTempFile::new().unwrap();
        let written = body.path().to_str().unwrap();
        let url = self.url(path);
        let common =
            ["--http2-prior-knowledge", "--output", written, "--write-out", "%{http_version} %{response_code}", &url];
        let output = peers::curl(Room::of(&self.stage.clients), &[&common, arguments].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (peers::stdout(&output), fs::read(body.path()).unwrap())
    }

    #[track_caller]
    fn client(&self) -> Peer {
        Peer::client(self.stage.dial(self.service).expect("a connection")).expect("a preface")
    }
}

fn nghttpd(stage: &Stage, bytes: usize, arguments: &[&str]) -> (Nghttpd, SocketAddr) {
    let address = stage.address();
    (Nghttpd::start(Room::of(&stage.origins), stage.origin(), address, bytes, arguments), address)
}

/// An endpoint that speaks in frames: `serve` gets each connection and its number.
fn framed(stage: &Stage, serve: impl Fn(Peer, usize) -> io::Result<()> + Send + Sync + 'static) -> Origin {
    let listener = stage.origin().listen(stage.address()).expect("a free address");
    Origin::start(listener, move |stream: &TcpStream, number| serve(Peer::server(stream)?, number))
}

/// Answers a request with a few bytes.
fn answer(peer: &mut Peer, stream: u32) -> io::Result<()> {
    peer.send(kind::HEADERS, END_HEADERS, stream, &[STATUS_200])?;
    peer.send(kind::DATA, END_STREAM, stream, b"framed")
}

/// Gives every frame to `act` until the connection ends.
fn each(mut peer: Peer, mut act: impl FnMut(&mut Peer, &Frame) -> io::Result<()>) -> io::Result<()> {
    while let Some(frame) = peer.read()? {
        act(&mut peer, &frame)?;
    }
    Ok(())
}

#[test]
fn real_programs_get_and_send_bodies_of_any_length() {
    let Some(stage) = Stage::set() else { return };
    let (_origin, address) = nghttpd(&stage, 3_000_000, &[]);
    let hop = Hop::to(stage, [address]);
    let (told, body) = hop.curl("/bytes", &[]);
    assert_eq!((told.as_str(), body), ("2 200", vec![b'n'; 3_000_000]));
    let mut sent = NamedTempFile::new().unwrap();
    let bytes: Vec<u8> = (0..2_000_000_u32).map(|at| (at % 251) as u8).collect();
    sent.write_all(&bytes).unwrap();
    let data = format!("@{}", sent.path().display());
    let (told, back) = hop.curl("/echo", &["--data-binary", &data]);
    assert_eq!(told, "2 200");
    assert!(back == bytes, "{} bytes came back", back.len());
    assert_eq!(hop.curl("/bytes", &["--head"]).0, "2 200");
    assert_eq!(hop.curl("/none", &[]).0, "2 404");
}

#[test]
fn many_streams_of_many_clients_share_one_connection_to_the_endpoint() {
    let Some(stage) = Stage::set() else { return };
    let (_origin, address) = nghttpd(&stage, 1_000, &[]);
    let hop = Hop::to(stage, [address]);
    let report = h2load(Room::of(&hop.stage.clients), 3_000, 4, 8, &hop.url("/bytes"));
    assert!(report.contains("3000 succeeded, 0 failed, 0 errored"), "{report}");
    hop.agent.metric_comes_to("sockway_upstream_connects_total", &[("result", "accepted")], 1.0);
    hop.agent.metric_comes_to("sockway_requests_total", &[("outcome", "2xx")], 3_000.0);
}

#[test]
fn an_endpoint_that_takes_few_streams_gets_more_connections_and_no_more_streams() {
    let Some(stage) = Stage::set() else { return };
    let (_origin, address) = nghttpd(&stage, 1_000, &["--max-concurrent-streams", "2"]);
    let hop = Hop::to(stage, [address]);
    let report = h2load(Room::of(&hop.stage.clients), 1_000, 2, 16, &hop.url("/bytes"));
    assert!(report.contains("1000 succeeded, 0 failed, 0 errored"), "{report}");
    assert!(hop.agent.metric("sockway_upstream_connects_total", &[("result", "accepted")]) > 1.0);
}

#[test]
fn a_reader_that_stands_still_stops_the_sender() {
    const WHOLE: usize = 4 << 20;
    /// What a client may be sent before it says more.
    const CLIENT_WINDOW: usize = 65_535;
    /// What the agent keeps of one stream: the window it gives the endpoint, and what waits to be sent.
    const KEPT_MAX: usize = 128 * 1024 + 64 * 1024 + 16 * 1024;
    let Some(stage) = Stage::set() else { return };
    let sent = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&sent);
    let origin = framed(&stage, move |peer, _| {
        let (mut connection, mut stream, mut asked) = (65_535_i64, 65_535_i64, 0);
        each(peer, |peer, frame| {
            match (frame.kind, frame.stream) {
                (kind::SETTINGS, _) => {
                    let pairs = frame.payload.chunks_exact(6).filter(|pair| pair[..2] == [0, 4]);
                    pairs.for_each(|pair| stream = u32::from_be_bytes(pair[2..].try_into().unwrap()).into());
                }
                (kind::WINDOW_UPDATE, 0) => connection += i64::from(frame.number(0)),
                (kind::WINDOW_UPDATE, _) => stream += i64::from(frame.number(0)),
                (kind::HEADERS, _) => {
                    asked = frame.stream;
                    peer.send(kind::HEADERS, END_HEADERS, asked, &[STATUS_200])?;
                }
                _ => {}
            }
            while asked > 0 && counted.load(Ordering::SeqCst) < WHOLE {
                let left = (WHOLE - counted.load(Ordering::SeqCst)) as i64;
                let piece = left.min(connection).min(stream).min(16_384);
                if piece <= 0 {
                    break;
                }
                (connection, stream) = (connection - piece, stream - piece);
                let is_last = counted.fetch_add(piece as usize, Ordering::SeqCst) + piece as usize == WHOLE;
                peer.send(kind::DATA, u8::from(is_last), asked, &vec![0; piece as usize])?;
            }
            Ok(())
        })
    });
    let hop = Hop::to(stage, [origin.address()]);
    let mut client = hop.client();
    client.send(kind::HEADERS, END_HEADERS | END_STREAM, 1, &request("GET", "/", &[])).unwrap();
    let mut received = 0;
    while received < CLIENT_WINDOW {
        received += client.until(kind::DATA).payload.len();
    }
    let still = || sent.load(Ordering::SeqCst) <= CLIENT_WINDOW + KEPT_MAX;
    wait::throughout("the sender to stand still", Duration::from_millis(300), still);
    for stream in [0, 1] {
        client.send(kind::WINDOW_UPDATE, 0, stream, &(WHOLE as u32).to_be_bytes()).unwrap();
    }
    loop {
        let data = client.until(kind::DATA);
        received += data.payload.len();
        if data.ends_stream() {
            break;
        }
    }
    assert_eq!(received, WHOLE);
}

#[test]
fn a_request_that_is_taken_back_is_taken_back_at_the_endpoint() {
    let Some(stage) = Stage::set() else { return };
    let (sender, frames) = mpsc::channel();
    let sender = Mutex::new(sender);
    let origin = framed(&stage, move |peer, _| {
        each(peer, |_, frame| {
            if matches!(frame.kind, kind::HEADERS | kind::RST_STREAM) {
                let _ = sender.lock().unwrap().send(frame.clone());
            }
            Ok(())
        })
    });
    let hop = Hop::to(stage, [origin.address()]);
    let mut client = hop.client();
    client.send(kind::HEADERS, END_HEADERS | END_STREAM, 1, &request("GET", "/", &[])).unwrap();
    assert_eq!(frames.recv_timeout(wait::SOON).unwrap().kind, kind::HEADERS);
    client.send(kind::RST_STREAM, 0, 1, &CANCEL.to_be_bytes()).unwrap();
    let reset = frames.recv_timeout(wait::SOON).unwrap();
    assert_eq!((reset.kind, reset.number(0)), (kind::RST_STREAM, CANCEL));
    wait::until("it to be counted", wait::SOON, || {
        hop.agent.metric("sockway_requests_total", &[("outcome", "client_aborted")]) == 1.0
    });
}

#[test]
fn a_stream_that_is_refused_is_asked_of_another_endpoint() {
    let Some(stage) = Stage::set() else { return };
    let refusing = framed(&stage, |peer, _| {
        each(peer, |peer, frame| match frame.kind {
            kind::HEADERS => peer.send(kind::RST_STREAM, 0, frame.stream, &REFUSED_STREAM.to_be_bytes()),
            _ => Ok(()),
        })
    });
    let serving = framed(&stage, |peer, _| {
        each(peer, |peer, frame| if frame.kind == kind::HEADERS { answer(peer, frame.stream) } else { Ok(()) })
    });
    let hop = Hop::to(stage, [refusing.address(), serving.address()]);
    for _ in 0..4 {
        assert_eq!(hop.curl("/", &[]), ("2 200".into(), b"framed".to_vec()));
    }
    hop.agent.metric_reaches("sockway_upstream_replays_total", &[], 1.0);
}

#[test]
fn what_an_endpoint_sends_behind_its_own_reset_ends_nobody_elses_request() {
    let Some(stage) = Stage::set() else { return };
    let waiting = Mutex::new(None);
    let origin = framed(&stage, move |peer, _| {
        each(peer, |peer, frame| {
            if frame.kind != kind::HEADERS {
                return Ok(());
            }
            let Some(first) = waiting.lock().unwrap().replace(frame.stream) else { return Ok(()) };
            // The late head adds a field to the table that both sides keep, and the answer for the first client has it by its number.
            let field = [0x40, 1, b'x', 1, b'y'];
            let late = [
                frames::frame(kind::RST_STREAM, 0, frame.stream, &CANCEL.to_be_bytes()),
                frames::frame(kind::HEADERS, END_HEADERS | END_STREAM, frame.stream, &field),
                frames::frame(kind::DATA, END_STREAM, frame.stream, &[0; 10_000]),
                frames::frame(kind::HEADERS, END_HEADERS, first, &[STATUS_200, 0x80 | 62]),
                frames::frame(kind::DATA, END_STREAM, first, b"framed"),
            ];
            peer.send_bytes(&late.concat())
        })
    });
    let hop = Hop::to(stage, [origin.address()]);
    let mut client = hop.client();
    for stream in [1, 3] {
        client.send(kind::HEADERS, END_HEADERS | END_STREAM, stream, &request("GET", "/", &[])).unwrap();
    }
    let mut answers = [client.until(kind::DATA), client.until(kind::DATA)];
    answers.sort_by_key(|answer| answer.stream);
    assert_eq!((answers[0].stream, answers[0].payload.as_slice()), (1, &b"framed"[..]));
    assert!(String::from_utf8_lossy(&answers[1].payload).contains("no response: stream error"), "{answers:?}");
    assert_eq!(origin.accepted(), 1);
}

#[test]
fn a_stream_above_the_last_of_a_goaway_is_asked_again_on_another_connection() {
    // Whose endpoint ends each connection after a few requests stands behind them more than once.
    for ending in [1, 10] {
        let Some(stage) = Stage::set() else { return };
        let origin = framed(&stage, move |peer, number| {
            each(peer, |peer, frame| match frame.kind {
                kind::HEADERS if number < ending => peer.send(kind::GOAWAY, 0, 0, &[0; 8]),
                kind::HEADERS => answer(peer, frame.stream),
                _ => Ok(()),
            })
        });
        let hop = Hop::to(stage, [origin.address()]);
        assert_eq!(hop.curl("/", &[]), ("2 200".into(), b"framed".to_vec()));
        assert_eq!(origin.accepted(), ending + 1);
    }
}

/// Sends back what it is sent, at its end, and counts what comes.
fn echo(peer: Peer, seen: &AtomicUsize) -> io::Result<()> {
    let mut all = Vec::new();
    each(peer, |peer, frame| {
        if frame.kind != kind::DATA {
            return Ok(());
        }
        all.extend_from_slice(&frame.payload);
        seen.fetch_add(frame.payload.len(), Ordering::SeqCst);
        if frame.ends_stream() {
            peer.send(kind::HEADERS, END_HEADERS, frame.stream, &[STATUS_200])?;
            peer.send(kind::DATA, END_STREAM, frame.stream, &std::mem::take(&mut all))?;
        }
        Ok(())
    })
}

/// Sends a body in two pieces, the second when the endpoint that answers has the first, and gives what comes back.
#[track_caller]
fn in_two_pieces(hop: &Hop, seen: &AtomicUsize) -> Vec<u8> {
    let mut client = hop.client();
    let before = seen.load(Ordering::SeqCst);
    client.send(kind::HEADERS, END_HEADERS, 1, &request("POST", "/", &[])).unwrap();
    client.send(kind::DATA, 0, 1, b"begun ").unwrap();
    wait::until("the first piece to arrive", wait::SOON, || seen.load(Ordering::SeqCst) == before + 6);
    client.send(kind::DATA, END_STREAM, 1, b"and ended").unwrap();
    client.until(kind::DATA).payload
}

#[test]
fn a_body_that_had_begun_is_sent_again_to_who_has_not_seen_it() {
    let Some(stage) = Stage::set() else { return };
    let refusing = framed(&stage, |peer, _| {
        each(peer, |peer, frame| match frame.kind {
            kind::DATA => peer.send(kind::RST_STREAM, 0, frame.stream, &REFUSED_STREAM.to_be_bytes()),
            _ => Ok(()),
        })
    });
    let seen = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&seen);
    let serving = framed(&stage, move |peer, _| echo(peer, &counted));
    let hop = Hop::to(stage, [refusing.address(), serving.address()]);
    for _ in 0..2 {
        assert_eq!(in_two_pieces(&hop, &seen), b"begun and ended");
    }
    hop.agent.metric_reaches("sockway_upstream_replays_total", &[], 1.0);
}

#[test]
fn a_body_that_had_begun_is_sent_again_behind_a_goaway() {
    let Some(stage) = Stage::set() else { return };
    let seen = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&seen);
    let origin = framed(&stage, move |peer, number| match number {
        0 => each(peer, |peer, frame| match frame.kind {
            kind::DATA => peer.send(kind::GOAWAY, 0, 0, &[0; 8]),
            _ => Ok(()),
        }),
        _ => echo(peer, &counted),
    });
    let hop = Hop::to(stage, [origin.address()]);
    assert_eq!(in_two_pieces(&hop, &seen), b"begun and ended");
    assert_eq!(origin.accepted(), 2);
}

#[test]
fn of_a_body_too_long_to_be_held_nothing_is_sent_again() {
    let Some(stage) = Stage::set() else { return };
    let origin = framed(&stage, |peer, _| {
        let mut bytes = 0;
        each(peer, |peer, frame| {
            if frame.kind == kind::HEADERS {
                let more = 100_000_u32.to_be_bytes();
                peer.send(kind::WINDOW_UPDATE, 0, 0, &more)?;
                peer.send(kind::WINDOW_UPDATE, 0, frame.stream, &more)?;
            }
            bytes += if frame.kind == kind::DATA { frame.payload.len() } else { 0 };
            if bytes < 100_000 {
                return Ok(());
            }
            bytes = 0;
            peer.send(kind::RST_STREAM, 0, frame.stream, &REFUSED_STREAM.to_be_bytes())
        })
    });
    let hop = Hop::to(stage, [origin.address()]);
    let mut sent = NamedTempFile::new().unwrap();
    sent.write_all(&[b'x'; 200_000]).unwrap();
    let data = format!("@{}", sent.path().display());
    let (told, why) = hop.curl("/", &["--data-binary", &data]);
    assert_eq!(told, "2 502");
    assert!(String::from_utf8_lossy(&why).contains("refused stream"), "{}", why.escape_ascii());
    assert_eq!(hop.agent.metric("sockway_upstream_replays_total", &[]), 0.0);
}

/// An endpoint that answers when it is told to.
fn holding(stage: &Stage) -> (Origin, Sender<()>) {
    let (go, told) = mpsc::channel::<()>();
    let told = Mutex::new(told);
    let origin = framed(stage, move |peer, _| {
        each(peer, |peer, frame| {
            if frame.kind != kind::HEADERS {
                return Ok(());
            }
            let _ = told.lock().unwrap().recv_timeout(wait::SOON);
            answer(peer, frame.stream)
        })
    });
    (origin, go)
}

#[test]
fn a_draining_agent_says_so_in_two_steps_and_finishes_what_was_asked() {
    let Some(stage) = Stage::set() else { return };
    let (origin, go) = holding(&stage);
    let mut hop = Hop::to(stage, [origin.address()]);
    let mut client = hop.client();
    client.send(kind::HEADERS, END_HEADERS | END_STREAM, 1, &request("GET", "/", &[])).unwrap();
    wait::until("the request to be there", wait::SOON, || {
        hop.agent.metric("sockway_upstream_requests_total", &[]) == 1.0
    });
    hop.agent.sigterm();
    assert_eq!(client.until(kind::GOAWAY).number(0), 0x7fff_ffff);
    assert_eq!(client.until(kind::GOAWAY).number(0), 1, "the last stream that is served");
    go.send(()).unwrap();
    let data = client.until(kind::DATA);
    assert_eq!((data.payload.as_slice(), data.ends_stream()), (&b"framed"[..], true));
    while let Ok(Some(_)) = client.read() {}
    assert!(hop.agent.wait().success());
}

#[test]
fn trailers_and_what_comes_before_a_response_are_passed_on() {
    let Some(stage) = Stage::set() else { return };
    let origin = framed(&stage, |peer, _| {
        each(peer, |peer, frame| {
            if frame.kind != kind::HEADERS {
                return Ok(());
            }
            let early = sockway_tests::frames::head(&[(":status", "103"), ("link", "</a>")]);
            peer.send(kind::HEADERS, END_HEADERS, frame.stream, &early)?;
            peer.send(kind::HEADERS, END_HEADERS, frame.stream, &[STATUS_200])?;
            peer.send(kind::DATA, 0, frame.stream, b"framed")?;
            let trailers = sockway_tests::frames::head(&[("checksum", "1"), ("content-length", "9")]);
            peer.send(kind::HEADERS, END_HEADERS | END_STREAM, frame.stream, &trailers)
        })
    });
    let hop = Hop::to(stage, [origin.address()]);
    let mut client = hop.client();
    client.send(kind::HEADERS, END_HEADERS | END_STREAM, 1, &request("GET", "/", &[("te", "trailers")])).unwrap();
    assert_ne!(client.until(kind::HEADERS).payload[0], STATUS_200, "103 first");
    assert_eq!(client.until(kind::HEADERS).payload[0], STATUS_200);
    assert_eq!(client.until(kind::DATA).payload, b"framed");
    assert!(client.until(kind::HEADERS).ends_stream());
}

/// Who has said all that it had to say of a request may hang up, whatever is still being sent to it.
#[test]
fn an_answer_that_was_given_early_outlives_the_end_of_its_connection() {
    let Some(stage) = Stage::set() else { return };
    let origin = framed(&stage, |peer, _| {
        each(peer, |peer, frame| {
            if frame.kind != kind::HEADERS {
                return Ok(());
            }
            let head = frames::frame(kind::HEADERS, END_HEADERS, frame.stream, &[STATUS_200]);
            let body = frames::frame(kind::DATA, END_STREAM, frame.stream, b"early");
            peer.send_bytes(&[head, body].concat())?;
            Err(io::ErrorKind::ConnectionAborted.into())
        })
    });
    let hop = Hop::to(stage, [origin.address()]);
    for round in 0..30 {
        let mut client = hop.client();
        client.send(kind::HEADERS, END_HEADERS, 1, &request("POST", "/", &[])).unwrap();
        // Who was answered reads no more.
        let _ = (0..4).try_for_each(|_| client.send(kind::DATA, 0, 1, &[0; 16_000]));
        let mut told = Vec::<u8>::new();
        loop {
            let frame = client.read().unwrap().expect("an answer");
            assert!(frame.kind != kind::RST_STREAM, "round {round}: {frame:?} behind {told:?}");
            if frame.kind == kind::DATA {
                told.extend(&frame.payload);
                if frame.ends_stream() {
                    break;
                }
            }
        }
        assert_eq!(told, b"early", "round {round}");
    }
}

#[test]
fn a_body_that_is_not_as_long_as_it_said_is_never_taken_for_whole() {
    let Some(stage) = Stage::set() else { return };
    let origin = framed(&stage, |peer, _| {
        each(peer, |peer, frame| {
            if frame.kind == kind::HEADERS && frame.ends_stream() {
                let head = [&[STATUS_200][..], &sockway_tests::frames::head(&[("content-length", "9")])].concat();
                peer.send(kind::HEADERS, END_HEADERS, frame.stream, &head)?;
                peer.send(kind::DATA, END_STREAM, frame.stream, b"framed")?;
            }
            Ok(())
        })
    });
    let hop = Hop::to(stage, [origin.address()]);
    let mut client = hop.client();
    client.send(kind::HEADERS, END_HEADERS | END_STREAM, 1, &request("GET", "/", &[])).unwrap();
    loop {
        let frame = client.read().unwrap().unwrap();
        assert!(!frame.ends_stream(), "{frame:?}");
        if frame.kind == kind::RST_STREAM {
            break;
        }
    }
    let head = request("POST", "/", &[("content-length", "9")]);
    client.send(kind::HEADERS, END_HEADERS, 3, &head).unwrap();
    client.send(kind::DATA, END_STREAM, 3, b"framed").unwrap();
    let reset = client.until(kind::RST_STREAM);
    assert_eq!((reset.stream, reset.number(0)), (3, PROTOCOL_ERROR));
}

#[test]
fn what_breaks_the_rules_of_a_head_is_refused_and_the_endpoint_never_sees_it() {
    let Some(stage) = Stage::set() else { return };
    let (origin, _go) = holding(&stage);
    let hop = Hop::to(stage, [origin.address()]);
    let mut client = hop.client();
    let refused: [&[(&str, &str)]; 3] = [&[("host", "other")], &[("host", "test"), ("host", "test")], &[("x", " 1")]];
    for (number, fields) in (0..).zip(refused) {
        let stream = 2 * number + 1;
        client.send(kind::HEADERS, END_HEADERS | END_STREAM, stream, &request("GET", "/", fields)).unwrap();
        assert_eq!(client.until(kind::HEADERS).payload[0], STATUS_400, "{fields:?}");
        let reset = client.until(kind::RST_STREAM);
        assert_eq!((reset.stream, reset.number(0)), (stream, PROTOCOL_ERROR), "{fields:?}");
    }
    let broken: [&[(&str, &str)]; 2] = [&[("connection", "close")], &[("te", "gzip")]];
    for (number, fields) in (10..).zip(broken) {
        let stream = 2 * number + 1;
        client.send(kind::HEADERS, END_HEADERS | END_STREAM, stream, &request("GET", "/", fields)).unwrap();
        let reset = client.until(kind::RST_STREAM);
        assert_eq!((reset.stream, reset.number(0)), (stream, PROTOCOL_ERROR), "{fields:?}");
    }
    // What cannot even be a field ends the connection, as a stream's error may (RFC 9113 section 5.4).
    for (name, value) in [("X", "1"), ("x", "a\r\nb: c"), ("x", "a\0"), ("x y", "1"), ("", "1")] {
        let mut client = hop.client();
        client.send(kind::HEADERS, END_HEADERS | END_STREAM, 1, &request("GET", "/", &[(name, value)])).unwrap();
        assert_eq!(client.until(kind::GOAWAY).number(4), PROTOCOL_ERROR, "{name:?}: {value:?}");
    }
    assert_eq!(origin.accepted(), 0, "none of them was passed on");
}

#[test]
fn a_head_of_too_many_fields_is_refused_without_a_body_where_there_can_be_none() {
    let Some(stage) = Stage::set() else { return };
    let (origin, _go) = holding(&stage);
    let hop = Hop::to(stage, [origin.address()]);
    let many: Vec<String> = (0..300).map(|number| format!("x{number}")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|name| (name.as_str(), "1")).collect();
    let mut client = hop.client();
    for (method, stream, has_body) in [("GET", 1, true), ("HEAD", 3, false)] {
        client.send(kind::HEADERS, END_HEADERS | END_STREAM, stream, &request(method, "/", &many)).unwrap();
        assert_eq!(client.until(kind::HEADERS).ends_stream(), !has_body, "{method}");
    }
    assert_eq!(origin.accepted(), 0, "none of them was passed on");
}
