//! Trying out other endpoints step by step: a route's key `canary`.

use std::time::Duration;

use serde_json::{Value, json};

use super::{
    super::{
        capture::each,
        section::{Field, Path, Position, Problems, Section},
    },
    TARGET_KEYS, target,
};
use crate::config::{
    canary::{Canary, Guard},
    route::Target,
};

const STEPS: [u32; 4] = [5, 25, 50, 100];
const INTERVAL_MS: u32 = 60_000;
const INTERVAL_MS_MIN: u32 = 100;
const INTERVAL_MS_MAX: u32 = 7 * 86_400_000;
const ERROR_PERCENT: u32 = 5;
const LATENCY_MS_MAX: u32 = 3_600_000;
const LATENCY_PERCENTILE: u32 = 99;
/// One failure of so few is as much as the guard allows.
const REQUESTS_MIN: u32 = 20;

pub(super) fn canary(
    field: &Field<'_>,
    named: &mut Vec<(Position, String, String)>,
    problems: &mut Problems,
) -> Option<(Target, Canary)> {
    let keys = [&TARGET_KEYS[..], &["steps", "interval_ms", "guard"]].concat();
    let section = Section::open(field.node, &field.path, &keys, problems)?;
    if section.get("to").or(section.get("subset")).is_none() {
        field.refuse("says nobody who is tried out; write to: SERVICE, or subset: {LABEL: VALUE}", problems);
    }
    let target = target(&section, 0, named, problems);
    let steps = section.or("steps", || STEPS.to_vec(), steps, problems);
    let interval = section.or(
        "interval_ms",
        || INTERVAL_MS,
        |field, p| field.integer(INTERVAL_MS_MIN..=INTERVAL_MS_MAX, p),
        problems,
    );
    let guard = guard(&section, problems);
    Some((target?, Canary { steps: steps?, interval: duration(interval?), guard: guard? }))
}

fn steps(field: &Field<'_>, problems: &mut Problems) -> Option<Vec<u32>> {
    let count = field.list(problems)?.len();
    let steps = each(field, problems, |field, p| field.integer(1..=100, p))?;
    if count == 0 || !steps.is_sorted_by(|before, after| before < after) {
        field.refuse("is not a list of parts that grow; write them as [5, 25, 50, 100]", problems);
        return None;
    }
    (steps.len() == count).then_some(steps)
}

fn guard(section: &Section<'_>, problems: &mut Problems) -> Option<Guard> {
    let nothing = Guard {
        error_percent: ERROR_PERCENT,
        latency: None,
        latency_percentile: LATENCY_PERCENTILE,
        requests_min: REQUESTS_MIN,
    };
    let Some(field) = section.get("guard") else { return Some(nothing) };
    let path: &Path<'_> = &field.path;
    let keys = ["error_percent", "latency_ms", "latency_percentile", "requests_min"];
    let section = Section::open(field.node, path, &keys, problems)?;
    let percent = section.or("error_percent", || ERROR_PERCENT, |field, p| field.integer(0..=99, p), problems);
    let latency =
        section.or("latency_ms", || None, |field, p| field.integer(1..=LATENCY_MS_MAX, p).map(Some), problems);
    let percentile =
        section.or("latency_percentile", || LATENCY_PERCENTILE, |field, p| field.integer(1..=99, p), problems);
    let least = section.or("requests_min", || REQUESTS_MIN, |field, p| field.integer(1..=u32::MAX, p), problems);
    if let (Some(field), None) = (section.get("latency_percentile"), section.get("latency_ms")) {
        field.refuse("says of what share latency_ms holds; write that, too, or remove it", problems);
    }
    Some(Guard {
        error_percent: percent?,
        latency: latency?.map(duration),
        latency_percentile: percentile?,
        requests_min: least?,
    })
}

fn duration(milliseconds: u32) -> Duration {
    Duration::from_millis(milliseconds.into())
}

/// As it would be written.
pub(super) fn show(target: &Target, canary: &Canary) -> Value {
    let Canary { steps, interval, guard } = canary;
    let mut shown = super::show::target(target);
    shown.insert("steps".into(), json!(steps));
    shown.insert("interval_ms".into(), json!(interval.as_millis() as u64));
    let mut said = json!({ "error_percent": guard.error_percent, "requests_min": guard.requests_min });
    if let Some(latency) = guard.latency {
        said["latency_ms"] = json!(latency.as_millis() as u64);
        said["latency_percentile"] = json!(guard.latency_percentile);
    }
    shown.insert("guard".into(), said);
    shown.into()
}
