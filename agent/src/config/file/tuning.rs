//! What the ways to balance go by that only the agent knows.

use std::time::Duration;

use serde_json::{Value as Json, json};

use super::{
    SWITCHES, milliseconds,
    section::{Field, Path, Problems, Section, shown},
};
use crate::config::{
    Balance,
    tuning::{
        Among, Cost, GivenCookie, HashKey, HashOn, KETAMA_SIZE_MAX, LeastRequest, Part, PeakEwma, PointHash,
        RING_SIZE_MAX, RingHash, Tuning,
    },
};

/// Keys of a service that are read here.
pub(super) const KEYS: [&str; 6] =
    ["least_request", "peak_ewma", "ring_hash", "hash_on", "hash_balance_factor", "cost"];

const CHOICES_MAX: u32 = 64; // more is a full scan that looks at some twice
const BIAS_PERCENT_MAX: u32 = 1_000;
const TIME_MS_MAX: u32 = 3_600_000;
const FACTOR_MAX: u32 = 10_000;
const COST_MAX: u32 = 1_000_000;
const COST_OF_HEADER_MAX: u32 = 1_000; // unless said: who asks must not make an endpoint look busy for good
const PARTS: [&str; 4] = ["header", "cookie", "query", "source"];
const ADDRESS: &str = "source_ip"; // Envoy's name
const OR_ADDRESS: &str = ", source_ip: on";
const TTL_S_MAX: u32 = 31_536_000; // a year
const PARTS_MAX: usize = 16;
const NAME_BYTES_MAX: usize = 256;

const POINT_HASHES: [(&str, PointHash); 3] =
    [("xxh64", PointHash::Xxh64), ("murmur2", PointHash::Murmur2), ("ketama", PointHash::Ketama)];

pub(super) fn tuning(section: &Section<'_>, balance: Option<Balance>, problems: &mut Problems) -> Option<Tuning> {
    let default = Tuning::default();
    let least_request = section.or("least_request", || default.least_request, least_request, problems);
    let peak_ewma = section.or("peak_ewma", || default.peak_ewma, peak_ewma, problems);
    let ring_hash = section.or("ring_hash", || default.ring_hash, ring_hash, problems);
    let hash_on = section.or("hash_on", Vec::new, hash_on, problems);
    let factor = |field: &Field<'_>, p: &mut Problems| field.integer(100..=FACTOR_MAX, p).map(Some);
    let factor = section.or("hash_balance_factor", || None, factor, problems);
    let cost = section.or("cost", || None, |field, p| cost(field, p).map(Some), problems);
    if let Some(balance) = balance {
        refuse_idle(section, balance, problems);
    }
    Some(Tuning {
        least_request: least_request?,
        peak_ewma: peak_ewma?,
        ring_hash: ring_hash?,
        hash_on: hash_on?,
        hash_balance_factor: factor?,
        cost: cost?,
    })
}

/// Notes keys that say nothing of this way to balance.
fn refuse_idle(section: &Section<'_>, balance: Balance, problems: &mut Problems) {
    for (key, is_used, when) in [
        ("least_request", balance == Balance::LeastRequest, "balance is least_request"),
        ("peak_ewma", balance == Balance::PeakEwma, "balance is peak_ewma"),
        ("ring_hash", balance == Balance::RingHash, "balance is ring_hash"),
        ("hash_on", balance.hashes(), "balance is ring_hash, maglev or source_hash"),
        ("hash_balance_factor", balance.hashes(), "balance is ring_hash, maglev or source_hash"),
    ] {
        if let (Some(field), false) = (section.get(key), is_used) {
            field.refuse(format!("says nothing unless {when}; write that, or remove it"), problems);
        }
    }
}

/// Notes what the kernel half cannot do.
pub(super) fn refuse_in_kernel(section: &Section<'_>, balance: Option<Balance>, problems: &mut Problems) {
    if let (Some(field), Some(balance)) = (section.get("balance"), balance.filter(|balance| balance.is_agents())) {
        let instead = match balance {
            Balance::RingHash => "maglev",
            _ => "least_connections",
        };
        let what = format!(
            "is the agent's to do, and this service is balanced in the kernel; write mode: agent, or {instead}"
        );
        field.refuse(what, problems);
    }
    for key in ["hash_on", "hash_balance_factor", "cost"] {
        if let Some(field) = section.get(key) {
            field.refuse("is the agent's to do; write mode: agent, or leave the key out", problems);
        }
    }
}

