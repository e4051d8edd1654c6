//! What requests and responses of a service pass: its key `filters`.

mod content;
mod identity;
mod remote;
mod show;
#[cfg(test)]
mod tests;

use std::{collections::HashSet, time::Duration};

use http::HeaderValue;

pub use self::identity::keys_of;
pub(super) use self::{identity::FILES, show::show_all};
use super::{
    SWITCHES,
    capture::{cidr, each},
    milliseconds,
    route::{caller, expression, field_name, header_changes, matches, method},
    section::{Field, Path, Position, Problems, Section, shown},
    service::service_name,
    tree::Value,
};
use crate::config::{
    Mode, Protocol,
    filter::{Access, Callers, Cors, Direction, FILTERS_MAX, Fault, Filter, Headers, Kind, Origin, RequestId},
    route::{Expression, HeaderChanges, Template},
};

const DELAY_MS_MAX: u32 = 3_600_000;
const BYTES_MAX: u32 = u32::MAX;
const AGE_S_MAX: u32 = 86_400; // no browser remembers for longer
const GRPC_STATUS_MAX: u32 = 16;
const REQUEST_ID: &str = "x-request-id";
const METHODS: [&str; 3] = ["GET", "HEAD", "POST"]; // what the Fetch standard lets pass without asking
const VERSIONS: [(&str, bool); 2] = [("v4", false), ("v7", true)];
const COMMON: [&str; 3] = ["kind", "name", "match"];

/// The filters, and what each needs to know beside what all do.
const KINDS: [(&str, &[&str]); 12] = [
    ("headers", &["request", "response"]),
    ("request_id", &["header", "uuid", "keep", "respond"]),
    ("cors", &["origins", "methods", "headers", "expose", "credentials", "max_age_s"]),
    ("access", &["allow", "deny"]),
    ("body_limit", &["bytes_max"]),
    (
        "fault",
        &["percent", "delay_ms", "abort_status", "grpc_status", "reset", "bandwidth_bytes_per_second", "direction"],
    ),
    ("api_key", identity::API_KEY),
    ("basic", identity::BASIC),
    ("jwt", identity::JWT),
    ("external_auth", identity::EXTERNAL),
    ("cache", content::CACHE),
    ("compress", content::COMPRESS),
];

/// Services that are named, each with its place.
pub(super) type Named = Vec<(Position, String, String)>;

/// Reads the key of a service if it is there; notes the services that it names.
pub(super) fn filters(
    section: &Section<'_>,
    mode: Option<Mode>,
    protocol: Option<Protocol>,
    named: &mut Named,
    problems: &mut Problems,
) -> Option<Vec<Filter>> {
    let Some(field) = section.get("filters") else { return Some(Vec::new()) };
    if mode == Some(Mode::Kernel) || matches!(protocol, Some(Protocol::Tcp | Protocol::Udp)) {
        let what = "look at requests, and those of this service are not seen by the agent; write protocol: http or http2, \
                    or leave the key out";
        field.refuse(what, problems);
    }
    let items = field.list(problems)?;
    if items.len() > FILTERS_MAX {
        field.refuse(format!("has more than {FILTERS_MAX} filters; write fewer"), problems);
        return None;
    }
    let mut names = HashSet::new();
    let filter = |(index, node)| {
        let field = Field { node, path: Path::Item(&field.path, index) };
        let filter = filter(&field, named, problems)?;
        if !names.insert(filter.name.clone()) {
            let what = format!("another filter of the service is named {}; write a name for each", filter.name);
            field.refuse(what, problems);
        }
        Some(filter)
    };
    let filters: Vec<Option<Filter>> = items.iter().enumerate().map(filter).collect();
    filters.into_iter().collect()
}

