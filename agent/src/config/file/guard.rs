//! What keeps a service alive when its endpoints fail: its keys `breaker`, `endpoint_breaker`, `isolation`, `fallback`, `degrade` and `reason_header`.

mod show;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use http::HeaderValue;

pub(super) use self::show::{breaker as show_breaker, show};
use super::{
    SWITCHES, milliseconds,
    route::{self, own_field_name},
    section::{Field, Path, Position, Problem, Problems, Section, shown},
    service::service_name,
    threshold::thresholds,
    tree::Value,
};
use crate::config::{
    Mode, Protocol,
    guard::{
        Breaker, Degrade, DegradeTo, Fallback, Guard, Instead, Isolation, Kind, OnOpen, Over, PROBES_MAX, Respond, Why,
    },
    request_limit::COUNT_MAX,
};

/// The keys of a service.
pub(super) const KEYS: [&str; 7] =
    ["breaker", "endpoint_breaker", "thresholds", "isolation", "fallback", "degrade", "reason_header"];

const TIME_MS_MAX: u32 = 3_600_000;
const TIMEOUT_MS: u32 = 1_000; // Hystrix's, as are the next six
const CONCURRENCY: u32 = 10;
const REQUESTS: u32 = 20;
const PERCENT: u32 = 50;
const OPEN_MS: u32 = 5_000;
const WINDOW_MS: u32 = 10_000;
const BUCKETS: u32 = 10;
const TEXTBOOK_OPEN_MS: u32 = 500;
const SENTINEL_REQUESTS: u32 = 5; // minRequestAmount
const SENTINEL_WINDOW_MS: u32 = 1_000; // statIntervalMs, counted in one piece
const SLOW_PERCENT: u32 = 100; // Sentinel's slowRatioThreshold, resilience4j's slowCallRateThreshold
const FAILURES: u32 = 5; // Envoy's consecutive_5xx
const RATE: u32 = 50;
const RATE_OPEN_MS: u32 = 30_000;
const STATUS: u32 = 503;
const SWITCH_CHARS_MAX: usize = 63; // as names of services: a bound on the label of a metric
const GRPC_STATUS_MAX: u32 = 16;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Preset {
    Hystrix,
    Textbook,
    Sentinel,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Word {
    ErrorRatio,
    ErrorCount,
    SlowCalls,
    Consecutive,
    TriggerRate,
}

const PRESETS: [(&str, Preset); 3] =
    [("hystrix", Preset::Hystrix), ("textbook", Preset::Textbook), ("sentinel", Preset::Sentinel)];
const WORDS: [(&str, Word); 5] = [
    ("error_ratio", Word::ErrorRatio),
    ("error_count", Word::ErrorCount),
    ("slow_calls", Word::SlowCalls),
    ("consecutive", Word::Consecutive),
    ("trigger_rate", Word::TriggerRate),
];
const ON_OPEN: [(&str, bool); 2] = [("fallback", true), ("fail", false)];
const BREAKER_KEYS: [&str; 13] = [
    "preset",
    "kind",
    "window_ms",
    "requests_min",
    "error_percent",
    "errors",
    "slow_ms",
    "slow_percent",
    "failures",
    "rate",
    "open_ms",
    "half_open_requests",
    "on_open",
];
/// Who knows a key that not all do.
const OF: [(&str, &[Word]); 8] = [
    ("window_ms", &[Word::ErrorRatio, Word::ErrorCount, Word::SlowCalls]),
    ("requests_min", &[Word::ErrorRatio, Word::ErrorCount, Word::SlowCalls]),
    ("error_percent", &[Word::ErrorRatio]),
    ("errors", &[Word::ErrorCount]),
    ("slow_ms", &[Word::SlowCalls]),
    ("slow_percent", &[Word::SlowCalls]),
    ("failures", &[Word::Consecutive]),
    ("rate", &[Word::TriggerRate]),
];

/// What is named and must be there, each with its place.
#[derive(Default)]
pub(super) struct Named {
    pub(super) services: Vec<(Position, String, String)>,
    pub(super) switches: Vec<(Position, String, String)>,
}

impl Named {
    fn service(&mut self, field: &Field<'_>, problems: &mut Problems) -> Option<String> {
        let name = service_name(field, problems)?;
        self.services.push((field.node.at, field.path.to_string(), name.clone()));
        Some(name)
    }
}

/// Reads the keys that are there.
pub(super) fn guard(
    section: &Section<'_>,
    (protocol, mode): (Option<Protocol>, Option<Mode>),
    named: &mut Named,
    problems: &mut Problems,
) -> Option<Guard> {
    let is_balanced = mode == Some(Mode::Kernel) && protocol != Some(Protocol::Udp);
    let is_relayed = protocol == Some(Protocol::Tcp) && mode == Some(Mode::Agent);
    if mode == Some(Mode::Kernel) || matches!(protocol, Some(Protocol::Tcp | Protocol::Udp)) {
        for key in KEYS {
            if (is_relayed && key == "fallback") || (is_balanced && key == "breaker") {
                continue;
            }
            let Some(field) = section.get(key) else { continue };
            let what = match (key, protocol) {
                ("fallback", Some(Protocol::Tcp)) => {
                    "is dialled by the agent; write mode: agent, or list backups among the endpoints, with a priority"
                }
                _ => {
                    "is about requests, and those of this service are not seen by the agent; write protocol: http or \
                     http2, or remove it"
                }
            };
            field.refuse(what, problems);
        }
    }
    let [own, of_endpoints] = ["breaker", "endpoint_breaker"]
        .map(|key| section.or(key, || None, |field, p| breaker(field, named, p).map(Some), problems));
    if let (true, Some(field), Some(Some(breaker))) = (is_balanced, section.get("breaker"), &own) {
        refuse_of_requests(&field, breaker, problems);
    }
    let thresholds = section.or("thresholds", || None, |field, p| thresholds(field, p).map(Some), problems);
    let isolation = section.or("isolation", || None, |field, p| isolation(field, p).map(Some), problems);
    let fallback =
        section.or("fallback", || None, |field, p| fallback(field, is_relayed, named, p).map(Some), problems);
    let degrade = section.or("degrade", || None, |field, p| degrade(field, named, p).map(Some), problems);
    let tells_reason = section.or("reason_header", || false, |field, p| field.choice(&SWITCHES, p), problems);
    Some(Guard {
        breaker: own?,
        endpoint_breaker: of_endpoints?,
        thresholds: thresholds?,
        isolation: isolation?,
        fallback: fallback?,
        degrade: degrade?,
        tells_reason: tells_reason?,
    })
}

/// Of connections that the kernel balances, all that is known is whether the handshake succeeded.
fn refuse_of_requests(field: &Field<'_>, breaker: &Breaker, problems: &mut Problems) {
    if matches!(breaker.kind, Kind::SlowCalls { .. } | Kind::Rate(_)) {
        let what = "goes by how long requests take or how often they come, which nobody sees of a service that the kernel \
                    balances; write kind: consecutive, error_ratio or error_count";
        field.refuse(what, problems);
    }
    if let OnOpen::Cluster(_) = breaker.on_open {
        let what = "names another service, and what the kernel balances is refused at connect(); leave on_open out, or list \
                    backups among the endpoints, with a priority";
        field.refuse(what, problems);
    }
}

/// That of a route; the service that it names is noted with those that the routes do.
pub(super) fn breaker_of_route(
    field: &Field<'_>,
    named: &mut Vec<(Position, String, String)>,
    problems: &mut Problems,
) -> Option<Breaker> {
    let mut names = Named::default();
    let read = breaker(field, &mut names, problems);
    named.append(&mut names.services);
    read
}

fn breaker(field: &Field<'_>, named: &mut Named, problems: &mut Problems) -> Option<Breaker> {
    if let Value::Text(_) = field.node.value {
        let preset = field.choice(&PRESETS, problems)?;
        return read_breaker(preset, &Section::alone(field), named, problems);
    }
    let section = Section::open(field.node, &field.path, &BREAKER_KEYS, problems)?;
    let preset = section.or("preset", || Preset::Hystrix, |field, p| field.choice(&PRESETS, p), problems)?;
    read_breaker(preset, &section, named, problems)
}

fn read_breaker(preset: Preset, section: &Section<'_>, named: &mut Named, problems: &mut Problems) -> Option<Breaker> {
    let is_sentinel = preset == Preset::Sentinel;
    let usual = if is_sentinel { Word::SlowCalls } else { Word::ErrorRatio };
    let word = section.or("kind", || usual, |field, p| field.choice(&WORDS, p), problems)?;
    for (key, words) in &OF {
        if let (Some(field), false) = (section.get(key), words.contains(&word)) {
            let name = WORDS.iter().find(|(_, it)| *it == word).map_or("", |(name, _)| name);
            field.refuse(format!("says nothing with kind: {name}; remove it"), problems);
        }
    }
    let kind = kind(word, is_sentinel, section, problems);
    let open_ms = match (word, preset) {
        (Word::TriggerRate, _) => Some(RATE_OPEN_MS),
        (_, Preset::Hystrix) => Some(OPEN_MS),
        (_, Preset::Textbook) => Some(TEXTBOOK_OPEN_MS),
        (_, Preset::Sentinel) => None,
    };
    let open_ms = number(section, "open_ms", open_ms, 1..=TIME_MS_MAX, "write how long it is open", problems);
    let probes = if word == Word::TriggerRate { 0 } else { 1 };
    let probes = number(section, "half_open_requests", Some(probes), 0..=PROBES_MAX, "", problems);
    let on_open = section.or("on_open", || OnOpen::Fallback, |field, p| on_open(field, named, p), problems);
    Some(Breaker {
        kind: kind?,
        open_for: milliseconds(open_ms?),
        half_open_requests: probes?,
        rests_from_try: !is_sentinel,
        counts_rejected: !is_sentinel,
        on_open: on_open?,
    })
}

/// A number; one without a default must be there.
fn number<'t>(
    section: &Section<'t>,
    key: &'t str,
    default: Option<u32>,
    range: std::ops::RangeInclusive<u32>,
    remedy: &str,
    problems: &mut Problems,
) -> Option<u32> {
    match default {
        Some(default) => section.or(key, || default, |field, p| field.integer(range, p), problems),
        None => section.require(key, remedy, problems)?.integer(range, problems),
    }
}

