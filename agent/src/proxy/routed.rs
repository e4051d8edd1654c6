//! The way of a request whose service has routes: which of them, to whom, and what changes on the way.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    os::fd::BorrowedFd,
    path::Path,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use http::{HeaderName, HeaderValue, header};

use super::{Cluster, Hop, admit::Gate, circuit::Circuit, http::Reply, mirror::Ordered, timing::Ruled};
use crate::{
    chance::below,
    cluster::{CanaryState, Dialler, MirrorState, OneWayState, RouteState, Service, Snapshot},
    config::{
        NamespaceRules, Route, Strategy,
        route::{Action, CallerMatch, Fallback, Forward, Target},
    },
    kernel::{Diallers, Flows},
    route::{Change, Fields, Request, Table, Taken, Unfit},
};

/// The routes of a service, ready for a worker's requests.
pub(super) struct Routes {
    table: Rc<Table>,
    /// Of each route, in the file's order.
    goals: Vec<Split>,
    /// The limits of each, likewise.
    gates: Vec<Option<Rc<Gate>>>,
    /// Who finds out who dials, if a route asks for it.
    diallers: Option<Diallers>,
    /// Whether the address of who dials is asked for where one leads.
    pub asks_address: bool,
}

/// The targets of a route.
#[derive(Default)]
struct Split {
    goals: Vec<Goal>,
    weight: u64,
    /// How much the second of two gets, if that is a canary.
    canary: Option<Arc<CanaryState>>,
    mirror: Option<Mirror>,
    /// The route's breaker.
    circuit: Option<Rc<Circuit>>,
}

/// Who gets copies.
struct Mirror {
    goal: Goal,
    percent: u64,
    body_bytes_max: usize,
    state: Arc<MirrorState>,
}

/// Where a part of a route's requests goes.
struct Goal {
    /// The service whose endpoints these are, and whether that is another.
    service: u32,
    is_other: bool,
    weight: u64,
    /// The endpoints, if not all; made when it is needed.
    subset: Option<Subset>,
    /// Who counts what becomes of its requests.
    canary: Option<Arc<CanaryState>>,
    /// The route's limits, if they measure that.
    measured: Option<Rc<Gate>>,
}

struct Subset {
    labels: BTreeMap<String, String>,
    fallback: Fallback,
    cursor: Arc<AtomicUsize>,
    cluster: RefCell<Option<Rc<Cluster>>>,
}

/// What becomes of a request.
pub(super) enum Course {
    /// It goes where it would without routes.
    Straight,
    /// It is answered here.
    Answered(Reply),
    /// It goes on.
    On(Onward),
}

/// How a request goes on.
pub(super) struct Onward {
    /// To whom.
    pub cluster: Rc<Cluster>,
    /// What is changed of it.
    pub change: Option<Change>,
    /// What is changed of its response.
    pub response: Fields,
    /// What the route says of failures.
    pub strategy: Option<Arc<Strategy>>,
    /// The route's breaker.
    pub circuit: Option<Rc<Circuit>>,
    /// What the route says of its time.
    pub timing: Option<Ruled>,
    /// What limits its requests, by themselves.
    pub gate: Option<Rc<Gate>>,
    /// Who gets a copy.
    pub mirror: Option<Ordered>,
    /// Who counts it, if nobody waits for its answer.
    pub one_way: Option<Arc<OneWayState>>,
}

impl Routes {
    /// Of a service as of a snapshot; `None` if it has none.
    pub fn new(
        service: &Arc<Service>,
        snapshot: &Snapshot,
        flows: &Flows,
        table: impl FnOnce() -> Rc<Table>,
    ) -> Option<Self> {
        let routes = &service.config.routes;
        if routes.is_empty() {
            return None;
        }
        let gates: Vec<Option<Rc<Gate>>> = service.routes.iter().map(Gate::of_route).collect();
        let goals = routes.iter().zip(&service.routes).enumerate().map(|(index, (route, state))| match &route.action {
            Action::Forward(forward) => {
                let circuit = Circuit::of_route(service, index);
                let measured = gates[index].as_ref().filter(|gate| gate.measures());
                Split { circuit, ..Split::new(forward, (state, measured), service, snapshot) }
            }
            Action::Redirect(_) | Action::Respond(_) => Split::default(),
        });
        let goals: Vec<Split> = goals.collect();
        let leads_to = |goal: &Goal| snapshot.by_id(goal.service);
        let asks = |service: &Arc<Service>| service.config.policy.tuning.asks_address();
        let asks_address = goals.iter().flat_map(|split| &split.goals).filter_map(leads_to).any(asks);
        Some(Self { goals, gates, table: table(), diallers: diallers(routes, flows), asks_address })
    }

