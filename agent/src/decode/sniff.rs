//! What is spoken on a connection, judged by the first bytes that its client sends. Whoever is unsure says opaque: bytes are passed on as they
//! come, which no protocol minds.
//!
//! A server that speaks first is opaque: of the protocols that are understood here only HTTP/2 may begin so, with its settings.

pub mod hello;

use hello::{ClientHello, Hello};

/// What is spoken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spoken {
    /// HTTP/1.0 or HTTP/1.1.
    Http1,
    /// HTTP/2, by its preface (RFC 9113 section 3.4).
    Http2,
    /// TLS; what its client asks for.
    Tls(ClientHello),
    /// Anything else.
    Opaque,
}

/// The first bytes of an HTTP/2 connection.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Methods with which a request line may begin: those that are registered and in use (RFC 9110, 5789, 4918, 3253, 3744, 5323, 8144 …), and PURGE
/// of caches. What begins otherwise is opaque at the first byte that differs, and need not be waited for.
const METHODS: [&[u8]; 33] = [
    b"GET",
    b"HEAD",
    b"POST",
    b"PUT",
    b"DELETE",
    b"CONNECT",
    b"OPTIONS",
    b"TRACE",
    b"PATCH",
    b"ACL",
    b"BIND",
    b"CHECKIN",
    b"CHECKOUT",
    b"COPY",
    b"LABEL",
    b"LINK",
    b"LOCK",
    b"MERGE",
    b"MKCALENDAR",
    b"MKCOL",
    b"MOVE",
    b"ORDERPATCH",
    b"PROPFIND",
    b"PROPPATCH",
    b"PURGE",
    b"QUERY",
    b"REBIND",
    b"REPORT",
    b"SEARCH",
    b"UNBIND",
    b"UNLOCK",
    b"UPDATE",
    b"VERSION-CONTROL",
];

/// Judges the first bytes of a client; `None` while more must be seen, of which there will be: what is held back then is the beginning of a
/// message that its sender has to finish before it can expect an answer.
pub fn sniff(bytes: &[u8]) -> Option<Spoken> {
    let first = *bytes.first()?;
    if first == hello::HANDSHAKE {
        return match hello::read(bytes) {
            Hello::Whole(hello) => Some(Spoken::Tls(hello)),
            Hello::Begun => None,
            Hello::Other => Some(Spoken::Opaque),
        };
    }
    let preface = &PREFACE[..bytes.len().min(PREFACE.len())];
    if bytes.starts_with(preface) {
        return (preface.len() == PREFACE.len()).then_some(Spoken::Http2);
    }
    // An empty line is a whole question in other protocols (Gopher, RFC 1436; finger, RFC 1288), whose clients wait for the answer. Of HTTP's
    // none begins with it, though a server would overlook it (RFC 9112 section 2.2): as it does of what is passed on.
    request_line(bytes)
}

/// Whether a server that speaks first says what one of HTTP/2 may say before it is asked: its settings (RFC 9113 section 3.4).
pub fn is_settings(bytes: &[u8]) -> bool {
    const SETTINGS: &[u8] = &[4, 0, 0, 0, 0, 0];
    match bytes {
        [0, high, low, rest @ ..] => rest.starts_with(SETTINGS) && u16::from_be_bytes([*high, *low]).is_multiple_of(6),
        _ => false,
    }
}

/// Judges what may be a request line.
fn request_line(bytes: &[u8]) -> Option<Spoken> {
    let Some(space) = bytes.iter().position(|byte| *byte == b' ') else {
        let may_become = METHODS.iter().any(|method| method.starts_with(bytes));
        return if may_become { None } else { Some(Spoken::Opaque) };
    };
    let (method, rest) = (&bytes[..space], &bytes[space + 1..]);
    if !METHODS.contains(&method) {
        return Some(Spoken::Opaque);
    }
    match rest.iter().position(|byte| !byte.is_ascii_graphic() && *byte < 0x80) {
        // Where a target ends, a version must follow.
        Some(end) if end > 0 && rest[end] == b' ' => version(&rest[end + 1..]),
        Some(_) => Some(Spoken::Opaque),
        None => None,
    }
}

