//! What becomes of a request before anybody is asked: its route.

use std::{rc::Rc, sync::Arc};

use http::request::Parts;

use crate::{
    cluster::OneWayState,
    config::Strategy,
    proxy::{
        Cluster,
        admit::Gate,
        circuit::Circuit,
        filtered::{Chain, Ended, Filtered},
        http::Reply,
        http2::Connection,
        mirror::Ordered,
        routed::{Course, Onward},
        timing::Ruled,
    },
    route::{Fields, Request},
};

/// What becomes of a request.
pub(super) struct Way {
    /// Who is to answer it.
    pub cluster: Rc<Cluster>,
    /// What is changed of its response.
    pub change: Fields,
    /// How long it may take, if its route says so.
    pub timing: Option<Ruled>,
    /// What its route limits.
    pub gate: Option<Rc<Gate>>,
    /// What its route says of failures.
    pub strategy: Option<Arc<Strategy>>,
    /// Who counts it, if nobody waits for its answer.
    pub one_way: Option<Arc<OneWayState>>,
    /// Its breaker.
    pub circuit: Option<Rc<Circuit>>,
    /// Who gets a copy.
    pub ordered: Option<Ordered>,
    /// What filters have said of it.
    pub filtered: Option<Filtered>,
    /// It goes no further.
    pub end: Option<Ended>,
}

/// What its route makes of a request; it is changed as that says. And the filters that it is to pass.
pub(super) fn way(connection: &Connection, parts: &mut Parts) -> (Way, Option<Rc<Chain>>) {
    let home = connection.cluster();
    let chain = home.chain.clone();
    let course = course(connection, &home, parts);
    let (change, timing, gate, strategy, one_way, circuit, ordered) = Default::default();
    let straight =
        Way { cluster: home, change, timing, gate, strategy, one_way, circuit, ordered, filtered: None, end: None };
    let way = match course {
        Course::Straight => straight,
        Course::On(onward) => {
            let Onward { cluster, response: change, timing, gate, strategy, circuit, mirror: ordered, one_way, .. } =
                onward;
            Way { cluster, change, timing, gate, strategy, one_way, circuit, ordered, ..straight }
        }
        Course::Answered(reply) => Way { end: Some(Ended::Reply(reply)), ..straight },
    };
    (way, chain)
}

fn course(connection: &Connection, home: &Rc<Cluster>, parts: &mut Parts) -> Course {
    if home.routes.is_none() {
        return Course::Straight;
    }
    let is_secure = home.service.config.tls.terminate.is_some();
    let request = Request::of_parts(parts, is_secure, connection.asker.source).by(connection.dialler.as_deref());
    let course = connection.hop.course(home, &request);
    match course {
        Course::On(Onward { change: Some(ref change), .. }) => match change.of_parts(parts) {
            Ok(()) => course,
            Err(unfit) => Course::Answered(Reply::malformed(unfit)),
        },
        course => course,
    }
}
