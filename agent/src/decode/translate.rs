//! Heads and trailer fields of HTTP/1 as those of HTTP/2, and back (RFC 9113 section 8, RFC 9112).
//!
//! In goes only what was judged in its own protocol: [`super::http1`], with its edits made, or [`super::http2`]. What frames a message is never
//! passed on as it was written: it is said anew, in the words of the other protocol.

#[cfg(test)]
mod tests;
mod tunnel;

pub use tunnel::{
    connect_to_http1, connect_to_http2, opened_in_http1, opened_in_http2, websocket_to_http1, websocket_to_http2,
};

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header, request, response,
    uri::{PathAndQuery, Scheme},
};

use super::{
    chunked,
    http1::{BadRequest, BadResponse, Framing, is_authority},
    http2::{self, Asked},
};

const CRLF: &[u8] = b"\r\n";
const MALFORMED: BadRequest = BadRequest::Malformed("the request has no form in HTTP/2");
/// What a message's lines take usually.
const USUAL_BYTES: usize = 512;

/// The head of a request of HTTP/2 in HTTP/1.1, with this framing.
pub fn request_to_http1(parts: &request::Parts, framing: Framing) -> Result<Vec<u8>, BadRequest> {
    let mut lines = head_of(parts, parts.method.as_str(), path(parts)?)?;
    if parts.headers.contains_key(header::TE) {
        // Concerns one connection only, and has to say so (RFC 9110 section 10.1.4).
        line(&mut lines, b"connection", b"te");
    }
    match framing {
        // A method that means to send something says that it sends nothing (RFC 9110 section 8.6).
        Framing::None if sends(&parts.method) => length(&mut lines, 0),
        framing => say(&mut lines, framing),
    }
    lines.extend_from_slice(CRLF);
    Ok(lines)
}

fn path(parts: &request::Parts) -> Result<&str, BadRequest> {
    let path = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let is_graphic = |byte: u8| byte > b' ' && byte != 0x7f;
    path.bytes().all(is_graphic).then_some(path).ok_or(BadRequest::Malformed("invalid byte in :path"))
}

/// The first line, and the fields that say nothing of one connection.
fn head_of(parts: &request::Parts, method: &str, target: &str) -> Result<Vec<u8>, BadRequest> {
    let authority = parts.uri.authority().map_or("", |authority| authority.as_str());
    if authority.is_empty() || !is_authority(authority.as_bytes()) {
        return Err(BadRequest::Malformed("invalid :authority"));
    }
    let mut lines = Vec::with_capacity(USUAL_BYTES);
    let start: [&[u8]; 4] = [method.as_bytes(), b" ", target.as_bytes(), b" HTTP/1.1\r\n"];
    start.iter().for_each(|part| lines.extend_from_slice(part));
    line(&mut lines, b"host", authority.as_bytes());
    for (name, value) in parts.headers.iter().filter(|(name, _)| **name != header::COOKIE && !frames(name)) {
        line(&mut lines, name.as_str().as_bytes(), value.as_bytes());
    }
    if let Some(cookie) = cookie(&parts.headers) {
        line(&mut lines, b"cookie", &cookie);
    }
    Ok(lines)
}

/// Crumbs of a cookie are one field in HTTP/1 (RFC 9113 section 8.2.3).
fn cookie(headers: &HeaderMap) -> Option<Vec<u8>> {
    let crumbs: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    (!crumbs.is_empty()).then(|| crumbs.join(&b"; "[..]))
}

/// The head of a request of HTTP/1, its edits made, in HTTP/2; and what is asked. `is_secure`: the endpoint is spoken to within TLS.
pub fn request_to_http2(head: &[u8], is_secure: bool) -> Result<(request::Parts, Asked), BadRequest> {
    let mut lines = lines(head);
    let mut start = lines.next().unwrap_or_default().split(|byte| *byte == b' ');
    let (Some(method), Some(target)) = (start.next(), start.next()) else { return Err(MALFORMED) };
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.version = http::Version::HTTP_2;
    parts.method = Method::from_bytes(method).map_err(|_| MALFORMED)?;
    parts.uri = PathAndQuery::try_from(target)
        .map(Uri::from)
        .map_err(|_| BadRequest::Malformed("invalid byte in the target"))?;
    parts.headers = fields(lines).ok_or(BadRequest::Malformed("a field has no form in HTTP/2"))?;
    // An upgrade is what one connection may become, and this request leaves it: the endpoint answers it as if nothing had been asked.
    [header::CONNECTION, header::UPGRADE, header::TRANSFER_ENCODING].iter().for_each(|name| {
        parts.headers.remove(name);
    });
    let asked = http2::request(&mut parts, None)?;
    if is_secure {
        let mut uri = parts.uri.into_parts();
        uri.scheme = Some(Scheme::HTTPS);
        parts.uri = Uri::from_parts(uri).map_err(|_| MALFORMED)?;
    }
    Ok((parts, asked))
}

