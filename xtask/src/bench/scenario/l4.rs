//! A kernel-balanced service against dialling nginx directly, in one namespace.

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

/// Ways of every layer-4 scenario: a proxy would be another thing to measure (`tcp`).
pub const WAYS: &[&str] = &[way::DIRECT, way::DIRECT_2CORE, way::SOCKWAY, way::SOCKWAY_SHORTCUT];

const LOAD: Load =
    Load { scenario: "l4", forward: Forward::Kernel, pods: false, body: "1k", connections: 32, ways: WAYS };

/// See the file.
pub const SCENARIO: Scenario = Scenario {
    name: LOAD.scenario,
    what: "a service balanced in the kernel, same namespace, 1 KiB, 32 connections",
    goals: &[at_least(way::SOCKWAY, 0.98), at_least(way::SOCKWAY_SHORTCUT, 1.10)],
    run: |bench, take| LOAD.run(bench, take),
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
