//! Finds endpoints that do worse than they should: what became of their requests, the time and chance come in; who is left out, and for how
//! long, goes out.
//!
//! As Envoy does it (<https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/outlier>): answers of 5xx in a row eject at
//! once; rates are compared, ejections end, and what they cost is forgiven bit by bit, at each interval.

use std::{
    sync::atomic::{
        AtomicU32,
        Ordering::{AcqRel, Relaxed},
    },
    time::Duration,
};

use crate::{
    cluster::{Ejections, EndpointState, Marks, Reason, Seen, Tally},
    config::Outlier,
};

/// What all endpoints of a service are judged by.
#[derive(Clone, Copy, Debug)]
pub struct Court<'c> {
    /// The service's rules.
    pub rules: &'c Outlier,
    /// Of the service.
    pub ejections: &'c Ejections,
    /// How many endpoints the service has.
    pub hosts: usize,
}

/// An ejection that has taken effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ejected {
    /// Why.
    pub reason: Reason,
    /// How long it is to last.
    pub period: Duration,
}

/// What an interval has found of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// It is left out from now on.
    Ejected(Ejected),
    /// Its ejection is over.
    Back,
}

/// What an attempt counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    /// An answer of this status, or what stands for one.
    Status(u16),
    /// No answer, where such are counted by themselves.
    Nothing,
    /// That it accepts.
    Accepted,
}

