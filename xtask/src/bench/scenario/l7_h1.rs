//! HTTP/1.1 through the agent and through the other proxies, in one namespace.

use super::{
    super::{
        agent::Forward,
        goal::{Against, Bound, Goal},
        load::Load,
        sample::{Figure, Placement},
        way,
    },
    Scenario,
};

/// Ways of every HTTP/1.1 scenario.
pub const WAYS: &[&str] = &way::ALL;

const LOAD: Load =
    Load { scenario: "l7-h1", forward: Forward::Http, pods: false, body: "1k", connections: 32, ways: WAYS };

/// The proxies that Sockway has to beat.
const RIVALS: Against = Against::RatioToBetter(&[way::NGINX, way::HAPROXY]);

/// See the file.
pub const SCENARIO: Scenario = Scenario {
    name: LOAD.scenario,
    what: "HTTP/1.1 through the agent, same namespace, 1 KiB, 32 connections",
    goals: &[
        speed(way::SOCKWAY, 1.15),
        cost(way::SOCKWAY, 0.85),
        speed(way::SOCKWAY_SHORTCUT, 1.6),
        cost(way::SOCKWAY_SHORTCUT, 0.6),
        MACHINE,
    ],
    run: |bench, take| LOAD.run(bench, take),
};

/// With the shortcut, the hop through the agent costs the machine hardly more than no hop at all.
pub const MACHINE: Goal = Goal {
    way: way::SOCKWAY_SHORTCUT,
    figure: Figure::MachineCpu,
    placement: Placement::Pinned,
    against: Against::Ratio(way::DIRECT),
    bound: Bound::AtMost(1.15),
};

const fn speed(way: &'static str, factor: f64) -> Goal {
    Goal { way, figure: Figure::Rps, placement: Placement::Free, against: RIVALS, bound: Bound::AtLeast(factor) }
}

const fn cost(way: &'static str, factor: f64) -> Goal {
    Goal { way, figure: Figure::Cpu, placement: Placement::Pinned, against: RIVALS, bound: Bound::AtMost(factor) }
}
