//! What becomes of a request whose endpoint fails, or that more than one endpoint is to get: the cluster strategies, by Dubbo's names.

use std::{collections::BTreeMap, ops::RangeInclusive, time::Duration};

use super::retry::Retry;

/// What a service does with a request and the answers to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Strategy {
    /// Which one it is.
    pub kind: Kind,
    /// Statuses that are no answer but a failure. A gRPC call's status counts as the one of HTTP that it stands for.
    pub failed_status: Vec<RangeInclusive<u32>>,
    /// Whether what has an effect each time it is sent may be sent more than once, too.
    pub non_idempotent: bool,
    /// A longer body is not kept to be sent again.
    pub body_bytes_max: usize,
}

/// Which strategy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Another endpoint is asked.
    Failover(Box<Retry>),
    /// One endpoint is asked, once.
    Failfast,
    /// A failure is answered as if nothing were the matter.
    Failsafe,
    /// What failed is sent again later.
    Failback(Failback),
    /// So many endpoints are asked at once: the first good answer is taken, and the others are given up. At least 2.
    Forking(u32),
    /// All endpoints are asked.
    Broadcast(Broadcast),
}

/// How what failed is sent again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failback {
    /// So many times at most. At least 1.
    pub retries: u32,
    /// After this, and after this again.
    pub interval: Duration,
    /// So many requests wait at most, on the whole node. At least 1.
    pub tasks: u32,
}

/// Who is asked, and what the answers come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broadcast {
    /// Only endpoints that have all of these labels: then it is a multicast.
    pub subset: BTreeMap<String, String>,
    /// What the caller is told.
    pub aggregate: Aggregate,
}

/// What many answers come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aggregate {
    /// Good if all are.
    All,
    /// Good if any is.
    Any,
    /// Good if more than half are.
    Quorum,
    /// What the first is.
    First,
}
