//! What filters did with requests. The labels are bounded by what is configured.

use std::{
    fmt::Write,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use crate::cluster::{FilterState, Outcome, Service, cache::Counts};

/// Writes the family, if there is a filter. Names hold nothing that a label would have to escape.
pub(super) fn write<'s>(text: &mut String, services: impl Iterator<Item = &'s Arc<Service>>) {
    let filtered: Vec<&Arc<Service>> = services.filter(|service| !service.filters.is_empty()).collect();
    if filtered.is_empty() {
        return;
    }
    let name = "sockway_filter_requests_total";
    let _ =
        writeln!(text, "# HELP {name} Requests that a filter of their service was asked for.\n# TYPE {name} counter");
    for service in &filtered {
        for filter in &service.filters {
            let (of, by) = (&service.config.name, &filter.config.name);
            for outcome in Outcome::of(&filter.config.kind) {
                let (word, count) = (outcome.word(), filter.counted(*outcome));
                let _ = writeln!(text, "{name}{{service=\"{of}\",filter=\"{by}\",outcome=\"{word}\"}} {count}");
            }
        }
    }
    text.push('\n');
    let caches =
        filtered.iter().flat_map(|service| service.filters.iter().map(|filter| (&*service.config.name, filter)));
    let caches: Vec<(&str, &Arc<FilterState>)> = caches.filter(|(_, filter)| filter.store.is_some()).collect();
    if !caches.is_empty() {
        CACHES.iter().for_each(|family| write_cache(text, family, &caches));
    }
}

/// Writes how key sets were fetched, where some are.
pub(super) fn write_fetched<'s>(text: &mut String, services: impl Iterator<Item = &'s Arc<Service>>) {
    let filters = services.flat_map(|service| service.filters.iter().map(|filter| (&*service.config.name, filter)));
    let fetched =
        filters.filter_map(|(service, filter)| Some((service, &filter.config.name, filter.fetched.as_ref()?)));
    let fetched: Vec<_> = fetched.collect();
    if fetched.is_empty() {
        return;
    }
    let name = "sockway_jwks_fetches_total";
    let _ = writeln!(text, "# HELP {name} How often the keys of tokens were fetched.\n# TYPE {name} counter");
    for (of, by, keys) in &fetched {
        for (word, count) in [("fetched", &keys.fetched), ("failed", &keys.failed)] {
            let count = count.load(Relaxed);
            let _ = writeln!(text, "{name}{{service=\"{of}\",filter=\"{by}\",result=\"{word}\"}} {count}");
        }
    }
    let name = "sockway_jwks_fetched_timestamp_seconds";
    let _ = writeln!(text, "\n# HELP {name} When that was last, since 1970; 0: never.\n# TYPE {name} gauge");
    for (of, by, keys) in &fetched {
        let at = keys.fetched_at.load(Relaxed);
        let _ = writeln!(text, "{name}{{service=\"{of}\",filter=\"{by}\"}} {at}");
    }
    text.push('\n');
}

type Family = (&'static str, &'static str, &'static str, fn(&Counts) -> &AtomicU64);

const CACHES: [Family; 5] = [
    ("sockway_cache_stored_total", "counter", "Answers that a cache has kept.", |counts| &counts.stored),
    ("sockway_cache_evicted_total", "counter", "Answers that made room for others.", |counts| &counts.evicted),
    (
        "sockway_cache_invalidated_total",
        "counter",
        "Answers that were dropped because a request may have changed what they are of.",
        |counts| &counts.invalidated,
    ),
    ("sockway_cache_bytes", "gauge", "What the answers of a cache take, in bytes.", |counts| &counts.bytes),
    ("sockway_cache_entries", "gauge", "Answers that a cache has.", |counts| &counts.entries),
];

fn write_cache(text: &mut String, (name, kind, help, of): &Family, caches: &[(&str, &Arc<FilterState>)]) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    for (service, filter) in caches {
        let Some(store) = &filter.store else { continue };
        let (by, count) = (&filter.config.name, of(&store.counts).load(Relaxed));
        let _ = writeln!(text, "{name}{{service=\"{service}\",filter=\"{by}\"}} {count}");
    }
    text.push('\n');
}
