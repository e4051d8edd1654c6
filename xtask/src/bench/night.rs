//! `cargo xtask bad-night`: five endpoints, of which one dies, one becomes slow and one fails half of what it is asked, while three times as
//! many requests come as all of them together get done when they are well. First without anything between, then through Sockway, then through
//! Envoy in its closest configuration: what of the requests that were let in succeeds, how long it takes, how much more is asked of the
//! endpoints than was let in, and how soon all is well again.

pub mod crowd;
pub mod endpoint;

use std::{
    fmt::Write as _,
    fs::{self, File},
    path::PathBuf,
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context, Result};

use self::crowd::Told;
use super::{
    BELOW, Bench,
    agent::{Agent, Forward, Plan, Service},
    host::Host,
    interrupt,
    namespace::Layout,
    part::Worker,
    process::Process,
    sample::Placement,
    stand::Stand,
    way,
};
use crate::workspace;

const WAYS: [&str; 3] = [way::DIRECT, way::SOCKWAY, way::ENVOY];
const ENDPOINTS: u16 = 5;
/// Each serves so many at once, each for so long: 200 a second.
const PLACES: u32 = 4;
const TAKES_MS: u32 = 20;
/// What one of them takes longer in the night, and of a hundred requests another one fails.
const SLOW_MS: u32 = 300;
const FAILS_PERCENT: u32 = 50;
const CAPACITY: u32 = ENDPOINTS as u32 * PLACES * 1_000 / TAKES_MS;
const OVERLOAD: u32 = 3;
const CLIENTS: u32 = 240;

const WELL_S: u32 = 10;
const RECOVERY_S: u32 = 15;
/// Dialled by the clients of Sockway.
const SERVICE: &str = "127.66.0.1:80";
/// What an answer may take of what it takes when all is well.
const TIMES_P99_MAX: f64 = 3.0;
/// Of a hundred that were let in.
const WELL_PERCENT_MIN: f64 = 99.9;
/// Asked of endpoints for each request that was let in: a fifth more, and what the floor of the budget lets through.
const TRIES_MAX: f64 = 1.25;
const RECOVERY_S_MAX: usize = 5;

/// What Sockway has for such a night.
const KEYS: &str = "balance: peak_ewma, peak_ewma: { full_scan: on }, \
    connect_timeout_ms: 1000, timeout_ms: 1000, \
    probe: { type: http, path: /, interval_ms: 500, timeout_ms: 250, fall: 2, rise: 3, no_traffic_interval_ms: 500 }, \
    request_limits: [{ kind: gradient, min: 8, max: 40, status: 429 }], \
    retry: { attempts: 3, on: [5xx, reset, connect_failure], back_off: { base_ms: 5, max_ms: 10 }, \
    hedge: { after_ms: 80, max: 1 } }, \
    outlier: { consecutive_5xx: 5, interval_ms: 2000, base_ejection_ms: 5000, max_ejection_percent: 60, \
    success_rate_minimum_hosts: 3, success_rate_request_volume: 50, failure_percentage_threshold: 30, \
    failure_percentage_minimum_hosts: 3, failure_percentage_request_volume: 50, enforcing_failure_percentage: 100, \
    successful_active_health_check_uneject_host: off }, ";

/// How the night is.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How long the faults and the overload last, in seconds
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(5..))]
    seconds: u32,
    /// A goal that Sockway misses is a failure
    #[arg(long)]
    strict: bool,
    /// Only these: direct, sockway, envoy
    #[arg(long = "way", value_name = "NAME", num_args = 1.., value_parser = WAYS)]
    ways: Vec<String>,
    /// Try this build of the agent instead of building one
    #[arg(long, value_name = "FILE")]
    pub agent: Option<PathBuf>,
}

