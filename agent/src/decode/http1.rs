//! HTTP/1 heads: what they say, and what has to be changed before they may be passed on (RFC 9110, RFC 9112).
//!
//! Strict, because two programs that read one message differently are how requests are smuggled: what could be read in two ways is
//! refused, never mended. Lines end in CRLF, a message has one framing, a request has one Host.

mod fields;
#[cfg(test)]
mod tests;

use std::mem::MaybeUninit;

use memchr::memchr;
use smallvec::SmallVec;

pub(super) use fields::is_authority;
use fields::{Fields, offset};

/// Longest head, start line included, unless it is said otherwise.
pub const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Most fields in a head, unless it is said otherwise. What is read with more takes its memory from the heap.
pub const FIELDS_MAX: usize = 200;

/// How the end of a body is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// No body.
    None,
    /// So many bytes.
    Length(u64),
    /// Chunks.
    Chunked,
    /// Everything until the peer ends the connection: responses only.
    UntilClose,
}

/// The methods that are treated apart from the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Its response has no body.
    Head,
    /// Asks for a tunnel.
    Connect,
    /// As [`Method::Idempotent`]; may be about the whole server: `*`.
    Options,
    /// GET, TRACE, PUT, DELETE: the effect of two is that of one (RFC 9110 section 9.2.2).
    Idempotent,
    /// All others, POST among them.
    Other,
}

impl Method {
    /// Whether the effect of the request sent twice is that of once.
    pub fn is_idempotent(self) -> bool {
        matches!(self, Method::Head | Method::Options | Method::Idempotent)
    }
}

/// The changes that a head needs before it is passed on.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Edits {
    /// Ranges to cut, ascending and apart, relative to the head's start.
    pub cuts: SmallVec<[(usize, usize); 2]>,
    /// Single bytes to overwrite.
    pub patches: Vec<(usize, u8)>,
    /// Lines, each with its CRLF, to put behind the start line.
    pub insert: Vec<u8>,
}

impl Edits {
    /// Cuts a head's fields of these names.
    pub fn cut_fields<'n>(&mut self, head: &[u8], names: impl Iterator<Item = &'n str> + Clone) {
        let mut start = 0;
        // Behind the request line.
        while let Some(length) = memchr(b'\n', &head[start..]) {
            let end = start + length + 1;
            let line = &head[start..end];
            let is = |name: &str| {
                let bytes = name.len();
                line.get(bytes) == Some(&b':') && line[..bytes].eq_ignore_ascii_case(name.as_bytes())
            };
            if start > 0 && names.clone().any(is) {
                self.cuts.push((start, end));
            }
            start = end;
        }
        fields::sort_cuts(&mut self.cuts);
    }
}

/// What a request's head says.
#[derive(Debug, PartialEq, Eq)]
pub struct RequestHead {
    /// Its length, the empty line included.
    pub bytes: usize,
    /// Length of the request line, CRLF included, once the cuts are made.
    pub start_line_bytes: usize,
    /// What is asked.
    pub method: Method,
    /// The client speaks HTTP/1.0: no chunks, no interim responses.
    pub is_http10: bool,
    /// The body.
    pub framing: Framing,
    /// Whether the client wants to go on with the connection.
    pub keep_alive: bool,
    /// Whether the client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
    /// Whether it has an Expect at all, which an endpoint may read otherwise.
    pub expects: bool,
    /// Whether it asks for the WebSocket protocol; then the fields that say so stay.
    pub websocket: bool,
    /// An HTTP/1.0 request without Host, which HTTP/1.1 requires.
    pub lacks_host: bool,
    /// What must be changed.
    pub edits: Edits,
}

