//! Whether an answer may be kept, and may be given: RFC 9111 sections 3 and 4.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use super::{Look, conditions::date, directives, directives::Directives};
use crate::{
    cluster::cache::{Rules, Stored},
    route::{Fields, Request},
};

/// Statuses whose answers may be kept although they do not say for how long (RFC 9110 section 15.1), but for 206.
const HEURISTIC: [u16; 11] = [200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501];
/// Fields of a connection, and of one user's way to this cache: they are not kept (section 3.1).
const LEFT_OUT: [HeaderName; 10] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("proxy-authentication-info"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("keep-alive"),
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::AGE,
];
/// Fields of the content that is kept, of which an answer without content says nothing (section 3.2).
const OF_CONTENT: [HeaderName; 4] =
    [header::CONTENT_LENGTH, header::CONTENT_ENCODING, header::CONTENT_TYPE, header::CONTENT_RANGE];

/// What may be done with an answer that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// It is given.
    Fresh,
    /// It is given, although it is not fresh any more: who asks has said so.
    Stale,
    /// It is given, and meanwhile the endpoint is asked.
    WhileAsking,
    /// The endpoint is asked first.
    Ask,
}

/// How old an answer is by now (section 4.2.3).
pub fn answer_age(rules: &Rules, now: Duration) -> Duration {
    rules.age + now.saturating_sub(rules.came)
}

/// What may be done with an answer for a request (section 4).
pub fn reuse(look: &Look, rules: &Rules, now: Duration) -> Reuse {
    let asked = &look.directives;
    let age = answer_age(rules, now);
    if asked.no_cache || rules.asks_always || asked.max_age.is_some_and(|most| age > most) {
        return Reuse::Ask;
    }
    let fresh_for = rules.lifetime.saturating_sub(age);
    if age < rules.lifetime {
        return if asked.min_fresh.is_some_and(|least| fresh_for < least) { Reuse::Ask } else { Reuse::Fresh };
    }
    if rules.asks_when_stale {
        return Reuse::Ask;
    }
    let stale_for = age - rules.lifetime;
    if asked.max_stale.is_some_and(|most| stale_for <= most) {
        return Reuse::Stale;
    }
    let may_wait = asked.max_age.is_none() && asked.min_fresh.is_none();
    if may_wait && stale_for < rules.while_revalidate { Reuse::WhileAsking } else { Reuse::Ask }
}

/// Whether an answer may stand in for an error (RFC 5861 section 4).
pub fn may_stand_in(rules: &Rules, now: Duration) -> bool {
    let stale_for = answer_age(rules, now).saturating_sub(rules.lifetime);
    !rules.asks_always && !rules.asks_when_stale && stale_for < rules.if_error
}

/// What is asked of the endpoint instead of what the client has asked: all of it, or whether what is kept still holds (section 4.3.1).
pub fn conditional(stored: Option<&Stored>) -> Fields {
    let fields = Fields::default().remove(header::IF_NONE_MATCH).remove(header::IF_MODIFIED_SINCE);
    let Some(stored) = stored else { return fields };
    let pass = |fields: Fields, (of, to): (HeaderName, HeaderName)| match stored.headers.get(of) {
        Some(value) => fields.append(to, value.clone()),
        None => fields,
    };
    [(header::ETAG, header::IF_NONE_MATCH), (header::LAST_MODIFIED, header::IF_MODIFIED_SINCE)]
        .into_iter()
        .fold(fields, pass)
}

/// Whether what is kept can be asked about.
fn has_validator(headers: &HeaderMap) -> bool {
    headers.contains_key(header::ETAG) || headers.contains_key(header::LAST_MODIFIED)
}

/// What an answer says of its use, if it may be kept at all (section 3). It was asked for and came at these times since 1970.
pub fn rules(
    look: &Look,
    status: StatusCode,
    headers: &HeaderMap,
    (asked, came): (Duration, Duration),
) -> Option<Rules> {
    let says = Directives::of_response(headers);
    let is_partial = matches!(status, StatusCode::PARTIAL_CONTENT | StatusCode::NOT_MODIFIED);
    // What is one client's cookie is nobody else's, unless it is said to be.
    let is_personal = says.private || (headers.contains_key(header::SET_COOKIE) && !says.public);
    // Section 3.5.
    let is_for_all = says.public || says.must_revalidate || says.s_maxage.is_some();
    let varies_by_all = headers.get_all(header::VARY).iter().any(|value| value.as_bytes().contains(&b'*'));
    if is_partial || status.is_informational() || is_personal || says.no_store {
        return None;
    }
    if varies_by_all || (look.is_authorized && !is_for_all) {
        return None;
    }
    let lifetime = lifetime(look, (status, headers), &says, came);
    let expects_use = lifetime.is_some() || (says.is_there && (says.no_cache || says.public));
    if !expects_use || (lifetime.unwrap_or_default().is_zero() && !has_validator(headers)) {
        return None;
    }
    // Section 5.2.2.10: who says how long many may share it wants to be asked after that.
    let asks_when_stale = says.must_revalidate || says.proxy_revalidate || says.s_maxage.is_some();
    Some(Rules {
        came,
        age: age_at(headers, (asked, came)),
        lifetime: lifetime.unwrap_or_default(),
        asks_always: says.no_cache,
        asks_when_stale,
        if_error: says.stale_if_error.unwrap_or(look.config.stale_if_error),
        while_revalidate: says.stale_while_revalidate.unwrap_or(look.config.stale_while_revalidate),
    })
}

