//! Several endpoints at a time.

use std::{future::poll_fn, pin::Pin, rc::Rc, task::Poll};

use tokio::sync::mpsc;

use super::{Outcome, discard, has_failed};
use crate::{
    cluster::Effort,
    config::strategy::{Broadcast, Strategy},
    proxy::{
        Cluster, Hop,
        reach::Tried,
        whole::{Came, Whole, ask},
    },
    retry::aggregate::Answers,
    ring,
};

/// Endpoints that are being asked.
struct Asking(Vec<Pin<Box<dyn Future<Output = Came>>>>);

impl Asking {
    fn of(hop: &Rc<Hop>, cluster: &Rc<Cluster>, whole: &Rc<Whole>, tried: &Tried, endpoints: &[usize]) -> Self {
        for _ in 1..endpoints.len() {
            cluster.service.efforts.count(Effort::Copied);
        }
        let asked = endpoints.iter().map(|endpoint| -> Pin<Box<dyn Future<Output = Came>>> {
            Box::pin(ask(Rc::clone(hop), Rc::clone(cluster), tried.at(*endpoint), Rc::clone(whole)))
        });
        Self(asked.collect())
    }

    /// What comes next; `None` if nothing does any more.
    async fn next(&mut self) -> Option<Came> {
        poll_fn(|context| {
            for index in 0..self.0.len() {
                if let Poll::Ready(came) = self.0[index].as_mut().poll(context) {
                    drop(self.0.swap_remove(index));
                    return Poll::Ready(Some(came));
                }
            }
            if self.0.is_empty() { Poll::Ready(None) } else { Poll::Pending }
        })
        .await
    }
}

/// Asks so many; the first good answer is taken, and the request is taken back from the others.
pub(super) async fn fork(
    hop: &Rc<Hop>,
    cluster: &Rc<Cluster>,
    whole: Rc<Whole>,
    (mut tried, rules, forks): (Tried, &Strategy, u32),
) -> Outcome {
    let endpoints: Vec<usize> = (0..forks).map_while(|_| hop.pick(cluster, &mut tried)).collect();
    let mut asking = Asking::of(hop, cluster, &whole, &tried, &endpoints);
    let mut failed = None;
    while let Some(came) = asking.next().await {
        if !has_failed(rules, &came) {
            failed.into_iter().for_each(discard);
            return Outcome::of(came);
        }
        match failed {
            None => failed = Some(came),
            Some(_) => discard(came),
        }
    }
    failed.map_or_else(|| Outcome::nobody(cluster), Outcome::of)
}

/// Asks all that are meant. Each gets the request to its end, whatever the others answer and whether the caller waits or not.
pub(super) async fn broadcast(
    hop: &Rc<Hop>,
    cluster: &Rc<Cluster>,
    whole: Rc<Whole>,
    (tried, rules, broadcast): (&Tried, &Strategy, &Broadcast),
) -> Outcome {
    let endpoints = cluster.having(&broadcast.subset);
    let mut answers = Answers::of(endpoints.len());
    let mut asking = Asking::of(hop, cluster, &whole, tried, &endpoints);
    let (tell, mut hear) = mpsc::unbounded_channel();
    ring::spawn(async move {
        while let Some(came) = asking.next().await {
            if let Err(unheard) = tell.send(came) {
                discard(unheard.0);
            }
        }
    });
    // The first of each kind.
    let (mut good, mut bad) = (None, None);
    while let Some(came) = hear.recv().await {
        let is_good = !has_failed(rules, &came);
        let first = if is_good { &mut good } else { &mut bad };
        match first {
            None => *first = Some(came),
            Some(_) => discard(came),
        }
        answers.count(is_good);
        let Some(all_good) = answers.come_to(broadcast.aggregate) else { continue };
        hear.close();
        while let Ok(came) = hear.try_recv() {
            discard(came);
        }
        let (given, other) = if all_good { (good, bad) } else { (bad, good) };
        other.into_iter().for_each(discard);
        return given.map_or_else(|| Outcome::nobody(cluster), Outcome::of);
    }
    Outcome::nobody(cluster)
}
