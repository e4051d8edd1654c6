//! Fetches the keys that tokens are checked with: on the main thread, never on the path of a request. What there is of them is used until there is
//! something better.
//!
//! They are fetched when a filter wants them first, when they have been used for as long as the configuration says or as their own answer says, if
//! that is less, and when a token names a key that is not among them, but not more often than every few seconds. One request a connection: they
//! are asked for seldom.

use std::{
    io,
    sync::{Arc, Weak, atomic::Ordering::Relaxed},
    time::{Duration, SystemTime},
};

use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
    time,
};
use tokio_rustls::TlsConnector;

use crate::{
    cluster::{Snapshot, jwks::Fetched},
    config::{
        file,
        filter::identity::{JwtKey, Remote},
        tls,
    },
};

/// Longest key set: hundreds of keys.
const BYTES_MAX: usize = 1 << 20;
/// Between two fetches, whatever is asked for: who makes up names of keys makes no load.
const APART: Duration = Duration::from_secs(5);
/// After a first failure; twice as long after each more.
const AGAIN: Duration = Duration::from_secs(1);
/// Longest of these.
const AGAIN_MAX: Duration = Duration::from_secs(30);

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("its host has no address that answers: {0}")]
    Unreached(io::Error),
    #[error("no TLS connection comes about: {0}")]
    Tls(io::Error),
    #[error("it does not speak as it should: {0}")]
    Broken(#[from] hyper::Error),
    #[error("the answer is {0}, and only 200 has keys")]
    Status(StatusCode),
    #[error("the answer broke off, or is longer than {BYTES_MAX} bytes")]
    Body,
    #[error("the answer {0}")]
    NoKeys(&'static str),
    #[error("it did not answer in time")]
    Late,
}

/// Fetches what the filters of a snapshot want, and goes on for as long as they do.
pub fn follow(snapshot: &Snapshot) {
    let services = snapshot.services.iter().chain(snapshot.inbound.iter().map(|rule| &rule.service));
    let fetched = services.flat_map(|service| service.filters.iter().filter_map(|filter| filter.fetched.as_ref()));
    for fetched in fetched.filter(|fetched| fetched.begin()) {
        tokio::spawn(keep(Arc::downgrade(fetched)));
    }
}

/// Fetches keys as often as they must be, until nobody wants them.
async fn keep(fetched: Weak<Fetched>) {
    let mut failures = 0;
    loop {
        let (wait, wanted) = {
            let Some(fetched) = fetched.upgrade() else { return };
            let (remote, wanted) = (fetched.remote.clone(), fetched.wanted());
            // Nobody is kept alive by being asked for.
            let weak = Arc::downgrade(&fetched);
            drop(fetched);
            let came = time::timeout(remote.timeout, get(&remote)).await.unwrap_or(Err(Trouble::Late));
            let Some(fetched) = weak.upgrade() else { return };
            (judged(&fetched, came, &mut failures), wanted)
        };
        time::sleep(APART.min(wait)).await;
        if wait > APART {
            tokio::select! {
                () = time::sleep(wait - APART) => {}
                () = wanted.notified() => {}
            }
        }
    }
}

/// What follows from a fetch: how long until the next.
fn judged(fetched: &Fetched, came: Result<(Vec<JwtKey>, Option<Duration>), Trouble>, failures: &mut u32) -> Duration {
    let url = &fetched.remote.url;
    match came {
        Ok((keys, lifetime)) => {
            if *failures > 0 || fetched.keys().is_none() {
                tracing::info!(url, keys = keys.len(), "keys of tokens are fetched");
            }
            *failures = 0;
            fetched.bring(keys, SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
            lifetime.map_or(fetched.remote.refresh, |lifetime| lifetime.clamp(APART, fetched.remote.refresh.max(APART)))
        }
        Err(trouble) => {
            if *failures == 0 {
                let kept = if fetched.keys().is_some() { "the old ones are used" } else { "tokens are refused" };
                tracing::warn!(url, %trouble, "keys of tokens cannot be fetched; {kept}");
            }
            fetched.failed.fetch_add(1, Relaxed);
            *failures = failures.saturating_add(1);
            (AGAIN * 2_u32.saturating_pow(*failures - 1).min(64)).min(AGAIN_MAX)
        }
    }
}

/// The keys, and how long the answer says that they are fresh.
async fn get(remote: &Remote) -> Result<(Vec<JwtKey>, Option<Duration>), Trouble> {
    let stream = connected(remote).await.map_err(Trouble::Unreached)?;
    match &remote.tls {
        None => ask(stream, remote).await,
        Some((_, client)) => {
            let name = tls::name_of(&remote.host).ok_or(Trouble::Unreached(io::ErrorKind::InvalidInput.into()))?;
            let stream = TlsConnector::from(Arc::clone(client)).connect(name, stream).await;
            ask(stream.map_err(Trouble::Tls)?, remote).await
        }
    }
}

async fn connected(remote: &Remote) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in lookup_host((remote.host.as_str(), remote.port)).await? {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn ask<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    remote: &Remote,
) -> Result<(Vec<JwtKey>, Option<Duration>), Trouble> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(&remote.target)
        .header(header::HOST, &remote.authority)
        .header(header::USER_AGENT, "sockway")
        .header(header::ACCEPT, "application/jwk-set+json, application/json")
        .header(header::CONNECTION, "close")
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|error| Trouble::Unreached(io::Error::other(error)))?;
    let asked = async {
        let answer = sender.send_request(request).await?;
        if answer.status() != StatusCode::OK {
            return Err(Trouble::Status(answer.status()));
        }
        let lifetime = lifetime(answer.headers());
        let body = Limited::new(answer.into_body(), BYTES_MAX).collect().await.map_err(|_| Trouble::Body)?;
        let text = String::from_utf8(body.to_bytes().to_vec()).map_err(|_| Trouble::NoKeys("is no text"))?;
        Ok((file::keys_of(&text).map_err(Trouble::NoKeys)?, lifetime))
    };
    let mut asked = std::pin::pin!(asked);
    // Polled together: the connection ends with what is asked on it.
    tokio::select! {
        came = &mut asked => came,
        ended = connection => {
            ended?;
            asked.await
        }
    }
}

/// How long an answer is fresh, if it says so.
fn lifetime(headers: &http::HeaderMap) -> Option<Duration> {
    let values = headers.get_all(header::CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    let mut directives = values.flat_map(|value| value.split(',')).map(str::trim);
    let seconds = directives.find_map(|directive| {
        let (name, value) = directive.split_once('=')?;
        name.eq_ignore_ascii_case("max-age").then(|| value.trim_matches('"').parse().ok())?
    })?;
    Some(Duration::from_secs(seconds))
}
