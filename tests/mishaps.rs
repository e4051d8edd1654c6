//! What goes wrong on purpose (the filter `fault`, and drills) is to limits, breakers, isolation and fallbacks what an endpoint's failing
//! would be.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use sockway_tests::{
    config::Service,
    stage::Stage,
    twice::{BOTH, Twice},
    wait,
};

const BREAKER: &str = "breaker: { kind: consecutive, failures: 3, open_ms: 60000 }";

/// The same service twice with these keys.
#[track_caller]
fn set(stage: Stage, keys: &[&str], endpoint: SocketAddr, more: Vec<Service>) -> Twice {
    let with = |service: Service| keys.iter().fold(service, |service, key| service.set(key)).to(endpoint);
    Twice::set(stage, &[], with, more)
}

#[test]
fn failures_that_were_ordered_open_a_breaker() {
    for (fault, status) in [("abort_status: 503", 503), ("reset: on", 0)] {
        let Some(stage) = Stage::set() else { return };
        let web = stage.web("a");
        let fault = format!("filters: [{{ kind: fault, {fault}, match: {{ path: /bad }} }}]");
        let twice = set(stage, &[BREAKER, &fault], web.address(), Vec::new());
        for http in BOTH {
            assert_eq!(twice.curl("/", http).body(), "a");
            assert_eq!([(); 3].map(|()| twice.heard("/bad", http).status), [status; 3], "{fault} {http:?}");
            let refused = twice.curl("/", http);
            assert!(
                refused.status == 503 && refused.text.contains("the breaker of the service is open"),
                "{refused:?}"
            );
            let failed = twice.metric("sockway_filter_requests_total", http, ("filter", "fault"));
            assert!(failed >= 3.0, "{failed}");
        }
    }
}

#[test]
fn a_caller_s_own_mistakes_that_were_ordered_open_none() {
    let Some(stage) = Stage::set() else { return };
    let web = stage.web("a");
    let fault = "filters: [{ kind: fault, abort_status: 404, match: { path: /bad } }]";
    let twice = set(stage, &[BREAKER, fault], web.address(), Vec::new());
    for http in BOTH {
        assert_eq!([(); 5].map(|()| twice.curl("/bad", http).status), [404; 5]);
        assert_eq!(twice.curl("/", http).body(), "a");
    }
}

#[test]
fn limits_count_what_goes_wrong_on_purpose() {
    let Some(stage) = Stage::set() else { return };
    let web = stage.web("a");
    let limit = "request_limits: [{ kind: fixed_window, limit: 3, window_ms: 3600000 }]";
    let twice = set(stage, &[limit, "filters: [{ kind: fault, abort_status: 503 }]"], web.address(), Vec::new());
    for http in BOTH {
        assert_eq!([(); 5].map(|()| twice.curl("/", http).status), [503, 503, 503, 429, 429]);
    }
}

#[test]
fn what_stands_in_for_a_failing_endpoint_stands_in_for_failures_that_were_ordered() {
    let respond = "fallback: { on: [5xx, no_response], respond: { status: 203, body: instead } }";
    let other = "fallback: { on: [5xx, no_response], to: backup }";
    for (fallback, expected) in [(respond, (203, "instead")), (other, (200, "b"))] {
        for fault in ["abort_status: 500", "reset: on"] {
            let Some(stage) = Stage::set() else { return };
            let (web, backup) = (stage.web("a"), stage.web("b"));
            let backup = Service::http("backup", stage.address()).to(backup.address());
            let fault = format!("filters: [{{ kind: fault, {fault} }}]");
            let twice = set(stage, &[fallback, &fault], web.address(), vec![backup]);
            for http in BOTH {
                let said = twice.curl("/", http);
                assert_eq!((said.status, said.body()), expected, "{fault} {http:?}");
            }
        }
    }
}

#[test]
fn a_delay_that_was_ordered_holds_a_place_and_is_as_late_as_an_endpoint() {
    let Some(stage) = Stage::set() else { return };
    let web = stage.web("a");
    let keys = [
        "isolation: { timeout_ms: 1500, max_concurrency: 1 }",
        "filters: [{ kind: fault, delay_ms: 20000, match: { headers: { x-fault: late } } }, \
         { kind: fault, name: soon, delay_ms: 300, match: { headers: { x-fault: soon } } }]",
    ];
    let twice = set(stage, &keys, web.address(), Vec::new());
    for http in BOTH {
        let began = Instant::now();
        let curl = |fault: &str| twice.curl("/", &[http, &["--header", fault]].concat());
        assert_eq!(curl("x-fault: soon").body(), "a");
        assert!(began.elapsed() >= Duration::from_millis(300));
        thread::scope(|scope| {
            let late = scope.spawn(|| curl("x-fault: late"));
            let active = || twice.metric("sockway_isolation_active", http, ("service", Twice::name(http)));
            wait::until("a place to be held", wait::SOON, || active() == 1.0);
            let refused = twice.curl("/", http);
            assert_eq!(refused.status, 503, "{refused:?}");
            assert_eq!(late.join().expect("an answer").status, 504);
        });
        assert_eq!(twice.curl("/", http).body(), "a");
    }
}
