//! Refuses, once the processor is busy, what is more than a service gets done: the limiter of aegis and Kratos
//! (<https://github.com/go-kratos/aegis/tree/main/ratelimit/bbr>), after TCP's BBR.
//!
//! What may be on its way at once is what passed in the best stretch of the last window times what an answer takes in the fastest one.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::request::Verdict;
use crate::{
    cluster::{Rolling, adaptive::Bbr as Known},
    config::request_limit::Kind,
};

/// After a first refusal it goes on looking for so long, also when the processor is busy no more.
const COOLING_NS: u64 = 1_000_000_000;
/// Of a stretch, requests; the time that they took has the other bits, in units of 10 µs.
const COUNT_BITS: u32 = 20;
const UNIT_NS: u64 = 10_000;

/// The rules, ready to be asked.
#[derive(Clone, Copy, Debug)]
pub struct Bbr {
    rolling: Rolling,
    /// Stretches.
    per_second: f64,
    busy_permille: u32,
}

impl Bbr {
    /// Of a limit of this kind.
    pub fn of(kind: &Kind) -> Option<Self> {
        match *kind {
            Kind::Bbr { window, stretches, busy_percent } => {
                let rolling = Rolling::new(window.as_nanos() as u64, stretches, COUNT_BITS);
                let per_second = f64::from(stretches) / window.as_secs_f64();
                Some(Self { rolling, per_second, busy_permille: busy_percent * 10 })
            }
            _ => None,
        }
    }

    /// Asks for one request, which is counted as open if it passes.
    pub fn ask(&self, open: &AtomicU64, known: &Known, now_ns: u64) -> Verdict {
        if self.refuses(open.load(Relaxed), known, now_ns) {
            return Verdict::Refused(None);
        }
        open.fetch_add(1, Relaxed);
        Verdict::After(0)
    }

    /// An answer began, to what was asked at `began_ns`.
    pub fn answered(&self, known: &Known, began_ns: u64, now_ns: u64) {
        let took = (now_ns.saturating_sub(began_ns) / UNIT_NS).max(1);
        self.rolling.add(&known.passed.0, now_ns, 1, took);
    }

    /// How many may be on their way at once: `floor(most passed * least time in ms * stretches a second / 1000 + 0.5)`.
    fn limit(&self, known: &Known, now_ns: u64) -> u64 {
        let (mut most, mut least_ms) = (1, f64::INFINITY);
        // The stretch that is not over says too little.
        for stretch in self.rolling.window(&known.passed.0, now_ns).filter(|stretch| stretch.age > 0) {
            most = most.max(stretch.first);
            least_ms = least_ms.min((stretch.second * UNIT_NS) as f64 / stretch.first.max(1) as f64 / 1e6);
        }
        let least_ms = if least_ms.is_finite() { least_ms.ceil().max(1.0) } else { 1.0 };
        (most as f64 * least_ms * self.per_second / 1_000.0 + 0.5) as u64
    }

    fn refuses(&self, open: u64, known: &Known, now_ns: u64) -> bool {
        let is_too_much = || {
            let limit = self.limit(known, now_ns).max(1);
            known.limit.store(limit, Relaxed);
            open > limit
        };
        let since_ns = known.refused_since_ns.load(Relaxed);
        if known.busy_permille.load(Relaxed) < self.busy_permille {
            if since_ns == 0 {
                return false;
            }
            if now_ns.saturating_sub(since_ns) <= COOLING_NS {
                return is_too_much();
            }
            known.refused_since_ns.store(0, Relaxed);
            return false;
        }
        let refuses = is_too_much();
        if refuses && since_ns == 0 {
            known.refused_since_ns.store(now_ns, Relaxed);
        }
        refuses
    }
}

/// How busy a processor is, smoothed as aegis does: so much of what it was before stays at each look.
pub fn smoothed(before_permille: u32, now_permille: u32) -> u32 {
    const STAYS: f64 = 0.95;
    (f64::from(before_permille) * STAYS + f64::from(now_permille) * (1.0 - STAYS)).round() as u32
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cluster::adaptive::{Adaptive, Measured};

    const MS: u64 = 1_000_000;
    const KIND: Kind = Kind::Bbr { window: Duration::from_secs(10), stretches: 100, busy_percent: 80 };

    fn limiter() -> (Bbr, Known) {
        match Adaptive::of(&KIND) {
            Some(Adaptive { measured: Measured::Bbr(known), .. }) => (Bbr::of(&KIND).expect("it is one"), known),
            _ => panic!("it is one"),
        }
    }

    /// In each stretch of 100 ms of the second before `to_ms`, so many that took so long.
    fn pass(bbr: &Bbr, known: &Known, to_ms: u64, count: usize, took_ms: u64) {
        for at in (to_ms - 1_000..to_ms).step_by(100) {
            (0..count).for_each(|_| bbr.answered(known, (at - took_ms) * MS, at * MS));
        }
    }

    #[test]
    fn what_may_be_at_once_is_what_passes_times_what_it_takes() {
        let (bbr, known) = limiter();
        assert_eq!(bbr.limit(&known, 0), 0, "one in a stretch that takes 1 ms: a hundredth of one at once");
        pass(&bbr, &known, 60_000, 20, 50);
        // 20 in 100 ms, 50 ms each: 200 a second for 50 ms are 10 at once.
        assert_eq!(bbr.limit(&known, 60_050 * MS), 10);
        pass(&bbr, &known, 62_000, 40, 30);
        assert_eq!(bbr.limit(&known, 62_050 * MS), 12);
        assert_eq!(bbr.limit(&known, 80_000 * MS), 0, "forgotten");
    }

    #[test]
    fn nothing_is_refused_before_the_processor_is_busy_and_something_for_a_second_after() {
        let (bbr, known) = limiter();
        pass(&bbr, &known, 60_000, 20, 50);
        let at = |ms: u64| 60_000 * MS + ms * MS;
        assert!(!bbr.refuses(100, &known, at(10)));
        known.busy_permille.store(801, Relaxed);
        assert!(bbr.refuses(100, &known, at(20)));
        assert!(!bbr.refuses(10, &known, at(30)), "as many as may be");
        known.busy_permille.store(100, Relaxed);
        assert!(bbr.refuses(11, &known, at(40)), "it cools down");
        assert!(!bbr.refuses(11, &known, at(1_100)));
        assert!(!bbr.refuses(11, &known, at(1_110)));
        known.busy_permille.store(1_000, Relaxed);
        assert!(!bbr.refuses(1, &known, at(90_000)), "one at a time always passes");
    }

    #[test]
    fn a_look_at_the_processor_counts_a_twentieth() {
        assert_eq!([smoothed(0, 1_000), smoothed(1_000, 0), smoothed(800, 800)], [50, 950, 800]);
    }
}
