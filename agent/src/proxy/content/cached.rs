//! A cache, asked and filled: what [`crate::filter::cache`] says is done here with what [`crate::cluster::cache`] keeps.
//!
//! The first client of an answer gets it as it comes, while a copy is made. Whoever wants the same meanwhile waits until the copy is there, or
//! until it is clear that there will be none.

use std::{
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, response};
use tokio::time::timeout_at;

use super::{Content, Kept, Refresh, Step, now};
use crate::{
    cluster::{
        Dialler, FilterState, Outcome,
        cache::{Boarding, Flight, Found, Key, Lead, Store, Stored},
    },
    config::HttpVersion,
    decode::translate::declared_length,
    filter::cache::{self, Look, Reuse},
    proxy::{
        Cluster, Hop,
        asker::Asker,
        filtered::{Chain, Head, Passage, Who},
        guard::{Entered, Leave, OfRoute},
        reach::Tried,
        strategy,
        whole::{Answer, Body, Broken, Next, Piece, Through, Whole, ask},
    },
    ring::spawn,
    route::{Fields, Request},
};

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
/// For how long it is remembered that answers to a request are not kept, so that nobody waits to find that out (Varnish's hit-for-miss is 120 s;
/// this is for who changes his mind).
const PASSES: Duration = Duration::from_secs(10);

/// What a request comes to.
pub(in crate::proxy) enum Looked {
    /// It is answered.
    Found(Box<Answer>, Option<Box<Ticket>>),
    /// The endpoint is asked, with its head changed like this.
    Asks(Box<Ticket>, Fields),
    /// It wants only what is kept, and that is nothing.
    NotThere,
    /// The cache has nothing to do with it.
    Passes,
}

/// What becomes of the answer to a request that a cache could not answer.
pub(in crate::proxy) struct Ticket {
    state: Arc<FilterState>,
    store: Arc<Store>,
    key: Key,
    look: Box<Look>,
    /// What its answer is selected by.
    request: Kept,
    is_secure: bool,
    /// What was kept, and is asked about.
    stored: Option<Arc<Stored>>,
    /// Who waits for it.
    lead: Option<Lead>,
    /// When the endpoint was asked, since 1970.
    asked: Duration,
    /// Why it was asked.
    why: &'static str,
}

/// Looks for an answer; waits if somebody asks for it already.
pub(in crate::proxy) async fn look(
    state: &Arc<FilterState>,
    look: Box<Look>,
    head: &Head<'_>,
    is_secure: bool,
) -> Looked {
    let Some(store) = &state.store else { return Looked::Passes };
    let key: Key = look.key.as_slice().into();
    let until = Instant::now() + look.config.wait;
    let mut may_wait = !look.config.wait.is_zero() && !look.asks_anew();
    loop {
        let now = now();
        let found = head.asked(is_secure, |request| store.find(&key, now, |name| cache::said(request, name)));
        let reuse = found.stored.as_ref().map(|stored| cache::reuse(&look, &stored.rules, now));
        match (reuse, &found.stored) {
            (Some(Reuse::Fresh), Some(stored)) => {
                state.count(Outcome::Hit);
                return Looked::Found(Box::new(given(stored, &look, now, "hit")), None);
            }
            (Some(Reuse::Stale), Some(stored)) => {
                state.count(Outcome::Stale);
                return Looked::Found(Box::new(given(stored, &look, now, "hit")), None);
            }
            (Some(Reuse::WhileAsking), Some(stored)) => {
                state.count(Outcome::Stale);
                let answer = Box::new(given(stored, &look, now, "hit"));
                let Boarding::Leads(lead) = store.board(&key, found.selector) else {
                    return Looked::Found(answer, None);
                };
                let mut look = look;
                look.is_head = false;
                let ticket = Ticket::new((state, store), (key, look), (head, is_secure), found, Some(lead));
                return Looked::Found(answer, Some(Box::new(ticket)));
            }
            _ if look.is_only_if_cached() => {
                state.count(Outcome::Refused);
                return Looked::NotThere;
            }
            // What HEAD is answered is nothing that GET could be answered with.
            _ if look.is_head && found.stored.is_none() => {
                state.count(Outcome::Passed);
                return Looked::Passes;
            }
            // But it may tell of what is kept.
            _ if look.is_head => {
                let fields = cache::conditional(found.stored.as_deref());
                let ticket = Ticket::new((state, store), (key, look), (head, is_secure), found, None);
                return Looked::Asks(Box::new(ticket), fields);
            }
            _ => {}
        }
        let lead = if found.passes || !may_wait {
            None
        } else {
            match store.board(&key, found.selector) {
                Boarding::Leads(lead) => Some(lead),
                Boarding::Waits(mut told) => {
                    let alone = timeout_at(until.into(), told.wait_for(|flight| *flight == Flight::Alone)).await;
                    // It is over, with something to find or not; or nobody else gets anything of it, or not in time.
                    may_wait = matches!(alone, Ok(Err(_)));
                    continue;
                }
            }
        };
        let fields = cache::conditional(found.stored.as_deref());
        let ticket = Ticket::new((state, store), (key, look), (head, is_secure), found, lead);
        return Looked::Asks(Box::new(ticket), fields);
    }
}