/// How long it is fresh (section 4.2.1), if that is said, or may be guessed (section 4.2.2).
fn lifetime(
    look: &Look,
    (status, headers): (StatusCode, &HeaderMap),
    says: &Directives,
    came: Duration,
) -> Option<Duration> {
    if let Some(lifetime) = says.s_maxage.or(says.max_age) {
        return Some(lifetime);
    }
    let dated = |name: HeaderName| headers.get(name).map(|value| date(value.as_bytes()));
    let made = dated(header::DATE).flatten().unwrap_or(came);
    let mut expires = headers.get_all(header::EXPIRES).iter();
    if let Some(value) = expires.next() {
        // What is no date is over; and who says two things says none.
        let at = date(value.as_bytes()).filter(|_| expires.next().is_none());
        return Some(at.unwrap_or_default().saturating_sub(made));
    }
    let (percent, most) = (look.config.heuristic_percent, look.config.heuristic_max);
    if percent == 0 || !(HEURISTIC.contains(&status.as_u16()) || says.public) {
        return None;
    }
    let unchanged = made.saturating_sub(dated(header::LAST_MODIFIED)??);
    Some((unchanged * percent / 100).min(most))
}

/// How old it was when it came (section 4.2.3).
fn age_at(headers: &HeaderMap, (asked, came): (Duration, Duration)) -> Duration {
    let made = headers.get(header::DATE).and_then(|value| date(value.as_bytes()));
    let apparent = made.map_or(Duration::ZERO, |made| came.saturating_sub(made));
    let said = headers.get(header::AGE).and_then(|value| directives::age(value.as_bytes())).unwrap_or_default();
    // A clock that knows no parts of a second is not ahead of one that does.
    let apparent = if apparent < Duration::from_secs(1) { Duration::ZERO } else { apparent };
    apparent.max(said + came.saturating_sub(asked))
}

/// For which requests an answer to this one is selected.
pub fn selecting(headers: &HeaderMap, request: &Request<'_>) -> Vec<(HeaderName, Option<Vec<u8>>)> {
    let values = headers.get_all(header::VARY).iter();
    let names = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let mut names: Vec<HeaderName> = names.filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok()).collect();
    names.sort_unstable_by(|one, other| one.as_str().cmp(other.as_str()));
    names.dedup();
    names
        .into_iter()
        .map(|name| {
            let said = super::said(request, &name);
            (name, said)
        })
        .collect()
}

/// The fields that are kept of an answer that came then, since 1970.
pub fn kept(headers: &HeaderMap, came: Duration) -> HeaderMap {
    let mut kept = headers.clone();
    LEFT_OUT.iter().for_each(|name| drop(kept.remove(name)));
    // RFC 9110 section 6.6.1.
    let now = httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + came);
    kept.entry(header::DATE).or_insert_with(|| HeaderValue::from_str(&now).unwrap_or(HeaderValue::from_static("")));
    kept
}

/// The fields of what is kept when the endpoint has said with these that it still holds (section 3.2).
pub fn merged(stored: &HeaderMap, said: &HeaderMap) -> HeaderMap {
    let mut merged = stored.clone();
    let meant = |name: &&HeaderName| !OF_CONTENT.contains(name) && !LEFT_OUT.contains(name);
    for name in said.keys().filter(meant) {
        merged.remove(name);
        for value in said.get_all(name) {
            merged.append(name.clone(), value.clone());
        }
    }
    merged
}

/// Whether an answer to HEAD tells of what is kept: what it says of how to recognize that, and of its length, is the same (section 4.3.5). The
/// lengths are in bytes; `declared` is what the answer says of it.
pub fn tells_of(stored: &HeaderMap, length: u64, said: &HeaderMap, declared: Option<u64>) -> bool {
    let is_same = |name: HeaderName| said.get(&name).is_none_or(|value| stored.get(&name) == Some(value));
    is_same(header::ETAG) && is_same(header::LAST_MODIFIED) && declared.is_none_or(|declared| declared == length)
}

/// The fields of an answer that says that the client has what it asks for (RFC 9110 section 15.4.5).
pub fn not_modified(headers: &HeaderMap) -> HeaderMap {
    let mut kept = headers.clone();
    OF_CONTENT.iter().chain([&header::CONTENT_LANGUAGE]).for_each(|name| drop(kept.remove(name)));
    kept
}

/// A count of seconds as a field's value.
pub fn seconds(duration: Duration) -> HeaderValue {
    HeaderValue::from(duration.as_secs())
}

#[cfg(test)]
mod tests;
