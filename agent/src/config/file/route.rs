//! Where a service's requests go: its key `routes`, and an endpoint's `labels`.

mod canary;
mod matching;
mod mirror;
mod show;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use http::{HeaderName, HeaderValue, Method};

pub(super) use self::matching::{caller, matches, show as show_match, show_caller};
pub use self::show::show_tried;
pub(super) use self::show::{show, show_changes};
use super::{
    SWITCHES, deadline, guard, request_limit, retry,
    section::{Field, Path, Position, Problems, Section, shown},
    service::service_name,
    tree::{Key, Node, Value},
};
use crate::config::{
    Protocol,
    route::{
        Action, Expression, Fallback, Forward, HeaderChanges, Match, PathChange, PathMatch, ROUTES_MAX, Redirect,
        Respond, Rewrite, Route, Target, Template,
    },
};

const WEIGHT_MAX: u32 = 1_000_000;
const BODY_BYTES_MAX: usize = 64 * 1024; // an answer of a page; more is a file for a server
const LABEL_CHARS_MAX: usize = 253; // of a Kubernetes label's key with its prefix
const REDIRECTS: [u16; 5] = [301, 302, 303, 307, 308];
const FALLBACKS: [(&str, u8); 3] = [("no_fallback", 0), ("any_endpoint", 1), ("default_subset", 2)];
const SCHEMES: [(&str, &str); 2] = [("http", "http"), ("https", "https")];
const TARGET_KEYS: [&str; 4] = ["to", "subset", "subset_fallback", "default_subset"];
/// Fields that frame a message or concern one connection: the agent's own to write.
const OWN_FIELDS: [&str; 12] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "grpc-timeout",
];

/// Routes as they were read, and the services that they name, each with its place.
#[derive(Default)]
pub(super) struct Routes {
    pub(super) routes: Vec<Route>,
    pub(super) named: Vec<(Position, String, String)>,
}

/// Reads the key if it is there.
pub(super) fn routes(section: &Section<'_>, protocol: Option<Protocol>, problems: &mut Problems) -> Option<Routes> {
    let Some(field) = section.get("routes") else { return Some(Routes::default()) };
    if let Some(Protocol::Tcp | Protocol::Udp) = protocol {
        field.refuse("are of HTTP, which is not what is spoken here; write protocol: http, or remove it", problems);
    }
    let items = field.list(problems)?;
    if items.len() > ROUTES_MAX {
        field.refuse(format!("has {} routes; write at most {ROUTES_MAX}", items.len()), problems);
        return None;
    }
    let (mut read, mut names) = (Routes::default(), HashSet::new());
    for (index, item) in items.iter().enumerate() {
        let path = Path::Item(&field.path, index);
        let Some(route) = route(item, &path, index, &mut read.named, problems) else { continue };
        if !names.insert(route.name.clone()) {
            let what = format!("another route is called \"{}\"; give each its own name", shown(&route.name));
            problems.note(item.at, &path, what);
        }
        read.routes.push(route);
    }
    (read.routes.len() == items.len()).then_some(read)
}

