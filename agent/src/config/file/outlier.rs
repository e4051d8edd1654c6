//! When an endpoint is left out for what became of its requests: the section `outlier` of a service.

use std::time::Duration;

use serde_json::{Value as Json, json};

use super::{
    SWITCHES, milliseconds, probe,
    section::{Field, Problems, Section},
};
use crate::config::{Mode, outlier::Outlier};

const COUNT_MAX: u32 = 1_000_000;
const HOSTS_MAX: u32 = 65_535; // as many as an endpoint's weight can tell apart
const TIME_MS_MAX: u32 = 86_400_000;
const FACTOR_MAX: u32 = 100_000; // a hundred standard deviations

/// A number of the section: its key, the least and the most, and where it is kept.
type Number = (&'static str, u32, u32, fn(&mut Outlier) -> &mut u32);

const NUMBERS: [Number; 17] = [
    ("consecutive_5xx", 1, COUNT_MAX, |rules| &mut rules.consecutive_5xx),
    ("consecutive_gateway_failure", 1, COUNT_MAX, |rules| &mut rules.consecutive_gateway_failure),
    ("consecutive_local_origin_failure", 1, COUNT_MAX, |rules| &mut rules.consecutive_local_origin_failure),
    ("max_ejection_percent", 0, 100, |rules| &mut rules.max_ejection_percent),
    ("enforcing_consecutive_5xx", 0, 100, |rules| &mut rules.enforcing_consecutive_5xx),
    ("enforcing_consecutive_gateway_failure", 0, 100, |rules| &mut rules.enforcing_consecutive_gateway_failure),
    ("enforcing_consecutive_local_origin_failure", 0, 100, |rules| {
        &mut rules.enforcing_consecutive_local_origin_failure
    }),
    ("enforcing_success_rate", 0, 100, |rules| &mut rules.enforcing_success_rate),
    ("enforcing_local_origin_success_rate", 0, 100, |rules| &mut rules.enforcing_local_origin_success_rate),
    ("success_rate_minimum_hosts", 1, HOSTS_MAX, |rules| &mut rules.success_rate_minimum_hosts),
    ("success_rate_request_volume", 1, COUNT_MAX, |rules| &mut rules.success_rate_request_volume),
    ("success_rate_stdev_factor", 0, FACTOR_MAX, |rules| &mut rules.success_rate_stdev_factor),
    ("enforcing_failure_percentage", 0, 100, |rules| &mut rules.enforcing_failure_percentage),
    ("enforcing_failure_percentage_local_origin", 0, 100, |rules| &mut rules.enforcing_failure_percentage_local_origin),
    ("failure_percentage_threshold", 1, 100, |rules| &mut rules.failure_percentage_threshold),
    ("failure_percentage_minimum_hosts", 1, HOSTS_MAX, |rules| &mut rules.failure_percentage_minimum_hosts),
    ("failure_percentage_request_volume", 1, COUNT_MAX, |rules| &mut rules.failure_percentage_request_volume),
];

/// Times in milliseconds: key, the least, and where it is kept.
type Time = (&'static str, u32, fn(&mut Outlier) -> &mut Duration);

const TIMES: [Time; 4] = [
    ("interval_ms", 10, |rules| &mut rules.interval),
    ("base_ejection_ms", 1, |rules| &mut rules.base_ejection),
    ("max_ejection_ms", 1, |rules| &mut rules.max_ejection),
    ("ejection_jitter_ms", 0, |rules| &mut rules.ejection_jitter),
];

/// Switches.
type Switch = (&'static str, fn(&mut Outlier) -> &mut bool);

const SWITCHED: [Switch; 3] = [
    ("split_local_origin", |rules| &mut rules.split_local_origin),
    ("always_eject_one_host", |rules| &mut rules.always_eject_one),
    ("successful_active_health_check_uneject_host", |rules| &mut rules.probe_unejects),
];

/// Reads the section if there is one.
pub(super) fn outlier(section: &Section<'_>, mode: Option<Mode>, problems: &mut Problems) -> Option<Option<Outlier>> {
    if let (Some(Mode::Kernel), Some(field)) = (mode, section.get("outlier")) {
        let what = "judges by what became of requests, and those of this service do not come by the agent; write mode: \
                    agent, or eject, which counts failed handshakes in the kernel";
        field.refuse(what, problems);
    }
    section.or("outlier", || None, |field, p| read(field, p).map(Some), problems)
}

fn read(field: &Field<'_>, problems: &mut Problems) -> Option<Outlier> {
    let numbers = NUMBERS.iter().map(|number| number.0);
    let others = TIMES.map(|time| time.0).into_iter().chain(SWITCHED.map(|switch| switch.0)).chain(["on_change"]);
    let keys: Vec<&str> = numbers.chain(others).collect();
    let section = Section::open(field.node, &field.path, &keys, problems)?;
    let mut rules = Outlier::default();
    let mut is_good = true;
    for (key, least, most, place) in &NUMBERS {
        let default = *place(&mut rules);
        let read = section.or(key, || default, |field, p| field.integer(*least..=*most, p), problems);
        is_good &= read.map(|number| *place(&mut rules) = number).is_some();
    }
    for (key, least, place) in &TIMES {
        let default = *place(&mut rules);
        let time = |field: &Field<'_>, p: &mut Problems| field.integer(*least..=TIME_MS_MAX, p).map(milliseconds);
        is_good &= section.or(key, || default, time, problems).map(|time| *place(&mut rules) = time).is_some();
    }
    for (key, place) in &SWITCHED {
        let default = *place(&mut rules);
        let read = section.or(key, || default, |field, p| field.choice(&SWITCHES, p), problems);
        is_good &= read.map(|switch| *place(&mut rules) = switch).is_some();
    }
    let hook = |field: &Field<'_>, p: &mut Problems| probe::command(field, p);
    is_good &= section.or("on_change", Vec::new, hook, problems).map(|words| rules.on_change = words).is_some();
    match section.get("max_ejection_ms") {
        Some(field) if is_good && rules.max_ejection < rules.base_ejection => {
            let base = rules.base_ejection.as_millis();
            field.refuse(format!("is less than base_ejection_ms; write at least {base}, or remove it"), problems);
            return None;
        }
        Some(_) => {}
        // As Envoy does.
        None => rules.max_ejection = rules.max_ejection.max(rules.base_ejection),
    }
    is_good.then_some(rules)
}

/// As it would be written.
pub(super) fn show(rules: &Outlier) -> Json {
    let mut rules = rules.clone();
    let mut shown = serde_json::Map::new();
    for (key, _, _, place) in &NUMBERS {
        shown.insert((*key).to_owned(), json!(*place(&mut rules)));
    }
    for (key, _, place) in &TIMES {
        shown.insert((*key).to_owned(), json!(place(&mut rules).as_millis() as u64));
    }
    for (key, place) in &SWITCHED {
        shown.insert((*key).to_owned(), json!(if *place(&mut rules) { "on" } else { "off" }));
    }
    if !rules.on_change.is_empty() {
        shown.insert("on_change".to_owned(), json!(rules.on_change));
    }
    Json::Object(shown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, file};

    fn read(outlier: &str) -> Result<Config, String> {
        let text = format!(
            "services:\n- {{name: a, address: 10.0.0.1:80, protocol: http, endpoints: [10.0.0.2:80],\n  {outlier}}}"
        );
        file::parse(&text, "F").map_err(|error| error.to_string())
    }

    #[test]
    fn rules_are_envoy_s_unless_said_otherwise_and_are_shown_again() {
        let rules = |text| read(text).expect("a good file").services[0].outlier.clone();
        assert_eq!(rules(""), None);
        assert_eq!(rules("outlier: {interval_ms: 10000}"), Some(Outlier::default()));
        let text =
            "outlier: {consecutive_5xx: 3, split_local_origin: on, base_ejection_ms: 400000, max_ejection_percent: 50}";
        let config = read(text).expect("a good file");
        let found = config.services[0].outlier.clone().expect("rules");
        let (base_ejection, max_ejection) = (Duration::from_secs(400), Duration::from_secs(400));
        let expected = Outlier {
            consecutive_5xx: 3,
            split_local_origin: true,
            base_ejection,
            max_ejection,
            max_ejection_percent: 50,
            ..Outlier::default()
        };
        assert_eq!(found, expected);
        let shown = file::show(&config).to_string();
        assert_eq!(file::parse(&shown, "F").expect("a good file"), config);
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (text, expected) in [
            (
                "outlier: {consecutive_5xx: 0}",
                "outlier.consecutive_5xx: 0 is out of range; write a whole number from 1 to 1000000",
            ),
            (
                "outlier: {max_ejection_percent: 101}",
                "outlier.max_ejection_percent: 101 is out of range; write a whole number from 0 to 100",
            ),
            (
                "outlier: {max_ejection_ms: 1000}",
                "outlier.max_ejection_ms: is less than base_ejection_ms; write at least 30000, or remove it",
            ),
            ("outlier: {consecutive_5x: 1}", "outlier.consecutive_5x: unknown key; did you mean consecutive_5xx?"),
            (
                "mode: kernel, outlier: {}",
                "outlier: judges by what became of requests, and those of this service do not come by the agent; write \
                 mode: agent, or eject, which counts failed handshakes in the kernel",
            ),
        ] {
            let found = read(text).expect_err("a mistake");
            assert!(found.contains("F:3:") && found.contains(expected), "{found}");
        }
    }
}