/// Notes what says nothing where requests are not read.
pub(super) fn refuse_where_opaque(section: &Section<'_>, balance: Option<Balance>, problems: &mut Problems) {
    if let (Some(field), Some(Balance::PeakEwma)) = (section.get("balance"), balance) {
        let what =
            "goes by how long answers take, and protocol: tcp has none; write least_request, or another protocol";
        field.refuse(what, problems);
    }
    if let Some(field) = section.get("cost") {
        field.refuse("goes by a request's head, and protocol: tcp has none; leave the key out", problems);
    }
    if let Some(field) = section.get("hash_on")
        && hash_on(&field, &mut Problems::default()).is_some_and(|rules| rules.iter().any(asks_head))
    {
        let what = "goes by a request's head, and protocol: tcp has none; write source: on or source_ip: on, or leave the \
                    key out";
        field.refuse(what, problems);
    }
}

fn least_request(field: &Field<'_>, problems: &mut Problems) -> Option<LeastRequest> {
    let keys = ["choice_count", "full_scan", "bias_percent"];
    let section = Section::open(field.node, &field.path, &keys, problems)?;
    let of = among(&section, problems);
    let bias = section.or("bias_percent", || 100, |field, p| field.integer(0..=BIAS_PERCENT_MAX, p), problems);
    Some(LeastRequest { of: of?, bias_percent: bias? })
}

fn among(section: &Section<'_>, problems: &mut Problems) -> Option<Among> {
    let choices = section.or("choice_count", || 2, |field, p| field.integer(2..=CHOICES_MAX, p), problems);
    let all = section.or("full_scan", || false, |field, p| field.choice(&SWITCHES, p), problems);
    if let (Some(true), Some(field)) = (all, section.get("choice_count")) {
        field.refuse("says nothing with full_scan: on; remove one of them", problems);
    }
    Some(if all? { Among::All } else { Among::Some(choices?) })
}

fn peak_ewma(field: &Field<'_>, problems: &mut Problems) -> Option<PeakEwma> {
    let default = Tuning::default().peak_ewma;
    let keys = ["choice_count", "full_scan", "decay_ms", "start_ms", "penalty_ms"];
    let section = Section::open(field.node, &field.path, &keys, problems)?;
    let of = among(&section, problems);
    let mut time = |key, default: Duration, least: u32| {
        let read = |field: &Field<'_>, p: &mut Problems| field.integer(least..=TIME_MS_MAX, p).map(milliseconds);
        section.or(key, || default, read, problems)
    };
    let decay = time("decay_ms", default.decay, 1);
    let start = time("start_ms", default.start, 0);
    let penalty = time("penalty_ms", default.penalty, 0);
    Some(PeakEwma { of: of?, decay: decay?, start: start?, penalty: penalty? })
}

fn ring_hash(field: &Field<'_>, problems: &mut Problems) -> Option<RingHash> {
    let default = Tuning::default().ring_hash;
    let section = Section::open(field.node, &field.path, &["size_min", "size_max", "hash"], problems)?;
    // Who says how large a ring is at least means one of Envoy's.
    let usual = if section.get("size_min").is_some() { PointHash::Xxh64 } else { default.hash };
    let hash = section.or("hash", || usual, |field, p| field.choice(&POINT_HASHES, p), problems);
    let most = if hash == Some(PointHash::Ketama) { KETAMA_SIZE_MAX } else { RING_SIZE_MAX };
    let size = |field: &Field<'_>, p: &mut Problems| field.integer(1..=RING_SIZE_MAX, p);
    let size_min = section.or("size_min", || default.size_min, size, problems);
    let size_max = section.or("size_max", || most, size, problems);
    if let (Some(least), Some(most), Some(field)) = (size_min, size_max, section.get("size_max"))
        && most < least
        && hash != Some(PointHash::Ketama)
    {
        field.refuse(format!("{most} is less than size_min, {least}; write as many at least"), problems);
    }
    if let (Some(PointHash::Ketama), Some(field)) = (hash, section.get("size_min")) {
        field.refuse(
            "says nothing with hash: ketama, which has 160 points for each unit of weight; remove it",
            problems,
        );
    }
    Some(RingHash { size_min: size_min?, size_max: size_max?, hash: hash? })
}