fn route(
    item: &Node,
    path: &Path<'_>,
    index: usize,
    named: &mut Vec<(Position, String, String)>,
    problems: &mut Problems,
) -> Option<Route> {
    let own = ["name", "match", "split", "canary", "rewrite", "mirror", "redirect", "respond"];
    let more = ["request_headers", "response_headers", "retry", "one_way", "request_limits", "breaker"];
    let own = [&own[..], &more, &deadline::KEYS].concat();
    let keys = [&own[..], &TARGET_KEYS].concat();
    let section = Section::open(item, path, &keys, problems)?;
    let name = section.or("name", || format!("route-{}", index + 1), service_name, problems);
    let found = section.or("match", Match::default, matches, problems);
    let action = action(&section, named, problems);
    let timing = deadline::timing(&section, problems);
    let strategy = section.or("retry", || None, |field, p| retry::retry(field, p).map(Arc::new).map(Some), problems);
    let one_way = section.or("one_way", || false, |field, p| field.choice(&SWITCHES, p), problems);
    let request_limits = request_limit::of_route(&section, problems);
    let breaker = |field: &Field<'_>, p: &mut Problems| guard::breaker_of_route(field, named, p).map(Some);
    let breaker = section.or("breaker", || None, breaker, problems);
    let request_headers = section.or("request_headers", HeaderChanges::default, header_changes, problems);
    let response_headers = section.or("response_headers", HeaderChanges::default, header_changes, problems);
    let route = Route {
        name: name?,
        matches: found?,
        action: action?,
        timing: timing?,
        strategy: strategy?,
        one_way: one_way?,
        request_limits: request_limits?,
        breaker: breaker?,
        request_headers: request_headers?,
        response_headers: response_headers?,
    };
    refuse_unknown_captures(&route, &section, problems);
    if route.one_way {
        for field in ["retry", "timeout_ms", "timeout"].iter().filter_map(|key| section.get(key)) {
            field.refuse(
                "says what becomes of an answer, and with one_way: on nobody waits for one; remove it",
                problems,
            );
        }
    }
    if matches!(route.action, Action::Redirect(_) | Action::Respond(_)) {
        if let Some(field) = section.get("request_headers") {
            field.refuse("changes a request that is passed on, and this one is answered; remove it", problems);
        }
        let own = ["retry", "one_way", "request_limits", "breaker"];
        for field in deadline::KEYS.iter().chain(&own).filter_map(|key| section.get(key)) {
            field.refuse("is of a request that is passed on, and this one is answered; remove it", problems);
        }
    }
    Some(route)
}

fn action(
    section: &Section<'_>,
    named: &mut Vec<(Position, String, String)>,
    problems: &mut Problems,
) -> Option<Action> {
    let answers = ["redirect", "respond"].map(|key| section.get(key));
    let forwards =
        ["split", "canary", "rewrite", "mirror"].iter().chain(&TARGET_KEYS).filter_map(|key| section.get(key));
    if let Some(answer) = answers.iter().flatten().next() {
        let others = answers.iter().flatten().skip(1).copied().chain(forwards);
        let mut is_alone = true;
        for other in others {
            other.refuse("a request is either answered or passed on, once; leave one of the keys out", problems);
            is_alone = false;
        }
        let read = match &answers {
            [Some(field), _] => redirect(field, problems).map(Action::Redirect),
            _ => respond(answer, problems).map(Action::Respond),
        };
        return read.filter(|_| is_alone);
    }
    let rewrite = section.or("rewrite", Rewrite::default, rewrite, problems);
    let canary = section.or("canary", || None, |field, p| canary::canary(field, named, p).map(Some), problems);
    if let (Some(field), Some(_)) = (section.get("canary"), section.get("split")) {
        field.refuse("divides a route's requests, and so does split; leave one of them out", problems);
    }
    let targets = match section.get("split") {
        None => target(section, 1, named, problems).map(|target| vec![target]),
        Some(field) => {
            for other in TARGET_KEYS.iter().filter_map(|key| section.get(key)) {
                other.refuse("stands beside split, whose items say where requests go; move it there", problems);
            }
            split(&field, named, problems)
        }
    };
    let mirror = section.or("mirror", || None, |field, p| mirror::mirror(field, named, p).map(Some), problems);
    let (mut targets, canary) = (targets?, canary?);
    let canary = canary.map(|(target, rules)| {
        targets.push(target);
        rules
    });
    Some(Action::Forward(Forward { targets, canary, rewrite: rewrite?, mirror: mirror? }))
}

fn split(
    field: &Field<'_>,
    named: &mut Vec<(Position, String, String)>,
    problems: &mut Problems,
) -> Option<Vec<Target>> {
    let items = field.list(problems)?;
    let keys = [&TARGET_KEYS[..], &["weight"]].concat();
    let targets: Vec<Target> = items
        .iter()
        .enumerate()
        .filter_map(|(index, item)| {
            let path = Path::Item(&field.path, index);
            let section = Section::open(item, &path, &keys, problems)?;
            let weight = section.require("weight", "write its part as a whole number", problems);
            let weight = weight.and_then(|field| field.integer(0..=WEIGHT_MAX, problems));
            let target = target(&section, 0, named, problems)?;
            Some(Target { weight: weight?, ..target })
        })
        .collect();
    if targets.len() < items.len() {
        return None;
    }
    if targets.iter().all(|target| target.weight == 0) {
        field.refuse("nobody has a weight; give at least one item a weight above 0", problems);
        return None;
    }
    Some(targets)
}

