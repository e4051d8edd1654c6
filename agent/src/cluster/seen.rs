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

impl Seen {
    /// The status of HTTP that says how it went, if it answered: of a gRPC call, the one that stands for its own.
    pub fn status(self) -> Option<u16> {
        match self {
            Self::Answered { status: 200, grpc_status: Some(code) } => Some(of_grpc(code)),
            Self::Answered { status, .. } => Some(status),
            _ => None,
        }
    }
}

/// The status of HTTP that says what this one of gRPC does (Envoy's `Grpc::Utility::grpcToHttpStatus`).
fn of_grpc(code: u8) -> u16 {
    match code {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}