impl Ticket {
    fn new(
        (state, store): (&Arc<FilterState>, &Arc<Store>),
        (key, look): (Key, Box<Look>),
        (head, is_secure): (&Head<'_>, bool),
        found: Found,
        lead: Option<Lead>,
    ) -> Self {
        let why = match (&found.stored, found.has_others) {
            (Some(_), _) if look.asks_anew() => "request",
            (Some(_), _) => "stale",
            (None, true) => "vary-miss",
            (None, false) => "uri-miss",
        };
        Self {
            state: Arc::clone(state),
            store: Arc::clone(store),
            key,
            look,
            request: head.kept(),
            is_secure,
            stored: found.stored,
            lead,
            asked: now(),
            why,
        }
    }

    /// Whether what was kept may stand in for an error.
    pub fn may_stand_in(&self) -> bool {
        self.stored.as_ref().is_some_and(|stored| cache::may_stand_in(&stored.rules, now()))
    }

    /// What was kept, if it may stand in for an answer of this status.
    pub fn stands_in(&self, status: StatusCode) -> Option<Answer> {
        let now = now();
        let stored = self.stored.as_ref().filter(|stored| cache::may_stand_in(&stored.rules, now))?;
        self.state.count(Outcome::Stale);
        // Who waits is not made to wait for the next error, and for the one behind that.
        self.lead.iter().for_each(Lead::alone);
        Some(given(stored, &self.look, now, &format!("hit; fwd={}; fwd-status={}", self.why, status.as_str())))
    }

    /// What the client gets of an endpoint's answer, and the cache.
    pub fn take(self, answer: Answer) -> Answer {
        let now = now();
        match &self.stored {
            Some(stored) if answer.parts.status == StatusCode::NOT_MODIFIED => {
                let stored = Arc::clone(stored);
                self.holds(&stored, answer, now)
            }
            Some(stored) if self.look.is_head && answer.parts.status == StatusCode::OK => {
                self.learns(stored, &answer.parts.headers, now);
                self.fills(answer, now)
            }
            _ => self.fills(answer, now),
        }
    }

    /// What is kept has new fields, or is not to be given any more: an answer to HEAD says so (RFC 9111 section 4.3.5).
    fn learns(&self, stored: &Stored, said: &HeaderMap, now: Duration) {
        let headers = cache::merged(&stored.headers, said);
        let is_same = cache::tells_of(&stored.headers, stored.body.len() as u64, said, declared_length(said));
        let rules = cache::rules(&self.look, stored.status, &headers, (self.asked, now)).filter(|_| is_same);
        match rules {
            Some(rules) => self.store.keep(&self.key, Stored { headers, rules, ..stored.clone() }),
            None => self.store.drop_key(&self.key),
        }
    }

    /// What is kept still holds (RFC 9111 section 4.3.4).
    fn holds(&self, stored: &Stored, answer: Answer, now: Duration) -> Answer {
        let mut headers = cache::merged(&stored.headers, &answer.parts.headers);
        if let Some(age) = answer.parts.headers.get(header::AGE) {
            headers.insert(header::AGE, age.clone());
        }
        let rules = cache::rules(&self.look, stored.status, &headers, (self.asked, now));
        headers.remove(header::AGE);
        // Read to its end, so that its connection can carry another request.
        spawn(answer.discard());
        self.state.count(Outcome::Revalidated);
        let again = Stored { headers, rules: rules.unwrap_or(stored.rules), ..stored.clone() };
        match rules {
            Some(_) => self.store.keep(&self.key, again.clone()),
            None => self.store.drop_key(&self.key),
        }
        given(&again, &self.look, now, &format!("hit; fwd={}; fwd-status=304", self.why))
    }

    /// The answer is another.
    fn fills(self, answer: Answer, now: Duration) -> Answer {
        self.state.count(Outcome::Miss);
        let Answer { mut parts, body } = answer;
        let has_it = parts.status == StatusCode::OK && cache::holds(&self.look.conditions, &parts.headers);
        let why = self.why;
        let responds = self.look.config.responds;
        let (body, is_kept) = self.copied(&parts, body, now);
        let mut answer = if has_it {
            parts.headers = cache::not_modified(&parts.headers);
            parts.status = StatusCode::NOT_MODIFIED;
            let rest = Answer { parts: http::Response::new(()).into_parts().0, body };
            // What is kept is read to its end, which is bounded; of the rest, a little.
            spawn(async move { if is_kept { drain(rest.body).await } else { rest.discard().await } });
            Answer { parts, body: empty() }
        } else {
            Answer { parts, body }
        };
        if responds {
            let stored = if is_kept { "; stored" } else { "" };
            says(&mut answer.parts.headers, &format!("fwd={why}{stored}"));
        }
        answer
    }

    /// The body, of which a copy is made if it may be kept; whether it is.
    fn copied(self, parts: &response::Parts, body: Body, now: Duration) -> (Body, bool) {
        let most = self.store.entry_bytes_max();
        let length = declared_length(&parts.headers);
        let rules = cache::rules(&self.look, parts.status, &parts.headers, (self.asked, now));
        let may_be_kept = !self.look.is_head && length.is_none_or(|length| length <= most);
        let Some(rules) = rules.filter(|_| may_be_kept) else {
            if let Some(lead) = &self.lead {
                lead.alone();
                self.store.passes(&self.key, now + PASSES);
            }
            return (body, false);
        };
        let selecting = self.request.seen(self.is_secure, |request| cache::selecting(&parts.headers, request));
        let stored = Stored {
            status: parts.status,
            headers: cache::kept(&parts.headers, now),
            body: Bytes::new(),
            selecting,
            rules,
        };
        let bytes = Vec::with_capacity(usize::try_from(length.unwrap_or_default()).unwrap_or_default());
        let copy = Copy { store: self.store, key: self.key, lead: self.lead, stored, bytes };
        (Body::Through(Box::new(Copied { from: body, copy: Some(Box::new(copy)) })), true)
    }
}

/// A body of which a copy is made.
struct Copied {
    from: Body,
    /// Until it is over, or too long.
    copy: Option<Box<Copy>>,
}

struct Copy {
    store: Arc<Store>,
    key: Key,
    lead: Option<Lead>,
    stored: Stored,
    bytes: Vec<u8>,
}

impl Copy {
    fn keep(mut self) {
        self.bytes.shrink_to_fit();
        self.stored.body = self.bytes.into();
        self.store.keep(&self.key, self.stored);
        // Who waits finds it from here on.
    }

