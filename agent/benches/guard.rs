//! `cargo bench -p sockway --bench guard`: what it costs to ask a token bucket, a breaker and a deadline about one request, and to tell the
//! breaker how it went; and that nothing is allocated for it. The profiler's columns say what was; there are none where nothing was.

use divan::{AllocProfiler, Bencher, black_box};
use sockway::{
    breaker::{self, Outcome},
    cluster::BreakerState,
    config::{Service, deadline::Carrier, file},
    deadline,
    limit::request,
    route::Request,
};
use std::sync::{Arc, atomic::AtomicU64};

#[global_allocator]
static ALLOCATIONS: AllocProfiler = AllocProfiler::system();

const HEAD: &[u8] =
    b"GET /orders/4711 HTTP/1.1\r\nHost: orders.example\r\nAccept: */*\r\nx-envoy-expected-rq-timeout-ms: 300\r\n\r\n";
/// Between two requests, in nanoseconds: fewer than the bucket lets through, so that every one is admitted.
const APART_NS: u64 = 1_000;

fn main() {
    divan::main();
}

fn service() -> Arc<Service> {
    let text = "services: [{name: a, address: 10.0.0.1:80, protocol: http, endpoints: [10.0.0.2:80], breaker: hystrix, \
                request_limits: [{kind: token_bucket, limit: 10000000}], timeout_ms: 1000, deadline: {}}]";
    Arc::clone(&file::parse(text, "bench").expect("a good file").services[0])
}

/// All that is decided of one request.
#[divan::bench]
fn limit_breaker_and_deadline(bencher: Bencher<'_, '_>) {
    let service = service();
    let limit = request::Judge::new(&service.request_limits[0].kind, 0).expect("a limit that is judged by itself");
    let rules = service.guard.breaker.as_ref().expect("a breaker");
    let (judge, state) = (breaker::Judge::new(rules), BreakerState::new(rules));
    let timing = service.timing.expect("a deadline");
    let mut now_ns = 1_000_000_000;
    let word = AtomicU64::new(limit.fresh(now_ns));
    bencher.bench_local(|| {
        now_ns += APART_NS;
        let request = Request::of_http1(black_box(HEAD), false, 0);
        let budget = deadline::budget(timing, false, &request.first_of(&Carrier::NAMES));
        let verdict = limit.ask(&word, now_ns, u64::MAX);
        assert!(matches!(verdict, request::Verdict::After(0)));
        let (pass, _) = judge.ask(&state, now_ns / 1_000_000);
        judge.tell(&state, pass.expect("it is closed"), Outcome::Answered(1), now_ns / 1_000_000);
        budget
    });
}

/// The breaker alone.
#[divan::bench]
fn breaker_alone(bencher: Bencher<'_, '_>) {
    let service = service();
    let rules = service.guard.breaker.as_ref().expect("a breaker");
    let (judge, state) = (breaker::Judge::new(rules), BreakerState::new(rules));
    let mut now_ns = 1_000_000_000_u64;
    bencher.bench_local(|| {
        now_ns += APART_NS;
        let (pass, _) = judge.ask(&state, black_box(now_ns / 1_000_000));
        judge.tell(&state, pass.expect("it is closed"), Outcome::Answered(1), now_ns / 1_000_000)
    });
}
