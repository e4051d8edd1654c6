//! Filters, through the agent: real clients of HTTP/1, HTTP/2 and gRPC's framing, real endpoints.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use sockway_tests::{
    agent::Agent,
    config::{Config, Service},
    peers,
    process::Room,
    stage::Stage,
    translation::HTTP2,
    web::Web,
};

const GRPC: [&str; 6] =
    ["--header", "content-type: application/grpc", "--header", "te: trailers", "--data-binary", "x"];
const BOTH: [&[&str]; 2] = [&[], &[HTTP2]];

/// Two services with the same filters: one of HTTP/1, and one of HTTP/2 whose endpoint speaks HTTP/1.
struct Pair {
    stage: Stage,
    web: Web,
    services: [SocketAddr; 2],
    config: Config,
}

impl Pair {
    fn of(filters: &str) -> Option<Self> {
        Self::with(|_| filters.to_owned())
    }

    fn with(filters: impl FnOnce(&Stage) -> String) -> Option<Self> {
        let stage = Stage::set()?;
        let (web, one, two) = (stage.web("a"), stage.address(), stage.address());
        let filters = format!("filters: [{}]", filters(&stage));
        let first = Service::http("one", one).set(&filters).to(web.address());
        let second = Service::http2("two", two).set("upstream_protocol: http1").set(&filters).to(web.address());
        let config = stage.config().service(first).service(second);
        Some(Self { stage, web, services: [one, two], config })
    }

    /// Asks both of them; what each answers, head and body, in lower case.
    fn ask(&self, path: &str, arguments: &[&str]) -> [String; 2] {
        [0, 1].map(|index| self.ask_one(index, path, arguments))
    }

    fn ask_one(&self, index: usize, path: &str, arguments: &[&str]) -> String {
        let url = format!("http://{}{path}", self.services[index]);
        let all = [&["--include", &url], BOTH[index], arguments].concat();
        let output = peers::curl(Room::of(&self.stage.clients), &all);
        String::from_utf8_lossy(&output.stdout).to_lowercase()
    }
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or_default()
}

fn field<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::trim)
}

/// How often a filter did this, of both services.
fn counted(agent: &Agent, filter: &str, outcome: &str) -> f64 {
    agent.metric("sockway_filter_requests_total", &[("filter", filter), ("outcome", outcome)])
}

#[test]
fn requests_pass_filters_in_order_and_responses_in_reverse() {
    let first = "{ kind: headers, name: first, request: { set: { x-order: first } }, response: { set: { x-last: first, x-first: '1' } } }";
    let second = "{ kind: headers, name: second, request: { add: { x-order: second } }, response: { set: { x-last: second }, remove: [x-origin, x-first] } }";
    let Some(pair) = Pair::of(&format!("{first}, {second}")) else { return };
    let agent = Agent::start(&pair.config);
    for answer in pair.ask("/request", &["--header", "x-order: client"]) {
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        let order: Vec<&str> = body.lines().filter_map(|line| line.strip_prefix("x-order: ")).collect();
        assert_eq!(order, ["first", "second"], "{answer}");
        assert_eq!((field(head, "x-last"), field(head, "x-first")), (Some("first"), Some("1")), "{answer}");
        assert_eq!(field(head, "x-origin"), None, "{answer}");
    }
    assert_eq!(counted(&agent, "first", "changed"), 2.0);
}

#[test]
fn each_request_has_an_id_that_its_response_tells() {
    let Some(pair) = Pair::of("{ kind: request_id }, { kind: access, allow: {}, match: { path: /no } }") else {
        return;
    };
    let _agent = Agent::start(&pair.config);
    for answer in pair.ask("/request", &[]) {
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        let id = field(head, "x-request-id").expect("an id");
        assert_eq!((id.len(), id.as_bytes()[14]), (36, b'7'), "{id}");
        assert_eq!(field(body, "x-request-id"), Some(id));
    }
    for answer in pair.ask("/request", &["--header", "X-Request-ID: mine"]) {
        let ids = answer.lines().filter(|line| line.starts_with("x-request-id: mine"));
        assert_eq!(ids.count(), 2, "{answer}");
    }
    // What another filter refuses tells it, too.
    for answer in pair.ask("/no", &["--header", "X-Request-ID: mine"]) {
        assert_eq!((status(&answer), field(&answer, "x-request-id")), ("403", Some("mine")), "{answer}");
    }
    let call = pair.ask_one(1, "/no", &[&GRPC[..], &["--header", "x-request-id: mine"]].concat());
    assert_eq!((field(&call, "grpc-status"), field(&call, "x-request-id")), (Some("7"), Some("mine")), "{call}");
}

#[test]
fn a_browser_is_told_whose_script_may_ask() {
    let cors =
        "{ kind: cors, origins: [https://a.example, '*.b.example'], methods: [PUT], credentials: on, max_age_s: 600 }";
    let Some(pair) = Pair::of(cors) else { return };
    let agent = Agent::start(&pair.config);
    let preflight = ["--request", "OPTIONS", "--header", "access-control-request-method: PUT", "--header"];
    for answer in pair.ask("/", &[&preflight[..], &["origin: https://x.b.example"]].concat()) {
        assert_eq!((status(&answer), field(&answer, "access-control-allow-methods")), ("204", Some("put")), "{answer}");
        assert_eq!(field(&answer, "access-control-allow-origin"), Some("https://x.b.example"), "{answer}");
        assert_eq!(field(&answer, "access-control-max-age"), Some("600"), "{answer}");
    }
    assert_eq!((pair.web.requests(), counted(&agent, "cors", "preflight")), (0, 2.0));
    for answer in pair.ask("/", &["--header", "origin: https://a.example"]) {
        assert_eq!(field(&answer, "access-control-allow-origin"), Some("https://a.example"), "{answer}");
        assert_eq!(
            (field(&answer, "access-control-allow-credentials"), field(&answer, "vary")),
            (Some("true"), Some("origin"))
        );
    }
    for answer in pair.ask("/", &["--header", "origin: https://c.example"]) {
        assert_eq!((status(&answer), field(&answer, "access-control-allow-origin")), ("200", None), "{answer}");
    }
    assert_eq!(counted(&agent, "cors", "refused"), 2.0);
}

