//! The admin endpoint: what the agent says of itself over HTTP. Answers; changes nothing.
//!
//! Requests are answered beside the node's own work on the main thread: what is observed is asked of the node, which answers in between,
//! and turned into text on another thread. Visitors are few and short-lived by bounds, so that none of them, slow or stuck, is in the way.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderValue, Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::{Sleep, sleep},
};

use crate::{
    config::Config,
    record::{observed::Observed, prometheus},
};

/// Connections at once: a few scrapers and a few people.
const VISITORS_MAX: usize = 32;
/// How long one connection may last: no scraper waits longer (Prometheus gives up after 10 s unless told otherwise).
const VISIT_MAX: Duration = Duration::from_secs(30);
/// Questions waiting for the node: each visitor has one at a time.
const QUESTIONS_MAX: usize = VISITORS_MAX;

/// What the node answers a question with.
pub type Answer = (Observed, Arc<Config>);

/// A question of the admin endpoint.
#[derive(Debug)]
pub struct Question {
    /// Whether counters and statistics are asked for, which take time with many endpoints; otherwise only whether the agent is ready.
    pub counts: bool,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Answer>,
}

/// Binds the admin address and answers there from now on. Where it is bound, and the questions that the node is to answer.
///
/// # Errors
///
/// When the address cannot be bound.
pub async fn open(address: SocketAddr) -> io::Result<(SocketAddr, mpsc::Receiver<Question>)> {
    open_for(address, VISIT_MAX).await
}

async fn open_for(address: SocketAddr, visit_max: Duration) -> io::Result<(SocketAddr, mpsc::Receiver<Question>)> {
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    let (ask, questions) = mpsc::channel(QUESTIONS_MAX);
    let door = Door { listener, visit_max, permits: Arc::new(Semaphore::new(VISITORS_MAX)) };
    tokio::spawn(axum::serve(door, router(ask)).into_future());
    Ok((bound, questions))
}

fn router(ask: mpsc::Sender<Question>) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/metrics", get(metrics))
        .route("/ready", get(ready))
        .route("/live", get("live\n"))
        .route("/config", get(config))
        .route("/status", get(status))
        .layer(middleware::from_fn(rules))
        .with_state(ask)
}

/// Only questions, and one for each connection: an idle visitor would hold a place.
async fn rules(request: Request, next: Next) -> Response {
    let asks = matches!(*request.method(), Method::GET | Method::HEAD);
    let mut response = if asks {
        next.run(request).await
    } else {
        (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, "GET, HEAD")], "only GET and HEAD\n").into_response()
    };
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

async fn index() -> &'static str {
    "/metrics  for Prometheus\n\
     /ready    200 while the agent serves, 503 with the reason while it does not\n\
     /live     200 while the main thread turns\n\
     /config   the configuration in effect, defaults included (JSON)\n\
     /status   services, endpoints, connections (JSON)\n"
}

async fn metrics(State(ask): State<mpsc::Sender<Question>>) -> Response {
    answer(ask, true, |(observed, _)| {
        ([(header::CONTENT_TYPE, prometheus::CONTENT_TYPE)], prometheus::render(&observed)).into_response()
    })
    .await
}

async fn ready(State(ask): State<mpsc::Sender<Question>>) -> Response {
    answer(ask, false, |(observed, _)| match observed.not_ready {
        None => "ready\n".into_response(),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")).into_response(),
    })
    .await
}

async fn config(State(ask): State<mpsc::Sender<Question>>) -> Response {
    answer(ask, false, |(observed, config)| axum::Json(observed.config_json(&config)).into_response()).await
}

async fn status(State(ask): State<mpsc::Sender<Question>>) -> Response {
    answer(ask, true, |(observed, config)| axum::Json(observed.to_json(&config)).into_response()).await
}

