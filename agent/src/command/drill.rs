//! `sockway drill FILE`: has requests of a service go wrong on purpose, step by step, and reports what became of them.
//!
//! Each fault is a lease that this command renews: whatever ends it, a signal among them, the agent takes the fault back by itself.

mod report;
mod sample;

use std::{
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use self::{
    report::{Phase, report},
    sample::Sample,
};
use super::{
    Failure,
    agent::{Reach, segment},
    say,
};
use crate::{
    config::{
        drill::{Plan, Step},
        file,
    },
    node::history::Entry,
};

/// How long a fault goes on when nobody renews it.
const LEASE: Duration = Duration::from_secs(5);
/// Between two renewals.
const RENEW: Duration = Duration::from_secs(1);

/// What is to go wrong, and in which agent.
#[derive(Clone, Debug, clap::Args)]
pub struct Drill {
    /// What is to go wrong, and for how long: service, before_ms, steps: [{name, for_ms, fault: {match, percent, delay_ms, abort_status,
    /// grpc_status, reset, bandwidth_bytes_per_second, direction}}], after_ms
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: Reach,
}

/// Runs the drill to its end, and prints the report.
///
/// # Errors
///
/// When the file is bad, or the agent does not do what it is asked.
pub fn run(drill: &Drill) -> Result<u8, Failure> {
    let plan = file::plan(&file::text(&drill.file)?, &drill.file.display().to_string())?;
    let mut phases = Vec::new();
    let done = play(drill, &plan, &mut phases);
    let phases = report(&plan.service, &phases);
    say(if drill.json { format!("{:#}\n", report::json(&phases)) } else { report::tell(&phases) });
    done.map(|()| 0)
}

/// Before, each step, after; as far as it gets.
fn play(drill: &Drill, plan: &Plan, phases: &mut Vec<Phase>) -> Result<(), Failure> {
    let watch = |name: &str, period| Step { name: name.to_owned(), period, fault: None };
    // So that an agent which does not let us is found before anything is waited for.
    order(drill, plan, None)?;
    let steps = [watch("before", plan.before)].into_iter().chain(plan.steps.iter().cloned());
    for step in steps.chain([watch("after", plan.after)]).filter(|step| !step.period.is_zero()) {
        eprintln!("sockway: {} for {:?}", step.name, step.period);
        let (began, first) = (Instant::now(), sample(drill)?);
        let held = hold(drill, plan, &step);
        let last = sample(drill)?;
        phases.push(Phase { name: step.name, period: began.elapsed(), first, last });
        held?;
    }
    Ok(())
}

/// Has the step's fault go on for its time.
fn hold(drill: &Drill, plan: &Plan, step: &Step) -> Result<(), Failure> {
    let end = Instant::now() + step.period;
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        if let Some(fault) = &step.fault {
            // Never longer than the step, so that a command that is late ends nothing late.
            let lease = LEASE.min(left + RENEW).as_millis() as u64;
            order(drill, plan, Some(file::show_lease(fault, lease)))?;
        }
        thread::sleep(left.min(RENEW));
    }
    if step.fault.is_some() { order(drill, plan, None) } else { Ok(()) }
}

/// Orders a fault, or that there be none.
fn order(drill: &Drill, plan: &Plan, fault: Option<Value>) -> Result<(), Failure> {
    let path = format!("/v1/services/{}/fault", segment(&plan.service));
    let method = if fault.is_some() { "PUT" } else { "DELETE" };
    drill.reach.ask(method, &path, fault.as_ref())?.read::<Entry>().map(|_| ())
}

fn sample(drill: &Drill) -> Result<Sample, Failure> {
    drill.reach.ask("GET", "/metrics", None).map(|said| Sample::parse(said.text()))
}
