//! How long a request may take: the keys `timeout_ms` and `deadline` of a service or a route.

use std::time::Duration;

use serde_json::{Map, Value as Json, json};

use super::{
    SWITCHES, milliseconds,
    section::{Field, Path, Problems, Section, shown},
    tree::Value,
};
use crate::config::{
    Mode, Protocol,
    deadline::{Auto, Carrier, Carriers, Deadline, Timing},
};

const TIMEOUT_MS_MAX: u32 = 86_400_000;
const FACTOR: u32 = 3;
const FACTOR_MAX: u32 = 100;
const AUTO_MIN_MS: u32 = 250; // a segment that was lost is sent again after 200 ms (TCP_RTO_MIN): one of those is within it
const AUTO_MAX_MS: u32 = 15_000; // Envoy's timeout of a route
/// The keys.
pub(super) const KEYS: [&str; 3] = ["timeout_ms", "timeout", "deadline"];

/// Reads the keys if they are there.
pub(super) fn timing(section: &Section<'_>, problems: &mut Problems) -> Option<Option<Timing>> {
    let in_full = section.or("timeout", || None, |field, p| auto_in_full(field, p).map(Some), problems);
    let timeout = section.or("timeout_ms", || None, |field, p| timeout(field, p).map(Some), problems);
    if let (Some(field), Some(_)) = (section.get("timeout_ms"), section.get("timeout")) {
        field.refuse("says the same as timeout; leave one of them out", problems);
    }
    let deadline = section.or("deadline", || None, |field, p| deadline(field, p).map(Some), problems);
    let (timeout, auto) = timeout?.or(in_full?).unzip();
    let timing = Timing { timeout, auto: auto.flatten(), deadline: deadline? };
    Some((timing != Timing::default()).then_some(timing))
}

/// How long a request may take, and how that is found, if it is.
type Timeout = (Duration, Option<Auto>);

/// Milliseconds, or `auto`.
fn timeout(field: &Field<'_>, problems: &mut Problems) -> Option<Timeout> {
    match &field.node.value {
        Value::Text(text) if text == "auto" => {
            let auto = Auto { factor: FACTOR, min: milliseconds(AUTO_MIN_MS) };
            Some((milliseconds(AUTO_MAX_MS), Some(auto)))
        }
        Value::Text(text) => {
            field.refuse(format!("\"{}\" is no time; write milliseconds, or auto", shown(text)), problems);
            None
        }
        _ => field.integer(1..=TIMEOUT_MS_MAX, problems).map(|time| (milliseconds(time), None)),
    }
}

/// `{auto: {factor: …, min_ms: …, max_ms: …}}`.
fn auto_in_full(field: &Field<'_>, problems: &mut Problems) -> Option<Timeout> {
    let section = Section::open(field.node, &field.path, &["auto"], problems)?;
    let field = section.require("auto", "write {factor: …, min_ms: …, max_ms: …}", problems)?;
    let section = Section::open(field.node, &field.path, &["factor", "min_ms", "max_ms"], problems)?;
    let factor = section.or("factor", || FACTOR, |field, p| field.integer(1..=FACTOR_MAX, p), problems);
    let time = |field: &Field<'_>, p: &mut Problems| field.integer(1..=TIMEOUT_MS_MAX, p);
    let max = section.or("max_ms", || AUTO_MAX_MS, time, problems);
    let min = section.or("min_ms", || AUTO_MIN_MS.min(max.unwrap_or(AUTO_MIN_MS)), time, problems);
    let (factor, min, max) = (factor?, min?, max?);
    if min > max {
        let field = section.get("min_ms").unwrap_or(field);
        field.refuse(format!("{min} is more than max_ms, which is {max}"), problems);
        return None;
    }
    Some((milliseconds(max), Some(Auto { factor, min: milliseconds(min) })))
}

/// Notes the keys where nobody sees requests.
pub(super) fn refuse_idle(
    section: &Section<'_>,
    (mode, protocol): (Option<Mode>, Option<Protocol>),
    problems: &mut Problems,
) {
    if mode != Some(Mode::Kernel) && !matches!(protocol, Some(Protocol::Tcp | Protocol::Udp)) {
        return;
    }
    for field in KEYS.iter().filter_map(|key| section.get(key)) {
        let what = "is of requests, and those of this service are not seen by the agent; write protocol: http or \
                    http2, or remove it";
        field.refuse(what, problems);
    }
}

fn deadline(field: &Field<'_>, problems: &mut Problems) -> Option<Deadline> {
    let section = Section::open(field.node, &field.path, &["accept", "forward", "reset"], problems)?;
    let default = Deadline::default();
    let accept = section.or("accept", || default.accept, carriers, problems);
    let forward = section.or("forward", || default.forward, |field, p| field.choice(&SWITCHES, p), problems);
    let reset = section.or("reset", || default.reset, |field, p| field.choice(&SWITCHES, p), problems);
    if let (Some(true), Some(field)) = (reset, section.get("accept")) {
        field.refuse("says nothing with reset: on, which believes nobody; remove one of them", problems);
    }
    Some(Deadline { accept: accept?, forward: forward?, reset: reset? })
}

fn carriers(field: &Field<'_>, problems: &mut Problems) -> Option<Carriers> {
    if let Value::Text(_) = field.node.value {
        return field.choice(&[("all", Carriers::all()), ("none", Carriers::default())], problems);
    }
    let items = field.list(problems)?;
    let words = Carrier::ALL.map(|carrier| (carrier.name(), carrier));
    let read: Vec<Carrier> = items
        .iter()
        .enumerate()
        .filter_map(|(index, node)| Field { node, path: Path::Item(&field.path, index) }.choice(&words, problems))
        .collect();
    (read.len() == items.len()).then(|| read.into_iter().fold(Carriers::default(), Carriers::and))
}

