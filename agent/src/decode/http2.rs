//! HTTP/2 heads: what the library that reads the frames leaves to be judged (RFC 9113 section 8), and what has to be changed before a head is
//! passed on.
//!
//! The library refuses by itself: pseudo-fields that are missing, repeated, unknown or late, upper-case names, fields of one connection,
//! bytes that no field may have, and a content-length that is not what DATA adds up to. Frames of clients are judged before it
//! by the [`guard`], and those of servers that come [`late`] are taken care of. How long a head may be is for its [`room`] to say.

pub mod guard;
pub mod late;
pub mod room;
mod rules;

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Uri, header,
    request::Parts,
    uri::{Authority, PathAndQuery, Scheme},
};

use super::{
    grpc,
    http1::{BadRequest, BadResponse},
};

/// What a client sends first on a connection (RFC 9113 section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What comes of CONNECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tunnel {
    /// Bytes to a host and a port (RFC 9113 section 8.5).
    Plain,
    /// A WebSocket (RFC 8441).
    WebSocket,
    /// Another protocol that is named so.
    Other,
}

impl Tunnel {
    fn of(method: &Method, protocol: Option<&[u8]>) -> Option<Self> {
        match protocol {
            Some(b"websocket") => Some(Self::WebSocket),
            Some(_) => Some(Self::Other),
            None => (*method == Method::CONNECT).then_some(Self::Plain),
        }
    }
}

/// What is to be known of a request, its head now as it may be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The effect of the request sent twice is that of once.
    pub is_idempotent: bool,
    /// Its response has no body.
    pub is_head: bool,
    /// It asks for a tunnel.
    pub tunnel: Option<Tunnel>,
    /// A gRPC call.
    pub is_grpc: bool,
}

impl Asked {
    /// Of a head that asks for no tunnel.
    pub fn of(parts: &Parts) -> Self {
        let is_grpc = |value: &HeaderValue| grpc::is_grpc(value.as_bytes());
        Self {
            is_idempotent: is_idempotent(&parts.method),
            is_head: parts.method == Method::HEAD,
            tunnel: None,
            is_grpc: parts.headers.get(header::CONTENT_TYPE).is_some_and(is_grpc),
        }
    }
}

/// Checks a request's head and makes it one that may be passed on. `protocol` is what `:protocol` says, which only CONNECT may have.
pub fn request(parts: &mut Parts, protocol: Option<&[u8]>) -> Result<Asked, BadRequest> {
    check_values(&parts.headers).map_err(BadRequest::Malformed)?;
    settle_length(&mut parts.headers).map_err(BadRequest::Malformed)?;
    let tunnel = Tunnel::of(&parts.method, protocol);
    let asked = Asked::of(parts);
    let asked = Asked { tunnel, is_grpc: asked.is_grpc && tunnel.is_none(), ..asked };
    if tunnel.is_some() {
        // Nothing of a tunnel's bytes is a body (RFC 9110 section 9.3.6).
        parts.headers.remove(header::CONTENT_LENGTH);
    }
    let authority = authority(parts)?;
    if tunnel == Some(Tunnel::Plain) {
        if authority.port().is_none() || authority.host().is_empty() {
            return Err(BadRequest::Malformed("the target of CONNECT is not a host and a port"));
        }
        parts.uri = Uri::from(authority);
        cut(&mut parts.headers);
        return Ok(asked);
    }
    let path = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let is_asterisk = path.as_str() == "*" && parts.method == Method::OPTIONS;
    if !path.as_str().starts_with('/') && !is_asterisk {
        return Err(BadRequest::Malformed("the path does not begin with a slash"));
    }
    let scheme = parts.uri.scheme().cloned().unwrap_or(Scheme::HTTP);
    if scheme != Scheme::HTTP && scheme != Scheme::HTTPS {
        return Err(BadRequest::Malformed("the scheme is neither http nor https"));
    }
    parts.uri = Uri::builder()
        .scheme(scheme)
        .authority(authority)
        .path_and_query(path)
        .build()
        .map_err(|_| BadRequest::Malformed("scheme, authority and path make no address"))?;
    cut(&mut parts.headers);
    Ok(asked)
}

