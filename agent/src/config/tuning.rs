//! What the ways to balance go by that only the agent knows.

use std::time::Duration;

/// Their settings. Each holds only where the way that it is for was chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Tuning {
    /// Of [`super::Balance::LeastRequest`].
    pub least_request: LeastRequest,
    /// Of [`super::Balance::PeakEwma`].
    pub peak_ewma: PeakEwma,
    /// Of [`super::Balance::RingHash`].
    pub ring_hash: RingHash,
    /// What of a request is hashed, in order; none: who dialled.
    pub hash_on: Vec<HashOn>,
    /// With a hash, an endpoint takes no more than so much of the mean load, in percent; `None`: whatever falls on it. At least 100.
    pub hash_balance_factor: Option<u32>,
    /// What a request counts in the load of its endpoint; `None`: one, as every other.
    pub cost: Option<Cost>,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            least_request: LeastRequest { of: Among::Some(2), bias_percent: 100 },
            peak_ewma: PeakEwma {
                of: Among::Some(2),
                decay: Duration::from_secs(10),
                start: Duration::from_millis(30),
                penalty: Duration::from_secs(5),
            },
            ring_hash: RingHash { size_min: 1024, size_max: KETAMA_SIZE_MAX, hash: PointHash::Ketama },
            hash_on: Vec::new(),
            hash_balance_factor: None,
            cost: None,
        }
    }
}

impl Tuning {
    /// Whether a request may be given a cookie.
    pub fn gives_cookies(&self) -> bool {
        self.hash_on.iter().any(|rule| matches!(rule.key, HashKey::Given(_)))
    }

    /// Whether somebody wants to know where connections come from.
    pub fn asks_address(&self) -> bool {
        self.hash_on.iter().any(|rule| rule.key == HashKey::Address)
    }
}

/// Most points of a ring of [`PointHash::Ketama`] unless said otherwise: 4 MiB, which a thousand endpoints of the weight 1 stay below, and
/// ten of the weight 100. A heavier service's ring has a half of its points, or a quarter, and so on.
pub const KETAMA_SIZE_MAX: u32 = 262_144;
/// Most points of a ring: Envoy's bound.
pub const RING_SIZE_MAX: u32 = 8_388_608;

/// Among how many endpoints the best is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Among {
    /// So many, drawn at random. At least 2.
    Some(u32),
    /// All of them.
    All,
}

/// How an endpoint with few requests is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeastRequest {
    /// Holds where weights are equal.
    pub of: Among,
    /// Holds where they are not: what the requests in flight count against the weight, in percent; Envoy's `active_request_bias`.
    pub bias_percent: u32,
}

/// How the endpoint that answers fastest is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeakEwma {
    /// How many are compared.
    pub of: Among,
    /// After this, an estimate counts 1/e of what is new. More than nothing.
    pub decay: Duration,
    /// What is expected of an endpoint that nothing is known of.
    pub start: Duration,
    /// What a failure counts as, at least: who fails fast is not fast.
    pub penalty: Duration,
}

/// The ring of [`super::Balance::RingHash`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingHash {
    /// Points that the ring has at least. At least 1.
    pub size_min: u32,
    /// Points that it has at most. Not less than `size_min`.
    pub size_max: u32,
    /// What finds the points' places, and the keys'.
    pub hash: PointHash,
}

/// What finds places on a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PointHash {
    /// As Envoy's ring.
    Xxh64,
    /// As Envoy's ring that is compatible with `std::hash` of GNU's library; keys as with [`PointHash::Xxh64`].
    Murmur2,
    /// As the ring of nginx's `hash … consistent`: 160 points for each unit of weight, whatever the sizes say.
    Ketama,
}

/// What of a request is hashed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashOn {
    /// What it is.
    pub key: HashKey,
    /// Where it is there, nothing behind it counts.
    pub terminal: bool,
}

/// What a request is known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashKey {
    /// Something that stands in it, or who dialled.
    Part(Part),
    /// A cookie that is given to who has none.
    Given(GivenCookie),
    /// The address that its connection comes from; of who has bound none, who dialled.
    Address,
}

/// A cookie that is given with the answer to a request that has none: Envoy's `hash_policy.cookie` with a `ttl`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenCookie {
    /// Its name.
    pub name: String,
    /// How long the client keeps it, in whole seconds; `None`: for a session.
    pub ttl: Option<Duration>,
    /// The paths that it comes back with begin so.
    pub path: String,
}

/// A part of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// A field of the head, by its name in lower case.
    Header(String),
    /// A cookie, by its name.
    Cookie(String),
    /// A parameter of the query.
    Query(String),
    /// Who dialled, as `source` says.
    Source,
}

/// What a request counts in the load of its endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cost {
    /// The field of the head that says so, by its name in lower case.
    pub header: Option<String>,
    /// Where nothing says so, or nothing of use. At least 1.
    pub default: u32,
    /// The most that a request may say. Not less than `default`.
    pub max: u32,
}
