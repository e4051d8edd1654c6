//! Where the requests of a service go: by what their heads say, to another service, to some of the endpoints, or to nobody.

use std::{collections::BTreeMap, fmt, sync::Arc};

use regex::bytes::{Regex, RegexBuilder};

use super::{
    RequestLimit, canary::Canary, capture::NamespaceName, deadline::Timing, guard::Breaker, pattern::Pattern,
    strategy::Strategy,
};

/// Most routes of one service.
pub const ROUTES_MAX: usize = 10_000;
/// Memory that a compiled expression may take, in bytes; one of a page of text takes less.
const EXPRESSION_BYTES_MAX: usize = 1 << 20;

/// One rule: which requests, and what becomes of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// Unique within the service; what metrics and `explain` call it.
    pub name: String,
    /// All of it must be true of a request.
    pub matches: Match,
    /// What becomes of it.
    pub action: Action,
    /// How long it may take, and what becomes of what its caller says of that; what is not said, its service says.
    pub timing: Option<Timing>,
    /// What becomes of failures; `None`: what its service says.
    pub strategy: Option<Arc<Strategy>>,
    /// Whether nobody waits for an answer.
    pub one_way: bool,
    /// How many of its requests pass, beside what the service that they go to says; each counts by itself.
    pub request_limits: Vec<RequestLimit>,
    /// When its requests are refused for a while, beside what its service says of that.
    pub breaker: Option<Breaker>,
    /// What is changed of the request's fields before it is passed on.
    pub request_headers: HeaderChanges,
    /// What is changed of the response's fields, also of one that the agent gives.
    pub response_headers: HeaderChanges,
}

/// What must be true of a request; what is not said, is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Match {
    /// Its host, without the port.
    pub host: Option<HostMatch>,
    /// Its path, as written: nothing is decoded or tidied up.
    pub path: Option<PathMatch>,
    /// Its method is one of these; none: any.
    pub methods: Vec<String>,
    /// Fields, by their names in lower case; one of a field's values must fit.
    pub headers: Vec<(String, TextMatch)>,
    /// Parameters of its query.
    pub query: Vec<(String, TextMatch)>,
    /// Cookies.
    pub cookies: Vec<(String, TextMatch)>,
    /// It is a gRPC call.
    pub grpc: Option<GrpcMatch>,
    /// Who dialled.
    pub caller: Option<CallerMatch>,
}

/// What must be true of who dialled, as the kernel saw it when the connection was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallerMatch {
    /// Its network namespace is called so.
    pub namespace: Option<NamespaceName>,
    /// Its cgroup, or one that this is below, stands there.
    pub cgroup: Option<Pattern>,
}

/// What must be true of a host. Names know no case.
#[derive(Clone, Debug, PartialEq)]
pub enum HostMatch {
    /// It is this, which is in lower case.
    Exact(String),
    /// It ends in this, dot included, and is longer: `*.example` is `.example`.
    Suffix(String),
    /// It fits whole.
    Regex(Expression),
}

/// What must be true of a path.
#[derive(Clone, Debug, PartialEq)]
pub enum PathMatch {
    /// It is this.
    Exact(String),
    /// It has the same segments, but for those that have names.
    Template(Vec<Segment>),
    /// It fits whole.
    Regex(Expression),
    /// It is this, or goes on behind this with a slash. Does not end in one: the empty one is of all paths.
    Prefix(String),
}

/// What stands between two slashes of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// This.
    Literal(String),
    /// Anything but nothing, which is called this.
    Named(String),
}

/// What must be true of a value.
#[derive(Clone, Debug, PartialEq)]
pub enum TextMatch {
    /// It is this.
    Exact(String),
    /// It begins with this.
    Prefix(String),
    /// It ends with this.
    Suffix(String),
    /// It fits whole.
    Regex(Expression),
    /// There is one.
    Present,
    /// There is none.
    Absent,
}

