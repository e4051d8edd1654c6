//! The doors of the admin endpoint: a TCP address, and a Unix socket that only its owner can open. Visitors are few and short-lived by
//! bounds, and who keeps the agent waiting makes room for who comes, so that none of them, slow or stuck, is in the way.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
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
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::{Instant, Sleep, sleep, sleep_until, timeout},
};

/// How long a visitor may keep a full house waiting: in that time what was sent with the connection is here, and 32 places that
/// somebody fills with silence let more than a thousand others in a second.
const PATIENCE: Duration = Duration::from_millis(25);

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

/// Who is at the door, and what the door is to know of the visit.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Who.
    pub peer: Peer,
    visit: Arc<Visit>,
}

/// How a visit goes.
#[derive(Debug, Default)]
struct Visit {
    /// Whether it was understood what he wants.
    is_heard: AtomicBool,
    /// Whether he does not read what he is told.
    is_deaf: AtomicBool,
    /// Whether his time begins anew with each write.
    stays: AtomicBool,
}

impl Guest {
    /// It was understood what he wants: his time is no longer that of a request's head.
    pub fn is_heard(&self) {
        self.visit.is_heard.store(true, Relaxed);
    }

    /// From now on the visit lasts for as long as what it is told is read.
    pub fn stays(&self) {
        self.visit.stays.store(true, Relaxed);
    }
}

impl Visit {
    /// Whether the agent waits for him, and not he for the agent.
    fn is_idle(&self) -> bool {
        !self.is_heard.load(Relaxed) || self.is_deaf.load(Relaxed)
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

/// How long visits may last.
#[derive(Clone, Copy, Debug)]
pub struct Hours {
    /// Until it is understood what somebody wants.
    pub head_max: Duration,
    /// In all.
    pub visit_max: Duration,
}

/// Lets visitors in, no more than there are places. When all are taken, who comes gets that of who was let in first of those that keep
/// the agent waiting.
pub struct Door<L> {
    listener: L,
    hours: Hours,
    places: Arc<Semaphore>,
    /// Those that are in, in the order in which they came.
    visits: Vec<In>,
}

/// A visitor, as the door knows him.
struct In {
    since: Instant,
    visit: Arc<Visit>,
    /// Shows him out.
    out: oneshot::Sender<()>,
}

impl<L> Door<L> {
    /// Of this listener: so many visitors at once, and each for so long.
    pub fn new(listener: L, visitors_max: usize, hours: Hours) -> Self {
        Self { listener, hours, places: Arc::new(Semaphore::new(visitors_max)), visits: Vec::new() }
    }

    /// A place for one more visitor.
    async fn place(&mut self) -> Option<OwnedSemaphorePermit> {
        loop {
            self.visits.retain(|visitor| !visitor.out.is_closed());
            let place = Arc::clone(&self.places).acquire_owned();
            let idle = self.visits.iter().position(|visitor| visitor.visit.is_idle());
            let wait = match idle {
                _ if self.places.available_permits() > 0 => return place.await.ok(),
                Some(first) if self.visits[first].since.elapsed() >= PATIENCE => {
                    let _ = self.visits.remove(first).out.send(());
                    PATIENCE
                }
                Some(first) => PATIENCE.saturating_sub(self.visits[first].since.elapsed()),
                None => PATIENCE,
            };
            if let Ok(place) = timeout(wait, place).await {
                return place.ok();
            }
        }
    }
}

impl<L: Listener<Io: Known>> Listener for Door<L> {
    type Io = Visitor<L::Io>;
    type Addr = Guest;

    async fn accept(&mut self) -> (Self::Io, Guest) {
        let (stream, _) = self.listener.accept().await;
        let place = self.place().await;
        let guest = Guest { peer: stream.peer(), visit: Arc::default() };
        let (since, visit, (out, shown_out)) = (Instant::now(), Arc::clone(&guest.visit), oneshot::channel());
        self.visits.push(In { since, visit: Arc::clone(&visit), out });
        let leave = Box::pin(sleep(self.hours.head_max));
        let visitor =
            Visitor { stream, hours: self.hours, since, visit, leave, shown_out: Some(shown_out), _place: place };
        (visitor, guest)
    }

    fn local_addr(&self) -> io::Result<Guest> {
        Ok(Guest { peer: Peer::Tcp, visit: Arc::default() }) // nobody asks
    }
}

impl<L: Listener<Io: Known>> Connected<IncomingStream<'_, Door<L>>> for Guest {
    fn connect_info(stream: IncomingStream<'_, Door<L>>) -> Self {
        stream.remote_addr().clone()
    }
}

/// A connection that ends when its time is up, or its place is somebody else's.
pub struct Visitor<S> {
    stream: S,
    hours: Hours,
    since: Instant,
    visit: Arc<Visit>,
    leave: Pin<Box<Sleep>>,
    /// Says that its place is needed; `None`: it was.
    shown_out: Option<oneshot::Receiver<()>>,
    _place: Option<OwnedSemaphorePermit>,
}

impl<S> Visitor<S> {
    fn in_time(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let Some(shown_out) = &mut self.shown_out else { return Err(io::ErrorKind::TimedOut.into()) };
        // A door that is gone shows nobody out.
        if let Poll::Ready(Ok(())) = Pin::new(shown_out).poll(context) {
            self.shown_out = None;
            return Err(io::ErrorKind::TimedOut.into());
        }
        while self.leave.as_mut().poll(context).is_ready() {
            let until = self.since + self.hours.visit_max;
            if !self.visit.is_heard.load(Relaxed) || self.leave.deadline() >= until {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.leave = Box::pin(sleep_until(until));
        }
        Ok(())
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
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.visit.is_deaf.store(written.is_pending(), Relaxed);
        if matches!(written, Poll::Ready(Ok(_))) && self.visit.stays.load(Relaxed) {
            let until = Instant::now() + self.hours.visit_max;
            self.leave.as_mut().reset(until);
        }
        written
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
        let hours = Hours { head_max: Duration::from_secs(5), visit_max: Duration::from_secs(5) };
        let mut door = Door::new(listener, 1, hours);
        let _stream = UnixStream::connect(&path).await.expect("it listens");
        let (_visitor, guest) = door.accept().await;
        assert_eq!(guest.peer, Peer::Socket { uid: Some(rustix::process::getuid().as_raw()) });
        drop(socket);
        assert_eq!(fs::read_dir(path.parent().expect("a directory")).expect("readable").count(), 0);
    }
}
