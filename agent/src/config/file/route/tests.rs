//! Tables of what files say of routes, and what comes of it.

use crate::config::{
    Config,
    file::{parse, show},
    policy::Source,
    route::{Action, Fallback, HostMatch, PathMatch, Segment},
};

fn file(routes: &str) -> String {
    format!(
        "services:
  - name: a
    address: 10.0.0.1:80
    protocol: http
    endpoints: [{{ address: 10.0.0.2:80, labels: {{ version: v1 }} }}, 10.0.0.3:80]
    routes:
      - {routes}
  - {{ name: b, address: 10.0.0.4:80, protocol: http2, endpoints: [10.0.0.5:80] }}
  - {{ name: c, address: 10.0.0.6:80, protocol: tcp, endpoints: [10.0.0.7:80] }}
"
    )
}

fn good(routes: &str) -> Config {
    parse(&file(routes), "F").unwrap_or_else(|error| panic!("{routes}: {error}"))
}

#[test]
fn every_key_is_read_and_shown_as_it_was() {
    for route in [
        "{}",
        "{ name: x, to: b }",
        "{ match: { host: A.example, path: /a } }",
        "{ match: { host: '*.example', path: { prefix: / }, methods: [GET, POST] } }",
        "{ match: { host: { regex: '[a-z]+' }, path: { regex: '/(?P<x>.*)' } }, request_headers: { set: { x: '{x}' } } }",
        "{ match: { path: { template: '/api/order/{orderId}' } }, rewrite: { path: '/o/{orderId}', host: b.example } }",
        "{ match: { headers: { X-A: '1', b: { prefix: x }, c: { present: off } }, query: { q: { suffix: y } } } }",
        "{ match: { cookies: { s: { regex: a+ } }, grpc: { service: a.B, method: Get } } }",
        "{ match: { grpc: {} }, subset: { version: v1 }, subset_fallback: any_endpoint }",
        "{ subset: { version: v2 }, subset_fallback: default_subset, default_subset: { version: v1 } }",
        "{ split: [{ to: b, weight: 1 }, { weight: 9, subset: { version: v1 } }] }",
        "{ match: { path: { prefix: /a/ } }, redirect: { prefix: /b, status: 308, scheme: https, port: 8443, strip_query: on } }",
        "{ redirect: { host: b.example }, response_headers: { add: { x: y }, remove: [server] } }",
        "{ mirror: { to: b, percent: 7, body_bytes_max: 0 }, split: [{ to: b, weight: 1 }] }",
        "{ match: { caller: { namespace: host } } }",
        "{ match: { caller: { namespace: 'cni-*', cgroup: '/kubepods.slice/**/pod?' } } }",
        "{ subset: { version: v1 }, canary: { subset: { version: v2 } } }",
        "{ canary: { to: b, steps: [1, 100], interval_ms: 100, guard: { error_percent: 0, latency_ms: 7, \
         latency_percentile: 95, requests_min: 1 } }, mirror: { to: b } }",
        "{ to: b, one_way: on, deadline: { forward: off } }",
        "{ mirror: { subset: { version: v2 }, subset_fallback: any_endpoint } }",
        "{ rewrite: { regex: { pattern: '^/v[0-9]+', substitution: '' } } }",
        "{ respond: { status: 418, body: 'teapot {' }, response_headers: { set: { x: '{{}}' } } }",
    ] {
        let config = good(route);
        let shown = show(&config).to_string();
        assert_eq!(parse(&shown, "shown").unwrap_or_else(|error| panic!("{shown}: {error}")), config, "{route}");
    }
}

#[test]
fn a_route_means_what_it_says() {
    let config = good(
        "{ match: { host: '*.Example', path: { template: '/a/{b}' } }, split: [{ to: b, weight: 1 }, { weight: 2, \
         subset: { version: v1 }, subset_fallback: any_endpoint }] }",
    );
    let service = &config.services[0];
    assert_eq!(service.endpoints[0].labels.get("version").map(String::as_str), Some("v1"));
    let route = &service.routes[0];
    assert_eq!(route.name, "route-1");
    assert_eq!(route.matches.host, Some(HostMatch::Suffix(".example".into())));
    let segments = vec![Segment::Literal("a".into()), Segment::Named("b".into())];
    assert_eq!(route.matches.path, Some(PathMatch::Template(segments)));
    let Action::Forward(forward) = &route.action else { panic!("{route:?}") };
    assert_eq!((forward.targets[0].to.as_deref(), forward.targets[0].weight), (Some("b"), 1));
    assert_eq!((forward.targets[1].weight, &forward.targets[1].fallback), (2, &Fallback::AnyEndpoint));
}

