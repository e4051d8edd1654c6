//! HTTP/1.1 through the agent and through the other proxies, from one namespace to another.

use super::{
    super::{agent::Forward, load::Load, way},
    Scenario,
    l4::at_least,
    l7_h1::{MACHINE, WAYS},
};

const LOAD: Load =
    Load { scenario: "l7-h1-pods", forward: Forward::Http, pods: true, body: "1k", connections: 32, ways: WAYS };

/// See the file.
pub const SCENARIO: Scenario = Scenario {
    name: LOAD.scenario,
    what: "HTTP/1.1 through the agent, client and origin in a namespace each (veth, routed), 1 KiB, 32 connections",
    goals: &[at_least(way::SOCKWAY_SHORTCUT, 1.0), MACHINE],
    run: |bench, take| LOAD.run(bench, take),
};
