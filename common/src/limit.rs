//! What a service, and each source of it, may take: connections at once and connections per second. The kernel half reserves in
//! `connect()` and gives back when the connection ends; nothing of it needs the agent.

use crate::seal::{SEED, mix, mix_u64};

/// What may be taken of one thing; zero means without limit.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// Connections at once.
    pub connections: u64,
    /// Nanoseconds from one connection to the next at the sustained rate.
    pub interval_ns: u64,
    /// How far ahead of the sustained rate a burst may run, in nanoseconds: (burst - 1) * `interval_ns`.
    pub tolerance_ns: u64,
}

impl Limit {
    /// Whether one more connection conforms at `now_ns`, given the theoretical arrival time that the earlier ones left: the arrival time
    /// it leaves itself. The generic cell rate algorithm, virtual scheduling (ITU-T I.371, Annex A): a token bucket of `burst` tokens that
    /// is filled with one token each `interval_ns`, in a single word.
    #[inline(always)]
    pub const fn arrival(&self, theoretical_ns: u64, now_ns: u64) -> Option<u64> {
        let due = if theoretical_ns > now_ns { theoretical_ns } else { now_ns };
        if due - now_ns > self.tolerance_ns {
            return None;
        }
        Some(due + self.interval_ns)
    }
}

/// A service's limits: one sealed entry by the service's id.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimitPolicy {
    /// Of all its connections together.
    pub service: Limit,
    /// Of each source's connections.
    pub source: Limit,
    /// One of [`over`].
    pub over: u32,
    /// See [`LimitPolicy::sealed`].
    pub seal: u32,
}

/// Values of [`LimitPolicy::over`]: what becomes of a `connect()` over a limit.
pub mod over {
    /// It fails with `ECONNREFUSED`.
    pub const REFUSE: u32 = 0;
    /// It fails with `EPERM`.
    pub const FORBID: u32 = 1;
    /// It goes on untouched, to the address that was dialled.
    pub const PASS: u32 = 2;
}

impl LimitPolicy {
    /// The entry with its seal, for the service it will stand under (see [`crate::service::Service::sealed`]).
    pub fn sealed(mut self, service: u32) -> Self {
        self.seal = self.seal_for(service);
        self
    }

    /// Whether the entry is whole and belongs to this service.
    #[inline(always)]
    pub fn is_whole(&self, service: u32) -> bool {
        self.seal == self.seal_for(service)
    }

    #[inline(always)]
    fn seal_for(&self, service: u32) -> u32 {
        let seal = mix_limit(mix_limit(mix(SEED, service), &self.service), &self.source);
        mix(seal, self.over)
    }
}

#[inline(always)]
const fn mix_limit(state: u32, limit: &Limit) -> u32 {
    mix_u64(mix_u64(mix_u64(state, limit.connections), limit.interval_ns), limit.tolerance_ns)
}

/// Key of what is taken now.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LimitKey {
    /// Which source; 0 for the service as a whole.
    pub source: u64,
    /// [`crate::service::Service::id`].
    pub service: u32,
    /// One of [`limit_scope`].
    pub scope: u32,
}

/// Values of [`LimitKey::scope`].
pub mod limit_scope {
    /// The service as a whole.
    pub const SERVICE: u32 = 0;
    /// One source of it.
    pub const SOURCE: u32 = 1;
}

/// What is taken now. Hooks make the entry at the first connection. It is removed only by whoever has set `open` from zero to
/// [`LIMIT_DEAD`]: who meets that takes another look, and who has counted in the memory of a removed entry sees that it is not the key's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimitState {
    /// Connections open, those under way included.
    pub open: u64,
    /// See [`Limit::arrival`].
    pub theoretical_ns: u64,
}

/// Value of [`LimitState::open`] of an entry that is being removed.
pub const LIMIT_DEAD: u64 = u64::MAX;

/// Keys in one run of the sweep.
pub const SWEEP_KEYS_MAX: usize = 64;

/// What was taken and given back of one key in a table of another size since it was copied.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitCarried {
    /// Whose.
    pub key: LimitKey,
    /// Connections opened less connections ended.
    pub opened: i64,
    /// The last arrival time there, see [`Limit::arrival`]: the later one holds.
    pub theoretical_ns: u64,
}

/// Entries in one run of the program that adds them.
pub const SETTLED_MAX: usize = 32;

const _: () = {
    assert!(size_of::<Limit>() == 24);
    assert!(size_of::<LimitPolicy>() == 56);
    assert!(size_of::<LimitKey>() == 16);
    assert!(size_of::<LimitState>() == 16);
    assert!(size_of::<LimitCarried>() == 32);
};

#[cfg(test)]
mod tests {
    use super::*;

    /// 10 a second, 3 at once.
    const TEN: Limit = Limit { connections: 0, interval_ns: 100, tolerance_ns: 200 };

    /// Which of these arrivals conform.
    fn play(limit: &Limit, arrivals: &[u64]) -> Vec<bool> {
        let mut theoretical = 0;
        let one = |now: &u64| match limit.arrival(theoretical, *now) {
            Some(next) => {
                theoretical = next;
                true
            }
            None => false,
        };
        arrivals.iter().map(one).collect()
    }

    extern crate std;
    use std::vec::Vec;

    #[test]
    fn a_burst_passes_and_then_one_each_interval() {
        assert_eq!(play(&TEN, &[1000; 5]), [true, true, true, false, false]);
        assert_eq!(
            play(&TEN, &[1000, 1000, 1000, 1099, 1100, 1100, 1200]),
            [true, true, true, false, true, false, true]
        );
    }

    #[test]
    fn after_a_pause_there_is_a_burst_and_no_more() {
        assert_eq!(play(&TEN, &[0, 0, 0, 9000, 9000, 9000, 9000]), [true, true, true, true, true, true, false]);
    }

    #[test]
    fn in_any_span_no_more_pass_than_a_burst_and_the_rate() {
        // Every 7 ns over a long time: 3 at once, then one each 100 ns.
        let arrivals: Vec<u64> = (0..10_000).map(|n| n * 7).collect();
        let passed = play(&TEN, &arrivals).iter().filter(|passed| **passed).count() as u64;
        let span = arrivals[arrivals.len() - 1];
        assert!((passed as i64 - (3 + span / 100) as i64).abs() <= 1, "{passed}");
    }

    #[test]
    fn a_policy_made_of_two_halves_is_not_whole() {
        let policy = LimitPolicy { service: TEN, source: Limit::default(), over: over::REFUSE, seal: 0 }.sealed(7);
        assert!(policy.is_whole(7) && !policy.is_whole(8));
        assert!(!LimitPolicy { source: TEN, ..policy }.is_whole(7));
        assert!(!LimitPolicy { over: over::PASS, ..policy }.is_whole(7));
    }
}
