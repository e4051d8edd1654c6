//! What was observed at one moment -> the text that Prometheus scrapes.
//!
//! Nothing is kept between scrapes: each fills a recorder of its own, so that an endpoint that left the configuration leaves the text as
//! well, and the labels are bounded by what is configured now. Written here and not through the facade are histograms, whose totals it cannot
//! set, and what there is of every endpoint: a hundred thousand of them would keep its registry busy for seconds.

mod filters;
mod guard;
mod inbound;
mod measured;
mod outlier;
mod pending;
mod request_limits;
mod routes;
mod strategy;
mod thresholds;
mod timeouts;

use std::{
    fmt::{Display, Write},
    sync::{Arc, atomic::Ordering},
};

use metrics::{Label, counter, describe_counter, describe_gauge, gauge, with_local_recorder};
use metrics_exporter_prometheus::PrometheusBuilder;
use sockway_common::{join::ShortcutStats, service::EndpointStats};

use super::observed::{Changes, Histogram, Observed, Total};
use crate::cluster::{Endpoint, EndpointState};

/// Content type of [`render`]'s text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The whole text. Takes some time for a hundred thousand endpoints: not for the thread that beats the heart.
pub fn render(observed: &Observed) -> String {
    let recorder = PrometheusBuilder::new().build_recorder();
    with_local_recorder(&recorder, || {
        node(observed);
        totals("sockway_", &observed.workers_totals);
        totals("sockway_kernel_", &observed.kernel_totals);
    });
    let mut text = recorder.handle().render();
    endpoints(&mut text, observed);
    leaving(&mut text, observed);
    kernel_endpoints(&mut text, observed);
    measured::write(&mut text, observed);
    shortcut_services(&mut text, observed);
    outlier::write(&mut text, &observed.snapshot.services);
    routes::write(&mut text, &observed.snapshot.services);
    strategy::write(&mut text, &observed.snapshot.services);
    request_limits::write(&mut text, &observed.snapshot.services);
    pending::write(&mut text, &observed.snapshot.services, std::time::Instant::now());
    filters::write(
        &mut text,
        observed.snapshot.services.iter().chain(observed.snapshot.inbound.iter().map(|rule| &rule.service)),
    );
    filters::write_fetched(
        &mut text,
        observed.snapshot.services.iter().chain(observed.snapshot.inbound.iter().map(|rule| &rule.service)),
    );
    guard::write(&mut text, &observed.snapshot);
    timeouts::write(&mut text, &observed.snapshot.services);
    thresholds::write(&mut text, &observed.snapshot);
    inbound::write(&mut text, &observed.snapshot.inbound);
    for histogram in &observed.histograms {
        write_histogram(&mut text, histogram);
    }
    text
}

fn flag(value: bool) -> f64 {
    f64::from(u8::from(value))
}

