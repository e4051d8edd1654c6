//! What can be changed below `/v1`. A change of the configuration is made from the document of the one in effect, checked as a file is,
//! and handed to the node whole; another thread does the reading.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Extension,
    body::to_bytes,
    extract::{Request, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{MethodRouter, get, patch, post, put},
};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::{
    BODY_BYTES_MAX, Desk, Named, Question, Who,
    edit::{self, Edit, How, Item, edit},
    gone, told, v1,
};
use crate::{
    config::{Config, ConfigError, file},
    node::{
        change::{Proposal, Trouble, Wanted},
        history::{Entry, Outcome},
        reload,
    },
};

/// How often a change is made anew because the configuration was another by then.
const TRIES_MAX: usize = 5;
/// Bytes of a body that is not a whole configuration.
const PART_BYTES_MAX: usize = 1 << 20;
/// The longest ejection: for good is what the configuration is for.
const EJECT_MS_MAX: u64 = 24 * 3_600_000;

pub(super) fn routes() -> Vec<(&'static str, &'static [&'static str], MethodRouter<Desk>)> {
    vec![
        ("/v1/config", &["put"], put(config)),
        ("/v1/rollback/{generation}", &["post"], post(rollback)),
        ("/v1/switches/{switch}", &["put"], put(turn)),
        ("/v1/services/{service}", &["get", "patch"], get(v1::service).patch(service)),
        ("/v1/services/{service}/fault", &["put", "delete"], put(fault).delete(no_fault)),
        (
            "/v1/services/{service}/endpoints/{address}",
            &["put", "patch", "delete"],
            patch(endpoint).put(endpoint).delete(endpoint),
        ),
        ("/v1/services/{service}/endpoints/{address}/eject", &["post", "delete"], post(eject).delete(take_back)),
        (
            "/v1/services/{service}/request_limits/{limit}",
            &["put", "patch", "delete"],
            patch(limit).put(limit).delete(limit),
        ),
    ]
}

/// What is handed to the node.
struct Drafted {
    config: Box<Config>,
    /// What was read; `None`: one item of the configuration before was changed.
    text: Option<Arc<str>>,
    base: Option<u64>,
}

/// Why nothing is handed to it.
enum Not {
    /// What is wrong with what was asked for.
    Good(String),
    /// There is no such thing.
    There(String),
}

impl Desk {
    /// Makes a change, and says what came of it.
    async fn change(
        &self,
        change: &'static str,
        Who(by): Who,
        draft: impl Fn(u64, &Config) -> Result<Drafted, Not> + Send + Sync + 'static,
    ) -> Response {
        let _turn = self.turn.lock().await;
        let draft = Arc::new(draft);
        for _ in 0..TRIES_MAX {
            let Some((observed, config)) = self.see(false).await else { return gone() };
            let make = Arc::clone(&draft);
            let base = observed.snapshot.generation;
            let drafted = tokio::task::spawn_blocking(move || {
                let started = Instant::now();
                make(base, &config).map(|mut drafted| {
                    reload::share(&mut drafted.config.services, &config.services);
                    (drafted, started.elapsed())
                })
            });
            let wanted = match drafted.await {
                Ok(Ok((Drafted { config, text, base }, read_time))) => Wanted::Config { config, text, base, read_time },
                Ok(Err(Not::Good(error))) => Wanted::Bad(error),
                Ok(Err(Not::There(error))) => return told(StatusCode::NOT_FOUND, &error),
                Err(_) => return gone(),
            };
            match self.propose(change, by.clone(), wanted).await {
                Some(Err(Trouble::Stale(_))) => {}
                said => return answer(said),
            }
        }
        told(StatusCode::CONFLICT, "the configuration changes again and again; ask again later")
    }

    /// What the node says of a change; `None`: it is ending.
    async fn propose(&self, change: &'static str, by: String, wanted: Wanted) -> Option<Result<Entry, Trouble>> {
        let (told, said) = oneshot::channel();
        let proposal = Box::new(Proposal { change, by, wanted, told });
        self.ask.send(Question::Change(proposal)).await.ok()?;
        said.await.ok()
    }
}

fn answer(said: Option<Result<Entry, Trouble>>) -> Response {
    match said {
        Some(Ok(entry)) => {
            let applied = entry.outcome == Outcome::Applied;
            let status = if applied { StatusCode::OK } else { StatusCode::UNPROCESSABLE_ENTITY };
            (status, axum::Json(entry)).into_response()
        }
        Some(Err(trouble @ Trouble::Stale(_))) => told(StatusCode::CONFLICT, &trouble.to_string()),
        Some(Err(Trouble::Unknown(what))) => told(StatusCode::NOT_FOUND, &what),
        None => gone(),
    }
}

async fn body(request: Request, bytes_max: usize) -> Result<String, Response> {
    let too_long =
        || told(StatusCode::PAYLOAD_TOO_LARGE, &format!("the body has more than {bytes_max} bytes, or broke off"));
    let bytes = to_bytes(request.into_body(), bytes_max).await.map_err(|_| too_long())?;
    String::from_utf8(bytes.into()).map_err(|_| told(StatusCode::BAD_REQUEST, "the body is no UTF-8"))
}

/// A body of JSON; an empty one is null.
async fn json_body(request: Request) -> Result<Value, Response> {
    let text = body(request, PART_BYTES_MAX).await?;
    if text.trim().is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(&text).map_err(|error| told(StatusCode::BAD_REQUEST, &format!("the body is no JSON: {error}")))
}

async fn config(State(desk): State<Desk>, Extension(who): Extension<Who>, request: Request) -> Response {
    let text: Arc<str> = match body(request, BODY_BYTES_MAX).await {
        Ok(text) => text.into(),
        Err(refused) => return refused,
    };
    desk.change("config", who, move |_, _| whole(&text, "(body)", None)).await
}

/// A whole configuration by its text.
fn whole(text: &Arc<str>, name: &str, base: Option<u64>) -> Result<Drafted, Not> {
    let read = match text.trim().is_empty() {
        true => Err(ConfigError::empty(name.to_owned())),
        false => file::parse(text, name),
    };
    let config = read.map_err(|error| Not::Good(error.to_string()))?;
    Ok(Drafted { config: Box::new(config), text: Some(Arc::clone(text)), base })
}

async fn rollback(State(desk): State<Desk>, Extension(who): Extension<Who>, Named(generation): Named<u64>) -> Response {
    let history = desk.history.clone();
    desk.change("rollback", who, move |_, _| {
        let ledger = history.ledger();
        let text = ledger.text(generation).ok_or_else(|| Not::There(v1::not_kept(&ledger, generation)))?;
        drop(ledger);
        whole(&text.into(), &format!("generation {generation}"), None)
    })
    .await
}

async fn service(
    State(desk): State<Desk>,
    Extension(who): Extension<Who>,
    Named(service): Named<String>,
    request: Request,
) -> Response {
    item(desk, who, "service", service, None, request).await
}

async fn endpoint(
    State(desk): State<Desk>,
    Extension(who): Extension<Who>,
    Named((service, address)): Named<(String, String)>,
    request: Request,
) -> Response {
    let address = address.parse::<SocketAddr>().map_or(address, |address| address.to_string());
    item(desk, who, "endpoint", service, Some(Item::Endpoint(address)), request).await
}

async fn limit(
    State(desk): State<Desk>,
    Extension(who): Extension<Who>,
    Named((service, limit)): Named<(String, String)>,
    request: Request,
) -> Response {
    item(desk, who, "request_limit", service, Some(Item::Limit(limit)), request).await
}

/// Changes the document by what the method says.
async fn item(
    desk: Desk,
    who: Who,
    change: &'static str,
    service: String,
    item: Option<Item>,
    request: Request,
) -> Response {
    let method = request.method().clone();
    let how = match (method.as_str(), json_body(request).await) {
        (_, Err(refused)) => return refused,
        ("DELETE", Ok(_)) => How::Remove,
        (_, Ok(said)) if !said.is_object() => {
            return told(StatusCode::BAD_REQUEST, "the body is no JSON object of keys as the file has them");
        }
        ("PUT", Ok(said)) => How::Replace(said),
        (_, Ok(said)) => How::Merge(said),
    };
    let wanted = Edit { service, item, how };
    desk.change(change, who, move |base, config| edited(base, config, wanted.clone())).await
}

/// Turns a switch.
async fn turn(
    State(desk): State<Desk>,
    Extension(who): Extension<Who>,
    Named(switch): Named<String>,
    request: Request,
) -> Response {
    let state = match json_body(request).await {
        Ok(said) => said["state"].clone(),
        Err(refused) => return refused,
    };
    desk.change("switch", who, move |base, config| switched(base, config, &switch, state.clone())).await
}

/// The configuration in effect with one of its services, or an item of that, changed.
fn edited(base: u64, config: &Config, wanted: Edit) -> Result<Drafted, Not> {
    let place = config.services.iter().position(|service| service.name == wanted.service);
    let found: Vec<Value> = place.iter().map(|place| file::show_service(&config.services[*place])).collect();
    let mut document = json!({ "services": found });
    renamed(&wanted).map_or(Ok(()), |what| Err(Not::Good(what)))?;
    edit(&mut document, wanted).map_err(Not::There)?;
    amended(base, file::amend(config, place.unwrap_or_default(), &document["services"][0]))
}

/// What is wrong with a change that would make something another: who asks for it by its name would find it no more.
fn renamed(wanted: &Edit) -> Option<String> {
    let (key, own) = match &wanted.item {
        None => ("name", &wanted.service),
        Some(Item::Limit(name)) => ("name", name),
        Some(Item::Endpoint(address)) => ("address", address),
    };
    let How::Merge(patch) = &wanted.how else { return None };
    let said = patch.get(key).filter(|said| *said != own.as_str())?;
    Some(format!(
        "{key}: {said} is another than {own}; remove it, or write the whole configuration with PUT /v1/config"
    ))
}

/// The configuration in effect with a switch turned.
fn switched(base: u64, config: &Config, switch: &str, state: Value) -> Result<Drafted, Not> {
    let bare = Config { services: Vec::new(), inbound: Vec::new(), ..config.clone() };
    let mut document = json!({ "switches": file::show(&bare)["switches"] });
    edit::switch(&mut document, switch, state).map_err(Not::There)?;
    amended(
        base,
        file::parse(&document.to_string(), "").map(|read| Config { switches: read.switches, ..config.clone() }),
    )
}

fn amended(base: u64, read: Result<Config, ConfigError>) -> Result<Drafted, Not> {
    let config = read.map_err(|error| Not::Good(placeless(&error)))?;
    Ok(Drafted { config: Box::new(config), text: None, base: Some(base) })
}

/// What is wrong with a document that nobody wrote: lines and columns of it say nothing.
fn placeless(error: &ConfigError) -> String {
    let ConfigError::Invalid { problems, .. } = error else { return error.to_string() };
    let lines: Vec<String> = problems.iter().map(|problem| format!("{}: {}", problem.path, problem.what)).collect();
    lines.join("\n")
}

async fn eject(
    State(desk): State<Desk>,
    Extension(who): Extension<Who>,
    Named((service, address)): Named<(String, String)>,
    request: Request,
) -> Response {
    let said = match json_body(request).await {
        Ok(said) => said,
        Err(refused) => return refused,
    };
    match said["for_ms"].as_u64() {
        Some(for_ms @ 1..=EJECT_MS_MAX) => bar(desk, who, service, &address, Some(Duration::from_millis(for_ms))).await,
        _ => told(StatusCode::BAD_REQUEST, &format!("write {{\"for_ms\": N}}, N from 1 to {EJECT_MS_MAX}")),
    }
}

async fn fault(
    State(desk): State<Desk>,
    Extension(Who(by)): Extension<Who>,
    Named(service): Named<String>,
    request: Request,
) -> Response {
    let text = match body(request, PART_BYTES_MAX).await {
        Ok(text) => text,
        Err(refused) => return refused,
    };
    let wanted = match file::lease(&text, "(body)") {
        Ok((fault, period)) => Wanted::Fault { service, fault: Some((Box::new(fault), period)) },
        Err(error) => Wanted::Bad(error.to_string()),
    };
    let _turn = desk.turn.lock().await;
    answer(desk.propose("fault", by, wanted).await)
}

async fn no_fault(
    State(desk): State<Desk>,
    Extension(Who(by)): Extension<Who>,
    Named(service): Named<String>,
) -> Response {
    let _turn = desk.turn.lock().await;
    answer(desk.propose("fault", by, Wanted::Fault { service, fault: None }).await)
}

async fn take_back(
    State(desk): State<Desk>,
    Extension(who): Extension<Who>,
    Named((service, address)): Named<(String, String)>,
) -> Response {
    bar(desk, who, service, &address, None).await
}

async fn bar(desk: Desk, Who(by): Who, service: String, address: &str, period: Option<Duration>) -> Response {
    let Ok(endpoint) = address.parse() else {
        return told(StatusCode::NOT_FOUND, &super::no_endpoint(&service, address));
    };
    let _turn = desk.turn.lock().await;
    answer(desk.propose("eject", by, Wanted::Bar { service, endpoint, period }).await)
}