fn filter(field: &Field<'_>, named: &mut Named, problems: &mut Problems) -> Option<Filter> {
    let all: Vec<&str> = COMMON.into_iter().chain(KINDS.iter().flat_map(|(_, keys)| keys.iter().copied())).collect();
    let section = Section::open(field.node, &field.path, &all, problems)?;
    let words = KINDS.map(|kind| (kind.0, kind));
    let remedy = "write what the filter does: headers, cors, access, fault, …";
    let (word, keys) = section.require("kind", remedy, problems)?.choice(&words, problems)?;
    let foreign: HashSet<&str> = KINDS.iter().flat_map(|(_, keys)| keys.iter().copied()).collect();
    for key in foreign.into_iter().filter(|key| !keys.contains(key)) {
        if let Some(field) = section.get(key) {
            field.refuse(format!("says nothing with kind: {word}; remove it"), problems);
        }
    }
    let name = section.or("name", || word.to_owned(), service_name, problems);
    let matches = section.or("match", || None, |field, p| matches(field, p).map(Some), problems);
    let kind = match word {
        "headers" => headers(&section, problems).map(Kind::Headers),
        "request_id" => request_id(&section, problems).map(Kind::RequestId),
        "cors" => cors(&section, problems).map(Kind::Cors),
        "access" => access(&section, problems).map(Kind::Access),
        "body_limit" => {
            let most = section.require("bytes_max", "write how many bytes a body may have", problems)?;
            most.integer(0..=BYTES_MAX, problems).map(|bytes| Kind::BodyLimit(bytes.into()))
        }
        "api_key" => identity::api_key(&section, problems).map(Kind::ApiKey),
        "basic" => identity::basic(&section, problems).map(Kind::Basic),
        "jwt" => identity::jwt(&section, problems).map(Kind::Jwt),
        "external_auth" => identity::external(&section, named, problems).map(Kind::External),
        "cache" => content::cache(&section, problems).map(Kind::Cache),
        "compress" => content::compress(&section, problems).map(Kind::Compress),
        _ => fault(&section, problems).map(Kind::Fault),
    };
    Some(Filter { name: name?, matches: matches?, kind: kind? })
}

fn headers(section: &Section<'_>, problems: &mut Problems) -> Option<Headers> {
    let mut changes = |key| section.or(key, HeaderChanges::default, plain_changes, problems);
    let headers = Headers { request: changes("request")?, response: changes("response")? };
    if headers == Headers::default() {
        let what = "changes nothing; write request or response: {set: {NAME: VALUE}, add: …, remove: [NAME]}";
        problems.note(section.at, section.path, what);
        return None;
    }
    Some(headers)
}

/// Changes whose values take nothing from a route.
fn plain_changes(field: &Field<'_>, problems: &mut Problems) -> Option<HeaderChanges> {
    let changes = header_changes(field, problems)?;
    let name = changes.set.iter().chain(&changes.add).flat_map(|(_, template)| Template::names(template)).next();
    if let Some(name) = name {
        let what = format!("takes {{{}}}, and a filter captures nothing; write {{{{ and }}}} for braces", shown(name));
        field.refuse(what, problems);
        return None;
    }
    Some(changes)
}

fn request_id(section: &Section<'_>, problems: &mut Problems) -> Option<RequestId> {
    let name = |field: &Field<'_>, p: &mut Problems| field_name(field.text(p)?, field, p);
    let header = section.or("header", || REQUEST_ID.to_owned(), name, problems);
    let by_time = section.or("uuid", || true, |field, p| field.choice(&VERSIONS, p), problems);
    let keeps = section.or("keep", || true, |field, p| field.choice(&SWITCHES, p), problems);
    let responds = section.or("respond", || true, |field, p| field.choice(&SWITCHES, p), problems);
    Some(RequestId { header: header?, by_time: by_time?, keeps: keeps?, responds: responds? })
}

fn cors(section: &Section<'_>, problems: &mut Problems) -> Option<Cors> {
    let names = |field: &Field<'_>, p: &mut Problems| each(field, p, |it, p| field_name(it.text(p)?, it, p));
    let listed =
        section.require("origins", "list who may ask: https://a.example, \"*.example\" or {regex: …}", problems);
    let origins = listed.and_then(|field| each(&field, problems, origin));
    let usual = || METHODS.map(str::to_owned).to_vec();
    let methods = section.or("methods", usual, |field, p| each(field, p, method), problems);
    let headers = section.or("headers", || None, |field, p| names(field, p).map(Some), problems);
    let expose = section.or("expose", Vec::new, names, problems);
    let credentials = section.or("credentials", || false, |field, p| field.choice(&SWITCHES, p), problems);
    let age = |field: &Field<'_>, p: &mut Problems| field.integer(0..=AGE_S_MAX, p).map(Some);
    let max_age = section.or("max_age_s", || None, age, problems);
    let cors = Cors {
        origins: origins?,
        methods: methods?,
        headers: headers?,
        expose: expose?,
        credentials: credentials?,
        max_age: max_age?.map(|seconds| Duration::from_secs(seconds.into())),
    };
    if let (true, true, Some(field)) = (cors.credentials, cors.origins.contains(&Origin::Any), listed) {
        field.refuse("lets every page act as its visitor, with credentials: on; list the origins that may", problems);
    }
    Some(cors)
}