/// Has the night.
pub fn run(args: Args) -> Result<ExitCode> {
    interrupt::catch()?;
    let directory = workspace::kept().join("bench");
    fs::create_dir_all(&directory).with_context(|| format!("{}", directory.display()))?;
    let lock = File::create(directory.join("lock"))?;
    lock.try_lock().context("another bench is running")?;
    let sockway = args.agent.unwrap_or_else(workspace::agent_binary);
    let host = Host::look(&sockway)?;
    println!("{host}");
    println!(
        "{ENDPOINTS} endpoints of {PLACES} places and {TAKES_MS} ms: {CAPACITY} requests a second. By night one is dead, one takes {SLOW_MS} ms \
         more, one answers 503 to {FAILS_PERCENT} of 100, and {} requests a second come for {} s\n",
        CAPACITY * OVERLOAD,
        args.seconds
    );
    let envoy = workspace::kept().join("tools/envoy/bin/envoy");
    let bench = Bench::of(directory, sockway, envoy, host.cores);
    println!("{}", Row::HEAD);
    let mut missed = None;
    for way in WAYS.into_iter().filter(|way| args.ways.is_empty() || args.ways.iter().any(|name| name == way)) {
        if way == way::ENVOY && !bench.envoy.exists() {
            println!("{way}: not installed");
            continue;
        }
        let row = pass(&bench, way, args.seconds)?;
        println!("{row}");
        if way == way::SOCKWAY {
            missed = Some(row.missed());
        }
    }
    println!();
    let Some(missed) = missed else { return Ok(ExitCode::SUCCESS) };
    for goal in &missed {
        println!("missed: {goal}");
    }
    if missed.is_empty() {
        println!(
            "Sockway: at least {WELL_PERCENT_MIN} % of what was let in is well, within {TIMES_P99_MAX} times the p99 of a good day, with at most \
             {TRIES_MAX} tries for each, and all is well {RECOVERY_S_MAX} s after the faults"
        );
    }
    Ok(if args.strict && !missed.is_empty() { BELOW.into() } else { ExitCode::SUCCESS })
}

/// Who stands between, if anybody; held for its Drop.
#[derive(Default)]
struct Between {
    _agent: Option<Agent>,
    _proxy: Option<Process>,
}

/// One night, by one way.
fn pass(bench: &Bench, way: &'static str, seconds: u32) -> Result<Row> {
    let stand = Stand::raise(bench, Placement::Free, Layout::Flat)?;
    let addresses: Vec<String> = (0..ENDPOINTS).map(|number| format!("127.0.0.1:{}", 9_001 + number)).collect();
    let start = |address: &String| {
        let words = ["endpoint", address.as_str(), &PLACES.to_string(), &TAKES_MS.to_string()];
        Worker::start_with(&words, &stand.origin())
    };
    let mut endpoints = addresses.iter().map(start).collect::<Result<Vec<Worker>>>()?;
    for endpoint in &mut endpoints {
        endpoint.ask("well")?;
    }
    let (between, targets) = raise(bench, &stand, way, &addresses)?;
    let mut crowd = Worker::start("crowd", &stand.client())?;
    await_answer(&mut crowd, &targets)?;
    let mut ask = |rate: u32, seconds: u32| {
        Told::read(&crowd.ask(&format!("{rate} {seconds} {CLIENTS} {targets}"))?).context("the crowd")
    };
    // What is not known yet is found: connections, the shortest time, who is quick.
    ask(CAPACITY / 2, WELL_S / 2)?;
    let well = ask(CAPACITY / 2, WELL_S)?;
    for (endpoint, order) in
        endpoints.iter_mut().zip(["die".to_owned(), format!("slow {SLOW_MS}"), format!("fail {FAILS_PERCENT}")])
    {
        endpoint.ask(&order)?;
    }
    let before = asked(&mut endpoints)?;
    let night = ask(CAPACITY * OVERLOAD, seconds)?;
    let tries = asked(&mut endpoints)?.saturating_sub(before);
    for endpoint in &mut endpoints {
        endpoint.ask("well")?;
    }
    let after = ask(CAPACITY / 2, RECOVERY_S)?;
    drop(between);
    Ok(Row { way, seconds, well, night, tries, after })
}

fn asked(endpoints: &mut [Worker]) -> Result<u64> {
    endpoints.iter_mut().map(|endpoint| endpoint.ask("asked")?.parse::<u64>().context("a number")).sum()
}

/// Starts who stands between; gives whom clients ask.
fn raise(bench: &Bench, stand: &Stand, way: &str, addresses: &[String]) -> Result<(Between, String)> {
    match way {
        way::SOCKWAY => {
            let service = Service {
                name: "night".into(),
                address: SERVICE.into(),
                forward: Forward::Http,
                shortcut: false,
                endpoints: addresses.to_vec(),
                keys: KEYS,
            };
            let plan = Plan {
                instance: "night".into(),
                workers: 1,
                admin_port: 9901,
                cgroups: stand.captured().into_iter().map(|group| (group.to_owned(), false)).collect(),
                services: vec![service],
            };
            let agent = Some(Agent::start(bench, stand, &plan)?);
            Ok((Between { _agent: agent, _proxy: None }, SERVICE.into()))
        }
        way::ENVOY => {
            let mut endpoints = String::new();
            for (ip, port) in addresses.iter().filter_map(|address| address.split_once(':')) {
                let _ = writeln!(
                    endpoints,
                    "              - endpoint: {{ address: {{ socket_address: {{ address: {ip}, port_value: {port} }} }} }}"
                );
            }
            let values = [("listen_ip", "127.0.0.1"), ("listen_port", "8003"), ("endpoints", endpoints.trim_end())];
            let config = stand.write("night.envoy.yaml", include_str!("../../bench/night.envoy.yaml"), &values)?;
            let mut command = Command::new(&bench.envoy);
            command.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "error", "--config-path"]);
            let process = stand.serve("night-envoy", command.arg(config), &stand.proxy())?;
            Ok((Between { _agent: None, _proxy: Some(process) }, "127.0.0.1:8003".into()))
        }
        _ => Ok((Between::default(), addresses.join(" "))),
    }
}

