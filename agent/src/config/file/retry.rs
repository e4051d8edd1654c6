//! When a request is sent again: the key `retry` of a service or a route.

use std::ops::RangeInclusive;

use serde_json::{Value as Json, json};

use super::{
    SWITCHES, milliseconds, probe,
    section::{Field, Path, Problems, Section},
    tree::Value,
};
use crate::config::{
    Mode, Protocol,
    retry::{BackOff, Budget, Failures, Hedge, Retry},
    strategy::{Kind, Strategy},
};

const ATTEMPTS: u32 = 1; // Envoy's num_retries
const ATTEMPTS_MAX: u32 = 10;
const BASE_MS: u32 = 25; // Envoy's, as are the next two
const MAX_MS: u32 = 250;
const HEDGES_MAX: u32 = 4;
const TIME_MS_MAX: u32 = 3_600_000;
const BUDGET_MIN_MAX: u32 = 10_000;
const BODY_BYTES: u32 = 64 * 1024; // what Linkerd keeps of a body
const GATEWAY_ERROR: RangeInclusive<u32> = 502..=504;
const SERVER_ERROR: RangeInclusive<u32> = 500..=599;
const KEYS: [&str; 8] =
    ["attempts", "on", "per_try_timeout_ms", "back_off", "budget", "non_idempotent", "hedge", "body_bytes_max"];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Word {
    ConnectFailure,
    RefusedStream,
    Reset,
    Late,
    GatewayError,
    ServerError,
    Retriable4xx,
}

const WORDS: [(&str, Word); 7] = [
    ("connect_failure", Word::ConnectFailure),
    ("refused_stream", Word::RefusedStream),
    ("reset", Word::Reset),
    ("late", Word::Late),
    ("gateway_error", Word::GatewayError),
    ("5xx", Word::ServerError),
    ("retriable_4xx", Word::Retriable4xx),
];

/// The codes of gRPC that are no success.
const CODES: [(&str, u32); 16] = [
    ("cancelled", 1),
    ("unknown", 2),
    ("invalid_argument", 3),
    ("deadline_exceeded", 4),
    ("not_found", 5),
    ("already_exists", 6),
    ("permission_denied", 7),
    ("resource_exhausted", 8),
    ("failed_precondition", 9),
    ("aborted", 10),
    ("out_of_range", 11),
    ("unimplemented", 12),
    ("internal", 13),
    ("unavailable", 14),
    ("data_loss", 15),
    ("unauthenticated", 16),
];

/// What is a failure.
#[derive(Default)]
struct On {
    failures: Failures,
    statuses: Vec<RangeInclusive<u32>>,
}

impl On {
    fn add(&mut self, word: Word) {
        let Self { failures, statuses } = self;
        match word {
            Word::ConnectFailure => failures.connect_failure = true,
            Word::RefusedStream => failures.refused_stream = true,
            Word::Reset => failures.reset = true,
            Word::Late => failures.late = true,
            Word::GatewayError => statuses.push(GATEWAY_ERROR),
            Word::ServerError => {
                statuses.push(SERVER_ERROR);
                *failures = Failures { grpc: failures.grpc, ..Retry::failover(0).on };
            }
            Word::Retriable4xx => statuses.push(409..=409),
        }
    }

    /// Whatever nobody can have answered, and what says that whoever answers cannot.
    fn by_default() -> Self {
        let mut on = Self::default();
        for word in [Word::ConnectFailure, Word::RefusedStream, Word::Reset, Word::GatewayError] {
            on.add(word);
        }
        on
    }
}

/// Reads the key of a service if it is there.
pub(super) fn of_service(
    section: &Section<'_>,
    (protocol, mode): (Option<Protocol>, Option<Mode>),
    problems: &mut Problems,
) -> Option<Option<Strategy>> {
    let Some(field) = section.get("retry") else { return Some(None) };
    if mode == Some(Mode::Kernel) || matches!(protocol, Some(Protocol::Tcp | Protocol::Udp)) {
        let what = "is of requests, and those of this service are not seen by the agent; write protocol: http or \
                    http2, or remove it";
        field.refuse(what, problems);
    }
    if section.get("cluster").is_some() {
        field.refuse("says what becomes of failures, and so does cluster; remove one of them", problems);
    }
    retry(&field, problems).map(Some)
}

