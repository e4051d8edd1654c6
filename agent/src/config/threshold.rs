//! How much of a service there may be at once, in the words of Envoy's circuit breakers.

/// Bounds on what a service has under way; what is not said has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Thresholds {
    /// Connections to its endpoints, unused ones included.
    pub connections: Option<u32>,
    /// Requests that wait for a connection.
    pub pending: Option<u32>,
    /// Requests.
    pub requests: Option<u32>,
    /// Requests that are being tried again.
    pub retries: Option<u32>,
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threshold {
    /// Of connections.
    Connections,
    /// Of requests that wait for one.
    Pending,
    /// Of requests.
    Requests,
    /// Of requests that are being tried again.
    Retries,
}

impl Threshold {
    /// Each once.
    pub const ALL: [Self; 4] = [Self::Connections, Self::Pending, Self::Requests, Self::Retries];

    /// The word for it in files and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Connections => "max_connections",
            Self::Pending => "max_pending_requests",
            Self::Requests => "max_requests",
            Self::Retries => "max_retries",
        }
    }
}

impl Thresholds {
    /// How many there may be, if that is bounded.
    pub fn of(&self, threshold: Threshold) -> Option<u32> {
        match threshold {
            Threshold::Connections => self.connections,
            Threshold::Pending => self.pending,
            Threshold::Requests => self.requests,
            Threshold::Retries => self.retries,
        }
    }
}
