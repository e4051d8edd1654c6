//! Whether a service's limits let a request pass, before it goes to an endpoint.

use std::{
    sync::{Arc, LazyLock, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use http::{HeaderName, HeaderValue, header};
use xxhash_rust::xxh64::xxh64;

use super::http::Reply;
use crate::{
    cluster::{LimitPlace, LimitState, Service},
    config::{RequestLimit, tuning::Part},
    limit::request::{self, Judge, Verdict},
    route::Request,
};

const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// What limits reckon from: all workers see the same time.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The limits of a service, ready to be asked.
pub(super) struct Gate {
    limits: Vec<Limit>,
}

struct Limit {
    state: Arc<LimitState>,
    judge: Judge,
}

/// What a request took of limits; given back when it is dropped.
#[derive(Default)]
pub(super) struct Admitted {
    taken: Vec<(Arc<LimitState>, LimitPlace)>,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.taken.iter().for_each(|(limit, place)| request::leave(limit.word(*place)));
    }
}

impl Gate {
    /// Of a service.
    pub(super) fn of(service: &Service) -> Self {
        let limit = |state: &Arc<LimitState>| {
            let wait_max_ns = state.config.wait_max.map_or(0, |wait| wait.as_nanos() as u64);
            Limit { judge: Judge::new(&state.config.kind, wait_max_ns), state: Arc::clone(state) }
        };
        Self { limits: service.request_limits.iter().map(limit).collect() }
    }

    /// Whether there is no limit.
    pub(super) fn is_open(&self) -> bool {
        self.limits.is_empty()
    }

    /// Asks every limit. The request passes when it has waited for so long; its client waits for `patience` at most. What an earlier limit
    /// gave for good, as a token, is not taken back when a later one refuses: as with Envoy's and nginx's.
    pub(super) fn admit(
        &self,
        request: &Request<'_>,
        now: Instant,
        patience: Option<Duration>,
    ) -> Result<(Duration, Admitted), Reply> {
        let now_ns = now.saturating_duration_since(*EPOCH).as_nanos() as u64;
        let patience_ns = patience.map_or(u64::MAX, |patience| patience.as_nanos() as u64);
        let (mut wait_ns, mut admitted) = (0, Admitted::default());
        for limit in &self.limits {
            match limit.ask(request, now_ns, patience_ns) {
                (Verdict::After(wait), place) => {
                    wait_ns = wait_ns.max(wait);
                    let open = place.filter(|_| limit.judge.counts_open());
                    admitted.taken.extend(open.map(|place| (Arc::clone(&limit.state), place)));
                }
                (Verdict::Refused(wait), _) => return Err(refusal(&limit.state.config, wait)),
            }
        }
        Ok((Duration::from_nanos(wait_ns), admitted))
    }
}

impl Limit {
    fn ask(&self, request: &Request<'_>, now_ns: u64, patience_ns: u64) -> (Verdict, Option<LimitPlace>) {
        let Self { state, judge } = self;
        let key = state.config.by.as_ref().map_or(0, |part| key(part, request));
        let is_open = |word| judge.counts_open() && word > 0;
        let place = state.place(key, now_ns, judge.fresh(now_ns), is_open);
        let ask = |place| judge.ask(state.word(place), now_ns, patience_ns);
        let verdict = place.map_or(Verdict::Refused(None), ask);
        let counter = match verdict {
            Verdict::After(0) => &state.passed,
            Verdict::After(_) => &state.waited,
            Verdict::Refused(_) => &state.refused,
        };
        counter.fetch_add(1, Relaxed);
        (verdict, place)
    }
}

/// Of a part of the request; those who do not say it are counted together.
fn key<'r>(part: &'r Part, request: &Request<'r>) -> u64 {
    let text = match part {
        Part::Header(name) => request.header(name),
        Part::Cookie(name) => request.cookie(name),
        Part::Query(name) => request.parameter(name),
        Part::Source => return xxh64(&request.caller.to_be_bytes(), 0),
    };
    text.map_or(0, |text| xxh64(text, 0))
}

fn refusal(config: &RequestLimit, wait_ns: Option<u64>) -> Reply {
    let mut reply = Reply::limited(config.status, &config.name, config.grpc_resource_exhausted);
    // Whole seconds, as RFC 9110 section 10.2.3 has them.
    let wait_s = wait_ns.map(|wait| wait.div_ceil(1_000_000_000).max(1));
    reply.fields.extend(wait_s.map(|wait| (header::RETRY_AFTER, HeaderValue::from(wait))));
    if config.tells_limit {
        reply.fields.push((LIMIT, HeaderValue::from(config.kind.limit())));
        reply.fields.push((REMAINING, HeaderValue::from(0)));
        reply.fields.extend(wait_s.map(|wait| (RESET, HeaderValue::from(wait))));
    }
    reply
}
