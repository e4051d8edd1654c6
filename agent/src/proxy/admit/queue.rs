//! Requests that wait for a place of one limit, in a line of its own: `on_limit: {wait: …}` of a limit on how many there are at once.

use std::{
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use super::{Admitted, Limit, When, now_ns, wall_ns};
use crate::{
    limit::request::Verdict,
    proxy::{
        guard::Patience,
        http::Reply,
        pending::{Line, Place, left},
    },
};

/// A limit, and the line before it.
pub(in crate::proxy) struct Queue {
    limit: Limit,
    line: Rc<Line>,
}

/// A request that has places to wait for.
pub(in crate::proxy) struct Standing {
    /// The limits that it has no place of yet.
    queues: Vec<Rc<Queue>>,
    /// Where it stands before the first of them.
    place: Option<Place>,
}

impl Queue {
    /// Of a limit that has a line.
    pub(super) fn of(limit: Limit) -> Option<Rc<Self>> {
        let line = Line::of_limit(&limit.state)?;
        Some(Rc::new(Self { limit, line }))
    }

    /// What places are counted by.
    pub(super) fn limit(&self) -> &Limit {
        &self.limit
    }

    /// Takes a place, if there is one.
    fn take(&self, admitted: &mut Admitted, now: Instant, has_waited: bool) -> bool {
        let wall_ns = if self.limit.asks_wall() { wall_ns() } else { 0 };
        let when = When { now_ns: now_ns(now), wall_ns, patience_ns: 0 };
        // It counts, and leaves nothing to chance.
        let (Verdict::After(_), place) = self.limit.decide(0, when, || 0) else { return false };
        let state = &self.limit.state;
        if has_waited { &state.waited } else { &state.passed }.fetch_add(1, Relaxed);
        admitted.rate(self.limit.rated(place, when));
        admitted.taken.extend(place.map(|place| (Arc::clone(state), place)));
        true
    }

    /// The same of who has not stood in the line: he does not pass those who do.
    fn take_at_once(&self, admitted: &mut Admitted, now: Instant) -> bool {
        self.line.is_empty() && self.take(admitted, now, false)
    }
}

impl Standing {
    /// Of a request that its other limits let pass after `wait`; `None`: it has all of its places.
    ///
    /// # Errors
    ///
    /// When it may not wait.
    pub(in crate::proxy) fn of(
        mut queues: Vec<Rc<Queue>>,
        wait: Duration,
        admitted: &mut Admitted,
        (now, patience): (Instant, Patience<'_>),
    ) -> Result<Option<Self>, Reply> {
        if !wait.is_zero() {
            // Nobody holds a place while he waits for something else.
            return Ok((!queues.is_empty()).then_some(Self { queues, place: None }));
        }
        let Some(at) = queues.iter().position(|queue| !queue.take_at_once(admitted, now)) else { return Ok(None) };
        queues.drain(..at);
        let place = queues[0].line.join(now, patience())?;
        Ok(Some(Self { queues, place: Some(place) }))
    }

    /// Waits for each of the places, no longer than until `until`.
    ///
    /// # Errors
    ///
    /// When it waited for as long as it may.
    pub(in crate::proxy) async fn wait(self, admitted: &mut Admitted, until: Option<Instant>) -> Result<(), Reply> {
        let Self { queues, mut place } = self;
        for queue in queues {
            let (now, patience) = left(until);
            let place = match place.take() {
                Some(place) => place,
                None if queue.take_at_once(admitted, now) => continue,
                None => queue.line.join(now, patience)?,
            };
            place.room(|| queue.take(admitted, Instant::now(), true).then_some(())).await?;
        }
        Ok(())
    }
}