#[test]
fn what_is_wrong_is_told_with_its_place() {
    for (route, expected) in [
        ("{ to: d }", "F:7:15: services[0].routes[0].to: \"d\" is no service of this file"),
        ("{ to: c }", "services[0].routes[0].to: \"c\" is a service that does not speak HTTP"),
        ("{ match: { caller: {} } }", "routes[0].match.caller: says nothing of who calls; write namespace: NAME"),
        ("{ match: { caller: { namespace: a/b } } }", "routes[0].match.caller.namespace: \"a/b\" is no name"),
        ("{ match: { caller: { cgroup: a } } }", "routes[0].match.caller.cgroup: \"a\" does not begin with /"),
        ("{ canary: { to: d } }", "routes[0].canary.to: \"d\" is no service of this file"),
        ("{ canary: {} }", "routes[0].canary: says nobody who is tried out"),
        ("{ canary: { to: b, steps: [5, 5] } }", "routes[0].canary.steps: is not a list of parts that grow"),
        ("{ canary: { to: b, steps: [] } }", "routes[0].canary.steps: is not a list of parts that grow"),
        ("{ canary: { to: b, steps: [0, 5] } }", "routes[0].canary.steps[0]: "),
        ("{ canary: { to: b, guard: { latency_percentile: 5 } } }", "guard.latency_percentile: says of what share"),
        ("{ canary: { to: b }, split: [{ weight: 1 }] }", "routes[0].canary: divides a route's requests"),
        ("{ mirror: { to: d } }", "services[0].routes[0].mirror.to: \"d\" is no service of this file"),
        ("{ mirror: { percent: 5 } }", "routes[0].mirror: says nobody who gets the copies; write to: SERVICE"),
        ("{ mirror: { to: b, percent: 101 } }", "routes[0].mirror.percent: "),
        (
            "{ mirror: { to: b }, respond: { status: 200 } }",
            "routes[0].mirror: a request is either answered or passed on",
        ),
        ("{ match: { path: a } }", "routes[0].match.path: \"a\" is no path; begin it with /"),
        ("{ match: { path: { prefix: /a, regex: b } } }", "routes[0].match.path: is matched in one way"),
        ("{ match: { path: { regex: '(' } } }", "routes[0].match.path.regex: \"(\" is no expression"),
        ("{ match: { path: { template: '/{a}/{a}' } } }", "routes[0].match.path.template: is no template"),
        ("{ match: { host: 'a:80' } }", "routes[0].match.host: \"a:80\" is no host"),
        ("{ match: { methods: [get] } }", "routes[0].match.methods[0]: \"get\" is no method"),
        ("{ match: { path: /, grpc: {} } }", "routes[0].match.path: of a gRPC call is its service and method"),
        ("{ rewrite: { prefix: /b } }", "routes[0].rewrite: replaces the prefix that was matched, and none was"),
        ("{ rewrite: { path: '/{x}' } }", "routes[0].rewrite: takes {x}, which the route's match does not capture"),
        ("{ rewrite: { path: '/{' } }", "routes[0].rewrite.path: has a brace without another"),
        ("{ request_headers: { set: { Host: a } } }", "request_headers.set.Host: host decides how a message is read"),
        ("{ request_headers: { set: { a: \"b\\r\\nc\" } } }", "request_headers.set.a: holds what no head can"),
        ("{ redirect: { status: 302 } }", "routes[0].redirect: leads to where it came from"),
        ("{ redirect: { status: 304, port: 1 } }", "routes[0].redirect.status: 304 is no redirect"),
        ("{ redirect: { port: 1 }, to: b }", "routes[0].to: a request is either answered or passed on"),
        ("{ respond: { status: 204, body: x } }", "routes[0].respond.body: 204 has no body"),
        ("{ match: { headers: { 'a b': c } } }", "match.headers.a b: \"a b\" is no name of a field"),
        ("{ match: { headers: { ':path': c } } }", "match.headers.:path: \":path\" is no name of a field"),
        ("{ match: { cookies: { 'a b': c } } }", "match.cookies.a b: \"a b\" is no name of a cookie"),
        ("{ match: { cookies: { '': c } } }", "match.cookies.: \"\" is no name of a cookie"),
        ("{ match: { headers: { a: b, A: c } } }", "routes[0].match.headers: names a twice"),
        ("{ split: [{ weight: 0 }] }", "routes[0].split: nobody has a weight"),
        ("{ split: [{ weight: 1 }], to: b }", "routes[0].to: stands beside split"),
        ("{ subset_fallback: any_endpoint }", "routes[0].subset_fallback: says who else takes what is for a subset"),
        ("{ subset: { a: b }, subset_fallback: default_subset }", "routes[0].default_subset: is missing"),
        ("{ one_way: on, retry: {} }", "routes[0].retry: says what becomes of an answer, and with one_way: on"),
        ("{ one_way: on, timeout_ms: auto }", "routes[0].timeout_ms: says what becomes of an answer"),
        ("{ one_way: on, respond: { status: 200 } }", "routes[0].one_way: is of a request that is passed on"),
        ("{ name: x }\n      - { name: x }", "another route is called \"x\""),
    ] {
        let error = parse(&file(route), "F").expect_err(route).to_string();
        assert!(error.contains(expected), "{route}\n{error}");
    }
}

