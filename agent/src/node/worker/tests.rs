//! A worker without the kernel half, between plain sockets: what a client sees of a hop.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use tokio::sync::mpsc::error::TryRecvError;

use super::*;
use crate::{
    config::{Balance, Capture, Config, Endpoint, Mode, Protocol, Service, Shortcut},
    kernel::OriginalDst,
};

/// Nothing here takes longer, unless it is broken.
const PATIENCE: Duration = Duration::from_secs(10);

/// A worker that listens for one service.
struct Hop {
    worker: Worker,
    address: SocketAddr,
    slab: Arc<Slab>,
    events: UnboundedReceiver<WorkerEvent>,
    snapshot: Arc<ArcSwap<Snapshot>>,
}

impl Hop {
    fn of(protocol: Protocol, endpoints: &[SocketAddr]) -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let snapshot = Snapshot::build(&config(address, protocol, endpoints), &Snapshot::default());
        let flows = Flows::off(OriginalDst { address, service: snapshot.services[0].id });
        let (sender, events) = unbounded_channel();
        let slab = Arc::<Slab>::default();
        let snapshot = Arc::new(ArcSwap::from_pointee(snapshot));
        let shared = WorkerShared { snapshot: Arc::clone(&snapshot), flows, slab: Arc::clone(&slab), events: sender };
        let worker = Worker::spawn(0, shared).unwrap();
        worker.listen(Listening { socket, netns: 7 });
        Self { worker, address, slab, events, snapshot }
    }

    fn http(origin: &Origin) -> Self {
        Self::of(Protocol::Http, &[origin.address])
    }

    fn client(&self) -> Client {
        Client::dial(self.address)
    }

    fn counted(&self, counter: Counter) -> u64 {
        wait_for(|| self.slab.counted(counter) > 0);
        self.slab.counted(counter)
    }
}

fn config(address: SocketAddr, protocol: Protocol, endpoints: &[SocketAddr]) -> Config {
    Config {
        instance: "test".into(),
        workers: 1,
        drain_timeout: PATIENCE,
        admin_address: ([127, 0, 0, 1], 0).into(),
        capture: Capture { cgroup_mount: None, bpffs: "/".into(), rules: Vec::new() },
        services: vec![Service {
            name: "origin".into(),
            address,
            protocol,
            mode: Mode::Agent,
            balance: Balance::RoundRobin,
            shortcut: Shortcut::Off,
            connect_timeout: Duration::from_millis(300),
            probe_interval: None,
            endpoints: endpoints.iter().map(|address| Endpoint { address: *address, weight: 1 }).collect(),
        }],
    }
}

/// Waits for a condition, not for time.
fn wait_for(condition: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < until, "waited for too long");
        thread::yield_now();
    }
}

/// A client's or an origin's side of a connection.
struct Client(TcpStream, Vec<u8>);

impl Client {
    fn dial(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).unwrap())
    }

    fn over(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(stream, Vec::new())
    }

    fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).unwrap();
    }

    /// Reads up to and including `end`.
    fn until(&mut self, end: &str) -> String {
        loop {
            if let Some(at) = self.1.windows(end.len()).position(|window| window == end.as_bytes()) {
                let rest = self.1.split_off(at + end.len());
                return String::from_utf8(std::mem::replace(&mut self.1, rest)).unwrap();
            }
            assert!(self.more().unwrap() > 0, "ended before {end:?}: {}", self.1.escape_ascii());
        }
    }

    fn exactly(&mut self, bytes: usize) -> Vec<u8> {
        while self.1.len() < bytes {
            assert!(self.more().unwrap() > 0, "ended too early");
        }
        let rest = self.1.split_off(bytes);
        std::mem::replace(&mut self.1, rest)
    }

    /// Everything to the end; an error is the connection's.
    fn to_end(&mut self) -> std::io::Result<Vec<u8>> {
        while self.more()? > 0 {}
        Ok(std::mem::take(&mut self.1))
    }

    fn more(&mut self) -> std::io::Result<usize> {
        let mut piece = [0; 16 * 1024];
        let bytes = self.0.read(&mut piece)?;
        self.1.extend_from_slice(&piece[..bytes]);
        Ok(bytes)
    }
}

