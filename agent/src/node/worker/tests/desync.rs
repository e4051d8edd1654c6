//! Connections of which two readers could lose the common thread: rules 9 and 10 of the project's list against request smuggling (3.18), early
//! and false responses, tunnels, and what stands behind them.

use super::*;

const HEAD: &str = "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n";

#[test]
fn a_body_where_there_can_be_none_is_never_read_as_the_next_response() {
    for (request, response) in [
        (HEAD, "HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n.."),
        (GET, "HTTP/1.1 204 No\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        (GET, "HTTP/1.1 304 No\r\nContent-Length: 5\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"),
        (GET, "HTTP/1.1 201 OK\r\nContent-Length: 2\r\n\r\nhiHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    ] {
        let origin = Origin::answering(response);
        let hop = Hop::http(&origin);
        let mut client = hop.client();
        for _ in 0..3 {
            client.send(request);
            let head = client.until("\r\n\r\n");
            assert_eq!(head.lines().next(), response.lines().next());
            if head.contains("201") {
                assert_eq!(client.exactly(2), b"hi");
            }
        }
        assert_eq!(origin.connections.load(Ordering::SeqCst), 3, "used again: {response:?}");
    }
}

#[test]
fn a_body_that_follows_late_where_there_can_be_none_costs_the_connection() {
    // Whoever asks next: the agent may have its request before epoll has told of the body.
    for is_another in [false, true] {
        let first = Arc::new(Mutex::new(None));
        let kept = Arc::clone(&first);
        let origin = Origin::new(move |mut client, number| {
            client.until("\r\n\r\n");
            client.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n");
            if number == 0 {
                *kept.lock().unwrap() = Some(client.0.try_clone().unwrap());
            }
            let _ = client.rest();
        });
        let hop = Hop::http(&origin);
        let mut client = hop.client();
        client.send(HEAD);
        client.until("\r\n\r\n");
        wait_for(|| first.lock().unwrap().is_some());
        first.lock().unwrap().take().unwrap().write_all(b"body").unwrap();
        // The pool looks before it gives: bytes that nobody asked for end a connection.
        let mut other = is_another.then(|| hop.client());
        let asks = other.as_mut().unwrap_or(&mut client);
        asks.send(HEAD);
        assert!(asks.until("\r\n\r\n").starts_with("HTTP/1.1 200"), "{is_another}");
        assert_eq!(hop.counted(Counter::PoolGone), 1, "{is_another}");
        assert_eq!(origin.connections.load(Ordering::SeqCst), 2, "{is_another}");
    }
}

#[test]
fn a_response_that_two_would_read_differently_is_a_502_and_ends_its_connection() {
    for head in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: gzip, chunked",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5 6",
        "X: 1\r\n folded",
    ] {
        let origin = Origin::new(move |mut client, _| {
            client.until("\r\n\r\n");
            client.send(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\nhello"));
            let _ = client.rest();
        });
        let hop = Hop::http(&origin);
        let mut client = hop.client();
        for connections in 1..3 {
            client.send(GET);
            assert!(client.until("\r\n\r\n").starts_with("HTTP/1.1 502 "), "{head}");
            assert!(client.until("\n").starts_with("sockway: the endpoint's response: "), "{head}");
            assert_eq!(origin.connections.load(Ordering::SeqCst), connections, "{head}");
        }
    }
}

#[test]
fn what_is_wrong_with_the_chunks_of_a_response_is_told() {
    let many = (0..300).map(|number| format!("x{number}: 1\r\n")).collect::<String>();
    for (body, why) in [
        ("1x\r\n".to_owned(), "malformed chunk size"),
        (format!("2\r\nhi\r\n0\r\n{many}\r\n"), "too many trailer fields"),
    ] {
        let origin = Origin::new(move |mut client, _| {
            client.until("\r\n\r\n");
            client.send(format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{body}"));
            let _ = client.rest();
        });
        let hop = Hop::http(&origin);
        let mut client = hop.client();
        client.send(GET);
        assert!(client.until("\r\n\r\n").starts_with("HTTP/1.1 502 "));
        assert_eq!(client.until("\n"), format!("sockway: the endpoint's response: {why}\n"));
    }
}

#[test]
fn an_endpoint_that_answers_before_it_has_the_request_gets_no_other_on_that_connection() {
    // Rule 10. The body is never sent: the client stops when it is answered.
    let origin = Origin::new(|mut client, _| {
        client.until("\r\n\r\n");
        client.send(OK);
        let _ = client.rest();
    });
    let hop = Hop::http(&origin);
    for connections in 1..3 {
        let mut client = hop.client();
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n");
        assert!(client.until("hi").contains("connection: close"));
        assert_eq!(client.rest().unwrap(), b"");
        assert_eq!(origin.connections.load(Ordering::SeqCst), connections);
    }
    assert_eq!(hop.slab.counted(Counter::UpstreamReused), 0);
}

#[test]
fn a_body_that_its_endpoint_has_not_asked_for_costs_the_connection() {
    // Who answers "expect" before it has read the body may take what follows for a request (RFC 9110 section 10.1.1).
    let origin = Origin::new(|mut client, _| {
        while client.until("\r\n\r\n").contains("asked") {
            client.send("HTTP/1.1 100 Continue\r\n\r\n");
            client.until("GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n");
            client.send(OK);
        }
        client.send(OK);
        let _ = client.rest();
    });
    let hop = Hop::http(&origin);
    let body = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    let post = |path: &str, expect: &str| {
        format!("POST /{path} HTTP/1.1\r\nHost: a\r\nExpect: {expect}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    let mut client = hop.client();
    for (path, expect, connections) in
        [("asked", "100-continue", 1), ("asked", "100-continue", 1), ("", "100-continue", 1), ("", "y 100-continue", 2)]
    {
        client.send(post(path, expect));
        assert!(client.until("hi").ends_with("Content-Length: 2\r\n\r\nhi"));
        assert_eq!(origin.connections.load(Ordering::SeqCst), connections, "{path} {expect}");
    }
    client.send(GET);
    client.until("hi");
    assert_eq!(origin.connections.load(Ordering::SeqCst), 3);
}

#[test]
fn interim_responses_are_passed_on_up_to_a_thousand() {
    let hints = |count: usize| "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n".repeat(count);
    let origin = Origin::new(move |mut client, number| {
        client.until("\r\n\r\n");
        client.send(hints(if number == 0 { 999 } else { 1000 }));
        client.send(OK);
        let _ = client.rest();
    });
    let hop = Hop::http(&origin);
    let mut client = hop.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let text = String::from_utf8(client.rest().unwrap()).unwrap();
    assert_eq!((text.matches("HTTP/1.1 103 ").count(), text.matches("HTTP/1.1 200 ").count()), (999, 1));
    wait_for(|| hop.worker.connections() == 0);
    let hop = Hop::http(&origin);
    let mut client = hop.client();
    client.send(GET);
    let text = client.until("too many interim responses\n");
    assert_eq!((text.matches("HTTP/1.1 103 ").count(), text.matches("HTTP/1.1 502 ").count()), (1000, 1));
}

#[test]
fn a_response_torn_at_every_byte_is_the_same_response() {
    let origin = Origin::new(|mut client, _| {
        for cut in 1..OK.len() {
            client.until("\r\n\r\n");
            client.send(&OK[..cut]);
            thread::yield_now();
            client.send(&OK[cut..]);
        }
        client.until("\r\n\r\n");
        OK.bytes().for_each(|byte| client.send([byte]));
    });
    let hop = Hop::http(&origin);
    let mut client = hop.client();
    for _ in 0..OK.len() {
        client.send(GET);
        assert_eq!(client.until("hi"), OK_PASSED_ON);
    }
    assert_eq!(origin.connections.load(Ordering::SeqCst), 1);
}

#[test]
fn a_tunnel_carries_bytes_once_the_endpoint_has_opened_it() {
    let origin = Origin::new(|mut client, _| {
        assert!(client.until("\r\n\r\n").starts_with("CONNECT a:80 HTTP/1.1\r\n"));
        client.send("HTTP/1.1 200 Connected\r\nContent-Length: 9\r\n\r\nfirst");
        assert_eq!(client.exactly(5), b"hello");
        client.send("world");
        assert_eq!(client.rest().unwrap(), b"");
    });
    let hop = Hop::http(&origin);
    let mut client = hop.client();
    client.send("CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\nhello");
    assert_eq!(client.until("\r\n\r\n"), "HTTP/1.1 200 Connected\r\n\r\n");
    assert_eq!(client.exactly(10), b"firstworld");
    client.0.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.rest().unwrap(), b"");
    assert_eq!(hop.counted(Counter::RelayDone), 1);
    assert_eq!(hop.slab.counted(Counter::Upgraded), 1);
}

#[test]
fn what_stands_behind_a_refused_tunnel_is_no_request() {
    let origin = Origin::answering("HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno");
    let hop = Hop::http(&origin);
    let mut client = hop.client();
    client.send(format!("CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n{GET}"));
    let text = String::from_utf8(client.rest().unwrap()).unwrap();
    assert!(
        text.starts_with("HTTP/1.1 403 No\r\n") && text.ends_with("connection: close\r\nContent-Length: 2\r\n\r\nno"),
        "{text}"
    );
    assert_eq!(hop.slab.counted(Counter::Answered4xx), 1);
}

#[test]
fn an_upgrade_that_is_not_known_is_an_ordinary_request() {
    let origin = Origin::new(|mut client, _| {
        loop {
            let head = client.until("\r\n\r\n").to_lowercase();
            assert!(!head.contains("upgrade") && !head.contains("http2-settings"), "{head}");
            client.send(OK);
        }
    });
    let hop = Hop::http(&origin);
    let mut client = hop.client();
    for lines in [
        "Connection: Upgrade\r\nUpgrade: TLS/1.2\r\n",
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
        "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
    ] {
        client.send(format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n"));
        assert_eq!(client.until("hi"), OK_PASSED_ON);
    }
}

#[test]
fn a_service_may_allow_longer_heads_or_shorter_ones() {
    let origin = Origin::new(|mut client, _| {
        loop {
            let head = client.until("\r\n\r\n");
            let fields = head.lines().count() - 3;
            client.send(format!(
                "HTTP/1.1 200 OK\r\nX-Fields: {fields}\r\nX-Long: {}\r\nContent-Length: 2\r\n\r\nhi",
                "y".repeat(head.len())
            ));
        }
    });
    let long = Http { head_bytes_max: 1 << 20, head_fields_max: 2_000, ..Http::default() };
    let hop = Hop::tuned(Protocol::Http, &[origin.address], long);
    let mut client = hop.client();
    let many = |count: usize| (0..count).map(|index| format!("x{index}: {}\r\n", "z".repeat(400))).collect::<String>();
    client.send(format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", many(1_999)));
    assert!(client.until("hi").contains("X-Fields: 1999\r\n"));
    client.send(format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "z".repeat(1_000_000)));
    assert!(client.until("hi").len() > 1_000_000);
    let short = Http { head_bytes_max: 2_000, head_fields_max: 10, ..Http::default() };
    let hop = Hop::tuned(Protocol::Http, &[origin.address], short);
    for (lines, status, why) in [
        (format!("X: {}\r\n", "z".repeat(2_000)), "431", "the request's head is too long"),
        (many(10).replace('z', ""), "431", "too many header fields"),
        (format!("X: {}\r\n", "z".repeat(1_930)), "502", "the endpoint's response: its head is too long"),
        (format!("X: {}\r\n", "z".repeat(1_000)), "200", ""),
    ] {
        let mut client = hop.client();
        client.send(format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{lines}\r\n"));
        let text = String::from_utf8(client.rest().unwrap()).unwrap();
        assert!(text.starts_with(&format!("HTTP/1.1 {status} ")) && text.contains(why), "{text}");
    }
}