/// Reads the section.
pub(super) fn retry(field: &Field<'_>, problems: &mut Problems) -> Option<Strategy> {
    let section = Section::open(field.node, &field.path, &KEYS, problems)?;
    let number = |most| move |field: &Field<'_>, p: &mut Problems| field.integer(1..=most, p);
    let time = |field: &Field<'_>, p: &mut Problems| field.integer(1..=TIME_MS_MAX, p).map(milliseconds);
    let attempts = section.or("attempts", || ATTEMPTS, number(ATTEMPTS_MAX), problems);
    let on = section.or("on", On::by_default, on, problems);
    let per_try = section.or("per_try_timeout_ms", || None, |field, p| time(field, p).map(Some), problems);
    let back_off = section.or("back_off", default_back_off, back_off, problems);
    let budget = section.or("budget", Budget::default, budget, problems);
    let hedge = section.or("hedge", || None, |field, p| hedge(field, p).map(Some), problems);
    let non_idempotent = section.or("non_idempotent", || false, |field, p| field.choice(&SWITCHES, p), problems);
    let bytes = |field: &Field<'_>, p: &mut Problems| field.integer(0..=BODY_BYTES, p);
    let body_bytes_max = section.or("body_bytes_max", || BODY_BYTES, bytes, problems)? as usize;
    let On { failures, statuses } = on?;
    let retry = Retry {
        attempts: attempts?,
        on: failures,
        per_try: per_try?,
        back_off: Some(back_off?),
        budget: budget?,
        hedge: hedge?,
        tells: true,
    };
    let kind = Kind::Failover(Box::new(retry));
    Some(Strategy { kind, failed_status: statuses, non_idempotent: non_idempotent?, body_bytes_max })
}

fn on(field: &Field<'_>, problems: &mut Problems) -> Option<On> {
    let items = field.list(problems)?;
    let mut on = On::default();
    let read = items.iter().enumerate().filter(|(index, node)| {
        let field = Field { node, path: Path::Item(&field.path, *index) };
        match field.node.value {
            Value::Map(_) => said(&field, &mut on, problems),
            _ => field.choice(&WORDS, problems).map(|word| on.add(word)),
        }
        .is_some()
    });
    let read = read.count();
    if items.is_empty() {
        field.refuse("names no failure; list some, as [connect_failure, gateway_error], or remove retry", problems);
    }
    (read == items.len() && read > 0).then_some(on)
}

/// Statuses, or codes of gRPC.
fn said(field: &Field<'_>, on: &mut On, problems: &mut Problems) -> Option<()> {
    let section = Section::open(field.node, &field.path, &["statuses", "grpc"], problems)?;
    on.statuses.extend(section.or("statuses", Vec::new, probe::statuses, problems)?);
    let codes = |field: &Field<'_>, problems: &mut Problems| {
        let items = field.list(problems)?;
        items.iter().enumerate().try_fold(0, |codes, (index, node)| {
            let field = Field { node, path: Path::Item(&field.path, index) };
            field.choice(&CODES, problems).map(|code| codes | 1 << code)
        })
    };
    on.failures.grpc |= section.or("grpc", || 0, codes, problems)?;
    Some(())
}

fn default_back_off() -> BackOff {
    BackOff { base: milliseconds(BASE_MS), max: milliseconds(MAX_MS), heeds_answers: false }
}

fn back_off(field: &Field<'_>, problems: &mut Problems) -> Option<BackOff> {
    let section = Section::open(field.node, &field.path, &["base_ms", "max_ms", "heed_answers"], problems)?;
    let time = |field: &Field<'_>, p: &mut Problems| field.integer(1..=TIME_MS_MAX, p);
    let base = section.or("base_ms", || BASE_MS, time, problems);
    // Envoy's default: ten times the base.
    let max = section.or("max_ms", || base.map_or(MAX_MS, |base| base.saturating_mul(10)), time, problems);
    let heeds_answers = section.or("heed_answers", || false, |field, p| field.choice(&SWITCHES, p), problems);
    let (base, max) = (base?, max?);
    if let (true, Some(field)) = (max < base, section.get("max_ms")) {
        field.refuse(format!("{max} is less than base_ms; write at least {base}"), problems);
    }
    Some(BackOff { base: milliseconds(base), max: milliseconds(max), heeds_answers: heeds_answers? })
}

fn budget(field: &Field<'_>, problems: &mut Problems) -> Option<Budget> {
    let section = Section::open(field.node, &field.path, &["percent", "min"], problems)?;
    let default = Budget::default();
    let percent = section.or("percent", || default.percent, |field, p| field.integer(0..=100, p), problems);
    let min = section.or("min", || default.min, |field, p| field.integer(0..=BUDGET_MIN_MAX, p), problems);
    Some(Budget { percent: percent?, min: min? })
}

fn hedge(field: &Field<'_>, problems: &mut Problems) -> Option<Hedge> {
    let section = Section::open(field.node, &field.path, &["after_ms", "max"], problems)?;
    let after = section.require("after_ms", "write after how long another endpoint is asked, too", problems);
    let after = after.and_then(|field| field.integer(1..=TIME_MS_MAX, problems));
    let max = section.or("max", || 1, |field, p| field.integer(1..=HEDGES_MAX, p), problems);
    Some(Hedge { after: milliseconds(after?), max: max? })
}

