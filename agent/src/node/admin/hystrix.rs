//! What breakers do, as Hystrix streams it to its dashboard and to turbine: <https://github.com/Netflix/Hystrix/tree/master/hystrix-contrib/hystrix-metrics-event-stream>.
//!
//! Counts are of the last ten seconds, as of Hystrix's rolling window, but never of a time before the stream began: nobody counts for nobody.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    fmt::Write as _,
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, ready},
    time::{Duration, Instant, SystemTime},
};

use axum::{
    body::{Body, Bytes},
    extract::{ConnectInfo, RawQuery, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use http_body::Frame;
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;

use super::{Desk, door::Guest, gone};
use crate::{
    cluster::{BreakerPhase, BreakerState, CallTally, Service, Snapshot, Watching},
    config::guard::{Breaker, Isolation, Kind},
};

/// Streams at once (hystrix.stream.maxConcurrentConnections).
pub(super) const STREAMS_MAX: usize = 5;
/// How often breakers are told of, unless the client says otherwise: Hystrix's default.
const DELAY: Duration = Duration::from_millis(500);
/// As often as it may say, and as seldom.
const DELAY_MS: std::ops::RangeInclusive<u64> = 100..=60_000;
/// Hystrix's rolling window, and its buckets.
const WINDOW: Duration = Duration::from_secs(10);
const BUCKET: Duration = Duration::from_secs(1);
/// Most breakers that are told of: a dashboard shows no more, and each is a line of 2 KiB.
const BREAKERS_MAX: usize = 1_000;

/// `GET /hystrix.stream`.
pub(super) async fn stream(
    State(desk): State<Desk>,
    ConnectInfo(guest): ConnectInfo<Guest>,
    RawQuery(query): RawQuery,
) -> Response {
    let Ok(permit) = Arc::clone(&desk.streams).try_acquire_owned() else {
        let text = format!("MaxConcurrentConnections reached: {STREAMS_MAX}\n");
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    };
    let Some(delay) = delay(query.as_deref()) else {
        let text = format!("delay is in milliseconds, from {} to {}\n", DELAY_MS.start(), DELAY_MS.end());
        return (StatusCode::BAD_REQUEST, text).into_response();
    };
    if desk.see(false).await.is_none() {
        return gone();
    }
    guest.stays();
    let told =
        Told { desk, delay, window: Window::default(), begun: false, _permit: permit, _watching: Watching::begin() };
    let fields = [
        (header::CONTENT_TYPE, "text/event-stream;charset=UTF-8"),
        (header::CACHE_CONTROL, "no-cache, no-store, max-age=0, must-revalidate"),
    ];
    (fields, Body::new(Lines { next: Box::pin(told.next()) })).into_response()
}

/// What the client says of how often; `None`: nothing that can be.
fn delay(query: Option<&str>) -> Option<Duration> {
    let said = query.unwrap_or_default().split('&').find_map(|part| part.strip_prefix("delay="));
    let Some(said) = said else { return Some(DELAY) };
    said.parse().ok().filter(|ms| DELAY_MS.contains(ms)).map(Duration::from_millis)
}

/// The next lines, and who tells those after them; `None`: there are no more.
type Next = Option<(Bytes, Told)>;

/// The body: dropped with its connection, and all that it holds with it.
struct Lines {
    next: Pin<Box<dyn Future<Output = Next> + Send>>,
}

impl http_body::Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some((bytes, told)) = ready!(self.next.as_mut().poll(context)) else { return Poll::Ready(None) };
        self.next = Box::pin(told.next());
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }
}

/// What one client is told.
struct Told {
    desk: Desk,
    delay: Duration,
    window: Window,
    begun: bool,
    _permit: OwnedSemaphorePermit,
    _watching: Watching,
}

impl Told {
    /// The next lines, when it is time; `None`: the agent is ending.
    async fn next(mut self) -> Next {
        if std::mem::replace(&mut self.begun, true) {
            tokio::time::sleep(self.delay).await;
        }
        let (observed, _) = self.desk.see(false).await?;
        let told = move || {
            let text = self.window.tell(&observed.snapshot, Instant::now());
            (Bytes::from(text), self)
        };
        tokio::task::spawn_blocking(told).await.ok()
    }
}

/// What was counted lately, by the names of breakers.
#[derive(Default)]
struct Window(HashMap<String, VecDeque<(Instant, Tally)>>);

