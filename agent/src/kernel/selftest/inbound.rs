//! A connection that comes in is the agent's while its listener is there, and the program's otherwise: tried in a network namespace that is
//! made for it and goes with it, on its loopback device. Nobody else's packets are touched.

use std::{
    fs::File,
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
    thread,
};

use aya::maps::{
    MapData, SockHash,
    lpm_trie::{Key, LpmTrie},
};
use socket2::{Domain, SockRef, Socket, Type};
use sockway_common::inbound::{NETNS_BITS, PORT_BITS, Port, PortKey, SteerKey};

use super::{Bench, PATIENCE, text};
use crate::kernel::{load, services, sys};

/// `BPF_SK_LOOKUP` of `enum bpf_attach_type`.
const SK_LOOKUP: u32 = 36;

/// Where the client dials from: from where the program listens it would be the program itself (trap T33).
const CLIENT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const PROGRAM: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);

/// Sockets in the namespace, which lives as long as they do.
struct Scene {
    namespace: File,
    agent: TcpListener,
    program: TcpListener,
    clients: [Socket; 2],
}

/// The check.
pub fn steered(bench: &mut Bench) -> Result<String, String> {
    let scene = match thread::spawn(Scene::set).join() {
        Ok(Ok(scene)) => scene,
        // Where it can do without the right, it steers: in the namespace that it is in itself.
        Ok(Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Ok("the hook loads; not tried, which takes a network namespace (CAP_SYS_ADMIN)".into());
        }
        Ok(Err(error)) => return Err(format!("a network namespace to try it in: {error}")),
        Err(_) => return Err("a network namespace to try it in: its thread panicked".into()),
    };
    let at = scene.program.local_addr().map_err(text)?;
    let key = SteerKey { netns: load::NO_NETNS, family: libc::AF_INET as u32, listener: 0 };
    let mut sockets: SockHash<MapData, SteerKey> = table(bench, "INBOUND_SOCKETS")?;
    let mut ports: LpmTrie<MapData, PortKey, Port> = table(bench, "INBOUND_PORTS")?;
    sockets.insert(key, scene.agent.as_raw_fd(), 0).map_err(text)?;
    let trie_key = Key::new(NETNS_BITS + PORT_BITS, PortKey { netns: load::NO_NETNS, port: at.port().to_be() });
    let (first, last, netns) = (at.port(), at.port(), load::NO_NETNS);
    let port = Port { netns, rule: 1, listeners: 1, first, last, flags: 0, seal: 0, zero: 0 };
    ports.insert(&trie_key, port.sealed(), 0).map_err(text)?;
    bench.heartbeat.set(0, crate::kernel::monotonic_ns(), 0).map_err(text)?;
    let program = bench.loaded.descriptor(load::STEERING).map_err(text)?;
    let _link = sys::attach(program.as_fd(), scene.namespace.as_fd(), SK_LOOKUP)
        .map_err(|error| format!("attaching to a network namespace: {error}"))?;

    dial(&scene.clients[0], at, &scene.agent).map_err(|error| format!("with the agent's listener: {error}"))?;
    sockets.remove(&key).map_err(text)?;
    dial(&scene.clients[1], at, &scene.program).map_err(|error| format!("without the agent's listener: {error}"))?;
    Ok("connections that come in go to the agent, and without it to the program".into())
}

/// Dials, and looks whether this listener has the connection, and under the address that was dialled.
fn dial(client: &Socket, at: SocketAddr, listener: &TcpListener) -> io::Result<()> {
    client.connect_timeout(&at.into(), PATIENCE)?;
    let (accepted, _): (TcpStream, _) = listener.accept()?;
    match accepted.local_addr()? {
        address if address == at => Ok(()),
        other => Err(io::Error::other(format!("{at} was dialled, and accepted at {other}"))),
    }
}

fn table<T: TryFrom<aya::maps::Map, Error = aya::maps::MapError>>(
    bench: &mut Bench,
    name: &'static str,
) -> Result<T, String> {
    services::table(&mut bench.loaded.ebpf, name).map_err(text)
}

/// `ip link set lo up` in the namespace of this socket.
fn raise_loopback(socket: &Socket) -> io::Result<()> {
    // SAFETY: all zero is a valid `ifreq`; the name is shorter than its field, and both calls take one.
    let result = unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
        libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw mut request)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl Scene {
    /// On a thread of its own, which is in that namespace afterwards.
    fn set() -> io::Result<Self> {
        sys::leave_netns()?;
        let client = || -> io::Result<Socket> {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.bind(&SocketAddr::from((CLIENT, 0)).into())?;
            Ok(socket)
        };
        raise_loopback(&Socket::new(Domain::IPV4, Type::DGRAM, None)?)?;
        let listen = |ip: Ipv4Addr| -> io::Result<TcpListener> {
            let listener = TcpListener::bind((ip, 0))?;
            // Of accept(), too.
            SockRef::from(&listener).set_read_timeout(Some(PATIENCE))?;
            Ok(listener)
        };
        Ok(Self {
            namespace: File::open(Path::new("/proc/thread-self/ns/net"))?,
            agent: listen(Ipv4Addr::LOCALHOST)?,
            program: listen(PROGRAM)?,
            clients: [client()?, client()?],
        })
    }
}
