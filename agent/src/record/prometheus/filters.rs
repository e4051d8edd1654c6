//! What filters did with requests. The labels are bounded by what is configured.

use std::{fmt::Write, sync::Arc};

use crate::cluster::{Outcome, Service};

/// Writes the family, if there is a filter. Names hold nothing that a label would have to escape.
pub(super) fn write<'s>(text: &mut String, services: impl Iterator<Item = &'s Arc<Service>>) {
    let mut filtered = services.filter(|service| !service.filters.is_empty()).peekable();
    if filtered.peek().is_none() {
        return;
    }
    let name = "sockway_filter_requests_total";
    let _ =
        writeln!(text, "# HELP {name} Requests that a filter of their service was asked for.\n# TYPE {name} counter");
    for service in filtered {
        for filter in &service.filters {
            let (of, by) = (&service.config.name, &filter.config.name);
            for outcome in Outcome::of(&filter.config.kind) {
                let (word, count) = (outcome.word(), filter.counted(*outcome));
                let _ = writeln!(text, "{name}{{service=\"{of}\",filter=\"{by}\",outcome=\"{word}\"}} {count}");
            }
        }
    }
    text.push('\n');
}