/// Until requests are answered.
fn await_answer(crowd: &mut Worker, targets: &str) -> Result<()> {
    let answered = interrupt::wait_for(Duration::from_secs(20), || {
        let told = Told::read(&crowd.ask(&format!("10 1 5 {targets}"))?)?;
        Ok((told.failed == 0 && !told.well.is_empty()).then_some(()))
    })?;
    answered.context("nobody answers")
}

/// What came of a night.
struct Row {
    way: &'static str,
    seconds: u32,
    well: Told,
    night: Told,
    /// What was asked of the endpoints in the night.
    tries: u64,
    after: Told,
}

impl Row {
    const HEAD: &str = "way        let in/s  well/s   % well   p50 ms   p99 ms   p99 when well   times   tries each   well again after";

    fn well_percent(&self) -> f64 {
        self.night.well.len() as f64 * 100.0 / self.night.admitted().max(1) as f64
    }

    fn times_p99(&self) -> f64 {
        self.night.percentile(99.0).as_secs_f64() / self.well.percentile(99.0).as_secs_f64().max(1e-9)
    }

    fn tries_each(&self) -> f64 {
        self.tries as f64 / self.night.admitted().max(1) as f64
    }

    /// After how many seconds no request was refused or failed any more; `None`: to the end some were.
    fn recovered_after(&self) -> Option<usize> {
        let last = self.after.seconds.iter().rposition(|[_, refused, failed]| refused + failed > 0);
        let after = last.map_or(0, |last| last + 1);
        (after < self.after.seconds.len()).then_some(after)
    }

    /// Goals that were not reached.
    fn missed(&self) -> Vec<String> {
        let mut missed = Vec::new();
        if self.well_percent() < WELL_PERCENT_MIN {
            missed.push(format!("{:.3} % of what was let in is well, of {WELL_PERCENT_MIN} %", self.well_percent()));
        }
        if self.times_p99() > TIMES_P99_MAX {
            missed.push(format!("p99 is {:.2} times that of a good day, of {TIMES_P99_MAX}", self.times_p99()));
        }
        if self.tries_each() > TRIES_MAX {
            missed.push(format!("{:.2} tries for each that was let in, of {TRIES_MAX}", self.tries_each()));
        }
        if self.recovered_after().is_none_or(|after| after > RECOVERY_S_MAX) {
            missed.push(format!("not well {RECOVERY_S_MAX} s after the faults"));
        }
        missed
    }
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |took: Duration| took.as_secs_f64() * 1_000.0;
        let each = |count: u64| count as f64 / f64::from(self.seconds);
        let recovered = self.recovered_after().map_or("never".to_owned(), |after| format!("{after} s"));
        write!(
            f,
            "{:<10} {:>8.0}  {:>6.0}  {:>7.3}  {:>7.1}  {:>7.1}  {:>14.1}  {:>6.2}  {:>11.2}  {recovered:>17}",
            self.way,
            each(self.night.admitted()),
            each(self.night.well.len() as u64),
            self.well_percent(),
            ms(self.night.percentile(50.0)),
            ms(self.night.percentile(99.0)),
            ms(self.well.percentile(99.0)),
            self.times_p99(),
            self.tries_each(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(well: usize, failed: u64, seconds: &[[u64; 3]]) -> Told {
        Told { well: vec![Duration::from_millis(20); well], refused: 0, failed, seconds: seconds.to_vec() }
    }

    #[test]
    fn goals_are_missed_by_what_was_let_in_and_by_when_it_ended() {
        let good = [[500, 0, 0]; 15];
        let row = |night: Told, tries, after: &[[u64; 3]]| Row {
            way: "sockway",
            seconds: 60,
            well: told(100, 0, &good),
            night,
            tries,
            after: told(0, 0, after),
        };
        assert_eq!(row(told(9_990, 10, &good), 12_000, &good).missed(), Vec::<String>::new());
        assert_eq!(row(told(9_980, 20, &good), 12_000, &good).missed().len(), 1);
        assert_eq!(row(told(10_000, 0, &good), 13_000, &good).missed().len(), 1);
        let mut late = good;
        late[4] = [499, 1, 0];
        assert_eq!(row(told(100, 0, &good), 100, &late).recovered_after(), Some(5));
        late[14] = [499, 0, 1];
        assert_eq!(row(told(100, 0, &good), 100, &late).missed().len(), 1);
    }
}
