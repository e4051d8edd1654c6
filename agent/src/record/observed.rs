//! All that can be seen of the agent at one moment, as plain values: read once on the main thread, then turned into Prometheus text or
//! JSON elsewhere.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use sockway_common::{
    flow::ENDPOINT_AGENT,
    join::ShortcutStats,
    latency::{EndpointLatency, Latencies},
    service::{EndpointKey, EndpointStats},
};

use super::{Bytes, Counter, HISTOGRAM_BOUNDS, Slab};
use crate::{
    cluster::{
        Adaptive, CanaryStage, Endpoint, Inbound, Leaving, LimitState, Pace, Reason, RouteState, Service, Snapshot,
        Unserved,
    },
    config::{self, Config, Route, file, threshold::Threshold},
    kernel::{Fill, HookTime},
};

/// The agent at one moment.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Why `/ready` says no; `None` when it says yes.
    pub not_ready: Option<String>,
    /// Worker threads.
    pub workers: usize,
    /// Connections being served.
    pub connections: usize,
    /// Network namespaces listened in.
    pub namespaces: usize,
    /// What is served, with the endpoints' live state.
    pub snapshot: Arc<Snapshot>,
    /// How often the configuration was read again.
    pub reloads: Reloads,
    /// How often something was changed, by whomever.
    pub changes: Vec<Changes>,
    /// Changes that the disk has not taken yet.
    pub audit_unwritten: usize,
    /// Whether something else is in effect than the configuration's file says.
    pub differs_from_file: bool,
    /// How often endpoints were probed.
    pub probes: Probes,
    /// The self-test of the running kernel: name, and whether it passed.
    pub capabilities: Vec<(String, bool)>,
    /// Each capability of `capabilities(7)` that the agent makes use of, and whether it has it.
    pub rights: Vec<(&'static str, bool)>,
    /// The workers' slabs, added up.
    pub workers_totals: Vec<Total>,
    /// The kernel half's counters.
    pub kernel_totals: Vec<Total>,
    /// What the connect hooks counted by endpoint.
    pub kernel_stats: Vec<(EndpointKey, EndpointStats)>,
    /// What the hooks measured by endpoint, of those that have been dialled.
    pub latencies: Vec<(EndpointKey, EndpointLatency)>,
    /// How full the kernel half's tables are.
    pub tables: Vec<Fill>,
    /// How long the hooks ran, while the kernel keeps count of it.
    pub hook_times: Vec<HookTime>,
    /// What went by the shortcut, by service id.
    pub shortcut_stats: Vec<(u32, ShortcutStats)>,
    /// Connections that count against the limit of a service, by its id.
    pub limits_open: Vec<(u32, u64)>,
    /// The workers' histograms, added up.
    pub histograms: Vec<Histogram>,
}

/// What came of reading the configuration again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reloads {
    /// Took effect.
    pub applied: u64,
    /// Had mistakes: nothing changed.
    pub refused: u64,
    /// Said what is in effect already.
    pub unchanged: u64,
    /// Whether the last one was refused.
    pub last_refused: bool,
    /// How long it took to read and check the last one that took effect.
    pub read_time: Duration,
    /// How long it took to put that in force once it was read, in the kernel half too.
    pub apply_time: Duration,
}

/// How often something of one kind was changed by one kind of somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changes {
    /// What: `start`, `reload`, `config`, `endpoint`, `eject`, …
    pub change: &'static str,
    /// By the `file`, by the `socket`, by a `token`, by the `agent` itself.
    pub by: &'static str,
    /// `applied` or `refused`.
    pub result: &'static str,
    /// How often.
    pub count: u64,
}

/// How probes ended, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Probes {
    /// The endpoint accepted.
    pub accepted: u64,
    /// It refused.
    pub refused: u64,
    /// It answered otherwise than it should.
    pub unfit: u64,
    /// It did not answer in time, or there was no way to it.
    pub failed: u64,
}

/// One counter with its total.
#[derive(Clone, Debug)]
pub struct Total {
    /// Name without the prefix.
    pub name: &'static str,
    /// Labels.
    pub labels: &'static [(&'static str, &'static str)],
    /// What it counts.
    pub help: &'static str,
    /// The total.
    pub value: u64,
}

