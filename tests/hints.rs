//! What endpoints say before their answer, 103 Early Hints first of all, where the answer is compressed, kept, or may be another's.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::TcpStream,
    sync::{
        Mutex,
        mpsc::{self, Sender},
    },
};

use sockway_tests::{
    agent::Agent,
    answer::read_head,
    config::Service,
    frames::{self, END_HEADERS, END_STREAM, kind},
    origin::Origin,
    stage::Stage,
    translation::{Hop, STATUS_200, ask, framed},
    wait,
};

const HINT: &str = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
const HINT_PASSED_ON: &str = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";
const FINAL: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nhi";
const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n";
const FILTERS: [&str; 2] = ["filters: [{ kind: compress, bytes_min: 1 }]", "filters: [{ kind: cache }]"];

/// An endpoint of HTTP/1 that hints, and answers when it is told to.
fn hinting(stage: &Stage) -> (Origin, Sender<()>) {
    let (go, may_go) = mpsc::channel();
    let may_go = Mutex::new(may_go);
    let listener = stage.origin().listen(stage.address()).expect("a free address");
    let origin = Origin::start(listener, move |mut stream: &TcpStream, _| {
        while read_head(&mut BufReader::new(stream))?.is_some() {
            stream.write_all(HINT.repeat(2).as_bytes())?;
            // Who is not told answers all the same, late.
            let _ = may_go.lock().expect("no thread panics with it").recv_timeout(wait::soon());
            stream.write_all(FINAL.as_bytes())?;
        }
        Ok(())
    });
    (origin, go)
}

/// The same of HTTP/2.
fn hinting_in_frames(stage: &Stage) -> (Origin, Sender<()>) {
    let (go, may_go) = mpsc::channel();
    let may_go = Mutex::new(may_go);
    let origin = framed(stage, move |peer, frame, _| {
        if frame.kind != kind::HEADERS {
            return Ok(());
        }
        let hint = frames::head(&[(":status", "103"), ("link", "</a>")]);
        peer.send(kind::HEADERS, END_HEADERS, frame.stream, &hint)?;
        peer.send(kind::HEADERS, END_HEADERS, frame.stream, &hint)?;
        let _ = may_go.lock().expect("no thread panics with it").recv_timeout(wait::soon());
        let answer = frames::head(&[(":status", "200"), ("content-type", "text/plain")]);
        peer.send(kind::HEADERS, END_HEADERS, frame.stream, &answer)?;
        peer.send(kind::DATA, END_STREAM, frame.stream, b"hi")
    });
    (origin, go)
}

fn http1_is_told(hop: &Hop, go: &Sender<()>) {
    let mut client = hop.client1();
    client.write_all(GET).unwrap();
    let mut reader = BufReader::new(client);
    let mut lines = String::new();
    for _ in 0..6 {
        reader.read_line(&mut lines).unwrap();
    }
    assert_eq!(lines, HINT_PASSED_ON.repeat(2));
    go.send(()).unwrap();
    let head = read_head(&mut reader).unwrap().unwrap();
    assert_eq!(head.word(1), "200");
    let (text, _) = ask(hop.client1(), b"GET /x HTTP/1.0\r\nConnection: close\r\n\r\n");
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
}

fn http2_is_told(hop: &Hop, go: &Sender<()>) {
    let mut client = hop.client2();
    let asks = frames::request("GET", "/2", &[("accept-encoding", "gzip")]);
    client.send(kind::HEADERS, END_HEADERS | END_STREAM, 1, &asks).unwrap();
    for _ in 0..2 {
        let hint = client.until(kind::HEADERS);
        assert!(hint.payload[0] != STATUS_200 && !hint.ends_stream(), "a hint first");
    }
    go.send(()).unwrap();
    assert_eq!(client.until(kind::HEADERS).payload[0], STATUS_200);
}

#[test]
fn hints_pass_at_once_where_answers_are_compressed_or_kept() {
    for filters in FILTERS {
        for upstream in ["http1", "http2"] {
            let upstream_protocol = format!("upstream_protocol: {upstream}");
            let with = |service: Service| service.set(filters).set(&upstream_protocol);
            for client in ["http1", "http2"] {
                let Some(stage) = Stage::set() else { return };
                let (origin, go) = if upstream == "http1" { hinting(&stage) } else { hinting_in_frames(&stage) };
                // Who speaks HTTP/1.0 waits for nothing.
                go.send(()).unwrap();
                let address = stage.address();
                let service =
                    if client == "http1" { Service::http("web", address) } else { Service::http2("web", address) };
                let hop = Hop::of(stage, with(service).to(origin.address()), address);
                let _ = (client == "http1").then(|| http1_is_told(&hop, &go));
                let _ = (client == "http2").then(|| http2_is_told(&hop, &go));
            }
        }
    }
}

/// What came with the answer is not behind it.
#[test]
fn hints_that_come_with_the_answer_pass_before_it() {
    let Some(stage) = Stage::set() else { return };
    let listener = stage.origin().listen(stage.address()).expect("a free address");
    let origin = Origin::start(listener, |mut stream: &TcpStream, _| {
        let _ = read_head(&mut BufReader::new(stream))?;
        stream.write_all(format!("{}{FINAL}", HINT.repeat(40)).as_bytes())
    });
    let address = stage.address();
    let hop = Hop::of(stage, Service::http("web", address).set(FILTERS[0]).to(origin.address()), address);
    let (text, is_clean) = ask(hop.client1(), GET);
    let (hints, answer) = text.split_once("HTTP/1.1 200 OK\r\n").unwrap();
    // Of many at once, as many as are kept for a client.
    assert_eq!(hints, HINT_PASSED_ON.repeat(16));
    assert!(is_clean && answer.contains("content-encoding: gzip"), "{text}");
}

/// An attempt that is given up has hinted at nothing that the client gets.
#[test]
fn hints_of_who_may_be_asked_in_vain_pass_to_nobody() {
    let Some(stage) = Stage::set() else { return };
    let listener = stage.origin().listen(stage.address()).expect("a free address");
    let origin = Origin::start(listener, |mut stream: &TcpStream, number| {
        let _ = read_head(&mut BufReader::new(stream))?;
        let busy = "HTTP/1.1 503 Busy\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
        stream.write_all(format!("{HINT}{}", if number % 2 == 0 { busy } else { FINAL }).as_bytes())
    });
    let (one, two) = (stage.address(), stage.address());
    let retries = "retry: { attempts: 3, on: [5xx] }";
    let service = |name, address| Service::http(name, address).set(retries).to(origin.address());
    // With a time for each attempt it goes the other way.
    let slow = "retry: { attempts: 3, on: [5xx], per_try_timeout_ms: 5000 }";
    let config = stage
        .config()
        .set("workers: 1")
        .service(service("web", one))
        .service(Service::http("slow", two).set(slow).to(origin.address()));
    let _agent = Agent::start(&config);
    for address in [one, two] {
        let (text, _) = ask(stage.dial(address).unwrap(), GET);
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    }
}
