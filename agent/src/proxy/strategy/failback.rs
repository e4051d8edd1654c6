//! Requests that failed and are sent again later: nobody waits for their answers.

use std::{rc::Rc, sync::Arc, time::Duration};

use tokio::time::sleep;

use super::{discard, has_failed};
use crate::{
    cluster::{Effort, Place},
    config::strategy::{Failback, Kind, Strategy},
    proxy::{
        Cluster, Hop,
        reach::Tried,
        whole::{Whole, ask},
    },
    ring,
};

/// How often it is looked whether the service is still there.
const LOOK: Duration = Duration::from_millis(250);

/// Puts a request by, if there is room for it.
pub(super) fn defer(hop: &Rc<Hop>, cluster: &Rc<Cluster>, whole: &Rc<Whole>, tried: &Tried) -> bool {
    let Some((_, rules)) = rules(cluster) else { return false };
    let service = &cluster.service;
    let tasks = u64::from(rules.tasks);
    let Some(place) = service.efforts.wait(|waiting| waiting < tasks) else {
        service.efforts.count(Effort::Full);
        tracing::warn!(service = service.config.name, tasks, "too many requests wait to be sent again: one more fails");
        return false;
    };
    service.efforts.count(Effort::Deferred);
    let waiting = Waiting { cluster: Rc::clone(cluster), whole: Rc::clone(whole), tried: tried.anew(), _place: place };
    ring::spawn(again(Rc::clone(hop), waiting));
    true
}

fn rules(cluster: &Cluster) -> Option<(&Strategy, &Failback)> {
    let strategy = cluster.service.config.strategy.as_ref()?;
    match &strategy.kind {
        Kind::Failback(rules) => Some((strategy, rules)),
        _ => None,
    }
}

/// A request that waits.
struct Waiting {
    cluster: Rc<Cluster>,
    whole: Rc<Whole>,
    tried: Tried,
    _place: Place,
}

async fn again(hop: Rc<Hop>, mut waiting: Waiting) {
    let efforts = Arc::clone(&waiting.cluster.service.efforts);
    let mut retries = 0;
    let effort = loop {
        if !waiting.rest(&hop).await {
            break Effort::Orphaned;
        }
        retries += 1;
        if waiting.is_answered(&hop).await {
            break Effort::Delivered;
        }
        if rules(&waiting.cluster).is_none_or(|(_, rules)| retries >= rules.retries) {
            break Effort::Dropped;
        }
    };
    efforts.count(effort);
    if effort != Effort::Delivered {
        let (service, what) = (&waiting.cluster.service.config.name, effort.word());
        tracing::warn!(service, what, retries, "a request that was to be sent again is given up");
    }
}

impl Waiting {
    /// Waits until it is time; whether the service and its strategy are still there.
    async fn rest(&mut self, hop: &Hop) -> bool {
        let mut waited = Duration::ZERO;
        loop {
            let Some(cluster) = current(hop, &self.cluster) else { return false };
            self.cluster = cluster;
            let Some((_, rules)) = rules(&self.cluster) else { return false };
            let left = rules.interval.saturating_sub(waited);
            if left.is_zero() {
                return true;
            }
            let step = left.min(LOOK);
            sleep(step).await;
            waited += step;
        }
    }

    async fn is_answered(&self, hop: &Rc<Hop>) -> bool {
        let Some((strategy, _)) = rules(&self.cluster) else { return false };
        let mut tried = self.tried.anew();
        let Some(endpoint) = hop.pick(&self.cluster, &mut tried) else { return false };
        let came = ask(Rc::clone(hop), Rc::clone(&self.cluster), tried.at(endpoint), Rc::clone(&self.whole)).await;
        let is_good = !has_failed(strategy, &came);
        discard(came);
        is_good
    }
}

/// The cluster as of now. Some endpoints of a service, which a route had chosen, are the same only while the service is.
fn current(hop: &Hop, cluster: &Rc<Cluster>) -> Option<Rc<Cluster>> {
    let now = hop.cluster_of(cluster.service.id)?;
    match &cluster.members {
        None => Some(now),
        Some(_) => Arc::ptr_eq(&now.service, &cluster.service).then(|| Rc::clone(cluster)),
    }
}