/// One histogram with its totals.
#[derive(Clone, Debug)]
pub struct Histogram {
    /// Whole name.
    pub name: &'static str,
    /// What it measures.
    pub help: &'static str,
    /// Upper bounds, growing.
    pub bounds: Vec<Duration>,
    /// How many fell below each bound and not below the one before; one more at the end for what lies above all.
    pub counts: Vec<u64>,
    /// The sum of all that was measured.
    pub sum: Duration,
}

impl Observed {
    /// What the kernel half counted, by the service's name and endpoint, also of those that leave; `None` is the agent itself. Nothing is
    /// counted yet for an endpoint that nobody has dialled.
    pub fn kernel_endpoints(&self) -> impl Iterator<Item = (&str, Option<&Endpoint>, EndpointStats)> {
        let counted: HashMap<EndpointKey, EndpointStats> = self.kernel_stats.iter().copied().collect();
        let active = self.snapshot.services.iter().flat_map(|service| {
            let endpoints = service.endpoints.iter().map(|endpoint| Some(endpoint.as_ref()));
            endpoints.chain([None]).map(|endpoint| (service.id, service.config.name.as_str(), endpoint))
        });
        let leaving =
            self.snapshot.leaving().map(|one| (one.service, one.config.name.as_str(), Some(one.endpoint.as_ref())));
        active.chain(leaving).map(move |(service, name, endpoint)| {
            let key = EndpointKey { service, endpoint: endpoint.map_or(ENDPOINT_AGENT, |endpoint| endpoint.id) };
            (name, endpoint, counted.get(&key).copied().unwrap_or_default())
        })
    }

    /// What the hooks measured, by the service's name and the endpoint's, also of those that leave.
    pub fn measured_endpoints(&self) -> impl Iterator<Item = (&str, String, &EndpointLatency)> {
        self.latencies.iter().filter_map(|(key, latency)| {
            if key.endpoint == ENDPOINT_AGENT {
                return Some((self.snapshot.by_id(key.service)?.config.name.as_str(), "agent".to_owned(), latency));
            }
            let (service, endpoint) = self.snapshot.endpoint(key.service, key.endpoint)?;
            Some((service.name.as_str(), endpoint.address.to_string(), latency))
        })
    }

    /// What went by the shortcut, by service as configured now.
    pub fn shortcut_services(&self) -> impl Iterator<Item = (&Service, ShortcutStats)> {
        self.shortcut_stats.iter().filter_map(|(id, stats)| Some((self.snapshot.by_id(*id)?.as_ref(), *stats)))
    }

    /// The sum of the kernel half's counters of this name, with this label value if one is given.
    fn kernel_total(&self, name: &str, label: Option<&str>) -> u64 {
        let fits = |total: &&Total| {
            total.name == name && label.is_none_or(|label| total.labels.iter().any(|(_, value)| *value == label))
        };
        self.kernel_totals.iter().filter(fits).map(|total| total.value).sum()
    }

