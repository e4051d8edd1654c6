//! A request's head as judges see it, whichever protocol it came in: nothing is copied, nothing allocated.

use std::iter;

use http::{HeaderMap, HeaderValue, header, request::Parts, uri::PathAndQuery};
use memchr::{memchr, memrchr};

use crate::cluster::Dialler;

/// A space, `HTTP/1.1` and CRLF: what stands behind the target, nearly always.
const VERSION_BYTES: usize = 11;

/// A request's head where it stands: in the buffer that HTTP/1 was received in, or in the fields that HTTP/2 was decoded into.
///
/// What is not said is empty. Nothing is decoded: `%2F` is not `/`.
#[derive(Clone, Copy, Debug)]
pub struct Request<'r> {
    /// As the client wrote it: methods know case.
    pub method: &'r [u8],
    /// Whether the client speaks TLS.
    pub is_secure: bool,
    /// Up to the question mark; `*` for the whole server, and empty for CONNECT.
    pub path: &'r [u8],
    /// What stands behind the first question mark, if there is one.
    pub query: Option<&'r [u8]>,
    /// Who dialled, as the kernel half knows it: a number for the network namespace, cgroup or user, as the service's policy says.
    pub caller: u64,
    /// The same by names, where somebody asks for them.
    pub dialler: Option<&'r Dialler>,
    /// The authority of the target; may be empty.
    target: &'r [u8],
    fields: Fields<'r>,
}

