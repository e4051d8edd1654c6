//! What one test owns: a captured cgroup for clients, a cgroup for origins, addresses, and doors into both.

use std::{
    env, io,
    io::Write,
    net::{SocketAddr, TcpStream, UdpSocket},
    thread,
};

use nix::unistd::Uid;

use crate::{
    address::Block,
    answer::Session,
    cgroup::Cgroup,
    config::Config,
    datagram::Answering,
    door::Door,
    origin::{Origin, read_name},
    process::{Room, allow_descriptors},
    wait,
    web::Web,
};

/// One test's own corner of this host.
#[derive(Debug)]
pub struct Stage {
    client_door: Door,
    origin_door: Door,
    /// Where clients run; captured by [`Stage::config`].
    pub clients: Cgroup,
    /// Where origins run; not captured unless a test says so.
    pub origins: Cgroup,
    /// Addresses of this test.
    pub addresses: Block,
}

impl Stage {
    /// Sets the stage; `None` where root tests are switched off (`SOCKWAY_SKIP_ROOT=1`), after saying so. Without root it panics: a test
    /// that cannot run has not passed.
    pub fn set() -> Option<Self> {
        if !allowed() {
            return None;
        }
        allow_descriptors();
        let (clients, origins) = (Cgroup::new("clients"), Cgroup::new("origins"));
        let client_door = Door::open(Room::of(&clients));
        let origin_door = Door::open(Room::of(&origins));
        Some(Self { client_door, origin_door, clients, origins, addresses: Block::take() })
    }

    /// A configuration that captures the clients, with `shortcut: off`.
    pub fn config(&self) -> Config {
        Config::new().capture(&self.clients)
    }

    /// A configuration that captures clients and origins, with `shortcut: on` for both.
    pub fn config_with_shortcut(&self) -> Config {
        Config::new().capture_with(&self.clients, "on").capture_with(&self.origins, "on")
    }

    /// An address that nobody listens on: a service's, or an endpoint's to be.
    pub fn address(&self) -> SocketAddr {
        self.addresses.next()
    }

    /// An endpoint that says `name` and echoes, in the origins' cgroup.
    pub fn echo(&self, name: &str) -> Origin {
        self.echo_at(name, self.address())
    }

    /// The same at a given address.
    pub fn echo_at(&self, name: &str, address: SocketAddr) -> Origin {
        Origin::echo(self.origin_door.listen(address).expect("a free address"), name)
    }

    /// An HTTP endpoint that says `name`, in the origins' cgroup.
    pub fn web(&self, name: &str) -> Web {
        self.web_at(name, self.address())
    }

    /// The same at a given address.
    pub fn web_at(&self, name: &str, address: SocketAddr) -> Web {
        Web::start(self.origin_door.listen(address).expect("a free address"), name)
    }

    /// A UDP endpoint that says `name`, in the origins' cgroup.
    pub fn datagrams(&self, name: &str) -> Answering {
        self.datagrams_at(name, self.address())
    }

    /// The same at a given address.
    pub fn datagrams_at(&self, name: &str, address: SocketAddr) -> Answering {
        Answering::start(self.origin_door.bind(address).expect("a free address"), name)
    }

    /// A UDP socket of a captured client, bound to this address; nothing on it waits longer than [`wait::SOON`].
    pub fn socket(&self, address: &str) -> UdpSocket {
        let socket = self.client_door.bind(address.parse().expect("an address")).expect("a socket");
        socket.set_read_timeout(Some(wait::soon())).expect("a deadline");
        socket
    }

    /// The door into the clients' cgroup.
    pub fn client(&self) -> &Door {
        &self.client_door
    }

    /// The door into the origins' cgroup.
    pub fn origin(&self) -> &Door {
        &self.origin_door
    }

    /// Dials as a captured client; nothing on the stream waits longer than [`wait::SOON`].
    pub fn dial(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let stream = self.client_door.dial(address)?;
        stream.set_read_timeout(Some(wait::soon()))?;
        stream.set_write_timeout(Some(wait::soon()))?;
        Ok(stream)
    }

    /// Dials an echo origin and gives the name of whoever answers.
    pub fn ask_name(&self, address: SocketAddr) -> io::Result<String> {
        read_name(&mut self.dial(address)?)
    }

    /// Dials an HTTP service.
    #[track_caller]
    pub fn session(&self, address: SocketAddr) -> Session {
        Session::on(self.dial(address).unwrap_or_else(|error| panic!("dialling {address}: {error}")))
    }
}

/// Says something that must be seen although the test passes: written in one piece, past the test runner's capture.
pub fn tell(text: &str) {
    let _ = io::stderr().write_all(format!("{text}\n").as_bytes());
}

/// Whether root tests may run here; says loudly when they are skipped, and panics when they cannot run.
pub fn allowed() -> bool {
    if env::var_os("SOCKWAY_SKIP_ROOT").is_some_and(|value| value == "1") {
        let current = thread::current();
        tell(&format!("SKIPPED (SOCKWAY_SKIP_ROOT=1): {}", current.name().unwrap_or("a test")));
        return false;
    }
    assert!(
        Uid::effective().is_root(),
        "these tests attach to cgroups and make namespaces: run them with `cargo xtask test` (it asks for root), or skip them with SOCKWAY_SKIP_ROOT=1"
    );
    true
}
