//! What became of requests by the limits of their service. The labels are bounded by what is configured.

use std::{
    fmt::Write,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use crate::cluster::{Adaptive, Measured, Service};

/// Writes the family, if there is a limit. Names hold nothing that a label would have to escape.
pub(super) fn write(text: &mut String, services: &[Arc<Service>]) {
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
            for (decision, count) in [("passed", &limit.passed), ("waited", &limit.waited), ("refused", &limit.refused)]
            {
                let count = count.load(Relaxed);
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
