//! Another service says who may ask: it is sent the request's head, and what it answers decides. 2xx lets the request pass, with some of the
//! answer's fields; any other status is the client's answer.

use http::{HeaderName, StatusCode};

use super::{Answered, Filter, Given, Local, Verdict};
use crate::{
    cluster::Outcome,
    config::filter::External,
    route::{Fields, Request},
};

/// Fields of a refusal that are the agent's own to write.
const OWN: [&str; 4] = ["content-length", "connection", "transfer-encoding", "trailer"];

/// See the module.
#[derive(Debug)]
pub(super) struct ExternalAuth {
    config: External,
    copied: Vec<HeaderName>,
}

impl ExternalAuth {
    pub(super) fn new(config: External) -> Self {
        let copied = config.copied.iter().filter_map(|name| name.parse().ok()).collect();
        Self { config, copied }
    }

    /// The head of HTTP/1 that is sent: the request's own method, target and host, and the fields that are forwarded.
    fn question(&self, request: &Request<'_>) -> Vec<u8> {
        // CONNECT has no path, and OPTIONS may be of the whole server.
        let path = if request.path.starts_with(b"/") { request.path } else { b"/" };
        let method = if request.method == b"CONNECT" { b"GET" } else { request.method };
        let mut head = [method, b" ", self.config.path_prefix.as_bytes(), path].concat();
        if let Some(query) = request.query {
            head.push(b'?');
            head.extend_from_slice(query);
        }
        head.extend_from_slice(b" HTTP/1.1\r\n");
        let mut line = |name: &[u8], value: &[u8]| {
            [name, b": ", value, b"\r\n"].iter().for_each(|part| head.extend_from_slice(part));
        };
        line(b"host", request.authority());
        for name in &self.config.forwarded {
            request.headers(name).for_each(|value| line(name.as_bytes(), value));
        }
        head.extend_from_slice(b"\r\n");
        head
    }

    /// Without an answer.
    fn failed(&self) -> Verdict {
        if self.config.fails_open {
            return Verdict { request: self.unclaimed(), ..Verdict::pass(Outcome::Failed) };
        }
        Verdict::answer(Outcome::Failed, Local::because(503, "who may ask could not be found out"))
    }

    /// What only the other service may say, not said.
    fn unclaimed(&self) -> Fields {
        self.copied.iter().cloned().fold(Fields::default(), Fields::remove)
    }
}

impl Filter for ExternalAuth {
    fn judge(&self, request: &Request<'_>, _: &Given<'_>) -> Verdict {
        Verdict { question: Some(self.question(request)), ..Verdict::pass(Outcome::Passed) }
    }

    fn heard(&self, answered: Option<Answered>) -> Verdict {
        let Some(Answered { head, body }) = answered else { return self.failed() };
        if head.status.is_success() {
            let said = |fields: Fields, name: &HeaderName| {
                head.headers
                    .get_all(name)
                    .iter()
                    .fold(fields, |fields, value| fields.append(name.clone(), value.clone()))
            };
            let request = self.copied.iter().fold(self.unclaimed(), said);
            return Verdict { request, ..Verdict::pass(Outcome::Accepted) };
        }
        // Who is broken has not refused.
        if head.status.is_server_error() || head.status < StatusCode::OK {
            return self.failed();
        }
        let fields = head.headers.iter().filter(|(name, _)| !OWN.contains(&name.as_str()));
        let fields = fields.map(|(name, value)| (name.clone(), value.clone())).collect();
        let text = String::from_utf8_lossy(&body).into_owned();
        let local = Local { status: head.status.as_u16(), grpc: None, text, fields };
        Verdict::answer(Outcome::Refused, local)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::filter::tests::{changed, judged};

    fn filter(fails_open: bool) -> ExternalAuth {
        ExternalAuth::new(External {
            to: "auth".into(),
            path_prefix: "/check".into(),
            forwarded: vec!["authorization".into(), "cookie".into()],
            copied: vec!["x-user".into()],
            timeout: Duration::from_secs(1),
            fails_open,
        })
    }

    fn answered(status: u16, fields: &[(&str, &str)]) -> Option<Answered> {
        let mut response = http::Response::builder().status(status);
        for (name, value) in fields {
            response = response.header(*name, *value);
        }
        let (head, ()) = response.body(()).expect("a response").into_parts();
        Some(Answered { head, body: b"why".to_vec() })
    }

    #[test]
    fn the_other_service_sees_what_is_forwarded_and_no_more() {
        for (line, expected) in [
            ("PUT /a?b=c HTTP/1.1", "PUT /check/a?b=c HTTP/1.1"),
            ("OPTIONS * HTTP/1.1", "OPTIONS /check/ HTTP/1.1"),
            ("CONNECT b:1 HTTP/1.1", "GET /check/ HTTP/1.1"),
        ] {
            let verdict = judged(&filter(false), &format!("{line}\r\nCookie: c=d\r\nX-A: b"), 0, Duration::ZERO);
            let question = String::from_utf8(verdict.question.expect("a question")).expect("a text");
            let host = if line.starts_with("CONNECT") { "b:1" } else { "a" };
            assert_eq!(question, format!("{expected}\r\nhost: {host}\r\ncookie: c=d\r\n\r\n"));
        }
    }

    #[test]
    fn its_answer_decides_and_without_one_the_configuration_does() {
        for (fails_open, answer, outcome, status) in [
            (false, answered(200, &[("x-user", "ann"), ("x-other", "b")]), Outcome::Accepted, None),
            (false, answered(403, &[("content-length", "3")]), Outcome::Refused, Some(403)),
            (false, answered(302, &[("location", "/login")]), Outcome::Refused, Some(302)),
            (false, answered(500, &[]), Outcome::Failed, Some(503)),
            (false, None, Outcome::Failed, Some(503)),
            (true, answered(500, &[]), Outcome::Failed, None),
            (true, None, Outcome::Failed, None),
        ] {
            let verdict = filter(fails_open).heard(answer);
            assert_eq!(verdict.outcome, outcome);
            // What a client says of itself is never passed on for what the service would have said.
            let user = if outcome == Outcome::Accepted { "x-user: ann" } else { "" };
            match verdict.end {
                Some(local) => {
                    assert_eq!(Some(local.status), status);
                    assert!(local.fields.iter().all(|(name, _)| name != "content-length"));
                }
                _ => assert_eq!((changed(&verdict.request, "X-User: forged\r\n").as_str(), status), (user, None)),
            }
        }
    }
}
