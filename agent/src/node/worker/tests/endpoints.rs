//! Endpoints that are dead, slow, mute or broken.

use super::*;

#[test]
fn a_dead_endpoint_is_noticed_before_the_client_does() {
    let origin = Origin::answering(OK);
    let mut hop = Hop::of(Protocol::Http, &[refusing(), origin.address, refusing()]);
    let mut client = hop.client();
    for _ in 0..5 {
        client.send(GET);
        assert_eq!(client.until("hi"), OK_PASSED_ON);
    }
    let service = hop.snapshot.load().services[0].clone();
    let down: Vec<bool> = service.endpoints.iter().map(|endpoint| !endpoint.state.usable()).collect();
    assert_eq!(down, [true, false, true]);
    let mut told = Vec::new();
    while let Ok(WorkerEvent::EndpointDown { endpoint, .. }) = hop.events.try_recv() {
        told.push(endpoint);
    }
    told.sort_unstable();
    assert_eq!(told, [0, 2]);
    assert!(matches!(hop.events.try_recv(), Err(TryRecvError::Empty)));
}

#[test]
fn with_no_endpoint_left_the_reply_says_so_and_the_connection_goes_on() {
    let address = refusing();
    let hop = Hop::of(Protocol::Http, &[address]);
    let mut client = hop.client();
    for _ in 0..2 {
        client.send(GET);
        assert!(client.until("\r\n\r\n").starts_with("HTTP/1.1 503 "));
        assert_eq!(client.until("\n"), "sockway: no endpoint accepts connections\n");
    }
    // All down, and back again: panic mode tries it all the same.
    let listener = TcpListener::bind(address).unwrap();
    client.send(GET);
    let mut origin = Client::over(listener.accept().unwrap().0);
    origin.until("\r\n\r\n");
    origin.send(OK);
    assert_eq!(client.until("hi"), OK_PASSED_ON);
}

#[test]
fn an_endpoint_that_does_not_accept_in_time_is_a_504() {
    // A full queue: the kernel drops further handshakes.
    let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let _first = TcpStream::connect(address).unwrap();
    let hop = Hop::of(Protocol::Http, &[address]);
    let mut client = hop.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let reply = String::from_utf8(client.rest().unwrap()).unwrap();
    assert!(reply.starts_with("HTTP/1.1 504 ") && reply.contains("connection: close"), "{reply}");
}

#[test]
fn a_reused_connection_that_ends_is_replaced_for_what_may_be_repeated() {
    let origin = Origin::new(|mut client, number| {
        client.until("\r\n\r\n");
        client.send(OK);
        if number % 2 == 0 {
            // Ends as soon as the next request is there, unread: a reset.
            client.0.peek(&mut [0]).unwrap();
        } else {
            client.until("\r\n\r\n");
            client.send(OK);
        }
    });
    let hop = Hop::http(&origin);
    let mut client = hop.client();
    for _ in 0..2 {
        client.send(GET);
        assert_eq!(client.until("hi"), OK_PASSED_ON);
    }
    assert_eq!(hop.slab.counted(Counter::Replayed), 1);
    let mut client = hop.client();
    let origin = Origin::new(|mut client, _| {
        client.until("\r\n\r\n");
        client.send(OK);
        client.0.peek(&mut [0]).unwrap();
    });
    let other = Hop::http(&origin);
    let mut post = other.client();
    post.send(GET);
    post.until("hi");
    post.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    assert!(post.until("\r\n\r\n").starts_with("HTTP/1.1 502 "));
    assert_eq!(other.slab.counted(Counter::Replayed), 0);
    client.send(GET);
    client.until("hi");
}

#[test]
fn a_broken_response_never_looks_whole() {
    for response in [
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\nhalf",
    ] {
        let origin = Origin::new(move |mut client, _| {
            client.until("\r\n\r\n");
            client.send(response);
        });
        let hop = Hop::http(&origin);
        let mut client = hop.client();
        client.send(GET);
        client.until("half");
        assert!(client.rest().is_err(), "{response:?}");
        assert_eq!(hop.counted(Counter::UpstreamAborted), 1);
    }
}

#[test]
fn a_reset_within_a_body_without_length_is_passed_on_as_one() {
    let origin = Origin::new(|mut client, _| {
        client.until("\r\n\r\n");
        client.send("HTTP/1.1 200 OK\r\n\r\nhalf");
        client.exactly(1);
        socket2::SockRef::from(&client.0).set_linger(Some(Duration::ZERO)).unwrap();
    });
    let hop = Hop::http(&origin);
    let mut client = hop.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n?");
    client.until("half");
    assert!(client.rest().is_err());
}

#[test]
fn what_is_no_response_is_a_502() {
    for response in [
        "SSH-2.0-x\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nzz\r\n",
        "HTTP/1.1 200 OK\r\nX",
        "",
    ] {
        let origin = Origin::new(move |mut client, _| {
            client.until("\r\n\r\n");
            client.send(response);
        });
        let hop = Hop::http(&origin);
        let mut client = hop.client();
        client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let reply = String::from_utf8(client.rest().unwrap()).unwrap();
        assert!(reply.starts_with("HTTP/1.1 502 "), "{response:?}: {reply}");
    }
}

#[test]
fn an_endpoint_that_gives_no_response_is_left_for_another() {
    let mute = Origin::new(|mut client, _| {
        client.until("\r\n\r\n");
    });
    let origin = Origin::answering(OK);
    let hop = Hop::of(Protocol::Http, &[mute.address, origin.address]);
    for _ in 0..4 {
        let mut client = hop.client();
        client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        assert!(client.until("hi").starts_with("HTTP/1.1 200"));
    }
    // What may not be repeated is not.
    let alone = Hop::of(Protocol::Http, &[mute.address]);
    let mut client = alone.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    assert!(client.until("\r\n\r\n").starts_with("HTTP/1.1 502"));
    assert_eq!(alone.slab.counted(Counter::Replayed), 0);
}