fn node(observed: &Observed) {
    describe_gauge!("sockway_build_info", "Always 1; the version of the agent is a label.");
    gauge!("sockway_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    describe_gauge!("sockway_ready", "Whether the agent serves: capture attached, listeners open, not draining.");
    gauge!("sockway_ready").set(flag(observed.not_ready.is_none()));
    describe_gauge!("sockway_workers", "Worker threads.");
    gauge!("sockway_workers").set(observed.workers as f64);
    describe_gauge!("sockway_namespaces", "Network namespaces in which the agent listens, its own included.");
    gauge!("sockway_namespaces").set(observed.namespaces as f64);
    describe_gauge!("sockway_connections_active", "Connections that the agent is serving now.");
    gauge!("sockway_connections_active").set(observed.connections as f64);
    reloads(observed);
    describe_counter!(
        "sockway_probes_total",
        "Probes that the agent made to see whether an endpoint is well, by result."
    );
    counter!("sockway_probes_total", "result" => "accepted").absolute(observed.probes.accepted);
    counter!("sockway_probes_total", "result" => "refused").absolute(observed.probes.refused);
    counter!("sockway_probes_total", "result" => "unfit").absolute(observed.probes.unfit);
    counter!("sockway_probes_total", "result" => "failed").absolute(observed.probes.failed);
    if !observed.rights.is_empty() {
        describe_gauge!(
            "sockway_right",
            "Whether the agent has this capability; `sockway doctor` tells what does not work without it."
        );
    }
    for (capability, held) in &observed.rights {
        gauge!("sockway_right", "capability" => *capability).set(flag(*held));
    }
    if !observed.capabilities.is_empty() {
        describe_gauge!("sockway_kernel_capability", "Whether the running kernel passed this part of the self-test.");
    }
    for (name, passed) in &observed.capabilities {
        gauge!("sockway_kernel_capability", "name" => name.clone()).set(flag(*passed));
    }
}

fn reloads(observed: &Observed) {
    let reloads = &observed.reloads;
    describe_gauge!("sockway_config_generation", "Counts the configurations that took effect, from 1.");
    gauge!("sockway_config_generation").set(observed.snapshot.generation as f64);
    describe_gauge!(
        "sockway_config_last_reload_success",
        "Whether what the configuration's file said last took effect; 0: it was refused, and nothing changed."
    );
    gauge!("sockway_config_last_reload_success").set(flag(!reloads.last_refused));
    describe_gauge!(
        "sockway_config_read_seconds",
        "How long reading and checking the configuration in effect took; 0 for the one that the agent started with."
    );
    gauge!("sockway_config_read_seconds").set(reloads.read_time.as_secs_f64());
    describe_gauge!(
        "sockway_config_apply_seconds",
        "How long putting the configuration in effect in force took once it was read; 0 for the one that the agent started with."
    );
    gauge!("sockway_config_apply_seconds").set(reloads.apply_time.as_secs_f64());
    describe_counter!(
        "sockway_config_reloads_total",
        "Times that the configuration was read again, by what came of it."
    );
    counter!("sockway_config_reloads_total", "result" => "applied").absolute(reloads.applied);
    counter!("sockway_config_reloads_total", "result" => "refused").absolute(reloads.refused);
    counter!("sockway_config_reloads_total", "result" => "unchanged").absolute(reloads.unchanged);
    describe_gauge!("sockway_audit_unwritten", "Changes that the audit log's disk has not taken yet.");
    gauge!("sockway_audit_unwritten").set(observed.audit_unwritten as f64);
    if !observed.changes.is_empty() {
        describe_counter!(
            "sockway_config_changes_total",
            "Changes that were made or refused, as the audit log has them: what was changed, who asked for it, and what came of it."
        );
    }
    for Changes { change, by, result, count } in &observed.changes {
        counter!("sockway_config_changes_total", "change" => *change, "by" => *by, "result" => *result)
            .absolute(*count);
    }
}

/// Sets each total; the help of a family with several members says what each member is.
fn totals(prefix: &'static str, totals: &[Total]) {
    for total in totals {
        let name = format!("{prefix}{}", total.name);
        describe_counter!(name.clone(), family_help(total, totals));
        let labels: Vec<Label> = total.labels.iter().map(|(key, value)| Label::from_static_parts(key, value)).collect();
        counter!(name, labels).absolute(total.value);
    }
}

fn family_help(total: &Total, totals: &[Total]) -> String {
    let family: Vec<&Total> = totals.iter().filter(|other| other.name == total.name).collect();
    if family.iter().all(|member| member.help == total.help) {
        return total.help.trim().to_owned();
    }
    let member_help = |member: &&Total| {
        let values: Vec<&str> = member.labels.iter().map(|(_, value)| *value).collect();
        format!("{}: {}", values.join(" "), member.help.trim())
    };
    family.iter().map(member_help).collect::<Vec<String>>().join(" ")
}

/// One family with a sample for each endpoint. Names of services and addresses hold nothing that a label would have to escape.
fn write_endpoints<'o>(
    text: &mut String,
    (name, kind, help): (&str, &str, &str),
    samples: impl Iterator<Item = (&'o str, impl Display, u64)>,
) {
    let mut samples = samples.peekable();
    if samples.peek().is_none() {
        return;
    }
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    for (service, endpoint, value) in samples {
        let _ = writeln!(text, "{name}{{service=\"{service}\",endpoint=\"{endpoint}\"}} {value}");
    }
    text.push('\n');
}

fn endpoints(text: &mut String, observed: &Observed) {
    let mut family = |name, kind, help, value: fn(&EndpointState) -> u64| {
        let samples = observed.snapshot.services.iter().flat_map(|service| {
            let sample = move |endpoint: &'_ Arc<Endpoint>| {
                (service.config.name.as_str(), endpoint.address, value(&endpoint.state))
            };
            service.endpoints.iter().map(sample)
        });
        write_endpoints(text, (name, kind, help), samples);
    };
    let help =
        "Whether the endpoint may be chosen: 0 from its failure until it accepts a probe, or while it is ejected.";
    family("sockway_endpoint_up", "gauge", help, |state| state.usable().into());
    let help = "HTTP requests or TCP connections in flight to the endpoint through the agent.";
    family("sockway_endpoint_active", "gauge", help, |state| state.active.load(Ordering::Relaxed).into());
    let help = "HTTP requests or TCP connections that the agent sent to the endpoint.";
    family("sockway_endpoint_requests_total", "counter", help, |state| state.total.load(Ordering::Relaxed));
    let help = "Connects of the agent to the endpoint that failed.";
    family("sockway_endpoint_connect_failures_total", "counter", help, |state| {
        state.connect_failures.load(Ordering::Relaxed)
    });
}

