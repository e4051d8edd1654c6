//! Changing an agent while it runs: by its file, by the admin endpoint and by the command line; what is written down of it; the way back.

use std::{
    fs,
    io::BufReader,
    net::{SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt as _,
    process::Output,
    time::Duration,
};

use serde_json::{Value, json};
use sockway_tests::{
    agent::{Agent, command_of, run_file, sockway},
    answer::{Answer, read_answer},
    config::{Config, Service},
    peers::Wrk,
    process::{Process, Room},
    stage::Stage,
    wait,
    web::Web,
};

fn json_of(answer: &Answer) -> Value {
    assert_eq!(answer.status, 200, "{}", answer.text());
    serde_json::from_str(&answer.text()).expect("JSON")
}

/// The lines of the audit log; there is none before the first is written.
fn log(agent: &Agent) -> Vec<Value> {
    let text = fs::read_to_string(format!("/var/lib/sockway/{}/audit.jsonl", agent.instance())).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

/// The last line, once there are so many.
fn line(agent: &Agent, number: usize) -> Value {
    wait::until("the line to be written", wait::SOON, || log(agent).len() >= number);
    let lines = log(agent);
    assert_eq!(lines.len(), number, "{lines:#?}");
    lines[number - 1].clone()
}

fn cli(agent: &Agent, arguments: &[&str]) -> Output {
    sockway(&[arguments, &["--instance", agent.instance()]].concat())
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// How many of forty requests each of these has got.
fn spread(stage: &Stage, service: SocketAddr, webs: &[&Web]) -> Vec<usize> {
    let before: Vec<usize> = webs.iter().map(|web| web.requests()).collect();
    let mut session = stage.session(service);
    for _ in 0..40 {
        assert_eq!(session.get("/").expect("an answer").status, 200);
    }
    webs.iter().zip(before).map(|(web, before)| web.requests() - before).collect()
}

fn two(service: SocketAddr, webs: &[&Web]) -> Service {
    Service::http("web", service).to_all(webs.iter().map(|web| web.address()))
}

#[test]
fn a_change_of_the_file_is_a_generation_with_what_differs_and_a_refused_one_is_written_down_too() {
    let Some(stage) = Stage::set() else { return };
    let (web, service) = (stage.web("a"), stage.address());
    let config = stage.config();
    let with = |ms: u32| config.with_services([two(service, &[&web]).set(&format!("connect_timeout_ms: {ms}"))]);
    let agent = Agent::start(&with(500));
    let file = format!("file {}", agent.config_file().display());
    let started = line(&agent, 1);
    let told = |line: &Value| {
        let words = ["change", "by", "outcome"].map(|key| line[key].as_str().expect(key).to_owned());
        (line["generation"].as_u64().expect("a number"), words)
    };
    let words = |change: &str, outcome: &str| [change.to_owned(), file.clone(), outcome.to_owned()];
    assert_eq!((told(&started), &started["diff"]), ((1, words("start", "applied")), &json!([])));
    assert!(started["at"].as_str().is_some_and(|at| at.starts_with("20") && at.ends_with('Z')), "{started}");

    agent.reload(&with(600));
    let reloaded = line(&agent, 2);
    let diff = json!([{ "path": "services[web].connect_timeout_ms", "old": 500, "new": 600 }]);
    assert_eq!((told(&reloaded), &reloaded["diff"]), ((2, words("reload", "applied")), &diff));
    assert_eq!(json_of(&agent.admin("/v1/generations/2")), reloaded);

    agent.write_config(&with(600).yaml().replace("connect_timeout_ms: 600", "connect_timeout_ms: none"));
    let refused = line(&agent, 3);
    assert_eq!((told(&refused), &refused["diff"]), ((2, words("reload", "refused")), &json!([])));
    let error = refused["error"].as_str().expect("why");
    assert!(error.contains("sockway.yaml:") && error.contains("services[0].connect_timeout_ms: expected"), "{error}");
    assert_eq!(stage.session(service).get("/").expect("an answer").status, 200);
    assert_eq!(agent.generation(), 2.0);

    let output = cli(&agent, &["history"]);
    let told = said(&output);
    for part in ["services[web].connect_timeout_ms: 500 -> 600", "REFUSED", "start", &file] {
        assert!(told.contains(part), "{part} in {told}");
    }
    let mode = fs::metadata(format!("/var/lib/sockway/{}/audit.jsonl", agent.instance())).expect("the log");
    assert_eq!(mode.permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_rollback_is_a_new_generation_says_that_the_file_differs_and_works_after_a_restart() {
    let Some(stage) = Stage::set() else { return };
    let (old, new, service) = (stage.web("old"), stage.web("new"), stage.address());
    let config = stage.config();
    let [before, after] = [&old, &new].map(|web| config.with_services([two(service, &[web])]));
    let mut agent = Agent::start(&before);
    agent.reload(&after);
    assert_eq!(spread(&stage, service, &[&old, &new]), [0, 40]);

    let output = cli(&agent, &["rollback", "1"]);
    let told = said(&output);
    assert!(
        output.status.success()
            && told.contains("generation 3, rollback")
            && told.contains("sockway.yaml says otherwise"),
        "{told}"
    );
    assert_eq!((spread(&stage, service, &[&old, &new]), agent.generation()), (vec![40, 0], 3.0));
    assert!(said(&cli(&agent, &["status"])).contains("generation 3; the file says otherwise"));
    let entry = line(&agent, 3);
    assert!(entry["by"].as_str().is_some_and(|by| by == "socket, user 0"), "{entry}");

    // The file supersedes it by its next change.
    agent.reload(&config.with_services([two(service, &[&new]).set("connect_timeout_ms: 700")]));
    assert_eq!(spread(&stage, service, &[&old, &new]), [0, 40]);
    assert!(!said(&cli(&agent, &["status"])).contains("says otherwise"));
    // Nor does it where what was changed is changed back.
    for (time, differs) in [("600", true), ("700", false)] {
        let told = said(&cli(&agent, &["set", "web", "connect_timeout_ms", time]));
        assert_eq!(told.contains("says otherwise"), differs, "{told}");
        assert_eq!(said(&cli(&agent, &["status"])).contains("says otherwise"), differs);
    }

    agent.sigterm();
    agent.wait();
    agent.start_again();
    assert_eq!(agent.generation(), 7.0);
    let output = cli(&agent, &["rollback", "3"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!((spread(&stage, service, &[&old, &new]), agent.generation()), (vec![40, 0], 8.0));
    let changes: Vec<String> =
        log(&agent).iter().map(|line| line["change"].as_str().expect("a word").to_owned()).collect();
    assert_eq!(changes, ["start", "reload", "rollback", "reload", "service", "service", "start", "rollback"]);

    let output = cli(&agent, &["rollback", "99"]);
    let told = said(&output);
    assert!(
        output.status.code() == Some(64)
            && told.contains("generation 99 is not kept; these are: 1, 2, 3, 4, 5, 6, 7, 8"),
        "{told}"
    );
}

/// A request by TCP with this token, if any.
fn by_tcp(agent: &Agent, method: &str, path: &str, token: Option<&str>, body: &str) -> Answer {
    let mut stream = TcpStream::connect(agent.admin_address()).expect("it listens");
    stream.set_read_timeout(Some(wait::soon())).expect("a deadline");
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let length = body.len();
    let message = format!("{method} {path} HTTP/1.1\r\nHost: a\r\n{token}Content-Length: {length}\r\n\r\n{body}");
    std::io::Write::write_all(&mut stream, message.as_bytes()).expect("writable");
    read_answer(&mut BufReader::new(stream), method).expect("an answer")
}

#[test]
fn by_tcp_nothing_changes_without_a_token_that_is_known_now() {
    let Some(stage) = Stage::set() else { return };
    let (web, service) = (stage.web("a"), stage.address());
    let hush = "hush";
    let config = stage.config().service(two(service, &[&web]));
    let agent = Agent::start(&config);
    let path = format!("/v1/services/web/endpoints/{}", web.address());
    let patch = |token| by_tcp(&agent, "PATCH", &path, token, r#"{"weight": 5}"#);
    for token in [None, Some(hush)] {
        let refused = patch(token);
        assert_eq!(refused.status, 403);
        assert!(
            refused.text().contains("by the Unix socket, or with a token: write admin.tokens"),
            "{}",
            refused.text()
        );
    }
    assert_eq!(by_tcp(&agent, "GET", "/v1/audit", None, "").status, 200, "reading needs nothing");
    assert_eq!(by_tcp(&agent, "GET", "/v1/generations/1/config", None, "").status, 403, "but what somebody wrote does");

    let sum = std::process::Command::new("sh").args(["-c", &format!("printf %s {hush} | sha256sum")]).output();
    let sum = String::from_utf8(sum.expect("sha256sum").stdout).expect("hexadecimal digits");
    let digest = sum.split(' ').next().expect("a digest");
    let admin = format!("admin: {{ address: 127.0.0.1:0, tokens: [{{ name: ops, sha256: {digest} }}] }}");
    agent.reload(&config.clone().set(&admin));
    assert_eq!((patch(None).status, patch(Some("hus")).status), (401, 401));
    for (token, challenge) in
        [(None, r#"Bearer realm="sockway""#), (Some("hus"), r#"Bearer realm="sockway", error="invalid_token""#)]
    {
        assert_eq!(patch(token).header("www-authenticate"), challenge);
    }
    let entry = json_of(&patch(Some(hush)));
    assert_eq!((entry["by"].as_str(), entry["diff"][0]["new"].as_u64()), (Some("token ops"), Some(5)));
    assert_eq!(by_tcp(&agent, "GET", "/v1/generations/1/config", Some(hush), "").text(), config.yaml());
    for read in [agent.admin("/config"), agent.admin("/v1/audit")] {
        assert!(!read.text().contains(digest), "nobody reads what tokens are known by");
    }

    // The command line by the same way.
    let file = agent.config_file().with_file_name("token");
    fs::write(&file, format!("{hush}\n")).expect("writable");
    let (address, file) = (agent.admin_address().to_string(), file.to_string_lossy().into_owned());
    let target = format!("web/{}", web.address());
    let set = |token: &[&str]| sockway(&[&["set", &target, "weight", "6", "--admin", &address], token].concat());
    assert_eq!(set(&[]).status.code(), Some(77));
    let output = set(&["--token-file", &file]);
    assert!(output.status.success() && said(&output).contains(".weight: 5 -> 6"), "{}", said(&output));
}

#[test]
fn the_socket_is_its_owners_alone_and_is_gone_with_the_agent() {
    let Some(stage) = Stage::set() else { return };
    let mut agent = Agent::start(&stage.config());
    let socket = run_file(agent.instance()).with_extension("sock");
    assert_eq!(fs::metadata(&socket).expect("it is there").permissions().mode() & 0o777, 0o600);
    agent.sigterm();
    agent.wait();
    assert!(!socket.exists());
    agent.start_again();
    agent.sigkill();
    assert!(socket.exists());
    let output = cli(&agent, &["audit"]);
    assert_eq!(output.status.code(), Some(69), "{}", said(&output));
    agent.start_again();
    assert_eq!(json_of(&agent.ask("GET", "/v1/generations", ""))["current"], 3);
}

#[test]
fn weights_and_draining_endpoints_change_what_traffic_does() {
    let Some(stage) = Stage::set() else { return };
    let (a, b, service) = (stage.web("a"), stage.web("b"), stage.address());
    let agent = Agent::start(&stage.config().service(two(service, &[&a, &b])));
    assert_eq!(spread(&stage, service, &[&a, &b]), [20, 20]);
    let target = format!("web/{}", a.address());
    let output = cli(&agent, &["set", &target, "weight", "3"]);
    assert!(
        said(&output).contains(&format!("services[web].endpoints[{}].weight: 1 -> 3", a.address())),
        "{}",
        said(&output)
    );
    assert_eq!(spread(&stage, service, &[&a, &b]), [30, 10]);
    assert!(cli(&agent, &["set", &target, "state", "draining"]).status.success());
    assert_eq!(spread(&stage, service, &[&a, &b]), [0, 40]);
    let path = format!("/v1/services/web/endpoints/{}", a.address());
    assert_eq!(json_of(&agent.ask("PUT", &path, "{}"))["generation"], 4);
    assert_eq!(spread(&stage, service, &[&a, &b]), [20, 20]);
    assert_eq!(json_of(&agent.ask("DELETE", &path, ""))["generation"], 5);
    assert_eq!(spread(&stage, service, &[&a, &b]), [0, 40]);

    for (target, value, code, words) in [
        ("web/127.0.0.1:1", "1", 64, "service web has no endpoint 127.0.0.1:1"),
        ("nothing", "1", 64, "there is no service nothing"),
        ("web", "1", 64, "services[0].weight: unknown key"),
    ] {
        let output = cli(&agent, &["set", target, "weight", value]);
        assert!(output.status.code() == Some(code) && said(&output).contains(words), "{}", said(&output));
    }
    let last = line(&agent, 6);
    assert_eq!((last["outcome"].as_str(), last["generation"].as_u64()), (Some("refused"), Some(5)));
    let metrics = agent.metrics();
    let counted = |change, by, result| {
        metrics.get("sockway_config_changes_total", &[("change", change), ("by", by), ("result", result)])
    };
    assert_eq!((metrics.get("sockway_config_generation", &[]), counted("start", "file", "applied")), (5.0, 1.0));
    assert_eq!((counted("endpoint", "socket", "applied"), counted("service", "socket", "refused")), (4.0, 1.0));
    assert_eq!(metrics.get("sockway_config_changes_total", &[]), 6.0, "what is not there is no change");
}

#[test]
fn an_endpoint_that_is_ejected_gets_nothing_until_its_time_is_over_or_it_is_taken_back() {
    let Some(stage) = Stage::set() else { return };
    let (a, b, service, kernel) = (stage.web("a"), stage.web("b"), stage.address(), stage.address());
    let balanced = Service::kernel_tcp("kernel", kernel).to_all([a.address(), b.address()]);
    let agent = Agent::start(&stage.config().service(two(service, &[&a, &b])).service(balanced));
    let target = format!("web/{}", a.address());
    assert!(cli(&agent, &["eject", &target, "--for", "3600"]).status.success());
    assert_eq!(spread(&stage, service, &[&a, &b]), [0, 40]);
    let told = json_of(&agent.admin("/v1/services/web"));
    assert_eq!((&told["endpoints"][0]["ejected_by_hand"], &told["endpoints"][0]["up"]), (&json!(true), &json!(false)));
    assert!(cli(&agent, &["eject", &target, "--back"]).status.success());
    assert_eq!(spread(&stage, service, &[&a, &b]), [20, 20]);

    // One balanced in the kernel, and for a moment only.
    let before = (a.connections(), b.connections());
    let path = format!("/v1/services/kernel/endpoints/{}/eject", a.address());
    assert_eq!(json_of(&agent.ask("POST", &path, r#"{"for_ms": 3600000}"#))["generation"], 1);
    (0..6).for_each(|_| drop(stage.session(kernel).get("/").expect("an answer")));
    assert_eq!((a.connections(), b.connections()), (before.0, before.1 + 6));
    json_of(&agent.ask("POST", &path, r#"{"for_ms": 50}"#));
    wait::until("the time to be over", wait::SOON, || {
        drop(stage.session(kernel).get("/").expect("an answer"));
        a.connections() > before.0
    });
    assert_eq!(agent.ask("POST", &path, r#"{"for_ms": 0}"#).status, 400);
    assert_eq!(line(&agent, 5)["change"], "eject");
}

#[test]
fn a_request_limit_that_is_changed_holds_at_once() {
    let Some(stage) = Stage::set() else { return };
    let (web, service) = (stage.web("a"), stage.address());
    let rule = "{ name: hourly, kind: fixed_window, limit: 2, window_ms: 3600000 }";
    let agent = Agent::start(&stage.config().service(two(service, &[&web]).set(&format!("request_limits: [{rule}]"))));
    let passed = || {
        let mut session = stage.session(service);
        (0..10).filter(|_| session.get("/").expect("an answer").status == 200).count()
    };
    assert_eq!(passed(), 2);
    assert!(said(&cli(&agent, &["status"])).contains("fixed_window"));
    let path = "/v1/services/web/request_limits/hourly";
    json_of(&agent.ask("PATCH", path, r#"{"limit": 5}"#));
    assert_eq!(passed(), 5);
    let told = json_of(&agent.admin("/v1/services/web"));
    assert_eq!((&told["request_limits"][0]["passed"], &told["request_limits"][0]["refused"]), (&json!(5), &json!(5)));
    let output = cli(&agent, &["set", "web", "limit", "7", "--limit", "hourly"]);
    assert!(said(&output).contains("services[web].request_limits[hourly].limit: 5 -> 7"), "{}", said(&output));
    assert_eq!(passed(), 7);
    json_of(&agent.ask("PUT", path, r#"{"kind": "fixed_window", "limit": 1, "window_ms": 3600000}"#));
    assert_eq!(passed(), 1);
    json_of(&agent.ask("DELETE", path, ""));
    assert_eq!(passed(), 10);
    let refused = agent.ask("PUT", path, r#"{"kind": "fixed_window", "limit": 0}"#);
    assert_eq!(refused.status, 422);
    assert!(refused.text().contains("services[0].request_limits[0].limit: 0 is out of range"), "{}", refused.text());
}

/// How many of so many requests are answered so.
fn answered(stage: &Stage, service: SocketAddr, requests: usize, status: u16) -> usize {
    let mut session = stage.session(service);
    (0..requests).filter(|_| session.get("/").expect("an answer").status == status).count()
}

#[test]
fn a_fault_that_is_ordered_ends_when_nobody_renews_it_whatever_else_changes() {
    let Some(stage) = Stage::set() else { return };
    let (web, service) = (stage.web("a"), stage.address());
    let agent = Agent::start(&stage.config().service(two(service, &[&web])));
    let path = "/v1/services/web/fault";
    let entry = json_of(&agent.ask("PUT", path, r#"{"abort_status": 418, "for_ms": 60000}"#));
    assert_eq!((entry["generation"].as_u64(), answered(&stage, service, 10, 418)), (Some(1), 10));
    // A change of the configuration does not end it, and knows nothing of it.
    assert!(cli(&agent, &["set", "web", "connect_timeout_ms", "777"]).status.success());
    assert_eq!((agent.generation(), answered(&stage, service, 10, 418)), (2.0, 10));
    assert!(!agent.admin("/config").text().contains("418"));
    assert_eq!(json_of(&agent.ask("PUT", path, r#"{"abort_status": 418, "for_ms": 300}"#))["note"], "renewed");
    wait::until("the lease to run out", wait::SOON, || answered(&stage, service, 1, 200) == 1);
    assert_eq!(answered(&stage, service, 10, 200), 10);
    let last = line(&agent, 4);
    assert_eq!((last["change"].as_str(), last["by"].as_str()), (Some("fault"), Some("agent")));
    json_of(&agent.ask("PUT", path, r#"{"reset": "on", "percent": 0, "for_ms": 60000}"#));
    json_of(&agent.ask("DELETE", path, ""));
    assert_eq!((answered(&stage, service, 10, 200), agent.generation()), (10, 2.0));
    assert_eq!(agent.ask("PUT", path, r#"{"for_ms": 300}"#).status, 422);
}

#[test]
fn a_drill_reports_what_became_of_requests_and_leaves_the_service_as_it_was_also_when_it_is_killed() {
    let Some(stage) = Stage::set() else { return };
    let (web, service) = (stage.web("a"), stage.address());
    let limit = "request_limits: [{ name: all, kind: fixed_window, limit: 1000000, window_ms: 3600000 }]";
    let agent = Agent::start(&stage.config().service(two(service, &[&web]).set(limit)));
    let file = agent.config_file().with_file_name("drill.yaml");
    let plan = "service: web
before_ms: 1000
after_ms: 1000
steps:
  - { name: broken, for_ms: 2000, fault: { abort_status: 503, percent: 50 } }
  - { name: narrow, for_ms: 3000, fault: { bandwidth_bytes_per_second: 2, direction: response } }
";
    fs::write(&file, plan).expect("writable");
    let file = file.to_string_lossy().into_owned();
    let mut load = Wrk::start(Room::of(&stage.clients), service, 4, Duration::from_secs(60));
    let output = cli(&agent, &["drill", &file, "--json"]);
    assert!(output.status.success(), "{}", said(&output));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let good = |phase: usize| report[phase]["good_percent"].as_f64().expect("requests");
    assert_eq!(
        ["before", "broken", "narrow", "after"].map(|name| json!(name)),
        [0, 1, 2, 3].map(|place| report[place]["phase"].clone())
    );
    assert_eq!(good(0), 100.0);
    assert!((30.0..70.0).contains(&good(1)) && good(3) > 99.0, "{report:#}");
    // Its name is 1 byte and takes half a second; of four who ask at once, no more than some twenty get it in that time.
    let slowed = report[2]["requests"].as_f64().expect("a number");
    assert!(good(2) > 99.0 && slowed < report[1]["requests"].as_f64().expect("a number") / 4.0, "{report:#}");
    let moved = report[1]["moved"].as_object().expect("what moved");
    assert!(moved.keys().any(|series| series.contains("limit=\"all\"") && series.contains("passed")), "{report:#}");

    // Killed in the middle.
    fs::write(&file, plan.replace("for_ms: 2000", "for_ms: 60000").replace("percent: 50", "percent: 100"))
        .expect("writable");
    let mut drill = Process::spawn(Room::default(), command_of(&["drill", &file, "--instance", agent.instance()]));
    wait::until("the fault", wait::SOON, || answered(&stage, service, 1, 503) == 1);
    drill.kill();
    wait::until("the agent to take it back", wait::SOON, || answered(&stage, service, 10, 200) == 10);
    assert!(load.running());
    assert_eq!(agent.generation(), 1.0);
}

#[test]
fn a_whole_configuration_takes_effect_or_is_refused_with_its_line() {
    let Some(stage) = Stage::set() else { return };
    let (old, new, service) = (stage.web("old"), stage.web("new"), stage.address());
    let config = stage.config();
    let of = |web: &Web| -> Config { config.with_services([two(service, &[web])]) };
    let agent = Agent::start(&of(&old));
    let refused = agent.ask("PUT", "/v1/config", &of(&new).yaml().replace("protocol: http", "protocol: htp"));
    assert_eq!(refused.status, 422);
    let text = refused.text();
    assert!(
        text.contains("(body):")
            && text.contains("services[0].protocol: unknown value")
            && text.contains("did you mean http"),
        "{text}"
    );
    assert_eq!(agent.ask("PUT", "/v1/config", "\n").status, 422);
    assert_eq!(spread(&stage, service, &[&old, &new]), [40, 0]);
    let entry = json_of(&agent.ask("PUT", "/v1/config", &of(&new).yaml()));
    assert!(entry["note"].as_str().is_some_and(|note| note.contains("says otherwise")), "{entry}");
    assert_eq!(spread(&stage, service, &[&old, &new]), [0, 40]);
    assert_eq!(agent.ask("PUT", "/v1/nothing", "").status, 404);
    // Who changes a thing does not make another of it.
    let address = new.address();
    for (path, body) in [
        ("/v1/services/web".to_owned(), r#"{"name": "other"}"#),
        (format!("/v1/services/web/endpoints/{address}"), r#"{"address": "127.0.0.1:1", "weight": 2}"#),
    ] {
        let refused = agent.ask("PATCH", &path, body);
        assert!(refused.status == 422 && refused.text().contains("is another than"), "{}", refused.text());
    }
    assert_eq!(agent.ask("PATCH", "/v1/services/web", r#"{"name": "web"}"#).status, 200);
    assert_eq!(json_of(&agent.ask("GET", "/openapi.json", ""))["openapi"], "3.1.0");
}

#[test]
fn a_switch_that_is_turned_degrades_a_service_at_once_and_is_a_generation() {
    let Some(stage) = Stage::set() else { return };
    let (web, service) = (stage.web("a"), stage.address());
    let degraded = two(service, &[&web]).set("degrade: { switch: peak, respond: { status: 503 } }");
    let agent = Agent::start(&stage.config().set("switches: { peak: off }").service(degraded));
    assert_eq!(answered(&stage, service, 5, 200), 5);
    assert!(said(&cli(&agent, &["switch"])).contains("peak    off"));
    let output = cli(&agent, &["switch", "peak", "on"]);
    assert!(said(&output).contains("switches.peak: off -> on"), "{}", said(&output));
    assert_eq!((answered(&stage, service, 5, 503), agent.generation()), (5, 2.0));
    assert_eq!(json_of(&agent.admin("/v1/switches"))["switches"]["peak"], "on");
    assert!(cli(&agent, &["rollback", "1"]).status.success());
    assert_eq!(answered(&stage, service, 5, 200), 5);
    assert_eq!(cli(&agent, &["switch", "pek", "on"]).status.code(), Some(64));
}
