//! Bytes that the agent does not understand, against dialling directly and through the other proxies: 64-byte messages back and forth on
//! one connection, then as many bytes as go through another in one direction.

use super::{
    super::{
        agent::Forward,
        goal::{Against, Bound, Goal},
        load::Load,
        namespace::Layout,
        sample::{Figure, Placement},
        traffic::Traffic,
        way,
    },
    How, Scenario,
};

const LOAD: Load = Load {
    forward: Forward::Opaque,
    layout: Layout::Flat,
    traffic: Traffic::Tcp,
    ways: &[way::DIRECT, way::DIRECT_2CORE, way::SOCKWAY, way::SOCKWAY_JOINED, way::NGINX, way::HAPROXY, way::ENVOY],
    extra: &[],
};

/// The proxies that the relay has to beat.
const RIVALS: Against = Against::RatioToBetter(&[way::NGINX, way::HAPROXY, way::ENVOY]);

/// See the file. The bounds of the relay are what a plain read/write proxy with a thread a direction was measured to reach on Linux 6.18
/// (31 µs where direct took 12.4, half of its GB/s).
pub const SCENARIO: Scenario = Scenario {
    name: "tcp",
    what: "opaque TCP through the agent: 64-byte messages one at a time, and bulk one way, one connection each",
    goals: &[
        against_direct(way::SOCKWAY_JOINED, Figure::P50, Bound::AtMost(0.7)),
        against_direct(way::SOCKWAY_JOINED, Figure::GbPerS, Bound::AtLeast(1.5)),
        against_direct(way::SOCKWAY, Figure::P50, Bound::AtMost(2.5)),
        against_direct(way::SOCKWAY, Figure::GbPerS, Bound::AtLeast(0.5)),
        Goal {
            way: way::SOCKWAY,
            figure: Figure::CpuPerGb,
            placement: Placement::Pinned,
            against: RIVALS,
            bound: Bound::AtMost(1.0),
        },
    ],
    how: How::Load(LOAD),
};

const fn against_direct(way: &'static str, figure: Figure, bound: Bound) -> Goal {
    Goal { way, figure, placement: Placement::Free, against: Against::Ratio(way::DIRECT), bound }
}
