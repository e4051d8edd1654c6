//! What a route makes of a head: captures, a new target, fields set, added and removed, in either protocol.

use http::{HeaderMap, HeaderName, HeaderValue, Uri, header::HOST, request::Parts, uri::PathAndQuery};

use super::Request;
use crate::config::route::{
    Action, HeaderChanges, HostMatch, Part, PathChange, PathMatch, Redirect, Rewrite, Route, Segment, Template,
};

/// Longest path or value that a template may come to: as long as the longest head by default.
const BYTES_MAX: usize = 64 * 1024;

/// What is changed of a head, names in lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields {
    removed: Vec<HeaderName>,
    added: Vec<(HeaderName, HeaderValue)>,
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
                request.authority[request.host().len()..].strip_prefix(b":").unwrap_or_default().to_vec()
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
        Ok(Fields {
            removed: changes.remove.iter().chain(set).map(|of| name(of)).collect::<Result<_, Unfit>>()?,
            added: changes.set.iter().chain(&changes.add).map(field).collect::<Result<_, Unfit>>()?,
        })
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
            let host = Fields {
                removed: vec![HOST],
                added: HeaderValue::from_bytes(authority).map(|value| (HOST, value)).into_iter().collect(),
            };
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
    /// A head of HTTP/1 made anew, of a request or a response.
    pub fn of_lines(&self, head: &[u8]) -> Vec<u8> {
        let mut changed = Vec::with_capacity(head.len() + 256);
        let is_removed = |line: &[u8]| {
            let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
            self.removed.iter().any(|removed| removed.as_str().as_bytes().eq_ignore_ascii_case(name))
        };
        for (index, line) in head.split_inclusive(|byte| *byte == b'\n').enumerate() {
            if index > 0 && line == b"\r\n" {
                for (name, value) in &self.added {
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
        for name in &self.removed {
            headers.remove(name);
        }
        for (name, value) in &self.added {
            // More than the map holds is more than anybody reads.
            let _ = headers.try_append(name.clone(), value.clone());
        }
    }

    /// Fields of an answer that the agent gives.
    pub fn of_list(&self, fields: &mut Vec<(HeaderName, HeaderValue)>) {
        fields.retain(|(name, _)| !self.removed.contains(name));
        fields.extend(self.added.iter().cloned());
    }
}
