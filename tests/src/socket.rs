//! What a program can ask the kernel about a socket, beyond the standard library.

use std::{
    io,
    net::TcpStream,
    os::fd::{AsFd, AsRawFd},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{MsgFlags, recv},
};

/// How many bytes the kernel says are waiting to be read (`FIONREAD`).
pub fn queued(stream: &TcpStream) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int.
    let result = unsafe { libc::ioctl(stream.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(bytes as usize) }
}

/// Asks the kernel to call it readable only when this much waits (`SO_RCVLOWAT`).
pub fn set_low_water(stream: &TcpStream, bytes: libc::c_int) -> io::Result<()> {
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel reads one int.
    let result = unsafe {
        libc::setsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVLOWAT, (&raw const bytes).cast(), length)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether there is anything to read, looked at without taking it.
pub fn readable(stream: &TcpStream) -> bool {
    recv(stream.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT).is_ok_and(|count| count > 0)
}

/// Whether the kernel reports these events on it within `milliseconds`.
pub fn polls(stream: &TcpStream, events: PollFlags, milliseconds: u16) -> bool {
    let mut entries = [PollFd::new(stream.as_fd(), events)];
    poll(&mut entries, PollTimeout::from(milliseconds)).is_ok_and(|count| count > 0)
}

/// Whether the peer has ended its direction, whatever may still wait to be read.
pub fn half_closed(stream: &TcpStream) -> bool {
    polls(stream, PollFlags::from_bits_retain(libc::POLLRDHUP), 0)
}

/// Ends a connection so that the socket, of TCP or UDP, may be connected again (`connect` to `AF_UNSPEC`).
pub fn disconnect(stream: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: all zeroes is a valid address of the family AF_UNSPEC.
    let nowhere: libc::sockaddr = unsafe { std::mem::zeroed() };
    let length = size_of::<libc::sockaddr>() as libc::socklen_t;
    // SAFETY: the kernel reads one address of the given length.
    let result = unsafe { libc::connect(stream.as_raw_fd(), &raw const nowhere, length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// How many bytes TCP has sent on it (`tcpi_bytes_sent` of `TCP_INFO`).
pub fn sent_by_tcp(stream: &TcpStream) -> io::Result<u64> {
    /// Where `tcpi_bytes_sent` stands in `struct tcp_info` (include/uapi/linux/tcp.h), since 4.19.
    const OFFSET: usize = 200;
    let mut info = [0_u8; 256];
    let mut length = info.len() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `info`.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let bytes = info[OFFSET..OFFSET + 8].try_into().expect("eight bytes");
    Ok(u64::from_ne_bytes(bytes))
}
