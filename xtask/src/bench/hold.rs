//! The client of the `idle` scenario: opens connections, asks once on each, and keeps them.

use std::{
    io::{BufRead, Read, Write, stdin, stdout},
    net::TcpStream,
};

use anyhow::{Context, Result, ensure};

use super::{part::Worker, process::Place};

const REQUEST: &[u8] = b"GET /1k HTTP/1.1\r\nHost: idle\r\n\r\n";
const BODY_BYTES: usize = 1024;

/// Reads orders, `ADDRESS COUNT`, and prints for each how many connections are held when all have been answered.
pub fn hold() -> Result<()> {
    let mut held = Vec::new();
    for line in stdin().lock().lines() {
        let line = line?;
        let (address, count) = line.split_once(' ').context("ADDRESS COUNT")?;
        for _ in 0..count.parse()? {
            held.push(ask(address)?);
        }
        println!("{}", held.len());
        stdout().flush()?;
    }
    Ok(())
}

/// A connection on which a request was answered.
fn ask(address: &str) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(REQUEST)?;
    let (mut answer, mut bytes) = ([0; 4096], 0);
    loop {
        let received = stream.read(&mut answer[bytes..])?;
        ensure!(received > 0, "the connection ended within an answer");
        bytes += received;
        if let Some(head) = answer[..bytes].windows(4).position(|window| window == b"\r\n\r\n") {
            ensure!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer[..head]));
            if bytes == head + 4 + BODY_BYTES {
                return Ok(stream);
            }
        }
    }
}

/// A child that keeps connections until it is dropped.
#[derive(Debug)]
pub struct Holder(Worker);

impl Holder {
    /// Starts it in its place.
    pub fn start(place: &Place) -> Result<Self> {
        Worker::start("hold", place).map(Self)
    }

    /// Has it open so many more.
    pub fn hold(&mut self, address: &str, count: u32) -> Result<()> {
        self.0.ask(&format!("{address} {count}")).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread};

    use super::*;

    fn answered(head: &'static str) -> Result<TcpStream> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            stream.read_exact(&mut [0; REQUEST.len()]).unwrap();
            stream.write_all(head.as_bytes()).unwrap();
            stream.write_all(&[b'x'; BODY_BYTES]).unwrap();
        });
        let asked = ask(&address);
        server.join().unwrap();
        asked
    }

    #[test]
    fn a_connection_is_kept_once_its_answer_was_read_whole() {
        assert!(answered("HTTP/1.1 200 OK\r\n\r\n").is_ok());
        assert!(answered("HTTP/1.1 502 Bad Gateway\r\n\r\n").unwrap_err().to_string().contains("502"));
    }
}
