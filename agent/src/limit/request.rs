//! May one more request pass now? What is known of a limit, or of one key of it, is one word, and each answer is one step from a word to the
//! next: no lock, and no two that both take the last place.
//!
//! Time is in nanoseconds of whatever clock the user keeps to.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use super::{calendar, warm_up::WarmUp, window::Window};
use crate::config::{request_limit::Kind, zone::Zone};

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It passes after so many nanoseconds, 0 for now.
    After(u64),
    /// It does not; in so many nanoseconds another may, if that is known.
    Refused(Option<u64>),
}

/// What is left of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// So many more would pass at once now.
    pub requests: u64,
    /// In so many nanoseconds all of it is there again, if nobody comes; `None`: nobody knows.
    pub reset_ns: Option<u64>,
}

/// A limit, made ready to be asked.
#[derive(Clone, Copy, Debug)]
pub enum Judge {
    /// A token for each.
    Bucket(Bucket),
    /// So many in each window.
    Fixed(Window),
    /// So many in each window of a calendar, by the clocks of a zone.
    Aligned(Window, Zone),
    /// So many in any stretch of that length.
    Sliding(Window),
    /// So many at once.
    Concurrency(u64),
    /// So many a second, and fewer at first.
    WarmUp(WarmUp),
}

impl Judge {
    /// Of a limit whose requests wait for so long at most; `None`: it is [`super::adaptive`]'s.
    pub fn new(kind: &Kind, wait_max_ns: u64) -> Option<Self> {
        Some(match *kind {
            Kind::TokenBucket { limit, window, burst, fill, starts_empty } => {
                let token_ns = token_ns(limit, window);
                let lot_ns = if fill > 1 { token_ns * u64::from(fill) } else { 1 };
                let depth_ns = token_ns * u64::from(burst);
                Self::Bucket(Bucket { token_ns, depth_ns, lot_ns, starts_empty, wait_max_ns })
            }
            Kind::LeakyBucket { limit, window, queue } => {
                let token_ns = token_ns(limit, window);
                let wait_max_ns = wait_max_ns.min(token_ns * u64::from(queue));
                Self::Bucket(Bucket { token_ns, depth_ns: token_ns, lot_ns: 1, starts_empty: false, wait_max_ns })
            }
            Kind::FixedWindow { limit, window, aligned } => {
                let window = Window::new(limit, window, wait_max_ns);
                aligned.map_or(Self::Fixed(window), |zone| Self::Aligned(window, zone))
            }
            Kind::SlidingWindow { limit, window } => Self::Sliding(Window::new(limit, window, wait_max_ns)),
            Kind::Concurrency { limit } => Self::Concurrency(limit.into()),
            Kind::WarmUp { limit, period_s, cold_factor } => Self::WarmUp(WarmUp::new(limit, period_s, cold_factor)),
            Kind::Gradient(_) | Kind::Bbr { .. } | Kind::Admission { .. } => return None,
        })
    }

    /// Whether the time that it is asked at is the clock's on the wall, in nanoseconds since 1970.
    pub fn goes_by_wall(&self) -> bool {
        matches!(self, Self::Aligned(..))
    }

    /// What is known of what was never asked for.
    pub fn fresh(&self, now_ns: u64) -> u64 {
        match self {
            Self::Bucket(bucket) if bucket.starts_empty => now_ns + bucket.depth_ns,
            _ => 0,
        }
    }

    /// Asks for one request. What is known changes only if it passes, or passes later. `patience_ns` is how long it may wait by itself.
    pub fn ask(&self, word: &AtomicU64, now_ns: u64, patience_ns: u64) -> Verdict {
        let mut verdict = Verdict::Refused(None);
        let step = |known| {
            let next;
            (next, verdict) = self.step(known, now_ns, patience_ns);
            matches!(verdict, Verdict::After(_)).then_some(next)
        };
        let _ = word.fetch_update(Relaxed, Relaxed, step);
        verdict
    }

    /// What is left, by what is known.
    pub fn left(&self, known: u64, now_ns: u64) -> Left {
        match *self {
            Self::Bucket(ref bucket) => bucket.left(known, now_ns),
            Self::Fixed(window) => window.left_fixed(known, now_ns, |due_ns| due_ns - now_ns),
            Self::Aligned(window, zone) => {
                let until = |due_ns| calendar::until_local_ns(now_ns, zone, due_ns);
                window.left_fixed(known, calendar::local_ns(now_ns, zone), until)
            }
            Self::Sliding(window) => window.left_sliding(known, now_ns),
            Self::Concurrency(limit) => Left { requests: limit.saturating_sub(known), reset_ns: None },
            Self::WarmUp(ref warm_up) => warm_up.left(known, now_ns),
        }
    }

