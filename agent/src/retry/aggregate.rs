//! Many answers to one: when it is known what they come to, and to which.

use crate::config::strategy::Aggregate;

/// The answers so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answers {
    /// How many endpoints were asked. At least 1.
    pub asked: usize,
    /// Answers that are good.
    pub good: usize,
    /// Those that are not, and endpoints that did not answer.
    pub bad: usize,
}

impl Answers {
    /// None yet, of so many.
    pub fn of(asked: usize) -> Self {
        Self { asked, good: 0, bad: 0 }
    }

    /// One more.
    pub fn count(&mut self, is_good: bool) {
        if is_good { self.good += 1 } else { self.bad += 1 }
    }

    /// Whether they come to a good answer, as soon as that is known.
    pub fn come_to(&self, aggregate: Aggregate) -> Option<bool> {
        let majority = self.asked / 2 + 1;
        let (enough_good, enough_bad) = match aggregate {
            Aggregate::All => (self.asked, 1),
            Aggregate::Any => (1, self.asked),
            Aggregate::Quorum => (majority, self.asked - majority + 1),
            Aggregate::First => (1, 1),
        };
        match self {
            _ if self.good >= enough_good => Some(true),
            _ if self.bad >= enough_bad => Some(false),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_come_to_what_the_rule_says_as_soon_as_that_is_known() {
        use Aggregate::{All, Any, First, Quorum};
        // How they came in, `+` good and `-` bad; after how many it is known, and what.
        for (aggregate, came, known, good) in [
            (All, "+++", 3, true),
            (All, "-++", 1, false),
            (All, "++-", 3, false),
            (All, "+", 1, true),
            (Any, "--+", 3, true),
            (Any, "+--", 1, true),
            (Any, "---", 3, false),
            (Quorum, "++-", 2, true),
            (Quorum, "-+-", 3, false),
            (Quorum, "--+", 2, false),
            (Quorum, "-++-", 4, false),
            (Quorum, "+-++", 4, true),
            (Quorum, "--++", 2, false),
            (Quorum, "-", 1, false),
            (First, "-++", 1, false),
            (First, "+--", 1, true),
        ] {
            let mut answers = Answers::of(came.len());
            let found = came.bytes().enumerate().find_map(|(at, answer)| {
                answers.count(answer == b'+');
                answers.come_to(aggregate).map(|good| (at + 1, good))
            });
            assert_eq!(found, Some((known, good)), "{aggregate:?} {came}");
        }
    }
}