/// An origin: one thread for each connection, all running the same script.
struct Origin {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Origin {
    /// `script` is given each connection and its number from 0.
    fn new(script: impl Fn(Client, usize) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::<AtomicUsize>::default();
        let (count, script) = (Arc::clone(&connections), Arc::new(script));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let number = count.fetch_add(1, Ordering::SeqCst);
                let script = Arc::clone(&script);
                thread::spawn(move || script(Client::over(stream.unwrap()), number));
            }
        });
        Self { address, connections }
    }

    /// Answers each request with these bytes, on one connection.
    fn answering(response: &'static str) -> Self {
        Self::new(move |mut client, _| {
            while client.more().is_ok_and(|bytes| bytes > 0) {
                while client.1.windows(4).any(|window| window == b"\r\n\r\n") {
                    client.until("\r\n\r\n");
                    client.send(response);
                }
            }
        })
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nhi";
const OK_PASSED_ON: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// An address that refuses.
fn refusing() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

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

/// Reads a request with a body of this length, and answers with the sum of its bytes.
fn summing(mut client: Client, _: usize) {
    loop {
        let head = client.until("\r\n\r\n").to_ascii_lowercase();
        let body = match head.split("content-length: ").nth(1) {
            Some(rest) => client.exactly(rest.split("\r\n").next().unwrap().parse().unwrap()),
            None => unchunked(&mut client),
        };
        let sum: u64 = body.iter().map(|byte| u64::from(*byte)).sum();
        let text = format!("{} {sum}", body.len());
        client.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len()));
    }
}

fn unchunked(client: &mut Client) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let size = usize::from_str_radix(client.until("\r\n").trim(), 16).unwrap();
        body.extend(client.exactly(size));
        assert_eq!(client.until("\r\n"), "\r\n");
        if size == 0 {
            return body;
        }
    }
}

fn summed(client: &mut Client) -> String {
    let head = client.until("\r\n\r\n");
    let length = head.split("Content-Length: ").nth(1).unwrap().trim().parse().unwrap();
    String::from_utf8(client.exactly(length)).unwrap()
}

