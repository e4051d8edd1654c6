//! Short pauses: tokio's timers go by milliseconds.

use std::{io, os::fd::OwnedFd, time::Duration};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;

use super::readiness::of_owned;

/// A clock of its own, for pauses of microseconds.
pub struct Pause(AsyncFd<OwnedFd>);

impl Pause {
    /// Makes it; a descriptor for as long as it lives.
    ///
    /// # Errors
    ///
    /// When there are no more descriptors.
    pub fn new() -> io::Result<Self> {
        let fd = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        of_owned(fd).map(Self)
    }

    /// Waits for `span`, and what the kernel adds (50 µs, usually).
    ///
    /// # Errors
    ///
    /// None that is known of.
    pub async fn wait(&self, span: Duration) -> io::Result<()> {
        let never = Timespec { tv_sec: 0, tv_nsec: 0 };
        let at = Timespec { tv_sec: span.as_secs() as i64, tv_nsec: i64::from(span.subsec_nanos()) };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &Itimerspec { it_interval: never, it_value: at })?;
        loop {
            let mut ready = self.0.readable().await?;
            let mut ticks = [0; 8];
            match rustix::io::read(&self.0, &mut ticks) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
    }
}
