//! Whether a canary goes a step up, back to nothing, or stays: what was counted of it and the time come in.
//!
//! A step lasts for an interval, and until enough was seen of it. As soon as enough was seen the guard judges, again and again: it need not
//! wait for the interval's end. Of latency it asks whether fewer requests than the percentile says were fast enough, which is whether that
//! percentile is above the bound, exactly.

use std::time::Duration;

use crate::{
    cluster::{CanaryStage as Stage, Counts, Trouble},
    config::canary::{Canary, Guard},
};

/// What comes next; `None`: nothing yet.
pub fn next(rules: &Canary, stage: &Stage, counts: Counts, now: Duration) -> Option<Stage> {
    let (index, since, from) = match stage {
        Stage::Begun => return Some(Stage::Step { index: 0, since: now, from: Counts::default() }),
        Stage::Step { index, since, from } => (*index, *since, *from),
        Stage::Promoted | Stage::RolledBack(_) => return None,
    };
    let seen = Counts {
        requests: counts.requests.saturating_sub(from.requests),
        errors: counts.errors.saturating_sub(from.errors),
        slow: counts.slow.saturating_sub(from.slow),
    };
    if seen.requests < rules.guard.requests_min.into() {
        return None;
    }
    if let Some(trouble) = trouble(&rules.guard, seen) {
        return Some(Stage::RolledBack(trouble));
    }
    if now.saturating_sub(since) < rules.interval {
        return None;
    }
    Some(if index + 1 < rules.steps.len() {
        Stage::Step { index: index + 1, since: now, from: counts }
    } else {
        Stage::Promoted
    })
}

fn trouble(guard: &Guard, seen: Counts) -> Option<Trouble> {
    let is_above = |part: u64, percent: u32| u128::from(part) * 100 > u128::from(percent) * u128::from(seen.requests);
    if is_above(seen.errors, guard.error_percent) {
        return Some(Trouble::Errors);
    }
    let is_slow = guard.latency.is_some() && is_above(seen.slow, 100 - guard.latency_percentile);
    is_slow.then_some(Trouble::Latency)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(60);

    fn rules() -> Canary {
        let guard = Guard {
            error_percent: 5,
            latency: Some(Duration::from_millis(500)),
            latency_percentile: 99,
            requests_min: 20,
        };
        Canary { steps: vec![5, 25, 50, 100], interval: INTERVAL, guard }
    }

    fn counts(requests: u64, errors: u64, slow: u64) -> Counts {
        Counts { requests, errors, slow }
    }

    fn step(index: usize, since: Duration, from: Counts) -> Stage {
        Stage::Step { index, since, from }
    }

    #[test]
    fn each_step_lasts_an_interval_and_the_last_one_stays() {
        let (rules, mut stage, mut seen) = (rules(), Stage::Begun, Counts::default());
        let mut percents = Vec::new();
        for second in 0..=300 {
            let now = Duration::from_secs(second);
            seen.requests += 1;
            if let Some(next) = next(&rules, &stage, seen, now) {
                stage = next;
                percents.push((second, stage.percent(&rules)));
            }
        }
        assert_eq!(percents, [(0, 5), (60, 25), (120, 50), (180, 100), (240, 100)]);
        assert_eq!(stage, Stage::Promoted);
        assert_eq!(next(&rules, &stage, counts(1_000, 1_000, 1_000), INTERVAL * 9), None, "it is no canary any more");
    }

    #[test]
    fn the_guard_holds_exactly() {
        use Trouble::{Errors, Latency};
        for (requests, errors, slow, expected) in [
            (19, 19, 19, None),
            (20, 1, 0, None),
            (20, 2, 0, Some(Errors)),
            (100, 5, 1, None),
            (100, 6, 0, Some(Errors)),
            (100, 5, 2, Some(Latency)),
            (100, 6, 100, Some(Errors)),
            (1_000, 50, 10, None),
            (1_000, 51, 10, Some(Errors)),
            (1_000, 50, 11, Some(Latency)),
        ] {
            let found = next(
                &rules(),
                &step(1, INTERVAL, counts(7, 3, 2)),
                counts(7 + requests, 3 + errors, 2 + slow),
                INTERVAL,
            );
            assert_eq!(found, expected.map(Stage::RolledBack), "{errors} and {slow} of {requests}");
        }
        let mut patient = rules();
        patient.guard.latency = None;
        assert_eq!(next(&patient, &step(0, INTERVAL, counts(0, 0, 0)), counts(100, 0, 100), INTERVAL), None);
        assert_eq!(Stage::RolledBack(Errors).percent(&rules()), 0);
        assert_eq!(next(&rules(), &Stage::RolledBack(Errors), counts(99, 0, 0), INTERVAL * 9), None);
    }

    #[test]
    fn a_step_waits_until_enough_was_seen() {
        let stage = step(0, Duration::ZERO, Counts::default());
        assert_eq!(next(&rules(), &stage, counts(19, 0, 0), INTERVAL * 5), None);
        let now = INTERVAL * 6;
        assert_eq!(next(&rules(), &stage, counts(20, 1, 0), now), Some(step(1, now, counts(20, 1, 0))));
    }

    #[test]
    fn what_only_fails_is_back_within_two_intervals_however_it_is_asked() {
        for (pause, rate) in [(1_u64, 5_u64), (7, 1), (59, 1), (30, 1)] {
            let (rules, mut stage, mut seen) = (rules(), Stage::Begun, Counts::default());
            for second in 0..=120 {
                seen = counts(seen.requests + rate, seen.errors + rate, 0);
                if second % pause == 0
                    && let Some(next) = next(&rules, &stage, seen, Duration::from_secs(second))
                {
                    stage = next;
                }
            }
            assert_eq!(stage, Stage::RolledBack(Trouble::Errors), "asked every {pause} s");
        }
    }
}
