//! HTTP/1.1 through the agent and through the other proxies: in one namespace, and from one to another.

use super::{
    super::{
        agent::Forward,
        goal::{Against, Bound, Goal},
        load::Load,
        sample::{Figure, Placement},
        traffic::Traffic,
        way,
    },
    How, Scenario,
    l4::at_least,
};

const LOAD: Load = Load {
    forward: Forward::Http,
    pods: false,
    traffic: Traffic::Http { body: "1k", connections: 32 },
    ways: &[way::DIRECT, way::DIRECT_2CORE, way::SOCKWAY, way::SOCKWAY_SHORTCUT, way::NGINX, way::HAPROXY, way::ENVOY],
};

/// The proxies that Sockway has to beat.
const RIVALS: Against = Against::RatioToBetter(&[way::NGINX, way::HAPROXY]);

/// In one namespace.
pub const FLAT: Scenario = Scenario {
    name: "l7-h1",
    what: "HTTP/1.1 through the agent, same namespace, 1 KiB, 32 connections",
    goals: &[
        speed(way::SOCKWAY, 1.15),
        cost(way::SOCKWAY, 0.85),
        speed(way::SOCKWAY_SHORTCUT, 1.6),
        cost(way::SOCKWAY_SHORTCUT, 0.6),
        MACHINE,
    ],
    how: How::Load(LOAD),
};

/// From one namespace to another.
pub const PODS: Scenario = Scenario {
    name: "l7-h1-pods",
    what: "HTTP/1.1 through the agent, client and origin in a namespace each (veth, routed), 1 KiB, 32 connections",
    goals: &[at_least(way::SOCKWAY_SHORTCUT, 1.0), MACHINE],
    how: How::Load(Load { pods: true, ..LOAD }),
};

/// With the shortcut, the hop through the agent costs the machine hardly more than no hop at all.
const MACHINE: Goal = Goal {
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
