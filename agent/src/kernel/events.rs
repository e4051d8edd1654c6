//! What the kernel half reports, rarely, through its ring buffer.

use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
};
use sockway_common::capture::{self, event_kind};
use tokio::io::unix::AsyncFd;

use super::{KernelError, services, sys};

/// Something that the hooks noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A program in a network namespace without a listener of the agent dialled an agent service; it was balanced in the kernel.
    UnseenNamespace {
        /// The namespace's cookie.
        netns: u64,
        /// The program, in the initial pid namespace.
        pid: u32,
    },
    /// A handshake with an endpoint failed: it refused, did not answer, or the program gave up.
    ConnectFailed {
        /// Cookie of the program's network namespace.
        netns: u64,
        /// The service's id.
        service: u32,
        /// The endpoint's id.
        endpoint: u32,
    },
}

/// The stream of events.
pub struct Events {
    ring: RingBuf<MapData>,
}

impl Events {
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        Ok(Self { ring: services::table(ebpf, "EVENTS")? })
    }

    /// Makes the stream awaitable. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// When the runtime cannot watch the descriptor.
    pub fn listen(self) -> std::io::Result<EventStream> {
        // SAFETY: the ring buffer owns its descriptor and gives the same one for as long as it lives.
        let watched = unsafe { AsyncFd::register(self.ring) };
        Ok(EventStream(watched?))
    }
}

/// The stream of events on a tokio runtime.
pub struct EventStream(AsyncFd<RingBuf<MapData>>);

impl EventStream {
    /// The next event. Dropping the future loses none.
    ///
    /// # Errors
    ///
    /// When the runtime shuts down.
    pub async fn next(&mut self) -> std::io::Result<Event> {
        loop {
            let mut guard = self.0.readable_mut().await?;
            while let Some(item) = guard.get_inner_mut().next() {
                if let Some(event) = parse(&item) {
                    return Ok(event);
                }
            }
            guard.clear_ready();
        }
    }
}

fn parse(bytes: &[u8]) -> Option<Event> {
    let event: capture::Event = sys::from_bytes(bytes)?;
    match event.kind {
        event_kind::UNSEEN_NAMESPACE => Some(Event::UnseenNamespace { netns: event.netns, pid: event.pid }),
        event_kind::CONNECT_FAILED => {
            Some(Event::ConnectFailed { netns: event.netns, service: event.service, endpoint: event.endpoint })
        }
        _ => None,
    }
}
