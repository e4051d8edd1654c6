//! What who is limited is told of that: the limit, what is left of it, and when all of it is there again, as Envoy and the drafts of RateLimit fields do.

use http::{HeaderName, HeaderValue};

use crate::{config::RequestLimit, limit::request::Left, route::Fields};

const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// What is told of a limit. Kept in a box: most limits tell nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rated {
    limit: u32,
    remaining: u64,
    reset_s: Option<u64>,
}

impl Rated {
    /// Of a limit of which this is left; `None`: it tells nothing.
    pub fn of(config: &RequestLimit, left: impl FnOnce() -> Left) -> Option<Box<Self>> {
        config.tells_limit.then(|| {
            let Left { requests, reset_ns } = left();
            let reset_s = reset_ns.map(|reset| reset.div_ceil(1_000_000_000));
            Box::new(Self { limit: config.kind.most(), remaining: requests, reset_s })
        })
    }

    /// Of two limits the one of which less is left.
    pub fn tighter(one: Option<Box<Self>>, other: Option<Box<Self>>) -> Option<Box<Self>> {
        match (one, other) {
            (Some(one), Some(other)) => Some(if other.remaining < one.remaining { other } else { one }),
            (one, other) => one.or(other),
        }
    }

    /// As fields of an answer.
    pub fn fields(&self) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
        let reset = self.reset_s.map(|reset| (RESET, reset.into()));
        [(LIMIT, self.limit.into()), (REMAINING, self.remaining.into())].into_iter().chain(reset)
    }

    /// As what is changed of an endpoint's answer.
    pub fn change(&self) -> Fields {
        self.fields().fold(Fields::default(), |change, (name, value)| change.set(name, value))
    }
}
