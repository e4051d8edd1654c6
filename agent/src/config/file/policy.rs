//! How a service's connections are spread over its endpoints, and how many there may be.

use std::time::Duration;

use super::{
    BALANCES, OVERS, SOURCES, SWITCHES, milliseconds,
    section::{Field, Path, Problems, Section},
    tuning,
};
use crate::config::policy::{
    Balance, Eject, Limits, MAGLEV_SLOTS, MAGLEV_SLOTS_MAX, Over, Policy, Rate, SlowStart, Source, Take, is_prime,
};

/// Keys of a service that are read here.
pub(super) const KEYS: [&str; 9] = [
    "balance",
    "source",
    "affinity_timeout_ms",
    "maglev_table_size",
    "limits",
    "eject",
    "prefer_zone",
    "slow_start",
    "panic_threshold_percent",
];

const AFFINITY_TIMEOUT_MS_MAX: u32 = 86_400_000; // Kubernetes' bound of ClientIP affinity
const CONNECTIONS_MAX: u32 = 1_000_000_000; // more than a host has sockets
const PER_SECOND_MAX: u32 = 10_000_000; // more than a host connects
const FAILURES_MAX: u32 = 1_000;
const EJECTED_MS_MAX: u32 = 3_600_000;
const EJECTED_MS: u32 = 30_000; // Envoy's base_ejection_time

const WINDOW_MS: u32 = 60_000; // what Envoy's documentation takes for its examples
const WINDOW_MS_MAX: u32 = 86_400_000;
const MIN_WEIGHT_PERCENT: u32 = 10; // Envoy's default, as is the next
const AGGRESSION_PERCENT: u32 = 100;
const AGGRESSION_PERCENT_MAX: u32 = 10_000;

pub(super) const KEYS_OF_A_TAKE: [&str; 3] = ["connections", "connections_per_second", "burst"];

pub(super) fn policy(section: &Section<'_>, problems: &mut Problems) -> Option<Policy> {
    let default = Policy::default();
    let balance = section.or("balance", || default.balance, |field, p| field.choice(&BALANCES, p), problems);
    let source = section.or("source", Source::default, |field, p| field.choice(&SOURCES, p), problems);
    let affinity = section.or("affinity_timeout_ms", || None, affinity_timeout, problems);
    let table_size = section.or("maglev_table_size", || MAGLEV_SLOTS, maglev_table_size, problems);
    if let Some(field) = section.get("maglev_table_size")
        && balance.is_some_and(|balance| balance != Balance::Maglev)
    {
        field.refuse("says nothing unless balance is maglev; write balance: maglev, or remove it", problems);
    }
    let limits = section.or("limits", || None, |field, p| limits(field, p).map(Some), problems);
    let eject = section.or("eject", || None, |field, p| eject(field, p).map(Some), problems);
    let prefer_zone = section.or("prefer_zone", || false, |field, p| field.choice(&SWITCHES, p), problems);
    let slow_start = section.or("slow_start", || None, |field, p| slow_start(field, p).map(Some), problems);
    if let (Some(Some(_)), Some(Balance::SourceHash), Some(field)) = (slow_start, balance, section.get("slow_start")) {
        let what = "would move most sources at each step, because balance is source_hash; write balance: maglev, which \
                    moves few, or remove it";
        field.refuse(what, problems);
    }
    let tuning = tuning::tuning(section, balance, problems);
    let panic = section.or("panic_threshold_percent", || 0, |field, p| field.integer(0..=100, p), problems);
    Some(Policy {
        balance: balance?,
        source: source?,
        affinity_timeout: affinity?,
        maglev_table_size: table_size?,
        limits: limits?,
        eject: eject?,
        prefer_zone: prefer_zone?,
        slow_start: slow_start?,
        panic_threshold_percent: panic?,
        tuning: tuning?,
    })
}

fn affinity_timeout(field: &Field<'_>, problems: &mut Problems) -> Option<Option<Duration>> {
    field.integer(1..=AFFINITY_TIMEOUT_MS_MAX, problems).map(|timeout| Some(milliseconds(timeout)))
}

fn maglev_table_size(field: &Field<'_>, problems: &mut Problems) -> Option<u32> {
    let size = field.integer(2..=MAGLEV_SLOTS_MAX, problems)?;
    if is_prime(size) {
        return Some(size);
    }
    field.refuse(format!("{size} is no prime, which the table needs; write 65537 or another prime"), problems);
    None
}

fn limits(field: &Field<'_>, problems: &mut Problems) -> Option<Limits> {
    let keys = [&KEYS_OF_A_TAKE[..], &["per_source", "over"]].concat();
    let section = Section::open(field.node, &field.path, &keys, problems)?;
    let service = take(&section, problems);
    let per_source =
        section.or("per_source", || Some(Take::default()), |field, p| Some(per_source(field, p)), problems);
    let over = section.or("over", Over::default, |field, p| field.choice(&OVERS, p), problems);
    let limits = Limits { service: service?, per_source: per_source??, over: over? };
    if limits.service == Take::default() && limits.per_source == Take::default() {
        field.refuse("limits nothing; write connections or connections_per_second, or remove it", problems);
        return None;
    }
    Some(limits)
}

fn per_source(field: &Field<'_>, problems: &mut Problems) -> Option<Take> {
    let section = Section::open(field.node, &field.path, &KEYS_OF_A_TAKE, problems)?;
    take(&section, problems)
}