/// What must be true of a gRPC call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GrpcMatch {
    /// Its service, package included.
    pub service: Option<String>,
    /// Its method.
    pub method: Option<String>,
}

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// It is passed on.
    Forward(Forward),
    /// The client is told to ask elsewhere.
    Redirect(Redirect),
    /// It is answered at once.
    Respond(Respond),
}

/// Where a request is passed on to, and as what.
#[derive(Clone, Debug, PartialEq)]
pub struct Forward {
    /// At least one; of a canary two, the second of which it is.
    pub targets: Vec<Target>,
    /// How much of the requests that gets.
    pub canary: Option<Canary>,
    /// What is changed of where it goes.
    pub rewrite: Rewrite,
    /// Who gets a copy, if anybody.
    pub mirror: Option<Mirror>,
}

/// Who gets copies of a route's requests, whose answers nobody waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// Its weight says nothing.
    pub target: Target,
    /// How many of a hundred requests are copied, at random: 0 to 100.
    pub percent: u32,
    /// A request whose body is longer is not copied.
    pub body_bytes_max: usize,
}

/// Endpoints that take a part of a route's requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The service whose endpoints they are; `None`: the route's own. That service's routes are not looked at.
    pub to: Option<String>,
    /// Its part: weight over the sum of weights.
    pub weight: u32,
    /// Only endpoints that have all of these labels; none: all endpoints.
    pub subset: BTreeMap<String, String>,
    /// Who takes what is for endpoints that there are none of.
    pub fallback: Fallback,
}

/// Who takes requests for a subset of which no endpoint is listed; Envoy's words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Fallback {
    /// Nobody.
    #[default]
    NoFallback,
    /// All endpoints of the service.
    AnyEndpoint,
    /// Those that have these labels.
    DefaultSubset(BTreeMap<String, String>),
}

/// What is changed of a request's target.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rewrite {
    /// Its path.
    pub path: Option<PathChange>,
    /// Its host, and port if there is one.
    pub host: Option<Template>,
}

/// What becomes of a path; the query stays.
#[derive(Clone, Debug, PartialEq)]
pub enum PathChange {
    /// This instead of the prefix that the route matched.
    Prefix(Template),
    /// This.
    Whole(Template),
    /// Whatever fits is replaced by this, in which `$1` and `${name}` are groups.
    Regex(Expression, String),
}

/// Where the client is told to ask instead.
#[derive(Clone, Debug, PartialEq)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
    /// `http` or `https`; `None`: the same.
    pub scheme: Option<String>,
    /// `None`: the same.
    pub host: Option<Template>,
    /// `None`: the same, unless the scheme is another: then that of the scheme.
    pub port: Option<u16>,
    /// `None`: the same.
    pub path: Option<PathChange>,
    /// Whether the query is left out.
    pub strip_query: bool,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Respond {
    /// 200 to 599.
    pub status: u16,
    /// May be empty.
    pub body: String,
}

/// What is changed of a head's fields: first some are removed, then set, then added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderChanges {
    /// Whatever there was of this name, there is this afterwards.
    pub set: Vec<(String, Template)>,
    /// This is there, too.
    pub add: Vec<(String, Template)>,
    /// No field of this name.
    pub remove: Vec<String>,
}

impl HeaderChanges {
    /// Whether nothing is changed.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }
}

/// A regular expression, matched in time linear in the text.
#[derive(Clone, Debug)]
pub struct Expression {
    text: String,
    regex: Regex,
}

impl Expression {
    /// One that a whole text must fit.
    ///
    /// # Errors
    ///
    /// What is wrong with it, or that it is too large.
    pub fn whole(text: &str) -> Result<Self, String> {
        Self::compile(text, text)?;
        Self::compile(text, &format!("^(?:{text})$"))
    }

    /// The same of a text that knows no case.
    ///
    /// # Errors
    ///
    /// As [`Expression::whole`].
    pub fn whole_insensitive(text: &str) -> Result<Self, String> {
        Self::compile(text, text)?;
        Self::compile(text, &format!("(?i)^(?:{text})$"))
    }

