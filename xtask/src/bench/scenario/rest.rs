//! The agent at rest: what it holds in memory while nobody calls.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Result;

use super::{
    super::{
        Bench,
        agent::{Agent, Forward, Plan, Service},
        goal::{Against, Bound, Goal},
        interrupt,
        namespace::Layout,
        report::Take,
        sample::{Figure, Placement, Sample},
        stand::Stand,
        way,
    },
    How, Scenario,
};

const WORKERS: usize = 2;
/// 20 MB.
const BOUND_KB: f64 = 20.0 * 1024.0;
/// After this, and between two looks, whatever the start needed is given back.
const SETTLE: Duration = Duration::from_secs(2);

/// See the file.
pub const SCENARIO: Scenario = Scenario {
    name: "rest",
    what: "the agent at rest: resident memory with two workers",
    goals: &[Goal {
        way: way::SOCKWAY,
        figure: Figure::Rss,
        placement: Placement::Free,
        against: Against::Nothing,
        bound: Bound::AtMost(BOUND_KB),
    }],
    how: How::By(run),
};

fn run(bench: &Bench, take: &mut Take) -> Result<()> {
    let stand = Stand::raise(bench, Placement::Free, Layout::Flat)?;
    let service = |name: &str, address: &str, forward| Service {
        name: name.into(),
        address: address.into(),
        forward,
        shortcut: false,
        endpoints: vec!["127.0.0.1:8080".into()],
        keys: "",
    };
    let plan = Plan {
        instance: "bench".into(),
        workers: WORKERS,
        admin_port: 9901,
        cgroups: stand.captured().into_iter().map(|group| (group.to_owned(), false)).collect(),
        services: vec![
            service("kernel", "127.66.0.1:80", Forward::Kernel),
            service("agent", "127.66.0.2:80", Forward::Http),
        ],
    };
    let agent = Agent::start(bench, &stand, &plan)?;
    for round in 1..=bench.rounds {
        interrupt::wait_for(SETTLE, || Ok(None::<()>))?;
        let values = BTreeMap::from([(Figure::Rss, agent.process().rss_kb()? as f64)]);
        take.add(Sample { way: way::SOCKWAY, placement: Placement::Free, round, values })?;
    }
    Ok(())
}
