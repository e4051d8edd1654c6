//! Judges from the workers' progress whether the agent lives: as long as it does, the kernel half is told so, and hands it connections.
//!
//! On a thread of its own: the workers serve however long the main thread is at work, and to write the tables of a great reload takes it
//! longer than the hooks wait for a heartbeat. Whether the main thread turns, `/live` tells.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{descriptors, worker::Progress};
use crate::kernel::Heartbeat;

/// Time between two heartbeats.
const BEAT: Duration = Duration::from_millis(250);
/// How long a worker may stand still before connections go elsewhere. It counts four times a second: two beats may be missed.
const STILL_MAX: Duration = Duration::from_millis(750);
/// How long before somebody should look at it.
const HUNG: Duration = Duration::from_millis(1500);

/// How long connections go elsewhere at least when descriptors have run short: where only a worker finds that out, by a connection that it
/// takes, it is not to find it out again and again.
const REST: Duration = Duration::from_secs(1);

/// What is worth a line in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    /// This worker has not progressed for 1.5 s.
    Hung(usize),
    /// It progresses again.
    Recovered(usize),
    /// Hardly any descriptors are left.
    Short,
    /// There are some again.
    Relieved,
}

impl News {
    fn tell(self) {
        match self {
            Self::Hung(worker) => tracing::error!(
                worker,
                "worker-{worker} has not progressed for 1.5 s: agent services are balanced in the kernel until it does"
            ),
            Self::Recovered(worker) => tracing::warn!(worker, "worker-{worker} progresses again"),
            Self::Short => tracing::error!(
                limit = descriptors::limit(),
                "hardly any descriptors are left: agent services are balanced in the kernel until some are free; raise the limit of open files"
            ),
            Self::Relieved => tracing::warn!("there are descriptors again: agent services are the agent's again"),
        }
    }
}

/// A heart that beats until it is dropped.
#[derive(Debug)]
pub struct Pulse {
    has_ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Pulse {
    /// Goes on with a heart that has just beaten, for as long as these workers make progress and have descriptors.
    ///
    /// # Errors
    ///
    /// When the system has no room for a thread.
    pub fn begin(mut heartbeat: Heartbeat, workers: Vec<Progress>) -> io::Result<Self> {
        let has_ended = Arc::<AtomicBool>::default();
        let mut judge = Judge::new(workers.len(), Instant::now());
        let mut room = Room::default();
        let end = Arc::clone(&has_ended);
        let body = move || {
            workers.iter().for_each(|worker| worker.wakes(thread::current()));
            loop {
                // A worker that runs short of descriptors wakes it.
                thread::park_timeout(BEAT);
                if end.load(Relaxed) {
                    return;
                }
                let now = Instant::now();
                let (alive, news) = judge.judge(workers.iter().map(Progress::so_far), now);
                let is_short = workers.iter().fold(false, |is_short, worker| worker.ran_short() | is_short);
                let (has_room, other) = room.judge(is_short, descriptors::free(), now);
                news.into_iter().chain(other).for_each(News::tell);
                let told = match (has_room, alive) {
                    (false, _) => heartbeat.pause(),
                    (true, true) => heartbeat.beat(),
                    (true, false) => Ok(()),
                };
                if let Err(error) = told {
                    tracing::error!(%error, "no heartbeat: agent services are balanced in the kernel");
                }
            }
        };
        let thread = thread::Builder::new().name("pulse".to_owned()).spawn(body)?;
        Ok(Self { has_ended, thread: Some(thread) })
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.has_ended.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It has nothing to say.
            let _ = thread.join();
        }
    }
}

/// Whether there are descriptors for more connections.
#[derive(Debug, Default)]
struct Room {
    /// Until when connections go elsewhere, at least.
    short_until: Option<Instant>,
}

impl Room {
    /// Whether there are enough, and what is worth telling; by what a worker has met, and how many are free, where that is known.
    fn judge(&mut self, is_short: bool, free: Option<u64>, now: Instant) -> (bool, Option<News>) {
        let reserve = descriptors::reserve(descriptors::limit());
        let fewer_than = |wanted: u64| free.is_some_and(|free| free < wanted);
        match self.short_until {
            _ if is_short || fewer_than(reserve) => {
                let news = self.short_until.is_none().then_some(News::Short);
                self.short_until = Some(now + REST);
                (false, news)
            }
            // Somewhat more than what is kept, so that the next connection is not the one too many.
            Some(until) if now < until || fewer_than(reserve + reserve / 2) => (false, None),
            Some(_) => {
                self.short_until = None;
                (true, Some(News::Relieved))
            }
            None => (true, None),
        }
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
    fn connections_go_elsewhere_while_descriptors_are_short_and_a_while_longer() {
        let begun = Instant::now();
        let reserve = descriptors::reserve(descriptors::limit());
        let mut room = Room::default();
        let cases = [
            (0, false, None, true, None),
            (100, true, None, false, Some(News::Short)),
            (500, true, None, false, None),
            (1_400, false, None, false, None),
            (1_500, false, None, true, Some(News::Relieved)),
            (1_750, false, Some(reserve), true, None),
            (2_000, false, Some(reserve - 1), false, Some(News::Short)),
            (4_000, false, Some(reserve), false, None),
            (4_250, false, Some(2 * reserve), true, Some(News::Relieved)),
        ];
        for (after, is_short, free, has_room, news) in cases {
            let judged = room.judge(is_short, free, begun + Duration::from_millis(after));
            assert_eq!(judged, (has_room, news), "after {after} ms");
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
