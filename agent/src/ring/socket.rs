//! A TCP socket of a worker, under its watch.

use std::{
    io,
    mem::ManuallyDrop,
    net::{IpAddr, Shutdown, SocketAddr},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    rc::Rc,
    time::Duration,
};

use socket2::{Domain, Protocol, SockAddr, SockRef, Type};

use super::{Due, Turned, Watch, close::close, watch::NOBODY};

/// A connected or connecting socket. Blocking, as io_uring wants it: on a non-blocking one a receive without bytes fails instead of
/// waiting. Dropping it shuts it down first, which ends every operation on it, unless there can be none.
#[derive(Debug)]
pub struct Socket {
    fd: ManuallyDrop<OwnedFd>,
    watch: Rc<Watch>,
    key: usize,
    /// No operation on it can be in the ring when it is dropped.
    is_free: bool,
}

impl Socket {
    /// Takes an accepted socket under watch.
    pub fn accepted(fd: OwnedFd, watch: &Rc<Watch>) -> Self {
        Self::owned(fd, watch, NOBODY)
    }

    /// As [`Socket::accepted`], for one that belongs to an `owner`.
    pub fn accepted_for(fd: OwnedFd, watch: &Rc<Watch>, owner: u64) -> Self {
        Self::owned(fd, watch, owner)
    }

    /// A socket that was made for connecting, from the address `from` and any port.
    pub fn dialling_from(fd: OwnedFd, from: IpAddr, watch: &Rc<Watch>, owner: u64) -> io::Result<Self> {
        let socket = Self::owned(fd, watch, owner);
        let fd = SockRef::from(&*socket.fd);
        fd.set_tcp_nodelay(true)?;
        choose_port_late(socket.as_raw_fd())?;
        fd.bind(&SocketAddr::new(from, 0).into())?;
        Ok(socket)
    }

    fn owned(fd: OwnedFd, watch: &Rc<Watch>, owner: u64) -> Self {
        let key = watch.add(fd.as_raw_fd(), owner);
        Self { fd: ManuallyDrop::new(fd), watch: Rc::clone(watch), key, is_free: false }
    }

    /// A new socket for connecting to `address`. What belongs to one `owner`, any number but 0, can be ended together.
    pub fn dialling(address: SocketAddr, watch: &Rc<Watch>, owner: u64) -> io::Result<Self> {
        let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        // Heads and bodies are sent in the pieces in which they came: none must wait for the acknowledgement of the one before.
        socket.set_tcp_nodelay(true)?;
        Ok(Self::owned(socket.into(), watch, owner))
    }

    /// Sets the deadline at which the watch shuts this socket, replacing the one before.
    pub fn set_due(&self, after: Duration, due: Due) {
        self.watch.set(self.key, after, due);
    }

    /// The worker drains: what [`Watch::drain`] does to every socket, to this one.
    pub fn drain(&self, moment: Duration) {
        self.watch.drain_one(self.key, moment);
    }

    /// Ready at the next turn of its watch.
    pub fn turned(&self) -> Turned<'_> {
        self.watch.turned()
    }

    /// Says that no operation on it is in the ring, nor will be: it is closed without more ado.
    pub(super) fn set_free(&mut self) {
        self.is_free = true;
    }

    /// No deadline.
    pub fn clear_due(&self) {
        self.watch.clear(self.key);
    }

    /// Whether it has a deadline.
    pub fn has_due(&self) -> bool {
        self.watch.has(self.key)
    }

    /// Whether a deadline has passed.
    pub fn is_overdue(&self) -> bool {
        self.watch.is_overdue(self.key)
    }

    /// Ends it in the given directions; operations waiting there end.
    pub fn shut(&self, how: Shutdown) {
        // It may be gone already, which is as good.
        let _ = SockRef::from(&*self.fd).shutdown(how);
    }

    /// Whether closing it, by whoever and for whatever reason, sends RST: this process may be killed, and the kernel would otherwise end
    /// the connection as if all had been said.
    pub fn reset_on_close(&self, reset: bool) {
        // A socket that is gone already needs no telling.
        let _ = SockRef::from(&*self.fd).set_linger(reset.then_some(Duration::ZERO));
    }

    /// Bounds what may wait at either side of it, in bytes, where little is meant to go through it: see tcp(7) on `TCP_NOTSENT_LOWAT` and
    /// socket(7) on `SO_RCVBUF`, which is doubled by the kernel.
    pub fn bound_queues(&self, bytes: usize) {
        let fd = SockRef::from(&*self.fd);
        // Refused, more waits, and all else is as before.
        let _ = fd.set_recv_buffer_size(bytes);
        let _ = fd.set_tcp_notsent_lowat(bytes as u32);
    }

    /// Sends RST, so that the peer cannot take what it has for the whole. Both directions are over.
    pub fn reset(&self) {
        reset(self.as_fd());
    }

    /// The address at this end.
    pub fn local(&self) -> io::Result<SocketAddr> {
        let local = SockRef::from(&*self.fd).local_addr()?;
        local.as_socket().ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
    }

    /// See [`super::Reader::without_memory`].
    #[cfg(test)]
    pub fn without_memory(&self) -> impl Sized + use<> {
        // SAFETY: tests keep the socket for longer.
        super::stream::without_memory(unsafe { super::readiness::Borrowed::new(self.as_raw_fd()) })
    }

    /// The error that is pending on it, if any.
    pub fn take_error(&self) -> Option<io::Error> {
        SockRef::from(&*self.fd).take_error().ok().flatten()
    }
}

/// Sends RST, and ends both directions.
pub(super) fn reset(socket: BorrowedFd<'_>) {
    let fd = SockRef::from(&socket);
    let _ = fd.set_linger(Some(Duration::ZERO));
    // connect(AF_UNSPEC) disconnects at once. SO_LINGER alone would act at the last close, and the shutdown that ends the
    // operations in flight before it would send a clean FIN.
    let mut unspecified = socket2::SockAddrStorage::zeroed();
    let length = size_of::<libc::sockaddr>() as libc::socklen_t;
    // SAFETY: any socket address begins like `sockaddr`, and the storage is large enough for all of them.
    unsafe { unspecified.view_as::<libc::sockaddr>() }.sa_family = libc::AF_UNSPEC as libc::sa_family_t;
    // SAFETY: `length` bytes of the zeroed storage are an address of family AF_UNSPEC.
    let unspecified = unsafe { SockAddr::new(unspecified, length) };
    let _ = fd.connect(&unspecified);
}

/// A port that is chosen in connect() has to differ only among connections to the same destination (`IP_BIND_ADDRESS_NO_PORT`).
fn choose_port_late(fd: RawFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = size_of_val(&on) as libc::socklen_t;
    // SAFETY: the option is a number, of which the call reads `length` bytes.
    let result =
        unsafe { libc::setsockopt(fd, libc::SOL_IP, libc::IP_BIND_ADDRESS_NO_PORT, (&raw const on).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.watch.remove(self.key);
        if !self.is_free {
            self.shut(Shutdown::Both);
        }
        // SAFETY: taken once, here, where the socket ends.
        let fd = unsafe { ManuallyDrop::take(&mut self.fd) };
        if self.is_free { drop(fd) } else { close(fd) }
    }
}
