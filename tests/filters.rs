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
    wait,
    web::Web,
};

const GRPC: [&str; 6] =
    ["--header", "content-type: application/grpc", "--header", "te: trailers", "--data-binary", "x"];
/// A key set, and a token that its key has signed: {"sub":"ann"}.
const KEYS: &str = r#"{"keys":[{"kty":"RSA","kid":"r","e":"AQAB","n":"nWpzyhoeSog8h08e1OnuG705YGZvNt6b2uxXE6JaldYEmCCOq03rZHzRoTJBNCV-m-ZZkCBaewTDYYt42dC9NYuLjimK8NM664tGFuV3L8axNnB4bzW1uocr3L1wrZkBddqqMIY0-DNedFMU_HPMqG3iBmeqUHZXMzxSkp5Zk94EfiQnayHl5SKct3KBJHpADQ7r3SKjKGmBIA9aWG4ipS6OmiJ1oZW8a65--d9Z2oSMhh_rq-r0NH7U-WbnQUczFXBRw2ZSVNbgCD3vSXorIEfT8JxvBwZx_RieRaQ0ajMTecSIYZH6vQhTkN8r5EI5jUB8O_zM5eT0G7tWwEsRww"}]}"#;
const TOKEN: &str = "eyJhbGciOiJSUzI1NiIsImtpZCI6InIifQ.eyJzdWIiOiJhbm4ifQ.GrIgKY5IVdtLgWC6mb0zRZ1lA93DAfkMmesFJxWttKmkyi\
    hcMpaafAV1kL1pNXkNP7gwMHvVpVBgmGvi58D_MQ6KSeVoHjm7kmfrfaJggwISGMZMDpZr8zXwMzJaSi4YC-2vjzVNnWC3bFOXsl\
    edjv4JqNo-R6E01OOXYXYXuMofAMq1FgV48kBnTwIAnsbafbymrAL6N217tSq6YTwwA1bIjMWHsaNmg-tgs3e7ljYIwsV9hoPYoQ\
    AaTEHJM54vkfmGMzC0vUMsGrkmIscP-wIES7ayzkHzOFTIKMs8_baHcryz6AH4i6hGmSMoMxZ8bivodOrIvxXShssq9ppXHQ";
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
    let (fits, long) = (file("fits", 100_000), file("long", 800_000));
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
    // curl takes no answer without a body for one before its own body is sent, and then waits for more: what it has printed is what counts.
    let call = pair.ask_one(1, "/echo", &[&GRPC[..5], &[&long, "--max-time", "3"]].concat());
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
    // What a request is to suffer, it suffers behind all filters: in its endpoint's stead.
    assert_eq!(counted(&agent, "never", "passed"), 9.0);
}

/// A folder that is gone with the test.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

#[test]
fn who_has_a_key_may_ask_until_the_file_lists_it_no_more() {
    let folder = folder();
    let keys = folder.path().join("keys");
    // Of `one` and `two`.
    std::fs::write(&keys, "# ours\nann: one\nbob: two\n").expect("a file");
    let filter = format!("{{ kind: api_key, keys_file: {}, forward_as: x-client }}", keys.display());
    let Some(pair) = Pair::of(&filter) else { return };
    let agent = Agent::start(&pair.config);
    let ask =
        |key: &str| pair.ask("/request", &["--header", &format!("x-api-key: {key}"), "--header", "x-client: eve"]);
    for answer in ask("two") {
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        assert_eq!((status(head), field(body, "x-client"), field(body, "x-api-key")), ("200", Some("bob"), None));
    }
    for answer in ask("three") {
        assert_eq!((status(&answer), field(&answer, "www-authenticate")), ("401", Some("apikey")), "{answer}");
    }
    let call = pair.ask_one(1, "/", &GRPC);
    assert_eq!(field(&call, "grpc-status"), Some("16"), "{call}");
    assert_eq!((counted(&agent, "api_key", "accepted"), counted(&agent, "api_key", "refused")), (2.0, 3.0));
    std::fs::write(&keys, "ann: one\n").expect("a file");
    wait::until("bob's key to be gone", wait::SOON, || ask("two").iter().all(|answer| status(answer) == "401"));
    assert_eq!(ask("one").each_ref().map(|answer| status(answer)), ["200", "200"]);
}

