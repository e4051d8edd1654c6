//! The hands on io_uring: one file per operation, each a one-shot of our own on the tokio-uring runtime.
//!
//! An operation owns its buffer until the kernel is done with it. None in flight is ever dropped while its socket lives: tokio-uring
//! cannot cancel one, so a dropped receive would stay armed and swallow bytes. What ends an operation early is its socket being shut:
//! [`Stream`] does so when it is dropped, and [`Watch`] when a deadline has passed.
//!
//! Nothing here judges: bytes go in and out, errors are the kernel's own.

mod buf;
mod close;
mod connect;
mod readiness;
mod recv;
mod runtime;
mod send;
mod socket;
mod stream;
mod watch;

pub use buf::{Buf, Buffers, HEADROOM, LARGE, MEDIUM, SMALL};
pub use connect::connect;
pub use readiness::of_listener;
pub use runtime::run;
pub use socket::Socket;
pub use stream::{Reader, Stream, Writer};
pub use watch::{Due, Watch};

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
