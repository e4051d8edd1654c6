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
    let mut limits = routes
        .flat_map(|(service, route, state)| state.request_limits.iter().map(move |limit| (service, route, limit)))
        .peekable();
    if limits.peek().is_none() {
        return;
    }
    let name = "sockway_route_limit_decisions_total";
    let _ = writeln!(text, "# HELP {name} Requests that a limit of their route was asked for.\n# TYPE {name} counter");
    for (service, route, limit) in limits {
        for (decision, count) in decisions(limit) {
            let (of, route, by) = (&service.config.name, &route.name, &limit.config.name);
            let labels = format!("service=\"{of}\",route=\"{route}\",limit=\"{by}\",decision=\"{decision}\"");
            let _ = writeln!(text, "{name}{{{labels}}} {count}");
        }
    }
    text.push('\n');
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
    write_adaptive(text, services);
}

/// What is known of a limit that follows what it measures.
struct Family {
    name: &'static str,
    help: &'static str,
    of: fn(&Adaptive) -> Option<f64>,
}

const ADAPTIVE: [Family; 3] = [
    Family {
        name: "sockway_request_limit_concurrency",
        help: "Requests that may be on their way at once, as a limit has found.",
        of: |known| known.limit().map(|limit| limit as f64),
    },
    Family {
        name: "sockway_request_limit_open",
        help: "Requests on their way, by a limit that finds how many may be.",
        of: |known| match &known.measured {
            Measured::Admission(_) => None,
            _ => Some(known.open.load(Relaxed) as f64),
        },
    },
    Family {
        name: "sockway_request_limit_processor_busy_ratio",
        help: "Processor time that those who answer take of what they may, smoothed, for a limit that goes by it.",
        of: |known| match &known.measured {
            Measured::Bbr(bbr) => Some(f64::from(bbr.busy_permille.load(Relaxed)) / 1_000.0),
            _ => None,
        },
    },
];

fn write_adaptive(text: &mut String, services: &[Arc<Service>]) {
    for Family { name, help, of } in ADAPTIVE {
        let each = services.iter().flat_map(|service| service.request_limits.iter().map(move |limit| (service, limit)));
        let told: Vec<_> = each.filter_map(|(service, limit)| Some((service, limit, of(limit.adaptive()?)?))).collect();
        if told.is_empty() {
            continue;
        }
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
        for (service, limit, value) in told {
            let (of, by) = (&service.config.name, &limit.config.name);
            let _ = writeln!(text, "{name}{{service=\"{of}\",limit=\"{by}\"}} {value}");
        }
        text.push('\n');
    }
}
