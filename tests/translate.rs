//! Clients of HTTP/2 at endpoints of HTTP/1, and of both under one address, through the real agent.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use sockway_tests::{
    agent::Agent,
    answer::{read_body, read_head},
    config::Service,
    frames::{self, END_HEADERS, END_STREAM, Frame, Peer, kind, request},
    origin::Origin,
    peers::{Nghttpd, h2load},
    process::Room,
    stage::Stage,
    translation::{HTTP2, Hop, INTERNAL_ERROR, PROTOCOL_ERROR, body, get, is_reset, rest, saying},
    wait,
    web::pattern,
};
use tempfile::NamedTempFile;

#[test]
fn http2_under_auto_is_served_stream_by_stream_on_the_connection_that_was_dialled() {
    let Some(stage) = Stage::set() else { return };
    let address = stage.address();
    let _origin = Nghttpd::start(Room::of(&stage.origins), stage.origin(), address, 1_000, &[]);
    let hop = Hop::auto(stage, address);
    assert_eq!(hop.curl("/bytes", &[HTTP2]), ("2 200".into(), vec![b'n'; 1_000]));
    hop.agent.metric_comes_to("sockway_upstream_connects_total", &[("result", "accepted")], 1.0);
    let report = h2load(Room::of(&hop.stage.clients), 500, 2, 8, &hop.url("/bytes"));
    assert!(report.contains("500 succeeded, 0 failed, 0 errored"), "{report}");
    hop.agent.metric_comes_to("sockway_requests_total", &[("outcome", "2xx")], 501.0);
    hop.agent.metric_comes_to("sockway_connections_sniffed_total", &[("protocol", "http2")], 3.0);
}

#[test]
fn under_one_address_clients_of_both_reach_an_endpoint_of_either() {
    let Some(stage) = Stage::set() else { return };
    let web = stage.web("one");
    let nghttpd = stage.address();
    let _nghttpd = Nghttpd::start(Room::of(&stage.origins), stage.origin(), nghttpd, 3, &[]);
    let (plain, older, newer) = (stage.address(), stage.address(), stage.address());
    let config = stage
        .config()
        .service(Service::auto("plain", plain).to(web.address()))
        .service(Service::auto("older", older).set("upstream_protocol: http1").to(web.address()))
        .service(Service::auto("newer", newer).set("upstream_protocol: http2").to(nghttpd));
    let mut hop = Hop { agent: Agent::start(&config), service: plain, stage };
    assert_eq!(hop.curl("/", &[]), ("1.1 200".into(), b"one".to_vec()));
    hop.service = older;
    assert_eq!(hop.curl("/", &[]), ("1.1 200".into(), b"one".to_vec()));
    assert_eq!(hop.curl("/", &[HTTP2]), ("2 200".into(), b"one".to_vec()));
    hop.service = newer;
    assert_eq!(hop.curl("/bytes", &[]), ("1.1 200".into(), b"nnn".to_vec()));
    assert_eq!(hop.curl("/bytes", &[HTTP2]), ("2 200".into(), b"nnn".to_vec()));
}

#[test]
fn a_client_that_speaks_what_the_endpoints_do_not_takes_them_from_nobody() {
    let Some(stage) = Stage::set() else { return };
    let (one, two) = (stage.web("one"), stage.web("two"));
    let service = stage.address();
    let hop = Hop::of(stage, Service::auto("web", service).to(one.address()).to(two.address()), service);
    let (told, said) = hop.curl("/", &[HTTP2]);
    assert_eq!((told.as_str(), &*said), ("2 502", &b"sockway: the endpoint does not speak HTTP/2\n"[..]));
    for endpoint in [one.address(), two.address()] {
        let up = [("service", "web"), ("endpoint", &*endpoint.to_string())];
        hop.agent.metric_comes_to("sockway_endpoint_up", &up, 1.0);
    }
    assert!(!hop.agent.log().contains("endpoint is down"), "{}", hop.agent.log());
    assert_eq!(hop.curl("/", &[]).0, "1.1 200");
}

