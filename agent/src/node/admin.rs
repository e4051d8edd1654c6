//! The admin endpoint: what the agent says of itself over HTTP, and where it is told to change something. `deploy/openapi.json` describes it.
//!
//! Requests are answered beside the node's own work on the main thread: what is observed, or wanted, is asked of the node, which answers in
//! between; texts are read and written on other threads.

mod changes;
mod door;
mod edit;
mod hystrix;
mod rights;
mod v1;

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{self, ConnectInfo, DefaultBodyLimit, FromRequestParts, Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{MethodRouter, get},
};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::{
    net::TcpListener,
    sync::{Mutex, Semaphore, mpsc, oneshot},
};

use self::{
    door::{Door, Guest, Hours, Peer, Socket},
    rights::Forbidden,
};
use super::{
    NodeError,
    change::Proposal,
    history::{Reader, diff::hide},
    runfile,
};
use crate::{
    config::Config,
    record::{observed::Observed, prometheus},
};

/// Connections at once at each door: a few scrapers and a few people.
const VISITORS_MAX: usize = 32;
/// How long one connection may last. In all: no scraper waits longer (Prometheus gives up after 10 s unless told otherwise). Until it has
/// said what it wants: all clients do at once.
const HOURS: Hours = Hours { head_max: Duration::from_secs(5), visit_max: Duration::from_secs(30) };
/// Questions waiting for the node: each visitor has one at a time.
const QUESTIONS_MAX: usize = 2 * VISITORS_MAX;
/// Bytes of a body: what a configuration may have.
const BODY_BYTES_MAX: usize = 32 << 20;

/// What the node answers a question with.
pub type Answer = (Observed, Arc<Config>);

/// Something the admin endpoint wants of the node.
#[derive(Debug)]
pub enum Question {
    /// How things are.
    See(See),
    /// A change.
    Change(Box<Proposal>),
}

/// How are things?
#[derive(Debug)]
pub struct See {
    /// Whether counters and statistics are asked for, which take time with many endpoints; otherwise only whether the agent is ready.
    pub counts: bool,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Answer>,
}

/// What every answer is made from.
#[derive(Clone)]
struct Desk {
    ask: mpsc::Sender<Question>,
    history: Reader,
    /// One change after the other: each is made from what the one before has left.
    turn: Arc<Mutex<()>>,
    /// Streams to dashboards.
    streams: Arc<Semaphore>,
}

/// Where the admin endpoint answers. Dropping it removes the socket's name.
#[derive(Debug)]
pub struct Doors {
    /// The TCP address.
    pub address: SocketAddr,
    socket: Socket,
}

impl Doors {
    /// Where the Unix socket is.
    pub fn socket(&self) -> &Path {
        self.socket.path()
    }
}

/// Binds the admin address and the Unix socket, and answers there from now on. Also the questions that the node is to answer.
///
/// # Errors
///
/// When one of them cannot be bound.
pub async fn open(config: &Config, history: Reader) -> Result<(Doors, mpsc::Receiver<Question>), NodeError> {
    open_for(config, history, HOURS).await
}

async fn open_for(
    config: &Config,
    history: Reader,
    hours: Hours,
) -> Result<(Doors, mpsc::Receiver<Question>), NodeError> {
    let address = config.admin.address;
    let failed = |source| NodeError::Admin { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let path = config.admin.socket.clone();
    let path = path.unwrap_or_else(|| runfile::socket(Path::new(runfile::DIRECTORY), &config.instance));
    let (socket, own) = Socket::bind(&path).map_err(|source| NodeError::AdminSocket { path, source })?;
    let (ask, questions) = mpsc::channel(QUESTIONS_MAX);
    let router =
        router(Desk { ask, history, turn: Arc::default(), streams: Arc::new(Semaphore::new(hystrix::STREAMS_MAX)) });
    let visitors = router.into_make_service_with_connect_info::<Guest>();
    let door = Door::new(listener, VISITORS_MAX, hours);
    tokio::spawn(axum::serve(door, visitors.clone()).into_future());
    tokio::spawn(axum::serve(Door::new(own, VISITORS_MAX, hours), visitors).into_future());
    Ok((Doors { address, socket }, questions))
}

/// Every path that is answered, with its methods.
fn routes() -> Vec<(&'static str, &'static [&'static str], MethodRouter<Desk>)> {
    let mut routes: Vec<(&'static str, &'static [&'static str], MethodRouter<Desk>)> = vec![
        ("/", &["get"], get(index)),
        ("/metrics", &["get"], get(metrics)),
        ("/ready", &["get"], get(ready)),
        ("/live", &["get"], get("live\n")),
        ("/config", &["get"], get(config)),
        ("/status", &["get"], get(status)),
        ("/openapi.json", &["get"], get(openapi)),
        ("/hystrix.stream", &["get"], get(hystrix::stream)),
    ];
    routes.extend(v1::routes());
    routes.extend(changes::routes());
    routes
}

fn router(desk: Desk) -> Router {
    let router = routes().into_iter().fold(Router::new(), |router, (path, _, methods)| router.route(path, methods));
    router
        .fallback(nothing)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(desk.clone(), rules))
        .with_state(desk)
}

async fn nothing(request: Request) -> Response {
    let path = request.uri().path();
    told(StatusCode::NOT_FOUND, &format!("there is nothing at {path}; /openapi.json tells of what there is"))
}

/// Who asks for a change, as the audit log calls them.
#[derive(Clone, Debug)]
struct Who(String);

/// What the names in a path are; where they cannot be that, it is said as everything is.
struct Named<T>(T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Named<T> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        let read = extract::Path::from_request_parts(parts, state).await;
        let named =
            read.map_err(|refused| told(refused.status(), &format!("{}: {}", parts.uri.path(), refused.body_text())))?;
        Ok(Self(named.0))
    }
}

/// Who has no right to it changes nothing; and one request for each connection: an idle visitor would hold a place.
async fn rules(State(desk): State<Desk>, mut request: Request, next: Next) -> Response {
    let guest = request.extensions().get::<ConnectInfo<Guest>>();
    guest.inspect(|info| info.0.is_heard());
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let mut response = match (reads, request.uri().path().starts_with("/v1/")) {
        (true, _) => next.run(request).await,
        (false, false) => {
            (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, "GET, HEAD")], "only GET and HEAD\n").into_response()
        }
        (false, true) => match desk.who(shown(&request)).await {
            Ok(who) => {
                request.extensions_mut().insert(who);
                next.run(request).await
            }
            Err(refused) => refused,
        },
    };
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// What somebody shows who wants to change something.
fn shown(request: &Request<Body>) -> (Peer, HeaderMap) {
    let peer = request.extensions().get::<ConnectInfo<Guest>>().map_or(Peer::Tcp, |info| info.0.peer);
    (peer, request.headers().clone())
}

