//! The reader of HTTP/1 requests beside four others: h11, hyper, nginx and HAProxy read the corpus and mutations of it. Who accepts what we
//! reject, or reads another method or body, is listed here with the reason; a difference that is not listed fails.
//!
//! The proxies stand before a server that records what they pass on: what a program behind them would be told.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use http_body_util::{BodyExt as _, Empty};
use hyper::{Request, Response, body::Bytes, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use sockway::decode::{
    chunked::{Decoder, Event},
    http1::{self as ours, FIELDS_MAX, Framing, Method},
};
use sockway_tests::{
    address::Block,
    process::{Process, Room},
    wait,
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// What a reader made of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Message {
    method: String,
    body: Vec<u8>,
}

/// What a reader made of the bytes of a connection.
#[derive(Clone, Debug, Default)]
struct Reading {
    messages: Vec<Message>,
    /// Why it reads no further.
    rejects: Option<String>,
    /// What follows are no requests, or are not to be answered: a tunnel, or the client has said that this was the last.
    ended: bool,
}

/// What others accept that we reject with these words: who does, and why we do not. RFC numbers are of RFC 9112 unless said otherwise.
const LENIENT: &[(&str, &str, &str)] = &[
    (
        "a line does not end in CRLF",
        "h11, haproxy, hyper, nginx",
        "2.2 lets a recipient take a bare LF for a line's end; two that decide otherwise see different requests",
    ),
    (
        "a line of a chunk does not end in CRLF",
        "haproxy, nginx",
        "7.1 has no such leniency: a chunk's end that is guessed is how bodies are smuggled",
    ),
    (
        "both Transfer-Encoding and Content-Length",
        "h11, haproxy, hyper",
        "6.3 lets a server take the chunks and drop the length, and close; whoever stands behind may take the length",
    ),
    (
        "invalid Content-Length",
        "h11, haproxy, hyper",
        "RFC 9110 8.6 lets a recipient take a list of equal lengths for one; hyper does not look at it beside chunks",
    ),
    (
        "Transfer-Encoding is not exactly chunked",
        "hyper",
        "6.1: other codings are not understood here, and an empty element hides one from who splits otherwise",
    ),
    ("Host is missing", "haproxy, hyper", "3.2 demands 400: what an application takes for the host is another's guess"),
    ("more than one Host", "hyper", "3.2 demands 400"),
    (
        "invalid Host",
        "h11, haproxy, hyper, nginx",
        "3.2 demands 400 for a value that is no host and port: routes and certificates are chosen by it",
    ),
    (
        "invalid authority in the target",
        "h11, hyper",
        "the same, for the authority of an absolute target, which stands for Host (3.2.2)",
    ),
    (
        "the target is neither a path nor an http address",
        "h11, haproxy, hyper, nginx",
        "3.2 knows four forms; of other schemes we are no proxy, and passed on it might be one to who follows",
    ),
    ("the target of CONNECT is not a host and a port", "h11, hyper", "3.2.3: the form is exact"),
    (
        "malformed request line",
        "haproxy, nginx",
        "3: one space between the words; more are how a request line is read in two ways (nginx: HTTP/0.9, too)",
    ),
    (
        "only HTTP/1.0 and HTTP/1.1 are spoken here",
        "h11, haproxy, nginx",
        "2.3: a version that is not known says nothing of the framing; HAProxy and nginx skip white space before it",
    ),
    (
        "invalid byte in a field name",
        "h11, haproxy, nginx",
        "5.1 and 5.2: a name is a token, without space before the colon, and folded lines are obsolete (h11 and HAProxy unfold, \
         nginx drops the line)",
    ),
    (
        "invalid byte in a field value",
        "haproxy, nginx",
        "RFC 9110 5.5: CR and NUL in a value are dangerous; HAProxy passes NUL, nginx a CR before the line's end",
    ),
    (
        "invalid byte in a chunk extension",
        "nginx",
        "7.1.1: nginx skips extensions unread, up to a bare LF, where others see a line go on",
    ),
    (
        "malformed trailer field",
        "h11, haproxy, nginx",
        "5: fields behind a body are fields; nginx skips them unread, h11 and HAProxy take a bare LF for their end",
    ),
];

/// Mutations of each file of the corpus.
const MUTATIONS: u64 = 400;

/// What is put in: bytes and words that mean something to somebody.
const PIECES: [&[u8]; 30] = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"\t",
    b":",
    b",",
    b";",
    b"\"",
    b"0",
    b"+",
    b"-",
    b"0x",
    b"_",
    b"\xff",
    b"\x0b",
    b" \r\n",
    b"\r\n ",
    b"chunked",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: identity, chunked\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 5, 5\r\n",
    b"Host: b\r\n",
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"http://c/",
    b"0\r\n\r\n",
    b"ffffffffffffffff1\r\n",
];

