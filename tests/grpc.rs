//! gRPC through the real agent: deadlines, outcomes, and answers in the endpoint's stead.

use std::{
    io,
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use sockway_tests::{
    agent::Agent,
    config::Service,
    frames::{END_HEADERS, END_STREAM, Peer, head, kind},
    origin::Origin,
    peers::{self, Nghttpd},
    process::Room,
    stage::Stage,
    wait,
};

struct Hop {
    agent: Agent,
    service: SocketAddr,
    stage: Stage,
}

impl Hop {
    fn to(stage: Stage, endpoint: SocketAddr) -> Self {
        let service = stage.address();
        let config = stage.config().set("workers: 1").service(Service::http2("rpc", service).to(endpoint));
        Self { agent: Agent::start(&config), service, stage }
    }

    /// Calls as a gRPC client does; gives the response's head as curl shows it.
    #[track_caller]
    fn call(&self, fields: &[&str]) -> String {
        self.call_with(&["--data-binary", "call"], fields)
    }

    /// The same with another body, or none.
    #[track_caller]
    fn call_with(&self, body: &[&str], fields: &[&str]) -> String {
        let url = format!("http://{}/package.Service/Method", self.service);
        let common = ["--http2-prior-knowledge", "--include", "-X", "POST", "-H", "te: trailers", &url];
        let grpc = ["-H", "content-type: application/grpc"];
        let fields: Vec<&str> = fields.iter().flat_map(|field| ["-H", field]).collect();
        let output = peers::curl(Room::of(&self.stage.clients), &[&common[..], &grpc, body, &fields].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        peers::stdout(&output)
    }

    fn counted(&self, status: &str) -> bool {
        wait::whether(wait::SOON, || self.agent.metric("sockway_grpc_responses_total", &[("status", status)]) == 1.0)
    }
}

#[test]
fn without_an_endpoint_the_answer_is_a_status_and_nothing_else() {
    let Some(stage) = Stage::set() else { return };
    let nobody = stage.address();
    let hop = Hop::to(stage, nobody);
    // Without a body: curl 7.88 waits for ever, now and then, when the answer is there before it has sent one.
    let answer = hop.call_with(&[], &[]);
    assert!(answer.starts_with("HTTP/2 200"), "{answer}");
    assert!(answer.contains("content-type: application/grpc\r\n"), "{answer}");
    assert!(answer.contains("grpc-status: 14\r\n") && answer.contains("grpc-message: sockway: "), "{answer}");
    assert!(answer.ends_with("\r\n\r\n"), "a body: {answer}");
    assert!(hop.counted("UNAVAILABLE"));
}

#[test]
fn a_call_with_too_many_fields_is_answered_by_a_status() {
    let Some(stage) = Stage::set() else { return };
    let nobody = stage.address();
    let hop = Hop::to(stage, nobody);
    let many: Vec<String> = (0..300).map(|number| format!("x-{number}: a")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let answer = hop.call_with(&[], &many);
    assert!(answer.starts_with("HTTP/2 200"), "{answer}");
    assert!(answer.contains("grpc-message: sockway: too many header fields"), "{answer}");
    assert!(answer.ends_with("\r\n\r\n"), "a body: {answer}");
    assert!(hop.counted("UNKNOWN"));
}

#[test]
fn a_call_whose_time_is_over_is_answered_and_taken_back() {
    let Some(stage) = Stage::set() else { return };
    let (sender, resets) = mpsc::channel();
    let sender = Mutex::new(sender);
    let listener = stage.origin().listen(stage.address()).unwrap();
    let mute = Origin::start(listener, move |stream: &TcpStream, _| -> io::Result<()> {
        let mut peer = Peer::server(stream)?;
        while let Some(frame) = peer.read()? {
            if frame.kind == kind::RST_STREAM {
                let _ = sender.lock().unwrap().send(frame.number(0));
            }
        }
        Ok(())
    });
    let hop = Hop::to(stage, mute.address());
    // Long enough that the endpoint is reached first, also on a machine that has much else to do.
    let answer = hop.call(&["grpc-timeout: 3S"]);
    assert!(answer.starts_with("HTTP/2 200") && answer.contains("grpc-status: 4\r\n"), "{answer}");
    assert_eq!(resets.recv_timeout(wait::SOON).unwrap(), 8, "CANCEL");
    assert!(hop.counted("DEADLINE_EXCEEDED"));
}

#[test]
fn a_call_whose_time_is_over_before_it_is_passed_on_is_not() {
    let Some(stage) = Stage::set() else { return };
    let asked = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&asked);
    let listener = stage.origin().listen(stage.address()).unwrap();
    let origin = Origin::start(listener, move |stream: &TcpStream, _| -> io::Result<()> {
        let mut peer = Peer::server(stream)?;
        while let Some(frame) = peer.read()? {
            if frame.kind == kind::HEADERS {
                counted.fetch_add(1, Ordering::Relaxed);
                peer.send(kind::HEADERS, END_HEADERS | END_STREAM, frame.stream, &[0x88])?;
            }
        }
        Ok(())
    });
    // Without a body: curl 7.88 waits for ever, now and then, when the answer is there before it has sent one.
    let hop = Hop::to(stage, origin.address());
    hop.call_with(&[], &[]);
    for over in ["grpc-timeout: 0S", "grpc-timeout: 1n"] {
        let answer = hop.call_with(&[], &[over]);
        assert!(answer.starts_with("HTTP/2 200") && answer.contains("grpc-status: 4\r\n"), "{over}: {answer}");
    }
    hop.call_with(&[], &["grpc-timeout: 20S"]);
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    hop.agent.metric_comes_to("sockway_grpc_responses_total", &[("status", "DEADLINE_EXCEEDED")], 2.0);
}

/// An endpoint that begins a response of this type, sends a piece of it and then nothing.
fn falling_silent(stage: &Stage, content_type: &'static str) -> Origin {
    let listener = stage.origin().listen(stage.address()).unwrap();
    Origin::start(listener, move |stream: &TcpStream, _| -> io::Result<()> {
        let mut peer = Peer::server(stream)?;
        while let Some(frame) = peer.read()? {
            if frame.ends_stream() {
                let head = [&[0x88][..], &head(&[("content-type", content_type)])].concat();
                peer.send(kind::HEADERS, END_HEADERS, frame.stream, &head)?;
                peer.send(kind::DATA, 0, frame.stream, &[0; 5])?;
            }
        }
        Ok(())
    })
}

#[test]
fn a_call_whose_time_is_over_within_its_response_ends_with_a_status() {
    let Some(stage) = Stage::set() else { return };
    let silent = falling_silent(&stage, "application/grpc");
    let hop = Hop::to(stage, silent.address());
    let answer = hop.call(&["grpc-timeout: 500m"]);
    assert!(answer.starts_with("HTTP/2 200") && answer.contains("\0\0\0\0\0grpc-status: 4\r\n"), "{answer:?}");
    assert!(hop.counted("DEADLINE_EXCEEDED"));
}

#[test]
fn what_is_not_grpc_is_not_passed_off_as_whole_when_its_time_is_over() {
    let Some(stage) = Stage::set() else { return };
    let silent = falling_silent(&stage, "text/plain");
    let hop = Hop::to(stage, silent.address());
    let fields = ["-H", "content-type: application/grpc", "-H", "grpc-timeout: 500m"];
    let url = format!("http://{}/", hop.service);
    let more = ["--http2-prior-knowledge", "--data-binary", "call", &url];
    let output = peers::curl(Room::of(&hop.stage.clients), &[&fields[..], &more].concat());
    assert_eq!(output.status.code(), Some(92), "a stream that was reset: {}", String::from_utf8_lossy(&output.stderr));
    assert!(hop.counted("DEADLINE_EXCEEDED"));
}

#[test]
fn the_time_that_is_left_is_passed_on_and_is_less_than_what_was_given() {
    let Some(stage) = Stage::set() else { return };
    let endpoint = stage.address();
    let origin = Nghttpd::start(Room::of(&stage.origins), stage.origin(), endpoint, 1, &[]);
    let hop = Hop::to(stage, endpoint);
    hop.call(&["grpc-timeout: 20S"]);
    let log = wait::until_some("the field in the endpoint's log", wait::SOON, || {
        let log = origin.log();
        log.contains("grpc-timeout").then_some(log)
    });
    let line = log.lines().find(|line| line.contains("grpc-timeout")).unwrap();
    let value = line.rsplit(' ').next().unwrap().trim_end_matches("\u{1b}[0m");
    let micros: u64 = value.trim_end_matches('u').parse().unwrap_or_else(|_| panic!("{line:?}"));
    let left = Duration::from_micros(micros);
    assert!(left < Duration::from_secs(20) && left > Duration::from_secs(5), "{left:?}");
}

#[test]
fn the_status_behind_a_response_is_what_is_counted() {
    let Some(stage) = Stage::set() else { return };
    let listener = stage.origin().listen(stage.address()).unwrap();
    let origin = Origin::start(listener, |stream: &TcpStream, _| -> io::Result<()> {
        let mut peer = Peer::server(stream)?;
        while let Some(frame) = peer.read()? {
            if frame.ends_stream() {
                peer.send(
                    kind::HEADERS,
                    END_HEADERS,
                    frame.stream,
                    &[&[0x88][..], &head(&[("content-type", "application/grpc")])].concat(),
                )?;
                peer.send(kind::DATA, 0, frame.stream, &[0; 5])?;
                let status = head(&[("grpc-status", "5"), ("grpc-message", "no such thing")]);
                peer.send(kind::HEADERS, END_HEADERS | END_STREAM, frame.stream, &status)?;
            }
        }
        Ok(())
    });
    let hop = Hop::to(stage, origin.address());
    let answer = hop.call(&[]);
    assert!(answer.starts_with("HTTP/2 200") && answer.contains("grpc-message: no such thing"), "{answer}");
    assert!(hop.counted("NOT_FOUND"));
}
