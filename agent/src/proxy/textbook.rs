//! The defaults that the requirements list in section 6, each by the number of its row, as a service with `preset: textbook` has them, or
//! as the default of its key: what is configured, and what the judges make of it under a clock of the test.

use std::{
    collections::HashSet,
    sync::atomic::AtomicU64,
    time::{Duration, Instant},
};

use crate::{
    balance,
    breaker::{self, Outcome},
    cluster::{BreakerPhase, BreakerState, Line, Snapshot, Unserved},
    config::{
        Service, file,
        guard::{Breaker, Isolation, Kind as Opens},
        request_limit::Kind,
    },
    limit::{
        self,
        request::{Judge, Verdict},
    },
};

/// A row of the table, and what shows it; `Err` of what is not there to have a default.
type Row = (u8, &'static str, Result<fn(), &'static str>);

const ROWS: [Row; 15] = [
    (1, "limit / window: 100 per s / 60 s average", Ok(average)),
    (2, "console trigger / breaker duration: 50 per s / 30 s", Ok(trigger)),
    (3, "pending queue / max wait / check period: 1000 / 3000 ms / 10 ms", Ok(pending)),
    (
        4,
        "Hystrix timeout / concurrency / volume / error % / sleep: 1000 ms / 10 / 20 / 50 % / 500 ms (real 5000)",
        Ok(hystrix),
    ),
    (5, "token bucket fill / capacity: 1 per 500 ms / 100, starts empty", Ok(tokens)),
    (6, "node weight default: 100 (0 -> 100)", Ok(weight)),
    (7, "registration lease / refresh: 10 s / 1 s", Err("discovery")),
    (8, "etcd dial / op timeout: 5 s / 1 s", Err("discovery")),
    (9, "lock TTL etcd / Redis / ZK session / etcdsync / lease example", Err("the lock filter")),
    (10, "election TTL, prefix, value: 5 s, /election, local", Err("election")),
    (11, "Raft election timeout: 150-300 ms random", Err("etcd's to keep")),
    (12, "summary window: 10 min", Err("summaries: durations are histograms")),
    (13, "snowflake bits: 1+41+5+5+12", Err("ids of that kind")),
    (14, "registry scale: 10 000 instances", Ok(instances)),
    (15, "registry cluster: 3 or 5 nodes", Err("discovery")),
];

#[test]
fn each_default_of_the_requirements_is_what_its_row_says_as_far_as_its_feature_is_there() {
    assert_eq!(ROWS.map(|(number, ..)| number), std::array::from_fn(|index| index as u8 + 1));
    for (number, row, shown) in ROWS {
        println!(
            "row {number}, {row}: {}",
            shown.err().map_or("holds".to_owned(), |what| format!("there is no such thing: {what}"))
        );
        let _ = shown.map(|show| show());
    }
}

/// A service of HTTP that says this.
fn service(keys: &str) -> Service {
    let text = format!(
        "services: [{{name: a, address: 10.0.0.1:80, protocol: http, endpoints: [10.0.0.2:80, {{address: 10.0.0.3:80, weight: 5}}], {keys}}}]"
    );
    let config = file::parse(&text, "F").unwrap_or_else(|error| panic!("{keys}: {error}"));
    (*config.services[0]).clone()
}

/// The limit of this name, and how long a request waits for its turn at most.
fn rule(name: &str) -> (Kind, u64) {
    let limits = service("preset: textbook").request_limits;
    let limit = limits.into_iter().find(|limit| limit.name == name).expect("a limit");
    (limit.kind, limit.wait_max.map_or(0, |wait| wait.as_nanos() as u64))
}

const SECOND: u64 = 1_000_000_000;

/// How many of so many requests pass now.
fn passed(judge: &Judge, word: &AtomicU64, now_ns: u64, requests: usize) -> usize {
    (0..requests).filter(|_| judge.ask(word, now_ns, u64::MAX) == Verdict::After(0)).count()
}

fn average() {
    let (kind, wait_max_ns) = rule("average");
    assert_eq!(kind, Kind::SlidingWindow { limit: 100 * 60, window: Duration::from_secs(60) });
    let (judge, word) = (Judge::new(&kind, wait_max_ns).expect("it counts"), AtomicU64::default());
    // A hundred a second for the whole minute, also all of them in its first second.
    assert_eq!(passed(&judge, &word, 600 * SECOND, 7_000), 6_000);
    assert_eq!(passed(&judge, &word, 630 * SECOND, 1), 0);
    let steady = AtomicU64::default();
    // But for those that come at the very turn of a window, when all of the one before counts.
    let sum: usize = (600..1_200).map(|second| passed(&judge, &steady, second * SECOND, 100)).sum();
    assert!((59_000..=60_000).contains(&sum), "{sum}");
}