/// Numbers of a seed: splitmix64.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ mixed >> 31) % bound.max(1) as u64) as usize
    }
}

/// The corpus, and of each file mutations with one or two pieces put in where a word or a line begins or ends.
fn inputs() -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/h1-request");
    let mut files: Vec<_> = fs::read_dir(directory).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    let mut chance = Chance(1);
    let mut inputs = Vec::new();
    for file in files {
        let bytes = fs::read(file).unwrap();
        inputs.push(bytes.clone());
        for _ in 0..MUTATIONS {
            let mut mutated = bytes.clone();
            for _ in 0..=chance.below(2) {
                let seams: Vec<usize> = (0..mutated.len()).filter(|at| b" :\r\n,;/".contains(&mutated[*at])).collect();
                let at = (seams[chance.below(seams.len())] + chance.below(2)).min(mutated.len());
                let end = (at + [0, 0, 1, 2][chance.below(4)]).min(mutated.len());
                drop(mutated.splice(at..end, PIECES[chance.below(PIECES.len())].to_vec()));
            }
            inputs.push(mutated);
        }
    }
    inputs
}

/// As the agent reads.
fn by_us(bytes: &[u8]) -> Reading {
    let mut reading = Reading::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        let head = match ours::request(rest, FIELDS_MAX) {
            Ok(Some(head)) => head,
            Ok(None) => break,
            Err(error) => {
                reading.rejects = Some(error.to_string());
                break;
            }
        };
        // Empty lines before a request are part of its head.
        let method = rest.trim_ascii_start().split(|byte| *byte == b' ').next().unwrap_or_default();
        let method = String::from_utf8_lossy(method).into_owned();
        rest = &rest[head.bytes..];
        let body = match head.framing {
            Framing::None => Some(Vec::new()),
            Framing::Length(length) => {
                usize::try_from(length).ok().filter(|length| *length <= rest.len()).map(|length| {
                    let body = rest[..length].to_vec();
                    rest = &rest[length..];
                    body
                })
            }
            Framing::Chunked => match chunks(&mut rest) {
                Ok(body) => body,
                Err(error) => {
                    reading.rejects = Some(error);
                    None
                }
            },
            Framing::UntilClose => unreachable!("no request ends with its connection"),
        };
        let Some(body) = body else { break };
        reading.messages.push(Message { method, body });
        if head.method == Method::Connect || head.websocket || !head.keep_alive {
            reading.ended = true;
            break;
        }
    }
    reading
}

fn chunks(rest: &mut &[u8]) -> Result<Option<Vec<u8>>, String> {
    let (mut decoder, mut body, mut at) = (Decoder::default(), Vec::new(), 0);
    while let Event::Data(range) = decoder.next(rest, &mut at).map_err(|error| error.to_string())? {
        body.extend_from_slice(&rest[range]);
    }
    *rest = &rest[at..];
    Ok(decoder.is_done().then_some(body))
}

/// As hyper reads, which also records what the proxies pass on.
async fn by_hyper<T>(io: T, record: Arc<Mutex<Vec<Message>>>)
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let record = Arc::clone(&record);
        async move {
            let method = request.method().to_string();
            if let Ok(body) = request.into_body().collect().await {
                let body = body.to_bytes().to_vec();
                record.lock().unwrap().push(Message { method, body });
            }
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        }
    });
    let mut server = http1::Builder::new();
    server.half_close(true).timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(10));
    let _ = server.serve_connection(TokioIo::new(io), service).await;
}

