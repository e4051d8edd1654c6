//! Refuses part of what comes where much fails: the chance grows as the share of what succeeds falls below a threshold.
//!
//! Envoy's admission control (<https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/admission_control_filter>):
//! `max(0, (n - succeeded / threshold) / (n + 1)) ^ (1 / aggression)`, up to a most. With what was refused counted as asked for it is the
//! throttling of clients of "Site Reliability Engineering" (Beyer et al., 2016), chapter 21, with `K = 1 / threshold`.

use super::request::Verdict;
use crate::{
    chance::part,
    cluster::{Rolling, adaptive::Rolled},
    config::request_limit::{Admission as Rules, Kind},
};

const COUNT_BITS: u32 = 24;

/// The rules, ready to be asked.
#[derive(Clone, Copy, Debug)]
pub struct Admission {
    rules: Rules,
    rolling: Rolling,
}

impl Admission {
    /// Of a limit of this kind.
    pub fn of(kind: &Kind) -> Option<Self> {
        match *kind {
            Kind::Admission { rules, stretches } => {
                Some(Self { rules, rolling: Rolling::new(rules.window.as_nanos() as u64, stretches, COUNT_BITS) })
            }
            _ => None,
        }
    }

    /// Asks for one request, by 64 random bits.
    pub fn ask(&self, known: &Rolled, now_ns: u64, chance: u64) -> Verdict {
        let (asked, succeeded) = self.rolling.sums(&known.0, now_ns);
        let refused = self.refused(asked, succeeded);
        if refused <= 0.0 || part(chance) >= refused {
            return Verdict::After(0);
        }
        if self.rules.counts_refused {
            self.rolling.add(&known.0, now_ns, 1, 0);
        }
        Verdict::Refused(None)
    }

    /// How an attempt went.
    pub fn answered(&self, known: &Rolled, now_ns: u64, has_succeeded: bool) {
        self.rolling.add(&known.0, now_ns, 1, has_succeeded.into());
    }

    /// The share that is refused, by what was asked for in the window and what of it succeeded.
    pub fn refused(&self, asked: u64, succeeded: u64) -> f64 {
        if asked < self.rules.requests_min.into() {
            return 0.0;
        }
        let threshold = f64::from(self.rules.success_percent) / 100.0;
        let missed = ((asked as f64 - succeeded as f64 / threshold) / (asked as f64 + 1.0)).max(0.0);
        missed.powf(1.0 / f64::from(self.rules.aggression)).min(f64::from(self.rules.refused_percent_max) / 100.0)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cluster::adaptive::{Adaptive, Measured};

    const ENVOY: Rules = Rules {
        window: Duration::from_secs(30),
        success_percent: 95,
        aggression: 1,
        refused_percent_max: 80,
        requests_min: 0,
        counts_refused: false,
    };
    /// aegis': K = 1 / 0.6, once a hundred came in 3 s.
    const AEGIS: Rules = Rules {
        window: Duration::from_secs(3),
        success_percent: 60,
        refused_percent_max: 100,
        requests_min: 100,
        counts_refused: true,
        ..ENVOY
    };

    fn judge(rules: Rules) -> (Admission, Rolled) {
        let kind = Kind::Admission { rules, stretches: 10 };
        match Adaptive::of(&kind) {
            Some(Adaptive { measured: Measured::Admission(known), .. }) => {
                (Admission::of(&kind).expect("it is one"), known)
            }
            _ => panic!("it is one"),
        }
    }

    #[test]
    fn the_share_that_is_refused_follows_the_formula() {
        let squared = Rules { aggression: 2, ..ENVOY };
        for (rules, asked, succeeded, expected) in [
            (ENVOY, 100, 100, 0.0),
            (ENVOY, 100, 95, 0.0),
            (ENVOY, 99, 0, 0.8),
            (ENVOY, 100, 76, 0.198),
            (squared, 100, 76, 0.445),
            (ENVOY, 1, 0, 0.5),
            (ENVOY, 0, 0, 0.0),
            (AEGIS, 99, 0, 0.0),
            (AEGIS, 100, 0, 0.990),
            (AEGIS, 100, 60, 0.0),
            (AEGIS, 100, 30, 0.495),
        ] {
            let found = judge(rules).0.refused(asked, succeeded);
            assert!((found - expected).abs() < 0.001, "{rules:?} {asked} {succeeded}: {found}");
        }
    }

    #[test]
    fn what_is_refused_is_counted_as_asked_for_only_if_that_is_said() {
        for (rules, expected) in [(ENVOY, 200), (AEGIS, 201)] {
            let (judge, known) = judge(rules);
            (0..200).for_each(|_| judge.answered(&known, 1, false));
            assert_eq!(judge.ask(&known, 2, 0), Verdict::Refused(None));
            assert_eq!(judge.ask(&known, 2, u64::MAX), Verdict::After(0), "one in five, or in a hundred, passes");
            assert_eq!(judge.rolling.sums(&known.0, 2).0, expected);
        }
    }

    #[test]
    fn half_of_what_fails_by_half_is_let_pass_again_when_it_recovers() {
        let (judge, known) = judge(ENVOY);
        let mut chance = 0_u64;
        let mut passed = |from_ms: u64, succeeds: bool| {
            let asked = (from_ms..from_ms + 30_000).filter(|ms| {
                chance = chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let passes = judge.ask(&known, ms * 1_000_000, chance) == Verdict::After(0);
                if passes {
                    judge.answered(&known, ms * 1_000_000, succeeds || ms % 2 == 0);
                }
                passes
            });
            asked.count()
        };
        let half = passed(60_000, false);
        let half_again = passed(90_000, false);
        assert!((14_000..18_500).contains(&half_again), "{half} {half_again}");
        passed(120_000, true);
        assert_eq!(passed(150_000, true), 30_000);
    }
}