fn target(
    section: &Section<'_>,
    weight: u32,
    named: &mut Vec<(Position, String, String)>,
    problems: &mut Problems,
) -> Option<Target> {
    let to = section.or("to", || None, |field, p| service_name(field, p).map(Some), problems);
    if let (Some(Some(name)), Some(field)) = (&to, section.get("to")) {
        named.push((field.node.at, field.path.to_string(), name.clone()));
    }
    let subset = section.or("subset", BTreeMap::new, labels, problems);
    let default_subset = section.or("default_subset", BTreeMap::new, labels, problems);
    let fallback = section.or("subset_fallback", || 0, |field, p| field.choice(&FALLBACKS, p), problems);
    for key in ["subset_fallback", "default_subset"] {
        if let (Some(field), None) = (section.get(key), section.get("subset")) {
            field.refuse("says who else takes what is for a subset; write subset, too, or remove it", problems);
        }
    }
    let (fallback, default_subset) = (fallback?, default_subset?);
    let fallback = match fallback {
        1 => Fallback::AnyEndpoint,
        2 => {
            if section.get("default_subset").is_none() {
                section.require("default_subset", "write its labels as {LABEL: VALUE}", problems)?;
            }
            Fallback::DefaultSubset(default_subset)
        }
        _ => Fallback::NoFallback,
    };
    Some(Target { to: to?, weight, subset: subset?, fallback })
}

/// Labels and their values.
pub(super) fn labels(field: &Field<'_>, problems: &mut Problems) -> Option<BTreeMap<String, String>> {
    let entries = entries(field, "LABEL: VALUE", problems)?;
    let read: BTreeMap<String, String> = entries
        .iter()
        .filter_map(|(key, node)| {
            let field = Field { node, path: Path::Key(&field.path, &key.text) };
            let value = field.text(problems)?;
            if [&key.text, value].iter().any(|text| text.chars().count() > LABEL_CHARS_MAX) {
                field.refuse(format!("is too long; a label has at most {LABEL_CHARS_MAX} characters"), problems);
            }
            Some((key.text.clone(), value.to_owned()))
        })
        .collect();
    (read.len() == entries.len()).then_some(read)
}

/// The entries of a mapping whose keys the user chooses.
pub(super) fn entries<'t>(field: &Field<'t>, form: &str, problems: &mut Problems) -> Option<&'t [(Key, Node)]> {
    if let Value::Map(entries) = &field.node.value {
        return Some(entries);
    }
    field.refuse(format!("expected a mapping, found {}; write {{{form}}}", field.node.value.kind()), problems);
    None
}

fn rewrite(field: &Field<'_>, problems: &mut Problems) -> Option<Rewrite> {
    let section = Section::open(field.node, &field.path, &["prefix", "path", "regex", "host"], problems)?;
    let path = path_change(&section, problems);
    let host = section.or("host", || None, |field, p| template(field, p).map(Some), problems);
    Some(Rewrite { path: path?, host: host? })
}

fn path_change(section: &Section<'_>, problems: &mut Problems) -> Option<Option<PathChange>> {
    let fields: Vec<Field<'_>> = ["prefix", "path", "regex"].iter().filter_map(|key| section.get(key)).collect();
    if let [_, other, ..] = fields.as_slice() {
        other.refuse("a path is changed in one way; leave one of prefix, path and regex out", problems);
        return None;
    }
    let absolute = |field: &Field<'_>, problems: &mut Problems| {
        let template = template(field, problems)?;
        if field.text(problems)?.starts_with('/') {
            return Some(template);
        }
        field.refuse("is no path; begin it with /", problems);
        None
    };
    if let Some(field) = section.get("prefix") {
        return absolute(&field, problems).map(|template| Some(PathChange::Prefix(template)));
    }
    if let Some(field) = section.get("path") {
        return absolute(&field, problems).map(|template| Some(PathChange::Whole(template)));
    }
    let Some(field) = section.get("regex") else { return Some(None) };
    let regex = Section::open(field.node, &field.path, &["pattern", "substitution"], problems)?;
    let pattern = regex.require("pattern", "write what is looked for in the path", problems);
    let substitution = regex.require("substitution", "write what stands there instead: $1 is a group", problems);
    let pattern = pattern.and_then(|field| expression(&field, Expression::within, problems));
    let substitution = substitution.and_then(|field| field.text(problems));
    Some(Some(PathChange::Regex(pattern?, substitution?.to_owned())))
}

