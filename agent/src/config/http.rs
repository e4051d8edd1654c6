//! What HTTP messages may take: how long their heads are, and how long they may take.

use std::time::Duration;

/// Longest head that can be allowed, in bytes: more is no head but a body in the wrong place.
pub const HEAD_BYTES_LIMIT: usize = 1 << 20;

/// What the messages of a service may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http {
    /// Longest head of a request or a response, start line included.
    pub head_bytes_max: usize,
    /// Most fields in one.
    pub head_fields_max: usize,
    /// From the first byte of a request's head to its last.
    pub head_timeout: Duration,
    /// From the last byte of a request to the first of its response; `None`: for ever.
    pub response_timeout: Option<Duration>,
    /// How long nothing may move within a message; `None`: for ever.
    pub stall_timeout: Option<Duration>,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            head_bytes_max: 64 * 1024,
            head_fields_max: 200,
            // A head is a packet or two: whoever takes longer has no intention to end (slow loris).
            head_timeout: Duration::from_secs(10),
            // As Envoy's idle timeout of a stream.
            response_timeout: Some(Duration::from_secs(300)),
            stall_timeout: Some(Duration::from_secs(300)),
        }
    }
}