fn hash_on(field: &Field<'_>, problems: &mut Problems) -> Option<Vec<HashOn>> {
    let items = field.list(problems)?;
    if items.len() > PARTS_MAX {
        field.refuse(format!("has more than {PARTS_MAX} parts; write fewer"), problems);
        return None;
    }
    let part = |(index, node)| part(&Field { node, path: Path::Item(&field.path, index) }, problems);
    let parts: Vec<Option<HashOn>> = items.iter().enumerate().map(part).collect();
    parts.into_iter().collect()
}

fn part(field: &Field<'_>, problems: &mut Problems) -> Option<HashOn> {
    let keys = [&PARTS[..], &[ADDRESS, "generate", "terminal"]].concat();
    let section = Section::open(field.node, &field.path, &keys, problems)?;
    let terminal = section.or("terminal", || false, |field, p| field.choice(&SWITCHES, p), problems);
    let key = match section.get(ADDRESS) {
        Some(_) if PARTS.iter().any(|part| section.get(part).is_some()) => {
            refuse_parts(field, OR_ADDRESS, problems);
            return None;
        }
        Some(on) => on.choice(&[("on", ())], problems).map(|()| HashKey::Address)?,
        None => HashKey::Part(named_part(field, (&section, OR_ADDRESS), problems)?),
    };
    let key = match (section.get("generate"), key) {
        (None, key) => key,
        (Some(how), HashKey::Part(Part::Cookie(name))) => HashKey::Given(given(&how, name, problems)?),
        (Some(how), _) => {
            how.refuse("is of cookies; write cookie: NAME beside it, or remove it", problems);
            return None;
        }
    };
    Some(HashOn { key, terminal: terminal? })
}

/// Whether it stands in the head of a request.
fn asks_head(rule: &HashOn) -> bool {
    !matches!(rule.key, HashKey::Address | HashKey::Part(Part::Source))
}

fn given(field: &Field<'_>, name: String, problems: &mut Problems) -> Option<GivenCookie> {
    let section = Section::open(field.node, &field.path, &["ttl_s", "path"], problems)?;
    let ttl = section.or("ttl_s", || 0, |field, p| field.integer(0..=TTL_S_MAX, p), problems);
    let path = section.or("path", || "/".to_owned(), cookie_path, problems);
    let ttl = ttl?;
    Some(GivenCookie { name, ttl: (ttl > 0).then(|| Duration::from_secs(ttl.into())), path: path? })
}

/// A path as RFC 6265 section 4.1.1 has them, from the root on.
fn cookie_path(field: &Field<'_>, problems: &mut Problems) -> Option<String> {
    let text = field.text(problems)?;
    let is_path = |byte: u8| (b'!'..=b'~').contains(&byte) && byte != b';';
    if text.starts_with('/') && text.len() <= NAME_BYTES_MAX && text.bytes().all(is_path) {
        return Some(text.to_owned());
    }
    field.refuse(format!("\"{}\" is no path of a cookie; write / or /PATH", shown(text)), problems);
    None
}

/// One part of a request.
pub(super) fn one_part(field: &Field<'_>, problems: &mut Problems) -> Option<Part> {
    let section = Section::open(field.node, &field.path, &PARTS, problems)?;
    named_part(field, (&section, ""), problems)
}

/// `more` is what else could stand there.
fn named_part(field: &Field<'_>, (section, more): (&Section<'_>, &str), problems: &mut Problems) -> Option<Part> {
    let named = PARTS.into_iter().filter_map(|key| Some((key, section.get(key)?)));
    let named: Vec<(&str, Field<'_>)> = named.collect();
    let [(key, value)] = &named[..] else {
        refuse_parts(field, more, problems);
        return None;
    };
    Some(match *key {
        "header" => Part::Header(header_name(value, problems)?),
        "cookie" => Part::Cookie(token(value, problems)?),
        "query" => Part::Query(value.text(problems)?.to_owned()),
        _ => {
            value.choice(&[("on", ())], problems)?;
            Part::Source
        }
    })
}

/// `more` is what else could stand there.
fn refuse_parts(field: &Field<'_>, more: &str, problems: &mut Problems) {
    let what = "is not one part of a request; write one of header: NAME, cookie: NAME, query: NAME, source: on";
    field.refuse(format!("{what}{more}"), problems);
}

fn header_name(field: &Field<'_>, problems: &mut Problems) -> Option<String> {
    token(field, problems).map(|name| name.to_ascii_lowercase())
}

/// A name as RFC 9110 section 5.6.2 has them.
/// Whether it is what names fields and cookies (RFC 9110 section 5.6.2), and not too long.
pub(super) fn is_token(text: &str) -> bool {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_token)
}