    /// One that is looked for within a text.
    ///
    /// # Errors
    ///
    /// As [`Expression::whole`].
    pub fn within(text: &str) -> Result<Self, String> {
        Self::compile(text, text)
    }

    fn compile(text: &str, pattern: &str) -> Result<Self, String> {
        let mut builder = RegexBuilder::new(pattern);
        let built = builder.size_limit(EXPRESSION_BYTES_MAX).dfa_size_limit(EXPRESSION_BYTES_MAX).build();
        match built {
            Ok(regex) => Ok(Self { text: text.to_owned(), regex }),
            Err(regex::Error::CompiledTooBig(_)) => Err("it would take too much memory".to_owned()),
            Err(error) => Err(error.to_string().lines().last().unwrap_or_default().trim().to_owned()),
        }
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Compiled.
    pub fn regex(&self) -> &Regex {
        &self.regex
    }
}

impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        self.regex.as_str() == other.regex.as_str()
    }
}

/// A text in which `{name}` stands for what the route has captured, and `{{` and `}}` for braces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Part>);

/// A part of a [`Template`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// As it stands.
    Text(String),
    /// What was captured under this name.
    Capture(String),
}

impl Template {
    /// Reads it; `None` if a brace has no other.
    pub fn parse(text: &str) -> Option<Self> {
        let (mut parts, mut plain, mut left) = (Vec::new(), String::new(), text);
        while let Some(at) = left.find(['{', '}']) {
            let brace = &left[at..=at];
            plain.push_str(&left[..at]);
            left = &left[at + 1..];
            if let Some(rest) = left.strip_prefix(brace) {
                plain.push_str(brace);
                left = rest;
                continue;
            }
            let end = left.find('}').filter(|end| brace == "{" && *end > 0)?;
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut plain)));
            }
            parts.push(Part::Capture(left[..end].to_owned()));
            left = &left[end + 1..];
        }
        plain.push_str(left);
        if !plain.is_empty() {
            parts.push(Part::Text(plain));
        }
        Some(Self(parts))
    }

    /// Its parts, in their order.
    pub fn parts(&self) -> &[Part] {
        &self.0
    }

    /// The names of what it takes.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|part| match part {
            Part::Text(_) => None,
            Part::Capture(name) => Some(name.as_str()),
        })
    }
}

/// As it was written.
impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|part| match part {
            Part::Text(text) => f.write_str(&text.replace('{', "{{").replace('}', "}}")),
            Part::Capture(name) => write!(f, "{{{name}}}"),
        })
    }
}

impl Match {
    /// Whether it captures something of this name.
    pub fn captures(&self, name: &str) -> bool {
        let has = |expression: &Expression| expression.regex().capture_names().flatten().any(|found| found == name);
        let of_path = match &self.path {
            Some(PathMatch::Template(segments)) => segments.contains(&Segment::Named(name.to_owned())),
            Some(PathMatch::Regex(expression)) => has(expression),
            _ => false,
        };
        of_path || matches!(&self.host, Some(HostMatch::Regex(expression)) if has(expression))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_read_and_written_alike() {
        for text in ["", "a", "{a}", "/x/{a}/y{b}", "{{a}}", "{{{a}}}", "a}}b"] {
            assert_eq!(Template::parse(text).unwrap().to_string(), text, "{text}");
        }
        let template = Template::parse("/x/{a}{{b}}{c}").unwrap();
        assert_eq!(template.names().collect::<Vec<_>>(), ["a", "c"]);
        for text in ["{", "}", "{a", "a}b", "{}"] {
            assert_eq!(Template::parse(text), None, "{text}");
        }
    }

    #[test]
    fn an_expression_is_of_the_whole_and_bounded() {
        let expression = Expression::whole("a|bc").unwrap();
        let fits = |text: &str| expression.regex().is_match(text.as_bytes());
        assert!(fits("a") && fits("bc") && !fits("ac") && !fits("abc") && !fits("xa"));
        assert_eq!(Expression::whole(r"(\w{1000}){1000}").unwrap_err(), "it would take too much memory");
        assert!(Expression::whole("(").is_err());
    }
}