fn kind(word: Word, is_sentinel: bool, section: &Section<'_>, problems: &mut Problems) -> Option<Kind> {
    let over = |problems: &mut Problems| {
        let (window, requests, buckets) = match is_sentinel {
            true => (SENTINEL_WINDOW_MS, SENTINEL_REQUESTS, 1),
            false => (WINDOW_MS, REQUESTS, BUCKETS),
        };
        let window = number(section, "window_ms", Some(window), 1..=TIME_MS_MAX, "", problems);
        let requests = number(section, "requests_min", Some(requests), 1..=COUNT_MAX, "", problems);
        Some(Over { window: milliseconds(window?), buckets, requests: requests? })
    };
    Some(match word {
        Word::ErrorRatio => {
            let usual = (!is_sentinel).then_some(PERCENT);
            let remedy = "write how many of a hundred requests may fail";
            let percent = number(section, "error_percent", usual, 1..=100, remedy, problems);
            let over = over(problems)?;
            Kind::ErrorRatio { percent: percent?, over }
        }
        Word::ErrorCount => {
            let remedy = "write how many failures open it";
            let errors = number(section, "errors", None, 1..=COUNT_MAX, remedy, problems);
            let over = over(problems)?;
            Kind::ErrorCount { errors: errors?, over }
        }
        Word::SlowCalls => {
            let remedy = "write after how long a request is slow";
            let slow = number(section, "slow_ms", None, 1..=TIME_MS_MAX, remedy, problems);
            let percent = number(section, "slow_percent", Some(SLOW_PERCENT), 1..=100, "", problems);
            let over = over(problems)?;
            Kind::SlowCalls { slow: milliseconds(slow?), percent: percent?, over }
        }
        Word::Consecutive => {
            Kind::Consecutive(number(section, "failures", Some(FAILURES), 1..=COUNT_MAX, "", problems)?)
        }
        Word::TriggerRate => Kind::Rate(number(section, "rate", Some(RATE), 1..=COUNT_MAX, "", problems)?),
    })
}