#[test]
fn bodies_of_any_length_go_up_whole() {
    let origin = Origin::new(summing);
    let hop = Hop::http(&origin);
    let mut client = hop.client();
    for length in [0, 1, 1000, 3900, 4096, 16_384, 65_536, 100_000, 3_000_000] {
        let body: Vec<u8> = (0..length).map(|n| n as u8).collect();
        let sum: u64 = body.iter().map(|byte| u64::from(*byte)).sum();
        client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"));
        client.send(&body);
        assert_eq!(summed(&mut client), format!("{length} {sum}"));
        client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
        for chunk in body.chunks(7001) {
            client.send([format!("{:x};ext\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat());
        }
        client.send("0\r\n\r\n");
        assert_eq!(summed(&mut client), format!("{length} {sum}"));
    }
    assert_eq!(origin.connections.load(Ordering::SeqCst), 1);
}

#[test]
fn a_request_behind_a_long_body_is_not_lost() {
    let origin = Origin::new(summing);
    let hop = Hop::http(&origin);
    let mut client = hop.client();
    let body = "a".repeat(100_000);
    let request = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n{body}");
    client.send([request.as_bytes(), request.as_bytes()].concat());
    assert_eq!(summed(&mut client), "100000 9700000");
    assert_eq!(summed(&mut client), "100000 9700000");
}

/// Sends back what the path names: a body of so many bytes, framed as it says.
fn serving(mut client: Client, _: usize) {
    loop {
        let head = client.until("\r\n\r\n");
        let mut path = head.split(' ').nth(1).unwrap().trim_start_matches('/').split('/');
        let (framing, length) = (path.next().unwrap(), path.next().unwrap().parse().unwrap());
        let body: Vec<u8> = (0..length).map(|n: usize| n as u8).collect();
        match framing {
            "length" => {
                client.send([format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").as_bytes(), &body].concat())
            }
            "chunked" => {
                client.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
                for chunk in body.chunks(5000) {
                    client.send([format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat());
                }
                client.send("0\r\n\r\n");
            }
            _ => {
                client.send("HTTP/1.0 200 OK\r\n\r\n");
                client.send(&body);
                return;
            }
        }
    }
}

#[test]
fn bodies_of_any_length_come_down_whole() {
    let origin = Origin::new(serving);
    let hop = Hop::http(&origin);
    let mut client = hop.client();
    for length in [0, 1, 1000, 16_000, 16_384, 65_536, 100_000, 3_000_000] {
        let body: Vec<u8> = (0..length).map(|n: usize| n as u8).collect();
        client.send(format!("GET /length/{length} HTTP/1.1\r\nHost: a\r\n\r\n"));
        client.until("\r\n\r\n");
        assert!(client.exactly(length) == body, "{length}");
        client.send(format!("GET /chunked/{length} HTTP/1.1\r\nHost: a\r\n\r\n"));
        client.until("\r\n\r\n");
        assert!(unchunked(&mut client) == body, "{length}");
        let mut other = hop.client();
        other.send(format!("GET /close/{length} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert!(other.until("\r\n\r\n").contains("connection: close"));
        assert!(other.to_end().unwrap() == body, "{length}");
    }
}

#[test]
fn a_client_of_http_1_0_gets_a_bare_body() {
    let origin = Origin::new(serving);
    let hop = Hop::http(&origin);
    let mut client = hop.client();
    client.send("GET /chunked/20000 HTTP/1.0\r\n\r\n");
    let head = client.until("\r\n\r\n");
    assert!(head.contains("connection: close") && !head.to_lowercase().contains("chunked"), "{head}");
    assert_eq!(client.to_end().unwrap().len(), 20_000);
    let mut client = hop.client();
    for _ in 0..2 {
        client.send("GET /length/3 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        assert!(client.until("\r\n\r\n").contains("connection: keep-alive"));
        client.exactly(3);
    }
}

#[test]
fn responses_without_a_body_end_at_their_head() {
    let origin = Origin::new(|mut client, number| {
        assert_eq!(number, 0, "one connection serves all");
        client.until("\r\n\r\n");
        client.send("HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n");
        client.until("\r\n\r\n");
        client.send("HTTP/1.1 304 Not Modified\r\nContent-Length: 999\r\n\r\n");
        client.until("\r\n\r\n");
        client.send("HTTP/1.1 204 No Content\r\n\r\n");
        client.until("\r\n\r\n");
        client.send(OK);
    });
    let hop = Hop::http(&origin);
    let mut client = hop.client();
    client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(client.until("\r\n\r\n").contains("999"));
    client.send(GET);
    assert!(client.until("\r\n\r\n").contains("304"));
    client.send(GET);
    assert!(client.until("\r\n\r\n").contains("204"));
    client.send(GET);
    assert_eq!(client.until("hi"), OK_PASSED_ON);
}

#[test]
fn continue_is_passed_on_before_the_body_is_sent() {
    let origin = Origin::new(|mut client, _| {
        assert!(client.until("\r\n\r\n").contains("Expect: 100-continue"));
        client.send("HTTP/1.1 100 Continue\r\n\r\n");
        assert_eq!(client.exactly(5), b"hello");
        client.send("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi");
        client.until("\r\n\r\n");
        client.send(OK);
    });
    let hop = Hop::http(&origin);
    let mut client = hop.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(client.until("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
    client.send("hello");
    assert_eq!(client.until("\r\n\r\n"), "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n");
    assert_eq!(client.until("hi"), OK_PASSED_ON);
    client.send(GET);
    assert_eq!(client.until("hi"), OK_PASSED_ON);
}

#[test]
fn a_final_response_before_the_body_ends_the_connection() {
    let origin = Origin::new(|mut client, _| {
        client.until("\r\n\r\n");
        client.send("HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno");
        let _ = client.to_end();
    });
    let hop = Hop::http(&origin);
    let mut client = hop.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    let head = client.until("\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 413") && head.contains("connection: close"), "{head}");
    assert_eq!(client.to_end().unwrap(), b"no");
}

#[test]
fn an_early_response_reaches_a_client_that_is_still_sending() {
    let origin = Origin::new(|mut client, _| {
        client.until("\r\n\r\n");
        client.send("HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno");
        let _ = client.to_end();
    });
    let hop = Hop::http(&origin);
    let mut client = hop.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n");
    let mut writer = client.0.try_clone().unwrap();
    let sender = thread::spawn(move || while writer.write_all(&[b'x'; 1000]).is_ok() {});
    assert!(client.until("no").starts_with("HTTP/1.1 403"));
    drop(client);
    sender.join().unwrap();
}

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
    let reply = String::from_utf8(client.to_end().unwrap()).unwrap();
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
        assert!(client.to_end().is_err(), "{response:?}");
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
    assert!(client.to_end().is_err());
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
        let reply = String::from_utf8(client.to_end().unwrap()).unwrap();
        assert!(reply.starts_with("HTTP/1.1 502 "), "{response:?}: {reply}");
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
        ("CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), "501"),
        (format!("GET /{} HTTP/1.1\r\n", long(70_000)), "414"),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", long(70_000)), "431"),
        (format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "a: b\r\n".repeat(200)), "431"),
    ] {
        let mut client = hop.client();
        client.send(&request);
        let reply = String::from_utf8(client.to_end().unwrap()).unwrap();
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

#[test]
fn a_websocket_becomes_a_relay() {
    let origin = Origin::new(|mut client, _| {
        assert!(client.until("\r\n\r\n").contains("Upgrade: websocket"));
        client.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nfirst");
        assert_eq!(client.exactly(5), b"hello");
        client.send("world");
        assert_eq!(client.to_end().unwrap(), b"");
    });
    let hop = Hop::http(&origin);
    let mut client = hop.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello");
    let head = client.until("\r\n\r\n");
    assert!(head.contains("Connection: Upgrade") && head.contains("Upgrade: websocket"), "{head}");
    assert_eq!(client.exactly(10), b"firstworld");
    client.0.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.to_end().unwrap(), b"");
    assert_eq!(hop.counted(Counter::RelayDone), 1);
}

#[test]
fn a_relay_passes_on_ends_one_by_one() {
    let origin = Origin::new(|mut client, _| {
        client.send("banner");
        let body = client.to_end().unwrap();
        client.send(format!("{}", body.len()));
    });
    let hop = Hop::of(Protocol::Tcp, &[origin.address]);
    let mut client = hop.client();
    assert_eq!(client.exactly(6), b"banner");
    client.send(vec![b'x'; 3_000_000]);
    client.0.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.to_end().unwrap(), b"3000000");
    assert_eq!(hop.counted(Counter::RelayDone), 1);
}

#[test]
fn a_relay_passes_on_a_reset() {
    let seen = Arc::new(Mutex::new(None));
    let told = Arc::clone(&seen);
    let origin = Origin::new(move |mut client, _| {
        client.send("banner");
        *told.lock().unwrap() = Some(client.to_end().is_err());
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
    assert_eq!(idle.to_end().unwrap(), b"");
    busy.send("go");
    let head = busy.until("\r\n\r\n");
    assert!(head.contains("connection: close"), "{head}");
    assert_eq!(busy.to_end().unwrap(), b"hi");
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
    wait_for(|| hop.worker.progress() > progress + 2);
    assert!(!hop.worker.is_finished());
    hop.worker.stop();
    assert!(client.to_end().is_ok_and(|rest| rest.is_empty()));
}
