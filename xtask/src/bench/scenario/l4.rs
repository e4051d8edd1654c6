//! A kernel-balanced service against dialling nginx directly: in one namespace, and from one to another.

use super::{
    super::{
        agent::Forward,
        goal::{Against, Bound, Goal},
        load::{Extra, Load},
        namespace::Layout,
        sample::{Figure, Placement},
        traffic::Traffic,
        way,
    },
    How, Scenario,
};

/// What the kernel half can do besides balancing: affinity and limits. All of it is looked at for each connection; none ever says no.
const KEYS: &str = "affinity_timeout_ms: 600000, limits: { connections: 100000, connections_per_second: 1000000 }, ";

/// Without proxies: those would be another thing to measure (`tcp`).
const LOAD: Load = Load {
    forward: Forward::Kernel,
    layout: Layout::Flat,
    traffic: Traffic::Http { body: "1k", connections: 32, anew: false },
    ways: &[way::DIRECT, way::DIRECT_2CORE, way::SOCKWAY, way::SOCKWAY_POLICIES, way::SOCKWAY_SHORTCUT],
    extra: &[Extra { way: way::SOCKWAY_POLICIES, address: "127.66.0.3:80", keys: KEYS }],
};

/// In one namespace.
pub const FLAT: Scenario = Scenario {
    name: "l4",
    what: "a service balanced in the kernel, same namespace, 1 KiB, 32 connections",
    goals: &[
        at_least(way::SOCKWAY, 0.98),
        at_least(way::SOCKWAY_POLICIES, 0.97),
        at_least(way::SOCKWAY_SHORTCUT, 1.10),
    ],
    how: How::Load(LOAD),
};

/// From one namespace to another.
pub const PODS: Scenario = Scenario {
    name: "l4-pods",
    what: "a service balanced in the kernel, client and origin in a namespace each (veth, routed), 1 KiB, 32 connections",
    goals: &[
        at_least(way::SOCKWAY, 0.98),
        at_least(way::SOCKWAY_POLICIES, 0.97),
        at_least(way::SOCKWAY_SHORTCUT, 1.40),
    ],
    how: How::Load(Load { layout: Layout::Pods, ..LOAD }),
};

/// A way's requests/s, free, as a multiple of what dialling the origin gives.
pub const fn at_least(way: &'static str, factor: f64) -> Goal {
    Goal {
        way,
        figure: Figure::Rps,
        placement: Placement::Free,
        against: Against::Ratio(way::DIRECT),
        bound: Bound::AtLeast(factor),
    }
}
