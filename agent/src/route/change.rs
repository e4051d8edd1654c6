//! What a route makes of a head: captures, a new target, fields set, added and removed, in either protocol.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Uri, header::HOST, request::Parts, uri::PathAndQuery};
use memchr::memchr;
use smallvec::SmallVec;

use super::Request;
use crate::config::route::{
    Action, HeaderChanges, HostMatch, Part, PathChange, PathMatch, Redirect, Rewrite, Route, Segment, Template,
};

/// Longest path or value that a template may come to: as long as the longest head by default.
const BYTES_MAX: usize = 64 * 1024;

/// What is changed of a head, names in lower case. Copies share it: most are of what a configuration says of every request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields(Option<Arc<Changes>>);

/// What there is of them mostly fits in place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Changes {
    removed: SmallVec<[HeaderName; 2]>,
    added: SmallVec<[(HeaderName, HeaderValue); 2]>,
}

/// What makes a head of HTTP/1 what it is changed to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LineEdits {
    /// Lines that are taken out, ascending and apart: from where to where in the head.
    pub cuts: SmallVec<[(usize, usize); 2]>,
    /// Lines, each with its CRLF, that are put behind the start line.
    pub insert: Vec<u8>,
}

/// What is changed of a request's head.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Path and query.
    target: Option<Vec<u8>>,
    authority: Option<Vec<u8>>,
    fields: Fields,
}

/// A route's templates cannot be filled: the request comes to something that no head can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its route makes a target or a field of it that no head can hold")]
pub struct Unfit;

/// A route and the request that took it.
#[derive(Clone, Copy, Debug)]
pub struct Taken<'t> {
    /// The route.
    pub route: &'t Route,
    /// The request, as it came.
    pub request: &'t Request<'t>,
}

impl<'t> Taken<'t> {
    /// What is changed of the request before it is passed on; `None`: nothing.
    ///
    /// # Errors
    ///
    /// When that cannot be written.
    pub fn change(&self) -> Result<Option<Change>, Unfit> {
        let headers = &self.route.request_headers;
        let Action::Forward(forward) = &self.route.action else { return Ok(None) };
        let Rewrite { path, host } = &forward.rewrite;
        if path.is_none() && host.is_none() && headers.is_empty() {
            return Ok(None);
        }
        let target = path.as_ref().map(|path| self.target(path, false)).transpose()?;
        let authority = host.as_ref().map(|host| self.filled(host)).transpose()?;
        if authority.as_ref().is_some_and(|authority| !is_authority(authority)) {
            return Err(Unfit);
        }
        Ok(Some(Change { target, authority, fields: self.fields(headers)? }))
    }

    /// What is changed of the response; `None`: nothing.
    ///
    /// # Errors
    ///
    /// When that cannot be written.
    pub fn response_change(&self) -> Result<Option<Fields>, Unfit> {
        let headers = &self.route.response_headers;
        if headers.is_empty() { Ok(None) } else { self.fields(headers).map(Some) }
    }

    /// Where a client is sent.
    ///
    /// # Errors
    ///
    /// When that cannot be written.
    pub fn location(&self, redirect: &Redirect) -> Result<Vec<u8>, Unfit> {
        let (request, was) = (self.request, self.request.scheme());
        let scheme = redirect.scheme.as_deref().unwrap_or(was);
        let host = redirect.host.as_ref().map(|host| self.filled(host)).transpose()?;
        let port = match redirect.port {
            Some(port) => port.to_string().into_bytes(),
            None if scheme == was && host.is_none() => {
                request.authority()[request.host().len()..].strip_prefix(b":").unwrap_or_default().to_vec()
            }
            None => Vec::new(),
        };
        let usual: &[u8] = if scheme == "https" { b"443" } else { b"80" };
        let mut location = [scheme.as_bytes(), b"://", host.as_deref().unwrap_or(request.host())].concat();
        if !port.is_empty() && port != usual {
            location.push(b':');
            location.extend_from_slice(&port);
        }
        let path = match &redirect.path {
            Some(path) => self.target(path, redirect.strip_query)?,
            None => with_query(request.path.to_vec(), request.query.filter(|_| !redirect.strip_query)),
        };
        location.extend_from_slice(&path);
        HeaderValue::from_bytes(&location).map_err(|_| Unfit)?;
        Ok(location)
    }

