//! Connecting, blocking or not.

use std::{
    io,
    net::{SocketAddr, TcpStream},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Socket, Type};

/// Connects; a non-blocking connect is waited for as programs do it: until writable, then `SO_ERROR`.
pub fn dial(address: SocketAddr, nonblocking: bool) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_nonblocking(nonblocking)?;
    match socket.connect(&address.into()) {
        Err(error) if nonblocking && error.raw_os_error() == Some(libc::EINPROGRESS) => finish(&socket)?,
        result => result?,
    }
    socket.set_nonblocking(false)?;
    Ok(socket.into())
}

fn finish(socket: &Socket) -> io::Result<()> {
    use std::os::fd::AsFd;
    poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)], PollTimeout::from(20_000_u16))?;
    socket.take_error()?.map_or(Ok(()), Err)
}
