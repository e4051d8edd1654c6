//! A configuration in the file's own shape, every default written out: what `/config` answers. YAML reads JSON, so it can be read back.

use std::time::Duration;

use serde_json::{Value, json};

use super::{BALANCES, Config, MODES, PROTOCOLS, SHORTCUTS, STATES, SWITCHES};
use crate::config::{Balance, Mode, Protocol, Service, Shortcut};

/// The configuration as the file would say it.
pub fn show(config: &Config) -> Value {
    let capture = &config.capture;
    let rules: Vec<Value> = capture
        .rules
        .iter()
        .map(|rule| json!({ "path": rule.path, "shortcut": shortcut_word(rule.shortcut) }))
        .collect();
    json!({
        "instance": config.instance,
        "workers": config.workers,
        "drain_timeout_ms": milliseconds(config.drain_timeout),
        "admin": { "address": config.admin_address },
        "hook_stats": word(&SWITCHES, config.hook_stats),
        "capture": { "cgroup_mount": capture.cgroup_mount, "bpffs": capture.bpffs, "cgroups": rules },
        "services": config.services.iter().map(show_service).collect::<Vec<Value>>(),
    })
}

fn show_service(service: &Service) -> Value {
    let endpoints: Vec<Value> = service
        .endpoints
        .iter()
        .map(|endpoint| {
            json!({
                "address": endpoint.address,
                "weight": endpoint.weight,
                "state": word(&STATES, endpoint.is_draining),
            })
        })
        .collect();
    json!({
        "name": service.name,
        "address": service.address,
        "protocol": protocol_word(service.protocol),
        "mode": mode_word(service.mode),
        "balance": balance_word(service.balance),
        "shortcut": shortcut_word(service.shortcut),
        "connect_timeout_ms": milliseconds(service.connect_timeout),
        "probe_interval_ms": service.probe_interval.map(milliseconds),
        "endpoint_drain_ms": service.endpoint_drain.map_or(json!("never"), |time| json!(milliseconds(time))),
        "udp_idle_timeout_ms": (service.protocol == Protocol::Udp).then(|| milliseconds(service.udp_idle_timeout)),
        "endpoints": endpoints,
    })
}

/// The word that a file uses for a protocol.
pub fn protocol_word(protocol: Protocol) -> &'static str {
    word(&PROTOCOLS, protocol)
}

/// The word that a file uses for a mode.
pub fn mode_word(mode: Mode) -> &'static str {
    word(&MODES, mode)
}

/// The word that a file uses for the shortcut.
pub fn shortcut_word(shortcut: Shortcut) -> &'static str {
    word(&SHORTCUTS, shortcut)
}

/// The word that a file uses for a way to balance.
pub fn balance_word(balance: Balance) -> &'static str {
    word(&BALANCES, balance)
}

/// The word that a file uses for a value; every value has one.
fn word<T: PartialEq>(words: &[(&'static str, T)], value: T) -> &'static str {
    words.iter().find(|(_, meaning)| *meaning == value).map_or("", |(word, _)| word)
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
