//! What became of an attempt at an endpoint, as those who judge it by that are told.

/// How one request, or one opaque connection, went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It accepted, and what is said on the connection is not understood.
    Connected,
    /// It answered.
    Answered {
        /// With this status of HTTP.
        status: u16,
        /// With this `grpc-status`, if the response has one.
        grpc_status: Option<u8>,
    },
    /// It accepted no connection, or none that can be used.
    NotConnected,
    /// It accepted no connection in time.
    ConnectLate,
    /// It gave no response, none that is one, or not the whole of it.
    NoResponse,
    /// It did not respond, or not go on, in time.
    Late,
}