pub(super) fn expression(
    field: &Field<'_>,
    read: impl Fn(&str) -> Result<Expression, String>,
    problems: &mut Problems,
) -> Option<Expression> {
    let text = field.text(problems)?;
    read(text)
        .map_err(|why| {
            field.refuse(format!("\"{}\" is no expression: {why}; see docs.rs/regex", shown(text)), problems)
        })
        .ok()
}

fn template(field: &Field<'_>, problems: &mut Problems) -> Option<Template> {
    let text = field.text(problems)?;
    if HeaderValue::from_str(text).is_err() {
        field.refuse("holds what no head can: a line end or another control character; remove it", problems);
        return None;
    }
    let read = Template::parse(text);
    if read.is_none() {
        field.refuse("has a brace without another; write {{ and }} for braces as such", problems);
    }
    read
}

fn redirect(field: &Field<'_>, problems: &mut Problems) -> Option<Redirect> {
    let keys = ["status", "scheme", "host", "port", "prefix", "path", "regex", "strip_query"];
    let section = Section::open(field.node, &field.path, &keys, problems)?;
    let status = section.or("status", || 302, |field, p| field.integer(301..=308, p), problems)? as u16;
    if let (Some(field), false) = (section.get("status"), REDIRECTS.contains(&status)) {
        field.refuse(format!("{status} is no redirect; write 301, 302, 303, 307 or 308"), problems);
    }
    let scheme = section.or("scheme", || None, |field, p| field.choice(&SCHEMES, p).map(Some), problems);
    let host = section.or("host", || None, |field, p| template(field, p).map(Some), problems);
    let port = section.or("port", || None, |field, p| field.integer(1..=65_535, p).map(Some), problems);
    let path = path_change(&section, problems);
    let strip_query = section.or("strip_query", || false, |field, p| field.choice(&SWITCHES, p), problems);
    let redirect = Redirect {
        status,
        scheme: scheme?.map(str::to_owned),
        host: host?,
        port: port?.map(|port| port as u16),
        path: path?,
        strip_query: strip_query?,
    };
    let same = Redirect { status, scheme: None, host: None, port: None, path: None, strip_query: false };
    if redirect == same {
        field.refuse("leads to where it came from; write scheme, host, port, prefix or path", problems);
    }
    Some(redirect)
}

fn respond(field: &Field<'_>, problems: &mut Problems) -> Option<Respond> {
    let section = Section::open(field.node, &field.path, &["status", "body"], problems)?;
    let status = section.or("status", || 200, |field, p| field.integer(200..=599, p), problems);
    let body = section.or("body", String::new, body, problems)?;
    let status = status? as u16;
    if let (Some(field), 204 | 205 | 304) = (section.get("body"), status) {
        field.refuse(format!("{status} has no body; remove it"), problems);
    }
    Some(Respond { status, body })
}

/// The body of an answer.
pub(super) fn body(field: &Field<'_>, problems: &mut Problems) -> Option<String> {
    let body = field.text(problems)?;
    if body.len() > BODY_BYTES_MAX {
        field.refuse(format!("has {} bytes; write at most {BODY_BYTES_MAX}", body.len()), problems);
    }
    Some(body.to_owned())
}

pub(super) fn header_changes(field: &Field<'_>, problems: &mut Problems) -> Option<HeaderChanges> {
    let section = Section::open(field.node, &field.path, &["set", "add", "remove"], problems)?;
    let set = section.or("set", Vec::new, fields, problems);
    let add = section.or("add", Vec::new, fields, problems);
    let remove = section.or("remove", Vec::new, removed, problems);
    Some(HeaderChanges { set: set?, add: add?, remove: remove? })
}

fn fields(field: &Field<'_>, problems: &mut Problems) -> Option<Vec<(String, Template)>> {
    let entries = entries(field, "NAME: VALUE", problems)?;
    let read: Vec<(String, Template)> = entries
        .iter()
        .filter_map(|(key, node)| {
            let field = Field { node, path: Path::Key(&field.path, &key.text) };
            let name = own_field_name(&key.text, &field, problems);
            let value = template(&field, problems);
            Some((name?, value?))
        })
        .collect();
    (read.len() == entries.len()).then(|| sorted(read, field, problems))
}

