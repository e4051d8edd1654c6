//! Which route of a service a request takes. The most specific one that matches, by the precedence of the Kubernetes Gateway API
//! (HTTPRouteRule, "matches"): an exact host, the longest suffix, an expression, any; then an exact path, a template, an expression, the
//! longest prefix; then a method; then the most fields; then the most parameters and cookies; then the file's order.
//!
//! Prepared so that a request looks only at routes whose host and path fit: hosts and paths are found by hashing, templates in a tree.
//! Expressions are tried one after the other.

#[cfg(test)]
mod tests;

use std::{cmp::Reverse, iter};

use memchr::{memchr_iter, memrchr_iter};

use super::{
    Request, caller,
    tree::Tree,
    words::{Lengths, Map},
};
use crate::config::route::{GrpcMatch, HostMatch, Match, PathMatch, Route, Segment, TextMatch};

/// No host is longer (RFC 1035 section 2.3.4).
const HOST_BYTES_MAX: usize = 255;

/// The routes of one service, prepared.
#[derive(Debug, Default)]
pub struct Table {
    exact: Map<Paths>,
    /// Without the first dot.
    suffixes: Map<Paths>,
    exact_lengths: Lengths,
    suffix_lengths: Lengths,
    /// Each an own group: expressions, then whatever comes.
    others: Vec<(Option<usize>, Paths)>,
    /// Of each route, how many come before it.
    ranks: Vec<u32>,
}

/// Routes of one host, by path; in every list the most specific first.
#[derive(Debug, Default)]
struct Paths {
    exact: Map<Vec<usize>>,
    exact_lengths: Lengths,
    templates: Tree,
    regexes: Vec<usize>,
    prefixes: Map<Vec<usize>>,
    prefix_lengths: Lengths,
    any: Vec<usize>,
}

/// Where a route stands among the others: the least comes first.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    host: (u8, Reverse<usize>, String),
    path: (u8, Reverse<usize>),
    has_no_method: bool,
    headers: Reverse<usize>,
    query: Reverse<usize>,
}

impl Rank {
    fn of(route: &Match) -> Self {
        let host = match &route.host {
            Some(HostMatch::Exact(host)) => (0, host.as_str()),
            Some(HostMatch::Suffix(suffix)) => (1, suffix.as_str()),
            Some(HostMatch::Regex(expression)) => (2, expression.as_str()),
            None => (3, ""),
        };
        let path = match &as_path(route) {
            Some(PathMatch::Exact(_)) => (0, 0),
            Some(PathMatch::Template(segments)) => (1, literal_bytes(segments)),
            Some(PathMatch::Regex(expression)) => (2, expression.as_str().len()),
            Some(PathMatch::Prefix(prefix)) => (3, prefix.len()),
            None => (4, 0),
        };
        Self {
            host: (host.0, Reverse(host.1.len()), host.1.to_owned()),
            path: (path.0, Reverse(path.1)),
            has_no_method: route.methods.is_empty(),
            headers: Reverse(
                route.headers.len() + usize::from(route.grpc.is_some()) + usize::from(route.caller.is_some()),
            ),
            query: Reverse(route.query.len() + route.cookies.len()),
        }
    }
}

fn literal_bytes(segments: &[Segment]) -> usize {
    let bytes = |segment: &Segment| match segment {
        Segment::Literal(text) => text.len() + 1,
        Segment::Named(_) => 1,
    };
    segments.iter().map(bytes).sum()
}

/// What a route says of the path; a gRPC call has its service and method there.
fn as_path(route: &Match) -> Option<PathMatch> {
    match &route.grpc {
        Some(GrpcMatch { service: Some(service), method: Some(method) }) => {
            Some(PathMatch::Exact(format!("/{service}/{method}")))
        }
        Some(GrpcMatch { service: Some(service), method: None }) => Some(PathMatch::Prefix(format!("/{service}"))),
        _ => route.path.clone(),
    }
}

impl Table {
    /// Of these routes, which it calls by their places.
    pub fn new(routes: &[Route]) -> Self {
        let mut order: Vec<usize> = (0..routes.len()).collect();
        order.sort_by_cached_key(|index| Rank::of(&routes[*index].matches));
        let mut table = Self { ranks: vec![0; routes.len()], ..Self::default() };
        for (rank, index) in (0..).zip(order) {
            table.ranks[index] = rank;
            let matches = &routes[index].matches;
            table.paths(matches, index, routes).add(as_path(matches), index);
        }
        table
    }

    /// The group that a route is in; those that match by an expression are grouped by it.
    fn paths(&mut self, matches: &Match, index: usize, routes: &[Route]) -> &mut Paths {
        match &matches.host {
            Some(HostMatch::Exact(host)) => {
                self.exact_lengths.add(host.len());
                self.exact.entry(host.as_bytes().into()).or_default()
            }
            Some(HostMatch::Suffix(suffix)) => {
                let suffix = &suffix.as_bytes()[1..];
                self.suffix_lengths.add(suffix.len());
                self.suffixes.entry(suffix.into()).or_default()
            }
            other => {
                let is_same = |first: &Option<usize>| {
                    first.and_then(|first| routes[first].matches.host.as_ref()) == other.as_ref()
                };
                let place = self.others.iter().position(|(first, _)| is_same(first)).unwrap_or_else(|| {
                    self.others.push((other.as_ref().map(|_| index), Paths::default()));
                    self.others.len() - 1
                });
                &mut self.others[place].1
            }
        }
    }