/// Which endpoints are on their way out. Those that are active are not in it: there may be very many.
fn leaving(text: &mut String, observed: &Observed) {
    if observed.snapshot.departures.is_empty() {
        return;
    }
    let name = "sockway_endpoint_leaving";
    let help =
        "1 for an endpoint that takes no new connections: draining, or dead (those it still has are being ended).";
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
    for leaving in observed.snapshot.leaving() {
        let (service, endpoint) = (&leaving.config.name, leaving.endpoint);
        let (address, state) = (endpoint.address, endpoint.state.stage().word());
        let _ = writeln!(text, "{name}{{service=\"{service}\",endpoint=\"{address}\",state=\"{state}\"}} 1");
    }
    text.push('\n');
}

fn kernel_endpoints(text: &mut String, observed: &Observed) {
    let mut family = |name, kind, help, value: fn(&EndpointStats) -> u64| {
        let samples = observed.kernel_endpoints().map(|(service, endpoint, stats)| {
            let endpoint = endpoint.map_or_else(|| "agent".to_owned(), |endpoint| endpoint.address.to_string());
            (service, endpoint, value(&stats))
        });
        write_endpoints(text, (name, kind, help), samples);
    };
    let help = "Connects of programs that the kernel half sent to the endpoint, or to the agent.";
    family("sockway_kernel_endpoint_connects_total", "counter", help, |stats| stats.connects);
    let help = "Handshakes of programs with the endpoint, or with the agent, that failed.";
    family("sockway_kernel_endpoint_connect_failures_total", "counter", help, |stats| stats.failures);
    let help = "Connections of programs with the endpoint, or with the agent, that are open, those under way included.";
    family("sockway_kernel_endpoint_open", "gauge", help, EndpointStats::open);
}