/// The one authority of a request: of `:authority` and Host, if both are there, they must say the same (RFC 9113 section 8.3.1). Host is gone
/// afterwards.
fn authority(parts: &mut Parts) -> Result<Authority, BadRequest> {
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let (host, more) = (hosts.next(), hosts.next().is_some());
    if more {
        return Err(BadRequest::Malformed("more than one Host"));
    }
    let authority = match (parts.uri.authority(), host) {
        (Some(authority), Some(host)) if !authority.as_str().as_bytes().eq_ignore_ascii_case(host.as_bytes()) => {
            return Err(BadRequest::Malformed("Host and :authority differ"));
        }
        (Some(authority), _) => authority.clone(),
        (None, Some(host)) => {
            Authority::try_from(host.as_bytes()).map_err(|_| BadRequest::Malformed("invalid Host"))?
        }
        (None, None) => return Err(BadRequest::Malformed("neither Host nor :authority")),
    };
    if authority.as_str().contains('@') {
        return Err(BadRequest::Malformed("user information in the authority"));
    }
    parts.headers.remove(header::HOST);
    Ok(authority)
}

/// Checks a response's head, and cuts what concerns one connection only.
pub fn response(status: u16, headers: &mut HeaderMap) -> Result<(), BadResponse> {
    if status == 101 {
        return Err(BadResponse("101, which HTTP/2 does not know"));
    }
    check_values(headers).map_err(BadResponse)?;
    settle_length(headers).map_err(BadResponse)?;
    cut(headers);
    Ok(())
}

/// Whether nothing follows the head of a response with this status (RFC 9110 sections 15.3.5 and 15.4.5).
pub fn is_bare(status: u16) -> bool {
    matches!(status, 204 | 304)
}

/// A length is one number, and said once. The library looks at it only where a body may follow, and only at the first; it is passed on where
/// none does, too: to HEAD, and with 304.
fn settle_length(headers: &mut HeaderMap) -> Result<(), &'static str> {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(first) = lengths.next() else { return Ok(()) };
    let number = number(first).ok_or("invalid Content-Length")?;
    let mut is_repeated = false;
    for other in lengths {
        is_repeated = true;
        if self::number(other) != Some(number) {
            return Err("invalid Content-Length");
        }
    }
    if is_repeated {
        let first = first.clone();
        headers.insert(header::CONTENT_LENGTH, first);
    }
    Ok(())
}

fn number(value: &HeaderValue) -> Option<u64> {
    let digits = str::from_utf8(value.as_bytes()).ok()?;
    if digits.bytes().all(|byte| byte.is_ascii_digit()) { digits.parse().ok() } else { None }
}

/// Checks fields behind a body, and cuts those that may not stand there (RFC 9110 section 6.5.1).
pub fn trailers(headers: &mut HeaderMap) -> Result<(), BadResponse> {
    const FORBIDDEN: [HeaderName; 6] = [
        header::CONTENT_LENGTH,
        header::HOST,
        header::AUTHORIZATION,
        header::CONTENT_TYPE,
        header::CONTENT_ENCODING,
        header::CONTENT_RANGE,
    ];
    check_values(headers).map_err(BadResponse)?;
    FORBIDDEN.iter().for_each(|name| drop(headers.remove(name)));
    cut(headers);
    Ok(())
}

/// A value neither begins nor ends with white space (RFC 9113 section 8.2.1).
fn check_values(headers: &HeaderMap) -> Result<(), &'static str> {
    let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    let wrong = headers.values().map(HeaderValue::as_bytes).any(|v| is_blank(v.first()) || is_blank(v.last()));
    if wrong { Err("white space around a field value") } else { Ok(()) }
}

/// Cuts what concerns one connection only and is not refused by the library.
fn cut(headers: &mut HeaderMap) {
    let is_hop = |name: &HeaderName| {
        let name = name.as_str();
        name.starts_with("proxy-") || name == "http2-settings"
    };
    // Nearly never there: looked for before anything is moved.
    while let Some(name) = headers.keys().find(|name| is_hop(name)).cloned() {
        headers.remove(name);
    }
}