/// As it would be written; `None` of another strategy.
pub(super) fn show(strategy: &Strategy) -> Option<Json> {
    let Kind::Failover(retry) = &strategy.kind else { return None };
    let back_off = retry.back_off.filter(|_| retry.tells)?;
    let millis = |time: std::time::Duration| time.as_millis() as u64;
    let switch = |is_on| if is_on { "on" } else { "off" };
    let Failures { connect_failure, refused_stream, reset, late, grpc } = retry.on;
    let words =
        [("connect_failure", connect_failure), ("refused_stream", refused_stream), ("reset", reset), ("late", late)];
    let mut on: Vec<Json> = words.iter().filter(|(_, is_on)| *is_on).map(|(word, _)| json!(word)).collect();
    if !strategy.failed_status.is_empty() {
        on.push(json!({ "statuses": strategy.failed_status.iter().map(super::range).collect::<Vec<String>>() }));
    }
    let codes: Vec<&str> = CODES.iter().filter(|(_, code)| grpc & 1 << code != 0).map(|(word, _)| *word).collect();
    if !codes.is_empty() {
        on.push(json!({ "grpc": codes }));
    }
    Some(json!({
        "attempts": retry.attempts,
        "on": on,
        "per_try_timeout_ms": retry.per_try.map(millis),
        "back_off": {
            "base_ms": millis(back_off.base),
            "max_ms": millis(back_off.max),
            "heed_answers": switch(back_off.heeds_answers),
        },
        "budget": { "percent": retry.budget.percent, "min": retry.budget.min },
        "non_idempotent": switch(strategy.non_idempotent),
        "hedge": retry.hedge.map(|hedge| json!({ "after_ms": millis(hedge.after), "max": hedge.max })),
        "body_bytes_max": strategy.body_bytes_max,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, file};

    fn parsed(keys: &str) -> Result<Config, String> {
        let text = format!(
            "services:\n- {{name: a, address: 10.0.0.1:80, protocol: http, endpoints: [10.0.0.2:80],\n  {keys}}}"
        );
        file::parse(&text, "F").map_err(|error| error.to_string())
    }

    #[test]
    fn retries_have_envoys_defaults_and_are_shown_again() {
        let default = Retry { back_off: Some(default_back_off()), tells: true, ..Retry::failover(1) };
        let on = |late, grpc| Failures { late, grpc, ..default.on };
        for (keys, statuses, retry) in [
            ("retry: {attempts: 1}", vec![502..=504], Retry { on: on(false, 0), ..default.clone() }),
            (
                "retry: {attempts: 3, on: [5xx, retriable_4xx, {statuses: [418, 420-422]}, {grpc: [unavailable, aborted]}]}",
                vec![500..=599, 409..=409, 418..=418, 420..=422],
                Retry { attempts: 3, on: on(true, 1 << 14 | 1 << 10), ..default.clone() },
            ),
            (
                "retry: {on: [late, grpc: [cancelled]], per_try_timeout_ms: 50, back_off: {base_ms: 10, heed_answers: on}, \
                 budget: {percent: 50, min: 0}, hedge: {after_ms: 30}}",
                vec![],
                Retry {
                    on: Failures { late: true, grpc: 2, ..Failures::default() },
                    per_try: Some(milliseconds(50)),
                    back_off: Some(BackOff { base: milliseconds(10), max: milliseconds(100), heeds_answers: true }),
                    budget: Budget { percent: 50, min: 0 },
                    hedge: Some(Hedge { after: milliseconds(30), max: 1 }),
                    ..default.clone()
                },
            ),
        ] {
            let of_service = parsed(keys).unwrap_or_else(|error| panic!("{keys}: {error}"));
            let of_route = parsed(&format!("routes: [{{{keys}}}]")).unwrap_or_else(|error| panic!("{keys}: {error}"));
            let routed = of_route.services[0].routes[0].strategy.clone().expect("a strategy");
            assert_eq!(of_service.services[0].strategy.as_ref(), Some(&*routed), "{keys}");
            assert_eq!((&routed.failed_status, &routed.kind), (&statuses, &Kind::Failover(Box::new(retry))), "{keys}");
            for config in [of_service, of_route] {
                let shown = file::show(&config).to_string();
                assert_eq!(file::parse(&shown, "F").unwrap_or_else(|error| panic!("{error}: {shown}")), config);
            }
        }
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (keys, expected) in [
            ("retry: {attempts: 0}", "retry.attempts: 0 is out of range"),
            ("retry: {on: []}", "retry.on: names no failure"),
            ("retry: {on: [rest]}", "retry.on[0]: unknown value \"rest\" (did you mean reset?)"),
            ("retry: {on: [{grpc: [unavailabel]}]}", "retry.on[0].grpc[0]: unknown value"),
            ("retry: {hedge: {max: 1}}", "retry.hedge.after_ms: is missing"),
            ("retry: {back_off: {base_ms: 30, max_ms: 20}}", "retry.back_off.max_ms: 20 is less than base_ms"),
            ("cluster: failfast, retry: {attempts: 1}", "retry: says what becomes of failures, and so does cluster"),
            ("mode: kernel, retry: {attempts: 1}", "retry: is of requests"),
            ("routes: [{respond: {status: 404}, retry: {attempts: 1}}]", "retry: is of a request that is passed on"),
        ] {
            let found = parsed(keys).expect_err("a mistake");
            assert!(found.contains("F:3:") && found.contains(expected), "{found}");
        }
    }
}
