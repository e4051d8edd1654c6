//! Upstream connections that many requests share: HTTP/2, whose frames the `h2` library reads and writes over our ring.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    hash::BuildHasherDefault,
    io,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use h2::{
    SendStream,
    client::{Builder, Connection, ResponseFuture, SendRequest},
};
use tokio::sync::{Notify, oneshot};

use super::{ConnectError, IDLE_MAX, IdHasher, Meant, Upstreams, Visit};
use crate::{
    cluster::{Endpoint, EndpointState, Service, Stage},
    config::{threshold::Threshold, tls::Within},
    decode::http2::{
        late::{Late, NOBODYS_STREAM},
        room::Room,
    },
    record::{Bytes as Count, Slab},
    ring::{Buffers, HandshakeError, Io, Stream, Watch, spawn},
};

/// What a stream may receive before the other side has taken it: with 128 KiB on the way, a round trip of 1 ms gives 1 Gbit/s.
pub const STREAM_WINDOW_BYTES: u32 = 128 * 1024;
/// Most streams on one connection, ours to an endpoint or a client's to us: nginx, Envoy and Go allow about as many.
pub const STREAMS_MAX: u32 = 100;
/// All of them together, so that readers who stand still stop nobody else; and the bound on what one connection can make us keep.
pub const CONNECTION_WINDOW_BYTES: u32 = STREAMS_MAX * STREAM_WINDOW_BYTES;
/// What of one stream may wait to be sent.
pub const SEND_BUFFER_BYTES: usize = 64 * 1024;

/// Of so many streams that were reset it is known for a second more that they were: what their sender had sent before it heard of it is
/// dropped in silence. Each takes about as much memory as a request's head.
pub const RESET_STREAMS_MAX: usize = 10 * STREAMS_MAX as usize;

/// How many streams an endpoint takes that has not said so yet: no number that one can say.
const STREAMS_UNTOLD: usize = usize::MAX - 1;
/// Most connections of one worker to one endpoint. Where each may carry one stream only, that is how many requests go at once.
const CONNECTIONS_MAX: usize = 256;

/// A connection to an endpoint.
struct Link {
    /// To be cloned for each request; on it itself none is made.
    requests: SendRequest<Bytes>,
    /// Requests on it.
    open: Cell<usize>,
    /// Since when there are none.
    idle_since: Cell<Duration>,
    /// It has ended.
    is_over: Rc<Cell<bool>>,
}

impl Link {
    /// How many more requests it takes.
    fn room(&self) -> usize {
        self.requests.current_max_send_streams().min(STREAMS_MAX as usize).saturating_sub(self.open.get())
    }

    /// Whether it has ended, or takes no more requests.
    fn is_gone(&self) -> bool {
        let poll = self.requests.clone().poll_ready(&mut Context::from_waker(Waker::noop()));
        self.is_over.get() || matches!(poll, Poll::Ready(Err(_)))
    }
}

/// The place of one request on a connection, given back by dropping it.
pub struct Seat {
    link: Rc<Link>,
    /// Whether the connection was there before.
    pub reused: bool,
    watch: Rc<Watch>,
}

impl Seat {
    /// Begins a request, or says why the connection takes none: nothing of it was sent then.
    pub fn send(
        &self,
        request: http::Request<()>,
        is_whole: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        self.link.requests.clone().send_request(request, is_whole)
    }

    /// Whether the endpoint has said that it knows the CONNECT of RFC 8441.
    pub fn takes_extended_connect(&self) -> bool {
        self.link.requests.is_extended_connect_protocol_enabled()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let open = self.link.open.get() - 1;
        self.link.open.set(open);
        self.link.idle_since.set(self.watch.now());
    }
}

/// The connections to one endpoint.
struct Shelf {
    meant: Meant,
    state: Arc<EndpointState>,
    links: Rc<RefCell<Links>>,
}

impl Shelf {
    fn of(service: &Service, endpoint: &Endpoint) -> Self {
        Self { meant: Meant::of(service, endpoint), state: Arc::clone(&endpoint.state), links: Rc::default() }
    }
}

