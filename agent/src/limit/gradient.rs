//! How many requests a service takes at once, found by how much longer its answers take than they could: Envoy's gradient controller
//! (<https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/adaptive_concurrency_filter>), after Netflix's.
//!
//! Once in a while nearly nobody is let in, and what an answer takes then is the shortest time that it can take. From it and what answers take
//! in each window follows the limit of the next: `gradient = clamp((shortest + buffer) / sampled, 0.5, 2)`,
//! `limit = clamp(gradient * limit + sqrt(gradient * limit), least, most)`.

use std::{
    array,
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use super::request::Verdict;
use crate::{
    chance::below,
    cluster::adaptive::{Gradient as Known, LATENCIES},
    config::request_limit::{Gradient as Rules, Kind},
};

/// A limit that comes to the least so often in a row says that the shortest time holds no more.
const TIMES_LEAST_MAX: u64 = 5;
/// Each octave of latencies, in microseconds, has so many places.
const PLACES: usize = 32;
/// As its power of two.
const PLACES_BITS: u32 = 5;

/// The rules, ready to be asked.
#[derive(Clone, Copy, Debug)]
pub struct Gradient {
    rules: Rules,
}

impl Gradient {
    /// Of a limit of this kind.
    pub fn of(kind: &Kind) -> Option<Self> {
        if let Kind::Gradient(rules) = kind { Some(Self { rules: *rules }) } else { None }
    }

    /// How many there may be now.
    fn limit(&self, known: &Known) -> u64 {
        known.limit.load(Relaxed).max(self.rules.least.into())
    }

    /// Asks for one request, which is counted as open if it passes.
    pub fn ask(&self, open: &AtomicU64, known: &Known, now_ns: u64) -> Verdict {
        self.turn(known, now_ns);
        let limit = self.limit(known);
        match open.fetch_update(Relaxed, Relaxed, |open| (open < limit).then_some(open + 1)) {
            Ok(_) => Verdict::After(0),
            Err(_) => Verdict::Refused(None),
        }
    }

    /// An answer began, to what was asked at `began_ns`.
    pub fn answered(&self, known: &Known, began_ns: u64, now_ns: u64, chance: u64) {
        let is_measuring = known.shortest_ns.load(Relaxed) == 0;
        // Who was let in before stood among more.
        if is_measuring && began_ns < known.measured_from_ns.load(Relaxed) {
            return;
        }
        let took = Duration::from_nanos(now_ns.saturating_sub(began_ns));
        known.latencies[place(took)].fetch_add(1, Relaxed);
        let answers = known.answers.fetch_add(1, Relaxed) + 1;
        if is_measuring && answers >= self.rules.measured_requests.into() {
            self.measured(known, now_ns, chance);
        }
        self.turn(known, now_ns);
    }

    /// Does what is due by the clock: one of those who come at the time.
    fn turn(&self, known: &Known, now_ns: u64) {
        if known.shortest_ns.load(Relaxed) == 0 {
            return;
        }
        let again_ns = known.measured_again_ns.load(Relaxed);
        if now_ns >= again_ns {
            return self.measure(known, again_ns, now_ns);
        }
        let end_ns = known.window_end_ns.load(Relaxed);
        let next_ns = now_ns + self.rules.window.as_nanos() as u64;
        if now_ns < end_ns || known.window_end_ns.compare_exchange(end_ns, next_ns, Relaxed, Relaxed).is_err() {
            return;
        }
        let Some(sampled) = self.drain(known) else { return };
        let (before, shortest) = (self.limit(known), Duration::from_nanos(known.shortest_ns.load(Relaxed)));
        let limit = self.next(before, shortest, sampled);
        known.limit.store(limit, Relaxed);
        if limit > self.rules.least.into() {
            known.times_least.store(0, Relaxed);
        } else if known.times_least.fetch_add(1, Relaxed) + 1 >= TIMES_LEAST_MAX {
            self.measure(known, known.measured_again_ns.load(Relaxed), now_ns);
        }
    }

    /// The next limit.
    fn next(&self, before: u64, shortest: Duration, sampled: Duration) -> u64 {
        let shortest = shortest.as_secs_f64();
        let buffer = shortest * f64::from(self.rules.buffer_percent) / 100.0;
        let gradient = ((shortest + buffer) / sampled.as_secs_f64().max(1e-9)).clamp(0.5, 2.0);
        let limit = before as f64 * gradient;
        ((limit + limit.sqrt()) as u64).clamp(self.rules.least.into(), self.rules.most.into())
    }

    /// Begins to measure the shortest time: whoever sees first that it is due.
    fn measure(&self, known: &Known, again_ns: u64, now_ns: u64) {
        if known.measured_again_ns.compare_exchange(again_ns, u64::MAX, Relaxed, Relaxed).is_err() {
            return;
        }
        known.times_least.store(0, Relaxed);
        known.limit_before.store(self.limit(known), Relaxed);
        known.limit.store(self.rules.least.into(), Relaxed);
        known.measured_from_ns.store(now_ns, Relaxed);
        self.drain(known);
        known.shortest_ns.store(0, Relaxed);
    }

    /// The shortest time is known: by the first of those who bring the last answer.
    fn measured(&self, known: &Known, now_ns: u64, chance: u64) {
        let again_ns = now_ns + self.apart_ns(chance);
        let Some(shortest) = self.drain(known) else { return };
        let shortest_ns = (shortest.as_nanos() as u64).max(1);
        if known.shortest_ns.compare_exchange(0, shortest_ns, Relaxed, Relaxed).is_ok() {
            known.limit.store(known.limit_before.load(Relaxed).max(self.rules.least.into()), Relaxed);
            known.window_end_ns.store(now_ns + self.rules.window.as_nanos() as u64, Relaxed);
            known.measured_again_ns.store(again_ns, Relaxed);
        }
    }

    /// Until it is measured again: not at the same time as others who began with this one.
    fn apart_ns(&self, chance: u64) -> u64 {
        let interval_ns = self.rules.measured_interval.as_nanos() as u64;
        interval_ns + below(interval_ns * u64::from(self.rules.jitter_percent) / 100, chance)
    }

    /// The percentile of the answers since it was asked for last, if there were any.
    fn drain(&self, known: &Known) -> Option<Duration> {
        known.answers.store(0, Relaxed);
        let counts: [u64; LATENCIES] = array::from_fn(|place| take(&known.latencies[place]).into());
        let all: u64 = counts.iter().sum();
        let wanted = (all * u64::from(self.rules.percentile)).div_ceil(100).max(1);
        let mut seen = 0;
        let found = counts.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        found.map(middle)
    }
}

/// Most are 0, and need no write.
fn take(count: &AtomicU32) -> u32 {
    if count.load(Relaxed) == 0 { 0 } else { count.swap(0, Relaxed) }
}

/// Where a latency is counted.
fn place(took: Duration) -> usize {
    let micros = took.as_micros() as u64;
    let octave = (u64::BITS - micros.leading_zeros()).saturating_sub(PLACES_BITS + 1);
    (octave as usize * PLACES + (micros >> octave) as usize).min(LATENCIES - 1)
}

/// The latency in the middle of those that are counted there.
fn middle(place: usize) -> Duration {
    let octave = (place / PLACES).saturating_sub(1);
    let least = (place - octave * PLACES) as u64;
    Duration::from_nanos(((least << octave) * 1_000) + ((1_000 << octave) / 2))
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::cluster::adaptive::{Adaptive, Measured};

    const MS: u64 = 1_000_000;

    fn rules() -> Rules {
        Rules {
            least: 3,
            most: 1_000,
            window: Duration::from_millis(100),
            percentile: 50,
            buffer_percent: 25,
            measured_requests: 50,
            measured_interval: Duration::from_secs(60),
            jitter_percent: 15,
        }
    }

    struct Service {
        open: AtomicU64,
        known: Box<Known>,
        gradient: Gradient,
    }

    impl Service {
        fn new(rules: Rules) -> Self {
            match Adaptive::of(&Kind::Gradient(rules)) {
                Some(Adaptive { open, measured: Measured::Gradient(known) }) => {
                    Self { open, known, gradient: Gradient { rules } }
                }
                _ => panic!("it is one"),
            }
        }

        fn ask(&self, now_ms: u64) -> bool {
            self.gradient.ask(&self.open, &self.known, now_ms * MS) == Verdict::After(0)
        }

        fn limit(&self) -> u64 {
            self.gradient.limit(&self.known)
        }

        fn shortest_ms(&self) -> u64 {
            self.known.shortest_ns.load(Relaxed) / MS
        }

        /// So many requests a millisecond for so long; how many were answered in the last second.
        fn run(&self, server: &mut Server, from_ms: u64, to_ms: u64, each_ms: usize) -> usize {
            let (mut on_their_way, mut answered): (Vec<(u64, u64)>, usize) = (Vec::new(), 0);
            for now in from_ms..to_ms {
                let (done, left): (Vec<_>, Vec<_>) = on_their_way.into_iter().partition(|(_, done)| *done <= now);
                on_their_way = left;
                for (began, _) in done {
                    self.open.fetch_sub(1, Relaxed);
                    self.gradient.answered(&self.known, began * MS, now * MS, 0);
                    answered += usize::from(now >= to_ms - 1_000);
                }
                let let_in = (0..each_ms).filter(|_| self.ask(now)).count();
                on_their_way.extend((0..let_in).map(|_| (now, server.ask(now))));
            }
            self.open.fetch_sub(on_their_way.len() as u64, Relaxed);
            answered
        }
    }

    #[test]
    fn the_limit_follows_the_formula() {
        let gradient = Gradient { rules: rules() };
        let next = |before, shortest_ms, sampled_ms: u64| {
            gradient.next(before, Duration::from_millis(shortest_ms), Duration::from_millis(sampled_ms))
        };
        for (before, shortest, sampled, expected) in [
            // gradient 1.25: 125 + 11.18.
            (100, 10, 10, 136),
            // gradient 1: 100 + 10.
            (100, 10, 1_250 / 100, 114),
            (100, 8, 10, 110),
            // Never below a half, never above twice.
            (100, 10, 1_000, 57),
            (100, 1_000, 1, 214),
            // Within the bounds.
            (900, 10, 10, 1_000),
            (3, 10, 1_000, 3),
        ] {
            assert_eq!(next(before, shortest, sampled), expected, "{before} {shortest} {sampled}");
        }
    }

    #[test]
    fn latencies_are_known_within_three_hundredths() {
        for micros in (0..100_000_000_u64).step_by(9_973) {
            let found = middle(place(Duration::from_micros(micros))).as_secs_f64() * 1e6;
            let error = (found - micros as f64).abs();
            assert!(error <= 0.5 + micros as f64 * 0.032, "{micros}: {found}");
        }
        assert_eq!(place(Duration::from_secs(1_000_000)), LATENCIES - 1);
    }

    /// A server of so many places, each of which takes a request for so long, with a line before them.
    struct Server {
        places: usize,
        takes_ms: u64,
        /// When each place is free.
        free_ms: VecDeque<u64>,
    }

    impl Server {
        fn new(places: usize, takes_ms: u64) -> Self {
            Self { places, takes_ms, free_ms: VecDeque::from(vec![0; places]) }
        }

        /// When a request that comes now is answered.
        fn ask(&mut self, now_ms: u64) -> u64 {
            self.free_ms.truncate(self.places);
            self.free_ms.make_contiguous().sort_unstable();
            let free = self.free_ms.pop_front().unwrap_or(0);
            let done = free.max(now_ms) + self.takes_ms;
            self.free_ms.push_back(done);
            done
        }
    }

    #[test]
    fn it_finds_what_a_server_can_do_and_follows_it_when_that_halves() {
        let service = Service::new(rules());
        // Twenty at a time for 10 ms: 2 000 a second, of 6 000 that come.
        let mut server = Server::new(20, 10);
        let answered = service.run(&mut server, 1_000, 6_000, 6);
        assert!((1_900..=2_000).contains(&answered), "{answered}");
        assert!((25..=34).contains(&service.limit()), "1.25 times the places and a root: {}", service.limit());
        server.places = 10;
        let answered = service.run(&mut server, 6_000, 9_000, 6);
        assert!((950..=1_000).contains(&answered), "{answered}");
        assert!((12..=18).contains(&service.limit()), "{}", service.limit());
    }

    #[test]
    fn a_server_that_became_slower_is_measured_again_after_the_interval() {
        let service = Service::new(Rules { measured_interval: Duration::from_secs(2), ..rules() });
        let mut server = Server::new(20, 10);
        service.run(&mut server, 1_000, 4_000, 6);
        server.takes_ms = 40;
        service.run(&mut server, 4_000, 9_000, 6);
        assert!((38..=42).contains(&service.shortest_ms()) || service.shortest_ms() == 0, "{}", service.shortest_ms());
    }

    #[test]
    fn at_the_least_for_five_windows_it_measures_at_once() {
        let service = Service::new(Rules { least: 10, ..rules() });
        let mut server = Server::new(20, 10);
        service.run(&mut server, 1_000, 4_000, 6);
        assert!((10..=11).contains(&service.shortest_ms()), "{}", service.shortest_ms());
        server.takes_ms = 100;
        service.run(&mut server, 4_000, 8_000, 6);
        assert!((96..=104).contains(&service.shortest_ms()), "{}", service.shortest_ms());
    }

    #[test]
    fn never_are_more_let_in_than_the_limit() {
        let service = Service::new(rules());
        let passed = (0..100).filter(|_| service.ask(1)).count();
        assert_eq!((passed, service.open.load(Relaxed)), (3, 3), "before the shortest time is known");
    }
}
