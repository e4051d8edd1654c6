//! What a run says: progress while it lasts, a table for each scenario and placement, the goals, and JSON lines.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufWriter, Write},
    path::Path,
};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::{
    goal::Goal,
    host::Host,
    interrupt,
    sample::{Compare, Figure, Placement, Sample, Samples, Spread},
    scenario::Scenario,
    table::Table,
    way,
};
use crate::progress;

/// The columns of a table, in their order, as far as a scenario has them.
const COLUMNS: [(Figure, &str); 19] = [
    (Figure::Rps, "requests/s"),
    (Figure::P50, "p50 µs"),
    (Figure::P99, "p99 µs"),
    (Figure::Cpu, "CPU µs/req"),
    (Figure::MachineCpu, "machine µs/req"),
    (Figure::OwnCpu, "own µs/req"),
    (Figure::GbPerS, "GB/s"),
    (Figure::CpuPerGb, "CPU s/GB"),
    (Figure::MachineCpuPerGb, "machine s/GB"),
    (Figure::Connect, "connect() µs"),
    (Figure::Load, "load ms"),
    (Figure::Reload, "reload ms"),
    (Figure::Change, "change ms"),
    (Figure::Apply, "apply ms"),
    (Figure::Maps, "maps MB"),
    (Figure::Held, "kB/conn"),
    (Figure::HeldKernel, "kernel kB/conn"),
    (Figure::Rss, "RSS MB"),
    (Figure::Foreign, "others %"),
];
/// What Sockway is set against in the last JSON line.
const BASES: [&str; 4] = [way::DIRECT, way::NGINX, way::HAPROXY, way::ENVOY];
/// In these figures.
const COMPARED: [Figure; 10] = [
    Figure::Rps,
    Figure::P50,
    Figure::P99,
    Figure::Cpu,
    Figure::MachineCpu,
    Figure::OwnCpu,
    Figure::GbPerS,
    Figure::CpuPerGb,
    Figure::MachineCpuPerGb,
    Figure::Connect,
];
/// Other programs took more than this, in percent of one core: the round is not to be trusted.
const NOISE: f64 = 10.0;

/// The whole run.
#[derive(Debug, Default)]
pub struct Report {
    json: Option<BufWriter<File>>,
    ratios: Vec<Value>,
    goals: Vec<Value>,
    /// Something could not run.
    pub failed: bool,
    /// A goal was not reached.
    pub below: bool,
}

impl Report {
    /// With JSON lines if a file is given.
    pub fn open(json: Option<&Path>) -> Result<Self> {
        let open = |path: &Path| File::create(path).with_context(|| format!("{}", path.display()));
        Ok(Self { json: json.map(open).transpose()?.map(BufWriter::new), ..Self::default() })
    }

    /// The samples of one scenario are collected through this.
    pub fn take(&mut self, scenario: &'static str) -> Take<'_> {
        Take { report: self, scenario, samples: Samples::default(), skipped: Vec::new() }
    }

    /// The last JSON line: where this was measured, every ratio, every goal.
    pub fn close(mut self, host: &Host) -> Result<()> {
        let last = json!({
            "kernel": host.kernel, "cores": host.cores, "congestion_control": host.congestion_control, "shortcut": host.shortcut, "ratios": self.ratios, "goals": self.goals,
        });
        self.line(&last)?;
        if let Some(mut json) = self.json {
            json.flush()?;
        }
        Ok(())
    }

    fn line(&mut self, value: &Value) -> Result<()> {
        if let Some(json) = &mut self.json {
            writeln!(json, "{value}").context("writing the JSON lines")?;
        }
        Ok(())
    }
}

/// The samples of one scenario, and what came between.
#[derive(Debug)]
pub struct Take<'a> {
    report: &'a mut Report,
    scenario: &'static str,
    samples: Samples,
    skipped: Vec<String>,
}

