//! CONNECT.

use std::{io, net::SocketAddr, os::fd::RawFd};

use io_uring::{cqueue, opcode, types::Fd};
use socket2::SockAddr;
use tokio_uring::{OneshotOutputTransform, UnsubmittedOneshot};

/// Connects a socket; its deadline, if it has one, shuts it and thereby ends this.
pub async fn connect(socket: RawFd, address: SocketAddr) -> io::Result<()> {
    let address = Box::new(SockAddr::from(address));
    let entry = opcode::Connect::new(Fd(socket), address.as_ptr().cast(), address.len()).build();
    UnsubmittedOneshot::new(address, Connected, entry).submit().await
}

struct Connected;

impl OneshotOutputTransform for Connected {
    type Output = io::Result<()>;
    type StoredData = Box<SockAddr>;

    fn transform_oneshot_output(self, _address: Box<SockAddr>, entry: cqueue::Entry) -> Self::Output {
        super::outcome(&entry).map(drop)
    }
}
