//! May one more connection, or request ([`request`]), pass now? A permit, or a refusal with its reason.
//!
//! What everybody shares is atomics, and each check and its taking is one step: no two can both take the last place. What is counted by
//! source is one worker's alone: the kernel half brings all connections of a source to one worker.

pub mod adaptive;
mod admission;
pub mod bbr;
pub mod calendar;
mod gradient;
pub mod pending;
pub mod request;
mod warm_up;
mod window;

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
};

use crate::{
    cluster::Refused,
    config::policy::{Rate, Take},
};

/// Takes a token from a bucket, if there is one. The bucket is one word: when it would be full again, in nanoseconds of whatever clock its
/// user keeps to; a new one, zero, is full.
///
/// A token bucket in one word is the generic cell rate algorithm (ITU-T I.371): a connection conforms if the time at which the bucket
/// would be full lies no further ahead than what the burst takes to refill, but for one token.
pub fn take(bucket: &AtomicU64, rate: Rate, now_ns: u64) -> bool {
    bucket.fetch_update(Relaxed, Relaxed, |full_at| taken(full_at, rate, now_ns)).is_ok()
}

/// When the bucket will be full with one token less; `None` if it has none.
fn taken(full_at: u64, rate: Rate, now_ns: u64) -> Option<u64> {
    const SECOND_NS: u64 = 1_000_000_000;
    let token_ns = SECOND_NS / u64::from(rate.per_second.max(1));
    let ahead = full_at.saturating_sub(now_ns);
    (ahead <= token_ns * u64::from(rate.burst.saturating_sub(1))).then(|| now_ns + ahead + token_ns)
}

/// Takes a place, if fewer than `most` are taken. It is to be given back with [`leave`].
pub fn enter(open: &AtomicU32, most: Option<u32>) -> bool {
    open.fetch_update(Relaxed, Relaxed, |open| (open < most.unwrap_or(u32::MAX)).then(|| open + 1)).is_ok()
}

/// Gives a place back.
pub fn leave(open: &AtomicU32) {
    open.fetch_sub(1, Relaxed);
}

/// What one worker counts by source address.
#[derive(Debug, Default)]
pub struct Sources {
    by_ip: HashMap<IpAddr, Source>,
    /// Size at which those that are forgotten are looked for.
    tidy_at: usize,
}

#[derive(Debug, Default)]
struct Source {
    open: u32,
    full_at: u64,
}

/// Least size at which the table is tidied: tidying costs as much as it holds, and is paid by as many that came in.
const TIDY_AT_LEAST: usize = 1024;

impl Sources {
    /// Whether one more connection of `ip` may pass; if so it is counted, and to be given back with [`Sources::leave`].
    pub fn enter(&mut self, ip: IpAddr, limit: &Take, now_ns: u64) -> Result<(), Refused> {
        if self.by_ip.len() >= self.tidy_at {
            self.tidy(now_ns);
        }
        let source = self.by_ip.entry(ip).or_default();
        if source.open >= limit.connections.unwrap_or(u32::MAX) {
            return Err(Refused::SourceConnections);
        }
        if let Some(rate) = limit.rate {
            source.full_at = taken(source.full_at, rate, now_ns).ok_or(Refused::SourceRate)?;
        }
        source.open += 1;
        Ok(())
    }

    /// Gives a connection's place back.
    pub fn leave(&mut self, ip: IpAddr, now_ns: u64) {
        let Some(source) = self.by_ip.get_mut(&ip) else { return };
        source.open = source.open.saturating_sub(1);
        if source.open == 0 && source.full_at <= now_ns {
            self.by_ip.remove(&ip);
        }
    }

    /// Forgets sources of which there is nothing to remember. What is left is bounded by the worker's connections, and by the rate at which they
    /// can have come within the time in which a bucket refills.
    fn tidy(&mut self, now_ns: u64) {
        self.by_ip.retain(|_, source| source.open > 0 || source.full_at > now_ns);
        self.tidy_at = (self.by_ip.len() * 2).max(TIDY_AT_LEAST);
    }
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, sync::Arc, thread};

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn ip(last: u32) -> IpAddr {
        Ipv4Addr::from(0x0a00_0000 + last).into()
    }

    #[test]
    fn a_bucket_gives_its_burst_at_once_and_then_its_rate() {
        let bucket = AtomicU64::default();
        let rate = Rate { per_second: 10, burst: 3 };
        let taken = |now: u64| (0..9).take_while(|_| take(&bucket, rate, now)).count();
        assert_eq!(taken(0), 3);
        assert_eq!(taken(SECOND / 10 - 1), 0);
        assert_eq!(taken(SECOND / 10), 1);
        assert_eq!(taken(SECOND), 3, "no more than it holds, however long nobody came");
        assert_eq!(taken(5 * SECOND), 3);
    }

    #[test]
    fn a_minute_at_the_rate_lets_just_that_many_through() {
        let bucket = AtomicU64::default();
        let rate = Rate { per_second: 7, burst: 7 };
        let passed = (0..60_000_u64).filter(|ms| take(&bucket, rate, ms * 1_000_000)).count();
        assert!((420..=427).contains(&passed), "{passed}");
    }

    #[test]
    fn the_last_place_is_taken_once_however_many_reach_for_it() {
        let (open, bucket) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU64::default()));
        let reach = |_| {
            let (open, bucket) = (Arc::clone(&open), Arc::clone(&bucket));
            thread::spawn(move || {
                let entered = (0..10_000).filter(|_| enter(&open, Some(1234))).count();
                let taken = (0..10_000).filter(|_| take(&bucket, Rate { per_second: 1, burst: 777 }, 0)).count();
                (entered, taken)
            })
        };
        let threads: Vec<_> = (0..4).map(reach).collect();
        let sums = threads.into_iter().map(|thread| thread.join().expect("no panic"));
        assert_eq!(sums.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1)), (1234, 777));
        leave(&open);
        assert!(enter(&open, Some(1234)) && !enter(&open, Some(1234)) && enter(&open, None));
    }

    #[test]
    fn a_source_is_held_to_its_own_limits_only() {
        let mut sources = Sources::default();
        let limit = Take { connections: Some(2), rate: Some(Rate { per_second: 1, burst: 3 }) };
        assert_eq!(sources.enter(ip(1), &limit, 0), Ok(()));
        assert_eq!(sources.enter(ip(1), &limit, 0), Ok(()));
        assert_eq!(sources.enter(ip(1), &limit, 0), Err(Refused::SourceConnections));
        assert_eq!(sources.enter(ip(2), &limit, 0), Ok(()));
        sources.leave(ip(1), 0);
        assert_eq!(sources.enter(ip(1), &limit, 0), Ok(()));
        sources.leave(ip(1), 0);
        assert_eq!(sources.enter(ip(1), &limit, 0), Err(Refused::SourceRate));
        assert_eq!(sources.enter(ip(1), &limit, SECOND), Ok(()));
    }

    #[test]
    fn sources_of_which_nothing_is_to_be_remembered_take_no_memory() {
        let mut sources = Sources::default();
        let limit = Take { connections: None, rate: Some(Rate { per_second: 1, burst: 1 }) };
        for last in 0..100_000 {
            let now = u64::from(last) * SECOND;
            assert_eq!(sources.enter(ip(last), &limit, now), Ok(()));
            sources.leave(ip(last), now);
        }
        assert!(sources.by_ip.len() <= TIDY_AT_LEAST, "{}", sources.by_ip.len());
    }
}
