//! Judges one endpoint: the news of its connects, and the time, come in; whether it is up, and when it is to be probed, go out.
//!
//! Touches nothing: who probes is `node::probe`, who tells the kernel half is `node`.

pub mod outlier;

use std::time::{Duration, Instant};

use crate::config::Probe;

/// First pause between probes of an endpoint that is down.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// Longest pause: an endpoint that comes back waits no longer for its traffic.
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// Failures in a row that take an endpoint down, unless they are refusals, or the configuration says more: one lost packet is no dead
/// endpoint.
const FALL: u32 = 2;

/// How a probe of an endpoint ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probed {
    /// It accepted, and answered as it should.
    Accepted,
    /// It refused: nothing listens there, which needs no second opinion.
    Refused,
    /// It answered otherwise than it should, which needs none either.
    Unfit,
    /// It did not answer in time, or there is no way to it.
    Failed,
}

/// A change of state, to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// From now on it may be chosen.
    Up,
    /// From now on it may not, unless all are down.
    Down,
}

/// When an endpoint is probed, and what it takes to change one's mind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// `None`: probed only while there is a reason.
    interval: Option<Duration>,
    rise: u32,
    fall: u32,
    /// Whether one that is down is probed by growing pauses, and not at the interval.
    backs_off: bool,
}

impl From<Option<Duration>> for Rules {
    /// Of a service that says no more than the interval.
    fn from(interval: Option<Duration>) -> Self {
        Self { interval, rise: 1, fall: FALL, backs_off: true }
    }
}

impl Rules {
    /// As configured, for a service that has traffic or none.
    pub fn of(probe: &Probe, has_traffic: bool) -> Self {
        let interval = if has_traffic { probe.interval } else { probe.no_traffic_interval };
        Self { interval: Some(interval), rise: probe.rise, fall: probe.fall, backs_off: false }
    }

    /// Whether an endpoint is probed without a reason.
    pub fn is_active(&self) -> bool {
        self.interval.is_some()
    }
}

/// What is known of one endpoint.
#[derive(Clone, Debug)]
pub struct Health {
    rules: Rules,
    state: State,
    due: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Up {
        failures: u32,
    },
    /// Since so many good probes; the first of all suffices.
    Down {
        pause: Duration,
        good: u32,
        is_first: bool,
    },
}

impl Health {
    /// An endpoint as found at `now`; with an interval, it is probed at once and for ever.
    pub fn new(rules: impl Into<Rules>, down: bool, now: Instant) -> Self {
        let rules = rules.into();
        let state = match down {
            true => State::Down { pause: BACKOFF_FIRST, good: 0, is_first: true },
            false => State::Up { failures: 0 },
        };
        let due = (down || rules.is_active()).then_some(now);
        Self { rules, state, due }
    }

    /// When it is to be probed next, if at all.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Whether it is down.
    pub fn is_down(&self) -> bool {
        matches!(self.state, State::Down { .. })
    }

    /// Takes over changed rules.
    pub fn set_rules(&mut self, rules: impl Into<Rules>, now: Instant) {
        let rules = rules.into();
        if self.rules == rules {
            return;
        }
        self.rules = rules;
        if !self.is_down() {
            self.due = rules.interval.map(|_| now);
        }
    }

    /// The agent itself could not connect to it: it is down.
    pub fn failed(&mut self, now: Instant) -> Option<Change> {
        if self.is_down() {
            return None;
        }
        Some(self.fall(now))
    }

    /// A program's connect failed, perhaps in a network namespace that knows no way to it: a probe of our own decides.
    pub fn suspected(&mut self, now: Instant) {
        if let State::Up { failures } = &mut self.state {
            *failures = self.rules.fall - 1;
            self.due = Some(now);
        }
    }

    /// A probe ended at `now`.
    pub fn probed(&mut self, result: Probed, now: Instant) -> Option<Change> {
        match (self.state, result) {
            (State::Up { .. }, Probed::Accepted) => {
                self.rise(now);
                None
            }
            (State::Down { pause, good, is_first }, Probed::Accepted) => {
                if !is_first && good + 1 < self.rules.rise {
                    self.state = State::Down { pause, good: good + 1, is_first };
                    self.due = Some(now + self.pause(pause));
                    return None;
                }
                self.rise(now);
                Some(Change::Up)
            }
            (State::Up { failures }, Probed::Failed) if failures + 1 < self.rules.fall => {
                self.state = State::Up { failures: failures + 1 };
                self.due = Some(now + self.pause(self.rules.interval.unwrap_or(BACKOFF_FIRST).min(BACKOFF_MAX)));
                None
            }
            (State::Up { .. }, Probed::Refused | Probed::Unfit | Probed::Failed) => Some(self.fall(now)),
            (State::Down { pause, .. }, Probed::Refused | Probed::Unfit | Probed::Failed) => {
                self.state = State::Down { pause: (pause * 2).min(BACKOFF_MAX), good: 0, is_first: false };
                self.due = Some(now + self.pause(pause));
                None
            }
        }
    }

    fn rise(&mut self, now: Instant) {
        self.state = State::Up { failures: 0 };
        self.due = self.rules.interval.map(|interval| now + interval);
    }

    /// Until the next probe of an endpoint that is not well: this, or the interval.
    fn pause(&self, pause: Duration) -> Duration {
        self.rules.interval.filter(|_| !self.rules.backs_off).unwrap_or(pause)
    }

    fn fall(&mut self, now: Instant) -> Change {
        self.state = State::Down { pause: BACKOFF_FIRST * 2, good: 0, is_first: false };
        self.due = Some(now + BACKOFF_FIRST);
        Change::Down
    }
}

#[cfg(test)]
mod tests {
    use super::{
        Probed::{Accepted, Failed, Refused, Unfit},
        *,
    };

