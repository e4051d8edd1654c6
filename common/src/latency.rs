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

const _: () = assert!(size_of::<Latencies>() == 48);

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
    fn what_two_cpus_counted_is_added_up() {
        let (mut one, mut two) = (Latencies::default(), Latencies::default());
        one.count(10);
        one.count(2_000_000);
        two.count(10);
        one.add(&two);
        assert_eq!((one.counts[0], one.counts[9], one.sum_us), (2, 1, 2_000_020));
    }
}
