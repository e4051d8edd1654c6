//! Clients that leave, clients that trickle, endpoints that think for too long: each is noticed, ended in time, and counted as what it was.

use super::*;

/// What is waited for in vain.
const SHORT: Duration = Duration::from_millis(300);
/// Where somebody has to go on within it, on a loaded machine too.
const LONG: Duration = Duration::from_secs(3);

/// A hop with one short deadline; all others are as usual.
fn impatient(origin: &Origin, set: impl FnOnce(&mut Http)) -> Hop {
    let mut http = Http::default();
    set(&mut http);
    Hop::tuned(Protocol::Http, &[origin.address], http)
}

/// An origin that reads and never answers; how many of its connections have ended.
fn thinking() -> (Origin, Arc<AtomicUsize>) {
    let ended = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&ended);
    let origin = Origin::new(move |mut client, _| {
        let _ = client.rest();
        count.fetch_add(1, Ordering::SeqCst);
    });
    (origin, ended)
}

#[test]
fn a_client_that_leaves_while_the_endpoint_thinks_ends_the_request_there() {
    let (origin, ended) = thinking();
    let hop = Hop::http(&origin);
    for (index, (request, reset)) in [
        (GET, false),
        (GET, true),
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", true),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", false),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", false),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\npart", true),
    ]
    .into_iter()
    .enumerate()
    {
        let mut client = hop.client();
        client.send(request);
        wait_for(|| origin.connections.load(Ordering::SeqCst) == index + 1);
        if reset {
            socket2::SockRef::from(&client.0).set_linger(Some(Duration::ZERO)).unwrap();
        }
        drop(client);
        wait_for(|| ended.load(Ordering::SeqCst) == index + 1);
        wait_for(|| hop.slab.counted(Counter::RequestAborted) == index as u64 + 1);
    }
    wait_for(|| hop.worker.connections() == 0);
    assert_eq!(hop.slab.counted(Counter::Replayed), 0);
}

#[test]
fn a_client_that_leaves_after_its_body_was_sent_ends_the_request_there() {
    let (origin, ended) = thinking();
    let hop = Hop::http(&origin);
    let mut client = hop.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n");
    client.send(vec![b'x'; 200_000]);
    wait_for(|| hop.slab.counted(Counter::UpstreamFresh) == 1);
    drop(client);
    wait_for(|| ended.load(Ordering::SeqCst) == 1);
    assert_eq!(hop.counted(Counter::RequestAborted), 1);
}

#[test]
fn a_client_that_said_that_this_was_all_may_end_its_side_and_wait() {
    let origin = Origin::new(|mut client, _| {
        loop {
            client.until("\r\n\r\n");
            client.until("go");
            client.send(OK);
        }
    });
    let hop = Hop::http(&origin);
    let last = "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\n\r\ngo";
    let other = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\ngo";
    for requests in [last.to_owned(), format!("{other}{other}{last}"), last.replace("1.1", "1.0")] {
        let mut client = hop.client();
        client.send(&requests);
        client.0.shutdown(Shutdown::Write).unwrap();
        let text = String::from_utf8(client.rest().unwrap()).unwrap();
        assert_eq!(text.matches("200 OK").count(), requests.matches("POST").count(), "{text}");
    }
    assert_eq!(hop.slab.counted(Counter::RequestAborted), 0);
}

#[test]
fn a_head_that_trickles_in_is_a_408() {
    let origin = Origin::answering(OK);
    let hop = impatient(&origin, |http| http.head_timeout = SHORT);
    let mut client = hop.client();
    let mut trickle = client.0.try_clone().unwrap();
    let sender = thread::spawn(move || {
        let head = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(10_000));
        // One byte for each turn of the agent's clock: never silent for as long as its patience.
        for byte in head.bytes() {
            if trickle.write_all(&[byte]).is_err() {
                return;
            }
            thread::sleep(SHORT / 20);
        }
    });
    let text = String::from_utf8(client.rest().unwrap()).unwrap();
    assert!(
        text.starts_with("HTTP/1.1 408 ") && text.ends_with("sockway: the request's head did not come in time\n"),
        "{text}"
    );
    assert_eq!(hop.counted(Counter::HeadTimeout), 1);
    drop(client);
    sender.join().unwrap();
}

