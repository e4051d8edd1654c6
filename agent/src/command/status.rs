//! `sockway status`: asks the running agent, and prints what it says as a table.

use std::{collections::BTreeMap, fmt::Write as _, net::SocketAddr, path::Path, time::Duration};

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Failure, OS_ERROR, UNAVAILABLE, Which, agent, brief, say, table};
use crate::{kernel, node::runfile};

/// Which agent, and how to print.
#[derive(Clone, Debug, clap::Args)]
pub struct Status {
    #[command(flatten)]
    which: Which,
    /// Ask at this admin address instead of the one in the run-time file
    #[arg(long, value_name = "IP:PORT", conflicts_with_all = ["instance", "config"])]
    admin: Option<SocketAddr>,
    /// Print the agent's answer as JSON
    #[arg(long)]
    json: bool,
}

/// Prints the state of a running agent.
///
/// # Errors
///
/// When no agent runs, or it does not answer.
pub fn run(status: &Status) -> Result<u8, Failure> {
    let (instance, capture) = status.which.find()?;
    let admin =
        status.admin.or_else(|| runfile::find(Path::new(runfile::DIRECTORY), &instance).map(|running| running.admin));
    let Some(admin) = admin else {
        return Err(not_running(&instance, kernel::pinned(&capture, &instance), status.json));
    };
    let text = agent::get(admin, "/status").map_err(|error| {
        Failure::new(OS_ERROR, format!("sockway: the agent does not answer at http://{admin}: {error}; see its log"))
    })?;
    let unclear =
        |error| Failure::new(OS_ERROR, format!("sockway: what answers at http://{admin} is no agent: {error}"));
    if status.json {
        let value: Value = serde_json::from_str(&text).map_err(unclear)?;
        say(format_args!("{value:#}\n"));
    } else {
        say(tell(&serde_json::from_str(&text).map_err(unclear)?));
    }
    Ok(0)
}

fn not_running(instance: &str, pinned: bool, json: bool) -> Failure {
    if json {
        say(format_args!("{:#}\n", json!({ "instance": instance, "running": false, "attached": pinned })));
    }
    let rest = if pinned {
        "its kernel half is attached: services balanced in the kernel go on (`sockway detach` takes it away)"
    } else {
        "nothing is attached for it"
    };
    Failure::new(UNAVAILABLE, format!("sockway: no agent of instance {instance} is running; {rest}"))
}

/// What of the answer is printed.
#[derive(Debug, Deserialize)]
struct Answer {
    version: String,
    instance: String,
    zone: Option<String>,
    pid: u32,
    not_ready_reason: Option<String>,
    workers: usize,
    generation: u64,
    last_reload_refused: bool,
    #[serde(default)]
    differs_from_file: bool,
    namespaces: usize,
    connections: usize,
    connects: Connects,
    shortcut: Shortcut,
    capabilities: BTreeMap<String, bool>,
    switches: BTreeMap<String, bool>,
    services: Vec<Service>,
    inbound: Vec<Inbound>,
    leaving: Vec<Leaving>,
}

/// An endpoint that takes no new connections.
#[derive(Debug, Deserialize)]
struct Leaving {
    service: String,
    endpoint: Endpoint,
}

#[derive(Debug, Deserialize)]
struct Connects {
    balanced_in_kernel: u64,
    handed_to_agent: u64,
    fail_open: u64,
}

#[derive(Debug, Deserialize)]
struct Shortcut {
    pairs: u64,
    bytes: u64,
    fallbacks: u64,
}

/// A rule for connections that come in.
#[derive(Debug, Deserialize)]
struct Inbound {
    name: String,
    ports: Vec<String>,
    protocol: String,
    active: u64,
    accepted: u64,
    refused: u64,
}

#[derive(Debug, Deserialize)]
struct Service {
    name: String,
    address: String,
    protocol: String,
    mode: String,
    breaker: Option<String>,
    #[serde(default)]
    route_breakers: Option<Vec<RouteBreaker>>,
    endpoints: Vec<Endpoint>,
    #[serde(default)]
    request_limits: Vec<Limit>,
    timeouts: Option<Vec<Timeout>>,
    pending: Option<Pending>,
}

/// Requests that wait for room.
#[derive(Debug, Deserialize)]
struct Pending {
    depth: u64,
    requests_max: u64,
    oldest_ms: Option<u64>,
    accepting: bool,
    served: u64,
    refused: BTreeMap<String, u64>,
}

