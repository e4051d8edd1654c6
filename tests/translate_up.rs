//! Clients of HTTP/1 at endpoints of HTTP/2, through the real agent.

use std::{
    io::{BufReader, Write as _},
    thread,
    time::Duration,
};

use sockway_tests::{
    agent::Agent,
    answer::{read_body, read_head},
    config::Service,
    frames::{self, END_HEADERS, END_STREAM, kind, request},
    peers::{self, Nghttpd},
    process::Room,
    stage::Stage,
    translation::{Hop, INTERNAL_ERROR, REFUSED_STREAM, STATUS_200, ask, body, framed, rest},
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
    assert_eq!(hop.agent.metric("sockway_upstream_connects_total", &[("result", "accepted")]), 1.0);
    let program = "import http.client, sys\n\
        c = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]))\n\
        for _ in range(20):\n c.request('GET', '/bytes'); r = c.getresponse(); print(r.status, len(r.read()))";
    let (ip, port) = (hop.service.ip().to_string(), hop.service.port().to_string());
    let told = peers::python(Room::of(&hop.stage.clients), program, &[&ip, &port]);
    assert_eq!(told, "200 3000000\n".repeat(20));
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
    assert!(hop.agent.metric("sockway_upstream_replays_total", &[]) >= 2.0);
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