#[test]
fn who_has_a_password_may_ask_however_it_is_kept() {
    let filter = "{ kind: basic, realm: Ours, forward_as: x-user, users: { \
                  ann: $2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW, \
                  bob: '{SHA}rXguzax3D8brmmLkT5CHP7l/sms=' } }";
    let Some(pair) = Pair::of(filter) else { return };
    let _agent = Agent::start(&pair.config);
    // bcrypt is worked out for the first, and known for the second.
    for user in ["ann:U*U", "ann:U*U", "bob:two"] {
        for answer in pair.ask("/request", &["--user", user]) {
            let (_, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
            assert_eq!((status(&answer), field(body, "x-user")), ("200", user.split(':').next()), "{answer}");
            assert_eq!(field(body, "authorization"), None, "{answer}");
        }
    }
    for user in ["ann:two", "bob:U*U", "eve:two"] {
        for answer in pair.ask("/", &["--user", user]) {
            let challenge = field(&answer, "www-authenticate");
            assert_eq!(
                (status(&answer), challenge),
                ("401", Some("basic realm=\"ours\", charset=\"utf-8\"")),
                "{answer}"
            );
        }
    }
    assert_eq!(pair.web.requests(), 6, "no endpoint hears of who is refused");
}

#[test]
fn who_has_a_signed_token_may_ask() {
    let folder = folder();
    let keys = folder.path().join("jwks.json");
    std::fs::write(&keys, KEYS).expect("a file");
    let filter = format!("{{ kind: jwt, jwks_file: {}, claims: {{ sub: x-user }} }}", keys.display());
    let Some(pair) = Pair::of(&filter) else { return };
    let agent = Agent::start(&pair.config);
    for answer in pair.ask("/request", &["--header", &format!("authorization: Bearer {TOKEN}")]) {
        let (_, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        assert_eq!((status(&answer), field(body, "x-user"), field(body, "authorization")), ("200", Some("ann"), None));
    }
    let forged = TOKEN.replacen("eyJzdWIiOiJhbm4ifQ", "eyJzdWIiOiJldmUifQ", 1);
    for (said, challenge) in
        [("x-a: b".to_owned(), "bearer"), (format!("authorization: Bearer {forged}"), "bearer error=\"invalid_token\"")]
    {
        for answer in pair.ask("/", &["--header", &said]) {
            assert_eq!((status(&answer), field(&answer, "www-authenticate")), ("401", Some(challenge)), "{answer}");
        }
        let call = pair.ask_one(1, "/", &[&GRPC[..], &["--header", &said]].concat());
        assert_eq!(field(&call, "grpc-status"), Some("16"), "{call}");
    }
    assert_eq!((counted(&agent, "jwt", "accepted"), counted(&agent, "jwt", "refused")), (2.0, 6.0));
}

#[test]
fn another_service_says_who_may_ask() {
    let filters = "{ kind: external_auth, name: decides, to: auth, path_prefix: /status, match: { path: { regex: '/[0-9]+' } } }, \
                   { kind: external_auth, name: tells, to: auth, copy: [x-origin], match: { path: /request } }, \
                   { kind: external_auth, name: closed, to: auth, timeout_ms: 100, match: { path: /gate } }, \
                   { kind: external_auth, name: open, to: gone, fail: open, match: { path: /echo } }";
    let Some(pair) = Pair::of(filters) else { return };
    let auth = pair.stage.web("auth");
    let [service, gone, nobody] = [(); 3].map(|()| pair.stage.address());
    let config = pair.config.clone().service(Service::http("auth", service).to(auth.address()));
    let agent = Agent::start(&config.service(Service::http("gone", gone).to(nobody)));
    for answer in pair.ask("/403", &[]) {
        assert_eq!((status(&answer), pair.web.requests()), ("403", 0), "{answer}");
    }
    let call = pair.ask_one(1, "/401", &GRPC);
    assert_eq!(field(&call, "grpc-status"), Some("16"), "{call}");
    for answer in pair.ask("/500", &[]) {
        assert_eq!((status(&answer), pair.web.requests()), ("503", 0), "who is broken has not refused: {answer}");
    }
    pair.ask("/204", &[]);
    assert_eq!(pair.web.requests(), 2);
    for answer in pair.ask("/request", &["--header", "x-origin: forged", "--request", "PUT"]) {
        let (_, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        assert!(body.starts_with("put /request "), "{answer}");
        assert_eq!(field(body, "x-origin"), Some("auth"), "{answer}");
    }
    for (path, expected) in [("/gate", "503"), ("/echo", "200")] {
        assert_eq!(pair.ask(path, &[]).each_ref().map(|answer| status(answer)), [expected, expected], "{path}");
    }
    for (filter, outcome, count) in [
        ("decides", "refused", 3.0),
        ("decides", "failed", 2.0),
        ("decides", "accepted", 2.0),
        ("tells", "accepted", 2.0),
        ("closed", "failed", 2.0),
        ("open", "failed", 2.0),
    ] {
        assert_eq!(counted(&agent, filter, outcome), count, "{filter}");
    }
}

#[test]
fn a_client_that_sends_all_of_a_long_body_before_it_reads_hears_why_it_was_refused() {
    let Some(pair) = Pair::of("{ kind: body_limit, bytes_max: 1000 }") else { return };
    let _agent = Agent::start(&pair.config);
    // Much more than any buffer on the way takes: who is reset meanwhile cannot send on, and loses what it has not read.
    let program = "import socket, sys\n\
                   host, port = sys.argv[1].rsplit(':', 1)\n\
                   s = socket.create_connection((host, int(port)), timeout=soon)\n\
                   s.sendall(b'POST / HTTP/1.1\\r\\nhost: a\\r\\ncontent-length: 30000000\\r\\n\\r\\n')\n\
                   for _ in range(300): s.sendall(b'x' * 100000)\n\
                   print(s.recv(12).decode())";
    let address = pair.services[0].to_string();
    assert_eq!(peers::python(Room::of(&pair.stage.clients), program, &[&address]), "HTTP/1.1 413\n");
    assert_eq!(pair.web.requests(), 0);
}