fn token(field: &Field<'_>, problems: &mut Problems) -> Option<String> {
    let text = field.text(problems)?;
    if is_token(text) {
        return Some(text.to_owned());
    }
    field.refuse(format!("\"{}\" is no name; write letters, digits, - and _", shown(text)), problems);
    None
}

fn cost(field: &Field<'_>, problems: &mut Problems) -> Option<Cost> {
    let section = Section::open(field.node, &field.path, &["header", "default", "max"], problems)?;
    let header = section.or("header", || None, |field, p| header_name(field, p).map(Some), problems);
    let default = section.or("default", || 1, |field, p| field.integer(1..=COST_MAX, p), problems);
    let max = section.or("max", || COST_OF_HEADER_MAX, |field, p| field.integer(1..=COST_MAX, p), problems);
    let cost = Cost { header: header?, default: default?, max: max?.max(default?) };
    if cost.header.is_none() && section.get("default").is_none() {
        field.refuse("says nothing; write header: NAME or default: NUMBER, or remove it", problems);
    }
    Some(cost)
}

/// As a file says it.
pub(super) fn show(tuning: &Tuning, balance: Balance) -> Json {
    let among = |shown: &mut Json, of: Among| match of {
        Among::Some(choices) => shown["choice_count"] = json!(choices),
        Among::All => shown["full_scan"] = json!("on"),
    };
    let mut all = json!({ "cost": tuning.cost.as_ref().map(show_cost) });
    match balance {
        Balance::LeastRequest => {
            all["least_request"] = json!({ "bias_percent": tuning.least_request.bias_percent });
            among(&mut all["least_request"], tuning.least_request.of);
        }
        Balance::PeakEwma => {
            let rules = &tuning.peak_ewma;
            let times = [("decay_ms", rules.decay), ("start_ms", rules.start), ("penalty_ms", rules.penalty)];
            all["peak_ewma"] = times.map(|(key, time)| (key, json!(time.as_millis() as u64))).into_iter().collect();
            among(&mut all["peak_ewma"], rules.of);
        }
        Balance::RingHash => all["ring_hash"] = show_ring(&tuning.ring_hash),
        _ => {}
    }
    if balance.hashes() {
        all["hash_balance_factor"] = json!(tuning.hash_balance_factor);
        all["hash_on"] = json!(tuning.hash_on.iter().map(show_rule).collect::<Vec<Json>>());
    }
    all
}

fn show_ring(ring: &RingHash) -> Json {
    json!({
        "size_min": (ring.hash != PointHash::Ketama).then_some(ring.size_min),
        "size_max": ring.size_max,
        "hash": POINT_HASHES.iter().find(|(_, hash)| *hash == ring.hash).map(|(word, _)| word),
    })
}

/// A part of a request as a file says it.
pub(super) fn show_part(part: &Part) -> Json {
    match part {
        Part::Header(name) => json!({ "header": name }),
        Part::Query(name) => json!({ "query": name }),
        Part::Source => json!({ "source": "on" }),
        Part::Cookie(name) => json!({ "cookie": name }),
    }
}

fn show_rule(rule: &HashOn) -> Json {
    let mut shown = match &rule.key {
        HashKey::Part(part) => show_part(part),
        HashKey::Address => json!({ ADDRESS: "on" }),
        HashKey::Given(GivenCookie { name, ttl, path }) => {
            json!({ "cookie": name, "generate": { "ttl_s": ttl.map_or(0, |ttl| ttl.as_secs()), "path": path } })
        }
    };
    if rule.terminal {
        shown["terminal"] = json!("on");
    }
    shown
}

fn show_cost(cost: &Cost) -> Json {
    json!({ "header": cost.header, "default": cost.default, "max": cost.max })
}

#[cfg(test)]
mod tests;
