//! One endpoint at a time.

use std::{rc::Rc, sync::atomic::Ordering::Relaxed};

use http::{HeaderValue, StatusCode};

use super::{Outcome, discard, empty, failback, has_failed};
use crate::{
    cluster::{Effort, Place, Service},
    config::strategy::Strategy,
    proxy::{
        Cluster, Hop,
        reach::Tried,
        whole::{Missed, Whole, ask},
    },
    record::Counter,
    retry::{self, Failure, Next},
};

/// Asks one endpoint, and what follows if it fails.
pub(super) async fn ask_one(
    hop: &Rc<Hop>,
    cluster: &Rc<Cluster>,
    whole: Rc<Whole>,
    (mut tried, rules): (Tried, &Strategy),
) -> Outcome {
    let efforts = &cluster.service.efforts;
    let Some(mut endpoint) = hop.pick(cluster, &mut tried) else { return Outcome::nobody() };
    let (mut retries, mut _place) = (0, None);
    loop {
        let came = ask(Rc::clone(hop), Rc::clone(cluster), tried.at(endpoint), Rc::clone(&whole)).await;
        if !has_failed(rules, &came) {
            return Outcome::of(came);
        }
        let is_unprocessed = came.as_ref().is_err_and(Missed::is_unprocessed);
        let failure = Failure { is_idempotent: whole.asked.is_idempotent, is_unprocessed, retries };
        match retry::next(rules, failure) {
            Next::Give => return Outcome::of(came),
            Next::Again => {
                _place = None;
                let Some(place) = place(&cluster.service) else {
                    efforts.count(Effort::OverBudget);
                    return Outcome::of(came);
                };
                let Some(next) = hop.pick(cluster, &mut tried) else { return Outcome::of(came) };
                (endpoint, _place, retries) = (next, Some(place), retries + 1);
                efforts.count(Effort::Retried);
                discard(came);
            }
            Next::Absorb => {
                efforts.count(Effort::Absorbed);
                discard(came);
                let told = HeaderValue::from_static("failsafe");
                return Outcome::Ours(empty(&whole, StatusCode::OK, told), Counter::Absorbed);
            }
            Next::Defer => {
                if !failback::defer(hop, cluster, &whole, &tried) {
                    return Outcome::of(came);
                }
                discard(came);
                let told = HeaderValue::from_static("failback");
                return Outcome::Ours(empty(&whole, StatusCode::ACCEPTED, told), Counter::Deferred);
            }
        }
    }
}

/// A place among the retries, if the service's budget has one.
fn place(service: &Service) -> Option<Place> {
    let in_flight = service.endpoints.iter().map(|endpoint| u64::from(endpoint.state.active.load(Relaxed))).sum();
    service.efforts.retry(|retrying| retry::is_within_budget(retrying, in_flight))
}
