//! Tables of what is taken, what is refused, and what is changed: every class of garbage that smuggles requests.

mod smuggling;

use proptest::prelude::*;

use super::*;
use crate::decode::edit;

const GET: Asked = Asked { head: false, websocket: false, http10: false, connect: false, fields_max: FIELDS_MAX };

fn request(bytes: &[u8]) -> Result<Option<RequestHead>, BadRequest> {
    super::request(bytes, FIELDS_MAX)
}

/// Reads a request given without its first line and Host.
fn fields(lines: &str) -> Result<RequestHead, BadRequest> {
    whole(&format!("POST /x HTTP/1.1\r\nHost: a\r\n{lines}\r\n"))
}

fn whole(text: &str) -> Result<RequestHead, BadRequest> {
    whole_bytes(text.as_bytes())
}

fn whole_bytes(bytes: &[u8]) -> Result<RequestHead, BadRequest> {
    request(bytes).map(|head| head.expect("the head is all there"))
}

/// The head as it is passed on.
fn passed_on(text: &[u8], bytes: usize, edits: &Edits, start_line_bytes: usize) -> String {
    const ROOM: usize = 256;
    let mut memory = [&[0; ROOM][..], text].concat();
    for (at, byte) in &edits.patches {
        memory[ROOM + at] = *byte;
    }
    let mut start = edit::cut(&mut memory, ROOM..ROOM + bytes, &edits.cuts);
    if !edits.insert.is_empty() {
        start = edit::insert_field(&mut memory, start, start_line_bytes, &edits.insert).unwrap();
    }
    String::from_utf8(memory[start..].to_vec()).unwrap()
}

fn request_passed_on(text: &str) -> String {
    let head = whole(text).unwrap();
    passed_on(text.as_bytes(), head.bytes, &head.edits, head.start_line_bytes)
}

fn response_passed_on(text: &str, asked: Asked) -> String {
    let head = response(text.as_bytes(), asked).unwrap().unwrap();
    passed_on(text.as_bytes(), head.bytes, &head.edits, head.start_line_bytes)
}

#[test]
fn an_ordinary_request_is_not_touched() {
    let text =
        "GET /path?q=1 HTTP/1.1\r\nHost: example.test:80\r\nUser-Agent:  x y \r\nAccept: */*\r\nCookie: a=b\r\n\r\n";
    let head = whole(text).unwrap();
    assert_eq!(head.edits, Edits::default());
    assert_eq!((head.bytes, head.start_line_bytes), (text.len(), 24));
    assert_eq!((head.method, head.framing, head.keep_alive), (Method::Idempotent, Framing::None, true));
    assert_eq!(request_passed_on(text), text);
}

#[test]
fn a_body_is_framed_one_way() {
    for (lines, framing) in [
        ("", Framing::None),
        ("Content-Length: 0\r\n", Framing::None),
        ("Content-Length: 7\r\n", Framing::Length(7)),
        ("content-length:7\r\n", Framing::Length(7)),
        ("Content-Length: 7 \t\r\n", Framing::Length(7)),
        ("Content-Length: 007\r\n", Framing::Length(7)),
        ("Content-Length: 9223372036854775807\r\n", Framing::Length(i64::MAX as u64)),
        ("Transfer-Encoding: chunked\r\n", Framing::Chunked),
        ("TRANSFER-ENCODING: Chunked\r\n", Framing::Chunked),
        ("Transfer-Encoding:\tchunked\t\r\n", Framing::Chunked),
    ] {
        assert_eq!(fields(lines).unwrap().framing, framing, "{lines:?}");
    }
}

#[test]
fn a_length_said_again_is_passed_on_once() {
    let text = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nX: 1\r\nContent-Length: 5\r\n\r\nhello";
    assert_eq!(request_passed_on(text), "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nX: 1\r\n\r\nhello");
}

