//! What opens a tunnel: CONNECT, and a WebSocket's Upgrade as the extended CONNECT of RFC 8441, and back.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, header, request, response};

use super::{BadRequest, CRLF, MALFORMED, fields, frames, head_of, line, lines, path, request_to_http2};
use crate::decode::{
    http1::BadResponse,
    http2,
    websocket::{accept, is_key},
};

const VERSION: &str = "13";

/// The head of a CONNECT of HTTP/2 in HTTP/1.1.
pub fn connect_to_http1(parts: &request::Parts) -> Result<Vec<u8>, BadRequest> {
    let authority = parts.uri.authority().map_or("", |authority| authority.as_str());
    let mut parts = parts.clone();
    cut(&mut parts.headers, &[header::TE]);
    let mut lines = head_of(&parts, "CONNECT", authority)?;
    lines.extend_from_slice(CRLF);
    Ok(lines)
}

/// The head of an extended CONNECT for a WebSocket in HTTP/1.1, with this key.
pub fn websocket_to_http1(parts: &request::Parts, key: &str) -> Result<Vec<u8>, BadRequest> {
    let mut parts = parts.clone();
    let version = parts.headers.remove(header::SEC_WEBSOCKET_VERSION);
    cut(&mut parts.headers, &[header::SEC_WEBSOCKET_KEY, header::TE]);
    let mut lines = head_of(&parts, "GET", path(&parts)?)?;
    line(&mut lines, b"connection", b"Upgrade");
    line(&mut lines, b"upgrade", b"websocket");
    line(&mut lines, b"sec-websocket-version", version.as_ref().map_or(VERSION.as_bytes(), HeaderValue::as_bytes));
    line(&mut lines, b"sec-websocket-key", key.as_bytes());
    lines.extend_from_slice(CRLF);
    Ok(lines)
}

/// The head of a CONNECT of HTTP/1 in HTTP/2.
pub fn connect_to_http2(head: &[u8]) -> Result<request::Parts, BadRequest> {
    let mut lines = lines(head);
    let target = lines.next().unwrap_or_default().split(|byte| *byte == b' ').nth(1).unwrap_or_default();
    let (mut parts, ()) = Request::new(()).into_parts();
    (parts.version, parts.method) = (http::Version::HTTP_2, Method::CONNECT);
    parts.uri = Uri::try_from(target).map_err(|_| MALFORMED)?;
    parts.headers = fields(lines).ok_or(MALFORMED)?;
    // The target says where to; of Host nothing is passed on.
    cut(&mut parts.headers, &[header::HOST, header::TE]);
    http2::request(&mut parts, None)?;
    Ok(parts)
}

/// The head of a WebSocket's request of HTTP/1 as an extended CONNECT, but for its `:protocol`; and the key that its response answers.
pub fn websocket_to_http2(head: &[u8], is_secure: bool) -> Result<(request::Parts, HeaderValue), BadRequest> {
    let (mut parts, _) = request_to_http2(head, is_secure)?;
    let key = match parts.headers.remove(header::SEC_WEBSOCKET_KEY) {
        Some(key) if is_key(key.as_bytes()) => key,
        _ => return Err(BadRequest::Malformed("the WebSocket's key is missing or is none")),
    };
    parts.method = Method::CONNECT;
    cut(&mut parts.headers, &[]);
    Ok((parts, key))
}

/// Checks that an endpoint of HTTP/1 has read the key, and makes the fields of its 101 those of a response that opens a tunnel in HTTP/2.
pub fn opened_in_http2(headers: &mut HeaderMap, key: Option<&str>) -> Result<(), BadResponse> {
    let answer = headers.remove(header::SEC_WEBSOCKET_ACCEPT);
    if let Some(key) = key
        && answer.is_none_or(|answer| answer.as_bytes() != accept(key.as_bytes()).as_bytes())
    {
        return Err(BadResponse("its Sec-WebSocket-Accept does not answer the key"));
    }
    cut(headers, &[]);
    Ok(())
}

