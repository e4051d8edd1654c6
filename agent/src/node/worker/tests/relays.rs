//! Bytes that are not understood.

use super::*;

#[test]
fn a_websocket_becomes_a_relay() {
    let origin = Origin::new(|mut client, _| {
        assert!(client.until("\r\n\r\n").contains("Upgrade: websocket"));
        client.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nfirst");
        assert_eq!(client.exactly(5), b"hello");
        client.send("world");
        assert_eq!(client.rest().unwrap(), b"");
    });
    let hop = Hop::http(&origin);
    let mut client = hop.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello");
    let head = client.until("\r\n\r\n");
    assert!(head.contains("Connection: Upgrade") && head.contains("Upgrade: websocket"), "{head}");
    assert_eq!(client.exactly(10), b"firstworld");
    client.0.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.rest().unwrap(), b"");
    assert_eq!(hop.counted(Counter::RelayDone), 1);
}

#[test]
fn a_relay_passes_on_ends_one_by_one() {
    let origin = Origin::new(|mut client, _| {
        client.send("banner");
        let body = client.rest().unwrap();
        client.send(format!("{}", body.len()));
    });
    let hop = Hop::of(Protocol::Tcp, &[origin.address]);
    let mut client = hop.client();
    assert_eq!(client.exactly(6), b"banner");
    client.send(vec![b'x'; 3_000_000]);
    client.0.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.rest().unwrap(), b"3000000");
    assert_eq!(hop.counted(Counter::RelayDone), 1);
}

#[test]
fn a_relay_passes_on_a_reset() {
    let seen = Arc::new(Mutex::new(None));
    let told = Arc::clone(&seen);
    let origin = Origin::new(move |mut client, _| {
        client.send("banner");
        *told.lock().unwrap() = Some(client.rest().is_err());
    });
    let hop = Hop::of(Protocol::Tcp, &[origin.address]);
    let mut client = hop.client();
    client.exactly(6);
    socket2::SockRef::from(&client.0).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    wait_for(|| seen.lock().unwrap().is_some());
    assert_eq!(*seen.lock().unwrap(), Some(true));
    assert_eq!(hop.counted(Counter::RelayClientReset), 1);
}