    fn is_too_long(&self) {
        if let Some(lead) = &self.lead {
            lead.alone();
            self.store.passes(&self.key, now() + PASSES);
        }
    }
}

impl Copied {
    async fn more(&mut self) -> Result<Piece, Broken> {
        let came = self.from.next().await;
        match (&came, &mut self.copy) {
            (Ok(Piece::Data(data)), Some(copy)) => {
                if copy.bytes.len() as u64 + data.len() as u64 > copy.store.entry_bytes_max() {
                    copy.is_too_long();
                    self.copy = None;
                } else {
                    copy.bytes.extend_from_slice(data);
                }
            }
            // What stands behind a body is not kept, and so what it stands behind is not.
            (Ok(Piece::End(trailers)), Some(_)) if trailers.is_empty() => {
                self.copy.take().into_iter().for_each(|copy| copy.keep());
            }
            (Ok(Piece::End(_)) | Err(_), _) => self.copy = None,
            _ => {}
        }
        came
    }
}

impl Through for Copied {
    fn is_empty(&self) -> bool {
        self.from.is_empty()
    }

    fn next(&mut self) -> Next<'_> {
        Box::pin(self.more())
    }
}

/// What is kept, as it is given.
fn given(stored: &Stored, look: &Look, now: Duration, how: &str) -> Answer {
    let (mut parts, ()) = http::Response::new(()).into_parts();
    let age = cache::answer_age(&stored.rules, now);
    let has_it = stored.status == StatusCode::OK && cache::holds(&look.conditions, &stored.headers);
    parts.status = if has_it { StatusCode::NOT_MODIFIED } else { stored.status };
    parts.headers = if has_it { cache::not_modified(&stored.headers) } else { stored.headers.clone() };
    parts.headers.insert(header::AGE, cache::seconds(age));
    if look.config.responds {
        let left = stored.rules.lifetime.as_secs() as i64 - age.as_secs() as i64;
        says(&mut parts.headers, &format!("{how}; ttl={left}"));
    }
    if !has_it && stored.status != StatusCode::NO_CONTENT {
        parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(stored.body.len()));
    }
    let body = if has_it || look.is_head { empty() } else { Body::Ready(stored.body.clone(), HeaderMap::new()) };
    Answer { parts, body }
}

