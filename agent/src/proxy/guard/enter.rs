//! How a request enters a service: past the switch that degrades it, the breaker of its route, the limits, the breaker and the isolation; and
//! who stands in where one of them refuses it.

use std::{
    rc::Rc,
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use super::{Entered, Extra, Guard, OfRoute, Passed, Patience, StandingIn, why_of};
use crate::{
    cluster::Held,
    config::{
        guard::{DegradeTo, OnOpen, Why},
        threshold::Threshold,
    },
    proxy::{
        Cluster, Hop,
        admit::{Admitted, Gate, Rated, Standing},
        circuit::Circuit,
        http::Reply,
        pending::{Refusal, Stand},
        timing::Time,
    },
    record::Counter,
    route::Request,
};

impl Hop {
    /// The cluster of the service of this name, as of now.
    fn cluster_named(&self, name: &str) -> Option<Rc<Cluster>> {
        let service = self.snapshot.borrow_mut().load().by_name(name)?.id;
        self.cluster_of(service)
    }

    /// Another service that is to answer instead of a guarded one, if there is room for the request there.
    pub(in crate::proxy) fn stand_in(&self, guard: &Rc<Guard>, why: Why) -> Option<(Rc<Cluster>, StandingIn)> {
        self.stand_in_for(guard, why, false)
    }

    /// As [`Hop::stand_in`], for what somebody may insist on.
    pub(in crate::proxy) fn stand_in_for(
        &self,
        guard: &Rc<Guard>,
        why: Why,
        insists: bool,
    ) -> Option<(Rc<Cluster>, StandingIn)> {
        let name = guard.goes_to(why, insists)?;
        self.stand_in_by(guard, why, name)
    }

    /// The same of one that is named.
    fn stand_in_by(&self, guard: &Rc<Guard>, why: Why, name: &str) -> Option<(Rc<Cluster>, StandingIn)> {
        let cluster = self.cluster_named(name)?;
        let most = guard.rules.fallback.as_ref().and_then(|fallback| fallback.concurrency);
        let usage = guard.usage();
        if most.is_some_and(|most| !usage.standing_in.take(most)) {
            usage.fallbacks_rejected.fetch_add(1, Relaxed);
            return None;
        }
        usage.fallbacks[why as usize].fetch_add(1, Relaxed);
        Some((cluster, StandingIn { place: most.map(|_| Rc::clone(guard)) }))
    }

    /// Whether a request may go on, and to whom; or what it is told. Who has a time waits no longer than that.
    pub(in crate::proxy) fn enter(
        &self,
        home: &Rc<Cluster>,
        of_route: OfRoute<'_>,
        request: &Request<'_>,
        (now, time): (Instant, Option<Time>),
    ) -> Result<Entered, Reply> {
        let patience: Patience<'_> = &|| time.map(|time| time.left());
        let mut cluster = Rc::clone(home);
        match home.guard.as_ref().and_then(|guard| guard.degraded(|| self.chance())) {
            Some(DegradeTo::Respond(respond)) => {
                return Err(Reply::instead(respond, Counter::Degraded));
            }
            // One that was removed meanwhile takes nothing.
            Some(DegradeTo::Shift { to, .. }) => cluster = self.cluster_named(to).unwrap_or(cluster),
            None => {}
        }
        let mut ticket = None;
        if let Some(circuit) = of_route.circuit {
            ticket = circuit.ask(now);
            if ticket.is_none() {
                let other = self.around(circuit, &cluster)?;
                return self.enter_at(other, None, request, now, patience);
            }
        }
        let mut entered = self.enter_at((cluster, None), of_route.gate, request, now, patience)?;
        if entered.standing_in.is_none() {
            entered.extra.ticket = ticket;
        }
        entered.extra.is_callers_time = time.is_some_and(|time| time.is_callers());
        Ok(entered)
    }

    /// Who is asked while the breaker of a route is open.
    fn around(&self, circuit: &Circuit, cluster: &Cluster) -> Result<(Rc<Cluster>, Option<StandingIn>), Reply> {
        let mut reply = Reply::guarded(Why::CircuitOpen);
        let other = match (circuit.on_open(), &cluster.guard) {
            (OnOpen::Fail, _) | (OnOpen::Fallback, None) => None,
            (OnOpen::Cluster(name), Some(guard)) => self.stand_in_by(guard, Why::CircuitOpen, name),
            (OnOpen::Cluster(name), None) => {
                self.cluster_named(name).map(|cluster| (cluster, StandingIn { place: None }))
            }
            (OnOpen::Fallback, Some(guard)) => self.stand_in(guard, Why::CircuitOpen),
        };
        reply.is_last = *circuit.on_open() != OnOpen::Fallback;
        other.map(|(cluster, place)| (cluster, Some(place))).ok_or(reply)
    }

    /// As [`Hop::enter`], of who is meant by now, or stands in for that one.
    pub(in crate::proxy) fn enter_at(
        &self,
        (mut cluster, mut standing_in): (Rc<Cluster>, Option<StandingIn>),
        mut of_route: Option<&Gate>,
        request: &Request<'_>,
        now: Instant,
        patience: Patience<'_>,
    ) -> Result<Entered, Reply> {
        let mut rated = None;
        loop {
            let (why, mut reply) = match self.pass(&cluster, of_route.take(), request, now, patience) {
                Ok((Passed { wait, mut admitted, leave, stand }, held)) => {
                    admitted.rate(rated);
                    let extra = Extra { held, ..Extra::default() };
                    return Ok(Entered { cluster, wait, admitted, leave, standing_in, stand, extra });
                }
                Err(refused) => refused,
            };
            let other = cluster.guard.as_ref().filter(|_| standing_in.is_none());
            let Some((other, place)) = other.and_then(|guard| self.stand_in_for(guard, why, reply.insists)) else {
                reply.rated = Rated::tighter(rated, reply.rated);
                return Err(reply);
            };
            (cluster, standing_in, rated) = (other, Some(place), reply.rated);
        }
    }

    /// Whether a route and the service that it leads to let a request in.
    fn pass(
        &self,
        cluster: &Cluster,
        of_route: Option<&Gate>,
        request: &Request<'_>,
        now: Instant,
        patience: Patience<'_>,
    ) -> Result<(Passed, Option<Held>), Refusal> {
        let mut rated = None;
        self.pass_by(cluster, (of_route, &mut rated), request, now, patience).map_err(|(why, mut reply)| {
            reply.rated = Rated::tighter(rated, reply.rated);
            (why, reply)
        })
    }

    /// The same; what is told of limits that let it pass is known also if something else does not.
    fn pass_by(
        &self,
        cluster: &Cluster,
        (of_route, rated): (Option<&Gate>, &mut Option<Box<Rated>>),
        request: &Request<'_>,
        now: Instant,
        patience: Patience<'_>,
    ) -> Result<(Passed, Option<Held>), Refusal> {
        if !cluster.circuits.is_empty() && cluster.refuses(now) {
            return Err((Why::CircuitOpen, Reply::guarded(Why::CircuitOpen)));
        }
        let held = cluster.service.hold(Threshold::Requests);
        let held = held.map_err(|overflow| (Why::Overflow, Reply::overflow(overflow.0)))?;
        let (mut wait, mut admitted, mut queues) = (Duration::ZERO, Admitted::default(), Vec::new());
        for gate in of_route.into_iter().chain([&cluster.gate]).filter(|gate| !gate.is_open()) {
            let (for_long, mut taken) = gate.admit(request, now, patience, || self.chance()).map_err(|over| {
                let broken = cluster.guard.as_ref().filter(|guard| over.breaks() && guard.trip(now));
                match broken {
                    Some(_) => (Why::CircuitOpen, Reply::guarded(Why::CircuitOpen)),
                    None => (Why::Limit, over.reply()),
                }
            })?;
            wait = wait.max(for_long);
            *rated = Rated::tighter(rated.take(), taken.rated.take());
            admitted.join(taken);
            queues.extend_from_slice(gate.queues());
        }
        let standing = Standing::of(queues, wait, &mut admitted, (now, patience));
        if let Some(standing) = standing.map_err(|reply| (why_of(&reply), reply))? {
            admitted.rate(rated.take());
            let stand = Some(Stand::Queued(standing));
            return Ok((Passed { wait, admitted, leave: None, stand }, held));
        }
        let passed = match &cluster.line {
            None => {
                let leave = cluster.guard.as_ref().map(|guard| guard.enter(now)).transpose();
                let leave = leave.map_err(|why| (why, Reply::guarded(why)))?;
                Ok(Passed { wait, admitted, leave, stand: None })
            }
            Some(line) if wait.is_zero() => self.room_or_line(cluster, line, admitted, (now, patience())),
            Some(_) => Ok(Passed { wait, admitted, leave: None, stand: Some(Stand::Later) }),
        };
        let mut passed = passed?;
        passed.admitted.rate(rated.take());
        Ok((passed, held))
    }
}
