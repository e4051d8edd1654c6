//! HTTP/1.1 messages as a test reads and writes them: plain, strict, and in memory.

use std::{
    io::{self, BufRead, BufReader, Write},
    net::TcpStream,
};

/// A request's or response's first line and headers.
#[derive(Clone, Debug)]
pub struct Head {
    /// Request line or status line.
    pub first: String,
    /// Names in lower case, in the order of the wire.
    pub headers: Vec<(String, String)>,
}

/// A whole response.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Status line and headers.
    pub head: Head,
    /// The body, without its framing.
    pub body: Vec<u8>,
}

impl Head {
    /// The first header of this name (in lower case).
    pub fn get(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// Word `index` of the first line.
    pub fn word(&self, index: usize) -> &str {
        self.first.split(' ').nth(index).unwrap_or_default()
    }

    /// Whether its body is chunked.
    pub fn chunked(&self) -> bool {
        self.get("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"))
    }

    /// Its `Content-Length`.
    pub fn length(&self) -> Option<usize> {
        self.get("content-length").and_then(|length| length.parse().ok())
    }

    /// Whether its connection may carry another message after this one.
    pub fn keeps_alive(&self) -> bool {
        let says = |word: &str| self.get("connection").is_some_and(|value| value.to_ascii_lowercase().contains(word));
        if self.first.contains("HTTP/1.0") { says("keep-alive") } else { !says("close") }
    }
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header of it, or nothing.
    pub fn header(&self, name: &str) -> &str {
        self.head.get(name).unwrap_or_default()
    }
}

/// Reads a head; `None` when the connection ended before it began.
pub fn read_head(reader: &mut impl BufRead) -> io::Result<Option<Head>> {
    let Some(first) = read_line(reader)? else { return Ok(None) };
    let mut headers = Vec::new();
    loop {
        let line = read_line(reader)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        if line.is_empty() {
            return Ok(Some(Head { first, headers }));
        }
        let (name, value) = line.split_once(':').ok_or_else(|| malformed(&line))?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
}

/// Reads a body whose framing stands in its head; without framing it ends with the connection if `until_end`, else it is empty.
pub fn read_body(reader: &mut impl BufRead, head: &Head, until_end: bool) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    if head.chunked() {
        while read_chunk(reader, &mut body)? {}
    } else if let Some(length) = head.length() {
        body.resize(length, 0);
        reader.read_exact(&mut body)?;
    } else if until_end {
        reader.read_to_end(&mut body)?;
    }
    Ok(body)
}

/// Reads one response to a request of this method, interim ones (1xx) skipped.
pub fn read_answer(reader: &mut impl BufRead, method: &str) -> io::Result<Answer> {
    loop {
        let head = read_head(reader)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let status: u16 = head.word(1).parse().map_err(|_| malformed(&head.first))?;
        if (100..200).contains(&status) {
            continue;
        }
        let bodiless = method == "HEAD" || status == 204 || status == 304;
        let body = if bodiless { Vec::new() } else { read_body(reader, &head, true)? };
        return Ok(Answer { status, head, body });
    }
}

/// Writes a request with a `Host`, and a `Content-Length` where there is a body.
pub fn write_request(stream: &mut impl Write, method: &str, path: &str, body: &[u8]) -> io::Result<()> {
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let mut message = format!("{method} {path} HTTP/1.1\r\nHost: test\r\n{length}\r\n").into_bytes();
    message.extend_from_slice(body);
    stream.write_all(&message)
}

/// A client's connection on which requests follow each other.
#[derive(Debug)]
pub struct Session {
    reader: BufReader<TcpStream>,
}

impl Session {
    /// Speaks on a connected stream.
    pub fn on(stream: TcpStream) -> Self {
        Self { reader: BufReader::new(stream) }
    }

    /// Sends a request and reads its answer.
    pub fn call(&mut self, method: &str, path: &str, body: &[u8]) -> io::Result<Answer> {
        write_request(self.reader.get_mut(), method, path, body)?;
        self.read(method)
    }

    /// `GET path`.
    pub fn get(&mut self, path: &str) -> io::Result<Answer> {
        self.call("GET", path, &[])
    }

    /// Writes bytes as they are.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.reader.get_mut().write_all(bytes)
    }

    /// Reads the answer to a request of this method.
    pub fn read(&mut self, method: &str) -> io::Result<Answer> {
        read_answer(&mut self.reader, method)
    }

    /// Whether the other side has ended the connection with nothing left to read.
    pub fn at_end(&mut self) -> io::Result<bool> {
        match self.reader.fill_buf() {
            Ok(bytes) => Ok(bytes.is_empty()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// The connection.
    pub fn stream(&self) -> &TcpStream {
        self.reader.get_ref()
    }
}

/// `GET path` on a connection of its own.
pub fn get(mut stream: TcpStream, path: &str) -> io::Result<Answer> {
    stream.set_read_timeout(Some(crate::wait::soon()))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")?;
    read_answer(&mut BufReader::new(stream), "GET")
}

fn read_line(reader: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    if reader.read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    let line = String::from_utf8_lossy(&line).into_owned();
    line.strip_suffix("\r\n").map(|line| Some(line.to_owned())).ok_or_else(|| malformed(&line))
}

fn read_chunk(reader: &mut impl BufRead, body: &mut Vec<u8>) -> io::Result<bool> {
    let line = read_line(reader)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let size = usize::from_str_radix(line.split(';').next().unwrap_or_default(), 16).map_err(|_| malformed(&line))?;
    if size == 0 {
        // Trailers, up to the empty line.
        while read_line(reader)?.is_some_and(|line| !line.is_empty()) {}
        return Ok(false);
    }
    let start = body.len();
    body.resize(start + size, 0);
    reader.read_exact(&mut body[start..])?;
    let mut end = [0; 2];
    reader.read_exact(&mut end)?;
    if &end == b"\r\n" { Ok(true) } else { Err(malformed("the end of a chunk")) }
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not HTTP: {what:?}"))
}
