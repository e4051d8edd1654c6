//! An endpoint of the bad night: so many places, each of which takes a request for so long; whoever else comes stands in a line. On order it
//! dies, becomes slow, fails part of its requests, or is well again.

use std::{
    io::{BufRead, BufReader, Read, Write, stdin, stdout},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::super::part;

const WELL: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const FAILED: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";

/// What the connections share.
struct Endpoint {
    places: Mutex<usize>,
    left: Condvar,
    takes: Duration,
    /// What it takes longer, in milliseconds.
    slow_ms: AtomicU64,
    /// Of a hundred requests.
    fails_percent: AtomicU64,
    asked: AtomicU64,
    is_dead: AtomicBool,
    streams: Mutex<Vec<TcpStream>>,
}

/// Serves at `address` until the input ends; each line of it is an order: `well`, `die`, `slow MS`, `fail PERCENT`, or `asked`, which is
/// answered with how many requests came.
pub fn serve(address: &str, places: &str, takes_ms: &str) -> Result<()> {
    let at: SocketAddr = address.parse()?;
    let endpoint = Arc::new(Endpoint {
        places: Mutex::new(places.parse()?),
        left: Condvar::new(),
        takes: Duration::from_millis(takes_ms.parse()?),
        slow_ms: AtomicU64::default(),
        fails_percent: AtomicU64::default(),
        asked: AtomicU64::default(),
        is_dead: AtomicBool::new(false),
        streams: Mutex::default(),
    });
    let mut accepting = endpoint.accept(part::listen(address)?);
    for line in stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["well"] => {
                endpoint.slow_ms.store(0, Relaxed);
                endpoint.fails_percent.store(0, Relaxed);
                if endpoint.is_dead.swap(false, Relaxed) {
                    accepting = endpoint.accept(part::listen(address)?);
                }
            }
            ["slow", ms] => endpoint.slow_ms.store(ms.parse()?, Relaxed),
            ["fail", percent] => endpoint.fails_percent.store(percent.parse()?, Relaxed),
            ["die"] => {
                endpoint.is_dead.store(true, Relaxed);
                // Whoever accepts looks up when somebody comes.
                drop(TcpStream::connect(at));
                accepting.join().map_err(|_| anyhow::anyhow!("the listener's thread panicked"))?;
                accepting = thread::spawn(|| {});
                held(&endpoint.streams).drain(..).for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
            }
            ["asked"] => {}
            _ => bail!("there is no such order: {line}"),
        }
        println!("{}", endpoint.asked.load(Relaxed));
        stdout().flush()?;
    }
    Ok(())
}

impl Endpoint {
    fn accept(self: &Arc<Self>, listener: TcpListener) -> thread::JoinHandle<()> {
        let endpoint = Arc::clone(self);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if endpoint.is_dead.load(Relaxed) {
                    return;
                }
                if let Ok(copy) = stream.try_clone() {
                    let mut streams = held(&endpoint.streams);
                    streams.retain(|stream| stream.peer_addr().is_ok());
                    streams.push(copy);
                }
                let endpoint = Arc::clone(&endpoint);
                thread::spawn(move || endpoint.answer(stream));
            }
        })
    }

    fn answer(&self, mut stream: TcpStream) -> Result<()> {
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream.try_clone()?);
        while read_head(&mut reader)? {
            let number = self.asked.fetch_add(1, Relaxed);
            // Spread evenly: of two in a row one.
            let fails = number * self.fails_percent.load(Relaxed) / 100
                != (number + 1) * self.fails_percent.load(Relaxed) / 100;
            if fails {
                stream.write_all(FAILED)?;
                continue;
            }
            self.work();
            stream.write_all(WELL)?;
        }
        Ok(())
    }

    fn work(&self) {
        let free = self.left.wait_while(held(&self.places), |free| *free == 0);
        *free.unwrap_or_else(PoisonError::into_inner) -= 1;
        thread::sleep(self.takes + Duration::from_millis(self.slow_ms.load(Relaxed)));
        *held(&self.places) += 1;
        self.left.notify_one();
    }
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads a request without a body; false at the end of the connection.
fn read_head(reader: &mut impl BufRead) -> Result<bool> {
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = reader.by_ref().take(64 * 1024).read_until(b'\n', &mut line).context("a head")?;
        match line.as_slice() {
            _ if read == 0 => return Ok(false),
            b"\r\n" => return Ok(true),
            _ => {}
        }
    }
}
