//! The scenarios, a file for each: what is measured, and what it has to reach.

mod connect;
mod idle;
mod l4;
mod l7_h1;
mod l7_h2;
mod policies;
mod rest;
mod scale;
mod tcp;

use anyhow::Result;

use super::{Bench, goal::Goal, load::Load, report::Take};

/// One thing to measure.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it is, in a line.
    pub what: &'static str,
    /// What it has to reach.
    pub goals: &'static [Goal],
    /// How it is measured.
    pub how: How,
}

/// How a scenario is measured.
#[derive(Clone, Copy, Debug)]
pub enum How {
    /// The same load by every way.
    Load(Load),
    /// In its own manner.
    By(fn(&Bench, &mut Take) -> Result<()>),
}

impl How {
    /// Measures.
    pub fn run(&self, bench: &Bench, take: &mut Take) -> Result<()> {
        match self {
            Self::Load(load) => load.run(bench, take),
            Self::By(run) => run(bench, take),
        }
    }
}

/// All of them, in the order in which they run.
pub const ALL: [Scenario; 17] = [
    l4::FLAT,
    l4::PODS,
    l7_h1::FLAT,
    l7_h1::PODS,
    l7_h1::REMOTE,
    l7_h1::LONG,
    l7_h1::LATENCY,
    l7_h1::CONNECTIONS,
    policies::SCENARIO,
    l7_h2::MANY,
    l7_h2::ONE,
    l7_h2::GRPC,
    tcp::SCENARIO,
    connect::SCENARIO,
    scale::SCENARIO,
    idle::SCENARIO,
    rest::SCENARIO,
];

/// The scenarios of these names, or all of them; the name that is none otherwise.
pub fn named(names: &[String]) -> Result<Vec<Scenario>, &str> {
    if names.is_empty() {
        return Ok(ALL.to_vec());
    }
    names.iter().map(|name| ALL.into_iter().find(|scenario| scenario.name == name).ok_or(name.as_str())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenarios_are_found_by_name_and_an_unknown_one_is_named() {
        let names = |scenarios: Vec<Scenario>| scenarios.iter().map(|scenario| scenario.name).collect::<Vec<_>>();
        assert_eq!(names(named(&["l7-h1".into(), "l4".into()]).unwrap()), ["l7-h1", "l4"]);
        assert_eq!(named(&[]).unwrap().len(), ALL.len());
        assert_eq!(named(&["l4".into(), "l5".into()]).unwrap_err(), "l5");
    }
}
