//! Connections that are kept and say nothing: what each holds in the agent's memory, and in the kernel's.

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::{Context, Result, ensure};

use rustix::process::{Resource, getrlimit};

use super::{
    super::{
        Bench,
        agent::{Agent, Forward, Plan, Service},
        goal::{Against, Bound, Goal},
        hold::Holder,
        interrupt,
        namespace::Layout,
        report::Take,
        sample::{Figure, Placement, Sample},
        stand::Stand,
        way,
    },
    How, Scenario,
};

const CONNECTIONS_MAX: u64 = 20_000;
/// Descriptors that a process needs besides; of the agent's, 256 stay free (`node/descriptors.rs`).
const OTHERS: u64 = 500;
/// After this whatever the step before needed is given back.
const SETTLE: Duration = Duration::from_secs(1);
const ORIGIN: &str = "127.0.0.1:8080";
const ADDRESS: &str = "127.66.0.1:80";

/// See the file.
pub const SCENARIO: Scenario = Scenario {
    name: "idle",
    what: "20 000 idle connections of HTTP/1.1 through the agent, or as many as `ulimit -n` lets be; one worker",
    goals: &[Goal {
        way: way::SOCKWAY,
        figure: Figure::Held,
        placement: Placement::Free,
        against: Against::Nothing,
        bound: Bound::AtMost(1.0),
    }],
    how: How::By(run),
};

fn run(bench: &Bench, take: &mut Take) -> Result<()> {
    let stand = Stand::raise(bench, Placement::Free, Layout::Flat)?;
    let _origin = way::http_origin(&stand, "origin", &stand.origin(), ORIGIN)?;
    let plan = Plan {
        instance: "bench".into(),
        workers: 1,
        admin_port: 9901,
        cgroups: stand.captured().into_iter().map(|group| (group.to_owned(), false)).collect(),
        services: vec![Service {
            name: "idle".into(),
            address: ADDRESS.into(),
            forward: Forward::Http,
            shortcut: false,
            endpoints: vec![ORIGIN.into()],
            keys: "",
        }],
    };
    for round in 1..=bench.rounds {
        take.add(Sample {
            way: way::SOCKWAY,
            placement: Placement::Free,
            round,
            values: measure(bench, &stand, &plan)?,
        })?;
    }
    Ok(())
}

/// One agent's life: memory that it has once had it does not give back, so that a second crowd would seem to need none.
fn measure(bench: &Bench, stand: &Stand, plan: &Plan) -> Result<BTreeMap<Figure, f64>> {
    let agent = Agent::start(bench, stand, plan)?;
    let mut holder = Holder::start(&stand.client())?;
    let memory = |holder: &mut Holder, connections| -> Result<_> {
        holder.hold(ADDRESS, connections)?;
        interrupt::wait_for(SETTLE, || Ok(None::<()>))?;
        Ok((agent.process().rss_kb()? as f64, slab_kb()?))
    };
    let few = memory(&mut holder, 1)?;
    let before = agent.counters(stand)?;
    let connections = connections()?;
    let many = memory(&mut holder, connections)?;
    let taken = agent.counters(stand)?.since(&before, "sockway_kernel_connects_total", "verdict=\"agent\"");
    ensure!(taken >= f64::from(connections), "only {taken} connections went through the agent");
    let each = |many: f64, few: f64| (many - few) / f64::from(connections);
    Ok(BTreeMap::from([
        (Figure::Held, each(many.0, few.0)),
        (Figure::HeldKernel, each(many.1, few.1)),
        (Figure::Rss, many.0),
    ]))
}

/// How many there can be: each is a descriptor of the client's and one of the agent's.
fn connections() -> Result<u32> {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let connections = limit.saturating_sub(OTHERS).min(CONNECTIONS_MAX);
    ensure!(connections > 0, "{limit} descriptors are too few (ulimit -n)");
    Ok(u32::try_from(connections)?)
}

/// What the kernel keeps in its slabs, sockets and their queues among it.
fn slab_kb() -> Result<f64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("Slab:")).context("/proc/meminfo without Slab")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
