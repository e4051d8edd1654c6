//! What a service says without saying it: its key `preset`. A preset is keys and values as a file has them; what the service says itself
//! stays, key by key.

#[cfg(test)]
mod tests;

use super::{
    section::{Position, Problems, Section},
    tree::{self, Key, Node, Value},
};

/// The numbers of the sources, all of those that are of requests: a hundred a second on the average of a minute; a token each 500 ms, of
/// which a hundred are kept and none is there at first, and which a request waits for as long as it may in a queue; that queue; Hystrix's
/// numbers with the cool-down of 500 ms that the sources take for its own.
const TEXTBOOK: &str = "
request_limits:
- {name: average, kind: window_average, limit: 100, window_ms: 60000}
- {name: tokens, kind: token_bucket, limit: 1, window_ms: 500, burst: 100, starts: empty, on_limit: {wait: {max_ms: 3000}}}
pending: on
breaker: textbook
isolation: textbook
";
/// The weight of an endpoint of which none is said, or 0, with that preset.
pub(super) const TEXTBOOK_WEIGHT: u32 = 100;

const PRESETS: [(&str, &str); 1] = [("textbook", TEXTBOOK)];

/// The keys that a service's preset says, with the place of the key `preset`; `None` without one.
pub(super) fn entries(section: &Section<'_>, problems: &mut Problems) -> Option<Vec<(Key, Node)>> {
    let field = section.get("preset")?;
    let text = field.choice(&PRESETS, problems)?;
    let says = |key, words: &[&str]| {
        section.get(key).is_some_and(|field| matches!(&field.node.value, Value::Text(text) if words.contains(&&**text)))
    };
    if says("protocol", &["tcp", "udp"]) || says("mode", &["kernel"]) {
        let what = "is about requests, and those of this service are not seen by the agent; write protocol: http or http2, \
                    or remove it";
        field.refuse(what, problems);
        return None;
    }
    let mut tree = tree::grow(text).ok()?;
    place(&mut tree, field.node.at);
    match tree.value {
        Value::Map(entries) => Some(entries),
        _ => None,
    }
}

/// Whoever asks where it stands is told where the preset is named.
fn place(node: &mut Node, at: Position) {
    node.at = at;
    match &mut node.value {
        Value::List(items) => items.iter_mut().for_each(|item| place(item, at)),
        Value::Map(entries) => {
            for (key, value) in entries {
                key.at = at;
                place(value, at);
            }
        }
        _ => {}
    }
}
