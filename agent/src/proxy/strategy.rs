//! Carries out what a service does with a request whose endpoint fails, or that several endpoints are to get. What follows what is
//! [`crate::retry`]'s to say.

mod attempts;
mod failback;
mod many;
mod one;

use std::rc::Rc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use super::{
    Cluster, Hop,
    guard::{Keeping, StandingIn, by},
    http::Reply,
    reach::{Tried, Unreached, none},
    whole::{Answer, Body, Came, Missed, Whole, ask},
};
use crate::{
    cluster::Cause,
    config::{
        guard::Why,
        strategy::{Kind, Strategy},
    },
    record::Counter,
    retry,
    route::Request,
};

/// How much of a body is kept for a fallback: what Linkerd keeps.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// Says that an answer is the agent's own, and why.
const TOLD: HeaderName = HeaderName::from_static("x-sockway-cluster");
/// A message of gRPC with nothing in it: not compressed, 0 bytes long.
const EMPTY_MESSAGE: Bytes = Bytes::from_static(&[0; 5]);

/// What the caller is told.
pub enum Outcome {
    /// An endpoint's answer.
    Answered(Answer),
    /// One of our own that stands for it, counted as this.
    Ours(Answer, Counter),
    /// Why there is none.
    Refused(Reply),
}

impl Outcome {
    /// Of what came of asking one endpoint.
    pub fn of(came: Came) -> Self {
        match came {
            Ok(answer) => Self::Answered(answer),
            Err(missed) => Self::Refused(missed.reply()),
        }
    }

    fn nobody(cluster: &Cluster) -> Self {
        Self::Refused(Reply::unreached(none(cluster, Unreached::NoEndpoint)))
    }
}

/// What becomes of a request; `tried` is what its endpoints are chosen by, and with it stands what came of a
/// first attempt, if that was made already. Dropped before it is done, it is taken back, but from those who are to
/// get it in any case. Whoever guards the service may ask another; then the answer is that one's.
pub async fn carry_out(
    hop: &Rc<Hop>,
    cluster: &Rc<Cluster>,
    whole: Rc<Whole>,
    (tried, first): (Tried, Option<Came>),
    keeping: &Keeping<'_>,
) -> (Outcome, Option<StandingIn>) {
    let until = keeping.leave.and_then(|leave| leave.until);
    let outcome = by(until, by_rules(hop, cluster, Rc::clone(&whole), (tried, first, keeping.rules))).await;
    let outcome = outcome.unwrap_or_else(|| Outcome::Refused(Reply::guarded(Why::Timeout)));
    let Some(guard) = keeping.guard else { return (outcome, None) };
    let Some(why) = guard.why(&outcome) else { return (outcome, None) };
    let Some((other, place)) = hop.stand_in(guard, why) else { return (outcome, None) };
    let Ok(again) = whole.to(&other, keeping.client) else { return (outcome, None) };
    keeping.leave.into_iter().for_each(|leave| leave.came(&outcome));
    if let Outcome::Answered(answer) = outcome {
        discard(Ok(answer));
    }
    let request = || Request::of_parts(&whole.parts, keeping.is_secure, keeping.asker.source);
    let tried = Tried::for_request(hop, &other, keeping.asker, request);
    (Outcome::of(ask(Rc::clone(hop), other, tried, Rc::new(again)).await), Some(place))
}

async fn by_rules(
    hop: &Rc<Hop>,
    cluster: &Rc<Cluster>,
    whole: Rc<Whole>,
    (tried, first, rules): (Tried, Option<Came>, Option<&Strategy>),
) -> Outcome {
    let Some(rules) = rules else {
        return Outcome::of(ask(Rc::clone(hop), Rc::clone(cluster), tried, whole).await);
    };
    match &rules.kind {
        Kind::Broadcast(broadcast) => many::broadcast(hop, cluster, whole, (&tried, rules, broadcast)).await,
        _ => match retry::forks(rules, whole.asked.is_idempotent) {
            0 | 1 => one::ask_one(hop, cluster, whole, (tried, first, rules)).await,
            forks => many::fork(hop, cluster, whole, (tried, rules, forks)).await,
        },
    }
}

/// How long a body is kept, and whether a request that cannot be kept goes its way all the same, to one endpoint, once.
pub fn keeps(rules: Option<&Strategy>) -> (usize, bool) {
    let lets_pass = |rules: &Strategy| matches!(rules.kind, Kind::Failover(_) | Kind::Failfast | Kind::Failsafe);
    rules.map_or((BODY_BYTES_MAX, true), |rules| (rules.body_bytes_max, lets_pass(rules)))
}

/// Whether what an endpoint says before its answer may be passed on: nobody else is asked, whatever the answer is.
pub fn passes_hints(keeping: &Keeping<'_>) -> bool {
    keeping.guard.is_none() && keeping.rules.is_none_or(|rules| matches!(rules.kind, Kind::Failfast))
}

/// Why what came has failed, if it has.
fn failed(rules: &Strategy, came: &Came) -> Option<Cause> {
    let is_unprocessed = came.as_ref().is_err_and(Missed::is_unprocessed);
    retry::failed(rules, came.as_ref().map_or_else(Missed::seen, Answer::seen), is_unprocessed)
}

/// Whether it has.
fn has_failed(rules: &Strategy, came: &Came) -> bool {
    failed(rules, came).is_some()
}

/// An answer that nothing stands in, but that it is the agent's own. A gRPC call is told that it went well.
pub(super) fn empty(is_grpc: bool, status: StatusCode, told: HeaderValue) -> Answer {
    let (mut parts, ()) = http::Response::new(()).into_parts();
    parts.headers.insert(TOLD, told);
    if !is_grpc {
        parts.status = status;
        parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        return Answer { parts, body: Body::Ready(Bytes::new(), HeaderMap::new()) };
    }
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    Answer { parts, body: Body::Ready(EMPTY_MESSAGE, trailers) }
}

/// Nobody wants this any more.
fn discard(came: Came) {
    if let Ok(answer) = came {
        crate::ring::spawn(answer.discard());
    }
}
