//! Requests take the routes of their service: real clients of HTTP/1 and HTTP/2, real endpoints of both.

use std::net::SocketAddr;

use sockway_tests::{
    agent::{Agent, sockway},
    config::Service,
    peers,
    peers::Nghttpd,
    process::Room,
    stage::Stage,
    translation::HTTP2,
    web::Web,
};

/// The same service for clients of HTTP/1 and of HTTP/2, with routes, and another.
struct Routed {
    agent: Agent,
    service: SocketAddr,
    service2: SocketAddr,
    stage: Stage,
    webs: [Web; 3],
}

/// What curl was told.
struct Told {
    status: u16,
    head: String,
    body: String,
}

impl Told {
    fn header(&self, name: &str) -> Option<&str> {
        let of = |line: &'_ str| line.split_once(": ").filter(|(found, _)| found.eq_ignore_ascii_case(name)).is_some();
        self.head.lines().find(|line| of(line))?.split_once(": ").map(|(_, value)| value.trim())
    }
}

impl Routed {
    /// Its endpoints are `one`, of version v1, and `two`, of version v2; the service `other` has `three`.
    fn set(routes: &[&str]) -> Option<Self> {
        let stage = Stage::set()?;
        let webs = ["one", "two", "three"].map(|name| stage.web(name));
        let (service, service2, other) = (stage.address(), stage.address(), stage.address());
        let routes = format!("routes: [{}]", routes.join(", "));
        let with = |service: Service| {
            let service = service.set(&routes).to_with(webs[0].address(), "labels: { version: v1 }");
            service.to_with(webs[1].address(), "labels: { version: v2 }")
        };
        let config = stage
            .config()
            .service(with(Service::http("web", service)))
            .service(with(Service::http2("web2", service2).set("upstream_protocol: http1")))
            .service(Service::http("other", other).to(webs[2].address()));
        Some(Self { agent: Agent::start(&config), service, service2, stage, webs })
    }

    #[track_caller]
    fn curl(&self, path: &str, arguments: &[&str]) -> Told {
        let url = format!("http://{}{path}", self.dialled(arguments));
        let output =
            peers::curl(Room::of(&self.stage.clients), &[&["--include", "--path-as-is", &url], arguments].concat());
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let (head, body) = said.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{said}"));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        Told { status, head: head.to_owned(), body: body.to_owned() }
    }

    /// What curl dials with these arguments.
    fn dialled(&self, arguments: &[&str]) -> SocketAddr {
        if arguments.contains(&HTTP2) { self.service2 } else { self.service }
    }

    /// Who answers.
    #[track_caller]
    fn who(&self, path: &str, arguments: &[&str]) -> String {
        let told = self.curl(path, arguments);
        told.header("x-origin").unwrap_or_else(|| panic!("{}\n{}", told.head, told.body)).to_owned()
    }
}

const BOTH: [&[&str]; 2] = [&[], &[HTTP2]];

#[test]
fn a_request_goes_where_host_path_method_and_fields_say() {
    let Some(routed) = Routed::set(&[
        "{ match: { host: orders.example }, to: other }",
        "{ match: { path: { prefix: /bytes } }, subset: { version: v2 } }",
        "{ match: { path: { prefix: /bytes }, headers: { x-pin: v1 } }, subset: { version: v1 } }",
        "{ match: { path: { template: '/status/{code}' }, methods: [POST] }, to: other }",
        "{ match: { query: { who: three }, cookies: { pass: { prefix: s } } }, to: other }",
    ]) else {
        return;
    };
    for http in BOTH {
        for _ in 0..3 {
            assert_eq!(routed.who("/bytes/3", http), "two");
            assert_eq!(routed.who("/bytes/3", &[http, &["-H", "X-Pin: v1"]].concat()), "one");
        }
        assert_eq!(routed.who("/", &[http, &["-H", "Host: Orders.Example"]].concat()), "three");
        assert_eq!(routed.who("/status/204", &[http, &["-X", "POST"]].concat()), "three");
        assert_eq!(routed.who("/?who=three", &[http, &["-b", "a=b; pass=sesame"]].concat()), "three");
        let mut without = [(); 2].map(|()| routed.who("/?who=three", http));
        without.sort();
        assert_eq!(without, ["one", "two"], "no route: the service's own endpoints");
    }
    let requests = |route: &str| routed.agent.metric("sockway_route_requests_total", &[("route", route)]);
    assert_eq!([requests("route-1"), requests("route-2"), requests("route-3")], [2.0, 6.0, 6.0]);
    assert_eq!(routed.webs[2].requests(), 6);
}

