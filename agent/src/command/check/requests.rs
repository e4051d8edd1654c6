//! What is done with the requests of a service, a line for each thing: what they pass, how long they may take, what keeps them out and what
//! stands in.

use std::collections::BTreeMap;

use crate::config::{
    Pending, Service, Strategy, Timing, file,
    filter::Filter,
    guard::{Breaker, Degrade, DegradeTo, Fallback, Instead, Isolation, Kind as Opens, OnOpen, Over},
    outlier::Outlier,
    request_limit::{Kind, OnLimit, RequestLimit},
    retry::Retry,
    strategy,
    threshold::{Threshold, Thresholds},
    tuning::Part,
    zone::Zone,
};

/// The lines, in the order in which a request meets what they tell of.
pub(super) fn lines(service: &Service, switches: &BTreeMap<String, bool>) -> Vec<String> {
    let guard = &service.guard;
    let is_on = |degrade: &Degrade| switches.get(&degrade.switch).is_some_and(|on| *on);
    let mut lines: Vec<String> = Vec::new();
    lines.extend((!service.filters.is_empty()).then(|| filters(&service.filters)));
    lines.extend(guard.degrade.as_ref().map(|degrade| degraded(degrade, is_on(degrade))));
    lines.extend(service.request_limits.iter().map(limit));
    for route in &service.routes {
        lines.extend(route.request_limits.iter().map(|it| format!("route {}: {}", route.name, limit(it))));
        lines.extend(route.one_way.then(|| {
            let told = "the client is answered with 202 at once, and what comes back is dropped";
            format!("route {}: one way; {told}", route.name)
        }));
    }
    lines.extend(service.pending.as_ref().map(pending));
    lines.extend(service.timing.as_ref().and_then(timing));
    lines.extend(guard.breaker.as_ref().map(|it| breaker("breaker", it, "requests are refused meanwhile")));
    for route in &service.routes {
        let of = format!("route {}: breaker", route.name);
        lines.extend(route.breaker.as_ref().map(|it| breaker(&of, it, "requests are refused meanwhile")));
    }
    let alone = "it is left out meanwhile, and requests are refused while all are";
    lines.extend(guard.endpoint_breaker.as_ref().map(|it| breaker("breaker of each endpoint", it, alone)));
    lines.extend(guard.thresholds.as_ref().and_then(thresholds));
    lines.extend(guard.isolation.as_ref().map(isolation));
    lines.extend(service.strategy.as_ref().and_then(retries));
    lines.extend(service.outlier.as_ref().map(ejection));
    lines.extend(guard.fallback.as_ref().map(fallback));
    lines.extend(guard.tells_reason.then(|| "an answer of the agent's own says why in x-sockway-reason".to_owned()));
    lines
}

/// What requests and responses pass.
pub(super) fn filters(filters: &[Filter]) -> String {
    let filter = |filter: &Filter| {
        let word = filter.kind.word();
        let named = if filter.name == word { String::new() } else { format!(" ({word})") };
        let some = if filter.matches.is_some() { " for some" } else { "" };
        format!("{}{named}{some}", filter.name)
    };
    format!("filters: {}", filters.iter().map(filter).collect::<Vec<String>>().join(", "))
}

fn limit(limit: &RequestLimit) -> String {
    let by = limit.by.as_ref().map(|part| match part {
        Part::Header(name) => format!(" for each value of the header {name}"),
        Part::Cookie(name) => format!(" for each value of the cookie {name}"),
        Part::Query(name) => format!(" for each value of the parameter {name}"),
        Part::Source => " for each source".to_owned(),
    });
    let (kind, by, status) = (counted(&limit.kind), by.unwrap_or_default(), limit.status);
    let wait = limit.wait_max.map(|time| format!("a wait of up to {time:?}, then ")).unwrap_or_default();
    let then = match limit.on_limit {
        OnLimit::Reject => status.to_string(),
        OnLimit::Fallback => "the fallback".to_owned(),
        OnLimit::Break => "the breaker opens".to_owned(),
    };
    let part = limit
        .hours
        .map(|hours| format!(" from {}{}", file::show_hours(&hours).replace('-', " to "), clocks(hours.zone)));
    let part = part.unwrap_or_default();
    format!("request limit {}: {kind}{by}{part}; over that {wait}{then}", limit.name)
}

