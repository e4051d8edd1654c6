//! The agent's HTTP/2 as a client sees it: every case that `httpwg` makes of RFC 9113, with a real endpoint behind. What does not pass is
//! listed here with the reason; a case that fails and is not listed, or passes and is, fails the test.

use std::{collections::BTreeSet, net::SocketAddr, process::Command, time::Duration};

use sockway_tests::{
    agent::{Agent, httpwg},
    config::Service,
    patience,
    peers::Nghttpd,
    process::{self, Room},
    stage::Stage,
};

/// How many cases there are: fewer would be a suite that broke off.
const CASES: usize = 107;

/// How often a case that came out otherwise than expected is tried by itself: the suite makes all its connections at once, and on a busy
/// machine gives some of them up too soon, towards nghttpd as well.
const TRIES: usize = 5;

/// How long a case waits for a frame; the one that fails for want of it waits so long.
const CASE: Duration = Duration::from_secs(3);

/// What the library `h2`, which reads the frames, keeps otherwise.
const FAIL: [(&str, &str); 2] = [
    (
        "RFC 9113 :: 4. http frames :: invalid header block fragment",
        "4.3 wants COMPRESSION_ERROR; h2 ends the connection as well, and calls every field block that it cannot decode a \
         PROTOCOL_ERROR. Telling the two apart before it would be a second decoder",
    ),
    (
        "RFC 9113 :: 8. expressing http semantics in http2 :: sends headers frame with pseudo header in trailer",
        "8.1 wants the stream reset; h2 drops pseudo-fields behind a body unseen, so that nothing of them is passed on",
    ),
];

/// What may come out either way.
const EITHER: [(&str, &str); 1] = [(
    "RFC 9113 :: 7. error codes :: sends goaway frame with unknown error code",
    "6.8 lets a connection end on which its client wants no more requests and none is under way; whether the case's PING arrives \
     before that is chance",
)];

fn names(list: &[(&str, &str)]) -> BTreeSet<String> {
    list.iter().map(|(name, _)| (*name).to_owned()).collect()
}

/// The cases that stand behind this word in what the suite printed.
fn told(printed: &str, word: &str) -> BTreeSet<String> {
    printed.lines().filter_map(|line| Some(line.split_once(word)?.1.to_owned())).collect()
}

#[test]
fn every_case_of_rfc_9113_passes_but_those_that_are_listed() {
    let Some(stage) = Stage::set() else { return };
    let (endpoint, service) = (stage.address(), stage.address());
    let _origin = Nghttpd::start_answering(Room::of(&stage.origins), stage.origin(), endpoint);
    let _agent = Agent::start(&stage.config().service(Service::http2("web", service).to(endpoint)));
    let (all, passed, why) = run(&stage, service, None);
    assert_eq!(all.len(), CASES, "{all:?}");
    let (fail, either) = (names(&FAIL), names(&EITHER));
    let is_expected = |name: &String, passed: &BTreeSet<String>| passed.contains(name) != fail.contains(name);
    let mut wrong: BTreeSet<String> =
        all.difference(&either).filter(|name| !is_expected(name, &passed)).cloned().collect();
    wrong.retain(|name| {
        !(0..TRIES).any(|_| {
            let (all, passed, _) = run(&stage, service, Some(name));
            all.contains(name) && is_expected(name, &passed)
        })
    });
    assert!(wrong.is_empty(), "neither passed nor listed, or both: {wrong:#?}\n{why}");
    assert!(either.is_subset(&all) && fail.is_subset(&all), "what is listed is a case");
}

/// Runs the suite, or the cases whose name contains this: all that were tried, those that passed, and what was said of the others.
fn run(stage: &Stage, service: SocketAddr, filter: Option<&str>) -> (BTreeSet<String>, BTreeSet<String>, String) {
    let patience = patience::deadline(CASE).as_millis().to_string();
    let mut command = Command::new(httpwg());
    command.args(["--verbose", "--connect-timeout", &patience, "--frame-timeout", &patience]);
    command.args(filter.map(|filter| ["--filter", filter]).into_iter().flatten());
    // By itself it takes 256 MiB for buffers.
    command.args(["--address", &service.to_string()]).env("BUFFET_NUM_BUFS", "8192");
    let output = process::run(Room::of(&stage.clients), command);
    let printed = String::from_utf8_lossy(&output.stderr);
    let why: Vec<&str> = printed.lines().filter(|line| line.contains("Expected") || line.contains("Wanted")).collect();
    (told(&printed, "Running test: "), told(&printed, "Test passed: "), why.join("\n"))
}