/// What went by the shortcut on behalf of each service that may use it.
fn shortcut_services(text: &mut String, observed: &Observed) {
    let mut family = |name, help, value: fn(&ShortcutStats) -> u64| {
        let mut samples = observed.shortcut_services().peekable();
        if samples.peek().is_none() {
            return;
        }
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} counter");
        for (service, stats) in samples {
            let _ = writeln!(text, "{name}{{service=\"{}\"}} {}", service.config.name, value(&stats));
        }
        text.push('\n');
    };
    let help = "Messages of the service's connections that went from socket to socket.";
    family("sockway_kernel_service_shortcut_messages_total", help, |stats| stats.messages);
    let help = "Bytes of the service's connections that went from socket to socket.";
    family("sockway_kernel_service_shortcut_bytes_total", help, |stats| stats.bytes);
    let help = "Directions of the service's connections that fell back to TCP.";
    family("sockway_kernel_service_shortcut_fallbacks_total", help, |stats| stats.fallbacks);
    let help = "Messages of the service's connections that went past the agent, from program to program.";
    family("sockway_kernel_service_joined_messages_total", help, |stats| stats.joined_messages);
    let help = "Bytes of the service's connections that went past the agent, from program to program.";
    family("sockway_kernel_service_joined_bytes_total", help, |stats| stats.joined_bytes);
    let help = "Directions of the service's connections that began to go past the agent, or did so again.";
    family("sockway_kernel_service_joins_total", help, |stats| stats.joins);
}

