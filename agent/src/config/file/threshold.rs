//! How much of a service there may be at once: its key `thresholds`.

use serde_json::{Map, Value as Json, json};

use super::section::{Field, Problems, Section};
use crate::config::{
    request_limit::COUNT_MAX,
    threshold::{Threshold, Thresholds},
};

/// Where connections are bounded and nothing is said of who waits for one: Envoy's bound.
const PENDING: u32 = 1_024;

/// Reads the key.
pub(super) fn thresholds(field: &Field<'_>, problems: &mut Problems) -> Option<Thresholds> {
    let section = Section::open(field.node, &field.path, &Threshold::ALL.map(Threshold::word), problems)?;
    let mut read = |threshold: Threshold| {
        // There may be no retry at all. Without a connection there is no service, and who has one made waits for it.
        let least = u32::from(threshold != Threshold::Retries);
        let bound = |field: &Field<'_>, p: &mut Problems| field.integer(least..=COUNT_MAX, p).map(Some);
        section.or(threshold.word(), || None, bound, problems)
    };
    let [connections, pending, requests, retries] = Threshold::ALL.map(&mut read);
    let connections = connections?;
    let read = Thresholds {
        connections,
        pending: pending?.or(connections.map(|_| PENDING)),
        requests: requests?,
        retries: retries?,
    };
    if read == Thresholds::default() {
        field.refuse("bounds nothing; write max_requests, max_connections, …, or leave it out", problems);
    }
    Some(read)
}

/// As it would be written.
pub(super) fn show(thresholds: &Thresholds) -> Json {
    let said = |threshold: Threshold| Some((threshold.word().to_owned(), json!(thresholds.of(threshold)?)));
    Threshold::ALL.into_iter().filter_map(said).collect::<Map<String, Json>>().into()
}
