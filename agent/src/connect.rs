//! Endpoint to upstream connection: one that an earlier request used, one that others use now, or a new one.

mod shared;

pub use self::shared::{
    CONNECTION_WINDOW_BYTES, RESET_STREAMS_MAX, SEND_BUFFER_BYTES, STREAM_WINDOW_BYTES, STREAMS_MAX, Seat,
};

use std::{
    cell::RefCell,
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    io,
    net::SocketAddr,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use rustls::ClientConnection;

use crate::{
    cluster::{Endpoint, EndpointState, Held, Overflow, Service, Stage, ThresholdState},
    config::{
        threshold::Threshold,
        tls::{Originate, Within},
    },
    kernel::{Flows, Place},
    record::{Counter, Slab},
    ring::{self, Buffers, Due, HandshakeError, Socket, Stream, Watch},
};

/// How long an unused connection is kept. Below the 60 s that many servers keep theirs, so that it is we who end it.
const IDLE_MAX: Duration = Duration::from_secs(55);
/// Most unused connections kept to one endpoint by one worker; each holds a descriptor at both ends.
const IDLE_COUNT_MAX: usize = 256;

/// Why an endpoint could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// It refused, or there is no way to it.
    #[error("{0}")]
    Failed(io::Error),
    /// It did not accept in time.
    #[error("not accepted within {0:?}")]
    Late(Duration),
    /// It accepted, and then no TLS connection came about.
    #[error("TLS: {0}")]
    Tls(HandshakeError),
    /// It accepted, and what it then said, if anything, is not HTTP/2.
    #[error("it does not speak HTTP/2")]
    NotHttp2,
    /// It accepted, and then said nothing in time.
    #[error("nothing of HTTP/2 within {0:?}")]
    Mute(Duration),
    /// The service has as many connections, or requests that wait for one, as it may have.
    #[error("as many as there may be: {}", .0.word())]
    Overflow(Threshold),
    /// This process or host is out of descriptors or memory: says nothing of the endpoint.
    #[error("no socket: {0}")]
    Ours(io::Error),
}

/// A client's connection that came in, on its way to the program.
///
/// Its connections to the program are its own: each tells the program of this client, so none is ever used for another.
pub struct Visit {
    /// Where it came in.
    pub place: Arc<Place>,
    /// Who it is.
    pub client: SocketAddr,
    /// What it dialled.
    pub destination: SocketAddr,
    /// What its last request used.
    idle: RefCell<Option<Stream>>,
    /// What its requests share.
    links: RefCell<shared::Links>,
}

impl Visit {
    /// Of `client`, who dialled `destination`.
    pub fn new(place: Arc<Place>, client: SocketAddr, destination: SocketAddr) -> Self {
        Self { place, client, destination, idle: RefCell::default(), links: RefCell::default() }
    }

    /// The connection to the program that its last request used, if that is still alive, as far as can be known. `untold`: as for
    /// [`Upstreams::reuse`].
    pub fn reuse(&self, untold: bool) -> Option<Stream> {
        let mut stream = self.idle.borrow_mut().take()?;
        is_trusted(&mut stream, untold).then_some(stream)
    }

    /// Keeps a connection to the program for its next request.
    pub fn keep(&self, stream: Stream) {
        *self.idle.borrow_mut() = Some(stream);
    }
}

/// The upstream connections of one worker.
pub struct Upstreams {
    idle: RefCell<HashMap<(u32, u32), Shelf, BuildHasherDefault<IdHasher>>>,
    shared: shared::Shared,
    /// Services whose connections are bounded, by their ids.
    bounded: RefCell<HashMap<u32, Arc<ThresholdState>>>,
    watch: Rc<Watch>,
    flows: Flows,
    slab: Arc<Slab>,
    buffers: Rc<Buffers>,
}

/// The unused connections to one endpoint, the last used on top.
struct Shelf {
    meant: Meant,
    state: Arc<EndpointState>,
    idle: Vec<(Stream, Duration)>,
}

/// What connections to an endpoint are made by: those made by anything else are of no use.
#[derive(Clone, PartialEq)]
struct Meant {
    address: SocketAddr,
    tls: Option<Arc<Originate>>,
}

