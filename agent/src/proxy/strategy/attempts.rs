//! The attempts at one request: one at a time, or a second one beside a first that takes long (hedging).

use std::{future::poll_fn, pin::Pin, rc::Rc, sync::atomic::Ordering::Relaxed, task::Poll, time::Duration};

use tokio::time::{Sleep, sleep};

use super::{discard, failed};
use crate::{
    cluster::{Cause, Effort, Held, Place},
    config::{
        retry::{Budget, Retry},
        strategy::{Kind, Strategy},
        threshold::Threshold,
    },
    proxy::{
        Cluster, Hop,
        reach::{Tried, Turn},
        whole::{Came, Whole, ask},
    },
    retry,
};

/// Attempts at a request. Dropped, it is taken back from who has not answered.
pub(super) struct Attempts<'a> {
    hop: &'a Rc<Hop>,
    cluster: &'a Rc<Cluster>,
    whole: &'a Rc<Whole>,
    rules: &'a Strategy,
    tried: Tried,
    made: u32,
    asking: Vec<Pin<Box<dyn Future<Output = Came>>>>,
    /// Among the retries; until the answer is there.
    places: Vec<Place>,
    /// The same of the service's threshold.
    held: Vec<Held>,
}

impl<'a> Attempts<'a> {
    /// None yet, beside so many that were made elsewhere.
    pub fn new(
        hop: &'a Rc<Hop>,
        cluster: &'a Rc<Cluster>,
        whole: &'a Rc<Whole>,
        (tried, rules): (Tried, &'a Strategy),
        made: u32,
    ) -> Self {
        Self { hop, cluster, whole, rules, tried, made, asking: Vec::new(), places: Vec::new(), held: Vec::new() }
    }

    /// The endpoints that were tried.
    pub fn tried(&self) -> &Tried {
        &self.tried
    }

    fn retry(&self) -> Option<&'a Retry> {
        match &self.rules.kind {
            Kind::Failover(retry) => Some(retry),
            _ => None,
        }
    }

    /// An endpoint for one more: one that was not asked, while there is one; then, for who waits in between, any.
    pub fn pick(&mut self) -> Option<usize> {
        let other = self.hop.pick(self.cluster, &mut self.tried);
        if other.is_some() || self.made == 0 || self.retry().is_none_or(|retry| retry.back_off.is_none()) {
            return other;
        }
        self.tried = self.tried.anew();
        self.hop.pick(self.cluster, &mut self.tried)
    }

    /// Begins one more.
    pub fn begin(&mut self, endpoint: usize) {
        self.made += 1;
        let retry = self.retry();
        let nth = if retry.is_some_and(|retry| retry.tells) { self.made } else { 0 };
        let turn = Turn { nth, patience: retry.and_then(|retry| retry.per_try) };
        let tried = self.tried.at(endpoint).in_turn(turn);
        self.asking.push(Box::pin(ask(Rc::clone(self.hop), Rc::clone(self.cluster), tried, Rc::clone(self.whole))));
    }

    /// Takes a place among the retries, if the service's budget has one.
    pub fn take_place(&mut self, budget: Budget) -> bool {
        let service = &self.cluster.service;
        let Ok(held) = service.hold(Threshold::Retries) else { return false };
        let in_flight = service.endpoints.iter().map(|endpoint| u64::from(endpoint.state.active.load(Relaxed))).sum();
        let place = service.efforts.retry(|retrying| retry::is_within_budget(budget, retrying, in_flight));
        if place.is_none() {
            service.efforts.count(Effort::OverBudget);
        }
        let is_taken = place.is_some();
        if is_taken {
            self.held.extend(held);
        }
        self.places.extend(place);
        is_taken
    }

    /// Gives back the places of attempts that are over.
    pub fn give_back(&mut self) {
        self.places.clear();
        self.held.clear();
    }

    /// What came: the first answer that is none of the failures, or the last failure. Meanwhile others are asked, too, if it takes long.
    pub async fn came(&mut self) -> Option<Came> {
        let may_repeat = self.whole.asked.is_idempotent || self.rules.non_idempotent;
        let hedge = self.retry().and_then(|retry| retry.hedge).filter(|_| may_repeat);
        let mut left = hedge.map_or(0, |hedge| hedge.max);
        let timer = |left: u32| hedge.filter(|_| left > 0).map(|hedge| Box::pin(sleep(hedge.after)));
        let (mut rings, mut failure) = (timer(left), None);
        loop {
            match self.next(&mut rings).await {
                Next::Came(came) if self.asking.is_empty() || failed(self.rules, &came).is_none() => {
                    failure.into_iter().for_each(discard);
                    return Some(*came);
                }
                Next::Came(came) => failure.replace(*came).into_iter().for_each(discard),
                Next::Nobody => return failure,
                Next::Long => {
                    left = if self.hedged() { left - 1 } else { 0 };
                    rings = timer(left);
                }
            }
        }
    }

    /// Asks another endpoint beside those that are being asked, if there is one, and room for it.
    fn hedged(&mut self) -> bool {
        let Some(budget) = self.retry().map(|retry| retry.budget) else { return false };
        let Some(endpoint) = self.hop.pick(self.cluster, &mut self.tried) else { return false };
        if !self.take_place(budget) {
            return false;
        }
        self.cluster.service.efforts.retried(Cause::Hedged);
        self.begin(endpoint);
        true
    }

    async fn next(&mut self, rings: &mut Option<Pin<Box<Sleep>>>) -> Next {
        poll_fn(|context| {
            for index in 0..self.asking.len() {
                if let Poll::Ready(came) = self.asking[index].as_mut().poll(context) {
                    drop(self.asking.swap_remove(index));
                    return Poll::Ready(Next::Came(Box::new(came)));
                }
            }
            match rings {
                _ if self.asking.is_empty() => Poll::Ready(Next::Nobody),
                Some(rings) => rings.as_mut().poll(context).map(|()| Next::Long),
                None => Poll::Pending,
            }
        })
        .await
    }

    /// How long is waited before the next one, after this; `None`: there is to be none.
    pub fn pause(&self, came: &Came) -> Option<Duration> {
        let Some(back_off) = self.retry().and_then(|retry| retry.back_off) else { return Some(Duration::ZERO) };
        let chance = self.hop.chance();
        let headers = came.as_ref().ok().map(|answer| &answer.parts.headers);
        let said = |name| headers.and_then(|headers| headers.get(name));
        let pause = match said("grpc-retry-pushback-ms").filter(|_| self.whole.asked.is_grpc) {
            Some(value) => retry::push_back(value.as_bytes())?,
            None => {
                let told = ["retry-after", "x-ratelimit-reset"].into_iter().filter(|_| back_off.heeds_answers);
                let told = told.filter_map(|name| retry::pause_told(said(name)?.as_bytes(), chance)).next();
                told.unwrap_or_else(|| retry::pause(back_off, self.made, chance))
            }
        };
        // Nobody would hear of an attempt that begins behind the request's time.
        self.whole.time.is_none_or(|time| time.left() > pause).then_some(pause)
    }
}

/// What happens next.
enum Next {
    Came(Box<Came>),
    /// It takes long.
    Long,
    /// Nobody is being asked.
    Nobody,
}
