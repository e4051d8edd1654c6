//! The agent's HTTP/2 as a client sees it: every case that `httpwg` makes of RFC 9113, with a real endpoint behind. What does not pass is
//! listed here with the reason; a case that fails and is not listed, or passes and is, fails the test.

use std::{collections::BTreeSet, process::Command, time::Duration};

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
    let patience = patience::deadline(CASE).as_millis().to_string();
    let mut command = Command::new(httpwg());
    command.args(["--verbose", "--connect-timeout", &patience, "--frame-timeout", &patience]);
    // By itself it takes 256 MiB for buffers.
    command.args(["--address", &service.to_string()]).env("BUFFET_NUM_BUFS", "8192");
    let output = process::run(Room::of(&stage.clients), command);
    let printed = String::from_utf8_lossy(&output.stderr);
    let all = told(&printed, "Running test: ");
    assert_eq!(all.len(), CASES, "{printed}");
    let passed = told(&printed, "Test passed: ");
    let either = names(&EITHER);
    let failed: BTreeSet<String> = all.difference(&passed).filter(|name| !either.contains(*name)).cloned().collect();
    let why: Vec<&str> = printed.lines().filter(|line| line.contains("Expected") || line.contains("Wanted")).collect();
    assert_eq!(failed, names(&FAIL), "left: what failed, right: what is listed\n{}", why.join("\n"));
    assert!(either.is_subset(&all), "what is listed is a case");
}
