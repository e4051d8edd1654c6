//! ACCEPT, with the peer's address.

use std::{
    io,
    net::SocketAddr,
    os::fd::{FromRawFd, OwnedFd, RawFd},
};

use io_uring::{cqueue, opcode, types::Fd};
use socket2::{SockAddr, SockAddrStorage};
use tokio_uring::{OneshotOutputTransform, UnsubmittedOneshot};

/// Accepts one connection. One that is in flight when its listener is to be closed ends by itself once the listener is shut down;
/// it must be awaited until then, for a connection accepted by a dropped operation would have no owner.
pub async fn accept(listener: RawFd) -> io::Result<(OwnedFd, SocketAddr)> {
    let storage = SockAddrStorage::zeroed();
    let length = storage.size_of();
    let mut peer = Box::new(Peer { storage, length });
    let address = (&raw mut peer.storage).cast();
    let entry = opcode::Accept::new(Fd(listener), address, &raw mut peer.length).flags(libc::SOCK_CLOEXEC).build();
    UnsubmittedOneshot::new(peer, Accepted, entry).submit().await
}

struct Peer {
    storage: SockAddrStorage,
    length: libc::socklen_t,
}

struct Accepted;

impl OneshotOutputTransform for Accepted {
    type Output = io::Result<(OwnedFd, SocketAddr)>;
    type StoredData = Box<Peer>;

    fn transform_oneshot_output(self, peer: Box<Peer>, entry: cqueue::Entry) -> Self::Output {
        let fd = super::outcome(&entry)? as RawFd;
        // SAFETY: a successful ACCEPT gives a new descriptor that nobody else owns.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: ACCEPT has written an address of `length` bytes into the storage.
        let address = unsafe { SockAddr::new(peer.storage, peer.length) };
        let address = address.as_socket().ok_or(io::ErrorKind::Unsupported)?;
        Ok((socket, address))
    }
}
