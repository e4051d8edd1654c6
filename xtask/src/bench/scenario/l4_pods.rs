//! A kernel-balanced service against dialling nginx directly, from one namespace to another.

use super::{
    super::{agent::Forward, load::Load, way},
    Scenario,
    l4::{WAYS, at_least},
};

const LOAD: Load =
    Load { scenario: "l4-pods", forward: Forward::Kernel, pods: true, body: "1k", connections: 32, ways: WAYS };

/// See the file.
pub const SCENARIO: Scenario = Scenario {
    name: LOAD.scenario,
    what: "a service balanced in the kernel, client and origin in a namespace each (veth, routed), 1 KiB, 32 connections",
    goals: &[at_least(way::SOCKWAY, 0.98), at_least(way::SOCKWAY_SHORTCUT, 1.40)],
    run: |bench, take| LOAD.run(bench, take),
};