/// Whose clocks are meant.
fn clocks(zone: Zone) -> String {
    match zone {
        Zone::UTC => " in UTC".to_owned(),
        zone => format!(" by the clocks of {}", file::show_zone(zone).1),
    }
}

fn pending(rules: &Pending) -> String {
    format!(
        "without room up to {} requests wait for it, each for {:?}; over that 503",
        rules.requests_max, rules.wait_max
    )
}

fn counted(kind: &Kind) -> String {
    match kind {
        Kind::TokenBucket { limit, window, burst, starts_empty, .. } => {
            let empty = if *starts_empty { ", none at first" } else { "" };
            format!("{limit} in {window:?}, {burst} after a pause{empty}")
        }
        Kind::LeakyBucket { limit, window, queue } => {
            format!("{limit} in {window:?}, one by one, {queue} in the queue")
        }
        Kind::FixedWindow { limit, window, aligned: None } => format!("{limit} in each window of {window:?}"),
        Kind::FixedWindow { limit, window, aligned: Some(zone) } => {
            let window = match window.as_secs() {
                60 => "minute",
                3_600 => "hour",
                _ => "day",
            };
            format!("{limit} in each {window} of the calendar{}", clocks(*zone))
        }
        Kind::SlidingWindow { limit, window } => format!("{limit} in any {window:?}"),
        Kind::Concurrency { limit } => format!("{limit} at once"),
        Kind::WarmUp { limit, period_s, cold_factor } => {
            format!("{limit} a second, one in {cold_factor} of them after a pause and all after {period_s}s")
        }
        Kind::Gradient(rules) => {
            format!("as many at once as leave answers fast, from {} to {}", rules.least, rules.most)
        }
        Kind::Bbr { busy_percent, .. } => {
            format!("as many at once as get done, while the processor is busier than {busy_percent} %")
        }
        Kind::Admission { rules, .. } => {
            format!("fewer while less than {} % succeed in {:?}", rules.success_percent, rules.window)
        }
    }
}

fn timing(timing: &Timing) -> Option<String> {
    let timeout = timing.timeout.map(|time| match timing.auto {
        Some(auto) => format!("{} times what 99 of 100 requests take, from {:?} to {time:?}", auto.factor, auto.min),
        None => format!("{time:?}"),
    });
    let deadline = timing.deadline.map(|deadline| {
        let believed = match (deadline.reset, deadline.accept.is_empty()) {
            (true, _) => "what the caller says of it is taken away",
            (false, true) => "what the caller says of it is not heeded",
            (false, false) => "or less if the caller says so",
        };
        let told = if deadline.forward { ", and the endpoint is told what is left" } else { "" };
        format!("{believed}{told}")
    });
    let parts: Vec<String> = timeout.into_iter().chain(deadline).collect();
    (!parts.is_empty()).then(|| format!("deadline: {}", parts.join(", ")))
}

fn breaker(whose: &str, breaker: &Breaker, refused: &str) -> String {
    let of = |over: &Over| format!("of at least {} requests in {:?}", over.requests, over.window);
    let opens = match &breaker.kind {
        Opens::ErrorRatio { percent, over } => format!("when {percent} % {} failed", of(over)),
        Opens::ErrorCount { errors, over } => format!("when {errors} {} failed", of(over)),
        Opens::SlowCalls { slow, percent, over } => {
            format!("when {percent} % {} took longer than {slow:?}", of(over))
        }
        Opens::Consecutive(failures) => format!("after {failures} failures in a row"),
        Opens::Rate(rate) => format!("when more than {rate} requests came in a second"),
    };
    let closes = match breaker.half_open_requests {
        0 => "then closed".to_owned(),
        1 => "then one request tries".to_owned(),
        requests => format!("then {requests} requests try"),
    };
    let meanwhile = match &breaker.on_open {
        OnOpen::Fallback => String::new(),
        OnOpen::Fail => format!("; {refused}"),
        OnOpen::Cluster(name) => format!("; {name} is asked meanwhile"),
    };
    format!("{whose}: open for {:?} {opens}, {closes}{meanwhile}", breaker.open_for)
}