    /// Who dialled, if a route asks for it.
    pub fn dialler(&self, accepted: BorrowedFd<'_>, source: u64, now: Duration) -> Option<Box<Dialler>> {
        self.diallers.as_ref().map(|diallers| Box::new(diallers.look(accepted, source, now)))
    }
}

/// What these routes ask of who dials.
fn diallers(routes: &[Route], flows: &Flows) -> Option<Diallers> {
    let asked: Vec<&CallerMatch> = routes.iter().filter_map(|route| route.matches.caller.as_ref()).collect();
    let only = asked.iter().filter_map(|caller| caller.namespace.clone()).collect();
    let by_cgroup = asked.iter().any(|caller| caller.cgroup.is_some());
    let mount = if by_cgroup { flows.cgroup_mount() } else { None };
    let rules = NamespaceRules { only, except: Vec::new() };
    (!asked.is_empty()).then(|| Diallers::new(rules, mount.map(Path::to_owned)))
}

impl Subset {
    fn new(target: &Target, cursor: &Arc<AtomicUsize>) -> Self {
        Self {
            labels: target.subset.clone(),
            fallback: target.fallback.clone(),
            cursor: Arc::clone(cursor),
            cluster: RefCell::default(),
        }
    }
}

impl Goal {
    fn new(target: &Target, cursor: &Arc<AtomicUsize>, home: &Service, snapshot: &Snapshot) -> Option<Self> {
        let other = target.to.as_deref().filter(|name| *name != home.config.name);
        Some(Self {
            service: match other {
                None => home.id,
                Some(name) => snapshot.by_name(name)?.id,
            },
            is_other: other.is_some(),
            weight: target.weight.into(),
            subset: (!target.subset.is_empty()).then(|| Subset::new(target, cursor)),
            canary: None,
            measured: None,
        })
    }

    /// What becomes of its requests is counted: that needs a cluster of its own.
    fn watch(&mut self, canary: &Arc<CanaryState>, target: &Target, cursor: &Arc<AtomicUsize>) {
        self.canary = Some(Arc::clone(canary));
        self.subset.get_or_insert_with(|| Subset::new(target, cursor));
    }

    /// The same, by the limits of its route.
    fn measured(mut self, gate: &Rc<Gate>, target: &Target, cursor: &Arc<AtomicUsize>) -> Self {
        self.measured = Some(Rc::clone(gate));
        self.subset.get_or_insert_with(|| Subset::new(target, cursor));
        self
    }
}

impl Split {
    fn new(
        forward: &Forward,
        (state, measured): (&RouteState, Option<&Rc<Gate>>),
        home: &Service,
        snapshot: &Snapshot,
    ) -> Self {
        let of = |(target, cursor): (&Target, &Arc<AtomicUsize>)| {
            let goal = Goal::new(target, cursor, home, snapshot)?;
            Some(match measured {
                Some(gate) => goal.measured(gate, target, cursor),
                None => goal,
            })
        };
        let mut goals: Vec<Goal> = forward.targets.iter().zip(&state.cursors).filter_map(of).collect();
        let mirror = forward.mirror.as_ref().zip(state.mirror.as_ref()).and_then(|(mirror, state)| {
            Some(Mirror {
                goal: Goal::new(&mirror.target, &state.cursor, home, snapshot)?,
                percent: mirror.percent.into(),
                body_bytes_max: mirror.body_bytes_max,
                state: Arc::clone(state),
            })
        });
        let canary = state.canary.clone().filter(|_| goals.len() == 2);
        if let (Some(canary), [_, goal]) = (&canary, goals.as_mut_slice()) {
            goal.watch(canary, &forward.targets[1], &state.cursors[1]);
        }
        Self { weight: goals.iter().map(|goal| goal.weight).sum(), goals, canary, mirror, circuit: None }
    }

    /// One of them, by its part and 64 random bits.
    fn pick(&self, chance: impl FnOnce() -> u64) -> Option<&Goal> {
        if let [only] = self.goals.as_slice() {
            return Some(only);
        }
        if let (Some(canary), [stable, tried]) = (&self.canary, self.goals.as_slice()) {
            return Some(if below(100, chance()) < u64::from(canary.percent()) { tried } else { stable });
        }
        let mut left = below(self.weight, chance());
        self.goals.iter().find(|goal| {
            let is_here = left < goal.weight;
            left = left.saturating_sub(goal.weight);
            is_here
        })
    }
}

