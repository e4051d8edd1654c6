//! The client and the server of the `tcp` scenario: messages of 64 bytes back and forth, one at a time, and as many bytes as go through
//! in one direction. One connection each time; the first byte on it says which of the two it is for.

use std::{
    io::{self, BufRead, ErrorKind, Read, Write, stdin, stdout},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use super::{
    part::{self, Worker},
    process::{Place, Process},
    sample::quantile,
};

/// Bytes of a message that goes back and forth.
const MESSAGE: usize = 64;
/// Bytes of one write, and of the buffer of one read, in bulk: what iperf3 takes.
const PIECE: usize = 128 * 1024;
/// Messages that only warm the path.
const WARM: usize = 200;
/// What the server sends back.
const ECHO: u8 = b'e';
/// The server counts, and says at the end how many bytes there were.
const SINK: u8 = b's';

/// Serves for ever, a thread a connection.
pub fn serve(listener: &TcpListener) -> Result<()> {
    loop {
        let (socket, _) = listener.accept()?;
        // A client that breaks off is its own affair: it says so itself.
        thread::spawn(move || drop(serve_one(socket)));
    }
}

fn serve_one(mut socket: TcpStream) -> Result<()> {
    socket.set_nodelay(true)?;
    let mut kind = [0];
    fill(&socket, &mut kind)?;
    match kind[0] {
        ECHO => {
            let mut message = [0; MESSAGE];
            loop {
                fill(&socket, &mut message)?;
                socket.write_all(&message)?;
            }
        }
        SINK => {
            let (mut piece, mut bytes) = (vec![0; PIECE], 0_u64);
            loop {
                match some(&socket, &mut piece)? {
                    0 => break,
                    count => bytes += count as u64,
                }
            }
            Ok(socket.write_all(&bytes.to_le_bytes())?)
        }
        other => bail!("{other} is no kind of connection"),
    }
}

/// Reads something, or 0 bytes at the end. On the shortcut a blocking read may be told to try again, which no ordinary program expects
/// and any robust one does (trap T3).
fn some(mut socket: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match socket.read(buffer) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            read => return read,
        }
    }
}

fn fill(socket: &TcpStream, mut buffer: &mut [u8]) -> io::Result<()> {
    while !buffer.is_empty() {
        match some(socket, buffer)? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            count => buffer = &mut buffer[count..],
        }
    }
    Ok(())
}

/// Reads orders, `echo ADDRESS MILLIS` or `sink ADDRESS MILLIS`, and prints the figures of each.
pub fn drive() -> Result<()> {
    for line in stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let [kind, address, millis] = words[..] else { bail!("{line} is no order") };
        let (address, length) = (address.parse()?, Duration::from_millis(millis.parse()?));
        let figures = match kind {
            "echo" => echo(address, length)?.map(|figure| figure.to_string()).to_vec(),
            _ => sink(address, length)?.map(|figure| figure.to_string()).to_vec(),
        };
        println!("{}", figures.join(" "));
        stdout().flush()?;
    }
    Ok(())
}

fn open(address: SocketAddr, kind: u8) -> Result<TcpStream> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_nodelay(true)?;
    socket.write_all(&[kind])?;
    Ok(socket)
}

/// How many messages, nanoseconds in all, and of the median and of the 99th percentile.
fn echo(address: SocketAddr, length: Duration) -> Result<[u64; 4]> {
    let mut socket = open(address, ECHO)?;
    let (message, mut answer) = ([0x5a; MESSAGE], [0; MESSAGE]);
    let mut turn = || -> Result<()> {
        socket.write_all(&message)?;
        fill(&socket, &mut answer)?;
        ensure!(answer == message, "other bytes came back than were sent");
        Ok(())
    };
    for _ in 0..WARM {
        turn()?;
    }
    let (start, mut nanos) = (Instant::now(), Vec::new());
    let mut last = start;
    while last.duration_since(start) < length {
        turn()?;
        let now = Instant::now();
        nanos.push(now.duration_since(last).as_nanos() as u64);
        last = now;
    }
    nanos.sort_unstable();
    let all = last.duration_since(start).as_nanos() as u64;
    Ok([nanos.len() as u64, all, quantile(&nanos, 0.5), quantile(&nanos, 0.99)])
}

/// How many bytes the server has counted, and in how many nanoseconds.
fn sink(address: SocketAddr, length: Duration) -> Result<[u64; 2]> {
    let mut socket = open(address, SINK)?;
    let (piece, mut sent) = (vec![0x5a; PIECE], 0_u64);
    let start = Instant::now();
    while start.elapsed() < length {
        socket.write_all(&piece)?;
        sent += piece.len() as u64;
    }
    socket.shutdown(Shutdown::Write)?;
    let mut counted = [0; 8];
    fill(&socket, &mut counted)?;
    let took = start.elapsed().as_nanos() as u64;
    let counted = u64::from_le_bytes(counted);
    ensure!(counted == sent, "{sent} bytes were sent, and {counted} arrived");
    Ok([counted, took])
}

/// A child that drives the load.
#[derive(Debug)]
pub struct Driver(Worker);

/// What messages back and forth gave.
#[derive(Clone, Copy, Debug)]
pub struct Echoed {
    /// How many.
    pub messages: u64,
    /// In how many seconds.
    pub seconds: f64,
    /// Median time there and back, in µs.
    pub p50_us: f64,
    /// 99th percentile, in µs.
    pub p99_us: f64,
}

impl Driver {
    /// Starts it in its place.
    pub fn start(place: &Place) -> Result<Self> {
        Worker::start("stream", place).map(Self)
    }

    /// Sends messages back and forth for as long.
    pub fn echo(&mut self, address: &str, length: Duration) -> Result<Echoed> {
        let [messages, nanos, p50, p99] = self.figures("echo", address, length)?;
        let micros = |nanos: u64| nanos as f64 / 1e3;
        Ok(Echoed { messages, seconds: nanos as f64 / 1e9, p50_us: micros(p50), p99_us: micros(p99) })
    }

    /// Sends as many bytes as go through in as long; gives GB and seconds.
    pub fn bulk(&mut self, address: &str, length: Duration) -> Result<(f64, f64)> {
        let [bytes, nanos] = self.figures("sink", address, length)?;
        Ok((bytes as f64 / 1e9, nanos as f64 / 1e9))
    }

    fn figures<const N: usize>(&mut self, kind: &str, address: &str, length: Duration) -> Result<[u64; N]> {
        let line = self.0.ask(&format!("{kind} {address} {}", length.as_millis()))?;
        let figures: Vec<u64> = line.split(' ').map(str::parse).collect::<Result<_, _>>()?;
        figures.try_into().ok().with_context(|| format!("{kind}: {line} are not {N} figures"))
    }
}

/// Starts the server.
pub fn server(place: &Place, address: &str, log: &std::path::Path) -> Result<Process> {
    part::serve(&["serve", address], place, log)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || serve(&listener));
        address
    }

    #[test]
    fn messages_go_back_and_forth_and_are_timed() {
        let [messages, nanos, p50, p99] = echo(server(), Duration::from_millis(20)).unwrap();
        assert!(messages > 0 && nanos >= 20_000_000 && 0 < p50 && p50 <= p99 && p99 < nanos);
    }

    #[test]
    fn every_byte_of_the_bulk_is_counted_at_the_other_end() {
        let [bytes, nanos] = sink(server(), Duration::from_millis(20)).unwrap();
        assert!(bytes >= PIECE as u64 && bytes.is_multiple_of(PIECE as u64) && nanos >= 20_000_000);
    }
}