fn thresholds(thresholds: &Thresholds) -> Option<String> {
    let told = |threshold: Threshold| {
        let what = match threshold {
            Threshold::Connections => "connections",
            Threshold::Pending => "requests that wait for one",
            Threshold::Requests => "requests",
            Threshold::Retries => "retries",
        };
        Some(format!("{} {what}", thresholds.of(threshold)?))
    };
    let told: Vec<String> = Threshold::ALL.into_iter().filter_map(told).collect();
    (!told.is_empty()).then(|| format!("thresholds: {} at once; over that 503", told.join(", ")))
}

fn isolation(isolation: &Isolation) -> String {
    let concurrency = isolation.concurrency.map(|most| format!("{most} requests at once"));
    let timeout = isolation.timeout.map(|time| format!("{time:?} until an answer begins"));
    format!("isolation: {}", concurrency.into_iter().chain(timeout).collect::<Vec<String>>().join(", "))
}

fn retries(strategy: &Strategy) -> Option<String> {
    let strategy::Kind::Failover(retry) = &strategy.kind else { return None };
    let Retry { attempts, per_try, budget, hedge, .. } = &**retry;
    let per_try = per_try.map(|time| format!(", {time:?} for each attempt")).unwrap_or_default();
    let hedge = hedge.map(|hedge| format!(", another endpoint asked as well after {:?}", hedge.after));
    let (hedge, percent, least) = (hedge.unwrap_or_default(), budget.percent, budget.min);
    Some(format!("retries: up to {attempts}{per_try}{hedge}; at a time {percent} % of what is in flight, or {least}"))
}

fn ejection(rules: &Outlier) -> String {
    format!(
        "outliers: an endpoint with {} answers of 5xx in a row, or much worse than others, is left out for {:?} and longer each time; {} % of \
         them at most",
        rules.consecutive_5xx, rules.base_ejection, rules.max_ejection_percent
    )
}

fn fallback(fallback: &Fallback) -> String {
    let on: Vec<&str> = fallback.on.iter().map(|why| why.word()).collect();
    let most = fallback.concurrency.map(|most| format!(", {most} at once")).unwrap_or_default();
    let instead = match &fallback.instead {
        Instead::Respond(respond) => format!("the answer is {}", respond.status),
        Instead::To(name) => format!("{name} is asked{most}"),
    };
    format!("fallback: on {}: {instead}", on.join(", "))
}