    /// The place of the route that a request takes, among those that the table was made of.
    pub fn find(&self, routes: &[Route], request: &Request<'_>) -> Option<usize> {
        let find = |paths: &Paths| paths.find(routes, &self.ranks, request);
        if let Some(found) = self.by_host(request, find) {
            return Some(found);
        }
        let fits = |first: &Option<usize>| match first.map(|first| &routes[first].matches.host) {
            Some(Some(HostMatch::Regex(expression))) => expression.regex().is_match(request.host()),
            _ => true,
        };
        self.others.iter().filter(|(first, _)| fits(first)).find_map(|(_, paths)| find(paths))
    }

    /// Among those for exact hosts and for suffixes.
    fn by_host(&self, request: &Request<'_>, find: impl Fn(&Paths) -> Option<usize>) -> Option<usize> {
        if self.exact.is_empty() && self.suffixes.is_empty() {
            return None;
        }
        let mut lower;
        let mut host = request.host();
        if host.iter().any(u8::is_ascii_uppercase) {
            lower = [0; HOST_BYTES_MAX];
            let copy = lower.get_mut(..host.len())?;
            copy.copy_from_slice(host);
            copy.make_ascii_lowercase();
            host = copy;
        }
        let exact = || self.exact.get(host).and_then(&find);
        self.exact_lengths.has(host.len()).then(exact).flatten().or_else(|| self.by_suffix(host, &find))
    }

    /// The longest suffix first.
    fn by_suffix(&self, host: &[u8], find: impl Fn(&Paths) -> Option<usize>) -> Option<usize> {
        if self.suffixes.is_empty() {
            return None;
        }
        let behind = memchr_iter(b'.', host).filter(|at| *at > 0).map(|at| &host[at + 1..]);
        let known = behind.filter(|suffix| self.suffix_lengths.has(suffix.len()));
        known.filter_map(|suffix| self.suffixes.get(suffix)).find_map(find)
    }
}

impl Paths {
    fn add(&mut self, path: Option<PathMatch>, index: usize) {
        match path {
            Some(PathMatch::Exact(path)) => {
                self.exact_lengths.add(path.len());
                self.exact.entry(path.as_bytes().into()).or_default().push(index);
            }
            Some(PathMatch::Template(segments)) => self.templates.add(&segments, index),
            Some(PathMatch::Regex(_)) => self.regexes.push(index),
            Some(PathMatch::Prefix(prefix)) => {
                self.prefix_lengths.add(prefix.len());
                self.prefixes.entry(prefix.as_bytes().into()).or_default().push(index);
            }
            None => self.any.push(index),
        }
    }

    fn find(&self, routes: &[Route], ranks: &[u32], request: &Request<'_>) -> Option<usize> {
        let holds = |index: &&usize| holds(&routes[**index].matches, request);
        let first = |list: &Vec<usize>| list.iter().find(holds).copied();
        let fits = |index: &&usize| match &routes[**index].matches.path {
            Some(PathMatch::Regex(expression)) => expression.regex().is_match(request.path),
            _ => false,
        };
        let by_path = || self.exact.get(request.path).and_then(first);
        let exact = || self.exact_lengths.has(request.path.len()).then(by_path).flatten();
        let template = || {
            let mut best: Option<usize> = None;
            self.templates.each(request.path, &mut |index| {
                if best.is_none_or(|best| ranks[index] < ranks[best]) && holds(&&index) {
                    best = Some(index);
                }
            });
            best
        };
        exact()
            .or_else(template)
            .or_else(|| self.regexes.iter().filter(fits).find(holds).copied())
            .or_else(|| self.by_prefix(request.path, first))
            .or_else(|| first(&self.any))
    }

    /// The longest prefix first.
    fn by_prefix(&self, path: &[u8], first: impl Fn(&Vec<usize>) -> Option<usize>) -> Option<usize> {
        if self.prefixes.is_empty() {
            return None;
        }
        let ends = iter::once(path.len()).chain(memrchr_iter(b'/', path));
        let ends = ends.filter(|end| self.prefix_lengths.has(*end) && path.starts_with(b"/"));
        ends.filter_map(|end| self.prefixes.get(&path[..end])).find_map(first)
    }
}

/// Whether what a route says beside host and path is true of a request.
fn holds(route: &Match, request: &Request<'_>) -> bool {
    (route.methods.is_empty() || route.methods.iter().any(|method| method.as_bytes() == request.method))
        && route.headers.iter().all(|(name, text)| is_among(text, request.headers(name)))
        && route.query.iter().all(|(name, text)| is_among(text, request.parameters(name)))
        && route.cookies.iter().all(|(name, text)| is_among(text, request.cookies(name)))
        && route.grpc.as_ref().is_none_or(|grpc| is_call(grpc, request))
        && route.caller.as_ref().is_none_or(|wanted| caller::is(wanted, request.dialler))
}

fn is_call(grpc: &GrpcMatch, request: &Request<'_>) -> bool {
    let is = |said: &Option<String>, found: &[u8]| said.as_ref().is_none_or(|said| said.as_bytes() == found);
    request.grpc().is_some_and(|(service, method)| is(&grpc.service, service) && is(&grpc.method, method))
}

/// Whether one of these values fits.
fn is_among<'v>(text: &TextMatch, mut values: impl Iterator<Item = &'v [u8]>) -> bool {
    match text {
        TextMatch::Exact(text) => values.any(|value| value == text.as_bytes()),
        TextMatch::Prefix(text) => values.any(|value| value.starts_with(text.as_bytes())),
        TextMatch::Suffix(text) => values.any(|value| value.ends_with(text.as_bytes())),
        TextMatch::Regex(expression) => values.any(|value| expression.regex().is_match(value)),
        TextMatch::Present => values.next().is_some(),
        TextMatch::Absent => values.next().is_none(),
    }
}
