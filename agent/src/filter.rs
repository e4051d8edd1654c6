//! What requests and responses pass between their route and their endpoint: the members of a service's chain, each of which judges a request's
//! head and says what is changed of it and of its response, or what it is answered here.
//!
//! Requests pass the chain in the order of the configuration; each filter sees what those before it have changed. What a filter changes of the
//! response is done in reverse: the first filter has the last word. A request that a filter answers goes no further, and of that answer the
//! filters before it change what they would change of any.
//!
//! # To add one
//!
//! 1. Its words: a variant of [`crate::config::filter::Kind`], read and shown in `config/file/filter.rs`, which also says what is wrong and what
//!    to write instead.
//! 2. What it may do with a request, for metrics: [`crate::cluster::Outcome`], and which of them it has, in `Outcome::of`.
//! 3. The judge: a file here, a type with [`Filter`], and its arm in [`of`]. It gets the head, time and chance as arguments and reads nothing of
//!    the world. Its table of cases stands at the end of the file.
//!    What takes longer than a worker may wait, a password's hash for example, it gives back as [`Work`].
//! 4. If heads do not suffice, a [`Duty`]: what the corridor is to do with a body. It is done in `proxy/filtered`, and only for requests whose
//!    filters ask for it.
//!    What is done with the body of an answer is a step of `proxy/content`: it takes an answer and gives another, whose body is made piece by
//!    piece of the first one's. Steps are taken in reverse order, as all that is done with responses: a cache in front of compression keeps
//!    what is compressed already, and behind it, what is not. Who may ask must be found out before a cache is asked.
//! 5. A line in the README's table and in `deploy/default.yaml`, and a test with real clients in `tests/filters.rs`.

mod access;
mod api_key;
mod basic;
mod body_limit;
pub mod cache;
pub mod compress;
mod cors;
mod external_auth;
mod fault;
mod headers;
mod jwt;
mod request_id;

pub use self::body_limit::too_long;

use std::{
    fmt::{self, Debug},
    time::Duration,
};

use http::{HeaderName, HeaderValue};
use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

use crate::{
    cluster::{FilterState, Outcome},
    config::filter::{Direction, Kind},
    route::{Fields, Request},
};

/// A member of a chain.
pub trait Filter: Debug {
    /// What becomes of a request.
    fn judge(&self, request: &Request<'_>, given: &Given<'_>) -> Verdict;

    /// What becomes of one that another service was asked about; `None`: it has not answered.
    fn heard(&self, _answered: Option<Answered>) -> Verdict {
        Verdict::pass(Outcome::Passed)
    }
}

/// What another service has answered.
#[derive(Debug)]
pub struct Answered {
    /// Its head.
    pub head: http::response::Parts,
    /// The beginning of its body.
    pub body: Vec<u8>,
}

/// What a judge may ask for.
#[derive(Clone, Copy)]
pub struct Given<'g> {
    /// 64 random bits.
    pub chance: &'g dyn Fn() -> u64,
    /// The time since 1970.
    pub now: &'g dyn Fn() -> Duration,
}

/// What becomes of a request.
#[derive(Debug)]
pub struct Verdict {
    /// As what it is counted.
    pub outcome: Outcome,
    /// What is changed of the request.
    pub request: Fields,
    /// What is changed of its response.
    pub response: Fields,
    /// It goes no further: it is answered.
    pub end: Option<Local>,
    /// What is to be done with a body.
    pub duty: Option<Duty>,
    /// What goes wrong on purpose, once limits and breakers have let the request in: as if its endpoint had done it.
    pub mishap: Option<Box<Mishap>>,
    /// What takes so long to work out that no worker waits for it; its verdict stands for this one.
    pub work: Option<Work>,
    /// What another service is asked, as the head of a request of HTTP/1; what is made of its answer stands for this one.
    pub question: Option<Vec<u8>>,
}

/// The rest of a judgement, to be worked out beside the workers.
pub struct Work(Box<dyn FnOnce() -> Verdict + Send>);

impl Work {
    /// Of what gives the verdict.
    pub fn new(work: impl FnOnce() -> Verdict + Send + 'static) -> Self {
        Self(Box::new(work))
    }

    /// Works it out.
    pub fn done(self) -> Verdict {
        (self.0)()
    }
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Work")
    }
}

/// What a request suffers in its endpoint's stead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mishap {
    /// It goes on after this.
    pub wait: Duration,
    /// It goes no further.
    pub end: Option<End>,
}

impl Mishap {
    /// This one, and another behind it: both delays, and whichever ends it first.
    pub fn then(self, next: Self) -> Self {
        match self.end {
            Some(_) => self,
            None => Self { wait: self.wait + next.wait, end: next.end },
        }
    }
}

