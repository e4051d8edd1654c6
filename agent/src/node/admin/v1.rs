//! What can be read below `/v1`.

use axum::{
    extract::{Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{MethodRouter, get},
};
use serde_json::{Value, json};

use super::{Desk, Named, gone, no_service, shown, told};
use crate::{
    config::file,
    node::history::{Entry, Ledger, Outcome},
};

pub(super) fn routes() -> Vec<(&'static str, &'static [&'static str], MethodRouter<Desk>)> {
    vec![
        ("/v1/services", &["get"], get(services)),
        ("/v1/generations", &["get"], get(generations)),
        ("/v1/generations/{generation}", &["get"], get(generation)),
        ("/v1/generations/{generation}/config", &["get"], get(generation_config)),
        ("/v1/switches", &["get"], get(switches)),
        ("/v1/audit", &["get"], get(audit)),
    ]
}

async fn services(State(desk): State<Desk>) -> Response {
    desk.answer(true, |(observed, config)| {
        let mut status = observed.to_json(&config);
        axum::Json(json!({ "services": status["services"].take(), "leaving": status["leaving"].take() }))
            .into_response()
    })
    .await
}

pub(super) async fn service(State(desk): State<Desk>, Named(name): Named<String>) -> Response {
    desk.answer(true, move |(observed, _)| match observed.service_json(&name) {
        Some(service) => axum::Json(service).into_response(),
        None => told(StatusCode::NOT_FOUND, &no_service(&name)),
    })
    .await
}

async fn switches(State(desk): State<Desk>) -> Response {
    desk.answer(false, |(_, config)| {
        let switches = Some(file::show(&config)["switches"].take()).filter(Value::is_object);
        axum::Json(json!({ "switches": switches.unwrap_or_else(|| json!({})) })).into_response()
    })
    .await
}

/// Reads what is written down, on a thread that may take its time.
async fn read(desk: &Desk, tell: impl FnOnce(&Ledger) -> Response + Send + 'static) -> Response {
    let history = desk.history.clone();
    tokio::task::spawn_blocking(move || tell(&history.ledger())).await.unwrap_or_else(|_| gone())
}

/// Whether a change made a generation.
fn made_one(entry: &Entry) -> bool {
    entry.outcome == Outcome::Applied && !["eject", "fault"].contains(&entry.change.as_str())
}

async fn generations(State(desk): State<Desk>) -> Response {
    read(&desk, |ledger| {
        let kept = ledger.kept();
        let line = |entry: &Entry| {
            json!({
                "generation": entry.generation,
                "at": entry.at,
                "change": entry.change,
                "by": entry.by,
                "differences": entry.diff.len() + entry.more,
                "kept": kept.contains(&entry.generation),
            })
        };
        let lines: Vec<Value> = ledger.entries().filter(|entry| made_one(entry)).map(line).collect();
        axum::Json(json!({ "current": ledger.last(), "generations": lines })).into_response()
    })
    .await
}

async fn generation(State(desk): State<Desk>, Named(generation): Named<u64>) -> Response {
    read(&desk, move |ledger| {
        let found = ledger.entries().rev().find(|entry| made_one(entry) && entry.generation == generation);
        match found {
            Some(entry) => axum::Json(entry).into_response(),
            None => told(StatusCode::NOT_FOUND, &format!("there is no generation {generation} in the audit log")),
        }
    })
    .await
}

/// What a generation's text says is only for those who may change it: it may name what nobody else is to know.
async fn generation_config(State(desk): State<Desk>, Named(generation): Named<u64>, request: Request) -> Response {
    if let Err(refused) = desk.who(shown(&request)).await {
        return refused;
    }
    read(&desk, move |ledger| match ledger.text(generation) {
        Some(text) => ([(header::CONTENT_TYPE, "application/yaml")], text).into_response(),
        None => told(StatusCode::NOT_FOUND, &not_kept(ledger, generation)),
    })
    .await
}

/// Why there is no going back to a generation.
pub(super) fn not_kept(ledger: &Ledger, generation: u64) -> String {
    let mut kept = ledger.kept();
    kept.sort_unstable();
    let kept: Vec<String> = kept.iter().map(u64::to_string).collect();
    match (kept.is_empty(), ledger.trouble()) {
        (false, _) => format!("generation {generation} is not kept; these are: {}", kept.join(", ")),
        (true, Some(trouble)) => format!("generation {generation} is not kept, nor is any other: {trouble}"),
        (true, None) => format!("generation {generation} is not kept, nor is any other yet"),
    }
}

async fn audit(State(desk): State<Desk>) -> Response {
    read(&desk, |ledger| {
        let entries: Vec<&Entry> = ledger.entries().collect();
        axum::Json(json!({ "path": ledger.path(), "trouble": ledger.trouble(), "entries": entries })).into_response()
    })
    .await
}