impl Meant {
    fn of(service: &Service, endpoint: &Endpoint) -> Self {
        Self { address: endpoint.address, tls: service.config.tls.originate.clone() }
    }

    /// Whether it still holds. The same section read once is the same; read again, it is compared.
    fn holds(&self, service: &Service, endpoint: &Endpoint) -> bool {
        let tls = &service.config.tls.originate;
        let same = match (&self.tls, tls) {
            (Some(before), Some(now)) => Arc::ptr_eq(before, now) || before == now,
            (before, now) => before.is_none() && now.is_none(),
        };
        same && self.address == endpoint.address
    }
}

impl Shelf {
    fn of(service: &Service, endpoint: &Endpoint) -> Self {
        Self { meant: Meant::of(service, endpoint), state: Arc::clone(&endpoint.state), idle: Vec::new() }
    }
}

impl Upstreams {
    /// None yet.
    pub fn new(watch: Rc<Watch>, flows: Flows, slab: Arc<Slab>, buffers: Rc<Buffers>) -> Self {
        let (idle, shared, bounded) = Default::default();
        Self { idle, shared, bounded, watch, flows, slab, buffers }
    }

    /// A connection that an earlier request used and that is still alive, as far as can be known. `untold`: who asks came before epoll had a
    /// turn to tell, so the connection itself is asked.
    pub fn reuse(&self, service: &Service, endpoint: &Endpoint, untold: bool) -> Option<Stream> {
        let mut idle = self.idle.borrow_mut();
        let shelf = idle.get_mut(&(service.id, endpoint.id)).filter(|shelf| shelf.meant.holds(service, endpoint))?;
        while let Some((mut stream, _)) = shelf.idle.pop() {
            if is_trusted(&mut stream, untold) {
                return Some(stream);
            }
            self.slab.count(Counter::PoolGone);
        }
        None
    }