/// What a response's head says.
#[derive(Debug, PartialEq, Eq)]
pub struct ResponseHead {
    /// Its length, the empty line included.
    pub bytes: usize,
    /// Length of the status line, CRLF included.
    pub start_line_bytes: usize,
    /// 100 to 999.
    pub status: u16,
    /// The body.
    pub framing: Framing,
    /// Whether the connection can be used again after it.
    pub keep_alive: bool,
    /// From here on bytes are bytes: 101 to a WebSocket's request, or any 2xx to CONNECT.
    pub switches: bool,
    /// What must be changed.
    pub edits: Edits,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRequest {
    /// Breaks a rule: 400.
    #[error("{0}")]
    Malformed(&'static str),
    /// 431.
    #[error("too many header fields")]
    TooManyFields,
    /// 431.
    #[error("the request's head is too long")]
    TooLong,
    /// 505.
    #[error("only HTTP/1.0 and HTTP/1.1 are spoken here")]
    Version,
}

/// Why a response is not passed on: 502.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadResponse(pub &'static str);

/// What must be known of a request to read its response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// HEAD: no body, whatever the fields say.
    pub head: bool,
    /// A WebSocket was asked for: 101 may come.
    pub websocket: bool,
    /// The client speaks HTTP/1.0: a chunked body will be passed on bare.
    pub http10: bool,
    /// CONNECT: 2xx is followed by a tunnel.
    pub connect: bool,
    /// Most fields in its head.
    pub fields_max: usize,
}

type Headers<'b> = [MaybeUninit<httparse::Header<'b>>];

/// Room for as many fields as most limits allow.
const fn room<'b>() -> [MaybeUninit<httparse::Header<'b>>; FIELDS_MAX] {
    [const { MaybeUninit::uninit() }; FIELDS_MAX]
}

/// Reads a request's head of at most `fields_max` fields from the start of `bytes`; `None` while it is not all there.
pub fn request(bytes: &[u8], fields_max: usize) -> Result<Option<RequestHead>, BadRequest> {
    match read_request(bytes, &mut room()[..fields_max.min(FIELDS_MAX)]) {
        Err(BadRequest::TooManyFields) if fields_max > FIELDS_MAX => {
            read_request(bytes, &mut vec![MaybeUninit::uninit(); fields_max])
        }
        result => result,
    }
}

fn read_request<'b>(bytes: &'b [u8], headers: &mut Headers<'b>) -> Result<Option<RequestHead>, BadRequest> {
    let mut parsed = httparse::Request::new(&mut []);
    let head_bytes = match parsed.parse_with_uninit_headers(bytes, headers) {
        Ok(httparse::Status::Complete(head_bytes)) => head_bytes,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(refusal(error)),
    };
    let (Some(method), Some(target), Some(minor)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(BadRequest::Malformed("incomplete request line"));
    };
    let head = &bytes[..head_bytes];
    let start_line_bytes = fields::check_lines(head, parsed.headers).map_err(BadRequest::Malformed)?;
    if offset(head, method.as_bytes()) != 0 {
        return Err(BadRequest::Malformed("something stands before the request line"));
    }
    let (method, is_get) = (classify(method), method == "GET");
    let fields = Fields::read(head, parsed.headers, true).map_err(BadRequest::Malformed)?;
    let is_http10 = minor == 0;
    let framing = request_framing(&fields, is_http10)?;
    let mut head = RequestHead {
        bytes: head_bytes,
        start_line_bytes,
        method,
        is_http10,
        framing,
        // What a client sends behind CONNECT is meant for the tunnel: refused one, it must not be read as a request (RFC 9110 section 9.3.6).
        keep_alive: method != Method::Connect && fields.wants_more(is_http10),
        expects_continue: fields.expects_continue && !is_http10,
        expects: fields.expect.is_some(),
        websocket: is_get && !is_http10 && framing == Framing::None && fields.websocket && fields.upgrade,
        lacks_host: false,
        edits: Edits::default(),
    };
    check_host(&mut head, &fields, target)?;
    check_target(&mut head, &fields, bytes, target)?;
    if is_http10 {
        // What is passed on is our own version (RFC 9110 section 2.5); the digit is the line's last byte.
        head.edits.patches.push((start_line_bytes - 3, b'1'));
    }
    fields.cuts(head.websocket, is_http10, &mut head.edits);
    fields::sort_cuts(&mut head.edits.cuts);
    let cut_from_line: usize =
        head.edits.cuts.iter().filter(|cut| cut.1 <= start_line_bytes).map(|cut| cut.1 - cut.0).sum();
    head.start_line_bytes -= cut_from_line;
    Ok(Some(head))
}

fn refusal(error: httparse::Error) -> BadRequest {
    match error {
        httparse::Error::TooManyHeaders => BadRequest::TooManyFields,
        httparse::Error::Version => BadRequest::Version,
        httparse::Error::HeaderName => BadRequest::Malformed("invalid byte in a field name"),
        httparse::Error::HeaderValue => BadRequest::Malformed("invalid byte in a field value"),
        httparse::Error::NewLine => BadRequest::Malformed("a line does not end in CRLF"),
        httparse::Error::Status | httparse::Error::Token => BadRequest::Malformed("malformed request line"),
    }
}