fn on_open(field: &Field<'_>, named: &mut Named, problems: &mut Problems) -> Option<OnOpen> {
    if let Value::Text(_) = field.node.value {
        let falls_back = field.choice(&ON_OPEN, problems)?;
        return Some(if falls_back { OnOpen::Fallback } else { OnOpen::Fail });
    }
    let section = Section::open(field.node, &field.path, &["cluster"], problems)?;
    let cluster =
        section.require("cluster", "write the service that is asked instead, or fail or fallback", problems)?;
    named.service(&cluster, problems).map(OnOpen::Cluster)
}

fn isolation(field: &Field<'_>, problems: &mut Problems) -> Option<Isolation> {
    let hystrix = Isolation { timeout: Some(milliseconds(TIMEOUT_MS)), concurrency: Some(CONCURRENCY) };
    let presets = &PRESETS[..2];
    if let Value::Text(_) = field.node.value {
        return field.choice(presets, problems).map(|_| hystrix);
    }
    let section = Section::open(field.node, &field.path, &["preset", "timeout_ms", "max_concurrency"], problems)?;
    let usual = section.or("preset", || None, |field, p| field.choice(presets, p).map(|_| Some(hystrix)), problems)?;
    let nothing = Isolation { timeout: None, concurrency: None };
    let usual = usual.unwrap_or(nothing);
    let timeout = section.or(
        "timeout_ms",
        || usual.timeout,
        |field, p| field.integer(1..=TIME_MS_MAX, p).map(|ms| Some(milliseconds(ms))),
        problems,
    );
    let concurrency = section.or(
        "max_concurrency",
        || usual.concurrency,
        |field, p| field.integer(1..=COUNT_MAX, p).map(Some),
        problems,
    );
    let isolation = Isolation { timeout: timeout?, concurrency: concurrency? };
    if isolation == nothing {
        field.refuse("isolates from nothing; write timeout_ms or max_concurrency, or preset: hystrix", problems);
    }
    Some(isolation)
}

