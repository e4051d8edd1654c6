//! Which requests a route is for: its key `match`, and what is shown of it.

use serde_json::{Map, Value as Json, json};

use super::{
    super::{
        SWITCHES,
        capture::{namespace_name, pattern},
        section::{Field, Path, Problems, Section, shown},
        tree::Value,
        tuning::is_token,
    },
    entries, expression, field_name, method, sorted,
};
use crate::config::route::{CallerMatch, Expression, GrpcMatch, HostMatch, Match, PathMatch, Segment, TextMatch};

const KEYS: [&str; 8] = ["host", "path", "methods", "headers", "query", "cookies", "grpc", "caller"];

pub(in super::super) fn matches(field: &Field<'_>, problems: &mut Problems) -> Option<Match> {
    let section = Section::open(field.node, &field.path, &KEYS, problems)?;
    let host = section.or("host", || None, |field, p| host(field, p).map(Some), problems);
    let path = section.or("path", || None, |field, p| path(field, p).map(Some), problems);
    let methods = section.or("methods", Vec::new, methods, problems);
    let headers = section.or("headers", Vec::new, |field, p| texts(field, field_name, p), problems);
    let query = section.or("query", Vec::new, |field, p| texts(field, any_name, p), problems);
    let cookies = section.or("cookies", Vec::new, |field, p| texts(field, cookie_name, p), problems);
    let grpc = section.or("grpc", || None, |field, p| grpc(field, p).map(Some), problems);
    let caller = section.or("caller", || None, |field, p| caller(field, p).map(Some), problems);
    if let (Some(field), Some(_)) = (section.get("path"), section.get("grpc")) {
        field.refuse("of a gRPC call is its service and method; leave path or grpc out", problems);
    }
    Some(Match {
        host: host?,
        path: path?,
        methods: methods?,
        headers: headers?,
        query: query?,
        cookies: cookies?,
        grpc: grpc?,
        caller: caller?,
    })
}

pub(in super::super) fn caller(field: &Field<'_>, problems: &mut Problems) -> Option<CallerMatch> {
    let section = Section::open(field.node, &field.path, &["namespace", "cgroup"], problems)?;
    let namespace = section.or("namespace", || None, |field, p| namespace_name(field, p).map(Some), problems);
    let cgroup = section.or("cgroup", || None, |field, p| pattern(field, p).map(Some), problems);
    if section.get("namespace").or(section.get("cgroup")).is_none() {
        field.refuse("says nothing of who calls; write namespace: NAME or cgroup: /PATH", problems);
    }
    Some(CallerMatch { namespace: namespace?, cgroup: cgroup? })
}

fn host(field: &Field<'_>, problems: &mut Problems) -> Option<HostMatch> {
    if let Value::Map(_) = &field.node.value {
        let section = Section::open(field.node, &field.path, &["regex"], problems)?;
        let regex = section.require("regex", "write the expression that a host fits", problems)?;
        return expression(&regex, Expression::whole_insensitive, problems).map(HostMatch::Regex);
    }
    let text = field.text(problems)?.to_ascii_lowercase();
    let (suffix, name) = match text.strip_prefix("*.") {
        Some(rest) => (true, rest),
        None => (false, text.as_str()),
    };
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let is_address = !suffix && (name.starts_with('[') && name.ends_with(']'));
    if !is_address && (name.is_empty() || !name.bytes().all(is_name) || name.starts_with('.')) {
        let what = format!("\"{}\" is no host; write a name or an address without a port, or *.NAME", shown(&text));
        field.refuse(what, problems);
        return None;
    }
    Some(if suffix { HostMatch::Suffix(format!(".{name}")) } else { HostMatch::Exact(text) })
}

