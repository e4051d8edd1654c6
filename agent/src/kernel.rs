//! The only door to aya.

use std::{net::SocketAddr, os::fd::BorrowedFd};

/// What a captured connection dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OriginalDst {
    /// The address that the program dialled.
    pub address: SocketAddr,
    /// The service's id in the snapshot.
    pub service: u32,
}

/// What the workers ask the kernel half about single connections.
#[derive(Clone, Debug)]
pub struct Flows {
    off: Option<OriginalDst>,
}

impl Flows {
    /// No kernel half: every accepted connection is taken to have dialled `original`.
    pub fn off(original: OriginalDst) -> Self {
        Self { off: Some(original) }
    }

    /// What `client`, accepted in the network namespace of this cookie, had dialled; a second call for the same connection finds nothing.
    pub fn take_original(&self, _netns: u64, _client: SocketAddr) -> Option<OriginalDst> {
        self.off
    }

    /// Lets a socket of the agent, not yet connected, take the shortcut on behalf of a service.
    pub fn allow_shortcut(&self, _socket: BorrowedFd<'_>, _service: u32) {}
}
