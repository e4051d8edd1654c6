//! A configuration in the file's own shape, every default written out: what `/config` answers. YAML reads JSON, so it can be read back.

use std::{ops::RangeInclusive, time::Duration};

use serde_json::{Map, Value, json};

use super::{
    BALANCES, Config, MODES, OVERS, PROTOCOLS, SHORTCUTS, SOURCES, STATES, SWITCHES, UPSTREAM_PROTOCOLS, admin,
    deadline, filter, guard, http, outlier, pending, probe, request_limit, retry, route, strategy, tls, tuning,
};
use crate::config::{
    Balance, Capture, CaptureRule, Mode, Policy, Protocol, Service, Shortcut,
    inbound::{Inbound, Limits as InboundLimits},
    maps::{Maps, Room},
    policy::{Limits, Take},
};

/// The configuration as the file would say it.
pub fn show(config: &Config) -> Value {
    json!({
        "instance": config.instance,
        "zone": config.zone,
        "workers": config.workers,
        "drain_timeout_ms": milliseconds(config.drain_timeout),
        "admin": admin::show(&config.admin),
        "audit": admin::show_audit(&config.audit),
        "hook_stats": word(&SWITCHES, config.hook_stats),
        "maps": show_maps(&config.maps),
        "capture": show_capture(&config.capture),
        "switches": config.switches.iter().map(|(name, on)| (name.clone(), json!(word(&SWITCHES, *on)))).collect::<Map<String, Value>>(),
        "services": config.services.iter().map(|service| show_service(service)).collect::<Vec<Value>>(),
        "inbound": config.inbound.iter().map(show_inbound).collect::<Vec<Value>>(),
    })
}

/// Those that the file says; the others follow from the services.
fn show_maps(maps: &Maps) -> Value {
    let said = Room::ALL.iter().filter_map(|room| Some((room.key().to_owned(), json!(maps.said(*room)?))));
    Value::Object(said.collect())
}

fn show_capture(capture: &Capture) -> Value {
    let rule = |rule: &CaptureRule| {
        let path = rule.path.as_str();
        if rule.capture {
            json!({ "path": path, "capture": "on", "shortcut": shortcut_word(rule.shortcut) })
        } else {
            json!({ "path": path, "capture": "off" })
        }
    };
    let (namespaces, except) = (&capture.namespaces, &capture.except);
    json!({
        "cgroup_mount": capture.cgroup_mount,
        "bpffs": capture.bpffs,
        "cgroups": capture.rules.iter().map(rule).collect::<Vec<Value>>(),
        // No list is every namespace, an empty one would be none.
        "namespaces": {
            "only": (!namespaces.only.is_empty()).then(|| texts(&namespaces.only)),
            "except": texts(&namespaces.except),
        },
        "except": {
            "ports": except.ports.iter().map(range).collect::<Vec<String>>(),
            "cidrs": texts(&except.cidrs),
            "uids": except.uids.iter().map(range).collect::<Vec<String>>(),
        },
    })
}

pub(super) fn texts(items: &[impl ToString]) -> Vec<String> {
    items.iter().map(ToString::to_string).collect()
}

/// A range as a file says it.
pub fn range<T: PartialEq + std::fmt::Display>(range: &RangeInclusive<T>) -> String {
    let (first, last) = (range.start(), range.end());
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}

