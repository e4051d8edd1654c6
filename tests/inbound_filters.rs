//! Filters of connections that come in: before the program hears of a request, and with its client's own address.

use std::io::Write as _;

use sockway_tests::{
    agent::Agent,
    config::Service,
    filtered::{body, field, status},
    peers::{self, Nghttpd},
    pod::{PORT, Scene},
    process::Room,
    translation::HTTP2,
    web::Web,
};

fn ask(scene: &Scene, path: &str, arguments: &[&str]) -> String {
    let url = format!("http://{}{path}", scene.at(PORT));
    let room = Room::of(&scene.stage.clients).inside(&scene.outside);
    let output = peers::curl(room, &[&["--include", url.as_str()], arguments].concat());
    String::from_utf8_lossy(&output.stdout).to_lowercase()
}

fn web(scene: &Scene) -> Web {
    Web::start(scene.program.listen(std::net::SocketAddr::from(([0; 16], PORT))).expect("a free port"), "pod")
}

#[test]
fn what_comes_in_passes_the_filters_of_its_rule() {
    let Some(scene) = Scene::set() else { return };
    let program = web(&scene);
    let client = scene.wire.left;
    let filters = format!(
        "{{ kind: access, name: known, allow: {{ sources: [{client}] }} }}, \
         {{ kind: access, name: others, deny: {{ sources: [{client}] }}, match: {{ path: /no }} }}, \
         {{ kind: headers, request: {{ set: {{ x-asked: here }} }}, response: {{ set: {{ x-told: there }} }} }}, \
         {{ kind: body_limit, bytes_max: 1000 }}, \
         {{ kind: api_key, keys: {{ ann: one }}, forward_as: x-client, match: {{ path: /request }} }}, \
         {{ kind: cache }}"
    );
    let agent = scene.agent(&format!("ports: [{PORT}], protocol: http, filters: [{filters}]"));
    let answer = ask(&scene, "/request", &["--header", "x-api-key: one", "--header", "x-client: eve"]);
    assert_eq!((status(&answer), field(&answer, "x-told")), ("200", Some("there")), "{answer}");
    assert!(body(&answer).contains("x-asked: here") && body(&answer).contains("x-client: ann"), "{answer}");
    let before = program.requests();
    for (path, arguments, expected) in [
        ("/no", &[][..], "403"),
        ("/request", &["--header", "x-api-key: two"], "401"),
        ("/echo", &["--data", &"x".repeat(1_001)], "413"),
    ] {
        let answer = ask(&scene, path, arguments);
        assert_eq!(
            (status(&answer), field(&answer, "x-told")),
            (expected, Some("there").filter(|_| path != "/no")),
            "{answer}"
        );
    }
    assert_eq!(program.requests(), before, "the program hears of none of them");
    assert_eq!(status(&ask(&scene, "/echo", &["--data", "x"])), "200");
    program.say("/kept", 200, "cache-control: max-age=60", "kept");
    for _ in 0..3 {
        assert_eq!(body(&ask(&scene, "/kept", &[])), "kept");
    }
    assert_eq!(program.asked("/kept"), 1);
    let counted = |filter: &str, outcome: &str| {
        agent.metric("sockway_filter_requests_total", &[("service", "web"), ("filter", filter), ("outcome", outcome)])
    };
    assert_eq!((counted("others", "refused"), counted("cache", "hit")), (1.0, 2.0));
}

#[test]
fn another_service_says_who_may_come_in() {
    let Some(scene) = Scene::set() else { return };
    let program = web(&scene);
    let auth = scene.stage.web("auth");
    let address = scene.stage.address();
    let filter = "{ kind: external_auth, to: auth, path_prefix: /status, copy: [x-origin] }";
    let config = scene.config(&format!("ports: [{PORT}], protocol: http, filters: [{filter}]"));
    let agent = Agent::start(&config.service(Service::http("auth", address).to(auth.address())));
    for (path, expected, passes) in [("/403", "403", false), ("/500", "503", false), ("/200", "404", true)] {
        let before = program.requests();
        let answer = ask(&scene, path, &["--header", "x-origin: forged"]);
        assert_eq!((status(&answer), program.requests() - before), (expected, usize::from(passes)), "{answer}");
    }
    assert!(program.last().expect("a request").0.to_lowercase().contains("x-origin: auth"));
    let counted = |outcome: &str| agent.metric("sockway_filter_requests_total", &[("outcome", outcome)]);
    assert_eq!((counted("refused"), counted("failed"), counted("accepted")), (1.0, 1.0, 1.0));
}

