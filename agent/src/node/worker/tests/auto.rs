//! Whichever protocol the first bytes are, of either side.

use super::*;

fn auto(origin: &Origin) -> Hop {
    Hop::of(Protocol::Auto, &[origin.address])
}

#[test]
fn a_server_that_speaks_first_is_heard_at_once() {
    let origin = Origin::new(|mut client, _| {
        client.send("220 ready\r\n");
        assert_eq!(client.until("\r\n"), "EHLO a\r\n");
        client.send("250 ok\r\n");
        let _ = client.rest();
    });
    let hop = auto(&origin);
    let mut client = hop.client();
    assert_eq!(client.until("\r\n"), "220 ready\r\n");
    client.send("EHLO a\r\n");
    assert_eq!(client.until("\r\n"), "250 ok\r\n");
    client.0.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.rest().unwrap(), b"");
    assert_eq!(hop.counted(Counter::RelayDone), 1);
    assert_eq!(hop.slab.counted(Counter::SpokenByServer), 1);
}

#[test]
fn http_is_served_request_by_request_on_the_connection_that_was_dialled() {
    let origin = Origin::answering(OK);
    let hop = auto(&origin);
    let mut client = hop.client();
    for _ in 0..3 {
        client.send(GET);
        assert_eq!(client.until("hi"), OK_PASSED_ON);
    }
    assert_eq!(origin.connections.load(Ordering::SeqCst), 1);
    assert_eq!(hop.counted(Counter::SpokenHttp1), 1);
    // What a client says byte by byte is the same.
    let mut client = hop.client();
    GET.bytes().for_each(|byte| client.send([byte]));
    assert_eq!(client.until("hi"), OK_PASSED_ON);
    // And a request that is malformed further on is refused as one.
    let mut client = hop.client();
    client.send("GET / HTTP/1.1\r\nHost : a\r\n\r\n");
    assert!(client.until("\r\n\r\n").starts_with("HTTP/1.1 400 "));
}

#[test]
fn requests_of_connections_of_their_own_are_spread_as_those_of_one() {
    let names = ["HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n0", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1"];
    let origins = names.map(Origin::answering);
    let hop = Hop::of(Protocol::Auto, &[origins[0].address, origins[1].address]);
    let mut answered = [0, 0];
    for _ in 0..6 {
        let mut client = hop.client();
        client.send(GET);
        client.until("\r\n\r\n");
        answered[usize::from(client.exactly(1)[0] - b'0')] += 1;
    }
    assert_eq!(answered, [3, 3]);
}

#[test]
fn what_is_not_understood_is_passed_through_byte_for_byte() {
    let origin = Origin::new(|mut client, _| {
        let bytes = client.rest().unwrap();
        client.send(format!("{}", bytes.escape_ascii()));
    });
    for (bytes, counter) in [
        (&b"*1\r\n$4\r\nPING\r\n"[..], Counter::SpokenOpaque),
        (b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n\0\0\0\x04\0\0\0\0\0", Counter::SpokenOpaque),
        (b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03", Counter::SpokenOpaque),
        (b"GE", Counter::SpokenOpaque),
        (b"", Counter::SpokenOpaque),
    ] {
        for piece in [1, bytes.len().max(1)] {
            let hop = auto(&origin);
            let mut client = hop.client();
            bytes.chunks(piece).for_each(|piece| client.send(piece));
            client.0.shutdown(Shutdown::Write).unwrap();
            assert_eq!(client.rest().unwrap(), bytes.escape_ascii().to_string().as_bytes());
            assert_eq!(hop.counted(counter), 1);
        }
    }
}

#[test]
fn a_server_may_speak_while_its_client_has_begun() {
    let (begun, has_begun) = std::sync::mpsc::channel::<()>();
    let has_begun = Mutex::new(has_begun);
    let origin = Origin::new(move |mut client, _| {
        has_begun.lock().unwrap().recv().unwrap();
        client.send("hello");
        assert_eq!(client.until("\n"), "GET it\n");
        client.send("there");
    });
    let hop = auto(&origin);
    let mut client = hop.client();
    client.send("GE");
    wait_for(|| origin.connections.load(Ordering::SeqCst) == 1);
    begun.send(()).unwrap();
    assert_eq!(client.exactly(5), b"hello");
    client.send("T it\n");
    assert_eq!(client.exactly(5), b"there");
    assert_eq!(hop.counted(Counter::SpokenByServer), 1);
}

#[test]
fn a_reset_before_the_first_word_is_passed_on_as_one() {
    let origin = Origin::new(|client, _| {
        socket2::SockRef::from(&client.0).set_linger(Some(Duration::ZERO)).unwrap();
    });
    let hop = auto(&origin);
    let mut client = hop.client();
    assert!(client.rest().is_err());
    // The reset may be there before the connect is over.
    let ends = [Counter::RelayUpstreamReset, Counter::RelayNoEndpoint];
    wait_for(|| ends.iter().map(|counter| hop.slab.counted(*counter)).sum::<u64>() == 1);
}

#[test]
fn without_an_endpoint_http_is_answered_and_others_are_reset() {
    let hop = Hop::of(Protocol::Auto, &[refusing()]);
    let mut client = hop.client();
    let end = client.rest();
    assert!(end.is_err() || end.is_ok_and(|rest| rest.is_empty()));
    assert_eq!(hop.counted(Counter::RelayNoEndpoint), 1);
}

#[test]
fn settings_of_a_server_are_held_back_until_its_client_speaks_and_then_passed_on() {
    const SETTINGS: [u8; 15] = [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 100];
    let origin = Origin::new(|mut client, _| {
        client.send(SETTINGS);
        let bytes = client.rest().unwrap();
        client.send(bytes);
    });
    let hop = auto(&origin);
    let mut client = hop.client();
    client.send("*1\r\n");
    assert_eq!(client.exactly(SETTINGS.len()), SETTINGS);
    client.0.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.rest().unwrap(), b"*1\r\n");
    assert_eq!(hop.counted(Counter::SpokenOpaque), 1);
}

/// Gopher and finger begin so, and wait for the answer.
#[test]
fn an_empty_line_is_passed_on_at_once() {
    let origin = Origin::new(|mut client, _| {
        assert_eq!(client.until("\r\n"), "\r\n");
        client.send("who is here\r\n");
        let _ = client.rest();
    });
    let hop = auto(&origin);
    for pieces in [&["\r\n"][..], &["\r", "\n"]] {
        let mut client = hop.client();
        pieces.iter().for_each(|piece| client.send(piece));
        assert_eq!(client.until("\r\n"), "who is here\r\n");
    }
}
