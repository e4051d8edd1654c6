//! How long a request may take, and in which fields callers say how long they wait.

use std::time::Duration;

/// What a service, or a route, says of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// From a request's first byte to its answer's last, retries and waiting included; `None`: as long as the caller waits. Of one that
    /// follows how long requests take, the most.
    pub timeout: Option<Duration>,
    /// How it follows that, if it does.
    pub auto: Option<Auto>,
    /// What becomes of what the caller says; `None`: only gRPC's own field is minded, of gRPC calls.
    pub deadline: Option<Deadline>,
}

impl Timing {
    /// What a route says before what its service does.
    pub fn or(self, service: Option<Self>) -> Self {
        let service = service.unwrap_or_default();
        let of_time = if self.timeout.is_some() { self } else { service };
        Self { timeout: of_time.timeout, auto: of_time.auto, deadline: self.deadline.or(service.deadline) }
    }
}

/// How a timeout follows how long requests take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Auto {
    /// So many times what 99 of a hundred take at most; at least 1.
    pub factor: u32,
    /// No less than this.
    pub min: Duration,
}

/// What becomes of what the caller says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    /// In which fields it may say it, beside gRPC's own.
    pub accept: Carriers,
    /// Whether the endpoint is told what is left.
    pub forward: bool,
    /// Whether the caller is not believed: what it says is taken away, and time begins anew.
    pub reset: bool,
}

impl Default for Deadline {
    fn default() -> Self {
        Self { accept: Carriers::all(), forward: true, reset: false }
    }
}

/// A field that says how long a caller waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// gRPC's: up to 8 digits and a unit.
    Grpc,
    /// Envoy's, of who is asked by it: milliseconds.
    EnvoyExpected,
    /// Envoy's, of who asks it: milliseconds.
    EnvoyUpstream,
    /// MOSN's: milliseconds.
    Mosn,
    /// go-micro's: nanoseconds.
    GoMicro,
}

impl Carrier {
    /// Each once.
    pub const ALL: [Self; 5] = [Self::Grpc, Self::EnvoyExpected, Self::EnvoyUpstream, Self::Mosn, Self::GoMicro];

    /// The fields' names, in lower case, by [`Self::ALL`].
    pub const NAMES: [&str; 5] = [
        "grpc-timeout",
        "x-envoy-expected-rq-timeout-ms",
        "x-envoy-upstream-rq-timeout-ms",
        "x-mosn-global-timeout",
        "timeout",
    ];

    /// The field's name, in lower case.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

/// Some of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carriers(u8);

impl Carriers {
    /// All of them.
    pub fn all() -> Self {
        Carrier::ALL.into_iter().fold(Self::default(), Self::and)
    }

    /// And this one.
    #[must_use]
    pub fn and(self, carrier: Carrier) -> Self {
        Self(self.0 | 1 << carrier as u8)
    }

    /// Whether this is among them.
    pub fn has(self, carrier: Carrier) -> bool {
        self.0 & 1 << carrier as u8 != 0
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Each of them.
    pub fn each(self) -> impl Iterator<Item = Carrier> + Clone {
        Carrier::ALL.into_iter().filter(move |carrier| self.has(*carrier))
    }
}
