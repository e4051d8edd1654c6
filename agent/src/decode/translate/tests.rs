//! Heads in both directions, and what never comes through.

use super::{
    super::http1::{self, FIELDS_MAX},
    *,
};

fn asked_by(method: &str, uri: &str, fields: &[(&str, &str)]) -> request::Parts {
    let mut builder = Request::builder().method(method).uri(uri);
    for (name, value) in fields {
        builder = builder.header(*name, *value);
    }
    let (mut parts, ()) = builder.body(()).unwrap().into_parts();
    http2::request(&mut parts, None).unwrap();
    parts
}

fn down(method: &str, uri: &str, fields: &[(&str, &str)], framing: Framing) -> String {
    String::from_utf8(request_to_http1(&asked_by(method, uri, fields), framing).unwrap()).unwrap()
}

/// What an endpoint of HTTP/1 gets is one request, read by our own strict reader.
fn reads_as_one(head: &str, framing: Framing) {
    let read = http1::request(head.as_bytes(), FIELDS_MAX).unwrap().unwrap();
    assert_eq!((read.bytes, read.framing), (head.len(), framing), "{head}");
}

#[test]
fn requests_to_http1_have_one_host_one_cookie_and_one_framing() {
    for (method, uri, fields, framing, expected) in [
        ("GET", "http://a/x?y=1", &[][..], Framing::None, "GET /x?y=1 HTTP/1.1\r\nhost: a\r\n\r\n"),
        ("GET", "http://a", &[], Framing::None, "GET / HTTP/1.1\r\nhost: a\r\n\r\n"),
        ("GET", "http://[::1]:8/", &[], Framing::None, "GET / HTTP/1.1\r\nhost: [::1]:8\r\n\r\n"),
        ("GET", "http://a/", &[("host", "A")], Framing::None, "GET / HTTP/1.1\r\nhost: a\r\n\r\n"),
        (
            "GET",
            "http://a/",
            &[("cookie", "a=1"), ("x", "1"), ("cookie", "b=2")],
            Framing::None,
            "GET / HTTP/1.1\r\nhost: a\r\nx: 1\r\ncookie: a=1; b=2\r\n\r\n",
        ),
        (
            "GET",
            "http://a/",
            &[("te", "trailers")],
            Framing::None,
            "GET / HTTP/1.1\r\nhost: a\r\nte: trailers\r\nconnection: te\r\n\r\n",
        ),
        ("POST", "http://a/", &[], Framing::None, "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n"),
        (
            "POST",
            "http://a/",
            &[("content-length", "007"), ("content-length", "7"), ("keep-alive", "x")],
            Framing::Length(7),
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 7\r\n\r\n",
        ),
        (
            "POST",
            "http://a/",
            &[("content-length", "7")],
            Framing::Chunked,
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n",
        ),
        (
            "GET",
            "http://a/",
            &[("transfer-encoding", "chunked"), ("connection", "x"), ("upgrade", "h2c"), ("keep-alive", "1")],
            Framing::None,
            "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        ),
    ] {
        let head = down(method, uri, fields, framing);
        assert_eq!(head, expected);
        let framing = if method == "POST" && framing == Framing::None { Framing::None } else { framing };
        reads_as_one(&head, framing);
    }
}

#[test]
fn an_authority_that_is_no_host_of_http1_is_refused() {
    let mut parts = asked_by("GET", "http://a/", &[]);
    for authority in ["a!b:x", "[::1"] {
        let Ok(uri) = format!("http://{authority}/").parse::<Uri>() else { continue };
        parts.uri = uri;
        assert!(request_to_http1(&parts, Framing::None).is_err(), "{authority}");
    }
    parts.uri = Uri::from_static("/x");
    assert_eq!(request_to_http1(&parts, Framing::None), Err(BadRequest::Malformed("invalid :authority")));
}

/// A request of HTTP/1 as an endpoint of HTTP/2 gets it.
fn up(head: &str) -> Result<(request::Parts, Asked), BadRequest> {
    let read = http1::request(head.as_bytes(), FIELDS_MAX)?.unwrap();
    let mut memory = head.as_bytes().to_vec();
    read.edits.patches.iter().for_each(|(at, byte)| memory[*at] = *byte);
    let start = super::super::edit::cut(&mut memory, 0..read.bytes, &read.edits.cuts);
    let mut edited = memory[start..].to_vec();
    edited.splice(read.start_line_bytes..read.start_line_bytes, read.edits.insert);
    request_to_http2(&edited, false)
}

fn shown(headers: &HeaderMap) -> String {
    headers.iter().map(|(name, value)| format!("{name}: {};", value.to_str().unwrap())).collect()
}

#[test]
fn requests_to_http2_name_their_authority_and_say_nothing_of_connections() {
    for (head, uri, fields) in [
        ("GET /x?y HTTP/1.1\r\nHost: a:8\r\nX-A: 1\r\n\r\n", "http://a:8/x?y", "x-a: 1;"),
        ("GET http://b/x HTTP/1.1\r\nHost: a\r\n\r\n", "http://b/x", ""),
        ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "http://a*", ""),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n", "http://a/", "content-length: 3;"),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: x\r\n\r\n", "http://a/", "trailer: x;"),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: x, te\r\nX: 1\r\nKeep-Alive: 1\r\nTE: gzip\r\nProxy-A: 1\r\n\r\n",
            "http://a/",
            "",
        ),
        ("GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\n\r\n", "http://a/", "te: trailers;"),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nExpect: 100-continue\r\n\r\n",
            "http://a/",
            "expect: 100-continue;",
        ),
        ("GET / HTTP/1.1\r\nHost: a\r\nA:  \t1 2 \t\r\nA: 3\r\n\r\n", "http://a/", "a: 1 2;a: 3;"),
    ] {
        let (parts, _) = up(head).unwrap();
        assert_eq!((parts.uri.to_string().as_str(), shown(&parts.headers).as_str()), (uri, fields), "{head}");
    }
}