fn classify(method: &str) -> Method {
    match method {
        "GET" | "PUT" | "DELETE" | "TRACE" => Method::Idempotent,
        "OPTIONS" => Method::Options,
        "HEAD" => Method::Head,
        "CONNECT" => Method::Connect,
        _ => Method::Other,
    }
}

fn request_framing(fields: &Fields<'_>, is_http10: bool) -> Result<Framing, BadRequest> {
    match (fields.codings, fields.length) {
        (0, None | Some(0)) => Ok(Framing::None),
        (0, Some(length)) => Ok(Framing::Length(length)),
        (_, Some(_)) => Err(BadRequest::Malformed("both Transfer-Encoding and Content-Length")),
        (_, None) if is_http10 => Err(BadRequest::Malformed("Transfer-Encoding in HTTP/1.0")),
        (1, None) if fields.chunked => Ok(Framing::Chunked),
        (_, None) => Err(BadRequest::Malformed("Transfer-Encoding is not exactly chunked")),
    }
}

fn check_host(head: &mut RequestHead, fields: &Fields<'_>, target: &str) -> Result<(), BadRequest> {
    let Some((host, _)) = fields.host else {
        if !head.is_http10 {
            return Err(BadRequest::Malformed("Host is missing"));
        }
        // The authority of an absolute target will stand for it.
        head.lacks_host = target.starts_with('/') || !target.contains("://");
        return Ok(());
    };
    if !fields::is_authority(host) {
        return Err(BadRequest::Malformed("invalid Host"));
    }
    Ok(())
}

/// Checks the target's form; an absolute one becomes a path, and its authority the Host (RFC 9112 section 3.2.2).
fn check_target(head: &mut RequestHead, fields: &Fields<'_>, bytes: &[u8], target: &str) -> Result<(), BadRequest> {
    if target.contains('#') {
        // No part of a target (RFC 9112 section 3.2): who routes by the path and who serves it may see two.
        return Err(BadRequest::Malformed("a fragment in the target"));
    }
    if head.method == Method::Connect {
        return check_tunnel(head, target);
    }
    if target.starts_with('/') || (target == "*" && head.method == Method::Options) {
        return Ok(());
    }
    let Some(scheme_bytes) = ["http://", "https://"]
        .iter()
        .find(|scheme| target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme)))
        .map(|scheme| scheme.len())
    else {
        return Err(BadRequest::Malformed("the target is neither a path nor an http address"));
    };
    let rest = &target[scheme_bytes..];
    let authority_bytes = rest.find(['/', '?']).unwrap_or(rest.len());
    let authority = &rest.as_bytes()[..authority_bytes];
    if authority.is_empty() || !fields::is_authority(authority) {
        return Err(BadRequest::Malformed("invalid authority in the target"));
    }
    let start = offset(bytes, target.as_bytes());
    let path = start + scheme_bytes + authority_bytes;
    if bytes[path] == b'/' {
        head.edits.cuts.push((start, path));
    } else {
        // An empty path is sent as "/": the authority's last byte becomes it. OPTIONS means the whole server (RFC 9112 section 3.2.4).
        let is_whole = head.method == Method::Options && bytes[path] == b' ';
        head.edits.cuts.push((start, path - 1));
        head.edits.patches.push((path - 1, if is_whole { b'*' } else { b'/' }));
    }
    match fields.host {
        Some((host, _)) if host.eq_ignore_ascii_case(authority) => {}
        other => {
            head.edits.cuts.extend(other.map(|(_, line)| line));
            head.edits.insert.extend_from_slice(&[b"Host: ", authority, b"\r\n"].concat());
        }
    }
    Ok(())
}

/// A tunnel is asked for to a host and a port, and without a body (RFC 9110 section 9.3.6).
fn check_tunnel(head: &RequestHead, target: &str) -> Result<(), BadRequest> {
    let has_port = target.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && !port.is_empty());
    if !has_port || !fields::is_authority(target.as_bytes()) {
        return Err(BadRequest::Malformed("the target of CONNECT is not a host and a port"));
    }
    match head.framing {
        Framing::None => Ok(()),
        _ => Err(BadRequest::Malformed("CONNECT with a body")),
    }
}