/// A key set, and a token that its key has signed: {"sub":"ann"}.
const KEYS: &str = r#"{"keys":[{"kty":"RSA","kid":"r","e":"AQAB","n":"nWpzyhoeSog8h08e1OnuG705YGZvNt6b2uxXE6JaldYEmCCOq03rZHzRoTJBNCV-m-ZZkCBaewTDYYt42dC9NYuLjimK8NM664tGFuV3L8axNnB4bzW1uocr3L1wrZkBddqqMIY0-DNedFMU_HPMqG3iBmeqUHZXMzxSkp5Zk94EfiQnayHl5SKct3KBJHpADQ7r3SKjKGmBIA9aWG4ipS6OmiJ1oZW8a65--d9Z2oSMhh_rq-r0NH7U-WbnQUczFXBRw2ZSVNbgCD3vSXorIEfT8JxvBwZx_RieRaQ0ajMTecSIYZH6vQhTkN8r5EI5jUB8O_zM5eT0G7tWwEsRww"}]}"#;
const TOKEN: &str = "authorization: Bearer eyJhbGciOiJSUzI1NiIsImtpZCI6InIifQ.eyJzdWIiOiJhbm4ifQ.GrIgKY5IVdtLgWC6mb0zRZ1lA93DAfkMmesFJxWttKmkyi\
    hcMpaafAV1kL1pNXkNP7gwMHvVpVBgmGvi58D_MQ6KSeVoHjm7kmfrfaJggwISGMZMDpZr8zXwMzJaSi4YC-2vjzVNnWC3bFOXsl\
    edjv4JqNo-R6E01OOXYXYXuMofAMq1FgV48kBnTwIAnsbafbymrAL6N217tSq6YTwwA1bIjMWHsaNmg-tgs3e7ljYIwsV9hoPYoQ\
    AaTEHJM54vkfmGMzC0vUMsGrkmIscP-wIES7ayzkHzOFTIKMs8_baHcryz6AH4i6hGmSMoMxZ8bivodOrIvxXShssq9ppXHQ";

/// What stands between a client and a program, in each protocol that comes in: a token, fields, CORS, a request id, a fault.
#[test]
fn who_comes_in_has_a_token_in_either_protocol_and_the_rest_of_the_chain_works_there_too() {
    let Some(scene) = Scene::set() else { return };
    let program = web(&scene);
    let http2 = PORT + 1;
    let at = scene.at(http2);
    let _nghttpd = Nghttpd::start(Room::of(&scene.stage.origins).inside(&scene.pod), &scene.program, at, 200_000, &[]);
    let mut keys = tempfile::NamedTempFile::new().expect("a file");
    keys.write_all(KEYS.as_bytes()).expect("room for it");
    let filters = format!(
        "filters: [{{ kind: cors, origins: [\"https://a.example\"] }}, {{ kind: jwt, jwks_file: {}, claims: {{ sub: x-user }} }}, \
         {{ kind: request_id, respond: on }}, {{ kind: headers, response: {{ set: {{ x-told: there }} }} }}, \
         {{ kind: fault, abort_status: 418, match: {{ headers: {{ x-broken: {{ present: on }} }} }} }}]",
        keys.path().display()
    );
    let rule = |name: &str, port: u16, protocol: &str| {
        scene.rule(name, &format!("ports: [{port}], protocol: {protocol}, {filters}"))
    };
    let config = sockway_tests::config::Config::new().capture(&scene.stage.origins);
    let config = config.inbound(&rule("one", PORT, "http")).inbound(&rule("two", http2, "http2"));
    let agent = Agent::start(&config);
    let ask = |port: u16, path: &str, arguments: &[&str]| {
        let url = format!("http://{}{path}", scene.at(port));
        let spoken: &[&str] = if port == http2 { &[HTTP2] } else { &[] };
        let room = Room::of(&scene.stage.clients).inside(&scene.outside);
        let output = peers::curl(room, &[&["--include", url.as_str()], spoken, arguments].concat());
        String::from_utf8_lossy(&output.stdout).to_lowercase()
    };
    for (port, name) in [(PORT, "one"), (http2, "two")] {
        let refused = ask(port, "/bytes/5000", &["--header", "origin: https://a.example"]);
        assert_eq!(status(&refused), "401", "{refused}");
        assert!(field(&refused, "www-authenticate").is_some_and(|value| value.starts_with("bearer")), "{refused}");
        // A page is told why.
        assert_eq!(field(&refused, "access-control-allow-origin"), Some("https://a.example"), "{refused}");
        let path = if port == http2 { "/bytes" } else { "/bytes/200000" };
        let answer = ask(port, path, &["--header", TOKEN, "--output", "/dev/null", "--dump-header", "-"]);
        assert_eq!((status(&answer), field(&answer, "x-told")), ("200", Some("there")), "{answer}");
        assert!(field(&answer, "x-request-id").is_some(), "{answer}");
        let broken = ask(port, path, &["--header", TOKEN, "--header", "x-broken: 1"]);
        assert_eq!(status(&broken), "418", "{broken}");
        let preflight = [
            "--request",
            "OPTIONS",
            "--header",
            "origin: https://a.example",
            "--header",
            "access-control-request-method: GET",
        ];
        assert_eq!(status(&ask(port, path, &preflight)), "204");
        let counted = |filter: &str, outcome: &str| {
            agent
                .metric("sockway_filter_requests_total", &[("service", name), ("filter", filter), ("outcome", outcome)])
        };
        assert_eq!(
            (counted("jwt", "refused"), counted("jwt", "accepted"), counted("fault", "aborted")),
            (1.0, 2.0, 1.0)
        );
    }
    let call = ["--header", "content-type: application/grpc", "--header", "te: trailers", "--data-binary", "x"];
    assert_eq!(field(&ask(http2, "/", &call), "grpc-status"), Some("16"));
    let told = program.last().expect("a request").0.to_lowercase();
    assert!(told.contains("x-user: ann") && told.contains("x-request-id: "), "{told}");
}