fn path(field: &Field<'_>, problems: &mut Problems) -> Option<PathMatch> {
    let Value::Map(_) = &field.node.value else {
        return absolute(field, problems).map(|path| PathMatch::Exact(path.to_owned()));
    };
    let section = Section::open(field.node, &field.path, &["prefix", "template", "regex"], problems)?;
    let said: Vec<&str> =
        ["prefix", "template", "regex"].into_iter().filter(|key| section.get(key).is_some()).collect();
    let [key] = said.as_slice() else {
        field.refuse("is matched in one way; write one of prefix, template and regex, or the path itself", problems);
        return None;
    };
    let field = section.get(key)?;
    match *key {
        "prefix" => absolute(&field, problems).map(|path| PathMatch::Prefix(path.trim_end_matches('/').to_owned())),
        "template" => template(&field, problems).map(PathMatch::Template),
        _ => expression(&field, Expression::whole, problems).map(PathMatch::Regex),
    }
}

fn absolute<'t>(field: &Field<'t>, problems: &mut Problems) -> Option<&'t str> {
    let text = field.text(problems)?;
    if !text.starts_with('/') {
        field.refuse(format!("\"{}\" is no path; begin it with /", shown(text)), problems);
        return None;
    }
    if text.contains(['?', '#', ' ']) {
        field.refuse("holds what no path can: ?, # or a blank; match the query by the key query", problems);
        return None;
    }
    Some(text)
}

fn template(field: &Field<'_>, problems: &mut Problems) -> Option<Vec<Segment>> {
    let text = absolute(field, problems)?;
    let mut segments: Vec<Segment> = Vec::new();
    for part in text[1..].split('/') {
        let name = part.strip_prefix('{').and_then(|part| part.strip_suffix('}'));
        let segment = match name {
            Some(name) => Segment::Named(name.to_owned()),
            None => Segment::Literal(part.to_owned()),
        };
        let is_wrong = name.unwrap_or(part).contains(['{', '}']) || name == Some("");
        if is_wrong || (name.is_some() && segments.contains(&segment)) {
            let what = "is no template; a name stands alone between slashes, once: /api/order/{orderId}";
            field.refuse(what, problems);
            return None;
        }
        segments.push(segment);
    }
    Some(segments)
}

fn methods(field: &Field<'_>, problems: &mut Problems) -> Option<Vec<String>> {
    let items = field.list(problems)?;
    let read: Vec<String> = items
        .iter()
        .enumerate()
        .filter_map(|(index, node)| method(&Field { node, path: Path::Item(&field.path, index) }, problems))
        .collect();
    (read.len() == items.len()).then_some(read)
}

/// What a name is to be, or why it is none.
type Name = fn(&str, &Field<'_>, &mut Problems) -> Option<String>;

fn any_name(text: &str, _: &Field<'_>, _: &mut Problems) -> Option<String> {
    Some(text.to_owned())
}

fn cookie_name(text: &str, field: &Field<'_>, problems: &mut Problems) -> Option<String> {
    if is_token(text) {
        return Some(text.to_owned());
    }
    field.refuse(format!("\"{}\" is no name of a cookie; write letters, digits, - and _", shown(text)), problems);
    None
}

fn texts(field: &Field<'_>, name: Name, problems: &mut Problems) -> Option<Vec<(String, TextMatch)>> {
    let entries = entries(field, "NAME: VALUE", problems)?;
    let read: Vec<(String, TextMatch)> = entries
        .iter()
        .filter_map(|(key, node)| {
            let field = Field { node, path: Path::Key(&field.path, &key.text) };
            let name = name(&key.text, &field, problems);
            let text = text(&field, problems);
            Some((name?, text?))
        })
        .collect();
    (read.len() == entries.len()).then(|| sorted(read, field, problems))
}

fn text(field: &Field<'_>, problems: &mut Problems) -> Option<TextMatch> {
    let Value::Map(_) = &field.node.value else {
        return field.text(problems).map(|text| TextMatch::Exact(text.to_owned()));
    };
    let keys = ["prefix", "suffix", "regex", "present"];
    let section = Section::open(field.node, &field.path, &keys, problems)?;
    let said: Vec<&str> = keys.into_iter().filter(|key| section.get(key).is_some()).collect();
    let [key] = said.as_slice() else {
        field.refuse("is matched in one way; write one of prefix, suffix, regex and present, or the value", problems);
        return None;
    };
    let field = section.get(key)?;
    match *key {
        "present" => {
            let is_there = field.choice(&SWITCHES, problems)?;
            Some(if is_there { TextMatch::Present } else { TextMatch::Absent })
        }
        "regex" => expression(&field, Expression::whole, problems).map(TextMatch::Regex),
        "prefix" => field.text(problems).map(|text| TextMatch::Prefix(text.to_owned())),
        _ => field.text(problems).map(|text| TextMatch::Suffix(text.to_owned())),
    }
}

fn grpc(field: &Field<'_>, problems: &mut Problems) -> Option<GrpcMatch> {
    let section = Section::open(field.node, &field.path, &["service", "method"], problems)?;
    let mut name = |key| {
        let name = |field: &Field<'_>, problems: &mut Problems| {
            let text = field.text(problems)?;
            if text.is_empty() || text.contains(['/', ' ']) {
                field.refuse("is no name; write package.Service and Method apart", problems);
                return None;
            }
            Some(Some(text.to_owned()))
        };
        section.or(key, || None, name, problems)
    };
    let (service, method) = (name("service"), name("method"));
    Some(GrpcMatch { service: service?, method: method? })
}