/// Of a connection that is only relayed, all that can be known is that it was not to be had.
fn fallback(field: &Field<'_>, is_relayed: bool, named: &mut Named, problems: &mut Problems) -> Option<Fallback> {
    let section = Section::open(field.node, &field.path, &["on", "respond", "to", "max_concurrency"], problems)?;
    if let (true, Some(field)) = (is_relayed, section.get("respond")) {
        field.refuse("is an answer of HTTP, which is not what is spoken here; write to: SERVICE", problems);
    }
    let usual = || match is_relayed {
        true => vec![Why::Unreached],
        false => usual_whys(),
    };
    let on = section.or("on", usual, whys, problems);
    if let (true, Some(field), Some(on)) = (is_relayed, section.get("on"), &on)
        && *on != [Why::Unreached]
    {
        field.refuse("says what can be known of requests alone; write [unreached], or leave it out", problems);
    }
    let instead = match (section.get("respond"), section.get("to")) {
        (Some(field), None) => respond(&field, problems).map(Instead::Respond),
        (None, Some(field)) => named.service(&field, problems).map(Instead::To),
        (_, second) => {
            let field = second.as_ref().unwrap_or(field);
            field.refuse("one thing stands in: write either respond or to", problems);
            None
        }
    };
    let bound = |field: &Field<'_>, p: &mut Problems| field.integer(1..=COUNT_MAX, p).map(Some);
    let concurrency = section.or("max_concurrency", || None, bound, problems);
    if let (Some(field), Some(Instead::Respond(_))) = (section.get("max_concurrency"), &instead) {
        field.refuse("says nothing where an answer is given at once; remove it", problems);
    }
    Some(Fallback { on: on?, instead: instead?, concurrency: concurrency? })
}

/// All that is no answer of an endpoint.
fn usual_whys() -> Vec<Why> {
    Why::ALL.into_iter().filter(|why| !matches!(why, Why::ServerError | Why::Degraded)).collect()
}

fn whys(field: &Field<'_>, problems: &mut Problems) -> Option<Vec<Why>> {
    let words: Vec<(&str, Why)> =
        Why::ALL.into_iter().filter(|why| *why != Why::Degraded).map(|why| (why.word(), why)).collect();
    let items = field.list(problems)?;
    let mut read = Vec::new();
    for (index, node) in items.iter().enumerate() {
        let why = Field { node, path: Path::Item(&field.path, index) }.choice(&words, problems)?;
        if !read.contains(&why) {
            read.push(why);
        }
    }
    if read.is_empty() {
        field.refuse("stands in for nothing; write circuit_open, limit, timeout, …, or leave it out", problems);
    }
    Some(read)
}