impl Take<'_> {
    /// One more sample.
    pub fn add(&mut self, sample: Sample) -> Result<()> {
        progress::say(tell(self.scenario, &sample));
        self.report.line(&to_json(self.scenario, &sample))?;
        self.samples.0.push(sample);
        Ok(())
    }

    /// Something that is not there, and need not be.
    pub fn skip(&mut self, what: &str) {
        let what = format!("{}: skipped: {what}", self.scenario);
        if !self.skipped.contains(&what) {
            progress::say(&what);
            self.skipped.push(what);
        }
    }

    /// A way that should have worked: the run goes on without it. After Ctrl-C it does not.
    pub fn fail(&mut self, way: &str, placement: Placement, error: &anyhow::Error) -> Result<()> {
        interrupt::check()?;
        println!("{}: {way} ({}) could not run: {error:#}", self.scenario, placement.name());
        self.report.failed = true;
        Ok(())
    }

    /// The scenario broke off; what was measured until then counts.
    pub fn could_not_run(&mut self, error: &anyhow::Error) {
        println!("{}: could not run: {error:#}", self.scenario);
        self.report.failed = true;
    }

    /// The tables of this scenario and the verdicts on its goals; `judges` says which of them the user asked for.
    pub fn conclude(self, scenario: &Scenario, judges: impl Fn(&Goal) -> bool) {
        for placement in [Placement::Free, Placement::Pinned] {
            self.table(scenario, placement);
        }
        for goal in scenario.goals.iter().filter(|goal| judges(goal)) {
            self.report.goals.push(judge(self.scenario, goal, &self.samples));
            match goal.judge(&self.samples) {
                None => {
                    println!("  NOT RUN  {}", goal.say());
                    self.report.failed = true;
                }
                Some(verdict) => {
                    let word = if verdict.pass { "PASS " } else { "BELOW" };
                    println!("  {word}  {}: {}{}", goal.say(), range(verdict.spread), over(goal, verdict.over));
                    self.doubt(goal);
                    self.report.below |= !verdict.pass;
                }
            }
        }
        self.report.ratios.extend(ratios(self.scenario, &self.samples));
        println!();
    }

    /// What others spent counts as the machine's, for the way that is judged and for the one it is set against.
    fn doubt(&self, goal: &Goal) {
        let noise = |way| self.samples.spread(goal.placement, way, Figure::Foreign).map_or(0.0, |spread| spread.median);
        if goal.figure != Figure::MachineCpu || goal.needs().into_iter().map(noise).fold(0.0, f64::max) <= NOISE {
            return;
        }
        if let Some(own) = (Goal { figure: Figure::OwnCpu, ..*goal }).judge(&self.samples) {
            println!("         other programs are in this figure; the scenario's own processes: {}", range(own.spread));
        }
    }

    fn table(&self, scenario: &Scenario, placement: Placement) {
        let ways = self.samples.ways(placement);
        if ways.is_empty() {
            return;
        }
        let has = |figure| ways.iter().any(|way| self.samples.spread(placement, way, figure).is_some());
        let columns: Vec<_> = COLUMNS.into_iter().filter(|(figure, _)| has(*figure)).collect();
        let mut head = vec![format!("{}, {}", scenario.name, placement.name())];
        for (figure, name) in &columns {
            head.push((*name).to_owned());
            head.extend(against_direct(*figure).map(|compare| heading(compare).to_owned()));
        }
        let mut table = Table::new(head);
        for way in &ways {
            let mut row = vec![(*way).to_owned()];
            for (figure, _) in &columns {
                row.push(cell(*figure, self.samples.spread(placement, way, *figure)));
                if let Some(compare) = against_direct(*figure) {
                    let spread = self.samples.compare(placement, way, way::DIRECT, *figure, compare);
                    // The spread of what is judged; the others have theirs in the JSON lines.
                    let say =
                        if matches!(figure, Figure::Rps | Figure::Connect | Figure::GbPerS) { range } else { middle };
                    row.push(spread.map_or_else(|| "-".to_owned(), say));
                }
            }
            table.row(row);
        }
        println!("\n{table}");
        let noisy = ways.iter().filter_map(|way| self.samples.spread(placement, way, Figure::Foreign));
        let worst = noisy.map(|spread| spread.max).fold(0.0, f64::max);
        if worst > NOISE {
            println!("  other programs took up to {worst:.0} % of a core meanwhile: measure again on a quiet machine");
        }
    }
}

/// Which figures are set against dialling directly in the table, and how.
fn against_direct(figure: Figure) -> Option<Compare> {
    match figure {
        Figure::Rps | Figure::MachineCpu | Figure::OwnCpu | Figure::GbPerS => Some(Compare::Ratio),
        Figure::Connect => Some(Compare::Difference),
        _ => None,
    }
}

fn heading(compare: Compare) -> &'static str {
    match compare {
        Compare::Ratio => "× direct",
        Compare::Difference => "more than direct",
    }
}

fn cell(figure: Figure, spread: Option<Spread>) -> String {
    let Some(Spread { median, .. }) = spread else { return "-".to_owned() };
    match figure {
        // Microseconds of a loopback connection: a tenth of one is seen.
        Figure::P50 | Figure::P99 if median < 100.0 => format!("{median:.1}"),
        Figure::Rps | Figure::P50 | Figure::P99 | Figure::Load | Figure::Reload | Figure::Foreign => {
            format!("{median:.0}")
        }
        Figure::Change | Figure::Apply => format!("{median:.1}"),
        Figure::Cpu | Figure::MachineCpu | Figure::OwnCpu | Figure::Connect => format!("{median:.2}"),
        Figure::GbPerS | Figure::CpuPerGb | Figure::MachineCpuPerGb | Figure::Held | Figure::HeldKernel => {
            format!("{median:.2}")
        }
        Figure::Rss | Figure::Maps => format!("{:.1}", median / 1024.0),
    }
}

