//! The algorithms of `request_limits`, and what each needs to know.

use std::time::Duration;

use serde_json::{Value as Json, json};

use super::super::{
    calendar, milliseconds,
    section::{Field, Problems, Section},
};
use crate::config::{
    request_limit::{Admission, COUNT_MAX, Gradient, Kind},
    zone::Zone,
};

const WINDOW_MS: u32 = 1_000;
const TIME_MS_MAX: u32 = 86_400_000;
const FULL_S_MAX: u64 = 31_536_000; // a bucket that takes longer than a year to fill is a mistake
const PERIOD_S: u32 = 10; // Sentinel's warmUpPeriodSec
const PERIOD_S_MAX: u32 = 3_600;
const COLD_FACTOR: u32 = 3; // Sentinel's
const COLD_FACTOR_MAX: u32 = 100;
const STRETCHES: u32 = 10;
const BBR_STRETCHES: u32 = 100; // aegis'

const STARTS: [(&str, bool); 2] = [("full", false), ("empty", true)];

/// What each needs beside what all do.
pub(super) const KINDS: [(&str, &[&str]); 11] = [
    ("token_bucket", &["limit", "by", "keys_max", "headers", "window_ms", "burst", "fill", "starts"]),
    ("leaky_bucket", &["limit", "by", "keys_max", "headers", "window_ms", "queue"]),
    ("fixed_window", &["limit", "by", "keys_max", "headers", "window_ms", "aligned"]),
    ("sliding_window", &["limit", "by", "keys_max", "headers", "window_ms"]),
    ("window_average", &["limit", "by", "keys_max", "headers", "window_ms"]),
    ("concurrency", &["limit", "by", "keys_max", "headers"]),
    ("warm_up", &["limit", "by", "keys_max", "headers", "period_s", "cold_factor"]),
    (
        "gradient",
        &[
            "min",
            "max",
            "window_ms",
            "percentile",
            "buffer_percent",
            "min_rtt_requests",
            "min_rtt_interval_ms",
            "jitter_percent",
        ],
    ),
    ("bbr", &["window_ms", "cpu_percent", "cgroup"]),
    ("admission", &["window_ms", "success_percent", "aggression", "reject_percent_max", "requests_min"]),
    ("client_throttling", &["window_ms", "success_percent", "reject_percent_max", "requests_min"]),
];

/// Reads what the algorithm of this name needs.
pub(super) fn read(word: &str, section: &Section<'_>, zone: Zone, problems: &mut Problems) -> Option<Kind> {
    let mut number = |key: &'static str, default: u32, least: u32, most: u32| {
        section.or(key, || default, |field, p| field.integer(least..=most, p), problems)
    };
    match word {
        "gradient" => {
            let least = number("min", 3, 1, COUNT_MAX)?;
            Some(Kind::Gradient(Gradient {
                least,
                most: number("max", least.max(1_000), least, COUNT_MAX)?,
                window: milliseconds(number("window_ms", 100, 1, TIME_MS_MAX)?),
                percentile: number("percentile", 50, 1, 100)?,
                buffer_percent: number("buffer_percent", 25, 0, 10_000)?,
                measured_requests: number("min_rtt_requests", 50, 1, COUNT_MAX)?,
                measured_interval: milliseconds(number("min_rtt_interval_ms", 60_000, 1, TIME_MS_MAX)?),
                jitter_percent: number("jitter_percent", 15, 0, 100)?,
            }))
        }
        "bbr" => Some(Kind::Bbr {
            window: milliseconds(number("window_ms", 10_000, BBR_STRETCHES, TIME_MS_MAX)?),
            stretches: BBR_STRETCHES,
            busy_percent: number("cpu_percent", 80, 0, 100)?,
        }),
        "admission" | "client_throttling" => {
            let throttles = word == "client_throttling";
            let or = |admission, throttling| if throttles { throttling } else { admission };
            let rules = Admission {
                window: milliseconds(number("window_ms", or(30_000, 3_000), STRETCHES, TIME_MS_MAX)?),
                success_percent: number("success_percent", or(95, 60), 1, 100)?,
                aggression: number("aggression", 1, 1, 100)?,
                refused_percent_max: number("reject_percent_max", or(80, 100), 0, 100)?,
                requests_min: number("requests_min", or(0, 100), 0, COUNT_MAX)?,
                counts_refused: throttles,
            };
            Some(Kind::Admission { rules, stretches: STRETCHES })
        }
        _ => counting(word, section, zone, problems),
    }
}

