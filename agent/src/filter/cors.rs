//! Whose scripts may ask: the CORS protocol of the Fetch standard (section 3.2). A preflight is answered here; to other responses the fields
//! are added that let a browser show them to the script.

use http::{HeaderName, HeaderValue, header};

use super::{Filter, Given, Local, Verdict, value};
use crate::{
    cluster::Outcome,
    config::filter::{self, Origin},
    route::{Fields, Request},
};

const PREFLIGHT_VARY: &str = "origin, access-control-request-method, access-control-request-headers";
/// Longest list of fields that is repeated to who asks for it.
const REPEATED_BYTES_MAX: usize = 4096;

/// See the module.
#[derive(Debug)]
pub(super) struct Cors {
    config: filter::Cors,
    methods: HeaderValue,
    headers: Option<HeaderValue>,
    expose: Option<HeaderValue>,
    max_age: Option<HeaderValue>,
    /// Whether the answer is the same to everybody.
    is_for_all: bool,
}

impl Cors {
    pub(super) fn new(config: filter::Cors) -> Self {
        let list = |names: &[String]| value(&names.join(", "));
        Self {
            methods: list(&config.methods),
            headers: config.headers.as_deref().map(list),
            expose: (!config.expose.is_empty()).then(|| list(&config.expose)),
            max_age: config.max_age.map(|age| HeaderValue::from(age.as_secs())),
            is_for_all: config.origins.contains(&Origin::Any) && !config.credentials,
            config,
        }
    }

    fn allows(&self, origin: &[u8]) -> bool {
        self.config.origins.iter().any(|allowed| match allowed {
            Origin::Any => true,
            Origin::Exact(text) => origin.eq_ignore_ascii_case(text.as_bytes()),
            Origin::Suffix(suffix) => {
                let host = origin.windows(3).position(|it| it == b"://").map_or(&b""[..], |at| &origin[at + 3..]);
                let end = host.len().saturating_sub(suffix.len());
                end > 0 && host[end..].eq_ignore_ascii_case(suffix.as_bytes())
            }
            Origin::Regex(expression) => expression.regex().is_match(origin),
        })
    }

    /// What every response says to a script that may see it.
    fn fields(&self, origin: &[u8]) -> Vec<(HeaderName, HeaderValue)> {
        let told = match self.is_for_all {
            true => Some(HeaderValue::from_static("*")),
            false => HeaderValue::from_bytes(origin).ok(),
        };
        let credentials = self.config.credentials.then_some(HeaderValue::from_static("true"));
        let origin = told.map(|origin| (header::ACCESS_CONTROL_ALLOW_ORIGIN, origin));
        origin.into_iter().chain(credentials.map(|yes| (header::ACCESS_CONTROL_ALLOW_CREDENTIALS, yes))).collect()
    }

    fn preflight(&self, request: &Request<'_>, origin: &[u8]) -> Verdict {
        let is_allowed = self.allows(origin);
        let mut fields = if is_allowed { self.fields(origin) } else { Vec::new() };
        if is_allowed {
            fields.push((header::ACCESS_CONTROL_ALLOW_METHODS, self.methods.clone()));
            let asked = request.header("access-control-request-headers").filter(|it| it.len() <= REPEATED_BYTES_MAX);
            let repeated = || asked.and_then(|asked| HeaderValue::from_bytes(asked).ok());
            let headers = self.headers.clone().or_else(repeated).filter(|headers| !headers.is_empty());
            fields.extend(headers.map(|headers| (header::ACCESS_CONTROL_ALLOW_HEADERS, headers)));
            fields.extend(self.max_age.clone().map(|age| (header::ACCESS_CONTROL_MAX_AGE, age)));
        }
        fields.push((header::VARY, HeaderValue::from_static(PREFLIGHT_VARY)));
        let outcome = if is_allowed { Outcome::Preflight } else { Outcome::Refused };
        Verdict::answer(outcome, Local { status: 204, grpc: None, text: String::new(), fields })
    }
}