#[test]
fn what_is_passed_on_is_rewritten_and_so_is_the_answer() {
    let Some(routed) = Routed::set(&[
        "{ match: { path: { template: '/api/{user}/order/{orderId}' } }, to: other, \
         rewrite: { path: '/request/it', host: 'in.example:81' }, \
         request_headers: { set: { x-user: 'u-{user}' }, add: { x-order: '{orderId}' }, remove: [x-secret, user-agent] }, \
         response_headers: { set: { x-origin: 'hidden' }, add: { x-seen: '{orderId}' }, remove: [x-serial] } }",
        "{ match: { path: { prefix: /v1 } }, to: other, rewrite: { prefix: / } }",
        "{ match: { path: { prefix: /re } }, to: other, rewrite: { regex: { pattern: '^/re/(.*)$', substitution: '/$1' } } }",
    ]) else {
        return;
    };
    for http in BOTH {
        let fields = ["-H", "X-Secret: s", "-H", "X-User: forged", "--data", "some body"];
        let told = routed.curl("/api/ann/order/7?full=1", &[http, &fields].concat());
        assert_eq!(told.status, 200, "{}", told.body);
        let has = |line: &str| told.body.lines().any(|found| found.eq_ignore_ascii_case(line));
        assert!(told.body.starts_with("POST /request/it?full=1 HTTP/1.1\n"), "{}", told.body);
        for line in ["host: in.example:81", "x-user: u-ann", "x-order: 7", "content-length: 9"] {
            assert!(has(line), "{line}: {}", told.body);
        }
        let lower = told.body.to_ascii_lowercase();
        assert!(!lower.contains("x-secret") && !lower.contains("user-agent") && !lower.contains("forged"), "{lower}");
        assert_eq!((told.header("x-origin"), told.header("x-seen")), (Some("hidden"), Some("7")));
        assert_eq!(told.header("x-serial"), None);
        assert_eq!(routed.curl("/v1/bytes/4", http).body.len(), 4);
        assert_eq!(routed.curl("/re/bytes/5", http).body.len(), 5);
    }
}

#[test]
fn a_route_answers_by_itself_and_the_connection_goes_on() {
    let Some(routed) = Routed::set(&[
        "{ match: { path: { prefix: /old } }, redirect: { status: 308, prefix: /new, scheme: https, host: 'h.example' } }",
        "{ match: { path: { regex: '/u/(?P<id>[0-9]+)' } }, redirect: { path: '/users/{id}', strip_query: on } }",
        "{ match: { path: /tea }, respond: { status: 418, body: short and stout }, response_headers: { set: { x-pot: '1' } } }",
        "{ match: { path: /none }, respond: { status: 204 } }",
    ]) else {
        return;
    };
    for http in BOTH {
        let told = routed.curl("/old/a%20b?c=d", http);
        assert_eq!((told.status, told.header("location")), (308, Some("https://h.example/new/a%20b?c=d")));
        let told = routed.curl("/u/42?x", http);
        let location = format!("http://{}/users/42", routed.dialled(http));
        assert_eq!((told.status, told.header("location")), (302, Some(&*location)));
        let told = routed.curl("/tea", &[http, &["--data", "milk"]].concat());
        assert_eq!((told.status, told.body.as_str(), told.header("x-pot")), (418, "short and stout", Some("1")));
        let told = routed.curl("/none", http);
        assert_eq!((told.status, told.body.as_str(), told.header("content-length")), (204, "", None));
    }
    let mut session = routed.stage.session(routed.service);
    for _ in 0..2 {
        assert_eq!(session.call("POST", "/tea", b"milk").unwrap().status, 418);
    }
    assert_eq!(session.get("/").unwrap().status, 200);
    routed.agent.metric_comes_to("sockway_requests_total", &[("outcome", "answered_by_route")], 10.0);
    assert_eq!(routed.webs.iter().map(Web::requests).sum::<usize>(), 1);
}

