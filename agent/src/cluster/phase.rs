//! What a breaker is at, in one word: so that it turns in one step, whoever else looks at it.

/// What a breaker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum BreakerPhase {
    /// Traffic flows.
    Closed = 0,
    /// Some requests try the service.
    HalfOpen = 1,
    /// Nothing passes.
    Open = 2,
}

impl BreakerPhase {
    /// Each once, by its number.
    pub const ALL: [Self; 3] = [Self::Closed, Self::HalfOpen, Self::Open];

    /// The field's word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }
}

/// Eight years and eight months in milliseconds.
const TIME_BITS: u32 = 38;
const COUNT_BITS: u32 = 6;
/// Within one of so many turns there is no late answer left to a request that passed before it.
const EPOCH_BITS: u32 = 12;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;

/// The word, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerWord {
    /// What it does.
    pub phase: BreakerPhase,
    /// Which turn of the breaker this follows.
    pub epoch: u16,
    /// Requests that try it.
    pub started: u32,
    /// Of those, the ones that succeeded.
    pub succeeded: u32,
    /// When it turned, or was tried last.
    pub since_ms: u64,
}

impl BreakerWord {
    /// Takes it apart.
    pub fn of(bits: u64) -> Self {
        let rest = bits >> TIME_BITS;
        let counts = rest >> 2;
        let phase = match rest & 3 {
            0 => BreakerPhase::Closed,
            1 => BreakerPhase::HalfOpen,
            _ => BreakerPhase::Open,
        };
        Self {
            phase,
            epoch: (counts >> (2 * COUNT_BITS)) as u16,
            started: (counts & COUNT_MASK) as u32,
            succeeded: (counts >> COUNT_BITS & COUNT_MASK) as u32,
            since_ms: bits & ((1 << TIME_BITS) - 1),
        }
    }

    /// Puts it together.
    pub fn bits(self) -> u64 {
        let counts = u64::from(self.started) | u64::from(self.succeeded) << COUNT_BITS;
        let rest = (counts | u64::from(self.epoch) << (2 * COUNT_BITS)) << 2 | self.phase as u64;
        rest << TIME_BITS | self.since_ms & ((1 << TIME_BITS) - 1)
    }

    /// The next epoch.
    pub fn turned(from: Self, phase: BreakerPhase, since_ms: u64) -> Self {
        let epoch = (from.epoch + 1) % (1 << EPOCH_BITS);
        Self { phase, epoch, started: 0, succeeded: 0, since_ms }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_word_says_what_was_put_in(phase in 0..3_usize, epoch in 0..4096_u16, tried in 0..64_u32, good in 0..64_u32, at in 0..1_u64 << 38) {
            let word = BreakerWord { phase: BreakerPhase::ALL[phase], epoch, started: tried, succeeded: good, since_ms: at };
            prop_assert_eq!(BreakerWord::of(word.bits()), word);
        }
    }
}
