//! A worker: one thread, one ring, its listeners and the connections that came through them. Work never moves to another worker.

mod sweep;
#[cfg(test)]
mod tests;

use std::{
    cell::RefCell,
    collections::HashMap,
    io,
    net::TcpListener,
    os::fd::AsRawFd as _,
    rc::Rc,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    thread::{Builder, JoinHandle, Thread},
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::descriptors;
use crate::{
    accept::{Accepted, Gate, Listener, Permit},
    cluster::{Reason, Snapshot},
    kernel::{Flows, Place},
    proxy::{self, EndpointNews, Hop},
    record::{Counter, Slab},
    ring,
};

/// Most connections of one worker at a time. Each holds a task, a descriptor or two, and 4 KiB while idle.
const CONNECTIONS_MAX: usize = 65_536;
/// How long accepting rests when descriptors or memory have run out: one that is refused at once would be tried again at once.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// What a worker shares with the rest of the node.
#[derive(Clone, Debug)]
pub struct WorkerShared {
    /// All services; a reload stores a new one.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// The kernel half's knowledge of connections.
    pub flows: Flows,
    /// This worker's counts.
    pub slab: Arc<Slab>,
    /// Where it tells what the main thread must see to.
    pub events: UnboundedSender<WorkerEvent>,
}

/// What a worker tells the main thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerEvent {
    /// An endpoint could not be reached, and was set down.
    EndpointDown {
        /// The service's id.
        service: u32,
        /// The endpoint's id within the service.
        endpoint: u32,
    },
    /// An endpoint did worse than it should, and was ejected.
    EndpointEjected {
        /// The service's id.
        service: u32,
        /// The endpoint's id within the service.
        endpoint: u32,
        /// What there was too much of.
        reason: Reason,
    },
}

/// A listener for a worker.
#[derive(Debug)]
pub struct Listening {
    /// Listening already.
    pub socket: TcpListener,
    /// Cookie of the network namespace in which it listens.
    pub netns: u64,
    /// Whether it is for connections that come in: then also where it is.
    pub place: Option<Arc<Place>>,
}

enum Command {
    Listen(Listening),
    LetGo(u64),
    Unlisten(u64),
    EndInside(u64),
    End { service: u32, endpoint: u32 },
    Drain,
    Stop,
}

/// What both threads see of a worker.
#[derive(Debug, Default)]
struct Vitals {
    connections: AtomicUsize,
    progress: AtomicU64,
    ran_short: AtomicBool,
    /// Who is to know at once that descriptors run short.
    woken: OnceLock<Thread>,
}

impl Vitals {
    fn run_short(&self) {
        if !self.ran_short.swap(true, Relaxed)
            && let Some(thread) = self.woken.get()
        {
            thread.unpark();
        }
    }
}

/// A worker's progress.
#[derive(Debug)]
pub struct Progress(Arc<Vitals>);

impl Progress {
    /// Grows every 250 ms at least while the worker's loop turns.
    pub fn so_far(&self) -> u64 {
        self.0.progress.load(Relaxed)
    }

    /// Whether it has run short of descriptors since it was asked last.
    pub fn ran_short(&self) -> bool {
        self.0.ran_short.swap(false, Relaxed)
    }

    /// Unparks this thread when it does.
    pub fn wakes(&self, thread: Thread) {
        let _ = self.0.woken.set(thread); // there is one heart
    }
}

/// The main thread's handle of a worker.
#[derive(Debug)]
pub struct Worker {
    commands: UnboundedSender<Command>,
    vitals: Arc<Vitals>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts `worker-<index>`.
    pub fn spawn(index: usize, shared: WorkerShared) -> io::Result<Self> {
        let (commands, received) = unbounded_channel();
        let vitals = Arc::<Vitals>::default();
        let (started, outcome) = std::sync::mpsc::channel();
        let body = {
            let vitals = Arc::clone(&vitals);
            move || {
                let failed = started.clone();
                if let Err(error) = ring::run(async move {
                    let _ = started.send(Ok(()));
                    run(shared, received, vitals).await;
                }) {
                    let _ = failed.send(Err(error));
                }
            }
        };
        let thread = Builder::new().name(format!("worker-{index}")).spawn(body)?;
        outcome.recv().unwrap_or_else(|_| Err(io::Error::other("the worker ended before it began")))?;
        Ok(Self { commands, vitals, thread: Some(thread) })
    }

    /// Hands it a listener.
    pub fn listen(&self, listening: Listening) {
        self.tell(Command::Listen(listening));
    }

    /// Closes its listeners for connections that come in to a network namespace; what is in their queues is still served.
    pub fn let_go(&self, netns: u64) {
        self.tell(Command::LetGo(netns));
    }

    /// Closes its listeners in a network namespace for what programs there dial; what is in their queues is still served.
    pub fn unlisten(&self, netns: u64) {
        self.tell(Command::Unlisten(netns));
    }

    /// Ends connections that came in to a network namespace, which lives by them alone.
    pub fn end_inside(&self, netns: u64) {
        self.tell(Command::EndInside(netns));
    }

    /// Ends its connections to an endpoint, whatever goes on there.
    pub fn end_endpoint(&self, service: u32, endpoint: u32) {
        self.tell(Command::End { service, endpoint });
    }

    /// Stops accepting, ends idle connections, and lets those in use end behind their response.
    pub fn drain(&self) {
        self.tell(Command::Drain);
    }

    /// How many connections it serves.
    pub fn connections(&self) -> usize {
        self.vitals.connections.load(Relaxed)
    }

