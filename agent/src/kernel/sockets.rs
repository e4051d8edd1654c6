//! Every socket of the host that the kernel half has pointed at an endpoint, in whatever network namespace, and the end of those whose
//! endpoint is dead.
//!
//! `sock_diag(7)` lists the sockets of one namespace together with what `CONNS` holds for each, and ends one by its cookie: what was
//! verified is what is ended, never a stranger that has the same addresses by now.

mod listeners;

use std::{
    fs::File,
    io::{self, Read as _},
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    thread,
};

use socket2::{Domain, Protocol, Socket, Type};
use sockway_common::{
    capture::LISTENER_TAG,
    flow::{Address, Conn, TCP, UDP, conn_flags},
    udp::Connected,
};

pub use self::listeners::listening_cgroups;
use super::{flows, namespace, sys};

/// `NETLINK_SOCK_DIAG` of `include/uapi/linux/netlink.h`.
const NETLINK_SOCK_DIAG: i32 = 4;
/// `SOCK_DIAG_BY_FAMILY` and `SOCK_DESTROY` of `include/uapi/linux/sock_diag.h`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// `INET_DIAG_REQ_SK_BPF_STORAGES`, and in it `SK_DIAG_BPF_STORAGE_REQ_MAP_FD`.
const REQUEST_STORAGES: u16 = 2;
const REQUEST_MAP: u16 = 1;
/// `INET_DIAG_SK_BPF_STORAGES`, in it `SK_DIAG_BPF_STORAGE`, in that `SK_DIAG_BPF_STORAGE_MAP_VALUE`.
const STORAGES: u16 = 20;
const STORAGE: u16 = 1;
const STORAGE_VALUE: u16 = 3;
/// `struct nlmsghdr`, `struct inet_diag_req_v2`, `struct inet_diag_msg`, `struct inet_diag_sockid` in bytes.
const HEADER: usize = 16;
const REQUEST: usize = 56;
const MESSAGE: usize = 72;
const SOCKET_ID: usize = 48;
/// Where the states and the id stand in a request, and the id in a message.
const REQUEST_STATES_AT: usize = 4;
const REQUEST_ID_AT: usize = 8;
const MESSAGE_ID_AT: usize = 4;
/// Every state.
const ALL: u32 = !0;
/// Every state but `TCP_LISTEN` (10), `TCP_TIME_WAIT` (6) and `TCP_CLOSE` (7; of UDP: not connected), in which nothing is left to end.
const CONNECTED: u32 = !(1 << 10 | 1 << 6 | 1 << 7);
/// `TCP_LISTEN`.
const LISTENING: u32 = 1 << 10;
/// What the kernel sends at once at most; it makes its messages no larger than the buffer of the last receive.
const RECEIVE_BYTES: usize = 256 * 1024;

/// What a socket must be for its connection to be one of a service to an endpoint. Ids are not compared: they are an agent's own, and
/// a socket may be older than the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The address that the program dialled.
    pub service: SocketAddr,
    /// Where its socket was sent.
    pub endpoint: SocketAddr,
    /// Whether the service is a UDP one.
    pub is_udp: bool,
}

impl Target {
    fn is_of(&self, conn: &Conn) -> bool {
        let protocol = if self.is_udp { UDP } else { TCP };
        conn.flags & conn_flags::AGENT == 0
            && conn.original == flows::address(self.service).of(protocol)
            && conn.actual == flows::address(self.endpoint).of(protocol)
    }

    fn is_udp_of(&self, known: &Connected) -> bool {
        self.is_udp
            && known.original == flows::address(self.service).of(UDP)
            && known.actual == flows::address(self.endpoint).of(UDP)
    }
}

/// What a visit to every namespace found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Visited {
    /// Sockets that were ended.
    pub ended: usize,
    /// Sockets that should have been ended and could not be.
    pub failed: usize,
    /// Namespaces that could not be visited.
    pub unseen: usize,
}

impl Visited {
    fn count(&mut self, destroyed: io::Result<bool>) {
        match destroyed {
            Ok(true) => self.ended += 1,
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%error, "a connection to a dead endpoint could not be ended");
                self.failed += 1;
            }
        }
    }
}

/// The sockets of the host, by what the kernel half keeps with them.
#[derive(Debug)]
pub struct Sockets {
    conns: OwnedFd,
    connected: OwnedFd,
}

