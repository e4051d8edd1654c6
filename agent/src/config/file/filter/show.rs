//! Filters as they would be written.

use serde_json::{Map, Value as Json, json};

use super::{
    super::{
        SWITCHES,
        route::{show_caller, show_changes, show_match},
        show::{milliseconds, texts, word},
    },
    content::{show_cache, show_compress},
    identity::{show_api_key, show_basic, show_external, show_jwt},
};
use crate::config::filter::{Access, Callers, Cors, Direction, Fault, Filter, Kind, Origin, RequestId};

/// A chain; nothing if it has no filter.
pub(in super::super) fn show_all(filters: &[Filter]) -> Option<Vec<Json>> {
    (!filters.is_empty()).then(|| filters.iter().map(show).collect())
}

fn show(filter: &Filter) -> Json {
    let mut shown = json!({ "kind": filter.kind.word(), "name": filter.name });
    if let Some(matches) = &filter.matches {
        shown["match"] = show_match(matches);
    }
    let of_kind = match &filter.kind {
        Kind::Headers(headers) => {
            json!({ "request": show_changes(&headers.request), "response": show_changes(&headers.response) })
        }
        Kind::RequestId(id) => show_request_id(id),
        Kind::Cors(cors) => show_cors(cors),
        Kind::Access(access) => show_access(access),
        Kind::BodyLimit(bytes) => json!({ "bytes_max": bytes }),
        Kind::Fault(fault) => show_fault(fault),
        Kind::ApiKey(key) => show_api_key(key),
        Kind::Basic(basic) => show_basic(basic),
        Kind::Jwt(jwt) => show_jwt(jwt),
        Kind::External(external) => show_external(external),
        Kind::Cache(cache) => show_cache(cache),
        Kind::Compress(compress) => show_compress(compress),
    };
    if let (Json::Object(shown), Json::Object(of_kind)) = (&mut shown, of_kind) {
        shown.extend(of_kind.into_iter().filter(|(_, value)| !value.is_null()));
    }
    shown
}

fn show_request_id(id: &RequestId) -> Json {
    json!({
        "header": id.header,
        "uuid": word(&super::VERSIONS, id.by_time),
        "keep": word(&SWITCHES, id.keeps),
        "respond": word(&SWITCHES, id.responds),
    })
}

fn show_cors(cors: &Cors) -> Json {
    let origin = |origin: &Origin| match origin {
        Origin::Any => json!("*"),
        Origin::Exact(text) => json!(text),
        Origin::Suffix(suffix) => json!(format!("*{suffix}")),
        Origin::Regex(expression) => json!({ "regex": expression.as_str() }),
    };
    json!({
        "origins": cors.origins.iter().map(origin).collect::<Vec<Json>>(),
        "methods": cors.methods,
        "headers": cors.headers,
        "expose": cors.expose,
        "credentials": word(&SWITCHES, cors.credentials),
        "max_age_s": cors.max_age.map(|age| age.as_secs()),
    })
}

fn show_access(access: &Access) -> Json {
    let callers = |callers: &Callers| {
        json!({
            "sources": texts(&callers.sources),
            "callers": callers.callers.iter().map(show_caller).collect::<Vec<Json>>(),
        })
    };
    json!({ "allow": access.allow.as_ref().map(callers), "deny": callers(&access.deny) })
}

fn show_fault(fault: &Fault) -> Json {
    let mut shown = Map::new();
    shown.insert("percent".to_owned(), json!(fault.percent));
    shown.insert("delay_ms".to_owned(), json!(milliseconds(fault.delay)));
    shown.extend(fault.abort.map(|status| ("abort_status".to_owned(), json!(status))));
    shown.extend(fault.grpc_status.map(|status| ("grpc_status".to_owned(), json!(status))));
    shown.extend(fault.reset.then(|| ("reset".to_owned(), json!("on"))));
    shown.extend(fault.bandwidth.map(|bytes| ("bandwidth_bytes_per_second".to_owned(), json!(bytes))));
    let direction = fault.bandwidth.map(|_| word(&Direction::NAMES, fault.direction));
    shown.extend(direction.map(|direction| ("direction".to_owned(), json!(direction))));
    Json::Object(shown)
}
