//! What anybody can have happen as often as he likes, and is to be told in the log all the same: once in a while. Counters have all of it.

use std::{cell::Cell, time::Duration};

/// How long after it was told it is not told again.
const PAUSE: Duration = Duration::from_secs(10);

/// One thing that one worker tells.
#[derive(Debug, Default)]
pub struct Seldom(Cell<Option<Duration>>);

impl Seldom {
    /// Whether it is time to tell it; then it is taken as told.
    pub fn is_due(&self, now: Duration) -> bool {
        let is_due = self.0.get().is_none_or(|told| now.saturating_sub(told) >= PAUSE);
        if is_due {
            self.0.set(Some(now));
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_on_and_on_is_told_at_once_and_then_seldom() {
        let seldom = Seldom::default();
        let told = (0..100_u32).filter(|second| seldom.is_due(Duration::from_secs(1) * *second)).count();
        assert_eq!(told, 10);
        assert!(!seldom.is_due(Duration::ZERO), "a clock that stood");
    }
}
