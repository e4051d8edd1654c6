//! How a file says what is done with the content of answers: `cache` and `compress`.

use std::time::Duration;

use serde_json::{Value as Json, json};

use super::super::{
    SWITCHES,
    capture::each,
    milliseconds,
    section::{Field, Problems, Section, shown},
    show::{milliseconds as shown_ms, word},
};
use crate::config::filter::content::{Cache, Coding, Compress};

const BYTES: u32 = 64 << 20;
const ENTRY_BYTES: u32 = 1 << 20;
const BYTES_MAX: u32 = u32::MAX;
const HEURISTIC_MAX_S: u32 = 86_400; // RFC 9111 section 4.2.2 wants more to be said of what is older
const STALE_S_MAX: u32 = 31_536_000;
const WAIT_MS: u32 = 5_000; // nginx's proxy_cache_lock_timeout
const WAIT_MS_MAX: u32 = 3_600_000;
const COMPRESSED_BYTES_MIN: u32 = 1_024; // below a packet little is gained
/// What Envoy compresses by default, and what else is text.
const TYPES: [&str; 9] = [
    "text/*",
    "application/json",
    "application/javascript",
    "application/xml",
    "application/xhtml+xml",
    "application/wasm",
    "application/problem+json",
    "image/svg+xml",
    "font/ttf",
];

pub(super) const CACHE: &[&str] = &[
    "bytes_max",
    "entry_bytes_max",
    "heuristic_percent",
    "heuristic_max_s",
    "stale_if_error_s",
    "stale_while_revalidate_s",
    "wait_ms",
    "respond",
];
pub(super) const COMPRESS: &[&str] = &["codings", "level", "bytes_min", "types"];

pub(super) fn cache(section: &Section<'_>, problems: &mut Problems) -> Option<Cache> {
    let mut number =
        |key, default: u32, most| section.or(key, || default, |field, p| field.integer(0..=most, p), problems);
    let bytes = number("bytes_max", BYTES, BYTES_MAX);
    let entry = number("entry_bytes_max", ENTRY_BYTES.min(bytes.unwrap_or(ENTRY_BYTES)), BYTES_MAX);
    let percent = number("heuristic_percent", 0, 100);
    let heuristic = number("heuristic_max_s", HEURISTIC_MAX_S, STALE_S_MAX);
    let if_error = number("stale_if_error_s", 0, STALE_S_MAX);
    let while_revalidate = number("stale_while_revalidate_s", 0, STALE_S_MAX);
    let wait = number("wait_ms", WAIT_MS, WAIT_MS_MAX);
    let responds = section.or("respond", || true, |field, p| field.choice(&SWITCHES, p), problems);
    if let (Some(bytes), Some(entry), Some(field)) = (bytes, entry, section.get("entry_bytes_max"))
        && entry > bytes
    {
        field.refuse(format!("is more than bytes_max, {bytes}; write less, or more there"), problems);
    }
    let seconds = |seconds: u32| Duration::from_secs(seconds.into());
    Some(Cache {
        bytes_max: bytes?.into(),
        entry_bytes_max: entry?.into(),
        heuristic_percent: percent?,
        heuristic_max: seconds(heuristic?),
        stale_if_error: seconds(if_error?),
        stale_while_revalidate: seconds(while_revalidate?),
        wait: milliseconds(wait?),
        responds: responds?,
    })
}

pub(super) fn compress(section: &Section<'_>, problems: &mut Problems) -> Option<Compress> {
    let all = || Coding::NAMES.map(|(_, coding)| coding).to_vec();
    let codings = section.or("codings", all, codings, problems);
    let level = section.or("level", || None, |field, p| field.integer(0..=22, p).map(Some), problems);
    let bytes = section.or("bytes_min", || COMPRESSED_BYTES_MIN, |field, p| field.integer(0..=BYTES_MAX, p), problems);
    let usual = || TYPES.map(str::to_owned).to_vec();
    let types = section.or("types", usual, |field, p| each(field, p, media_type), problems);
    let (codings, level) = (codings?, level?);
    for coding in &codings {
        let (least, most) = coding.levels();
        if let (Some(level), Some(field)) = (level, section.get("level"))
            && !(least..=most).contains(&level)
        {
            field.refuse(format!("{} has levels from {least} to {most}; write one of them", coding.name()), problems);
        }
    }
    Some(Compress { codings, level, bytes_min: bytes?.into(), types: types? })
}

fn codings(field: &Field<'_>, problems: &mut Problems) -> Option<Vec<Coding>> {
    let codings: Vec<Coding> = each(field, problems, |field, p| field.choice(&Coding::NAMES, p))?;
    if codings.is_empty() {
        field.refuse("compresses nothing; write [zstd, br, gzip] or some of them", problems);
        return None;
    }
    if let Some((_, twice)) = codings.iter().enumerate().find(|(at, coding)| codings[..*at].contains(coding)) {
        field.refuse(format!("{} stands twice; write it once", twice.name()), problems);
    }
    Some(codings)
}

fn media_type(field: &Field<'_>, problems: &mut Problems) -> Option<String> {
    let text = field.text(problems)?.to_ascii_lowercase();
    let is_token = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$&-^_.+*".contains(&byte))
    };
    if !text.split_once('/').is_some_and(|(kind, name)| is_token(kind) && kind != "*" && is_token(name)) {
        let what = format!("\"{}\" is no media type; write text/html, or text/* for all of its kind", shown(&text));
        field.refuse(what, problems);
        return None;
    }
    Some(text)
}

pub(super) fn show_cache(cache: &Cache) -> Json {
    json!({
        "bytes_max": cache.bytes_max,
        "entry_bytes_max": cache.entry_bytes_max,
        "heuristic_percent": cache.heuristic_percent,
        "heuristic_max_s": cache.heuristic_max.as_secs(),
        "stale_if_error_s": cache.stale_if_error.as_secs(),
        "stale_while_revalidate_s": cache.stale_while_revalidate.as_secs(),
        "wait_ms": shown_ms(cache.wait),
        "respond": word(&SWITCHES, cache.responds),
    })
}

pub(super) fn show_compress(compress: &Compress) -> Json {
    json!({
        "codings": compress.codings.iter().map(|coding| coding.name()).collect::<Vec<_>>(),
        "level": compress.level,
        "bytes_min": compress.bytes_min,
        "types": compress.types,
    })
}
