//! The client and the listener of the `connect` scenario.

use std::{
    io::{BufRead, Write, stdin, stdout},
    net::{SocketAddr, TcpListener},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use super::{
    part::{self, Worker},
    process::{Place, Process},
};

/// Connections of one batch that count, after those that only warm the path.
const BATCH: usize = 50;
const WARM: usize = 5;
/// Before each batch: the listeners' side empties its queue.
const PAUSE: Duration = Duration::from_millis(2);

/// Reads an address a line, connects to it a batch of times, and prints the nanoseconds of each.
pub fn dial() -> Result<()> {
    let mut out = stdout().lock();
    for line in stdin().lock().lines() {
        let address: SocketAddr = line?.parse()?;
        thread::sleep(PAUSE);
        let mut nanos = Vec::with_capacity(BATCH);
        for turn in 0..WARM + BATCH {
            let took = connect(address)?;
            if turn >= WARM {
                nanos.push(took.as_nanos().to_string());
            }
        }
        writeln!(out, "{}", nanos.join(" "))?;
        out.flush()?;
    }
    Ok(())
}

/// Only `connect()` itself is timed. The reset instead of a FIN leaves nothing in TIME_WAIT, so that ports do not run out.
fn connect(address: SocketAddr) -> Result<Duration> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_linger(Some(Duration::ZERO))?;
    let address = address.into();
    let start = Instant::now();
    let connected = socket.connect(&address);
    let took = start.elapsed();
    connected?;
    Ok(took)
}

/// Accepts, and closes at once.
pub fn accept(listener: &TcpListener) -> Result<()> {
    loop {
        // A client that was quicker to reset than we to accept is no reason to end.
        drop(listener.accept());
    }
}

/// A child that connects.
#[derive(Debug)]
pub struct Dialler(Worker);

impl Dialler {
    /// Starts it in its place.
    pub fn start(place: &Place) -> Result<Self> {
        Worker::start("dial", place).map(Self)
    }

    /// Connects one batch; gives the microseconds of each `connect()`.
    pub fn batch(&mut self, address: &str) -> Result<Vec<f64>> {
        let line = self.0.ask(address)?;
        read(&line).with_context(|| format!("connecting to {address}: {line}"))
    }
}

/// Starts the child that accepts.
pub fn listener(place: &Place, address: &str, log: &std::path::Path) -> Result<Process> {
    part::serve(&["accept", address], place, log)
}

fn read(line: &str) -> Result<Vec<f64>> {
    let nanos: Vec<u64> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    ensure!(nanos.len() == BATCH, "{} connections instead of {BATCH}", nanos.len());
    Ok(nanos.into_iter().map(|nanos| nanos as f64 / 1000.0).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_batch_is_an_error() {
        let line = ["1500"; BATCH].join(" ");
        assert_eq!(read(&line).unwrap(), vec![1.5; BATCH]);
        assert!(read("1500 1500").is_err());
        assert!(read("refused").is_err());
    }

    #[test]
    fn connect_is_timed_against_a_listener() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(connect(listener.local_addr().unwrap()).unwrap() > Duration::ZERO);
    }
}