#[derive(Clone, Copy, Debug)]
enum Fields<'r> {
    /// Of HTTP/1, each ended by CRLF.
    Lines(&'r [u8]),
    /// Of HTTP/2.
    Map(&'r HeaderMap),
}

impl<'r> Request<'r> {
    /// Of HTTP/1: the bytes of a head that was read without complaint, from the first of its request line on.
    pub fn of_http1(head: &'r [u8], is_secure: bool, caller: u64) -> Self {
        let end = memchr(b'\n', head).map_or(head.len(), |end| end + 1);
        let (line, lines) = head.split_at(end);
        // It is short.
        let (method, rest) = line.split_at(line.iter().position(|byte| *byte == b' ').unwrap_or(line.len()));
        let rest = rest.get(1..).unwrap_or_default();
        let target = match rest.len().checked_sub(VERSION_BYTES) {
            Some(end) if rest[end] == b' ' => &rest[..end],
            _ => &rest[..memrchr(b' ', rest).unwrap_or(rest.len())],
        };
        let (authority, path_and_query) = match method {
            b"CONNECT" => (target, &b""[..]),
            _ => split_target(target),
        };
        let (path, query) = split_query(path_and_query);
        let (target, fields) = (authority, Fields::Lines(lines));
        Self { method, is_secure, target, path, query, caller, dialler: None, fields }
    }

    /// Of HTTP/2, pseudo-fields apart.
    pub fn of_parts(parts: &'r Parts, is_secure: bool, caller: u64) -> Self {
        let fields = Fields::Map(&parts.headers);
        let authority = parts.uri.authority().map(|authority| authority.as_str().as_bytes());
        let path_and_query = parts.uri.path_and_query().map_or("", PathAndQuery::as_str);
        let (path, query) = split_query(path_and_query.as_bytes());
        Self {
            method: parts.method.as_str().as_bytes(),
            is_secure,
            target: authority.unwrap_or_default(),
            path,
            query,
            caller,
            dialler: None,
            fields,
        }
    }

    /// The same of somebody who is known by name.
    pub fn by(self, dialler: Option<&'r Dialler>) -> Self {
        Self { dialler, ..self }
    }

    /// The authority of the target, or else the field Host: a name or an address, and a port if the client said one.
    pub fn authority(&self) -> &'r [u8] {
        if self.target.is_empty() { self.header("host").unwrap_or_default() } else { self.target }
    }

    /// The authority without its port.
    pub fn host(&self) -> &'r [u8] {
        let authority = self.authority();
        // No port ends with a letter.
        if authority.last().is_some_and(u8::is_ascii_alphabetic) {
            return authority;
        }
        match memrchr(b':', authority) {
            Some(colon) if !authority[colon..].contains(&b']') => &authority[..colon],
            _ => authority,
        }
    }

    /// `http` or `https`, as the client dialled.
    pub fn scheme(&self) -> &'static str {
        if self.is_secure { "https" } else { "http" }
    }

    /// The values of the fields of this name, which is in lower case, in their order.
    pub fn headers(&self, name: &'r str) -> impl Iterator<Item = &'r [u8]> + use<'r> {
        self.fields.all(name)
    }

    /// The first of them.
    pub fn header(&self, name: &'r str) -> Option<&'r [u8]> {
        match self.fields {
            Fields::Lines(lines) => values(lines, name).next(),
            Fields::Map(map) => map.get(name).map(HeaderValue::as_bytes),
        }
    }

    /// The first value of each of these names, which are in lower case: one pass over the head for all of them.
    pub fn first_of<const N: usize>(&self, names: &[&str; N]) -> [Option<&'r [u8]>; N] {
        let mut found = [None; N];
        match self.fields {
            Fields::Lines(mut left) => {
                while !left.is_empty() {
                    let (line, further) = left.split_at(memchr(b'\n', left).map_or(left.len(), |end| end + 1));
                    left = further;
                    for (found, wanted) in found.iter_mut().zip(names) {
                        if found.is_none() {
                            *found = value_of(line, wanted.as_bytes());
                        }
                    }
                }
            }
            Fields::Map(map) => {
                for (key, value) in map {
                    for (found, name) in found.iter_mut().zip(names).filter(|(found, _)| found.is_none()) {
                        *found = (key.as_str() == *name).then(|| value.as_bytes());
                    }
                }
            }
        }
        found
    }

    /// The values of the cookies of this name, in their order (RFC 6265 section 5.4).
    pub fn cookies(&self, name: &'r str) -> impl Iterator<Item = &'r [u8]> + use<'r> {
        let crumbs = self.headers(header::COOKIE.as_str()).flat_map(|value| value.split(|byte| *byte == b';'));
        crumbs.filter_map(move |crumb| named(crumb.trim_ascii(), name))
    }

    /// The first of them.
    pub fn cookie(&self, name: &'r str) -> Option<&'r [u8]> {
        self.cookies(name).next()
    }

    /// The values of the query's parameters of this name, in their order.
    pub fn parameters(&self, name: &'r str) -> impl Iterator<Item = &'r [u8]> + use<'r> {
        let pairs = self.query.into_iter().flat_map(|query| query.split(|byte| *byte == b'&'));
        pairs.filter_map(move |pair| named(pair, name).or_else(|| (pair == name.as_bytes()).then_some(&b""[..])))
    }

    /// The first of them.
    pub fn parameter(&self, name: &'r str) -> Option<&'r [u8]> {
        self.parameters(name).next()
    }

    /// Service and method of a gRPC call.
    pub fn grpc(&self) -> Option<(&'r [u8], &'r [u8])> {
        let kind = self.header(header::CONTENT_TYPE.as_str())?.strip_prefix(b"application/grpc")?;
        // Not grpc-web, which is another protocol.
        if !matches!(kind.first(), None | Some(b'+' | b';' | b' ')) {
            return None;
        }
        let path = self.path.strip_prefix(b"/")?;
        let slash = path.iter().position(|byte| *byte == b'/')?;
        Some((&path[..slash], &path[slash + 1..]))
    }
}

impl<'r> Fields<'r> {
    fn all(self, name: &'r str) -> impl Iterator<Item = &'r [u8]> + use<'r> {
        let (lines, map) = match self {
            Self::Lines(lines) => (lines, None),
            Self::Map(map) => (&b""[..], Some(map)),
        };
        let of_map = map.into_iter().flat_map(move |map| map.get_all(name).iter().map(HeaderValue::as_bytes));
        values(lines, name).chain(of_map)
    }
}

/// The values of the fields of this name among those of HTTP/1.
fn values<'l>(lines: &'l [u8], name: &'l str) -> impl Iterator<Item = &'l [u8]> + use<'l> {
    let mut left = lines;
    iter::from_fn(move || {
        while !left.is_empty() {
            let (line, further) = left.split_at(memchr(b'\n', left).map_or(left.len(), |end| end + 1));
            left = further;
            if let Some(value) = value_of(line, name.as_bytes()) {
                return Some(value);
            }
        }
        None
    })
}

/// The value in a line of HTTP/1, if its field has this name.
fn value_of<'l>(line: &'l [u8], name: &[u8]) -> Option<&'l [u8]> {
    // The colon first: few fields have a name as long as this.
    let is_this = line.get(name.len()) == Some(&b':') && line[..name.len()].eq_ignore_ascii_case(name);
    is_this.then(|| line[name.len() + 1..].trim_ascii())
}

/// The value in `name=value`.
fn named<'p>(pair: &'p [u8], name: &str) -> Option<&'p [u8]> {
    pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")
}

/// Authority, and path with query; an absolute target has both, and an empty path is `/` (RFC 9112 section 3.2.2).
fn split_target(target: &[u8]) -> (&[u8], &[u8]) {
    if target.first() == Some(&b'/') {
        return (b"", target);
    }
    let scheme = |scheme: &str| target.get(..scheme.len()).is_some_and(|it| it.eq_ignore_ascii_case(scheme.as_bytes()));
    let Some(scheme) = ["http://", "https://"].into_iter().find(|it| scheme(it)) else { return (b"", target) };
    let rest = &target[scheme.len()..];
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
    (&rest[..end], &rest[end..])
}

