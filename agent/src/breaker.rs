//! May a service be used now? What became of its requests and the time come in; whether the next one may pass goes out.
//!
//! A breaker is closed while traffic flows. What its rules say opens it; then nothing passes for a while. After that it is half-open: some
//! requests try the service, any failure opens it again, and when all have succeeded it closes. Whatever is counted belongs to an epoch,
//! which ends when the breaker turns: an answer to a request that passed before then says nothing any more. (hystrix-go lets such a late
//! success close an open breaker; that is not copied.)
//!
//! Error ratios are hystrix-go's (<https://github.com/afex/hystrix-go>): ten buckets of a second, a least number of requests, the percentage
//! rounded, and both compared with "at least"; one try for each time of rest. Slow calls, ratios and counts of errors are also Sentinel-Go's
//! circuit breakers.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use crate::{
    cluster::{BreakerPhase as Phase, BreakerState, BreakerWord as Word, Calls, Rolling},
    config::guard::{Breaker, Kind, Over},
};

/// The window of [`Kind::Rate`].
const SECOND_MS: u64 = 1_000;
/// Of a stretch of the window, requests; the bad ones have as many.
const COUNT_BITS: u32 = 24;

/// Decides by a breaker's rules.
#[derive(Clone, Debug)]
pub struct Judge {
    kind: Opens,
    open_ms: u64,
    probes: u32,
    rests_from_try: bool,
    counts_rejected: bool,
}

/// [`Kind`], in what is reckoned with.
#[derive(Clone, Copy, Debug)]
enum Opens {
    /// So many percent are bad.
    Ratio { percent: u64, requests: u64, span: Rolling, slow_ms: Option<u64> },
    /// So many are.
    Count { errors: u64, requests: u64, span: Rolling },
    /// So many in a row are.
    Row(u64),
    /// More than so many come in a second.
    Rate(u64),
}

/// A request that passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    epoch: u16,
}

/// How a request went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered, after so many milliseconds.
    Answered(u64),
    /// It failed, after so many milliseconds.
    Failed(u64),
    /// It found no place in the isolation.
    Rejected,
    /// Nothing is to be learned of it: who asked did not wait, or asked for nothing that could be had.
    Unknown,
}

impl Judge {
    /// Of these rules.
    pub fn new(rules: &Breaker) -> Self {
        let milliseconds = |time: std::time::Duration| time.as_millis() as u64;
        let of =
            |over: &Over| (u64::from(over.requests), Rolling::new(milliseconds(over.window), over.buckets, COUNT_BITS));
        let kind = match &rules.kind {
            Kind::ErrorRatio { percent, over } => {
                let (requests, span) = of(over);
                Opens::Ratio { percent: (*percent).into(), requests, span, slow_ms: None }
            }
            Kind::SlowCalls { slow, percent, over } => {
                let (requests, span) = of(over);
                Opens::Ratio { percent: (*percent).into(), requests, span, slow_ms: Some(milliseconds(*slow)) }
            }
            Kind::ErrorCount { errors, over } => {
                let (requests, span) = of(over);
                Opens::Count { errors: (*errors).into(), requests, span }
            }
            Kind::Consecutive(failures) => Opens::Row((*failures).into()),
            Kind::Rate(limit) => Opens::Rate((*limit).into()),
        };
        Self {
            kind,
            open_ms: milliseconds(rules.open_for),
            probes: rules.half_open_requests,
            rests_from_try: rules.rests_from_try,
            counts_rejected: rules.counts_rejected,
        }
    }