fn origin(field: &Field<'_>, problems: &mut Problems) -> Option<Origin> {
    if let Value::Map(_) = &field.node.value {
        let section = Section::open(field.node, &field.path, &["regex"], problems)?;
        let regex = section.require("regex", "write the expression that an origin fits", problems)?;
        return expression(&regex, Expression::whole, problems).map(Origin::Regex);
    }
    let text = field.text(problems)?;
    if text == "*" {
        return Some(Origin::Any);
    }
    if let Some(suffix) = text.strip_prefix('*').filter(|suffix| suffix.starts_with('.') && suffix.len() > 1) {
        return Some(Origin::Suffix(suffix.to_ascii_lowercase()));
    }
    let host = text.split_once("://").map(|(_, host)| host);
    if host.is_some_and(|host| !host.is_empty() && !host.contains('/')) && HeaderValue::from_str(text).is_ok() {
        return Some(Origin::Exact(text.to_owned()));
    }
    let what =
        format!("\"{}\" is no origin; write https://a.example, \"*.example\", \"*\" or {{regex: …}}", shown(text));
    field.refuse(what, problems);
    None
}

fn access(section: &Section<'_>, problems: &mut Problems) -> Option<Access> {
    let allow = section.or("allow", || None, |field, p| callers(field, p).map(Some), problems);
    let deny = section.or("deny", Callers::default, callers, problems);
    if section.get("allow").or(section.get("deny")).is_none() {
        let what = "refuses nobody; write allow or deny: {sources: [10.0.0.0/8], callers: [{namespace: NAME}]}";
        problems.note(section.at, section.path, what);
    }
    Some(Access { allow: allow?, deny: deny? })
}

fn callers(field: &Field<'_>, problems: &mut Problems) -> Option<Callers> {
    let section = Section::open(field.node, &field.path, &["sources", "callers"], problems)?;
    let sources = section.or("sources", Vec::new, |field, p| each(field, p, cidr), problems);
    let callers = section.or("callers", Vec::new, |field, p| each(field, p, caller), problems);
    Some(Callers { sources: sources?, callers: callers? })
}

pub(super) fn fault(section: &Section<'_>, problems: &mut Problems) -> Option<Fault> {
    let mut number = |key, default: Option<u32>, range| {
        section.or(key, || default, |field, p| field.integer(range, p).map(Some), problems)
    };
    let percent = number("percent", Some(100), 0..=100);
    let delay = number("delay_ms", None, 0..=DELAY_MS_MAX);
    let abort = number("abort_status", None, 200..=599);
    let grpc_status = number("grpc_status", None, 1..=GRPC_STATUS_MAX);
    let bandwidth = number("bandwidth_bytes_per_second", None, 1..=BYTES_MAX);
    let reset = section.or("reset", || false, |field, p| field.choice(&SWITCHES, p), problems);
    let direction =
        section.or("direction", Direction::default, |field, p| field.choice(&Direction::NAMES, p), problems);
    let fault = Fault {
        percent: percent?.unwrap_or(100),
        delay: delay?.map(milliseconds).unwrap_or_default(),
        abort: abort?.map(|status| status as u16),
        grpc_status: grpc_status?.map(|status| status as u8),
        reset: reset?,
        bandwidth: bandwidth?,
        direction: direction?,
    };
    let ends = ["abort_status", "reset", "bandwidth_bytes_per_second"].map(|key| section.get(key));
    if let [_, other, ..] = ends.iter().flatten().collect::<Vec<_>>().as_slice() {
        other.refuse("a request goes wrong in one way; write a filter for each", problems);
    }
    if let (Some(field), None) = (section.get("grpc_status"), fault.abort) {
        field.refuse("is told with abort_status; write that, too", problems);
    }
    if let (Some(field), None) = (section.get("direction"), fault.bandwidth) {
        field.refuse("is of a narrow line; write bandwidth_bytes_per_second, too", problems);
    }
    if section.get("delay_ms").is_none() && ends.iter().all(Option::is_none) {
        let what = "nothing goes wrong; write delay_ms, abort_status, reset: on or bandwidth_bytes_per_second";
        problems.note(section.at, section.path, what);
    }
    Some(fault)
}
