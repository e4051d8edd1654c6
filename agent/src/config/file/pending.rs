//! Requests that wait until their service has room for them: its key `pending`.

use serde_json::{Value as Json, json};

use super::{
    SWITCHES, milliseconds,
    section::{Field, Problems, Section},
    tree::Value,
};
use crate::config::{Guard, Pending, RequestLimit, request_limit::Kind};

const REQUESTS: u32 = 1_000; // requirement 000-34's, as is the next
const WAIT_MS: u32 = 3_000;
const REQUESTS_MAX: u32 = 100_000; // each holds a connection or a stream
const WAIT_MS_MAX: u32 = 600_000;

/// Reads the key if it is there.
pub(super) fn pending(section: &Section<'_>, problems: &mut Problems) -> Option<Option<Pending>> {
    section.or("pending", || None, read, problems)
}

fn read(field: &Field<'_>, problems: &mut Problems) -> Option<Option<Pending>> {
    let usual = Pending { requests_max: REQUESTS, wait_max: milliseconds(WAIT_MS) };
    if !matches!(field.node.value, Value::Map(_)) {
        return field.choice(&SWITCHES, problems).map(|is_on| is_on.then_some(usual));
    }
    let section = Section::open(field.node, &field.path, &["requests_max", "wait_max_ms"], problems)?;
    let requests_max = section.or("requests_max", || REQUESTS, |field, p| field.integer(1..=REQUESTS_MAX, p), problems);
    let wait_ms = section.or("wait_max_ms", || WAIT_MS, |field, p| field.integer(1..=WAIT_MS_MAX, p), problems);
    Some(Some(Pending { requests_max: requests_max?, wait_max: milliseconds(wait_ms?) }))
}

/// Notes a line for room where nothing says how much there is; one that only a preset says is none then.
pub(super) fn settle(
    section: &Section<'_>,
    pending: &mut Option<Option<Pending>>,
    (limits, guard): (Option<&Vec<RequestLimit>>, Option<&Guard>),
    problems: &mut Problems,
) {
    let (Some(Some(_)), Some(field)) = (&pending, section.get("pending")) else { return };
    let (Some(limits), Some(guard)) = (limits, guard) else { return };
    let bounds = |limit: &RequestLimit| {
        let is_of_room = matches!(limit.kind, Kind::Concurrency { .. } | Kind::Gradient(_) | Kind::Bbr { .. });
        is_of_room && limit.by.is_none()
    };
    let isolates = guard.isolation.as_ref().is_some_and(|isolation| isolation.concurrency.is_some());
    if isolates || limits.iter().any(bounds) {
        return;
    }
    *pending = Some(None);
    // What a preset says stands where that is named.
    if section.get("preset").is_none_or(|preset| preset.node.at != field.node.at) {
        let what = "waits for room, and nothing says how many requests there may be at once; write isolation: \
                    {max_concurrency: …}, or request_limits of kind concurrency, gradient or bbr without by";
        field.refuse(what, problems);
    }
}

/// As it would be written.
pub(super) fn show(pending: &Pending) -> Json {
    json!({ "requests_max": pending.requests_max, "wait_max_ms": pending.wait_max.as_millis() as u64 })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{Config, file};

    fn read(keys: &str) -> Result<Config, String> {
        let text = format!(
            "services:\n- {{name: a, address: 10.0.0.1:80, protocol: http, endpoints: [10.0.0.2:80],\n  {keys}}}"
        );
        file::parse(&text, "F").map_err(|error| error.to_string())
    }

    #[test]
    fn a_line_has_the_bounds_of_its_requirement_unless_others_are_said() {
        for (said, requests_max, wait_ms) in [
            ("on, isolation: hystrix", 1_000, 3_000),
            ("{}, request_limits: [{kind: concurrency, limit: 1}]", 1_000, 3_000),
            ("{requests_max: 7}, request_limits: [{kind: gradient}]", 7, 3_000),
            ("{wait_max_ms: 50}, request_limits: [{kind: bbr}]", 1_000, 50),
        ] {
            let config = read(&format!("pending: {said}")).unwrap_or_else(|wrong| panic!("{said}: {wrong}"));
            let expected = Pending { requests_max, wait_max: Duration::from_millis(wait_ms) };
            assert_eq!(config.services[0].pending, Some(expected), "{said}");
            assert_eq!(file::parse(&file::show(&config).to_string(), "F").expect("a good file"), config, "{said}");
        }
        assert_eq!(read("pending: off").expect("good").services[0].pending, None);
    }

    #[test]
    fn a_line_for_nothing_is_refused() {
        for (said, expected) in [
            ("pending: on", "services[0].pending: waits for room, and nothing says how many"),
            ("pending: on, isolation: {timeout_ms: 5}", "waits for room"),
            ("pending: on, request_limits: [{kind: token_bucket, limit: 1}]", "waits for room"),
            ("pending: on, request_limits: [{kind: concurrency, limit: 1, by: {source: on}}]", "waits for room"),
            ("pending: {requests_max: 0}, isolation: hystrix", "pending.requests_max: 0 is out of range"),
            ("pending: {wait_ms: 5}, isolation: hystrix", "pending.wait_ms: unknown key"),
        ] {
            let found = read(said).expect_err(said);
            assert!(found.contains("F:3:") && found.contains(expected), "{said}: {found}");
        }
    }
}