/// Connections of which one is as good as another.
#[derive(Default)]
pub(super) struct Links {
    links: Vec<Rc<Link>>,
    dialling: Option<Rc<Dialling>>,
}

/// A connection that is being made; whoever needs one meanwhile waits for it.
#[derive(Default)]
struct Dialling {
    done: Notify,
    failed: RefCell<Option<Failure>>,
}

/// As [`ConnectError`], for everybody who waited.
#[derive(Clone)]
enum Failure {
    Tls(HandshakeError),
    Failed(io::ErrorKind),
    Late(Duration),
    NotHttp2,
    Mute(Duration),
    Overflow(Threshold),
    Ours(io::ErrorKind),
}

impl Failure {
    fn of(error: &ConnectError) -> Self {
        match error {
            ConnectError::Failed(error) => Self::Failed(error.kind()),
            ConnectError::Late(timeout) => Self::Late(*timeout),
            ConnectError::NotHttp2 => Self::NotHttp2,
            ConnectError::Mute(timeout) => Self::Mute(*timeout),
            ConnectError::Tls(error) => Self::Tls(error.clone()),
            ConnectError::Overflow(of) => Self::Overflow(*of),
            ConnectError::Ours(error) => Self::Ours(error.kind()),
        }
    }

    fn error(self) -> ConnectError {
        match self {
            Self::Failed(kind) => ConnectError::Failed(kind.into()),
            Self::Late(timeout) => ConnectError::Late(timeout),
            Self::NotHttp2 => ConnectError::NotHttp2,
            Self::Mute(timeout) => ConnectError::Mute(timeout),
            Self::Tls(error) => ConnectError::Tls(error),
            Self::Overflow(of) => ConnectError::Overflow(of),
            Self::Ours(kind) => ConnectError::Ours(kind.into()),
        }
    }
}

/// The shared connections of one worker.
#[derive(Default)]
pub(super) struct Shared {
    shelves: RefCell<HashMap<(u32, u32), Shelf, BuildHasherDefault<IdHasher>>>,
}

/// What there is for a request.
enum Found {
    Link(Rc<Link>),
    Dialling(Rc<Dialling>),
    /// Nothing: it dials, and others wait for it.
    Nothing(Rc<Dialling>),
}

impl Links {
    /// One with room.
    fn with_room(&self) -> Option<&Rc<Link>> {
        self.links.iter().find(|link| link.room() > 0 && !link.is_gone())
    }

    fn find(&mut self) -> Found {
        if let Some(link) = self.with_room() {
            return Found::Link(Rc::clone(link));
        }
        if let Some(dialling) = &self.dialling {
            return Found::Dialling(Rc::clone(dialling));
        }
        self.links.retain(|link| !link.is_gone());
        if self.links.len() >= CONNECTIONS_MAX
            && let Some(link) = self.links.iter().min_by_key(|link| link.open.get())
        {
            // All are full: it waits until one has room.
            return Found::Link(Rc::clone(link));
        }
        let dialling = Rc::<Dialling>::default();
        self.dialling = Some(Rc::clone(&dialling));
        Found::Nothing(dialling)
    }
}

impl Shared {
    /// The connections to an endpoint.
    fn links(&self, service: &Service, endpoint: &Endpoint) -> Rc<RefCell<Links>> {
        let mut shelves = self.shelves.borrow_mut();
        let shelf = shelves.entry((service.id, endpoint.id)).or_insert_with(|| Shelf::of(service, endpoint));
        if !shelf.meant.holds(service, endpoint) {
            // The id means another address since the last reload, or it is reached by other means.
            *shelf = Shelf::of(service, endpoint);
        }
        Rc::clone(&shelf.links)
    }

    /// Lets go of connections that have ended or that nobody needed for long.
    pub(super) fn sweep(&self, now: Duration) {
        let mut shelves = self.shelves.borrow_mut();
        for shelf in shelves.values_mut() {
            let is_active = shelf.state.stage() == Stage::Active;
            let is_old = |link: &Link| link.open.get() == 0 && now.saturating_sub(link.idle_since.get()) > IDLE_MAX;
            shelf.links.borrow_mut().links.retain(|link| is_active && !link.is_gone() && !is_old(link));
        }
        shelves.retain(|_, shelf| {
            let Links { links, dialling } = &*shelf.links.borrow();
            !links.is_empty() || dialling.is_some()
        });
    }