impl Sockets {
    /// `conns`: the map `CONNS`; `connected`: the map `CONNECTED`.
    pub(super) fn new(conns: OwnedFd, connected: OwnedFd) -> Self {
        Self { conns, connected }
    }

    /// Another handle to the same.
    ///
    /// # Errors
    ///
    /// When descriptors have run out.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { conns: self.conns.try_clone()?, connected: self.connected.try_clone()? })
    }

    /// Ends every connection to one of these targets, in every network namespace in which a process lives or that has a name. Programs
    /// see `ECONNABORTED`, endpoints a reset. Blocks, for milliseconds to seconds: not for a thread that serves.
    ///
    /// # Errors
    ///
    /// When the system gives no list of processes, or no thread.
    pub fn end(&self, targets: &[Target]) -> io::Result<Visited> {
        let protocols: Vec<u8> = [TCP, UDP]
            .into_iter()
            .filter(|protocol| targets.iter().any(|target| target.is_udp == (*protocol == UDP)))
            .collect();
        let mut visited = Visited::default();
        visited.unseen = in_every_namespace(|| {
            let netlink = Netlink::open()?;
            for (protocol, family) in each(&protocols) {
                let found = self.find(&netlink, (protocol, family), targets)?;
                found.iter().for_each(|id| visited.count(netlink.destroy(family, protocol, id)));
            }
            Ok(())
        })?;
        Ok(visited)
    }
}

impl Sockets {
    /// The sockets of this namespace, protocol and family that are connected to one of these targets.
    fn find(&self, netlink: &Netlink, (protocol, family): (u8, u8), targets: &[Target]) -> io::Result<Vec<SocketId>> {
        let mut found = Vec::new();
        if protocol == TCP {
            netlink.dump(family, protocol, CONNECTED, self.conns.as_fd(), |id, value| {
                let conn: Option<Conn> = sys::from_bytes(value);
                if conn.is_some_and(|conn| targets.iter().any(|target| target.is_of(&conn))) {
                    found.push(id);
                }
            })?;
            return Ok(found);
        }
        // Of UDP sockets the kernel does not tell what is stored with them.
        netlink.list(family, protocol, CONNECTED, None, |body| {
            let Some(id) = body.get(MESSAGE_ID_AT..).and_then(<[u8]>::first_chunk::<SOCKET_ID>) else { return };
            let known: Option<Connected> = sys::lookup(self.connected.as_fd(), &cookie_of(id)).unwrap_or_default();
            if known.is_some_and(|known| {
                remote_of(id, family) == Some(known.actual) && targets.iter().any(|target| target.is_udp_of(&known))
            }) {
                found.push(*id);
            }
        })?;
        Ok(found)
    }
}

/// The cookie in a `struct inet_diag_sockid`: two words, the low one first.
fn cookie_of(id: &SocketId) -> u64 {
    let word = |at: usize| u64::from(u32::from_ne_bytes([id[at], id[at + 1], id[at + 2], id[at + 3]]));
    word(40) | word(44) << 32
}

/// Where a UDP socket is connected to, by the same structure: ports, then addresses of 16 bytes of which IPv4 uses the first four.
fn remote_of(id: &SocketId, family: u8) -> Option<Address> {
    let port = u16::from_be_bytes([id[2], id[3]]);
    let ip: IpAddr = if i32::from(family) == libc::AF_INET {
        IpAddr::from(*id[20..].first_chunk::<4>()?)
    } else {
        IpAddr::from(*id[20..].first_chunk::<16>()?).to_canonical()
    };
    Some(flows::address(SocketAddr::new(ip, port)).of(UDP))
}

/// How many sockets of the host have a value in `map`, an `sk_storage`, and how many namespaces could not be asked.
///
/// # Errors
///
/// When the system gives no list of processes, or no thread.
pub fn holders(map: BorrowedFd<'_>) -> io::Result<(usize, usize)> {
    let mut count = 0;
    let unseen = in_every_namespace(|| {
        let netlink = Netlink::open()?;
        for (protocol, family) in each(&[TCP, UDP]) {
            netlink.dump(family, protocol, ALL, map, |_, _| count += 1)?;
        }
        Ok(())
    })?;
    Ok((count, unseen))
}

