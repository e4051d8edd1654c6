//! Copies of a route's requests: its key `mirror`.

use serde_json::{Value, json};

use super::{
    super::section::{Field, Position, Problems, Section},
    TARGET_KEYS, target,
};
use crate::config::route::Mirror;

/// As much as is held of a body to be sent again.
const BODY_BYTES: u32 = 64 * 1024;
/// What all copies under way of a route hold together is bounded by this, times how many there may be.
const BODY_BYTES_MAX: u32 = 1 << 20;

pub(super) fn mirror(
    field: &Field<'_>,
    named: &mut Vec<(Position, String, String)>,
    problems: &mut Problems,
) -> Option<Mirror> {
    let keys = [&TARGET_KEYS[..], &["percent", "body_bytes_max"]].concat();
    let section = Section::open(field.node, &field.path, &keys, problems)?;
    if section.get("to").or(section.get("subset")).is_none() {
        field.refuse("says nobody who gets the copies; write to: SERVICE, or subset: {LABEL: VALUE}", problems);
    }
    let target = target(&section, 1, named, problems);
    let percent = section.or("percent", || 100, |field, p| field.integer(0..=100, p), problems);
    let bytes = section.or("body_bytes_max", || BODY_BYTES, |field, p| field.integer(0..=BODY_BYTES_MAX, p), problems);
    Some(Mirror { target: target?, percent: percent?, body_bytes_max: bytes? as usize })
}

/// As it would be written.
pub(super) fn show(mirror: &Mirror) -> Value {
    let mut shown = super::show::target(&mirror.target);
    shown.insert("percent".into(), json!(mirror.percent));
    shown.insert("body_bytes_max".into(), json!(mirror.body_bytes_max));
    shown.into()
}
