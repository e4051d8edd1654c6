//! What became of requests in each phase of a drill: availability and latency of the agent, and everything about the service that moved:
//! limits, breakers, retries, endpoints.

use std::{fmt::Write as _, time::Duration};

use serde_json::{Value, json};

use super::{super::table, sample::Sample};

/// Outcomes of requests that are good ones: answered, and with neither kind of error. What was refused or broke off is none.
const GOOD: [&str; 4] = ["2xx", "3xx", "upgraded", "answered_by_route"];
const DURATION: &str = "sockway_request_duration_seconds_bucket";

/// What was measured from its beginning to its end.
#[derive(Debug)]
pub struct Phase {
    /// What it is called.
    pub name: String,
    /// How long it took.
    pub period: Duration,
    /// At its beginning.
    pub first: Sample,
    /// At its end.
    pub last: Sample,
}

/// What became of requests in one phase.
#[derive(Debug, PartialEq)]
pub struct Told {
    name: String,
    seconds: f64,
    requests: f64,
    good_percent: Option<f64>,
    p50_ms_max: Option<f64>,
    p99_ms_max: Option<f64>,
    /// Series of the service that are other than before, and by how much.
    moved: Vec<(String, f64)>,
}

/// What the phases tell of the service.
pub fn report(service: &str, phases: &[Phase]) -> Vec<Told> {
    phases.iter().map(|phase| told(service, phase)).collect()
}

fn told(service: &str, phase: &Phase) -> Told {
    let (first, last) = (&phase.first, &phase.last);
    let outcomes = last
        .of("sockway_requests_total")
        .map(|(labels, value)| (labels, value - first.get(&format!("sockway_requests_total{{{labels}}}"))));
    let outcomes: Vec<(&str, f64)> = outcomes.collect();
    let requests: f64 = outcomes.iter().map(|(_, count)| count).sum();
    let is_good = |labels: &str| GOOD.iter().any(|word| labels == format!("outcome=\"{word}\""));
    let good: f64 = outcomes.iter().filter(|(labels, _)| is_good(labels)).map(|(_, count)| count).sum();
    let label = format!("service=\"{service}\"");
    let moved = last.with_label(&label).filter_map(|(series, value)| {
        let by = value - first.get(series);
        let said = series.strip_prefix("sockway_")?;
        (by.abs() > f64::EPSILON && !said.starts_with("kernel_")).then(|| (said.to_owned(), by))
    });
    Told {
        name: phase.name.clone(),
        seconds: phase.period.as_secs_f64(),
        requests,
        good_percent: (requests > 0.0).then(|| 100.0 * good / requests),
        p50_ms_max: percentile(first, last, 0.50),
        p99_ms_max: percentile(first, last, 0.99),
        moved: moved.collect(),
    }
}

/// The upper bound, in milliseconds, of the bucket that holds this part of the requests; infinite above the last; `None`: there were none.
fn percentile(first: &Sample, last: &Sample, part: f64) -> Option<f64> {
    let bucket = |(labels, value): (&str, f64)| {
        let bound = labels.strip_prefix("le=\"")?.strip_suffix('"')?;
        let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().ok()? };
        Some((bound, value - first.get(&format!("{DURATION}{{{labels}}}"))))
    };
    let mut buckets: Vec<(f64, f64)> = last.of(DURATION).filter_map(bucket).collect();
    buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
    let all = buckets.last()?.1;
    let found = buckets.iter().find(|(_, below)| *below >= all * part)?;
    (all > 0.0).then_some(found.0 * 1e3)
}