    /// The path that it comes to, with its query.
    fn target(&self, change: &PathChange, strip_query: bool) -> Result<Vec<u8>, Unfit> {
        let path = self.request.path;
        let mut changed = match change {
            PathChange::Whole(template) => self.filled(template)?,
            PathChange::Prefix(template) => {
                let matched = match &self.route.matches.path {
                    Some(PathMatch::Prefix(prefix)) => prefix.len(),
                    _ => 0,
                };
                let mut start = self.filled(template)?;
                let rest = path.get(matched..).unwrap_or_default();
                if start.ends_with(b"/") && rest.starts_with(b"/") {
                    start.pop();
                }
                [start.as_slice(), rest].concat()
            }
            PathChange::Regex(expression, with) => expression.regex().replace_all(path, with.as_bytes()).into_owned(),
        };
        if !changed.starts_with(b"/") {
            changed.insert(0, b'/');
        }
        let is_written = |byte: &u8| *byte > b' ' && *byte != 0x7f && *byte != b'#';
        if changed.len() > BYTES_MAX || !changed.iter().all(is_written) {
            return Err(Unfit);
        }
        Ok(with_query(changed, self.request.query.filter(|_| !strip_query)))
    }

    fn fields(&self, changes: &HeaderChanges) -> Result<Fields, Unfit> {
        let name = |name: &str| HeaderName::from_bytes(name.as_bytes()).map_err(|_| Unfit);
        let field = |(of, template): &(String, Template)| {
            Ok((name(of)?, HeaderValue::from_bytes(&self.filled(template)?).map_err(|_| Unfit)?))
        };
        let set = changes.set.iter().map(|(of, _)| of);
        Ok(Fields::of(Changes {
            removed: changes.remove.iter().chain(set).map(|of| name(of)).collect::<Result<_, Unfit>>()?,
            added: changes.set.iter().chain(&changes.add).map(field).collect::<Result<_, Unfit>>()?,
        }))
    }

    fn filled(&self, template: &Template) -> Result<Vec<u8>, Unfit> {
        let mut filled = Vec::new();
        for part in template.parts() {
            match part {
                Part::Text(text) => filled.extend_from_slice(text.as_bytes()),
                Part::Capture(name) => filled.extend_from_slice(self.captured(name).unwrap_or_default()),
            }
        }
        if filled.len() > BYTES_MAX { Err(Unfit) } else { Ok(filled) }
    }

    /// What the route has captured under a name.
    pub fn captured(&self, name: &str) -> Option<&'t [u8]> {
        let matches = &self.route.matches;
        let of_path = match &matches.path {
            Some(PathMatch::Template(segments)) => {
                let place = segments.iter().position(|segment| matches!(segment, Segment::Named(it) if it == name));
                place.and_then(|place| self.request.path.get(1..)?.split(|byte| *byte == b'/').nth(place))
            }
            Some(PathMatch::Regex(expression)) => group(expression.regex(), self.request.path, name),
            _ => None,
        };
        of_path.or_else(|| match &matches.host {
            Some(HostMatch::Regex(expression)) => group(expression.regex(), self.request.host(), name),
            _ => None,
        })
    }
}

/// Whether a line of a head is a field of this name.
fn is_named(line: &[u8], name: &[u8]) -> bool {
    line.get(name.len()) == Some(&b':') && line[..name.len()].eq_ignore_ascii_case(name)
}

fn group<'t>(regex: &regex::bytes::Regex, text: &'t [u8], name: &str) -> Option<&'t [u8]> {
    Some(regex.captures(text)?.name(name)?.as_bytes())
}

fn with_query(mut path: Vec<u8>, query: Option<&[u8]>) -> Vec<u8> {
    if let Some(query) = query {
        path.push(b'?');
        path.extend_from_slice(query);
    }
    path
}

/// Whether it can be a host and a port, without user information (RFC 3986 section 3.2).
fn is_authority(authority: &[u8]) -> bool {
    !authority.is_empty()
        && authority.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(byte))
}