    /// What `/status` answers and `sockway status` prints.
    pub fn to_json(&self, config: &Config) -> Value {
        let kernel = self.kernel_side();
        let services: Vec<Value> =
            self.snapshot.services.iter().map(|service| service_json(service, &kernel)).collect();
        let leaving: Vec<Value> = self.snapshot.leaving().map(|leaving| leaving_json(leaving, &kernel)).collect();
        let fail_open = ["fail_open_no_listener", "fail_open_not_tagged", "fail_open_hung", "fail_open_no_room"];
        let fail_open: u64 = fail_open.iter().map(|verdict| self.kernel_total("connects_total", Some(verdict))).sum();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "instance": config.instance,
            "zone": config.zone,
            "pid": std::process::id(),
            "ready": self.not_ready.is_none(),
            "not_ready_reason": self.not_ready,
            "workers": self.workers,
            "generation": self.snapshot.generation,
            "last_reload_refused": self.reloads.last_refused,
            "differs_from_file": self.differs_from_file,
            "namespaces": self.namespaces,
            "connections": self.connections,
            "connects": {
                "balanced_in_kernel": self.kernel_total("connects_total", Some("balanced")),
                "handed_to_agent": self.kernel_total("connects_total", Some("agent")),
                "fail_open": fail_open,
                "untouched": self.kernel_total("connects_total", Some("not_service")),
            },
            "shortcut": {
                "pairs": self.kernel_total("shortcut_sockets_total", Some("server")),
                "messages": self.kernel_total("shortcut_messages_total", None),
                "bytes": self.kernel_total("shortcut_bytes_total", None),
                "fallbacks": self.kernel_total("shortcut_fallbacks_total", None),
                "joined_bytes": self.kernel_total("joined_bytes_total", None),
            },
            "capabilities": self.capabilities.iter().cloned().collect::<HashMap<String, bool>>(),
            "switches": self.snapshot.switches.values().map(|it| (it.name().to_owned(), it.is_on())).collect::<std::collections::BTreeMap<String, bool>>(),
            "services": services,
            "inbound": self.snapshot.inbound.iter().map(|rule| inbound_json(rule)).collect::<Vec<Value>>(),
            "leaving": leaving,
        })
    }

    fn kernel_side(&self) -> KernelSide {
        KernelSide {
            stats: self.kernel_stats.iter().copied().collect(),
            latencies: self.latencies.iter().copied().collect(),
        }
    }

    /// What is told of the service of this name.
    pub fn service_json(&self, name: &str) -> Option<Value> {
        self.snapshot.by_name(name).map(|service| service_json(service, &self.kernel_side()))
    }

    /// What `/config` answers: all but what tokens are known by.
    pub fn config_json(&self, config: &Config) -> Value {
        let mut shown = file::show(config);
        let tokens = shown["admin"]["tokens"].as_array_mut();
        tokens.into_iter().flatten().for_each(|token| token["sha256"] = json!("(hidden)"));
        json!({ "generation": self.snapshot.generation, "config": shown })
    }
}

/// The workers' slabs, added up.
pub fn add_up(slabs: &[Arc<Slab>]) -> (Vec<Total>, Vec<Histogram>) {
    let counters = Counter::ALL.iter().map(|counter| Total {
        name: counter.name(),
        labels: counter.labels(),
        help: counter.help(),
        value: slabs.iter().map(|slab| slab.counted(*counter)).sum(),
    });
    let bytes = Bytes::ALL.iter().map(|which| Total {
        name: which.name(),
        labels: which.labels(),
        help: which.help(),
        value: slabs.iter().map(|slab| slab.counted_bytes(*which)).sum(),
    });
    let histogram = |name, help, of: fn(&Slab) -> &super::Histogram| {
        let mut sum = Histogram {
            name,
            help,
            bounds: bounds(),
            counts: vec![0; HISTOGRAM_BOUNDS.len() + 1],
            sum: Duration::ZERO,
        };
        for slab in slabs {
            let (counts, took) = of(slab).read();
            sum.counts.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
            sum.sum += took;
        }
        sum
    };
    let histograms = vec![
        histogram(
            "sockway_request_duration_seconds",
            "From a request's head read to the end of its response sent.",
            |slab| &slab.request_duration,
        ),
        histogram("sockway_overhead_seconds", "The agent's own share of it, of a sample of the requests.", |slab| {
            &slab.overhead
        }),
    ];
    (counters.chain(bytes).collect(), histograms)
}

fn bounds() -> Vec<Duration> {
    HISTOGRAM_BOUNDS.iter().map(|bound| Duration::from_micros(*bound)).collect()
}

/// What the kernel half knows of endpoints.
struct KernelSide {
    stats: HashMap<EndpointKey, EndpointStats>,
    latencies: HashMap<EndpointKey, EndpointLatency>,
}

impl KernelSide {
    fn stats(&self, service: u32, endpoint: u32) -> EndpointStats {
        self.stats.get(&EndpointKey { service, endpoint }).copied().unwrap_or_default()
    }
}

/// What is said of a service's endpoints, by their addresses.
type Said<'s> = HashMap<SocketAddr, &'s config::Endpoint>;

fn said(service: &config::Service) -> Said<'_> {
    service.endpoints.iter().map(|endpoint| (endpoint.address, endpoint)).collect()
}