/// A timeout that follows how long requests take.
#[derive(Debug, Deserialize)]
struct Timeout {
    route: Option<String>,
    timeout_ms: f64,
    p99_ms: Option<f64>,
}

/// What the breaker of a route does.
#[derive(Debug, Deserialize)]
struct RouteBreaker {
    route: String,
    breaker: String,
}

/// A request limit, and what it decided.
#[derive(Debug, Deserialize)]
struct Limit {
    /// Whose it is, if not the service's.
    route: Option<String>,
    name: String,
    kind: String,
    limit: Option<u64>,
    found: Option<u64>,
    open: Option<u64>,
    passed: u64,
    waited: u64,
    refused: u64,
}

#[derive(Debug, Deserialize)]
struct Endpoint {
    address: String,
    weight: u32,
    priority: u32,
    zone: Option<String>,
    state: String,
    up: bool,
    ejected: bool,
    #[serde(default)]
    ejected_by_hand: bool,
    #[serde(default)]
    breaker: Option<String>,
    warm_percent: u32,
    active: u64,
    total: u64,
    failures: u64,
    connect_us: Latency,
    rtt_us: Latency,
}

#[derive(Debug, Deserialize)]
struct Latency {
    mean: Option<u64>,
    p99_max: Option<u64>,
}

fn tell(answer: &Answer) -> String {
    let ready = answer.not_ready_reason.as_ref().map_or("ready".to_owned(), |reason| format!("not ready: {reason}"));
    let refused =
        if answer.last_reload_refused { "; the last change of the file was REFUSED, see the log" } else { "" };
    let differs = if answer.differs_from_file { "; the file says otherwise (`sockway audit` tells)" } else { "" };
    let zone = answer.zone.as_ref().map_or(String::new(), |zone| format!(", zone {zone}"));
    let Answer { connects, shortcut, .. } = answer;
    let mut text = String::new();
    let _ = write!(
        text,
        "instance     {}, version {}, process {}: {ready}\n\
         config       generation {}{zone}{refused}{differs}\n\
         serving      {} connections, {} workers, {} network namespaces\n\
         connects     {} balanced in the kernel, {} handed to the agent, {} balanced because the agent was not there\n\
         shortcut     {} pairs, {} bytes, {} fallbacks\n{}{}\n",
        answer.instance,
        answer.version,
        answer.pid,
        answer.generation,
        answer.connections,
        answer.workers,
        answer.namespaces,
        connects.balanced_in_kernel,
        connects.handed_to_agent,
        connects.fail_open,
        shortcut.pairs,
        shortcut.bytes,
        shortcut.fallbacks,
        lacking(&answer.capabilities),
        guarded(answer),
    );
    let heading = ["SERVICE", "ADDRESS", "MODE", "PROTOCOL", "ENDPOINT", "STATE", "ZONE", "PRIORITY", "WEIGHT"];
    let heading = [&heading[..], &["ACTIVE", "TOTAL", "FAILURES", "CONNECT", "P99", "RTT"]].concat();
    let mut rows = vec![heading.into_iter().map(str::to_owned).collect()];
    rows.extend(answer.services.iter().flat_map(service_rows));
    rows.extend(answer.leaving.iter().map(leaving_row));
    text.push_str(&table(&rows));
    let limits: Vec<Vec<String>> = answer.services.iter().flat_map(limit_rows).collect();
    if !limits.is_empty() {
        let heading =
            ["LIMITED", "NAME", "KIND", "LIMIT", "OPEN", "PASSED", "WAITED", "REFUSED"].map(str::to_owned).to_vec();
        let rows: Vec<Vec<String>> = [heading].into_iter().chain(limits).collect();
        let _ = write!(text, "\n{}", table(&rows));
    }
    let pending: Vec<Vec<String>> = answer.services.iter().filter_map(pending_row).collect();
    if !pending.is_empty() {
        let heading = ["PENDING", "DEPTH", "OF", "OLDEST", "ACCEPTS", "SERVED", "REFUSED"].map(str::to_owned).to_vec();
        let rows: Vec<Vec<String>> = [heading].into_iter().chain(pending).collect();
        let _ = write!(text, "\n{}", table(&rows));
    }
    if !answer.inbound.is_empty() {
        let heading = ["INBOUND", "PORTS", "PROTOCOL", "ACTIVE", "ACCEPTED", "REFUSED"];
        let heading = heading.into_iter().map(str::to_owned).collect();
        let rows: Vec<Vec<String>> = [heading].into_iter().chain(answer.inbound.iter().map(inbound_row)).collect();
        let _ = write!(text, "\n{}", table(&rows));
    }
    text
}

