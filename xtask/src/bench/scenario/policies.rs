//! What deciding costs: HTTP/1.1 through the agent to a service with every policy on, and to one that only chooses with care, beside a plain
//! service of the same agent.

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

/// None of them ever says no: what is measured is that they are asked.
const ALL: &str = "request_limits: [{ kind: token_bucket, limit: 10000000 }, { kind: concurrency, limit: 100000 }], \
    breaker: hystrix, isolation: { max_concurrency: 100000, timeout_ms: 30000 }, \
    fallback: { respond: { status: 503, body: closed } }, reason_header: on, \
    timeout_ms: 15000, deadline: {}, retry: { attempts: 2, back_off: {} }, \
    filters: [{ kind: request_id }, { kind: headers, request: { set: { x-a: '1' } }, response: { set: { x-b: '2' } } }], \
    outlier: { consecutive_5xx: 5 }, probe: { type: http, path: /1k, interval_ms: 1000, no_traffic_interval_ms: 1000 }, \
    routes: [{ match: { path: { prefix: / } }, split: [{ weight: 9 }, { weight: 1 }] }], ";

/// What finds an endpoint, and nothing else.
const CHOOSING: &str = "outlier: { consecutive_5xx: 5 }, \
    probe: { type: http, path: /1k, interval_ms: 1000, no_traffic_interval_ms: 1000 }, \
    routes: [{ match: { path: { prefix: / } }, split: [{ weight: 9 }, { weight: 1 }] }], ";

/// See the file.
pub const SCENARIO: Scenario = Scenario {
    name: "policies",
    what: "HTTP/1.1 through the agent, every policy on, and weights, outlier detection and probes alone, 1 KiB, 32 connections",
    goals: &[
        speed(way::SOCKWAY_POLICIES, 0.95),
        speed(way::SOCKWAY_CHOOSING, 0.97),
        cost(way::SOCKWAY_POLICIES, 1.05),
        cost(way::SOCKWAY_CHOOSING, 1.03),
    ],
    how: How::Load(Load {
        forward: Forward::Http,
        layout: Layout::Flat,
        traffic: Traffic::Http { body: "1k", connections: 32, anew: false },
        ways: &[way::SOCKWAY, way::SOCKWAY_POLICIES, way::SOCKWAY_CHOOSING],
        extra: &[
            Extra { way: way::SOCKWAY_POLICIES, address: "127.66.0.3:80", keys: ALL },
            Extra { way: way::SOCKWAY_CHOOSING, address: "127.66.0.4:80", keys: CHOOSING },
        ],
    }),
};

const fn speed(way: &'static str, factor: f64) -> Goal {
    let (placement, against) = (Placement::Free, Against::Ratio(way::SOCKWAY));
    Goal { way, figure: Figure::Rps, placement, against, bound: Bound::AtLeast(factor) }
}

const fn cost(way: &'static str, factor: f64) -> Goal {
    let (placement, against) = (Placement::Pinned, Against::Ratio(way::SOCKWAY));
    Goal { way, figure: Figure::Cpu, placement, against, bound: Bound::AtMost(factor) }
}