fn endpoint_json(service: u32, endpoint: &Endpoint, said: &Said<'_>, kernel: &KernelSide) -> Value {
    let latency = kernel.latencies.get(&EndpointKey { service, endpoint: endpoint.id }).copied().unwrap_or_default();
    let kernel = kernel.stats(service, endpoint.id);
    let state = &endpoint.state;
    json!({
        "address": endpoint.address,
        "weight": endpoint.weight,
        "priority": endpoint.priority(),
        "zone": said.get(&endpoint.address).and_then(|said| said.zone.as_deref()),
        "state": state.stage().word(),
        "up": state.usable(),
        "ejected": state.is_ejected(),
        "ejected_by_hand": state.is_barred(),
        "warm_percent": state.warm_percent(),
        "active": u64::from(state.active.load(Ordering::Relaxed)) + kernel.open(),
        "total": state.total.load(Ordering::Relaxed) + kernel.connects,
        "failures": state.connect_failures.load(Ordering::Relaxed) + kernel.failures,
        "connect_us": latency_json(&latency.connect),
        "rtt_us": latency_json(&latency.rtt),
        "retransmits": latency.retransmits,
    })
}

/// What programs measured; all null when they measured nothing.
fn latency_json(latencies: &Latencies) -> Value {
    json!({
        "mean": latencies.mean_us(),
        "p50_max": latencies.percentile_us_max(50),
        "p99_max": latencies.percentile_us_max(99),
    })
}

/// An endpoint that takes no new connections.
fn leaving_json(leaving: Leaving<'_>, kernel: &KernelSide) -> Value {
    json!({
        "service": leaving.config.name,
        "endpoint": endpoint_json(leaving.service, leaving.endpoint, &said(leaving.config), kernel),
    })
}

fn inbound_json(rule: &Inbound) -> Value {
    let state = &rule.state;
    json!({
        "name": rule.config.name,
        "ports": rule.config.ports.iter().map(file::range).collect::<Vec<String>>(),
        "protocol": file::protocol_word(rule.config.protocol),
        "active": state.open.load(Ordering::Relaxed),
        "accepted": state.accepted.load(Ordering::Relaxed),
        "refused": state.refused.iter().map(|count| count.load(Ordering::Relaxed)).sum::<u64>(),
    })
}

/// How many of its endpoints are ejected, and how often any was, by the reason.
fn ejections_json(service: &Service) -> Value {
    let ejections = &service.ejections;
    json!({
        "active": ejections.active.load(Ordering::Relaxed),
        "overflow": ejections.overflow.load(Ordering::Relaxed),
        "total": Reason::ALL.map(|reason| (reason.word(), ejections.of(reason))).into_iter().collect::<HashMap<_, _>>(),
    })
}

/// How far the canaries of its routes have come; nothing if it has none.
fn canaries_json(service: &Service) -> Option<Vec<Value>> {
    let routes = service.config.routes.iter().zip(&service.routes);
    let canary = |(route, state): (&Route, &RouteState)| {
        let canary = state.canary.as_ref()?;
        let (stage, counts) = (canary.stage(), canary.counts());
        let reason = if let CanaryStage::RolledBack(trouble) = stage { Some(trouble.word()) } else { None };
        Some(json!({
            "route": route.name,
            "state": stage.word(),
            "percent": canary.percent(),
            "reason": reason,
            "requests": counts.requests,
            "errors": counts.errors,
            "slow": counts.slow,
        }))
    };
    let canaries: Vec<Value> = routes.filter_map(canary).collect();
    (!canaries.is_empty()).then_some(canaries)
}

/// What its timeouts, and those of its routes, have come to where they follow how long requests take; nothing if none does.
fn timeouts_json(service: &Service) -> Option<Vec<Value>> {
    let millis = |time: Duration| time.as_secs_f64() * 1e3;
    let timeout = |(route, pace): (Option<&str>, &Pace)| json!({ "route": route, "timeout_ms": millis(pace.timeout()), "p99_ms": pace.p99().map(millis) });
    let timeouts: Vec<Value> = service.paces().map(timeout).collect();
    (!timeouts.is_empty()).then_some(timeouts)
}

