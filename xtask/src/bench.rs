//! `cargo xtask bench`: measures Sockway beside the programs that do the same and beside no hop at all, all within one run, on loopback or
//! in namespaces of its own. Takes away everything it set up, also when it fails or is interrupted.

mod agent;
mod cgroup;
mod dial;
mod goal;
mod h2load;
mod hold;
mod host;
mod interrupt;
mod load;
mod namespace;
pub mod night;
mod part;
mod process;
mod report;
mod sample;
mod scenario;
mod stand;
mod table;
mod tcp;
mod traffic;
mod watch;
mod way;
mod wrk;

use std::{
    fs::{self, File},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, bail};

pub use way::STREAM_MODULE;

use crate::workspace;
use goal::Goal;
use host::Host;
use report::Report;
use sample::Placement;
use scenario::Scenario;

/// A goal was not reached, with `--strict`.
const BELOW: u8 = 1;
/// A scenario, or a way that it needs, could not run.
const COULD_NOT_RUN: u8 = 3;

/// What to measure.
#[derive(Debug, clap::Args)]
#[command(after_help = scenarios())]
pub struct Args {
    /// Scenarios to measure; all of them by default
    #[arg(value_name = "SCENARIO")]
    scenarios: Vec<String>,
    /// How many rounds of each way, in turn
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How long a round lasts, in seconds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Write every sample, and then the ratios, as JSON lines
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// A figure below its goal is a failure
    #[arg(long)]
    strict: bool,
    /// Only these ways: direct, direct-2core, sockway, sockway+shortcut, sockway+joined, sockway+policies, sockway+choosing, nginx, haproxy, envoy
    #[arg(long = "way", value_name = "NAME", num_args = 1.., value_parser = way::ALL)]
    ways: Vec<String>,
    /// Only this placement: free or pinned
    #[arg(long, value_name = "NAME", value_parser = ["free", "pinned"])]
    placement: Option<String>,
    /// Measure this build of the agent instead of building one
    #[arg(long, value_name = "FILE")]
    pub agent: Option<PathBuf>,
    /// Be a client or a server
    #[arg(long, hide = true, num_args = 1..)]
    part: Vec<String>,
}

/// What every scenario needs to know.
#[derive(Debug)]
pub struct Bench {
    /// How many rounds.
    pub rounds: u32,
    /// How long each of them lasts.
    pub round: Duration,
    /// How many CPUs there are.
    pub cores: usize,
    /// Where configurations and logs go.
    pub directory: PathBuf,
    /// The agent's binary.
    pub sockway: PathBuf,
    /// Envoy, if it could be had.
    pub envoy: PathBuf,
    ways: Vec<String>,
    placement: Option<String>,
}

impl Bench {
    /// For a measurement that is no scenario: of every way, one round.
    fn of(directory: PathBuf, sockway: PathBuf, envoy: PathBuf, cores: usize) -> Self {
        let (ways, placement) = (Vec::new(), None);
        Self { rounds: 1, round: Duration::from_secs(1), cores, directory, sockway, envoy, ways, placement }
    }

    /// Whether the user wants to see this way.
    pub fn wants(&self, way: &str) -> bool {
        self.ways.is_empty() || !way::ALL.contains(&way) || self.ways.iter().any(|name| name == way)
    }

    /// Whether the user wants to see this placement.
    pub fn places(&self, placement: Placement) -> bool {
        self.placement.as_ref().is_none_or(|name| name == placement.name())
    }

    /// Whether everything that a goal speaks of is wanted.
    fn judges(&self, goal: &Goal) -> bool {
        self.places(goal.placement) && goal.needs().into_iter().all(|way| self.wants(way))
    }
}

/// Measures.
pub fn run(args: Args) -> Result<ExitCode> {
    if !args.part.is_empty() {
        return part::play(&args.part).map(|()| ExitCode::SUCCESS);
    }
    let scenarios = match scenario::named(&args.scenarios) {
        Ok(scenarios) => scenarios,
        Err(name) => bail!("there is no scenario {name}; {}", scenarios()),
    };
    interrupt::catch()?;
    let directory = workspace::kept().join("bench");
    fs::create_dir_all(&directory).with_context(|| format!("{}", directory.display()))?;
    // Two runs at once would measure each other, and take away each other's namespaces.
    let lock = File::create(directory.join("lock"))?;
    lock.try_lock().context("another bench is running")?;
    let mut report = Report::open(args.json.as_deref())?;
    let sockway = args.agent.unwrap_or_else(workspace::agent_binary);
    let host = Host::look(&sockway)?;
    println!("{host}");
    println!(
        "rounds of {} s in turn, {} of each way; medians, and in parentheses the least and greatest pair",
        args.seconds, args.rounds
    );
    let bench = Bench {
        rounds: args.rounds,
        round: Duration::from_secs(args.seconds),
        cores: host.cores,
        directory,
        sockway,
        envoy: workspace::kept().join("tools/envoy/bin/envoy"),
        ways: args.ways,
        placement: args.placement,
    };
    for scenario in &scenarios {
        measure(&bench, scenario, &mut report)?;
    }
    let code = match &report {
        Report { failed: true, .. } => COULD_NOT_RUN,
        Report { below: true, .. } if args.strict => BELOW,
        _ => 0,
    };
    report.close(&host)?;
    Ok(code.into())
}

fn measure(bench: &Bench, scenario: &Scenario, report: &mut Report) -> Result<()> {
    println!("\n{}: {}", scenario.name, scenario.what);
    let mut take = report.take(scenario.name);
    if let Err(error) = scenario.how.run(bench, &mut take) {
        interrupt::check()?;
        take.could_not_run(&error);
    }
    take.conclude(scenario, |goal| bench.judges(goal));
    Ok(())
}

/// The scenarios, for the help.
fn scenarios() -> String {
    let mut text = "Scenarios:".to_owned();
    for Scenario { name, what, .. } in scenario::ALL {
        text += &format!("\n  {name:<12} {what}");
    }
    text
}
