//! Timeouts that follow how long requests take. The labels are bounded by what is configured.

use std::{fmt::Write, sync::Arc, time::Duration};

use crate::cluster::{Pace, Service};

type Read = fn(&Pace) -> Option<Duration>;

/// Writes the families, if there is such a timeout. Names hold nothing that a label would have to escape.
pub(super) fn write(text: &mut String, services: &[Arc<Service>]) {
    let families: [(&str, &str, Read); 2] = [
        ("sockway_timeout_auto_seconds", "How long a request may take now, where that is found.", |pace| {
            Some(pace.timeout())
        }),
        ("sockway_timeout_auto_p99_seconds", "What 99 of a hundred of those requests take at most.", Pace::p99),
    ];
    for (name, help, read) in families {
        let mut lines = String::new();
        for service in services {
            for (route, pace) in service.paces() {
                let (of, route) = (&service.config.name, route.unwrap_or_default());
                if let Some(time) = read(pace) {
                    let _ = writeln!(lines, "{name}{{service=\"{of}\",route=\"{route}\"}} {}", time.as_secs_f64());
                }
            }
        }
        if !lines.is_empty() {
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{lines}\n");
        }
    }
}