impl Hop {
    /// What becomes of a request to a service.
    pub(super) fn course(&self, home: &Rc<Cluster>, request: &Request<'_>) -> Course {
        let Some(routes) = &home.routes else { return Course::Straight };
        let service = &home.service;
        let Some(index) = routes.table.find(&service.config.routes, request) else { return Course::Straight };
        service.routes[index].requests.fetch_add(1, Relaxed);
        let taken = Taken { route: &service.config.routes[index], request };
        let course = match &taken.route.action {
            Action::Forward(_) => {
                let state = &service.routes[index];
                let (timing, one_way) = (Ruled::by(taken.route, state), state.one_way.clone());
                let onward = self.onward(home, &routes.goals[index], &taken);
                let gate = routes.gates[index].clone();
                onward.map(|onward| Course::On(Onward { timing, one_way, gate, ..onward }))
            }
            Action::Redirect(redirect) => taken.location(redirect).and_then(|location| {
                let location = HeaderValue::from_bytes(&location).map_err(|_| Unfit)?;
                answered(&taken, redirect.status, "", vec![(header::LOCATION, location)])
            }),
            Action::Respond(respond) => answered(&taken, respond.status, &respond.body, Vec::new()),
        };
        course.unwrap_or_else(|unfit| Course::Answered(Reply::malformed(unfit)))
    }

    fn onward(&self, home: &Rc<Cluster>, split: &Split, taken: &Taken<'_>) -> Result<Onward, Unfit> {
        let goal = split.pick(|| self.chance());
        // A service that was removed meanwhile has nobody to go to: its place is taken by nobody.
        let cluster = goal.and_then(|goal| self.goal(home, goal));
        let cluster = match (cluster, split.goals.as_slice()) {
            // Of a canary that is not there yet nothing can be learned.
            (Some(tried), [stable, _]) if tried.canary.is_some() && tried.is_empty() => self.goal(home, stable),
            (cluster, _) => cluster,
        };
        let cluster = cluster.unwrap_or_else(|| Rc::new(home.nobody()));
        let (change, response) = (taken.change()?, taken.response_change()?.unwrap_or_default());
        let mirror = split.mirror.as_ref().and_then(|mirror| self.mirror(home, mirror));
        let (strategy, circuit) = (taken.route.strategy.clone(), split.circuit.clone());
        Ok(Onward { cluster, change, response, strategy, circuit, timing: None, gate: None, mirror, one_way: None })
    }

    /// Whether this request is copied, and to whom.
    fn mirror(&self, home: &Rc<Cluster>, mirror: &Mirror) -> Option<Ordered> {
        let is_meant = below(100, self.chance()) < mirror.percent;
        let cluster = if is_meant { self.goal(home, &mirror.goal)? } else { return None };
        Some(Ordered { cluster, state: Arc::clone(&mirror.state), body_bytes_max: mirror.body_bytes_max })
    }

    fn goal(&self, home: &Rc<Cluster>, goal: &Goal) -> Option<Rc<Cluster>> {
        let Some(subset) = &goal.subset else {
            return if goal.is_other { self.cluster_of(goal.service) } else { Some(Rc::clone(home)) };
        };
        let mut cluster = subset.cluster.borrow_mut();
        if let Some(cluster) = cluster.as_ref().filter(|cluster| cluster.has_its_shares()) {
            return Some(Rc::clone(cluster));
        }
        let service = match goal.is_other {
            true => self.cluster_of(goal.service)?.service.clone(),
            false => Arc::clone(&home.service),
        };
        let members = members(&service, &subset.labels, &subset.fallback);
        let (canary, measured) = (goal.canary.clone(), goal.measured.clone());
        let of_subset = Cluster::of_subset(&service, home.generation, members, &subset.cursor);
        let made = Cluster { canary, measured, ..of_subset };
        let made = Rc::new(made);
        *cluster = Some(Rc::clone(&made));
        Some(made)
    }
}

fn answered(taken: &Taken<'_>, status: u16, body: &str, own: Vec<(HeaderName, HeaderValue)>) -> Result<Course, Unfit> {
    let mut fields = own;
    if let Some(change) = taken.response_change()? {
        change.of_list(&mut fields);
    }
    Ok(Course::Answered(Reply::said(status, body, fields)))
}

/// Which endpoints a subset has; `None`: all.
pub(crate) fn members(
    service: &Service,
    labels: &BTreeMap<String, String>,
    fallback: &Fallback,
) -> Option<Box<[bool]>> {
    let having = |labels: &BTreeMap<String, String>| -> Box<[bool]> {
        // Those that drain take no requests, and are not among the service's.
        let active = service.config.endpoints.iter().filter(|endpoint| !endpoint.is_draining);
        active.map(|it| labels.iter().all(|(name, value)| it.labels.get(name) == Some(value))).collect()
    };
    let subset = having(labels);
    match fallback {
        _ if subset.contains(&true) => Some(subset),
        Fallback::NoFallback => Some(subset),
        Fallback::AnyEndpoint => None,
        Fallback::DefaultSubset(labels) => Some(having(labels)),
    }
}
