//! The hands on the sockets of a worker, on tokio-uring: one file per operation.
//!
//! Who waits for bytes or connections waits in the runtime's epoll set, and takes what is there with a plain system call: for messages
//! that come one at a time that was measured to cost half of a RECV each (a 1 KiB request through the agent: 1.2 µs of receiving for
//! 2.4; Linux 6.18, `cargo xtask bench l7-h1`), because tokio-uring itself waits in epoll, and each completion interrupts that wait once
//! before it is seen. The silent hold no memory in the kernel's hands, and no ring holds a listener after its process was killed. Sends are tried at once. What must wait in the kernel itself goes to the ring:
//! CONNECT, a SEND for which the socket has no room, and CLOSE, which comes behind them.
//!
//! An operation on the ring owns its buffer until the kernel is done with it. None in flight is ever dropped while its socket lives:
//! tokio-uring cannot cancel one. What ends an operation early is its socket being shut: [`Stream`] does so when it is dropped, and
//! [`Watch`] when a deadline has passed.
//!
//! Nothing here judges: bytes go in and out, errors are the kernel's own.

mod buf;
mod close;
mod connect;
mod delivery;
mod io;
mod pause;
mod readiness;
mod recv;
mod runtime;
mod send;
mod socket;
mod stream;
mod watch;

pub use buf::{Buf, Buffers, HEADROOM, HUGE, LARGE, MEDIUM, SMALL};
pub use connect::connect;
pub use io::{Io, Sentry, Stop};
pub use pause::Pause;
pub use readiness::of_listener;
pub use runtime::{Form, form, run, spawn};
pub use socket::Socket;
pub use stream::{HandshakeError, Reader, Stream, Writer};
pub use watch::{Due, Turned, Watch};

use tokio_uring::{InFlightOneshot, OneshotOutputTransform};

/// An operation that the kernel has.
type InFlight<T> = InFlightOneshot<<T as OneshotOutputTransform>::StoredData, T>;

/// The result that the kernel gave: a count or descriptor, or an error.
fn outcome(entry: &io_uring::cqueue::Entry) -> std::io::Result<usize> {
    match entry.result() {
        error if error < 0 => Err(std::io::Error::from_raw_os_error(-error)),
        count => Ok(count as usize),
    }
}
