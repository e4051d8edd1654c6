//! Requests, one after the other on a connection.

use super::*;

#[test]
fn requests_of_one_connection_share_an_upstream_connection() {
    let origin = Origin::answering(OK);
    let hop = Hop::http(&origin);
    let mut client = hop.client();
    for _ in 0..3 {
        client.send(GET);
        assert_eq!(client.until("hi"), OK_PASSED_ON);
    }
    assert_eq!(origin.connections.load(Ordering::SeqCst), 1);
    assert_eq!(hop.slab.counted(Counter::UpstreamReused), 2);
    assert_eq!(hop.worker.connections(), 1);
    drop(client);
    assert_eq!(hop.counted(Counter::ClientDone), 1);
    wait_for(|| hop.worker.connections() == 0);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let origin = Origin::new(|mut client, _| {
        loop {
            let head = client.until("\r\n\r\n");
            let path = head.split(' ').nth(1).unwrap().to_owned();
            client.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}", path.len()));
        }
    });
    let hop = Hop::http(&origin);
    let mut client = hop.client();
    let requests: String = (0..200).map(|n| format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
    client.send(requests);
    for n in 0..200 {
        assert!(client.until("\r\n\r\n").starts_with("HTTP/1.1 200"));
        let path = format!("/{n}");
        assert_eq!(client.exactly(path.len()), path.as_bytes());
    }
}

#[test]
fn a_request_torn_at_every_byte_is_the_same_request() {
    let origin = Origin::answering(OK);
    let hop = Hop::http(&origin);
    let mut client = hop.client();
    for cut in 1..GET.len() {
        client.send(&GET[..cut]);
        thread::yield_now();
        client.send(&GET[cut..]);
        assert_eq!(client.until("hi"), OK_PASSED_ON, "{cut}");
    }
}

#[test]
fn refusals_say_why_and_close() {
    let origin = Origin::answering(OK);
    let hop = Hop::http(&origin);
    let long = |bytes: usize| "x".repeat(bytes);
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), "400"),
        ("\u{16}\u{3}\u{1}".to_owned(), "400"),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".to_owned(), "400"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), "505"),
        ("CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), "400"),
        (format!("GET /{} HTTP/1.1\r\n", long(70_000)), "414"),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", long(70_000)), "431"),
        (format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "a: b\r\n".repeat(200)), "431"),
    ] {
        let mut client = hop.client();
        client.send(&request);
        let reply = String::from_utf8(client.rest().unwrap()).unwrap();
        assert!(reply.starts_with(&format!("HTTP/1.1 {status} ")), "{reply}");
        assert!(reply.contains("\r\nconnection: close\r\n") && reply.contains("\r\n\r\nsockway: "), "{reply}");
    }
    assert_eq!(origin.connections.load(Ordering::SeqCst), 0);
}

#[test]
fn a_long_head_that_is_not_too_long_gets_through() {
    let origin = Origin::answering(OK);
    let hop = Hop::http(&origin);
    let mut client = hop.client();
    for bytes in [3000, 4000, 16_000, 60_000] {
        client.send(format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: x\r\nX: {}\r\n\r\n", "x".repeat(bytes)));
        assert_eq!(client.until("hi"), OK_PASSED_ON);
    }
}
