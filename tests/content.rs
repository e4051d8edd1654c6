//! Filters that change how an answer's body goes: compressed, or over a narrow line. In HTTP/1 and HTTP/2.

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use sockway_tests::{
    agent::Agent,
    config::Service,
    filtered::{Filtered, counted, field, status},
    peers::{Nghttpd, curl, python_command},
    process::{Process, Room},
    stage::Stage,
    translation::HTTP2,
    wait,
    web::pattern,
};
use tempfile::NamedTempFile;

const CODINGS: [&str; 3] = ["gzip", "br", "zstd"];

fn accept(coding: &str) -> [String; 3] {
    ["--compressed".to_owned(), "--header".to_owned(), format!("accept-encoding: {coding}")]
}

#[test]
fn an_answer_is_compressed_for_who_takes_that_and_is_the_same_within() {
    let Some(pair) = Filtered::by("{ kind: compress }") else { return };
    let agent = Agent::start(&pair.config);
    let text: String = (0..40_000).map(|number| format!("line {number}\n")).collect();
    pair.web.say("/text", 200, "content-type: text/plain; charset=utf-8\netag: \"1\"\nx-a: b", &text);
    for index in [0, 1] {
        for coding in CODINGS {
            let accept = accept(coding);
            let arguments: Vec<&str> = accept.iter().map(String::as_str).collect();
            let (head, body) = pair.ask_bytes(index, "/text", &arguments);
            assert_eq!((status(&head), field(&head, "content-encoding")), ("200", Some(coding)), "{head}");
            assert!(body == text.as_bytes(), "{coding}: {} bytes", body.len());
            assert_eq!((field(&head, "etag"), field(&head, "vary")), (Some("w/\"1\""), Some("accept-encoding")));
            assert_eq!((field(&head, "content-length"), field(&head, "x-a")), (None, Some("b")), "{head}");
            let (_, raw) = pair.ask_bytes(index, "/text", &arguments[1..]);
            assert!(raw.len() < text.len() / 3, "{coding}: {} bytes", raw.len());
        }
        // As it is to who wants that, but others might get another.
        let (head, body) = pair.ask_bytes(index, "/text", &[]);
        assert_eq!((field(&head, "content-encoding"), field(&head, "vary")), (None, Some("accept-encoding")), "{head}");
        assert!(body == text.as_bytes());
        assert_eq!(field(&head, "content-length"), Some(text.len().to_string().as_str()), "{head}");
    }
    assert_eq!((counted(&agent, "compress", "compressed"), counted(&agent, "compress", "passed")), (12.0, 2.0));
}

#[test]
fn what_is_not_to_be_compressed_goes_as_it_is() {
    let Some(pair) = Filtered::by("{ kind: compress, bytes_min: 100 }") else { return };
    let _agent = Agent::start(&pair.config);
    let text = "text ".repeat(1_000);
    let plain = "content-type: text/plain";
    for (path, code, fields, text) in [
        ("/encoded", 200, format!("{plain}\ncontent-encoding: x-own"), text.as_str()),
        ("/fixed", 200, format!("{plain}\ncache-control: no-transform"), &text),
        ("/image", 200, "content-type: image/png".to_owned(), &text),
        ("/short", 200, plain.to_owned(), "short"),
        ("/part", 206, format!("{plain}\ncontent-range: bytes 0-4999/9999"), &text),
        ("/grpc", 200, "content-type: application/grpc-web-text".to_owned(), &text),
    ] {
        pair.web.say(path, code, &fields, text);
        for index in [0, 1] {
            let (head, body) = pair.ask_bytes(index, path, &["--header", "accept-encoding: gzip, br, zstd"]);
            assert_eq!(status(&head), code.to_string(), "{path} {head}");
            assert!(!head.contains("content-encoding: gzip") && body == text.as_bytes(), "{path} {head}");
            assert_eq!(field(&head, "content-length"), Some(text.len().to_string().as_str()), "{path} {head}");
        }
    }
    pair.web.say("/text", 200, plain, &text);
    for index in [0, 1] {
        let head = pair.ask(index, "/text", &["--head", "--header", "accept-encoding: gzip"]);
        assert_eq!((field(&head, "content-encoding"), field(&head, "content-length")), (None, Some("5000")), "{head}");
        let (head, _) = pair.ask_bytes(index, "/text", &["--header", "accept-encoding: gzip", "--range", "0-9"]);
        assert_eq!(field(&head, "content-encoding"), None, "{head}");
        // Chunked, of no known length.
        let (head, body) = pair.ask_bytes(index, "/chunked/50000", &["--header", "accept-encoding: gzip"]);
        assert_eq!((field(&head, "content-encoding"), body.len()), (None, 50_000), "it has no type: {head}");
    }
}

