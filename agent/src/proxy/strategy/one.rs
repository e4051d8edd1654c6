//! One endpoint at a time.

use std::{rc::Rc, time::Duration};

use http::{HeaderValue, StatusCode};
use tokio::time::sleep;

use super::{Outcome, attempts::Attempts, discard, empty, failback, failed};
use crate::{
    cluster::{Cause, Effort},
    config::strategy::{Kind, Strategy},
    proxy::{
        Cluster, Hop,
        reach::Tried,
        whole::{Answer, Came, Missed, Whole},
    },
    record::Counter,
    retry::{self, Failure, Next},
};

/// Asks one endpoint, and what follows if it fails; one that was asked already is not asked again for the `first` answer.
pub(super) async fn ask_one(
    hop: &Rc<Hop>,
    cluster: &Rc<Cluster>,
    whole: Rc<Whole>,
    (tried, mut first, rules): (Tried, Option<Came>, &Strategy),
) -> Outcome {
    let efforts = &cluster.service.efforts;
    let mut attempts = Attempts::new(hop, cluster, &whole, (tried, rules), first.is_some().into());
    if first.is_none() {
        let Some(endpoint) = attempts.pick() else { return Outcome::nobody(cluster) };
        attempts.begin(endpoint);
    }
    let mut retries = 0;
    loop {
        let came = match first.take() {
            Some(came) => Some(came),
            None => attempts.came().await,
        };
        let Some(came) = came else { return Outcome::nobody(cluster) };
        let came = match came {
            Ok(answer) if whole.asked.is_grpc => Ok(Answer::settled(answer).await),
            came => came,
        };
        let Some(reason) = failed(rules, &came) else { return Outcome::of(came) };
        let is_unprocessed = came.as_ref().is_err_and(Missed::is_unprocessed);
        let failure = Failure { reason, is_idempotent: whole.asked.is_idempotent, is_unprocessed, retries };
        match (retry::next(rules, failure), &rules.kind) {
            (Next::Again, Kind::Failover(again)) => {
                attempts.give_back();
                // Who accepts nothing has no work of it, and another need not wait for him to recover.
                let is_sent = reason != Cause::ConnectFailure;
                let pause = if is_sent { attempts.pause(&came) } else { Some(Duration::ZERO) };
                let Some(pause) = pause else { return Outcome::of(came) };
                if is_sent && !attempts.take_place(again.budget) {
                    return Outcome::of(came);
                }
                let Some(endpoint) = attempts.pick() else { return Outcome::of(came) };
                retries += 1;
                efforts.retried(reason);
                discard(came);
                if !pause.is_zero() {
                    sleep(pause).await;
                }
                attempts.begin(endpoint);
            }
            (Next::Absorb, _) => {
                efforts.count(Effort::Absorbed);
                discard(came);
                let told = HeaderValue::from_static("failsafe");
                return Outcome::Ours(empty(whole.asked.is_grpc, StatusCode::OK, told), Counter::Absorbed);
            }
            (Next::Defer, _) => {
                if !failback::defer(hop, cluster, &whole, attempts.tried()) {
                    return Outcome::of(came);
                }
                discard(came);
                let told = HeaderValue::from_static("failback");
                return Outcome::Ours(empty(whole.asked.is_grpc, StatusCode::ACCEPTED, told), Counter::Deferred);
            }
            (Next::Give | Next::Again, _) => return Outcome::of(came),
        }
    }
}
