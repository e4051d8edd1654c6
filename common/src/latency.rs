//! Latencies as the hooks count them: a histogram small enough to keep one for each endpoint and CPU.

/// Buckets of a histogram, the last without a bound.
pub const BUCKETS: usize = 10;

/// Upper bounds of all buckets but the last, in µs: from a handshake over loopback to the first retransmitted SYN (1 s, RFC 6298 2.1),
/// by factors of four, because what one asks of them is the order of magnitude and because there may be 100 000 of them for each CPU.
pub const BOUNDS_US: [u32; BUCKETS - 1] = [16, 64, 256, 1_024, 4_096, 16_384, 65_536, 262_144, 1_048_576];

/// How long something took, how often.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latencies {
    /// The sum of all, in µs.
    pub sum_us: u64,
    /// How many fell into each bucket (not cumulative). Wraps after 2^32 on one CPU.
    pub counts: [u32; BUCKETS],
}

impl Latencies {
    /// Counts one.
    #[inline(always)]
    pub fn count(&mut self, took_us: u32) {
        self.sum_us = self.sum_us.wrapping_add(took_us as u64);
        if let Some(count) = self.counts.get_mut(bucket(took_us)) {
            *count = count.wrapping_add(1);
        }
    }

    /// How many there were.
    pub fn total(&self) -> u64 {
        self.counts.iter().map(|count| u64::from(*count)).sum()
    }

    /// The mean, in µs; `None` when there was none.
    pub fn mean_us(&self) -> Option<u64> {
        self.sum_us.checked_div(self.total())
    }

    /// What this part of all, in percent, stayed below, in µs: the bound of a bucket; `None` when there was none, or no bound holds it.
    pub fn percentile_us_max(&self, percent: u64) -> Option<u32> {
        let wanted = (self.total() * percent).div_ceil(100);
        let mut below = 0;
        let holds = |(bound, count): (&u32, &u32)| {
            below += u64::from(*count);
            (below >= wanted).then_some(*bound)
        };
        if wanted == 0 { None } else { BOUNDS_US.iter().zip(&self.counts).find_map(holds) }
    }

    /// Adds what another CPU has counted.
    pub fn add(&mut self, other: &Self) {
        self.sum_us = self.sum_us.wrapping_add(other.sum_us);
        self.counts.iter_mut().zip(other.counts).for_each(|(sum, count)| *sum = sum.wrapping_add(count));
    }
}

/// The bucket that holds a latency: how many digits it has to the base of four, in units of the first bound. The kernel's instruction
/// set counts no leading zeros, so that the digits are halved instead.
#[inline(always)]
pub const fn bucket(took_us: u32) -> usize {
    let mut rest = took_us.saturating_sub(1) >> 4;
    if rest >= 1 << 16 {
        return BUCKETS - 1;
    }
    let mut digits = 0;
    if rest >= 1 << 8 {
        digits += 4;
        rest >>= 8;
    }
    if rest >= 1 << 4 {
        digits += 2;
        rest >>= 4;
    }
    if rest >= 1 << 2 {
        digits += 1;
        rest >>= 2;
    }
    if rest > 0 {
        digits += 1;
    }
    digits
}

/// Per-CPU statistics of the connections of programs to one endpoint of one service, by [`crate::service::EndpointKey`]. The entry is
/// made at the first handshake: most of a large cluster's endpoints are never dialled from one host.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointLatency {
    /// From a dial to the end of its handshake.
    pub connect: Latencies,
    /// Smoothed round-trip time of connections when they end.
    pub rtt: Latencies,
    /// Segments sent again, counted when their connection ends.
    pub retransmits: u64,
}

impl EndpointLatency {
    /// Nothing measured yet.
    pub const ZERO: Self = {
        let none = Latencies { sum_us: 0, counts: [0; BUCKETS] };
        Self { connect: none, rtt: none, retransmits: 0 }
    };

    /// Adds what another CPU has counted.
    pub fn add(&mut self, other: &Self) {
        self.connect.add(&other.connect);
        self.rtt.add(&other.rtt);
        self.retransmits = self.retransmits.wrapping_add(other.retransmits);
    }
}

const _: () = {
    assert!(size_of::<Latencies>() == 48);
    assert!(size_of::<EndpointLatency>() == 104);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_falls_into_the_bucket_whose_bound_holds_it() {
        assert_eq!((bucket(0), bucket(1), bucket(u32::MAX)), (0, 0, BUCKETS - 1));
        for (index, bound) in BOUNDS_US.into_iter().enumerate() {
            assert_eq!((bucket(bound), bucket(bound + 1)), (index, index + 1), "{bound} us");
        }
    }

    #[test]
    fn a_percentile_is_the_bound_of_the_bucket_that_holds_it() {
        let mut latencies = Latencies::default();
        assert_eq!((latencies.mean_us(), latencies.percentile_us_max(99)), (None, None));
        for took in [10, 20, 30, 5_000] {
            latencies.count(took);
        }
        assert_eq!((latencies.mean_us(), latencies.percentile_us_max(75)), (Some(1_265), Some(64)));
        assert_eq!(latencies.percentile_us_max(99), Some(16_384));
        latencies.count(2_000_000);
        assert_eq!(latencies.percentile_us_max(99), None);
    }

    #[test]
    fn what_two_cpus_counted_is_added_up() {
        let (mut one, mut two) = (Latencies::default(), Latencies::default());
        one.count(10);
        one.count(2_000_000);
        two.count(10);
        one.add(&two);
        assert_eq!((one.counts[0], one.counts[9], one.sum_us), (2, 1, 2_000_020));
    }
}
