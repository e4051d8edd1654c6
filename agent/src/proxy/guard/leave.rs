//! What a request has of its guard: who learns how it went.

use std::{
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use super::{Extra, Guard, Leave, has_failed, is_server_error, milliseconds};
use crate::{
    breaker::Outcome,
    cluster::{Seen, Usage},
    proxy::{circuit::Ticket, http::outcome, strategy, whole::Answer},
    record::Counter,
};

impl Leave {
    /// The same with what a request has beside it, from when that began.
    pub(in crate::proxy) fn with(leave: Option<Self>, extra: Extra, began: Instant) -> Option<Self> {
        match leave {
            Some(mut leave) => {
                leave.extra = extra;
                Some(leave)
            }
            None if extra.ticket.is_none() && extra.held.is_none() => None,
            None => Some(Self { guard: None, extra, pass: None.into(), has_place: false, began, until: None }),
        }
    }

    /// Takes note of how the request went, for the first that says so.
    pub(super) fn tell(&self, outcome: Outcome) {
        self.tell_at(outcome, Instant::now);
    }

    fn tell_at(&self, outcome: Outcome, now: impl FnOnce() -> Instant) {
        if let Some(ticket) = &self.extra.ticket {
            ticket.tell(outcome);
        }
        let (Some(pass), Some(guard)) = (self.pass.take(), &self.guard) else { return };
        if let Some((judge, state)) = guard.breaker() {
            let news = judge.tell(state, pass, outcome, milliseconds(now()));
            guard.turned(news);
        }
    }

    /// What is counted of its service.
    fn usage(&self) -> Option<&Usage> {
        self.guard.as_deref().map(Guard::usage).or_else(|| self.extra.ticket.as_ref().map(Ticket::usage))
    }

    /// As [`Leave::tell`], of what the request is counted as.
    pub(in crate::proxy) fn told(&self, counter: Counter, grpc: Option<u8>) {
        let has_timed_out = matches!(counter, Counter::IsolationTimeout | Counter::ResponseTimeout);
        if let (true, Some(guard)) = (self.until.is_some() && has_timed_out, &self.guard) {
            guard.usage().timeouts.fetch_add(1, Relaxed);
        }
        if self.pass.get().is_none() && self.extra.ticket.is_none() {
            return;
        }
        if counter == Counter::DeadlineExceeded && self.extra.is_callers_time {
            // Hystrix's context_deadline_exceeded: who gives little time learns nothing of the service.
            if let Some(usage) = self.usage() {
                usage.callers_deadlines.fetch_add(1, Relaxed);
            }
            return self.tell(Outcome::Unknown);
        }
        let now = Instant::now();
        let took_ms = now.saturating_duration_since(self.began).as_millis() as u64;
        let outcome = match (has_failed(counter), grpc) {
            (Some(false), Some(code)) if is_server_error(code) => Outcome::Failed(took_ms),
            (Some(true), _) => Outcome::Failed(took_ms),
            (Some(false), _) => Outcome::Answered(took_ms),
            (None, _) => Outcome::Unknown,
        };
        self.tell_at(outcome, || now);
    }

    /// As [`Leave::told`], of what came of asking.
    pub(in crate::proxy) fn came(&self, came: &strategy::Outcome) {
        let grpc = |answer: &Answer| match answer.seen() {
            Seen::Answered { grpc_status, .. } => grpc_status,
            _ => None,
        };
        match came {
            strategy::Outcome::Refused(reply) => self.told(reply.counter, None),
            strategy::Outcome::Ours(_, counter) => self.told(*counter, None),
            strategy::Outcome::Answered(answer) => self.told(outcome(answer.parts.status.as_u16()), grpc(answer)),
        }
    }

    /// How long an answer may take yet to begin.
    pub(in crate::proxy) fn left(&self) -> Option<Duration> {
        self.until.map(|until| until.saturating_duration_since(Instant::now()))
    }
}
