//! How a service is guarded, as the file would say it.

use std::time::Duration;

use serde_json::{Map, Value as Json, json};

use super::{super::threshold, GRPC_STATUS_MAX, SWITCHES};
use crate::config::guard::{
    Breaker, Degrade, DegradeTo, Fallback, Guard, Instead, Isolation, Kind, OnOpen, Over, Respond,
};

fn milliseconds(time: Duration) -> u64 {
    time.as_millis() as u64
}

/// The keys of a service that are said.
pub(in crate::config::file) fn show(guard: &Guard) -> Map<String, Json> {
    let said = [
        ("breaker", guard.breaker.as_ref().map(breaker)),
        ("endpoint_breaker", guard.endpoint_breaker.as_ref().map(breaker)),
        ("thresholds", guard.thresholds.as_ref().map(threshold::show)),
        ("isolation", guard.isolation.as_ref().map(isolation)),
        ("fallback", guard.fallback.as_ref().map(fallback)),
        ("degrade", guard.degrade.as_ref().map(degrade)),
        ("reason_header", guard.tells_reason.then(|| json!(SWITCHES[0].0))),
    ];
    said.into_iter().filter_map(|(key, said)| Some((key.to_owned(), said?))).collect()
}

/// One of a service, a route or its endpoints.
pub(in crate::config::file) fn breaker(breaker: &Breaker) -> Json {
    let over = |over: &Over| json!({ "window_ms": milliseconds(over.window), "requests_min": over.requests });
    // Sentinel's counts in one piece and rests from when a try failed; what else a preset means is written out.
    let preset = if breaker.rests_from_try { "hystrix" } else { "sentinel" };
    let (word, said) = match &breaker.kind {
        Kind::ErrorRatio { percent, over: all } => ("error_ratio", [json!({ "error_percent": percent }), over(all)]),
        Kind::ErrorCount { errors, over: all } => ("error_count", [json!({ "errors": errors }), over(all)]),
        Kind::SlowCalls { slow, percent, over: all } => {
            ("slow_calls", [json!({ "slow_ms": milliseconds(*slow), "slow_percent": percent }), over(all)])
        }
        Kind::Consecutive(failures) => ("consecutive", [json!({ "failures": failures }), json!({})]),
        Kind::Rate(rate) => ("trigger_rate", [json!({ "rate": rate }), json!({})]),
    };
    let mut shown = json!({
        "preset": preset,
        "kind": word,
        "open_ms": milliseconds(breaker.open_for),
        "half_open_requests": breaker.half_open_requests,
        "on_open": match &breaker.on_open {
            OnOpen::Fallback => json!("fallback"),
            OnOpen::Fail => json!("fail"),
            OnOpen::Cluster(name) => json!({ "cluster": name }),
        },
    });
    for said in said {
        if let (Json::Object(shown), Json::Object(said)) = (&mut shown, said) {
            shown.extend(said);
        }
    }
    shown
}

fn isolation(isolation: &Isolation) -> Json {
    json!({ "timeout_ms": isolation.timeout.map(milliseconds), "max_concurrency": isolation.concurrency })
}

fn fallback(fallback: &Fallback) -> Json {
    let on: Vec<&str> = fallback.on.iter().map(|why| why.word()).collect();
    match &fallback.instead {
        Instead::Respond(answer) => json!({ "on": on, "respond": respond(answer) }),
        Instead::To(name) => json!({ "on": on, "to": name, "max_concurrency": fallback.concurrency }),
    }
}

fn respond(respond: &Respond) -> Json {
    let headers: Map<String, Json> = respond.headers.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    let grpc_status = respond.grpc_status.filter(|code| u32::from(*code) <= GRPC_STATUS_MAX);
    let mut shown = json!({ "status": respond.status, "headers": headers, "grpc_status": grpc_status });
    if !respond.body.is_empty() {
        shown["body"] = json!(respond.body);
    }
    shown
}

fn degrade(degrade: &Degrade) -> Json {
    match &degrade.to {
        DegradeTo::Respond(answer) => json!({ "switch": degrade.switch, "respond": respond(answer) }),
        DegradeTo::Shift { percent, to } => {
            json!({ "switch": degrade.switch, "shift": { "percent": percent, "to": to } })
        }
    }
}