fn counting(word: &str, section: &Section<'_>, zone: Zone, problems: &mut Problems) -> Option<Kind> {
    let aligned = |field: &Field<'_>, p: &mut Problems| field.choice(&calendar::WINDOWS, p).map(Some);
    let aligned = section.or("aligned", || None, aligned, problems)?;
    if let (Some(_), Some(field)) = (aligned, section.get("window_ms")) {
        field.refuse("follows from aligned; remove it", problems);
    }
    let remedy = "write how many requests may pass";
    let limit_field = section.require("limit", remedy, problems)?;
    let limit = limit_field.integer(1..=COUNT_MAX, problems)?;
    let mut number =
        |key, default: u32, range| section.or(key, || default, |field, p| field.integer(range, p), problems);
    let window = number("window_ms", WINDOW_MS, 1..=TIME_MS_MAX).map(milliseconds)?;
    Some(match word {
        "token_bucket" => {
            let burst = number("burst", limit, 1..=COUNT_MAX)?;
            let fill = number("fill", 1, 1..=COUNT_MAX)?;
            let starts_empty = section.or("starts", || false, |field, p| field.choice(&STARTS, p), problems)?;
            let full_s = window.as_secs_f64() * f64::from(burst.max(fill)) / f64::from(limit);
            if full_s > FULL_S_MAX as f64 {
                limit_field
                    .refuse("takes more than a year to fill the bucket; write more, or a smaller burst", problems);
                return None;
            }
            Kind::TokenBucket { limit, window, burst, fill, starts_empty }
        }
        "leaky_bucket" => Kind::LeakyBucket { limit, window, queue: number("queue", 0, 0..=COUNT_MAX)? },
        "fixed_window" => match aligned {
            None => Kind::FixedWindow { limit, window, aligned: None },
            Some(window_s) => {
                let window = Duration::from_secs(window_s.into());
                Kind::FixedWindow { limit, window, aligned: Some(zone) }
            }
        },
        "sliding_window" => Kind::SlidingWindow { limit, window },
        "window_average" => {
            let all = u128::from(limit) * window.as_millis() / 1_000;
            match u32::try_from(all) {
                Ok(limit @ 1..=COUNT_MAX) => Kind::SlidingWindow { limit, window },
                _ => {
                    let what =
                        format!("{limit} a second make {all} in a window; write from 1 to {COUNT_MAX} in a window");
                    limit_field.refuse(what, problems);
                    return None;
                }
            }
        }
        "concurrency" => Kind::Concurrency { limit },
        _ => {
            let period_s = number("period_s", PERIOD_S, 1..=PERIOD_S_MAX)?;
            let cold_factor = number("cold_factor", COLD_FACTOR, 2..=COLD_FACTOR_MAX)?;
            if u64::from(limit) * u64::from(period_s) * 2 > u64::from(COUNT_MAX) {
                let most = COUNT_MAX / period_s / 2;
                limit_field.refuse(format!("is too much to warm up in {period_s} s; write up to {most}"), problems);
                return None;
            }
            Kind::WarmUp { limit, period_s, cold_factor }
        }
    })
}

/// As it would be written.
pub(super) fn show(kind: &Kind) -> Json {
    let milliseconds = |time: Duration| time.as_millis() as u64;
    match *kind {
        Kind::TokenBucket { limit, window, burst, fill, starts_empty } => {
            let starts = if starts_empty { "empty" } else { "full" };
            json!({ "kind": "token_bucket", "limit": limit, "window_ms": milliseconds(window), "burst": burst, "fill": fill, "starts": starts })
        }
        Kind::LeakyBucket { limit, window, queue } => {
            json!({ "kind": "leaky_bucket", "limit": limit, "window_ms": milliseconds(window), "queue": queue })
        }
        Kind::FixedWindow { limit, window, aligned: Some(_) } => {
            let word = calendar::WINDOWS.iter().find(|(_, of_s)| window.as_secs() == u64::from(*of_s));
            json!({ "kind": "fixed_window", "limit": limit, "aligned": word.map(|(word, _)| word) })
        }
        Kind::FixedWindow { limit, window, aligned: None } => {
            json!({ "kind": "fixed_window", "limit": limit, "window_ms": milliseconds(window) })
        }
        Kind::SlidingWindow { limit, window } => {
            json!({ "kind": "sliding_window", "limit": limit, "window_ms": milliseconds(window) })
        }
        Kind::Concurrency { limit } => json!({ "kind": "concurrency", "limit": limit }),
        Kind::WarmUp { limit, period_s, cold_factor } => {
            json!({ "kind": "warm_up", "limit": limit, "period_s": period_s, "cold_factor": cold_factor })
        }
        Kind::Gradient(rules) => json!({
            "kind": "gradient",
            "min": rules.least,
            "max": rules.most,
            "window_ms": milliseconds(rules.window),
            "percentile": rules.percentile,
            "buffer_percent": rules.buffer_percent,
            "min_rtt_requests": rules.measured_requests,
            "min_rtt_interval_ms": milliseconds(rules.measured_interval),
            "jitter_percent": rules.jitter_percent,
        }),
        Kind::Bbr { window, busy_percent, .. } => {
            json!({ "kind": "bbr", "window_ms": milliseconds(window), "cpu_percent": busy_percent })
        }
        Kind::Admission { rules, .. } => {
            let mut shown = json!({
                "kind": if rules.counts_refused { "client_throttling" } else { "admission" },
                "window_ms": milliseconds(rules.window),
                "success_percent": rules.success_percent,
                "reject_percent_max": rules.refused_percent_max,
                "requests_min": rules.requests_min,
            });
            if !rules.counts_refused {
                shown["aggression"] = json!(rules.aggression);
            }
            shown
        }
    }
}
