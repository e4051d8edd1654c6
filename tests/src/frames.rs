//! One side of an HTTP/2 connection, frame by frame: what a library would never send can be sent.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
};

/// Kinds of frames (RFC 9113 section 6).
pub mod kind {
    /// DATA.
    pub const DATA: u8 = 0;
    /// HEADERS.
    pub const HEADERS: u8 = 1;
    /// PRIORITY.
    pub const PRIORITY: u8 = 2;
    /// RST_STREAM.
    pub const RST_STREAM: u8 = 3;
    /// SETTINGS.
    pub const SETTINGS: u8 = 4;
    /// PING.
    pub const PING: u8 = 6;
    /// GOAWAY.
    pub const GOAWAY: u8 = 7;
    /// WINDOW_UPDATE.
    pub const WINDOW_UPDATE: u8 = 8;
    /// CONTINUATION.
    pub const CONTINUATION: u8 = 9;
}

/// The flag of the last frame of a stream, or of an acknowledgement.
pub const END_STREAM: u8 = 1;
/// The flag of the last frame of a head.
pub const END_HEADERS: u8 = 4;

/// The longest frame that everybody takes.
const FRAME_BYTES: usize = 16_384;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its kind.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// The stream's id; 0: the connection.
    pub stream: u32,
    /// What is in it.
    pub payload: Vec<u8>,
}

impl Frame {
    /// The number at this place of the payload: a code, a window, the last stream's id.
    pub fn number(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.payload[at..at + 4].try_into().expect("four bytes"))
    }

    /// Whether it ends its stream.
    pub fn ends_stream(&self) -> bool {
        matches!(self.kind, kind::DATA | kind::HEADERS) && self.flags & END_STREAM != 0
    }
}

/// The bytes of a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A head as literals (RFC 7541 section 6.2.2).
pub fn head(fields: &[(&str, &str)]) -> Vec<u8> {
    let literal = |text: &str| [&length(text.len()), text.as_bytes()].concat();
    fields.iter().flat_map(|(name, value)| [vec![0], literal(name), literal(value)].concat()).collect()
}

/// A number behind one bit (RFC 7541 section 5.1).
fn length(number: usize) -> Vec<u8> {
    let Some(mut rest) = number.checked_sub(0x7f) else { return vec![number as u8] };
    let mut bytes = vec![0x7f];
    while rest >= 0x80 {
        bytes.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    bytes.push(rest as u8);
    bytes
}

/// The bytes of a head in as many frames as it takes.
pub fn heads(flags: u8, stream: u32, block: &[u8]) -> Vec<u8> {
    let mut frames = Vec::new();
    let pieces = block.chunks(FRAME_BYTES);
    let last = pieces.len() - 1;
    for (at, piece) in pieces.enumerate() {
        let end = if at == last { END_HEADERS } else { 0 };
        let (kind, flags) = if at == 0 { (kind::HEADERS, flags) } else { (kind::CONTINUATION, 0) };
        frames.extend(frame(kind, flags | end, stream, piece));
    }
    frames
}

/// The head of a request for a path.
pub fn request(method: &str, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let pseudo = [(":method", method), (":scheme", "http"), (":authority", "test"), (":path", path)];
    head(&[&pseudo, more].concat())
}

/// One side of a connection.
#[derive(Debug)]
pub struct Peer(TcpStream);

impl Peer {
    /// A client, whose preface and settings are sent.
    pub fn client(mut stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.write_all(PREFACE)?;
        let mut peer = Self(stream);
        peer.send(kind::SETTINGS, 0, 0, &[])?;
        Ok(peer)
    }

    /// A server, once the client's preface has come.
    pub fn server(stream: &TcpStream) -> io::Result<Self> {
        let mut stream = stream.try_clone()?;
        stream.set_nodelay(true)?;
        stream.read_exact(&mut [0; PREFACE.len()])?;
        let mut peer = Self(stream);
        peer.send(kind::SETTINGS, 0, 0, &[])?;
        Ok(peer)
    }

    /// Sends a frame.
    pub fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
        self.send_bytes(&frame(kind, flags, stream, payload))
    }

    /// Sends any bytes.
    pub fn send_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    /// The next frame; `None` at the end. Settings and pings are acknowledged.
    pub fn read(&mut self) -> io::Result<Option<Frame>> {
        let mut head = [0; 9];
        match self.0.read_exact(&mut head) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.0.read_exact(&mut payload)?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let frame = Frame { kind: head[3], flags: head[4], stream, payload };
        match frame.kind {
            // Whoever has ended reads no acknowledgement.
            kind::SETTINGS if frame.flags & END_STREAM == 0 => drop(self.send(kind::SETTINGS, END_STREAM, 0, &[])),
            kind::PING if frame.flags & END_STREAM == 0 => drop(self.send(kind::PING, END_STREAM, 0, &frame.payload)),
            _ => {}
        }
        Ok(Some(frame))
    }

    /// The next frame of a kind; panics when the connection ends before it.
    #[track_caller]
    pub fn until(&mut self, kind: u8) -> Frame {
        loop {
            match self.read() {
                Ok(Some(frame)) if frame.kind == kind => return frame,
                Ok(Some(_)) => {}
                end => panic!("no frame of kind {kind}: {end:?}"),
            }
        }
    }
}
