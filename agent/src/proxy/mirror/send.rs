//! A copy's way: to an endpoint, and its answer read and dropped, so that the connection can carry the next.

use std::{rc::Rc, time::Duration};

use tokio::time::timeout;

use super::Copy;
use crate::{
    decode::http2::Asked,
    proxy::{
        reach::{Tried, Turn},
        whole::{Whole, ask},
    },
    route,
};

/// How long a copy may take where the service that gets it does not say how long a response may: Envoy's route timeout.
const PATIENCE: Duration = Duration::from_secs(15);
/// How much of an answer is read; a connection of HTTP/1 with more ends.
const ANSWER_BYTES_MAX: usize = 1 << 20;

impl Copy {
    /// Sends it; whether it was answered.
    pub(super) async fn send(self) -> bool {
        let Self { hop, ordered, parts, body, asker, spoken } = self;
        let cluster = ordered.cluster;
        let patience = cluster.service.config.http.response_timeout.unwrap_or(PATIENCE);
        let tried = Tried::for_request(&hop, &cluster, asker, || route::Request::of_parts(&parts, false, asker.source));
        let tried = tried.in_turn(Turn { nth: 0, patience: Some(patience) });
        let asked = Asked::of(&parts);
        let Ok(whole) = Whole::new((parts, asked), (body.into(), http::HeaderMap::new()), (&cluster, spoken), None)
        else {
            return false;
        };
        let Ok(answer) = ask(Rc::clone(&hop), cluster, tried, Rc::new(whole)).await else { return false };
        // Whoever takes too long for the rest has answered all the same.
        let _ = timeout(patience, answer.discard_to(ANSWER_BYTES_MAX)).await;
        true
    }
}