    /// Lets go of the connections of a service that carry no request.
    pub(super) fn close_unused(&self, service: u32) {
        for (_, shelf) in self.shelves.borrow_mut().iter_mut().filter(|((owner, _), _)| *owner == service) {
            shelf.links.borrow_mut().links.retain(|link| link.open.get() > 0);
        }
    }

    /// Lets go of all connections; requests on them go on.
    pub(super) fn let_go(&self) {
        self.shelves.borrow_mut().clear();
    }

    /// Lets go of the connections to an endpoint.
    pub(super) fn end(&self, service: u32, endpoint: u32) {
        self.shelves.borrow_mut().remove(&(service, endpoint));
    }
}

/// Whoever waits for a connection that is being made learns how that ended, also when it is given up.
struct Settling<'s> {
    links: &'s RefCell<Links>,
    dialling: Rc<Dialling>,
}

impl Settling<'_> {
    fn fail(&self, error: &ConnectError) {
        *self.dialling.failed.borrow_mut() = Some(Failure::of(error));
    }

    fn succeed(&self, link: &Rc<Link>) {
        self.links.borrow_mut().links.push(Rc::clone(link));
    }
}

impl Drop for Settling<'_> {
    fn drop(&mut self) {
        self.links.borrow_mut().dialling = None;
        self.dialling.done.notify_waiters();
    }
}

impl Upstreams {
    /// A place for a request on a connection to this endpoint, one that is there or a new one.
    pub async fn seat(
        &self,
        service: &Service,
        endpoint: &Endpoint,
        buffers: &Rc<Buffers>,
    ) -> Result<Seat, ConnectError> {
        let links = self.shared.links(service, endpoint);
        if let Some(link) = links.borrow().with_room() {
            return Ok(self.seated(link, true));
        }
        // Boxed: there mostly is one.
        Box::pin(self.seat_on(&links, self.dial(service, endpoint, Within::Http2), (service, buffers))).await
    }

    /// A place for a request on a connection to the program that a client has dialled.
    pub async fn seat_inside(
        &self,
        service: &Service,
        visit: &Visit,
        buffers: &Rc<Buffers>,
    ) -> Result<Seat, ConnectError> {
        self.seat_on(&visit.links, self.dial_inside(service, visit), (service, buffers)).await
    }

    fn seated(&self, link: &Rc<Link>, reused: bool) -> Seat {
        link.open.set(link.open.get() + 1);
        Seat { link: Rc::clone(link), reused, watch: Rc::clone(&self.watch) }
    }

    /// A place on one of these connections, or on a new one, which is as `dial` gives it.
    async fn seat_on(
        &self,
        links: &RefCell<Links>,
        dial: impl Future<Output = Result<Stream, ConnectError>>,
        (service, buffers): (&Service, &Rc<Buffers>),
    ) -> Result<Seat, ConnectError> {
        let mut reused = true;
        loop {
            let found = links.borrow_mut().find();
            match found {
                Found::Link(link) => return Ok(self.seated(&link, reused)),
                Found::Dialling(dialling) => {
                    let _pending =
                        service.hold(Threshold::Pending).map_err(|overflow| ConnectError::Overflow(overflow.0))?;
                    dialling.done.notified().await;
                    if let Some(failure) = &*dialling.failed.borrow() {
                        return Err(failure.clone().error());
                    }
                }
                Found::Nothing(dialling) => {
                    reused = false;
                    let settling = Settling { links, dialling };
                    let link = match dial.await {
                        Ok(stream) => self.link(Io::new(stream, buffers, None), service).await,
                        Err(error) => Err(error),
                    };
                    let link = link.inspect_err(|error| settling.fail(error))?;
                    settling.succeed(&link);
                    return Ok(self.seated(&link, reused));
                }
            }
        }
    }