/// Whether a socket that has the agent's tag in `tags`, an `sk_storage`, listens at `address` in a network namespace.
///
/// # Errors
///
/// When the namespace cannot be visited.
pub fn is_tagged(tags: BorrowedFd<'_>, namespace: &File, address: SocketAddr) -> io::Result<bool> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let visit = || {
        sys::enter_netns(namespace.as_fd())?;
        let mut found = false;
        Netlink::open()?.dump(family as u8, TCP, LISTENING, tags, |id, value| {
            // A socket's id begins with its own port, in network order.
            found |= id[..2] == address.port().to_be_bytes() && sys::from_bytes(value) == Some(LISTENER_TAG);
        })?;
        Ok(found)
    };
    // A thread of its own: one that has changed its namespace is of no other use.
    thread::scope(|scope| scope.spawn(visit).join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked"))))
}

fn each(protocols: &[u8]) -> impl Iterator<Item = (u8, u8)> {
    protocols.iter().flat_map(|protocol| [libc::AF_INET, libc::AF_INET6].map(|family| (*protocol, family as u8)))
}

/// Calls `visit` inside every network namespace; how many could not be visited.
fn in_every_namespace(mut visit: impl FnMut() -> io::Result<()> + Send) -> io::Result<usize> {
    let namespaces = namespace::every()?;
    // A thread of its own: one that has changed its namespace is of no other use.
    thread::scope(|scope| {
        let go = || {
            let failed = |namespace: &File| sys::enter_netns(namespace.as_fd()).and_then(|()| visit()).err();
            let errors = namespaces.iter().filter_map(failed);
            errors.inspect(|error| tracing::warn!(%error, "a network namespace's sockets cannot be listed")).count()
        };
        let thread = thread::Builder::new().name("netns".into()).spawn_scoped(scope, go)?;
        thread.join().map_err(|_| io::Error::other("the thread panicked"))
    })
}

/// A socket as `sock_diag` knows it: addresses, device and cookie.
type SocketId = [u8; SOCKET_ID];

/// A conversation with `sock_diag` in the network namespace in which it was opened.
struct Netlink(Socket);

impl Netlink {
    fn open() -> io::Result<Self> {
        let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::DGRAM, Some(Protocol::from(NETLINK_SOCK_DIAG)))?;
        // The kernel answers at once or not at all.
        socket.set_read_timeout(Some(std::time::Duration::from_secs(5)))?;
        Ok(Self(socket))
    }

    /// Visits every socket in one of `states` that has a value in `map`.
    fn dump(
        &self,
        family: u8,
        protocol: u8,
        states: u32,
        map: BorrowedFd<'_>,
        mut visit: impl FnMut(SocketId, &[u8]),
    ) -> io::Result<()> {
        self.list(family, protocol, states, Some(map), |body| {
            if let Some((id, value)) = parse(body) {
                visit(id, value);
            }
        })
    }

    /// Visits the message of every socket in one of `states`, with what `map` holds for it, if the kernel tells that for the protocol.
    fn list(
        &self,
        family: u8,
        protocol: u8,
        states: u32,
        map: Option<BorrowedFd<'_>>,
        mut visit: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        let mut request = request(SOCK_DIAG_BY_FAMILY, libc::NLM_F_REQUEST | libc::NLM_F_DUMP, family, protocol);
        request[HEADER + REQUEST_STATES_AT..][..4].copy_from_slice(&states.to_ne_bytes());
        if let Some(map) = map {
            let map = attribute(REQUEST_MAP, &map.as_raw_fd().to_ne_bytes());
            request.extend(attribute(REQUEST_STORAGES | libc::NLA_F_NESTED as u16, &map));
        }
        self.send(request)?;
        let mut buffer = vec![0; RECEIVE_BYTES];
        loop {
            let received = (&self.0).read(&mut buffer)?;
            for message in messages(&buffer[..received]) {
                match i32::from(message.kind) {
                    libc::NLMSG_DONE => return Ok(()),
                    libc::NLMSG_ERROR => return Err(error_of(message.body)),
                    _ => visit(message.body),
                }
            }
        }
    }

    /// Ends the socket of this id, if it still is the one with this cookie. False: it is gone.
    fn destroy(&self, family: u8, protocol: u8, id: &SocketId) -> io::Result<bool> {
        let mut request = request(SOCK_DESTROY, libc::NLM_F_REQUEST | libc::NLM_F_ACK, family, protocol);
        request[HEADER + REQUEST_ID_AT..][..SOCKET_ID].copy_from_slice(id);
        self.send(request)?;
        let mut buffer = [0; 1024];
        let received = (&self.0).read(&mut buffer)?;
        let answer = messages(&buffer[..received]).next().map(|message| error_of(message.body));
        match answer {
            Some(error) if error.raw_os_error() == Some(0) => Ok(true),
            Some(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => Ok(false),
            Some(error) => Err(error),
            None => Err(io::Error::other("sock_diag gave no answer")),
        }
    }

    fn send(&self, mut request: Vec<u8>) -> io::Result<()> {
        let length = request.len() as u32;
        request[..4].copy_from_slice(&length.to_ne_bytes());
        self.0.send(&request).map(|_| ())
    }
}