impl Court<'_> {
    /// Counts an attempt; gives what it was one too many of.
    pub fn count(&self, marks: &Marks, seen: Seen) -> [Option<Reason>; 2] {
        let is_split = self.rules.split_local_origin;
        match said(seen, is_split) {
            Said::Status(status) => {
                if is_split {
                    good_local(marks);
                }
                self.answered(marks, status)
            }
            Said::Accepted => {
                good_local(marks);
                [None; 2]
            }
            Said::Nothing => {
                marks.local.count(false);
                let most = self.rules.consecutive_local_origin_failure;
                [reached(&marks.consecutive_local_origin_failure, most, Reason::ConsecutiveLocalOriginFailure), None]
            }
        }
    }

    fn answered(&self, marks: &Marks, status: u16) -> [Option<Reason>; 2] {
        let is_good = !(500..600).contains(&status);
        marks.external.count(is_good);
        if is_good {
            clear(&marks.consecutive_5xx);
            clear(&marks.consecutive_gateway_failure);
            return [None; 2];
        }
        let rules = self.rules;
        let by_gateway = if matches!(status, 502..=504) {
            let most = rules.consecutive_gateway_failure;
            reached(&marks.consecutive_gateway_failure, most, Reason::ConsecutiveGatewayFailure)
        } else {
            clear(&marks.consecutive_gateway_failure);
            None
        };
        [by_gateway, reached(&marks.consecutive_5xx, rules.consecutive_5xx, Reason::Consecutive5xx)]
    }

    /// Ejects an endpoint, unless it is already, or too many are, or `chance` is against it.
    pub fn eject(&self, state: &EndpointState, reason: Reason, now_ms: u64, chance: u64) -> Option<Ejected> {
        let marks = state.marks()?;
        if state.is_ejected() {
            return None;
        }
        // What is one too many once may be again, if this has no consequences.
        consecutive(marks, reason).into_iter().for_each(clear);
        let active = &self.ejections.active;
        if !self.may_be(active.load(Relaxed) + 1) {
            self.ejections.overflow.fetch_add(1, Relaxed);
            return None;
        }
        if chance % 100 >= u64::from(self.enforcing(reason)) {
            return None;
        }
        let one_more = |active: u32| self.may_be(active + 1).then_some(active + 1);
        if active.fetch_update(AcqRel, Relaxed, one_more).is_err() {
            self.ejections.overflow.fetch_add(1, Relaxed);
            return None;
        }
        let jitters = self.rules.ejection_jitter.as_millis() as u64 + 1;
        marks.ejected_at_ms.store(now_ms, Relaxed);
        marks.jitter_ms.store(chance / 100 % jitters, Relaxed);
        if !state.set_ejected(true) {
            one_less(active);
            return None;
        }
        let rules = self.rules;
        let is_longest = |multiplier: u32| rules.base_ejection * multiplier >= rules.max_ejection + rules.base_ejection;
        let grown = |multiplier: u32| (!is_longest(multiplier)).then_some(multiplier + 1);
        let _ = marks.multiplier.fetch_update(Relaxed, Relaxed, grown);
        self.ejections.enforced[reason as usize].fetch_add(1, Relaxed);
        Some(Ejected { reason, period: self.period(marks) })
    }

    /// Looks at all endpoints of the service, at the end of an interval; gives what was found, by their places.
    pub fn look(&self, states: &[&EndpointState], now_ms: u64, mut chance: impl FnMut() -> u64) -> Vec<(usize, Found)> {
        let mut found = Vec::new();
        for (place, state) in states.iter().enumerate() {
            let Some(marks) = state.marks() else { continue };
            if !state.is_ejected() {
                let _ = marks.multiplier.fetch_update(Relaxed, Relaxed, |multiplier| multiplier.checked_sub(1));
            } else if self.is_over(marks, now_ms) && take_back(self.ejections, state) {
                found.push((place, Found::Back));
            }
        }
        let external = rates(states, |marks| &marks.external);
        let local = rates(states, |marks| &marks.local);
        let mut outliers = outliers(self.rules, &external, [Reason::SuccessRate, Reason::FailurePercentage]);
        if self.rules.split_local_origin {
            let reasons = [Reason::SuccessRateLocalOrigin, Reason::FailurePercentageLocalOrigin];
            outliers.extend(self::outliers(self.rules, &local, reasons));
        }
        for (place, reason) in outliers {
            let ejected = self.eject(states[place], reason, now_ms, chance());
            found.extend(ejected.map(|ejected| (place, Found::Ejected(ejected))));
        }
        found
    }

    /// Whether so many may be ejected at a time.
    fn may_be(&self, ejected: u32) -> bool {
        let percent = 100.0 * f64::from(ejected) / self.hosts.max(1) as f64;
        percent <= f64::from(self.rules.max_ejection_percent) || (self.rules.always_eject_one && ejected == 1)
    }

    fn is_over(&self, marks: &Marks, now_ms: u64) -> bool {
        let ends = u128::from(marks.ejected_at_ms.load(Relaxed)) + self.period(marks).as_millis();
        ends <= u128::from(now_ms)
    }

    /// How long the ejection lasts that the endpoint is in.
    fn period(&self, marks: &Marks) -> Duration {
        let multiplier = marks.multiplier.load(Relaxed).max(1);
        let jitter = Duration::from_millis(marks.jitter_ms.load(Relaxed));
        (self.rules.base_ejection * multiplier).min(self.rules.max_ejection) + jitter
    }

    fn enforcing(&self, reason: Reason) -> u32 {
        let rules = self.rules;
        match reason {
            Reason::Consecutive5xx => rules.enforcing_consecutive_5xx,
            Reason::ConsecutiveGatewayFailure => rules.enforcing_consecutive_gateway_failure,
            Reason::ConsecutiveLocalOriginFailure => rules.enforcing_consecutive_local_origin_failure,
            Reason::SuccessRate => rules.enforcing_success_rate,
            Reason::SuccessRateLocalOrigin => rules.enforcing_local_origin_success_rate,
            Reason::FailurePercentage => rules.enforcing_failure_percentage,
            Reason::FailurePercentageLocalOrigin => rules.enforcing_failure_percentage_local_origin,
        }
    }
}

/// Ends an endpoint's ejection; whether there was one.
pub fn take_back(ejections: &Ejections, state: &EndpointState) -> bool {
    let is_news = state.set_ejected(false);
    if is_news {
        one_less(&ejections.active);
        if let Some(marks) = state.marks() {
            clear(&marks.consecutive_5xx);
            clear(&marks.consecutive_gateway_failure);
            clear(&marks.consecutive_local_origin_failure);
        }
    }
    is_news
}

