//! HTTP/2: a client's connection, whose requests are passed on each by itself, as HTTP/1's are.
//!
//! The frames are read and written by the `h2` library, over our ring. A request is a task; what moves the connection and the requests are
//! turns of one loop, so that what many requests have to say leaves together.

pub(super) mod body;
mod exchange;
pub(super) mod held;
mod reply;

use std::{
    cell::{Cell, RefCell},
    io, mem,
    os::fd::AsFd as _,
    pin::pin,
    rc::Rc,
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, server::Builder};

use super::{Cluster, Hop, asker::Asker};
use crate::{
    cluster::Dialler,
    connect::{CONNECTION_WINDOW_BYTES, RESET_STREAMS_MAX, SEND_BUFFER_BYTES, STREAM_WINDOW_BYTES, STREAMS_MAX},
    decode::http2::{
        PREFACE,
        guard::{Flood, Guard, Wrong},
        room::Room,
    },
    kernel::OriginalDst,
    record::{Bytes as Count, Counter},
    ring::{Buf, Io, Sentry, Stop, Stream, spawn},
};

/// How long a client may be without a request; as between requests of HTTP/1.
const IDLE: Duration = Duration::from_secs(600);
/// How long it may take to say that it speaks HTTP/2.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a client may take to end a connection that is over.
const LINGER: Duration = Duration::from_secs(2);
/// How much of what a client goes on sending is read after its connection was ended, so that it learns why.
const LINGER_BYTES_MAX: usize = 1 << 20;
/// Requests taken back by the client before they were looked at: more than the guard lets through, which tells them from other floods.
const RESETS_UNSEEN_MAX: usize = 1_000;
/// Streams that the client broke the rules on. Many fewer than the library's 1024: each costs a reset, and a proxy's clients make none.
const ERRORS_MAX: usize = 100;

/// What the requests of one connection share.
pub(super) struct Connection {
    hop: Rc<Hop>,
    cluster: RefCell<Rc<Cluster>>,
    /// Who dialled.
    asker: Asker,
    /// The same by names, if a route asked for them when the connection was made.
    dialler: Option<Box<Dialler>>,
    /// Whether the client speaks TLS.
    is_secure: bool,
    /// What sees the client's frames.
    guard: Rc<RefCell<Guard>>,
    /// The service that was dialled, and how often its line was shut before that.
    service: u32,
    stops: u64,
    /// What heads of its requests may take, as of when it was made: that much the library unpacks.
    room: Room,
    /// Whether the client is to go elsewhere.
    is_shed: Cell<bool>,
}

impl Connection {
    /// The cluster as of now.
    fn cluster(&self) -> Rc<Cluster> {
        let mut cluster = self.cluster.borrow_mut();
        self.hop.refresh(&mut cluster);
        Rc::clone(&cluster)
    }
}

/// Serves one connection to its end; of what the client sent, `first` has been received already.
pub async fn serve(
    hop: &Rc<Hop>,
    stream: Stream,
    cluster: Rc<Cluster>,
    original: OriginalDst,
    first: Option<Buf>,
) -> Counter {
    let room = Room::of(&cluster.service.config.http);
    let guard = Guard::new(PREFACE.len(), hop.watch.now()).with_continuations(room.continuations());
    let guard = Rc::new(RefCell::new(guard));
    let asker = cluster.asker(hop, stream.socket.as_fd(), original.source);
    let connection = Rc::new(Connection {
        hop: Rc::clone(hop),
        dialler: cluster.dialler(stream.socket.as_fd(), original.source, hop.watch.now()),
        service: cluster.service.id,
        stops: cluster.line.as_ref().map_or(0, |line| line.stops()),
        room,
        is_shed: Cell::default(),
        cluster: RefCell::new(cluster),
        asker,
        is_secure: stream.is_tls(),
        guard: Rc::clone(&guard),
    });
    let io = Io::new(stream, &hop.buffers, first).watched_by(sentry(hop, &guard));
    io.set_due(HANDSHAKE);
    let ended = run(&connection, &io, &guard).await;
    io.set_due(LINGER);
    io.finish(LINGER_BYTES_MAX).await;
    let (received, sent) = io.bytes();
    hop.slab.count_bytes(Count::DownstreamReceived, received as usize);
    hop.slab.count_bytes(Count::DownstreamSent, sent as usize);
    ended
}

/// Shows a guard what comes in.
fn sentry(hop: &Rc<Hop>, guard: &Rc<RefCell<Guard>>) -> Sentry {
    let (hop, guard) = (Rc::clone(hop), Rc::clone(guard));
    Box::new(move |bytes, sent| {
        let (passing, wrong) = guard.borrow_mut().see(bytes, hop.watch.now(), sent).err()?;
        tracing::debug!(%wrong, "a client's connection ends");
        Some(passing)
    })
}

fn settings(room: Room) -> Builder {
    let mut builder = Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(room.list_bytes())
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .max_concurrent_reset_streams(RESET_STREAMS_MAX)
        .max_pending_accept_reset_streams(RESETS_UNSEEN_MAX)
        .max_local_error_reset_streams(Some(ERRORS_MAX))
        .enable_connect_protocol();
    builder
}

