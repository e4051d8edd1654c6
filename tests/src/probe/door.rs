//! The far side of a door: requests come in on standard input, which is a socket; the sockets they ask for go out.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use socket2::{Domain, Socket, Type};
use sockway_tests::{
    door::{Request, receive, send},
    patience,
};

use crate::Outcome;

/// A blocking connect gives up after this: a door that hangs would hang the test.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(20);

/// Answers requests until the test closes its end.
pub fn serve() -> Outcome {
    let line = io::stdin();
    while let Some((request, socket)) = receive(&line)? {
        let request = Request::read(&request).ok_or("no such request")?;
        match handle(request, socket) {
            Ok(socket) => send(&line, "ok", Some(socket.as_fd()))?,
            Err(error) => send(&line, &format!("errno {}", error.raw_os_error().unwrap_or(0)), None)?,
        }
    }
    Ok(())
}

fn handle(request: Request, brought: Option<OwnedFd>) -> io::Result<Socket> {
    match request {
        Request::Make(address) => stream(address),
        Request::Dial(address) => dial(address),
        Request::Begin(address) => begin(address),
        Request::Redial(address) => redial(Socket::from(brought.ok_or(io::ErrorKind::InvalidInput)?), address),
        Request::Listen(address) => listen(address),
        Request::Bind(address) => bind(address),
    }
}

fn stream(address: SocketAddr) -> io::Result<Socket> {
    Socket::new(Domain::for_address(address), Type::STREAM, None)
}

fn dial(address: SocketAddr) -> io::Result<Socket> {
    redial(stream(address)?, address)
}

fn begin(address: SocketAddr) -> io::Result<Socket> {
    let socket = stream(address)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(socket),
    }
}

fn redial(socket: Socket, address: SocketAddr) -> io::Result<Socket> {
    socket.set_write_timeout(Some(patience::deadline(CONNECT_TIME_MAX)))?;
    match socket.connect(&address.into()) {
        // A socket whose failed connect nobody has seen returned says this once, then may dial again.
        Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => socket.connect(&address.into())?,
        result => result?,
    }
    socket.set_write_timeout(None)?;
    Ok(socket)
}

fn bind(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Connections that may wait to be accepted: as many as the kernel allows by default (`somaxconn`), and more than any burst of a test.
/// What finds no place is dropped by the kernel, and later reset if it was acknowledged by a SYN cookie: nobody's fault, but bytes are lost.
const BACKLOG: i32 = 4096;

fn listen(address: SocketAddr) -> io::Result<Socket> {
    let socket = stream(address)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}
