//! `sockway audit`: what was changed, when, by whom, and what came of it.

use serde::Deserialize;
use serde_json::Value;

use super::{
    Failure,
    agent::{Reach, difference},
    say, table,
};
use crate::node::history::{Entry, Outcome};

/// Differences of a change that are told in its line.
const DIFFERENCES_MAX: usize = 2;

/// Of which agent, and how to print.
#[derive(Clone, Debug, clap::Args)]
pub struct Audit {
    #[command(flatten)]
    reach: Reach,
    /// Tell only the last so many changes
    #[arg(long, value_name = "N", default_value_t = 20)]
    last: usize,
    /// Print them as JSON, with every difference
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Deserialize)]
struct Log {
    entries: Vec<Entry>,
    trouble: Option<String>,
}

/// Prints the last changes, the newest at the end.
///
/// # Errors
///
/// When no agent runs, or it does not answer.
pub fn run(audit: &Audit) -> Result<u8, Failure> {
    let said = audit.reach.ask("GET", "/v1/audit", None)?;
    if audit.json {
        let mut log: Value = said.read()?;
        let entries = log["entries"].as_array_mut();
        let entries = entries.map(|entries| entries.split_off(entries.len().saturating_sub(audit.last)));
        say(format_args!("{:#}\n", Value::from(entries.unwrap_or_default())));
        return Ok(0);
    }
    let log: Log = said.read()?;
    if let Some(trouble) = &log.trouble {
        eprintln!("sockway: changes are not written down: {trouble}");
    }
    let entries = &log.entries[log.entries.len().saturating_sub(audit.last)..];
    say(tell(entries));
    Ok(0)
}

fn tell(entries: &[Entry]) -> String {
    let heading = ["AT", "GENERATION", "CHANGE", "BY", "OUTCOME", "WHAT"].map(str::to_owned).to_vec();
    let rows: Vec<Vec<String>> = [heading].into_iter().chain(entries.iter().map(row)).collect();
    table(&rows)
}

fn row(entry: &Entry) -> Vec<String> {
    let outcome = match entry.outcome {
        Outcome::Applied => "applied",
        Outcome::Refused => "REFUSED",
    };
    let [at, change, by] = [&entry.at, &entry.change, &entry.by].map(String::clone);
    vec![at, entry.generation.to_string(), change, by, outcome.to_owned(), what(entry)]
}

fn what(entry: &Entry) -> String {
    if let Some(error) = &entry.error {
        return error.lines().next().unwrap_or_default().to_owned();
    }
    let mut parts: Vec<String> = entry.diff.iter().take(DIFFERENCES_MAX).map(difference).collect();
    let more = entry.diff.len().saturating_sub(DIFFERENCES_MAX) + entry.more;
    if more > 0 {
        parts.push(format!("{more} more"));
    }
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::node::history::diff::Difference;

    #[test]
    fn a_change_is_a_line() {
        let difference = |path: &str| Difference { path: path.to_owned(), old: Some(json!(1)), new: Some(json!(2)) };
        let entry = Entry {
            at: "T".to_owned(),
            generation: 7,
            change: "reload".to_owned(),
            by: "file F".to_owned(),
            diff: ["a", "b", "c"].map(difference).to_vec(),
            more: 3,
            ..Entry::default()
        };
        let refused =
            Entry { outcome: Outcome::Refused, error: Some("F:1:2: no\nF:2:1: no".to_owned()), ..entry.clone() };
        let told = tell(&[entry, refused]);
        let lines: Vec<Vec<&str>> = told
            .lines()
            .map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect())
            .collect();
        assert_eq!(lines[1], ["T", "7", "reload", "file F", "applied", "a: 1 -> 2; b: 1 -> 2; 4 more"]);
        assert_eq!(lines[2], ["T", "7", "reload", "file F", "REFUSED", "F:1:2: no"]);
    }
}
