//! HTTP/1.1 through the agent and through the other proxies: in one namespace and from one to another, short bodies and long ones, many
//! connections, one, and one for each request.

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
    l4::at_least,
};

const LOAD: Load = Load {
    forward: Forward::Http,
    layout: Layout::Flat,
    traffic: Traffic::Http { body: "1k", connections: 32, anew: false },
    ways: &[way::DIRECT, way::DIRECT_2CORE, way::SOCKWAY, way::SOCKWAY_SHORTCUT, way::NGINX, way::HAPROXY, way::ENVOY],
    extra: &[],
};

/// What makes sense where the shortcut is no question.
const BY_TCP: &[&str] = &[way::DIRECT, way::DIRECT_2CORE, way::SOCKWAY, way::NGINX, way::HAPROXY, way::ENVOY];

/// The proxies that Sockway has to beat.
const RIVALS: &[&str] = &[way::NGINX, way::HAPROXY, way::ENVOY];

/// In one namespace.
pub const FLAT: Scenario = Scenario {
    name: "l7-h1",
    what: "HTTP/1.1 through the agent, same namespace, 1 KiB, 32 connections",
    goals: &[
        speed(way::SOCKWAY, 1.25),
        cost(way::SOCKWAY, 0.75),
        Goal { figure: Figure::MachineCpu, ..cost(way::SOCKWAY, 0.85) },
        speed(way::SOCKWAY_SHORTCUT, 2.0),
        cost(way::SOCKWAY_SHORTCUT, 0.5),
        machine(1.0),
    ],
    how: How::Load(LOAD),
};

/// From one namespace to another.
pub const PODS: Scenario = Scenario {
    name: "l7-h1-pods",
    what: "HTTP/1.1 through the agent, client and origin in a namespace each (veth, routed), 1 KiB, 32 connections",
    goals: &[at_least(way::SOCKWAY_SHORTCUT, 1.1), machine(0.9)],
    how: How::Load(Load { layout: Layout::Pods, ..LOAD }),
};

/// To an origin that is none of the node's.
pub const REMOTE: Scenario = Scenario {
    name: "l7-h1-remote",
    what: "HTTP/1.1 through the agent, the origin out of its sight (veth), 1 KiB, 32 connections",
    goals: &[cost(way::SOCKWAY, 0.75)],
    how: How::Load(Load { layout: Layout::Remote, ways: BY_TCP, ..LOAD }),
};

/// Long bodies: with equal bodies, requests/s are bytes/s, and CPU per request is CPU per GB.
pub const LONG: Scenario = Scenario {
    name: "l7-h1-64k",
    what: "HTTP/1.1 through the agent, same namespace, 64 KiB, 32 connections",
    goals: &[speed(way::SOCKWAY, 1.2), cost(way::SOCKWAY, 0.8)],
    how: How::Load(Load { traffic: Traffic::Http { body: "64k", connections: 32, anew: false }, ways: BY_TCP, ..LOAD }),
};

/// A single connection: what the hop adds to the time of a request.
pub const LATENCY: Scenario = Scenario {
    name: "l7-h1-latency",
    what: "HTTP/1.1 through the agent, same namespace, 1 KiB, one connection",
    goals: &[
        added(way::SOCKWAY, Figure::P50, 0.9),
        added(way::SOCKWAY, Figure::P99, 1.0),
        added(way::SOCKWAY_SHORTCUT, Figure::P50, 0.4),
        added(way::SOCKWAY_SHORTCUT, Figure::P99, 1.0),
    ],
    how: How::Load(Load { traffic: Traffic::Http { body: "1k", connections: 1, anew: false }, ..LOAD }),
};

/// Short lives.
pub const CONNECTIONS: Scenario = Scenario {
    name: "l7-h1-conns",
    what: "HTTP/1.1 through the agent, same namespace, 1 KiB, a connection for each request, 32 at a time",
    goals: &[speed(way::SOCKWAY, 1.2)],
    how: How::Load(Load { traffic: Traffic::Http { body: "1k", connections: 32, anew: true }, ways: BY_TCP, ..LOAD }),
};

/// With the shortcut, the hop through the agent costs the machine no more than this many times no hop at all.
const fn machine(factor: f64) -> Goal {
    Goal {
        way: way::SOCKWAY_SHORTCUT,
        figure: Figure::MachineCpu,
        placement: Placement::Pinned,
        against: Against::Ratio(way::DIRECT),
        bound: Bound::AtMost(factor),
    }
}

const fn speed(way: &'static str, factor: f64) -> Goal {
    let against = Against::RatioToBetter(RIVALS);
    Goal { way, figure: Figure::Rps, placement: Placement::Free, against, bound: Bound::AtLeast(factor) }
}

const fn cost(way: &'static str, factor: f64) -> Goal {
    let against = Against::RatioToBetter(RIVALS);
    Goal { way, figure: Figure::Cpu, placement: Placement::Pinned, against, bound: Bound::AtMost(factor) }
}

const fn added(way: &'static str, figure: Figure, factor: f64) -> Goal {
    let against = Against::Added { base: way::DIRECT, rivals: RIVALS };
    Goal { way, figure, placement: Placement::Free, against, bound: Bound::AtMost(factor) }
}
