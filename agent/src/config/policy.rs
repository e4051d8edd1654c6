//! How a service's connections are spread over its endpoints, and how many there may be.

use std::time::Duration;

use super::tuning::Tuning;

/// Slots of a Maglev table unless said otherwise: the paper's smaller one, which fits a hundred endpoints within one percent of their shares.
pub const MAGLEV_SLOTS: u32 = 65_537;
/// Most slots of a Maglev table: Envoy's bound.
pub const MAGLEV_SLOTS_MAX: u32 = 5_000_011;

/// Everything that the kernel half does by itself for a service; balancing the agent does likewise.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// How an endpoint is chosen.
    pub balance: Balance,
    /// Who dials, as affinity, hashes and limits know it.
    pub source: Source,
    /// How long a source stays with its endpoint after its last connect; `None`: each connect is balanced.
    pub affinity_timeout: Option<Duration>,
    /// Slots of the table of [`Balance::Maglev`]: a prime.
    pub maglev_table_size: u32,
    /// What the service and its sources may take; `None`: as much as they like.
    pub limits: Option<Limits>,
    /// When the kernel half leaves an endpoint out by itself; `None`: never.
    pub eject: Option<Eject>,
    /// Whether endpoints of the agent's own zone come before others of the same priority.
    pub prefer_zone: bool,
    /// How an endpoint that has come, or come back, gets its share; `None`: all of it at once.
    pub slow_start: Option<SlowStart>,
    /// A level with fewer endpoints up than this, in percent, is used as if all were, once no level can make good for it. 0: only when
    /// none is up anywhere.
    pub panic_threshold_percent: u32,
    /// What only the agent balances by.
    pub tuning: Tuning,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            balance: Balance::RoundRobin,
            source: Source::default(),
            affinity_timeout: None,
            maglev_table_size: MAGLEV_SLOTS,
            limits: None,
            eject: None,
            prefer_zone: false,
            slow_start: None,
            panic_threshold_percent: 0,
            tuning: Tuning::default(),
        }
    }
}

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// In turn; weights are honoured exactly over one cycle.
    RoundRobin,
    /// At random, all alike.
    Random,
    /// At random, each endpoint with its share of the weight.
    WeightedRandom,
    /// The one with the fewest open connections for its weight.
    LeastConnections,
    /// By a hash; when endpoints change, most keys move.
    SourceHash,
    /// By a hash; when endpoints change, few keys move.
    Maglev,
    /// The better of a few drawn at random, by requests in flight. By the agent alone, as those that follow.
    LeastRequest,
    /// The better of a few drawn at random, by how fast it answers and how many wait for it.
    PeakEwma,
    /// By a hash, on a ring; when endpoints change, only the keys move that must.
    RingHash,
}

impl Balance {
    /// Whether only the agent can: what it goes by is not known in `connect()`.
    pub fn is_agents(self) -> bool {
        matches!(self, Self::LeastRequest | Self::PeakEwma | Self::RingHash)
    }

    /// Whether an endpoint is found by a hash.
    pub fn hashes(self) -> bool {
        matches!(self, Self::SourceHash | Self::Maglev | Self::RingHash)
    }
}

/// Who dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Source {
    /// The program's network namespace: a pod.
    #[default]
    Namespace,
    /// The program's cgroup.
    Cgroup,
    /// The program's user.
    Uid,
}

/// What a service may take. Held by the kernel half, also while the agent is dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// All its connections together.
    pub service: Take,
    /// The connections of each source.
    pub per_source: Take,
    /// What becomes of a `connect()` over a limit.
    pub over: Over,
}

/// How much may be taken of one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Take {
    /// Connections at once; `None`: any number.
    pub connections: Option<u32>,
    /// Connections per second; `None`: any number.
    pub rate: Option<Rate>,
}

/// A sustained rate, and how many may come at once after a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Connections per second. At least 1.
    pub per_second: u32,
    /// Connections at once. At least 1.
    pub burst: u32,
}

/// What becomes of a `connect()` over a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Over {
    /// It fails at once with ECONNREFUSED.
    #[default]
    Refuse,
    /// It fails at once with EPERM.
    Forbid,
    /// It goes on untouched.
    Pass,
}

/// When the kernel half leaves an endpoint out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Eject {
    /// After so many failed handshakes in a row. At least 1.
    pub failures: u32,
    /// For so long.
    pub period: Duration,
}

/// How the weight of an endpoint grows from when it comes, or comes back: `weight * max(min_weight, (age / window)^(1 / aggression))`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowStart {
    /// After this it has all of its weight. At least a second.
    pub window: Duration,
    /// What it has at least, in percent of its weight: 1 to 100.
    pub min_weight_percent: u32,
    /// Envoy's aggression in percent; at 100 the weight grows evenly, above it faster at first. At least 1.
    pub aggression_percent: u32,
}

/// Whether a table may have so many slots: only a prime makes each permutation visit all of them.
pub fn is_prime(number: u32) -> bool {
    number >= 2
        && (2..).take_while(|divisor| divisor * divisor <= number).all(|divisor| !number.is_multiple_of(divisor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn primes_are_told_from_others() {
        assert!([2, 3, 251, 65_537, 655_373, MAGLEV_SLOTS_MAX].into_iter().all(is_prime));
        assert!(![0, 1, 4, 65_536, 65_539 * 3].into_iter().any(is_prime));
    }
}