/// What is counted of one breaker, since ever.
#[derive(Clone)]
struct Tally {
    calls: CallTally,
    short_circuits: u64,
    timeouts: u64,
    fallbacks: u64,
    fallbacks_rejected: u64,
}

/// A breaker, and what belongs to it.
struct Shown<'s> {
    name: String,
    service: &'s Service,
    state: &'s BreakerState,
    isolation: Option<&'s Isolation>,
    active: u64,
    /// Whether its service's timeouts and fallbacks are its own.
    is_services: bool,
}

impl Window {
    fn tell(&mut self, snapshot: &Snapshot, now: Instant) -> String {
        let shown: Vec<Shown<'_>> =
            snapshot.services.iter().flat_map(|service| breakers(service)).take(BREAKERS_MAX).collect();
        let mut text = String::new();
        for breaker in &shown {
            let lately = self.lately(breaker, now);
            let _ = write!(text, "data: {}\n\n", command(breaker, &lately));
            if let Some(pool) = pool(breaker, &lately) {
                let _ = write!(text, "data: {pool}\n\n");
            }
        }
        self.0.retain(|name, _| shown.iter().any(|it| it.name == *name));
        if text.is_empty() { "ping: \n\n".to_owned() } else { text }
    }

    /// What was counted within the window.
    fn lately(&mut self, breaker: &Shown<'_>, at: Instant) -> Tally {
        let now = Tally::of(breaker);
        let kept = self.0.entry(breaker.name.clone()).or_default();
        while kept.len() > 1 && kept.get(1).is_some_and(|(since, _)| at.duration_since(*since) >= WINDOW) {
            kept.pop_front();
        }
        if kept.back().is_none_or(|(since, _)| at.duration_since(*since) >= BUCKET) {
            kept.push_back((at, now.clone()));
        }
        kept.front().map_or(now.clone(), |(_, before)| now.since(before))
    }
}

impl Tally {
    fn of(breaker: &Shown<'_>) -> Self {
        let usage = &breaker.service.guard.usage;
        let own = |count: u64| if breaker.is_services { count } else { 0 };
        Self {
            calls: breaker.state.calls.tally(),
            short_circuits: breaker.state.short_circuits.load(Relaxed),
            timeouts: own(usage.timeouts.load(Relaxed)),
            fallbacks: own(usage.fallbacks.iter().map(|count| count.load(Relaxed)).sum()),
            fallbacks_rejected: own(usage.fallbacks_rejected.load(Relaxed)),
        }
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            calls: self.calls.since(&before.calls),
            short_circuits: self.short_circuits.saturating_sub(before.short_circuits),
            timeouts: self.timeouts.saturating_sub(before.timeouts),
            fallbacks: self.fallbacks.saturating_sub(before.fallbacks),
            fallbacks_rejected: self.fallbacks_rejected.saturating_sub(before.fallbacks_rejected),
        }
    }
}

/// Those of a service, of its routes and of its endpoints.
fn breakers(service: &Service) -> Vec<Shown<'_>> {
    let config = &service.config;
    let open = |endpoint: &crate::cluster::Endpoint| u64::from(endpoint.state.active.load(Relaxed));
    let isolation = config.guard.isolation.as_ref();
    let places = isolation.and_then(|isolation| isolation.concurrency);
    let active = match places {
        Some(_) => service.guard.usage.active.now().into(),
        None => service.endpoints.iter().map(|endpoint| open(endpoint)).sum(),
    };
    let own = service.guard.breaker.iter().map(|state| {
        let name = config.name.clone();
        Shown { name, service, state, isolation, active, is_services: true }
    });
    let part = |name: &dyn std::fmt::Display, state, active| {
        let name = format!("{}/{name}", config.name);
        Shown { name, service, state, isolation: None, active, is_services: false }
    };
    let routes = config.routes.iter().zip(&service.routes);
    let routes = routes.filter_map(|(route, state)| Some(part(&route.name, state.breaker.as_deref()?, 0)));
    let endpoints = service.endpoints.iter().zip(&service.guard.endpoints);
    let endpoints = endpoints.map(|(endpoint, state)| part(&endpoint.address, &**state, open(endpoint)));
    own.chain(routes).chain(endpoints).collect()
}