#[test]
fn events_come_when_they_are_sent_although_they_are_compressed() {
    let Some(pair) = Filtered::by(
        "{ kind: compress, bytes_min: 0 }, { kind: headers, response: { set: { content-type: text/event-stream } } }",
    ) else {
        return;
    };
    let _agent = Agent::start(&pair.config);
    // Half of it comes, and the rest when the gate is opened.
    let program = "import sys, urllib.request, zlib\n\
                   request = urllib.request.Request(sys.argv[1], headers={'accept-encoding': 'gzip'})\n\
                   answer = urllib.request.urlopen(request, timeout=soon)\n\
                   decoder = zlib.decompressobj(31)\n\
                   text = b''\n\
                   while len(text) < 500: text += decoder.decompress(answer.read1(4096))\n\
                   print(len(text), answer.headers['content-encoding'], flush=True)\n\
                   text += decoder.decompress(answer.read()) + decoder.flush()\n\
                   print(text == b'a' * 500 + b'b' * 500, decoder.eof)";
    let url = format!("http://{}/gate", pair.services[0]);
    let mut process = Process::spawn(Room::of(&pair.stage.clients), python_command(program, &[&url]));
    wait::until("the first half to arrive", wait::SOON, || process.stdout().starts_with("500 gzip"));
    assert_eq!(pair.web.waiting(), 1);
    pair.web.open_gate();
    wait::until("the rest", wait::SOON, || process.ended().is_some());
    assert_eq!(process.stdout(), "500 gzip\nTrue True\n");
}

#[test]
fn a_cache_in_front_of_compression_keeps_what_is_compressed() {
    let Some(pair) = Filtered::by("{ kind: cache }, { kind: compress }") else { return };
    let agent = Agent::start(&pair.config);
    let text = "text ".repeat(1_000);
    pair.web.say("/a", 200, "content-type: text/plain\ncache-control: max-age=60", &text);
    for index in [0, 1] {
        for coding in ["gzip", "br", "gzip", "br"] {
            let accept = accept(coding);
            let arguments: Vec<&str> = accept.iter().map(String::as_str).collect();
            let (head, body) = pair.ask_bytes(index, "/a", &arguments);
            assert_eq!(field(&head, "content-encoding"), Some(coding), "{head}");
            assert!(body == text.as_bytes(), "{coding}: {} bytes", body.len());
        }
        assert_eq!(pair.web.asked("/a"), 2 * (index + 1));
    }
    assert_eq!(counted(&agent, "compress", "compressed"), 4.0);
}

#[test]
fn a_narrow_line_takes_its_time() {
    let Some(pair) = Filtered::by("{ kind: fault, bandwidth_bytes_per_second: 50000, match: { path: /bytes/50000 } }")
    else {
        return;
    };
    let agent = Agent::start(&pair.config);
    for index in [0, 1] {
        let began = Instant::now();
        let (head, body) = pair.ask_bytes(index, "/bytes/50000", &[]);
        let took = began.elapsed();
        assert_eq!((status(&head), body), ("200", sockway_tests::web::pattern(50_000)));
        // The last piece does not wait for itself.
        assert!(took >= Duration::from_millis(900), "{took:?}");
        assert_eq!(pair.ask_bytes(index, "/bytes/60000", &[]).1.len(), 60_000);
    }
    assert_eq!(counted(&agent, "fault", "slowed"), 2.0);
}

#[test]
fn what_is_sent_over_a_narrow_line_takes_its_time_whatever_either_side_speaks() {
    let Some(stage) = Stage::set() else { return };
    let (web, up) = (stage.web("a"), stage.address());
    let _origin = Nghttpd::start(Room::of(&stage.origins), stage.origin(), up, 1_000, &[]);
    let fault = "filters: [{ kind: fault, bandwidth_bytes_per_second: 60000, direction: request }]";
    let services = [(); 5].map(|()| stage.address());
    let config = stage
        .config()
        .service(Service::http("plain", services[0]).set(fault).to(web.address()))
        .service(Service::http2("down", services[1]).set(fault).set("upstream_protocol: http1").to(web.address()))
        .service(Service::http("up", services[2]).set(fault).set("upstream_protocol: http2").to(up))
        .service(Service::http2("both", services[3]).set(fault).to(up))
        .service(Service::http("kept", services[4]).set(fault).set("retry: { attempts: 2 }").to(web.address()));
    let agent = Agent::start(&config);
    let mut sent = NamedTempFile::new().expect("a file");
    sent.write_all(&pattern(60_000)).expect("room for it");
    let data = format!("@{}", sent.path().display());
    let chunked: &[&str] = &["--header", "transfer-encoding: chunked"];
    let ways: [(usize, &[&str]); 8] =
        [(0, &[]), (0, chunked), (1, &[HTTP2]), (2, &[]), (2, chunked), (3, &[HTTP2]), (4, &[]), (4, chunked)];
    for (place, arguments) in ways {
        let url = format!("http://{}/echo", services[place]);
        let began = Instant::now();
        let output = curl(Room::of(&stage.clients), &[&[&url, "--data-binary", &data], arguments].concat());
        let took = began.elapsed();
        assert!(output.stdout == pattern(60_000), "{place} {arguments:?}: {} bytes", output.stdout.len());
        assert!(took >= Duration::from_millis(900), "{place} {arguments:?}: {took:?}");
    }
    assert!(counted(&agent, "fault", "slowed") > 7.0);
}

#[test]
fn who_is_in_a_hurry_does_not_wait_for_a_narrow_line() {
    let keys = "timeout_ms: 700";
    let fault = "{ kind: fault, bandwidth_bytes_per_second: 1000, direction: both }";
    let Some(pair) = Filtered::with(fault, keys) else { return };
    let _agent = Agent::start(&pair.config);
    let data = "x".repeat(20_000);
    for index in [0, 1] {
        let began = Instant::now();
        let answer = pair.ask(index, "/echo", &["--data", &data]);
        assert_eq!(status(&answer), "504", "{answer}");
        // All of it would take 20 s.
        assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    }
}
