//! What is measured, and what follows from it: medians, and comparisons pair by pair. Numbers come in, numbers go out; nothing here
//! reads a clock or a file.

use std::collections::BTreeMap;

/// One quantity, by the name it has in the JSON lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Figure {
    /// Requests per second, as the load generator counts them.
    Rps,
    /// Median latency.
    P50,
    /// 99th percentile of latency.
    P99,
    /// CPU time of the proxy process, all its threads, per request.
    Cpu,
    /// CPU time of the whole machine per request.
    MachineCpu,
    /// CPU time of the scenario's own processes per request: what is left of the machine's when other programs run beside it.
    OwnCpu,
    /// Resident memory of the proxy process after the round.
    Rss,
    /// Duration of one `connect()`.
    Connect,
    /// GB that went through in a second.
    GbPerS,
    /// CPU time of the proxy process, all its threads, per GB.
    CpuPerGb,
    /// CPU time of the whole machine per GB.
    MachineCpuPerGb,
    /// From the start of the agent until its last service is in force.
    Load,
    /// From the signal to read a wholly new configuration until it is in force.
    Reload,
    /// From the signal to read a configuration in which one endpoint is another until that is in force.
    Change,
    /// Of that, from the moment at which the agent has read it: its own word for it.
    Apply,
    /// Kernel memory of the maps.
    Maps,
    /// What an idle connection holds of the agent's memory.
    Held,
    /// What it holds of the kernel's, both ends and all else that is in slabs.
    HeldKernel,
    /// CPU time of programs that have no part in the benchmark, in percent of one core: how far a round can be trusted.
    Foreign,
}

impl Figure {
    /// The key in a JSON line.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Rps => "rps",
            Self::P50 => "p50_us",
            Self::P99 => "p99_us",
            Self::Cpu => "cpu_us_per_req",
            Self::MachineCpu => "machine_cpu_us_per_req",
            Self::OwnCpu => "own_cpu_us_per_req",
            Self::Rss => "rss_kb",
            Self::Connect => "connect_us",
            Self::GbPerS => "gb_per_s",
            Self::CpuPerGb => "cpu_s_per_gb",
            Self::MachineCpuPerGb => "machine_cpu_s_per_gb",
            Self::Load => "load_ms",
            Self::Reload => "reload_ms",
            Self::Change => "change_ms",
            Self::Apply => "apply_ms",
            Self::Maps => "maps_kb",
            Self::Held => "held_kb_per_conn",
            Self::HeldKernel => "held_kernel_kb_per_conn",
            Self::Foreign => "foreign_cpu_percent",
        }
    }

    /// The name in a sentence.
    pub const fn say(self) -> &'static str {
        match self {
            Self::Rps => "requests/s",
            Self::P50 => "p50 (µs)",
            Self::P99 => "p99 (µs)",
            Self::Cpu => "CPU per request (µs)",
            Self::MachineCpu => "machine's CPU per request (µs)",
            Self::OwnCpu => "all processes' CPU per request (µs)",
            Self::Rss => "RSS (kB)",
            Self::Connect => "connect() (µs)",
            Self::GbPerS => "GB/s",
            Self::CpuPerGb => "CPU per GB (s)",
            Self::MachineCpuPerGb => "machine's CPU per GB (s)",
            Self::Load => "load (ms)",
            Self::Reload => "reload (ms)",
            Self::Change => "one endpoint changed, the file read included (ms)",
            Self::Apply => "one endpoint changed, once read (ms)",
            Self::Maps => "maps (kB)",
            Self::Held => "memory of a connection (kB)",
            Self::HeldKernel => "kernel memory of a connection (kB)",
            Self::Foreign => "CPU of other programs (% of a core)",
        }
    }
}

/// Where the processes of a scenario are allowed to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Placement {
    /// Wherever the scheduler puts them.
    Free,
    /// Client and origin on CPU 0, the proxy alone on CPU 1.
    Pinned,
}

impl Placement {
    /// The name in reports and JSON lines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Pinned => "pinned",
        }
    }
}

/// What one round of one way gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Which way to the origin.
    pub way: &'static str,
    /// Where the processes ran.
    pub placement: Placement,
    /// Counted from 1.
    pub round: u32,
    /// The figures this scenario measures.
    pub values: BTreeMap<Figure, f64>,
}

/// Median, least and greatest of several values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The middle one, or the mean of the two in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

impl Spread {
    /// Of these values; `None` when there are none.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
        Some(Self { median, min, max })
    }
}

/// The value below which this share of the sorted ones lies (nearest rank); 0 when there are none.
pub fn quantile(sorted: &[u64], share: f64) -> u64 {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)
}

/// How the figures of one round are set against each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    /// One divided by the other.
    Ratio,
    /// One less the other.
    Difference,
}

/// Every sample of a run, with the questions one asks of them.
#[derive(Debug, Default)]
pub struct Samples(pub Vec<Sample>);

impl Samples {
    /// The figure of one way, over its rounds.
    pub fn spread(&self, placement: Placement, way: &str, figure: Figure) -> Option<Spread> {
        Spread::of(self.of(placement, way).filter_map(|sample| sample.values.get(&figure).copied()).collect())
    }