/// The keys [`KEYS_OF_A_TAKE`] of a section.
pub(super) fn take(section: &Section<'_>, problems: &mut Problems) -> Option<Take> {
    let number = |key, max, problems: &mut Problems| {
        section.or(key, || None, |field, p| field.integer(1..=max, p).map(Some), problems)
    };
    let connections = number("connections", CONNECTIONS_MAX, problems);
    let per_second = number("connections_per_second", PER_SECOND_MAX, problems);
    let burst = number("burst", PER_SECOND_MAX, problems);
    if let (Some(None), Some(field)) = (per_second, section.get("burst")) {
        field.refuse("says nothing without a rate; write connections_per_second, or remove it", problems);
    }
    // One second's worth may come at once.
    let (connections, per_second, burst) = (connections?, per_second?, burst?);
    let rate = per_second.map(|per_second| Rate { per_second, burst: burst.unwrap_or(per_second) });
    Some(Take { connections, rate })
}

fn eject(field: &Field<'_>, problems: &mut Problems) -> Option<Eject> {
    let section = Section::open(field.node, &field.path, &["failures", "for_ms"], problems)?;
    let failures = section
        .require("failures", "write how many failed handshakes in a row eject an endpoint", problems)
        .and_then(|field| field.integer(1..=FAILURES_MAX, problems));
    let period = section.or("for_ms", || EJECTED_MS, |field, p| field.integer(1..=EJECTED_MS_MAX, p), problems);
    Some(Eject { failures: failures?, period: milliseconds(period?) })
}

fn slow_start(field: &Field<'_>, problems: &mut Problems) -> Option<SlowStart> {
    let keys = ["window_ms", "min_weight_percent", "aggression_percent"];
    let section = Section::open(field.node, &field.path, &keys, problems)?;
    let mut number = |key, default, range| section.or(key, || default, |field, p| field.integer(range, p), problems);
    // Less than a second is none, by the formula.
    let window = number("window_ms", WINDOW_MS, 1_000..=WINDOW_MS_MAX);
    let min_weight = number("min_weight_percent", MIN_WEIGHT_PERCENT, 1..=100);
    let aggression = number("aggression_percent", AGGRESSION_PERCENT, 1..=AGGRESSION_PERCENT_MAX);
    Some(SlowStart { window: milliseconds(window?), min_weight_percent: min_weight?, aggression_percent: aggression? })
}

/// A key of the policy that goes only with a service balanced in the kernel.
pub(super) fn refuse_in_agent(section: &Section<'_>, path: &Path<'_>, problems: &mut Problems) {
    if let Some(field) = section.get("affinity_timeout_ms") {
        let what = "is kept by the kernel half, which this service's connections do not end at; \
                    write mode: kernel, or balance: maglev for endpoints that hardly change";
        problems.note(field.node.at, &Path::Key(path, "affinity_timeout_ms"), what);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, file};

    fn read(service: &str, endpoints: &str) -> Result<Config, String> {
        let text = format!(
            "zone: east\nservices: [{{name: a, address: 10.0.0.1:80, protocol: tcp, {service} endpoints: [{endpoints}]}}]"
        );
        file::parse(&text, "F").map_err(|error| error.to_string())
    }

    #[test]
    fn who_comes_first_and_how_fast_is_read_and_shown_again() {
        let text = "prefer_zone: on, slow_start: {aggression_percent: 150}, panic_threshold_percent: 50,";
        let endpoints = "10.0.0.2:80, {address: 10.0.0.3:80, priority: 2, zone: west}";
        let config = read(text, endpoints).expect("a good file");
        let policy = &config.services[0].policy;
        let slow_start = SlowStart { window: Duration::from_secs(60), min_weight_percent: 10, aggression_percent: 150 };
        assert_eq!(
            (policy.prefer_zone, policy.slow_start, policy.panic_threshold_percent),
            (true, Some(slow_start), 50)
        );
        let [first, second] = &config.services[0].endpoints[..] else { panic!("two endpoints") };
        assert_eq!((first.priority, first.zone.as_deref()), (0, None));
        assert_eq!((second.priority, second.zone.as_deref()), (2, Some("west")));
        assert_eq!(config.zone.as_deref(), Some("east"));
        let shown = file::show(&config).to_string();
        assert_eq!(file::parse(&shown, "F").expect("a good file"), config);
    }

    #[test]
    fn what_cannot_be_shared_so_is_named() {
        let here = "F:2:";
        for (service, endpoint, expected) in [
            (
                "balance: source_hash, slow_start: {},",
                "10.0.0.2:80",
                "services[0].slow_start: would move most sources at each step, because balance is source_hash; write balance: \
                 maglev, which moves few, or remove it",
            ),
            (
                "prefer_zone: on,",
                "10.0.0.2:80",
                "services[0].prefer_zone: says nothing while no endpoint has a zone; write endpoints as {address: IP:PORT, \
                 zone: ZONE}, or remove it",
            ),
            (
                "slow_start: {window_ms: 999},",
                "10.0.0.2:80",
                "services[0].slow_start.window_ms: 999 is out of range; write a whole number from 1000 to 86400000",
            ),
            (
                "",
                "{address: 10.0.0.2:80, priority: 128}",
                "services[0].endpoints[0].priority: 128 is out of range; write a whole number from 0 to 127",
            ),
            (
                "",
                "{address: 10.0.0.2:80, zone: 'a b'}",
                "services[0].endpoints[0].zone: \"a b\" is no zone; write 1 to 63 of A-Z, a-z, 0-9 and . _ - /",
            ),
        ] {
            let found = read(service, endpoint).expect_err("a mistake");
            assert!(found.starts_with(here) && found.ends_with(expected), "{found}");
        }
    }
}
