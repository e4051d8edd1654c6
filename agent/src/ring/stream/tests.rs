//! What is certain of bytes that were sent, and when a peer is gone: against a real peer on loopback.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    rc::Rc,
    thread,
};

use super::*;
use crate::ring::{SMALL, Watch, run};

/// A connection on which a first request was sent and read.
async fn used(buffers: &Buffers) -> (Stream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let mut server = listener.accept().unwrap().0;
    let mut stream = Stream::accepted(Socket::accepted(client.into(), &Rc::<Watch>::default()));
    send(&mut stream, buffers).await;
    server.read_exact(&mut [0; 7]).unwrap();
    (stream, server)
}

async fn send(stream: &mut Stream, buffers: &Buffers) {
    let buf = buffers.holding(b"request");
    let range = buf.range();
    stream.writer.submit(buf, range);
    buffers.give(stream.writer.sent().await.1);
}

/// Whether the second request never arrived, as far as can be known; `true` for what the peer does before it comes.
async fn second_never_arrived(peer: impl FnOnce(TcpStream), comes_after: bool) -> bool {
    let buffers = Rc::<Buffers>::default();
    let (mut stream, server) = used(&buffers).await;
    let before = stream.writer.taken();
    if comes_after {
        peer(server);
        send(&mut stream, &buffers).await;
    } else {
        send(&mut stream, &buffers).await;
        peer(server);
    }
    stream.reader.arm_on_demand(&buffers, SMALL);
    let (received, _) = stream.reader.received().await;
    stream.never_arrived(before, matches!(received, Ok(0))).await
}

fn resets(server: TcpStream) {
    socket2::SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
}

#[test]
fn what_a_peer_that_had_closed_was_sent_never_arrived() {
    assert!(run(second_never_arrived(drop, true)).unwrap());
    // Nothing could be sent at all.
    assert!(run(second_never_arrived(resets, true)).unwrap());
}

#[test]
fn what_a_peer_may_have_read_is_taken_to_have_arrived() {
    let reads = |mut server: TcpStream| server.read_exact(&mut [0; 7]).unwrap();
    assert!(!run(second_never_arrived(reads, false)).unwrap());
    assert!(!run(second_never_arrived(drop, false)).unwrap(), "unread, and reset");
    let reads_and_resets = |mut server: TcpStream| {
        server.read_exact(&mut [0; 7]).unwrap();
        resets(server);
    };
    assert!(!run(second_never_arrived(reads_and_resets, false)).unwrap(), "nothing may have been acknowledged yet");
}

#[test]
fn a_peer_that_leaves_is_noticed_behind_what_it_has_sent() {
    run(async {
        let buffers = Rc::<Buffers>::default();
        let (mut stream, mut server) = used(&buffers).await;
        let gone = |stream: &mut Stream, by_end: bool| {
            stream.reader.poll_gone(&mut Context::from_waker(Waker::noop()), by_end).is_ready()
        };
        assert!(!gone(&mut stream, true));
        server.write_all(b"more").unwrap();
        wait_readable(&mut stream).await;
        assert!(!gone(&mut stream, true), "it asks for more");
        assert!(!stream.reader.is_quiet());
        stream.reader.arm_on_demand(&buffers, SMALL);
        let (received, buf) = stream.reader.received().await;
        assert_eq!((received.unwrap(), buf.bytes()), (4, &b"more"[..]));
        drop(server);
        std::future::poll_fn(|context| stream.reader.poll_gone(context, true)).await;
        assert!(!gone(&mut stream, false), "who ends its side may still listen");
    })
    .unwrap();
}

#[test]
fn what_was_only_looked_at_is_received_whole_however_small_the_buffers() {
    run(async {
        let buffers = Rc::<Buffers>::default();
        let (mut stream, mut server) = used(&buffers).await;
        let sent = [7; 3 * SMALL];
        server.write_all(&sent).unwrap();
        // All of it is there before anybody looks, so that nothing more is told of it.
        while look_for(&stream, sent.len()) < sent.len() {}
        wait_readable(&mut stream).await;
        let gone = stream.reader.poll_gone(&mut Context::from_waker(Waker::noop()), true);
        assert!(gone.is_pending());
        let mut received = 0;
        while received < sent.len() {
            stream.reader.arm_on_demand(&buffers, SMALL);
            let next = tokio::time::timeout(Duration::from_secs(5), stream.reader.received()).await;
            let (result, buf) = next.unwrap_or_else(|_| panic!("waits for what has come, after {received} bytes"));
            received += result.unwrap();
            buffers.give(buf);
        }
    })
    .unwrap();
}

#[test]
fn what_has_come_before_it_is_waited_for_costs_no_epoll() {
    run(async {
        let (mut stream, mut client) = accepted();
        let buffers = Rc::<Buffers>::default();
        assert!(stream.reader.is_quiet());
        client.write_all(b"all of it").unwrap();
        while look_for(&stream, 9) < 9 {}
        assert!(!stream.reader.is_quiet());
        stream.reader.arm_on_demand(&buffers, SMALL);
        let (received, buf) = stream.reader.received().await;
        assert_eq!((received.unwrap(), buf.bytes()), (9, &b"all of it"[..]));
        assert!(!stream.reader.is_watched());
        // The next is waited for, and is not missed.
        stream.reader.arm_on_demand(&buffers, SMALL);
        let late = thread::spawn(move || {
            thread::sleep(Duration::from_millis(20));
            client.write_all(b"more").unwrap();
            client
        });
        let (received, buf) = stream.reader.received().await;
        assert_eq!((received.unwrap(), buf.bytes()), (4, &b"more"[..]));
        assert!(stream.reader.is_watched());
        drop(late.join().unwrap());
    })
    .unwrap();
}

/// Whether or not the ring has had to do with it.
#[test]
fn a_connection_that_is_dropped_ends_at_once() {
    run(async {
        for bytes in [1, 64 << 20] {
            let (mut stream, mut client) = accepted();
            stream.writer.submit(Buf::of(&vec![7; bytes]), 0..bytes);
            assert_eq!(stream.writer.uses_ring, bytes > 1);
            let reads = thread::spawn(move || client.read_to_end(&mut Vec::new()));
            if bytes > 1 {
                // Some of it: it is given up in the middle.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            drop(stream);
            let ended = async {
                while !reads.is_finished() {
                    tokio::time::sleep(Duration::from_millis(1)).await
                }
            };
            tokio::time::timeout(Duration::from_secs(5), ended).await.expect("its end");
            drop(reads.join().unwrap());
        }
    })
    .unwrap();
}

/// A connection on which nothing was said yet.
fn accepted() -> (Stream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let socket = Socket::accepted(listener.accept().unwrap().0.into(), &Rc::<Watch>::default());
    (Stream::accepted(socket), client)
}

fn look_for(stream: &Stream, bytes: usize) -> usize {
    let flags = rustix::net::RecvFlags::DONTWAIT | rustix::net::RecvFlags::PEEK;
    rustix::net::recv(stream.socket.as_fd(), &mut vec![0_u8; bytes], flags).map_or(0, |(bytes, _)| bytes)
}

async fn wait_readable(stream: &mut Stream) {
    let _ = poll_fn(|context| stream.reader.readiness.poll(stream.reader.socket, context).map(drop)).await;
}
