//! What becomes of a request before anybody is asked: its route, and whether it may pass.

use std::time::{Duration, Instant};

use http::request::Parts;

use crate::{
    proxy::{
        Cluster,
        admit::Admitted,
        http::Reply,
        http2::Connection,
        routed::{Course, Onward},
    },
    route::Request,
};

/// What becomes of a request; it is changed as its route says.
pub(super) fn course(connection: &Connection, parts: &mut Parts) -> Course {
    let cluster = connection.cluster();
    if cluster.routes.is_none() {
        return Course::Straight;
    }
    let is_secure = cluster.service.config.tls.terminate.is_some();
    let request = Request::of_parts(parts, is_secure, connection.source).by(connection.dialler.as_deref());
    let course = connection.hop.course(&cluster, &request);
    match course {
        Course::On(Onward { change: Some(ref change), .. }) => match change.of_parts(parts) {
            Ok(()) => course,
            Err(unfit) => Course::Answered(Reply::malformed(unfit)),
        },
        course => course,
    }
}

/// What the service's limits say; nobody waits longer than its time.
pub(super) fn admitted(
    connection: &Connection,
    cluster: &Cluster,
    parts: &Parts,
    now: Instant,
    timeout: Option<Duration>,
) -> Result<(Duration, Admitted), Reply> {
    if cluster.gate.is_open() {
        return Ok((Duration::ZERO, Admitted::default()));
    }
    let request = Request::of_parts(parts, connection.is_secure, connection.source);
    cluster.gate.admit(&request, now, timeout, || connection.hop.chance())
}
