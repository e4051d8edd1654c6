//! Heads that change their protocol. An input that begins with a colon is one of HTTP/2, its pseudo-fields as lines like the others; any
//! other is one of HTTP/1.

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri,
    uri::{Authority, PathAndQuery, Scheme},
};

use super::{
    super::{
        chunked::{Decoder, TRAILER_BYTES_MAX, TRAILERS_MAX},
        http1::{self, Asked, FIELDS_MAX, Framing},
        http2::{self, Tunnel, room::Room},
        translate,
    },
    edited,
};
use crate::config::http::Http;

/// What is said in place of what framed the message before may be more fields.
const FIELDS_MORE: usize = FIELDS_MAX + 8;
const PLAIN: Asked = Asked { head: false, websocket: false, http10: false, connect: false, fields_max: FIELDS_MORE };

/// A head that has a form in the other protocol means the same there, and nothing that stands in it can be taken for the end of a field or of
/// the head.
pub fn translation(bytes: &[u8]) {
    if bytes.starts_with(b":") {
        from_http2(bytes);
    } else if bytes.starts_with(b"HTTP/") {
        response_there_and_back(bytes);
    } else {
        request_there_and_back(bytes);
    }
}

fn request_there_and_back(bytes: &[u8]) {
    let Ok(Some(mut head)) = http1::request(bytes, FIELDS_MAX) else { return };
    if head.lacks_host {
        head.edits.insert.extend_from_slice(b"Host: a\r\n");
    }
    let lines = edited(&bytes[..head.bytes], head.bytes, head.start_line_bytes, &head.edits);
    if head.method == http1::Method::Connect {
        if let Ok(parts) = translate::connect_to_http2(&lines) {
            read_connect(&parts);
        }
        return;
    }
    for is_secure in [false, true] {
        let Ok((parts, asked)) = translate::request_to_http2(&lines, is_secure) else { continue };
        assert_eq!(asked.is_head, head.method == http1::Method::Head);
        read_request(&parts, head.framing, head.method);
    }
}

/// What an endpoint of HTTP/1 reads.
#[track_caller]
fn read_request(parts: &http::request::Parts, framing: Framing, method: http1::Method) {
    let Ok(lines) = translate::request_to_http1(parts, framing) else { return };
    let read = http1::request(&lines, FIELDS_MORE);
    let Ok(Some(read)) = read else { panic!("{read:?}: {}", lines.escape_ascii()) };
    assert_eq!((read.bytes, read.method), (lines.len(), method), "{}", lines.escape_ascii());
    let silent = |framing| matches!(framing, Framing::None | Framing::Length(0));
    assert!(read.framing == framing || silent(read.framing) && silent(framing), "{}", lines.escape_ascii());
}

/// What an endpoint of HTTP/1 reads of a CONNECT.
#[track_caller]
fn read_connect(parts: &http::request::Parts) {
    let Ok(lines) = translate::connect_to_http1(parts) else { return };
    let read = http1::request(&lines, FIELDS_MORE);
    let Ok(Some(read)) = read else { panic!("{read:?}: {}", lines.escape_ascii()) };
    assert_eq!((read.bytes, read.method), (lines.len(), http1::Method::Connect), "{}", lines.escape_ascii());
}

/// What an endpoint of HTTP/1 reads of a WebSocket's beginning.
#[track_caller]
fn read_websocket(parts: &http::request::Parts) {
    let Ok(lines) = translate::websocket_to_http1(parts, "dGhlIHNhbXBsZSBub25jZQ==") else { return };
    let read = http1::request(&lines, FIELDS_MORE);
    let Ok(Some(read)) = read else { panic!("{read:?}: {}", lines.escape_ascii()) };
    assert!(read.websocket && read.bytes == lines.len(), "{}", lines.escape_ascii());
    let back = translate::websocket_to_http2(&lines, false);
    assert!(back.is_ok(), "{}", lines.escape_ascii());
}

fn response_there_and_back(bytes: &[u8]) {
    let Ok(Some(head)) = http1::response(bytes, Asked { fields_max: FIELDS_MAX, ..PLAIN }) else { return };
    let lines = edited(&bytes[..head.bytes], head.bytes, head.start_line_bytes, &head.edits);
    let Ok(response) = translate::response_to_http2(&lines, head.status) else { return };
    // What ended with the connection ends with a stream, and then in chunks.
    let framing = if head.framing == Framing::UntilClose { Framing::Chunked } else { head.framing };
    read_response(&response.into_parts().0, framing);
}