fn write_histogram(text: &mut String, histogram: &Histogram) {
    let Histogram { name, help, bounds, counts, sum } = histogram;
    let mut below = 0;
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} histogram");
    for (bound, count) in bounds.iter().zip(counts) {
        below += count;
        let _ = writeln!(text, "{name}_bucket{{le=\"{}\"}} {below}", bound.as_secs_f64());
    }
    let all: u64 = counts.iter().sum();
    let _ = writeln!(text, "{name}_bucket{{le=\"+Inf\"}} {all}");
    let _ = writeln!(text, "{name}_sum {}\n{name}_count {all}\n", sum.as_secs_f64());
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeMap, HashSet},
        time::Duration,
    };

    use rustix::time::{ClockId, clock_gettime};
    use sockway_common::{counter, flow::ENDPOINT_AGENT, latency::EndpointLatency, service::EndpointKey};

    use super::*;
    use crate::{
        cluster::Snapshot,
        config::file,
        kernel::{Fill, HookTime},
    };

    const BOUNDS: [Duration; 2] = [Duration::from_micros(50), Duration::from_millis(10)];

    fn latency(connects: &[u32], round_trips: &[u32], retransmits: u64) -> EndpointLatency {
        let mut latency = EndpointLatency { retransmits, ..EndpointLatency::ZERO };
        connects.iter().for_each(|took| latency.connect.count(*took));
        round_trips.iter().for_each(|took| latency.rtt.count(*took));
        latency
    }

    fn observed() -> Observed {
        let text =
            "services: [{name: a/b, address: 10.0.0.1:80, protocol: http, endpoints: ['10.0.0.2:80', '10.0.0.3:80']}]";
        let config = file::parse(text, "F").expect("a good file");
        let snapshot = Arc::new(Snapshot::build(&config, &Snapshot::default()));
        let endpoint = &snapshot.services[0].endpoints[1];
        endpoint.state.set_down(true);
        endpoint.state.total.store(7, Ordering::Relaxed);
        let key = |endpoint| EndpointKey { service: snapshot.services[0].id, endpoint };
        let stats = |connects, failures| EndpointStats { connects, failures, closed: connects - 1 };
        let total = |(index, counter): (usize, &counter::Counter)| Total {
            name: counter.name(),
            labels: counter.labels(),
            help: counter.help(),
            value: index as u64,
        };
        Observed {
            workers: 2,
            connections: 3,
            namespaces: 4,
            changes: vec![Changes { change: "endpoint", by: "token", result: "refused", count: 8 }],
            capabilities: vec![("fionread".into(), false), ("splice".into(), true)],
            kernel_totals: counter::ALL.iter().enumerate().map(total).collect(),
            latencies: vec![
                (key(endpoint.id), latency(&[20, 2_000_000], &[30], 4)),
                (key(ENDPOINT_AGENT), latency(&[1_000_000], &[], 0)),
            ],
            tables: vec![
                Fill { table: "LIMITS", entries: Some(3), entries_max: 10, bytes: None, refused: Some(9) },
                Fill { table: "WATCH", entries: None, entries_max: 1, bytes: Some(512), refused: None },
            ],
            hook_times: vec![HookTime { hook: "dial_v4".into(), runs: 2, took: Duration::from_micros(1) }],
            kernel_stats: vec![
                (key(endpoint.id), stats(5, 1)),
                (key(ENDPOINT_AGENT), stats(6, 0)),
                (EndpointKey { service: 99, endpoint: 0 }, stats(1, 1)),
            ],
            histograms: vec![Histogram {
                name: "sockway_request_duration_seconds",
                help: "How long.",
                bounds: BOUNDS.to_vec(),
                counts: vec![1, 2, 4],
                sum: Duration::from_millis(1500),
            }],
            snapshot: Arc::clone(&snapshot),
            ..Observed::default()
        }
    }

    /// The text format, strictly (Prometheus, "Exposition formats", text-based): a sample belongs to a family that has both lines
    /// before it, no name and labels occur twice, every value is a number.
    fn read(text: &str) -> BTreeMap<String, f64> {
        let (mut help, mut types, mut samples) = (HashSet::new(), BTreeMap::new(), BTreeMap::new());
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, says) = rest.split_once(' ').expect(line);
                assert!(!says.trim().is_empty() && help.insert(name.to_owned()), "{line}");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect(line);
                assert!(help.contains(name), "TYPE before HELP: {line}");
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "{line}");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            } else {
                let (series, value) = line.rsplit_once(' ').expect(line);
                let (name, labels) = series.split_once('{').map_or((series, ""), |(name, labels)| (name, labels));
                check_labels(labels, line);
                assert!(
                    name.starts_with("sockway_") && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
                    "{line}"
                );
                let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
                let family = family.filter(|family| types.get(*family).is_some_and(|kind| kind == "histogram"));
                assert!(types.contains_key(family.unwrap_or(name)), "no TYPE: {line}");
                let value: f64 = value.parse().expect(line);
                assert!(samples.insert(series.to_owned(), value).is_none(), "twice: {line}");
            }
        }
        samples
    }

    fn check_labels(labels: &str, line: &str) {
        if labels.is_empty() {
            return;
        }
        for label in labels.strip_suffix('}').expect(line).split(',') {
            let (key, value) = label.split_once('=').expect(line);
            assert!(!key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{line}");
            let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).expect(line);
            assert!(!value.contains(['"', '\\']), "{line}");
        }
    }

    #[test]
    fn the_whole_text_is_in_the_format_and_says_what_was_observed() {
        let samples = read(&render(&observed()));
        for (series, value) in [
            ("sockway_ready", 1.0),
            ("sockway_workers", 2.0),
            ("sockway_connections_active", 3.0),
            ("sockway_namespaces", 4.0),
            ("sockway_config_generation", 1.0),
            ("sockway_config_last_reload_success", 1.0),
            ("sockway_config_reloads_total{result=\"applied\"}", 0.0),
            ("sockway_config_changes_total{change=\"endpoint\",by=\"token\",result=\"refused\"}", 8.0),
            ("sockway_kernel_capability{name=\"fionread\"}", 0.0),
            ("sockway_kernel_capability{name=\"splice\"}", 1.0),
            ("sockway_kernel_connects_total{verdict=\"own\"}", 1.0),
            ("sockway_endpoint_up{service=\"a/b\",endpoint=\"10.0.0.2:80\"}", 1.0),
            ("sockway_endpoint_up{service=\"a/b\",endpoint=\"10.0.0.3:80\"}", 0.0),
            ("sockway_endpoint_requests_total{service=\"a/b\",endpoint=\"10.0.0.3:80\"}", 7.0),
            ("sockway_kernel_endpoint_connects_total{service=\"a/b\",endpoint=\"10.0.0.3:80\"}", 5.0),
            ("sockway_kernel_endpoint_connects_total{service=\"a/b\",endpoint=\"agent\"}", 6.0),
            ("sockway_kernel_endpoint_open{service=\"a/b\",endpoint=\"agent\"}", 1.0),
            ("sockway_kernel_connect_seconds_bucket{service=\"a/b\",le=\"0.000064\"}", 1.0),
            ("sockway_kernel_connect_seconds_bucket{service=\"a/b\",le=\"+Inf\"}", 3.0),
            ("sockway_kernel_connect_seconds_sum{service=\"a/b\"}", 3.00002),
            ("sockway_kernel_endpoint_connect_seconds_count{service=\"a/b\",endpoint=\"10.0.0.3:80\"}", 2.0),
            ("sockway_kernel_endpoint_connect_seconds_count{service=\"a/b\",endpoint=\"agent\"}", 1.0),
            ("sockway_kernel_endpoint_rtt_seconds_count{service=\"a/b\",endpoint=\"10.0.0.3:80\"}", 1.0),
            ("sockway_kernel_endpoint_retransmits_total{service=\"a/b\",endpoint=\"10.0.0.3:80\"}", 4.0),
            ("sockway_kernel_map_entries{map=\"LIMITS\"}", 3.0),
            ("sockway_kernel_map_entries_max{map=\"LIMITS\"}", 10.0),
            ("sockway_kernel_map_bytes{map=\"WATCH\"}", 512.0),
            ("sockway_kernel_hook_runs_total{hook=\"dial_v4\"}", 2.0),
            ("sockway_kernel_hook_run_time_seconds_total{hook=\"dial_v4\"}", 0.000001),
            ("sockway_request_duration_seconds_bucket{le=\"0.00005\"}", 1.0),
            ("sockway_request_duration_seconds_bucket{le=\"0.01\"}", 3.0),
            ("sockway_request_duration_seconds_bucket{le=\"+Inf\"}", 7.0),
            ("sockway_request_duration_seconds_sum", 1.5),
            ("sockway_request_duration_seconds_count", 7.0),
        ] {
            assert_eq!(samples.get(series), Some(&value), "{series} in {samples:#?}");
        }
        for counter in counter::ALL {
            let name = format!("sockway_kernel_{}", counter.name());
            assert!(samples.keys().any(|series| series.starts_with(&name)), "{name}");
        }
    }

    #[test]
    fn a_hundred_thousand_endpoints_are_rendered_before_a_scraper_gives_up() {
        let services: Vec<String> = (0..10_000)
            .map(|i| {
                let endpoints: Vec<String> = (1..=10).map(|e| format!("127.{}.{}.{e}:80", i / 250, i % 250)).collect();
                let address = format!("10.{}.{}.1:80", i / 250, i % 250);
                format!("{{name: s{i}, address: {address}, protocol: tcp, endpoints: [{}]}}", endpoints.join(", "))
            })
            .collect();
        let config = file::parse(&format!("services: [{}]", services.join(", ")), "F").expect("a good file");
        let snapshot = Arc::new(Snapshot::build(&config, &Snapshot::default()));
        let begun = clock_gettime(ClockId::ThreadCPUTime);
        let text = render(&Observed { snapshot, ..Observed::default() });
        let took = clock_gettime(ClockId::ThreadCPUTime) - begun;
        assert!(text.contains("sockway_endpoint_up{service=\"s9999\",endpoint=\"127.39.249.10:80\"} 1\n"));
        // Prometheus gives up after ten seconds; this is the debug build.
        assert!(took.tv_sec < 5, "{} bytes in {took:?}", text.len());
    }

    #[test]
    fn an_endpoint_that_left_the_configuration_leaves_the_text() {
        let mut observed = observed();
        assert!(render(&observed).contains("10.0.0.3:80"));
        observed.snapshot = Arc::default();
        assert!(!render(&observed).contains("10.0.0.3:80"));
    }

    #[test]
    fn an_agent_that_has_just_started_renders_too() {
        assert_eq!(read(&render(&Observed::default())).get("sockway_ready"), Some(&1.0));
    }
}
