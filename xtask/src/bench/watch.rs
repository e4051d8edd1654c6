//! The client and the servers of the `scale` scenario: who answers at a service's address, and since when. A server says its name to
//! whoever connects; the client dials again and again until the name it waits for has answered.

use std::{
    io::{BufRead, Read, Write, stdin, stdout},
    net::{SocketAddr, TcpListener},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::time::{ClockId, clock_gettime};
use socket2::{Domain, Protocol, Socket, Type};

use super::{
    part::{self, Worker},
    process::{Place, Process},
};

/// Connects at once, without a pause: a service has ten endpoints, and any of them may be the one that is waited for.
const BURST: usize = 10;
/// Between two bursts: little against what is measured, and leaves the CPU to those who are measured.
const PAUSE: Duration = Duration::from_micros(500);
/// A change that does not come in this many bursts does not come: some 30 s.
const BURSTS_MAX: usize = 40_000;

/// Nanoseconds of `CLOCK_MONOTONIC`, which is the same for parent and child.
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Reads orders, `ADDRESS NAME`, and prints for each when that name first answered at that address, as of [`now`].
pub fn watch() -> Result<()> {
    for line in stdin().lock().lines() {
        let line = line?;
        let (address, name) = line.split_once(' ').context("ADDRESS NAME")?;
        println!("{}", await_name(address.parse()?, name)?);
        stdout().flush()?;
    }
    Ok(())
}

fn await_name(address: SocketAddr, name: &str) -> Result<u64> {
    for _ in 0..BURSTS_MAX {
        for _ in 0..BURST {
            // Until the service is in force nobody listens at its address.
            if ask(address).is_ok_and(|answer| answer == name) {
                return Ok(now());
            }
        }
        thread::sleep(PAUSE);
    }
    bail!("{name} never answered at {address}")
}

fn ask(address: SocketAddr) -> Result<String> {
    let mut socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Nothing stays in TIME_WAIT: ports do not run out.
    socket.set_linger(Some(Duration::ZERO))?;
    socket.connect(&address.into())?;
    let mut name = [0; 16];
    let length = socket.read(&mut name)?;
    Ok(String::from_utf8_lossy(&name[..length]).into_owned())
}

/// Says a name to whoever connects.
pub fn say(listener: &TcpListener, name: &str) -> Result<()> {
    ensure!(!name.is_empty(), "a server without a name");
    loop {
        if let Ok((mut client, _)) = listener.accept() {
            let _ = client.write_all(name.as_bytes());
        }
    }
}

/// A child that waits for names.
#[derive(Debug)]
pub struct Watcher(Worker);

impl Watcher {
    /// Starts it in its place.
    pub fn start(place: &Place) -> Result<Self> {
        Worker::start("watch", place).map(Self)
    }

    /// Does something, and gives the milliseconds until `name` answers at `address`.
    pub fn time(&mut self, address: &str, name: &str, act: impl FnOnce() -> Result<()>) -> Result<f64> {
        self.0.order(&format!("{address} {name}"))?;
        let start = now();
        act()?;
        let answered: u64 = self.0.answer()?.parse()?;
        Ok(answered.saturating_sub(start) as f64 / 1e6)
    }
}

/// Starts a server that says `name`.
pub fn server(place: &Place, address: &str, name: &str, log: &std::path::Path) -> Result<Process> {
    part::serve(&["say", address, name], place, log)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_that_is_waited_for_is_found_and_the_moment_told() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || say(&listener, "a"));
        let before = now();
        let answered = await_name(address, "a").unwrap();
        assert!((before..=now()).contains(&answered));
    }
}