#[test]
fn real_clients_of_http2_get_and_send_bodies_of_any_framing() {
    let Some(stage) = Stage::set() else { return };
    let web = stage.web("one");
    let hop = Hop::down(stage, web.address());
    for path in ["/bytes/3000000", "/chunked/3000000", "/until-close/3000000"] {
        let (told, body) = hop.curl(path, &[HTTP2]);
        assert_eq!(told, "2 200");
        assert!(body == pattern(3_000_000), "{path}: {} bytes", body.len());
    }
    let mut sent = NamedTempFile::new().unwrap();
    sent.write_all(&pattern(2_000_000)).unwrap();
    for (path, name) in [("/echo", sent.path().to_str().unwrap()), ("/echo-chunked", sent.path().to_str().unwrap())] {
        let (told, body) = hop.curl(path, &[HTTP2, "--data-binary", &format!("@{name}")]);
        assert!(told == "2 200" && body == pattern(2_000_000), "{told}: {} bytes", body.len());
        // Of unknown length: chunked.
        let (told, body) = hop.curl(path, &[HTTP2, "--upload-file", name, "-H", "content-length:"]);
        assert!(told == "2 200" && body == pattern(2_000_000), "{told}: {} bytes", body.len());
    }
    for (arguments, expected) in [(&["--head"][..], "2 200"), (&[], "2 200")] {
        assert_eq!(hop.curl("/bytes/10", &[&[HTTP2], arguments].concat()).0, expected);
    }
    for status in ["204", "304", "404"] {
        assert_eq!(hop.curl(&format!("/status/{status}"), &[HTTP2]), (format!("2 {status}"), Vec::new()));
    }
    let (told, head) = hop.curl("/request", &[HTTP2, "-H", "cookie: a=1", "-H", "X-A: 1", "-d", "x"]);
    let head = String::from_utf8(head).unwrap();
    assert_eq!(told, "2 200");
    assert!(head.starts_with("POST /request HTTP/1.1\n"), "{head}");
    for line in [&format!("host: {}\n", hop.service), "cookie: a=1\n", "x-a: 1\n", "content-length: 1\n"] {
        assert!(head.contains(line), "{head}");
    }
}

#[test]
fn many_streams_take_a_pooled_connection_each() {
    let Some(stage) = Stage::set() else { return };
    let web = stage.web("one");
    let hop = Hop::down(stage, web.address());
    let report = h2load(Room::of(&hop.stage.clients), 2_000, 2, 8, &hop.url("/bytes/100"));
    assert!(report.contains("2000 succeeded, 0 failed, 0 errored"), "{report}");
    assert!(web.connections() <= 16, "{} connections", web.connections());
}

/// One service with HTTP/2 in front for each of these endpoints of HTTP/1; one agent.
fn downs<'o>(stage: Stage, endpoints: impl IntoIterator<Item = &'o Origin>) -> (Hop, Vec<SocketAddr>) {
    let mut config = stage.config().set("workers: 1");
    let mut addresses = Vec::new();
    for (number, origin) in endpoints.into_iter().enumerate() {
        let address = stage.address();
        let service = Service::http2(&format!("s{number}"), address).set("upstream_protocol: http1");
        config = config.service(service.to(origin.address()));
        addresses.push(address);
    }
    (Hop { agent: Agent::start(&config), service: addresses[0], stage }, addresses)
}

/// What a client of HTTP/2 gets from endpoints that each say one of these, torn into pieces.
fn told_down(stage: Stage, answers: &[&'static [u8]], pieces: &[usize]) -> (Hop, Vec<Vec<Frame>>) {
    let cases: Vec<_> = answers.iter().flat_map(|answer| pieces.iter().map(move |piece| (*answer, *piece))).collect();
    let origins: Vec<Origin> = cases.iter().map(|(answer, piece)| saying(&stage, answer, *piece)).collect();
    let (mut hop, addresses) = downs(stage, &origins);
    let told = addresses.into_iter().map(|address| {
        hop.service = address;
        let mut client = hop.client2();
        get(&mut client, 1, "GET", &[]);
        rest(&mut client, 1)
    });
    let told = told.collect();
    (hop, told)
}

#[test]
fn a_body_that_ends_with_its_connection_is_reset_and_not_ended_when_the_time_of_its_endpoint_is_over() {
    let Some(stage) = Stage::set() else { return };
    let listener = stage.origin().listen(stage.address()).expect("a free address");
    let origin = Origin::start(listener, |mut stream: &TcpStream, _| {
        read_head(&mut BufReader::new(stream))?;
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nhello")?;
        stream.read(&mut [0]).map(drop)
    });
    let (address, other) = (stage.address(), stage.address());
    let service = || Service::http2("web", address).set("upstream_protocol: http1").set("endpoint_drain_ms: 0");
    let config = stage.config().service(service().to(origin.address()));
    let hop = Hop { agent: Agent::start(&config), service: address, stage };
    let mut client = hop.client2();
    get(&mut client, 1, "GET", &[]);
    let mut told = Vec::new();
    while body(&told) != b"hello" {
        told.push(client.read().unwrap().expect("a frame"));
    }
    hop.agent.reload(&config.with_services([service().to(other)]));
    let told = rest(&mut client, 1);
    assert!(is_reset(&told, INTERNAL_ERROR), "{told:?}");
}

#[test]
fn a_response_of_http1_is_the_same_wherever_it_is_torn() {
    const ANSWERS: [&[u8]; 4] = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;a=b\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
        b"HTTP/1.1 103 Early\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\n\r\nhello",
    ];
    let Some(stage) = Stage::set() else { return };
    let (_hop, told) = told_down(stage, &ANSWERS, &[1, 2, 7, 1000]);
    assert_eq!(told.len(), 16);
    for frames in told {
        assert_eq!(body(&frames), b"hello", "{frames:?}");
        assert!(frames.last().unwrap().ends_stream(), "{frames:?}");
    }
}