/// Path, and query if there is one. A path that is not said, before a query or at the end of an absolute target, is `/`.
fn split_query(target: &[u8]) -> (&[u8], Option<&[u8]>) {
    match memchr(b'?', target) {
        Some(0) => (b"/", Some(&target[1..])),
        Some(mark) => (&target[..mark], Some(&target[mark + 1..])),
        None => (target, None),
    }
}

#[cfg(test)]
mod tests {
    use std::str;

    use super::*;

    const HEAD: &[u8] = b"GET /api/order/7?a=1&b=&c&a=2 HTTP/1.1\r\nHost: Orders.example:8080\r\nX-Team:  red \r\n\
        x-team: blue\r\nX-Teams: no\r\nCookie: a=1; session=x=y\r\ncookie: b=2\r\ncontent-type: application/grpc+proto\r\n\r\n";

    fn parts() -> Parts {
        let request = http::Request::get("http://Orders.example:8080/api/order/7?a=1&b=&c&a=2")
            .header("x-team", "red")
            .header("x-team", "blue")
            .header("x-teams", "no")
            .header("cookie", "a=1; session=x=y")
            .header("cookie", "b=2")
            .header("content-type", "application/grpc+proto");
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn both_protocols_show_the_same() {
        let parts = parts();
        for request in [Request::of_http1(HEAD, true, 7), Request::of_parts(&parts, true, 7)] {
            assert_eq!((request.method, request.scheme(), request.caller), (&b"GET"[..], "https", 7));
            assert_eq!((request.authority(), request.host()), (&b"Orders.example:8080"[..], &b"Orders.example"[..]));
            assert_eq!((request.path, request.query), (&b"/api/order/7"[..], Some(&b"a=1&b=&c&a=2"[..])));
            assert_eq!(request.headers("x-team").collect::<Vec<_>>(), [b"red".as_slice(), b"blue"]);
            assert_eq!(request.header("absent"), None);
            let first = request.first_of(&["x-teams", "x-tea", "x-team", "x-team"]);
            assert_eq!(first, [Some(&b"no"[..]), None, Some(b"red"), Some(b"red")]);
            let cookies = ["a", "session", "b", "c"].map(|name| request.cookie(name));
            assert_eq!(cookies, [Some(&b"1"[..]), Some(b"x=y"), Some(b"2"), None]);
            assert_eq!(request.parameters("a").collect::<Vec<_>>(), [b"1".as_slice(), b"2"]);
            let parameters = ["b", "c", "d"].map(|name| request.parameter(name));
            assert_eq!(parameters, [Some(&b""[..]), Some(b""), None]);
            assert_eq!(request.grpc(), Some((&b"api"[..], &b"order/7"[..])));
        }
    }

    #[test]
    fn the_target_comes_before_the_host() {
        for (line, authority, path, query) in [
            ("GET http://a:1/x?y", "a:1", "/x", Some("y")),
            ("GET HTTPS://a?y", "a", "/", Some("y")),
            ("GET /x", "b", "/x", None),
            ("OPTIONS *", "b", "*", None),
            ("CONNECT a:443", "a:443", "", None),
        ] {
            let head = format!("{line} HTTP/1.1\r\nhost: b\r\n\r\n");
            let request = Request::of_http1(head.as_bytes(), false, 0);
            let text = |bytes| str::from_utf8(bytes).unwrap();
            assert_eq!(
                (text(request.authority()), text(request.path), request.query.map(text)),
                (authority, path, query)
            );
        }
    }

    #[test]
    fn a_port_is_told_from_an_address() {
        for (authority, host) in [("a", "a"), ("a:1", "a"), ("[::1]", "[::1]"), ("[::1]:80", "[::1]"), ("", "")] {
            let head = format!("GET / HTTP/1.1\r\nHost: {authority}\r\n\r\n");
            let request = Request::of_http1(head.as_bytes(), false, 0);
            assert_eq!(request.host(), host.as_bytes());
        }
    }

    #[test]
    fn only_grpc_is_taken_for_it() {
        for (kind, is_grpc) in [("application/grpc", true), ("application/grpc-web", false), ("text/plain", false)] {
            let head = format!("POST /s/m HTTP/1.1\r\nHost: a\r\nContent-Type: {kind}\r\n\r\n");
            let request = Request::of_http1(head.as_bytes(), false, 0);
            assert_eq!(request.grpc().is_some(), is_grpc, "{kind}");
        }
    }
}