fn respond(field: &Field<'_>, problems: &mut Problems) -> Option<Respond> {
    let section = Section::open(field.node, &field.path, &["status", "body", "headers", "grpc_status"], problems)?;
    let status = section.or("status", || STATUS, |field, p| field.integer(200..=599, p), problems)? as u16;
    let body = section.or("body", String::new, route::body, problems)?;
    if let (Some(field), 204 | 205 | 304) = (section.get("body"), status) {
        field.refuse(format!("{status} has no body; remove it"), problems);
    }
    let headers = section.or("headers", Vec::new, headers, problems);
    let code = |field: &Field<'_>, p: &mut Problems| field.integer(1..=GRPC_STATUS_MAX, p).map(|code| Some(code as u8));
    let grpc_status = section.or("grpc_status", || None, code, problems);
    Some(Respond { status, body, headers: headers?, grpc_status: grpc_status? })
}

pub(super) fn headers(field: &Field<'_>, problems: &mut Problems) -> Option<Vec<(String, String)>> {
    let entries = route::entries(field, "NAME: VALUE", problems)?;
    let mut read = Vec::new();
    for (key, node) in entries {
        let field = Field { node, path: Path::Key(&field.path, &key.text) };
        let name = own_field_name(&key.text, &field, problems);
        let value = field.text(problems)?;
        if HeaderValue::from_str(value).is_err() {
            field.refuse("holds what no head can: a line end or another control character; remove it", problems);
            return None;
        }
        read.push((name?, value.to_owned()));
    }
    Some(read)
}

fn degrade(field: &Field<'_>, named: &mut Named, problems: &mut Problems) -> Option<Degrade> {
    let section = Section::open(field.node, &field.path, &["switch", "respond", "shift"], problems)?;
    let switch = section.require("switch", "write the name of one of the file's switches", problems)?;
    let name = service_name(&switch, problems)?;
    named.switches.push((switch.node.at, switch.path.to_string(), name.clone()));
    let to = match (section.get("respond"), section.get("shift")) {
        (Some(field), None) => DegradeTo::Respond(respond(&field, problems)?),
        (None, Some(field)) => {
            let section = Section::open(field.node, &field.path, &["percent", "to"], problems)?;
            let percent = section.or("percent", || 100, |field, p| field.integer(1..=100, p), problems);
            let to = section.require("to", "write the service that takes them", problems)?;
            let to = named.service(&to, problems);
            DegradeTo::Shift { percent: percent?, to: to? }
        }
        (_, second) => {
            second.as_ref().unwrap_or(field).refuse("write either respond or shift", problems);
            return None;
        }
    };
    Some(Degrade { switch: name, to })
}

/// The key `switches` of the file: names, and whether they are on.
pub(super) fn switches(field: &Field<'_>, problems: &mut Problems) -> Option<BTreeMap<String, bool>> {
    let entries = route::entries(field, "NAME: on", problems)?;
    let mut read = BTreeMap::new();
    for (key, node) in entries {
        let field = Field { node, path: Path::Key(&field.path, &key.text) };
        let fits = (1..=SWITCH_CHARS_MAX).contains(&key.text.len());
        if !fits || !key.text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(&b)) {
            let what = format!(
                "\"{}\" is no name of a switch; write 1 to {SWITCH_CHARS_MAX} of A-Z, a-z, 0-9 and . _ - /",
                shown(&key.text)
            );
            field.refuse(what, problems);
            continue;
        }
        read.insert(key.text.clone(), field.choice(&SWITCHES, problems)?);
    }
    Some(read)
}

/// Notes switches that are named and that the file does not have.
pub(super) fn refuse_unknown_switches(
    named: &Named,
    switches: Option<&BTreeMap<String, bool>>,
    problems: &mut Problems,
) {
    let Some(switches) = switches else { return };
    for (at, path, name) in named.switches.iter().filter(|(_, _, name)| !switches.contains_key(name)) {
        let what =
            format!("\"{name}\" is none of the file's switches; write switches: {{{name}: off}} at its top level");
        problems.0.push(Problem { at: *at, path: path.clone(), what });
    }
}