#[test]
fn the_scheme_is_that_of_the_connection_to_the_endpoint() {
    for (is_secure, uri) in [(false, "http://a/x"), (true, "https://a/x")] {
        let (parts, _) = request_to_http2(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n", is_secure).unwrap();
        assert_eq!(parts.uri, uri);
    }
}

#[test]
fn what_has_no_form_in_http2_is_refused() {
    for head in ["GET / HTTP/1.1\r\nHost:\r\n\r\n", "GET /\u{7f} HTTP/1.1\r\nHost: a\r\n\r\n"] {
        assert!(up(head).is_err(), "{head:?}");
    }
}

#[test]
fn responses_to_http2_keep_their_length_and_lose_their_coding() {
    for (head, fields) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nX: 1\r\n\r\n", "content-length: 3;x: 1;"),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\r\n",
            "set-cookie: a;set-cookie: b;",
        ),
        ("HTTP/1.1 200\r\nConnection: close\r\nProxy-A: 1\r\nUpgrade: h2c\r\n\r\n", ""),
    ] {
        let response = response_to_http2(head.as_bytes(), 200).unwrap();
        assert_eq!(shown(response.headers()), fields, "{head}");
    }
    assert!(response_to_http2(b"HTTP/1.1 200 OK\r\nX: \x01\r\n\r\n", 200).is_err());
    assert!(response_to_http2(b"HTTP/1.1 101 x\r\n\r\n", 101).is_err());
}

fn answered(status: u16, fields: &[(&str, &str)], framing: Framing, keep_alive: Option<bool>) -> String {
    let mut builder = Response::builder().status(status);
    for (name, value) in fields {
        builder = builder.header(*name, *value);
    }
    let (parts, ()) = builder.body(()).unwrap().into_parts();
    String::from_utf8(response_to_http1(&parts, framing, keep_alive)).unwrap()
}

#[test]
fn responses_to_http1_say_their_framing_once() {
    for (status, fields, framing, keep_alive, expected) in [
        (200, &[("content-length", "3")][..], Framing::Length(3), None, "200 OK\r\ncontent-length: 3\r\n\r\n"),
        (200, &[], Framing::Chunked, None, "200 OK\r\ntransfer-encoding: chunked\r\n\r\n"),
        (200, &[], Framing::UntilClose, Some(false), "200 OK\r\nconnection: close\r\n\r\n"),
        (200, &[("content-length", "9")], Framing::None, None, "200 OK\r\ncontent-length: 9\r\n\r\n"),
        (304, &[("content-length", "9")], Framing::None, None, "304 Not Modified\r\ncontent-length: 9\r\n\r\n"),
        (204, &[("content-length", "9")], Framing::None, None, "204 No Content\r\n\r\n"),
        (
            200,
            &[("trailer", "x")],
            Framing::Chunked,
            None,
            "200 OK\r\ntrailer: x\r\ntransfer-encoding: chunked\r\n\r\n",
        ),
        (103, &[("link", "</a>")], Framing::None, None, "103 Early Hints\r\nlink: </a>\r\n\r\n"),
        (
            299,
            &[("transfer-encoding", "gzip"), ("upgrade", "x"), ("keep-alive", "y")],
            Framing::Length(0),
            Some(true),
            "299 \r\ncontent-length: 0\r\nconnection: keep-alive\r\n\r\n",
        ),
    ] {
        assert_eq!(answered(status, fields, framing, keep_alive), format!("HTTP/1.1 {expected}"));
    }
}

#[test]
fn trailers_come_through_and_those_that_may_not_stand_there_do_not() {
    let trailers = trailers_to_http2(b"X-Sum: 9\r\nGrpc-Status: 0\r\n").unwrap();
    assert_eq!(shown(&trailers), "x-sum: 9;grpc-status: 0;");
    let mut trailers = trailers.clone();
    trailers.insert("set-cookie", HeaderValue::from_static("a"));
    trailers.insert("content-length", HeaderValue::from_static("1"));
    assert_eq!(trailers_to_http1(&trailers), b"x-sum: 9\r\ngrpc-status: 0\r\n");
    assert_eq!(trailers_to_http1(&HeaderMap::new()), b"");
}

#[test]
fn trailers_are_announced_until_the_end_comes_without_them() {
    let said = |name, value| HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_static(value))]);
    let (announcing, trailers, none) = (said("trailer", "x-sum"), said("x-sum", "9"), HeaderMap::new());
    for (headers, end, expected) in [
        (&announcing, None, true),
        (&announcing, Some(&none), false),
        (&announcing, Some(&trailers), true),
        (&none, None, false),
        (&none, Some(&none), false),
        (&none, Some(&trailers), false),
    ] {
        assert_eq!(announces_trailers(headers, end), expected, "{headers:?} {end:?}");
    }
}
