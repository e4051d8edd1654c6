//! wrk, one thread: runs it where the client stands, reads what it prints.

use std::{process::Command, time::Duration};

use anyhow::{Context, Result, bail, ensure};

use super::process::{Place, Process};

/// What wrk found out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Complete answers.
    pub requests: u64,
    /// Complete answers per second.
    pub rps: f64,
    /// Median latency in µs.
    pub p50_us: f64,
    /// 99th percentile in µs.
    pub p99_us: f64,
}

/// Calls `url` over `connections` at a time, each for one request after the other, or for a single one with `anew`. An answer that is not 2xx and a broken connection are errors: a way that
/// fails quickly must not look fast.
pub fn run(place: &Place, url: &str, connections: u32, anew: bool, duration: Duration) -> Result<Load> {
    let mut command = Command::new("wrk");
    command.args(["--threads", "1", "--latency", "--timeout", "10s"]);
    command.arg("--connections").arg(connections.to_string());
    command.arg("--duration").arg(format!("{}s", duration.as_secs().max(1)));
    if anew {
        command.args(["--header", "Connection: close"]);
    }
    command.arg(url);
    let output = Process::output(&mut command, place, duration + Duration::from_secs(30))?;
    parse(&output).with_context(|| format!("wrk {url} printed:\n{output}"))
}

fn parse(output: &str) -> Result<Load> {
    for line in output.lines().map(str::trim) {
        ensure!(!line.starts_with("Socket errors:") && !line.starts_with("Non-2xx"), "{line}");
    }
    let requests = find(output, |line| line.split_once(" requests in ")?.0.trim().parse().ok()).context("no total")?;
    let rps = find(output, |line| line.strip_prefix("Requests/sec:")?.trim().parse().ok()).context("no rate")?;
    let percentile = |mark: &str| find(output, |line| micros(line.strip_prefix(mark)?.trim())).context("no latencies");
    let load = Load { requests, rps, p50_us: percentile("50%")?, p99_us: percentile("99%")? };
    if load.requests == 0 {
        bail!("no answer at all");
    }
    Ok(load)
}

fn find<T>(output: &str, read: impl Fn(&str) -> Option<T>) -> Option<T> {
    output.lines().map(str::trim).find_map(read)
}

/// `312.00us`, `1.23ms`, `2.00s`, `1.10m`.
fn micros(text: &str) -> Option<f64> {
    let unit = text.find(|c: char| c.is_ascii_alphabetic())?;
    let scale = match &text[unit..] {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        "m" => 60e6,
        _ => return None,
    };
    Some(text[..unit].parse::<f64>().ok()? * scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "Running 5s test @ http://127.0.0.1:8080/1k
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   381.13us  412.53us  11.42ms   96.91%
    Req/Sec    88.19k     5.31k  101.80k    80.00%
  Latency Distribution
     50%  312.00us
     75%  393.00us
     90%  562.00us
     99%    1.86ms
  438734 requests in 5.00s, 534.75MB read
Requests/sec:  87741.52
Transfer/sec:    106.94MB
";

    #[test]
    fn the_figures_of_a_report_are_found() {
        let load = Load { requests: 438_734, rps: 87_741.52, p50_us: 312.0, p99_us: 1860.0 };
        assert_eq!(parse(GOOD).unwrap(), load);
    }

    #[test]
    fn failures_are_no_figures() {
        for line in ["  Non-2xx or 3xx responses: 3\n", "  Socket errors: connect 0, read 1, write 0, timeout 0\n"] {
            assert!(parse(&format!("{GOOD}{line}")).unwrap_err().to_string().contains(line.trim()));
        }
        assert!(parse(&GOOD.replace("438734", "0")).is_err());
        assert!(parse("unable to connect to 127.0.0.1:8080 Connection refused\n").is_err());
    }

    #[test]
    fn every_unit_of_wrk_is_known() {
        for (text, us) in [("7.00us", 7.0), ("1.50ms", 1500.0), ("2.00s", 2e6), ("1.00m", 60e6)] {
            assert_eq!(micros(text), Some(us));
        }
        assert_eq!(micros("12"), None);
        assert_eq!(micros("12h"), None);
    }
}