    /// Whether a request is to be given back with [`leave`].
    pub fn counts_open(&self) -> bool {
        matches!(self, Self::Concurrency(_))
    }

    fn step(&self, known: u64, now_ns: u64, patience_ns: u64) -> (u64, Verdict) {
        match *self {
            Self::Bucket(ref bucket) => bucket.take(known, now_ns, patience_ns),
            Self::Fixed(window) => window.fixed(known, now_ns, patience_ns),
            Self::Aligned(window, zone) => {
                let until = |due_ns| calendar::until_local_ns(now_ns, zone, due_ns);
                window.fixed_by(known, calendar::local_ns(now_ns, zone), patience_ns, until)
            }
            Self::Sliding(window) => window.sliding(known, now_ns, patience_ns),
            Self::Concurrency(limit) if known < limit => (known + 1, Verdict::After(0)),
            Self::Concurrency(_) => (known, Verdict::Refused(None)),
            Self::WarmUp(ref warm_up) => warm_up.step(known, now_ns),
        }
    }
}

/// Gives back what a request took of a limit that [counts those that are open](Judge::counts_open).
/// A word that was given to another key meanwhile has nothing to take back.
pub fn leave(word: &AtomicU64) {
    let _ = word.fetch_update(Relaxed, Relaxed, |open| open.checked_sub(1));
}

/// In which one of `limit` comes.
fn token_ns(limit: u32, window: Duration) -> u64 {
    (window.as_nanos() as u64 / u64::from(limit.max(1))).max(1)
}

/// A token bucket in one word: when it would be full again (the generic cell rate algorithm, ITU-T I.371).
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    /// In which a token comes.
    token_ns: u64,
    /// In which an empty one is full.
    depth_ns: u64,
    /// Tokens come at multiples of this.
    lot_ns: u64,
    starts_empty: bool,
    /// How long a request waits for its token.
    wait_max_ns: u64,
}

impl Bucket {
    fn take(&self, known: u64, now_ns: u64, patience_ns: u64) -> (u64, Verdict) {
        // Between two lots it is as if no time passed. Most buckets have none, and need not divide.
        let seen_ns = if self.lot_ns == 1 { now_ns } else { now_ns - now_ns % self.lot_ns };
        let next = known.max(seen_ns) + self.token_ns;
        let there_ns = next.saturating_sub(self.depth_ns);
        let due_ns = if there_ns <= seen_ns { now_ns } else { there_ns.next_multiple_of(self.lot_ns) };
        let wait_ns = due_ns.saturating_sub(now_ns);
        if wait_ns <= self.wait_max_ns.min(patience_ns) {
            (next, Verdict::After(wait_ns))
        } else {
            (known, Verdict::Refused(Some(wait_ns)))
        }
    }

    fn left(&self, known: u64, now_ns: u64) -> Left {
        let missing_ns = known.saturating_sub(now_ns - now_ns % self.lot_ns);
        let requests = self.depth_ns.saturating_sub(missing_ns) / self.token_ns;
        Left { requests, reset_ns: Some(known.saturating_sub(now_ns)) }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::AtomicUsize, thread};

    use super::*;

    const MS: u64 = 1_000_000;
    const SECOND: u64 = 1_000 * MS;
    const PATIENT: u64 = u64::MAX;

    fn token_bucket(limit: u32, window_ms: u64, burst: u32, fill: u32, starts_empty: bool, wait_max_ns: u64) -> Judge {
        let window = Duration::from_millis(window_ms);
        Judge::new(&Kind::TokenBucket { limit, window, burst, fill, starts_empty }, wait_max_ns).expect("it counts")
    }