fn gone() -> Response {
    told(StatusCode::SERVICE_UNAVAILABLE, "the agent is ending")
}

/// What somebody is told who may not change anything: 401 and how to show who it is, where that would help (RFC 6750 section 3).
fn refused(forbidden: &Forbidden) -> Response {
    let challenge = match forbidden {
        Forbidden::NotShown => r#"Bearer realm="sockway""#,
        Forbidden::Unknown => r#"Bearer realm="sockway", error="invalid_token""#,
        Forbidden::NoTokens | Forbidden::File(_) => return told(StatusCode::FORBIDDEN, &forbidden.to_string()),
    };
    let mut response = told(StatusCode::UNAUTHORIZED, &forbidden.to_string());
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    response
}

fn told(status: StatusCode, error: &str) -> Response {
    (status, axum::Json(json!({ "error": error }))).into_response()
}

/// How a service that is not there is spoken of.
pub fn no_service(name: &str) -> String {
    format!("there is no service {name}")
}

/// How an endpoint that is not there is spoken of.
pub fn no_endpoint(service: &str, address: &str) -> String {
    format!("service {service} has no endpoint {address}")
}

async fn index() -> &'static str {
    "/metrics       for Prometheus\n\
     /ready         200 while the agent serves, 503 with the reason while it does not\n\
     /live          200 while the main thread turns\n\
     /config        the configuration in effect, defaults included (JSON)\n\
     /status        services, endpoints, connections (JSON)\n\
     /hystrix.stream  breakers, for Hystrix's dashboard and turbine (?delay= in milliseconds)\n\
     /openapi.json  all of it, and /v1, which also changes things: by the Unix socket, or with a token\n"
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], include_str!("../../deploy/openapi.json")).into_response()
}

async fn metrics(State(desk): State<Desk>) -> Response {
    let tell = |(observed, _): Answer| {
        ([(header::CONTENT_TYPE, prometheus::CONTENT_TYPE)], prometheus::render(&observed)).into_response()
    };
    desk.answer(true, tell).await
}

async fn ready(State(desk): State<Desk>) -> Response {
    let tell = |(observed, _): Answer| match observed.not_ready {
        None => "ready\n".into_response(),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")).into_response(),
    };
    desk.answer(false, tell).await
}

async fn config(State(desk): State<Desk>) -> Response {
    desk.answer(false, |(observed, config)| axum::Json(hide(observed.config_json(&config))).into_response()).await
}

async fn status(State(desk): State<Desk>) -> Response {
    desk.answer(true, |(observed, config)| axum::Json(observed.to_json(&config)).into_response()).await
}

impl Desk {
    /// Who asks, if they may change something; otherwise the answer.
    async fn who(&self, (peer, headers): (Peer, HeaderMap)) -> Result<Who, Response> {
        let (_, config) = self.see(false).await.ok_or_else(gone)?;
        let found = tokio::task::spawn_blocking(move || rights::who(peer, &headers, &config.admin)).await;
        let found = found.map_err(|_| gone())?;
        found.map(Who).map_err(|forbidden| refused(&forbidden))
    }

    /// Asks the node how things are; `None`: it is ending.
    async fn see(&self, counts: bool) -> Option<Answer> {
        let (reply, answer) = oneshot::channel();
        self.ask.send(Question::See(See { counts, reply })).await.ok()?;
        answer.await.ok()
    }

    /// Asks the node, and turns its answer into a response on a thread that may take its time.
    async fn answer(&self, counts: bool, tell: impl FnOnce(Answer) -> Response + Send + 'static) -> Response {
        let Some(answer) = self.see(counts).await else { return gone() };
        tokio::task::spawn_blocking(move || tell(answer)).await.unwrap_or_else(|_| gone())
    }
}

#[cfg(test)]
mod tests;