/// A line of what the running kernel cannot do; those of the shortcut's checks are told by `doctor` alone, since hardly a kernel passes all.
fn lacking(capabilities: &BTreeMap<String, bool>) -> String {
    let failed = capabilities.iter().filter(|(name, passed)| !**passed && !name.starts_with("shortcut_"));
    let names: Vec<&str> = failed.map(|(name, _)| name.as_str()).collect();
    match names.is_empty() {
        true => String::new(),
        false => format!("kernel       lacks {}: see `sockway doctor`\n", names.join(", ")),
    }
}

fn limit_rows(service: &Service) -> Vec<Vec<String>> {
    let row = |limit: &Limit| {
        let name = limit.route.iter().chain([&limit.name]).cloned().collect::<Vec<String>>().join("/");
        let words = [service.name.clone(), name, limit.kind.clone()];
        let known = [limit.found.or(limit.limit), limit.open];
        let known = known.map(|number| number.map_or("-".to_owned(), |number| number.to_string()));
        let counts = [limit.passed, limit.waited, limit.refused].map(|count| count.to_string());
        words.into_iter().chain(known).chain(counts).collect()
    };
    service.request_limits.iter().map(row).collect()
}

/// Who waits for room at a service.
fn pending_row(service: &Service) -> Option<Vec<String>> {
    let pending = service.pending.as_ref()?;
    let oldest = pending.oldest_ms.map_or("-".to_owned(), |ms| brief(Duration::from_millis(ms)));
    let accepts = if pending.accepting { "yes" } else { "NO" }.to_owned();
    let [depth, most, served] = [pending.depth, pending.requests_max, pending.served].map(|count| count.to_string());
    let refused = pending.refused.values().sum::<u64>().to_string();
    Some(vec![service.name.clone(), depth, most, oldest, accepts, served, refused])
}

/// A line of each breaker that is not closed and of each timeout that is found, and one of the switches that are on.
fn guarded(answer: &Answer) -> String {
    let mut text = String::new();
    for service in &answer.services {
        let name = &service.name;
        let own = (name.clone(), service.breaker.as_deref());
        let routes = service.route_breakers.iter().flatten();
        let routes = routes.map(|it| (format!("the route {} of {name}", it.route), Some(it.breaker.as_str())));
        let endpoints = service.endpoints.iter();
        let endpoints = endpoints.map(|it| (format!("{} of {name}", it.address), it.breaker.as_deref()));
        for (whose, phase) in [own].into_iter().chain(routes).chain(endpoints) {
            if let Some(phase) = phase.filter(|phase| *phase != "closed") {
                let _ = writeln!(text, "breaker      the breaker of {whose} is {}", phase.replace('_', "-"));
            }
        }
    }
    for service in &answer.services {
        for Timeout { route, timeout_ms, p99_ms } in service.timeouts.iter().flatten() {
            let whose =
                route.as_ref().map_or(service.name.clone(), |route| format!("{}, route {route},", service.name));
            let why = p99_ms.map_or("too few requests yet".to_owned(), |p99| format!("p99 {p99:.1} ms"));
            let _ = writeln!(text, "timeout      {whose} gives up after {timeout_ms:.0} ms ({why})");
        }
    }
    let on: Vec<&str> = answer.switches.iter().filter(|(_, on)| **on).map(|(name, _)| name.as_str()).collect();
    if !on.is_empty() {
        let _ = writeln!(text, "switches     on: {}", on.join(", "));
    }
    text
}

fn inbound_row(rule: &Inbound) -> Vec<String> {
    let words = [rule.name.clone(), rule.ports.join(","), rule.protocol.clone()];
    let numbers = [rule.active, rule.accepted, rule.refused];
    words.into_iter().chain(numbers.map(|number| number.to_string())).collect()
}

fn leaving_row(leaving: &Leaving) -> Vec<String> {
    let Leaving { service, endpoint } = leaving;
    let nothing = String::new;
    [vec![service.clone(), nothing(), nothing(), nothing()], endpoint_cells(endpoint, endpoint.state.clone())].concat()
}

/// How an endpoint that takes connections does.
fn state(endpoint: &Endpoint) -> String {
    match (endpoint.up, endpoint.warm_percent) {
        (false, _) if endpoint.ejected || endpoint.ejected_by_hand => "EJECTED".to_owned(),
        (false, _) => "DOWN".to_owned(),
        (true, 100) => "up".to_owned(),
        (true, percent) => format!("warms {percent}%"),
    }
}