#[test]
fn a_response_of_http1_that_breaks_off_is_reset_and_never_ended() {
    const BROKEN: [&[u8]; 4] = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nx\r\n",
    ];
    let Some(stage) = Stage::set() else { return };
    let (hop, told) = told_down(stage, &BROKEN, &[1000]);
    for frames in told {
        assert!(is_reset(&frames, INTERNAL_ERROR), "{frames:?}");
    }
    wait::until("it to be counted", wait::SOON, || {
        hop.agent.metric("sockway_requests_total", &[("outcome", "response_aborted")]) == 4.0
    });
}

#[test]
fn what_is_no_response_of_http1_is_answered_in_its_stead() {
    const BAD: [&[u8]; 5] = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: 1",
    ];
    let Some(stage) = Stage::set() else { return };
    let (hop, told) = told_down(stage, &BAD, &[1000]);
    for frames in told {
        let text = String::from_utf8(body(&frames)).unwrap();
        assert!(text.starts_with("sockway: the endpoint's response: "), "{text}");
    }
    hop.agent.metric_comes_to("sockway_requests_total", &[("outcome", "bad_response")], 5.0);
}

#[test]
fn interim_responses_trailers_and_heads_without_a_body_come_down() {
    const ANSWERS: [&[u8]; 3] = [
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 9\r\nContent-Length: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
    ];
    let Some(stage) = Stage::set() else { return };
    let (_hop, told) = told_down(stage, &ANSWERS, &[1000]);
    let kinds: Vec<u8> = told[0].iter().map(|frame| frame.kind).collect();
    assert_eq!(kinds, [kind::HEADERS, kind::HEADERS, kind::HEADERS, kind::DATA, kind::HEADERS]);
    assert_eq!(body(&told[0]), b"hi");
    for frames in &told[1..] {
        assert!(frames.len() == 1 && frames[0].ends_stream(), "{frames:?}");
    }
}

/// An endpoint of HTTP/1 that sends a whole request back as text, its trailer fields behind it.
fn describing(stage: &Stage) -> Origin {
    let listener = stage.origin().listen(stage.address()).expect("a free address");
    Origin::start(listener, |mut stream: &TcpStream, _| {
        let mut reader = BufReader::new(stream.try_clone()?);
        while let Some(head) = read_head(&mut reader)? {
            let mut text = format!("{}|", head.first);
            head.headers.iter().for_each(|(name, value)| text.push_str(&format!("{name}: {value}|")));
            if head.chunked() {
                loop {
                    let mut line = String::new();
                    reader.read_line(&mut line)?;
                    text.push_str(&format!("{}|", line.trim_end()));
                    if line == "\r\n" {
                        break;
                    }
                }
            } else {
                text.push_str(&String::from_utf8_lossy(&read_body(&mut reader, &head, false)?));
            }
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len())?;
        }
        Ok(())
    })
}