/// Says how the cache has handled it (RFC 9211), behind what others have said.
fn says(headers: &mut HeaderMap, how: &str) {
    if let Ok(value) = HeaderValue::from_str(&format!("sockway; {how}")) {
        headers.append(CACHE_STATUS, value);
    }
}

fn empty() -> Body {
    Body::Ready(Bytes::new(), HeaderMap::new())
}

async fn drain(mut body: Body) {
    while let Ok(Piece::Data(_)) = body.next().await {}
}

/// Something that may be kept, and that a request may change.
pub(in crate::proxy) struct Forget {
    store: Arc<Store>,
    key: Key,
    /// Nobody sees the answer: it is forgotten at the end, too.
    is_blind: bool,
}

impl Forget {
    pub fn new(state: &FilterState, key: &[u8]) -> Option<Self> {
        Some(Self { store: Arc::clone(state.store.as_ref()?), key: key.into(), is_blind: false })
    }

    /// It is forgotten if the request has gone well, and what the answer says has changed (RFC 9111 section 4.4).
    pub fn after(&mut self, parts: &response::Parts) {
        if !parts.status.is_success() && !parts.status.is_redirection() {
            return;
        }
        self.store.drop_key(&self.key);
        for name in [header::LOCATION, header::CONTENT_LOCATION] {
            let named = parts.headers.get(name).and_then(|value| cache::key_of(value.as_bytes(), &self.key));
            named.into_iter().for_each(|key| self.store.drop_key(&key.into()));
        }
    }

    /// It is forgotten now, and again when the request is over.
    pub fn whatever_comes(&mut self) {
        self.is_blind = true;
        self.store.drop_key(&self.key);
    }
}

impl Drop for Forget {
    fn drop(&mut self) {
        if self.is_blind {
            self.store.drop_key(&self.key);
        }
    }
}

/// Asks the endpoint for what was given although it is not fresh any more, beside the request that got it.
pub(in crate::proxy) fn refresh(
    hop: &Rc<Hop>,
    cluster: &Rc<Cluster>,
    chain: &Rc<Chain>,
    refresh: Refresh,
    (client, is_secure, dialler): (HttpVersion, bool, Option<Dialler>),
) {
    let (hop, cluster, chain) = (Rc::clone(hop), Rc::clone(cluster), Rc::clone(chain));
    spawn(async move {
        let Refresh { mut parts, asked, ticket, from } = refresh;
        cache::conditional(ticket.stored.as_deref()).of_map(&mut parts.headers);
        let mut content = Content::default();
        content.add(Step::Keep(ticket));
        let passage = Passage { content: Some(Box::new(content)), ..Passage::default() };
        let who = Who { is_secure, source: 0, dialler: dialler.as_ref(), has_body: false };
        let passage = Box::pin(chain.pass_from(from, passage, &hop, &mut Head::Parts(&mut parts), who)).await;
        let Passage { content: Some(mut content), end: None, .. } = passage else { return };
        let entered = {
            let request = Request::of_parts(&parts, is_secure, 0);
            hop.enter(&cluster, OfRoute { gate: None, circuit: None }, &request, (Instant::now(), None))
        };
        // Who is over a limit, or behind a breaker, is asked another time.
        let Ok(Entered { cluster, wait, admitted: _admitted, leave, standing_in: None, stand: None, extra }) = entered
        else {
            return;
        };
        let leave = Leave::with(leave, extra, Instant::now());
        tokio::time::sleep(wait).await;
        let tried =
            Tried::for_request(&hop, &cluster, Asker::ourselves(&hop), || Request::of_parts(&parts, is_secure, 0));
        let body = (Bytes::new(), HeaderMap::new());
        let Ok(whole) = Whole::new((parts, asked), body, (&cluster, client), None) else { return };
        let came = ask(Rc::clone(&hop), cluster, tried, Rc::new(whole)).await;
        let outcome = strategy::Outcome::of(came);
        leave.iter().for_each(|leave| leave.came(&outcome));
        if let strategy::Outcome::Answered(answer) = outcome
            && !answer.parts.status.is_server_error()
        {
            drain(content.dress(answer).body).await;
        }
    });
}
