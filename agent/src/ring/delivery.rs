//! What became of bytes that were sent: `TCP_INFO`, and waiting for the end of a connection.

use std::os::fd::{AsRawFd as _, BorrowedFd, RawFd};

use io_uring::{cqueue, opcode, types::Fd};
use tokio_uring::{OneshotOutputTransform, UnsubmittedOneshot};

/// What TCP knows of its connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    state: u8,
    acked: u64,
    sent: u64,
}

/// What that says of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// No byte of it reached the peer: its connection was gone before.
    NeverArrived,
    /// It may have, or that cannot be known.
    Unknown,
    /// The peer has ended its side and nothing was acknowledged: what it answers to the request, a reset or nothing, decides.
    Undecided,
}

/// States of a connection (include/net/tcp_states.h).
const CLOSE: u8 = 7;
const CLOSE_WAIT: u8 = 8;

impl Told {
    /// Asks the kernel; `None` where it does not count so (before Linux 4.19).
    pub fn of(socket: BorrowedFd<'_>) -> Option<Self> {
        // Where the fields stand in `struct tcp_info` (include/uapi/linux/tcp.h).
        const ACKED: usize = 120;
        const NOT_SENT: usize = 144;
        const SENT: usize = 200;
        const RETRANSMITTED: usize = 208;
        let mut info = [0_u8; RETRANSMITTED + 8];
        let mut length = info.len() as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` bytes, which are there.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                info.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        if result != 0 || (length as usize) < info.len() {
            return None;
        }
        let long = |at: usize| info[at..at + 8].try_into().map(u64::from_ne_bytes).unwrap_or(0);
        let word = |at: usize| info[at..at + 4].try_into().map(u32::from_ne_bytes).unwrap_or(0);
        let sent = long(SENT).saturating_sub(long(RETRANSMITTED)) + u64::from(word(NOT_SENT));
        Some(Self { state: info[0], acked: long(ACKED), sent })
    }

    /// What became of what was sent on the connection after its first `before` bytes; `all` were given to the kernel.
    ///
    /// Bytes that took the shortcut are no bytes of TCP's (trap T12): unless it knows of all of them, it knows nothing. The SYN counts as one
    /// byte acknowledged.
    pub fn fate(self, before: u64, all: u64) -> Fate {
        match self.state {
            _ if self.acked > before + 1 || self.sent < all => Fate::Unknown,
            CLOSE => Fate::NeverArrived,
            CLOSE_WAIT => Fate::Undecided,
            _ => Fate::Unknown,
        }
    }
}

/// Waits until both sides of a connection are over.
pub async fn hung_up(socket: RawFd) {
    let entry = opcode::PollAdd::new(Fd(socket), (libc::POLLHUP | libc::POLLERR) as u32).build();
    UnsubmittedOneshot::new((), HungUp, entry).submit().await;
}

struct HungUp;

impl OneshotOutputTransform for HungUp {
    type Output = ();
    type StoredData = ();

    fn transform_oneshot_output(self, (): (), _entry: cqueue::Entry) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_never_arrived_if_the_connection_was_reset_and_nothing_of_it_acknowledged() {
        const ESTABLISHED: u8 = 1;
        for (state, acked, sent, fate) in [
            (CLOSE, 101, 150, Fate::NeverArrived),
            (CLOSE, 50, 150, Fate::NeverArrived),
            (CLOSE, 102, 150, Fate::Unknown),
            (CLOSE, 151, 150, Fate::Unknown),
            // Some went by the shortcut.
            (CLOSE, 1, 0, Fate::Unknown),
            (CLOSE, 101, 149, Fate::Unknown),
            (CLOSE_WAIT, 101, 150, Fate::Undecided),
            (CLOSE_WAIT, 102, 150, Fate::Unknown),
            (ESTABLISHED, 101, 150, Fate::Unknown),
        ] {
            let told = Told { state, acked, sent };
            assert_eq!(told.fate(100, 150), fate, "{told:?}");
        }
    }
}
