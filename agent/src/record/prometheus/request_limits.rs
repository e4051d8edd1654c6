//! What became of requests by the limits of their service. The labels are bounded by what is configured.

use std::{
    fmt::Write,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use crate::cluster::Service;

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
}
