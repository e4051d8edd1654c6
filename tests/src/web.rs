//! An HTTP/1.1 endpoint that says its name, counts what it is asked and can be held in the middle of an answer.

use std::{
    collections::HashMap,
    fmt::Write as _,
    io::{self, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::{
    answer::{Head, read_body, read_head},
    origin::Origin,
    patience,
};

/// A gate that nobody opens opens by itself after this: a failed test must end.
const GATE_TIME_MAX: Duration = Duration::from_secs(30);

/// What its connections share with the test.
#[derive(Debug, Default)]
struct Shared {
    requests: AtomicUsize,
    last: Mutex<Option<(String, Vec<u8>)>>,
    said: Mutex<HashMap<String, Said>>,
    waiting: AtomicUsize,
    open: Mutex<bool>,
    opened: Condvar,
}

/// What is answered for a path that a test has words for.
#[derive(Clone, Debug, Default)]
struct Said {
    status: u16,
    fields: String,
    body: String,
    /// Whether it waits at the gate before it is answered at all.
    waits: bool,
    /// How often it was asked for.
    asked: usize,
}

/// The endpoint. Every answer carries `X-Origin` (its name), `X-Connection` (which of its connections) and `X-Serial` (which request on it).
///
/// | path | answer |
/// |---|---|
/// | `/` | its name |
/// | `/bytes/N`, `/chunked/N` | N bytes, by length or chunked |
/// | `/until-close/N` | N bytes that end with the connection |
/// | `/echo`, `/echo-chunked` | the request's body |
/// | `/request` | the request's head as it arrived |
/// | `/status/N` | that status and an empty body |
/// | `/gate` | the first half of 1000 bytes, and the rest when the gate is opened |
/// | `/close` | its name, with `Connection: close` |
/// | `/upgrade` | 101, and from then on whatever it is sent |
/// | `/cut` | half of the promised bytes, then the end of the connection |
/// | what [`Web::say`] was told | that; 304 to who has its tag already |
#[derive(Debug)]
pub struct Web {
    origin: Origin,
    shared: Arc<Shared>,
}

impl Web {
    /// Starts it on a listener.
    pub fn start(listener: TcpListener, name: &str) -> Self {
        let shared = Arc::new(Shared::default());
        let (name, theirs) = (name.to_owned(), Arc::clone(&shared));
        let origin = Origin::start(listener, move |stream, serial| converse(stream, &name, serial, &theirs));
        Self { origin, shared }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.origin.address()
    }

    /// How many connections it has accepted.
    pub fn connections(&self) -> usize {
        self.origin.accepted()
    }

    /// How many of its connections are open.
    pub fn open_connections(&self) -> usize {
        self.origin.open()
    }

    /// How many requests it has read whole.
    pub fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::SeqCst)
    }

    /// The request that it read last: its head as it arrived, and its body.
    pub fn last(&self) -> Option<(String, Vec<u8>)> {
        self.shared.last.lock().expect("no thread panics with it").clone()
    }

    /// Answers a path with this from now on: fields are lines, without an end.
    pub fn say(&self, path: &str, status: u16, fields: &str, body: &str) {
        self.set(path, Said { status, fields: fields.to_owned(), body: body.to_owned(), ..Said::default() });
    }

    /// As [`Web::say`], but the answer waits at the gate.
    pub fn say_gated(&self, path: &str, status: u16, fields: &str, body: &str) {
        let said = Said { status, fields: fields.to_owned(), body: body.to_owned(), waits: true, asked: 0 };
        self.set(path, said);
    }

    fn set(&self, path: &str, said: Said) {
        let mut all = self.shared.said.lock().expect("no thread panics with it");
        let asked = all.get(path).map_or(0, |said| said.asked);
        all.insert(path.to_owned(), Said { asked, ..said });
    }

    /// How often a path was asked for that it has words for.
    pub fn asked(&self, path: &str) -> usize {
        self.shared.said.lock().expect("no thread panics with it").get(path).map_or(0, |said| said.asked)
    }

    /// How many answers wait at the gate.
    pub fn waiting(&self) -> usize {
        self.shared.waiting.load(Ordering::SeqCst)
    }

    /// Lets every answer at the gate go on.
    pub fn open_gate(&self) {
        *self.shared.open.lock().expect("no thread panics with it") = true;
        self.shared.opened.notify_all();
    }

    /// Dies: its connections end and its address refuses new ones.
    pub fn die(self) {}
}

/// Bytes that a body consists of: a pattern in which a lost or doubled piece shows.
pub fn pattern(length: usize) -> Vec<u8> {
    const PIECE: usize = 4096;
    // Copied in pieces, not counted byte by byte: of 64 MiB that takes an emulated processor minutes. Each piece begins with its number.
    let piece: Vec<u8> = (0..PIECE).map(|index| (index % 251) as u8).collect();
    let mut bytes = Vec::with_capacity(length + PIECE);
    for number in 0..length.div_ceil(PIECE) {
        bytes.extend_from_slice(&number.to_be_bytes());
        bytes.extend_from_slice(&piece[size_of::<usize>()..]);
    }
    bytes.truncate(length);
    bytes
}

fn converse(stream: &TcpStream, name: &str, connection: usize, shared: &Shared) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut serial = 0;
    while let Some(head) = read_head(&mut reader)? {
        if head.get("expect").is_some_and(|expectation| expectation.eq_ignore_ascii_case("100-continue")) {
            (&*stream).write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let body = read_body(&mut reader, &head, false)?;
        *shared.last.lock().expect("no thread panics with it") = Some((describe(&head), body.clone()));
        shared.requests.fetch_add(1, Ordering::SeqCst);
        let own = format!("X-Origin: {name}\r\nX-Connection: {connection}\r\nX-Serial: {serial}\r\n");
        if !answer(stream, &head, body, &own, name, shared)? || !head.keeps_alive() {
            return Ok(());
        }
        serial += 1;
    }
    Ok(())
}