#[test]
fn ambiguous_framing_is_refused() {
    for lines in [
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: identity, chunked\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: chunked,chunked\r\n",
        "Transfer-Encoding: ,chunked\r\n",
        "Transfer-Encoding: chunked,\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: chunkedx\r\n",
        "Transfer-Encoding: chunked;q=1\r\n",
        "Transfer-Encoding: \"chunked\"\r\n",
        "Transfer-Encoding: \u{b}chunked\r\n",
        "Transfer-Encoding: \u{a0}chunked\r\n",
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding:\r\n",
        "Transfer-Encoding : chunked\r\n",
        " Transfer-Encoding: chunked\r\n",
        "Content-Length:\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: -5\r\n",
        "Content-Length: 0x5\r\n",
        "Content-Length: +1_0\r\n",
        "Content-Length: 1_0\r\n",
        "Content-Length: 1Z\r\n",
        "Content-Length: 5,5\r\n",
        "Content-Length: 5 5\r\n",
        "Content-Length: 5.0\r\n",
        "Content-Length: 9223372036854775808\r\n",
        "Content-Length: 18446744073709551621\r\n",
        "Content-Length: 99999999999999999999999999\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 5\r\nContent-Length: 05x\r\n",
        "Content-Length : 5\r\n",
    ] {
        assert!(matches!(fields(lines), Err(BadRequest::Malformed(_))), "{lines:?}: {:?}", fields(lines));
    }
}

#[test]
fn chunks_in_http_1_0_are_refused() {
    let text = "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert!(matches!(whole(text), Err(BadRequest::Malformed(_))));
}

#[test]
fn malformed_lines_are_refused() {
    for text in [
        &b"GET / HTTP/1.1\r\nHost: a\r\nX : 1\r\n\r\n"[..],
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
        b"GET / HTTP/1.1\r\n\tX: 1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n\tfolded\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n: 1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX y: 1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX\xc3\xa9: 1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX(: 1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX\0: 1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\x002\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\nX: 1\r\n\r\n",
        b"GET / HTTP/1.1\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\n",
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"GET / HTTP/1.1\rHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\rX\r\n\r\n",
        b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /  HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /\tHTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
        b"GET / x HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /\n HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n",
        b" GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"G\x01ET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x00GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\xffGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"G(T / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET\r\nHost: a\r\n\r\n",
        b"GET /\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ] {
        assert!(
            matches!(request(text), Err(BadRequest::Malformed(_) | BadRequest::Version)),
            "{:?}",
            text.escape_ascii().to_string()
        );
    }
}

#[test]
fn other_versions_are_refused_as_such() {
    for line in [
        "GET / HTTP/2.0",
        "GET / HTTP/0.9",
        "GET / HTTP/1.2",
        "GET / HTTP/11",
        "GET / http/1.1",
        "GET / xHTTP/1.1",
        "GET / HTTP/1.10",
        "PRI * HTTP/2.0",
        "GET / \u{b}HTTP/1.1",
    ] {
        let head = whole(&format!("{line}\r\nHost: a\r\n\r\n"));
        assert!(matches!(head, Err(BadRequest::Version | BadRequest::Malformed(_))), "{line}: {head:?}");
    }
}

#[test]
fn there_is_one_host_and_it_is_one() {
    for (lines, is_taken) in [
        ("Host: example.test\r\n", true),
        ("Host: example.test:8080\r\n", true),
        ("Host: 127.0.0.1:80\r\n", true),
        ("Host: [::1]:80\r\n", true),
        ("Host: [::1]\r\n", true),
        ("Host:\r\n", true),
        ("Host: a:\r\n", true),
        ("", false),
        ("Host: a\r\nHost: a\r\n", false),
        ("Host: a\r\nHost: b\r\n", false),
        ("Host: a b\r\n", false),
        ("Host: a, b\r\n", false),
        ("Host: a/b\r\n", false),
        ("Host: a?b\r\n", false),
        ("Host: a#b\r\n", false),
        ("Host: u@a\r\n", false),
        ("Host: a:80:90\r\n", false),
        ("Host: a:8x\r\n", false),
        ("Host: a:-1\r\n", false),
        ("Host: :80\r\n", false),
        ("Host: [::1\r\n", false),
        ("Host: ::1\r\n", false),
        ("Host: []\r\n", false),
        ("Host: [::1]x\r\n", false),
        ("Host: a\\b\r\n", false),
        ("Host: \u{e9}\r\n", false),
    ] {
        let head = whole(&format!("GET / HTTP/1.1\r\n{lines}\r\n"));
        assert_eq!(head.is_ok(), is_taken, "{lines:?}: {head:?}");
    }
}