/// What a client of HTTP/1 reads.
#[track_caller]
fn read_response(parts: &http::response::Parts, framing: Framing) {
    for keep_alive in [None, Some(true), Some(false)] {
        let lines = translate::response_to_http1(parts, framing, keep_alive);
        let asked = Asked { head: framing == Framing::None, ..PLAIN };
        let read = http1::response(&lines, asked);
        let Ok(Some(read)) = read else { panic!("{read:?}: {}", lines.escape_ascii()) };
        assert_eq!((read.bytes, read.status), (lines.len(), parts.status.as_u16()), "{}", lines.escape_ascii());
        assert_eq!(read.framing, framing, "{}", lines.escape_ascii());
        assert!(!read.switches && keep_alive.is_none_or(|keeps| keeps == read.keep_alive));
    }
}

/// Pseudo-fields, each with its value.
type Pseudo<'i> = Vec<(&'i [u8], &'i [u8])>;

/// The field lines of an input, those of its pseudo-fields apart.
fn fields(bytes: &[u8]) -> (Pseudo<'_>, HeaderMap) {
    let (mut pseudo, mut headers) = (Vec::new(), HeaderMap::new());
    for line in bytes.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().skip(1).position(|byte| *byte == b':') else { continue };
        let (name, value) = (&line[..=colon], line[colon + 2..].trim_ascii());
        if name.starts_with(b":") {
            pseudo.push((name, value));
        } else if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            // More than the map holds is more than is let through.
            let _ = headers.try_append(name, value);
        }
    }
    (pseudo, headers)
}

fn from_http2(bytes: &[u8]) {
    let (pseudo, headers) = fields(bytes);
    let value = |name: &[u8]| pseudo.iter().find(|(found, _)| *found == name).map(|(_, value)| *value);
    trailers(headers.clone());
    match value(b":status") {
        Some(status) => response(status, headers),
        None => request([value(b":method"), value(b":authority"), value(b":path"), value(b":protocol")], headers),
    }
}

fn request([method, authority, path, protocol]: [Option<&[u8]>; 4], headers: HeaderMap) {
    let (mut parts, ()) = Request::new(()).into_parts();
    let Ok(method) = Method::from_bytes(method.unwrap_or(b"GET")) else { return };
    let mut uri = http::uri::Parts::default();
    uri.authority = authority.and_then(|authority| Authority::try_from(authority).ok());
    uri.path_and_query = PathAndQuery::try_from(path.unwrap_or(b"/")).ok();
    uri.scheme = uri.authority.as_ref().map(|_| Scheme::HTTP);
    let Ok(uri) = Uri::from_parts(uri) else { return };
    (parts.method, parts.uri, parts.headers) = (method, uri, headers);
    let protocol = protocol.filter(|_| parts.method == Method::CONNECT);
    let Ok(asked) = Room::of(&Http::default()).request(&mut parts, protocol) else { return };
    match asked.tunnel {
        Some(Tunnel::Plain) => return read_connect(&parts),
        Some(Tunnel::WebSocket) => return read_websocket(&parts),
        Some(Tunnel::Other) => return,
        None => {}
    }
    let method = match parts.method {
        Method::HEAD => http1::Method::Head,
        Method::OPTIONS => http1::Method::Options,
        _ if asked.is_idempotent => http1::Method::Idempotent,
        _ => http1::Method::Other,
    };
    for framing in [Framing::None, Framing::Length(5), Framing::Chunked] {
        read_request(&parts, framing, method);
    }
}

fn response(status: &[u8], mut headers: HeaderMap) {
    let Ok(status) = http::StatusCode::from_bytes(status) else { return };
    if Room::of(&Http::default()).response(status.as_u16(), &mut headers).is_err() {
        return;
    }
    let (mut parts, ()) = Response::new(()).into_parts();
    (parts.status, parts.headers) = (status, headers);
    let is_bare = status.is_informational() || [204, 304].contains(&status.as_u16());
    let bodies = [Framing::Length(5), Framing::Chunked];
    let framings = if is_bare { &[Framing::None][..] } else { &bodies };
    for framing in framings {
        read_response(&parts, *framing);
    }
}

fn trailers(mut headers: HeaderMap) {
    if http2::trailers(&mut headers).is_err() {
        return;
    }
    let lines = translate::trailers_to_http1(&headers);
    // HTTP/2 has one bound for all fields, and readers of chunks have theirs.
    if headers.len() > TRAILERS_MAX || lines.len() >= TRAILER_BYTES_MAX {
        return;
    }
    let body = [b"0\r\n", &lines[..], b"\r\n"].concat();
    let (mut decoder, mut at) = (Decoder::default(), 0);
    decoder.next(&body, &mut at).unwrap_or_else(|bad| panic!("{bad:?}: {}", body.escape_ascii()));
    assert!(decoder.is_done() && at == body.len(), "{}", body.escape_ascii());
    let back = translate::trailers_to_http2(decoder.trailers()).expect("what was passed on is good");
    assert!(back.len() <= headers.len());
}