#[test]
fn who_may_not_ask_is_told_so_before_any_endpoint_hears_of_it() {
    let filters = |stage: &Stage| {
        let clients = stage.clients.path();
        format!(
            "{{ kind: access, name: ours, allow: {{ callers: [{{ cgroup: {clients} }}] }} }}, \
             {{ kind: access, name: theirs, deny: {{ callers: [{{ cgroup: {clients} }}] }}, match: {{ path: /no }} }}, \
             {{ kind: access, name: far, allow: {{ sources: [192.0.2.0/24] }}, match: {{ path: /far }} }}, \
             {{ kind: access, name: near, allow: {{ sources: [127.0.0.0/8] }}, match: {{ path: / }} }}"
        )
    };
    let Some(pair) = Pair::with(filters) else { return };
    let agent = Agent::start(&pair.config);
    for (path, expected) in [("/", "200"), ("/no", "403"), ("/far", "403")] {
        for answer in pair.ask(path, &[]) {
            assert_eq!(status(&answer), expected, "{path}: {answer}");
        }
    }
    assert_eq!(pair.web.requests(), 2, "who is refused is not seen by an endpoint");
    assert_eq!((counted(&agent, "theirs", "refused"), counted(&agent, "far", "refused")), (2.0, 2.0));
}

#[test]
fn a_body_that_is_too_long_is_refused_by_its_length_and_as_it_comes() {
    let Some(pair) = Pair::of("{ kind: body_limit, bytes_max: 100000 }") else { return };
    let agent = Agent::start(&pair.config);
    let folder = std::env::temp_dir().join(format!("sockway-filters-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let file = |name: &str, bytes: usize| {
        let path = folder.join(name);
        std::fs::write(&path, vec![b'x'; bytes]).expect("a file");
        format!("@{}", path.display())
    };
    let (fits, long) = (file("fits", 100_000), file("long", 3_000_000));
    let chunked = ["--header", "transfer-encoding: chunked", "--header", "expect:", "--data-binary"];
    let whole = ["--header", "expect:", "--data-binary"];
    for (index, kinds) in
        [[&whole[..], &chunked[..]], [&whole[..], &["--header", "content-length:", "--data-binary"]]].iter().enumerate()
    {
        for kind in kinds {
            let ask = |body: &str| pair.ask_one(index, "/echo", &[kind, &[body][..]].concat());
            let answer = ask(&fits);
            assert!(status(&answer) == "200" && answer.ends_with("xxx"), "{index} {kind:?}");
            let before = pair.web.requests();
            let refused = ask(&long);
            assert_eq!((status(&refused), pair.web.requests()), ("413", before), "{index} {kind:?}: {refused}");
        }
    }
    let small = file("small", 1000);
    assert_eq!(status(&pair.ask_one(0, "/echo", &[&chunked[..], &[&small]].concat())), "200");
    let call = pair.ask_one(1, "/echo", &[&GRPC[..5], &[&long]].concat());
    assert_eq!(field(&call, "grpc-status"), Some("8"), "{call}");
    assert_eq!(counted(&agent, "body_limit", "refused"), 5.0);
    std::fs::remove_dir_all(folder).expect("a folder");
}

#[test]
fn faults_happen_to_those_they_are_ordered_for() {
    let by = |word: &str| format!("match: {{ headers: {{ x-fault: {word} }} }}");
    let filters = [
        format!("{{ kind: fault, name: late, delay_ms: 400, {} }}", by("late")),
        format!("{{ kind: fault, name: abort, abort_status: 503, grpc_status: 13, {} }}", by("abort")),
        format!("{{ kind: fault, name: reset, reset: on, {} }}", by("reset")),
        "{ kind: fault, name: never, percent: 0, reset: on }".to_owned(),
    ];
    let Some(pair) = Pair::of(&filters.join(", ")) else { return };
    let agent = Agent::start(&pair.config);
    let ask = |word: &str| pair.ask("/", &["--header", &format!("x-fault: {word}")]);
    assert_eq!(ask("none").each_ref().map(|answer| status(answer)), ["200", "200"]);
    let began = Instant::now();
    assert_eq!(ask("late").each_ref().map(|answer| status(answer)), ["200", "200"]);
    assert!(began.elapsed() >= Duration::from_millis(800), "{:?}", began.elapsed());
    assert_eq!(ask("abort").each_ref().map(|answer| status(answer)), ["503", "503"]);
    assert_eq!(ask("reset"), ["", ""]);
    let call = pair.ask_one(1, "/", &[&GRPC[..], &["--header", "x-fault: abort"]].concat());
    assert_eq!(field(&call, "grpc-status"), Some("13"), "{call}");
    for (filter, outcome, count) in
        [("late", "delayed", 2.0), ("abort", "aborted", 3.0), ("reset", "reset", 2.0), ("never", "reset", 0.0)]
    {
        assert_eq!(counted(&agent, filter, outcome), count, "{filter}");
    }
    assert_eq!(counted(&agent, "never", "passed"), 4.0);
}
