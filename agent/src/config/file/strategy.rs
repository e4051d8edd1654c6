//! What becomes of a request whose endpoint fails, or that several are to get: the key `cluster` of a service.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};

use super::{
    SWITCHES, milliseconds, probe, route,
    section::{Field, Problems, Section},
    tree::Value,
};
use crate::config::{
    Mode, Protocol,
    retry::Retry,
    strategy::{Aggregate, Broadcast, Failback, Kind, Strategy},
};

const RETRIES: u32 = 2; // Dubbo's, as are the next four
const FORKS: u32 = 2;
const FAILBACK_RETRIES: u32 = 3;
const FAILBACK_INTERVAL_MS: u32 = 5_000;
const FAILBACK_TASKS: u32 = 100;
const RETRIES_MAX: u32 = 7; // after the first: as many endpoints as are tried for any request
const FORKS_MAX: u32 = 8; // as many endpoints as are tried for any request
const FAILBACK_RETRIES_MAX: u32 = 100;
const FAILBACK_INTERVAL_MS_MAX: u32 = 3_600_000;
const FAILBACK_TASKS_MAX: u32 = 10_000;
const BODY_BYTES: u32 = 64 * 1024; // what Linkerd keeps of a body, and half of what a stream of HTTP/2 may send unasked

#[derive(Clone, Copy, PartialEq, Eq)]
enum Word {
    Failover,
    Failfast,
    Failsafe,
    Failback,
    Forking,
    Broadcast,
    Multicast,
}

const WORDS: [(&str, Word); 7] = [
    ("failover", Word::Failover),
    ("failfast", Word::Failfast),
    ("failsafe", Word::Failsafe),
    ("failback", Word::Failback),
    ("forking", Word::Forking),
    ("broadcast", Word::Broadcast),
    ("multicast", Word::Multicast),
];

const AGGREGATES: [(&str, Aggregate); 4] =
    [("all", Aggregate::All), ("any", Aggregate::Any), ("quorum", Aggregate::Quorum), ("first", Aggregate::First)];

const KEYS: [&str; 10] = [
    "strategy",
    "retries",
    "forks",
    "interval_ms",
    "tasks",
    "aggregate",
    "subset",
    "failed_status",
    "non_idempotent",
    "body_bytes_max",
];

/// Who knows a key that not all do.
const OF: [(&str, &[Word]); 7] = [
    ("retries", &[Word::Failover, Word::Failback]),
    ("forks", &[Word::Forking]),
    ("interval_ms", &[Word::Failback]),
    ("tasks", &[Word::Failback]),
    ("aggregate", &[Word::Broadcast, Word::Multicast]),
    ("subset", &[Word::Multicast]),
    ("non_idempotent", &[Word::Failover, Word::Failback, Word::Forking]),
];

/// Reads the key if it is there.
pub(super) fn strategy(
    section: &Section<'_>,
    (protocol, mode): (Option<Protocol>, Option<Mode>),
    problems: &mut Problems,
) -> Option<Option<Strategy>> {
    let Some(field) = section.get("cluster") else { return Some(None) };
    if let Some(Protocol::Tcp | Protocol::Udp) = protocol {
        field.refuse("is about requests, and this protocol has none; write protocol: http, or remove it", problems);
    } else if mode == Some(Mode::Kernel) {
        field.refuse("is the agent's to do; write mode: agent, or leave mode out", problems);
    }
    if let Value::Text(_) = field.node.value {
        return field.choice(&WORDS, problems).and_then(|word| read(word, &Section::alone(&field), problems)).map(Some);
    }
    let section = Section::open(field.node, &field.path, &KEYS, problems)?;
    let word = section.require("strategy", "write failover, failfast, failsafe, failback, forking, …", problems)?;
    read(word.choice(&WORDS, problems)?, &section, problems).map(Some)
}