/// A `struct nlmsghdr` (its length to be filled in) and a `struct inet_diag_req_v2` after it.
fn request(kind: u16, flags: i32, family: u8, protocol: u8) -> Vec<u8> {
    let mut request = vec![0; HEADER + REQUEST];
    request[4..6].copy_from_slice(&kind.to_ne_bytes());
    request[6..8].copy_from_slice(&(flags as u16).to_ne_bytes());
    request[HEADER] = family;
    request[HEADER + 1] = protocol;
    request
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = (4 + value.len()) as u16;
    let mut attribute = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    attribute.extend_from_slice(value);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    attribute
}

struct Message<'b> {
    kind: u16,
    body: &'b [u8],
}

/// The netlink messages of one datagram; ends at the first that is cut short.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind, body })
    })
}

/// The attributes of a message; ends at the first that is cut short.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & libc::NLA_TYPE_MASK as u16;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The `struct nlmsgerr` of an answer; number 0 is an acknowledgement.
fn error_of(body: &[u8]) -> io::Error {
    let number = body.get(..4).and_then(|bytes| bytes.try_into().ok()).map_or(-libc::EBADMSG, i32::from_ne_bytes);
    io::Error::from_raw_os_error(-number)
}

/// A socket and what the map holds for it; `None` for one that it holds nothing for.
fn parse(body: &[u8]) -> Option<(SocketId, &[u8])> {
    let id = body.get(MESSAGE_ID_AT..MESSAGE_ID_AT + SOCKET_ID)?.try_into().ok()?;
    let storage = find(find(body.get(MESSAGE..)?, STORAGES)?, STORAGE)?;
    Some((id, find(storage, STORAGE_VALUE)?))
}

fn find(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn target(endpoint: &str, is_udp: bool) -> Target {
        Target {
            service: "10.0.0.1:80".parse().expect("an address"),
            endpoint: endpoint.parse().expect("an address"),
            is_udp,
        }
    }

    fn conn(endpoint: &str, flags: u32) -> Conn {
        let address = |text: &str| flows::address(text.parse().expect("an address"));
        Conn { original: address("10.0.0.1:80"), actual: address(endpoint), flags, ..Conn::EMPTY }
    }

    #[test]
    fn a_connection_is_a_targets_only_if_service_endpoint_and_protocol_are() {
        let dead = target("10.0.0.2:80", false);
        assert!(dead.is_of(&conn("10.0.0.2:80", 0)));
        assert!(!dead.is_of(&conn("10.0.0.3:80", 0)));
        assert!(!dead.is_of(&conn("10.0.0.2:80", conn_flags::AGENT)));
        assert!(!target("10.0.0.2:80", true).is_of(&conn("10.0.0.2:80", 0)));
        assert!(!Target { service: "10.0.0.9:80".parse().expect("an address"), ..dead }.is_of(&conn("10.0.0.2:80", 0)));
    }

    #[test]
    fn the_value_of_a_map_is_found_in_a_message() {
        let id = [3; SOCKET_ID];
        let storage = attribute(STORAGE, &[attribute(2, &[1; 4]), attribute(STORAGE_VALUE, b"value...")].concat());
        let mut body = vec![0; MESSAGE];
        body[MESSAGE_ID_AT..][..SOCKET_ID].copy_from_slice(&id);
        body.extend(attribute(15, &[9]));
        body.extend(attribute(STORAGES | libc::NLA_F_NESTED as u16, &storage));
        assert_eq!(parse(&body), Some((id, &b"value..."[..])));
        assert_eq!(parse(&body[..MESSAGE]), None, "a socket that the map holds nothing for");
    }

    proptest! {
        #[test]
        fn no_answer_is_read_beyond_its_end(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for message in messages(&bytes) {
                let _ = (parse(message.body), error_of(message.body));
            }
        }
    }
}
