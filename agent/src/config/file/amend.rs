//! One service of a configuration said anew: what the whole means then, found without reading again what stays as it was.

use std::{fmt::Write as _, sync::Arc};

use serde_json::Value as Json;

use super::{
    Config, ConfigError, maps, parse,
    section::{Position, Problem, Problems},
    service,
    show::show,
    tree,
};

/// The configuration with its service at `place` said anew, as the file would say it.
///
/// # Errors
///
/// With all that is wrong with that, or with the whole because of it. What is said stands nowhere: lines and columns mean nothing.
pub fn amend(config: &Config, place: usize, said: &Json) -> Result<Config, ConfigError> {
    let Some(before) = config.services.get(place) else { return Ok(config.clone()) };
    let stays = |key: &str, word: &str| said[key] == word;
    if !stays("name", &before.name) || !stays("protocol", super::protocol_word(before.protocol)) {
        // Others may name it: they are to be looked at as well.
        let mut document = show(config);
        document["services"][place] = said.clone();
        return parse(&written_of(document), "");
    }
    let invalid = |problems| ConfigError::Invalid { name: String::new(), problems };
    let tree = tree::grow(&said.to_string()).map_err(|problem| invalid(vec![problem]))?;
    let mut problems = Problems::default();
    let read = service::amended(&config.services, place, &tree, &config.switches, &mut problems);
    let mut amended = config.clone();
    match read {
        Some(service) if problems.0.is_empty() => amended.services[place] = Arc::new(service),
        _ => return Err(invalid(problems.0)),
    }
    let no_room = |(key, what)| Problem { at: Position::START, path: format!("maps.{key}"), what };
    let no_room: Vec<Problem> = maps::too_small(&amended).map(no_room).collect();
    if no_room.is_empty() { Ok(amended) } else { Err(invalid(no_room)) }
}

/// The configuration as a text: a line for each service, and nothing of what is not said. It can be read back.
pub fn written(config: &Config) -> String {
    written_of(show(config))
}

fn written_of(document: Json) -> String {
    let Json::Object(keys) = bare(document) else { return String::new() };
    let mut text = String::new();
    for (key, value) in &keys {
        text.push_str(if text.is_empty() { "{" } else { "," });
        let _ = match value {
            Json::Array(items) if !items.is_empty() => {
                let lines: Vec<String> = items.iter().map(Json::to_string).collect();
                write!(text, "\n\"{key}\": [\n{}\n]", lines.join(",\n"))
            }
            value => write!(text, "\n\"{key}\": {value}"),
        };
    }
    text.push_str("\n}\n");
    text
}

/// Without keys that say nothing.
fn bare(value: Json) -> Json {
    match value {
        Json::Object(keys) => {
            keys.into_iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (key, bare(value))).collect()
        }
        Json::Array(items) => items.into_iter().map(bare).collect(),
        value => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file;

    const TEXT: &str = "switches: {sale: off}
maps: {endpoints: 4}
services:
  - {name: a, address: 10.0.0.1:80, protocol: http, endpoints: ['10.1.0.1:80'], breaker: hystrix, fallback: {to: b}}
  - {name: b, address: 10.0.0.2:80, protocol: http, endpoints: ['10.1.0.1:80', '10.1.0.2:80']}
  - {name: c, address: 10.0.0.3:80, protocol: tcp, endpoints: ['10.1.0.3:80']}
";

    fn amended(place: usize, key: &str, said: &str) -> Result<Config, String> {
        let config = file::parse(TEXT, "F").expect("a good file");
        let mut service = file::show_service(&config.services[place]);
        service[key] = serde_json::from_str(said).expect("JSON");
        let amended = amend(&config, place, &service);
        // What one service means is what the whole does when all of it is read.
        let mut document = show(&config);
        document["services"][place] = service;
        match (&amended, parse(&document.to_string(), "")) {
            (Ok(amended), Ok(whole)) => assert_eq!(*amended, whole),
            (Err(_), Err(_)) => {}
            (amended, whole) => panic!("{amended:?} and {whole:?}"),
        }
        amended.map_err(|error| error.to_string())
    }

    #[test]
    fn one_service_changes_and_the_others_are_the_very_same() {
        let before = file::parse(TEXT, "F").expect("a good file");
        let after = amend(&before, 1, &{
            let mut service = file::show_service(&before.services[1]);
            service["endpoints"][0]["weight"] = 7.into();
            service
        });
        let after = after.expect("good");
        let same: Vec<bool> = before.services.iter().zip(&after.services).map(|(a, b)| Arc::ptr_eq(a, b)).collect();
        assert_eq!((same, after.services[1].endpoints[0].weight), (vec![true, false, true], 7));
        assert!(amended(0, "degrade", r#"{"switch": "sale", "respond": {}}"#).is_ok());
        assert!(amended(2, "name", r#""d""#).is_ok(), "a new name, as the whole");
    }

    #[test]
    fn what_cannot_be_beside_the_others_is_found() {
        for (place, key, said, expected) in [
            (1, "connect_timeout_ms", "0", "services[1].connect_timeout_ms: 0 is out of range"),
            (1, "breke", "0", "services[1].breke: unknown key"),
            (1, "address", r#""10.0.0.1:80""#, "services[1].address: 10.0.0.1:80 is also the address"),
            (1, "address", r#""10.1.0.3:80""#, "services[2].endpoints[0].address: is the address of the service \"b\""),
            (0, "fallback", r#"{"to": "z"}"#, "services[0].fallback.to: \"z\" is no service"),
            (0, "fallback", r#"{"to": "c"}"#, "services[0].fallback.to: \"c\" is a service that does not speak HTTP"),
            (0, "degrade", r#"{"switch": "z", "respond": {}}"#, "\"z\" is none of the file's switches"),
            (0, "endpoints", r#"["10.1.0.1:80", "10.1.0.1:80"]"#, "10.1.0.1:80 is listed twice"),
            (0, "endpoints", r#"["10.0.0.2:80"]"#, "is the address of the service \"b\""),
            (0, "endpoints", r#"["10.1.0.1:80", "10.1.0.2:80"]"#, "maps.endpoints: is room for 4, and the file has 5"),
            (1, "name", r#""z""#, "services[0].fallback.to: \"b\" is no service"),
            (1, "name", r#""a""#, "\"a\" is also the name of the service"),
            (1, "protocol", r#""tcp""#, "services[0].fallback.to: \"b\" is a service that does not speak HTTP"),
        ] {
            let found = amended(place, key, said).expect_err(said);
            assert!(found.contains(expected), "{key}: {said}: {found}");
        }
    }

    #[test]
    fn what_is_written_is_a_line_for_each_service_and_is_read_back() {
        let config = file::parse(TEXT, "F").expect("a good file");
        let text = written(&config);
        assert_eq!(file::parse(&text, "written").expect("it can be read"), config, "{text}");
        assert_eq!(text.lines().filter(|line| line.starts_with("{\"")).count(), 3, "{text}");
        assert!(!text.contains("null"), "{text}");
    }
}
