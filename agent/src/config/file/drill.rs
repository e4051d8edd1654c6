//! What is to go wrong on purpose: the file of a drill, and the order for one fault.

use serde_json::{Value, json};

use super::{
    filter::{fault, show_all},
    milliseconds,
    route::matches,
    section::{Field, Path, Problems, Section},
    service::service_name,
    tree,
};
use crate::config::{
    ConfigError,
    drill::{LEASE_MS_MAX, Plan, Step},
    filter::{Filter, Kind},
};

const PERIOD_MS_MAX: u32 = 3_600_000;
const STEPS_MAX: usize = 64;
const LOOK_MS: u32 = 5_000;
const FAULT: [&str; 8] =
    ["match", "percent", "delay_ms", "abort_status", "grpc_status", "reset", "bandwidth_bytes_per_second", "direction"];
/// What the filter of a drill is called, in metrics.
const NAME: &str = "drill";

/// Reads the file of a drill; `name` is what messages call it.
///
/// # Errors
///
/// With everything that is wrong with it.
pub fn plan(text: &str, name: &str) -> Result<Plan, ConfigError> {
    read(text, name, |field, problems| {
        let section = Section::open(field.node, &field.path, &["service", "before_ms", "steps", "after_ms"], problems)?;
        let service = section.require("service", "write whose requests are to go wrong", problems);
        let service = service.and_then(|field| service_name(&field, problems));
        let mut look = |key| section.or(key, || LOOK_MS, |field, p| field.integer(0..=PERIOD_MS_MAX, p), problems);
        let (before, after) = (look("before_ms"), look("after_ms"));
        let remedy =
            "write what is to happen, one after the other: - {name: slow, for_ms: 10000, fault: {delay_ms: 500}}";
        let steps = section.require("steps", remedy, problems).and_then(|field| steps(&field, problems));
        let (before, after) = (milliseconds(before?), milliseconds(after?));
        Some(Plan { service: service?, before, steps: steps?, after })
    })
}

fn steps(field: &Field<'_>, problems: &mut Problems) -> Option<Vec<Step>> {
    let items = field.list(problems)?;
    if items.is_empty() || items.len() > STEPS_MAX {
        field.refuse(format!("has {} steps; write from 1 to {STEPS_MAX}", items.len()), problems);
        return None;
    }
    let step = |(index, node)| step(&Field { node, path: Path::Item(&field.path, index) }, index, problems);
    let steps: Vec<Option<Step>> = items.iter().enumerate().map(step).collect();
    steps.into_iter().collect()
}

fn step(field: &Field<'_>, index: usize, problems: &mut Problems) -> Option<Step> {
    let section = Section::open(field.node, &field.path, &["name", "for_ms", "fault"], problems)?;
    let name = section.or("name", || format!("step-{}", index + 1), service_name, problems);
    let period = section.require("for_ms", "write how long it is to last", problems);
    let period = period.and_then(|field| field.integer(1..=PERIOD_MS_MAX, problems));
    let fault = section.or("fault", || None, |field, p| ordered(field, &FAULT, p).map(Some), problems);
    Some(Step { name: name?, period: milliseconds(period?), fault: fault? })
}

/// Reads the order for one fault, and for how long it holds unless it is renewed.
///
/// # Errors
///
/// With everything that is wrong with it.
pub fn lease(text: &str, name: &str) -> Result<(Filter, std::time::Duration), ConfigError> {
    read(text, name, |field, problems| {
        let keys: Vec<&str> = FAULT.into_iter().chain(["for_ms"]).collect();
        let filter = ordered(field, &keys, problems)?;
        let section = Section::open(field.node, &field.path, &keys, problems)?;
        let period = section.require("for_ms", "write how long it holds unless it is renewed", problems)?;
        Some((filter, milliseconds(period.integer(1..=LEASE_MS_MAX, problems)?)))
    })
}

fn ordered(field: &Field<'_>, keys: &[&str], problems: &mut Problems) -> Option<Filter> {
    let section = Section::open(field.node, &field.path, keys, problems)?;
    let matches = section.or("match", || None, |field, p| matches(field, p).map(Some), problems);
    let fault = fault(&section, problems);
    Some(Filter { name: NAME.to_owned(), matches: matches?, kind: Kind::Fault(fault?) })
}

