//! A request that finds no room at its service, until it does: its place in the line of those who wait.
//!
//! Nobody looks at a clock for the line: who makes room calls the first, who calls the next when there was room for him; and each has one timer, for
//! the end of his patience.

use std::{
    future::poll_fn,
    pin::pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{
            Ordering::{Relaxed, SeqCst},
            fence,
        },
    },
    task::Poll,
    time::{Duration, Instant},
};

use tokio::time::{sleep, sleep_until};

use super::{
    Cluster, Hop,
    admit::{Admitted, Rated, Standing, refused},
    guard::{Entered, Leave, Passed, why_of},
    http::Reply,
};
use crate::{
    cluster::{LimitState, PendingState, Service, Unserved},
    config::{Pending, guard::Why},
    limit::pending::{Judge, Turn, call},
    route::Request,
};

/// Most that wait for a place of one limit: each holds a connection or a stream, as those of `pending` do.
const WAITING_MAX: u32 = 10_000;

/// Of a service, or of a limit, ready for its requests.
pub(super) struct Line {
    /// Of the service or the limit, for the log.
    name: String,
    state: Arc<PendingState>,
    judge: Judge,
    /// The limit that it is before, if not all that the service has room for.
    limit: Option<Arc<LimitState>>,
}

/// A place in the line, given up when it is dropped.
pub(super) struct Place {
    line: Rc<Line>,
    number: u64,
    until: Instant,
    /// What that is when it has come.
    then: Unserved,
    is_left: bool,
}

/// A request that has no room yet.
pub(super) enum Stand {
    /// It waits in the line.
    In(Place),
    /// It has to wait for something else first.
    Later,
    /// It waits for places of limits that have lines of their own.
    Queued(Standing),
}

impl Line {
    /// Of a service; `None`: its requests do not wait.
    pub(super) fn of(service: &Service) -> Option<Rc<Self>> {
        let (rules, state) = service.config.pending.as_ref().zip(service.pending.as_ref())?;
        let (name, state) = (service.config.name.clone(), Arc::clone(state));
        Some(Rc::new(Self { name, state, judge: Judge::new(rules), limit: None }))
    }

    /// Of a limit; `None`: nobody waits for it.
    pub(super) fn of_limit(limit: &Arc<LimitState>) -> Option<Rc<Self>> {
        let (wait_max, state) = limit.config.wait_max.zip(limit.line())?;
        let judge = Judge::new(&Pending { requests_max: WAITING_MAX, wait_max }).whoever_comes();
        let (name, state) = (limit.config.name.clone(), Arc::clone(state));
        Some(Rc::new(Self { name, state, judge, limit: Some(Arc::clone(limit)) }))
    }

    /// Whether nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.state.depth() == 0
    }

    /// How often it was shut.
    pub(super) fn stops(&self) -> u64 {
        self.state.stops.load(Relaxed)
    }

    /// Somebody has made room.
    pub(super) fn knock(&self) {
        knock(&self.state);
    }

    /// Takes a request in.
    pub(super) fn join(self: &Rc<Self>, now: Instant, patience: Option<Duration>) -> Result<Place, Reply> {
        let joined = self.judge.join(&mut self.state.hold().line, now, patience);
        let (number, has_shut, waked) = joined.map_err(|why| self.unserved(why))?;
        self.shut(has_shut);
        wake(waked);
        let (until, then) = self.judge.until(now, patience);
        Ok(Place { line: Rc::clone(self), number, until, then, is_left: false })
    }

    fn shut(&self, has_shut: bool) {
        if has_shut {
            self.state.stops.fetch_add(1, Relaxed);
            let (name, waiting) = (&self.name, self.state.depth());
            match self.limit {
                None => tracing::info!(service = name, waiting, "requests are refused: too many wait"),
                Some(_) => tracing::info!(limit = name, waiting, "requests are refused: too many wait"),
            }
        }
    }

    /// What a request is told that is not served.
    fn unserved(&self, why: Unserved) -> Reply {
        self.state.unserved[why as usize].fetch_add(1, Relaxed);
        let text = match why {
            Unserved::Deadline | Unserved::Gone => return Reply::deadline_exceeded(),
            Unserved::Full => "as many requests wait for the service as may",
            Unserved::TooOld => "the service had no room in the time for which a request may wait",
            Unserved::Doomed => "the call's time would be over before its turn",
        };
        let after = self.judge.retry_after(&self.state.hold().line);
        match &self.limit {
            None => Reply::unserved(text, after),
            Some(limit) => refused(limit, after),
        }
    }
}

/// Somebody has made room for who waits in this line.
pub(super) fn knock(state: &PendingState) {
    // Who joins writes how many there are before he looks for room, and who makes room does so before he reads it: one of them sees the other.
    fence(SeqCst);
    if state.depth() > 0 {
        let first = call(&mut state.hold().line);
        wake(first);
    }
}

fn wake(waked: impl IntoIterator<Item = std::task::Waker>) {
    waked.into_iter().for_each(std::task::Waker::wake);
}

impl Place {
    /// Waits for room, as long as this one may; `look` looks for it when it is its turn.
    pub(super) async fn room<T>(mut self, mut look: impl FnMut() -> Option<T>) -> Result<T, Reply> {
        let mut patience = pin!(sleep_until(self.until.into()));
        let found = poll_fn(|context| {
            if patience.as_mut().poll(context).is_ready() {
                return Poll::Ready(Err(self.then));
            }
            let turn = self.line.judge.turn(&mut self.line.state.hold().line, self.number, context.waker());
            match turn {
                Turn::NotYet => return Poll::Pending,
                Turn::ThrownOut => return Poll::Ready(Err(Unserved::Doomed)),
                Turn::Called => fence(SeqCst),
            }
            look().map_or(Poll::Pending, |found| Poll::Ready(Ok(found)))
        })
        .await;
        match found {
            Ok(found) => {
                self.served();
                Ok(found)
            }
            Err(why) => {
                self.leave(why);
                Err(self.line.unserved(why))
            }
        }
    }

