//! How many requests a service takes: its key `request_limits`.

mod kind;

use std::{
    collections::{BTreeSet, HashSet},
    time::Duration,
};

use serde_json::{Value as Json, json};

use super::{
    SWITCHES, calendar, milliseconds,
    section::{Field, Path, Problems, Section},
    service::service_name,
    tree::Value,
    tuning,
};
use crate::config::{
    Guard, Mode, Protocol,
    request_limit::{COUNT_MAX, Kind, OnLimit, RequestLimit},
    zone::Zone,
};

const LIMITS_MAX: usize = 16; // each is asked for each request
const KEYS: u32 = 10_000;
const KEYS_MAX: u32 = 1 << 24;
const STATUS: u32 = 429;
const STATUS_FOUND: u32 = 503; // Envoy's, where the limit is what a service can do, and not what it was given

const WAIT_MS_MAX: u32 = 60_000;

const GRPC: [(&str, bool); 2] = [("unavailable", false), ("resource_exhausted", true)];
const COMMON: [&str; 8] = ["name", "kind", "between", "utc_offset", "time_zone", "on_limit", "status", "grpc_status"];
const ON_LIMIT: [(&str, OnLimit); 3] =
    [("reject", OnLimit::Reject), ("fallback", OnLimit::Fallback), ("break", OnLimit::Break)];
/// Those for which nobody can wait, and why, and what to write instead.
const NEVER_WAITING: [(&str, &str); 5] = [
    (
        "warm_up",
        "how many pass in a second depends on how many come until then, so that nobody knows whose turn it is when; use token_bucket",
    ),
    (
        "gradient",
        "it finds how much room there is for all requests of the service; write pending there, where requests wait for that",
    ),
    (
        "bbr",
        "it finds how much room there is for all requests of the service; write pending there, where requests wait for that",
    ),
    ("admission", "it refuses by chance, and nobody's turn comes; write on_limit: reject"),
    ("client_throttling", "it refuses by chance, and nobody's turn comes; write on_limit: reject"),
];

/// Reads the key if it is there.
pub(super) fn request_limits(
    section: &Section<'_>,
    mode: Option<Mode>,
    protocol: Option<Protocol>,
    problems: &mut Problems,
) -> Option<Vec<RequestLimit>> {
    let Some(field) = section.get("request_limits") else { return Some(Vec::new()) };
    if mode == Some(Mode::Kernel) || matches!(protocol, Some(Protocol::Tcp | Protocol::Udp)) {
        let what = "counts requests, and those of this service are not seen by the agent; write protocol: http or http2, \
                    or limits, which counts connections in the kernel";
        field.refuse(what, problems);
    }
    read(&field, problems)
}

/// As [`request_limits`], of a route.
pub(super) fn of_route(section: &Section<'_>, problems: &mut Problems) -> Option<Vec<RequestLimit>> {
    let Some(field) = section.get("request_limits") else { return Some(Vec::new()) };
    read(&field, problems)
}

fn read(field: &Field<'_>, problems: &mut Problems) -> Option<Vec<RequestLimit>> {
    let items = field.list(problems)?;
    if items.len() > LIMITS_MAX {
        field.refuse(format!("has more than {LIMITS_MAX} limits; write fewer"), problems);
        return None;
    }
    let mut names = HashSet::new();
    let limit = |(index, node)| {
        let field = Field { node, path: Path::Item(&field.path, index) };
        let limit = request_limit(&field, problems)?;
        if !names.insert(limit.name.clone()) {
            let what = format!("another limit of the service is named {}; write a name for each", limit.name);
            field.refuse(what, problems);
        }
        Some(limit)
    };
    let limits: Vec<Option<RequestLimit>> = items.iter().enumerate().map(limit).collect();
    limits.into_iter().collect()
}

