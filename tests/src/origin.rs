//! Endpoints in threads of the test. The usual one says its name on a line of its own and then echoes until its peer is done.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

use socket2::SockRef;

/// What an origin and its connections share.
#[derive(Debug, Default)]
struct Shared {
    stopping: AtomicBool,
    accepted: AtomicUsize,
    streams: Mutex<Vec<Weak<TcpStream>>>,
}

/// A listening endpoint; dropping it closes the listener and cuts every connection.
#[derive(Debug)]
pub struct Origin {
    address: SocketAddr,
    listener: Arc<TcpListener>,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

impl Origin {
    /// Serves each connection in a thread; `serve` gets the stream and the connection's serial number, from 0.
    pub fn start(
        listener: TcpListener,
        serve: impl Fn(&TcpStream, usize) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let address = listener.local_addr().expect("a listener's address");
        let listener = Arc::new(listener);
        let shared = Arc::new(Shared::default());
        let accepting = thread::spawn({
            let (listener, shared) = (Arc::clone(&listener), Arc::clone(&shared));
            move || accept(&listener, &shared, &Arc::new(serve))
        });
        Self { address, listener, shared, accepting: Some(accepting) }
    }

    /// Says `name` and echoes.
    pub fn echo(listener: TcpListener, name: &str) -> Self {
        let greeting = format!("{name}\n");
        Self::start(listener, move |mut stream, _| {
            stream.write_all(greeting.as_bytes())?;
            io::copy(&mut &*stream, &mut stream)?;
            stream.shutdown(Shutdown::Write)
        })
    }

    /// Keeps the first line of every connection, says nothing. A connection without one is no client's: the agent probes that way.
    pub fn collect(listener: TcpListener) -> (Self, Arc<Mutex<Vec<String>>>) {
        let lines: Arc<Mutex<Vec<String>>> = Arc::default();
        let origin = Self::start(listener, {
            let lines = Arc::clone(&lines);
            move |stream, _| {
                let mut line = String::new();
                BufReader::new(stream).read_line(&mut line)?;
                if !line.is_empty() {
                    lines.lock().expect("no thread panics with it").push(line.trim_end().to_owned());
                }
                Ok(())
            }
        });
        (origin, lines)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections it has accepted.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// How many of its connections are open.
    pub fn open(&self) -> usize {
        let mut streams = self.shared.streams.lock().expect("no thread panics with it");
        streams.retain(|stream| stream.strong_count() > 0);
        streams.len()
    }

    /// Dies: from now on its address refuses connections.
    pub fn die(self) {}
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // On a listener, shutdown ends listening at once and wakes accept().
        let _ = SockRef::from(&*self.listener).shutdown(Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        for stream in self.shared.streams.lock().expect("no thread panics with it").drain(..) {
            stream.upgrade().inspect(|stream| drop(stream.shutdown(Shutdown::Both)));
        }
    }
}

fn accept<F>(listener: &TcpListener, shared: &Arc<Shared>, serve: &Arc<F>)
where
    F: Fn(&TcpStream, usize) -> io::Result<()> + Send + Sync + 'static,
{
    while let Ok((stream, _)) = listener.accept() {
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        let serial = shared.accepted.fetch_add(1, Ordering::SeqCst);
        let stream = Arc::new(stream);
        shared.streams.lock().expect("no thread panics with it").push(Arc::downgrade(&stream));
        let serve = Arc::clone(serve);
        // A peer that resets its connection is no failure of the origin: tests look at what the client saw.
        thread::spawn(move || drop(serve(&stream, serial)));
    }
}

/// Reads the line in which an echo origin says its name, and not one byte more.
pub fn read_name(stream: &mut impl Read) -> io::Result<String> {
    let mut name = Vec::new();
    let mut byte = [0];
    loop {
        stream.read_exact(&mut byte)?;
        if byte == *b"\n" {
            return String::from_utf8(name).map_err(|_| io::ErrorKind::InvalidData.into());
        }
        name.push(byte[0]);
    }
}

/// Sends bytes to an echo origin and checks that they come back.
pub fn echoes(stream: &TcpStream, bytes: &[u8]) -> io::Result<bool> {
    let mut writer = stream.try_clone()?;
    let sent = bytes.to_vec();
    let writing = thread::spawn(move || writer.write_all(&sent));
    let mut back = vec![0; bytes.len()];
    (&*stream).read_exact(&mut back)?;
    writing.join().expect("the writing thread")?;
    Ok(back == bytes)
}
