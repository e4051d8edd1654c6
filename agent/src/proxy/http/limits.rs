//! What the messages of a service may take.

use std::time::Duration;

use crate::{decode::http2::room::Room, proxy::Cluster};

/// What a message may take.
pub struct Limits {
    pub head_bytes: usize,
    pub head_fields: usize,
    pub response: Option<Duration>,
    pub stall: Option<Duration>,
    /// What of it is for heads of HTTP/2.
    pub room: Room,
}

impl Limits {
    /// Of a service.
    pub fn of(cluster: &Cluster) -> Self {
        let http = &cluster.service.config.http;
        Self {
            head_bytes: http.head_bytes_max,
            head_fields: http.head_fields_max,
            response: http.response_timeout,
            stall: http.stall_timeout,
            room: Room::of(http),
        }
    }
}
