//! YAML text -> a tree of values that know where they stand, so that every problem of a file can be found and placed, not only the first.
//!
//! Bounded whatever the text says: bytes, nodes, depth and what aliases may unfold.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::{Error, Spanned, UserMessageFormatter, budget::BudgetBreach, options::AliasLimits};

use super::section::{Position, Problem};

/// Bytes of a file: ten thousand services of ten endpoints, generously written, take a quarter of it.
pub(super) const BYTES_MAX: usize = 32 << 20;
/// Values in a file: as above, four times over. Also the most that aliases may unfold to.
const NODES_MAX: usize = 4_000_000;
/// What aliases may unfold to however short the file is, and for each of its bytes: a service that says nothing but its name, addresses and
/// three aliases of fifty values each has 100 bytes. What grows faster is aliases of aliases, which no configuration needs.
const UNFOLDED_LEAST: usize = 10_000;
const UNFOLDED_PER_BYTE: usize = 4;
/// A configuration is six deep; the rest is for mistakes that deserve a better message than "too deep".
const DEPTH_MAX: usize = 32;

/// A value and the place where it is written; for an alias, where it is used.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) at: Position,
    pub(super) value: Value,
}

/// What YAML 1.2 makes of a node.
#[derive(Debug)]
pub(super) enum Value {
    Null,
    Bool,
    Integer(i128),
    Fraction,
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A key of a mapping.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) at: Position,
    pub(super) text: String,
}

impl Value {
    /// What this is, for "expected …, found …".
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Value::Null => "nothing",
            Value::Bool => "true or false",
            Value::Integer(_) => "a number",
            Value::Fraction => "a number with a fraction, or too many digits",
            Value::Text(_) => "a text",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }
}

/// Reads one YAML document; an empty text is [`Value::Null`].
pub(super) fn grow(text: &str) -> Result<Node, Problem> {
    if text.len() > BYTES_MAX {
        let what =
            format!("has {} bytes; the limit is {BYTES_MAX}: split the services over several agents", text.len());
        return Err(Problem { at: Position::START, path: String::new(), what });
    }
    let unfolded_max = (UNFOLDED_LEAST + UNFOLDED_PER_BYTE * text.len()).min(NODES_MAX);
    let budget = serde_saphyr::budget! {
        max_events: 2 * NODES_MAX,
        max_nodes: NODES_MAX,
        max_depth: DEPTH_MAX,
        max_documents: 1,
        max_total_scalar_bytes: BYTES_MAX,
        max_recorded_anchor_events: unfolded_max,
        enforce_alias_anchor_ratio: false, // many services may share one thing
    };
    let mut alias_limits = AliasLimits::default();
    alias_limits.max_total_replayed_events = unfolded_max;
    let options = serde_saphyr::options! {
        budget: budget,
        alias_limits: alias_limits,
        strict_booleans: true, // YAML 1.2: `shortcut: on` is a text
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options::<Node>(text, options).map_err(|error| unreadable(&error, text))
}

fn unreadable(error: &serde_saphyr::Error, text: &str) -> Problem {
    let at = error.location().map_or(Position::START, Position::from);
    if unfolds_too_far(error) {
        let what =
            "aliases (*NAME) unfold to more values than a file of this length may have; write out what they stand for";
        return Problem { at, path: String::new(), what: what.to_owned() };
    }
    let mut what = error.render_with_formatter(&UserMessageFormatter).replace('\n', " ");
    if let Some(end) = what.find(" at line ") {
        what.truncate(end); // the place stands before the message already
    }
    let line = text.lines().nth(at.line.saturating_sub(1) as usize).unwrap_or_default();
    if line.contains("]:") {
        what.push_str("; an IPv6 address must be in quotes: \"[::1]:80\"");
    }
    Problem { at, path: String::new(), what }
}

fn unfolds_too_far(error: &Error) -> bool {
    match error {
        Error::AliasReplayLimitExceeded { .. } | Error::AliasReplayStackDepthExceeded { .. } => true,
        Error::Budget { breach, .. } => {
            matches!(breach, BudgetBreach::RecordedAnchorEvents { .. } | BudgetBreach::RecordedAnchorBytes { .. })
        }
        Error::AliasError { error, .. } | Error::WithSnippet { error, .. } => unfolds_too_far(error),
        _ => false,
    }
}

impl From<serde_saphyr::Location> for Position {
    fn from(location: serde_saphyr::Location) -> Self {
        Position { line: location.line().max(1), column: location.column().max(1) }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Node { at: spanned.referenced.into(), value: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Value, E> {
        Ok(Value::Bool)
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Value, E> {
        Ok(Value::Fraction)
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Vec::new();
        while let Some(key) = entries.next_key::<Spanned<String>>()? {
            let key = Key { at: key.referenced.into(), text: key.value };
            map.push((key, entries.next_value()?));
        }
        Ok(Value::Map(map))
    }
}