fn request_limit(field: &Field<'_>, problems: &mut Problems) -> Option<RequestLimit> {
    let kinds = &kind::KINDS;
    let all: Vec<&str> = COMMON.into_iter().chain(kinds.iter().flat_map(|(_, keys)| keys.iter().copied())).collect();
    let section = Section::open(field.node, &field.path, &all, problems)?;
    let words = kinds.map(|kind| (kind.0, kind));
    let remedy = "write how requests are counted: token_bucket, leaky_bucket, sliding_window, concurrency, …";
    let (word, keys) = section.require("kind", remedy, problems)?.choice(&words, problems)?;
    let not_its: BTreeSet<&str> =
        kinds.iter().flat_map(|(_, keys)| keys.iter().copied()).filter(|key| !keys.contains(key)).collect();
    for key in not_its {
        if let Some(field) = section.get(key) {
            field.refuse(format!("says nothing with kind: {word}; remove it"), problems);
        }
    }
    let name = section.or("name", || word.to_owned(), service_name, problems);
    let zone = calendar::zone(&section, problems);
    let kind = kind::read(word, &section, zone.unwrap_or(Zone::UTC), problems);
    let of_day = |field: &Field<'_>, p: &mut Problems| calendar::hours(field, zone?, p).map(Some);
    let hours = section.or("between", || None, of_day, problems);
    let on_limit = section.or("on_limit", Default::default, |field, p| on_limit(field, word, p), problems);
    let by = section.or("by", || None, |field, p| tuning::one_part(field, p).map(Some), problems);
    if let (Some(None), Some(field)) = (&by, section.get("keys_max")) {
        field.refuse("says nothing without by, which says what is counted by itself; remove it", problems);
    }
    let keys_max = section.or("keys_max", || KEYS, |field, p| field.integer(1..=KEYS_MAX, p), problems);
    let otherwise = || if kind.is_some_and(|kind| kind.limit() == 0) { STATUS_FOUND } else { STATUS };
    let status = section.or("status", otherwise, |field, p| field.integer(400..=599, p), problems);
    let grpc = section.or("grpc_status", || false, |field, p| field.choice(&GRPC, p), problems);
    let tells_limit = section.or("headers", || false, |field, p| field.choice(&SWITCHES, p), problems);
    let cgroup = section.or("cgroup", || None, |field, p| field.path(p).map(Some), problems);
    let (mut kind, (on_limit, wait)) = (kind?, on_limit?);
    if let Some(wait) = wait {
        settle_wait(&section, &mut kind, wait, by.as_ref().is_some_and(Option::is_some), problems);
    }
    Some(RequestLimit {
        name: name?,
        kind,
        hours: hours?,
        by: by?,
        keys_max: keys_max?,
        wait_max: wait.or_else(|| queued(&kind)),
        on_limit,
        status: status? as u16,
        grpc_resource_exhausted: grpc?,
        tells_limit: tells_limit?,
        cgroup: cgroup?,
    })
}

/// What becomes of a request that does not pass, and how long it waits before that.
fn on_limit(field: &Field<'_>, kind: &str, problems: &mut Problems) -> Option<(OnLimit, Option<Duration>)> {
    if !matches!(field.node.value, Value::Map(_)) {
        return field.choice(&ON_LIMIT, problems).map(|on_limit| (on_limit, None));
    }
    let section = Section::open(field.node, &field.path, &["wait"], problems)?;
    let wait = section.require("wait", "write how long a request waits for its turn, as {max_ms: …}", problems)?;
    let section = Section::open(wait.node, &wait.path, &["max_ms"], problems)?;
    let max_ms = section.require("max_ms", "write how long a request waits at most", problems)?;
    let wait_ms = max_ms.integer(1..=WAIT_MS_MAX, problems)?;
    if let Some((_, why)) = NEVER_WAITING.iter().find(|(word, _)| *word == kind) {
        wait.refuse(format!("cannot be with kind: {kind}: {why}"), problems);
        return None;
    }
    Some((OnLimit::Reject, Some(milliseconds(wait_ms))))
}

