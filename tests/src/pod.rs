//! A pod whose connections come in through the agent.

use std::{
    io::{self, ErrorKind, Write as _},
    net::{SocketAddr, TcpStream},
};

use crate::{
    agent::Agent,
    config::Config,
    door::Door,
    netns::{Netns, Veth},
    origin::{Origin, read_name},
    process::Room,
    stage::Stage,
    wait,
};

/// Where the program listens.
pub const PORT: u16 = 8080;

/// A pod with a program, and a client at the other end of a wire.
#[derive(Debug)]
pub struct Scene {
    /// What else there is.
    pub stage: Stage,
    /// Where the program is.
    pub pod: Netns,
    /// Where the client is.
    pub outside: Netns,
    /// Between them; its right end is the pod's.
    pub wire: Veth,
    /// Into the pod, in the cgroup of origins, which is captured: where programs are that hear who their client is.
    pub program: Door,
    /// Into the client's namespace, in no captured cgroup.
    pub client: Door,
}

impl Scene {
    /// Sets it; `None` where root tests are switched off.
    pub fn set() -> Option<Self> {
        let stage = Stage::set()?;
        let (pod, outside) = (Netns::new(), Netns::new());
        let wire = Veth::between(&outside, &pod);
        let program = Door::open(Room::of(&stage.origins).inside(&pod));
        let client = Door::open(Room::of(&stage.clients).inside(&outside));
        Some(Self { stage, pod, outside, wire, program, client })
    }

    /// A configuration that steers what comes in to the pod; `keys` are those of the rule beside its name and namespace.
    pub fn config(&self, keys: &str) -> Config {
        Config::new().capture(&self.stage.origins).inbound(&self.rule("web", keys))
    }

    /// A rule for the pod.
    pub fn rule(&self, name: &str, keys: &str) -> String {
        format!("name: {name}, namespaces: {{ only: [{}] }}, {keys}", self.pod.name())
    }

    /// Starts the agent, which steers the pod when it is ready.
    pub fn agent(&self, keys: &str) -> Agent {
        Agent::start(&self.config(keys))
    }

    /// A port of the pod.
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.wire.right.into(), port)
    }

    /// The same by IPv6.
    pub fn at_v6(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.wire.right_v6.into(), port)
    }

    /// A program of the pod that tells each client its name, whom it sees, and then echoes.
    pub fn program(&self, name: &str, port: u16) -> Origin {
        self.program_at(name, SocketAddr::from(([0; 16], port)))
    }

    fn program_at(&self, name: &str, address: SocketAddr) -> Origin {
        let name = name.to_owned();
        Origin::start(self.program.listen(address).expect("a free port"), move |mut stream, _| {
            writeln!(stream, "{name} {} {}", plain(stream.peer_addr()?), plain(stream.local_addr()?))?;
            io::copy(&mut &*stream, &mut stream)?;
            stream.shutdown(std::net::Shutdown::Write)
        })
    }

    /// Dials from outside.
    pub fn dial(&self, address: SocketAddr) -> io::Result<TcpStream> {
        patient(self.client.dial(address)?)
    }

    /// What the program at `address` says to a client from outside, who checks that it is about itself.
    pub fn ask(&self, address: SocketAddr) -> io::Result<String> {
        let mut stream = self.dial(address)?;
        let said = read_name(&mut stream)?;
        let (name, seen) = said.split_once(' ').ok_or(ErrorKind::InvalidData)?;
        assert_eq!(seen, format!("{} {address}", stream.local_addr()?), "whom the program sees, and where");
        assert_eq!(stream.peer_addr()?, address);
        Ok(name.to_owned())
    }
}

/// An IPv4 address as such, also where a socket of IPv6 has it.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// A connection that waits as long as tests do.
pub fn patient(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_read_timeout(Some(wait::soon()))?;
    stream.set_write_timeout(Some(wait::soon()))?;
    Ok(stream)
}

/// Connections that the agent has let in, of the rule `web`.
pub fn accepted(agent: &Agent) -> f64 {
    agent.metric("sockway_inbound_connections_total", &[("inbound", "web")])
}

/// How often the hook said so.
pub fn lookups(agent: &Agent, verdict: &str) -> f64 {
    agent.metric("sockway_kernel_inbound_lookups_total", &[("verdict", verdict)])
}

/// Connections that the agent has refused, of the rule `web`.
pub fn refused(agent: &Agent, reason: &str) -> f64 {
    agent.metric("sockway_inbound_refused_total", &[("inbound", "web"), ("reason", reason)])
}

/// Whether a connection was let in: whoever is refused reads a reset, or cannot even connect.
pub fn is_in(stream: io::Result<TcpStream>) -> bool {
    match stream.and_then(|mut stream| read_name(&mut stream)) {
        Ok(_) => true,
        Err(error) => {
            let kinds = [ErrorKind::ConnectionReset, ErrorKind::ConnectionRefused, ErrorKind::UnexpectedEof];
            assert!(kinds.contains(&error.kind()), "{error}");
            false
        }
    }
}
