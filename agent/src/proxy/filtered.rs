//! The chain of a service's filters, walked: what they say of a request is done to it in their order, what they say of its response is gathered
//! for when that comes.

mod asked;
mod said;

use std::{
    mem,
    os::fd::BorrowedFd,
    path::Path,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use http::request::Parts;

pub(super) use self::said::{Filtered, change_also, give_also, told};
use super::{
    Hop,
    content::{Content, Forget, Kept, Looked, Refresh, Step, Ticket, look},
    http::{Reply, change_fields},
    whole::Answer,
};
use crate::{
    cluster::{Dialler, FilterState, Service},
    config::{
        NamespaceRules,
        filter::{Access, Direction, Kind},
        route::{Action, CallerMatch, Forward, HeaderChanges, Match, Rewrite, Route},
    },
    decode::{http2::Asked, translate},
    filter::{
        self, Duty, Filter, Given, Mishap, Verdict,
        cache::{Ask, Look},
    },
    kernel::{Diallers, Flows, peer_of},
    ring::{Buf, Buffers},
    route::{Fields, Request, Table},
};

/// The filters of a service, ready for a worker's requests.
pub(super) struct Chain {
    links: Vec<Link>,
    /// Who finds out who dials, if a filter asks for it.
    diallers: Option<Diallers>,
    /// Whether a filter asks for the address that a connection comes from.
    asks_address: bool,
}

struct Link {
    state: Arc<FilterState>,
    judge: Box<dyn Filter>,
    /// The requests that it is for, if not all.
    scope: Option<Scope>,
}

/// A match as the one route of a table.
struct Scope {
    table: Table,
    route: [Route; 1],
}

/// A request's head, as far as filters have changed it.
pub(super) enum Head<'h> {
    /// Of HTTP/1.
    Lines(&'h mut Lines),
    /// Of HTTP/2.
    Parts(&'h mut Parts),
}

/// A head of HTTP/1, and what came behind it, in the buffer in which it is changed.
pub(super) struct Lines {
    pub buffers: Rc<Buffers>,
    pub buf: Buf,
    /// Of the head.
    pub bytes: usize,
    /// Of its first line.
    pub start_line_bytes: usize,
}

impl Lines {
    fn head(&self) -> &[u8] {
        &self.buf.bytes()[..self.bytes]
    }

    fn change(&mut self, fields: &Fields) {
        let buf = mem::replace(&mut self.buf, Buf::of(&[]));
        (self.buf, self.bytes) = change_fields(&self.buffers, buf, self.bytes, self.start_line_bytes, fields);
    }
}

/// Who asks.
#[derive(Clone, Copy)]
pub(super) struct Who<'w> {
    pub is_secure: bool,
    pub source: u64,
    pub dialler: Option<&'w Dialler>,
    /// Whether its request has a body.
    pub has_body: bool,
}

/// What came of walking a chain.
#[derive(Default)]
pub(super) struct Passage {
    /// What is changed of the response; with `content`, of an answer of our own only.
    pub response: Fields,
    /// What else is done with the response.
    pub content: Option<Box<Content>>,
    /// What is asked of the endpoint beside it.
    pub refresh: Option<Box<Refresh>>,
    /// The longest body that the request may have.
    pub body_max: Option<u64>,
    /// How fast that may go at most, in bytes a second.
    pub request_rate: Option<u32>,
    /// What it is to suffer in its endpoint's stead.
    pub mishap: Option<Box<Mishap>>,
    /// It goes no further.
    pub end: Option<Ended>,
}

/// How walking a chain came out.
pub(super) enum Walk {
    Over(Passage),
    /// Somebody has to be waited for.
    Waits(Box<Waiting>),
}

/// A walk that goes on when what a filter waits for has come.
pub(super) struct Waiting {
    at: usize,
    verdict: Verdict,
    passage: Passage,
}

/// How a request ends here.
pub(super) enum Ended {
    Reply(Reply),
    /// With what a cache has kept.
    Stored(Box<Answer>),
    /// Its client waits for nothing any more.
    Gone,
}

impl Passage {
    /// And this is done with the response, before what was said so far.
    fn step(&mut self, step: Step) {
        let content = self.content.get_or_insert_default();
        content.change(std::mem::take(&mut self.response));
        content.add(step);
    }

    /// Nothing more is said.
    fn whole(mut self) -> Self {
        if let Some(content) = &mut self.content {
            content.change(std::mem::take(&mut self.response));
            self.response = content.fields();
        }
        // What another filter answers is none of a cache's.
        if matches!(self.end, Some(Ended::Reply(_))) {
            self.content = None;
        }
        self
    }
}

impl Chain {
    /// Of a service; `None` if it has no filter.
    pub fn new(service: &Service, flows: &Flows) -> Option<Rc<Self>> {
        let filters = &service.filters;
        if filters.is_empty() {
            return None;
        }
        let kinds = || filters.iter().map(|state| &state.config.kind);
        Some(Rc::new(Self {
            links: filters.iter().map(Link::new).collect(),
            diallers: diallers(filters, flows),
            asks_address: kinds().any(|kind| matches!(kind, Kind::Access(access) if asks_address(access))),
        }))
    }

    /// Tells more of who dialled, as far as a filter asks for it.
    pub fn introduce(
        &self,
        known: Option<Box<Dialler>>,
        (accepted, source): (BorrowedFd<'_>, u64),
        now: Duration,
    ) -> Option<Box<Dialler>> {
        if self.diallers.is_none() && !self.asks_address {
            return known;
        }
        let mut dialler = known.unwrap_or_default();
        if let Some(diallers) = &self.diallers {
            let seen = diallers.look(accepted, source, now);
            dialler.namespaces.extend(seen.namespaces);
            dialler.is_host |= seen.is_host;
            dialler.cgroup = seen.cgroup.or(dialler.cgroup.take());
        }
        dialler.address = if self.asks_address { peer_of(accepted) } else { None };
        Some(dialler)
    }

    /// Lets a request pass the filters in their order.
    pub async fn pass(&self, hop: &Rc<Hop>, head: &mut Head<'_>, who: Who<'_>) -> Passage {
        self.pass_from(0, Passage::default(), hop, head, who).await
    }

    /// The same, from one of them on.
    pub async fn pass_from(
        &self,
        from: usize,
        passage: Passage,
        hop: &Rc<Hop>,
        head: &mut Head<'_>,
        who: Who<'_>,
    ) -> Passage {
        match self.walk_from(from, passage, hop, head, who) {
            Walk::Over(passage) => passage,
            // Boxed: most filters wait for nobody.
            Walk::Waits(waiting) => Box::pin(self.go_on(waiting, hop, head, who)).await,
        }
    }

    /// As [`Chain::pass`], as far as that goes without waiting.
    pub fn walk(&self, hop: &Hop, head: &mut Head<'_>, who: Who<'_>) -> Walk {
        self.walk_from(0, Passage::default(), hop, head, who)
    }

    fn walk_from(&self, from: usize, mut passage: Passage, hop: &Hop, head: &mut Head<'_>, who: Who<'_>) -> Walk {
        for (at, link) in self.links.iter().enumerate().skip(from) {
            let Some(verdict) = head.seen(who, |request| link.judge(hop, request)) else { continue };
            if verdict.waits() {
                return Walk::Waits(Box::new(Waiting { at, verdict, passage }));
            }
            if let Some(duty) = link.take(verdict, head, &mut passage) {
                link.attend(duty, &mut passage);
            }
            if passage.end.is_some() {
                break;
            }
        }
        Walk::Over(passage.whole())
    }

    /// Goes on with a walk that has to wait, to its end.
    pub async fn go_on(&self, mut waiting: Box<Waiting>, hop: &Rc<Hop>, head: &mut Head<'_>, who: Who<'_>) -> Passage {
        loop {
            let Waiting { at, verdict, mut passage } = *waiting;
            let link = &self.links[at];
            let verdict = link.answered(hop, worked_out(verdict).await).await;
            match link.take(verdict, head, &mut passage) {
                Some(Duty::Cache(Ask::Look(asks))) => link.look(asks, (at, who), head, &mut passage).await,
                Some(duty) => link.attend(duty, &mut passage),
                None => {}
            }
            if passage.end.is_some() {
                return passage.whole();
            }
            match self.walk_from(at + 1, passage, hop, head, who) {
                Walk::Over(passage) => return passage,
                Walk::Waits(further) => waiting = further,
            }
        }
    }

    /// A request's body came to be longer than it may be.
    pub fn refuse_body(&self, bytes_max: u64) -> Reply {
        let is_meant = |link: &&Link| link.state.config.kind == Kind::BodyLimit(bytes_max);
        if let Some(link) = self.links.iter().find(is_meant) {
            link.state.count(crate::cluster::Outcome::Refused);
        }
        Reply::filtered(filter::too_long(bytes_max))
    }
}

impl Link {
    fn new(state: &Arc<FilterState>) -> Self {
        let scope = state.config.matches.as_ref().map(Scope::new);
        Self { state: Arc::clone(state), judge: filter::of(state), scope }
    }

    /// Does what a verdict says of a request and of its response; gives what is to be done with a body.
    fn take(&self, verdict: Verdict, head: &mut Head<'_>, passage: &mut Passage) -> Option<Duty> {
        let Verdict { outcome, request, response, end, duty, mishap, .. } = verdict;
        // Of these it is known only when they are answered.
        if !matches!(duty, Some(Duty::Cache(Ask::Look(_)) | Duty::Compress(_))) {
            self.state.count(outcome);
        }
        head.change(&request);
        passage.response = response.then(mem::take(&mut passage.response));
        passage.mishap = match (passage.mishap.take(), mishap) {
            (Some(first), Some(next)) => Some(Box::new(first.then(*next))),
            (first, next) => first.or(next),
        };
        passage.end = end.map(|local| Ended::Reply(Reply::filtered(local)));
        duty
    }

    /// What is to be done with a body, but for a look into a cache.
    fn attend(&self, duty: Duty, passage: &mut Passage) {
        match duty {
            Duty::BodyMax(bytes) => {
                passage.body_max = Some(passage.body_max.map_or(bytes, |least| least.min(bytes)));
            }
            Duty::Compress(order) => passage.step(Step::Compress(order, Arc::clone(&self.state))),
            Duty::Bandwidth(rate, direction) => {
                if direction != Direction::Request {
                    passage.step(Step::Pace(rate));
                }
                if direction != Direction::Response {
                    passage.request_rate = Some(passage.request_rate.map_or(rate, |least| least.min(rate)));
                }
            }
            Duty::Cache(Ask::Forget(key)) => {
                Forget::new(&self.state, &key).into_iter().for_each(|forget| passage.step(Step::Forget(forget)));
            }
            Duty::Cache(Ask::Look(_)) => {}
        }
    }

    /// Looks into a cache; waits if somebody asks for the same already.
    async fn look(&self, asks: Box<Look>, (at, who): (usize, Who<'_>), head: &mut Head<'_>, passage: &mut Passage) {
        // What has a body may be about that, and of two caches the first keeps it.
        if who.has_body || passage.content.as_ref().is_some_and(|content| content.keeps()) {
            return self.state.count(crate::cluster::Outcome::Passed);
        }
        // Boxed: it is large, and most requests have no cache.
        match Box::pin(look(&self.state, asks, head, who.is_secure)).await {
            Looked::Found(answer, ticket) => {
                let refresh = ticket.and_then(|ticket| head.again(ticket, at + 1, who.is_secure));
                passage.refresh = refresh.map(Box::new);
                passage.content.get_or_insert_default();
                passage.end = Some(Ended::Stored(answer));
            }
            Looked::Asks(ticket, fields) => {
                head.change(&fields);
                passage.step(Step::Keep(ticket));
            }
            Looked::NotThere => passage.end = Some(Ended::Reply(Reply::filtered(filter::cache::not_there()))),
            Looked::Passes => {}
        }
    }

    /// The verdict that stands for this one, if another service is to be asked.
    async fn answered(&self, hop: &Rc<Hop>, verdict: Verdict) -> Verdict {
        let (Some(question), Kind::External(external)) = (&verdict.question, &self.state.config.kind) else {
            return verdict;
        };
        // Boxed: it is a whole exchange of its own.
        let answer = Box::pin(asked::answer(hop, &external.to, question, external.timeout)).await;
        self.judge.heard(answer)
    }

    /// What it says of a request, if that is for it.
    fn judge(&self, hop: &Hop, request: &Request<'_>) -> Option<Verdict> {
        if self.scope.as_ref().is_some_and(|scope| !scope.has(request)) {
            return None;
        }
        let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Some(self.judge.judge(request, &Given { chance: &|| hop.chance(), now: &now }))
    }
}

impl Scope {
    fn new(matches: &Match) -> Self {
        let forward = Forward { targets: Vec::new(), canary: None, rewrite: Rewrite::default(), mirror: None };
        let route = [Route {
            name: String::new(),
            matches: matches.clone(),
            action: Action::Forward(forward),
            request_headers: HeaderChanges::default(),
            response_headers: HeaderChanges::default(),
            timing: None,
            strategy: None,
            one_way: false,
            request_limits: Vec::new(),
            breaker: None,
        }];
        Self { table: Table::new(&route), route }
    }

    fn has(&self, request: &Request<'_>) -> bool {
        self.table.find(&self.route, request).is_some()
    }
}

impl Head<'_> {
    /// As a cache sees it, whoever asks.
    pub fn asked<T>(&self, is_secure: bool, look: impl FnOnce(&Request<'_>) -> T) -> T {
        match self {
            Self::Lines(lines) => look(&Request::of_http1(lines.head(), is_secure, 0)),
            Self::Parts(parts) => look(&Request::of_parts(parts, is_secure, 0)),
        }
    }

    /// A copy of it.
    pub fn kept(&self) -> Kept {
        match self {
            Self::Lines(lines) => Kept::Lines(lines.head().to_vec()),
            Self::Parts(parts) => Kept::Parts(Box::new((*parts).clone())),
        }
    }

    /// The same request once more, for the filters from this one on.
    fn again(&self, ticket: Box<Ticket>, from: usize, is_secure: bool) -> Option<Refresh> {
        let (parts, asked) = match self {
            Self::Lines(lines) => translate::request_to_http2(lines.head(), is_secure).ok()?,
            Self::Parts(parts) => {
                let asked = Asked { is_idempotent: true, is_head: false, tunnel: None, is_grpc: false };
                ((*parts).clone(), asked)
            }
        };
        let (mut parts, asked) = (parts, Asked { is_head: false, ..asked });
        parts.method = http::Method::GET;
        Some(Refresh { parts, asked, ticket, from })
    }

    fn seen<T>(&self, who: Who<'_>, look: impl FnOnce(&Request<'_>) -> T) -> T {
        let request = match self {
            Self::Lines(lines) => Request::of_http1(lines.head(), who.is_secure, who.source),
            Self::Parts(parts) => Request::of_parts(parts, who.is_secure, who.source),
        };
        look(&request.by(who.dialler))
    }

    fn change(&mut self, fields: &Fields) {
        if fields.is_empty() {
            return;
        }
        match self {
            Self::Lines(lines) => lines.change(fields),
            Self::Parts(parts) => fields.of_map(&mut parts.headers),
        }
    }
}

fn asks_address(access: &Access) -> bool {
    access.allow.iter().chain([&access.deny]).any(|callers| !callers.sources.is_empty())
}

/// Most judgements that are worked out at once, node-wide: each takes a processor for a tenth of a second, so more than these only wait.
const WORKING_MAX: usize = 64;
static WORKING: AtomicUsize = AtomicUsize::new(0);

/// A place among those that are worked out, given back by dropping it.
struct Place;

impl Drop for Place {
    fn drop(&mut self) {
        WORKING.fetch_sub(1, Relaxed);
    }
}

/// The verdict that stands for this one, if that is to be worked out.
async fn worked_out(mut verdict: Verdict) -> Verdict {
    let Some(work) = verdict.work.take() else { return verdict };
    let place = Place;
    if WORKING.fetch_add(1, Relaxed) >= WORKING_MAX {
        return Verdict::refuse(503, "too many ask at once who they are");
    }
    // The place is held until the work is done, also when nobody waits for it any more.
    let done = tokio::task::spawn_blocking(move || {
        let _place = place;
        work.done()
    });
    done.await.unwrap_or_else(|_| Verdict::refuse(503, "who asks could not be found out"))
}

/// What these filters ask of who dials.
fn diallers(filters: &[Arc<FilterState>], flows: &Flows) -> Option<Diallers> {
    let of_scope = filters.iter().filter_map(|state| state.config.matches.as_ref()?.caller.as_ref());
    let of_access = filters.iter().filter_map(|state| match &state.config.kind {
        Kind::Access(access) => Some(access.allow.iter().chain([&access.deny])),
        _ => None,
    });
    let of_access = of_access.flatten().flat_map(|callers| &callers.callers);
    let asked: Vec<&CallerMatch> = of_scope.chain(of_access).collect();
    let only = asked.iter().filter_map(|caller| caller.namespace.clone()).collect();
    let mount = flows.cgroup_mount().filter(|_| asked.iter().any(|caller| caller.cgroup.is_some()));
    (!asked.is_empty()).then(|| Diallers::new(NamespaceRules { only, except: Vec::new() }, mount.map(Path::to_owned)))
}

impl Hop {
    /// The filters of a service, as this worker has them ready.
    pub(super) fn chain(&self, service: &Service) -> Option<Rc<Chain>> {
        if service.filters.is_empty() {
            return None;
        }
        let mut chains = self.chains.borrow_mut();
        if let Some((config, chain)) = chains.get(&service.id)
            && Arc::ptr_eq(config, &service.config)
        {
            return Some(Rc::clone(chain));
        }
        let chain = Chain::new(service, &self.flows)?;
        chains.insert(service.id, (Arc::clone(&service.config), Rc::clone(&chain)));
        Some(chain)
    }
}