fn read(word: Word, section: &Section<'_>, problems: &mut Problems) -> Option<Strategy> {
    refuse_foreign(word, section, problems);
    let mut number = |key, default, most| section.or(key, || default, |field, p| field.integer(1..=most, p), problems);
    let kind = match word {
        Word::Failover => Kind::Failover(Box::new(Retry::failover(number("retries", RETRIES, RETRIES_MAX)?))),
        Word::Failfast => Kind::Failfast,
        Word::Failsafe => Kind::Failsafe,
        Word::Failback => Kind::Failback(Failback {
            retries: number("retries", FAILBACK_RETRIES, FAILBACK_RETRIES_MAX)?,
            interval: milliseconds(number("interval_ms", FAILBACK_INTERVAL_MS, FAILBACK_INTERVAL_MS_MAX)?),
            tasks: number("tasks", FAILBACK_TASKS, FAILBACK_TASKS_MAX)?,
        }),
        Word::Forking => Kind::Forking(number("forks", FORKS, FORKS_MAX)?.max(2)),
        Word::Broadcast | Word::Multicast => Kind::Broadcast(broadcast(word, section, problems)?),
    };
    let default = if word == Word::Failover { 502..=504 } else { 500..=599 };
    let failed_status = section.or("failed_status", || vec![default], probe::statuses, problems);
    let non_idempotent = section.or("non_idempotent", || false, |field, p| field.choice(&SWITCHES, p), problems);
    let bytes = |field: &Field<'_>, p: &mut Problems| field.integer(0..=BODY_BYTES, p);
    let body_bytes_max = section.or("body_bytes_max", || BODY_BYTES, bytes, problems)? as usize;
    Some(Strategy { kind, failed_status: failed_status?, non_idempotent: non_idempotent?, body_bytes_max })
}

fn broadcast(word: Word, section: &Section<'_>, problems: &mut Problems) -> Option<Broadcast> {
    if word == Word::Multicast {
        section.require("subset", "write the labels of those who are asked, as {LABEL: VALUE}", problems)?;
    }
    let subset = section.or("subset", BTreeMap::new, route::labels, problems);
    let aggregate = section.or("aggregate", || Aggregate::All, |field, p| field.choice(&AGGREGATES, p), problems);
    Some(Broadcast { subset: subset?, aggregate: aggregate? })
}

/// Notes keys that say nothing of this strategy.
fn refuse_foreign(word: Word, section: &Section<'_>, problems: &mut Problems) {
    for (key, knows) in OF {
        if let (Some(field), false) = (section.get(key), knows.contains(&word)) {
            let words = WORDS.iter().filter(|(_, word)| knows.contains(word)).map(|(word, _)| *word);
            let words = words.collect::<Vec<&str>>().join(" or ");
            field.refuse(format!("is of {words}, and this strategy has no use for it; remove it"), problems);
        }
    }
}

/// The word that a file uses for a strategy.
pub fn strategy_word(strategy: &Strategy) -> &'static str {
    let word = match &strategy.kind {
        Kind::Failover(retry) if retry.tells => return "retry",
        Kind::Failover(_) => Word::Failover,
        Kind::Failfast => Word::Failfast,
        Kind::Failsafe => Word::Failsafe,
        Kind::Failback(_) => Word::Failback,
        Kind::Forking(_) => Word::Forking,
        Kind::Broadcast(broadcast) if broadcast.subset.is_empty() => Word::Broadcast,
        Kind::Broadcast(_) => Word::Multicast,
    };
    WORDS.iter().find(|(_, meaning)| *meaning == word).map_or("", |(word, _)| word)
}

