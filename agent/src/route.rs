//! Original destination to service, and a request's head to one of its routes.

mod caller;
pub mod canary;
pub mod change;
pub mod request;
pub mod table;
mod tree;
mod words;

use std::{net::SocketAddr, sync::Arc};

use sockway_common::flow::TCP;

pub use self::{
    caller::is as is_caller,
    change::{Change, Fields, LineEdits, Taken, Unfit},
    request::Request,
    table::Table,
};
use crate::cluster::{Service, Snapshot};

/// The service that a TCP connection is for: the one the kernel half named, or else whichever has the address that was dialled. `None`
/// when a reload took it away in between.
pub fn route(snapshot: &Snapshot, service: u32, dialled: SocketAddr) -> Option<&Arc<Service>> {
    snapshot.by_id(service).or_else(|| snapshot.by_address(dialled, TCP))
}