impl Change {
    /// A request's head of HTTP/1, made anew.
    pub fn of_lines(&self, head: &[u8]) -> Vec<u8> {
        let end = head.iter().position(|byte| *byte == b'\n').map_or(head.len(), |end| end + 1);
        let (line, fields) = head.split_at(end);
        let mut parts = line.splitn(3, |byte| *byte == b' ');
        let [method, target, version] = [(); 3].map(|()| parts.next().unwrap_or_default());
        let target = self.target.as_deref().unwrap_or(target);
        let start = [method, b" ", target, b" ", version].concat();
        let mut fields = self.fields.of_lines(&[&start, fields].concat());
        if let Some(authority) = &self.authority {
            let host = Fields::of(Changes {
                removed: [HOST].into_iter().collect(),
                added: HeaderValue::from_bytes(authority).map(|value| (HOST, value)).into_iter().collect(),
            });
            fields = host.of_lines(&fields);
        }
        fields
    }

    /// A request's head of HTTP/2.
    ///
    /// # Errors
    ///
    /// When the new target is none there.
    pub fn of_parts(&self, parts: &mut Parts) -> Result<(), Unfit> {
        self.fields.of_map(&mut parts.headers);
        let mut uri = std::mem::take(&mut parts.uri).into_parts();
        if let Some(target) = &self.target {
            uri.path_and_query = Some(PathAndQuery::try_from(target.as_slice()).map_err(|_| Unfit)?);
        }
        if let Some(authority) = &self.authority {
            uri.authority = Some(authority.as_slice().try_into().map_err(|_| Unfit)?);
        }
        parts.uri = Uri::from_parts(uri).map_err(|_| Unfit)?;
        Ok(())
    }
}

