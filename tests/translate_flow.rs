//! Between HTTP/1 and HTTP/2: who stands still stops the other side, and is waited for no longer than is said.

use std::{
    any::Any,
    io::{BufReader, Read as _, Write as _},
    net::TcpStream,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use sockway_tests::{
    agent::Agent,
    answer::{read_body, read_head},
    config::Service,
    frames::{END_HEADERS, END_STREAM, kind, request},
    origin::Origin,
    stage::Stage,
    translation::{
        HTTP2, Hop, INTERNAL_ERROR, STATUS_200, Sender, WHOLE, ask, body, framed, get, is_reset, rest, stands_still,
    },
    wait,
};

#[test]
fn a_reader_of_http2_that_stands_still_stops_a_sender_of_http1() {
    let Some(stage) = Stage::set() else { return };
    let sent = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&sent);
    let listener = stage.origin().listen(stage.address()).unwrap();
    let origin = Origin::start(listener, move |mut stream: &TcpStream, _| {
        read_head(&mut BufReader::new(stream))?;
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {WHOLE}\r\n\r\n")?;
        while counted.load(Ordering::SeqCst) < WHOLE {
            counted.fetch_add(stream.write(&[0; 16 * 1024])?, Ordering::SeqCst);
        }
        Ok(())
    });
    let hop = Hop::down(stage, origin.address());
    let mut client = hop.client2();
    get(&mut client, 1, "GET", &[]);
    let mut received = 0;
    while received < 65_535 {
        received += client.until(kind::DATA).payload.len();
    }
    assert!(stands_still(&sent) < WHOLE, "what two sockets hold, and no more");
    for stream in [0, 1] {
        client.send(kind::WINDOW_UPDATE, 0, stream, &(WHOLE as u32).to_be_bytes()).unwrap();
    }
    while received < WHOLE {
        received += client.until(kind::DATA).payload.len();
    }
}

#[test]
fn a_reader_of_http1_that_stands_still_stops_a_sender_of_http2() {
    let Some(stage) = Stage::set() else { return };
    let sent = Arc::<AtomicUsize>::default();
    let sender = Mutex::new((Sender::new(&sent), 0));
    let origin = framed(&stage, move |peer, frame, _| {
        let (sender, asked) = &mut *sender.lock().unwrap();
        sender.hear(frame);
        if frame.kind == kind::HEADERS {
            *asked = frame.stream;
            peer.send(kind::HEADERS, END_HEADERS, *asked, &[STATUS_200])?;
        }
        if *asked > 0 { sender.send(peer, *asked, WHOLE) } else { Ok(()) }
    });
    let hop = Hop::up(stage, [origin.address()]);
    let mut client = hop.client1();
    client.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    assert!(stands_still(&sent) < WHOLE, "what two sockets hold, and no more");
    let mut all = Vec::new();
    client.read_to_end(&mut all).unwrap();
    assert_eq!(sent.load(Ordering::SeqCst), WHOLE);
    assert!(all.len() > WHOLE && all[all.len() - WHOLE..].iter().all(|byte| *byte == 0));
}

#[test]
fn an_endpoint_of_http1_that_does_not_read_stops_a_client_of_http2() {
    let Some(stage) = Stage::set() else { return };
    let (go, told) = mpsc::channel::<()>();
    let told = Mutex::new(told);
    let listener = stage.origin().listen(stage.address()).unwrap();
    let origin = Origin::start(listener, move |mut stream: &TcpStream, _| {
        let mut reader = BufReader::new(stream.try_clone()?);
        let head = read_head(&mut reader)?.unwrap();
        let _ = told.lock().unwrap().recv_timeout(wait::soon());
        let body = read_body(&mut reader, &head, false)?;
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n{:08}", body.len())
    });
    let hop = Hop::down(stage, origin.address());
    let mut client = hop.client2();
    client.send(kind::HEADERS, END_HEADERS, 1, &request("POST", "/", &[])).unwrap();
    let sent = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&sent);
    let sending = thread::spawn(move || {
        let mut sender = Sender::new(&counted);
        loop {
            let frame = client.read().unwrap().unwrap();
            sender.hear(&frame);
            if frame.stream == 1 && frame.ends_stream() {
                return frame.payload;
            }
            sender.send(&mut client, 1, WHOLE).unwrap();
        }
    });
    assert!(stands_still(&sent) < WHOLE, "what two sockets hold, and no more");
    go.send(()).unwrap();
    assert_eq!(sending.join().unwrap(), WHOLE.to_string().as_bytes());
}

#[test]
fn a_connection_that_ended_as_it_was_reused_is_made_anew() {
    let Some(stage) = Stage::set() else { return };
    let listener = stage.origin().listen(stage.address()).unwrap();
    let origin = Origin::start(listener, |mut stream: &TcpStream, number| {
        let mut reader = BufReader::new(stream.try_clone()?);
        while read_head(&mut reader)?.is_some() {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")?;
            if number == 0 {
                // It reads the next one, and never answers.
                return read_head(&mut reader).map(drop);
            }
        }
        Ok(())
    });
    let hop = Hop::down(stage, origin.address());
    let mut client = hop.client2();
    for stream in [1, 3, 5] {
        get(&mut client, stream, "GET", &[]);
        assert_eq!(body(&rest(&mut client, stream)), b"hi");
    }
    hop.agent.metric_comes_to("sockway_upstream_replays_total", &[], 1.0);
    assert_eq!(origin.accepted(), 2);
}

