//! What requests and responses of a service pass on their way: an ordered chain, each member with its own words.

pub mod content;
pub mod identity;

use std::time::Duration;

use self::{
    content::{Cache, Compress},
    identity::{ApiKey, Basic, Jwt},
};
use super::{
    capture::Cidr,
    route::{CallerMatch, Expression, HeaderChanges, Match},
};

/// Most filters of one service: each is asked for each request.
pub const FILTERS_MAX: usize = 32;

/// One filter. Requests pass the chain in order, responses in reverse.
#[derive(Clone, Debug, PartialEq)]
pub struct Filter {
    /// Unique within the service; what metrics call it.
    pub name: String,
    /// The requests that it is for; `None`: all.
    pub matches: Option<Match>,
    /// What it does.
    pub kind: Kind,
}

impl Filter {
    /// Whether it asks for the cgroup of who calls.
    pub fn asks_cgroup(&self) -> bool {
        let of_scope = self.matches.as_ref().and_then(|matches| matches.caller.as_ref());
        let of_access = match &self.kind {
            Kind::Access(access) => access.allow.iter().chain([&access.deny]).flat_map(|it| &it.callers).collect(),
            _ => Vec::new(),
        };
        of_scope.into_iter().chain(of_access).any(|caller| caller.cgroup.is_some())
    }
}

/// What a filter does.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// Fields are set, added and removed.
    Headers(Headers),
    /// Each request has an id.
    RequestId(RequestId),
    /// Scripts of other origins may ask (the Fetch standard's CORS protocol).
    Cors(Cors),
    /// Who may ask.
    Access(Access),
    /// How long a request's body may be, in bytes.
    BodyLimit(u64),
    /// What goes wrong on purpose.
    Fault(Fault),
    /// Who has a key may ask.
    ApiKey(ApiKey),
    /// Who has a name and a password may ask.
    Basic(Basic),
    /// Who has a signed token may ask.
    Jwt(Jwt),
    /// Another service says who may ask.
    External(External),
    /// Answers are kept, and given again.
    Cache(Cache),
    /// Answers are compressed.
    Compress(Compress),
}

impl Kind {
    /// The word that a file uses for it.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Headers(_) => "headers",
            Self::RequestId(_) => "request_id",
            Self::Cors(_) => "cors",
            Self::Access(_) => "access",
            Self::BodyLimit(_) => "body_limit",
            Self::Fault(_) => "fault",
            Self::ApiKey(_) => "api_key",
            Self::Basic(_) => "basic",
            Self::Jwt(_) => "jwt",
            Self::External(_) => "external_auth",
            Self::Cache(_) => "cache",
            Self::Compress(_) => "compress",
        }
    }
}

/// What is changed of heads; values hold no captures.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Headers {
    /// Of requests.
    pub request: HeaderChanges,
    /// Of responses.
    pub response: HeaderChanges,
}

/// The id of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId {
    /// The field that has it, in lower case.
    pub header: String,
    /// Which kind of UUID (RFC 9562) is made: by time, version 7, or by chance, version 4.
    pub by_time: bool,
    /// Whether what a client says is kept.
    pub keeps: bool,
    /// Whether the response tells it.
    pub responds: bool,
}

/// Whose scripts may ask, and for what.
#[derive(Clone, Debug, PartialEq)]
pub struct Cors {
    /// Where they may come from.
    pub origins: Vec<Origin>,
    /// Methods that they may use.
    pub methods: Vec<String>,
    /// Fields that they may send, in lower case; `None`: whichever they ask for.
    pub headers: Option<Vec<String>>,
    /// Fields of the response that they may see, in lower case.
    pub expose: Vec<String>,
    /// Whether cookies and the like go with their requests.
    pub credentials: bool,
    /// For how long a browser remembers.
    pub max_age: Option<Duration>,
}

/// Where a script comes from: scheme, host and port.
#[derive(Clone, Debug, PartialEq)]
pub enum Origin {
    /// Anywhere.
    Any,
    /// This.
    Exact(String),
    /// Whatever ends in this, dot included, behind any scheme: `.example`.
    Suffix(String),
    /// Whatever fits whole.
    Regex(Expression),
}

/// Who may ask. Who is denied may not; where somebody is allowed, only they may.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Access {
    /// Who may.
    pub allow: Option<Callers>,
    /// Who may not.
    pub deny: Callers,
}

/// Who asks; any of these.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Callers {
    /// By the address that the connection comes from.
    pub sources: Vec<Cidr>,
    /// By namespace and cgroup.
    pub callers: Vec<CallerMatch>,
}

/// What goes wrong on purpose, of some requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    /// How many of a hundred requests, at random.
    pub percent: u32,
    /// They are late by this.
    pub delay: Duration,
    /// And then answered here, with this status.
    pub abort: Option<u16>,
    /// As what a gRPC caller is told of it, if that does not follow.
    pub grpc_status: Option<u8>,
    /// Or their connection is reset; of HTTP/2 their stream.
    pub reset: bool,
    /// Or a body of theirs goes no faster than this, in bytes a second.
    pub bandwidth: Option<u32>,
    /// Which of their bodies that is.
    pub direction: Direction,
}

/// Which body goes over a narrow line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direction {
    /// The request's.
    Request,
    /// The response's.
    #[default]
    Response,
    /// Each by itself.
    Both,
}

impl Direction {
    /// All of them, with their names.
    pub const NAMES: [(&'static str, Self); 3] =
        [("request", Self::Request), ("response", Self::Response), ("both", Self::Both)];
}

/// Who says who may ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    /// The service that is asked.
    pub to: String,
    /// What stands before the request's own path; may be empty.
    pub path_prefix: String,
    /// Fields of the request that are passed on, in lower case.
    pub forwarded: Vec<String>,
    /// Fields of the answer that the request has when it goes on, in lower case; a client's own are taken away.
    pub copied: Vec<String>,
    /// How long an answer may take.
    pub timeout: Duration,
    /// Whether a request passes that nobody has answered for.
    pub fails_open: bool,
}