/// One service as the file would say it.
pub fn show_service(service: &Service) -> Value {
    let endpoints: Vec<Value> = service
        .endpoints
        .iter()
        .map(|endpoint| {
            json!({
                "address": endpoint.address,
                "weight": endpoint.weight,
                "priority": endpoint.priority,
                "zone": endpoint.zone,
                "labels": endpoint.labels,
                "state": word(&STATES, endpoint.is_draining),
            })
        })
        .collect();
    let mut shown = json!({
        "name": service.name,
        "address": service.address,
        "protocol": protocol_word(service.protocol),
        "upstream_protocol": service.upstream_protocol.map(|protocol| word(&UPSTREAM_PROTOCOLS, protocol)),
        "mode": mode_word(service.mode),
        "http": (speaks_http(service.protocol) || service.upstream_protocol.is_some()).then(|| http::show(&service.http)),
        "tls": service.tls.is_spoken().then(|| tls::show(&service.tls)),
        "shortcut": shortcut_word(service.shortcut),
        "original_dst": word(&SWITCHES, service.original_dst),
        "connect_timeout_ms": milliseconds(service.connect_timeout),
        "probe_interval_ms": service.probe_interval.map(milliseconds),
        "probe": service.probe.as_ref().map(probe::show),
        "outlier": service.outlier.as_ref().map(outlier::show),
        "cluster": service.strategy.as_ref().filter(|it| retry::show(it).is_none()).map(strategy::show),
        "retry": service.strategy.as_ref().and_then(retry::show),
        "request_limits": (!service.request_limits.is_empty())
            .then(|| service.request_limits.iter().map(request_limit::show).collect::<Vec<Value>>()),
        "pending": service.pending.as_ref().map(pending::show),
        "filters": filter::show_all(&service.filters),
        "endpoint_drain_ms": service.endpoint_drain.map_or(json!("never"), |time| json!(milliseconds(time))),
        "udp_idle_timeout_ms": (service.protocol == Protocol::Udp).then(|| milliseconds(service.udp_idle_timeout)),
        "endpoints": endpoints,
        "routes": (!service.routes.is_empty()).then(|| service.routes.iter().map(route::show).collect::<Vec<Value>>()),
    });
    if let (Value::Object(shown), Value::Object(policy)) = (&mut shown, show_policy(&service.policy)) {
        shown.extend(policy);
        shown.extend(deadline::show(service.timing.as_ref()));
        shown.extend(guard::show(&service.guard));
    }
    shown
}

fn show_policy(policy: &Policy) -> Value {
    let mut shown = json!({
        "balance": balance_word(policy.balance),
        "source": word(&SOURCES, policy.source),
        "affinity_timeout_ms": policy.affinity_timeout.map(milliseconds),
        "limits": policy.limits.as_ref().map(show_limits),
        "eject": policy.eject.map(|eject| json!({ "failures": eject.failures, "for_ms": milliseconds(eject.period) })),
        "prefer_zone": word(&SWITCHES, policy.prefer_zone),
        "slow_start": policy.slow_start.map(|slow_start| json!({
            "window_ms": milliseconds(slow_start.window),
            "min_weight_percent": slow_start.min_weight_percent,
            "aggression_percent": slow_start.aggression_percent,
        })),
        "panic_threshold_percent": policy.panic_threshold_percent,
    });
    if policy.balance == Balance::Maglev {
        shown["maglev_table_size"] = json!(policy.maglev_table_size);
    }
    if let (Value::Object(shown), Value::Object(tuning)) = (&mut shown, tuning::show(&policy.tuning, policy.balance)) {
        shown.extend(tuning);
    }
    shown
}

fn show_limits(limits: &Limits) -> Value {
    let mut shown = show_take(&limits.service);
    shown["per_source"] = show_take(&limits.per_source);
    shown["over"] = json!(word(&OVERS, limits.over));
    shown
}

fn show_take(take: &Take) -> Value {
    json!({
        "connections": take.connections,
        "connections_per_second": take.rate.map(|rate| rate.per_second),
        "burst": take.rate.map(|rate| rate.burst),
    })
}

fn show_inbound(rule: &Inbound) -> Value {
    let namespaces = &rule.namespaces;
    json!({
        "name": rule.name,
        "ports": rule.ports.iter().map(range).collect::<Vec<String>>(),
        // No list is every namespace, an empty one would be none.
        "namespaces": {
            "only": (!namespaces.only.is_empty()).then(|| texts(&namespaces.only)),
            "except": texts(&namespaces.except),
        },
        "protocol": protocol_word(rule.protocol),
        "http": speaks_http(rule.protocol).then(|| http::show(&rule.http)),
        "tls": rule.terminate.as_ref().map(tls::show_inbound),
        "connect_timeout_ms": milliseconds(rule.connect_timeout),
        "limits": show_inbound_limits(&rule.limits),
        "allow": texts(&rule.sources.allow),
        "deny": texts(&rule.sources.deny),
        "pass": texts(&rule.sources.pass),
        "filters": filter::show_all(&rule.filters),
    })
}

fn show_inbound_limits(limits: &InboundLimits) -> Value {
    let mut shown = show_take(&limits.all);
    shown["per_source"] = show_take(&limits.per_source);
    shown
}

/// Whether the section `http` says anything.
fn speaks_http(protocol: Protocol) -> bool {
    matches!(protocol, Protocol::Http | Protocol::Http2 | Protocol::Auto)
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
pub(super) fn word<T: PartialEq>(words: &[(&'static str, T)], value: T) -> &'static str {
    words.iter().find(|(_, meaning)| *meaning == value).map_or("", |(word, _)| word)
}

pub(super) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
