//! Clients of HTTP/1 at endpoints of HTTP/2, through the real agent.

use std::{
    io::{self, BufReader, Write as _},
    mem,
    net::Shutdown,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use sockway_tests::{
    agent::Agent,
    answer::{read_body, read_head},
    config::Service,
    frames::{self, END_HEADERS, END_STREAM, Frame, Peer, kind, request},
    origin::Origin,
    peers::{self, Nghttpd},
    process::Room,
    stage::Stage,
    translation::{Hop, INTERNAL_ERROR, REFUSED_STREAM, STATUS_200, ask, body, framed, rest},
    wait,
    web::pattern,
};
use tempfile::NamedTempFile;

#[test]
fn real_clients_of_http1_get_and_send_bodies_at_an_endpoint_of_http2() {
    let Some(stage) = Stage::set() else { return };
    let address = stage.address();
    let _origin = Nghttpd::start(Room::of(&stage.origins), stage.origin(), address, 3_000_000, &[]);
    let hop = Hop::up(stage, [address]);
    let (told, body) = hop.curl("/bytes", &[]);
    assert!(told == "1.1 200" && body == vec![b'n'; 3_000_000], "{told}: {} bytes", body.len());
    let (told, body) = hop.curl("/bytes", &["--http1.0"]);
    assert!(told.ends_with(" 200") && body == vec![b'n'; 3_000_000], "{told}: {} bytes", body.len());
    let mut sent = NamedTempFile::new().unwrap();
    sent.write_all(&pattern(2_000_000)).unwrap();
    let data = format!("@{}", sent.path().display());
    for arguments in [&["--data-binary", &data][..], &["--data-binary", &data, "-H", "transfer-encoding: chunked"]] {
        let (told, back) = hop.curl("/echo", arguments);
        assert!(told == "1.1 200" && back == pattern(2_000_000), "{told}: {} bytes", back.len());
    }
    assert_eq!(hop.curl("/bytes", &["--head"]).0, "1.1 200");
    assert_eq!(hop.curl("/none", &[]).0, "1.1 404");
    hop.agent.metric_comes_to("sockway_upstream_connects_total", &[("result", "accepted")], 1.0);
    let program = "import http.client, sys\n\
        c = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]))\n\
        for _ in range(20):\n c.request('GET', '/bytes'); r = c.getresponse(); print(r.status, len(r.read()))";
    let (ip, port) = (hop.service.ip().to_string(), hop.service.port().to_string());
    let told = peers::python(Room::of(&hop.stage.clients), program, &[&ip, &port]);
    assert_eq!(told, "200 3000000\n".repeat(20));
}

#[test]
fn requests_that_came_before_a_client_ended_its_side_are_all_answered() {
    let Some(stage) = Stage::set() else { return };
    let origin = framed(&stage, |peer, frame, _| {
        if frame.ends_stream() && frame.stream != 0 {
            // Long enough that the end is there.
            thread::sleep(Duration::from_millis(100));
            peer.send(kind::HEADERS, END_HEADERS | END_STREAM, frame.stream, &[STATUS_200])?;
        }
        Ok(())
    });
    let hop = Hop::up(stage, [origin.address()]);
    for (first, second) in [("GET / HTTP/1.1", ""), ("POST / HTTP/1.1\r\nContent-Length: 3", "abc")] {
        let mut client = hop.client1();
        let more = format!("{first}\r\nHost: a\r\n\r\n{second}").repeat(2);
        write!(client, "{more}GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let (told, is_clean) = ask(client, b"");
        assert!(told.matches("HTTP/1.1 200").count() == 3 && is_clean, "{told}");
    }
}

#[test]
fn a_response_that_comes_up_is_framed_as_its_client_knows_it() {
    let Some(stage) = Stage::set() else { return };
    let origin = framed(&stage, |peer, frame, _| {
        if frame.kind != kind::HEADERS {
            return Ok(());
        }
        let early = frames::head(&[(":status", "103"), ("link", "</a>")]);
        peer.send(kind::HEADERS, END_HEADERS, frame.stream, &early)?;
        peer.send(kind::HEADERS, END_HEADERS, frame.stream, &[STATUS_200])?;
        peer.send(kind::DATA, 0, frame.stream, b"framed")?;
        let trailers = frames::head(&[("x-sum", "1"), ("content-length", "9")]);
        peer.send(kind::HEADERS, END_HEADERS | END_STREAM, frame.stream, &trailers)
    });
    let hop = Hop::up(stage, [origin.address()]);
    let (told, _) = ask(hop.client1(), b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let (early, last) = told.split_once("HTTP/1.1 200 OK\r\n").unwrap();
    assert_eq!(early, "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n");
    assert!(last.starts_with("transfer-encoding: chunked\r\nconnection: close\r\n\r\n6\r\nframed\r\n"), "{told}");
    assert!(last.ends_with("0\r\nx-sum: 1\r\n\r\n"), "{told}");
    let (told, is_clean) = ask(hop.client1(), b"GET / HTTP/1.0\r\n\r\n");
    assert_eq!(told, "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nframed");
    assert!(is_clean);
    let (told, _) = ask(hop.client1(), b"HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert!(told.ends_with("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n"), "{told}");
}

#[test]
fn trailer_fields_that_are_announced_come_up_also_behind_a_declared_length() {
    let Some(stage) = Stage::set() else { return };
    // As of Go's server, which knows the length of what is short.
    let origin = framed(&stage, |peer, frame, _| {
        if frame.kind != kind::HEADERS {
            return Ok(());
        }
        let fields = frames::head(&[("content-length", "6"), ("trailer", "x-sum")]);
        peer.send(kind::HEADERS, END_HEADERS, frame.stream, &[&[STATUS_200], &fields[..]].concat())?;
        peer.send(kind::DATA, 0, frame.stream, b"framed")?;
        peer.send(kind::HEADERS, END_HEADERS | END_STREAM, frame.stream, &frames::head(&[("x-sum", "1")]))
    });
    let hop = Hop::up(stage, [origin.address()]);
    let head = "HTTP/1.1 200 OK\r\ntrailer: x-sum\r\n";
    let (told, _) = ask(hop.client1(), b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let framing = "transfer-encoding: chunked\r\nconnection: close\r\n\r\n";
    assert!(told.starts_with(&format!("{head}{framing}6\r\nframed\r\n")), "{told}");
    assert!(told.ends_with("0\r\nx-sum: 1\r\n\r\n"), "{told}");
    // HTTP/1.0 knows no trailer fields.
    let (told, _) = ask(hop.client1(), b"GET / HTTP/1.0\r\n\r\n");
    assert_eq!(told, format!("{head}content-length: 6\r\nconnection: close\r\n\r\nframed"));
}

#[test]
fn a_stream_that_is_reset_ends_no_response_of_http1() {
    let Some(stage) = Stage::set() else { return };
    let origin = framed(&stage, |peer, frame, _| {
        if frame.kind != kind::HEADERS {
            return Ok(());
        }
        peer.send(kind::HEADERS, END_HEADERS, frame.stream, &[STATUS_200])?;
        peer.send(kind::DATA, 0, frame.stream, b"framed")?;
        thread::sleep(Duration::from_millis(100));
        peer.send(kind::RST_STREAM, 0, frame.stream, &INTERNAL_ERROR.to_be_bytes())
    });
    let hop = Hop::up(stage, [origin.address()]);
    let (told, is_clean) = ask(hop.client1(), b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(told.contains("6\r\nframed\r\n") && !told.contains("0\r\n\r\n"), "{told}");
    assert!(!is_clean, "the connection is reset");
    let (_, is_clean) = ask(hop.client1(), b"GET / HTTP/1.0\r\n\r\n");
    assert!(!is_clean, "what ends with the connection is not taken for whole");
    hop.counted("response_aborted");
}

#[test]
fn a_response_that_breaks_off_before_its_head_is_passed_on_is_answered_with_the_reason() {
    let Some(stage) = Stage::set() else { return };
    let origin = framed(&stage, |peer, frame, _| {
        if frame.kind != kind::HEADERS {
            return Ok(());
        }
        let head = frames::head(&[(":status", "200"), ("content-length", "2")]);
        let (one, last) = (frames::frame(kind::HEADERS, END_HEADERS, frame.stream, &head), frame.stream);
        // All of it in one piece: what is wrong is known before the head leaves.
        let wrong = match last {
            3 => frames::frame(kind::DATA, END_STREAM, last, b"three"),
            _ => frames::frame(kind::RST_STREAM, 0, last, &INTERNAL_ERROR.to_be_bytes()),
        };
        peer.send_bytes(&[one, wrong].concat())
    });
    let hop = Hop::up(stage, [origin.address()]);
    for why in ["unspecific protocol error", "unexpected internal error"] {
        let (told, _) = ask(hop.client1(), b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        assert!(told.starts_with("HTTP/1.1 502 "), "{told}");
        assert!(told.contains("sockway: the endpoint's response broke off: ") && told.contains(why), "{told}");
    }
    hop.counted("response_aborted");
}

#[test]
fn an_endpoint_that_accepts_and_says_nothing_is_not_told_of_as_one_that_accepts_nobody() {
    let Some(stage) = Stage::set() else { return };
    let listener = stage.origin().listen(stage.address()).expect("a free address");
    let mute = Origin::start(listener, |mut stream, _| io::copy(&mut stream, &mut io::sink()).map(drop));
    let address = stage.address();
    let service = Service::http("web", address).set("upstream_protocol: http2").set("connect_timeout_ms: 300");
    let hop = Hop::of(stage, service.to(mute.address()), address);
    let (told, _) = ask(hop.client1(), b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert!(told.starts_with("HTTP/1.1 504 "), "{told}");
    assert!(told.ends_with("sockway: the endpoint said nothing of HTTP/2 within 300ms\n"), "{told}");
    hop.counted("connect_timeout");
}

#[test]
fn a_request_that_goes_up_says_nothing_of_its_connection_and_keeps_its_body_whole() {
    let Some(stage) = Stage::set() else { return };
    let origin = framed(&stage, |peer, frame, _| match (frame.kind, frame.ends_stream()) {
        (kind::HEADERS | kind::DATA, true) => {
            peer.send(kind::HEADERS, END_HEADERS, frame.stream, &[STATUS_200])?;
            peer.send(kind::DATA, END_STREAM, frame.stream, &frame.payload)
        }
        _ => Ok(()),
    });
    let hop = Hop::up(stage, [origin.address()]);
    let whole = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    for piece in [1, 5, whole.len()] {
        let mut client = hop.client1();
        client.set_nodelay(true).unwrap();
        whole.as_bytes().chunks(piece).for_each(|piece| client.write_all(piece).unwrap());
        let mut reader = BufReader::new(client);
        let head = read_head(&mut reader).unwrap().unwrap();
        assert_eq!(head.word(1), "200");
        // Torn, its bytes came in more frames than one, of which the last is sent back.
        let body = read_body(&mut reader, &head, false).unwrap();
        assert!(b"abc".ends_with(&body[..]), "{}", body.escape_ascii());
    }
    for bad in [
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost:\r\n\r\n",
    ] {
        let (told, _) = ask(hop.client1(), bad.as_bytes());
        assert!(told.starts_with("HTTP/1.1 400 "), "{bad}: {told}");
    }
}

#[test]
fn a_refused_stream_is_asked_of_another_endpoint_also_with_a_body() {
    let Some(stage) = Stage::set() else { return };
    let refusing = framed(&stage, |peer, frame, _| match frame.kind {
        kind::HEADERS => peer.send(kind::RST_STREAM, 0, frame.stream, &REFUSED_STREAM.to_be_bytes()),
        _ => Ok(()),
    });
    let serving = framed(&stage, |peer, frame, _| {
        if !frame.ends_stream() {
            return Ok(());
        }
        peer.send(kind::HEADERS, END_HEADERS, frame.stream, &[STATUS_200])?;
        peer.send(kind::DATA, END_STREAM, frame.stream, b"framed")
    });
    let hop = Hop::up(stage, [refusing.address(), serving.address()]);
    for arguments in [&[][..], &[], &["-d", "body"], &["-d", "body"]] {
        assert_eq!(hop.curl("/", arguments), ("1.1 200".into(), b"framed".to_vec()));
    }
    hop.agent.metric_reaches("sockway_upstream_replays_total", &[], 2.0);
}

#[test]
fn a_client_that_expects_to_be_told_to_continue_is_told_by_the_endpoint() {
    let Some(stage) = Stage::set() else { return };
    let web = stage.web("one");
    let (down, up) = (stage.address(), stage.address());
    let origin = framed(&stage, |peer, frame, _| match (frame.kind, frame.ends_stream()) {
        (kind::HEADERS, false) => {
            peer.send(kind::HEADERS, END_HEADERS, frame.stream, &frames::head(&[(":status", "100")]))
        }
        (kind::DATA, true) => {
            peer.send(kind::HEADERS, END_HEADERS, frame.stream, &[STATUS_200])?;
            peer.send(kind::DATA, END_STREAM, frame.stream, b"framed")
        }
        _ => Ok(()),
    });
    let config = stage
        .config()
        .service(Service::http2("down", down).set("upstream_protocol: http1").to(web.address()))
        .service(Service::http("up", up).set("upstream_protocol: http2").to(origin.address()));
    let hop = Hop { agent: Agent::start(&config), service: down, stage };
    let mut client = hop.client2();
    let fields = [("expect", "100-continue"), ("content-length", "4")];
    client.send(kind::HEADERS, END_HEADERS, 1, &request("POST", "/echo", &fields)).unwrap();
    assert!(!client.until(kind::HEADERS).ends_stream());
    client.send(kind::DATA, END_STREAM, 1, b"body").unwrap();
    assert_eq!(body(&rest(&mut client, 1)), b"body");
    let mut client = hop.stage.dial(up).unwrap();
    client.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n").unwrap();
    let mut reader = BufReader::new(client.try_clone().unwrap());
    assert_eq!(read_head(&mut reader).unwrap().unwrap().word(1), "100");
    client.write_all(b"body").unwrap();
    let head = read_head(&mut reader).unwrap().unwrap();
    assert_eq!((head.word(1), read_body(&mut reader, &head, false).unwrap()), ("200", b"framed".to_vec()));
}

/// Has one stream's body sent back at its end, and counts what comes of it.
fn echo(peer: &mut Peer, frame: &Frame, (all, seen): &(Mutex<Vec<u8>>, AtomicUsize)) -> io::Result<()> {
    if frame.kind != kind::DATA {
        return Ok(());
    }
    let mut all = all.lock().unwrap();
    all.extend_from_slice(&frame.payload);
    seen.fetch_add(frame.payload.len(), Ordering::SeqCst);
    if frame.ends_stream() {
        peer.send(kind::HEADERS, END_HEADERS, frame.stream, &[STATUS_200])?;
        peer.send(kind::DATA, END_STREAM, frame.stream, &mem::take(&mut *all))?;
    }
    Ok(())
}

/// Sends a body in two pieces, the second when an endpoint that answers has the first, and gives what comes back.
#[track_caller]
fn in_two_pieces(hop: &Hop, seen: &AtomicUsize, [head, first, second]: [&str; 3]) -> Vec<u8> {
    let mut client = hop.client1();
    let before = seen.load(Ordering::SeqCst);
    write!(client, "POST / HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n{first}").unwrap();
    wait::until("the first piece to arrive", wait::SOON, || seen.load(Ordering::SeqCst) == before + 6);
    // What stands behind it is the next request.
    write!(client, "{second}GET /no-body HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    let mut reader = BufReader::new(client);
    let head = read_head(&mut reader).unwrap().unwrap();
    assert_eq!(head.word(1), "200");
    read_body(&mut reader, &head, false).unwrap()
}

const BY_LENGTH: [&str; 3] = ["Content-Length: 15", "begun ", "and ended"];
const IN_CHUNKS: [&str; 3] =
    ["Transfer-Encoding: chunked", "6\r\nbegun \r\n9", "\r\nand ended\r\n0\r\nx-sum: 1\r\n\r\n"];

/// An endpoint that refuses a stream when some of its body is there, if it is its turn, and echoes otherwise.
fn wavering(stage: &Stage, turn: &Arc<AtomicUsize>, seen: &Arc<(Mutex<Vec<u8>>, AtomicUsize)>) -> Origin {
    let (turn, seen, refused) = (Arc::clone(turn), Arc::clone(seen), AtomicU32::new(0));
    framed(stage, move |peer, frame, _| match (frame.kind, frame.ends_stream()) {
        (kind::HEADERS, false) => {
            let is_refused = turn.fetch_add(1, Ordering::SeqCst) % 2 == 0;
            refused.store(if is_refused { frame.stream } else { 0 }, Ordering::SeqCst);
            Ok(())
        }
        (kind::DATA, _) if refused.load(Ordering::SeqCst) == frame.stream => {
            peer.send(kind::RST_STREAM, 0, frame.stream, &REFUSED_STREAM.to_be_bytes())
        }
        // Behind trailer fields, too, the body is whole.
        (kind::HEADERS, true) => echo(peer, &Frame { kind: kind::DATA, payload: vec![], ..*frame }, &seen),
        _ => echo(peer, frame, &seen),
    })
}

#[test]
fn a_body_that_had_begun_is_sent_again_to_who_has_not_seen_it() {
    let Some(stage) = Stage::set() else { return };
    let (turn, seen) = (Arc::default(), Arc::new((Mutex::default(), AtomicUsize::new(0))));
    let origins = [wavering(&stage, &turn, &seen), wavering(&stage, &turn, &seen)];
    let hop = Hop::up(stage, origins.iter().map(Origin::address));
    for (body, replays) in [(BY_LENGTH, 1.0), (BY_LENGTH, 2.0), (IN_CHUNKS, 3.0), (IN_CHUNKS, 4.0)] {
        assert_eq!(in_two_pieces(&hop, &seen.1, body), b"begun and ended");
        assert_eq!(hop.agent.metric("sockway_upstream_replays_total", &[]), replays);
    }
}

#[test]
fn a_body_that_had_begun_is_sent_again_behind_a_goaway() {
    let Some(stage) = Stage::set() else { return };
    let seen = Arc::new((Mutex::default(), AtomicUsize::new(0)));
    let counted = Arc::clone(&seen);
    let origin = framed(&stage, move |peer, frame, number| match (number, frame.kind) {
        (0, kind::DATA) => peer.send(kind::GOAWAY, 0, 0, &[0; 8]),
        (0, _) => Ok(()),
        _ => echo(peer, frame, &counted),
    });
    let hop = Hop::up(stage, [origin.address()]);
    assert_eq!(in_two_pieces(&hop, &seen.1, BY_LENGTH), b"begun and ended");
    assert_eq!(origin.accepted(), 2);
}

#[test]
fn of_a_body_too_long_to_be_held_nothing_is_sent_again() {
    let Some(stage) = Stage::set() else { return };
    let taken = AtomicUsize::new(0);
    let origin = framed(&stage, move |peer, frame, _| {
        if frame.kind == kind::HEADERS {
            let more = 100_000_u32.to_be_bytes();
            peer.send(kind::WINDOW_UPDATE, 0, 0, &more)?;
            peer.send(kind::WINDOW_UPDATE, 0, frame.stream, &more)?;
        }
        let bytes = if frame.kind == kind::DATA { frame.payload.len() } else { 0 };
        // Once, when it has more than is held.
        match taken.fetch_add(bytes, Ordering::SeqCst) {
            before if before < 100_000 && before + bytes >= 100_000 => {
                peer.send(kind::RST_STREAM, 0, frame.stream, &REFUSED_STREAM.to_be_bytes())
            }
            _ => Ok(()),
        }
    });
    let hop = Hop::up(stage, [origin.address()]);
    let mut sent = NamedTempFile::new().unwrap();
    sent.write_all(&[b'x'; 200_000]).unwrap();
    let data = format!("@{}", sent.path().display());
    let (told, why) = hop.curl("/", &["--data-binary", &data]);
    assert_eq!(told, "1.1 502");
    assert!(String::from_utf8_lossy(&why).contains("refused stream"), "{}", why.escape_ascii());
    assert_eq!(hop.agent.metric("sockway_upstream_replays_total", &[]), 0.0);
}
