//! How long the heads of HTTP/2 may be, and what of them is said once: the limits of a service hold whatever its clients and endpoints speak,
//! and who is over them is told so.

use std::{
    io::{BufReader, Write as _},
    net::TcpStream,
    thread,
    time::Duration,
};

use sockway_tests::{
    answer::read_head,
    config::Service,
    frames::{END_HEADERS, END_STREAM, Peer, frame, head, heads, kind, request},
    origin::Origin,
    stage::Stage,
    translation::{HTTP2, Hop, STATUS_200, ask, body, framed, get, rest},
};

/// An endpoint of HTTP/2 whose every response has this head.
fn answering(stage: &Stage, fields: &[(&str, &str)]) -> Origin {
    let block = [&[STATUS_200], &head(fields)[..]].concat();
    framed(stage, move |peer, frame, _| match frame.flags & END_HEADERS != 0 && frame.stream != 0 {
        true => peer.send_bytes(&heads(END_STREAM, frame.stream, &block)),
        false => Ok(()),
    })
}

/// Clients and endpoints of HTTP/2.
fn between(stage: Stage, origin: &Origin, keys: &str) -> Hop {
    let address = stage.address();
    let service = Service::http2("web", address).to(origin.address());
    Hop::of(stage, if keys.is_empty() { service } else { service.set(keys) }, address)
}

#[test]
fn a_request_whose_head_is_too_long_is_refused_with_its_reason() {
    let Some(stage) = Stage::set() else { return };
    let origin = answering(&stage, &[]);
    let hop = between(stage, &origin, "");
    let long = "z".repeat(66_000);
    let mut client = hop.client2();
    client.send_bytes(&heads(END_STREAM, 1, &request("GET", "/", &[("x", &long)]))).unwrap();
    assert_eq!(body(&rest(&mut client, 1)), b"sockway: the request's head is too long\n");
    hop.counted("head_too_large");
    get(&mut client, 3, "GET", &[]);
    assert!(rest(&mut client, 3).last().unwrap().ends_stream(), "its connection goes on");
    // Of gRPC: a status, and no text.
    let call = request("POST", "/call", &[("content-type", "application/grpc"), ("x", &long)]);
    client.send_bytes(&heads(END_STREAM, 5, &call)).unwrap();
    let answer = rest(&mut client, 5);
    assert!(answer.len() == 1 && answer[0].kind == kind::HEADERS, "{answer:?}");
    hop.agent.metric_comes_to("sockway_grpc_responses_total", &[("status", "UNKNOWN")], 1.0);
}

#[test]
fn a_head_that_trickles_in_ends_its_connection_in_time() {
    const ENHANCE_YOUR_CALM: u32 = 11;
    let Some(stage) = Stage::set() else { return };
    let origin = answering(&stage, &[]);
    let hop = between(stage, &origin, "http: { head_timeout_ms: 500 }");
    let whole = heads(END_STREAM, 3, &request("GET", "/", &[("x", &"z".repeat(200))]));
    let unfinished = frame(kind::HEADERS, END_STREAM, 3, &request("GET", "/", &[]));
    for (begun, rest) in [(&whole[..100], &whole[100..]), (&unfinished[..], &[][..])] {
        let mut client = hop.client2();
        // A head that is there at once leaves no deadline behind.
        get(&mut client, 1, "GET", &[]);
        assert!(self::rest(&mut client, 1).last().unwrap().ends_stream());
        thread::sleep(Duration::from_millis(700));
        client.send_bytes(begun).unwrap();
        for byte in rest {
            thread::sleep(Duration::from_millis(40));
            if client.send_bytes(&[*byte]).is_err() {
                break;
            }
        }
        assert_eq!(client.until(kind::GOAWAY).number(4), ENHANCE_YOUR_CALM);
    }
    hop.agent.metric_comes_to("sockway_requests_total", &[("outcome", "head_timeout")], 2.0);
}

