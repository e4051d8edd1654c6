//! Whether the last socket with a value in a map is gone, asked beside the main thread: a visit to every network namespace takes a while.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    thread::{self, JoinHandle},
};

use super::sockets;

/// The sockets that have a value in one `sk_storage`.
#[derive(Debug)]
pub struct LastSockets {
    map: OwnedFd,
    asked: Option<JoinHandle<io::Result<(usize, usize)>>>,
}

impl LastSockets {
    /// Of a map.
    pub fn of(map: OwnedFd) -> Self {
        Self { map, asked: None }
    }

    /// Whether none was left when a thread looked, which this asks it to do anew otherwise. A namespace that cannot be visited may
    /// hold one. To be called from time to time; never waits.
    pub fn are_gone(&mut self) -> bool {
        if self.asked.as_ref().is_some_and(|asked| !asked.is_finished()) {
            return false;
        }
        if let Some(asked) = self.asked.take() {
            return match asked.join() {
                Ok(Ok((sockets, unseen))) => sockets == 0 && unseen == 0,
                Ok(Err(error)) => {
                    tracing::debug!(%error, "sockets that were captured could not be counted");
                    false
                }
                Err(_) => false,
            };
        }
        let ask =
            self.map.as_fd().try_clone_to_owned().and_then(|map| {
                thread::Builder::new().name("last".into()).spawn(move || sockets::holders(map.as_fd()))
            });
        match ask {
            Ok(asked) => self.asked = Some(asked),
            Err(error) => tracing::debug!(%error, "sockets that were captured could not be counted"),
        }
        false
    }
}