fn degraded(degrade: &Degrade, is_on: bool) -> String {
    let now = if is_on { "on" } else { "off" };
    let to = match &degrade.to {
        DegradeTo::Respond(respond) => format!("the answer is {}", respond.status),
        DegradeTo::Shift { percent, to } => format!("{percent} % go to {to}"),
    };
    format!("degraded while the switch {} is on (now {now}): {to}", degrade.switch)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(keys: &str) -> Vec<String> {
        let text = format!(
            "switches: {{sale: on}}\nservices:\n- {{name: a, address: 10.0.0.1:80, protocol: http, endpoints: [10.0.0.2:80],\n{keys}}}\n\
             - {{name: b, address: 10.0.0.3:80, protocol: http, endpoints: [10.0.0.4:80]}}\n"
        );
        let config = file::parse(&text, "F").unwrap_or_else(|error| panic!("{keys}: {error}"));
        lines(&config.services[0], &config.switches)
    }

    #[test]
    fn a_service_of_which_nothing_is_said_has_no_line() {
        assert!(told("mode: agent").is_empty());
    }

    #[test]
    fn each_thing_that_is_done_with_requests_is_told() {
        for (keys, line) in [
            (
                "filters: [{kind: request_id}, {kind: body_limit, name: big, bytes_max: 5, match: {methods: [PUT]}}]",
                "filters: request_id, big (body_limit) for some",
            ),
            (
                "degrade: {switch: sale, respond: {}}",
                "degraded while the switch sale is on (now on): the answer is 503",
            ),
            (
                "degrade: {switch: sale, shift: {percent: 30, to: b}}",
                "degraded while the switch sale is on (now on): 30 % go to b",
            ),
            (
                "request_limits: [{kind: token_bucket, limit: 1, window_ms: 500, burst: 100, starts: empty}]",
                "request limit token_bucket: 1 in 500ms, 100 after a pause, none at first; over that 429",
            ),
            (
                "request_limits: [{name: q, kind: leaky_bucket, limit: 50, queue: 10, by: {header: X-User}}]",
                "request limit q: 50 in 1s, one by one, 10 in the queue for each value of the header x-user; over that a wait of up to 200ms, \
                 then 429",
            ),
            (
                "request_limits: [{kind: window_average, limit: 100, window_ms: 60000}]",
                "request limit window_average: 6000 in any 60s; over that 429",
            ),
            (
                "request_limits: [{kind: fixed_window, limit: 7, aligned: day, between: \"09:00-18:00\"}]",
                "request limit fixed_window: 7 in each day of the calendar in UTC from 09:00 to 18:00 in UTC; over that 429",
            ),
            (
                "request_limits: [{kind: fixed_window, limit: 7, aligned: hour, time_zone: Europe/Berlin, on_limit: {wait: {max_ms: 500}}}]",
                "request limit fixed_window: 7 in each hour of the calendar by the clocks of Europe/Berlin; over that a wait of up to 500ms, \
                 then 429",
            ),
            (
                "request_limits: [{kind: concurrency, limit: 7, between: \"22:00-06:00\", utc_offset: \"-05:00\"}]",
                "request limit concurrency: 7 at once from 22:00 to 06:00 by the clocks of -05:00; over that 429",
            ),
            (
                "routes: [{name: r, one_way: on}]",
                "route r: one way; the client is answered with 202 at once, and what comes back is dropped",
            ),
            (
                "request_limits: [{kind: gradient}]",
                "request limit gradient: as many at once as leave answers fast, from 3 to 1000; over that 503",
            ),
            ("timeout_ms: 2000", "deadline: 2s"),
            (
                "timeout_ms: 2000, deadline: {}",
                "deadline: 2s, or less if the caller says so, and the endpoint is told what is left",
            ),
            ("deadline: {reset: on, forward: off}", "deadline: what the caller says of it is taken away"),
            (
                "breaker: hystrix",
                "breaker: open for 5s when 50 % of at least 20 requests in 10s failed, then one request tries",
            ),
            (
                "breaker: {kind: trigger_rate, on_open: {cluster: b}}",
                "breaker: open for 30s when more than 50 requests came in a second, then closed; b is asked meanwhile",
            ),
            (
                "breaker: {kind: consecutive, half_open_requests: 3, on_open: fail}",
                "breaker: open for 5s after 5 failures in a row, then 3 requests try; requests are refused meanwhile",
            ),
            (
                "routes: [{name: r, breaker: {kind: consecutive, on_open: fail}}]",
                "route r: breaker: open for 5s after 5 failures in a row, then one request tries; requests are refused meanwhile",
            ),
            (
                "endpoint_breaker: {kind: consecutive, failures: 3, on_open: fail}",
                "breaker of each endpoint: open for 5s after 3 failures in a row, then one request tries; it is left out meanwhile, \
                 and requests are refused while all are",
            ),
            (
                "thresholds: {max_connections: 7, max_pending_requests: 3, max_retries: 2}",
                "thresholds: 7 connections, 3 requests that wait for one, 2 retries at once; over that 503",
            ),
            ("isolation: textbook", "isolation: 10 requests at once, 1s until an answer begins"),
            (
                "retry: {attempts: 2, per_try_timeout_ms: 50}",
                "retries: up to 2, 50ms for each attempt; at a time 20 % of what is in flight, or 3",
            ),
            (
                "outlier: {interval_ms: 1000}",
                "outliers: an endpoint with 5 answers of 5xx in a row, or much worse than others, is left out for 30s and longer each time; \
                 10 % of them at most",
            ),
            (
                "fallback: {on: [limit, 5xx], to: b, max_concurrency: 4}",
                "fallback: on limit, 5xx: b is asked, 4 at once",
            ),
            ("reason_header: on", "an answer of the agent's own says why in x-sockway-reason"),
        ] {
            assert_eq!(told(keys), [line], "{keys}");
        }
        for (keys, first) in [
            (
                "pending: on, isolation: hystrix",
                "without room up to 1000 requests wait for it, each for 3s; over that 503",
            ),
            (
                "request_limits: [{kind: concurrency, limit: 7, on_limit: break}], breaker: hystrix",
                "request limit concurrency: 7 at once; over that the breaker opens",
            ),
        ] {
            assert_eq!(told(keys)[0], first, "{keys}");
        }
    }
}
