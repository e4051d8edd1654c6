//! Answers of our own: each says in a line why.

use std::{borrow::Cow, time::Duration};

use http::{HeaderName, HeaderValue, StatusCode, header};

use crate::{
    config::{
        guard::{Respond, Why},
        threshold::Threshold,
    },
    decode::{grpc, http1::BadRequest},
    filter::Local,
    proxy::{admit::Rated, reach::Unreached},
    record::Counter,
};

const PLAIN: HeaderValue = HeaderValue::from_static("text/plain");

/// An answer of our own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Status code and reason.
    status: Cow<'static, str>,
    /// Why, for a person; or all that is said.
    text: String,
    /// Fields beside the usual ones.
    pub fields: Vec<(HeaderName, HeaderValue)>,
    /// As what the request is counted.
    pub counter: Counter,
    /// What a gRPC caller is told, if that does not follow from the status.
    grpc: Option<u8>,
    /// Whether the fallback of its service stands in for it, whatever that is for.
    pub insists: bool,
    /// Whether nothing is said instead of it.
    pub is_last: bool,
    /// What is told of the limits that the request met.
    pub rated: Option<Box<Rated>>,
}

impl Reply {
    pub fn refused(bad: BadRequest) -> Self {
        match bad {
            BadRequest::Malformed(why) => Self::new("400 Bad Request", why, Counter::Malformed),
            BadRequest::TooManyFields | BadRequest::TooLong => Self::head_too_large(bad),
            BadRequest::Version => Self::new("505 HTTP Version Not Supported", bad, Counter::OtherVersion),
        }
    }

    pub fn malformed(why: impl ToString) -> Self {
        Self::new("400 Bad Request", why, Counter::Malformed)
    }

    pub fn head_too_large(why: impl ToString) -> Self {
        Self::new("431 Request Header Fields Too Large", why, Counter::HeadTooLarge)
    }

    pub fn target_too_long() -> Self {
        Self::new("414 URI Too Long", "the request line is too long", Counter::TargetTooLong)
    }

    pub fn head_timeout() -> Self {
        Self::new("408 Request Timeout", "the request's head did not come in time", Counter::HeadTimeout)
    }

    pub fn no_such_tunnel(why: &'static str) -> Self {
        Self::new("501 Not Implemented", why, Counter::ConnectMethod)
    }

    pub fn body_timeout() -> Self {
        Self::new("408 Request Timeout", "the request's body did not go on in time", Counter::BodyTimeout)
    }

    pub fn body_too_large(bytes_max: usize) -> Self {
        let why =
            format!("the body is longer than the {bytes_max} bytes that are kept to be sent to several endpoints");
        Self::new("413 Content Too Large", why, Counter::BodyTooLarge)
    }

    pub fn late_response() -> Self {
        let why = "the endpoint did not answer in time";
        Self::new("504 Gateway Timeout", why, Counter::ResponseTimeout)
    }

    pub fn unreached(why: Unreached) -> Self {
        match why {
            Unreached::Late(_) | Unreached::Mute(_) => Self::new("504 Gateway Timeout", why, Counter::ConnectTimeout),
            Unreached::Tls(_) => Self::new("502 Bad Gateway", why, Counter::EndpointTls),
            Unreached::NotHttp2 => Self::new("502 Bad Gateway", why, Counter::BadResponse),
            Unreached::Overflow(of) => Self::overflow(of),
            Unreached::CircuitOpen => Self::new("503 Service Unavailable", why, Counter::CircuitOpen),
            Unreached::NoEndpoint | Unreached::NoSubset | Unreached::Gone | Unreached::NoSocket => {
                Self::new("503 Service Unavailable", why, Counter::NoEndpoint)
            }
        }
    }

    pub fn bad_response(why: impl std::fmt::Display) -> Self {
        Self::new("502 Bad Gateway", format!("the endpoint's response: {why}"), Counter::BadResponse)
    }

    pub fn no_response() -> Self {
        let why = "the endpoint ended the connection without a response";
        Self::new("502 Bad Gateway", why, Counter::NoResponse)
    }

    fn new(status: &'static str, why: impl ToString, counter: Counter) -> Self {
        let text = format!("sockway: {}\n", why.to_string());
        Self {
            status: status.into(),
            text,
            fields: vec![(header::CONTENT_TYPE, PLAIN)],
            counter,
            grpc: None,
            insists: false,
            is_last: false,
            rated: None,
        }
    }

    /// What a route says.
    pub fn said(status: u16, body: &str, mut fields: Vec<(HeaderName, HeaderValue)>) -> Self {
        let code = StatusCode::from_u16(status).unwrap_or_default();
        let status = format!("{} {}", code.as_str(), code.canonical_reason().unwrap_or_default()).into();
        let names_type = fields.iter().any(|(name, _)| *name == header::CONTENT_TYPE);
        if !names_type && !body.is_empty() {
            fields.push((header::CONTENT_TYPE, PLAIN));
        }
        Self {
            status,
            text: body.to_owned(),
            fields,
            counter: Counter::Routed,
            grpc: None,
            insists: false,
            is_last: false,
            rated: None,
        }
    }

    /// What who is over a limit is told.
    pub fn limited(status: u16, limit: &str, is_exhausted: bool) -> Self {
        let fields = vec![(header::CONTENT_TYPE, PLAIN)];
        let said = Self::said(status, &format!("sockway: over the limit {limit}\n"), fields);
        let grpc = if is_exhausted { grpc::code::RESOURCE_EXHAUSTED } else { grpc::code::UNAVAILABLE };
        Self { counter: Counter::Limited, grpc: Some(grpc), ..said }
    }