/// Asks the node, and turns its answer into a response on a thread that may take its time.
async fn answer(ask: mpsc::Sender<Question>, counts: bool, tell: fn(Answer) -> Response) -> Response {
    let (reply, answer) = oneshot::channel();
    let gone = || (StatusCode::SERVICE_UNAVAILABLE, "the agent is ending\n").into_response();
    if ask.send(Question { counts, reply }).await.is_err() {
        return gone();
    }
    let Ok(answer) = answer.await else { return gone() };
    tokio::task::spawn_blocking(move || tell(answer)).await.unwrap_or_else(|_| gone())
}

/// Lets visitors in, no more than there are permits.
struct Door {
    listener: TcpListener,
    visit_max: Duration,
    permits: Arc<Semaphore>,
}

impl axum::serve::Listener for Door {
    type Io = Visitor;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Visitor, SocketAddr) {
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok();
        let (stream, address) = axum::serve::Listener::accept(&mut self.listener).await;
        (Visitor { stream, leave: Box::pin(sleep(self.visit_max)), _permit: permit }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that ends when its time is up.
struct Visitor {
    stream: TcpStream,
    leave: Pin<Box<Sleep>>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Visitor {
    fn in_time(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.leave.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Visitor {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.in_time(context)?;
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Visitor {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.in_time(context)?;
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::config::file;

    async fn serve(not_ready: Option<&str>) -> SocketAddr {
        serve_for(not_ready, VISIT_MAX).await
    }

    async fn serve_for(not_ready: Option<&str>, visit_max: Duration) -> SocketAddr {
        let (address, mut questions) =
            open_for(SocketAddr::from(([127, 0, 0, 1], 0)), visit_max).await.expect("bindable");
        let observed = Observed { not_ready: not_ready.map(str::to_owned), ..Observed::default() };
        let config = Arc::new(file::parse("", "F").expect("a good file"));
        tokio::spawn(async move {
            while let Some(question) = questions.recv().await {
                let _ = question.reply.send((observed.clone(), Arc::clone(&config)));
            }
        });
        address
    }

    async fn ask(address: SocketAddr, head: &str) -> String {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        stream.write_all(format!("{head} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).await.expect("writable");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("it answers and closes");
        answer
    }

    #[tokio::test]
    async fn each_path_answers() {
        let address = serve(None).await;
        for (path, starts, holds) in [
            ("/", "HTTP/1.1 200", "/metrics"),
            ("/metrics", "HTTP/1.1 200", "\nsockway_ready 1\n"),
            ("/ready", "HTTP/1.1 200", "ready"),
            ("/live", "HTTP/1.1 200", "live"),
            ("/config", "HTTP/1.1 200", "\"drain_timeout_ms\":10000"),
            ("/status", "HTTP/1.1 200", "\"ready\":true"),
            ("/nothing", "HTTP/1.1 404", ""),
        ] {
            let answer = ask(address, &format!("GET {path}")).await;
            assert!(answer.starts_with(starts) && answer.contains(holds), "{path}: {answer}");
        }
    }

    #[tokio::test]
    async fn an_agent_that_is_not_ready_says_why() {
        let answer = ask(serve(Some("draining")).await, "GET /ready").await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("not ready: draining\n"), "{answer}");
    }

    #[tokio::test]
    async fn nothing_but_get_and_head_is_answered() {
        let address = serve(None).await;
        for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
            let answer = ask(address, &format!("{method} /ready")).await;
            assert!(answer.starts_with("HTTP/1.1 405"), "{method}: {answer}");
        }
        let answer = ask(address, "HEAD /ready").await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n"), "{answer}");
    }

    #[tokio::test]
    async fn visitors_that_say_nothing_give_their_places_back() {
        let address = serve_for(None, Duration::from_millis(300)).await;
        let mut silent = Vec::new();
        for _ in 0..VISITORS_MAX {
            silent.push(TcpStream::connect(address).await.expect("it listens"));
        }
        let answer = ask(address, "GET /live").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}
