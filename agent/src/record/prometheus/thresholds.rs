//! Thresholds, of the services that have any.

use std::fmt::Write;

use crate::{
    cluster::{Service, Snapshot, ThresholdState},
    config::threshold::Threshold,
};

type Read = fn(&ThresholdState, Threshold) -> u64;

const FAMILIES: [(&str, &str, &str, Read); 2] = [
    ("sockway_threshold_active", "gauge", "What a service has at once of what is bounded.", |state, of| {
        state.now(of).into()
    }),
    (
        "sockway_threshold_overflow_total",
        "counter",
        "How often there was no room for one more, by the bound.",
        ThresholdState::overflow,
    ),
];

/// Writes the families, if there is a threshold.
pub(super) fn write(text: &mut String, snapshot: &Snapshot) {
    let known = |service: &Service, of| service.threshold(of).map(|(state, _)| state.clone());
    for (name, kind, help, read) in FAMILIES {
        let mut lines = String::new();
        for service in &snapshot.services {
            for of in Threshold::ALL {
                if let Some(state) = known(service, of) {
                    let (service, value) = (&service.config.name, read(&state, of));
                    let _ = writeln!(lines, "{name}{{service=\"{service}\",threshold=\"{}\"}} {value}", of.word());
                }
            }
        }
        if !lines.is_empty() {
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{lines}\n");
        }
    }
}
