//! Answers that are kept and given again: what RFC 9111 says of it, for a cache that many share.
//!
//! Here it is judged: whether a request may be answered with what is kept, what is asked of the endpoint otherwise, whether its answer may be kept,
//! and for how long. It is found and kept by [`crate::cluster::cache`], and the corridor does what is said here.
//!
//! The crate that does the same, `http-cache-semantics` (3.0), was looked at and left out: in its shared mode it takes `proxy-revalidate` for
//! `max-age=0`, gives what is stale by `s-maxage` to who sends `max-stale`, measures no age by `Date`, puts its own `Date` into what it gives, sees
//! the first line of `Vary` and of fields that `Vary` names, and copies and reads all fields of both messages again for each request.

mod conditions;
mod directives;
mod policy;

pub use self::{
    conditions::{Conditions, holds},
    directives::forbids_change,
    policy::{
        Reuse, answer_age, conditional, kept, may_stand_in, merged, not_modified, reuse, rules, seconds, selecting,
        tells_of,
    },
};

use http::HeaderName;

use self::directives::Directives;
use super::{Duty, Filter, Given, Local, Verdict};
use crate::{cluster::Outcome, config::filter::content, route::Request};

/// See the module.
#[derive(Debug)]
pub(super) struct Cache {
    config: content::Cache,
}

/// What the cache is to do for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Answer it, or keep what it is answered.
    Look(Box<Look>),
    /// Forget what is kept of it once it is answered: it may change that (RFC 9111 section 4.4).
    Forget(Vec<u8>),
}

/// A request that may be answered with what is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// What it is for.
    pub key: Vec<u8>,
    /// It wants the head alone.
    pub is_head: bool,
    /// What the client has already.
    pub conditions: Conditions,
    /// What it says of caching.
    directives: Directives,
    /// It says who asks.
    is_authorized: bool,
    /// What is to be done, as it is configured.
    pub config: content::Cache,
}

impl Look {
    /// It is to be answered without asking anybody.
    pub fn is_only_if_cached(&self) -> bool {
        self.directives.only_if_cached
    }

    /// Who asks wants nothing that was there before.
    pub fn asks_anew(&self) -> bool {
        self.directives.no_cache
    }
}

impl Cache {
    pub(super) fn new(config: content::Cache) -> Self {
        Self { config }
    }
}

impl Filter for Cache {
    fn judge(&self, request: &Request<'_>, _: &Given<'_>) -> Verdict {
        // RFC 9110 section 9.2.1: who only asks changes nothing.
        let (is_get, is_head) = (request.method == b"GET", request.method == b"HEAD");
        if !is_get && !is_head {
            let is_safe = matches!(request.method, b"OPTIONS" | b"TRACE" | b"CONNECT");
            let duty = (!is_safe && request.grpc().is_none()).then(|| Duty::Cache(Ask::Forget(key(request))));
            return Verdict { duty, ..Verdict::pass(Outcome::Passed) };
        }
        let directives = Directives::of_request(request);
        // What is not looked at here goes to the endpoint as it is, and its answer back.
        let goes_by = ["range", "if-range", "if-match", "if-unmodified-since", "upgrade"];
        if directives.no_store || goes_by.iter().any(|name| request.header(name).is_some()) || has_body(request) {
            return Verdict::pass(Outcome::Passed);
        }
        let look = Look {
            key: key(request),
            is_head,
            conditions: Conditions::of(request),
            directives,
            is_authorized: request.header("authorization").is_some(),
            config: self.config.clone(),
        };
        // What it comes to is counted when that is known.
        Verdict { duty: Some(Duty::Cache(Ask::Look(Box::new(look)))), ..Verdict::pass(Outcome::Passed) }
    }
}

/// What a request is for. GET and HEAD have the same.
fn key(request: &Request<'_>) -> Vec<u8> {
    let authority = request.authority().to_ascii_lowercase();
    let mut key = [request.scheme().as_bytes(), b"://", &authority, request.path].concat();
    if let Some(query) = request.query {
        key.push(b'?');
        key.extend_from_slice(query);
    }
    key
}

