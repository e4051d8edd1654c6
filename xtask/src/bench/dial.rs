//! The client and the listener of the `connect` scenario: children of the benchmark, started from its own binary, so that they stand in
//! a cgroup and on a CPU of their own.

use std::{
    env,
    io::{BufRead, BufReader, Write, stdin, stdout},
    net::{SocketAddr, TcpListener},
    process::{ChildStdin, ChildStdout, Command},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use super::process::{Place, Process};
use crate::root;

/// Connections of one batch that count, after those that only warm the path.
const BATCH: usize = 50;
const WARM: usize = 5;
/// Before each batch: the listeners' side empties its queue.
const PAUSE: Duration = Duration::from_millis(2);
const BACKLOG: i32 = 4096;

/// What the hidden options of `bench` ask for.
pub enum Part {
    /// Reads an address a line, connects to it a batch of times, and prints the nanoseconds of each.
    Dial,
    /// Accepts at this address and closes at once.
    Accept(SocketAddr),
}

impl Part {
    /// Plays it until standard input ends, or for ever.
    pub fn play(self) -> Result<()> {
        match self {
            Self::Dial => dial(),
            Self::Accept(address) => accept(address),
        }
    }
}

fn dial() -> Result<()> {
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

fn accept(address: SocketAddr) -> Result<()> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    let listener = TcpListener::from(socket);
    loop {
        // A client that was quicker to reset than we to accept is no reason to end.
        drop(listener.accept());
    }
}

/// A child that connects.
#[derive(Debug)]
pub struct Dialler {
    // Its end of the pipes goes first: the child ends when its input does.
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    process: Process,
}

impl Dialler {
    /// Starts it in its place.
    pub fn start(place: &Place) -> Result<Self> {
        let (process, orders, answers) = Process::converse(itself()?.arg("--dial"), place)?;
        Ok(Self { orders, answers: BufReader::new(answers), process })
    }

    /// Connects one batch; gives the microseconds of each `connect()`.
    pub fn batch(&mut self, address: &str) -> Result<Vec<f64>> {
        writeln!(self.orders, "{address}")?;
        self.orders.flush()?;
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            self.process.check_alive()?;
            bail!("the dialling child has closed its output");
        }
        read(&line).with_context(|| format!("connecting to {address}: {line}"))
    }
}

/// Starts the child that accepts.
pub fn listener(place: &Place, address: &str, log: &std::path::Path) -> Result<Process> {
    Process::serve(itself()?.arg("--accept").arg(address), place, log)
}

fn read(line: &str) -> Result<Vec<f64>> {
    let nanos: Vec<u64> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    ensure!(nanos.len() == BATCH, "{} connections instead of {BATCH}", nanos.len());
    Ok(nanos.into_iter().map(|nanos| nanos as f64 / 1000.0).collect())
}

/// This program's `bench`, which is not to set anything up again.
fn itself() -> Result<Command> {
    let mut command = Command::new(env::current_exe().context("cannot find this program's own file")?);
    command.arg("bench").env(root::PREPARED, "1");
    Ok(command)
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