fn endpoint_cells(endpoint: &Endpoint, state: String) -> Vec<String> {
    let said = [endpoint.priority, endpoint.weight].map(u64::from);
    let numbers = said.into_iter().chain([endpoint.active, endpoint.total, endpoint.failures]);
    let time = |us: Option<u64>| us.map_or("-".to_owned(), |us| brief(Duration::from_micros(us)));
    let bound = |us: Option<u64>| us.map_or("-".to_owned(), |us| format!("<{}", brief(Duration::from_micros(us))));
    let times = [time(endpoint.connect_us.mean), bound(endpoint.connect_us.p99_max), time(endpoint.rtt_us.mean)];
    let words = [endpoint.address.clone(), state, endpoint.zone.clone().unwrap_or_else(|| "-".to_owned())];
    words.into_iter().chain(numbers.map(|number| number.to_string())).chain(times).collect()
}

/// One row for each endpoint; the service stands in the first.
fn service_rows(service: &Service) -> Vec<Vec<String>> {
    let row = |(index, endpoint): (usize, &Endpoint)| {
        let first = |text: &str| if index == 0 { text.to_owned() } else { String::new() };
        let service =
            vec![first(&service.name), first(&service.address), first(&service.mode), first(&service.protocol)];
        [service, endpoint_cells(endpoint, state(endpoint))].concat()
    };
    service.endpoints.iter().enumerate().map(row).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, atomic::Ordering};

    use super::*;
    use crate::{
        cluster::{BreakerPhase, BreakerWord, Snapshot, Stage},
        config::file,
        record::observed::Observed,
    };

    #[test]
    fn what_an_agent_answers_is_printed_as_a_table() {
        let text = "{zone: east, switches: {sale: on, b: off}, services: [{name: a, address: 10.0.0.1:80, protocol: http, \
                    prefer_zone: on, breaker: hystrix, request_limits: [{kind: concurrency, limit: 7}], pending: on, \
                    slow_start: {window_ms: 1000}, endpoints: ['10.0.0.2:80', {address: '10.0.0.3:80', priority: 1}, \
                    {address: '10.0.0.4:80', zone: east, weight: 7}, {address: '10.0.0.5:80', zone: west, state: draining}]}]}";
        let config = file::parse(text, "F").expect("a good file");
        let snapshot = Arc::new(Snapshot::build(&config, &Snapshot::default()));
        let endpoints = &snapshot.services[0].endpoints;
        endpoints[1].state.set_down(true);
        endpoints[0].state.set_ejected(true);
        endpoints[2].state.set_warm_percent(45);
        snapshot.services[0].draining[0].state.set_stage(Stage::Draining);
        let open = BreakerWord { phase: BreakerPhase::HalfOpen, epoch: 1, started: 1, succeeded: 0, since_ms: 5 };
        snapshot.services[0].guard.breaker.as_ref().expect("one").phase.store(open.bits(), Ordering::Relaxed);
        let observed = Observed { snapshot, workers: 2, connections: 3, ..Observed::default() };
        let answer = observed.to_json(&config).to_string();
        let told = tell(&serde_json::from_str(&answer).expect("what is answered can be read"));
        assert!(told.contains("3 connections, 2 workers") && told.contains("generation 1, zone east"), "{told}");
        assert!(told.contains("the breaker of a is half-open\nswitches     on: sale\n"), "{told}");
        let rows: Vec<Vec<&str>> = told.lines().map(|line| line.split_whitespace().collect()).collect();
        for row in [
            &["SERVICE", "ADDRESS", "MODE", "PROTOCOL", "ENDPOINT", "STATE", "ZONE", "PRIORITY", "WEIGHT", "ACTIVE"][..],
            &["a", "10.0.0.1:80", "agent", "http", "10.0.0.2:80", "EJECTED", "-", "0", "1", "0"],
            &["a", "concurrency", "concurrency", "7", "0", "0", "0", "0"],
            &["PENDING", "DEPTH", "OF", "OLDEST", "ACCEPTS", "SERVED", "REFUSED"],
            &["a", "0", "1000", "-", "yes", "0", "0"],
            &["10.0.0.3:80", "DOWN", "-", "1", "1", "0"],
            &["10.0.0.4:80", "warms", "45%", "east", "0", "7", "0"],
            &["a", "10.0.0.5:80", "draining", "west", "0", "1", "0"],
        ] {
            assert!(rows.iter().any(|told| told.starts_with(row)), "{row:?} in {told}");
        }
    }
}