/// What a wait means for who waits in a line of its own: that of a leaky bucket is as long as can be served in that time, unless it is said;
/// and that for places is one.
fn settle_wait(section: &Section<'_>, kind: &mut Kind, wait: Duration, has_keys: bool, problems: &mut Problems) {
    match kind {
        Kind::LeakyBucket { limit, window, queue } if *queue == 0 => {
            if let Some(field) = section.get("queue") {
                field.refuse("lets nobody wait, and on_limit says for how long; remove one of them", problems);
            }
            let served = wait.as_nanos() * u128::from(*limit) / window.as_nanos().max(1);
            *queue = u32::try_from(served).unwrap_or(COUNT_MAX).clamp(1, COUNT_MAX);
        }
        Kind::Concurrency { .. } if has_keys => {
            if let Some(field) = section.get("on_limit") {
                let what = "with by, each value would need a line of its own for those who wait for a place; remove by, or \
                            write on_limit: reject";
                field.refuse(what, problems);
            }
        }
        _ => {}
    }
}

/// Notes a limit that keeps a line of its own where its service keeps one for all.
pub(super) fn refuse_two_lines(section: &Section<'_>, limits: &[RequestLimit], problems: &mut Problems) {
    if let (Some(field), Some(_), Some(limit)) =
        (section.get("request_limits"), section.get("pending"), limits.iter().find(|limit| limit.has_line()))
    {
        let what =
            format!("{} has a line of its own, and the service has one in pending; write one of the two", limit.name);
        field.refuse(what, problems);
    }
}

/// Notes limits that call for what their service does not have.
pub(super) fn refuse_idle(section: &Section<'_>, guard: Option<&Guard>, problems: &mut Problems) {
    let Some(guard) = guard else { return };
    if let Some(field) = section.get("request_limits") {
        refuse_idle_ones(&field, guard, problems);
    }
    let Some(routes) = section.get("routes") else { return };
    let Value::List(items) = &routes.node.value else { return };
    for (index, node) in items.iter().enumerate() {
        let Value::Map(entries) = &node.value else { continue };
        // Where the requests of a route go elsewhere, it is that service's guard that is meant.
        if entries.iter().any(|(key, _)| ["to", "split", "canary"].contains(&key.text.as_str())) {
            continue;
        }
        let path = Path::Item(&routes.path, index);
        if let Some((_, node)) = entries.iter().find(|(key, _)| key.text == "request_limits") {
            refuse_idle_ones(&Field { node, path: Path::Key(&path, "request_limits") }, guard, problems);
        }
    }
}

fn refuse_idle_ones(field: &Field<'_>, guard: &Guard, problems: &mut Problems) {
    let Value::List(items) = &field.node.value else { return };
    for (index, node) in items.iter().enumerate() {
        let Value::Map(entries) = &node.value else { continue };
        let path = Path::Item(&field.path, index);
        let Some((_, node)) = entries.iter().find(|(key, _)| key.text == "on_limit") else { continue };
        let Value::Text(word) = &node.value else { continue };
        let field = Field { node, path: Path::Key(&path, "on_limit") };
        match word.as_str() {
            "fallback" if guard.fallback.is_none() => {
                field.refuse("is answered by the service's fallback, and it has none; write fallback", problems);
            }
            "break" if guard.breaker.is_none() => {
                field.refuse("opens the service's breaker, and it has none; write breaker", problems);
            }
            _ => {}
        }
    }
}

/// Who stands in a queue waits for as long as the queue takes, unless less is said.
fn queued(kind: &Kind) -> Option<Duration> {
    match *kind {
        Kind::LeakyBucket { limit, window, queue } if queue > 0 => Some(window * queue / limit),
        _ => None,
    }
}