/// What its request limits say, and those of its routes, and what they decided.
fn limits_json(service: &Service) -> Vec<Value> {
    let limit = |state: &Arc<LimitState>| {
        let mut shown = file::show_limit(&state.config);
        for (name, count) in [("passed", &state.passed), ("waited", &state.waited), ("refused", &state.refused)] {
            shown[name] = json!(count.load(Ordering::Relaxed));
        }
        shown["open"] = json!(state.open());
        shown["waiting"] = json!(state.line().map(|line| line.depth()));
        shown["found"] = json!(state.adaptive().and_then(Adaptive::limit));
        shown
    };
    let of_route = |(route, state): (&Route, &RouteState)| -> Vec<Value> {
        let named = |state| {
            let mut shown: Value = limit(state);
            shown["route"] = json!(route.name);
            shown
        };
        state.request_limits.iter().map(named).collect()
    };
    let of_routes = service.config.routes.iter().zip(&service.routes).flat_map(of_route);
    service.request_limits.iter().map(limit).chain(of_routes).collect()
}

/// Who waits for room, if anybody may.
fn pending_json(service: &Service) -> Option<Value> {
    let (rules, state) = service.config.pending.as_ref().zip(service.pending.as_ref())?;
    let count = |why: Unserved| (why.word(), state.unserved[why as usize].load(Ordering::Relaxed));
    Some(json!({
        "depth": state.depth(),
        "requests_max": rules.requests_max,
        "wait_max_ms": rules.wait_max.as_millis() as u64,
        "oldest_ms": state.oldest(Instant::now()).map(|oldest| oldest.as_millis() as u64),
        "accepting": !state.is_shut(),
        "stops": state.stops.load(Ordering::Relaxed),
        "served": state.served.load(Ordering::Relaxed),
        "refused": Unserved::ALL.map(count).into_iter().collect::<HashMap<_, _>>(),
    }))
}

fn service_json(service: &Service, kernel: &KernelSide) -> Value {
    let stats = |endpoint| kernel.stats(service.id, endpoint);
    let said = said(&service.config);
    let endpoint_json = |endpoint: &Arc<Endpoint>| endpoint_json(service.id, endpoint, &said, kernel);
    let breakers = service.guard.endpoints.iter().map(Some).chain(std::iter::repeat(None));
    let endpoints = service.endpoints.iter().zip(breakers).map(|(endpoint, breaker)| {
        let mut shown = endpoint_json(endpoint);
        shown["breaker"] = json!(breaker.map(|breaker| breaker.phase().word()));
        shown
    });
    json!({
        "name": service.config.name,
        "address": service.config.address,
        "protocol": file::protocol_word(service.config.protocol),
        "mode": file::mode_word(service.config.mode),
        "cluster": service.config.strategy.as_ref().map(file::strategy_word),
        "ejections": service.config.outlier.is_some().then(|| ejections_json(service)),
        "canaries": canaries_json(service),
        "timeouts": timeouts_json(service),
        "request_limits": limits_json(service),
        "pending": pending_json(service),
        "breaker": service.guard.breaker.as_ref().map(|breaker| breaker.phase().word()),
        "thresholds": thresholds_json(service),
        "route_breakers": breakers_json(service),
        "connects": service.endpoints.iter().map(|endpoint| stats(endpoint.id).connects).sum::<u64>() + stats(ENDPOINT_AGENT).connects,
        "endpoints": endpoints.collect::<Vec<Value>>(),
    })
}

/// What there is of what is bounded; nothing if nothing is.
fn thresholds_json(service: &Service) -> Option<Value> {
    service.config.guard.thresholds.as_ref()?;
    let shown = |of: Threshold| {
        let (state, most) = service.threshold(of)?;
        Some((of.word(), json!({ "max": most, "active": state.now(of), "overflow": state.overflow(of) })))
    };
    Some(json!(Threshold::ALL.into_iter().filter_map(shown).collect::<HashMap<_, _>>()))
}

/// What the breakers of its routes do; nothing if they have none.
fn breakers_json(service: &Service) -> Option<Vec<Value>> {
    let routes = service.config.routes.iter().zip(&service.routes);
    let breaker = |(route, state): (&Route, &RouteState)| {
        let breaker = state.breaker.as_ref()?;
        Some(json!({ "route": route.name, "breaker": breaker.phase().word() }))
    };
    let breakers: Vec<Value> = routes.filter_map(breaker).collect();
    (!breakers.is_empty()).then_some(breakers)
}
