//! Two sockets joined by the shortcut, both in the test's hands.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
};

use nix::poll::PollFlags;

use crate::{agent::Agent, config::Service, socket::polls, stage::Stage, wait, web::pattern};

/// Two programs' sockets, joined by the shortcut.
#[derive(Debug)]
pub struct Pair {
    /// The end that dialled.
    pub client: TcpStream,
    /// The end that accepted.
    pub server: TcpStream,
    /// The agent that joined them.
    pub agent: Agent,
    /// What was dialled.
    pub service: SocketAddr,
    /// Where it was accepted.
    pub listener: TcpListener,
    /// Where all of it happens.
    pub stage: Stage,
}

impl Pair {
    /// Joins a pair; `None` where root tests are switched off.
    pub fn join() -> Option<Self> {
        let stage = Stage::set()?;
        let (service, endpoint) = (stage.address(), stage.address());
        let listener = stage.origin().listen(endpoint).unwrap();
        let agent = Agent::start(
            &stage
                .config_with_shortcut()
                .service(Service::kernel_tcp("pair", service).to(endpoint).set("shortcut: on")),
        );
        let client = stage.dial(service).unwrap();
        let server = accept(&listener);
        let pair = Self { client, server, agent, service, listener, stage };
        // The first bytes tell whether they are joined; from here on both queues are empty.
        assert!(pair.redirects(b"first"), "{}", pair.agent.metrics().text());
        Some(pair)
    }

    /// Sends a message up and says whether it went socket to socket.
    pub fn redirects(&self, message: &[u8]) -> bool {
        let before = self.agent.metric("sockway_kernel_shortcut_bytes_total", &[]);
        (&self.client).write_all(message).unwrap();
        let mut back = vec![0; message.len()];
        (&self.server).read_exact(&mut back).unwrap();
        assert_eq!(back, message);
        self.agent.metric("sockway_kernel_shortcut_bytes_total", &[]) == before + message.len() as f64
    }
}

/// Accepts; nothing on the stream waits longer than [`wait::SOON`].
pub fn accept(listener: &TcpListener) -> TcpStream {
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(wait::soon())).unwrap();
    stream.set_write_timeout(Some(wait::soon())).unwrap();
    stream
}

/// Writes without a reader until the socket takes no more; gives how much it took.
pub fn fill(client: &TcpStream) -> usize {
    client.set_nonblocking(true).unwrap();
    let bytes = pattern(64 << 20);
    let mut sent = 0;
    // A third of a second without room: nobody reads, so none will come.
    while polls(client, PollFlags::POLLOUT, 300) {
        match (&*client).write(&bytes[sent..(sent + 65_536).min(bytes.len())]) {
            Ok(count) => sent += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => panic!("writing failed after {sent} bytes: {error}"),
        }
        assert!(sent < bytes.len(), "no bound: {sent} bytes are queued and nobody reads");
    }
    client.set_nonblocking(false).unwrap();
    sent
}