/// Answers one request; says whether the connection goes on.
fn answer(stream: &TcpStream, head: &Head, body: Vec<u8>, own: &str, name: &str, shared: &Shared) -> io::Result<bool> {
    let path = head.word(1);
    let name_of_path = path.strip_prefix('/').unwrap_or("*");
    let (verb, argument) = name_of_path.split_once('/').unwrap_or((name_of_path, ""));
    let number = argument.parse().unwrap_or(0);
    let silent = head.word(0) == "HEAD";
    let said = shared.said.lock().expect("no thread panics with it").get_mut(path).map(|said| {
        said.asked += 1;
        said.clone()
    });
    if let Some(said) = said {
        say(stream, own, head, &said, shared)?;
        return Ok(true);
    }
    match verb {
        "" => by_length(stream, own, name.as_bytes(), silent)?,
        "bytes" => by_length(stream, own, &pattern(number), silent)?,
        "chunked" => chunked(stream, own, &pattern(number))?,
        "echo" => by_length(stream, own, &body, silent)?,
        "echo-chunked" => chunked(stream, own, &body)?,
        "request" => by_length(stream, own, describe(head).as_bytes(), silent)?,
        "status" => write(stream, &format!("HTTP/1.1 {number} Asked For\r\n{own}{}\r\n", empty_body(number)))?,
        "gate" => gated(stream, own, shared)?,
        "until-close" => {
            write(stream, &format!("HTTP/1.1 200 OK\r\n{own}Connection: close\r\n\r\n"))?;
            (&*stream).write_all(&pattern(number))?;
            return Ok(false);
        }
        "upgrade" => {
            write(
                stream,
                &format!("HTTP/1.1 101 Switching Protocols\r\n{own}Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"),
            )?;
            io::copy(&mut &*stream, &mut &*stream)?;
            return Ok(false);
        }
        "close" => {
            by_length(stream, &format!("{own}Connection: close\r\n"), name.as_bytes(), silent)?;
            return Ok(false);
        }
        "cut" => {
            write(stream, &format!("HTTP/1.1 200 OK\r\n{own}Content-Length: 1000\r\n\r\n{}", "c".repeat(500)))?;
            return Ok(false);
        }
        _ => write(stream, &format!("HTTP/1.1 404 Not Found\r\n{own}Content-Length: 0\r\n\r\n"))?,
    }
    Ok(true)
}

fn say(stream: &TcpStream, own: &str, head: &Head, said: &Said, shared: &Shared) -> io::Result<()> {
    if said.waits {
        wait_at_gate(shared);
    }
    let fields: String = said.fields.lines().map(|line| format!("{line}\r\n")).collect();
    let tag = said.fields.lines().find_map(|line| line.strip_prefix("etag: "));
    let has_it = tag.is_some_and(|tag| head.get("if-none-match").is_some_and(|known| known.contains(tag)));
    let (status, body) = if has_it { (304, "") } else { (said.status, said.body.as_str()) };
    let length = if has_it { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let body = if head.word(0) == "HEAD" { "" } else { body };
    write(stream, &format!("HTTP/1.1 {status} Said\r\n{own}{fields}{length}\r\n{body}"))
}

/// 204 and 304 have no body and need no length.
fn empty_body(status: usize) -> &'static str {
    if status == 204 || status == 304 { "" } else { "Content-Length: 0\r\n" }
}

fn write(mut stream: &TcpStream, text: &str) -> io::Result<()> {
    stream.write_all(text.as_bytes())
}

fn by_length(mut stream: &TcpStream, own: &str, body: &[u8], silent: bool) -> io::Result<()> {
    let mut message = format!("HTTP/1.1 200 OK\r\n{own}Content-Length: {}\r\n\r\n", body.len()).into_bytes();
    if !silent {
        message.extend_from_slice(body);
    }
    stream.write_all(&message)
}

fn chunked(mut stream: &TcpStream, own: &str, body: &[u8]) -> io::Result<()> {
    write(stream, &format!("HTTP/1.1 200 OK\r\n{own}Transfer-Encoding: chunked\r\n\r\n"))?;
    // Sizes that are no multiple of anything, so that chunks and reads never line up.
    for chunk in body.chunks(7_919) {
        let mut message = format!("{:x}\r\n", chunk.len()).into_bytes();
        message.extend_from_slice(chunk);
        message.extend_from_slice(b"\r\n");
        stream.write_all(&message)?;
    }
    stream.write_all(b"0\r\n\r\n")
}

fn gated(stream: &TcpStream, own: &str, shared: &Shared) -> io::Result<()> {
    write(stream, &format!("HTTP/1.1 200 OK\r\n{own}Content-Length: 1000\r\n\r\n{}", "a".repeat(500)))?;
    wait_at_gate(shared);
    write(stream, &"b".repeat(500))
}

fn wait_at_gate(shared: &Shared) {
    shared.waiting.fetch_add(1, Ordering::SeqCst);
    let open = shared.open.lock().expect("no thread panics with it");
    drop(shared.opened.wait_timeout_while(open, patience::deadline(GATE_TIME_MAX), |open| !*open));
    shared.waiting.fetch_sub(1, Ordering::SeqCst);
}

fn describe(head: &Head) -> String {
    let mut text = format!("{}\n", head.first);
    for (name, value) in &head.headers {
        let _ = writeln!(text, "{name}: {value}");
    }
    text
}