    /// Keeps a connection for the next request. Everything asked on it must have been answered.
    pub fn keep(&self, service: &Service, endpoint: &Endpoint, stream: Stream) {
        // Somebody waits for its place.
        if service.guard.thresholds.as_ref().is_some_and(|thresholds| thresholds.waiting() > 0) {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        let shelf = idle.entry((service.id, endpoint.id)).or_insert_with(|| Shelf::of(service, endpoint));
        if !shelf.meant.holds(service, endpoint) {
            // The id means another address since the last reload, or it is reached by other means.
            *shelf = Shelf::of(service, endpoint);
        }
        if shelf.idle.len() >= IDLE_COUNT_MAX {
            return self.slab.count(Counter::PoolFull);
        }
        shelf.idle.push((stream, self.watch.now()));
    }

    /// A new connection, for what is spoken `within` if it is one of TLS.
    pub async fn dial(&self, service: &Service, endpoint: &Endpoint, within: Within) -> Result<Stream, ConnectError> {
        // Boxed: most services have no bounds.
        let (_pending, place) = match &service.guard.thresholds {
            Some(thresholds) => Box::pin(self.room(service, thresholds)).await?,
            None => (None, None),
        };
        let mut result = self.try_dial(service, endpoint).await;
        if let Ok(stream) = &mut result {
            stream.held = place;
        }
        if let (Ok(stream), Some(originate)) = (&mut result, &service.config.tls.originate) {
            let timeout = service.config.connect_timeout;
            // Boxed: its state is large, and most connections never need it.
            let secured = Box::pin(self.start_tls(stream, originate, endpoint, (within, timeout))).await;
            result = secured.and(result);
        }
        self.count_dial(&result);
        if matches!(result, Err(ConnectError::Failed(_) | ConnectError::Late(_) | ConnectError::Tls(_))) {
            endpoint.state.connect_failures.fetch_add(1, Relaxed);
        }
        result
    }

    /// Places for one who waits for a connection, and for the connection. While there are too many it waits for one to end, for as long as a
    /// connection may take to be made.
    async fn room(
        &self,
        service: &Service,
        thresholds: &Arc<ThresholdState>,
    ) -> Result<(Option<Held>, Option<Held>), ConnectError> {
        let overflow = |overflow: Overflow| ConnectError::Overflow(overflow.0);
        let pending = service.hold(Threshold::Pending).map_err(overflow)?;
        let Some((state, most)) = service.threshold(Threshold::Connections) else { return Ok((pending, None)) };
        if let Some(place) = state.take(Threshold::Connections, most) {
            return Ok((pending, Some(place)));
        }
        self.bounded.borrow_mut().entry(service.id).or_insert_with(|| Arc::clone(thresholds));
        self.close_unused(service.id);
        let place = tokio::time::timeout(service.config.connect_timeout, state.freed(most)).await;
        let place = place.map_err(|_| overflow(state.overflows(Threshold::Connections)))?;
        Ok((pending, Some(place)))
    }

    /// Closes connections that nobody uses, of services of which somebody waits for one: another worker may have none.
    pub fn make_room(&self) {
        for (service, thresholds) in &*self.bounded.borrow() {
            if thresholds.waiting() > 0 {
                self.close_unused(*service);
            }
        }
    }

    fn close_unused(&self, service: u32) {
        self.idle.borrow_mut().retain(|(owner, _), _| *owner != service);
        self.shared.close_unused(service);
    }

    fn count_dial(&self, result: &Result<Stream, ConnectError>) {
        self.slab.count(match result {
            Ok(_) | Err(ConnectError::NotHttp2 | ConnectError::Mute(_)) => Counter::ConnectAccepted,
            Err(ConnectError::Failed(_)) => Counter::ConnectFailed,
            Err(ConnectError::Late(_)) => Counter::ConnectLate,
            Err(ConnectError::Tls(_)) => Counter::ConnectTls,
            Err(ConnectError::Ours(_) | ConnectError::Overflow(_)) => Counter::ConnectOurs,
        });
    }

    async fn try_dial(&self, service: &Service, endpoint: &Endpoint) -> Result<Stream, ConnectError> {
        let socket = Socket::dialling(endpoint.address, &self.watch, owner(service.id, endpoint.id))
            .map_err(ConnectError::Ours)?;
        self.flows.allow_shortcut(socket.as_fd(), service);
        connected(socket, endpoint.address, service.config.connect_timeout).await
    }

    async fn start_tls(
        &self,
        stream: &mut Stream,
        originate: &Originate,
        endpoint: &Endpoint,
        (within, timeout): (Within, Duration),
    ) -> Result<(), ConnectError> {
        let refused = |error| ConnectError::Tls(HandshakeError::Refused(error));
        let name = originate.name_of(endpoint.address.ip());
        let connection = ClientConnection::new(originate.client(within), name).map_err(refused)?;
        stream.socket.set_due(timeout, Due::End);
        let started = stream.start_tls(connection, &self.buffers).await;
        stream.socket.clear_due();
        match started {
            _ if stream.socket.is_overdue() => Err(ConnectError::Late(timeout)),
            started => started.map_err(ConnectError::Tls),
        }
    }

    /// A new connection to the program that a client has dialled.
    pub async fn dial_inside(&self, service: &Service, visit: &Visit) -> Result<Stream, ConnectError> {
        let result = self.try_dial_inside(service, visit).await;
        self.count_dial(&result);
        result
    }

    async fn try_dial_inside(&self, service: &Service, visit: &Visit) -> Result<Stream, ConnectError> {
        let destination = visit.destination;
        let socket = visit.place.socket(destination).map_err(ConnectError::Ours)?;
        // From the address it goes to: the hook that steers such connections passes it (trap T33), and the program meets a client that is
        // at home.
        let owner = owner_inside(visit.place.netns);
        let socket = Socket::dialling_from(socket, destination.ip(), &self.watch, owner).map_err(ConnectError::Ours)?;
        self.flows.introduce(socket.as_fd(), service, visit.client);
        let stream = connected(socket, destination, service.config.connect_timeout).await?;
        // Where nobody listens, a socket that was given the same port meets itself (RFC 9293, 3.5: simultaneous open).
        match stream.socket.local() {
            Ok(local) if local.port() == destination.port() => {
                Err(ConnectError::Failed(io::ErrorKind::ConnectionRefused.into()))
            }
            _ => Ok(stream),
        }
    }

    /// Takes a client's connection, accepted inside a namespace, under watch.
    pub fn accepted_inside(&self, socket: OwnedFd, netns: u64) -> Socket {
        Socket::accepted_for(socket, &self.watch, owner_inside(netns))
    }

    /// Ends every connection inside a network namespace: it is gone but for them.
    pub fn end_inside(&self, netns: u64) {
        self.watch.end_owned(owner_inside(netns));
    }

    /// Closes unused connections that the endpoint has ended or that nobody needed for long.
    pub fn sweep(&self) {
        let now = self.watch.now();
        self.shared.sweep(now);
        let mut idle = self.idle.borrow_mut();
        for shelf in idle.values_mut() {
            if shelf.state.stage() != Stage::Active {
                shelf.idle.clear();
            }
            shelf.idle.retain_mut(|(stream, since)| {
                let reason = match stream.reader.is_quiet() {
                    false => Counter::PoolGone,
                    true if now.saturating_sub(*since) > IDLE_MAX => Counter::PoolOld,
                    true => return true,
                };
                self.slab.count(reason);
                false
            });
        }
        idle.retain(|_, shelf| !shelf.idle.is_empty());
    }

    /// Ends every connection to an endpoint, used or not.
    pub fn end(&self, service: u32, endpoint: u32) {
        self.idle.borrow_mut().remove(&(service, endpoint));
        self.shared.end(service, endpoint);
        self.watch.end_owned(owner(service, endpoint));
    }

    /// Closes all unused connections.
    pub fn close_idle(&self) {
        self.idle.borrow_mut().clear();
        self.shared.let_go();
    }
}

/// Whether an unused connection has neither ended nor brought bytes that nobody asked for: such a one is given no request.
fn is_trusted(stream: &mut Stream, untold: bool) -> bool {
    if untold {
        stream.reader.look_for_news();
    }
    stream.reader.is_quiet()
}

/// Connects a socket in time.
async fn connected(socket: Socket, address: SocketAddr, timeout: Duration) -> Result<Stream, ConnectError> {
    socket.set_due(timeout, Due::End);
    let connected = ring::connect(socket.as_raw_fd(), address).await;
    socket.clear_due();
    match connected {
        _ if socket.is_overdue() => Err(ConnectError::Late(timeout)),
        Err(error) if is_ours(&error) => Err(ConnectError::Ours(error)),
        Err(error) => Err(ConnectError::Failed(error)),
        Ok(()) => {
            let stream = Stream::dialled(socket);
            // It will be waited for in any case: if that cannot be, it is not the endpoint that did not answer.
            stream.reader.watch().map_err(ConnectError::Ours)?;
            Ok(stream)
        }
    }
}

/// Whose a socket inside a namespace is, for the watch: the ids of services that are dialled stay below.
fn owner_inside(netns: u64) -> u64 {
    1 << 63 | netns
}

/// Whose a socket is, for the watch. Service ids begin at 1.
fn owner(service: u32, endpoint: u32) -> u64 {
    u64::from(service) << 32 | u64::from(endpoint)
}

fn is_ours(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

/// For keys that are small numbers, given by ourselves: no peer can choose them.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32(u32::from(*byte)));
    }

    fn write_u32(&mut self, id: u32) {
        // The fractional part of the golden ratio spreads consecutive numbers over all bits.
        self.0 = (self.0.rotate_left(32) ^ u64::from(id)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn what_cannot_be_watched_for_lack_of_memory_is_no_fault_of_the_endpoint() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let connect = |has_memory: bool| {
            ring::run(async move {
                let watch = Rc::<Watch>::default();
                let socket = Socket::dialling(address, &watch, 1).expect("a socket");
                let _held = (!has_memory).then(|| socket.without_memory());
                connected(socket, address, Duration::from_secs(5)).await.err()
            })
        };
        assert!(matches!(connect(false).expect("a ring"), Some(ConnectError::Ours(_))));
        assert!(connect(true).expect("a ring").is_none());
    }
}