/// As a table, and what moved in each phase.
pub fn tell(phases: &[Told]) -> String {
    let number = |value: Option<f64>, unit: &str| match value {
        None => "-".to_owned(),
        Some(value) if value.is_infinite() => "more".to_owned(),
        Some(value) => format!("{value:.2}{unit}"),
    };
    let row = |told: &Told| {
        let counts = [told.seconds, told.requests].map(|value| format!("{value:.0}"));
        let rate = format!("{:.1}", told.requests / told.seconds.max(f64::MIN_POSITIVE));
        let latency = [told.p50_ms_max, told.p99_ms_max].map(|value| number(value, " ms"));
        [told.name.clone()]
            .into_iter()
            .chain(counts)
            .chain([rate, number(told.good_percent, " %")])
            .chain(latency)
            .collect()
    };
    let heading =
        ["PHASE", "SECONDS", "REQUESTS", "PER SECOND", "GOOD", "P50 <=", "P99 <="].map(str::to_owned).to_vec();
    let rows: Vec<Vec<String>> = [heading].into_iter().chain(phases.iter().map(row)).collect();
    let mut text = table(&rows);
    for told in phases.iter().filter(|told| !told.moved.is_empty()) {
        let _ = writeln!(text, "\n{}", told.name);
        for (series, by) in &told.moved {
            let _ = writeln!(text, "  {by:+} {series}");
        }
    }
    text
}

/// The same for programs.
pub fn json(phases: &[Told]) -> Value {
    let phase = |told: &Told| {
        let moved = told.moved.iter().map(|(series, by)| (series.clone(), json!(by)));
        json!({
            "phase": told.name,
            "seconds": told.seconds,
            "requests": told.requests,
            "good_percent": told.good_percent,
            "p50_ms_max": told.p50_ms_max,
            "p99_ms_max": told.p99_ms_max,
            "moved": moved.collect::<serde_json::Map<String, Value>>(),
        })
    };
    phases.iter().map(phase).collect::<Vec<Value>>().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scrape(good: u32, bad: u32, fast: u32, refused: u32) -> Sample {
        let (all, below) = (good + bad, fast);
        Sample::parse(&format!(
            "sockway_requests_total{{outcome=\"2xx\"}} {good}\nsockway_requests_total{{outcome=\"5xx\"}} {bad}\n\
             sockway_request_duration_seconds_bucket{{le=\"0.001\"}} {below}\n\
             sockway_request_duration_seconds_bucket{{le=\"0.5\"}} {all}\n\
             sockway_request_duration_seconds_bucket{{le=\"+Inf\"}} {all}\n\
             sockway_request_limit_decisions_total{{service=\"a\",limit=\"x\",decision=\"refused\"}} {refused}\n\
             sockway_request_limit_decisions_total{{service=\"ab\",limit=\"x\",decision=\"refused\"}} {refused}\n\
             sockway_endpoint_up{{service=\"a\",endpoint=\"y\"}} 1\n"
        ))
    }

    #[test]
    fn each_phase_tells_what_became_of_its_own_requests() {
        let phase =
            |name: &str, first, last| Phase { name: name.to_owned(), period: Duration::from_secs(2), first, last };
        let told = report(
            "a",
            &[
                phase("before", scrape(100, 0, 100, 5), scrape(200, 0, 200, 5)),
                phase("broken", scrape(200, 0, 200, 5), scrape(250, 50, 250, 12)),
                phase("idle", scrape(250, 50, 250, 12), scrape(250, 50, 250, 12)),
            ],
        );
        assert_eq!((told[0].requests, told[0].good_percent, told[0].p99_ms_max), (100.0, Some(100.0), Some(1.0)));
        assert_eq!((told[1].requests, told[1].good_percent), (100.0, Some(50.0)));
        assert_eq!((told[1].p50_ms_max, told[1].p99_ms_max), (Some(1.0), Some(500.0)));
        let series = "request_limit_decisions_total{service=\"a\",limit=\"x\",decision=\"refused\"}";
        assert_eq!((&told[0].moved, &told[1].moved), (&vec![], &vec![(series.to_owned(), 7.0)]));
        assert_eq!((told[2].requests, told[2].good_percent, told[2].p50_ms_max), (0.0, None, None));
        let text = tell(&told);
        assert!(text.contains("broken  2        100       50.0        50.00 %   1.00 ms  500.00 ms"), "{text}");
        assert!(text.contains(&format!("\nbroken\n  +7 {series}\n")), "{text}");
    }
}