    /// Whether a request may pass; and what the breaker turned to by that, if it did.
    pub fn ask(&self, state: &BreakerState, now_ms: u64) -> (Option<Pass>, Option<Phase>) {
        loop {
            let at = Word::of(state.phase.load(Acquire));
            let next = match at.phase {
                Phase::Closed => return self.closed(state, at, now_ms),
                Phase::Open if now_ms <= at.since_ms + self.open_ms => return (None, None),
                Phase::Open if self.probes == 0 => Word::turned(at, Phase::Closed, now_ms),
                Phase::Open => Word { started: 1, ..Word::turned(at, Phase::HalfOpen, now_ms) },
                Phase::HalfOpen if at.started < self.probes => Word { started: at.started + 1, since_ms: now_ms, ..at },
                // Those who try it have not been heard of for as long as it rests: one more may.
                Phase::HalfOpen if now_ms > at.since_ms + self.open_ms => Word { since_ms: now_ms, ..at },
                Phase::HalfOpen => return (None, None),
            };
            let closes = next.phase == Phase::Closed;
            if closes {
                clear(state);
            }
            if self.turn(state, at, next) {
                if closes {
                    return (self.closed(state, next, now_ms).0, Some(Phase::Closed));
                }
                return (Some(Pass { epoch: next.epoch }), (at.phase != next.phase).then_some(next.phase));
            }
        }
    }

    /// Opens, whatever was counted: somebody has another reason. What the breaker turned to by that, if it did; one that is open already stays so
    /// for no longer than it would.
    pub fn trip(&self, state: &BreakerState, now_ms: u64) -> Option<Phase> {
        loop {
            let at = Word::of(state.phase.load(Acquire));
            if at.phase == Phase::Open && now_ms <= at.since_ms + self.open_ms {
                return None;
            }
            if self.turn(state, at, Word::turned(at, Phase::Open, now_ms)) {
                return (at.phase != Phase::Open).then_some(Phase::Open);
            }
        }
    }

    /// Whether [`Judge::ask`] would let a request pass. Nothing turns, and nothing is counted: what opens by a rate says so when it is asked.
    pub fn would_pass(&self, state: &BreakerState, now_ms: u64) -> bool {
        let at = Word::of(state.phase.load(Acquire));
        match at.phase {
            Phase::Closed => true,
            Phase::HalfOpen if at.started < self.probes => true,
            Phase::Open | Phase::HalfOpen => now_ms > at.since_ms + self.open_ms,
        }
    }

    fn closed(&self, state: &BreakerState, at: Word, now_ms: u64) -> (Option<Pass>, Option<Phase>) {
        if let Opens::Rate(limit) = self.kind {
            let span = Rolling::new(SECOND_MS, 1, COUNT_BITS);
            span.add(&state.counts, now_ms, 1, 0);
            if span.sums(&state.counts, now_ms).0 > limit {
                let opens = self.turn(state, at, Word::turned(at, Phase::Open, now_ms));
                return (None, opens.then_some(Phase::Open));
            }
        }
        (Some(Pass { epoch: at.epoch }), None)
    }

    /// Takes note of how a request went that had passed; what the breaker turned to by that, if it did.
    pub fn tell(&self, state: &BreakerState, pass: Pass, outcome: Outcome, now_ms: u64) -> Option<Phase> {
        if Calls::are_watched() {
            show(&state.calls, outcome);
        }
        loop {
            let at = Word::of(state.phase.load(Acquire));
            if at.epoch != pass.epoch {
                return None;
            }
            let is_bad = self.is_bad(outcome);
            let next = match (at.phase, is_bad) {
                (Phase::Closed, None) => return None,
                (Phase::Closed, Some(is_bad)) => {
                    return self.counted(state, is_bad, now_ms).then(|| self.opened(state, at, now_ms)).flatten();
                }
                // Another may try in its place.
                (Phase::HalfOpen, None) => Word { started: at.started.saturating_sub(1), ..at },
                (Phase::HalfOpen, Some(true)) => {
                    let since_ms = if self.rests_from_try { at.since_ms } else { now_ms };
                    Word::turned(at, Phase::Open, since_ms)
                }
                (Phase::HalfOpen, Some(false)) if at.succeeded + 1 >= self.probes => {
                    clear(state);
                    Word::turned(at, Phase::Closed, now_ms)
                }
                (Phase::HalfOpen, Some(false)) => Word { succeeded: at.succeeded + 1, ..at },
                (Phase::Open, _) => return None,
            };
            if self.turn(state, at, next) {
                return (at.phase != next.phase).then_some(next.phase);
            }
        }
    }

