//! A door into a cgroup and a namespace: `sockway-probe door` makes, connects and binds sockets there, and hands them to the test.
//!
//! The kernel goes by where a socket was made, so what comes through the door is what a program in there would hold; the test then
//! uses it with the whole standard library. Requests and answers are single datagrams, each with at most one socket: see [`Request`].

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    process::{Command, Stdio},
    sync::Mutex,
};

use nix::{
    cmsg_space,
    sys::socket::{
        AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
    },
};

use crate::{
    agent,
    process::{Process, Room},
};

/// Longest request or answer.
const MESSAGE_MAX: usize = 256;

/// What a door is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// A new TCP socket of this address's family, which dials nothing.
    Make(SocketAddr),
    /// A new socket, connected with a blocking `connect()`.
    Dial(SocketAddr),
    /// A new non-blocking socket on which `connect()` has been called; it may still be under way.
    Begin(SocketAddr),
    /// `connect()` on the socket that comes with the request.
    Redial(SocketAddr),
    /// A listening socket.
    Listen(SocketAddr),
    /// A UDP socket bound to this address, of which the port may be 0 and the IP unspecified.
    Bind(SocketAddr),
}

impl Request {
    /// The datagram that says it.
    pub fn write(self) -> String {
        match self {
            Self::Make(address) => format!("make {address}"),
            Self::Dial(address) => format!("dial {address}"),
            Self::Begin(address) => format!("begin {address}"),
            Self::Redial(address) => format!("redial {address}"),
            Self::Listen(address) => format!("listen {address}"),
            Self::Bind(address) => format!("bind {address}"),
        }
    }

    /// Reads a datagram.
    pub fn read(text: &str) -> Option<Self> {
        let (verb, address) = text.split_once(' ')?;
        let address = address.parse().ok()?;
        match verb {
            "make" => Some(Self::Make(address)),
            "dial" => Some(Self::Dial(address)),
            "begin" => Some(Self::Begin(address)),
            "redial" => Some(Self::Redial(address)),
            "listen" => Some(Self::Listen(address)),
            "bind" => Some(Self::Bind(address)),
            _ => None,
        }
    }
}

/// The test's end of a door.
#[derive(Debug)]
pub struct Door {
    line: Mutex<OwnedFd>,
    process: Process,
}

impl Door {
    /// Opens a door into a room.
    pub fn open(room: Room<'_>) -> Self {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).expect("a socket pair");
        let mut command = Command::new(agent::probe());
        command.arg("door").stdin(Stdio::from(theirs));
        Self { process: Process::spawn(room, command), line: Mutex::new(ours) }
    }

    /// A TCP socket from behind the door, of the family of `address`, that has dialled nothing: for [`Door::redial`].
    pub fn make(&self, address: SocketAddr) -> io::Result<TcpStream> {
        self.ask(Request::Make(address), None).map(TcpStream::from)
    }

    /// Connects to `address` from behind the door.
    pub fn dial(&self, address: SocketAddr) -> io::Result<TcpStream> {
        self.ask(Request::Dial(address), None).map(TcpStream::from)
    }

    /// Begins to connect to `address` without waiting; the stream is non-blocking.
    pub fn begin(&self, address: SocketAddr) -> io::Result<TcpStream> {
        self.ask(Request::Begin(address), None).map(TcpStream::from)
    }

    /// Calls `connect()` once more on a socket, from behind the door.
    pub fn redial(&self, socket: BorrowedFd<'_>, address: SocketAddr) -> io::Result<TcpStream> {
        self.ask(Request::Redial(address), Some(socket)).map(TcpStream::from)
    }

    /// Listens on `address` behind the door.
    pub fn listen(&self, address: SocketAddr) -> io::Result<TcpListener> {
        self.ask(Request::Listen(address), None).map(TcpListener::from)
    }

    /// A UDP socket behind the door, bound to `address`.
    pub fn bind(&self, address: SocketAddr) -> io::Result<UdpSocket> {
        self.ask(Request::Bind(address), None).map(UdpSocket::from)
    }

    /// The process behind the door.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    fn ask(&self, request: Request, socket: Option<BorrowedFd<'_>>) -> io::Result<OwnedFd> {
        let line = self.line.lock().expect("no test panics while it asks");
        send(&*line, &request.write(), socket)?;
        let (answer, socket) = receive(&*line)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        match (answer.strip_prefix("errno "), socket) {
            (Some(number), _) => Err(io::Error::from_raw_os_error(number.parse().expect("an error number"))),
            (None, Some(socket)) => Ok(socket),
            (None, None) => Err(io::Error::other(format!("the door answered {answer:?}"))),
        }
    }
}

/// Sends a datagram, with a socket or without.
pub fn send(line: &impl AsRawFd, text: &str, socket: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let sockets: Vec<RawFd> = socket.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&sockets)];
    let control = if sockets.is_empty() { &rights[..0] } else { &rights[..] };
    sendmsg::<()>(line.as_raw_fd(), &[IoSlice::new(text.as_bytes())], control, MsgFlags::empty(), None)?;
    Ok(())
}

/// Receives a datagram and the socket that comes with it; `None` when the other end is gone.
pub fn receive(line: &impl AsRawFd) -> io::Result<Option<(String, Option<OwnedFd>)>> {
    let mut bytes = [0; MESSAGE_MAX];
    let mut control = cmsg_space!(RawFd);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let message = recvmsg::<()>(line.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let length = message.bytes;
    let came =
        message.cmsgs().map_err(|_| io::Error::other("a socket came and was lost: no descriptor is left here"))?;
    let socket = came.into_iter().find_map(|control| match control {
        ControlMessageOwned::ScmRights(sockets) => sockets.first().copied(),
        _ => None,
    });
    // SAFETY: the kernel has just put this descriptor into our table for this message; nobody else owns it.
    let socket = socket.map(|socket| unsafe { OwnedFd::from_raw_fd(socket) });
    Ok((length > 0).then(|| (String::from_utf8_lossy(&bytes[..length]).into_owned(), socket)))
}
