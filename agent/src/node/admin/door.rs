//! The doors of the admin endpoint: a TCP address, and a Unix socket that only its owner can open. Visitors are few and short-lived by
//! bounds, so that none of them, slow or stuck, is in the way.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    extract::connect_info::Connected,
    serve::{IncomingStream, Listener},
};
use rustix::{fs::Mode, process::umask};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep},
};

/// Who is at the door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Somebody who could open the Unix socket: a process of this user.
    Socket {
        /// The user's id, if the system tells.
        uid: Option<u32>,
    },
    /// Anybody who has a way to the address.
    Tcp,
}

/// Who is at the door, and whether he stays.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Who.
    pub peer: Peer,
    stays: Arc<AtomicBool>,
}

impl Guest {
    /// From now on the visit lasts for as long as what it is told is read.
    pub fn stays(&self) {
        self.stays.store(true, Relaxed);
    }
}

/// A stream that knows who is at its other end.
pub trait Known {
    /// Who.
    fn peer(&self) -> Peer;
}

impl Known for TcpStream {
    fn peer(&self) -> Peer {
        Peer::Tcp
    }
}

impl Known for UnixStream {
    fn peer(&self) -> Peer {
        Peer::Socket { uid: self.peer_cred().ok().map(|cred| cred.uid()) }
    }
}

/// A Unix socket that only its owner can open. Dropping it removes its name.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
}

impl Socket {
    /// Listens at this path, in the place of a dead agent's socket.
    ///
    /// # Errors
    ///
    /// When the system refuses.
    pub fn bind(path: &Path) -> io::Result<(Self, UnixListener)> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        // It has its mode before anybody can open it: it gets its name last.
        let mut new = path.as_os_str().to_owned();
        new.push(".new");
        let _ = fs::remove_file(&new); // of an agent that died between these lines
        let before = umask(Mode::from_raw_mode(0o177));
        let bound = UnixListener::bind(&new);
        umask(before);
        let listener = bound?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600))?;
        fs::rename(&new, path)?;
        Ok((Self { path: path.to_owned() }, listener))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Lets visitors in, no more than there are permits.
pub struct Door<L> {
    listener: L,
    visit_max: Duration,
    permits: Arc<Semaphore>,
}

impl<L> Door<L> {
    /// Of this listener: so many visitors at once, and each for so long.
    pub fn new(listener: L, visitors_max: usize, visit_max: Duration) -> Self {
        Self { listener, visit_max, permits: Arc::new(Semaphore::new(visitors_max)) }
    }
}

impl<L: Listener<Io: Known>> Listener for Door<L> {
    type Io = Visitor<L::Io>;
    type Addr = Guest;

    async fn accept(&mut self) -> (Self::Io, Guest) {
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok();
        let (stream, _) = self.listener.accept().await;
        let guest = Guest { peer: stream.peer(), stays: Arc::default() };
        let (visit_max, stays) = (self.visit_max, Arc::clone(&guest.stays));
        (Visitor { stream, visit_max, stays, leave: Box::pin(sleep(visit_max)), _permit: permit }, guest)
    }

    fn local_addr(&self) -> io::Result<Guest> {
        Ok(Guest { peer: Peer::Tcp, stays: Arc::default() }) // nobody asks
    }
}

impl<L: Listener<Io: Known>> Connected<IncomingStream<'_, Door<L>>> for Guest {
    fn connect_info(stream: IncomingStream<'_, Door<L>>) -> Self {
        stream.remote_addr().clone()
    }
}

/// A connection that ends when its time is up.
pub struct Visitor<S> {
    stream: S,
    visit_max: Duration,
    /// Whether its time begins anew with each write.
    stays: Arc<AtomicBool>,
    leave: Pin<Box<Sleep>>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl<S> Visitor<S> {
    fn in_time(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.leave.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Visitor<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.in_time(context)?;
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Visitor<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.in_time(context)?;
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
        if self.stays.load(Relaxed) {
            let until = Instant::now() + self.visit_max;
            self.leave.as_mut().reset(until);
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_its_owners_alone_and_goes_with_the_agent() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("a/b.sock");
        // As an agent that was killed leaves it.
        std::mem::forget(Socket::bind(&path).expect("bindable").0);
        let (socket, listener) = Socket::bind(&path).expect("bindable again");
        let mode = fs::metadata(socket.path()).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let mut door = Door::new(listener, 1, Duration::from_secs(5));
        let _stream = UnixStream::connect(&path).await.expect("it listens");
        let (_visitor, guest) = door.accept().await;
        assert_eq!(guest.peer, Peer::Socket { uid: Some(rustix::process::getuid().as_raw()) });
        drop(socket);
        assert_eq!(fs::read_dir(path.parent().expect("a directory")).expect("readable").count(), 0);
    }
}