fn said(seen: Seen, is_split: bool) -> Said {
    if let Some(status) = seen.status() {
        return Said::Status(status);
    }
    match seen {
        Seen::Connected if is_split => Said::Accepted,
        Seen::Connected | Seen::Answered { .. } => Said::Status(200),
        _ if is_split => Said::Nothing,
        Seen::NotConnected | Seen::NoResponse => Said::Status(503),
        Seen::ConnectLate | Seen::Late => Said::Status(504),
    }
}

/// Whether a request came to nothing by no fault of who asked: an answer of 5xx, or of gRPC what stands for one, or none.
pub fn has_failed(seen: Seen) -> bool {
    matches!(said(seen, false), Said::Status(500..))
}

fn good_local(marks: &Marks) {
    marks.local.count(true);
    clear(&marks.consecutive_local_origin_failure);
}

/// One more in a row; the reason, if that makes it just as many as are too many.
fn reached(count: &AtomicU32, most: u32, reason: Reason) -> Option<Reason> {
    (count.fetch_add(1, Relaxed).wrapping_add(1) == most).then_some(reason)
}

/// Looks before it writes: what is 0 already costs the other workers nothing.
fn clear(count: &AtomicU32) {
    if count.load(Relaxed) != 0 {
        count.store(0, Relaxed);
    }
}

fn one_less(active: &AtomicU32) {
    let _ = active.fetch_update(AcqRel, Relaxed, |active| active.checked_sub(1));
}

fn consecutive(marks: &Marks, reason: Reason) -> Option<&AtomicU32> {
    match reason {
        Reason::Consecutive5xx => Some(&marks.consecutive_5xx),
        Reason::ConsecutiveGatewayFailure => Some(&marks.consecutive_gateway_failure),
        Reason::ConsecutiveLocalOriginFailure => Some(&marks.consecutive_local_origin_failure),
        _ => None,
    }
}

/// What an endpoint did in an interval.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Rate {
    place: usize,
    requests: u64,
    /// In percent.
    good: f64,
}

/// Of the endpoints that are not ejected, and were asked anything.
fn rates(states: &[&EndpointState], of: impl Fn(&Marks) -> &Tally) -> Vec<Rate> {
    let rate = |(place, state): (usize, &&EndpointState)| {
        let (requests, good) = of(state.marks()?).take();
        let is_asked = requests > 0 && !state.is_ejected();
        is_asked.then(|| Rate { place, requests, good: 100.0 * good as f64 / requests as f64 })
    };
    states.iter().enumerate().filter_map(rate).collect()
}

/// Those whose rate of success is far below the mean, and those with too many failures.
fn outliers(rules: &Outlier, rates: &[Rate], [by_rate, by_percentage]: [Reason; 2]) -> Vec<(usize, Reason)> {
    let with = |volume: u32| -> Vec<&Rate> { rates.iter().filter(|rate| rate.requests >= volume.into()).collect() };
    let mut outliers = Vec::new();
    let compared = with(rules.success_rate_request_volume);
    if compared.len() >= rules.success_rate_minimum_hosts as usize {
        let threshold = threshold(&compared, f64::from(rules.success_rate_stdev_factor) / 1000.0);
        let below = compared.iter().filter(|rate| rate.good < threshold);
        outliers.extend(below.map(|rate| (rate.place, by_rate)));
    }
    let counted = with(rules.failure_percentage_request_volume);
    if counted.len() >= rules.failure_percentage_minimum_hosts as usize {
        let threshold = f64::from(rules.failure_percentage_threshold);
        let failing = counted.iter().filter(|rate| 100.0 - rate.good >= threshold);
        outliers.extend(failing.map(|rate| (rate.place, by_percentage)));
    }
    outliers
}

/// The mean, less so many standard deviations.
fn threshold(rates: &[&Rate], factor: f64) -> f64 {
    let number = rates.len().max(1) as f64;
    let mean = rates.iter().map(|rate| rate.good).sum::<f64>() / number;
    let variance = rates.iter().map(|rate| (rate.good - mean).powi(2)).sum::<f64>() / number;
    mean - factor * variance.sqrt()
}

#[cfg(test)]
mod tests;
