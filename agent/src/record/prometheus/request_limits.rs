//! What became of requests by the limits of their service. The labels are bounded by what is configured.

use std::{
    fmt::Write,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use crate::cluster::{Adaptive, LimitState, Measured, Service};

/// Writes the families, if there is a limit. Names hold nothing that a label would have to escape.
pub(super) fn write(text: &mut String, services: &[Arc<Service>]) {
    write_services(text, services);
    write_routes(text, services);
}

/// Of the limits of routes.
fn write_routes(text: &mut String, services: &[Arc<Service>]) {
    let routes = services.iter().flat_map(|service| {
        service.config.routes.iter().zip(&service.routes).map(move |(route, state)| (service, route, state))
    });
    let labels = |service: &Service, route: &str, limit: &LimitState| {
        format!("service=\"{}\",route=\"{route}\",limit=\"{}\"", service.config.name, limit.config.name)
    };
    let limits = routes.flat_map(|(service, route, state)| {
        state.request_limits.iter().map(move |limit| (labels(service, &route.name, limit), &**limit))
    });
    let limits: Vec<(String, &LimitState)> = limits.collect();
    if limits.is_empty() {
        return;
    }
    let name = "sockway_route_limit_decisions_total";
    let _ = writeln!(text, "# HELP {name} Requests that a limit of their route was asked for.\n# TYPE {name} counter");
    for (labels, limit) in &limits {
        for (decision, count) in decisions(limit) {
            let _ = writeln!(text, "{name}{{{labels},decision=\"{decision}\"}} {count}");
        }
    }
    text.push('\n');
    write_known(text, "route", &limits);
}

fn decisions(limit: &LimitState) -> [(&'static str, u64); 3] {
    [("passed", &limit.passed), ("waited", &limit.waited), ("refused", &limit.refused)]
        .map(|(decision, count)| (decision, count.load(Relaxed)))
}

fn write_services(text: &mut String, services: &[Arc<Service>]) {
    let mut limited = services.iter().filter(|service| !service.request_limits.is_empty()).peekable();
    if limited.peek().is_none() {
        return;
    }
    let name = "sockway_request_limit_decisions_total";
    let _ =
        writeln!(text, "# HELP {name} Requests that a limit of their service was asked for.\n# TYPE {name} counter");
    for service in limited {
        for limit in &service.request_limits {
            let (of, by) = (&service.config.name, &limit.config.name);
            for (decision, count) in decisions(limit) {
                let _ = writeln!(text, "{name}{{service=\"{of}\",limit=\"{by}\",decision=\"{decision}\"}} {count}");
            }
        }
    }
    text.push('\n');
    let each = services.iter().flat_map(|service| service.request_limits.iter().map(move |limit| (service, limit)));
    let labels = |service: &Service, limit: &LimitState| {
        format!("service=\"{}\",limit=\"{}\"", service.config.name, limit.config.name)
    };
    let known: Vec<(String, &LimitState)> = each.map(|(service, limit)| (labels(service, limit), &**limit)).collect();
    write_known(text, "request", &known);
}

/// What is known of a limit by now.
struct Family {
    name: &'static str,
    help: &'static str,
    of: fn(&LimitState) -> Option<f64>,
}

const KNOWN: [Family; 4] = [
    Family {
        name: "concurrency",
        help: "Requests that may be on their way at once, as a limit has found.",
        of: |limit| limit.adaptive()?.limit().map(|limit| limit as f64),
    },
    Family {
        name: "open",
        help: "Requests on their way, by a limit that finds how many may be.",
        of: |limit| match limit.adaptive()? {
            Adaptive { measured: Measured::Admission(_), .. } => None,
            known => Some(known.open.load(Relaxed) as f64),
        },
    },
    Family {
        name: "processor_busy_ratio",
        help: "Processor time that those who answer take of what they may, smoothed, for a limit that goes by it.",
        of: |limit| match &limit.adaptive()?.measured {
            Measured::Bbr(bbr) => Some(f64::from(bbr.busy_permille.load(Relaxed)) / 1_000.0),
            _ => None,
        },
    },
    Family {
        name: "waiting",
        help: "Requests that wait for a place of a limit on how many there are at once.",
        of: |limit| Some(f64::from(limit.line()?.depth())),
    },
];

/// What is known of limits, of these labels.
fn write_known(text: &mut String, of: &str, limits: &[(String, &LimitState)]) {
    for family in KNOWN {
        let told = limits.iter().filter_map(|(labels, limit)| Some((labels, (family.of)(limit)?)));
        let told: Vec<(&String, f64)> = told.collect();
        if told.is_empty() {
            continue;
        }
        let name = format!("sockway_{of}_limit_{}", family.name);
        let _ = writeln!(text, "# HELP {name} {}\n# TYPE {name} gauge", family.help);
        for (labels, value) in told {
            let _ = writeln!(text, "{name}{{{labels}}} {value}");
        }
        text.push('\n');
    }
}