/// As it would be written.
pub(super) fn show(strategy: &Strategy) -> Json {
    let mut shown = json!({
        "strategy": strategy_word(strategy),
        "failed_status": strategy.failed_status.iter().map(super::range).collect::<Vec<String>>(),
        "body_bytes_max": strategy.body_bytes_max,
    });
    let is_told = !matches!(strategy.kind, Kind::Failfast | Kind::Failsafe | Kind::Broadcast(_));
    if is_told {
        shown["non_idempotent"] = json!(if strategy.non_idempotent { "on" } else { "off" });
    }
    match &strategy.kind {
        Kind::Failover(retry) => shown["retries"] = json!(retry.attempts),
        Kind::Forking(forks) => shown["forks"] = json!(forks),
        Kind::Failback(rules) => {
            shown["retries"] = json!(rules.retries);
            shown["interval_ms"] = json!(rules.interval.as_millis() as u64);
            shown["tasks"] = json!(rules.tasks);
        }
        Kind::Broadcast(rules) => {
            let word = AGGREGATES.iter().find(|(_, aggregate)| *aggregate == rules.aggregate).map(|(word, _)| word);
            shown["aggregate"] = json!(word);
            if !rules.subset.is_empty() {
                shown["subset"] = json!(rules.subset);
            }
        }
        Kind::Failfast | Kind::Failsafe => {}
    }
    shown
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
    fn strategies_have_dubbos_defaults_and_are_shown_again() {
        let failback =
            |retries| Kind::Failback(Failback { retries, interval: milliseconds(FAILBACK_INTERVAL_MS), tasks: 100 });
        let failover = |retries| Kind::Failover(Box::new(Retry::failover(retries)));
        let broadcast = |subset, aggregate| Kind::Broadcast(Broadcast { subset, aggregate });
        let labels: BTreeMap<String, String> = [("v".to_owned(), "1".to_owned())].into();
        for (keys, word, kind) in [
            ("cluster: failover", "failover", failover(2)),
            ("cluster: {strategy: failover, retries: 4, non_idempotent: on}", "failover", failover(4)),
            ("cluster: failfast", "failfast", Kind::Failfast),
            ("cluster: {strategy: failsafe, failed_status: [500, 502-504]}", "failsafe", Kind::Failsafe),
            ("cluster: failback", "failback", failback(3)),
            ("cluster: {strategy: failback, retries: 1, body_bytes_max: 0}", "failback", failback(1)),
            ("cluster: forking", "forking", Kind::Forking(2)),
            ("cluster: broadcast", "broadcast", broadcast(BTreeMap::new(), Aggregate::All)),
            ("cluster: {strategy: multicast, subset: {v: '1'}, aggregate: quorum}", "multicast", {
                broadcast(labels, Aggregate::Quorum)
            }),
        ] {
            let config = parsed(keys).unwrap_or_else(|error| panic!("{keys}: {error}"));
            let found = config.services[0].strategy.clone().expect("a strategy");
            assert_eq!((strategy_word(&found), &found.kind), (word, &kind), "{keys}");
            let shown = file::show(&config).to_string();
            assert_eq!(file::parse(&shown, "F").unwrap_or_else(|error| panic!("{error}")), config);
        }
        assert_eq!(parsed("mode: agent").unwrap().services[0].strategy, None);
        let status = |keys| parsed(keys).unwrap().services[0].strategy.clone().unwrap().failed_status;
        assert_eq!((status("cluster: failover"), status("cluster: failsafe")), (vec![502..=504], vec![500..=599]));
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (keys, expected) in [
            ("cluster: failovr", "cluster: unknown value \"failovr\" (did you mean failover?)"),
            ("cluster: {retries: 2}", "cluster.strategy: is missing; write failover, failfast"),
            ("cluster: {strategy: failfast, retries: 2}", "cluster.retries: is of failover or failback, and"),
            ("cluster: {strategy: broadcast, subset: {a: b}}", "cluster.subset: is of multicast, and"),
            ("cluster: multicast", "cluster.subset: is missing; write the labels"),
            ("cluster: {strategy: forking, forks: 9}", "cluster.forks: 9 is out of range"),
            ("cluster: {strategy: failover, failed_status: [600]}", "cluster.failed_status[0]: 600 is out of range"),
            ("cluster: failover, mode: kernel", "cluster: is the agent's to do; write mode: agent"),
        ] {
            let found = parsed(keys).expect_err("a mistake");
            assert!(found.contains("F:3:") && found.contains(expected), "{found}");
        }
        let tcp =
            "services: [{name: a, address: 10.0.0.1:80, protocol: tcp, endpoints: [10.0.0.2:80], cluster: failfast}]";
        let found = file::parse(tcp, "F").expect_err("a mistake").to_string();
        assert!(found.contains("cluster: is about requests, and this protocol has none"), "{found}");
    }
}
