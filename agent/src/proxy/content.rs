//! What filters have the corridor do with an answer: steps that are taken on its way back, in reverse of the chain's order.
//!
//! A request with such steps goes the way of one that is kept whole, because an answer there is one thing in whatever protocol it comes, with a
//! body that is asked for piece by piece; a step puts a body of its own in front of that. A request whose body is too long to be kept goes its
//! way without them, but for the fields that are changed.

mod cached;
mod encoded;
mod paced;

use std::{
    mem,
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::{StatusCode, request::Parts};

pub(super) use self::cached::{Forget, Looked, Ticket, look, refresh};
use super::whole::{Answer, Body};
use crate::{
    cluster::{FilterState, Outcome},
    decode::http2::Asked,
    filter::compress::{Order, Worth, says_coding, says_varies, worth},
    route::{Fields, Request},
};

/// Steps, in the order of the chain.
#[derive(Default)]
pub(super) struct Content {
    steps: Vec<Step>,
}

/// What is done with an answer.
pub(super) enum Step {
    /// Its fields are changed.
    Fields(Fields),
    /// It is kept, or what was kept is found to hold.
    Keep(Box<Ticket>),
    /// What is kept is forgotten.
    Forget(Forget),
    /// It is compressed; who counts that.
    Compress(Order, Arc<FilterState>),
    /// It goes no faster than this, in bytes a second.
    Pace(u32),
}

/// A request's head, kept for when it is answered.
pub(super) enum Kept {
    /// Of HTTP/1.
    Lines(Vec<u8>),
    /// Of HTTP/2.
    Parts(Box<Parts>),
}

impl Kept {
    fn seen<T>(&self, is_secure: bool, look: impl FnOnce(&Request<'_>) -> T) -> T {
        match self {
            Self::Lines(lines) => look(&Request::of_http1(lines, is_secure, 0)),
            Self::Parts(parts) => look(&Request::of_parts(parts, is_secure, 0)),
        }
    }
}

/// A request that asks the endpoint beside one that was answered already.
pub(super) struct Refresh {
    /// Its head.
    pub parts: Parts,
    /// What is to be known of it.
    pub asked: Asked,
    /// What becomes of the answer.
    pub ticket: Box<Ticket>,
    /// Which filters it is to pass: those from this one on.
    pub from: usize,
}

impl Content {
    /// And then fields are changed.
    pub fn change(&mut self, fields: Fields) {
        if !fields.is_empty() {
            self.steps.push(Step::Fields(fields));
        }
    }

    /// And at the very end fields are changed: what steps keep is without them.
    pub fn change_last(&mut self, fields: Fields) {
        self.steps.insert(0, Step::Fields(fields));
    }

    /// And then this.
    pub fn add(&mut self, step: Step) {
        self.steps.push(step);
    }

    /// Whether an answer is taken from a cache, or kept there, already.
    pub fn keeps(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Keep(_)))
    }

    /// All that is changed of fields.
    pub fn fields(&self) -> Fields {
        let changed = self.steps.iter().rev().filter_map(|step| match step {
            Step::Fields(fields) => Some(fields.clone()),
            _ => None,
        });
        changed.fold(Fields::default(), Fields::then)
    }

    /// The request goes its way as any other: what is changed of its answer's fields is left, and that it makes a cache forget.
    pub fn let_go(&mut self) -> Fields {
        let fields = self.fields();
        self.steps.retain_mut(|step| match step {
            Step::Forget(forget) => {
                forget.whatever_comes();
                true
            }
            _ => false,
        });
        fields
    }

    /// An endpoint's answer, or a cache's, with everything done.
    pub fn dress(&mut self, answer: Answer) -> Answer {
        mem::take(&mut self.steps).into_iter().rev().fold(answer, |answer, step| step.take(answer))
    }

    /// Whether something was kept that may stand in for an error.
    pub fn may_stand_in(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Keep(ticket) if ticket.may_stand_in()))
    }

    /// What was kept and may stand in for an error; what is still to be done with it is left here.
    pub fn stand_in(&mut self, status: StatusCode) -> Option<Answer> {
        let is_error = matches!(status.as_u16(), 500 | 502..=504);
        let at = self.steps.iter().position(|step| matches!(step, Step::Keep(_))).filter(|_| is_error)?;
        let Step::Keep(ticket) = &self.steps[at] else { return None };
        let answer = ticket.stands_in(status)?;
        self.steps.truncate(at);
        Some(answer)
    }
}

impl Step {
    fn take(self, mut answer: Answer) -> Answer {
        match self {
            Self::Fields(fields) => {
                fields.of_map(&mut answer.parts.headers);
                answer
            }
            Self::Keep(ticket) => (*ticket).take(answer),
            Self::Forget(mut forget) => {
                forget.after(&answer.parts);
                answer
            }
            Self::Compress(order, state) => compressed(&order, &state, answer),
            Self::Pace(rate) => {
                Answer { body: Body::Through(Box::new(paced::Paced::new(answer.body, rate))), ..answer }
            }
        }
    }
}

/// Compresses an answer, if that is worth it.
fn compressed(order: &Order, state: &FilterState, answer: Answer) -> Answer {
    let Answer { mut parts, body } = answer;
    let declared = crate::decode::translate::declared_length(&parts.headers);
    let length = declared.or(body.ready_bytes().map(|bytes| bytes as u64));
    let worth = if body.is_empty() { Worth::No } else { worth(order, parts.status, &parts.headers, length) };
    if let Worth::Yes(coding) = worth
        && let Ok(encoder) = encoded::Encoder::new(coding, order.config.level, length)
    {
        state.count(Outcome::Compressed);
        says_coding(&mut parts.headers, coding);
        return Answer { parts, body: Body::Through(Box::new(encoded::Encoded::new(body, encoder))) };
    }
    state.count(Outcome::Passed);
    if worth != Worth::No {
        says_varies(&mut parts.headers);
    }
    Answer { parts, body }
}

/// The time since 1970.
fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