fn trigger() {
    let breaker = service("breaker: {kind: trigger_rate}").guard.breaker.expect("a breaker");
    assert_eq!((breaker.kind, breaker.open_for), (Opens::Rate(50), Duration::from_secs(30)));
    let (judge, state) = (breaker::Judge::new(&breaker), BreakerState::new(&breaker));
    let ask = |now_ms| judge.ask(&state, now_ms).0.is_some();
    assert_eq!((0..60).filter(|_| ask(100_000)).count(), 50);
    assert_eq!((ask(130_000), ask(130_001)), (false, true), "open for 30 s");
}

/// Nobody checks it each 10 ms: who makes room calls the next, and each has a timer of his own.
fn pending() {
    let rules = service("preset: textbook").pending.expect("a line");
    assert_eq!((rules.requests_max, rules.wait_max), (1_000, Duration::from_millis(3_000)));
    let (judge, mut line, now) = (limit::pending::Judge::new(&rules), Line::default(), Instant::now());
    assert!((0..1_000).all(|_| judge.join(&mut line, now, None).is_ok()));
    assert_eq!(judge.join(&mut line, now, None).err(), Some(Unserved::Full));
    assert_eq!(judge.until(now, None).0, now + Duration::from_millis(3_000));
}

fn hystrix() {
    let isolation = Some(Isolation { timeout: Some(Duration::from_millis(1_000)), concurrency: Some(10) });
    for (keys, sleep_ms) in [
        ("breaker: hystrix, isolation: hystrix", 5_000),
        ("breaker: textbook, isolation: textbook", 500),
        ("preset: textbook", 500),
    ] {
        let guard = service(keys).guard;
        assert_eq!(guard.isolation, isolation, "{keys}");
        let breaker: Breaker = guard.breaker.expect("a breaker");
        assert!(matches!(breaker.kind, Opens::ErrorRatio { percent: 50, ref over } if over.requests == 20), "{keys}");
        let (judge, state) = (breaker::Judge::new(&breaker), BreakerState::new(&breaker));
        let tell =
            |outcome, now_ms| judge.tell(&state, judge.ask(&state, now_ms).0.expect("it passes"), outcome, now_ms);
        assert_eq!((0..10).find_map(|_| tell(Outcome::Answered(1), 100_000)), None);
        assert_eq!((0..9).find_map(|_| tell(Outcome::Failed(1), 100_000)), None);
        assert_eq!(state.phase(), BreakerPhase::Closed, "{keys}: 19 requests say nothing");
        tell(Outcome::Failed(1), 100_000);
        assert_eq!(state.phase(), BreakerPhase::Open, "{keys}: 10 of 20 are half");
        assert!(judge.ask(&state, 100_000 + sleep_ms).0.is_none(), "{keys}");
        assert!(judge.ask(&state, 100_000 + sleep_ms + 1).0.is_some(), "{keys}");
    }
}

fn tokens() {
    let (kind, wait_max_ns) = rule("tokens");
    let window = Duration::from_millis(500);
    assert_eq!(kind, Kind::TokenBucket { limit: 1, window, burst: 100, fill: 1, starts_empty: true });
    assert_eq!(wait_max_ns, 3 * SECOND, "as long as in the queue of row 3");
    let judge = Judge::new(&kind, 0).expect("it counts");
    let word = AtomicU64::new(judge.fresh(SECOND));
    let at = |half_seconds: u64| passed(&judge, &word, SECOND + half_seconds * SECOND / 2, 1_000);
    assert_eq!([at(0), at(1), at(1), at(3), at(1_000)], [0, 1, 0, 2, 100]);
}

fn weight() {
    let weights = |keys| service(keys).endpoints.iter().map(|endpoint| endpoint.weight).collect::<Vec<u32>>();
    assert_eq!(weights("preset: textbook"), [100, 5]);
    assert_eq!(weights("mode: agent"), [1, 5]);
    let text = "services: [{name: a, address: 10.0.0.1:80, protocol: http, preset: textbook, endpoints: [{address: 10.0.0.2:80, weight: 0}]}]";
    assert_eq!(file::parse(text, "F").expect("0 is 100").services[0].endpoints[0].weight, 100);
}

fn instances() {
    let endpoints: Vec<String> = (0..10_000).map(|i| format!("127.1.{}.{}:80", i / 250, i % 250 + 1)).collect();
    let text =
        format!("services: [{{name: a, address: 10.0.0.1:80, protocol: http, endpoints: [{}]}}]", endpoints.join(", "));
    let snapshot = Snapshot::build(&file::parse(&text, "F").expect("a good file"), &Snapshot::default());
    let service = &snapshot.services[0];
    assert_eq!(service.endpoints.len(), 10_000);
    let shares = balance::shares::of(service, |_| true);
    assert_eq!(shares.weights.iter().collect::<HashSet<_>>().len(), 1, "and all have the same share");
}