    const INTERVAL: Duration = Duration::from_millis(500);

    /// Probes whenever one is due, with these results; gives back the milliseconds of each and what changed.
    fn play(health: &mut Health, from: Instant, results: &[Probed]) -> Vec<(u128, Option<Change>)> {
        let step = |result: &Probed| {
            let now = health.due().expect("a probe is due");
            ((now - from).as_millis(), health.probed(*result, now))
        };
        results.iter().map(step).collect()
    }

    #[test]
    fn an_endpoint_that_failed_is_probed_with_growing_pauses_until_it_accepts() {
        let now = Instant::now();
        let mut health = Health::new(None, false, now);
        assert_eq!((health.due(), health.failed(now), health.failed(now)), (None, Some(Change::Down), None));
        let played = play(&mut health, now, &[Refused, Failed, Refused, Refused, Refused, Accepted]);
        let times: Vec<u128> = played.iter().map(|(at, _)| *at).collect();
        assert_eq!(times, [100, 300, 700, 1500, 2500, 3500]);
        assert_eq!(played.last(), Some(&(3500, Some(Change::Up))));
        assert!(played[..5].iter().all(|(_, change)| change.is_none()));
        assert_eq!(health.due(), None);
    }

    #[test]
    fn an_endpoint_with_an_interval_is_probed_at_once_and_for_ever() {
        let now = Instant::now();
        let mut health = Health::new(Some(INTERVAL), false, now);
        assert_eq!(play(&mut health, now, &[Accepted, Accepted, Accepted]), [(0, None), (500, None), (1000, None)]);
    }

    #[test]
    fn one_failure_is_forgiven_two_in_a_row_are_not_and_a_refusal_counts_at_once() {
        let cases: [(&[Probed], Option<Change>); 5] = [
            (&[Failed], None),
            (&[Failed, Failed], Some(Change::Down)),
            (&[Failed, Accepted, Failed], None),
            (&[Refused], Some(Change::Down)),
            (&[Accepted, Refused], Some(Change::Down)),
        ];
        for (results, expected) in cases {
            let now = Instant::now();
            let mut health = Health::new(Some(INTERVAL), false, now);
            let played = play(&mut health, now, results);
            assert_eq!(played.last().and_then(|(_, change)| *change), expected, "{results:?}");
            assert_eq!(health.is_down(), expected.is_some());
        }
    }

    #[test]
    fn a_suspicion_is_settled_by_one_probe() {
        for (result, expected) in [(Accepted, None), (Refused, Some(Change::Down)), (Failed, Some(Change::Down))] {
            let now = Instant::now();
            let mut health = Health::new(None, false, now);
            health.suspected(now);
            assert_eq!(play(&mut health, now, &[result]), [(0, expected)]);
            assert_eq!(health.due().is_some(), expected.is_some());
        }
    }

    #[test]
    fn a_suspicion_does_not_shorten_the_pause_of_an_endpoint_that_is_down() {
        let now = Instant::now();
        let mut health = Health::new(None, false, now);
        health.failed(now);
        health.suspected(now);
        assert_eq!(health.due(), Some(now + BACKOFF_FIRST));
    }

    #[test]
    fn an_endpoint_found_down_is_probed_at_once() {
        let now = Instant::now();
        let mut health = Health::new(None, true, now);
        assert_eq!(play(&mut health, now, &[Accepted]), [(0, Some(Change::Up))]);
    }

    #[test]
    fn a_changed_interval_begins_or_ends_the_probes() {
        let now = Instant::now();
        let mut health = Health::new(None, false, now);
        health.set_rules(Some(INTERVAL), now);
        assert_eq!(health.due(), Some(now));
        health.set_rules(None, now);
        assert_eq!(health.due(), None);
        health.failed(now);
        health.set_rules(Some(INTERVAL), now);
        assert_eq!(health.due(), Some(now + BACKOFF_FIRST));
    }

    #[test]
    fn rise_and_fall_are_counted_at_the_interval_that_is_configured() {
        use crate::config::probe::Kind;
        let probe = Probe {
            kind: Kind::Tcp,
            interval: INTERVAL,
            no_traffic_interval: 10 * INTERVAL,
            timeout: INTERVAL,
            rise: 2,
            fall: 3,
            jitter_percent: 0,
            reuses: true,
            on_change: Vec::new(),
        };
        let now = Instant::now();
        let mut health = Health::new(Rules::of(&probe, true), false, now);
        let played = play(&mut health, now, &[Failed, Failed, Accepted, Failed, Failed, Failed]);
        assert!(played[..5].iter().all(|(_, change)| change.is_none()));
        assert_eq!(played.iter().map(|(at, _)| *at).collect::<Vec<u128>>(), [0, 500, 1000, 1500, 2000, 2500]);
        assert_eq!(played[5].1, Some(Change::Down));
        let played = play(&mut health, now, &[Accepted, Failed, Accepted, Accepted]);
        assert_eq!(played.iter().map(|(at, _)| *at).collect::<Vec<u128>>(), [2600, 3100, 3600, 4100]);
        assert_eq!(played.last(), Some(&(4100, Some(Change::Up))));
        assert_eq!(
            play(&mut health, now, &[Unfit]),
            [(4600, Some(Change::Down))],
            "an unexpected answer counts at once"
        );
        let mut found_down = Health::new(Rules::of(&probe, true), true, now);
        assert_eq!(play(&mut found_down, now, &[Accepted]), [(0, Some(Change::Up))], "the first of all suffices");
        let mut idle = Health::new(Rules::of(&probe, false), false, now);
        assert_eq!(play(&mut idle, now, &[Accepted, Accepted]), [(0, None), (5000, None)]);
    }
}