fn version(bytes: &[u8]) -> Option<Spoken> {
    const VERSION: &[u8] = b"HTTP/1.";
    let here = &VERSION[..bytes.len().min(VERSION.len())];
    match bytes.starts_with(here) {
        false => Some(Spoken::Opaque),
        true => (here.len() == VERSION.len()).then_some(Spoken::Http1),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FIRST_BYTES: &[(&[u8], Spoken)] = &[
        (b"GET / HTTP/1.1\r\n", Spoken::Http1),
        (b"GET /a?b HTTP/1.0\r\n", Spoken::Http1),
        (b"VERSION-CONTROL /x HTTP/1.1\r\n", Spoken::Http1),
        (b"CONNECT a:80 HTTP/1.1\r\n", Spoken::Http1),
        (b"OPTIONS * HTTP/1.1\r\n", Spoken::Http1),
        (b"GET http://a/ HTTP/1.1\r\n", Spoken::Http1),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04", Spoken::Http2),
        (b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", Spoken::Opaque),
        (b"GET / HTTP/2.0\r\n", Spoken::Opaque),
        (b"GET key\r\n", Spoken::Opaque),
        (b"GET\r\n", Spoken::Opaque),
        (b"GET  / HTTP/1.1\r\n", Spoken::Opaque),
        (b"get / HTTP/1.1\r\n", Spoken::Opaque),
        (b"FETCH / HTTP/1.1\r\n", Spoken::Opaque),
        (b"PING\r\n", Spoken::Opaque),
        (b"*1\r\n$4\r\nPING\r\n", Spoken::Opaque),
        (b"EHLO a\r\n", Spoken::Opaque),
        (b"HELO a\r\n", Spoken::Opaque),
        (b"SSH-2.0-x\r\n", Spoken::Opaque),
        (b"CONNECT {\"verbose\":false}\r\n", Spoken::Opaque),
        // PostgreSQL asks for TLS, and begins without it.
        (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", Spoken::Opaque),
        (b"\x00\x00\x00\x29\x00\x03\x00\x00user\x00a\x00", Spoken::Opaque),
        (b"\x10\x11\x00\x04MQTT", Spoken::Opaque),
        (b"\x00", Spoken::Opaque),
        (b"\r\n", Spoken::Opaque),
        (b"\r\nGET / HTTP/1.1\r\n", Spoken::Opaque),
        (b"\rGET / HTTP/1.1\r\n", Spoken::Opaque),
        (b"GET /\x00 HTTP/1.1\r\n", Spoken::Opaque),
        (b"GET /\xc3\xa9 HTTP/1.1\r\n", Spoken::Http1),
    ];

    #[test]
    fn first_bytes_tell_what_is_spoken() {
        for (bytes, spoken) in FIRST_BYTES {
            assert_eq!(sniff(bytes).as_ref(), Some(spoken), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn settings_are_the_only_greeting_that_is_not_opaque() {
        assert!(is_settings(&[0, 0, 0, 4, 0, 0, 0, 0, 0]));
        assert!(is_settings(&[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 100, 0]));
        for greeting in
            [&b"220 ready\r\n"[..], &[0, 0, 6, 4, 0], &[0, 0, 5, 4, 0, 0, 0, 0, 0], &[0, 0, 0, 4, 1, 0, 0, 0, 0], b""]
        {
            assert!(!is_settings(greeting), "{}", greeting.escape_ascii());
        }
    }

    #[test]
    fn torn_at_every_byte_the_verdict_is_the_same_or_still_to_come() {
        for (bytes, spoken) in FIRST_BYTES {
            for end in 0..bytes.len() {
                let verdict = sniff(&bytes[..end]);
                assert!(verdict.is_none() || verdict.as_ref() == Some(spoken), "{}", bytes[..end].escape_ascii());
            }
        }
    }

    #[test]
    fn what_cannot_become_http_is_not_waited_for() {
        for bytes in
            [&b"\r"[..], b"\r\n", b"P\r", b"PO ", b"GEX", b"X", b"GET \r", b"GET / X", b"GET / HTTP/2", b"\x16\x03\x09"]
        {
            assert_eq!(sniff(bytes), Some(Spoken::Opaque), "{}", bytes.escape_ascii());
        }
    }

    /// First messages of protocols in lines, whole when their sender waits for an answer: Redis inline, memcached, HTTP/0.9, and others.
    #[test]
    fn a_line_that_is_no_request_line_is_opaque_at_its_first_byte_that_differs() {
        for (line, differs) in [
            (&b"GET\n"[..], 3),
            (b"PUT\r\n", 3),
            (b"GET \r\n", 4),
            (b"GET /\r\n", 5),
            (b"GET /\n", 5),
            (b"GET / \r\n", 6),
            (b"GET key\r\n", 7),
            (b"GET / HTTP\r\n", 10),
            (b"COPY a b\r\n", 7),
            (b"PRI\r\n", 3),
            (b"HELP\r\n", 2),
            (b"HELO a\r\n", 2),
            (b"PING\r\n", 1),
            (b"get x\r\n", 0),
            (b"get key\r\n", 0),
            (b"set k 0 0 5\r\n", 0),
        ] {
            assert_eq!(sniff(&line[..differs]), None, "{}", line.escape_ascii());
            assert_eq!(sniff(&line[..=differs]), Some(Spoken::Opaque), "{}", line.escape_ascii());
            assert_eq!(sniff(line), Some(Spoken::Opaque), "{}", line.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn a_verdict_does_not_change_with_what_follows(
            bytes in proptest::collection::vec(any::<u8>(), 0..64),
            line in "(GET|PRI|POST|\u{16}\u{3}\u{1})? ?[a-z/*]{0,3} ?(HTTP/1.1|HTTP/2.0)?(\r\n)?",
            cut in 0..64usize,
        ) {
            for whole in [bytes.clone(), [line.as_bytes(), &bytes].concat()] {
                let part = sniff(&whole[..cut.min(whole.len())]);
                if part.is_some() && !matches!(part, Some(Spoken::Opaque)) {
                    prop_assert_eq!(sniff(&whole), part);
                }
            }
        }
    }
}
