//! UDP endpoints in threads of the test, and what a client asks them.

use std::{
    io,
    net::{Shutdown, SocketAddr, UdpSocket},
    sync::Arc,
    thread::{self, JoinHandle},
};

use socket2::SockRef;

/// Longest datagram of the tests.
const BYTES_MAX: usize = 2_048;

/// A UDP endpoint that answers; dropping it closes its socket.
#[derive(Debug)]
pub struct Answering {
    address: SocketAddr,
    socket: Arc<UdpSocket>,
    answering: Option<JoinHandle<()>>,
}

impl Answering {
    /// Answers every datagram with `name`, a colon and what was asked.
    pub fn start(socket: UdpSocket, name: &str) -> Self {
        let name = name.to_owned();
        Self::with(socket, move |asked| [name.as_bytes(), b":", asked].concat())
    }

    /// Answers every datagram with what `answer` makes of it.
    pub fn with(socket: UdpSocket, mut answer: impl FnMut(&[u8]) -> Vec<u8> + Send + 'static) -> Self {
        let address = socket.local_addr().expect("a bound socket");
        let socket = Arc::new(socket);
        let own = Arc::clone(&socket);
        let answering = thread::spawn(move || {
            let mut bytes = [0; BYTES_MAX];
            // An empty datagram is how `drop` says that it is over.
            while let Ok((length, from)) = own.recv_from(&mut bytes)
                && length > 0
            {
                // A client that has gone is no failure of the endpoint.
                let _ = own.send_to(&answer(&bytes[..length]), from);
            }
        });
        Self { address, socket, answering: Some(answering) }
    }

    /// Where it answers.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Dies: from now on its address refuses datagrams.
    pub fn die(self) {}
}

impl Drop for Answering {
    fn drop(&mut self) {
        // On a UDP socket without a peer this is an error, and wakes whoever waits for a datagram all the same (`inet_shutdown`).
        let _ = SockRef::from(&*self.socket).shutdown(Shutdown::Both);
        if let Some(answering) = self.answering.take() {
            let _ = answering.join();
        }
    }
}

/// Sends `text` to `to`, and gives what comes back and from where.
pub fn ask(socket: &UdpSocket, to: SocketAddr, text: &str) -> io::Result<(String, SocketAddr)> {
    socket.send_to(text.as_bytes(), to)?;
    receive(socket)
}

/// The next datagram, and from where it seems to come.
pub fn receive(socket: &UdpSocket) -> io::Result<(String, SocketAddr)> {
    let mut bytes = [0; BYTES_MAX];
    let (length, from) = socket.recv_from(&mut bytes)?;
    Ok((String::from_utf8_lossy(&bytes[..length]).into_owned(), from))
}

/// Asks `to` for a name; what answers must seem to be `to`.
#[track_caller]
pub fn name_of(socket: &UdpSocket, to: SocketAddr) -> String {
    let (answer, from) = ask(socket, to, "who").unwrap_or_else(|error| panic!("asking {to}: {error}"));
    assert_eq!(from, to, "the answer {answer:?} seems to come from elsewhere");
    answer.strip_suffix(":who").unwrap_or_else(|| panic!("an answer to another question: {answer:?}")).to_owned()
}