    /// One way set against another, round by round: rounds that only one of them has are left out.
    pub fn compare(
        &self,
        placement: Placement,
        way: &str,
        over: &str,
        figure: Figure,
        compare: Compare,
    ) -> Option<Spread> {
        let pairs = self.of(placement, way).filter_map(|sample| {
            let other = self.of(placement, over).find(|other| other.round == sample.round)?;
            let (value, base) = (*sample.values.get(&figure)?, *other.values.get(&figure)?);
            match compare {
                Compare::Ratio => (base != 0.0).then(|| value / base),
                Compare::Difference => Some(value - base),
            }
        });
        Spread::of(pairs.collect())
    }

    /// The samples of this figure less those of `base`, round by round.
    pub fn over(&self, placement: Placement, base: &str, figure: Figure) -> Self {
        let less = |sample: &Sample| {
            let other = self.of(placement, base).find(|other| other.round == sample.round)?;
            let value = sample.values.get(&figure)? - other.values.get(&figure)?;
            Some(Sample { values: BTreeMap::from([(figure, value)]), ..sample.clone() })
        };
        Self(self.0.iter().filter(|sample| sample.placement == placement).filter_map(less).collect())
    }

    /// Ways that have samples in this placement, in the order of their first one.
    pub fn ways(&self, placement: Placement) -> Vec<&'static str> {
        let mut ways = Vec::new();
        for sample in self.0.iter().filter(|sample| sample.placement == placement) {
            if !ways.contains(&sample.way) {
                ways.push(sample.way);
            }
        }
        ways
    }

    fn of(&self, placement: Placement, way: &str) -> impl Iterator<Item = &Sample> {
        self.0.iter().filter(move |sample| sample.placement == placement && sample.way == way)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(way: &'static str, placement: Placement, round: u32, rps: f64) -> Sample {
        Sample { way, placement, round, values: BTreeMap::from([(Figure::Rps, rps)]) }
    }

    #[test]
    fn the_median_is_the_middle_value_or_the_mean_of_the_two() {
        for (values, median, min, max) in [
            (vec![3.0], 3.0, 3.0, 3.0),
            (vec![9.0, 1.0, 5.0], 5.0, 1.0, 9.0),
            (vec![4.0, 1.0, 2.0, 3.0], 2.5, 1.0, 4.0),
        ] {
            assert_eq!(Spread::of(values), Some(Spread { median, min, max }));
        }
        assert_eq!(Spread::of(vec![]), None);
    }

    #[test]
    fn a_quantile_is_the_value_of_nearest_rank() {
        let values: Vec<u64> = (1..=200).collect();
        assert_eq!((quantile(&values, 0.5), quantile(&values, 0.99), quantile(&values, 1.0)), (100, 198, 200));
        assert_eq!((quantile(&[7], 0.01), quantile(&[], 0.5)), (7, 0));
    }

    #[test]
    fn ratios_are_taken_within_a_round_and_not_of_the_medians() {
        let samples = Samples(vec![
            sample("a", Placement::Free, 1, 10.0),
            sample("b", Placement::Free, 1, 20.0),
            sample("a", Placement::Free, 2, 100.0),
            sample("b", Placement::Free, 2, 100.0),
            sample("a", Placement::Free, 3, 90.0),
            sample("b", Placement::Free, 3, 60.0),
            // neither the other placement nor a round without its pair counts
            sample("a", Placement::Pinned, 1, 1.0),
            sample("a", Placement::Free, 4, 1000.0),
        ]);
        let ratio = samples.compare(Placement::Free, "a", "b", Figure::Rps, Compare::Ratio);
        assert_eq!(ratio, Some(Spread { median: 1.0, min: 0.5, max: 1.5 }));
        let difference = samples.compare(Placement::Free, "a", "b", Figure::Rps, Compare::Difference);
        assert_eq!(difference, Some(Spread { median: 0.0, min: -10.0, max: 30.0 }));
        assert_eq!(samples.compare(Placement::Pinned, "a", "b", Figure::Rps, Compare::Ratio), None);
        assert_eq!(samples.compare(Placement::Free, "a", "b", Figure::Cpu, Compare::Ratio), None);
    }

    #[test]
    fn a_ratio_over_nothing_is_no_ratio() {
        let samples = Samples(vec![sample("a", Placement::Free, 1, 10.0), sample("b", Placement::Free, 1, 0.0)]);
        assert_eq!(samples.compare(Placement::Free, "a", "b", Figure::Rps, Compare::Ratio), None);
    }

    #[test]
    fn ways_keep_the_order_in_which_they_were_measured() {
        let samples = Samples(vec![
            sample("direct", Placement::Free, 1, 1.0),
            sample("nginx", Placement::Free, 1, 1.0),
            sample("direct", Placement::Free, 2, 1.0),
            sample("envoy", Placement::Pinned, 1, 1.0),
        ]);
        assert_eq!(samples.ways(Placement::Free), ["direct", "nginx"]);
    }
}
