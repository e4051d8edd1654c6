//! The rules against request smuggling, row by row: RFC 9110, RFC 9112, and stricter where two readings were ever seen. The rows are those of
//! the project's list (3.18): rule 8 is HTTP/2's, rules 9 and 10 are about connections and stand in `node/worker/tests/desync.rs`.

use super::*;
use crate::decode::chunked::{BadChunk, Decoder, Event};

/// Rule and fields of a request that is refused: 400, and the end of the connection.
const REFUSED: &[(u8, &[u8])] = &[
    (1, b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
    (1, b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n"),
    (1, b"TRANSFER-encoding: chunked\r\ncontent-LENGTH: 5\r\n"),
    (2, b"Transfer-Encoding: chunked, identity\r\n"),
    (2, b"Transfer-Encoding: identity, chunked\r\n"),
    (2, b"Transfer-Encoding: chunked, chunked\r\n"),
    (2, b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
    (2, b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n"),
    (2, b"Transfer-Encoding: \x0bchunked\r\n"),
    (2, b"Transfer-Encoding: \x0cchunked\r\n"),
    (2, b"Transfer-Encoding: xchunked\r\n"),
    (2, b"Transfer-Encoding: ,chunked\r\n"),
    (2, b"Transfer-Encoding: \xa0chunked\r\n"),
    (2, b"Transfer-Encoding: chunked;a=b\r\n"),
    (2, b"Transfer-Encoding:\r\n"),
    (3, b"Content-Length: +1\r\n"),
    (3, b"Content-Length: -1\r\n"),
    (3, b"Content-Length: 0x1\r\n"),
    (3, b"Content-Length: 1_0\r\n"),
    (3, b"Content-Length: +1_0\r\n"),
    (3, b"Content-Length: 1Z\r\n"),
    (3, b"Content-Length:\r\n"),
    (3, b"Content-Length: 9223372036854775808\r\n"),
    (3, b"Content-Length: 1, 1\r\n"),
    (3, b"Content-Length: 1\r\nContent-Length: 2\r\n"),
    (4, b"X : 1\r\n"),
    (4, b"X\t: 1\r\n"),
    (4, b" X: 1\r\n"),
    (4, b"X: 1\r\n 2\r\n"),
    (4, b": 1\r\n"),
    (4, b"X\x01: 1\r\n"),
    (4, b"X\xc3\xa9: 1\r\n"),
    (4, b"X 1\r\n"),
    (4, b"X: 1\r2\r\n"),
    (4, b"X: 1\x002\r\n"),
    (4, b"X: 1\nY: 2\r\n"),
    (4, b"\rX\r\n"),
    (4, b"\r\r\n"),
    (5, b"Host: a\r\n"),
    (5, b"Host: b\r\n"),
];

/// Rule and start of a request that is refused.
const REFUSED_WHOLE: &[(u8, &[u8])] = &[
    (2, b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"),
    (4, b"GET / HTTP/1.1\r\n Host: a\r\n\r\n"),
    (4, b"GET / HTTP/1.1\nHost: a\n\n"),
    (4, b"GET / HTTP/1.1\rHost: a\r\r"),
    (4, b"GET /\nx HTTP/1.1\r\nHost: a\r\n\r\n"),
    (4, b"\x00GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    (4, b"GET / \x0bHTTP/1.1\r\nHost: a\r\n\r\n"),
    (4, b"GET / HTTP/1.1\x0b\r\nHost: a\r\n\r\n"),
    (5, b"GET / HTTP/1.1\r\n\r\n"),
    (5, b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"),
    (5, b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n"),
    (5, b"GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
];

/// Rule, request, and how it is passed on: in one way only.
const PASSED_ON: &[(u8, &str, &str)] = &[
    (2, "Transfer_Encoding: chunked\r\n", "Transfer_Encoding: chunked\r\n"),
    (3, "Content-Length: 010\r\n", "Content-Length: 010\r\n"),
    (3, "Content-Length: 1\r\nContent-Length: 1\r\n", "Content-Length: 1\r\n"),
    (7, "Connection: X\r\nX: 1\r\nKeep-Alive: 5\r\nY: 2\r\n", "Y: 2\r\n"),
    (
        7,
        "Connection: Authorization, Host, Cookie\r\nAuthorization: x\r\nCookie: y\r\n",
        "Authorization: x\r\nCookie: y\r\n",
    ),
    (7, "Connection: Content-Length\r\nContent-Length: 1\r\n", "Content-Length: 1\r\n"),
    (7, "Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n", "Transfer-Encoding: chunked\r\n"),
    (7, "Proxy-Authorization: x\r\nProxy-Connection: y\r\nTE: gzip\r\n", ""),
    // A hint for who reads the trailer fields, wherever that is (RFC 9110 section 6.6.2), unless Connection says otherwise or there can be none.
    (7, "Transfer-Encoding: chunked\r\nTrailer: z\r\n", "Transfer-Encoding: chunked\r\nTrailer: z\r\n"),
    (7, "Connection: trailer\r\nTransfer-Encoding: chunked\r\nTrailer: z\r\n", "Transfer-Encoding: chunked\r\n"),
    (7, "Connection: trailer\r\nTrailer: z\r\n", ""),
    (7, "Content-Length: 1\r\nTrailer: z\r\n", "Content-Length: 1\r\n"),
    (7, "Trailer: y\r\nTrailer: z\r\n", ""),
    (7, "TE: trailers\r\n", "TE: trailers\r\n"),
    (7, "Upgrade: h2c\r\nHTTP2-Settings: x\r\n", ""),
    (7, "Connection: Upgrade\r\nUpgrade: TLS/1.2, HTTP/2.0\r\n", ""),
];

#[test]
fn requests_that_can_be_read_in_two_ways_are_refused() {
    let framed =
        |(rule, lines): &(u8, &[u8])| (*rule, [&b"POST / HTTP/1.1\r\nHost: a\r\n"[..], lines, b"\r\n"].concat());
    let whole = REFUSED_WHOLE.iter().map(|(rule, bytes)| (*rule, bytes.to_vec()));
    for (rule, bytes) in REFUSED.iter().map(framed).chain(whole) {
        let head = request(&bytes);
        assert!(
            matches!(head, Err(BadRequest::Malformed(_) | BadRequest::Version)),
            "rule {rule}: {}: {head:?}",
            bytes.escape_ascii()
        );
    }
}

#[test]
fn what_could_be_read_in_two_ways_further_on_is_passed_on_in_one() {
    for (rule, before, after) in PASSED_ON {
        let [before, after] = [before, after].map(|lines| format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n"));
        assert_eq!(request_passed_on(&before), after, "rule {rule}");
    }
    // Rule 5: the authority of an absolute target is the Host, whatever Host says.
    let absolute = "GET http://b/ HTTP/1.1\r\nHost: a\r\nX: 1\r\n\r\n";
    assert_eq!(request_passed_on(absolute), "GET / HTTP/1.1\r\nHost: b\r\nX: 1\r\n\r\n");
}

/// Rule 6: body of a request in chunks; `Some`: taken, as this body.
const BODIES: &[(&[u8], Option<&[u8]>)] = &[
    (b"5\r\nhello\r\n0\r\n\r\n", Some(b"hello")),
    (b"0_2e\r\n", None),
    (b"0x5\r\nhello\r\n0\r\n\r\n", None),
    (b"+5\r\nhello\r\n0\r\n\r\n", None),
    (b"-5\r\nhello\r\n0\r\n\r\n", None),
    (b"\r\nhello\r\n0\r\n\r\n", None),
    (b" 5\r\nhello\r\n0\r\n\r\n", None),
    (b"5 \r\nhello\r\n0\r\n\r\n", None),
    (b"5\nhello\n0\n\n", None),
    (b"5\r\nhello0\r\n\r\n", None),
    (b"5;a\rb\r\nhello\r\n0\r\n\r\n", None),
    (b"5;a\nb\r\nhello\r\n0\r\n\r\n", None),
    (b"5;a=\"b\"\r\nhello\r\n0;c\r\n\r\n", Some(b"hello")),
    (b"0000000000000005\r\nhello\r\n0\r\n\r\n", Some(b"hello")),
    (b"00000000000000005\r\nhello\r\n0\r\n\r\n", None),
    (b"10000000000000005\r\nhello\r\n0\r\n\r\n", None),
    (b"ffffffffffffffff\r\nhello\r\n0\r\n\r\n", None),
    (b"0\r\nContent-Length: 5\r\nHost: b\r\nX: 1\r\n\r\n", Some(b"")),
    (b"0\r\n X: 1\r\n\r\n", None),
    (b"0\r\n\r\rX", None),
];

#[test]
fn chunks_are_read_in_one_way_only() {
    for (bytes, taken) in BODIES {
        let read = body(bytes);
        let shown = format!("rule 6: {}: {read:?}", bytes.escape_ascii());
        match taken {
            Some(body) => assert_eq!(read.as_deref(), Ok(*body), "{shown}"),
            None => assert!(read.is_err(), "{shown}"),
        }
    }
}

fn body(bytes: &[u8]) -> Result<Vec<u8>, BadChunk> {
    let (mut decoder, mut at, mut body) = (Decoder::default(), 0, Vec::new());
    loop {
        match decoder.next(bytes, &mut at)? {
            Event::Data(range) => body.extend_from_slice(&bytes[range]),
            Event::NeedMore => return Err(BadChunk("unfinished")),
            Event::End => {
                assert!(decoder.trailers().is_empty() || decoder.trailers() == b"X: 1\r\n");
                return Ok(body);
            }
        }
    }
}

/// Rule 9: such a response is a 502, and its connection is not used again.
const RESPONSES: &[&[u8]] = &[
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: 1\r\n 2\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: 1\x00\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: 1\r2\r\n\r\n",
    b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\n\r\n",
];

#[test]
fn responses_that_can_be_read_in_two_ways_are_refused() {
    for bytes in RESPONSES {
        assert!(response(bytes, GET).is_err(), "rule 9: {}", bytes.escape_ascii());
    }
    // Rule 4: white space before the colon is removed from a response.
    let passed = response_passed_on("HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\n", GET);
    assert_eq!(passed, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n");
}
