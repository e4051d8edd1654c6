//! Judges from the workers' progress whether the agent lives: as long as it does, the kernel half is told so, and hands it connections.
//!
//! On a thread of its own: the workers serve however long the main thread is at work, and to write the tables of a great reload takes it
//! longer than the hooks wait for a heartbeat. Whether the main thread turns, `/live` tells.

use std::{
    io,
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::worker::Progress;
use crate::kernel::Heartbeat;

/// Time between two heartbeats.
const BEAT: Duration = Duration::from_millis(250);
/// How long a worker may stand still before connections go elsewhere. It counts four times a second: two beats may be missed.
const STILL_MAX: Duration = Duration::from_millis(750);
/// How long before somebody should look at it.
const HUNG: Duration = Duration::from_millis(1500);

/// What is worth a line in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    /// This worker has not progressed for 1.5 s.
    Hung(usize),
    /// It progresses again.
    Recovered(usize),
}

impl News {
    fn tell(self) {
        match self {
            Self::Hung(worker) => tracing::error!(
                worker,
                "worker-{worker} has not progressed for 1.5 s: agent services are balanced in the kernel until it does"
            ),
            Self::Recovered(worker) => tracing::warn!(worker, "worker-{worker} progresses again"),
        }
    }
}

/// A heart that beats until it is dropped.
#[derive(Debug)]
pub struct Pulse {
    /// Never sent to: its end is the sign.
    alive: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Pulse {
    /// Goes on with a heart that has just beaten, for as long as these workers make progress.
    ///
    /// # Errors
    ///
    /// When the system has no room for a thread.
    pub fn begin(mut heartbeat: Heartbeat, workers: Vec<Progress>) -> io::Result<Self> {
        let (alive, end) = mpsc::channel();
        let mut judge = Judge::new(workers.len(), Instant::now());
        let thread = thread::Builder::new().name("pulse".to_owned()).spawn(move || {
            while end.recv_timeout(BEAT) == Err(RecvTimeoutError::Timeout) {
                let (alive, news) = judge.judge(workers.iter().map(Progress::so_far), Instant::now());
                news.into_iter().for_each(News::tell);
                if alive && let Err(error) = heartbeat.beat() {
                    tracing::error!(%error, "no heartbeat: agent services are balanced in the kernel");
                }
            }
        })?;
        Ok(Self { alive: Some(alive), thread: Some(thread) })
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.alive = None;
        // It has nothing to say.
        self.thread.take().map(JoinHandle::join);
    }
}

/// The workers' progress so far.
#[derive(Debug)]
struct Judge {
    workers: Vec<Seen>,
    judged: Instant,
}

#[derive(Debug)]
struct Seen {
    progress: u64,
    since: Instant,
    told: bool,
}

impl Judge {
    /// Workers that have just begun.
    fn new(workers: usize, now: Instant) -> Self {
        let workers = (0..workers).map(|_| Seen { progress: 0, since: now, told: false }).collect();
        Self { workers, judged: now }
    }

    /// Whether all of these workers live, and what is worth telling.
    fn judge(&mut self, progress: impl Iterator<Item = u64>, now: Instant) -> (bool, Vec<News>) {
        let (mut alive, mut news) = (true, Vec::new());
        // Was the whole process stopped, or the machine? Then no worker is to blame for that time.
        let lost = (now - self.judged).saturating_sub(STILL_MAX);
        self.judged = now;
        for (index, (seen, progress)) in self.workers.iter_mut().zip(progress).enumerate() {
            if seen.progress != progress {
                let told = std::mem::take(&mut seen.told);
                news.extend(told.then_some(News::Recovered(index)));
                (seen.progress, seen.since) = (progress, now);
            }
            seen.since = (seen.since + lost).min(now);
            let still = now - seen.since;
            alive &= still <= STILL_MAX;
            if still >= HUNG && !seen.told {
                seen.told = true;
                news.push(News::Hung(index));
            }
        }
        (alive, news)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_stands_still_ends_the_heartbeat_and_is_named_once() {
        let begun = Instant::now();
        let mut pulse = Judge::new(2, begun);
        let cases: [(u64, [u64; 2], bool, &[News]); 7] = [
            (250, [1, 1], true, &[]),
            (500, [2, 1], true, &[]),
            (1000, [3, 1], true, &[]),
            (1250, [4, 1], false, &[]),
            (1750, [5, 1], false, &[News::Hung(1)]),
            (2000, [6, 1], false, &[]),
            (2250, [7, 2], true, &[News::Recovered(1)]),
        ];
        for (after, progress, alive, news) in cases {
            let judged = pulse.judge(progress.into_iter(), begun + Duration::from_millis(after));
            assert_eq!(judged, (alive, news.to_vec()), "after {after} ms");
        }
    }

    #[test]
    fn no_worker_is_blamed_for_the_time_that_the_whole_process_stood_still() {
        let begun = Instant::now();
        let mut pulse = Judge::new(1, begun);
        assert_eq!(pulse.judge([0].into_iter(), begun + Duration::from_secs(60)), (true, vec![]));
        assert_eq!(pulse.judge([0].into_iter(), begun + Duration::from_millis(60_250)), (false, vec![]));
        assert_eq!(pulse.judge([1].into_iter(), begun + Duration::from_millis(60_500)), (true, vec![]));
    }
}