#[test]
fn an_endpoint_that_thinks_for_too_long_is_a_504_and_asked_only_once() {
    let (origin, ended) = thinking();
    let hop = impatient(&origin, |http| http.response_timeout = Some(SHORT));
    for (count, request) in [GET, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n"].into_iter().enumerate() {
        let mut client = hop.client();
        client.send(request);
        if request.starts_with("POST") {
            // In a piece of its own, so that it is streamed.
            wait_for(|| origin.connections.load(Ordering::SeqCst) == count + 1);
            client.send("abc");
        }
        let text = client.until("in time\n");
        assert!(
            text.starts_with("HTTP/1.1 504 ") && text.ends_with("sockway: the endpoint did not answer in time\n"),
            "{text}"
        );
        wait_for(|| ended.load(Ordering::SeqCst) == count + 1);
        // The connection goes on.
        client.send("nonsense\r\n\r\n");
        assert!(client.until("\r\n\r\n").starts_with("HTTP/1.1 400 "));
    }
}

#[test]
fn a_response_that_stops_moving_never_looks_whole() {
    for response in [
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        "HTTP/1.1 200 OK\r\n\r\nhalf",
    ] {
        let origin = Origin::new(move |mut client, _| {
            client.until("\r\n\r\n");
            client.send(response);
            let _ = client.rest();
        });
        let hop = impatient(&origin, |http| http.stall_timeout = Some(SHORT));
        let mut client = hop.client();
        client.send(GET);
        client.until("half");
        assert!(client.rest().is_err(), "{response:?}");
        assert_eq!(hop.counted(Counter::ResponseStalled), 1);
    }
    let origin = Origin::new(move |mut client, _| {
        client.until("\r\n\r\n");
        client.send("HTTP/1.1 200 OK\r\nContent-");
        let _ = client.rest();
    });
    let hop = impatient(&origin, |http| http.stall_timeout = Some(SHORT));
    let mut client = hop.client();
    client.send(GET);
    assert!(client.until("in time\n").starts_with("HTTP/1.1 504 "));
}

#[test]
fn a_body_that_stops_moving_is_a_408() {
    let (origin, ended) = thinking();
    let hop = impatient(&origin, |http| http.stall_timeout = Some(SHORT));
    let mut client = hop.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\npart");
    let text = String::from_utf8(client.rest().unwrap()).unwrap();
    assert!(
        text.starts_with("HTTP/1.1 408 ") && text.ends_with("sockway: the request's body did not go on in time\n"),
        "{text}"
    );
    assert_eq!(hop.counted(Counter::BodyTimeout), 1);
    wait_for(|| ended.load(Ordering::SeqCst) == 1);
}

#[test]
fn a_client_that_does_not_take_its_response_is_reset() {
    let origin = Origin::new(|mut client, _| {
        client.until("\r\n\r\n");
        let _ = client.0.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
        while client.0.write_all(&[b'x'; 65_536]).is_ok() {}
    });
    let hop = impatient(&origin, |http| http.stall_timeout = Some(LONG));
    let mut client = hop.client();
    client.send(GET);
    assert_eq!(hop.counted(Counter::ClientStalled), 1);
    assert!(client.rest().is_err(), "a reset, for what came is not the whole");
    wait_for(|| hop.worker.connections() == 0);
}

#[test]
fn an_endpoint_that_does_not_take_the_body_is_a_504() {
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = Mutex::new(released);
    let origin = Origin::new(move |mut client, _| {
        client.until("\r\n\r\n");
        let _ = released.lock().unwrap().recv();
    });
    let hop = impatient(&origin, |http| http.stall_timeout = Some(LONG));
    let mut client = hop.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n");
    let mut writer = client.0.try_clone().unwrap();
    let sender = thread::spawn(move || while writer.write_all(&[b'x'; 65_536]).is_ok() {});
    assert!(client.until("in time\n").starts_with("HTTP/1.1 504 "));
    // It may be reset already.
    let _ = client.0.shutdown(Shutdown::Both);
    drop(release);
    sender.join().unwrap();
}