/// The head of a response of HTTP/1, its edits made, in HTTP/2.
pub fn response_to_http2(head: &[u8], status: u16) -> Result<Response<()>, BadResponse> {
    const MALFORMED: BadResponse = BadResponse("it has no form in HTTP/2");
    let mut response = Response::new(());
    *response.version_mut() = http::Version::HTTP_2;
    *response.status_mut() = StatusCode::from_u16(status).map_err(|_| MALFORMED)?;
    let mut headers = fields(lines(head).skip(1)).ok_or(MALFORMED)?;
    [header::CONNECTION, header::UPGRADE, header::TRANSFER_ENCODING, header::TE].iter().for_each(|name| {
        headers.remove(name);
    });
    http2::response(status, &mut headers)?;
    *response.headers_mut() = headers;
    Ok(response)
}

/// The head of a response of HTTP/2 in HTTP/1.1, with this framing. `keep_alive`: what is said of the connection.
pub fn response_to_http1(parts: &response::Parts, framing: Framing, keep_alive: Option<bool>) -> Vec<u8> {
    let mut lines = Vec::with_capacity(USUAL_BYTES);
    let reason = parts.status.canonical_reason().unwrap_or_default();
    let start: [&[u8]; 5] = [b"HTTP/1.1 ", parts.status.as_str().as_bytes(), b" ", reason.as_bytes(), CRLF];
    start.iter().for_each(|part| lines.extend_from_slice(part));
    for (name, value) in parts.headers.iter().filter(|(name, _)| !frames(name) && **name != header::TE) {
        line(&mut lines, name.as_str().as_bytes(), value.as_bytes());
    }
    match (framing, parts.headers.get(header::CONTENT_LENGTH)) {
        // To HEAD, and with 304: of the body that would have been there.
        (Framing::None, Some(length)) if !is_bare(parts.status) => {
            line(&mut lines, b"content-length", length.as_bytes());
        }
        (framing, _) => say(&mut lines, framing),
    }
    if let Some(keep_alive) = keep_alive {
        line(&mut lines, b"connection", if keep_alive { b"keep-alive" } else { b"close" });
    }
    lines.extend_from_slice(CRLF);
    lines
}

/// Trailer fields of HTTP/2 as the lines of a chunked body's.
pub fn trailers_to_http1(trailers: &HeaderMap) -> Vec<u8> {
    let mut lines = Vec::new();
    for (name, value) in trailers.iter().filter(|(name, _)| !chunked::is_dropped(name.as_str().as_bytes())) {
        line(&mut lines, name.as_str().as_bytes(), value.as_bytes());
    }
    lines
}

/// The lines of a chunked body's trailer fields as those of HTTP/2.
pub fn trailers_to_http2(passed_on: &[u8]) -> Result<HeaderMap, BadResponse> {
    let mut trailers = fields(lines(passed_on)).ok_or(BadResponse("a trailer field has no form in HTTP/2"))?;
    http2::trailers(&mut trailers)?;
    Ok(trailers)
}

/// The one length that is said of a body; a proxy's own protocol has checked that it is one.
pub fn declared_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Whether the trailer fields of a body of HTTP/2 are announced and, if its `end` has come, there. In HTTP/1 only a body that is chunked has any, so
/// one whose length is declared, too, loses that. What nobody announces is not worth that: clients that cannot read it get on better without.
pub fn announces_trailers(headers: &HeaderMap, end: Option<&HeaderMap>) -> bool {
    headers.contains_key(header::TRAILER) && end.is_none_or(|trailers| !trailers.is_empty())
}

/// 1xx and 204 have no body, and no word of one (RFC 9110 section 8.6).
fn is_bare(status: StatusCode) -> bool {
    status.is_informational() || status == StatusCode::NO_CONTENT
}

/// Whether a request of this method usually has a body.
fn sends(method: &Method) -> bool {
    matches!(*method, Method::POST | Method::PUT | Method::PATCH)
}

/// Fields that frame a message or are about one connection; a judge of HTTP/2 has refused most of them already.
fn frames(name: &HeaderName) -> bool {
    const NAMES: [HeaderName; 6] = [
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::HOST,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        HeaderName::from_static("keep-alive"),
    ];
    NAMES.contains(name)
}

fn line(lines: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    [name, b": ", value, CRLF].iter().for_each(|part| lines.extend_from_slice(part));
}

fn say(lines: &mut Vec<u8>, framing: Framing) {
    match framing {
        Framing::None | Framing::UntilClose => {}
        Framing::Length(bytes) => length(lines, bytes),
        Framing::Chunked => line(lines, b"transfer-encoding", b"chunked"),
    }
}

fn length(lines: &mut Vec<u8>, bytes: u64) {
    line(lines, b"content-length", bytes.to_string().as_bytes());
}

/// The lines of a head, without its empty last one.
fn lines(head: &[u8]) -> impl Iterator<Item = &[u8]> {
    head.split(|byte| *byte == b'\n').filter_map(|line| line.strip_suffix(b"\r")).filter(|line| !line.is_empty())
}

/// The fields in lines; `None` if one of them cannot be a field.
fn fields<'l>(lines: impl Iterator<Item = &'l [u8]>) -> Option<HeaderMap> {
    let mut fields = HeaderMap::new();
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?;
        fields.try_append(name, value).ok()?;
    }
    Some(fields)
}
