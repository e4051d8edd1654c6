//! Original destination to service. Rules on the request's head will come in here.

pub mod request;

use std::{net::SocketAddr, sync::Arc};

use sockway_common::flow::TCP;

pub use self::request::Request;
use crate::cluster::{Service, Snapshot};

/// The service that a TCP connection is for: the one the kernel half named, or else whichever has the address that was dialled. `None`
/// when a reload took it away in between.
pub fn route(snapshot: &Snapshot, service: u32, dialled: SocketAddr) -> Option<&Arc<Service>> {
    snapshot.by_id(service).or_else(|| snapshot.by_address(dialled, TCP))
}