/// The key of what a field of an answer names, if that is of the same server (RFC 9111 section 4.4).
pub fn key_of(named: &[u8], asked: &[u8]) -> Option<Vec<u8>> {
    let named = named.split(|byte| *byte == b'#').next().unwrap_or_default();
    let scheme = asked.windows(3).position(|at| at == b"://")? + 3;
    let path = scheme + asked[scheme..].iter().position(|byte| *byte == b'/').unwrap_or(asked.len() - scheme);
    let (server, here) = asked.split_at(path);
    if named.starts_with(b"/") && !named.starts_with(b"//") {
        return Some([server, named].concat());
    }
    if named.windows(3).any(|at| at == b"://") {
        let is_here = named.get(..server.len())?.eq_ignore_ascii_case(server);
        let rest = &named[server.len()..];
        return (is_here && (rest.is_empty() || rest[0] == b'/')).then(|| [server, rest].concat());
    }
    if named.is_empty() || named.starts_with(b"//") {
        return None;
    }
    // Beside what was asked for (RFC 3986 section 5.2), but for dots.
    let here = here.split(|byte| *byte == b'?').next().unwrap_or_default();
    let folder = here.iter().rposition(|byte| *byte == b'/').map_or(&b"/"[..], |slash| &here[..=slash]);
    Some([server, folder, named].concat())
}

/// What is asked for only if it is there, and is not.
pub fn not_there() -> Local {
    Local::because(504, "nothing is kept that answers this, and the endpoint is not to be asked")
}

/// Whether a body comes with it, as far as its head says.
fn has_body(request: &Request<'_>) -> bool {
    request.header("transfer-encoding").is_some()
        || request.header("content-length").is_some_and(|length| length != b"0")
}

/// All values of a field as one, as they are compared (RFC 9111 section 4.1): lists may be broken into lines anywhere, and blanks around commas
/// say nothing.
fn joined<'v>(values: impl Iterator<Item = &'v [u8]>) -> Option<Vec<u8>> {
    let mut all: Option<Vec<u8>> = None;
    for part in values.flat_map(|value| value.split(|byte| *byte == b',')) {
        match &mut all {
            None => all = Some(part.trim_ascii().to_vec()),
            Some(all) => {
                all.push(b',');
                all.extend_from_slice(part.trim_ascii());
            }
        }
    }
    all
}

/// What a request says in a field, as it is compared.
pub fn said<'n>(request: &Request<'n>, name: &'n HeaderName) -> Option<Vec<u8>> {
    joined(request.headers(name.as_str()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::filter::tests::judged;

    fn cache() -> Cache {
        Cache {
            config: content::Cache {
                bytes_max: 1,
                entry_bytes_max: 1,
                heuristic_percent: 0,
                heuristic_max: Duration::ZERO,
                stale_if_error: Duration::ZERO,
                stale_while_revalidate: Duration::ZERO,
                wait: Duration::ZERO,
                responds: true,
            },
        }
    }

    #[test]
    fn what_is_asked_for_is_looked_up_and_what_is_changed_is_forgotten() {
        for (head, expected) in [
            ("GET /x?y HTTP/1.1", Some(true)),
            ("HEAD /x?y HTTP/1.1", Some(true)),
            ("POST /x?y HTTP/1.1", Some(false)),
            ("DELETE /x?y HTTP/1.1", Some(false)),
            ("OPTIONS /x?y HTTP/1.1", None),
            ("GET /x?y HTTP/1.1\r\nRange: bytes=0-1", None),
            ("GET /x?y HTTP/1.1\r\nIf-Match: \"a\"", None),
            ("GET /x?y HTTP/1.1\r\nCache-Control: no-store", None),
            ("GET /x?y HTTP/1.1\r\nContent-Length: 5", None),
            ("GET /x?y HTTP/1.1\r\nUpgrade: websocket", None),
        ] {
            let verdict = judged(&cache(), head, 0, Duration::ZERO);
            assert!(verdict.end.is_none());
            let (looks, key) = match verdict.duty {
                Some(Duty::Cache(Ask::Look(look))) => (Some(true), look.key),
                Some(Duty::Cache(Ask::Forget(key))) => (Some(false), key),
                _ => (None, b"http://a/x?y".to_vec()),
            };
            assert_eq!((looks, key.as_slice()), (expected, &b"http://a/x?y"[..]), "{head}");
        }
    }

    #[test]
    fn only_what_is_of_the_same_server_is_forgotten_with_it() {
        for (named, expected) in [
            ("/z", Some("http://a:1/z")),
            ("z?q#f", Some("http://a:1/x/z?q")),
            ("http://A:1/z", Some("http://a:1/z")),
            ("http://b/z", None),
            ("http://a:12/z", None),
            ("//b/z", None),
            ("", None),
        ] {
            let key = key_of(named.as_bytes(), b"http://a:1/x/y?w");
            assert_eq!(key.as_deref(), expected.map(str::as_bytes), "{named}");
        }
    }
}