#[test]
fn a_request_that_goes_down_has_one_framing_and_its_trailers() {
    let Some(stage) = Stage::set() else { return };
    let origin = describing(&stage);
    let hop = Hop::down(stage, origin.address());
    let mut client = hop.client2();
    let send = |client: &mut Peer, stream, fields: &[(&str, &str)], data: &[&[u8]], trailers: bool| {
        client.send(kind::HEADERS, END_HEADERS, stream, &request("POST", "/x", fields)).unwrap();
        for (index, piece) in data.iter().enumerate() {
            let is_last = index + 1 == data.len() && !trailers;
            client.send(kind::DATA, u8::from(is_last), stream, piece).unwrap();
        }
        if trailers {
            let fields = frames::head(&[("x-sum", "9"), ("set-cookie", "a")]);
            client.send(kind::HEADERS, END_HEADERS | END_STREAM, stream, &fields).unwrap();
        }
        String::from_utf8(body(&rest(client, stream))).unwrap()
    };
    let crumbs = [("cookie", "a=1"), ("te", "trailers"), ("cookie", "b=2")];
    let told = send(&mut client, 1, &crumbs, &[b"hello"], true);
    let expected =
        "POST /x HTTP/1.1|host: test|te: trailers|cookie: a=1; b=2|connection: te|transfer-encoding: chunked|";
    assert_eq!(told, format!("{expected}5|hello|0|x-sum: 9||"));
    let told = send(&mut client, 3, &[("content-length", "5")], &[b"he", b"llo"], false);
    assert_eq!(told, "POST /x HTTP/1.1|host: test|content-length: 5|hello");
    assert_eq!(origin.accepted(), 1, "the second took the connection of the first");
    // What is declared and what comes must be the same.
    client.send(kind::HEADERS, END_HEADERS, 5, &request("POST", "/", &[("content-length", "9")])).unwrap();
    client.send(kind::DATA, END_STREAM, 5, b"hello").unwrap();
    assert!(is_reset(&rest(&mut client, 5), PROTOCOL_ERROR));
    let both = [("content-length", "1"), ("content-length", "2")];
    client.send(kind::HEADERS, END_HEADERS, 7, &request("POST", "/", &both)).unwrap();
    assert!(is_reset(&rest(&mut client, 7), PROTOCOL_ERROR));
    client.send(kind::HEADERS, END_HEADERS, 9, &request("CONNECT", "/", &[])).unwrap();
    assert!(!rest(&mut client, 9).is_empty());
    // What is announced comes, and the body has the one form in HTTP/1 that lets it.
    let told = send(&mut client, 11, &[("content-length", "5"), ("trailer", "x-sum")], &[b"hello"], true);
    let expected = "POST /x HTTP/1.1|host: test|trailer: x-sum|transfer-encoding: chunked|";
    assert_eq!(told, format!("{expected}5|hello|0|x-sum: 9||"));
}

#[test]
fn a_body_that_its_endpoint_has_not_asked_for_costs_the_connection() {
    let Some(stage) = Stage::set() else { return };
    let listener = stage.origin().listen(stage.address()).expect("a free address");
    let origin = Origin::start(listener, |mut stream: &TcpStream, _| {
        let mut reader = BufReader::new(stream.try_clone()?);
        while let Some(head) = read_head(&mut reader)? {
            if head.first.contains("/asks") {
                write!(stream, "HTTP/1.1 100 Continue\r\n\r\n")?;
                read_body(&mut reader, &head, false)?;
            }
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")?;
        }
        Ok(())
    });
    let hop = Hop::down(stage, origin.address());
    let mut client = hop.client2();
    let smuggled = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    for (stream, path, accepted) in [(1, "/asks", 1), (3, "/asks", 1), (5, "/", 1), (7, "/", 2)] {
        let head =
            frames::frame(kind::HEADERS, END_HEADERS, stream, &request("POST", path, &[("expect", "100-continue")]));
        client.send_bytes(&[head, frames::frame(kind::DATA, END_STREAM, stream, smuggled)].concat()).unwrap();
        assert_eq!(body(&rest(&mut client, stream)), b"hi");
        assert_eq!(origin.accepted(), accepted, "{path} on {stream}");
    }
}

#[test]
fn what_would_smuggle_never_reaches_an_endpoint_of_http1() {
    let Some(stage) = Stage::set() else { return };
    let origin = describing(&stage);
    let hop = Hop::down(stage, origin.address());
    let broken: [(&str, &str); 7] = [
        ("transfer-encoding", "chunked"),
        ("connection", "x"),
        ("upgrade", "h2c"),
        ("x", "a\r\nb: c"),
        ("x", "a\0"),
        ("x y", "1"),
        ("X", "1"),
    ];
    for (name, value) in broken {
        let mut client = hop.client2();
        get(&mut client, 1, "GET", &[(name, value)]);
        loop {
            match client.read() {
                Ok(Some(frame)) if matches!(frame.kind, kind::RST_STREAM | kind::GOAWAY) => break,
                Ok(Some(frame)) => assert!(frame.kind != kind::HEADERS, "{name}: {value:?}: {frame:?}"),
                _ => break,
            }
        }
    }
    for (method, path) in
        [("GET", "/a b"), ("GET", "/\r\nx: 1"), ("G ET", "/"), ("GET:", "/"), ("GET", "x"), ("GET", "")]
    {
        let mut client = hop.client2();
        client.send(kind::HEADERS, END_HEADERS | END_STREAM, 1, &request(method, path, &[])).unwrap();
        let frame = loop {
            let frame = client.read().unwrap().expect("a refusal");
            if matches!(frame.kind, kind::HEADERS | kind::RST_STREAM | kind::GOAWAY) {
                break frame;
            }
        };
        assert!(frame.kind != kind::HEADERS || frame.payload[0] == 0x8c, "{method} {path:?}: {frame:?}");
    }
    assert_eq!(origin.accepted(), 0, "none of them was passed on");
}