/// How a request ends on purpose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It is answered.
    Answer(Local),
    /// Its connection, or its stream, is reset.
    Reset,
}

/// An answer of the filter's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// Its status.
    pub status: u16,
    /// What a gRPC caller is told, if that does not follow from the status.
    pub grpc: Option<u8>,
    /// Why, for a person; may be empty.
    pub text: String,
    /// Fields beside the usual ones.
    pub fields: Vec<(HeaderName, HeaderValue)>,
}

/// What is to be done with a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Duty {
    /// A request with more bytes than this is refused.
    BodyMax(u64),
    /// The answer is taken from a cache, or kept there.
    Cache(cache::Ask),
    /// The answer is compressed.
    Compress(compress::Order),
    /// These bodies go no faster than this, in bytes a second.
    Bandwidth(u32, Direction),
}

impl Verdict {
    /// It goes on as it is.
    pub fn pass(outcome: Outcome) -> Self {
        Self {
            outcome,
            request: Fields::default(),
            response: Fields::default(),
            end: None,
            duty: None,
            mishap: None,
            work: None,
            question: None,
        }
    }

    /// Whether it takes time until the request goes on, or may.
    pub fn waits(&self) -> bool {
        let looks = matches!(self.duty, Some(Duty::Cache(cache::Ask::Look(_))));
        looks || self.work.is_some() || self.question.is_some()
    }

    /// It is answered here.
    pub fn answer(outcome: Outcome, local: Local) -> Self {
        Self { end: Some(local), ..Self::pass(outcome) }
    }

    /// It is refused, and its client is told why.
    pub fn refuse(status: u16, why: &str) -> Self {
        Self::answer(Outcome::Refused, Local::because(status, why))
    }
}

impl Local {
    /// One that says why.
    pub fn because(status: u16, why: &str) -> Self {
        Self { status, grpc: None, text: format!("sockway: {why}\n"), fields: Vec::new() }
    }
}

/// Of what is known of a filter.
pub fn of(state: &FilterState) -> Box<dyn Filter> {
    match &state.config.kind {
        Kind::Headers(headers) => Box::new(headers::Headers::new(headers)),
        Kind::RequestId(id) => Box::new(request_id::RequestId::new(id)),
        Kind::Cors(cors) => Box::new(cors::Cors::new(cors.clone())),
        Kind::Access(access) => Box::new(access::Access::new(access.clone())),
        Kind::BodyLimit(bytes_max) => Box::new(body_limit::BodyLimit { bytes_max: *bytes_max }),
        Kind::ApiKey(key) => Box::new(api_key::ApiKey::new(key.clone())),
        Kind::Basic(basic) => Box::new(basic::Basic::new(basic.clone())),
        Kind::Jwt(jwt) => Box::new(jwt::Jwt::new(jwt.clone(), state.fetched.clone())),
        Kind::External(external) => Box::new(external_auth::ExternalAuth::new(external.clone())),
        Kind::Cache(cache) => Box::new(cache::Cache::new(cache.clone())),
        Kind::Compress(compress) => Box::new(compress::Compress::new(compress)),
        Kind::Fault(fault) => Box::new(fault::Faulty::new(fault.clone())),
    }
}

/// SHA-256 of these, one behind the other.
fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    parts.iter().for_each(|part| context.update(part));
    context.finish().as_ref().try_into().unwrap_or_default()
}

/// SHA-1, in which some files have passwords.
fn sha1(bytes: &[u8]) -> [u8; 20] {
    ring::digest::digest(&SHA1_FOR_LEGACY_USE_ONLY, bytes).as_ref().try_into().unwrap_or_default()
}

/// A text as a field's value; what no field can hold is nothing.
fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The verdict on a head of HTTP/1, without its empty line, with this chance and at this time.
    pub fn judged(filter: &dyn Filter, head: &str, chance: u64, now: Duration) -> Verdict {
        let head = format!("{}\r\nHost: a\r\n\r\n", head.trim_end());
        let request = Request::of_http1(head.as_bytes(), false, 0);
        filter.judge(&request, &Given { chance: &|| chance, now: &|| now })
    }

    /// What is left of a head with nothing but these lines.
    pub fn changed(fields: &Fields, lines: &str) -> String {
        let head = fields.of_lines(format!("HTTP/1.1 200 OK\r\n{lines}\r\n").as_bytes());
        String::from_utf8(head).expect("a text").replace("HTTP/1.1 200 OK\r\n", "").trim_end().replace("\r\n", "|")
    }
}