    /// Makes a new connection one for many requests, unless there is one with room.
    pub async fn share(&self, service: &Service, endpoint: &Endpoint, io: Io) {
        let links = self.shared.links(service, endpoint);
        self.share_on(&links, service, io).await;
    }

    /// As [`Upstreams::share`], of a connection to the program that a client has dialled.
    pub async fn share_inside(&self, service: &Service, visit: &Visit, io: Io) {
        self.share_on(&visit.links, service, io).await;
    }

    async fn share_on(&self, links: &RefCell<Links>, service: &Service, io: Io) {
        let found = links.borrow_mut().find();
        let Found::Nothing(dialling) = found else { return };
        let settling = Settling { links, dialling };
        match self.link(io, service).await {
            Ok(link) => settling.succeed(&link),
            Err(error) => settling.fail(&error),
        }
    }

    /// Begins HTTP/2 on a connection, by prior knowledge (RFC 9113 section 3.3) or as agreed on within TLS, and waits until the endpoint has
    /// said how many streams it takes: those beyond would be refused.
    async fn link(&self, io: Io, service: &Service) -> Result<Rc<Link>, ConnectError> {
        let (timeout, room) = (service.config.connect_timeout, Room::of(&service.config.http));
        let mut late = Late::default();
        let io = io.watched_by(Box::new(move |bytes, _| {
            late.pass(bytes);
            None
        }));
        io.set_due(timeout);
        let (requests, connection) = settings(room).handshake(io.clone()).await.map_err(|_| ConnectError::NotHttp2)?;
        let is_over = Rc::<Cell<bool>>::default();
        let link = Rc::new(Link {
            requests,
            open: Cell::new(0),
            idle_since: Cell::new(self.watch.now()),
            is_over: Rc::clone(&is_over),
        });
        let (begun, begins) = oneshot::channel();
        let beginning = Some((link.requests.clone(), begun));
        spawn(drive(connection, io.clone(), Arc::clone(&self.slab), beginning, is_over));
        let has_begun = begins.await.is_ok();
        match io.stopped() {
            Some(_) => Err(ConnectError::Mute(timeout)),
            None if !has_begun || link.is_gone() => Err(ConnectError::NotHttp2),
            None => Ok(link),
        }
    }
}

fn settings(room: Room) -> Builder {
    let mut builder = Builder::new();
    builder
        .enable_push(false)
        .initial_stream_id(NOBODYS_STREAM + 2)
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_header_list_size(room.list_bytes())
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .max_concurrent_reset_streams(RESET_STREAMS_MAX)
        // What comes for the others is answered, and is no fault of the endpoint's: clients that give up calls would end, with the 1024th in
        // the connection's life, the calls of everybody on it.
        .max_local_error_reset_streams(None)
        .initial_max_send_streams(STREAMS_UNTOLD);
    builder
}

/// Moves a connection on to its end.
async fn drive(
    mut connection: Connection<Io, Bytes>,
    io: Io,
    slab: Arc<Slab>,
    mut beginning: Option<(SendRequest<Bytes>, oneshot::Sender<()>)>,
    is_over: Rc<Cell<bool>>,
) {
    let (mut received, mut sent) = (0, 0);
    let mut count = || {
        let now = io.bytes();
        slab.count_bytes(Count::UpstreamReceived, (now.0 - received) as usize);
        slab.count_bytes(Count::UpstreamSent, (now.1 - sent) as usize);
        (received, sent) = now;
    };
    let ended = io.drive(|context| {
        let polled = Pin::new(&mut connection).poll(context);
        count();
        let has_begun =
            |(requests, _): &mut (SendRequest<Bytes>, _)| requests.current_max_send_streams() != STREAMS_UNTOLD;
        if let Some((_, begun)) = beginning.take_if(has_begun) {
            io.clear_due();
            // Who waited may have given up.
            let _ = begun.send(());
        }
        match io.stopped() {
            Some(_) => Poll::Ready(Ok(())),
            None => polled,
        }
    });
    if let Err(error) = ended.await {
        tracing::debug!(%error, "an upstream connection broke");
    }
    is_over.set(true);
    drop(beginning);
    // Nothing is asked on it: what may still come is nobody's.
    io.finish(0).await;
    count();
}
