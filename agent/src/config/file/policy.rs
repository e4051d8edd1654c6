//! How a service's connections are spread over its endpoints, and how many there may be.

use std::time::Duration;

use super::{
    BALANCES, OVERS, SOURCES, milliseconds,
    section::{Field, Path, Problems, Section},
};
use crate::config::policy::{
    Balance, Eject, Limits, MAGLEV_SLOTS, MAGLEV_SLOTS_MAX, Over, Policy, Rate, Source, Take, is_prime,
};

/// Keys of a service that are read here.
pub(super) const KEYS: [&str; 6] = ["balance", "source", "affinity_timeout_ms", "maglev_table_size", "limits", "eject"];

const AFFINITY_TIMEOUT_MS_MAX: u32 = 86_400_000; // Kubernetes' bound of ClientIP affinity
const CONNECTIONS_MAX: u32 = 1_000_000_000; // more than a host has sockets
const PER_SECOND_MAX: u32 = 10_000_000; // more than a host connects
const FAILURES_MAX: u32 = 1_000;
const EJECTED_MS_MAX: u32 = 3_600_000;
const EJECTED_MS: u32 = 30_000; // Envoy's base_ejection_time

const KEYS_OF_A_TAKE: [&str; 3] = ["connections", "connections_per_second", "burst"];

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
    Some(Policy {
        balance: balance?,
        source: source?,
        affinity_timeout: affinity?,
        maglev_table_size: table_size?,
        limits: limits?,
        eject: eject?,
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

fn take(section: &Section<'_>, problems: &mut Problems) -> Option<Take> {
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

/// A key of the policy that goes only with a service balanced in the kernel.
pub(super) fn refuse_in_agent(section: &Section<'_>, path: &Path<'_>, problems: &mut Problems) {
    if let Some(field) = section.get("affinity_timeout_ms") {
        let what = "is kept by the kernel half, which this service's connections do not end at; \
                    write mode: kernel, or balance: maglev for endpoints that hardly change";
        problems.note(field.node.at, &Path::Key(path, "affinity_timeout_ms"), what);
    }
}