/// As it would be written.
pub fn show(limit: &RequestLimit) -> Json {
    let mut shown = kind::show(&limit.kind);
    shown["name"] = json!(limit.name);
    let aligned = if let Kind::FixedWindow { aligned, .. } = limit.kind { aligned } else { None };
    if let Some(zone) = limit.hours.map(|hours| hours.zone).or(aligned) {
        let (key, value) = calendar::show_zone(zone);
        shown[key] = json!(value);
    }
    if let Some(hours) = &limit.hours {
        shown["between"] = json!(calendar::show_hours(hours));
    }
    if let Some(by) = &limit.by {
        shown["by"] = tuning::show_part(by);
        shown["keys_max"] = json!(limit.keys_max);
    }
    let word = ON_LIMIT.iter().find(|(_, on_limit)| *on_limit == limit.on_limit).map(|(word, _)| *word);
    shown["on_limit"] = match limit.wait_max.filter(|_| limit.on_limit == OnLimit::Reject) {
        Some(wait_max) => json!({ "wait": { "max_ms": wait_max.as_millis() as u64 } }),
        None => json!(word),
    };
    if let Some(cgroup) = &limit.cgroup {
        shown["cgroup"] = json!(cgroup);
    }
    shown["status"] = json!(limit.status);
    shown["grpc_status"] = json!(if limit.grpc_resource_exhausted { "resource_exhausted" } else { "unavailable" });
    if limit.kind.limit() > 0 {
        shown["headers"] = json!(if limit.tells_limit { "on" } else { "off" });
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{
        Config, file,
        request_limit::{Admission, Gradient},
        tuning::Part,
    };

    fn read(limits: &str) -> Result<Config, String> {
        let text = format!(
            "services:\n- {{name: a, address: 10.0.0.1:80, protocol: http, endpoints: [10.0.0.2:80],\n  {limits}}}"
        );
        file::parse(&text, "F").map_err(|error| error.to_string())
    }

    #[test]
    fn each_kind_is_read_and_shown_again() {
        let second = Duration::from_secs(1);
        for (text, kind, wait_ms) in [
            (
                "token_bucket, limit: 100",
                Kind::TokenBucket { limit: 100, window: second, burst: 100, fill: 1, starts_empty: false },
                None,
            ),
            (
                // The sources' own: one each 500 ms, room for 100, none at first, and who comes waits.
                "token_bucket, limit: 1, window_ms: 500, burst: 100, starts: empty, on_limit: {wait: {max_ms: 800}}",
                Kind::TokenBucket { limit: 1, window: second / 2, burst: 100, fill: 1, starts_empty: true },
                Some(800),
            ),
            (
                "leaky_bucket, limit: 50, queue: 10",
                Kind::LeakyBucket { limit: 50, window: second, queue: 10 },
                Some(200),
            ),
            ("fixed_window, limit: 7", Kind::FixedWindow { limit: 7, window: second, aligned: None }, None),
            (
                "fixed_window, limit: 7, aligned: day, utc_offset: \"-05:30\", between: \"22:00-06:15\"",
                Kind::FixedWindow { limit: 7, window: 86_400 * second, aligned: Some(Zone::Offset(-19_800)) },
                None,
            ),
            (
                "fixed_window, limit: 7, aligned: hour",
                Kind::FixedWindow { limit: 7, window: 3_600 * second, aligned: Some(Zone::UTC) },
                None,
            ),
            (
                "fixed_window, limit: 7, aligned: day, time_zone: Europe/Berlin, on_limit: {wait: {max_ms: 5}}",
                Kind::FixedWindow { limit: 7, window: 86_400 * second, aligned: Zone::named("Europe/Berlin") },
                Some(5),
            ),
            (
                "leaky_bucket, limit: 50, on_limit: {wait: {max_ms: 100}}",
                Kind::LeakyBucket { limit: 50, window: second, queue: 5 },
                Some(100),
            ),
            (
                "sliding_window, limit: 7, on_limit: {wait: {max_ms: 100}}",
                Kind::SlidingWindow { limit: 7, window: second },
                Some(100),
            ),
            ("sliding_window, limit: 7, window_ms: 60000", Kind::SlidingWindow { limit: 7, window: 60 * second }, None),
            (
                "window_average, limit: 100, window_ms: 60000",
                Kind::SlidingWindow { limit: 6_000, window: 60 * second },
                None,
            ),
            ("concurrency, limit: 3", Kind::Concurrency { limit: 3 }, None),
            ("warm_up, limit: 100", Kind::WarmUp { limit: 100, period_s: 10, cold_factor: 3 }, None),
        ] {
            let config = read(&format!("request_limits: [{{kind: {text}, by: {{header: X-User}}, headers: on}}]"));
            let config = config.unwrap_or_else(|wrong| panic!("{text}: {wrong}"));
            let limit = &config.services[0].request_limits[0];
            assert_eq!((limit.kind, limit.wait_max), (kind, wait_ms.map(Duration::from_millis)), "{text}");
            assert_eq!((&limit.by, limit.status), (&Some(Part::Header("x-user".to_owned())), 429));
            let shown = file::show(&config).to_string();
            assert_eq!(file::parse(&shown, "F").expect("a good file"), config, "{text}");
        }
    }

    #[test]
    fn those_that_find_their_number_have_the_defaults_of_who_made_them() {
        let admission = Admission {
            window: Duration::from_secs(30),
            success_percent: 95,
            aggression: 1,
            refused_percent_max: 80,
            requests_min: 0,
            counts_refused: false,
        };
        let throttling = Admission {
            window: Duration::from_secs(3),
            success_percent: 60,
            refused_percent_max: 100,
            requests_min: 100,
            counts_refused: true,
            ..admission
        };
        let gradient = Gradient {
            least: 3,
            most: 1_000,
            window: Duration::from_millis(100),
            percentile: 50,
            buffer_percent: 25,
            measured_requests: 50,
            measured_interval: Duration::from_secs(60),
            jitter_percent: 15,
        };
        for (text, kind) in [
            ("gradient", Kind::Gradient(gradient)),
            ("gradient, min: 7, max: 9", Kind::Gradient(Gradient { least: 7, most: 9, ..gradient })),
            ("bbr", Kind::Bbr { window: Duration::from_secs(10), stretches: 100, busy_percent: 80 }),
            ("admission", Kind::Admission { rules: admission, stretches: 10 }),
            ("client_throttling", Kind::Admission { rules: throttling, stretches: 10 }),
        ] {
            let config = read(&format!("request_limits: [{{kind: {text}}}]"));
            let config = config.unwrap_or_else(|wrong| panic!("{text}: {wrong}"));
            let limit = &config.services[0].request_limits[0];
            assert_eq!((limit.kind, limit.status), (kind, 503), "{text}");
            assert_eq!(file::parse(&file::show(&config).to_string(), "F").expect("a good file"), config, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (text, expected) in [
            ("[{limit: 1}]", "request_limits[0].kind: is missing; write how requests are counted"),
            ("[{kind: tokens, limit: 1}]", "unknown value \"tokens\""),
            ("[{kind: concurrency}]", "request_limits[0].limit: is missing; write how many requests may pass"),
            ("[{kind: concurrency, limit: 0}]", "request_limits[0].limit: 0 is out of range"),
            (
                "[{kind: concurrency, limit: 1, window_ms: 5}]",
                "request_limits[0].window_ms: says nothing with kind: concurrency; remove it",
            ),
            (
                "[{kind: fixed_window, limit: 1}, {kind: fixed_window, limit: 2}]",
                "request_limits[1]: another limit of the service is named fixed_window; write a name for each",
            ),
            (
                "[{kind: token_bucket, limit: 1, window_ms: 86400000, burst: 1000}]",
                "takes more than a year to fill the bucket",
            ),
            ("[{kind: warm_up, limit: 1000000}]", "is too much to warm up in 10 s; write up to 838860"),
            (
                "[{kind: token_bucket, limit: 1, on_limit: queue}]",
                "request_limits[0].on_limit: unknown value \"queue\"",
            ),
            ("[{kind: token_bucket, limit: 1, on_limit: {wait: {}}}]", "on_limit.wait.max_ms: is missing"),
            ("[{kind: token_bucket, limit: 1, on_limit: fallback}]", "on_limit: is answered by the service's fallback"),
            (
                "[{kind: token_bucket, limit: 1, on_limit: break}]",
                "request_limits[0].on_limit: opens the service's breaker",
            ),
            ("[{kind: fixed_window, limit: 1, aligned: week}]", "aligned: unknown value \"week\""),
            (
                "[{kind: fixed_window, limit: 1, aligned: day, window_ms: 5}]",
                "window_ms: follows from aligned; remove it",
            ),
            ("[{kind: sliding_window, limit: 1, aligned: day}]", "aligned: says nothing with kind: sliding_window"),
            ("[{kind: fixed_window, limit: 1, utc_offset: \"+02:00\"}]", "utc_offset: says nothing without aligned"),
            ("[{kind: fixed_window, limit: 1, aligned: day, utc_offset: \"+15:00\"}]", "is no offset from UTC"),
            (
                "[{kind: fixed_window, limit: 1, aligned: day, time_zone: Europe/Bern}]",
                "time_zone: \"Europe/Bern\" is no time zone",
            ),
            (
                "[{kind: fixed_window, limit: 1, aligned: day, time_zone: UTC, utc_offset: \"+01:00\"}]",
                "write one of them",
            ),
            ("[{kind: fixed_window, limit: 1, time_zone: UTC}]", "time_zone: says nothing without aligned"),
            (
                "[{kind: warm_up, limit: 1, on_limit: {wait: {max_ms: 5}}}]",
                "cannot be with kind: warm_up: how many pass",
            ),
            ("[{kind: admission, on_limit: {wait: {max_ms: 5}}}]", "it refuses by chance"),
            ("[{kind: gradient, on_limit: {wait: {max_ms: 5}}}]", "write pending there"),
            ("[{kind: leaky_bucket, limit: 1, queue: 0, on_limit: {wait: {max_ms: 5}}}]", "queue: lets nobody wait"),
            ("[{kind: concurrency, limit: 1, by: {source: on}, on_limit: {wait: {max_ms: 5}}}]", "remove by, or write"),
            (
                "[{kind: concurrency, limit: 1, on_limit: {wait: {max_ms: 5}}}], isolation: hystrix, pending: on",
                "write one of the two",
            ),
            ("[{kind: bbr, between: \"9:00-18:00\"}]", "request_limits[0].between: \"9:00-18:00\" is no part of a day"),
            ("[{kind: bbr, between: \"09:00-09:00\"}]", "is no part of a day"),
            ("[{kind: fixed_window, limit: 1, keys_max: 5}]", "keys_max: says nothing without by"),
            ("[{kind: fixed_window, limit: 1, by: {path: on}}]", "by.path: unknown key"),
            ("[{kind: fixed_window, limit: 1}], mode: kernel", "counts requests"),
            ("[{kind: gradient, limit: 1}]", "request_limits[0].limit: says nothing with kind: gradient; remove it"),
            ("[{kind: gradient, min: 5, max: 4}]", "request_limits[0].max: 4 is out of range"),
            ("[{kind: admission, cgroup: /a}]", "request_limits[0].cgroup: says nothing with kind: admission"),
            ("[{kind: bbr, cgroup: a}]", "request_limits[0].cgroup: \"a\" does not begin with /"),
        ] {
            let found = read(&format!("request_limits: {text}")).expect_err(text);
            assert!(found.contains("F:3:") && found.contains(expected), "{text}: {found}");
        }
    }
}