fn current_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// The percentiles that the dashboard reads.
fn latency(calls: &CallTally) -> Value {
    let shares = [
        ("0", 0),
        ("25", 250),
        ("50", 500),
        ("75", 750),
        ("90", 900),
        ("95", 950),
        ("99", 990),
        ("99.5", 995),
        ("100", 1_000),
    ];
    shares
        .into_iter()
        .map(|(name, permille)| (name.to_owned(), json!(calls.took_ms(permille))))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// From how many requests on, and at how many of a hundred, it opens; 0: not by that.
fn thresholds(rules: &Breaker) -> (u32, u32) {
    match rules.kind {
        Kind::ErrorRatio { percent, over } | Kind::SlowCalls { percent, over, .. } => (over.requests, percent),
        Kind::ErrorCount { over, .. } => (over.requests, 0),
        Kind::Consecutive(_) | Kind::Rate(_) => (0, 0),
    }
}

fn command(breaker: &Shown<'_>, lately: &Tally) -> Value {
    let (calls, rules, guard) = (&lately.calls, &breaker.state.config, &breaker.service.config.guard);
    let failed = calls.failed.saturating_sub(lately.timeouts);
    let requests = calls.ended() + calls.rejected;
    let errors = calls.failed + calls.rejected;
    let (volume, percent) = thresholds(rules);
    let timeout = breaker.isolation.and_then(|isolation| isolation.timeout);
    let timeout_ms = timeout.map_or(0, |timeout| timeout.as_millis() as u64);
    let places = breaker.isolation.and_then(|isolation| isolation.concurrency);
    let fallback_places = guard.fallback.as_ref().and_then(|fallback| fallback.concurrency);
    let mut shown = json!({
        "type": "HystrixCommand",
        "name": breaker.name,
        "group": breaker.service.config.name,
        "currentTime": current_ms(),
        "isCircuitBreakerOpen": breaker.state.phase() != BreakerPhase::Closed,
        "errorPercentage": (100 * errors).checked_div(requests).unwrap_or(0),
        "errorCount": errors,
        "requestCount": requests,
        "rollingCountBadRequests": 0,
        "rollingCountCollapsedRequests": 0,
        "rollingCountEmit": 0,
        "rollingCountExceptionsThrown": errors.saturating_sub(lately.fallbacks),
        "rollingCountFailure": failed,
        "rollingCountFallbackEmit": 0,
        "rollingCountFallbackFailure": 0,
        "rollingCountFallbackMissing": 0,
        "rollingCountFallbackRejection": lately.fallbacks_rejected,
        "rollingCountFallbackSuccess": lately.fallbacks,
        "rollingCountResponsesFromCache": 0,
        "rollingCountSemaphoreRejected": 0,
        "rollingCountShortCircuited": lately.short_circuits,
        "rollingCountSuccess": calls.ended().saturating_sub(calls.failed),
        "rollingCountThreadPoolRejected": calls.rejected,
        "rollingCountTimeout": lately.timeouts,
        "currentConcurrentExecutionCount": breaker.active,
        "latencyExecute_mean": calls.mean_ms(),
        "latencyExecute": latency(calls),
        "latencyTotal_mean": calls.mean_ms(),
        "latencyTotal": latency(calls),
    });
    let properties = json!({
        "propertyValue_circuitBreakerRequestVolumeThreshold": volume,
        "propertyValue_circuitBreakerSleepWindowInMilliseconds": rules.open_for.as_millis() as u64,
        "propertyValue_circuitBreakerErrorThresholdPercentage": percent,
        "propertyValue_circuitBreakerForceOpen": false,
        "propertyValue_circuitBreakerForceClosed": false,
        "propertyValue_circuitBreakerEnabled": true,
        "propertyValue_executionIsolationStrategy": "THREAD",
        "propertyValue_executionIsolationThreadTimeoutInMilliseconds": timeout_ms,
        "propertyValue_executionTimeoutInMilliseconds": timeout_ms,
        "propertyValue_executionIsolationThreadInterruptOnTimeout": true,
        "propertyValue_executionIsolationThreadPoolKeyOverride": null,
        "propertyValue_executionIsolationSemaphoreMaxConcurrentRequests": places.unwrap_or(0),
        "propertyValue_fallbackIsolationSemaphoreMaxConcurrentRequests": fallback_places.unwrap_or(0),
        "propertyValue_metricsRollingStatisticalWindowInMilliseconds": WINDOW.as_millis() as u64,
        "propertyValue_requestCacheEnabled": false,
        "propertyValue_requestLogEnabled": false,
        "reportingHosts": 1,
        "threadPool": breaker.name,
    });
    if let (Value::Object(shown), Value::Object(properties)) = (&mut shown, properties) {
        shown.extend(properties);
    }
    shown
}

/// The places of its isolation, as Hystrix tells of a pool of threads.
fn pool(breaker: &Shown<'_>, lately: &Tally) -> Option<Value> {
    let places = breaker.isolation?.concurrency?;
    let (calls, active) = (&lately.calls, breaker.active);
    Some(json!({
        "type": "HystrixThreadPool",
        "name": breaker.name,
        "currentTime": current_ms(),
        "currentActiveCount": active,
        "currentCompletedTaskCount": calls.ended(),
        "currentCorePoolSize": places,
        "currentLargestPoolSize": places,
        "currentMaximumPoolSize": places,
        "currentPoolSize": places,
        "currentQueueSize": 0,
        "currentTaskCount": calls.ended() + active,
        "rollingCountThreadsExecuted": calls.ended(),
        "rollingMaxActiveThreads": active,
        "rollingCountCommandRejections": calls.rejected,
        "propertyValue_queueSizeRejectionThreshold": 0,
        "propertyValue_metricsRollingStatisticalWindowInMilliseconds": WINDOW.as_millis() as u64,
        "reportingHosts": 1,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file;

    fn snapshot() -> Snapshot {
        let text = "services: [{name: a, address: 10.0.0.1:80, protocol: http, endpoints: [127.0.0.1:80], breaker: hystrix, \
                    isolation: hystrix, endpoint_breaker: textbook, routes: [{name: x, breaker: {kind: consecutive}}]}]";
        Snapshot::build(&file::parse(text, "F").expect("a good file"), &Snapshot::default())
    }

    fn told(window: &mut Window, snapshot: &Snapshot, at: Instant) -> Vec<Value> {
        let text = window.tell(snapshot, at);
        let lines = text.split("\n\n").filter_map(|line| line.strip_prefix("data: "));
        lines.map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    #[test]
    fn each_breaker_is_a_command_and_isolation_a_pool() {
        let told = told(&mut Window::default(), &snapshot(), Instant::now());
        let names: Vec<(&str, &str)> =
            told.iter().map(|it| (it["type"].as_str().unwrap_or(""), it["name"].as_str().unwrap_or(""))).collect();
        let expected = [
            ("HystrixCommand", "a"),
            ("HystrixThreadPool", "a"),
            ("HystrixCommand", "a/x"),
            ("HystrixCommand", "a/127.0.0.1:80"),
        ];
        assert_eq!(names, expected);
        assert_eq!(told[0]["propertyValue_circuitBreakerRequestVolumeThreshold"], 20);
        assert_eq!(told[0]["propertyValue_circuitBreakerSleepWindowInMilliseconds"], 5_000);
        assert_eq!(told[1]["currentMaximumPoolSize"], 10);
        assert_eq!(Window::default().tell(&Snapshot::default(), Instant::now()), "ping: \n\n");
    }

    #[test]
    fn counts_are_of_the_last_ten_seconds() {
        let (snapshot, mut window, start) = (snapshot(), Window::default(), Instant::now());
        let calls = &snapshot.services[0].guard.breaker.as_ref().expect("one").calls;
        let mut at = |ms| told(&mut window, &snapshot, start + Duration::from_millis(ms)).remove(0);
        assert_eq!(at(0)["requestCount"], 0);
        (0..3).for_each(|_| calls.count(7, false));
        calls.count(7, true);
        let told = at(500);
        assert_eq!(
            (&told["requestCount"], &told["errorCount"], &told["errorPercentage"]),
            (&json!(4), &json!(1), &json!(25))
        );
        assert_eq!((&told["rollingCountSuccess"], &told["latencyExecute"]["50"]), (&json!(3), &json!(7)));
        (1..=9).for_each(|second| assert_eq!(at(second * 1_000)["requestCount"], 4));
        calls.count(9, false);
        assert_eq!(at(10_000)["requestCount"], 5);
        assert_eq!(at(11_000)["requestCount"], 1);
        assert_eq!(at(12_000)["requestCount"], 1);
    }

    #[test]
    fn who_says_how_often_is_heard_within_bounds() {
        let ms = |query| delay(query).map(|delay| delay.as_millis());
        assert_eq!([None, Some(""), Some("a=1&delay=250")].map(ms), [Some(500), Some(500), Some(250)]);
        assert_eq!([Some("delay=1"), Some("delay=x"), Some("delay=")].map(ms), [None; 3]);
    }
}
