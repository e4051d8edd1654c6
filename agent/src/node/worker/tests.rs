//! A worker without the kernel half, between plain sockets: what a client sees of a hop.

mod auto;
mod bodies;
mod deadlines;
mod desync;
mod endpoints;
mod lifetime;
mod relays;
mod requests;

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
    config::{Capture, Config, Endpoint, Http, Mode, Policy, Protocol, Service, Shortcut},
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
        Self::tuned(protocol, endpoints, Http::default())
    }

    /// With other limits than usual for what HTTP messages may take.
    fn tuned(protocol: Protocol, endpoints: &[SocketAddr], http: Http) -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let mut config = config(address, protocol, endpoints);
        Arc::make_mut(&mut config.services[0]).http = http;
        let snapshot = Snapshot::build(&config, &Snapshot::default());
        let flows = Flows::off(OriginalDst { address, service: snapshot.services[0].id, source: 0 });
        let (sender, events) = unbounded_channel();
        let slab = Arc::<Slab>::default();
        let snapshot = Arc::new(ArcSwap::from_pointee(snapshot));
        let shared = WorkerShared { snapshot: Arc::clone(&snapshot), flows, slab: Arc::clone(&slab), events: sender };
        let worker = Worker::spawn(0, shared).unwrap();
        worker.listen(Listening { socket, netns: 7, place: None });
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
        zone: None,
        workers: 1,
        drain_timeout: PATIENCE,
        admin: Default::default(),
        audit: Default::default(),
        hook_stats: false,
        maps: Default::default(),
        inbound: Vec::new(),
        capture: Capture {
            cgroup_mount: None,
            bpffs: "/".into(),
            rules: Vec::new(),
            namespaces: Default::default(),
            except: Default::default(),
        },
        switches: Default::default(),
        services: vec![Arc::new(Service {
            name: "origin".into(),
            address,
            protocol,
            upstream_protocol: None,
            mode: Mode::Agent,
            policy: Policy::default(),
            http: Default::default(),
            tls: Default::default(),
            shortcut: Shortcut::Off,
            original_dst: false,
            connect_timeout: Duration::from_millis(300),
            probe_interval: None,
            probe: None,
            outlier: None,
            strategy: None,
            timing: None,
            request_limits: Vec::new(),
            pending: None,
            filters: Vec::new(),
            guard: Default::default(),
            udp_idle_timeout: PATIENCE,
            endpoint_drain: None,
            routes: Vec::new(),
            endpoints: endpoints.iter().copied().map(Endpoint::at).collect(),
        })],
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
        let mut from = 0;
        loop {
            let found = self.1[from..].windows(end.len()).position(|window| window == end.as_bytes());
            if let Some(at) = found {
                let rest = self.1.split_off(from + at + end.len());
                return String::from_utf8(std::mem::replace(&mut self.1, rest)).unwrap();
            }
            from = self.1.len().saturating_sub(end.len() - 1);
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
    fn rest(&mut self) -> std::io::Result<Vec<u8>> {
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