    /// Whether its loop turns, to be watched from any thread.
    pub fn progress(&self) -> Progress {
        Progress(Arc::clone(&self.vitals))
    }

    /// Whether its thread has ended, which without [`Worker::stop`] is a bug.
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Ends it, and whatever it still serves.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.tell(Command::Stop);
        if let Some(thread) = self.thread.take() {
            // A panic was reported when it happened.
            let _ = thread.join();
        }
    }

    fn tell(&self, command: Command) {
        // A worker that has ended needs no telling.
        let _ = self.commands.send(command);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.end();
    }
}

/// The worker's own side of itself.
struct Inside {
    hop: Rc<Hop>,
    gate: Rc<Gate>,
    vitals: Arc<Vitals>,
    listeners: RefCell<HashMap<u64, Vec<Rc<Listener>>>>,
}

async fn run(shared: WorkerShared, mut commands: UnboundedReceiver<Command>, vitals: Arc<Vitals>) {
    let events = shared.events;
    let endpoint_news = move |news, service, endpoint| {
        let _ = events.send(match news {
            EndpointNews::Down => WorkerEvent::EndpointDown { service, endpoint },
            EndpointNews::Ejected(reason) => WorkerEvent::EndpointEjected { service, endpoint, reason },
        });
    };
    let hop = Rc::new(Hop::new(shared.snapshot, shared.flows, shared.slab, Box::new(endpoint_news), seed()));
    let gate = Gate::new(CONNECTIONS_MAX);
    let inside = Rc::new(Inside { hop, gate, vitals, listeners: RefCell::default() });
    tokio_uring::spawn(sweep::sweep(Rc::clone(&inside)));
    while let Some(command) = commands.recv().await {
        match command {
            Command::Listen(listening) => inside.listen(listening),
            Command::LetGo(netns) => inside.close(netns, |listener| listener.place.is_some()),
            Command::Unlisten(netns) => inside.close(netns, |listener| listener.place.is_none()),
            Command::EndInside(netns) => inside.hop.upstreams.end_inside(netns),
            Command::End { service, endpoint } => inside.hop.upstreams.end(service, endpoint),
            Command::Drain => inside.drain(),
            Command::Stop => return inside.drain(),
        }
    }
}

impl Inside {
    fn listen(self: &Rc<Self>, listening: Listening) {
        let netns = listening.netns;
        match Listener::new(listening.socket, netns, listening.place) {
            Ok(listener) => {
                let listener = Rc::new(listener);
                self.listeners.borrow_mut().entry(netns).or_default().push(Rc::clone(&listener));
                tokio_uring::spawn(accept(Rc::clone(self), listener));
            }
            Err(error) => tracing::error!(netns, %error, "a listener cannot be used"),
        }
    }

    /// Closes the listeners in a namespace that are meant.
    fn close(self: &Rc<Self>, netns: u64, is_meant: impl Fn(&Listener) -> bool) {
        let all = self.listeners.borrow_mut().remove(&netns).unwrap_or_default();
        let (closing, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|listener| is_meant(listener));
        if !others.is_empty() {
            self.listeners.borrow_mut().insert(netns, others);
        }
        for listener in closing {
            listener.close(|socket, peer| self.serve(socket, &listener, peer, None));
        }
    }

    fn drain(self: &Rc<Self>) {
        let namespaces: Vec<u64> = self.listeners.borrow().keys().copied().collect();
        namespaces.into_iter().for_each(|netns| self.close(netns, |_| true));
        self.hop.drain();
    }

    fn serve(
        self: &Rc<Self>,
        socket: std::os::fd::OwnedFd,
        listener: &Listener,
        peer: std::net::SocketAddr,
        permit: Option<Permit>,
    ) {
        let held = (permit, Served::begin(&self.vitals));
        let hop = Rc::clone(&self.hop);
        match listener.place.clone() {
            Some(place) => ring::spawn(async move {
                proxy::inbound::serve(hop, socket, place, peer).await;
                drop(held);
            }),
            None => ring::spawn(proxy::serve(hop, socket, held)),
        }
    }
}

/// One listener's loop: a permit, then a connection.
async fn accept(inside: Rc<Inside>, listener: Rc<Listener>) {
    let mark = descriptors::mark();
    loop {
        let permit = inside.gate.permit().await;
        match listener.accept().await {
            Ok(Accepted::Connection(socket, peer)) => {
                if socket.as_raw_fd() >= mark {
                    inside.vitals.run_short();
                }
                inside.serve(socket, &listener, peer, Some(permit));
            }
            Ok(Accepted::Closed) => return,
            Err(error) => {
                inside.hop.slab.count(Counter::AcceptFailed);
                tracing::debug!(%error, "accepting failed");
                if !is_of_one_connection(&error) {
                    inside.vitals.run_short();
                    tokio::time::sleep(ACCEPT_REST).await;
                }
            }
        }
    }
}

/// Errors that concern the one connection that was to be accepted (accept(2)), not the listener.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ECONNABORTED | libc::EINTR | libc::EAGAIN | libc::EPROTO))
}

/// A connection being served, counted until it is dropped.
struct Served(Arc<Vitals>);

impl Served {
    fn begin(vitals: &Arc<Vitals>) -> Self {
        // One writer: this thread.
        vitals.connections.store(vitals.connections.load(Relaxed) + 1, Relaxed);
        Self(Arc::clone(vitals))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.0.connections.store(self.0.connections.load(Relaxed) - 1, Relaxed);
    }
}

/// Some random number: the standard library seeds its hash maps with nothing else.
fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}
