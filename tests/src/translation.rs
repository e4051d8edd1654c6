//! A hop between HTTP/1 and HTTP/2, and the peers of both that its tests need.

use std::{
    io::{self, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::{
    agent::Agent,
    answer::read_head,
    config::Service,
    frames::{END_HEADERS, END_STREAM, Frame, Peer, kind, request},
    origin::Origin,
    peers,
    process::Room,
    stage::Stage,
    wait,
};

/// `:status: 200`, from the static table (RFC 7541 appendix A).
pub const STATUS_200: u8 = 0x88;
/// A code of RST_STREAM and GOAWAY.
pub const PROTOCOL_ERROR: u32 = 1;
/// A code of RST_STREAM and GOAWAY.
pub const INTERNAL_ERROR: u32 = 2;
/// A code of RST_STREAM.
pub const REFUSED_STREAM: u32 = 7;
/// What makes curl speak it.
pub const HTTP2: &str = "--http2-prior-knowledge";
/// What has curl make a call of gRPC, as far as its frames go: the message is none.
pub const GRPC: [&str; 7] =
    [HTTP2, "-H", "content-type: application/grpc", "-H", "te: trailers", "--data-binary", "@/dev/null"];

/// A stage with one service.
#[derive(Debug)]
pub struct Hop {
    /// The agent.
    pub agent: Agent,
    /// What clients dial.
    pub service: SocketAddr,
    /// Where it all is.
    pub stage: Stage,
}

impl Hop {
    /// With this service, which is at this address.
    pub fn of(stage: Stage, service: Service, address: SocketAddr) -> Self {
        // One worker: how many connections it makes to the endpoint can then be counted.
        let config = stage.config().set("workers: 1").service(service);
        Self { agent: Agent::start(&config), service: address, stage }
    }

    /// Clients of either, whose endpoint speaks what they do.
    pub fn auto(stage: Stage, endpoint: SocketAddr) -> Self {
        let address = stage.address();
        Self::of(stage, Service::auto("web", address).to(endpoint), address)
    }

    /// Clients of HTTP/2, endpoints of HTTP/1.
    pub fn down(stage: Stage, endpoint: SocketAddr) -> Self {
        let address = stage.address();
        Self::of(stage, Service::http2("web", address).set("upstream_protocol: http1").to(endpoint), address)
    }

    /// Clients of HTTP/1, endpoints of HTTP/2.
    pub fn up(stage: Stage, endpoints: impl IntoIterator<Item = SocketAddr>) -> Self {
        let address = stage.address();
        Self::of(stage, Service::http("web", address).set("upstream_protocol: http2").to_all(endpoints), address)
    }

    /// Of a path of the service.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.service)
    }

    /// What curl tells of version and status, and the body.
    #[track_caller]
    pub fn curl(&self, path: &str, arguments: &[&str]) -> (String, Vec<u8>) {
        let url = self.url(path);
        let common = ["--write-out", "\n%{http_version} %{response_code}", &url];
        let output = peers::curl(Room::of(&self.stage.clients), &[&common, arguments].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let at = output.stdout.iter().rposition(|byte| *byte == b'\n').expect("what curl was to write");
        (String::from_utf8_lossy(&output.stdout[at + 1..]).into_owned(), output.stdout[..at].to_vec())
    }

    /// A client of HTTP/2.
    #[track_caller]
    pub fn client2(&self) -> Peer {
        Peer::client(self.stage.dial(self.service).expect("a connection")).expect("a preface")
    }

    /// A client of HTTP/1.
    #[track_caller]
    pub fn client1(&self) -> TcpStream {
        self.stage.dial(self.service).expect("a connection")
    }

    /// Waits until a request has come out so.
    #[track_caller]
    pub fn counted(&self, outcome: &str) {
        wait::until(outcome, wait::SOON, || {
            self.agent.metric("sockway_requests_total", &[("outcome", outcome)]) >= 1.0
        });
    }
}

/// An endpoint of HTTP/1 that reads one head on each connection and answers with these bytes, in pieces of this length.
pub fn saying(stage: &Stage, answer: &'static [u8], piece: usize) -> Origin {
    let listener = stage.origin().listen(stage.address()).expect("a free address");
    Origin::start(listener, move |mut stream: &TcpStream, _| {
        stream.set_nodelay(true)?;
        while read_head(&mut BufReader::new(stream))?.is_some() {
            answer.chunks(piece).try_for_each(|piece| stream.write_all(piece))?;
            if !answer.starts_with(b"HTTP/1.1 204") {
                break;
            }
        }
        Ok(())
    })
}

/// An endpoint that speaks in frames: `act` gets each frame, and the number of its connection.
pub fn framed(
    stage: &Stage,
    act: impl Fn(&mut Peer, &Frame, usize) -> io::Result<()> + Send + Sync + 'static,
) -> Origin {
    let listener = stage.origin().listen(stage.address()).expect("a free address");
    Origin::start(listener, move |stream: &TcpStream, number| {
        let mut peer = Peer::server(stream)?;
        while let Some(frame) = peer.read()? {
            act(&mut peer, &frame, number)?;
        }
        Ok(())
    })
}

/// Asks for `/` on a stream.
#[track_caller]
pub fn get(client: &mut Peer, stream: u32, method: &str, fields: &[(&str, &str)]) {
    client.send(kind::HEADERS, END_HEADERS | END_STREAM, stream, &request(method, "/", fields)).unwrap();
}

/// The frames of a stream up to its end or its reset.
#[track_caller]
pub fn rest(client: &mut Peer, stream: u32) -> Vec<Frame> {
    let mut frames = Vec::new();
    loop {
        let frame = client.read().unwrap().expect("the stream's end");
        if frame.stream != stream || frame.kind == kind::WINDOW_UPDATE {
            continue;
        }
        let is_last = frame.ends_stream() || frame.kind == kind::RST_STREAM;
        frames.push(frame);
        if is_last {
            return frames;
        }
    }
}

/// What is in the DATA among them.
pub fn body(frames: &[Frame]) -> Vec<u8> {
    frames.iter().filter(|frame| frame.kind == kind::DATA).flat_map(|frame| frame.payload.clone()).collect()
}

/// Whether the last of them resets the stream with this code.
pub fn is_reset(frames: &[Frame], code: u32) -> bool {
    frames.last().is_some_and(|frame| frame.kind == kind::RST_STREAM && frame.number(0) == code)
}

/// Everything that a client of HTTP/1 gets for these bytes, and whether the end was clean.
pub fn ask(mut client: TcpStream, bytes: &[u8]) -> (String, bool) {
    client.write_all(bytes).unwrap();
    let mut all = Vec::new();
    let is_clean = client.read_to_end(&mut all).is_ok();
    (String::from_utf8_lossy(&all).into_owned(), is_clean)
}

/// Waits until a sender stands still; gives how much it has sent by then.
pub fn stands_still(sent: &AtomicUsize) -> usize {
    let mut last = usize::MAX;
    let begun = std::time::Instant::now();
    loop {
        std::thread::sleep(Duration::from_millis(200));
        let now = sent.load(Ordering::SeqCst);
        if now > 0 && now == last {
            return now;
        }
        assert!(begun.elapsed() < wait::soon(), "it goes on and on: {now}");
        last = now;
    }
}

/// Sends DATA as its peer's windows allow, and counts it.
#[derive(Debug)]
pub struct Sender {
    connection: i64,
    stream: i64,
    sent: Arc<AtomicUsize>,
}

impl Sender {
    /// Of what it counts here.
    pub fn new(sent: &Arc<AtomicUsize>) -> Self {
        Self { connection: 65_535, stream: 65_535, sent: Arc::clone(sent) }
    }

    /// Learns of windows.
    pub fn hear(&mut self, frame: &Frame) {
        match (frame.kind, frame.stream) {
            (kind::SETTINGS, _) => {
                let pairs = frame.payload.chunks_exact(6).filter(|pair| pair[..2] == [0, 4]);
                pairs.for_each(|pair| {
                    self.stream = u32::from_be_bytes(pair[2..].try_into().expect("four bytes")).into()
                });
            }
            (kind::WINDOW_UPDATE, 0) => self.connection += i64::from(frame.number(0)),
            (kind::WINDOW_UPDATE, _) => self.stream += i64::from(frame.number(0)),
            _ => {}
        }
    }

    /// Sends on a stream, of so many bytes altogether.
    pub fn send(&mut self, peer: &mut Peer, on: u32, whole: usize) -> io::Result<()> {
        loop {
            let left = whole - self.sent.load(Ordering::SeqCst);
            let piece = (left as i64).min(self.connection).min(self.stream).min(16_384);
            if piece <= 0 {
                return Ok(());
            }
            (self.connection, self.stream) = (self.connection - piece, self.stream - piece);
            let is_last = self.sent.fetch_add(piece as usize, Ordering::SeqCst) + piece as usize == whole;
            peer.send(kind::DATA, u8::from(is_last), on, &vec![0; piece as usize])?;
        }
    }
}

/// More than any two sockets hold.
pub const WHOLE: usize = 64 << 20;
