//! `torture SEED FIRST TRANSFERS KILLS JSON FIELD…`: goes through fields with an agent of its own, prints a line for each, and fails if
//! anything was wrong on any of them. KILLS, or `-`, is how often the agent is killed on the field that kills it, which then ends. JSON
//! is a file to write, or `-`. `cargo xtask torture` builds what is needed and calls this.

use std::{
    fs::File,
    io::Write,
    sync::atomic::{AtomicBool, Ordering},
};

use nix::sys::signal::{SigHandler, Signal, signal};
use sockway_tests::torture::{self, FIELDS, Field, Order};

use crate::Outcome;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn interrupt(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Runs all fields, also after one of them failed.
pub fn run(arguments: &[String]) -> Outcome {
    let [seed, first, transfers, kills, json, names @ ..] = arguments else {
        return Err("torture SEED FIRST TRANSFERS KILLS|- JSON|- [FIELD…]".into());
    };
    let (seed, first, transfers): (u64, u64, u64) = (seed.parse()?, first.parse()?, transfers.parse()?);
    let kills = (kills != "-").then(|| kills.parse::<u64>()).transpose()?;
    let fields = fields(names)?;
    let mut json = (json != "-").then(|| File::create(json)).transpose()?;
    // Whatever was set up is taken away by whoever set it up: a signal ends the run, not the program.
    for caught in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler stores a flag, which is all that a handler may do.
        unsafe { signal(caught, SigHandler::Handler(interrupt)) }?;
    }
    println!("seed {seed}");
    let (mut failed, mut done) = (Vec::new(), 0);
    for (index, field) in fields.iter().enumerate() {
        // Shared out evenly; the first fields take what is left over.
        let count = fields.len() as u64;
        let share = transfers / count + u64::from((index as u64) < transfers % count);
        if share == 0 {
            continue;
        }
        let interrupted = || INTERRUPTED.load(Ordering::Relaxed);
        let kills = kills.filter(|_| field.kills_the_agent);
        let order = Order { seed, first, transfers: share, seconds_max: None, kills, interrupted };
        let Some(tally) = torture::run(field, &order) else { return Err("root tests are switched off".into()) };
        println!("{tally}");
        if let Some(json) = &mut json {
            writeln!(json, "{}", tally.json())?;
        }
        done += tally.transfers;
        if !tally.is_clean() {
            failed.push(field.name);
        }
        if interrupted() {
            return Err("interrupted".into());
        }
    }
    match failed.as_slice() {
        [] => {
            println!("{done} transfers: every byte and every end as planned");
            Ok(())
        }
        failed => Err(format!("seed {seed}: failed on {}", failed.join(", ")).into()),
    }
}

fn fields(names: &[String]) -> Result<Vec<&'static Field>, String> {
    if names.is_empty() {
        return Ok(FIELDS.iter().collect());
    }
    let known = || FIELDS.map(|field| field.name).join(", ");
    let find =
        |name: &String| Field::named(name).ok_or_else(|| format!("there is no field {name}; there are {}", known()));
    names.iter().map(find).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_name_and_an_unknown_one_is_told_with_the_known() {
        let names = |names: &[&str]| fields(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        assert_eq!(names(&[]).expect("all").len(), FIELDS.len());
        assert_eq!(names(&["off"]).expect("one")[0].name, "off");
        assert!(names(&["of"]).expect_err("none").starts_with("there is no field of; there are shortcut, "));
    }
}