impl Fields {
    /// What a configuration says without captures.
    pub fn fixed(changes: &HeaderChanges) -> Self {
        let text = |template: &Template| -> String {
            let part = |part: &Part| match part {
                Part::Text(text) => text.clone(),
                Part::Capture(_) => String::new(),
            };
            template.parts().iter().map(part).collect()
        };
        let field = |(name, template): &(String, Template)| {
            let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
            Some((name, HeaderValue::from_str(&text(template)).ok()?))
        };
        let removed = changes.remove.iter().chain(changes.set.iter().map(|(name, _)| name));
        Self::of(Changes {
            removed: removed.filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok()).collect(),
            added: changes.set.iter().chain(&changes.add).filter_map(field).collect(),
        })
    }

    fn of(changes: Changes) -> Self {
        let is_some = !changes.removed.is_empty() || !changes.added.is_empty();
        Self(is_some.then(|| Arc::new(changes)))
    }

    fn changes(&mut self) -> &mut Changes {
        Arc::make_mut(self.0.get_or_insert_default())
    }

    fn removed(&self) -> &[HeaderName] {
        self.0.as_ref().map_or(&[], |changes| &changes.removed)
    }

    fn added(&self) -> &[(HeaderName, HeaderValue)] {
        self.0.as_ref().map_or(&[], |changes| &changes.added)
    }

    /// And whatever there was of this name, there is this.
    pub fn set(self, name: HeaderName, value: HeaderValue) -> Self {
        self.remove(name.clone()).append(name, value)
    }

    /// And this is there, too.
    pub fn append(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.changes().added.push((name, value));
        self
    }

    /// And no field of this name.
    pub fn remove(mut self, name: HeaderName) -> Self {
        let changes = self.changes();
        changes.added.retain(|(added, _)| *added != name);
        changes.removed.push(name);
        self
    }

    /// First this, and then that.
    pub fn then(self, later: Self) -> Self {
        let (mut one, mut other) = match (self.0, later.0) {
            (Some(one), Some(other)) => (one, other),
            (one, other) => return Self(one.or(other)),
        };
        // What is nobody else's takes up the other.
        if let Some(Changes { removed, added }) = Arc::get_mut(&mut other) {
            let kept = one.added.iter().filter(|(name, _)| !removed.contains(name));
            kept.cloned().enumerate().for_each(|(place, field)| added.insert(place, field));
            one.removed.iter().for_each(|name| removed.push(name.clone()));
            return Self(Some(other));
        }
        let Changes { removed, added } = Arc::make_mut(&mut one);
        added.retain(|(name, _)| !other.removed.contains(name));
        removed.extend(other.removed.iter().cloned());
        added.extend(other.added.iter().cloned());
        Self(Some(one))
    }

    /// Whether nothing is changed.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// What makes a head of HTTP/1, of a request or a response, what [`Fields::of_lines`] makes of it, but for the places of its lines;
    /// `None`: a field is added behind others of its name, which takes a new head.
    pub fn edits(&self, head: &[u8]) -> Option<LineEdits> {
        let (removed, added) = (self.removed(), self.added());
        let bytes = |(name, value): &(HeaderName, HeaderValue)| name.as_str().len() + value.len() + b": \r\n".len();
        let mut edits = LineEdits { cuts: SmallVec::new(), insert: Vec::with_capacity(added.iter().map(bytes).sum()) };
        let mut start = memchr(b'\n', head)? + 1;
        while start < head.len() {
            let end = start + memchr(b'\n', &head[start..])? + 1;
            let line = &head[start..end];
            let is = |of: &HeaderName| is_named(line, of.as_str().as_bytes());
            if removed.iter().any(is) {
                edits.cuts.push((start, end));
            } else if added.iter().any(|(of, _)| is(of)) {
                return None;
            }
            start = end;
        }
        for (name, value) in added {
            let line = [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"];
            line.iter().for_each(|part| edits.insert.extend_from_slice(part));
        }
        Some(edits)
    }

    /// A head of HTTP/1 made anew, of a request or a response.
    pub fn of_lines(&self, head: &[u8]) -> Vec<u8> {
        let mut changed = Vec::with_capacity(head.len() + 256);
        let is_removed = |line: &[u8]| {
            let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
            self.removed().iter().any(|removed| removed.as_str().as_bytes().eq_ignore_ascii_case(name))
        };
        for (index, line) in head.split_inclusive(|byte| *byte == b'\n').enumerate() {
            if index > 0 && line == b"\r\n" {
                for (name, value) in self.added() {
                    let field = [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"];
                    field.iter().for_each(|part| changed.extend_from_slice(part));
                }
            }
            if index == 0 || !is_removed(line) {
                changed.extend_from_slice(line);
            }
        }
        changed
    }

    /// The fields of a head of HTTP/2.
    pub fn of_map(&self, headers: &mut HeaderMap) {
        for name in self.removed() {
            headers.remove(name);
        }
        for (name, value) in self.added() {
            // More than the map holds is more than anybody reads.
            let _ = headers.try_append(name.clone(), value.clone());
        }
    }

    /// Fields of an answer that the agent gives.
    pub fn of_list(&self, fields: &mut Vec<(HeaderName, HeaderValue)>) {
        fields.retain(|(name, _)| !self.removed().contains(name));
        fields.extend(self.added().iter().cloned());
    }
}

#[cfg(test)]
mod tests {
    use http::Request as HttpRequest;

    use super::*;
    use crate::config::file;

    const HEAD: &[u8] = b"GET /api/7/x?q=1 HTTP/1.1\r\nHost: a.example:81\r\nX-Old: o\r\nx-old: p\r\nKeep: k\r\n\r\n";

    fn route(text: &str) -> Route {
        let text = format!(
            "services: [{{name: a, address: 10.0.0.1:80, protocol: http, endpoints: [10.0.0.2:80], routes: [{text}]}}]"
        );
        file::parse(&text, "F").unwrap_or_else(|error| panic!("{error}")).services[0].routes[0].clone()
    }

    /// The head of HTTP/1 that a request comes to, and the same of HTTP/2: target, authority, and one field.
    fn changed(text: &str, field: &str) -> Result<(String, [String; 3]), Unfit> {
        let route = route(text);
        let request = Request::of_http1(HEAD, false, 0);
        let lines = match (Taken { route: &route, request: &request }).change()? {
            Some(change) => change.of_lines(HEAD),
            None => HEAD.to_vec(),
        };
        let fields = [("x-old", "o"), ("x-old", "p"), ("keep", "k")];
        let built = HttpRequest::builder().uri("http://a.example:81/api/7/x?q=1");
        let built = fields.iter().fold(built, |built, (name, value)| built.header(*name, *value));
        let mut parts = built.body(()).expect("a request").into_parts().0;
        let before = parts.clone();
        let request = Request::of_parts(&before, false, 0);
        if let Some(change) = (Taken { route: &route, request: &request }).change()? {
            change.of_parts(&mut parts)?;
        }
        let target = parts.uri.path_and_query().expect("a target").to_string();
        let authority = parts.uri.authority().expect("an authority").to_string();
        let values: Vec<&str> = parts.headers.get_all(field).iter().map(|it| it.to_str().expect("text")).collect();
        Ok((String::from_utf8(lines).expect("text"), [target, authority, values.join(",")]))
    }

    #[test]
    fn both_protocols_come_to_the_same_head() {
        for (route, target, host, field, values) in [
            ("{}", "/api/7/x?q=1", "a.example:81", "x-old", "o,p"),
            ("{match: {path: {prefix: /api}}, rewrite: {prefix: /v2}}", "/v2/7/x?q=1", "a.example:81", "keep", "k"),
            ("{match: {path: {prefix: /api}}, rewrite: {prefix: /}}", "/7/x?q=1", "a.example:81", "keep", "k"),
            (
                "{match: {path: {template: '/api/{n}/{m}'}}, rewrite: {path: '/{m}/{n}', host: '{m}.b'}}",
                "/x/7?q=1",
                "x.b",
                "host",
                "",
            ),
            (
                "{rewrite: {regex: {pattern: '^/api/([0-9]+)', substitution: '/n$1'}}}",
                "/n7/x?q=1",
                "a.example:81",
                "keep",
                "k",
            ),
            ("{rewrite: {regex: {pattern: '.*', substitution: z}}}", "/z?q=1", "a.example:81", "keep", "k"),
            ("{request_headers: {set: {X-Old: n}}}", "/api/7/x?q=1", "a.example:81", "x-old", "n"),
            ("{request_headers: {add: {x-old: n}}}", "/api/7/x?q=1", "a.example:81", "x-old", "o,p,n"),
            ("{request_headers: {remove: [x-OLD], add: {y: '{{z}}'}}}", "/api/7/x?q=1", "a.example:81", "y", "{z}"),
            (
                "{match: {host: {regex: '(?P<h>[a-z]+)\\.example'}}, request_headers: {set: {y: '{h}'}}}",
                "/api/7/x?q=1",
                "a.example:81",
                "y",
                "a",
            ),
        ] {
            let (lines, parts) = changed(route, field).unwrap_or_else(|unfit| panic!("{route}: {unfit}"));
            assert_eq!(parts, [target.to_owned(), host.to_owned(), values.to_owned()], "{route}");
            assert!(lines.starts_with(&format!("GET {target} HTTP/1.1\r\n")) && lines.ends_with("\r\n\r\n"), "{lines}");
            let of = |wanted: &str| -> Vec<String> {
                let named = lines.lines().filter_map(|line| line.split_once(": "));
                named.filter(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.to_owned()).collect()
            };
            assert_eq!(of("host"), [host], "{lines}");
            if field != "host" {
                assert_eq!(of(field).join(","), values, "{lines}");
            }
        }
    }

    #[test]
    fn what_no_head_can_hold_is_unfit() {
        let named = |path: &str, to: &str| {
            let route = route(&format!("{{match: {{path: {{regex: '/(?P<x>.*)'}}}}, {to}}}"));
            let head = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
            let request = Request::of_http1(head.as_bytes(), false, 0);
            (Taken { route: &route, request: &request }).change().is_ok()
        };
        for (path, to, fits) in [
            ("/b", "rewrite: {host: '{x}'}", true),
            ("/", "rewrite: {host: '{x}'}", false),
            ("/b/c", "rewrite: {host: '{x}'}", false),
            ("/u@b", "rewrite: {host: '{x}'}", false),
            ("/b#c", "rewrite: {path: '/{x}'}", false),
            ("/b%23c", "rewrite: {path: '/{x}'}", true),
            ("/b", "request_headers: {set: {y: '{x}'}}", true),
            ("/b\u{1}", "request_headers: {set: {y: '{x}'}}", false),
        ] {
            assert_eq!(named(path, to), fits, "{path:?} {to}");
        }
        let long = format!("/{}", "x".repeat(40_000));
        assert!(named(&long, "rewrite: {path: '/{x}'}") && !named(&long, "rewrite: {path: '/{x}{x}'}"));
    }

    #[test]
    fn a_client_is_sent_where_the_route_says() {
        for (redirect, expected) in [
            ("scheme: https", "https://a.example/api/7/x?q=1"),
            ("scheme: https, port: 8443", "https://a.example:8443/api/7/x?q=1"),
            ("port: 80", "http://a.example/api/7/x?q=1"),
            ("host: b", "http://b/api/7/x?q=1"),
            ("path: /y", "http://a.example:81/y?q=1"),
            ("path: /y, strip_query: on", "http://a.example:81/y"),
            ("strip_query: on", "http://a.example:81/api/7/x"),
            ("regex: {pattern: '7', substitution: '8'}", "http://a.example:81/api/8/x?q=1"),
        ] {
            let route = route(&format!("{{redirect: {{{redirect}}}}}"));
            let request = Request::of_http1(HEAD, false, 0);
            let Action::Redirect(to) = &route.action else { panic!("{route:?}") };
            let location = (Taken { route: &route, request: &request }).location(to).expect("fit");
            assert_eq!(String::from_utf8_lossy(&location), expected, "{redirect}");
        }
    }

    #[test]
    fn changes_one_after_the_other_are_one_change() {
        let name = HeaderName::from_static;
        let value = HeaderValue::from_static;
        let first = || Fields::default().set(name("a"), value("1")).append(name("b"), value("1")).remove(name("c"));
        let second =
            || Fields::default().append(name("a"), value("2")).set(name("b"), value("2")).append(name("c"), value("2"));
        let head = b"HTTP/1.1 200 OK\r\na: 0\r\nb: 0\r\nc: 0\r\nd: 0\r\n\r\n";
        for (one, other) in [(first(), second()), (second(), first()), (first(), Fields::default())] {
            let both = other.of_lines(&one.of_lines(head));
            // Whether anybody else has them or not.
            assert_eq!(one.clone().then(other.clone()).of_lines(head), both);
            assert_eq!(one.then(other).of_lines(head), both);
        }
    }

    #[test]
    fn a_head_is_changed_where_it_stands_to_what_it_would_be_made_anew() {
        let (name, value) = (HeaderName::from_static, HeaderValue::from_static);
        let head: &[u8] = b"GET /a:b HTTP/1.1\r\nHost: a:1\r\nX-Old: o\r\nkeep: k\r\nx-OLD: p\r\n\r\n";
        let edited = |edits: &LineEdits| {
            let mut lines = head.to_vec();
            edits.cuts.iter().rev().for_each(|(from, to)| drop(lines.drain(*from..*to)));
            lines.splice(19..19, edits.insert.iter().copied());
            lines
        };
        let sorted = |lines: &[u8]| {
            let mut lines: Vec<Vec<u8>> = lines.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
            lines[1..].sort();
            lines
        };
        for (fields, stays) in [
            (Fields::default(), true),
            (Fields::default().set(name("x-old"), value("n")), true),
            (Fields::default().remove(name("x-old")).append(name("y"), value("1")).append(name("y"), value("2")), true),
            (Fields::default().set(name("host"), value("b")).remove(name("keep")), true),
            // Behind the others of its name, where its place says something.
            (Fields::default().append(name("x-old"), value("n")), false),
        ] {
            let edits = fields.edits(head);
            assert_eq!(edits.is_some(), stays, "{fields:?}");
            if let Some(edits) = edits {
                assert_eq!(sorted(&edited(&edits)), sorted(&fields.of_lines(head)), "{fields:?}");
            }
        }
    }

    #[test]
    fn an_answers_fields_are_changed_alike_wherever_they_stand() {
        let route = route("{response_headers: {set: {a: '1'}, add: {b: '2'}, remove: [c]}}");
        let request = Request::of_http1(HEAD, false, 0);
        let fields = (Taken { route: &route, request: &request }).response_change().unwrap().expect("some");
        let lines = fields.of_lines(b"HTTP/1.1 200 OK\r\nA: 0\r\nB: 1\r\nC: 2\r\nD: 3\r\n\r\n");
        assert_eq!(lines, b"HTTP/1.1 200 OK\r\nB: 1\r\nD: 3\r\na: 1\r\nb: 2\r\n\r\n");
        let value = HeaderValue::from_static;
        let before = [("a", "0"), ("b", "1"), ("c", "2"), ("d", "3")]
            .map(|(name, text)| (HeaderName::from_static(name), value(text)));
        let mut list = before.to_vec();
        fields.of_list(&mut list);
        let told: Vec<String> =
            list.iter().map(|(name, value)| format!("{name}={}", value.to_str().unwrap())).collect();
        assert_eq!(told, ["b=1", "d=3", "a=1", "b=2"]);
        let mut map: HeaderMap = before.into_iter().collect();
        fields.of_map(&mut map);
        assert_eq!((map.get("a"), map.get_all("b").iter().count()), (Some(&value("1")), 2));
        assert!(!map.contains_key("c") && map.contains_key("d"));
    }
}