    /// Those of these milliseconds at which a request passes at once.
    fn passing(judge: &Judge, times: impl Iterator<Item = u64>) -> Vec<u64> {
        let mut word = None;
        let asked = times.filter(|ms| {
            let word = word.get_or_insert_with(|| AtomicU64::new(judge.fresh(ms * MS)));
            judge.ask(word, ms * MS, PATIENT) == Verdict::After(0)
        });
        asked.collect()
    }

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let bucket = token_bucket(10, 1_000, 3, 1, false, 0);
        let often = || (0..1_000).map(|ms| 5_000 + ms);
        assert_eq!(passing(&bucket, often().flat_map(|ms| [ms; 3]))[..5], [5_000, 5_000, 5_000, 5_100, 5_200]);
        assert_eq!(passing(&token_bucket(1_000, 1_000, 1, 1, false, 0), often()).len(), 1_000);
    }

    #[test]
    fn the_sources_bucket_is_empty_at_first_and_gets_one_in_500_ms_up_to_a_hundred() {
        let bucket = token_bucket(1, 500, 100, 1, true, 0);
        assert_eq!(passing(&bucket, (1_000..4_000).step_by(10)), [1_500, 2_000, 2_500, 3_000, 3_500]);
        // Left alone for as long as 200 take to come, it holds 100.
        let word = AtomicU64::new(bucket.fresh(SECOND));
        let passed = (0..200).filter(|_| bucket.ask(&word, 101 * SECOND, PATIENT) == Verdict::After(0)).count();
        assert_eq!(passed, 100);
    }

    #[test]
    fn tokens_that_come_in_lots_come_all_at_once() {
        // Envoy's: tokens_per_fill 5, fill_interval 100 ms, max_tokens 5.
        let bucket = token_bucket(50, 1_000, 5, 5, false, 0);
        let times = passing(&bucket, (10_000..10_300).flat_map(|ms| [ms; 5]));
        assert_eq!(times, [[10_000; 5], [10_100; 5], [10_200; 5]].concat());
        let late = passing(&bucket, (10_050..10_300).flat_map(|ms| [ms; 5]));
        assert_eq!(late, [[10_050; 5], [10_100; 5], [10_200; 5]].concat(), "lots come by the clock");
    }

    #[test]
    fn who_waits_has_a_turn_of_his_own_and_who_would_wait_too_long_takes_none() {
        let bucket = token_bucket(10, 1_000, 1, 1, false, 250 * MS);
        let word = AtomicU64::new(bucket.fresh(SECOND));
        let ask = |patience| bucket.ask(&word, SECOND, patience);
        let waits = [ask(PATIENT), ask(PATIENT), ask(50 * MS), ask(PATIENT), ask(PATIENT), ask(PATIENT)];
        assert_eq!(
            waits,
            [
                Verdict::After(0),
                Verdict::After(100 * MS),
                Verdict::Refused(Some(200 * MS)),
                Verdict::After(200 * MS),
                Verdict::Refused(Some(300 * MS)),
                Verdict::Refused(Some(300 * MS)),
            ]
        );
    }

    #[test]
    fn who_waits_for_tokens_that_come_in_lots_waits_for_the_lot() {
        let bucket = token_bucket(50, 1_000, 5, 5, false, 250 * MS);
        let word = AtomicU64::new(bucket.fresh(10 * SECOND));
        let waits: Vec<Verdict> = (0..17).map(|_| bucket.ask(&word, 10 * SECOND + 30 * MS, PATIENT)).collect();
        let turns = [[0; 5], [70; 5], [170; 5]].concat().into_iter().map(|ms| Verdict::After(ms * MS));
        assert_eq!(waits[..15], turns.collect::<Vec<_>>());
        assert_eq!(waits[15..], [Verdict::Refused(Some(270 * MS)); 2]);
    }

    #[test]
    fn who_waits_for_a_window_of_a_calendar_waits_by_its_clocks() {
        let hour = 3_600 * SECOND;
        let berlin = Zone::named("Europe/Berlin").expect("it is there");
        let kind = Kind::FixedWindow { limit: 1, window: Duration::from_secs(86_400), aligned: Some(berlin) };
        let judge = Judge::new(&kind, 60 * SECOND).expect("it counts");
        // The days on which clocks are put forward and back begin at these hours of UTC, and are 23 and 25 hours long.
        for (midnight_s, hours) in [(1_774_738_800, 23), (1_792_879_200, 25)] {
            let (word, midnight) = (AtomicU64::default(), midnight_s * SECOND);
            let ask = |at| judge.ask(&word, at, PATIENT);
            let end = midnight + hours * hour;
            assert_eq!(ask(midnight - 1), Verdict::After(0));
            assert_eq!((ask(midnight), ask(midnight)), (Verdict::After(0), Verdict::Refused(Some(hours * hour))));
            assert_eq!(ask(end - 61 * SECOND), Verdict::Refused(Some(61 * SECOND)));
            assert_eq!(ask(end - 5 * SECOND), Verdict::After(5 * SECOND), "the first of the next day");
            assert_eq!(ask(end), Verdict::Refused(Some(24 * hour)), "it had gone already");
        }
    }

    #[test]
    fn a_leaky_bucket_lets_one_out_at_a_time() {
        let leaky = |queue, wait_ms| {
            let kind = Kind::LeakyBucket { limit: 50, window: Duration::from_secs(1), queue };
            Judge::new(&kind, wait_ms * MS).expect("it counts")
        };
        // As a meter: 20 ms apart.
        assert_eq!(passing(&leaky(0, 0), 2_000..2_100), [2_000, 2_020, 2_040, 2_060, 2_080]);
        // As a queue of four.
        let (judge, word) = (leaky(4, 500), AtomicU64::default());
        let verdicts: Vec<Verdict> = (0..6).map(|_| judge.ask(&word, SECOND, PATIENT)).collect();
        let turns = [0, 20, 40, 60, 80].map(|ms| Verdict::After(ms * MS));
        assert_eq!(verdicts[..5], turns);
        assert_eq!(verdicts[5], Verdict::Refused(Some(100 * MS)));
    }

    #[test]
    fn a_days_quota_begins_at_midnight_where_it_is_meant() {
        let day = Duration::from_secs(86_400);
        let kind = Kind::FixedWindow { limit: 2, window: day, aligned: Some(Zone::Offset(2 * 3_600)) };
        let judge = Judge::new(&kind, 0).expect("it counts");
        // 2023-11-15 in UTC.
        let midnight = 1_700_006_400 * SECOND;
        let (word, hour) = (AtomicU64::default(), 3_600 * SECOND);
        let ask = |at| judge.ask(&word, at, PATIENT);
        let passes = Verdict::After(0);
        assert_eq!([21, 21, 21].map(|h| ask(midnight + h * hour)), [passes, passes, Verdict::Refused(Some(hour))]);
        assert_eq!(ask(midnight + 22 * hour - 1), Verdict::Refused(Some(1)));
        assert_eq!([22, 45, 45].map(|h| ask(midnight + h * hour)), [passes, passes, Verdict::Refused(Some(hour))]);
        // Nobody came for two days.
        assert_eq!([100, 101, 102].map(|h| ask(midnight + h * hour))[..2], [passes, passes]);
        assert!(judge.goes_by_wall());
    }

    #[test]
    fn as_many_pass_as_are_said_to_be_left() {
        let window = Duration::from_millis(700);
        let zone = Zone::Offset(3_600);
        for kind in [
            Kind::TokenBucket { limit: 7, window, burst: 5, fill: 1, starts_empty: false },
            Kind::TokenBucket { limit: 7, window, burst: 9, fill: 3, starts_empty: true },
            Kind::LeakyBucket { limit: 7, window, queue: 3 },
            Kind::FixedWindow { limit: 7, window, aligned: None },
            Kind::FixedWindow { limit: 7, window: Duration::from_secs(60), aligned: Some(zone) },
            Kind::SlidingWindow { limit: 7, window },
            Kind::SlidingWindow { limit: 1, window },
            Kind::WarmUp { limit: 7, period_s: 2, cold_factor: 3 },
            Kind::Concurrency { limit: 3 },
        ] {
            let judge = Judge::new(&kind, 0).expect("it counts");
            let word = AtomicU64::new(judge.fresh(50 * SECOND));
            for step in 0..300_u64 {
                let now_ns = 50 * SECOND + step * 37 * MS;
                let left = judge.left(word.load(Relaxed), now_ns);
                let copy = AtomicU64::new(word.load(Relaxed));
                let passed = (0..100).filter(|_| judge.ask(&copy, now_ns, 0) == Verdict::After(0)).count();
                assert_eq!(left.requests, passed as u64, "{kind:?} at step {step}");
                // One that has been left alone is cold.
                if let Some(reset_ns) = left.reset_ns.filter(|_| !matches!(kind, Kind::WarmUp { .. })) {
                    let later = judge.left(word.load(Relaxed), now_ns + reset_ns + window.as_nanos() as u64);
                    assert!(later.requests >= left.requests, "{kind:?} at step {step}");
                }
                // Some come in lots, and sometimes nobody does.
                for _ in 0..step % 4 {
                    judge.ask(&word, now_ns, 0);
                }
            }
        }
    }

    #[test]
    fn no_two_take_the_last_place() {
        let judge = Judge::new(&Kind::Concurrency { limit: 5 }, 0).expect("it counts");
        let (word, most, open, passed) = <(AtomicU64, AtomicUsize, AtomicUsize, AtomicUsize)>::default();
        let work = || {
            for _ in 0..20_000 {
                if judge.ask(&word, 0, 0) == Verdict::After(0) {
                    most.fetch_max(open.fetch_add(1, Relaxed) + 1, Relaxed);
                    passed.fetch_add(1, Relaxed);
                    open.fetch_sub(1, Relaxed);
                    leave(&word);
                }
            }
        };
        thread::scope(|scope| (0..8).for_each(|_| drop(scope.spawn(work))));
        assert!(most.load(Relaxed) <= 5 && passed.load(Relaxed) > 5);
        assert_eq!(word.load(Relaxed), 0);
        leave(&word);
        assert_eq!(judge.ask(&word, 0, 0), Verdict::After(0), "what nobody took cannot be given back");
        let (bucket, word) = (token_bucket(1, 86_400_000, 777, 1, false, 0), AtomicU64::default());
        let taken = || (0..10_000).filter(|_| bucket.ask(&word, SECOND, 0) == Verdict::After(0)).count();
        let taken: usize = thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(taken)).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
        });
        assert_eq!(taken, 777);
    }
}