#[test]
fn a_split_takes_its_parts_and_an_empty_subset_falls_back_as_said() {
    let Some(routed) = Routed::set(&[
        "{ name: canary, match: { path: { prefix: /split } }, rewrite: { path: / }, \
         split: [{ weight: 90, subset: { version: v1 } }, { weight: 10, to: other }] }",
        "{ match: { path: /any }, rewrite: { path: / }, subset: { version: v9 }, subset_fallback: any_endpoint }",
        "{ match: { path: /two }, rewrite: { path: / }, subset: { version: v9 }, subset_fallback: default_subset, \
         default_subset: { version: v2 } }",
        "{ match: { path: /nobody }, rewrite: { path: / }, subset: { version: v9 } }",
    ]) else {
        return;
    };
    let mut session = routed.stage.session(routed.service);
    for _ in 0..1_000 {
        assert_eq!(session.get("/split").unwrap().status, 200);
    }
    let [one, two, three] = [0, 1, 2].map(|index| routed.webs[index].requests());
    // Four standard deviations of a binomial with n = 1000, p = 0.1.
    assert!(three.abs_diff(100) <= 38 && two == 0 && one + three == 1_000, "{one} {two} {three}");
    for http in BOTH {
        let mut any = [(); 2].map(|()| routed.who("/any", http));
        any.sort();
        assert_eq!(any, ["one", "two"]);
        assert_eq!(routed.who("/two", http), "two");
        let told = routed.curl("/nobody", http);
        assert_eq!((told.status, told.body.contains("labels that the route asks for")), (503, true), "{}", told.body);
    }
}

