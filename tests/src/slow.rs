//! An endpoint that takes its time.

use std::{
    io::{BufReader, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use crate::{
    answer::{Head, read_body, read_head},
    origin::Origin,
    stage::Stage,
    wait,
};

/// An endpoint that keeps when it was asked what, answers `/after/MS` after so long and `/half` by half, and tells when a connection ends
/// while it works.
pub struct Slow {
    /// Who accepts.
    pub origin: Origin,
    asked: Arc<Mutex<Vec<(Instant, Head)>>>,
    bytes: Arc<AtomicU64>,
    cut: mpsc::Receiver<Instant>,
}

impl Slow {
    /// Starts it.
    pub fn start(stage: &Stage) -> Self {
        let asked = Arc::<Mutex<Vec<(Instant, Head)>>>::default();
        let (tell, cut) = mpsc::channel();
        let kept = Arc::clone(&asked);
        let bytes = Arc::<AtomicU64>::default();
        let received = Arc::clone(&bytes);
        let listener = stage.origin().listen(stage.address()).expect("a free address");
        let origin = Origin::start(listener, move |mut stream: &TcpStream, _| {
            let mut reader = BufReader::new(stream);
            while let Some(head) = read_head(&mut reader)? {
                let body = read_body(&mut reader, &head, false)?;
                received.fetch_add(body.len() as u64, Ordering::Relaxed);
                let path = head.word(1).to_owned();
                kept.lock().expect("no thread panics with it").push((Instant::now(), head));
                let after = path.strip_prefix("/after/").and_then(|after| after.split('/').next());
                let millis = after.and_then(|millis| millis.parse().ok()).unwrap_or(0);
                if path == "/half" {
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf")?;
                }
                if millis > 0 || path == "/half" {
                    let patience = if millis > 0 { Duration::from_millis(millis) } else { wait::SOON };
                    stream.set_read_timeout(Some(patience))?;
                    if matches!(stream.peek(&mut [0]), Ok(0)) {
                        let _ = tell.send(Instant::now());
                        return Ok(());
                    }
                    stream.set_read_timeout(None)?;
                }
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood")?;
            }
            Ok(())
        });
        Self { origin, asked, bytes, cut }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.origin.address()
    }

    /// When it was asked what.
    pub fn asked(&self) -> Vec<(Instant, Head)> {
        self.asked.lock().expect("no thread panics with it").clone()
    }

    /// Waits until it was asked so often.
    #[track_caller]
    pub fn is_asked(&self, times: usize) {
        wait::until("the endpoint to be asked", wait::SOON, || self.asked().len() >= times);
    }

    /// Waits until a connection ends while it works.
    #[track_caller]
    pub fn is_cut(&self) {
        self.cut.recv_timeout(wait::SOON).expect("the endpoint learns that nobody waits for it");
    }

    /// How much it was sent in bodies.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Whether a connection has ended while it worked, up to now.
    pub fn was_cut(&self) -> bool {
        self.cut.try_recv().is_ok()
    }
}
