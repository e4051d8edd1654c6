//! Filters of connections that come in: before the program hears of a request, and with its client's own address.

use sockway_tests::{
    agent::Agent,
    config::Service,
    filtered::{body, field, status},
    peers,
    pod::{PORT, Scene},
    process::Room,
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
