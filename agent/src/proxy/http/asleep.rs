//! A connection on which nothing is asked for a while. There may be tens of thousands, so it keeps only what outlives a request.

use std::{net::SocketAddr, rc::Rc};

use super::Connection;
use crate::{
    cluster::Dialler,
    proxy::{
        Cluster, Hop,
        asker::Asker,
        timing::{Alarm, Clock},
    },
    ring::{Buf, Stream},
    route::Fields,
};

/// As [`Connection`], without what a request needs.
pub struct Asleep<'h> {
    pub hop: &'h Rc<Hop>,
    pub stream: Stream,
    pub cluster: Rc<Cluster>,
    pub dialled: SocketAddr,
    pub asker: Asker,
    pub dialler: Option<Box<Dialler>>,
    pub was_asked: bool,
}

impl<'h> Asleep<'h> {
    /// Ready for requests. `pending` are bytes of the first that have come already.
    pub fn wakes(self, pending: Option<Buf>) -> Box<Connection<'h>> {
        let Self { hop, stream, cluster, dialled, asker, dialler, was_asked } = self;
        Box::new(Connection {
            hop,
            stream,
            cluster,
            dialled,
            asker,
            dialler,
            pending,
            was_asked,
            response_change: Fields::default(),
            tap: None,
            gate: None,
            strategy: None,
            one_way: None,
            circuit: None,
            clock: Clock::default(),
            patience: Alarm::default(),
            filtered: None,
            rated: None,
            guard: None,
            leave: None,
        })
    }
}

impl<'h> Connection<'h> {
    /// What of it outlives its requests: to be called between two.
    pub(super) fn sleeps(self) -> Asleep<'h> {
        let Self { hop, stream, cluster, dialled, asker, dialler, was_asked, .. } = self;
        Asleep { hop, stream, cluster, dialled, asker, dialler, was_asked }
    }
}
