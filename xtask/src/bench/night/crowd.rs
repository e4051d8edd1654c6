//! The clients of the bad night: so many connections, and together so many requests a second, whether the answers come or not.

use std::{
    io::{BufRead, BufReader, Read, Write, stdin, stdout},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value as Json, json};

/// Who hears nothing for so long has heard nothing.
const PATIENCE: Duration = Duration::from_secs(2);

/// What became of the requests of a stretch of time.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// Those that were answered well, each by how long it took.
    pub well: Vec<Duration>,
    /// Those that were told that there is no room: 429.
    pub refused: u64,
    /// All others: other answers, and none.
    pub failed: u64,
    /// Of each second: well, refused, failed.
    pub seconds: Vec<[u64; 3]>,
}

impl Told {
    /// Requests that were let in.
    pub fn admitted(&self) -> u64 {
        self.well.len() as u64 + self.failed
    }

    /// Of those that were answered well, so many of a hundred took no longer.
    pub fn percentile(&self, percent: f64) -> Duration {
        let at = (self.well.len() as f64 * percent / 100.0).ceil() as usize;
        self.well.get(at.saturating_sub(1).min(self.well.len().saturating_sub(1))).copied().unwrap_or_default()
    }

    fn count(&mut self, second: usize, became: Became) {
        if self.seconds.len() <= second {
            self.seconds.resize(second + 1, [0; 3]);
        }
        let index = match became {
            Became::Well(took) => {
                self.well.push(took);
                0
            }
            Became::Refused => {
                self.refused += 1;
                1
            }
            Became::Failed => {
                self.failed += 1;
                2
            }
        };
        self.seconds[second][index] += 1;
    }

    fn join(mut self, other: Self) -> Self {
        self.well.extend(other.well);
        self.refused += other.refused;
        self.failed += other.failed;
        let length = self.seconds.len().max(other.seconds.len());
        self.seconds.resize(length, [0; 3]);
        for (sum, more) in self.seconds.iter_mut().zip(other.seconds) {
            (0..3).for_each(|index| sum[index] += more[index]);
        }
        self
    }

    fn write(mut self) -> Json {
        self.well.sort_unstable();
        let micros: Vec<u64> = self.well.iter().map(|took| took.as_micros() as u64).collect();
        json!({ "well_us": micros, "refused": self.refused, "failed": self.failed, "seconds": self.seconds })
    }

    /// As the child wrote it.
    pub fn read(line: &str) -> Result<Self> {
        let said: Json = serde_json::from_str(line).context("the clients' report")?;
        let number = |name: &str| said[name].as_u64().with_context(|| format!("the clients' report has no {name}"));
        let list = |name: &str| said[name].as_array().cloned().with_context(|| format!("there is no {name}"));
        let micros = list("well_us")?;
        let seconds = list("seconds")?;
        Ok(Self {
            well: micros.iter().filter_map(Json::as_u64).map(Duration::from_micros).collect(),
            refused: number("refused")?,
            failed: number("failed")?,
            seconds: seconds.iter().map(|of| [0, 1, 2].map(|index| of[index].as_u64().unwrap_or(0))).collect(),
        })
    }
}

enum Became {
    Well(Duration),
    Refused,
    Failed,
}

/// Reads orders, `RATE SECONDS CLIENTS ADDRESS…`, and prints for each what became of the requests. Of several addresses a client takes one
/// after the other.
pub fn drive() -> Result<()> {
    for line in stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        ensure!(words.len() >= 4, "RATE SECONDS CLIENTS ADDRESS…");
        let (rate, seconds, clients) = (words[0].parse()?, words[1].parse()?, words[2].parse()?);
        let targets = words[3..].iter().map(|word| word.parse()).collect::<Result<Vec<SocketAddr>, _>>()?;
        println!("{}", ask(rate, Duration::from_secs(seconds), clients, &targets).write());
        stdout().flush()?;
    }
    Ok(())
}

fn ask(rate: u32, length: Duration, clients: u32, targets: &[SocketAddr]) -> Told {
    let (pace, began, turn) = (Duration::from_secs(1) * clients / rate.max(1), Instant::now(), AtomicUsize::new(0));
    let turn = &turn;
    thread::scope(|scope| {
        let client = |number: u32| {
            let mut told = Told::default();
            let mut streams: Vec<Option<BufReader<TcpStream>>> = targets.iter().map(|_| None).collect();
            let mut due = began + pace * number / clients;
            while due < began + length {
                thread::sleep(due.saturating_duration_since(Instant::now()));
                let target = turn.fetch_add(1, Relaxed) % targets.len();
                let asked = Instant::now();
                let second = asked.duration_since(began).as_secs() as usize;
                told.count(second, call(&mut streams[target], targets[target]));
                // Who was kept waiting does not make up for it.
                due = (due + pace).max(Instant::now());
            }
            told
        };
        let threads: Vec<_> = (0..clients).map(|number| scope.spawn(move || client(number))).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).fold(Told::default(), Told::join)
    })
}

fn call(stream: &mut Option<BufReader<TcpStream>>, target: SocketAddr) -> Became {
    let asked = Instant::now();
    let status = try_call(stream, target);
    if status.is_err() {
        *stream = None;
    }
    match status {
        Ok(200) => Became::Well(asked.elapsed()),
        Ok(429) => Became::Refused,
        _ => Became::Failed,
    }
}

fn try_call(kept: &mut Option<BufReader<TcpStream>>, target: SocketAddr) -> Result<u16> {
    let stream = match kept {
        Some(stream) => stream,
        None => {
            let stream = TcpStream::connect_timeout(&target, PATIENCE)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            kept.insert(BufReader::new(stream))
        }
    };
    stream.get_mut().write_all(b"GET / HTTP/1.1\r\nHost: night\r\n\r\n")?;
    let (mut status, mut length, mut line) = (None, 0, String::new());
    loop {
        line.clear();
        ensure!(stream.read_line(&mut line)? > 0, "the connection ended");
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        match status {
            None => status = line.split(' ').nth(1).and_then(|word| word.parse().ok()),
            Some(_) => {
                let field = line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
                length = field.and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(length);
            }
        }
    }
    std::io::copy(&mut stream.by_ref().take(length), &mut std::io::sink())?;
    status.context("no status")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_again_what_was_counted() {
        let mut told = Told::default();
        (1..=200).for_each(|ms| told.count(0, Became::Well(Duration::from_millis(ms))));
        told.count(2, Became::Refused);
        let mut other = Told::default();
        other.count(2, Became::Failed);
        let read = Told::read(&told.join(other).write().to_string()).expect("a report");
        assert_eq!((read.admitted(), read.refused, read.failed), (201, 1, 1));
        assert_eq!([read.percentile(50.0), read.percentile(99.0)].map(|took| took.as_millis()), [100, 198]);
        assert_eq!(read.seconds, [[200, 0, 0], [0, 0, 0], [0, 1, 1]]);
        assert_eq!(Told::default().percentile(99.0), Duration::ZERO);
    }
}