/// By name, each of which stands for one thing.
fn sorted<T>(mut named: Vec<(String, T)>, field: &Field<'_>, problems: &mut Problems) -> Vec<(String, T)> {
    named.sort_by(|(one, _), (other, _)| one.cmp(other));
    if let Some(twice) = named.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        field.refuse(format!("names {} twice; names of fields know no case, keep one", shown(&twice[0].0)), problems);
    }
    named
}

fn removed(field: &Field<'_>, problems: &mut Problems) -> Option<Vec<String>> {
    let items = field.list(problems)?;
    let read: Vec<String> = items
        .iter()
        .enumerate()
        .filter_map(|(index, node)| {
            let field = Field { node, path: Path::Item(&field.path, index) };
            own_field_name(field.text(problems)?, &field, problems)
        })
        .collect();
    (read.len() == items.len()).then_some(read)
}

/// A field's name in lower case.
pub(super) fn field_name(text: &str, field: &Field<'_>, problems: &mut Problems) -> Option<String> {
    let name = HeaderName::from_bytes(text.as_bytes()).ok();
    if name.is_none() {
        field.refuse(format!("\"{}\" is no name of a field; write letters, digits and -", shown(text)), problems);
    }
    name.map(|name| name.as_str().to_owned())
}

/// As [`field_name`], of one that may be changed.
pub(super) fn own_field_name(text: &str, field: &Field<'_>, problems: &mut Problems) -> Option<String> {
    let name = field_name(text, field, problems)?;
    if OWN_FIELDS.contains(&name.as_str()) {
        let remedy =
            if name == "host" { "use rewrite: {host: …}" } else { "the agent writes it by itself; remove it" };
        field.refuse(format!("{name} decides how a message is read; {remedy}"), problems);
        return None;
    }
    Some(name)
}

/// A method.
pub(super) fn method(field: &Field<'_>, problems: &mut Problems) -> Option<String> {
    let text = field.text(problems)?;
    if Method::from_bytes(text.as_bytes()).is_err() || text.bytes().any(|byte| byte.is_ascii_lowercase()) {
        field.refuse(format!("\"{}\" is no method; write GET, POST … in capitals", shown(text)), problems);
        return None;
    }
    Some(text.to_owned())
}

/// Notes what a route's templates take and its match does not give, and a prefix changed that is none.
fn refuse_unknown_captures(route: &Route, section: &Section<'_>, problems: &mut Problems) {
    let in_headers = |changes: &HeaderChanges| -> Vec<Template> {
        changes.set.iter().chain(&changes.add).map(|(_, template)| template.clone()).collect()
    };
    let of_path = |path: &Option<PathChange>| match path {
        Some(PathChange::Prefix(template) | PathChange::Whole(template)) => Some(template.clone()),
        _ => None,
    };
    let (key, path, host) = match &route.action {
        Action::Forward(forward) => ("rewrite", &forward.rewrite.path, forward.rewrite.host.clone()),
        Action::Redirect(redirect) => ("redirect", &redirect.path, redirect.host.clone()),
        Action::Respond(_) => ("respond", &None, None),
    };
    let said = [
        (key, of_path(path).into_iter().chain(host).collect()),
        ("request_headers", in_headers(&route.request_headers)),
        ("response_headers", in_headers(&route.response_headers)),
    ];
    for (key, templates) in &said {
        let mut names = templates.iter().flat_map(Template::names);
        if let (Some(unknown), Some(field)) = (names.find(|name| !route.matches.captures(name)), section.get(key)) {
            let what = format!(
                "takes {{{}}}, which the route's match does not capture; name it in a template or a regex of its path or host",
                shown(unknown)
            );
            field.refuse(what, problems);
        }
    }
    let has_prefix = matches!(route.matches.path, Some(PathMatch::Prefix(_)));
    if let (Some(PathChange::Prefix(_)), false, Some(field)) = (path, has_prefix, section.get(key)) {
        field.refuse("replaces the prefix that was matched, and none was; write match: {path: {prefix: …}}", problems);
    }
}