#[test]
fn a_response_whose_head_is_too_long_is_answered_with_the_reason() {
    let Some(stage) = Stage::set() else { return };
    let origin = answering(&stage, &[("x", &"z".repeat(66_000))]);
    let why = "sockway: the endpoint's response: its head is too long\n";
    let endpoint = origin.address();
    let hop = Hop::up(stage, [endpoint]);
    let (told, _) = ask(hop.client1(), b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert!(told.starts_with("HTTP/1.1 502 ") && told.ends_with(why), "{told}");
    let Some(stage) = Stage::set() else { return };
    let origin = answering(&stage, &[("x", &"z".repeat(66_000))]);
    let hop = between(stage, &origin, "");
    let mut client = hop.client2();
    get(&mut client, 1, "GET", &[]);
    assert_eq!(String::from_utf8_lossy(&body(&rest(&mut client, 1))), why);
}

#[test]
fn a_service_may_allow_longer_heads_of_more_fields_on_either_side() {
    const ALLOWED: &str = "http: { head_bytes_max: 1048576, head_fields_max: 1000 }";
    let names: Vec<String> = (0..900).map(|number| format!("x-{number}")).collect();
    let value = "z".repeat(1_000);
    let fields: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), value.as_str())).collect();
    let Some(stage) = Stage::set() else { return };
    let origin = answering(&stage, &fields);
    let endpoint = origin.address();
    let hop = between(stage, &origin, ALLOWED);
    let mut client = hop.client2();
    client.send_bytes(&heads(END_STREAM, 1, &request("GET", "/", &fields))).unwrap();
    let answer = rest_of_head(&mut client);
    assert!(answer > 700_000, "{answer} bytes came back");
    // Up, and down.
    let Some(stage) = Stage::set() else { return };
    let address = stage.address();
    let service = Service::http("web", address).set("upstream_protocol: http2").set(ALLOWED).to(endpoint);
    let hop = Hop::of(stage, service, address);
    let lines: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let asked = format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{lines}\r\n");
    let (told, _) = ask(hop.client1(), asked.as_bytes());
    assert!(told.starts_with("HTTP/1.1 200 ") && told.len() > 900_000, "{:.200}", told);
    let Some(stage) = Stage::set() else { return };
    let address = stage.address();
    let listener = stage.origin().listen(stage.address()).unwrap();
    let origin = Origin::start(listener, move |mut stream: &TcpStream, _| {
        while read_head(&mut BufReader::new(stream))?.is_some() {
            stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{lines}\r\n").as_bytes())?;
        }
        Ok(())
    });
    let service = Service::http2("web", address).set("upstream_protocol: http1").set(ALLOWED).to(origin.address());
    let hop = Hop::of(stage, service, address);
    let mut client = hop.client2();
    client.send_bytes(&heads(END_STREAM, 1, &request("GET", "/", &fields))).unwrap();
    let answer = rest_of_head(&mut client);
    assert!(answer > 700_000, "{answer} bytes came back");
}

/// Of how many bytes the first head is; a library makes them fewer.
#[track_caller]
fn rest_of_head(client: &mut Peer) -> usize {
    let mut bytes = 0;
    loop {
        let frame = client.read().unwrap().expect("the head's end");
        if matches!(frame.kind, kind::HEADERS | kind::CONTINUATION) {
            bytes += frame.payload.len();
            if frame.flags & END_HEADERS != 0 {
                return bytes;
            }
        }
    }
}

#[test]
fn a_length_is_passed_on_once_and_nothing_behind_a_head_that_has_no_body() {
    for (status, fields) in [("200", &[("content-length", "2"); 2][..]), ("204", &[]), ("304", &[])] {
        let Some(stage) = Stage::set() else { return };
        let block = head(&[&[(":status", status)], fields].concat());
        let origin = framed(&stage, move |peer, asked, _| {
            if asked.kind != kind::HEADERS {
                return Ok(());
            }
            let of = |kind, flags, payload: &[u8]| frame(kind, flags, asked.stream, payload);
            peer.send_bytes(&[of(kind::HEADERS, END_HEADERS, &block), of(kind::DATA, END_STREAM, b"ok")].concat())
        });
        let hop = between(stage, &origin, "");
        // What says its length twice is no response to curl's library.
        let expected = if status == "200" { &b"ok"[..] } else { b"" };
        assert_eq!(hop.curl("/", &[HTTP2]), (format!("2 {status}"), expected.to_vec()));
        let mut client = hop.client2();
        get(&mut client, 1, "GET", &[]);
        assert_eq!(body(&rest(&mut client, 1)), expected, "{status}");
    }
}
