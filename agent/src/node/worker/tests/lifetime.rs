//! Draining, closing, reloading, stopping.

use super::*;

#[test]
fn a_drain_ends_idle_connections_and_finishes_the_others() {
    let origin = Origin::new(|mut client, _| {
        while client.more().is_ok_and(|bytes| bytes > 0) {
            if client.until("\r\n\r\n").contains("/slow") {
                client.until("go");
            }
            client.send(OK);
        }
    });
    let hop = Hop::http(&origin);
    let (mut idle, mut busy) = (hop.client(), hop.client());
    idle.send(GET);
    idle.until("hi");
    busy.send("POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n");
    wait_for(|| hop.slab.counted(Counter::UpstreamFresh) == 2 || hop.slab.counted(Counter::UpstreamReused) == 1);
    hop.worker.drain();
    assert_eq!(idle.rest().unwrap(), b"");
    busy.send("go");
    let head = busy.until("\r\n\r\n");
    assert!(head.contains("connection: close"), "{head}");
    assert_eq!(busy.rest().unwrap(), b"hi");
    wait_for(|| hop.worker.connections() == 0);
    assert!(TcpStream::connect(hop.address).is_err());
}

#[test]
fn what_waits_in_a_closing_listener_is_served() {
    let origin = Origin::answering(OK);
    let hop = Hop::http(&origin);
    let mut clients: Vec<Client> = (0..50).map(|_| hop.client()).collect();
    hop.worker.unlisten(7);
    for client in &mut clients {
        client.send(GET);
        assert_eq!(client.until("hi"), OK_PASSED_ON);
    }
    wait_for(|| TcpStream::connect(hop.address).is_err());
}

#[test]
fn a_reload_moves_the_next_request() {
    let (first, second) = (Origin::answering(OK), Origin::answering("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nnew"));
    let hop = Hop::http(&first);
    let mut client = hop.client();
    client.send(GET);
    client.until("hi");
    let config = config(hop.address, Protocol::Http, &[second.address]);
    hop.snapshot.store(Arc::new(Snapshot::build(&config, &hop.snapshot.load())));
    client.send(GET);
    assert!(client.until("new").starts_with("HTTP/1.1 200"));
}

#[test]
fn progress_is_shown_and_stopping_ends_everything() {
    let origin = Origin::answering(OK);
    let hop = Hop::http(&origin);
    let mut client = hop.client();
    client.send(GET);
    client.until("hi");
    let progress = hop.worker.progress();
    let before = progress.so_far();
    wait_for(|| progress.so_far() > before + 2);
    assert!(!hop.worker.is_finished());
    hop.worker.stop();
    assert!(client.rest().is_ok_and(|rest| rest.is_empty()));
}