    fn is_bad(&self, outcome: Outcome) -> Option<bool> {
        let slow_ms = match self.kind {
            Opens::Ratio { slow_ms, .. } => slow_ms,
            _ => None,
        };
        match (outcome, slow_ms) {
            (Outcome::Unknown, _) => None,
            (Outcome::Rejected, _) => (self.counts_rejected && slow_ms.is_none()).then_some(true),
            (Outcome::Answered(took_ms) | Outcome::Failed(took_ms), Some(slow_ms)) => Some(took_ms > slow_ms),
            (Outcome::Answered(_), None) => Some(false),
            (Outcome::Failed(_), None) => Some(true),
        }
    }

    /// Counts a request; whether it is one too many.
    fn counted(&self, state: &BreakerState, is_bad: bool, now_ms: u64) -> bool {
        match self.kind {
            // The percentage is rounded.
            Opens::Ratio { percent, requests, span, .. } => count(span, state, now_ms, is_bad)
                .is_some_and(|(all, bad)| all >= requests && 200 * bad + all >= percent * 2 * all),
            Opens::Count { errors, requests, span } => {
                count(span, state, now_ms, is_bad).is_some_and(|(all, bad)| all >= requests && bad >= errors)
            }
            Opens::Row(failures) if is_bad => state.counts[0].fetch_add(1, AcqRel) + 1 >= failures,
            Opens::Row(_) => {
                // Looks before it writes: what is 0 already costs the other workers nothing.
                if state.counts[0].load(Relaxed) != 0 {
                    state.counts[0].store(0, Relaxed);
                }
                false
            }
            Opens::Rate(_) => false,
        }
    }

    fn opened(&self, state: &BreakerState, at: Word, now_ms: u64) -> Option<Phase> {
        self.turn(state, at, Word::turned(at, Phase::Open, now_ms)).then_some(Phase::Open)
    }

    /// Whether nobody was faster.
    fn turn(&self, state: &BreakerState, from: Word, to: Word) -> bool {
        let is_turned = state.phase.compare_exchange(from.bits(), to.bits(), AcqRel, Relaxed).is_ok();
        if is_turned && from.phase != to.phase {
            state.turned[to.phase as usize].fetch_add(1, Relaxed);
        }
        is_turned
    }
}

/// For who watches.
fn show(calls: &Calls, outcome: Outcome) {
    match outcome {
        Outcome::Answered(took_ms) => calls.count(took_ms, false),
        Outcome::Failed(took_ms) => calls.count(took_ms, true),
        Outcome::Rejected => calls.reject(),
        Outcome::Unknown => {}
    }
}

/// Counts a request; gives how many there are in the window, and how many of those are bad. `None`: none is, without a look at all of it.
fn count(span: Rolling, state: &BreakerState, now_ms: u64, is_bad: bool) -> Option<(u64, u64)> {
    if is_bad {
        state.bad_at_ms.store(now_ms.max(1), Relaxed);
    }
    span.add(&state.counts, now_ms, 1, is_bad.into());
    let bad_at_ms = state.bad_at_ms.load(Relaxed);
    let may_be_bad = bad_at_ms != 0 && now_ms.saturating_sub(bad_at_ms) < span.length();
    may_be_bad.then(|| span.sums(&state.counts, now_ms))
}

/// Nothing was counted. While a breaker is not closed, nothing is.
fn clear(state: &BreakerState) {
    state.counts.iter().for_each(|count| count.store(0, Relaxed));
}

#[cfg(test)]
mod tests;