    fn served(&mut self) {
        self.is_left = true;
        let line = &self.line;
        line.state.served.fetch_add(1, Relaxed);
        let next = line.judge.served(&mut line.state.hold().line, self.number, Instant::now());
        wake(next);
    }

    fn leave(&mut self, why: Unserved) {
        self.is_left = true;
        let line = &self.line;
        let (next, has_shut) = line.judge.left(&mut line.state.hold().line, self.number, why, Instant::now());
        line.shut(has_shut);
        wake(next);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.is_left {
            self.leave(Unserved::Gone);
            self.line.state.unserved[Unserved::Gone as usize].fetch_add(1, Relaxed);
        }
    }
}

/// What a request that is not let in is told, and for what that stands.
pub(super) type Refusal = (Why, Reply);

impl Cluster {
    /// Room for a request; `None`: there is none. Whose breaker is open has none to give.
    fn room(
        &self,
        line: &Rc<Line>,
        admitted: &mut Admitted,
        when: (Instant, bool),
        chance: impl Fn() -> u64,
    ) -> Option<Result<Option<Leave>, Why>> {
        let now = when.0;
        let Some(guard) = &self.guard else {
            return self.gate.room(admitted, line, when, chance).then_some(Ok(None));
        };
        if guard.refuses(now) {
            return Some(Err(Why::CircuitOpen));
        }
        let place = guard.place()?;
        if !self.gate.room(admitted, line, when, chance) {
            return None;
        }
        Some(place.enter(now).map(Some))
    }
}

impl Hop {
    /// Lets a request in that its service's limits have admitted, if there is room for it; or lets it stand in the line.
    pub(super) fn room_or_line(
        &self,
        cluster: &Cluster,
        line: &Rc<Line>,
        mut admitted: Admitted,
        (now, patience): (Instant, Option<Duration>),
    ) -> Result<Passed, Refusal> {
        let guarded = |why| (why, Reply::guarded(why));
        if line.state.depth() == 0 {
            if let Some(found) = cluster.room(line, &mut admitted, (now, false), || self.chance()) {
                let leave = found.map_err(guarded)?;
                return Ok(Passed { wait: Duration::ZERO, admitted, leave, stand: None });
            }
        } else if cluster.guard.as_ref().is_some_and(|guard| guard.refuses(now)) {
            return Err(guarded(Why::CircuitOpen));
        }
        let place = line.join(now, patience).map_err(|reply| (Why::Pending, reply))?;
        Ok(Passed { wait: Duration::ZERO, admitted, leave: None, stand: Some(Stand::In(place)) })
    }

    /// Waits until a request is let in, there or by who stands in for that service; no longer than until `until`.
    pub(super) async fn stands(
        &self,
        mut entered: Entered,
        request: &Request<'_>,
        until: Option<Instant>,
    ) -> Result<Entered, Reply> {
        while let Some(stand) = entered.stand.take() {
            let rated = entered.admitted.rated.clone();
            let Err((why, mut reply)) = self.stood(&mut entered, stand, until).await else { break };
            reply.rated = Rated::tighter(rated, reply.rated);
            let Entered { cluster, standing_in, .. } = entered;
            let other = cluster.guard.as_ref().filter(|_| standing_in.is_none());
            let Some((other, place)) = other.and_then(|guard| self.stand_in(guard, why)) else { return Err(reply) };
            let (now, left) = left(until);
            entered = self.enter_at((other, Some(place)), None, request, now, &|| left)?;
            entered.admitted.rate(reply.rated);
        }
        Ok(entered)
    }

    async fn stood(&self, entered: &mut Entered, stand: Stand, until: Option<Instant>) -> Result<(), Refusal> {
        let cluster = Rc::clone(&entered.cluster);
        if !matches!(stand, Stand::In(_)) {
            sleep(std::mem::take(&mut entered.wait)).await;
        }
        let stand = match stand {
            Stand::Queued(standing) => {
                let stood = standing.wait(&mut entered.admitted, until).await;
                stood.map_err(|reply| (why_of(&reply), reply))?;
                Stand::Later
            }
            stand => stand,
        };
        let Some(line) = &cluster.line else {
            let leave = cluster.guard.as_ref().map(|guard| guard.enter(Instant::now())).transpose();
            entered.leave = leave.map_err(|why| (why, Reply::guarded(why)))?;
            return Ok(());
        };
        let place = match stand {
            Stand::In(place) => place,
            Stand::Later | Stand::Queued(_) => {
                let admitted = std::mem::take(&mut entered.admitted);
                let Passed { admitted, leave, stand, .. } = self.room_or_line(&cluster, line, admitted, left(until))?;
                (entered.admitted, entered.leave) = (admitted, leave);
                match stand {
                    Some(Stand::In(place)) => place,
                    _ => return Ok(()),
                }
            }
        };
        let admitted = &mut entered.admitted;
        let look = || cluster.room(line, admitted, (Instant::now(), true), || self.chance());
        match place.room(look).await {
            Ok(found) => {
                entered.leave = found.map_err(|why| (why, Reply::guarded(why)))?;
                Ok(())
            }
            Err(reply) => Err((why_of(&reply), reply)),
        }
    }
}

/// Now, and how much is left from then on.
pub(super) fn left(until: Option<Instant>) -> (Instant, Option<Duration>) {
    let now = Instant::now();
    (now, until.map(|until| until.saturating_duration_since(now)))
}