#[test]
fn streams_of_http2_reach_endpoints_of_http2_by_their_routes() {
    let Some(stage) = Stage::set() else { return };
    let (home, away) = (stage.address(), stage.address());
    let _home = Nghttpd::start(Room::of(&stage.origins), stage.origin(), home, 3, &[]);
    let _away = Nghttpd::start(Room::of(&stage.origins), stage.origin(), away, 5, &[]);
    let (older, newer, other) = (stage.address(), stage.address(), stage.address());
    let routes = "routes: [{ match: { headers: { x-to: away } }, to: other, rewrite: { path: /bytes }, \
                  response_headers: { set: { x-routed: 'yes' } } }]";
    let config = stage
        .config()
        .service(Service::http("older", older).set("upstream_protocol: http2").set(routes).to(home))
        .service(Service::http2("newer", newer).set(routes).to(home))
        .service(Service::http2("other", other).to(away));
    let _agent = Agent::start(&config);
    let curl = |path: &str, arguments: &[&str]| {
        let service = if arguments.contains(&HTTP2) { newer } else { older };
        let url = format!("http://{service}{path}");
        let output = peers::curl(Room::of(&stage.clients), &[&["--include", &url], arguments].concat());
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    for http in BOTH {
        assert!(curl("/bytes", http).ends_with("\r\n\r\nnnn"));
        let said = curl("/nowhere", &[http, &["-H", "x-to: away"]].concat());
        assert!(said.contains(" 200") && said.contains("x-routed: yes") && said.ends_with("\r\n\r\nnnnnn"), "{said}");
    }
}

#[test]
fn a_reload_changes_routes_for_connections_that_are_open() {
    let Some(stage) = Stage::set() else { return };
    let (one, two) = (stage.web("one"), stage.web("two"));
    let (service, other) = (stage.address(), stage.address());
    let services = |routes: &str| {
        let home = Service::http("home", service).to(one.address());
        let home = if routes.is_empty() { home } else { home.set(routes) };
        [home, Service::http("other", other).to(two.address())]
    };
    let config = stage.config().with_services(services(""));
    let agent = Agent::start(&config);
    let mut session = stage.session(service);
    assert_eq!(session.get("/").unwrap().text(), "one");
    agent.reload(&config.with_services(services("routes: [{ to: other }]")));
    assert_eq!(session.get("/").unwrap().text(), "two");
    agent.reload(&config.with_services(services("")));
    assert_eq!(session.get("/").unwrap().text(), "one");
}

#[test]
fn a_connection_whose_services_are_gone_is_told_so() {
    let Some(stage) = Stage::set() else { return };
    let web = stage.web("one");
    let (service, other, kept) = (stage.address(), stage.address(), stage.address());
    let home = Service::http("home", service).set("routes: [{ to: other }]").to(web.address());
    let services = [home, Service::http("other", other).to(web.address())];
    let config = stage.config();
    let agent = Agent::start(&config.with_services(services));
    let mut session = stage.session(service);
    assert_eq!(session.get("/").unwrap().text(), "one");
    agent.reload(&config.with_services([Service::http("kept", kept).to(web.address())]));
    let answer = session.get("/").unwrap();
    assert_eq!(
        (answer.status, answer.text()),
        (503, "sockway: the service that the route leads to is gone\n".to_owned())
    );
}

#[test]
fn what_is_explained_of_a_request_is_what_becomes_of_it() {
    let Some(routed) = Routed::set(&[
        "{ name: pin, match: { headers: { x-pin: v2 } }, subset: { version: v2 } }",
        "{ name: away, match: { host: away.example, path: { prefix: /v1 } }, to: other, rewrite: { prefix: / } }",
    ]) else {
        return;
    };
    let explain = |url: &str, field: &str| {
        let request = format!("GET {url}");
        let output =
            sockway(&["explain", &request, "--header", field, "--json", "--instance", routed.agent.instance()]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).expect("JSON")
    };
    let told = explain("http://web/", "X-Pin: v2");
    let endpoints = &told["targets"][0]["endpoints"];
    assert_eq!((&told["route"], endpoints.as_array().map(Vec::len)), (&"pin".into(), Some(1)), "{told:#}");
    assert_eq!(endpoints[0]["address"], routed.webs[1].address().to_string());
    assert_eq!(endpoints[0]["up"], true);
    assert_eq!(routed.who("/", &["-H", "X-Pin: v2"]), "two");
    let told = explain(&format!("http://{}/v1/bytes/3", routed.service), "Host: away.example");
    assert_eq!((&told["route"], &told["targets"][0]["service"]), (&"away".into(), &"other".into()), "{told:#}");
    assert_eq!(told["others"][0]["why"], "its headers do not match");
    assert_eq!(routed.who("/v1/bytes/3", &["-H", "Host: away.example"]), "three");
}

#[test]
fn a_request_goes_where_its_callers_cgroup_or_namespace_says() {
    let Some(stage) = Stage::set() else { return };
    let [home, here, known] = ["home", "here", "known"].map(|name| stage.web(name));
    let own = format!("/proc/{}/ns/net", stage.client().pid());
    let (inside, outside) = (stage.clients.path(), stage.origins.path());
    let [one, two, other, third] = [(); 4].map(|()| stage.address());
    let routes = format!(
        "routes: [{{ name: origins, match: {{ caller: {{ cgroup: '{outside}' }} }}, respond: {{ status: 418 }} }}, \
         {{ name: clients, match: {{ caller: {{ cgroup: '{inside}' }} }}, to: other }}, \
         {{ name: deep, match: {{ path: /bytes/5, caller: {{ namespace: '{own}', cgroup: '{inside}' }} }}, to: third }}, \
         {{ name: nobody, match: {{ path: /bytes/6, caller: {{ namespace: nobodys }} }}, respond: {{ status: 418 }} }}]"
    );
    let config = stage
        .config()
        .service(Service::http("web", one).set(&routes).to(home.address()))
        .service(Service::http2("web2", two).set("upstream_protocol: http1").set(&routes).to(home.address()))
        .service(Service::http("other", other).to(here.address()))
        .service(Service::http("third", third).to(known.address()));
    let agent = Agent::start(&config);
    for (http, service) in [(&[][..], one), (&[HTTP2], two)] {
        for (path, expected) in [("/bytes/4", "here"), ("/bytes/5", "known"), ("/bytes/6", "here")] {
            let url = format!("http://{service}{path}");
            let output = peers::curl(Room::of(&stage.clients), &[&["--include", &url], http].concat());
            let told = String::from_utf8_lossy(&output.stdout).to_ascii_lowercase();
            assert!(told.contains(&format!("x-origin: {expected}\r\n")), "{path}: {told}");
        }
    }
    let from = stage.client().pid().to_string();
    let explain = |arguments: &[&str]| {
        let always = ["explain", "GET http://web/bytes/4", "--json", "--instance", agent.instance()];
        let output = sockway(&[&always, arguments].concat());
        serde_json::from_slice::<serde_json::Value>(&output.stdout).expect("JSON")
    };
    assert_eq!(explain(&["--from", &from])["route"], "clients");
    let told = explain(&[]);
    assert_eq!(
        (&told["route"], &told["others"][1]["why"]),
        (&None::<&str>.into(), &"its caller does not match".into())
    );
}
