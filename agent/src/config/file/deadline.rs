//! How long a request may take: the keys `timeout_ms` and `deadline` of a service or a route.

use serde_json::{Map, Value as Json, json};

use super::{
    SWITCHES, milliseconds,
    section::{Field, Path, Problems, Section},
    tree::Value,
};
use crate::config::{
    Mode, Protocol,
    deadline::{Carrier, Carriers, Deadline, Timing},
};

const TIMEOUT_MS_MAX: u32 = 86_400_000;
/// The keys.
pub(super) const KEYS: [&str; 2] = ["timeout_ms", "deadline"];

/// Reads the keys if they are there.
pub(super) fn timing(section: &Section<'_>, problems: &mut Problems) -> Option<Option<Timing>> {
    let time = |field: &Field<'_>, p: &mut Problems| field.integer(1..=TIMEOUT_MS_MAX, p).map(milliseconds).map(Some);
    let timeout = section.or("timeout_ms", || None, time, problems);
    let deadline = section.or("deadline", || None, |field, p| deadline(field, p).map(Some), problems);
    let timing = Timing { timeout: timeout?, deadline: deadline? };
    Some((timing != Timing::default()).then_some(timing))
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
        shown.insert("timeout_ms".into(), json!(timeout.as_millis() as u64));
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
    use std::time::Duration;

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
            let timing = Some(Timing { timeout, deadline });
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
    fn what_cannot_be_is_named() {
        for (keys, expected) in [
            ("timeout_ms: 0", "timeout_ms: 0 is out of range"),
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
