//! What the hook adds to `connect()`: for a connection that is no service's, one balanced in the kernel, one handed to the agent, with
//! small and large service tables. Batches of all of them in turn, so that whatever the machine does meets all of them alike.

use std::{collections::BTreeMap, time::Instant};

use anyhow::{Context, Result, ensure};

use super::{
    super::{
        Bench,
        agent::{Agent, Counters, Forward, Plan, Service, in_group},
        dial::{self, Dialler},
        goal::{Against, Bound, Goal},
        interrupt,
        namespace::Layout,
        report::Take,
        sample::{Figure, Placement, Sample, Spread},
        stand::Stand,
        way,
    },
    How, Scenario,
};

const ENDPOINT: &str = "127.0.0.1:8080";
/// Of the agent with the smallest table; the others follow.
const FIRST_ADMIN_PORT: u16 = 9901;

/// A service table of one size, and what its ways are called.
struct Size {
    services: usize,
    group: &'static str,
    pass: &'static str,
    kernel: &'static str,
    agent: &'static str,
}

const SIZES: [Size; 3] = [
    Size { services: 10, group: "client-10", pass: "pass-10", kernel: "kernel-10", agent: "agent-10" },
    Size { services: 10_000, group: "client-10000", pass: "pass-10000", kernel: "kernel-10000", agent: "agent-10000" },
    Size {
        services: 100_000,
        group: "client-100000",
        pass: "pass-100000",
        kernel: "kernel-100000",
        agent: "agent-100000",
    },
];

/// See the file.
pub const SCENARIO: Scenario = Scenario {
    name: "connect",
    what: "what the hook adds to connect(), service tables of 10 to 100 000; client on CPU 0, listener and agent on CPU 1",
    goals: &[
        added(SIZES[0].kernel, way::DIRECT, 1.5),
        added(SIZES[0].agent, way::DIRECT, 4.0),
        added(SIZES[2].kernel, way::DIRECT, 1.5),
        added(SIZES[2].agent, way::DIRECT, 4.0),
        flat(SIZES[1].kernel, SIZES[0].kernel),
        flat(SIZES[2].kernel, SIZES[0].kernel),
        flat(SIZES[1].agent, SIZES[0].agent),
        flat(SIZES[2].agent, SIZES[0].agent),
    ],
    how: How::By(run),
};

/// However many services there are: less is no fault.
const fn flat(way: &'static str, small: &'static str) -> Goal {
    let (figure, placement) = (Figure::Connect, Placement::Pinned);
    Goal { way, figure, placement, against: Against::Ratio(small), bound: Bound::AtMost(1.05) }
}

const fn added(way: &'static str, over: &'static str, micros: f64) -> Goal {
    Goal {
        way,
        figure: Figure::Connect,
        placement: Placement::Pinned,
        against: Against::Difference(over),
        bound: Bound::AtMost(micros),
    }
}

/// One thing to connect to: by which child, and where.
struct Target {
    way: &'static str,
    child: usize,
    address: String,
}

fn run(bench: &Bench, take: &mut Take) -> Result<()> {
    ensure!(bench.cores >= 2, "there is only one core: the listener would be timed too");
    let stand = Stand::raise(bench, Placement::Pinned, Layout::Flat)?;
    let _listener = dial::listener(&stand.origin_apart(), ENDPOINT, &stand.file("listener.log"))?;
    let mut children = vec![Dialler::start(&stand.outsider())?, Dialler::start(&stand.outsider())?];
    let mut targets = vec![
        Target { way: way::DIRECT, child: 0, address: ENDPOINT.into() },
        Target { way: "direct-again", child: 1, address: ENDPOINT.into() },
    ];
    let mut agents = Vec::new();
    for (number, size) in SIZES.iter().enumerate() {
        let group = stand.group(size.group)?;
        match Agent::start(bench, &stand, &plan(size, number as u16, &group.name)) {
            Ok(agent) => agents.push(agent),
            Err(error) => {
                take.fail(size.kernel, Placement::Pinned, &error)?;
                continue;
            }
        }
        let middle = size.services / 2;
        for (way, address) in
            [(size.pass, ENDPOINT.to_owned()), (size.kernel, address(middle & !1)), (size.agent, address(middle | 1))]
        {
            targets.push(Target { way, child: children.len(), address });
        }
        children.push(Dialler::start(&in_group(&stand, &group))?);
    }
    let before = counters(&agents, &stand)?;
    await_listeners(&mut children, &targets)?;
    for round in 1..=bench.rounds {
        for (target, micros) in targets.iter().zip(turns(bench, &mut children, &targets)?) {
            let median = Spread::of(micros).context("a round without a connection")?.median;
            let values = BTreeMap::from([(Figure::Connect, median)]);
            take.add(Sample { way: target.way, placement: Placement::Pinned, round, values })?;
        }
    }
    check(&before, &counters(&agents, &stand)?)
}

/// Even numbers are balanced in the kernel, odd ones go to the agent.
fn plan(size: &Size, number: u16, group: &str) -> Plan {
    let service = |number: usize| Service {
        name: format!("service-{number}"),
        address: address(number),
        forward: if number.is_multiple_of(2) { Forward::Kernel } else { Forward::Http },
        shortcut: false,
        endpoints: vec![ENDPOINT.into()],
        keys: "",
    };
    Plan {
        instance: format!("bench-{}", size.services),
        workers: 1,
        admin_port: FIRST_ADMIN_PORT + number,
        cgroups: vec![(group.to_owned(), false)],
        services: (0..size.services).map(service).collect(),
    }
}

fn address(number: usize) -> String {
    format!("127.{}.{}.{}:80", 66 + number / 62_500, number / 250 % 250, number % 250 + 1)
}

fn counters(agents: &[Agent], stand: &Stand) -> Result<Vec<Counters>> {
    agents.iter().map(|agent| agent.counters(stand)).collect()
}

/// The first batches, which do not count.
fn await_listeners(children: &mut [Dialler], targets: &[Target]) -> Result<()> {
    for target in targets {
        children[target.child].batch(&target.address)?;
    }
    Ok(())
}

/// A batch of each target in turn, as long as a round lasts; gives each target's microseconds.
fn turns(bench: &Bench, children: &mut [Dialler], targets: &[Target]) -> Result<Vec<Vec<f64>>> {
    let mut micros = vec![Vec::new(); targets.len()];
    let start = Instant::now();
    while start.elapsed() < bench.round {
        interrupt::check()?;
        for (target, micros) in targets.iter().zip(&mut micros) {
            micros.extend(children[target.child].batch(&target.address)?);
        }
    }
    Ok(micros)
}

/// The figures count only if the hook did with each connection what its way says.
fn check(before: &[Counters], after: &[Counters]) -> Result<()> {
    for (size, (before, after)) in SIZES.iter().zip(before.iter().zip(after)) {
        let seen = |label: &str| after.since(before, "sockway_kernel_connects_total", label);
        let (pass, kernel, agent) =
            (seen("verdict=\"not_service\""), seen("verdict=\"balanced\""), seen("verdict=\"agent\""));
        ensure!(
            pass == kernel && kernel == agent && agent > 0.0,
            "{} services: {pass} passed, {kernel} balanced, {agent} handed to the agent, instead of equally many",
            size.services
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_services_are_unique() {
        let mut addresses: Vec<_> = (0..SIZES[2].services).map(address).collect();
        addresses.sort();
        addresses.dedup();
        assert_eq!(addresses.len(), SIZES[2].services);
        assert_eq!((address(0), address(99_999)), ("127.66.0.1:80".into(), "127.67.149.250:80".into()));
    }
}