/// Runs futures of this test.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn hyper_reads(bytes: &[u8]) -> Reading {
    let record = Arc::default();
    block_on(async {
        let (near, mut far) = tokio::io::duplex(64 * 1024);
        let server = by_hyper(near, Arc::clone(&record));
        let client = async {
            let _ = far.write_all(bytes).await;
            let _ = far.shutdown().await;
            let _ = far.read_to_end(&mut Vec::new()).await;
        };
        tokio::join!(server, client);
    });
    let messages = std::mem::take(&mut *record.lock().unwrap());
    Reading { messages, ..Reading::default() }
}

/// A server on loopback that records every request that reaches it.
fn recorder() -> (SocketAddr, Arc<Mutex<Vec<Message>>>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let record: Arc<Mutex<Vec<Message>>> = Arc::default();
    let kept = Arc::clone(&record);
    thread::spawn(move || {
        block_on(tokio::task::LocalSet::new().run_until(async move {
            listener.set_nonblocking(true).unwrap();
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                tokio::task::spawn_local(by_hyper(stream, Arc::clone(&kept)));
            }
        }));
    });
    (address, record)
}

/// What a proxy passes on of each input.
fn proxy_reads(proxy: SocketAddr, record: &Mutex<Vec<Message>>, inputs: &[Vec<u8>]) -> Vec<Reading> {
    let read = |bytes: &Vec<u8>| {
        let mut stream = TcpStream::connect(proxy).unwrap();
        stream.set_read_timeout(Some(wait::soon())).unwrap();
        // It may have rejected the first bytes before the last were written.
        let _ = stream.write_all(bytes).and_then(|()| stream.shutdown(Shutdown::Write));
        let _ = stream.read_to_end(&mut Vec::new());
        Reading { messages: std::mem::take(&mut *record.lock().unwrap()), ..Reading::default() }
    };
    inputs.iter().map(read).collect()
}

/// A proxy that runs until it is dropped.
struct Proxy {
    address: SocketAddr,
    process: Process,
    _directory: TempDir,
}

impl Proxy {
    fn start(program: &str, arguments: &[&str], config: impl Fn(SocketAddr, &str) -> String) -> Self {
        let (directory, address) = (TempDir::new().unwrap(), Block::take().next());
        let path = directory.path().to_str().unwrap();
        let file = directory.path().join("config");
        fs::write(&file, config(address, path)).unwrap();
        let mut command = Command::new(program);
        command.args(arguments).arg(&file).current_dir(path);
        let process = Process::spawn(Room::default(), command);
        wait::until(program, wait::SOON, || TcpStream::connect(address).is_ok());
        Self { address, process, _directory: directory }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.process.signal(nix::sys::signal::Signal::SIGTERM);
        wait::until("the proxy to end", wait::SOON, || self.process.ended().is_some());
    }
}