/// The head of a response that opens a tunnel in HTTP/1.1: 101 to a WebSocket's `key`, or to CONNECT what it is.
pub fn opened_in_http1(parts: &response::Parts, key: Option<&HeaderValue>) -> Vec<u8> {
    let mut lines = Vec::new();
    match key {
        Some(key) => {
            lines.extend_from_slice(
                b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n",
            );
            line(&mut lines, b"sec-websocket-accept", accept(key.as_bytes()).as_bytes());
        }
        None => {
            let reason = parts.status.canonical_reason().unwrap_or_default();
            lines.extend_from_slice(format!("HTTP/1.1 {} {reason}\r\n", parts.status.as_str()).as_bytes());
        }
    }
    const OURS: [HeaderName; 3] = [header::TE, header::TRAILER, header::SEC_WEBSOCKET_ACCEPT];
    let is_ours = |name: &HeaderName| frames(name) || OURS.contains(name);
    for (name, value) in parts.headers.iter().filter(|(name, _)| !is_ours(name)) {
        line(&mut lines, name.as_str().as_bytes(), value.as_bytes());
    }
    lines.extend_from_slice(CRLF);
    lines
}

/// Cuts these, and what would say that something follows but the tunnel's bytes.
fn cut(headers: &mut HeaderMap, names: &[HeaderName]) {
    names.iter().chain([&header::CONTENT_LENGTH, &header::TRAILER, &header::EXPECT]).for_each(|name| {
        headers.remove(name);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extended(uri: &str, fields: &[(&str, &str)]) -> request::Parts {
        let builder = Request::builder().method("CONNECT").uri(uri);
        fields
            .iter()
            .fold(builder, |builder, (name, value)| builder.header(*name, *value))
            .body(())
            .unwrap()
            .into_parts()
            .0
    }

    #[test]
    fn an_extended_connect_is_an_upgrade_and_back() {
        let parts =
            extended("http://a/chat?x", &[("sec-websocket-protocol", "p"), ("content-length", "3"), ("origin", "o")]);
        let head = websocket_to_http1(&parts, "dGhlIHNhbXBsZSBub25jZQ==").unwrap();
        let text = String::from_utf8(head.clone()).unwrap();
        assert_eq!(
            text,
            "GET /chat?x HTTP/1.1\r\nhost: a\r\nsec-websocket-protocol: p\r\norigin: o\r\nconnection: Upgrade\r\n\
             upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        let (back, key) = websocket_to_http2(&head, true).unwrap();
        assert_eq!((back.method, back.uri.to_string()), (Method::CONNECT, "https://a/chat?x".to_owned()));
        assert_eq!(key, "dGhlIHNhbXBsZSBub25jZQ==");
        let mut names: Vec<&str> = back.headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["origin", "sec-websocket-protocol", "sec-websocket-version"]);
        let keyless = text.replace("sec-websocket-key", "x");
        assert!(websocket_to_http2(keyless.as_bytes(), false).is_err());
    }

    #[test]
    fn an_answer_that_does_not_answer_the_key_opens_nothing() {
        let key = "dGhlIHNhbXBsZSBub25jZQ==";
        let mut headers = HeaderMap::new();
        assert!(opened_in_http2(&mut headers, Some(key)).is_err());
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".parse().unwrap());
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(3));
        opened_in_http2(&mut headers, Some(key)).unwrap();
        assert!(headers.is_empty());
        let (parts, ()) =
            http::Response::builder().header("sec-websocket-protocol", "p").body(()).unwrap().into_parts();
        let head = String::from_utf8(opened_in_http1(&parts, Some(&HeaderValue::from_static(key)))).unwrap();
        assert_eq!(
            head,
            "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nsec-websocket-protocol: p\r\n\r\n"
        );
    }

    #[test]
    fn connect_keeps_its_target() {
        let head = b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\nX-A: 1\r\n\r\n";
        let parts = connect_to_http2(head).unwrap();
        assert_eq!((parts.uri.to_string(), parts.headers.len()), ("a.example:443".to_owned(), 1));
        let back = connect_to_http1(&parts).unwrap();
        assert_eq!(back, b"CONNECT a.example:443 HTTP/1.1\r\nhost: a.example:443\r\nx-a: 1\r\n\r\n");
    }
}
