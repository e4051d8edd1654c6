//! What filters have said of the request that is under way, in whatever protocol it came.

use std::{mem, rc::Rc};

use http::StatusCode;

use super::{Chain, Passage};
use crate::{
    filter::Mishap,
    forward::Narrow,
    proxy::{admit::Rated, content::Content, http::Reply, whole::Answer},
    route::Fields,
};

/// What filters have said of a request.
#[derive(Default)]
pub struct Filtered {
    /// What is changed of an answer of our own; of an endpoint's answer it is changed with what its route changes.
    pub fields: Fields,
    /// The longest body that the request may have, and who says so.
    pub body_max: Option<(u64, Rc<Chain>)>,
    /// What its body goes over, if that is slow on purpose.
    pub narrow: Option<Rc<Narrow>>,
    /// What it is to suffer in its endpoint's stead, until it does.
    pub mishap: Option<Box<Mishap>>,
    /// What else is done with its answer.
    pub content: Option<Box<Content>>,
}

/// Changes these too, behind what `change` does.
pub fn change_also(change: &mut Fields, fields: Fields) {
    *change = mem::take(change).then(fields);
}

/// Gives what the client of an endpoint's answer is known by from now on, and it alone: nobody keeps it for another.
pub fn give_also(filtered: Option<&mut Filtered>, change: &mut Fields, fields: Fields) {
    match filtered.and_then(|filtered| filtered.content.as_mut()) {
        Some(content) => content.change_last(fields),
        None => change_also(change, fields),
    }
}

/// An answer of our own, with what is told of limits, and what filters change of it.
pub fn told(reply: Reply, rated: Option<&Rated>, filtered: Option<&Filtered>) -> Reply {
    let mut reply = reply.rated(rated);
    if let Some(filtered) = filtered {
        filtered.fields.of_list(&mut reply.fields);
    }
    reply
}

impl Filtered {
    /// What they have said, on their way.
    pub fn of(passage: Passage, chain: &Rc<Chain>) -> Self {
        let Passage { response: fields, content, body_max, request_rate, mishap, .. } = passage;
        let body_max = body_max.map(|most| (most, Rc::clone(chain)));
        Self { fields, body_max, narrow: request_rate.map(|rate| Rc::new(Narrow::new(rate))), mishap, content }
    }

    /// Whether something is done with the answer's content.
    pub fn has_content(&self) -> bool {
        self.content.is_some()
    }

    /// The request goes its way as any other: of what filters do with its answer, what they change of its fields is left, in `change`.
    pub fn let_content_go(&mut self, change: &mut Fields) {
        if let Some(content) = &mut self.content {
            change_also(change, content.let_go());
        }
    }

    /// An answer with all that filters do with it; of one of our own, only its fields are changed.
    pub fn dress(&mut self, mut answer: Answer, is_ours: bool) -> Answer {
        match self.content.take() {
            None => answer,
            Some(mut content) if !is_ours => content.dress(answer),
            Some(content) => {
                content.fields().of_map(&mut answer.parts.headers);
                answer
            }
        }
    }

    /// Whether a cache has something that may stand in for an error.
    pub fn may_stand_in(&self) -> bool {
        self.content.as_ref().is_some_and(|content| content.may_stand_in())
    }

    /// What a cache has kept and may stand in for an error. What the route changes of answers, it has changed of this already.
    pub fn stand_in(&mut self, status: StatusCode, change: &mut Fields) -> Option<Answer> {
        let answer = self.content.as_mut()?.stand_in(status)?;
        *change = Fields::default();
        Some(answer)
    }

    /// An endpoint's answer, or what may stand in for it.
    pub fn or_stored(&mut self, answer: Answer, change: &mut Fields) -> Answer {
        let Some(stored) = self.stand_in(answer.parts.status, change) else { return answer };
        crate::ring::spawn(answer.discard());
        stored
    }

    /// What is said of a body that came to be longer than it may be.
    pub fn body_too_long(&self) -> Option<Reply> {
        self.body_max.as_ref().map(|(bytes_max, chain)| chain.refuse_body(*bytes_max))
    }
}