async fn run(connection: &Rc<Connection>, io: &Io, guard: &RefCell<Guard>) -> Counter {
    let mut handshake = pin!(settings(connection.room).handshake::<_, Bytes>(io.clone()));
    let began = io.drive(|context| match handshake.as_mut().poll(context) {
        Poll::Pending if io.stopped().is_some() => Poll::Ready(None),
        polled => polled.map(Some),
    });
    let mut client = match began.await {
        Some(Ok(client)) => client,
        Some(Err(error)) if is_for_memory(&error) => return Counter::NoMemory,
        _ if io.stopped() == Some(Stop::Overdue) => return Counter::Idle,
        _ => return Counter::NotHttp2,
    };
    io.clear_due();
    let mut drain = pin!(connection.hop.drain_begins.notified());
    drain.as_mut().enable();
    if connection.hop.is_draining() {
        client.graceful_shutdown();
    }
    let (mut is_draining, mut told) = (connection.hop.is_draining(), false);
    let mut awaited = Awaited::Nothing;
    loop {
        let next = io.drive(|context| {
            if !is_draining && (connection.is_shed.get() || drain.as_mut().poll(context).is_ready()) {
                is_draining = true;
                client.graceful_shutdown();
            }
            let polled = client.poll_accept(context);
            let awaits = Awaited::of(&guard.borrow(), client.has_streams());
            if mem::replace(&mut awaited, awaits) != awaits {
                match awaits {
                    Awaited::Nothing => io.clear_due(),
                    Awaited::Request => io.set_due(IDLE),
                    Awaited::RestOfHead => io.set_due(connection.cluster().service.config.http.head_timeout),
                }
            }
            match io.stopped().filter(|_| !told && polled.is_pending()) {
                None => polled,
                Some(_) => {
                    told = true;
                    let wrong = guard.borrow().wrong();
                    let late =
                        if awaited == Awaited::RestOfHead { Reason::ENHANCE_YOUR_CALM } else { Reason::NO_ERROR };
                    client.abrupt_shutdown(wrong.map_or(late, |wrong| wrong.code().into()));
                    client.poll_accept(context)
                }
            }
        });
        match next.await {
            Some(Ok((request, respond))) => {
                io.clear_due();
                awaited = Awaited::Nothing;
                // Boxed: on the way into the runtime a task is moved several times, and this one is large. Measured: a tenth of a request.
                spawn(Box::pin(exchange::exchange(Rc::clone(connection), request, respond)));
            }
            Some(Err(error)) => return ended(&connection.hop, io, &guard.borrow(), is_draining, Some(&error)),
            None => return ended(&connection.hop, io, &guard.borrow(), is_draining, None),
        }
    }
}

/// What a client has some time for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaited {
    /// It has streams.
    Nothing,
    /// Its next request.
    Request,
    /// What is missing of a head, be there streams or not.
    RestOfHead,
}

impl Awaited {
    fn of(guard: &Guard, has_streams: bool) -> Self {
        match (guard.is_within_head(), has_streams) {
            (true, _) => Self::RestOfHead,
            (false, true) => Self::Nothing,
            (false, false) => Self::Request,
        }
    }
}

fn ended(hop: &Hop, io: &Io, guard: &Guard, is_draining: bool, error: Option<&h2::Error>) -> Counter {
    let is_flood = |error: &h2::Error| error.is_library() && error.reason() == Some(Reason::ENHANCE_YOUR_CALM);
    let flood = match guard.wrong() {
        Some(Wrong::Flood(flood)) => Some(flood),
        Some(Wrong::Broken(_)) => None,
        None => error.filter(|error| is_flood(error)).map(|_| guard.suspected()),
    };
    if let Some(flood) = flood {
        hop.slab.count(flood_counter(flood));
        return Counter::Flooded;
    }
    if io.stopped() == Some(Stop::Overdue) && guard.is_within_head() {
        hop.slab.count(Counter::HeadTimeout);
    }
    match (io.stopped(), error) {
        (Some(Stop::Overdue), _) => Counter::Idle,
        (Some(Stop::Refused), _) => Counter::BrokenHttp2,
        (None, Some(error)) if is_for_memory(error) => Counter::NoMemory,
        (None, Some(error)) if error.is_io() => Counter::ClientAborted,
        (None, Some(_)) => Counter::BrokenHttp2,
        (None, None) if is_draining => Counter::AgentDone,
        (None, None) => Counter::ClientDone,
    }
}

/// Whether the kernel had no memory to go on.
fn is_for_memory(error: &h2::Error) -> bool {
    error.get_io().is_some_and(|error| error.kind() == io::ErrorKind::OutOfMemory)
}

fn flood_counter(flood: Flood) -> Counter {
    match flood {
        Flood::Control => Counter::FloodControl,
        Flood::Resets => Counter::FloodResets,
        Flood::Data => Counter::FloodData,
        Flood::Continuations => Counter::FloodContinuations,
        Flood::Heads => Counter::FloodHeads,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, TcpStream},
        rc::Rc,
    };

    use super::*;
    use crate::{
        config::http::Http,
        ring::{self, Socket, Watch},
    };

    #[test]
    fn a_client_that_cannot_be_waited_for_is_told_from_one_that_speaks_something_else() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let accepted = listener.accept().unwrap().0;
        let is_for_memory = ring::run(async move {
            let stream = Stream::accepted(Socket::accepted(accepted.into(), &Rc::<Watch>::default()));
            let _held = stream.reader.without_memory();
            let io = Io::new(stream, &Rc::default(), None);
            settings(Room::of(&Http::default()))
                .handshake::<_, Bytes>(io)
                .await
                .is_err_and(|error| is_for_memory(&error))
        });
        assert!(is_for_memory.unwrap());
    }
}