    /// What a request is told for which its service had no room.
    pub fn unserved(why: &'static str, retry_after: Duration) -> Self {
        let mut reply = Self::new("503 Service Unavailable", why, Counter::Unserved);
        // Whole seconds, as RFC 9110 section 10.2.3 has them.
        let seconds = retry_after.as_millis().div_ceil(1_000) as u64;
        reply.fields.push((header::RETRY_AFTER, HeaderValue::from(seconds)));
        reply
    }

    /// What a filter says.
    pub fn filtered(local: Local) -> Self {
        let Local { status, grpc, text, fields } = local;
        Self { counter: Counter::Filtered, grpc, ..Self::said(status, &text, fields) }
    }

    /// What is said instead of an answer that is not to be had.
    pub fn instead(respond: &Respond, counter: Counter) -> Self {
        let field = |(name, value): &(String, String)| Some((name.parse().ok()?, HeaderValue::from_str(value).ok()?));
        let fields = respond.headers.iter().filter_map(field).collect();
        Self { counter, grpc: respond.grpc_status, ..Self::said(respond.status, &respond.body, fields) }
    }

    /// What a request is told that its service's guard keeps from it.
    pub fn guarded(why: Why) -> Self {
        let unavailable = "503 Service Unavailable";
        match why {
            Why::CircuitOpen => Self::new(unavailable, "the breaker of the service is open", Counter::CircuitOpen),
            Why::Concurrency => {
                let why = "the service has as many requests as it may have at once";
                Self::new(unavailable, why, Counter::OverConcurrency)
            }
            _ => {
                let why = "the service did not answer in the time that its isolation gives";
                let reply = Self::new("504 Gateway Timeout", why, Counter::IsolationTimeout);
                Self { grpc: Some(grpc::code::DEADLINE_EXCEEDED), ..reply }
            }
        }
    }

    /// What a request is told that a threshold keeps from its service.
    pub fn overflow(of: Threshold) -> Self {
        let why = format!("the service is overloaded: {}", of.word());
        Self::new("503 Service Unavailable", why, Counter::Overflow)
    }

    /// An endpoint's answer of 5xx that the client is not to see.
    pub fn server_error() -> Self {
        Self::new("502 Bad Gateway", "the endpoint answered with an error of its own", Counter::Answered5xx)
    }

    /// The same of what went wrong on purpose, and is counted as this.
    pub fn failed(counter: Counter) -> Self {
        Self { counter, ..Self::server_error() }
    }

    /// Of an endpoint of HTTP/2 whose response broke off, or broke a rule, before any of it was passed on.
    pub fn broken_off(why: impl std::fmt::Display) -> Self {
        let why = format!("the endpoint's response broke off: {why}");
        Self::new("502 Bad Gateway", why, Counter::ResponseAborted)
    }

    /// Of an endpoint of HTTP/2, whose connection or stream ended, with a code if it was reset.
    pub fn no_response_because(why: impl std::fmt::Display, reset: Option<u32>) -> Self {
        let why = format!("the endpoint gave no response: {why}");
        Self { grpc: reset.map(grpc::of_reset), ..Self::new("502 Bad Gateway", why, Counter::NoResponse) }
    }

    /// The time that the caller gave is over.
    pub fn deadline_exceeded() -> Self {
        let reply = Self::new("504 Gateway Timeout", "the call's time is over", Counter::DeadlineExceeded);
        Self { grpc: Some(grpc::code::DEADLINE_EXCEEDED), ..reply }
    }

    /// With what is told of limits among its fields: of those that it says itself, or of these.
    pub fn rated(mut self, limits: Option<&Rated>) -> Self {
        let own = self.rated.take();
        self.fields.extend(own.as_deref().or(limits).map(Rated::fields).into_iter().flatten());
        self
    }

    /// Its status code.
    pub fn status(&self) -> StatusCode {
        self.status.get(..3).and_then(|code| code.parse().ok()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// Its body.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether the length of its body is told: where there cannot be one, it is not (RFC 9110 section 8.6).
    pub fn says_length(&self) -> bool {
        !matches!(self.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
    }

    /// What a gRPC caller is told.
    pub fn grpc_code(&self) -> u8 {
        self.grpc.unwrap_or_else(|| grpc::of_http(self.status().as_u16()))
    }

    /// Its bytes.
    pub fn bytes(&self, keep_alive: Option<bool>, without_body: bool) -> Vec<u8> {
        let connection = match keep_alive {
            None => "",
            Some(true) => "connection: keep-alive\r\n",
            Some(false) => "connection: close\r\n",
        };
        let mut bytes = format!("HTTP/1.1 {}\r\n", self.status).into_bytes();
        for (name, value) in &self.fields {
            let field = [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"];
            field.iter().for_each(|part| bytes.extend_from_slice(part));
        }
        if self.says_length() {
            bytes.extend_from_slice(format!("content-length: {}\r\n", self.text.len()).as_bytes());
        }
        bytes.extend_from_slice(connection.as_bytes());
        bytes.extend_from_slice(b"\r\n");
        if !without_body {
            bytes.extend_from_slice(self.text.as_bytes());
        }
        bytes
    }
}