/// The order for a fault, as [`lease`] reads it.
pub fn show_lease(filter: &Filter, for_ms: u64) -> Value {
    let shown = show_all(std::slice::from_ref(filter)).and_then(|shown| shown.into_iter().next());
    let mut shown = shown.unwrap_or_else(|| json!({}));
    if let Some(keys) = shown.as_object_mut() {
        keys.retain(|key, _| FAULT.contains(&key.as_str()));
    }
    shown["for_ms"] = json!(for_ms);
    shown
}

fn read<T>(
    text: &str,
    name: &str,
    take: impl FnOnce(&Field<'_>, &mut Problems) -> Option<T>,
) -> Result<T, ConfigError> {
    let invalid = |problems| ConfigError::Invalid { name: name.to_owned(), problems };
    let tree = tree::grow(text).map_err(|problem| invalid(vec![problem]))?;
    let mut problems = Problems::default();
    let taken = take(&Field { node: &tree, path: Path::Root }, &mut problems);
    problems.0.sort_by_key(|problem| (problem.at.line, problem.at.column));
    match taken {
        Some(taken) if problems.0.is_empty() => Ok(taken),
        _ => Err(invalid(problems.0)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::filter::Fault;

    #[test]
    fn a_drill_is_read_and_its_faults_can_be_ordered() {
        let text = "service: shop/orders
before_ms: 0
steps:
  - { name: slow, for_ms: 10000, fault: { delay_ms: 500, percent: 50, match: { path: { prefix: /api } } } }
  - { for_ms: 5000 }
  - { name: broken, for_ms: 3000, fault: { abort_status: 503, grpc_status: 14 } }
  - { name: narrow, for_ms: 3000, fault: { bandwidth_bytes_per_second: 1000, direction: both } }
";
        let read = plan(text, "F").expect("a good file");
        assert_eq!(
            (read.service.as_str(), read.before, read.after),
            ("shop/orders", Duration::ZERO, Duration::from_secs(5))
        );
        let told: Vec<(&str, u64, bool)> =
            read.steps.iter().map(|step| (step.name.as_str(), step.period.as_secs(), step.fault.is_some())).collect();
        assert_eq!(told, [("slow", 10, true), ("step-2", 5, false), ("broken", 3, true), ("narrow", 3, true)]);
        for step in read.steps.iter().filter_map(|step| step.fault.as_ref()) {
            let order = show_lease(step, 1_234).to_string();
            assert_eq!(
                lease(&order, "F").expect("a good order"),
                (step.clone(), Duration::from_millis(1_234)),
                "{order}"
            );
        }
        let Some(Filter { kind: Kind::Fault(fault), .. }) = &read.steps[2].fault else { panic!("a fault") };
        let broken = Fault { percent: 100, abort: Some(503), grpc_status: Some(14), ..Fault::default() };
        assert_eq!(fault, &broken);
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (text, expected) in [
            ("{}", "F:1:1: service: is missing; write whose requests"),
            ("{service: a}", "F:1:1: steps: is missing"),
            ("{service: a, steps: []}", "steps: has 0 steps; write from 1 to 64"),
            ("{service: a, steps: [{fault: {delay_ms: 1}}]}", "steps[0].for_ms: is missing"),
            ("{service: a, steps: [{for_ms: 1, fault: {}}]}", "steps[0].fault: nothing goes wrong"),
            ("{service: a, steps: [{for_ms: 1, fault: {kind: fault}}]}", "steps[0].fault.kind: unknown key"),
        ] {
            let found = plan(text, "F").expect_err(text).to_string();
            assert!(found.contains(expected), "{text}: {found}");
        }
        for (text, expected) in [
            ("{delay_ms: 5}", "for_ms: is missing"),
            ("{delay_ms: 5, for_ms: 60001}", "for_ms: 60001 is out of range"),
            ("{for_ms: 5}", "nothing goes wrong"),
        ] {
            let found = lease(text, "F").expect_err(text).to_string();
            assert!(found.contains(expected), "{text}: {found}");
        }
    }
}
