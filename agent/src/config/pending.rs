//! Requests that wait until their service has room for them.

use std::time::Duration;

/// How many may wait, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Requests at once, of all workers together. At least 1.
    pub requests_max: u32,
    /// Each of them. More than nothing.
    pub wait_max: Duration,
}