/// As it would be written.
pub(in super::super) fn show(matches: &Match) -> Json {
    let mut shown = Map::new();
    let mut put = |key: &str, value: Json| {
        shown.insert(key.to_owned(), value);
    };
    match &matches.host {
        Some(HostMatch::Exact(host)) => put("host", json!(host)),
        Some(HostMatch::Suffix(suffix)) => put("host", json!(format!("*{suffix}"))),
        Some(HostMatch::Regex(expression)) => put("host", json!({ "regex": expression.as_str() })),
        None => {}
    }
    match &matches.path {
        Some(PathMatch::Exact(path)) => put("path", json!(path)),
        Some(PathMatch::Prefix(prefix)) => {
            put("path", json!({ "prefix": if prefix.is_empty() { "/" } else { prefix } }))
        }
        Some(PathMatch::Regex(expression)) => put("path", json!({ "regex": expression.as_str() })),
        Some(PathMatch::Template(segments)) => put("path", json!({ "template": written(segments) })),
        None => {}
    }
    if !matches.methods.is_empty() {
        put("methods", json!(matches.methods));
    }
    for (key, texts) in [("headers", &matches.headers), ("query", &matches.query), ("cookies", &matches.cookies)] {
        if !texts.is_empty() {
            put(key, texts.iter().map(|(name, text)| (name.clone(), show_text(text))).collect::<Map<_, _>>().into());
        }
    }
    if let Some(grpc) = &matches.grpc {
        put("grpc", json!({ "service": grpc.service, "method": grpc.method }));
    }
    if let Some(caller) = &matches.caller {
        put("caller", show_caller(caller));
    }
    shown.into()
}

/// As it would be written.
pub(in super::super) fn show_caller(caller: &CallerMatch) -> Json {
    let namespace = caller.namespace.as_ref().map(ToString::to_string);
    json!({ "namespace": namespace, "cgroup": caller.cgroup.as_ref().map(ToString::to_string) })
}

fn written(segments: &[Segment]) -> String {
    let one = |segment: &Segment| match segment {
        Segment::Literal(text) => format!("/{text}"),
        Segment::Named(name) => format!("/{{{name}}}"),
    };
    segments.iter().map(one).collect()
}

fn show_text(text: &TextMatch) -> Json {
    match text {
        TextMatch::Exact(text) => json!(text),
        TextMatch::Prefix(text) => json!({ "prefix": text }),
        TextMatch::Suffix(text) => json!({ "suffix": text }),
        TextMatch::Regex(expression) => json!({ "regex": expression.as_str() }),
        TextMatch::Present => json!({ "present": "on" }),
        TextMatch::Absent => json!({ "present": "off" }),
    }
}
