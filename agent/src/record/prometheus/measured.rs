//! What the hooks measured: latencies by service and endpoint, the room in their tables, their own time.

use std::{
    collections::BTreeMap,
    fmt::{Display, Write},
    time::Duration,
};

use sockway_common::latency::{BOUNDS_US, EndpointLatency, Latencies};

use super::{Observed, write_endpoints};

/// Endpoints that get histograms of their own: with more of them a scrape would be tens of megabytes, and only services have histograms.
const ENDPOINTS_MAX: usize = 500;

/// Everything of it.
pub fn write(text: &mut String, observed: &Observed) {
    latencies(text, observed);
    tables(text, observed);
    hooks(text, observed);
    limits(text, observed);
}

/// How much is taken of the services' limits of connections at once.
fn limits(text: &mut String, observed: &Observed) {
    let limited = observed.limits_open.iter().filter_map(|(id, open)| {
        let service = observed.snapshot.by_id(*id)?;
        Some((service.config.name.as_str(), *open, service.open_max()?))
    });
    let limited: Vec<(&str, u64, u32)> = limited.collect();
    if limited.is_empty() {
        return;
    }
    let name = "sockway_kernel_service_limit_open";
    let help = "Connections that count against the service's limit of connections at once, those under way included.";
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
    for (service, open, _) in &limited {
        let _ = writeln!(text, "{name}{{service=\"{service}\"}} {open}");
    }
    let name = "sockway_kernel_service_limit_open_max";
    let help = "Connections at once that the service may have.";
    let _ = writeln!(text, "\n# HELP {name} {help}\n# TYPE {name} gauge");
    for (service, _, open_max) in &limited {
        let _ = writeln!(text, "{name}{{service=\"{service}\"}} {open_max}");
    }
    text.push('\n');
}

fn latencies(text: &mut String, observed: &Observed) {
    let endpoints: Vec<(&str, String, &EndpointLatency)> = observed.measured_endpoints().collect();
    let mut services: BTreeMap<&str, EndpointLatency> = BTreeMap::new();
    for (service, _, latency) in &endpoints {
        services.entry(*service).or_insert(EndpointLatency::ZERO).add(latency);
    }
    let few = if endpoints.len() <= ENDPOINTS_MAX { &endpoints[..] } else { &[] };
    let of_services = |of: fn(&EndpointLatency) -> &Latencies| {
        services.iter().map(move |(service, latency)| (format!("service=\"{service}\""), of(latency)))
    };
    let of_endpoints = |of: fn(&EndpointLatency) -> &Latencies| {
        few.iter().map(move |(service, endpoint, latency)| {
            (format!("service=\"{service}\",endpoint=\"{endpoint}\""), of(latency))
        })
    };
    let help = "From connect() of a program to the end of the handshake, by service.";
    histograms(text, "sockway_kernel_connect_seconds", help, of_services(|latency| &latency.connect));
    let help = "Smoothed round-trip time of programs' connections when they ended, by service.";
    histograms(text, "sockway_kernel_rtt_seconds", help, of_services(|latency| &latency.rtt));
    let help = "From connect() of a program to the end of the handshake, by endpoint; absent with more than 500 endpoints dialled.";
    histograms(text, "sockway_kernel_endpoint_connect_seconds", help, of_endpoints(|latency| &latency.connect));
    let help = "Smoothed round-trip time of programs' connections when they ended, by endpoint; absent with more than 500 endpoints dialled.";
    histograms(text, "sockway_kernel_endpoint_rtt_seconds", help, of_endpoints(|latency| &latency.rtt));
    let help = "Segments that programs sent again, counted when their connection ended.";
    let retransmits = endpoints.iter().map(|(service, endpoint, latency)| (*service, endpoint, latency.retransmits));
    write_endpoints(text, ("sockway_kernel_endpoint_retransmits_total", "counter", help), retransmits);
}

fn histograms<'l>(text: &mut String, name: &str, help: &str, series: impl Iterator<Item = (String, &'l Latencies)>) {
    let mut series = series.peekable();
    if series.peek().is_none() {
        return;
    }
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} histogram");
    for (labels, latencies) in series {
        let mut below = 0;
        for (bound, count) in BOUNDS_US.iter().zip(latencies.counts) {
            below += u64::from(count);
            let bound = Duration::from_micros((*bound).into()).as_secs_f64();
            let _ = writeln!(text, "{name}_bucket{{{labels},le=\"{bound}\"}} {below}");
        }
        let (all, sum) = (latencies.total(), Duration::from_micros(latencies.sum_us).as_secs_f64());
        let _ = writeln!(text, "{name}_bucket{{{labels},le=\"+Inf\"}} {all}");
        let _ = writeln!(text, "{name}_sum{{{labels}}} {sum}\n{name}_count{{{labels}}} {all}");
    }
    text.push('\n');
}

fn tables(text: &mut String, observed: &Observed) {
    let tables = &observed.tables;
    let help = "Entries in a table of the kernel half.";
    let entries = tables.iter().filter_map(|fill| Some((fill.table, fill.entries?)));
    family(text, ("sockway_kernel_map_entries", "gauge", help), "map", entries);
    let help = "Entries that have room in a table of the kernel half.";
    let most = tables.iter().filter(|fill| fill.entries.is_some()).map(|fill| (fill.table, fill.entries_max));
    family(text, ("sockway_kernel_map_entries_max", "gauge", help), "map", most);
    let help = "Times that a hook found no room in a table of the kernel half, and passed.";
    let refused = tables.iter().filter_map(|fill| Some((fill.table, fill.refused?)));
    family(text, ("sockway_kernel_map_full_total", "counter", help), "map", refused);
    let help = "Memory of a table of the kernel half, as the kernel tells it (before Linux 6.4: of the full table).";
    let bytes = tables.iter().filter_map(|fill| Some((fill.table, fill.bytes?)));
    family(text, ("sockway_kernel_map_bytes", "gauge", help), "map", bytes);
}

fn hooks(text: &mut String, observed: &Observed) {
    let times = &observed.hook_times;
    let help = "Runs of a hook, while hook_stats is on.";
    let runs = times.iter().map(|time| (time.hook.as_str(), time.runs));
    family(text, ("sockway_kernel_hook_runs_total", "counter", help), "hook", runs);
    let help = "Time that a hook ran, while hook_stats is on.";
    let took = times.iter().map(|time| (time.hook.as_str(), time.took.as_secs_f64()));
    family(text, ("sockway_kernel_hook_run_time_seconds_total", "counter", help), "hook", took);
}

/// A family whose samples differ in one label.
fn family<'l>(
    text: &mut String,
    (name, kind, help): (&str, &str, &str),
    label: &str,
    samples: impl Iterator<Item = (&'l str, impl Display)>,
) {
    let mut samples = samples.peekable();
    if samples.peek().is_none() {
        return;
    }
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    for (value, number) in samples {
        let _ = writeln!(text, "{name}{{{label}=\"{value}\"}} {number}");
    }
    text.push('\n');
}
