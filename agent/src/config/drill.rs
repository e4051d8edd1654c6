//! A drill: what is to go wrong on purpose, in which order and for how long.

use std::time::Duration;

use super::filter::Filter;

/// Longest lease of a fault: whoever ordered it renews it for as long as it is wanted.
pub const LEASE_MS_MAX: u32 = 60_000;

/// What is ordered, for one service.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Its name.
    pub service: String,
    /// How long is looked at it before anything happens.
    pub before: Duration,
    /// What happens, one after the other; at least one.
    pub steps: Vec<Step>,
    /// How long is looked at it after that.
    pub after: Duration,
}

/// Part of a drill.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// What the report calls it.
    pub name: String,
    /// How long it lasts.
    pub period: Duration,
    /// What goes wrong; `None`: nothing.
    pub fault: Option<Filter>,
}