impl Filter for Cors {
    fn judge(&self, request: &Request<'_>, _: &Given<'_>) -> Verdict {
        let origin = request.header("origin");
        if let (Some(origin), b"OPTIONS") = (origin, request.method)
            && request.header("access-control-request-method").is_some()
        {
            return self.preflight(request, origin);
        }
        // The endpoint's own word is not heard: there is one who decides.
        let own = [header::ACCESS_CONTROL_ALLOW_ORIGIN, header::ACCESS_CONTROL_ALLOW_CREDENTIALS];
        let mut response = own.into_iter().fold(Fields::default(), Fields::remove);
        if !self.is_for_all {
            response = response.append(header::VARY, HeaderValue::from_static("origin"));
        }
        let (outcome, told) = match origin {
            None if self.is_for_all => (Outcome::Passed, self.fields(b"")),
            None => (Outcome::Passed, Vec::new()),
            Some(origin) if self.allows(origin) => (Outcome::Changed, self.fields(origin)),
            Some(_) => (Outcome::Refused, Vec::new()),
        };
        let is_told = !told.is_empty();
        response = told.into_iter().fold(response, |fields, (name, value)| fields.set(name, value));
        if let (true, Some(expose)) = (is_told, &self.expose) {
            response = response.set(header::ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone());
        }
        Verdict { response, ..Verdict::pass(outcome) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        config::route::Expression,
        filter::tests::{changed, judged},
    };

    fn cors(origins: Vec<Origin>, credentials: bool) -> Cors {
        Cors::new(filter::Cors {
            origins,
            methods: vec!["GET".into(), "PUT".into()],
            headers: None,
            expose: vec!["x-sum".into()],
            credentials,
            max_age: Some(Duration::from_secs(600)),
        })
    }

    #[test]
    fn origins_are_known_whole_by_their_end_or_by_an_expression() {
        let regex = Origin::Regex(Expression::whole("https://[a-z]+\\.test").expect("an expression"));
        let cors = cors(vec![Origin::Exact("https://a".into()), Origin::Suffix(".b".into()), regex], true);
        for (origin, is_allowed) in [
            ("https://a", true),
            ("HTTPS://A", true),
            ("https://a:8443", false),
            ("http://x.b", true),
            ("http://.b", false),
            ("http://b", false),
            ("x.b", false),
            ("https://cde.test", true),
            ("https://cde.test.evil", false),
            ("null", false),
        ] {
            assert_eq!(cors.allows(origin.as_bytes()), is_allowed, "{origin}");
        }
    }

    #[test]
    fn a_preflight_is_answered_here_and_who_may_not_is_told_nothing() {
        let cors = cors(vec![Origin::Exact("https://a".into())], true);
        let asked = |origin: &str| {
            let head = format!(
                "OPTIONS / HTTP/1.1\r\nOrigin: {origin}\r\nAccess-Control-Request-Method: PUT\r\nAccess-Control-Request-Headers: X-A, x-b"
            );
            let verdict = judged(&cors, &head, 0, Duration::ZERO);
            let Some(local) = verdict.end else { panic!("{origin} is no preflight") };
            let told = local.fields.iter().map(|(name, value)| format!("{name}: {}", value.to_str().expect("a text")));
            (verdict.outcome, local.status, told.collect::<Vec<_>>())
        };
        let vary = format!("vary: {PREFLIGHT_VARY}");
        let allowed = [
            "access-control-allow-origin: https://a",
            "access-control-allow-credentials: true",
            "access-control-allow-methods: GET, PUT",
            "access-control-allow-headers: X-A, x-b",
            "access-control-max-age: 600",
            &vary,
        ];
        assert_eq!(asked("https://a"), (Outcome::Preflight, 204, allowed.map(str::to_owned).to_vec()));
        assert_eq!(asked("https://b"), (Outcome::Refused, 204, vec![vary.clone()]));
    }

    #[test]
    fn other_responses_say_whose_script_may_see_them() {
        let theirs = "Access-Control-Allow-Origin: *\r\n";
        for (origins, credentials, origin, expected) in [
            (
                vec![Origin::Exact("https://a".into())],
                true,
                "Origin: https://a",
                "vary: origin|access-control-allow-origin: https://a|access-control-allow-credentials: true|\
                 access-control-expose-headers: x-sum",
            ),
            (vec![Origin::Exact("https://a".into())], false, "Origin: https://b", "vary: origin"),
            (vec![Origin::Exact("https://a".into())], false, "X-A: b", "vary: origin"),
            (
                vec![Origin::Any],
                false,
                "Origin: https://b",
                "access-control-allow-origin: *|access-control-expose-headers: x-sum",
            ),
            (vec![Origin::Any], false, "X-A: b", "access-control-allow-origin: *|access-control-expose-headers: x-sum"),
        ] {
            // Without the second field of a preflight OPTIONS is a method as any other.
            for method in ["GET", "OPTIONS"] {
                let verdict = judged(
                    &cors(origins.clone(), credentials),
                    &format!("{method} / HTTP/1.1\r\n{origin}"),
                    0,
                    Duration::ZERO,
                );
                assert_eq!((changed(&verdict.response, theirs).as_str(), verdict.end), (expected, None), "{origin}");
            }
        }
    }
}