/// What stands for a head with more fields than may be.
const TOO_MANY_FIELDS: BadResponse = BadResponse("too many header fields");

/// Reads a response's head from the start of `bytes`; `None` while it is not all there.
pub fn response(bytes: &[u8], asked: Asked) -> Result<Option<ResponseHead>, BadResponse> {
    match read_response(bytes, asked, &mut room()[..asked.fields_max.min(FIELDS_MAX)]) {
        Err(TOO_MANY_FIELDS) if asked.fields_max > FIELDS_MAX => {
            read_response(bytes, asked, &mut vec![MaybeUninit::uninit(); asked.fields_max])
        }
        result => result,
    }
}

fn read_response<'b>(
    bytes: &'b [u8],
    asked: Asked,
    headers: &mut Headers<'b>,
) -> Result<Option<ResponseHead>, BadResponse> {
    let mut parsed = httparse::Response::new(&mut []);
    let mut config = httparse::ParserConfig::default();
    // RFC 9112 section 5.1: white space before the colon is removed from a response.
    config.allow_spaces_after_header_name_in_responses(true);
    let head_bytes = match config.parse_response_with_uninit_headers(&mut parsed, bytes, headers) {
        Ok(httparse::Status::Complete(head_bytes)) => head_bytes,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(TOO_MANY_FIELDS),
        Err(_) => return Err(BadResponse("malformed head")),
    };
    let (Some(status), Some(minor)) = (parsed.code, parsed.version) else {
        return Err(BadResponse("incomplete status line"));
    };
    let head = &bytes[..head_bytes];
    let start_line_bytes = fields::check_lines(head, parsed.headers).map_err(BadResponse)?;
    if !head.starts_with(b"HTTP/1.") {
        return Err(BadResponse("something stands before the status line"));
    }
    if status < 100 {
        return Err(BadResponse("invalid status"));
    }
    let fields = Fields::read(head, parsed.headers, false).map_err(BadResponse)?;
    let framing = response_framing(&fields, status, minor == 0, asked)?;
    let switches = status == 101 || opens_tunnel(status, asked);
    let keep_alive = !switches && fields.wants_more(minor == 0);
    let mut edits = Edits::default();
    if minor == 0 {
        edits.patches.push((b"HTTP/1.".len(), b'1'));
    }
    fields.cuts(status == 101, false, &mut edits);
    if status < 200 || status == 204 || switches || (asked.http10 && fields.codings > 0) {
        // No body, and no word of one (RFC 9110 section 8.6, RFC 9112 section 6.1); or chunks for one who does not know them.
        fields.cut_framing(&mut edits);
    }
    fields::sort_cuts(&mut edits.cuts);
    Ok(Some(ResponseHead {
        bytes: head_bytes,
        start_line_bytes,
        status,
        framing,
        keep_alive: keep_alive && framing != Framing::UntilClose,
        switches,
        edits,
    }))
}

/// Whatever the fields of such a response say of a body, there is none (RFC 9110 section 9.3.6).
fn opens_tunnel(status: u16, asked: Asked) -> bool {
    asked.connect && (200..300).contains(&status)
}

fn response_framing(fields: &Fields<'_>, status: u16, is_http10: bool, asked: Asked) -> Result<Framing, BadResponse> {
    if opens_tunnel(status, asked) {
        return Ok(Framing::None);
    }
    match (fields.codings, fields.length) {
        (1.., Some(_)) => return Err(BadResponse("both Transfer-Encoding and Content-Length")),
        (1.., None) if is_http10 => return Err(BadResponse("Transfer-Encoding in HTTP/1.0")),
        (codings @ 1.., None) if codings > 1 || !fields.chunked => {
            return Err(BadResponse("Transfer-Encoding is not exactly chunked"));
        }
        _ => {}
    }
    if status == 101 && !(asked.websocket && fields.websocket) {
        return Err(BadResponse("101 to a protocol that was not asked for"));
    }
    Ok(match (fields.codings, fields.length) {
        _ if status < 200 || status == 204 || status == 304 || asked.head => Framing::None,
        (1.., _) => Framing::Chunked,
        (_, Some(0)) => Framing::None,
        (_, Some(length)) => Framing::Length(length),
        (_, None) => Framing::UntilClose,
    })
}