#[test]
fn routes_are_for_http_through_the_agent() {
    for (keys, expected) in
        [("protocol: tcp", "are of HTTP"), ("protocol: http, mode: kernel", "are the agent's to follow")]
    {
        let text =
            format!("services: [{{name: a, address: 10.0.0.1:80, endpoints: [10.0.0.2:80], routes: [], {keys}}}]");
        let error = parse(&text, "F").expect_err(keys).to_string();
        assert!(error.contains(&format!("services[0].routes: {expected}")), "{error}");
    }
}

#[test]
fn who_asks_for_a_callers_cgroup_knows_sources_by_it() {
    let source = |file: &str| parse(file, "F").map(|config| config.services[0].policy.source);
    let asks = file("{ match: { caller: { cgroup: /a } } }");
    assert_eq!(source(&asks).unwrap(), Source::Cgroup);
    assert_eq!(source(&file("{ match: { caller: { namespace: a } } }")).unwrap(), Source::Namespace);
    let error = source(&asks.replacen("    protocol", "    source: uid\n    protocol", 1)).unwrap_err().to_string();
    assert!(error.contains("services[0].source: is not what a route or a filter asks for"), "{error}");
    assert!(source(&asks.replacen("    protocol", "    source: cgroup\n    protocol", 1)).is_ok());
}

#[test]
fn a_routes_limits_are_read_and_shown_again_and_may_be_of_any_kind() {
    let text = |limits: &str| {
        format!(
            "services: [{{name: a, address: 10.0.0.1:80, protocol: http, endpoints: [10.0.0.2:80], \
                 routes: [{{name: r, request_limits: [{limits}]}}]}}]"
        )
    };
    let config = parse(
        &text(
            "{kind: token_bucket, limit: 5, on_limit: {wait: {max_ms: 9}}}, {kind: gradient}, {kind: bbr}, {kind: admission}",
        ),
        "F",
    );
    let config = config.expect("a good file");
    assert_eq!(config.services[0].routes[0].request_limits.len(), 4);
    assert_eq!(parse(&show(&config).to_string(), "F").expect("a good file"), config);
    let wrong = |text: &str| parse(text, "F").expect_err("it is wrong").to_string();
    assert!(wrong(&text("{kind: concurrency, limit: 1, on_limit: break}")).contains("opens the service's breaker"));
    let answered = text("{kind: concurrency, limit: 1}").replace("name: r,", "respond: {status: 204},");
    assert!(wrong(&answered).contains("request_limits: is of a request that is passed on"), "{answered}");
}