/// An endpoint that says this when it is asked, and then nothing for ever.
fn falling_silent(stage: &Stage, said: &'static [u8]) -> Origin {
    let listener = stage.origin().listen(stage.address()).unwrap();
    Origin::start(listener, move |mut stream: &TcpStream, _| {
        read_head(&mut BufReader::new(stream))?;
        stream.write_all(said)?;
        thread::sleep(wait::soon());
        Ok(())
    })
}

#[test]
fn who_stands_still_for_too_long_is_waited_for_no_more() {
    let Some(stage) = Stage::set() else { return };
    let half = falling_silent(&stage, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello");
    let mute = falling_silent(&stage, b"");
    let silent = framed(&stage, |_, _, _| Ok(()));
    let addresses = [stage.address(), stage.address(), stage.address()];
    let limits = "http: { response_timeout_ms: 300, stall_timeout_ms: 300 }";
    let down = |name: &str, at: usize| Service::http2(name, addresses[at]).set("upstream_protocol: http1").set(limits);
    let up = Service::http("up", addresses[2]).set("upstream_protocol: http2").set(limits);
    let config = stage
        .config()
        .service(down("half", 0).to(half.address()))
        .service(down("mute", 1).to(mute.address()))
        .service(up.to(silent.address()));
    let mut hop = Hop { agent: Agent::start(&config), service: addresses[0], stage };
    let mut client = hop.client2();
    get(&mut client, 1, "GET", &[]);
    assert!(is_reset(&rest(&mut client, 1), INTERNAL_ERROR));
    hop.counted("response_stalled");
    hop.service = addresses[1];
    let mut client = hop.client2();
    get(&mut client, 1, "GET", &[]);
    assert!(body(&rest(&mut client, 1)).starts_with(b"sockway: the endpoint did not answer in time"));
    hop.counted("response_timeout");
    client.send(kind::HEADERS, END_HEADERS, 3, &request("POST", "/", &[])).unwrap();
    assert!(body(&rest(&mut client, 3)).starts_with(b"sockway: the request's body did not go on in time"));
    hop.counted("body_timeout");
    hop.service = addresses[2];
    let (told, _) = ask(hop.client1(), b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert!(told.starts_with("HTTP/1.1 504 "), "{told}");
    let (told, _) = ask(hop.client1(), b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhello");
    assert!(told.starts_with("HTTP/1.1 408 "), "{told}");
}

/// Makes a hop, and what stands behind it.
type Setting = fn(Stage) -> (Box<dyn Any>, Hop);

#[test]
fn the_agents_own_share_is_known_of_every_protocol() {
    let hops: [Setting; 4] = [
        |stage| {
            let web = stage.web("web");
            let hop = Hop::down(stage, web.address());
            (Box::new(web), hop)
        },
        |stage| {
            let web = stage.web("web");
            let hop = Hop::auto(stage, web.address());
            (Box::new(web), hop)
        },
        |stage| {
            let origin = answering(&stage);
            let hop = Hop::up(stage, [origin.address()]);
            (Box::new(origin), hop)
        },
        |stage| {
            let (origin, address) = (answering(&stage), stage.address());
            let service = Service::http2("web", address).to(origin.address());
            (Box::new(origin), Hop::of(stage, service, address))
        },
    ];
    for ((number, set), version) in (0..).zip(hops).zip([HTTP2, "--http1.1", "--http1.1", HTTP2]) {
        let Some(stage) = Stage::set() else { return };
        let (_origin, hop) = set(stage);
        // Of the first request of a worker it is always taken. A chunked body makes it one that streams.
        let chunked = ["-d", "body", "-H", "transfer-encoding: chunked"];
        let body = if version == HTTP2 { &["-d", "body"][..] } else { &chunked };
        let (told, _) = hop.curl("/", &[&[version], body].concat());
        assert!(told.ends_with(" 200"), "{number}: {told}");
        let observed = || hop.agent.metric("sockway_overhead_seconds_count", &[]);
        wait::until(&format!("the share of {number}"), wait::SOON, || observed() == 1.0);
        let (own, whole) = ("sockway_overhead_seconds_sum", "sockway_request_duration_seconds_sum");
        let [own, whole] = [own, whole].map(|name| hop.agent.metric(name, &[]));
        assert!(own > 0.0 && own <= whole, "{number}: {own} of {whole}");
    }
}

/// An endpoint of HTTP/2 that answers what has ended.
fn answering(stage: &Stage) -> Origin {
    framed(stage, |peer, frame, _| match frame.ends_stream() {
        true => peer.send(kind::HEADERS, END_HEADERS | END_STREAM, frame.stream, &[STATUS_200]),
        false => Ok(()),
    })
}
