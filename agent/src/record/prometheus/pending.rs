//! The lines of requests that wait for room, of the services that have one. The labels are bounded by what is configured.

use std::{
    fmt::Write,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};

use crate::cluster::{PendingState, Service, Unserved};

/// A family of one sample for each line.
struct Family {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    of: fn(&PendingState, Instant) -> f64,
}

const FAMILIES: [Family; 5] = [
    Family {
        name: "sockway_pending_requests",
        kind: "gauge",
        help: "Requests that wait until their service has room for them.",
        of: |state, _| state.depth().into(),
    },
    Family {
        name: "sockway_pending_oldest_seconds",
        kind: "gauge",
        help: "How long the first of them has waited.",
        of: |state, now| state.oldest(now).unwrap_or_default().as_secs_f64(),
    },
    Family {
        name: "sockway_pending_accepting",
        kind: "gauge",
        help: "Whether one more may wait: 0 from when they are too many, or too slow, until there are a fifth fewer.",
        of: |state, _| f64::from(u8::from(!state.is_shut())),
    },
    Family {
        name: "sockway_pending_stops_total",
        kind: "counter",
        help: "How often that came to be 0.",
        of: |state, _| state.stops.load(Relaxed) as f64,
    },
    Family {
        name: "sockway_pending_served_total",
        kind: "counter",
        help: "Requests that waited, and found room.",
        of: |state, _| state.served.load(Relaxed) as f64,
    },
];

/// Writes the families, if there is a line. Names hold nothing that a label would have to escape.
pub(super) fn write(text: &mut String, services: &[Arc<Service>], now: Instant) {
    let of = |service: &Arc<Service>| Some((service.config.name.clone(), Arc::clone(service.pending.as_ref()?)));
    let lines: Vec<(String, Arc<PendingState>)> = services.iter().filter_map(of).collect();
    if lines.is_empty() {
        return;
    }
    for Family { name, kind, help, of } in FAMILIES {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (service, state) in &lines {
            let _ = writeln!(text, "{name}{{service=\"{service}\"}} {}", of(state, now));
        }
        text.push('\n');
    }
    let name = "sockway_pending_refused_total";
    let help = "Requests that found no room and were not let in, or waited and were not served, by why.";
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} counter");
    for (service, state) in &lines {
        for why in Unserved::ALL {
            let (reason, count) = (why.word(), state.unserved[why as usize].load(Relaxed));
            let _ = writeln!(text, "{name}{{service=\"{service}\",reason=\"{reason}\"}} {count}");
        }
    }
    text.push('\n');
}
