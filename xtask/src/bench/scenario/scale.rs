//! Ten thousand services of ten endpoints: how long the agent takes to put them in force, how long for one endpoint that is another, and
//! what the tables weigh. In force is what a captured program sees: whom its `connect()` reaches. Of a change the goal is the part that
//! any source of changes has; reading a file of 3 MB whole comes on top of it.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use super::{
    super::{
        Bench,
        agent::{Forward, Plan, Prepared, Service},
        goal::{Against, Bound, Goal},
        namespace::Layout,
        report::Take,
        sample::{Figure, Placement, Sample},
        stand::Stand,
        watch::{self, Watcher},
        way,
    },
    How, Scenario,
};

const SERVICES: usize = 10_000;
const ENDPOINTS: usize = 10;
/// Who answers on the ports of the endpoints: a server listens on every address of the namespace.
const SERVERS: [(&str, u16); 3] = [("first", 8080), ("second", 8081), ("third", 8082)];

/// See the file.
pub const SCENARIO: Scenario = Scenario {
    name: "scale",
    what: "10 000 services of 10 endpoints: loaded, loaded anew, one endpoint changed; memory of the maps",
    goals: &[
        at_most(Figure::Load, 2_000.0),
        at_most(Figure::Reload, 2_000.0),
        at_most(Figure::Apply, 20.0),
        // 64 MiB.
        at_most(Figure::Maps, 64.0 * 1024.0),
    ],
    how: How::By(run),
};

const fn at_most(figure: Figure, bound: f64) -> Goal {
    let (placement, against) = (Placement::Free, Against::Nothing);
    Goal { way: way::SOCKWAY, figure, placement, against, bound: Bound::AtMost(bound) }
}

fn run(bench: &Bench, take: &mut Take) -> Result<()> {
    let stand = Stand::raise(bench, Placement::Free, Layout::Flat)?;
    let mut servers = Vec::new();
    for (name, port) in SERVERS {
        let log = stand.file(&format!("{name}.log"));
        servers.push(watch::server(&stand.origin(), &format!("0.0.0.0:{port}"), name, &log)?);
    }
    let mut watcher = Watcher::start(&stand.client())?;
    for round in 1..=bench.rounds {
        let values = measure(bench, &stand, &mut watcher)?;
        take.add(Sample { way: way::SOCKWAY, placement: Placement::Free, round, values })?;
    }
    Ok(())
}

/// One agent's life: it finds nothing, loads everything, loads everything anew, and has one endpoint changed.
fn measure(bench: &Bench, stand: &Stand, watcher: &mut Watcher) -> Result<BTreeMap<Figure, f64>> {
    let [first, second, third] = SERVERS;
    let mut plan = plan(stand, first.1);
    // The services are written in their order: the last one of the file is in force when all are.
    let last = address(SERVICES - 1);
    let prepared = Prepared::new(bench, stand, &plan)?;
    let mut agent = None;
    let load = watcher.time(&last, first.0, || {
        agent = Some(prepared.start(stand)?);
        Ok(())
    })?;
    let mut agent = agent.context("an agent was started")?;
    agent.await_ready(stand)?;
    // Every slot of every service is another.
    plan = Plan { services: services(second.1), ..plan };
    let yaml = plan.yaml();
    let reload = watcher.time(&last, second.0, || agent.reload(&yaml))?;
    let changed = &mut plan.services[SERVICES - 1].endpoints[ENDPOINTS - 1];
    *changed = endpoint(SERVICES - 1, ENDPOINTS - 1, third.1);
    let yaml = plan.yaml();
    let change = watcher.time(&last, third.0, || agent.reload(&yaml))?;
    let apply = agent.counters(stand)?.sum("sockway_config_apply_seconds", "") * 1e3;
    let (maps, rss) = (agent.process().maps_kb()?, agent.process().rss_kb()? as f64);
    Ok(BTreeMap::from([
        (Figure::Load, load),
        (Figure::Reload, reload),
        (Figure::Change, change),
        (Figure::Apply, apply),
        (Figure::Maps, maps),
        (Figure::Rss, rss),
    ]))
}

fn plan(stand: &Stand, port: u16) -> Plan {
    Plan {
        instance: "bench-scale".into(),
        workers: 2,
        admin_port: 9901,
        cgroups: vec![(stand.captured()[0].to_owned(), false)],
        services: services(port),
    }
}

fn services(port: u16) -> Vec<Service> {
    let service = |number: usize| Service {
        name: format!("service-{number}"),
        address: address(number),
        forward: Forward::Kernel,
        shortcut: false,
        endpoints: (0..ENDPOINTS).map(|index| endpoint(number, index, port)).collect(),
        keys: "balance: round_robin, ",
    };
    (0..SERVICES).map(service).collect()
}

fn address(number: usize) -> String {
    format!("127.66.{}.{}:80", number / 250, number % 250 + 1)
}

/// No two services share an endpoint.
fn endpoint(service: usize, index: usize, port: u16) -> String {
    format!("127.{}.{}.{}:{port}", 80 + index, service / 250, service % 250 + 1)
}