#[test]
fn an_absolute_target_becomes_a_path_and_a_host() {
    for (before, after) in [
        ("GET http://a.test/x?y HTTP/1.1\r\nHost: a.test\r\n\r\n", "GET /x?y HTTP/1.1\r\nHost: a.test\r\n\r\n"),
        ("GET http://a.test/x HTTP/1.1\r\nX: 1\r\nHost: b\r\n\r\n", "GET /x HTTP/1.1\r\nHost: a.test\r\nX: 1\r\n\r\n"),
        ("GET HTTP://a.test HTTP/1.1\r\nHost: b\r\n\r\n", "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"),
        ("GET https://a:1?q HTTP/1.1\r\nHost: b\r\n\r\n", "GET /?q HTTP/1.1\r\nHost: a:1\r\n\r\n"),
        ("GET http://[::1]:8/ HTTP/1.0\r\n\r\n", "GET / HTTP/1.1\r\nHost: [::1]:8\r\n\r\n"),
        ("OPTIONS http://a:1 HTTP/1.1\r\nHost: b\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: a:1\r\n\r\n"),
        ("OPTIONS http://a/ HTTP/1.1\r\nHost: a\r\n\r\n", "OPTIONS / HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("OPTIONS http://a?q HTTP/1.1\r\nHost: a\r\n\r\n", "OPTIONS /?q HTTP/1.1\r\nHost: a\r\n\r\n"),
    ] {
        assert_eq!(request_passed_on(before), after);
    }
}

#[test]
fn other_targets_are_refused() {
    for target in [
        "x",
        "*",
        "http://",
        "http:///x",
        "http://u@a/",
        "http://a b/",
        "ftp://a/",
        "http:/a/",
        "://a",
        "?q",
        "a:80",
        "/x#y",
        "http://a/#",
        "http://a#/",
    ] {
        for method in ["POST", "GET"] {
            let text = format!("{method} {target} HTTP/1.1\r\nHost: a\r\n\r\n");
            assert!(request(text.as_bytes()).is_err(), "{method} {target}");
        }
    }
    assert_eq!(whole("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").unwrap().method, Method::Options);
}

#[test]
fn a_tunnel_is_asked_for_to_a_host_and_a_port() {
    let asked = |target: &str, lines: &str| whole(&format!("CONNECT {target} HTTP/1.1\r\nHost: a\r\n{lines}\r\n"));
    for target in ["a:80", "[::1]:443", "10.0.0.1:1"] {
        let head = asked(target, "Content-Length: 0\r\n").unwrap();
        assert_eq!((head.method, head.keep_alive), (Method::Connect, false), "{target}");
    }
    for target in ["a", "a:", ":80", "/", "*", "http://a:80", "a:80/", "u@a:80", "a:x"] {
        assert!(asked(target, "").is_err(), "{target}");
    }
    assert!(asked("a:80", "Content-Length: 1\r\n").is_err());
    assert!(asked("a:80", "Transfer-Encoding: chunked\r\n").is_err());
}

#[test]
fn success_opens_a_tunnel_whatever_its_fields_say_of_a_body() {
    let connect = Asked { connect: true, ..GET };
    for (status, lines, switches, framing) in [
        (200, "", true, Framing::None),
        (299, "Content-Length: 5\r\n", true, Framing::None),
        (200, "Transfer-Encoding: chunked\r\n", true, Framing::None),
        (407, "Content-Length: 5\r\n", false, Framing::Length(5)),
        (302, "", false, Framing::UntilClose),
    ] {
        let text = format!("HTTP/1.1 {status} x\r\n{lines}\r\n");
        let head = response(text.as_bytes(), connect).unwrap().unwrap();
        assert_eq!((head.switches, head.framing), (switches, framing), "{text}");
        if switches {
            assert_eq!(response_passed_on(&text, connect), format!("HTTP/1.1 {status} x\r\n\r\n"));
        }
    }
}

#[test]
fn hop_by_hop_fields_are_not_passed_on() {
    let before = "GET / HTTP/1.1\r\nConnection: keep-alive, X-Mine ,x-other\r\nHost: a\r\nKeep-Alive: timeout=5\r\n\
                  x-mine: 1\r\nProxy-Connection: keep-alive\r\nproxy-authorization: x\r\nTE: gzip\r\nTrailer: x\r\n\
                  Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nX-Other: 2\r\nX-Kept: 3\r\n\r\n";
    assert_eq!(request_passed_on(before), "GET / HTTP/1.1\r\nHost: a\r\nX-Kept: 3\r\n\r\n");
}

#[test]
fn te_trailers_is_passed_on() {
    let text = "GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\n\r\n";
    assert_eq!(request_passed_on(text), text);
    for (before, after) in [
        ("TE: trailers\r\nConnection: TE\r\nHost: a\r\n", "Connection: TE\r\nTE: trailers\r\nHost: a\r\n"),
        ("Connection: close, te\r\nHost: a\r\nte: Trailers\r\n", "Connection: TE\r\nHost: a\r\nte: Trailers\r\n"),
        ("TE: gzip;q=0.5, trailers\r\nConnection: TE\r\nHost: a\r\n", "TE: trailers\r\nConnection: TE\r\nHost: a\r\n"),
        ("TE: trailers, deflate\r\nHost: a\r\n", "TE: trailers\r\nHost: a\r\n"),
        ("TE: gzip\r\nConnection: TE\r\nHost: a\r\n", "Host: a\r\n"),
        ("Connection: TE\r\nHost: a\r\n", "Host: a\r\n"),
    ] {
        let request = |lines: &str| format!("GET / HTTP/1.1\r\n{lines}\r\n");
        assert_eq!(request_passed_on(&request(before)), request(after));
    }
}

#[test]
fn connection_cannot_take_away_what_concerns_the_whole_way() {
    let before = "POST / HTTP/1.1\r\nHost: a\r\nConnection: host, content-length, Authorization, cookie, close\r\n\
                  Content-Length: 0\r\nAuthorization: x\r\nCookie: y\r\n\r\n";
    let after = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nAuthorization: x\r\nCookie: y\r\n\r\n";
    assert_eq!(request_passed_on(before), after);
}

#[test]
fn the_client_s_wish_to_go_on_is_understood() {
    for (version, connection, keep_alive) in [
        ("1.1", "", true),
        ("1.1", "Connection: keep-alive\r\n", true),
        ("1.1", "Connection: close\r\n", false),
        ("1.1", "Connection: CLOSE\r\n", false),
        ("1.1", "Connection: x, close\r\n", false),
        ("1.1", "Connection: keep-alive\r\nConnection: close\r\n", false),
        ("1.0", "", false),
        ("1.0", "Connection: Keep-Alive\r\n", true),
        ("1.0", "Connection: close\r\n", false),
    ] {
        let head = whole(&format!("GET / HTTP/{version}\r\nHost: a\r\n{connection}\r\n")).unwrap();
        assert_eq!(head.keep_alive, keep_alive, "{version} {connection:?}");
    }
}

#[test]
fn http_1_0_is_passed_on_as_our_own_version() {
    let text = "POST / HTTP/1.0\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n";
    assert_eq!(request_passed_on(text), "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n");
    assert!(!whole(text).unwrap().expects_continue);
    for (target, lacks_host) in [("/", true), ("/to?http://b/", true), ("http://b/", false)] {
        assert_eq!(whole(&format!("GET {target} HTTP/1.0\r\n\r\n")).unwrap().lacks_host, lacks_host, "{target}");
    }
}

#[test]
fn a_websocket_s_request_keeps_what_asks_for_it() {
    let text = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n";
    assert!(whole(text).unwrap().websocket);
    assert_eq!(request_passed_on(text), text);
    // What Connection names besides goes, and what it names as Upgrade stays.
    let text = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, X\r\nX: 1\r\nUpgrade: websocket\r\n\r\n";
    let after = "GET / HTTP/1.1\r\nConnection: Upgrade\r\nHost: a\r\nUpgrade: websocket\r\n\r\n";
    assert_eq!(request_passed_on(text), after);
    let text = "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n";
    assert_eq!(request_passed_on(text), after);
    for lines in [
        "Upgrade: websocket\r\n",
        "Connection: upgrade\r\nUpgrade: websocket, h2c\r\n",
        "Connection: Upgrade\r\nUpgrade: h2c\r\n",
        "Connection: Upgrade\r\nUpgrade: TLS/1.2\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket\r\n",
    ] {
        // Of POST none, of whatever protocol: the request goes on as an ordinary one.
        assert!(!fields(lines).unwrap().websocket, "{lines:?}");
        let text = format!("POST /x HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
        assert_eq!(request_passed_on(&text), "POST /x HTTP/1.1\r\nHost: a\r\n\r\n", "{lines:?}");
    }
}

#[test]
fn too_many_fields_are_too_many() {
    let lines = |count: usize| (0..count).map(|index| format!("x{index}: y\r\n")).collect::<String>();
    assert!(fields(&lines(FIELDS_MAX - 1)).is_ok());
    assert_eq!(fields(&lines(FIELDS_MAX)), Err(BadRequest::TooManyFields));
    for limit in [1, 50, 1000] {
        let request = |count| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", lines(count));
        assert!(super::request(request(limit - 1).as_bytes(), limit).unwrap().is_some(), "{limit}");
        assert_eq!(super::request(request(limit).as_bytes(), limit), Err(BadRequest::TooManyFields), "{limit}");
        let asked = Asked { fields_max: limit, ..GET };
        let text = |count| format!("HTTP/1.1 200 OK\r\n{}\r\n", lines(count));
        assert!(response(text(limit).as_bytes(), asked).unwrap().is_some(), "{limit}");
        assert_eq!(response(text(limit + 1).as_bytes(), asked), Err(TOO_MANY_FIELDS), "{limit}");
    }
}

#[test]
fn a_response_is_framed_by_status_method_and_fields() {
    let head = Asked { head: true, ..GET };
    for (status, lines, asked, framing) in [
        (200, "Content-Length: 5\r\n", GET, Framing::Length(5)),
        (200, "Content-Length: 0\r\n", GET, Framing::None),
        (200, "Transfer-Encoding: chunked\r\n", GET, Framing::Chunked),
        (200, "", GET, Framing::UntilClose),
        (200, "Content-Length: 5\r\n", head, Framing::None),
        (200, "Transfer-Encoding: chunked\r\n", head, Framing::None),
        (204, "", GET, Framing::None),
        (304, "Content-Length: 5\r\n", GET, Framing::None),
        (100, "", GET, Framing::None),
        (103, "Link: x\r\n", GET, Framing::None),
    ] {
        let text = format!("HTTP/1.1 {status} x\r\n{lines}\r\n");
        assert_eq!(response(text.as_bytes(), asked).unwrap().unwrap().framing, framing, "{text}");
    }
}

#[test]
fn malformed_responses_are_refused() {
    for text in [
        &b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"[..],
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: 1\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\nX: 1\n\n",
        b"HTTP/1.1 200 OK\r\nX: 1\n\r\n",
        b"\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 099 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\n\r\n",
        b"ICY 200 OK\r\n\r\n",
        b"SSH-2.0-x\r\n",
    ] {
        assert!(response(text, GET).is_err(), "{:?}", text.escape_ascii().to_string());
    }
}

#[test]
fn a_response_is_passed_on_without_what_concerns_the_connection() {
    for (before, after) in [
        ("HTTP/1.1 200 OK\r\nServer: n\r\nConnection: keep-alive\r\n\r\n", "HTTP/1.1 200 OK\r\nServer: n\r\n\r\n"),
        ("HTTP/1.0 200 OK\r\nX : 1\r\nConnection: close\r\n\r\n", "HTTP/1.1 200 OK\r\nX: 1\r\n\r\n"),
        ("HTTP/1.1 204 x\r\nTransfer-Encoding: chunked\r\n\r\n", "HTTP/1.1 204 x\r\n\r\n"),
        ("HTTP/1.1 204 x\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 204 x\r\n\r\n"),
        ("HTTP/1.1 304 x\r\nContent-Length: 9\r\n\r\n", "HTTP/1.1 304 x\r\nContent-Length: 9\r\n\r\n"),
        ("HTTP/1.1 200 \r\nTrailer: x\r\nUpgrade: h2c\r\n\r\n", "HTTP/1.1 200 \r\n\r\n"),
    ] {
        assert_eq!(response_passed_on(before, GET), after);
    }
    let switching = "HTTP/1.1 101 x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    assert_eq!(response_passed_on(switching, Asked { websocket: true, ..GET }), switching);
    let other = b"HTTP/1.1 101 x\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n";
    assert!(response(other, Asked { websocket: true, ..GET }).is_err());
    let chunked = "HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(response_passed_on(chunked, Asked { http10: true, ..GET }), "HTTP/1.1 200 x\r\n\r\n");
}

#[test]
fn reuse_of_a_connection_is_what_both_ends_said() {
    for (text, keep_alive) in [
        ("HTTP/1.1 200 x\r\nContent-Length: 1\r\n\r\n", true),
        ("HTTP/1.1 200 x\r\nContent-Length: 1\r\nConnection: close\r\n\r\n", false),
        ("HTTP/1.1 200 x\r\n\r\n", false),
        ("HTTP/1.0 200 x\r\nContent-Length: 1\r\n\r\n", false),
        ("HTTP/1.0 200 x\r\nContent-Length: 1\r\nConnection: keep-alive\r\n\r\n", true),
    ] {
        assert_eq!(response(text.as_bytes(), GET).unwrap().unwrap().keep_alive, keep_alive, "{text}");
    }
}

#[test]
fn a_head_torn_anywhere_is_waited_for() {
    let text = b"POST http://a/ HTTP/1.1\r\nHost: b\r\nConnection: x\r\nX: 1\r\nContent-Length: 3\r\n\r\nabc";
    let head = whole_bytes(text).unwrap();
    for end in 0..text.len() {
        let torn = request(&text[..end]);
        if end < head.bytes {
            assert_eq!(torn, Ok(None), "{end}")
        } else {
            assert_eq!(torn.unwrap().as_ref(), Some(&head))
        }
    }
    let text = b"HTTP/1.1 200 OK\r\nServer : x\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc";
    let head = response(text, GET).unwrap().unwrap();
    for end in 0..text.len() {
        let torn = response(&text[..end], GET);
        if end < head.bytes {
            assert_eq!(torn, Ok(None), "{end}")
        } else {
            assert_eq!(torn.unwrap().as_ref(), Some(&head))
        }
    }
}

fn garbage() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just(b"GET / HTTP/1.1\r\n".to_vec()),
        Just(b"HTTP/1.1 200 OK\r\n".to_vec()),
        Just(b"GET http://a HTTP/1.0\r\n".to_vec()),
        Just(b"Host: a\r\n".to_vec()),
        Just(b"Connection: close, x, Host\r\n".to_vec()),
        Just(b"x: 1\r\n".to_vec()),
        Just(b"Upgrade: websocket\r\n".to_vec()),
        Just(b"Content-Length: 3\r\n".to_vec()),
        Just(b"Transfer-Encoding: chunked\r\n".to_vec()),
        Just(b"\r\n".to_vec()),
        proptest::collection::vec(any::<u8>(), 0..4),
    ];
    proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn nothing_panics_and_what_is_passed_on_reads_the_same(bytes in garbage()) {
        if let Ok(Some(head)) = request(&bytes) {
            let framing = head.framing;
            let mut edits = head.edits;
            if head.lacks_host {
                edits.insert.extend_from_slice(b"Host: a\r\n");
            }
            const ROOM: usize = 256;
            let mut memory = [&[0; ROOM][..], &bytes].concat();
            for (at, byte) in &edits.patches {
                memory[ROOM + at] = *byte;
            }
            let mut start = edit::cut(&mut memory, ROOM..ROOM + head.bytes, &edits.cuts);
            start = edit::insert_field(&mut memory, start, head.start_line_bytes, &edits.insert).unwrap();
            let again = request(&memory[start..]).unwrap().unwrap();
            prop_assert_eq!(again.framing, framing);
            prop_assert_eq!(again.bytes, ROOM + head.bytes - start);
            prop_assert!(again.edits.cuts.is_empty() || head.websocket);
        }
        for asked in [GET, Asked { head: true, websocket: true, http10: true, connect: true, fields_max: 3 }] {
            let _ = response(&bytes, asked);
        }
    }
}
