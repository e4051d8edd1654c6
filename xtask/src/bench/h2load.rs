//! h2load, one thread: runs it where the client stands, reads what it prints.

use std::{ffi::OsString, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};

use super::process::{Place, Process};

/// What h2load found out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Complete answers.
    pub requests: u64,
    /// Complete answers per second.
    pub rps: f64,
}

/// Asks for `url` over `connections`, each with `streams` at a time, and with what further arguments say. An answer that is not 2xx and a broken connection are errors: a way
/// that fails quickly must not look fast.
pub fn run(
    place: &Place,
    url: &str,
    (connections, streams): (u32, u32),
    arguments: &[OsString],
    duration: Duration,
) -> Result<Load> {
    let mut command = Command::new("h2load");
    command.args(["--threads", "1", "--clients", &connections.to_string()]);
    command.args(["--max-concurrent-streams", &streams.to_string()]);
    command.arg(format!("--duration={}", duration.as_secs().max(1)));
    command.args(arguments).arg(url);
    let output = Process::output(&mut command, place, duration + Duration::from_secs(30))?;
    parse(&output).with_context(|| format!("h2load {url} printed:\n{output}"))
}

fn parse(output: &str) -> Result<Load> {
    let line =
        |start: &str| output.lines().find_map(|line| line.strip_prefix(start)).with_context(|| format!("no {start}"));
    let requests = line("requests: ")?;
    let counted = |name: &str| {
        let count = requests.split(", ").find_map(|part| part.strip_suffix(name)?.trim().parse::<u64>().ok());
        count.with_context(|| format!("no count of{name}"))
    };
    for wrong in [" failed", " errored", " timeout"] {
        let count = counted(wrong)?;
        ensure!(count == 0, "{count}{wrong}");
    }
    let load = Load { requests: counted(" succeeded")?, rps: rate(line("finished in ")?).context("no rate")? };
    ensure!(load.requests > 0, "no answer at all");
    Ok(load)
}

/// `5.00s, 103486.20 req/s, 105.59MB/s`.
fn rate(finished: &str) -> Option<f64> {
    finished.split(", ").find_map(|part| part.strip_suffix(" req/s")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "starting benchmark...\n
finished in 5.00s, 103486.20 req/s, 105.59MB/s
requests: 517431 total, 517559 started, 517431 done, 517431 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 517431 2xx, 0 3xx, 0 4xx, 0 5xx
";

    #[test]
    fn the_figures_of_a_report_are_found() {
        assert_eq!(parse(GOOD).unwrap(), Load { requests: 517_431, rps: 103_486.2 });
    }

    #[test]
    fn failures_are_no_figures() {
        for (good, bad) in [("0 failed", "3 failed"), ("0 errored", "1 errored"), ("0 timeout", "2 timeout")] {
            assert!(parse(&GOOD.replace(good, bad)).unwrap_err().to_string().contains(bad));
        }
        assert!(parse(&GOOD.replace("517431 succeeded", "0 succeeded")).is_err());
        assert!(parse("").is_err());
    }
}