/// GET, HEAD, OPTIONS, TRACE, PUT, DELETE (RFC 9110 section 9.2.2).
fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE)
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn parts(uri: &str, fields: &[(&str, &str)]) -> Parts {
        let mut builder = Request::builder().uri(uri);
        for (name, value) in fields {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap().into_parts().0
    }

    fn refused(uri: &str, fields: &[(&str, &str)]) -> String {
        request(&mut parts(uri, fields), None).unwrap_err().to_string()
    }

    #[test]
    fn host_and_authority_become_one() {
        for (uri, fields) in [("http://a/x", &[][..]), ("http://a/x", &[("host", "A")]), ("/x", &[("host", "a")])] {
            let mut parts = parts(uri, fields);
            request(&mut parts, None).unwrap();
            assert_eq!(parts.uri, "http://a/x");
            assert!(!parts.headers.contains_key("host"));
        }
        assert_eq!(refused("http://a/", &[("host", "b")]), "Host and :authority differ");
        assert_eq!(refused("/", &[("host", "a"), ("host", "a")]), "more than one Host");
        assert_eq!(refused("/", &[]), "neither Host nor :authority");
        assert_eq!(refused("/", &[("host", "a b")]), "invalid Host");
        assert_eq!(refused("http://u@a/", &[]), "user information in the authority");
    }

    #[test]
    fn only_paths_of_http_are_asked_for() {
        assert_eq!(refused("ftp://a/", &[]), "the scheme is neither http nor https");
        assert_eq!(refused("*", &[("host", "a")]), "the path does not begin with a slash");
        let mut asterisk = parts("*", &[("host", "a")]);
        asterisk.method = Method::OPTIONS;
        assert!(request(&mut asterisk, None).is_ok());
    }

    #[test]
    fn a_tunnel_goes_to_a_host_and_a_port_or_names_its_protocol() {
        let connect = |uri: &str, protocol: Option<&[u8]>| {
            let mut parts = parts(uri, &[("content-length", "3")]);
            parts.method = Method::CONNECT;
            request(&mut parts, protocol).map(|asked| (asked.tunnel, parts.uri.to_string(), parts.headers.len()))
        };
        assert_eq!(connect("a:443", None), Ok((Some(Tunnel::Plain), "a:443".to_owned(), 0)));
        assert_eq!(
            connect("http://a/x", Some(b"websocket")),
            Ok((Some(Tunnel::WebSocket), "http://a/x".to_owned(), 0))
        );
        assert_eq!(connect("http://a/x", Some(b"other")), Ok((Some(Tunnel::Other), "http://a/x".to_owned(), 0)));
        assert!(connect("a", None).is_err() && connect("/", None).is_err());
    }

    #[test]
    fn who_says_a_length_says_one_number_and_once() {
        for (lengths, is_good) in [
            (&["5"][..], true),
            (&["5", "5"], true),
            (&["5", "05"], true),
            (&["18446744073709551615"], true),
            (&["5:"], false),
            (&["+5"], false),
            (&[""], false),
            (&["5", "6"], false),
            (&["5, 6"], false),
            (&["18446744073709551616"], false),
        ] {
            let fields: Vec<(&str, &str)> = lengths.iter().map(|length| ("content-length", *length)).collect();
            let mut answer = parts("/", &fields).headers;
            assert_eq!(response(304, &mut answer).is_ok(), is_good, "{lengths:?}");
            let mut asked = parts("http://a/", &fields);
            assert_eq!(request(&mut asked, None).is_ok(), is_good, "{lengths:?}");
            if is_good {
                assert_eq!((answer.len(), asked.headers.len()), (1, 1), "{lengths:?}");
            }
        }
    }

    #[test]
    fn values_have_no_white_space_around_them() {
        assert_eq!(refused("http://a/", &[("x", " 1")]), "white space around a field value");
        assert_eq!(refused("http://a/", &[("x", "1\t")]), "white space around a field value");
        assert!(request(&mut parts("http://a/", &[("x", ""), ("y", "a b")]), None).is_ok());
    }

    #[test]
    fn fields_of_one_connection_are_cut() {
        let mut parts =
            parts("http://a/", &[("proxy-authorization", "x"), ("http2-settings", "x"), ("te", "trailers")]);
        request(&mut parts, None).unwrap();
        assert_eq!(parts.headers.len(), 1);
        let mut headers = HeaderMap::new();
        headers.insert("proxy-authenticate", "x".parse().unwrap());
        response(200, &mut headers).unwrap();
        assert!(headers.is_empty());
        assert!(response(101, &mut headers).is_err());
    }

    #[test]
    fn trailers_frame_and_authorise_nothing() {
        let mut headers = HeaderMap::new();
        for name in ["content-length", "host", "authorization", "grpc-status"] {
            headers.insert(HeaderName::from_static(name), "1".parse().unwrap());
        }
        trailers(&mut headers).unwrap();
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["grpc-status"]);
    }

    #[test]
    fn what_is_asked_is_told() {
        let mut call = parts("http://a/", &[("content-type", "application/grpc")]);
        call.method = Method::POST;
        let expected = Asked { is_idempotent: false, is_head: false, tunnel: None, is_grpc: true };
        assert_eq!(request(&mut call, None), Ok(expected));
    }
}