/// As they would be written.
pub(super) fn show(timing: Option<&Timing>) -> Map<String, Json> {
    let mut shown = Map::new();
    if let Some(timeout) = timing.and_then(|timing| timing.timeout) {
        let millis = |time: Duration| time.as_millis() as u64;
        match timing.and_then(|timing| timing.auto) {
            None => shown.insert("timeout_ms".into(), json!(millis(timeout))),
            Some(auto) => {
                let said = json!({ "factor": auto.factor, "min_ms": millis(auto.min), "max_ms": millis(timeout) });
                shown.insert("timeout".into(), json!({ "auto": said }))
            }
        };
    }
    if let Some(deadline) = timing.and_then(|timing| timing.deadline) {
        let switch = |is_on| if is_on { "on" } else { "off" };
        let mut said = json!({
            "forward": switch(deadline.forward),
            "reset": switch(deadline.reset),
        });
        if !deadline.reset {
            said["accept"] = json!(deadline.accept.each().map(Carrier::name).collect::<Vec<&str>>());
        }
        shown.insert("deadline".into(), said);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file;

    fn parsed(keys: &str) -> Result<crate::config::Config, String> {
        let text = format!(
            "services:\n- {{name: a, address: 10.0.0.1:80, endpoints: [10.0.0.2:80], protocol: http,\n{keys}}}\n"
        );
        file::parse(&text, "F").map_err(|error| error.to_string())
    }

    #[test]
    fn time_is_read_and_shown_as_it_was() {
        let of = |carriers: &[Carrier]| carriers.iter().copied().fold(Carriers::default(), Carriers::and);
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let said = |accept, forward, reset| Some(Deadline { accept, forward, reset });
        for (keys, timeout, deadline) in [
            ("timeout_ms: 1000", seconds(1), None),
            ("deadline: {}", None, None),
            ("deadline: {forward: on}", None, said(Carriers::all(), true, false)),
            ("timeout_ms: 2000, deadline: {accept: none}", seconds(2), said(of(&[]), true, false)),
            ("deadline: {accept: [timeout], forward: off}", None, said(of(&[Carrier::GoMicro]), false, false)),
            ("deadline: {reset: on}", None, said(Carriers::all(), true, true)),
        ] {
            let deadline = deadline.or((keys == "deadline: {}").then(Deadline::default));
            let of_service = parsed(keys).unwrap_or_else(|error| panic!("{keys}: {error}"));
            let of_route = parsed(&format!("routes: [{{{keys}}}]")).unwrap_or_else(|error| panic!("{keys}: {error}"));
            let timing = Some(Timing { timeout, deadline, auto: None });
            assert_eq!(of_service.services[0].timing, timing, "{keys}");
            assert_eq!(of_route.services[0].routes[0].timing, timing, "{keys}");
            for config in [of_service, of_route] {
                let shown = file::show(&config).to_string();
                assert_eq!(file::parse(&shown, "F").unwrap_or_else(|error| panic!("{error}")), config);
            }
        }
        assert_eq!(parsed("mode: agent").unwrap().services[0].timing, None);
    }

    #[test]
    fn a_timeout_that_is_found_has_bounds() {
        for (keys, factor, min_ms, max_ms) in [
            ("timeout_ms: auto", 3, 250, 15_000),
            ("timeout: {auto: {}}", 3, 250, 15_000),
            ("timeout: {auto: {factor: 5, min_ms: 10, max_ms: 900}}", 5, 10, 900),
            ("timeout: {auto: {max_ms: 100}}", 3, 100, 100),
        ] {
            let auto = Some(Auto { factor, min: milliseconds(min_ms) });
            let timing = Some(Timing { timeout: Some(milliseconds(max_ms)), auto, deadline: None });
            for keys in [keys.to_owned(), format!("routes: [{{{keys}}}]")] {
                let config = parsed(&keys).unwrap_or_else(|error| panic!("{keys}: {error}"));
                let service = &config.services[0];
                assert_eq!(service.timing.or(service.routes.first().and_then(|route| route.timing)), timing, "{keys}");
                let shown = file::show(&config).to_string();
                assert_eq!(file::parse(&shown, "F").unwrap_or_else(|error| panic!("{error}")), config);
            }
        }
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (keys, expected) in [
            ("timeout_ms: 0", "timeout_ms: 0 is out of range"),
            ("timeout_ms: soon", "timeout_ms: \"soon\" is no time; write milliseconds, or auto"),
            ("timeout_ms: auto, timeout: {auto: {}}", "timeout_ms: says the same as timeout"),
            ("timeout: {}", "timeout.auto"),
            ("timeout: {auto: {factor: 0}}", "timeout.auto.factor: 0 is out of range"),
            ("timeout: {auto: {min_ms: 20, max_ms: 10}}", "timeout.auto.min_ms: 20 is more than max_ms, which is 10"),
            ("deadline: {accept: some}", "deadline.accept: unknown value \"some\""),
            ("deadline: {accept: [tiemout]}", "deadline.accept[0]: unknown value \"tiemout\" (did you mean timeout?)"),
            ("deadline: {reset: on, accept: all}", "deadline.accept: says nothing with reset: on"),
            ("mode: kernel, timeout_ms: 1", "timeout_ms: is of requests"),
            (
                "routes: [{respond: {status: 404}, timeout_ms: 1}]",
                "timeout_ms: is of a request that is passed on, and this one is answered",
            ),
        ] {
            let found = parsed(keys).expect_err("a mistake");
            assert!(found.contains("F:3:") && found.contains(expected), "{found}");
        }
    }
}