fn range(Spread { median, min, max }: Spread) -> String {
    // Memory in kB next to ratios: what is large needs no decimals.
    let digits = if median >= 1000.0 { 0 } else { 2 };
    format!("{median:.digits$} ({min:.digits$}…{max:.digits$})")
}

fn middle(spread: Spread) -> String {
    format!("{:.2}", spread.median)
}

/// Which of several ways turned out to be the better one.
fn over(goal: &Goal, over: Option<&str>) -> String {
    match over {
        Some(over) if goal.needs().len() > 2 => format!(" × {over}"),
        _ => String::new(),
    }
}

fn tell(scenario: &str, sample: &Sample) -> String {
    let figures = COLUMNS.iter().filter_map(|(figure, name)| {
        let value = *sample.values.get(figure)?;
        Some(format!("{} {name}", cell(*figure, Spread::of(vec![value]))))
    });
    let figures: Vec<_> = figures.take(9).collect();
    let Sample { way, placement, round, .. } = sample;
    format!("{scenario} {} round {round}, {way}: {}", placement.name(), figures.join(", "))
}

fn to_json(scenario: &str, sample: &Sample) -> Value {
    let mut object = Map::new();
    object.insert("scenario".into(), scenario.into());
    object.insert("way".into(), sample.way.into());
    object.insert("placement".into(), sample.placement.name().into());
    object.insert("round".into(), sample.round.into());
    for (figure, value) in &sample.values {
        object.insert(figure.key().into(), round(*value));
    }
    object.into()
}

/// To three decimals: nothing here is measured better.
fn round(value: f64) -> Value {
    ((value * 1000.0).round() / 1000.0).into()
}

fn spread_json(spread: Spread) -> [(&'static str, Value); 3] {
    [("median", round(spread.median)), ("min", round(spread.min)), ("max", round(spread.max))]
}

fn judge(scenario: &str, goal: &Goal, samples: &Samples) -> Value {
    let mut object = BTreeMap::from([("scenario", json!(scenario)), ("goal", json!(goal.say()))]);
    if let Some(verdict) = goal.judge(samples) {
        object.insert("pass", json!(verdict.pass));
        object.insert("over", json!(verdict.over));
        object.extend(spread_json(verdict.spread));
    }
    json!(object)
}

fn ratios(scenario: &str, samples: &Samples) -> Vec<Value> {
    let mut found = Vec::new();
    for placement in [Placement::Free, Placement::Pinned] {
        for way in samples.ways(placement) {
            for base in BASES.iter().filter(|base| **base != way) {
                for figure in COMPARED {
                    let Some(spread) = samples.compare(placement, way, base, figure, Compare::Ratio) else { continue };
                    let mut object = BTreeMap::from([
                        ("scenario", json!(scenario)),
                        ("placement", json!(placement.name())),
                        ("way", json!(way)),
                        ("over", json!(base)),
                        ("figure", json!(figure.key())),
                    ]);
                    object.extend(spread_json(spread));
                    found.push(json!(object));
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_one_json_object_with_the_documented_keys() {
        let sample = Sample {
            way: way::DIRECT,
            placement: Placement::Free,
            round: 2,
            values: BTreeMap::from([
                (Figure::Rps, 1234.5678),
                (Figure::P50, 300.0),
                (Figure::P99, 900.0),
                (Figure::Cpu, 0.0),
                (Figure::MachineCpu, 20.5),
                (Figure::Rss, 1024.0),
            ]),
        };
        let expected = json!({
            "scenario": "l4", "way": "direct", "placement": "free", "round": 2, "rps": 1234.568, "p50_us": 300.0,
            "p99_us": 900.0, "cpu_us_per_req": 0.0, "machine_cpu_us_per_req": 20.5, "rss_kb": 1024.0,
        });
        assert_eq!(to_json("l4", &sample), expected);
    }

    #[test]
    fn ratios_are_taken_over_every_base_but_never_over_oneself() {
        let sample = |way, rps| Sample {
            way,
            placement: Placement::Free,
            round: 1,
            values: BTreeMap::from([(Figure::Rps, rps)]),
        };
        let samples = Samples(vec![sample(way::DIRECT, 100.0), sample(way::SOCKWAY, 99.0)]);
        let found = ratios("l4", &samples);
        assert_eq!(found.len(), 1);
        assert_eq!(
            (&found[0]["way"], &found[0]["over"], &found[0]["median"]),
            (&json!("sockway"), &json!("direct"), &json!(0.99))
        );
    }
}
