//! HTTP/2 and gRPC through the agent and through the other proxies, prior knowledge on both sides.

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
    forward: Forward::Http2,
    layout: Layout::Flat,
    traffic: Traffic::Http2 { body: "1k", connections: 4, streams: 32 },
    ways: &[way::DIRECT, way::DIRECT_2CORE, way::SOCKWAY, way::NGINX, way::HAPROXY, way::ENVOY],
    extra: &[],
};

/// Many streams at once.
pub const MANY: Scenario = Scenario {
    name: "l7-h2",
    what: "HTTP/2 through the agent, same namespace, 1 KiB, 4 connections with 32 streams each",
    goals: &[BEST, ENVOY],
    how: How::Load(LOAD),
};

/// One at a time.
pub const ONE: Scenario = Scenario {
    name: "l7-h2-1x1",
    what: "HTTP/2 through the agent, same namespace, 1 KiB, one stream at a time",
    goals: &[BEST, ENVOY],
    how: How::Load(Load { traffic: Traffic::Http2 { body: "1k", connections: 1, streams: 1 }, ..LOAD }),
};

/// Unary calls.
pub const GRPC: Scenario = Scenario {
    name: "grpc",
    what: "unary gRPC through the agent, same namespace, messages of 64 bytes, 4 connections with 32 calls each",
    goals: &[BEST, ENVOY],
    how: How::Load(Load { traffic: Traffic::Grpc { connections: 4, streams: 32 }, ..LOAD }),
};

const BEST: Goal = cost(Against::RatioToBetter(&[way::NGINX, way::HAPROXY, way::ENVOY]), 0.85);
const ENVOY: Goal = cost(Against::Ratio(way::ENVOY), 0.4);

const fn cost(against: Against, factor: f64) -> Goal {
    Goal { way: way::SOCKWAY, figure: Figure::Cpu, placement: Placement::Pinned, against, bound: Bound::AtMost(factor) }
}