fn nginx_reads(inputs: &[Vec<u8>]) -> Vec<Reading> {
    let (server, record) = recorder();
    let nginx = Proxy::start("nginx", &["-e", "error.log", "-p", ".", "-c"], |address, directory| {
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|name| format!("{name}_temp_path {directory}/{name};"))
            .collect();
        format!(
            "daemon off; worker_processes 1; pid {directory}/pid; user root; events {{ worker_connections 256; }}
             http {{ access_log off; {temporary} server {{ listen {address}; keepalive_timeout 10s;
               location / {{ proxy_pass http://{server}; proxy_http_version 1.1; proxy_ignore_client_abort on; }} }} }}"
        )
    });
    proxy_reads(nginx.address, &record, inputs)
}

fn haproxy_reads(inputs: &[Vec<u8>]) -> Vec<Reading> {
    let (server, record) = recorder();
    let haproxy = Proxy::start("haproxy", &["-db", "-f"], |address, _| {
        format!(
            "defaults\n  mode http\n  timeout client 5s\n  timeout connect 5s\n  timeout server 5s\n  retries 0\n\
             frontend f\n  bind {address}\n  default_backend b\nbackend b\n  http-reuse never\n  server s {server}\n"
        )
    });
    proxy_reads(haproxy.address, &record, inputs)
}

/// h11's server, which is told that each request was answered.
const H11: &str = r#"
import sys, h11
for line in sys.stdin:
    connection, found, method, body = h11.Connection(h11.SERVER), [], None, b""
    try:
        connection.receive_data(bytes.fromhex(line.strip()))
        connection.receive_data(b"")
    except Exception:
        pass
    while True:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError as error:
            break
        if isinstance(event, h11.Request):
            method, body = event.method.decode(), b""
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            found.append(method + ":" + body.hex())
            try:
                connection.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
                connection.send(h11.EndOfMessage())
                connection.start_next_cycle()
            except h11.LocalProtocolError:
                break
        else:
            break
    print(" ".join(found))
"#;

fn h11_reads(inputs: &[Vec<u8>]) -> Vec<Reading> {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let unhex = |text: &str| {
        (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap()).collect::<Vec<u8>>()
    };
    let mut python = Command::new("/usr/bin/python3")
        .args(["-c", H11])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3");
    let mut input = python.stdin.take().unwrap();
    let lines: String = inputs.iter().map(|bytes| hex(bytes) + "\n").collect();
    let writing = thread::spawn(move || input.write_all(lines.as_bytes()));
    let output = python.wait_with_output().unwrap();
    writing.join().unwrap().unwrap();
    assert!(output.status.success(), "python3-h11 is installed by `cargo xtask setup`");
    let message = |text: &str| {
        let (method, body) = text.split_once(':').unwrap();
        Message { method: method.to_owned(), body: unhex(body) }
    };
    let reading =
        |line: &str| Reading { messages: line.split_whitespace().map(message).collect(), ..Reading::default() };
    String::from_utf8(output.stdout).unwrap().lines().map(reading).collect()
}

#[test]
fn whoever_reads_requests_otherwise_is_known() {
    let inputs = inputs();
    let peers: [(&str, Vec<Reading>); 4] = [
        ("h11", h11_reads(&inputs)),
        ("hyper", inputs.iter().map(|bytes| hyper_reads(bytes)).collect()),
        ("nginx", nginx_reads(&inputs)),
        ("haproxy", haproxy_reads(&inputs)),
    ];
    let (mut differences, mut agreed) = (BTreeSet::new(), 0);
    for (peer, readings) in &peers {
        assert_eq!(readings.len(), inputs.len(), "{peer}");
        for (bytes, theirs) in inputs.iter().zip(readings) {
            let (alike, difference) = compare(&by_us(bytes), theirs);
            agreed += alike;
            differences.extend(difference.map(|what| format!("{peer}: {what}: {}", bytes.escape_ascii())));
        }
    }
    assert!(differences.is_empty(), "differences that nobody has explained: {differences:#?}");
    assert!(agreed > 1_000, "only {agreed} requests were read alike");
}

/// How many requests two readers read alike, and what they differ in, if nobody has explained that.
fn compare(ours: &Reading, theirs: &Reading) -> (usize, Option<String>) {
    let alike = ours.messages.iter().zip(&theirs.messages).take_while(|(ours, theirs)| ours == theirs).count();
    let difference = match (ours.messages.get(alike), theirs.messages.get(alike), &ours.rejects) {
        (_, None, _) => None,
        (Some(ours), Some(theirs), _) => Some(format!("{theirs:?} for {ours:?}")),
        (None, Some(_), None) if ours.ended => None,
        (None, Some(theirs), None) => Some(format!("{theirs:?}, where we wait for more")),
        (None, Some(_), Some(why)) => {
            (!LENIENT.iter().any(|(known, ..)| known == why)).then(|| format!("accepts what we reject: {why}"))
        }
    };
    (alike, difference)
}
