//! What goes wrong on purpose, to see what becomes of it: delays, failures, resets and narrow lines, of some of the requests.

use super::{Duty, End, Filter, Given, Local, Mishap, Verdict};
use crate::{cluster::Outcome, config::filter::Fault, route::Request};

/// See the module.
#[derive(Debug)]
pub(super) struct Faulty {
    fault: Fault,
}

impl Faulty {
    pub(super) fn new(fault: Fault) -> Self {
        Self { fault }
    }
}

impl Filter for Faulty {
    fn judge(&self, _: &Request<'_>, given: &Given<'_>) -> Verdict {
        let fault = &self.fault;
        // The high word of a product spreads chance evenly.
        let drawn = ((u128::from((given.chance)()) * 100) >> 64) as u32;
        if drawn >= fault.percent {
            return Verdict::pass(Outcome::Passed);
        }
        let (outcome, end) = match fault.abort {
            _ if fault.reset => (Outcome::Reset, Some(End::Reset)),
            Some(status) => {
                let local = Local { grpc: fault.grpc_status, ..Local::because(status, "a fault was ordered") };
                (Outcome::Aborted, Some(End::Answer(local)))
            }
            None if fault.bandwidth.is_some() => (Outcome::Slowed, None),
            None => (Outcome::Delayed, None),
        };
        let mishap = Mishap { wait: fault.delay, end };
        let is_none = mishap.wait.is_zero() && mishap.end.is_none();
        let mishap = (!is_none).then(|| Box::new(mishap));
        Verdict { mishap, duty: duty(fault), ..Verdict::pass(outcome) }
    }
}

fn duty(fault: &Fault) -> Option<Duty> {
    Some(Duty::Bandwidth(fault.bandwidth?, fault.direction))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{config::filter::Direction, filter::tests::judged};

    #[test]
    fn each_fault_is_what_was_ordered() {
        let second = Duration::from_secs(1);
        let base = || Fault { percent: 100, ..Fault::default() };
        for (fault, outcome) in [
            (Fault { delay: second, ..base() }, Outcome::Delayed),
            (Fault { delay: second, abort: Some(503), grpc_status: Some(13), ..base() }, Outcome::Aborted),
            (Fault { reset: true, ..base() }, Outcome::Reset),
            (Fault { bandwidth: Some(1_000), direction: Direction::Both, ..base() }, Outcome::Slowed),
            (Fault { percent: 0, reset: true, ..base() }, Outcome::Passed),
        ] {
            let verdict = judged(&Faulty::new(fault.clone()), "GET / HTTP/1.1", 0, second);
            let mishap = verdict.mishap.as_deref();
            let wait = mishap.map_or(Duration::ZERO, |mishap| mishap.wait);
            assert_eq!((verdict.outcome, wait), (outcome, fault.delay), "{fault:?}");
            let end = mishap.and_then(|mishap| mishap.end.clone());
            let status = match &end {
                Some(End::Answer(local)) => Some((local.status, local.grpc)),
                _ => None,
            };
            assert_eq!(status, fault.abort.map(|status| (status, fault.grpc_status)));
            assert_eq!((end == Some(End::Reset), verdict.end), (outcome == Outcome::Reset, None));
            assert_eq!(verdict.duty, fault.bandwidth.map(|rate| Duty::Bandwidth(rate, Direction::Both)));
        }
    }

    #[test]
    fn of_two_mishaps_both_delay_and_the_first_ends_it() {
        let (second, reset) = (Duration::from_secs(1), Some(End::Reset));
        let late = || Mishap { wait: second, end: None };
        let broken = || Mishap { wait: second, end: reset.clone() };
        assert_eq!(late().then(broken()), Mishap { wait: 2 * second, end: reset.clone() });
        assert_eq!(broken().then(late()), broken());
    }

    #[test]
    fn a_part_of_a_hundred_is_that_part() {
        let faulty = Faulty::new(Fault { percent: 30, reset: true, ..Fault::default() });
        let step = u64::MAX / 1000;
        let hit = (0..1000).filter(|index| {
            let verdict = judged(&faulty, "GET / HTTP/1.1", index * step, Duration::ZERO);
            verdict.outcome == Outcome::Reset
        });
        assert!((299..=301).contains(&hit.count()));
    }
}
